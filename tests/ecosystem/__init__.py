"""Packages that people bring, each at its real work on the lab: `make test-ecosystem`, docs/generated/ecosystem.md."""
