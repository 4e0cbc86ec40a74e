"""The same application on other packages and on this one, with the same faults: `make compare` writes docs/comparison.md."""
