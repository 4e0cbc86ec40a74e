"""Who handles what a replica refuses: a session does, with its own connection to the primary; else the connection itself."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ps_core.failures import Failure, Kind

__all__ = ["Refusals", "falling_back", "falls_back"]


class Refusals:
    """The kinds of failures that a caller handles by asking the primary."""

    def __init__(self, kinds: tuple[Kind, ...]) -> None:
        self.kinds = kinds
        self.handled = False
        """Whether the caller handles them, as a session does that chose the replica itself."""
        self.error: BaseException | None = None
        """The one that was met."""
        self.failure: Failure | None = None
        """What it was."""


falls_back: Final[ContextVar[Refusals | None]] = ContextVar("ps_sqlalchemy_falls_back", default=None)


@contextmanager
def falling_back(kinds: tuple[Kind, ...]) -> Iterator[Refusals]:
    """Within the block, a refusal of these kinds is handled: `handle_error` is for failures that users see."""
    outer = falls_back.set(refusals := Refusals(kinds))
    try:
        yield refusals
    finally:
        falls_back.reset(outer)
