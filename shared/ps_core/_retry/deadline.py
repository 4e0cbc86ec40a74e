"""The caller's deadline, and the time that one connect may take, around psycopg's generators."""

from __future__ import annotations

import time
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import psycopg

from ps_core.context import current
from ps_core.errors import DeadlineExceeded
from ps_core.events import deadline_exceeded

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

__all__ = [
    "CONNECT_WHILE_ANOTHER_CAN",
    "GRACE",
    "bounded",
    "bounded_until",
    "connecting_until",
    "deadline_unwrapped",
    "deadline_within",
]

T = TypeVar("T")
V = TypeVar("V")

GRACE: Final = 0.5
"""Seconds after a deadline in which the server's own answer is still awaited: its timeout is what was left when it got the
statement, so that it normally speaks first, and the connection is kept."""


CONNECT_WHILE_ANOTHER_CAN: Final = 2.5
"""Seconds for which a try to connect to a replica endpoint may take while another endpoint could answer: half of what a connect
may take. A pooler that cannot log in to its server lets its clients wait."""

connecting_until: Final[ContextVar[float | None]] = ContextVar("ps_coreconnecting_until", default=None)


class Line(Protocol):
    """What a wait is for, where it is a connection: asked and told when time is over."""

    def _is_in_flight(self) -> bool: ...

    def _goes_on(self) -> bool: ...

    def _give_up(self) -> None: ...


def bounded(gen: Generator[T, Any, V], line: Line | None = None) -> Generator[T, Any, V]:
    """Drive one of psycopg's generators no longer than the caller's deadline, and a try to connect no longer than it may take.

    For a pooler that is stopped or a network that swallows everything: nothing in libpq ever ends that wait. psycopg's waiting
    functions come back at least ten times a second. The generator is told by the error, which is thrown into it, so that it may
    say more (what became of a COMMIT). Its `line` is given up before: the answer may still come, and would be taken for the next
    one's. Where nothing is in flight there, as in `notifies()`, there is no answer to wait for, and it is kept.

    Raises:
        DeadlineExceeded: the deadline (and `GRACE`) passed first.
        psycopg.errors.ConnectionTimeout: the time for this try to connect passed first.
    """
    until, connecting = current().deadline, connecting_until.get()
    if connecting is not None and (until is None or connecting < until + GRACE):
        return _until(connecting, gen, partial(psycopg.errors.ConnectionTimeout, "connection timeout expired"), line)
    if until is None:
        return gen
    # What is sent later than that is a ROLLBACK, which has its own time: its connection may be as good as ever. What goes on
    # since before has not: rows that keep coming would be answers without end.
    goes_on = line is not None and line._goes_on()
    last = (until if goes_on else max(until, time.monotonic())) + GRACE
    error = partial(deadline_exceeded, "the server did not answer before the deadline", seconds=current().deadline_seconds)
    return _until(last, gen, error, line, idle_until=until, goes_on=goes_on)


def bounded_until(until: float, gen: Generator[T, Any, V]) -> Generator[T, Any, V]:
    """Drive one of psycopg's generators until a time on `time.monotonic`'s clock.

    Raises:
        psycopg.errors.ConnectionTimeout: it passed first.
    """
    return _until(until, gen, partial(psycopg.errors.ConnectionTimeout, "the server did not answer in time"))


@contextmanager
def deadline_unwrapped() -> Iterator[None]:
    """Raise a DeadlineExceeded as it is: psycopg's waiting functions take every OSError, which it is, for a closed socket."""
    try:
        yield
    except psycopg.OperationalError as exc:
        if (passed := deadline_within(exc)) is not None:
            raise passed from None
        raise


def deadline_within(exc: psycopg.Error) -> DeadlineExceeded | None:
    """Return the DeadlineExceeded that psycopg's waiting functions took for a closed socket, if that is what it was."""
    return next((inner for inner in (exc.__cause__, exc.__context__) if isinstance(inner, DeadlineExceeded)), None)


def _until(
    until: float,
    gen: Generator[T, Any, V],
    error: Callable[[], Exception],
    line: Line | None = None,
    *,
    idle_until: float | None = None,
    goes_on: bool = False,
) -> Generator[T, Any, V]:
    try:
        wanted = next(gen)
        while True:
            if idle_until is not None and time.monotonic() > idle_until and line is not None and not line._is_in_flight():
                wanted = gen.throw(error())
                continue
            ready = yield wanted
            if (ready and not goes_on) or time.monotonic() <= until:  # an answer that is there is taken, however late
                wanted = gen.send(ready)
                continue
            if line is not None and line._is_in_flight():
                line._give_up()
            wanted = gen.throw(error())
    except StopIteration as done:
        value: V = done.value
        return value
