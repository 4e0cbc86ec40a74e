"""Applications of others, from their released packages, on the lab: `make test-applications`."""
