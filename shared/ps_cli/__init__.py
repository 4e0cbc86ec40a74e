"""The command ps-postgres."""
