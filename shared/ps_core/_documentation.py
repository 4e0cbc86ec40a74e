"""The address of the documentation, for messages that link to it, and the errors that do."""

from __future__ import annotations

from typing import Any, ClassVar, Final, TypeVar

__all__ = ["DOCUMENTATION", "PREFIX", "Documented", "link", "see"]

E = TypeVar("E", bound=BaseException)

DOCUMENTATION: Final = "https://ps-postgres.readthedocs.io/en/stable/"
"""The project's URL "Documentation", as pyproject.toml has it."""
PREFIX: Final = "ps-postgres: "
"""What each note of ours begins with."""


def link(page: str, anchor: str) -> str:
    """Return the address of a section, as in `link("doctor", "D031")`."""
    return f"{DOCUMENTATION}{page}.html#{anchor.lower().replace('.', '-').replace('_', '-')}"


def see(error: E, section: str) -> E:
    """Return the error with a note that leads to a section of docs/reference/errors.md. Its message stays as it is."""
    error.add_note(f"{PREFIX}see {link('reference/errors', section)}")
    return error


class Documented(Exception):
    """An error of this project's own. Its note leads to its section: tracebacks show it, and frameworks' errors carry it."""

    url: ClassVar[str]
    """The address of its section."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.url = link("reference/errors", cls.__name__)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        see(self, type(self).__name__)
