"""Compares the systems, and writes the page.

    python -m tests.compare [--quick] [--only SYSTEM ...] [--output FILE]

`make compare` does the set-up, too.
"""

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import psycopg

import ps_core
from ps_demo.figures import SETTLING, Event, Recording
from ps_lab import Lab
from tests.compare.report import INTRODUCTION, Findings, Window, render
from tests.compare.system import SYSTEMS, TABLES
from tests.compare.worker import Worker

PAGE: Final = Path(__file__).parents[2] / "docs" / "comparison.md"
CLIENTS: Final = 8
SEED: Final = 1
REPLAY_DELAY: Final = 0.2
"""Seconds that the replicas are behind when users look for what they wrote."""

EVENTS: Final[dict[str, Callable[[Lab], object]]] = {
    "planned switchover": Lab.switchover,
    "crash of the primary and promotion": Lab.crash_primary,
    "local bouncer killed and started again": lambda lab: lab.restart_bouncer("local"),
    "all connections cut": lambda lab: lab.edge.cut(),
    "one of two replicas gone": Lab.crash_replica,
}
"""What is done to the servers, and how."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much is done."""

    events: Sequence[str] = tuple(EVENTS)
    times: int = 2
    """How often each event is made."""
    calm: float = 1.0
    """Seconds before each event."""
    pairs: int = 50
    turns: int = 3
    turn: float = 0.4
    """Seconds of one measurement of throughput."""


QUICK: Final = Effort(events=("all connections cut",), times=1, calm=0.3, pairs=5, turns=1, turn=0.05)


def compare(lab: Lab, names: Sequence[str], effort: Effort) -> list[Findings]:
    """Examine the systems one after another, then their throughput in turns."""
    found = []
    for name in names:
        print(f"{name}: events", file=sys.stderr, flush=True)
        with Worker(name, lab.url, CLIENTS) as worker:
            found.append(examine(lab, worker, effort))
    print("throughput, all in turns", file=sys.stderr, flush=True)
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(name, lab.url, CLIENTS)) for name in names]
        measured = measure_throughput(lab, workers, effort)
    return [replace(findings, throughput=measured[findings.module]) for findings in found]


def examine(lab: Lab, worker: Worker, effort: Effort) -> Findings:
    """Do everything to one system but measure its throughput."""
    make_tables(lab)
    name, remark, versions = worker.call("describe")
    round_trips = count_round_trips(lab, worker)
    lab.set_replay_delay(REPLAY_DELAY)
    pairs = worker.call("pairs", effort.pairs)
    lab.set_replay_delay(0)
    windows = [meet(lab, worker, event, effort) for event in effort.events]
    return Findings(
        module=worker.name,
        name=name,
        remark=remark,
        versions=versions,
        round_trips=round_trips,
        pairs=pairs,
        windows=windows,
        throughput={},
        attempts=worker.call("attempts"),
    )


def make_tables(lab: Lab) -> None:
    """Make the application's tables anew."""
    options: dict[str, Any] = dict(ps_core.conninfo(lab.topology.direct))
    with psycopg.connect(**options) as connection:
        connection.execute("SET client_min_messages = error")
        connection.execute(TABLES)
    lab.wait_replicas_caught_up()


def count_round_trips(lab: Lab, worker: Worker, times: int = 10) -> dict[str, float]:
    """Return the round trips of each unit of work on connections that are there already."""
    found = {}
    for unit in ("read", "transfer"):
        worker.call("repeat", unit, times)
        with lab.round_trips() as counter:
            worker.call("repeat", unit, times)
        found[unit] = counter.count / times
    return found


def meet(lab: Lab, worker: Worker, name: str, effort: Effort) -> Window:
    """Let the clients meet an event."""
    before = set(references(lab))
    events, whole, stuck = [], Recording(), 0
    for attempt in range(effort.times):
        worker.call("begin", CLIENTS, SEED + attempt, 10 * list(EVENTS).index(name) + attempt + 1)
        time.sleep(effort.calm)
        began = time.monotonic()
        EVENTS[name](lab)
        events.append(Event(name, began, time.monotonic()))
        time.sleep(SETTLING)
        recording, waiting = worker.call("end")
        whole.extend(recording)
        stuck += waiting
        lab.restart_replica()
        lab.wait_replicas_caught_up()
    present = [reference for reference in references(lab) if reference not in before]
    return Window(name=name, events=events, recording=whole, stuck=stuck, present=present)


def references(lab: Lab) -> list[int]:
    """Return the references of the transfers that are in the table."""
    return [reference for (reference,) in lab.sql("SELECT reference FROM bank_transfer")]


def measure_throughput(lab: Lab, workers: Sequence[Worker], effort: Effort) -> dict[str, dict[tuple[float, str, int], float]]:
    """Let the systems take turns."""
    make_tables(lab)
    found: dict[str, dict[tuple[float, str, int], float]] = {worker.name: {} for worker in workers}
    for added in (0.0, 0.002):
        with lab.edge.delay(added / 2):  # each way
            for unit in ("read", "transfer"):
                for clients in (1, CLIENTS):
                    rates: dict[str, list[float]] = {worker.name: [] for worker in workers}
                    for turn in range(effort.turns):
                        shift = turn % len(workers)
                        for worker in (*workers[shift:], *workers[:shift]):
                            rates[worker.name].append(worker.call("throughput", unit, clients, effort.turn))
                    for name, of_system in rates.items():
                        found[name][added * 1000, unit, clients] = statistics.median(of_system)
    return found


def introduce(lab: Lab) -> str:
    """Return the beginning of the page."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return INTRODUCTION.format(
        machine=f"{platform.system()} on {platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB",
        load=os.getloadavg()[0],
        python=platform.python_version(),
        psycopg=psycopg.__version__,
        postgresql=lab.sql("SHOW server_version")[0][0],
        bouncer=lab.bouncers["local"].admin("SHOW VERSION")[0][0],
        clients=CLIENTS,
        seed=SEED,
    )


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(prog="compare")
    parser.add_argument("--quick", action="store_true", help="one event and a few requests, to see that it works")
    parser.add_argument("--only", nargs="+", choices=SYSTEMS, default=SYSTEMS, metavar="SYSTEM", help=", ".join(SYSTEMS))
    parser.add_argument("--output", type=Path, default=PAGE, metavar="FILE")
    options = parser.parse_args()
    with Lab(max_client_conn=1000) as lab:
        introduction = introduce(lab)
        found = compare(lab, options.only, QUICK if options.quick else Effort())
    options.output.write_text("\n".join(render(introduction, found)) + "\n")
    print(options.output.read_text())


if __name__ == "__main__":
    main()
