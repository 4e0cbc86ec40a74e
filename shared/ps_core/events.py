"""What happened: one frozen record, handed to whoever subscribed; the standard library's logging hears all of it.

Each event has a logger of its own, `ps_core.events.` and its name. A record says which endpoint and why, in words of this
library: no statement, no parameter and no password is ever in it.

>>> seen = []
>>> unsubscribe = subscribe(seen.append)
>>> emit(Event(name=Name.RETRY, endpoint="primary", reason="connection_lost", attempt=1))
>>> str(seen[0])
"endpoint 'primary': tried again, connection_lost (attempt 1)"
>>> unsubscribe()
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Protocol

from ps_core._notes import deadline_note
from ps_core._plain_errors import ConfigurationError, DeadlineExceeded
from ps_core.failures import Failure, Kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from ps_core.routing import Decision

__all__ = ["Event", "Hook", "Name", "deadline_exceeded", "emit", "emit_fallback", "emit_route", "is_heard", "subscribe"]


class Name(StrEnum):
    """What can happen."""

    ROUTE = "route"
    """A statement was sent to the primary or to a replica, and why. Logged at DEBUG, as it is told for every statement."""
    BEHIND = "behind"
    """A replica had not replayed what the caller has seen; the read goes to the primary."""
    FALLBACK = "fallback"
    """Work that was meant for a replica goes to the primary: it writes, or no replica is left."""
    RETRY = "retry"
    """A try failed (`reason`: the rule of `ps_core.failures`), and another follows."""
    OUTAGE_OPENED = "outage_opened"
    """A probe of the endpoint failed: everybody in this process waits."""
    OUTAGE_CLOSED = "outage_closed"
    """The endpoint is there again, after `seconds`."""
    EJECTED = "ejected"
    """A replica endpoint is left out for now."""
    READMITTED = "readmitted"
    """It is back."""
    DEMOTED = "demoted"
    """The primary's server was found to be no primary any more; its connections are replaced."""
    COMMIT_OUTCOME = "commit_outcome"
    """The answer to a COMMIT was lost; `reason` is what was found out: committed, rolled back, unknown."""
    DEADLINE_EXCEEDED = "deadline_exceeded"
    """A caller's deadline ended its wait."""
    NOTICE = "notice"
    """A server or pooler said something that somebody should see; `reason` is what kind, `text` the words."""


# The level at which it is logged, and its words.
_WORDS: Final[dict[Name, tuple[int, str]]] = {
    Name.ROUTE: (logging.DEBUG, "chosen"),
    Name.BEHIND: (logging.DEBUG, "behind what the caller has seen, the primary is asked"),
    Name.FALLBACK: (logging.INFO, "the primary is asked instead"),
    Name.RETRY: (logging.INFO, "tried again"),
    Name.OUTAGE_OPENED: (logging.WARNING, "does not answer"),
    Name.OUTAGE_CLOSED: (logging.WARNING, "answers again"),
    Name.EJECTED: (logging.WARNING, "left out, reads go elsewhere"),
    Name.READMITTED: (logging.WARNING, "back, reads return"),
    Name.DEMOTED: (logging.WARNING, "the server was demoted"),
    Name.COMMIT_OUTCOME: (logging.WARNING, "the answer to a COMMIT was lost"),
    Name.DEADLINE_EXCEEDED: (logging.WARNING, "the caller's deadline is over"),
    Name.NOTICE: (logging.WARNING, "a notice"),
}
logging.getLogger("ps_core").addHandler(logging.NullHandler())  # where nothing is set up, a library prints nothing
_loggers: Final = {name: logging.getLogger(f"ps_core.events.{name}") for name in Name}


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened."""

    name: Name
    endpoint: str
    """Its name: "primary", "replica", "replica-2", "direct", Django's alias; "" where no endpoint is concerned."""
    reason: str = ""
    """A rule of `ps_core.failures`, or a few fixed words: few different ones, fit for a metric."""
    attempt: int | None = None
    """Which try it was, from 1."""
    seconds: float | None = None
    """How long it went on."""
    text: str = ""
    """What a notice says, of the kinds that `ps_core.notices` knows: one line of 300 characters at most."""

    def __str__(self) -> str:
        more = [] if self.attempt is None else [f"attempt {self.attempt}"]
        more += [] if self.seconds is None else [f"{self.seconds:.3f} s"]
        text = ", ".join(filter(None, (_WORDS[self.name][1], self.reason)))
        at = f"endpoint {self.endpoint!r}: " if self.endpoint else ""
        return at + text + (f" ({', '.join(more)})" if more else "") + (f": {self.text}" if self.text else "")


class Hook(Protocol):
    """What is called with each event, in the thread or task where it happens: it must be quick, and must not use the database."""

    def __call__(self, event: Event, /) -> None:
        """Take note of `event`. An exception is logged, and goes no further."""


_hooks: tuple[Hook, ...] = ()


def subscribe(hook: Hook) -> Callable[[], None]:
    """Call `hook` with every event of this process from now on. Returns what ends that.

    Raises:
        ConfigurationError: `hook` cannot be called.
    """
    if not callable(hook):
        raise ConfigurationError(f"subscribe: write a function of an event, not {hook!r}")
    global _hooks  # noqa: PLW0603 - of the process, like logging's handlers
    _hooks = (*_hooks, hook)

    def unsubscribe() -> None:
        global _hooks  # noqa: PLW0603
        _hooks = tuple(one for one in _hooks if one is not hook)

    return unsubscribe


def is_heard(name: Name) -> bool:
    """Return whether anybody listens to `name`. Events of every statement are not built where nobody does."""
    return bool(_hooks) or _loggers[name].isEnabledFor(_WORDS[name][0])


def emit(event: Event) -> None:
    """Log the event, and pass it to every hook."""
    level, logger = _WORDS[event.name][0], _loggers[event.name]
    if logger.isEnabledFor(level):
        logger.log(level, "%s", event, extra={"ps_event": event})
    for hook in _hooks:
        try:
            hook(event)
        except Exception:
            logging.getLogger("ps_core.events").exception("a hook failed on %s", event.name)


def emit_route(decision: Decision, endpoint: str = "") -> None:
    """Emit where a statement goes, and why."""
    if is_heard(Name.ROUTE):
        emit(Event(name=Name.ROUTE, endpoint=endpoint or decision.route.value, reason=decision.reason))


def emit_fallback(endpoint: str, failure: Failure) -> None:
    """Emit that the primary does what the replica endpoint refused."""
    name = Name.BEHIND if failure.kind is Kind.BEHIND else Name.FALLBACK
    emit(Event(name=name, endpoint=endpoint, reason=failure.rule))


def deadline_exceeded(message: str, endpoint: str = "", *, seconds: float | None = None) -> DeadlineExceeded:
    """Emit DEADLINE_EXCEEDED, and return the exception for the caller to raise."""
    emit(Event(name=Name.DEADLINE_EXCEEDED, endpoint=endpoint))
    error = DeadlineExceeded(message)
    error.add_note(deadline_note(seconds))
    return error
