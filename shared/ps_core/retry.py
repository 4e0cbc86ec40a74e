"""How often and how long: the retry policy (tenacity's loop) and the outage gate.

The gate keeps n callers from becoming n reconnect storms: while an endpoint is down, one caller of the process probes it and
the others wait for that caller's answer; when it is back, they come in a few at a time.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import tenacity

from ps_core.errors import ConfigurationError
from ps_core.events import Event, Name, emit
from ps_core.failures import classify
from ps_core.timeouts import parse_duration

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

__all__ = ["OutageGate", "RetryPolicy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """When to stop trying again. Whichever bound is reached first ends it, the caller's deadline included."""

    attempts: int | None = None
    """Tries after the first failure; None: as many as fit into `max_elapsed`; 0: never try again."""
    max_elapsed: float | str = 30.0
    """Seconds (or "30s") after the first failure. PlanetScale: a planned promotion takes under 5 s, an unplanned one typically
    under 10 s, and a pooler's `server_login_retry` may add 15 s."""
    first_wait: float | str = 0.1
    """Upper bound of the first wait; it doubles with every try and is drawn with full jitter."""
    max_wait: float | str = 1.0

    def __post_init__(self) -> None:
        if self.attempts is not None and (isinstance(self.attempts, bool) or not 0 <= self.attempts <= 1000):
            raise ConfigurationError(
                f"attempts: write a number from 0 to 1000, or None for no limit but max_elapsed, not {self.attempts!r}"
            )
        for name in ("max_elapsed", "first_wait", "max_wait"):
            seconds = parse_duration(getattr(self, name), name=name)
            if seconds is None:
                raise ConfigurationError(
                    f'{name}: a retry policy has to end; write a duration such as "30s" (and attempts=0 for no retry)'
                )
            object.__setattr__(self, name, seconds)
        if float(self.first_wait) > float(self.max_wait):
            raise ConfigurationError("first_wait: write a duration that is not above max_wait")

    def loop_options(
        self, *, retry: Callable[[BaseException], bool], remaining: float | None, failed: bool = False
    ) -> dict[str, Any]:
        """Return the arguments for `tenacity.Retrying` or `AsyncRetrying`.

        `remaining` is the caller's deadline in seconds, `failed` says that the first failure was before the loop.
        """
        bound = float(self.max_elapsed) if remaining is None else min(float(self.max_elapsed), remaining)
        stop: Any = tenacity.stop_before_delay(bound)
        if self.attempts is not None:
            stop = stop | tenacity.stop_after_attempt(max(1, self.attempts + (not failed)))
        return {
            "stop": stop,
            "wait": tenacity.wait_random_exponential(multiplier=float(self.first_wait), max=float(self.max_wait)),
            "retry": tenacity.retry_if_exception(retry),
            "reraise": True,
        }


class _Way(Enum):
    """What a caller who wants to connect is told."""

    GO = "connect"
    PROBE = "connect, for all: the others wait for how it ends"
    WAIT = "wait for the probe, then ask again"
    QUEUE = "wait for a place, then connect; or ask again"


@dataclass(frozen=True, slots=True)
class _Ticket:
    way: _Way
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
                    return _Ticket(_Way.WAIT, self._probe)
                self._probe = Future()
                wait = max(0.0, self._last_failure + self.MIN_INTERVAL - self._clock())
                return _Ticket(_Way.PROBE, self._probe, wait)
            answer: Future[bool] = Future()
            if self._places is None or self._taken < self._places:
                self._taken += 1
                return _Ticket(_Way.GO, answer)
            self._queue.append(answer)
            return _Ticket(_Way.QUEUE, answer)

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
        if ticket.way is _Way.QUEUE and not ticket.answer.cancel() and ticket.answer.result():
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
    def turn(self, timeout: float) -> Iterator[Turn]:
        """Wait for the endpoint or for one's turn to probe it (at most `timeout` seconds), then run the block as the try.

        Raises `TimeoutError` when the time is over before the caller's turn comes.
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
            if has_place and ticket.way is _Way.QUEUE:
                break
        with self._taken_by(ticket) as turn:
            if ticket.delay:
                time.sleep(ticket.delay)
            yield turn

    @asynccontextmanager
    async def aturn(self, timeout: float) -> AsyncIterator[Turn]:
        """Like `turn`, for asyncio."""
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
            if has_place and ticket.way is _Way.QUEUE:
                break
        with self._taken_by(ticket) as turn:
            if ticket.delay:
                await asyncio.sleep(ticket.delay)
            yield turn

    @contextmanager
    def _taken_by(self, ticket: _Ticket) -> Iterator[Turn]:
        is_probe = ticket.way is _Way.PROBE
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


_WAITING: Final = (_Way.WAIT, _Way.QUEUE)


def _rule(exc: BaseException) -> str | None:
    """Return why the endpoint is down; None: it answered."""
    if not isinstance(exc, Exception):
        return "interrupted"
    failure = classify(exc)
    return failure.rule if failure.transient else None
