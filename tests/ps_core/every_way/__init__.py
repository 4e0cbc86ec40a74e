"""The table of all ways of sending a statement and all promises: docs/generated/every-way.md."""
