"""The soak's faults: which one when (pure, from a seed), and how each is made."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, Final

import psycopg

from ps_lab.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ps_lab import Lab

__all__ = ["KINDS", "Fault", "make", "plan"]

APART: Final = (1.0, 8.0)
"""Seconds between the end of a fault and the next one."""
BOUNCERS: Final = ("local", "write-pool", "read-pool")
PATHS: Final = ("primary", "replica", None)

KINDS: Final[dict[str, tuple[int, float, float, tuple[str | None, ...]]]] = {
    "switchover": (2, 0, 0, ("",)),
    "crash of the primary": (2, 0.3, 1.5, ("",)),
    "crash of a replica": (2, 0.5, 4, ("0", "1")),
    "all replicas gone": (1, 0.5, 4, ("",)),
    "bouncer killed": (3, 0, 1.5, BOUNCERS),
    "bouncer told SIGTERM": (1, 0.5, 2.5, BOUNCERS),
    "bouncer told SIGINT": (1, 0.5, 2.5, BOUNCERS),
    "edge cut": (3, 0, 0, PATHS),
    "edge cuts answers": (2, 0.5, 3, PATHS),
    "edge hangs": (2, 0.3, 2.5, PATHS),
    "edge delays": (2, 0.5, 4, ("0.02", "0.1")),
    "replicas replay late": (2, 1, 5, ("0.5", "2")),
    "backends terminated": (3, 0, 0, ("0", "1", "2")),
    "backend killed": (1, 0, 0, ("",)),
    "PAUSE": (2, 0.3, 3, ("",)),
}
"""For each kind of fault: how often it is chosen, how many seconds it lasts at least and at most, and what it may be done to."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One that is planned."""

    kind: str
    pause: float
    """Seconds from the end of the one before."""
    lasts: float
    """Seconds until it is undone, where there is something to undo."""
    what: str | None

    def __str__(self) -> str:
        what = "all paths" if self.what is None else self.what
        return f"{self.kind} ({what})" if what else self.kind


def plan(seed: int) -> Iterator[Fault]:
    """Yield the faults of a seed, without end."""
    random = Random(f"faults/{seed}")
    weights = [weight for weight, *_ in KINDS.values()]
    while True:
        (kind,) = random.choices(list(KINDS), weights)
        _, least, most, targets = KINDS[kind]
        yield Fault(kind, random.uniform(*APART), random.uniform(least, most), random.choice(targets))


def make(fault: Fault, lab: Lab, wait: Callable[[float], None]) -> None:
    """Make a fault, and undo it after `wait(fault.lasts)`, whatever happens meanwhile."""
    what: Any = fault.what
    match fault.kind:
        case "switchover":
            lab.switchover(drain=5)
        case "crash of the primary":
            # A COMMIT whose wait for a replica was ended by force (its backend was terminated) can be read already, and is lost
            # with the server that has it: PostgreSQL promises no more, so it gets there first.
            lab.wait_replicas_caught_up()
            lab.crash_primary(detection=fault.lasts)
        case "crash of a replica" | "all replicas gone":
            for index in [int(what)] if what else range(len(lab.replicas)):
                lab.crash_replica(index)
            try:
                wait(fault.lasts)
            finally:
                lab.restart_replica()
        case "bouncer killed" | "bouncer told SIGTERM" | "bouncer told SIGINT":
            if fault.kind == "bouncer killed":
                lab.bouncers[what].stop()
            else:
                lab.bouncers[what].signal(signal.SIGTERM if fault.kind.endswith("SIGTERM") else signal.SIGINT)
            try:
                wait(fault.lasts)
            finally:
                lab.restart_bouncer(what)
        case "edge cut":
            lab.edge.cut(what)
        case "edge cuts answers":
            with lab.edge.cut_answers(what, times=5):
                wait(fault.lasts)
        case "edge hangs":
            with lab.edge.hang(what):
                wait(fault.lasts)
        case "edge delays":
            with lab.edge.delay(float(what)):
                wait(fault.lasts)
        case "replicas replay late":
            lab.set_replay_delay(float(what))
            try:
                wait(fault.lasts)
            finally:
                lab.set_replay_delay(0)
        case "backends terminated":
            with suppress(psycopg.OperationalError):  # one that crashed is not back yet
                lab.servers[int(what)].sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'")
        case "backend killed":
            # The primary ends all of its backends, and recovers.
            for (pid,) in lab.sql("SELECT pid FROM pg_stat_activity WHERE usename = 'app' LIMIT 1"):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            wait_until(lab.primary.accepts, "the primary's recovery")
        case "PAUSE":
            lab.pause(drain=2)
            try:
                wait(fault.lasts)
            finally:
                lab.resume()
