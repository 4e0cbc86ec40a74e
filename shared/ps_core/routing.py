"""The decision: primary or replica, and why. Pure: what it needs to know is passed in.

Order of decision: what was asked for explicitly; what was written already; what a declared transaction is for; what the
statement is known to be. Anything not known to be a read goes to the primary.

>>> decide(Situation(reads=True)).route, decide(Situation(reads=False)).route
(<Route.REPLICA: 'replica'>, <Route.PRIMARY: 'primary'>)
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final

__all__ = ["BY_SHARE", "SAFE_METHODS", "WROTE", "Decision", "Route", "Situation", "decide"]

SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS", "QUERY"})
"""HTTP's methods for requests that only read (RFC 9110, section 9.2.1; QUERY is the draft for a GET with a body)."""


class Route(Enum):
    """Where work goes."""

    PRIMARY = "primary"
    REPLICA = "replica"


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What is known when a statement has to go somewhere."""

    reads: bool
    """The statement is known to be a plain read."""
    asked: Route | None = None
    """An option of the statement, or a block such as `using_primary()`."""
    wrote: bool = False
    """The transaction has written (or is not known not to have)."""
    declared: bool = False
    """The transaction was begun explicitly."""
    reading: bool = True
    """The context expects reads: an undeclared transaction, a GET request, a `using_replica()` block."""
    replicas: bool = True
    """There is a replica endpoint to go to."""


@dataclass(frozen=True, slots=True)
class Decision:
    """A route and the reason for it, in the words of the log."""

    route: Route
    reason: str


_NO_REPLICA = Decision(Route.PRIMARY, "no replica endpoint")
_ASKED_PRIMARY = Decision(Route.PRIMARY, "asked for the primary")
_ASKED_REPLICA = Decision(Route.REPLICA, "asked for a replica")
WROTE = Decision(Route.PRIMARY, "the transaction wrote")
_DECLARED = Decision(Route.PRIMARY, "declared transaction")
_NO_READ = Decision(Route.PRIMARY, "not known to be a read")
_READ = Decision(Route.REPLICA, "read")
BY_SHARE = Decision(Route.PRIMARY, "the operators' share")
"""Whoever draws by `ps_core.replicas.shares()` says this."""


def decide(situation: Situation) -> Decision:
    """Return where the statement goes, and why."""
    if not situation.replicas:
        return _NO_REPLICA
    if situation.asked is Route.PRIMARY:
        return _ASKED_PRIMARY
    if situation.wrote:
        return WROTE
    if not situation.reads:
        return _NO_READ
    if situation.asked is Route.REPLICA:
        return _ASKED_REPLICA
    if situation.declared or not situation.reading:
        return _DECLARED
    return _READ
