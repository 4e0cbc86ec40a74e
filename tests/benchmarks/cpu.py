"""CPU time of units of work, ours beside stock: what an application server and a database are paid for.

    python -m tests.benchmarks.cpu [--only TEXT] [--rounds 60] [--before COMMIT]

Each way has a process of its own (`cpu_units`). In each round every way does the unit so often that it takes some tens of
milliseconds; the order turns round. The client's CPU is its process's; the servers' is that of the backends and of the poolers
that were there before and after, from /proc/PID/schedstat. What is shown is the median, over the rounds, of the ratio to stock in
the same round: on a loaded machine that spreads by 0.05, where the ratio of sums spreads by 0.25.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final, Self

import psycopg

import ps_core
from ps_core.consistency import parse_lsn
from ps_lab import Lab
from tests.benchmarks.cpu_units import TABLES, UNITS, Way

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT: Final = Path(__file__).parents[2]
SIDES: Final = ("client", "PostgreSQL", "PgBouncer", "clock")
BATCH: Final = 0.025
"""Seconds that one way works for in one round, about."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Nanoseconds of CPU, and of the clock, of some units of work."""

    client: float
    server: float
    pooler: float
    clock: float


class Worker:
    """A process that does units of work in one way, with the code of `path`."""

    def __init__(self, way: Way, lab: Lab, position: int, path: str = "") -> None:
        environment = {**os.environ, "PYTHONHASHSEED": "0", **({"PYTHONPATH": path} if path else {})}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.cpu_units", way, lab.url, str(position)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd="/" if path else ROOT,
        )
        self._lab = lab

    def do(self, unit: str, count: int) -> Cost:
        """Do a unit so many times."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        before = _servers(self._lab)
        self._process.stdin.write(json.dumps([unit, count]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{unit!r} failed in {self._process.args!r}")
        after = _servers(self._lab)
        client, clock = json.loads(line)
        server, pooler = (
            sum(after[kind][pid] - spent for pid, spent in before[kind].items() if pid in after[kind])
            for kind in ("server", "pooler")
        )
        return Cost(client / count, server / count, pooler / count, clock / count)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()


def _servers(lab: Lab) -> dict[str, dict[int, int]]:
    """Return the nanoseconds of CPU that backends and poolers have had, by process."""
    ours = set(lab.pids())
    found: dict[str, dict[int, int]] = {"server": {}, "pooler": {}}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            command = (folder / "cmdline").read_bytes()
            pid, kind = int(folder.name), ""
            if command.startswith(b"postgres: ") and b": app " in command:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                kind = "server" if parent in ours else ""
            elif pid in ours and b"pgbouncer" in command.split(b"\0")[0]:
                kind = "pooler"
            if kind:
                found[kind][pid] = int((folder / "schedstat").read_text().split()[0])
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


@contextmanager
def _code_of(commit: str) -> Iterator[str]:
    """Make the code of a commit importable; give what PYTHONPATH is then. The tests stay those of now."""
    with TemporaryDirectory() as folder:
        tree = Path(folder, "tree")
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", tree, commit], cwd=ROOT, check=True)
        try:
            links = Path(folder, "links")
            links.mkdir()
            for package in [*tree.glob("shared/ps_*"), *tree.glob("ps_*"), ROOT / "tests"]:
                (links / package.name).symlink_to(package)
            yield str(links)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", tree], cwd=ROOT, check=True)


Costs = dict[str, list[Cost]]
"""The figures of one unit, by name of the way, round by round."""


def ways_of(unit: str) -> Sequence[Way]:
    """Return the ways in which a unit is done. Stock is the first."""
    if unit == "psycopg, read by key":
        return tuple(Way)
    return Way.STOCK, Way.TIMEOUTS, Way.TOKENS


def measure(lab: Lab, units: Sequence[str], rounds: int, before: str | None) -> dict[str, Costs]:
    """Do each unit in each way, `rounds` times."""
    with psycopg.connect(**ps_core.conninfo(lab.topology.direct), autocommit=True) as conn:
        conn.execute(TABLES)
    lab.wait_replicas_caught_up()
    position = parse_lsn(lab.sql("SELECT pg_current_wal_flush_lsn()::text")[0][0])
    found: dict[str, Costs] = {}
    with ExitStack() as stack:
        path = stack.enter_context(_code_of(before)) if before else ""
        workers = {way.value: stack.enter_context(Worker(way, lab, position)) for way in Way}
        if path:
            for way in (Way.TIMEOUTS, Way.TOKENS):
                workers[f"before: {way}"] = stack.enter_context(Worker(way, lab, position, path))
        for unit in units:
            found[unit] = _measure_unit(
                {name: one for name, one in workers.items() if _way_of(name) in ways_of(unit)}, unit, rounds
            )
            lab.sql("DELETE FROM bench_book WHERE title = 'made'")
    return found


def _way_of(name: str) -> Way:
    return Way(name.removeprefix("before: "))


def _measure_unit(workers: dict[str, Worker], unit: str, rounds: int) -> Costs:
    counts = {}
    for name, worker in workers.items():
        worker.do(unit, 3)  # connections, caches, compiled statements
        once = min(worker.do(unit, 2).clock for _ in range(3))
        counts[name] = once
    count = max(1, round(BATCH * 1e9 / min(counts.values())))
    costs: Costs = {name: [] for name in workers}
    for number in range(rounds):
        names = list(workers)
        shift = number % len(names)
        for name in (*names[shift:], *names[:shift])[:: 1 if number % 2 else -1]:
            costs[name].append(workers[name].do(unit, count))
    return costs


def ratios(costs: Costs, name: str, side: str, against: str = Way.STOCK) -> list[float]:
    """Return the ratio to another way, round by round."""
    attribute = {"client": "client", "PostgreSQL": "server", "PgBouncer": "pooler", "clock": "clock"}[side]
    pairs = zip(costs[name], costs[against], strict=True)
    return [getattr(one, attribute) / max(1.0, getattr(other, attribute)) for one, other in pairs]


def median(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the median and the quartiles around it."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return middle, low, high


def table(found: dict[str, Costs]) -> Iterator[str]:
    """Yield the lines of the table of ratios."""
    yield f"| unit of work | way | {' | '.join(SIDES)} |"
    yield f"|---|---|{'--:|' * len(SIDES)}"
    for unit, costs in found.items():
        for name in costs:
            if name == Way.STOCK:
                cells = [
                    f"{median([getattr(one, side) / 1e3 for one in costs[name]])[0]:.0f} µs"
                    for side in ("client", "server", "pooler", "clock")
                ]
                yield f"| {unit} | {name} | {' | '.join(cells)} |"
                continue
            cells = ["{:.2f} ({:.2f} to {:.2f})".format(*median(ratios(costs, name, side))) for side in SIDES]
            yield f"| {unit} | {name} | {' | '.join(cells)} |"


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(prog="cpu")
    parser.add_argument("--only", default="", metavar="TEXT", help="the units whose names contain this")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--before", metavar="COMMIT", help="measure the code of this commit, too")
    options = parser.parse_args()
    units = [unit for unit in UNITS if options.only in unit]
    with Lab() as lab:
        for line in table(measure(lab, units, options.rounds, options.before)):
            print(line)


if __name__ == "__main__":
    main()
