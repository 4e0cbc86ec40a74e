"""What the demo's clients recorded, and what follows from it. Pure: the clock's readings are passed in.

Times are seconds on `time.monotonic`'s clock, which all processes of one machine share.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

__all__ = [
    "FAILED",
    "KINDS",
    "REPLICA",
    "RETRIED",
    "WRITE",
    "Event",
    "Latency",
    "Outcome",
    "Phase",
    "Recording",
    "Verdict",
    "add_up",
    "by_phase",
    "count",
    "judge",
    "measure",
    "percentile",
    "phases",
    "problems",
]
# What is noted of an operation, as bits.
WRITE: Final = 1
FAILED: Final = 2
REPLICA: Final = 4
"""A replica answered."""
RETRIED: Final = 8
"""The package sent it again, at least once."""
KINDS: Final = 16

SETTLING: Final = 1.0
"""An event's effect is looked for until this many seconds after its end."""
ERRORS_KEPT: Final = 20
"""Different error messages that one client remembers."""


@dataclass(slots=True)
class Recording:
    """Every operation of one client, or of several: 13 bytes each, 21 for an acknowledged write."""

    starts: array[float] = field(default_factory=lambda: array("d"))
    latencies: array[float] = field(default_factory=lambda: array("f"))
    flags: array[int] = field(default_factory=lambda: array("B"))
    acknowledged: array[int] = field(default_factory=lambda: array("q"))
    """The references of the writes whose COMMIT was answered."""
    tally: array[int] = field(default_factory=lambda: array("q", [0] * KINDS))
    """How many operations have which flags."""
    errors: Counter[tuple[bool, str]] = field(default_factory=Counter)
    """How often a read (False) or a write (True) failed with which message."""

    def add(self, start: float, end: float, flags: int) -> None:
        """Note one operation."""
        self.starts.append(start)
        self.latencies.append(end - start)
        self.flags.append(flags)
        self.tally[flags] += 1

    def add_error(self, *, write: bool, message: str) -> None:
        """Note what a failed operation raised."""
        if len(self.errors) >= ERRORS_KEPT and (write, message) not in self.errors:
            message = "other errors"
        self.errors[write, message] += 1

    def extend(self, other: Recording) -> None:
        """Append what another client recorded."""
        self.starts.extend(other.starts)
        self.latencies.extend(other.latencies)
        self.flags.extend(other.flags)
        self.acknowledged.extend(other.acknowledged)
        self.tally = add_up([self.tally, other.tally])
        self.errors.update(other.errors)

    def succeeded(self, kind: int) -> Iterator[tuple[float, float]]:
        """Yield start and latency of the reads (0) or writes (`WRITE`) that did not fail."""
        for start, latency, flags in zip(self.starts, self.latencies, self.flags, strict=True):
            if flags & (WRITE | FAILED) == kind:
                yield start, latency


def add_up(tallies: Iterable[Sequence[int]]) -> array[int]:
    """Return the tally of several recordings."""
    return array("q", map(sum, zip(*tallies, strict=True)))


def count(tally: Sequence[int], mask: int, value: int) -> int:
    """Return how many operations have, of the bits of `mask`, those of `value`."""
    return sum(number for flags, number in enumerate(tally) if flags & mask == value)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that was done to the servers."""

    name: str
    start: float
    end: float

    @property
    def duration(self) -> float:
        """Seconds from the order until the new primary was there."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of the run: from an event's start until `SETTLING` after its end, or what lies between."""

    name: str
    start: float
    event: Event | None = None


def phases(events: Sequence[Event]) -> list[Phase]:
    """Divide the run at its events, which are in the order of time and at least `SETTLING` apart."""
    found = [Phase("before", -math.inf)]
    for number, event in enumerate(events, start=1):
        found += (
            Phase(f"during the {event.name}", event.start, event),
            Phase("after" if number == len(events) else "between", event.end + SETTLING),
        )
    return found


def by_phase(operations: Iterable[tuple[float, float]], parts: Sequence[Phase]) -> list[list[float]]:
    """Return the operations' latencies in seconds by phase, each phase's sorted.

    `operations` are starts and latencies. One that an event met under way, or that lasted into it, belongs to the event.
    """
    found: list[list[float]] = [[] for _ in parts]
    borders = [part.start for part in parts]
    for start, latency in operations:
        first = bisect_right(borders, start) - 1
        last = bisect_right(borders, start + latency) - 1
        touched = next((number for number in range(first, last + 1) if parts[number].event is not None), first)
        found[touched].append(latency)
    for latencies in found:
        latencies.sort()
    return found


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Return the smallest value that at least `percent` per cent of `ordered` (sorted, not empty) do not exceed."""
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


@dataclass(frozen=True, slots=True)
class Latency:
    """How long the operations of one phase took, in seconds."""

    p50: float
    p99: float
    max: float


def measure(ordered: Sequence[float]) -> Latency | None:
    """Return the figures of sorted latencies; None where there are none."""
    return Latency(percentile(ordered, 50), percentile(ordered, 99), ordered[-1]) if ordered else None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of the writes."""

    lost: list[int]
    """References of acknowledged writes that are not in the table."""
    doubled: list[int]
    """References that are in the table more than once, acknowledged or not."""


def judge(acknowledged: Iterable[int], present: Iterable[int]) -> Verdict:
    """Compare the clients' ledger with the table. A write that raised may be there or not, but not twice."""
    rows = Counter(present)
    return Verdict(
        lost=sorted(set(acknowledged).difference(rows)),
        doubled=sorted(reference for reference, number in rows.items() if number > 1),
    )


@dataclass(frozen=True, slots=True)
class Outcome:
    """One application's part."""

    recording: Recording
    verdict: Verdict


def problems(outcomes: Mapping[str, Outcome]) -> list[str]:
    """Return what must not have happened and did, one sentence each."""
    found = []
    for name, outcome in outcomes.items():
        recording, verdict = outcome.recording, outcome.verdict
        for number, what in (
            (count(recording.tally, WRITE | FAILED, FAILED), "reads failed"),
            (len(verdict.lost), "acknowledged writes are missing"),
            (len(verdict.doubled), "writes are there more than once"),
        ):
            if number:
                found.append(f"{name}: {what}: {number:,}")
        if not count(recording.tally, WRITE | FAILED, 0):
            found.append(f"{name}: no read succeeded")
        if not recording.acknowledged:
            found.append(f"{name}: no write was acknowledged")
    return found
