"""What a replica refuses is handled by a session, with its own connection to the primary; else the connection itself."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from contextvars import Token

    from ps_core.failures import Failure, Kind

__all__ = ["Refusals", "falls_back"]


class Refusals:
    """The kinds of failures that a caller handles by asking the primary, within its `with` block.

    `handle_error` is for failures that users see.
    """

    __slots__ = ("_outer", "error", "failure", "handled", "kinds")
    _outer: Token[Refusals | None]

    def __init__(self, kinds: tuple[Kind, ...]) -> None:
        self.kinds = kinds
        self.handled = False
        """Whether the caller handles them, as a session does that chose the replica itself."""
        self.error: BaseException | None = None
        """The one that was met."""
        self.failure: Failure | None = None
        """What it was."""

    def __enter__(self) -> Self:
        self._outer = falls_back.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        falls_back.reset(self._outer)


falls_back: Final[ContextVar[Refusals | None]] = ContextVar("ps_sqlalchemy_falls_back", default=None)
