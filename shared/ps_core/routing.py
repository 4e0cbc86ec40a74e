"""The decision: primary or replica, and why. Pure: what it needs to know is passed in, before a connection is checked out.

The first that applies decides, in the order of `decide`. Anything not known to be a read goes to the primary.

>>> decide(Situation(reads=True)).route, decide(Situation(reads=False)).route
(<Route.REPLICA: 'replica'>, <Route.PRIMARY: 'primary'>)
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["SAFE_METHODS", "Decision", "Route", "Situation", "decide"]

SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS", "QUERY"})
"""HTTP's methods for requests that only read (RFC 9110, section 9.2.1; QUERY is the draft for a GET with a body)."""


class Route(Enum):
    """Where work goes."""

    PRIMARY = "primary"
    REPLICA = "replica"


def _yes() -> bool:
    return True


def _no() -> bool:
    return False


@dataclass(slots=True, kw_only=True)  # not frozen: one is made for every statement, and freezing makes that three times as dear
class Situation:
    """What is known when a statement has to go somewhere, where there are replicas."""

    reads: bool
    """The statement is known to be a plain read. One that a server has refused READ ONLY is known to write."""
    option: Route | None = None
    """An option of the statement: for it alone, whatever its transaction did before."""
    block: Route | None = None
    """The innermost block, such as `using_primary()`."""
    on_primary: bool = False
    """The transaction is open on the primary: it wrote, or something of it had to go there."""
    flushing: bool = False
    """A unit of work is written."""
    serializable: bool = False
    """The isolation level is SERIALIZABLE, which no standby has."""
    read_only: bool = False
    """The session only reads: all of it is for replicas, and what writes is refused, wherever it goes."""
    declared: bool = False
    """The transaction was begun explicitly."""
    reading: bool = True
    """The context expects reads: an undeclared transaction, a GET request, a `reading()` block."""
    pinned: Callable[[], bool] = _no
    """Whether the caller has seen what only the primary certainly has: their token has no position. Asked where it matters."""
    in_share: Callable[[], bool] = _yes
    """Draws whether this read is of the share that operators let go to replicas; asked where it matters."""
    away: Callable[[], bool] = _no
    """Whether no replica endpoint would take the read now, and the primary may stand in for them; asked where it matters."""


@dataclass(frozen=True, slots=True)
class Decision:
    """A route and the reason for it, in the words of the log."""

    route: Route
    reason: str


_ASKED_PRIMARY: Final = Decision(Route.PRIMARY, "asked for the primary")
_ON_PRIMARY: Final = Decision(Route.PRIMARY, "the transaction is on the primary")
_FLUSH: Final = Decision(Route.PRIMARY, "flush")
_SERIALIZABLE: Final = Decision(Route.PRIMARY, "SERIALIZABLE")
_NO_READ: Final = Decision(Route.PRIMARY, "not known to be a read")
_DECLARED: Final = Decision(Route.PRIMARY, "declared transaction")
_PINNED: Final = Decision(Route.PRIMARY, "position not known")
_BY_SHARE: Final = Decision(Route.PRIMARY, "the operators' share")
_AWAY: Final = Decision(Route.PRIMARY, "no replica left")
_ASKED_REPLICA: Final = Decision(Route.REPLICA, "asked for a replica")
_READ_ONLY: Final = Decision(Route.REPLICA, "read-only session")
_READ: Final = Decision(Route.REPLICA, "read")


def decide(situation: Situation) -> Decision:
    """Return where the statement goes, and why."""
    asked = situation.option or situation.block
    if asked is Route.PRIMARY:
        return _ASKED_PRIMARY
    if situation.on_primary and situation.option is None:
        return _ON_PRIMARY
    if situation.flushing:
        return _FLUSH
    if situation.serializable:
        return _SERIALIZABLE
    if not (situation.reads or situation.read_only):
        return _NO_READ
    # What asks for replicas by name is neither a declared transaction's read nor held back by the share.
    by_name = _READ_ONLY if situation.read_only else None if asked is None else _ASKED_REPLICA
    if by_name is None and (situation.declared or not situation.reading):
        return _DECLARED
    if situation.pinned():
        return _PINNED
    if by_name is None and not situation.in_share():
        return _BY_SHARE
    return _AWAY if situation.away() else by_name or _READ
