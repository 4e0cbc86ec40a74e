"""Which replica endpoint takes the next read: weights, and endpoints that are left out while they fail."""

from __future__ import annotations

import math
import os
import random
import threading
import time
from copy import copy
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

from ps_core._endpoint import StatementMemory
from ps_core._fork import renew_after_fork
from ps_core.context import has_to_ask_primary
from ps_core.events import Event, Name, emit

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from ps_core._endpoint import EndpointState

__all__ = ["RETRY_REPLICAS_FOR", "Replicas"]

RETRY_REPLICAS_FOR: Final = 1.0
"""Seconds for which replica endpoints are tried again before a read goes to the primary: a bouncer that was restarted is back."""


class _LeftOut:
    """The endpoints of a set that are left out, for everybody who uses it."""

    def __init__(self) -> None:
        self.due: dict[EndpointState, tuple[float, float]] = {}
        """When an endpoint's next probe is due, and the interval after that."""
        self.forget_threads()
        renew_after_fork(self)

    def forget_threads(self) -> None:
        """See `EndpointState.forget_threads`."""
        self.lock = threading.Lock()


class Replicas:
    """The replica endpoints of one database, in one process; what to go to when one of them fails.

    An endpoint that could not be reached is left out. From time to time one read (the probe) goes there, and its success brings
    the endpoint back. Where none is left, reads go to the primary, READ ONLY, if `fallback` allows it.
    """

    PROBE_INTERVAL = 1.0
    """Seconds after a failure until the next read is sent to the endpoint as a probe. It doubles with every failed probe."""
    MAX_PROBE_INTERVAL = 15.0
    PROMISED_FOR = 10.0
    """Seconds for which a place on the fallback is kept: longer than one try to connect takes."""

    def __init__(
        self,
        states: Iterable[EndpointState],
        *,
        fallback: EndpointState | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.states = tuple(states)
        self.fallback = fallback
        """The primary, as an endpoint that is only read from."""
        self.max_fallback: int | None = None
        """How many connections may be on the fallback at once; None: any number. See `limited_to`."""
        self.refused_constructs = StatementMemory()
        """What frameworks know statements by that look like reads and were refused."""
        self._clock = clock
        self._left_out = _LeftOut()
        self._out = self._left_out.due
        self._on_fallback: WeakSet[Any] = WeakSet()
        self._promised: list[float] = []
        """Until when places on the fallback are kept for connections that are being made."""

    def limited_to(self, max_fallback: int | None) -> Replicas:
        """Return the same set for a user of it (an engine) of whose connections only so many may be on the fallback at once."""
        own = copy(self)
        own.max_fallback, own._on_fallback, own._promised = max_fallback, WeakSet(), []
        return own

    def are_away(self) -> bool:
        """Return whether no replica would take a read now, and anybody may ask the primary in their place.

        One whose probe is due takes a read: that is the probe. Where only some connections may go to the primary, or none, the
        connection has to find out.
        """
        if not self._out or self.fallback is None or self.max_fallback is not None:
            return False
        now = self._clock()
        return all(now < self._next_probe(state) for state in self.states if state.endpoint.weight)

    def may_lack_what_was_seen(self) -> bool:
        """Return whether the caller has seen what only the primary certainly has: a token without a position."""
        state = self.states[0]
        return state.tracks and has_to_ask_primary(state.identity)

    def have_refused(self, text: str) -> bool:
        """Return whether one of the endpoints has refused this text because it writes."""
        return any(text in state.refused_read_only for state in self.states)

    def note_refused(self, text: str) -> None:
        """Remember that `text`, which looks like a read, writes."""
        for state in self.states:
            state.refused_read_only.add(text)

    def first(self) -> EndpointState:
        """Return the endpoint for a new connection: the primary in their place for who has seen what only that certainly has."""
        if self.may_lack_what_was_seen() and (fallback := self._falls_back("position not known")) is not None:
            return fallback
        state = self.choose()
        return state or self._falls_back() or self.states[0]

    def preferred(self) -> EndpointState:
        """Return the endpoint for a read that is then sent through a connection of its own to it (Django's aliases).

        That connection goes elsewhere where the endpoint is out, and probes it when that is due.
        """
        states = [state for state in self.states if state.endpoint.weight] or list(self.states)
        if self._out:
            now = self._clock()
            states = [state for state in states if now >= self._next_probe(state)] or states
        return _drawn(states)

    def reconnect_target(self, state: EndpointState, home: EndpointState) -> EndpointState:
        """Return where a connection that is at `state`, and was opened for `home`, should connect anew."""
        if state is self.fallback:
            return self.first()
        if state is home or home is self.fallback:  # where it was opened while no replica would do
            return state
        with self._left_out.lock:
            return home if home not in self._out or self._is_due(home) else state

    def choose(self, besides: Collection[EndpointState] = ()) -> EndpointState | None:
        """Return the endpoint for the next read; None: no endpoint is left. `besides` are those that it has tried already."""
        states = [state for state in self.states if state.endpoint.weight and state not in besides]
        if self._out:
            with self._left_out.lock:
                if (probe := next((state for state in states if self._is_due(state)), None)) is not None:
                    return probe
                states = [state for state in states if state not in self._out]
        return _drawn(states) if states else None

    def _next_probe(self, state: EndpointState) -> float:
        return self._out.get(state, (-math.inf, 0.0))[0]

    def _is_due(self, state: EndpointState) -> bool:
        due, interval = self._out.get(state, (math.inf, 0.0))
        now = self._clock()
        if now < due:
            return False
        # This caller probes; until the next time, the others do not.
        self._out[state] = (now + interval, min(2 * interval, self.MAX_PROBE_INTERVAL))
        return True

    def next_after_failure(
        self, state: EndpointState, tried: Collection[EndpointState], *, patient: bool
    ) -> EndpointState | None:
        """Return where to go on with a read that failed on `state`; None: there, again.

        While the caller is `patient`, that is another replica; then also the primary.
        """
        if state is self.fallback:
            return self.choose()
        other = self.choose([*tried, state])
        if other is None and patient:
            return None
        self.report_failure(state)
        return other or self._falls_back()

    def takes_place(self) -> bool:
        """Return whether another connection may go to the fallback. Its place is kept for a while, until it is there."""
        if self.fallback is None:
            return False
        if self.max_fallback is None:
            return True
        with self._left_out.lock:
            now, pid = self._clock(), os.getpid()
            self._promised = [until for until in self._promised if until > now]
            there = [one for one in self._on_fallback if one.state is self.fallback and not one.closed and one.pid == pid]
            if len(there) + len(self._promised) >= self.max_fallback:
                return False
            self._promised.append(now + self.PROMISED_FOR)
        return True

    def _falls_back(self, reason: str = "no replica left") -> EndpointState | None:
        if not self.takes_place():
            return None
        emit(Event(name=Name.FALLBACK, endpoint=self.states[0].endpoint.name, reason=reason))
        return self.fallback

    def report_failure(self, state: EndpointState) -> None:
        """Leave `state` out: it could not be reached."""
        with self._left_out.lock:
            if state in self._out:
                return
            self._out[state] = (self._clock() + self.PROBE_INTERVAL, 2 * self.PROBE_INTERVAL)
        emit(Event(name=Name.EJECTED, endpoint=state.endpoint.name))

    def report_connected(self, conn: Any) -> None:
        """Say that `conn` is connected to its endpoint: one that was left out is back."""
        state = conn.state
        if state is self.fallback:
            with self._left_out.lock:
                self._on_fallback.add(conn)
                if self._promised:
                    self._promised.pop(0)
        elif state in self._out:
            with self._left_out.lock:
                was_out = self._out.pop(state, None) is not None
                if self.fallback is not None:
                    # Its connections return to the replicas before their next use. The lock is that of the list, so that two
                    # replicas that come back at once count both; who only reads the number needs none.
                    self.fallback.generation += 1
            if was_out:
                emit(Event(name=Name.READMITTED, endpoint=state.endpoint.name))

    def should_return_home(self, state: EndpointState, home: EndpointState) -> bool:
        """Return whether a connection at `state`, which was opened for `home`, should see whether its endpoint is there again."""
        if state is self.fallback:
            if self.may_lack_what_was_seen():
                return False
            if any(each not in self._out for each in self.states if each.endpoint.weight):
                return True  # it is there for a caller who had seen what only the primary certainly has
            now = self._clock()
            return any(now >= due for due, _ in tuple(self._out.values()))
        return state is not home and home is not self.fallback and self._clock() >= self._next_probe(home)

    @property
    def out(self) -> tuple[EndpointState, ...]:
        """The endpoints that are left out at the moment."""
        return tuple(self._out)


def _drawn(states: Sequence[EndpointState]) -> EndpointState:
    if len(states) == 1:
        return states[0]
    # Where all are without weight (asked for by name), they are alike.
    weights = [state.endpoint.weight for state in states]
    return random.choices(states, weights if any(weights) else None)[0]  # noqa: S311 - spreads load, guards nothing
