"""Trying again: tenacity's loop, the outage gate and the deadline in one place, for every kind of try."""

from __future__ import annotations

import time
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final, TypeVar

import psycopg

from ps_core.commit import Outcome
from ps_core.context import current, remaining
from ps_core.errors import DeadlineExceeded
from ps_core.events import Event, Name, deadline_exceeded, emit
from ps_core.failures import classify
from ps_core.replicas import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from ps_core.link import Link
    from ps_core.protocol import Shared
    from ps_core.replicas import Replicas

__all__ = ["RETRYABLE", "Attempts", "StillRunning", "bounded", "deadline_unwrapped", "is_transient", "verdict_of_failure"]

T = TypeVar("T")
V = TypeVar("V")

RETRYABLE: Final = (psycopg.OperationalError, psycopg.InternalError)
"""What a lost connection may be raised as. An InternalError is what psycopg makes of two errors in one answer."""


class StillRunning(psycopg.OperationalError):
    """The transaction that is looked up has not ended yet."""


class Attempts:
    """The tries of one healing: tenacity's loop and the gate, and the rule that says whether to go on."""

    def __init__(
        self,
        link: Link,
        *,
        replicas: Replicas | None = None,
        connection: Shared[Any] | None = None,
        first: BaseException | None = None,
    ) -> None:
        if replicas is not None and connection is not None:
            link = replicas.start(link, connection._home)
        self.link = link
        """The endpoint of the current try."""
        self._replicas = replicas
        self._tried: list[Link] = []
        self._failed = False
        self.connecting = True
        self._connection = connection
        left = remaining()
        bound = float(link.policy.max_elapsed)
        bound_by_all = bound if left is None else min(bound, left)
        self._until = time.monotonic() + bound_by_all
        patience = 0.0 if replicas is not None and link in replicas.out else min(PATIENCE, bound_by_all / 2)
        self._patient_until = time.monotonic() + patience
        self._by_deadline = left is not None and left < bound
        self._first = first
        self.options = link.policy.loop_options(retry=self._go_on, remaining=left, failed=first is not None)
        if replicas is not None and replicas.fallback is not None:
            self.options["wait"] = partial(self._wait, self.options["wait"], replicas.fallback)
        self._hurried = False
        self._history: list[str] = []
        if first is not None:
            self._note(first)
            link.gate.report_loss()

    def remaining(self) -> float:
        """Return the seconds that are left for another try."""
        left = self._until - time.monotonic()
        if self._replicas is None or self.link is self._replicas.fallback:
            return left
        # Behind a gate that stays closed, a read should hear in time that it has to go elsewhere.
        return min(left, max(0.1, self._patient_until - time.monotonic()))

    def next_link(self) -> Link:
        """Return the endpoint for the next try: where one of several has failed, another that can serve the same read."""
        if self._failed and self._replicas is not None:
            other = self._replicas.after(self.link, self._tried, patient=time.monotonic() < self._patient_until)
            if other is not None:
                self._tried.append(self.link)
                self.link = other
        self._failed = False
        return self.link

    @contextmanager
    def connecting_in_time(self) -> Iterator[None]:
        """Bound a try to connect, where another endpoint could answer in place of this one."""
        replicas = self._replicas
        if replicas is None or self.link is replicas.fallback or (replicas.fallback is None and len(replicas.links) == 1):
            yield
            return
        now = time.monotonic()
        reset = _connecting_until.set(now + max(0.1, min(CONNECT_PATIENCE, (self._until - now) / 2)))
        try:
            yield
        finally:
            _connecting_until.reset(reset)

    def _wait(self, usual: Callable[[Any], float], fallback: Link, state: Any) -> float:
        """Return how long to wait: not beyond the patience, after which the primary is asked; the tries might end before that."""
        seconds, left = usual(state), self._patient_until - time.monotonic()
        if self.link is fallback or (left <= 0 and self._hurried):
            return seconds
        self._hurried = self._hurried or left <= 0
        return max(0.0, min(seconds, left))

    def _go_on(self, exc: BaseException) -> bool:
        self._failed = True
        again = self._goes_on(exc)
        if again and isinstance(exc, psycopg.Error):
            self._note(exc)
        return again

    def _note(self, exc: BaseException) -> None:
        rule, endpoint = classify(exc).rule, self.link.endpoint.name
        self._history.append(f"{endpoint!r}: {rule}")
        emit(Event(name=Name.RETRY, endpoint=endpoint, reason=rule, attempt=len(self._history)))

    def _goes_on(self, exc: BaseException) -> bool:
        if isinstance(exc, StillRunning):
            return True
        if self._replicas is not None and isinstance(exc, TimeoutError) and not isinstance(exc, DeadlineExceeded):
            return self._until > time.monotonic()
        if self.connecting or self._connection is None:
            return is_transient(exc)
        return self._connection._may_replay(exc)

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Raise what ended the tries, with a note of how long they went on; a wait that timed out raises what began them."""
        began = time.monotonic()
        try:
            with deadline_unwrapped():
                yield
        except (psycopg.Error, TimeoutError) as exc:
            if isinstance(exc, DeadlineExceeded):
                raise
            error = exc if self._first is None or isinstance(exc, psycopg.Error) else self._first
            if isinstance(error, TimeoutError):
                error = psycopg.errors.ConnectionTimeout(str(error))
            tried = f"ps-postgres: tried the endpoint {self.link.endpoint.name!r} again for {time.monotonic() - began:.1f} s"
            if is_transient(error):
                error.add_note(tried + _told(self._history))
                if self._by_deadline:
                    message = "the deadline left no time to wait for the endpoint"
                    raise deadline_exceeded(message, self.link.endpoint.name) from error
            raise error from (None if error is exc else exc)


def _told(history: Sequence[str]) -> str:
    """Return what the tries met, in order, repetitions counted."""
    met = [(what, len(list(times))) for what, times in groupby(history)]
    return "".join(f"\n  {what}{f', {times} times' if times > 1 else ''}" for what, times in met)


def is_transient(exc: BaseException) -> bool:
    """Return whether the same work is likely to succeed on a new connection."""
    return isinstance(exc, RETRYABLE) and classify(exc).transient


def verdict_of_failure(exc: BaseException) -> Outcome:
    """Return what a failed lookup proves: an id that the server has not reached is of a transaction that it never saw."""
    if isinstance(exc, psycopg.errors.InvalidParameterValue) and "future" in str(exc):
        return Outcome.ROLLED_BACK
    return Outcome.UNKNOWN


GRACE: Final = 0.5
"""Seconds after a deadline in which the server's own answer is still awaited: its timeout is what was left when it got the
statement, so that it normally speaks first, and the connection is kept."""


CONNECT_PATIENCE: Final = 2.5
"""Seconds for which a try to connect to a replica endpoint may take while another endpoint could answer: half of what a connect
may take. A pooler that cannot log in to its server lets its clients wait."""

_connecting_until: Final[ContextVar[float | None]] = ContextVar("ps_core_connecting_until", default=None)


def bounded(gen: Generator[T, Any, V]) -> Generator[T, Any, V]:
    """Drive one of psycopg's generators no longer than the caller's deadline, and a try to connect no longer than it may take.

    For a pooler that is stopped or a network that swallows everything: nothing in libpq ever ends that wait. psycopg's waiting
    functions come back at least ten times a second.

    Raises:
        DeadlineExceeded: the deadline (and `GRACE`) passed first. The connection is in the middle of something, then.
        psycopg.errors.ConnectionTimeout: the time for this try to connect passed first.
    """
    until, connecting = current().deadline, _connecting_until.get()
    if connecting is not None and (until is None or connecting < until + GRACE):
        return _until(connecting, gen, partial(psycopg.errors.ConnectionTimeout, "connection timeout expired"))
    if until is None:
        return gen
    # What is sent later than that is a ROLLBACK, which has its own time: its connection may be as good as ever.
    until = max(until, time.monotonic()) + GRACE
    return _until(until, gen, partial(deadline_exceeded, "the server did not answer before the deadline"))


@contextmanager
def deadline_unwrapped() -> Iterator[None]:
    """Raise a DeadlineExceeded as it is: psycopg's waiting functions take every OSError, which it is, for a closed socket."""
    try:
        yield
    except psycopg.OperationalError as exc:
        for inner in (exc.__cause__, exc.__context__):
            if isinstance(inner, DeadlineExceeded):
                raise inner from None
        raise


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
