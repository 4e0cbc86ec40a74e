"""How often and how long: the retry policy (tenacity's loop) and the outage gate.

The gate keeps n callers from becoming n reconnect storms: while an endpoint is down, one caller of the process probes it and
the others wait for that caller's answer.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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

    def loop_options(self, *, retry: Callable[[BaseException], bool], remaining: float | None) -> dict[str, Any]:
        """Return the arguments for `tenacity.Retrying` or `AsyncRetrying`; `remaining` is the caller's deadline in seconds."""
        bound = float(self.max_elapsed) if remaining is None else min(float(self.max_elapsed), remaining)
        stop: Any = tenacity.stop_before_delay(bound)
        if self.attempts is not None:
            stop = stop | tenacity.stop_after_attempt(max(1, self.attempts))
        return {
            "stop": stop,
            "wait": tenacity.wait_random_exponential(multiplier=float(self.first_wait), max=float(self.max_wait)),
            "retry": tenacity.retry_if_exception(retry),
            "reraise": True,
        }


class OutageGate:
    """One per endpoint and process. Open: everybody passes. Closed: one caller probes, the others wait for its answer."""

    MIN_INTERVAL = 0.4
    """Seconds between two probes: an endpoint that is down sees at most 2.5 connection attempts a second from this process."""
    JITTER = 0.1
    """Upper bound in seconds of the random wait with which waiters are released."""

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = name
        self._clock = clock
        self._lock = threading.Lock()
        self._probe: Future[bool] | None = None
        self._closed = False
        self._last_failure = float("-inf")
        self._down_since: float | None = None
        """When the first probe of this outage failed."""

    @property
    def closed(self) -> bool:
        """Whether the endpoint is taken to be down."""
        return self._closed

    def report_loss(self) -> None:
        """Say that a connection to the endpoint was lost or refused: whoever connects next probes."""
        with self._lock:
            self._closed = True

    def _enter(self) -> tuple[Future[bool], bool, float] | None:
        """Return None to pass; else the probe's future, whether the caller is the one who probes, and how long to wait before."""
        with self._lock:
            if not self._closed:
                return None
            if self._probe is not None:
                return self._probe, False, 0.0
            self._probe = Future()
            wait = max(0.0, self._last_failure + self.MIN_INTERVAL - self._clock())
            return self._probe, True, wait

    def _leave(self, probe: Future[bool], *, failure: str | None) -> None:
        with self._lock:
            since, now = self._down_since, self._clock()
            self._probe = None
            if failure is None:
                self._closed = False
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
    def turn(self, timeout: float) -> Iterator[None]:
        """Wait for the endpoint or for one's turn to probe it (at most `timeout` seconds), then run the block as the try.

        Raises `TimeoutError` when the time is over before the caller's turn comes.
        """
        until = self._clock() + timeout
        while (ticket := self._enter()) is not None and not ticket[1]:
            try:
                if ticket[0].result(max(0.0, until - self._clock())):
                    time.sleep(random.uniform(0, self.JITTER))  # noqa: S311
            except FutureTimeoutError:
                raise TimeoutError(f"{self.name} did not come back in time") from None
        if ticket is None:
            with self._passing():
                yield
            return
        with self._probing(ticket[0]):
            time.sleep(ticket[2])
            yield

    @asynccontextmanager
    async def aturn(self, timeout: float) -> AsyncIterator[None]:
        """Like `turn`, for asyncio."""
        until = self._clock() + timeout
        while (ticket := self._enter()) is not None and not ticket[1]:
            try:
                async with asyncio.timeout(max(0.0, until - self._clock())):
                    # shielded: a waiter that is cancelled must not cancel the probe that the others wait for
                    up = await asyncio.shield(asyncio.wrap_future(ticket[0]))
                if up:
                    await asyncio.sleep(random.uniform(0, self.JITTER))  # noqa: S311
            except TimeoutError:
                raise TimeoutError(f"{self.name} did not come back in time") from None
        if ticket is None:
            with self._passing():
                yield
            return
        with self._probing(ticket[0]):
            await asyncio.sleep(ticket[2])
            yield

    @contextmanager
    def _passing(self) -> Iterator[None]:
        try:
            yield
        except Exception as exc:
            if classify(exc).transient:
                self.report_loss()
            raise

    @contextmanager
    def _probing(self, probe: Future[bool]) -> Iterator[None]:
        try:
            yield
        except BaseException as exc:
            # A failure that is not the endpoint's (a wrong statement, a wrong password) shows that somebody answered.
            self._leave(probe, failure=_rule(exc))
            raise
        self._leave(probe, failure=None)


def _rule(exc: BaseException) -> str | None:
    """Return why the endpoint is down; None: it answered."""
    if not isinstance(exc, Exception):
        return "interrupted"
    failure = classify(exc)
    return failure.rule if failure.transient else None
