"""Measures what units of work take in each way, side by side: CPU of the client, of PostgreSQL and of PgBouncer, and the clock.

The ways take turns, unit by unit, each in a process of its own (`worker`), so that all meet the same load and caches as cold as
requests do. A round is some tens of milliseconds of that, and gives one ratio between two ways; what is reported is the median of
the rounds' ratios. On a loaded machine that spreads by 0.05, where the ratio of sums spreads by 0.25.
"""

from __future__ import annotations

import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final, Self

import psycopg

import ps_core
from ps_core.consistency import parse_lsn
from tests.benchmarks.worker import TABLES, UNITS, Way

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ps_lab import Lab

__all__ = ["BEFORE", "Cost", "Costs", "Worker", "code_of", "measure", "quartiles", "ratios", "tables"]

ROOT: Final = Path(__file__).parents[2]
BEFORE: Final = "before: "
"""Precedes the name of a way that is done by the code of another commit."""
TURN: Final = 0.004
"""Seconds that the fastest way works for in one turn, about."""
TURNS: Final = 5
"""In a round."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What one unit of work took, in nanoseconds."""

    client: float
    """CPU of the process."""
    server: float
    """CPU of PostgreSQL's backends."""
    pooler: float
    """CPU of PgBouncer."""
    clock: float


Costs = dict[str, list[Cost]]
"""The costs of one unit, by name of the way, round by round."""


class Worker:
    """A process that does units of work in one way, with the code that is first in `path`.

    It has a role of its own, and so server connections of its own: PgBouncer need not set anew what other ways had set there.
    """

    def __init__(self, way: Way, lab: Lab, role: str, path: str = "") -> None:
        self._lab, self._role = lab, role.encode()
        # What the primary has flushed may end within a record, which no replica has.
        position = parse_lsn(lab.sql("SELECT min(replay_lsn)::text FROM pg_stat_replication")[0][0])
        # -P: else the packages in the folder that this runs in, which are those of now, would come before the ones in `path`.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tests.benchmarks.worker", way, lab.url_of(role), str(position)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path or str(ROOT), "PYTHONHASHSEED": "0"},
        )

    def ask(self, verb: str, *arguments: object) -> Any:
        """Let it do something, and return what it answers."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([verb, *arguments]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{verb} {arguments} failed in {self._process.args[4]!r}")  # type: ignore[index]
        return json.loads(line)

    def do(self, unit: str, count: int) -> Cost:
        """Do a unit of work so often, and return what one took, servers included that were there before and after."""
        processes = self._processes()
        before = [_spent(pids) for pids in processes]
        client, clock = self.ask("do", unit, count)
        after = [_spent(pids) for pids in processes]
        server, pooler = (
            sum(now[pid] - then[pid] for pid in now) / count / UNITS[unit].at_once
            for then, now in zip(before, after, strict=True)
        )
        return Cost(client, server, pooler, clock)

    def _processes(self) -> tuple[list[int], list[int]]:
        """Return the backends of its role, and PgBouncer's processes."""
        backends, poolers = [], []
        for pid in self._lab.pids():
            with suppress(FileNotFoundError, ProcessLookupError):
                if b"pgbouncer" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]:
                    poolers.append(pid)
                children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
                title = b": %b " % self._role
                backends += [int(child) for child in children if title in Path(f"/proc/{child}/cmdline").read_bytes()]
        return backends, poolers

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.__exit__(None, None, None)  # closes its input, which ends it, and waits


def tables(lab: Lab) -> None:
    """Make what the units of work read and write."""
    with psycopg.connect(**ps_core.conninfo(lab.topology.direct), autocommit=True) as conn:
        conn.execute(TABLES)
    lab.wait_replicas_caught_up()


@contextmanager
def code_of(commit: str) -> Iterator[str]:
    """Make the code of a commit importable, and give the folder to search first. The tests are those of now."""
    packed = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
    with TemporaryDirectory() as folder:
        tree, links = Path(folder, "tree"), Path(folder, "links")
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            archive.extractall(tree, filter="data")
        links.mkdir()
        for package in (*tree.glob("shared/ps_*"), *tree.glob("ps_*"), ROOT / "tests"):
            (links / package.name).symlink_to(package)
        yield str(links)


def measure(unit: str, workers: dict[str, Worker], rounds: int) -> Costs:
    """Do a unit of work in each way, round by round."""
    at_once = UNITS[unit].at_once
    for worker in workers.values():
        worker.ask("do", unit, 1 if at_once > 1 else 6)  # connections, caches, compiled statements
    fastest = min(worker.ask("do", unit, 2)[1] for worker in workers.values()) / 1e9 * at_once
    # Where threads and tasks begin and end, not all of them are at work.
    count, turns = (max(1, round(0.2 / fastest)), 1) if at_once > 1 else (max(1, round(TURN / fastest)), TURNS)
    costs: Costs = {name: [] for name in workers}
    for number in range(rounds):
        found: Costs = {name: [] for name in workers}
        for turn in range(turns):
            for name in order([*workers], number + turn):
                found[name].append(workers[name].do(unit, count))
        for name, of_turns in found.items():
            sums = (sum(getattr(one, side.name) for one in of_turns) for side in fields(Cost))
            costs[name].append(Cost(*(sum_ / turns for sum_ in sums)))
    return costs


def order(names: Sequence[str], number: int) -> list[str]:
    """Return the order of a turn: each is first as often as the others, and each follows another as often as it precedes it."""
    shift = number // 2 % len(names)
    turned = [*names[shift:], *names[:shift]]
    return turned[::-1] if number % 2 else turned


def _spent(pids: Iterable[int]) -> dict[int, int]:
    """Return the nanoseconds of CPU that processes have had. One that is gone is left out."""
    found = {}
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):
            found[pid] = int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])
    return found


def ratios(costs: Costs, name: str, side: str, against: str = Way.STOCK) -> list[float]:
    """Return the ratio to another way, round by round."""
    pairs = zip(costs[name], costs[against], strict=True)
    return [getattr(one, side) / (getattr(other, side) or 1) for one, other in pairs]


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the 25th, 50th and 75th percentile."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high
