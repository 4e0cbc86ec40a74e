"""Which replica endpoint takes the next read: weights, the operators' share, and endpoints that are taken out while they fail."""

from __future__ import annotations

import math
import os
import random
import threading
import time
from functools import cache
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

from ps_core.errors import ConfigurationError
from ps_core.events import Event, Name, emit

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from ps_core.link import Link

__all__ = ["PATIENCE", "Replicas", "replica_share", "set_replica_share", "shares"]

ENVIRONMENT: Final = "PS_REPLICA_SHARE"

PATIENCE: Final = 1.0
"""Seconds for which replica endpoints are tried again before a read goes to the primary: a bouncer that was restarted is back."""

_share: float | None = None


def set_replica_share(share: float | None) -> None:
    """Let `share` (0 to 1) of this process's replica reads go to replicas, the others to the primary; from now on.

    For a gradual roll-out, and for turning replicas off (0). None: as the environment variable PS_REPLICA_SHARE says, else 1.
    What was asked for by `using_replica()` or an option of its own is not touched.

    Raises:
        ConfigurationError: `share` is no number from 0 to 1.
    """
    global _share  # noqa: PLW0603 - an operator's switch holds for the process
    _share = None if share is None else _checked(share, "set_replica_share")


def replica_share() -> float:
    """Return the share of the reads that may go to replicas.

    Raises:
        ConfigurationError: PS_REPLICA_SHARE is no number from 0 to 1.
    """
    return _of_environment() if _share is None else _share


@cache
def _of_environment() -> float:
    value = os.environ.get(ENVIRONMENT)
    return _checked(value, ENVIRONMENT) if value else 1.0


def _checked(value: float | str, name: str) -> float:
    try:
        share = float(value)
    except (TypeError, ValueError):
        share = math.nan
    if not 0 <= share <= 1:
        raise ConfigurationError(f"{name}: write a number from 0 (no replicas) to 1 (all reads), not {value!r}")
    return share


class Replicas:
    """The replica endpoints of one database, in one process; what to go to when one of them fails.

    An endpoint that could not be reached is left out. From time to time one read (the probe) goes there, and its success brings
    the endpoint back. Where none is left, reads go to the primary, READ ONLY, if `fallback` allows it.
    """

    PROBE_INTERVAL = 1.0
    """Seconds after a failure until the next read is sent to the endpoint as a probe. It doubles with every failed probe."""
    MAX_PROBE_INTERVAL = 15.0

    def __init__(
        self, links: Iterable[Link], *, fallback: Link | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.links = tuple(links)
        self.fallback = fallback
        """The primary, as an endpoint that is only read from."""
        self.max_fallback: int | None = None
        """How many connections of this process may be on the fallback at once; None: any number."""
        self._clock = clock
        self.forget_threads()
        self._out: dict[Link, tuple[float, float]] = {}
        """Of an endpoint that is left out: when its next probe is due, and the interval after that."""
        self._on_fallback: WeakSet[Any] = WeakSet()

    def forget_threads(self) -> None:
        """See `Link.forget_threads`."""
        self._lock = threading.Lock()

    def first(self) -> Link:
        """Return the endpoint for a new connection."""
        link = self.choose()
        return link or self._falls_back() or self.links[0]

    def preferred(self) -> Link:
        """Return the endpoint for a read that is then sent through a connection of its own to it (Django's aliases).

        That connection goes elsewhere where the endpoint is out, and probes it when that is due.
        """
        links = [link for link in self.links if link.endpoint.weight] or list(self.links)
        if self._out:
            now = self._clock()
            links = [link for link in links if now >= self._next_probe(link)] or links
        return _drawn(links)

    def start(self, link: Link, home: Link) -> Link:
        """Return where a connection that is at `link`, and was opened for `home`, should connect anew."""
        if link is self.fallback:
            return self.first()
        if link is home:
            return link
        with self._lock:
            return home if home not in self._out or self._is_due(home) else link

    def choose(self, besides: Collection[Link] = ()) -> Link | None:
        """Return the endpoint for the next read; None: no endpoint is left. `besides` are those that it has tried already."""
        links = [link for link in self.links if link.endpoint.weight and link not in besides]
        if self._out:
            with self._lock:
                if (probe := next((link for link in links if self._is_due(link)), None)) is not None:
                    return probe
                links = [link for link in links if link not in self._out]
        return _drawn(links) if links else None

    def _next_probe(self, link: Link) -> float:
        return self._out.get(link, (-math.inf, 0.0))[0]

    def _is_due(self, link: Link) -> bool:
        due, interval = self._out.get(link, (math.inf, 0.0))
        now = self._clock()
        if now < due:
            return False
        # This caller probes; until the next time, the others do not.
        self._out[link] = (now + interval, min(2 * interval, self.MAX_PROBE_INTERVAL))
        return True

    def after(self, link: Link, tried: Collection[Link], *, patient: bool) -> Link | None:
        """Return where to go on with a read that failed on `link`; None: there, again.

        While the caller is `patient`, that is another replica; then also the primary.
        """
        if link is self.fallback:
            return self.choose()
        other = self.choose([*tried, link])
        if other is None and patient:
            return None
        self.report_failure(link)
        return other or self._falls_back()

    def _falls_back(self) -> Link | None:
        if self.fallback is None:
            return None
        if self.max_fallback is not None:
            there = sum(conn.link is self.fallback and not conn.closed for conn in tuple(self._on_fallback))
            if there >= self.max_fallback:
                return None
        emit(Event(name=Name.FALLBACK, endpoint=self.links[0].endpoint.name, reason="no replica left"))
        return self.fallback

    def report_failure(self, link: Link) -> None:
        """Leave `link` out: it could not be reached."""
        with self._lock:
            if link in self._out:
                return
            self._out[link] = (self._clock() + self.PROBE_INTERVAL, 2 * self.PROBE_INTERVAL)
        emit(Event(name=Name.EJECTED, endpoint=link.endpoint.name))

    def report_connected(self, conn: Any) -> None:
        """Say that `conn` is connected to its endpoint: one that was left out is back."""
        link = conn.link
        if link is self.fallback:
            self._on_fallback.add(conn)
        elif link in self._out:
            with self._lock:
                was_out = self._out.pop(link, None) is not None
                if self.fallback is not None:
                    self.fallback.generation += 1  # its connections return to the replicas before their next use
            if was_out:
                emit(Event(name=Name.READMITTED, endpoint=link.endpoint.name))

    def wants_back(self, link: Link, home: Link) -> bool:
        """Return whether a connection at `link`, which was opened for `home`, should see whether its endpoint is there again."""
        if link is self.fallback:
            now = self._clock()
            return any(now >= due for due, _ in tuple(self._out.values()))
        return link is not home and self._clock() >= self._next_probe(home)

    @property
    def out(self) -> tuple[Link, ...]:
        """The endpoints that are left out at the moment."""
        return tuple(self._out)


def _drawn(links: Sequence[Link]) -> Link:
    if len(links) == 1:
        return links[0]
    # Where all are without weight (asked for by name), they are alike.
    weights = [link.endpoint.weight for link in links]
    return random.choices(links, weights if any(weights) else None)[0]  # noqa: S311 - spreads load, guards nothing


def shares() -> bool:
    """Draw whether a read may go to a replica, by `replica_share()`."""
    share = replica_share()
    return share >= 1 or random.random() < share  # noqa: S311
