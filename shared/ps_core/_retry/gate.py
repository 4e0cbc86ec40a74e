"""The outage gate keeps n callers from becoming n reconnect storms.

While an endpoint is down, one caller of the process probes it and the others wait for that caller's answer; when it is back,
they come in a few at a time.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Final

from ps_core._fork import renew_after_fork
from ps_core.events import Event, Name, emit
from ps_core.failures import classify

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

__all__ = ["OutageGate", "Turn"]


class _Admission(Enum):
    """What a caller who wants to connect is told."""

    GO = "connect"
    PROBE = "connect, for all: the others wait for how it ends"
    WAIT = "wait for the probe, then ask again"
    QUEUE = "wait for a place, then connect; or ask again"


@dataclass(frozen=True, slots=True)
class _Ticket:
    way: _Admission
    answer: Future[bool]
    delay: float = 0.0
    """Seconds to wait before the probe."""


class Turn:
    """A caller's turn to connect: `connected()`, or the end of the block, is the end of it."""

    def __init__(self, leave: Callable[[str | None], None], *, is_probe: bool) -> None:
        self._leave = leave
        self.is_probe = is_probe
        """Whether others wait for how it ends."""
        self.over = False

    def connected(self) -> None:
        """Say that the endpoint answered: nobody waits for what is sent now."""
        self.leave(None)

    def leave(self, failure: str | None) -> None:
        """End it; `failure` says why there is no connection."""
        if not self.over:
            self.over = True
            self._leave(failure)


class OutageGate:
    """One per endpoint and process. Open: everybody passes. Closed: one caller probes, the others wait for its answer.

    When it opens again, callers pass a few at a time, more with every login that succeeds. A login costs the client 10 ms of CPU
    (SCRAM, TLS) and a pooler, which has one thread, 6 ms (docs/scale.md): of a thousand that come at once none would be done
    before its `connect_timeout`, and all would begin anew.
    """

    MIN_INTERVAL = 0.4
    """Seconds between two probes: an endpoint that is down sees at most 2.5 connection attempts a second from this process."""
    FIRST_PLACES, MOST_PLACES = 2, 8
    """Logins at the same time after an outage: at first, and at most as long as anybody waits. More would not be faster: they
    share one process's CPU."""

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = name
        self._clock = clock
        self.forget_threads()
        renew_after_fork(self)

    def forget_threads(self) -> None:
        """Begin without whoever was waiting or probing: after a fork those threads are not there, and their locks stay locked."""
        self._lock = threading.Lock()
        self._probe: Future[bool] | None = None
        self._closed = False
        self._last_failure = float("-inf")
        self._down_since: float | None = None
        """When the first probe of this outage failed."""
        self._places: int | None = None
        """How many may log in at the same time; None: there is no outage to recover from."""
        self._taken = 0
        self._queue: deque[Future[bool]] = deque()

    @property
    def closed(self) -> bool:
        """Whether the endpoint is taken to be down."""
        return self._closed

    def report_loss(self) -> None:
        """Say that a connection to the endpoint was lost or refused: whoever connects next probes."""
        with self._lock:
            self._closed = True
            waiting, self._queue = self._queue, deque()
        for answer in waiting:
            if answer.set_running_or_notify_cancel():
                answer.set_result(False)

    def _enter(self) -> _Ticket:
        with self._lock:
            if self._closed:
                if self._probe is not None:
                    return _Ticket(_Admission.WAIT, self._probe)
                self._probe = Future()
                wait = max(0.0, self._last_failure + self.MIN_INTERVAL - self._clock())
                return _Ticket(_Admission.PROBE, self._probe, wait)
            answer: Future[bool] = Future()
            if self._places is None or self._taken < self._places:
                self._taken += 1
                return _Ticket(_Admission.GO, answer)
            self._queue.append(answer)
            return _Ticket(_Admission.QUEUE, answer)

    def _leave_place(self, failure: str | None) -> None:
        """Let the next ones in; one more at the same time where the login succeeded."""
        given = []
        with self._lock:
            self._taken -= 1
            if self._places is not None and failure is None:
                self._places = min(self._places + 1, self.MOST_PLACES)
            while self._queue and (self._places is None or self._taken < self._places):
                answer = self._queue.popleft()
                if answer.set_running_or_notify_cancel():
                    self._taken += 1
                    given.append(answer)
            if not self._taken:
                self._places = None
        for answer in given:
            answer.set_result(True)

    def _give_up(self, ticket: _Ticket) -> None:
        """Wait no more for a place; one that was given meanwhile is the next one's."""
        if ticket.way is _Admission.QUEUE and not ticket.answer.cancel() and ticket.answer.result():
            self._leave_place("given up")

    def _leave_probe(self, probe: Future[bool], failure: str | None) -> None:
        with self._lock:
            since, now = self._down_since, self._clock()
            self._probe = None
            if failure is None:
                self._closed = False
                self._places = self.FIRST_PLACES
                self._last_failure = float("-inf")
                self._down_since = None
            else:
                self._last_failure = now
                self._down_since = now if since is None else since
        probe.set_result(failure is None)
        if failure is None and since is not None:
            emit(Event(name=Name.OUTAGE_CLOSED, endpoint=self.name, seconds=now - since))
        elif failure is not None and since is None:
            emit(Event(name=Name.OUTAGE_OPENED, endpoint=self.name, reason=failure))

    @contextmanager
    def turn(self, timeout: float, name: str | None = None) -> Iterator[Turn]:
        """Wait for the endpoint or for one's turn to probe it (at most `timeout` seconds), then run the block as the try.

        `name` is the endpoint's for this caller: an outage is told of under the name that its first probe gives.

        Raises:
            TimeoutError: the time is over before the caller's turn comes.
        """
        until = self._clock() + timeout
        while (ticket := self._enter()).way in _WAITING:
            try:
                has_place = ticket.answer.result(max(0.0, until - self._clock()))
            except BaseException as exc:
                self._give_up(ticket)
                if isinstance(exc, FutureTimeoutError):
                    raise TimeoutError(f"{self.name} did not come back in time") from None
                raise
            if has_place and ticket.way is _Admission.QUEUE:
                break
        with self._taken_by(ticket, name) as turn:
            if ticket.delay:
                time.sleep(ticket.delay)
            yield turn

    @asynccontextmanager
    async def aturn(self, timeout: float, name: str | None = None) -> AsyncIterator[Turn]:
        """Like `turn`, for asyncio."""
        import asyncio  # here: what never waits so starts faster without it

        until = self._clock() + timeout
        while (ticket := self._enter()).way in _WAITING:
            try:
                async with asyncio.timeout(max(0.0, until - self._clock())):
                    # shielded: a waiter that is cancelled must not cancel the probe that the others wait for
                    has_place = await asyncio.shield(asyncio.wrap_future(ticket.answer))
            except BaseException as exc:
                self._give_up(ticket)
                if isinstance(exc, TimeoutError):
                    raise TimeoutError(f"{self.name} did not come back in time") from None
                raise
            if has_place and ticket.way is _Admission.QUEUE:
                break
        with self._taken_by(ticket, name) as turn:
            if ticket.delay:
                await asyncio.sleep(ticket.delay)
            yield turn

    @contextmanager
    def _taken_by(self, ticket: _Ticket, name: str | None) -> Iterator[Turn]:
        is_probe = ticket.way is _Admission.PROBE
        if is_probe and name is not None and self._down_since is None:
            self.name = name
        turn = Turn(partial(self._leave_probe, ticket.answer) if is_probe else self._leave_place, is_probe=is_probe)
        try:
            yield turn
        except BaseException as exc:
            # A failure that is not the endpoint's (a wrong statement, a wrong password) shows that somebody answered.
            failure = _rule(exc)
            if failure is not None and (turn.over or not is_probe) and isinstance(exc, Exception):
                self.report_loss()
            turn.leave(failure)
            raise
        turn.leave(None)


_WAITING: Final = (_Admission.WAIT, _Admission.QUEUE)


def _rule(exc: BaseException) -> str | None:
    """Return why the endpoint is down; None: it answered."""
    if not isinstance(exc, Exception):
        return "interrupted"
    failure = classify(exc)
    return failure.rule if failure.transient else None
