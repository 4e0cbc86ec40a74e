"""Which replica endpoint takes the next read: weights, the operators' share, and endpoints that are taken out while they fail."""

from __future__ import annotations

import math
import os
import random
import threading
import time
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Final

from ps_core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from ps_core.link import Link
    from ps_core.retry import RetryPolicy

__all__ = ["Replicas", "impatient", "replica_share", "set_replica_share"]

ENVIRONMENT: Final = "PS_REPLICA_SHARE"

PATIENCE: Final = 1.0
"""Seconds for which a replica endpoint is tried again where another endpoint can serve the read."""

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


def impatient(policy: RetryPolicy) -> RetryPolicy:
    """Return the policy for replicas beside which there is another endpoint to go to."""
    patience = min(PATIENCE, float(policy.max_elapsed))
    return replace(policy, max_elapsed=patience, first_wait=min(float(policy.first_wait), patience))


class Replicas:
    """The replica endpoints of one database, in one process.

    An endpoint that could not be reached is left out; from time to time one read (the probe) goes there, and its success brings
    the endpoint back.
    """

    PROBE_INTERVAL = 1.0
    """Seconds after a failure until the next read is sent to the endpoint as a probe. It doubles with every failed probe."""
    MAX_PROBE_INTERVAL = 15.0

    def __init__(self, links: Iterable[Link], clock: Callable[[], float] = time.monotonic) -> None:
        self.links = tuple(links)
        self._clock = clock
        self._lock = threading.Lock()
        self._out: dict[Link, tuple[float, float]] = {}
        """Of an endpoint that is left out: when its next probe is due, and the interval after that."""

    def choose(self, besides: Collection[Link] = (), *, asked: bool = False) -> Link | None:
        """Return the endpoint for the next read; None: the primary's turn, or no endpoint is left.

        `besides` are endpoints that this read has tried already. What was `asked` for replicas is not held back by
        `replica_share()`.
        """
        if not asked and not besides and (share := replica_share()) < 1 and random.random() >= share:  # noqa: S311
            return None
        links = [link for link in self.links if link.endpoint.weight and link not in besides]
        if self._out:
            with self._lock:
                if (probe := next((link for link in links if self._is_due(link)), None)) is not None:
                    return probe
                links = [link for link in links if link not in self._out]
        if len(links) < 2:
            return links[0] if links else None
        return random.choices(links, [link.endpoint.weight for link in links])[0]  # noqa: S311 - spreads load, guards nothing

    def _is_due(self, link: Link) -> bool:
        due, interval = self._out.get(link, (math.inf, 0.0))
        now = self._clock()
        if now < due:
            return False
        # This caller probes; until the next time, the others do not.
        self._out[link] = (now + interval, min(2 * interval, self.MAX_PROBE_INTERVAL))
        return True

    def report_failure(self, link: Link) -> None:
        """Leave `link` out: a read could not be served there, its own tries again included."""
        with self._lock:
            if link not in self._out:
                self._out[link] = (self._clock() + self.PROBE_INTERVAL, 2 * self.PROBE_INTERVAL)

    def report_success(self, link: Link) -> None:
        """Say that a read was served by `link`."""
        if link in self._out:
            with self._lock:
                self._out.pop(link, None)

    @property
    def out(self) -> tuple[Link, ...]:
        """The endpoints that are left out at the moment."""
        return tuple(self._out)
