"""Run by `make test-postgis`."""
