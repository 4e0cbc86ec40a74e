"""The frameworks' own test suites, over a pooler."""
