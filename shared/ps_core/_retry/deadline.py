"""The caller's deadline, and the time that one connect may take, around psycopg's generators."""

from __future__ import annotations

import time
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

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


def bounded(gen: Generator[T, Any, V]) -> Generator[T, Any, V]:
    """Drive one of psycopg's generators no longer than the caller's deadline, and a try to connect no longer than it may take.

    For a pooler that is stopped or a network that swallows everything: nothing in libpq ever ends that wait. psycopg's waiting
    functions come back at least ten times a second.

    Raises:
        DeadlineExceeded: the deadline (and `GRACE`) passed first. The connection is in the middle of something, then.
        psycopg.errors.ConnectionTimeout: the time for this try to connect passed first.
    """
    until, connecting = current().deadline, connecting_until.get()
    if connecting is not None and (until is None or connecting < until + GRACE):
        return _until(connecting, gen, partial(psycopg.errors.ConnectionTimeout, "connection timeout expired"))
    if until is None:
        return gen
    # What is sent later than that is a ROLLBACK, which has its own time: its connection may be as good as ever.
    until = max(until, time.monotonic()) + GRACE
    return _until(until, gen, partial(deadline_exceeded, "the server did not answer before the deadline"))


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


def deadline_within(exc: psycopg.OperationalError) -> DeadlineExceeded | None:
    """Return the DeadlineExceeded that psycopg's waiting functions took for a closed socket, if that is what it was."""
    return next((inner for inner in (exc.__cause__, exc.__context__) if isinstance(inner, DeadlineExceeded)), None)


def _until(until: float, gen: Generator[T, Any, V], error: Callable[[], Exception]) -> Generator[T, Any, V]:
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            if not ready and time.monotonic() > until:  # an answer that is there is taken, however late
                gen.close()
                raise error()
            wanted = gen.send(ready)
    except StopIteration as done:
        value: V = done.value
        return value
