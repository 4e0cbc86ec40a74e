"""The loop that reconnects: when to try again, on which endpoint, and until when."""

from __future__ import annotations

import time
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

import psycopg

from ps_core._retry.deadline import CONNECT_WHILE_ANOTHER_CAN, connecting_until, deadline_unwrapped
from ps_core.context import current, remaining
from ps_core.errors import RETRYABLE, DeadlineExceeded, OutageTimeout
from ps_core.events import Event, Name, deadline_exceeded, emit
from ps_core.failures import classify
from ps_core.replicas import RETRY_REPLICAS_FOR

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ps_core._endpoint import EndpointState
    from ps_core._retry.policy import RetryPolicy
    from ps_core.replicas import Replicas

__all__ = ["Attempts", "NotOfEndpoint", "StillRunning", "is_transient"]


class StillRunning(psycopg.OperationalError):
    """What became of the transaction that is looked up cannot be told yet."""


class NotOfEndpoint(Exception):
    """What makes connections has failed by itself: that says nothing of the endpoint, and no other try would help."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class Attempts:
    """The tries of one healing: tenacity's loop and the gate, and the rule that says whether to go on.

    `within` is how many seconds all tries to connect may take together, the one under way included.
    """

    def __init__(
        self,
        state: EndpointState,
        *,
        policy: RetryPolicy,
        within: float | None = None,
        replicas: Replicas | None = None,
        home: EndpointState | None = None,
        may_replay: Callable[[BaseException], bool] | None = None,
        first: BaseException | None = None,
    ) -> None:
        if replicas is not None and home is not None:
            state = replicas.reconnect_target(state, home)
        self.state = state
        """The endpoint of the current try."""
        self._replicas = replicas
        self._tried: list[EndpointState] = []
        self._failed = False
        self.connecting = True
        self._may_replay = may_replay
        left = remaining()
        bound = float(policy.max_elapsed) if within is None else min(float(policy.max_elapsed), within)
        bound_by_all = bound if left is None else min(bound, left)
        self._until = time.monotonic() + bound_by_all
        self._within = within is not None
        patience = 0.0 if replicas is not None and state in replicas.out else min(RETRY_REPLICAS_FOR, bound_by_all / 2)
        self._patient_until = time.monotonic() + patience
        self._by_deadline = left is not None and left < bound
        self._first = first
        self.options = policy.loop_options(retry=self._record_and_decide, remaining=bound_by_all, failed=first is not None)
        if replicas is not None and replicas.fallback is not None:
            self.options["wait"] = partial(self._wait, self.options["wait"], replicas.fallback)
        self._hurried = False
        self._history: list[str] = []
        if first is not None:
            self._note(first)
            state.gate.report_loss()

    @property
    def until(self) -> float:
        """When the tries end, on `time.monotonic`'s clock."""
        return self._until

    def remaining(self) -> float:
        """Return the seconds that are left for another try."""
        left = self._until - time.monotonic()
        if self._replicas is None or self.state is self._replicas.fallback:
            return left
        # Behind a gate that stays closed, a read should hear in time that it has to go elsewhere.
        return min(left, max(0.1, self._patient_until - time.monotonic()))

    def next_state(self) -> EndpointState:
        """Return the endpoint for the next try: where one of several has failed, another that can serve the same read."""
        if self._failed and self._replicas is not None:
            other = self._replicas.next_after_failure(self.state, self._tried, patient=time.monotonic() < self._patient_until)
            if other is not None:
                self._tried.append(self.state)
                self.state = other
        self._failed = False
        return self.state

    @contextmanager
    def bounded_connect(self) -> Iterator[None]:
        """Bound a try to connect, where another endpoint could answer in place of this one, or all tries have to end in time."""
        replicas = self._replicas
        alone = replicas is None or self.state is replicas.fallback or (replicas.fallback is None and len(replicas.states) == 1)
        if alone and not self._within:
            yield
            return
        now = time.monotonic()
        until = self._until if alone else now + max(0.1, min(CONNECT_WHILE_ANOTHER_CAN, (self._until - now) / 2))
        reset = connecting_until.set(until)
        try:
            yield
        finally:
            connecting_until.reset(reset)

    def _wait(self, usual: Callable[[Any], float], fallback: EndpointState, state: Any) -> float:
        """Return how long to wait: not beyond the patience, after which the primary is asked; the tries might end before that.

        Three states: within the patience, a wait ends with it at the latest; the first one beyond it is cut to nothing, and the
        primary is asked at once (`_hurried`); from then on, waits are as long as tenacity says.
        """
        seconds, left = usual(state), self._patient_until - time.monotonic()
        if self.state is fallback or (left <= 0 and self._hurried):
            return seconds
        self._hurried = self._hurried or left <= 0
        return max(0.0, min(seconds, left))

    def _record_and_decide(self, exc: BaseException) -> bool:
        self._failed = True
        again = self._may_try_again(exc)
        if again and isinstance(exc, psycopg.Error):
            self._note(exc)
        return again

    def _note(self, exc: BaseException) -> None:
        rule, endpoint = classify(exc).rule, self.state.endpoint.name
        self._history.append(f"{endpoint!r}: {rule}")
        emit(Event(name=Name.RETRY, endpoint=endpoint, reason=rule, attempt=len(self._history)))

    def _may_try_again(self, exc: BaseException) -> bool:
        if isinstance(exc, StillRunning):
            return True
        if self._replicas is not None and isinstance(exc, TimeoutError) and not isinstance(exc, DeadlineExceeded):
            return self._until > time.monotonic()
        if self.connecting or self._may_replay is None:
            return is_transient(exc)
        return self._may_replay(exc)

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Raise what ended the tries, with a note of how long they went on; a wait that timed out raises what began them."""
        began = time.monotonic()
        try:
            with deadline_unwrapped():
                yield
        except NotOfEndpoint as exc:
            raise exc.error from exc.error.__cause__
        except (psycopg.Error, TimeoutError) as exc:
            if isinstance(exc, DeadlineExceeded):
                raise
            error = exc if self._first is None or isinstance(exc, psycopg.Error) else self._first
            if isinstance(error, TimeoutError):
                error = OutageTimeout(str(error))
            tried = f"ps-postgres: tried the endpoint {self.state.endpoint.name!r} again for {time.monotonic() - began:.1f} s"
            if is_transient(error):
                error.add_note(tried + _told(self._history))
                if self._by_deadline:
                    message = "the deadline left no time to wait for the endpoint"
                    seconds = current().deadline_seconds
                    raise deadline_exceeded(message, self.state.endpoint.name, seconds=seconds) from error
            raise error from (None if error is exc else exc)


def _told(history: Sequence[str]) -> str:
    """Return what the tries met, in order, repetitions counted."""
    met = [(what, len(list(times))) for what, times in groupby(history)]
    return "".join(f"\n  {what}{f', {times} times' if times > 1 else ''}" for what, times in met)


def is_transient(exc: BaseException) -> bool:
    """Return whether the same work is likely to succeed on a new connection."""
    return isinstance(exc, RETRYABLE) and classify(exc).transient
