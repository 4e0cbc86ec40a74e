"""What the soak records, and what must never happen. Pure: the clock's readings are passed in."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from ps_demo.figures import KINDS, add_up

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = [
    "Answer",
    "Connections",
    "Histogram",
    "History",
    "Ledger",
    "Read",
    "Register",
    "Transfer",
    "Usage",
    "Write",
    "judge_balances",
    "judge_connections",
    "judge_ledger",
    "judge_settings",
    "judge_usage",
]

FASTEST: Final = 1e-4
"""Seconds: the upper bound of a histogram's first bucket."""
PER_DOUBLING: Final = 4
"""Buckets to each doubling: a percentile is at most 19 % too high."""
BUCKETS: Final = 80
"""The last one holds all from 87 s on."""
KEPT: Final = 50
"""Violations and different errors of which the text is kept; all are counted."""
POOL_SIZE: Final = 20
"""The bouncers' `default_pool_size`: server connections that they keep when their clients have gone."""
MORE_DESCRIPTORS: Final = 4
"""What a process may have open beyond what it had after the warm-up: files that libraries open once, when first needed. What
leaks with a fault leaks with each, and there are about ten a minute."""
MORE_MEMORY: Final = 32 * 2**20
"""Bytes that a process may have grown since the warm-up: pages of the allocator that threads left half used (each of its arenas
keeps some), the caches of statements filling, modules imported with the first error, and the recorder's 1.5 MB. A leak of 1 KB in
each operation is 90 MB and more in 30 minutes."""


@dataclass(frozen=True, slots=True)
class Read:
    """Read the client's register."""

    client: int
    read_only: bool
    """In a read-only session, where the framework has such."""


@dataclass(frozen=True, slots=True)
class Write:
    """Write the client's register."""

    client: int
    version: int


@dataclass(frozen=True, slots=True)
class Transfer:
    """Move money between two accounts."""

    client: int
    number: int
    source: int
    target: int
    amount: int

    @property
    def reference(self) -> int:
        """The transfer's own name in the bank: the client's number, and its own in the lower 32 bits."""
        return self.client << 32 | self.number


@dataclass(frozen=True, slots=True)
class Answer:
    """What a statement of ours was told."""

    statement_timeout: str
    transaction_timeout: str
    version: int = 0
    replica: bool = False


@dataclass(slots=True)
class Histogram:
    """Latencies in buckets: a fixed size, however many there are."""

    counts: array[int] = field(default_factory=lambda: array("L", bytes(array("L").itemsize * BUCKETS)))
    longest: float = 0.0

    def add(self, latency: float) -> None:
        """Count one, in seconds."""
        bucket = math.ceil(math.log2(max(latency, FASTEST) / FASTEST) * PER_DOUBLING)
        self.counts[min(bucket, BUCKETS - 1)] += 1
        self.longest = max(self.longest, latency)

    def extend(self, other: Histogram) -> None:
        """Add those of another one."""
        self.counts = array("L", map(sum, zip(self.counts, other.counts, strict=True)))
        self.longest = max(self.longest, other.longest)

    @property
    def total(self) -> int:
        """How many there are."""
        return sum(self.counts)

    def percentile(self, percent: float) -> float:
        """Return the upper bound in seconds of the bucket that holds the percentile; NaN where there is nothing."""
        wanted, seen = max(1, math.ceil(self.total * percent / 100)), 0
        for bucket, number in enumerate(self.counts):
            seen += number
            if seen >= wanted:
                return self.longest if bucket == BUCKETS - 1 else min(FASTEST * 2 ** (bucket / PER_DOUBLING), self.longest)
        return math.nan


@dataclass(slots=True)
class Ledger:
    """The transfers of one client, which numbers them from 1: acknowledged are all but the exceptions."""

    begun: int = 0
    unknown: set[int] = field(default_factory=set)
    """Writes whose outcome could not be determined, and which raised an error that says so."""
    refused: set[int] = field(default_factory=set)
    """That were said not to be committed."""

    @property
    def acknowledged(self) -> int:
        """How many were acknowledged."""
        return self.begun - len(self.unknown) - len(self.refused)


def judge_ledger(ledgers: Mapping[int, Ledger], rows: Iterable[tuple[int, int, int]]) -> list[str]:
    """Compare what the clients know with the rows (client, number, how often it is there), a sentence for each wrong one."""
    wrong = []
    present = {(client, number): times for client, number, times in rows}
    for client, ledger in ledgers.items():
        for number in range(1, ledger.begun + 1):
            times = present.pop((client, number), 0)
            if times > 1:
                wrong.append(f"transfer {number} of client {client} is doubled: there {times} times")
            elif times and number in ledger.refused:
                wrong.append(f"transfer {number} of client {client} was said not to be committed, and is there")
            elif not times and number not in ledger.unknown and number not in ledger.refused:
                wrong.append(f"transfer {number} of client {client} was acknowledged, and is lost")
    wrong += [f"transfer {number} of client {client} was never made, and is there" for client, number in present]
    return wrong


def judge_balances(expected: Mapping[int, int], found: Mapping[int, int]) -> list[str]:
    """Compare the accounts with what the transfers that are there make of them."""
    wrong = [
        f"account {account} has {found.get(account)}, its transfers make {balance}"
        for account, balance in expected.items()
        if found.get(account) != balance
    ]
    if sum(found.values()) != sum(expected.values()):
        wrong.append(f"the accounts' sum is {sum(found.values())}, not {sum(expected.values())}")
    return wrong


@dataclass(slots=True)
class Register:
    """What one client knows of its row, whose versions it writes in order."""

    attempted: int = 0
    acknowledged: int = 0
    seen: int = 0
    refused: set[int] = field(default_factory=set)

    def next(self) -> int:
        """Return the version to write now."""
        self.attempted += 1
        return self.attempted

    def judge(self, version: int) -> str | None:
        """Note a version that was read; return what is wrong with it."""
        before, self.seen = self.seen, max(self.seen, version)
        if version > self.attempted:
            return f"read version {version}, which was never written"
        if version in self.refused:
            return f"read version {version}, which was said not to be committed"
        if version < self.acknowledged:
            return f"stale read: version {version} after {self.acknowledged} was acknowledged"
        if version < before:
            return f"backward read: version {version} after {before} was read"
        return None


def judge_settings(who: str, expected: tuple[str, str], found: tuple[str, str]) -> str | None:
    """Compare statement_timeout and transaction_timeout with what they have to be; return what is wrong."""
    return None if found == expected else f"{who} ran under statement_timeout, transaction_timeout {found}, not {expected}"


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process has, its clients at rest and its pools disposed."""

    threads: int
    descriptors: int
    memory: int
    """Resident, in bytes."""


def judge_usage(name: str, before: Usage, after: Usage) -> list[str]:
    """Compare a process at the end with what it was after the warm-up; return what leaked."""
    wrong = []
    if after.threads > before.threads:
        wrong.append(f"{name} leaks threads: {after.threads}, {before.threads} after the warm-up")
    if after.descriptors > before.descriptors + MORE_DESCRIPTORS:
        wrong.append(f"{name} leaks file descriptors: {after.descriptors}, {before.descriptors} after the warm-up")
    if after.memory > before.memory + MORE_MEMORY:
        grown = (after.memory - before.memory) / 2**20
        wrong.append(f"{name} leaks memory: {grown:.0f} MiB more than after the warm-up")
    return wrong


@dataclass(frozen=True, slots=True)
class Connections:
    """The applications' connections after their end, by where they end."""

    edge: int
    bouncers: Mapping[str, int]
    """Clients of the dedicated bouncers."""
    servers: Mapping[str, Sequence[str]]
    """The states of each server's connections, as pg_stat_activity calls them."""


def judge_connections(found: Connections) -> list[str]:
    """Return which connections leaked. Those of the bouncers to the servers stay, idle, and are bounded by the pools' sizes."""
    wrong = [f"{found.edge} connections to the edge leaked"] if found.edge else []
    wrong += [f"{number} client connections of {name} leaked" for name, number in found.bouncers.items() if number]
    for name, states in found.servers.items():
        busy = [state for state in states if state != "idle"]
        if busy:
            wrong.append(f"{name} has {len(busy)} connections that are not idle: {', '.join(sorted(set(busy)))}")
        if len(states) > POOL_SIZE:
            wrong.append(f"{name} has {len(states)} connections, a pool {POOL_SIZE} at most")
    return wrong


@dataclass(slots=True)
class History:
    """What an application did in one stretch of work. Its size follows from the stretch's windows, not from its operations."""

    width: float
    """Seconds of a window."""
    tally: array[int] = field(default_factory=lambda: array("q", [0] * KINDS))
    windows: dict[str, dict[int, Histogram]] = field(default_factory=dict)
    """Latencies of what succeeded, by kind of operation and by window: `time.monotonic()` divided by the width."""
    raised: Counter[str] = field(default_factory=Counter)
    """Errors, as in "read: OperationalError: gone"."""
    violations: list[str] = field(default_factory=list)
    violated: int = 0
    """How many violations there were, of which few are kept."""
    ledgers: dict[int, Ledger] = field(default_factory=dict)

    def add(self, kind: str, start: float, end: float, flags: int) -> None:
        """Note an operation that succeeded."""
        self.tally[flags] += 1
        self.windows.setdefault(kind, {}).setdefault(int(start / self.width), Histogram()).add(end - start)

    def add_error(self, kind: str, flags: int, message: str) -> None:
        """Note an operation that raised."""
        self.tally[flags] += 1
        text = f"{kind}: {message}"
        self.raised[text if len(self.raised) < KEPT or text in self.raised else f"{kind}: other errors"] += 1

    def violate(self, *texts: str | None) -> None:
        """Note what must not have happened; None is nothing."""
        for text in filter(None, texts):
            self.violated += 1
            if len(self.violations) < KEPT:
                self.violations.append(text)

    def extend(self, other: History) -> None:
        """Add what another client did; the ledgers stay apart."""
        self.tally = add_up([self.tally, other.tally])
        for kind, windows in other.windows.items():
            own = self.windows.setdefault(kind, {})
            for window, histogram in windows.items():
                own.setdefault(window, Histogram()).extend(histogram)
        self.raised.update(other.raised)
        self.violations = (self.violations + other.violations)[:KEPT]
        self.violated += other.violated

    def latencies(self, kind: str) -> Histogram:
        """Return those of all windows."""
        whole = Histogram()
        for histogram in self.windows.get(kind, {}).values():
            whole.extend(histogram)
        return whole
