"""Backends of packages, derived from ours: what a project writes for them."""
