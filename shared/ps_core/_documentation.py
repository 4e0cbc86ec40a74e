"""The address of the documentation, for messages that link to it."""

from __future__ import annotations

from typing import Final

__all__ = ["DOCUMENTATION", "link"]

DOCUMENTATION: Final = "https://ps-postgres.readthedocs.io/en/stable/"
"""The project's URL "Documentation", as pyproject.toml has it."""


def link(page: str, anchor: str) -> str:
    """Return the address of a section, as in `link("doctor", "D031")`."""
    return f"{DOCUMENTATION}{page}.html#{anchor.lower().replace('.', '-').replace('_', '-')}"
