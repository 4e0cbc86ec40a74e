"""The soak: random faults under load from both applications, and checks of what must never happen."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self

import psycopg
from rich.live import Live

from ps_core import conninfo
from ps_core.failures import Kind, classify
from ps_demo.bank_sqlalchemy import ddl
from ps_demo.clients import Application
from ps_demo.figures import FAILED, WRITE, count
from ps_lab import Lab
from ps_lab.processes import wait_until
from tests.soak import faults
from tests.soak.checks import (
    Connections,
    History,
    Ledger,
    Usage,
    judge_balances,
    judge_connections,
    judge_ledger,
    judge_settings,
    judge_usage,
)
from tests.soak.clients import ACCOUNTS, NAMES, STOPPING, serve
from tests.soak.report import Done, report

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from rich.console import Console

__all__ = ["run"]

LINES_EVERY: Final = 5.0
"""Seconds between two lines of progress where there is no terminal."""
WINDOWS: Final = 600
"""How many a soak has at most, each a second at least: what is recorded does not grow with the time."""
WARM_UP: Final = (3.0, 20.0)
"""Seconds, at least and at most a tenth of the whole: without faults, so that what has to be imported and cached is."""
BALANCE: Final = 1_000_000
TABLES: Final = f"{ddl()};CREATE TABLE soak_register (client int PRIMARY KEY, version int NOT NULL)"


def run(args: argparse.Namespace, console: Console) -> int:
    """Run the soak; return the exit status: 1 after any violation."""
    args.output.mkdir(parents=True, exist_ok=True)
    seconds = args.minutes * 60
    with ExitStack() as stack:
        console.print(f"seed {args.seed}, {args.minutes:g} minutes", highlight=False)
        lab = stack.enter_context(Lab(transport=args.transport))
        lab.sql(TABLES)
        lab.sql("INSERT INTO bank_account SELECT id, %s FROM generate_series(1, %s) id", BALANCE, ACCOUNTS)
        lab.sql("INSERT INTO soak_register SELECT client, 0 FROM generate_series(1, %s) client", args.clients * len(NAMES))
        lab.wait_replicas_caught_up()
        applications = [
            stack.enter_context(Application(name, lab.url, clients=args.clients, seed=args.seed, serve=serve)) for name in NAMES
        ]
        soak = _Soak(console, lab, applications, width=max(1.0, seconds / WINDOWS))
        for application in applications:
            application.wait()
        low, high = WARM_UP
        soak.doing = "warming up"
        warm = soak.stretch(min(max(low, seconds / 10), high), None)
        console.print("warmed up; faults begin", highlight=False)
        done = soak.stretch(seconds, args.seed)
        violations = {name: list(history.violations) for name, (history, _) in done.items()}
        for name, (history, after) in done.items():
            before, (early, _) = warm[name][1], warm[name]
            violations[name] += early.violations + judge_usage(name, before, after)
            if (unsaid := history.violated + early.violated - len(history.violations) - len(early.violations)) > 0:
                violations[name].append(f"and {unsaid:,} more")
            for kind in ("read", "write", "transfer"):
                if not history.latencies(kind).total:
                    violations[name].append(f"no {kind} succeeded")
        violations |= soak.foreign.outcome()
        ledgers = {client: ledger for history, _ in done.values() for client, ledger in history.ledgers.items()}
        violations["ledger"] = _ledger(lab, ledgers)
        violations["connections"] = judge_connections(_connections(lab))
    return report(
        console,
        args.output,
        Done(
            seed=args.seed,
            seconds=seconds,
            start=soak.start,
            faults=soak.faults,
            histories={name: history for name, (history, _) in done.items()},
            before={name: usage for name, (_, usage) in warm.items()},
            after={name: usage for name, (_, usage) in done.items()},
            foreign=soak.foreign.looked,
            violations={name: texts for name, texts in violations.items() if texts},
        ),
    )


def _ledger(lab: Lab, ledgers: dict[int, Ledger]) -> list[str]:
    rows: Any = lab.sql(  # as `Transfer.reference` has it
        "SELECT (reference >> 32)::int, (reference & x'ffffffff'::bigint)::int, count(*) FROM bank_transfer GROUP BY reference"
    )
    moved: Any = lab.sql(
        "SELECT id, %s + coalesce((SELECT sum(amount) FROM bank_transfer WHERE target = a.id), 0)"
        " - coalesce((SELECT sum(amount) FROM bank_transfer WHERE source = a.id), 0) FROM bank_account a",
        BALANCE,
    )
    found: Any = lab.sql("SELECT id, balance FROM bank_account")
    wrong = judge_ledger(ledgers, rows) + judge_balances(dict(moved), dict(found))
    if sum(balance for _, balance in found) != BALANCE * ACCOUNTS:
        wrong.append("the sum of all accounts has changed")
    return wrong


def _connections(lab: Lab) -> Connections:
    """Return what is left when the applications have disposed their pools; the servers may take a moment to notice."""

    def look() -> Connections:
        return Connections(
            edge=int(lab.edge.status()["clients"]),
            bouncers={
                name: sum(row[1] == "app" for row in lab.bouncers[name].admin("SHOW CLIENTS"))
                for name in ("write-pool", "read-pool")
            },
            servers={
                server.name: [state for (state,) in server.sql("SELECT state FROM pg_stat_activity WHERE usename = 'app'")]
                for server in lab.servers
            },
        )

    lab.wait_replicas_caught_up()
    with suppress(TimeoutError):
        wait_until(lambda: not judge_connections(look()), "the end of the connections", timeout=10)
    return look()


class _Foreign:
    """Clients of stock psycopg on the same poolers. They set nothing, and must find nothing set."""

    def __init__(self, lab: Lab) -> None:
        self.looked = 0
        self._wrong: list[str] = []
        topology = lab.topology
        self._paths = {"primary": conninfo(topology.primary), "replica": conninfo(topology.replicas[0])}
        (self._expected,) = lab.sql("SELECT current_setting('statement_timeout'), current_setting('transaction_timeout')")
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._stopping.clear()
        self._threads = [threading.Thread(target=self._run, args=(path,), daemon=True) for path in self._paths]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(STOPPING)

    def outcome(self) -> dict[str, list[str]]:
        """Return what was wrong."""
        wrong = self._wrong if self.looked else ["no foreign client came through"]
        return {"foreign clients": wrong[:50]}

    def _run(self, path: str) -> None:
        where: Any = self._paths[path]
        while not self._stopping.wait(0.1):
            try:
                with psycopg.connect(
                    **where, autocommit=True, cursor_factory=psycopg.ClientCursor, prepare_threshold=None
                ) as connection:
                    while not self._stopping.wait(0.05):
                        row = connection.execute(
                            "SELECT current_setting('statement_timeout'), current_setting('transaction_timeout')"
                        ).fetchone()
                        self.looked += 1
                        assert row is not None
                        wrong = judge_settings(f"a foreign client of the {path}", self._expected, row)
                        if wrong:
                            self._wrong.append(wrong)
            except psycopg.OperationalError as exc:  # what faults do to a stock client is not the question
                if classify(exc).kind is Kind.PERMANENT:
                    self._wrong.append(f"a foreign client of the {path}: {type(exc).__qualname__}: {exc}".partition("\n")[0])


@dataclass(slots=True)
class _Soak:
    """The soak itself, and how it is shown."""

    console: Console
    lab: Lab
    applications: Sequence[Application]
    width: float
    start: float = 0.0
    doing: str = ""
    faults: list[tuple[str, float, float]] = field(default_factory=list)
    foreign: _Foreign = field(init=False)
    _next_line: float = 0.0

    def __post_init__(self) -> None:
        self.foreign = _Foreign(self.lab)

    def stretch(self, seconds: float, seed: int | None) -> dict[str, tuple[History, Usage]]:
        """Let the applications work for so long, under the faults of a seed, if any."""
        self.start = time.monotonic()
        self._next_line = LINES_EVERY
        for application in self.applications:
            application.go_on(self.width)
        with self.foreign, self._shown():
            if seed is None:
                self._wait(seconds)
            else:
                self._break(seed, self.start + seconds)
            for application in self.applications:
                application.go_on()
            return {application.name: application.result(STOPPING + 20) for application in self.applications}

    def _break(self, seed: int, until: float) -> None:
        for fault in faults.plan(seed):
            self.doing = ""
            if time.monotonic() + fault.pause >= until:
                break
            self._wait(fault.pause)
            self.doing = str(fault)
            began = time.monotonic()
            faults.make(fault, self.lab, self._wait)
            self.faults.append((str(fault), began, time.monotonic()))
        self._wait(until - time.monotonic())

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while True:
            for application in self.applications:
                application.check()
            if not self.console.is_terminal and self._now >= self._next_line:
                self._next_line = self._now + LINES_EVERY
                self.console.print(self._line(), highlight=False, soft_wrap=True)
            if (left := until - time.monotonic()) <= 0:
                return
            time.sleep(min(left, 0.25))

    @property
    def _now(self) -> float:
        return time.monotonic() - self.start

    def _line(self) -> str:
        parts = [f"{self._now:6.1f} s  {len(self.faults)} faults"]
        for application in self.applications:
            tally = application.tally
            reads, writes = count(tally, WRITE | FAILED, 0), count(tally, WRITE | FAILED, WRITE)
            failed, raised = count(tally, WRITE | FAILED, FAILED), count(tally, WRITE | FAILED, WRITE | FAILED)
            parts.append(f"{application.name}: {reads:,} reads, {failed:,} failed; {writes:,} writes, {raised:,} raised")
        return "  |  ".join([*parts, self.doing] if self.doing else parts)

    @contextmanager
    def _shown(self) -> Iterator[None]:
        with Live(get_renderable=lambda: self._line().replace("  |  ", "\n"), console=self.console, transient=True):
            yield
