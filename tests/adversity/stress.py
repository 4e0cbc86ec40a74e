"""Random faults under load, and the count of what must never happen.

    python -m tests.adversity.stress --minutes 10 --seed 1

Threads and asyncio tasks read in autocommit (primary and replicas), write in transactions and keep a ledger of what was
acknowledged; tenants read under row-level security by `local_settings`; foreign clients of the same pools look for settings that
somebody left behind. Meanwhile backends, bouncers and connections are killed, and the primary is switched over. Exit status 1
where an autocommit read failed, an acknowledged write is missing or there twice, one that was said to be rolled back is there, a
tenant saw another's row, or a client met a foreign setting.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any

import psycopg
from rich.console import Console
from rich.table import Table

from ps_core import AsyncConnection, Connection
from ps_core._registry import states_of
from ps_core.context import local_settings, use_token
from ps_core.errors import CommitOutcomeUnknown
from ps_core.failures import classify
from ps_core.topology import Topology
from ps_lab import Lab
from tests.adversity.harness import stock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from ps_core._endpoint import EndpointState

WORKERS = 9
"""Threads, and as many asyncio tasks."""
STATEMENT_TIMEOUT = "9s"
"""The setting of our clients; foreign ones have none of their own, and must see the server's, which is 0."""
TENANTS = ("red", "blue")


@dataclass(slots=True)
class Report:
    """What was counted."""

    done: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    raised: Counter[str] = field(default_factory=Counter)
    """Errors that a caller may see, by work and rule: of transactions and foreign clients."""
    wrong: list[str] = field(default_factory=list)
    acknowledged: set[int] = field(default_factory=set)
    rolled_back: set[int] = field(default_factory=set)
    unknown: set[int] = field(default_factory=set)
    slowest: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, work: str) -> Iterator[None]:
        """Count one piece of work that succeeds."""
        began = time.monotonic()
        yield
        self.done[work] += 1
        self.slowest[work] = max(self.slowest.get(work, 0.0), time.monotonic() - began)

    def settle(self, rows: Counter[int]) -> None:
        """Compare the ledger with what is there."""
        lost = [number for number in self.acknowledged if rows[number] == 0]
        doubled = [number for number, times in rows.items() if times > 1]
        back = [number for number in self.rolled_back if rows[number]]
        for what, numbers in (("acknowledged, and lost", lost), ("there twice", doubled), ("rolled back, and there", back)):
            if numbers:
                self.wrong.append(f"{len(numbers)} writes {what}: {numbers[:5]}")

    def table(self) -> Table:
        """Return the report as a table."""
        table = Table("", "count", "slowest", title="Stress")
        for name, number in sorted(self.done.items()):
            table.add_row(name, f"{number:,}", f"{self.slowest.get(name, 0):.2f} s")
        for name, number in sorted(self.faults.items()):
            table.add_row(f"fault: {name}", f"{number:,}", "")
        for name, number in sorted(self.raised.items()):
            table.add_row(f"raised: {name}", f"{number:,}", "")
        table.add_row("writes acknowledged", f"{len(self.acknowledged):,}", "")
        table.add_row("writes rolled back", f"{len(self.rolled_back):,}", "")
        table.add_row("writes unknown, and said so", f"{len(self.unknown):,}", "")
        for text in self.wrong[:20]:
            table.add_row(f"[red]WRONG: {text}", "", "")
        table.add_row("wrong", f"{len(self.wrong):,}", "")
        return table


class Stress:
    """The load, the faults, and the count."""

    def __init__(self, lab: Lab, seed: int) -> None:
        self.lab = lab
        self.random = random.Random(seed)
        """Draws the faults alone, so that the seed decides their sequence."""
        self.report = Report()
        self._numbers = count(1)
        self._stop = threading.Event()
        topology = Topology.from_url(
            lab.url,
            bouncer="write-pool",
            replica_bouncer="read-pool",
            statement_timeout=STATEMENT_TIMEOUT,
            transaction_timeout="10s",
        )
        self.topology = topology
        self.primary, (self.replica, *_), _direct = states_of(topology)

    def run(self, seconds: float) -> Report:
        """Work under faults for so long; then compare."""
        with psycopg.connect(self.lab.primary.dsn(), autocommit=True) as conn:
            conn.execute(
                "DROP TABLE IF EXISTS stress, tenant; CREATE TABLE stress (id bigint, part int);"
                " CREATE TABLE tenant (name text);"
                " INSERT INTO tenant SELECT unnest(ARRAY['red', 'blue']) FROM generate_series(1, 5);"
                " ALTER TABLE tenant ENABLE ROW LEVEL SECURITY;"
                " CREATE POLICY own ON tenant USING (name = current_setting('app.tenant', true));"
                " CREATE OR REPLACE FUNCTION put_stress(n bigint) RETURNS int LANGUAGE plpgsql AS $$ BEGIN"
                " INSERT INTO stress VALUES (n, 1), (n, 2); RETURN 1; EXCEPTION WHEN OTHERS THEN RETURN 0; END $$"
            )
        self.lab.wait_replicas_caught_up()
        work: list[Callable[[], None]] = [
            *(self._reader(state) for state in (self.primary, self.replica) for _ in range(2)),
            *([self._write] * 2),
            self._call,
            *(self._tenant(name) for name in TENANTS),
        ]
        assert len(work) == WORKERS
        threads = [threading.Thread(target=self._watched, args=(one,)) for one in work]
        threads += [threading.Thread(target=self._watched, args=(self._foreign(path),)) for path in ("primary", "replica")]
        threads.append(threading.Thread(target=self._watched, args=(lambda: asyncio.run(self._tasks()),)))
        for thread in threads:
            thread.start()
        try:
            self._faults(time.monotonic() + seconds)
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(90)
        self.report.wrong += [f"{thread.name} hangs" for thread in threads if thread.is_alive()]
        self.lab.wait_replicas_caught_up()
        rows = self.lab.sql(
            "SELECT id, count(*) FILTER (WHERE part = 1), count(*) FILTER (WHERE part = 2) FROM stress GROUP BY id"
        )
        self.report.wrong += [f"write {number} is there by halves" for number, first, second in rows if first != second]
        self.report.settle(Counter({number: first for number, first, _ in rows}))
        return self.report

    # --- faults ---

    def _faults(self, until: float) -> None:
        kinds: list[tuple[str, Callable[[], object], int]] = [
            ("terminate backends", self._terminate, 6),
            ("kill a backend", self._kill_backend, 1),
            ("cut connections", self._cut, 6),
            ("cut after the answer", self._cut_answers, 4),
            ("kill a bouncer", self._kill_bouncer, 3),
            ("switchover", self.lab.switchover, 1),
        ]
        names, acts, weights = zip(*kinds, strict=True)
        chosen = dict(zip(names, acts, strict=True))
        while (left := until - time.monotonic()) > 0:
            name = self.random.choices(names, weights)[0]
            chosen[name]()
            self.report.faults[name] += 1
            self._stop.wait(min(left, self.random.uniform(0.1, 1.2)))

    def _terminate(self) -> None:
        server = self.random.choice(self.lab.servers)
        with suppress(psycopg.OperationalError):
            server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app' AND random() < 0.5")

    def _kill_backend(self) -> None:
        pids = [pid for (pid,) in self.lab.sql("SELECT pid FROM pg_stat_activity WHERE usename = 'app'")]
        if pids:
            with suppress(ProcessLookupError):
                os.kill(self.random.choice(pids), signal.SIGKILL)
            wait = time.monotonic() + 10
            while time.monotonic() < wait:
                with suppress(psycopg.OperationalError):
                    self.lab.sql("SELECT 1")
                    break

    def _cut(self) -> None:
        self.lab.edge.cut(self.random.choice(("primary", "replica", None)))

    def _cut_answers(self) -> None:
        self.lab.edge.cut_answers(self.random.choice(("primary", "replica", None)), times=self.random.randint(1, 8))

    def _kill_bouncer(self) -> None:
        self.lab.restart_bouncer(self.random.choice(("local", "write-pool", "read-pool")))

    # --- work ---

    def _watched(self, work: Callable[[], None]) -> None:
        try:
            while not self._stop.is_set():
                work()
        except Exception as exc:  # noqa: BLE001 - the point of it all
            self.report.wrong.append(f"{getattr(work, '__name__', work)}: {type(exc).__name__}: {str(exc)[:200]}")

    def _reader(self, state: EndpointState) -> Callable[[], None]:
        def read() -> None:
            with Connection.open(state, autocommit=True) as conn:
                for _ in range(200):
                    if self._stop.is_set():
                        return
                    number = random.randrange(1000)
                    # A caller who has seen nothing: positions are another matter (test_behind.py).
                    with use_token(None), self.report.timed(f"autocommit read, {state.endpoint.name}"):
                        row = conn.execute("SELECT %s, current_setting('statement_timeout')", (number,)).fetchone()
                    if row != (number, STATEMENT_TIMEOUT):
                        self.report.wrong.append(f"a read of {number} on {state.endpoint.name} returned {row}")

        return read

    def _write(self) -> None:
        with use_token(None), closing(Connection.open(self.primary)) as conn:
            for _ in range(100):
                if self._stop.is_set():
                    return
                number = next(self._numbers)
                try:
                    with self.report.timed("transaction that writes"):
                        conn.execute("INSERT INTO stress VALUES (%s, 1)", (number,))
                        row = conn.execute("SELECT current_setting('statement_timeout')").fetchone()
                        conn.execute("INSERT INTO stress VALUES (%s, 2)", (number,))
                        conn.commit()
                    self.report.acknowledged.add(number)
                    if row != (STATEMENT_TIMEOUT,):
                        self.report.wrong.append(f"a transaction ran under statement_timeout {row}")
                except psycopg.Error as exc:
                    self._judge(number, exc)
                    conn.rollback()

    def _call(self) -> None:
        """Write by a function whose call looks like a read, and which would succeed READ ONLY with nothing written."""
        with use_token(None), Connection.open(self.primary, autocommit=True) as conn:
            for _ in range(100):
                if self._stop.is_set():
                    return
                number = next(self._numbers)
                try:
                    with self.report.timed("function that writes, in autocommit"):
                        row = conn.execute("SELECT put_stress(%s::bigint)", (number,)).fetchone()
                    if row == (1,):
                        self.report.acknowledged.add(number)
                    else:
                        self.report.rolled_back.add(number)
                        self.report.wrong.append(f"a function that writes returned {row}")
                except psycopg.Error as exc:
                    self.report.raised[f"function that writes, {classify(exc).rule}"] += 1
                    self.report.unknown.add(number)  # it may have been committed, once

    def _judge(self, number: int, exc: psycopg.Error) -> None:
        failure = classify(exc)
        self.report.raised[f"transaction that writes, {failure.rule}"] += 1
        if isinstance(exc, CommitOutcomeUnknown):
            self.report.unknown.add(number)
            return
        # In a transaction that has not come to its COMMIT, even what is unknown of a statement is rolled back.
        self.report.rolled_back.add(number)
        if not failure.transient:
            self.report.wrong.append(f"a write was refused: {failure.rule}: {exc.sqlstate} {str(exc)[:150]}")

    def _tenant(self, name: str) -> Callable[[], None]:
        def read() -> None:
            with local_settings({"app.tenant": name}):
                for state in (self.primary, self.replica):
                    with Connection.open(state, autocommit=True) as conn:
                        for _ in range(100):
                            if self._stop.is_set():
                                return
                            with use_token(None), self.report.timed("read under row-level security"):
                                rows = conn.execute("SELECT name FROM tenant").fetchall()
                            if rows != [(name,)] * 5:
                                self.report.wrong.append(f"tenant {name} saw {rows}")

        return read

    def _foreign(self, path: str) -> Callable[[], None]:
        """Return the work of a client of the same pools that sets nothing, and must find nothing set."""
        endpoint = self.topology.primary if path == "primary" else self.topology.replicas[0]
        asked = (
            "SELECT current_setting('statement_timeout'), current_setting('transaction_timeout'),"
            " current_setting('idle_in_transaction_session_timeout'), current_setting('lock_timeout'),"
            " CASE WHEN pg_is_in_recovery() THEN 'off' ELSE current_setting('transaction_read_only') END,"
            " coalesce(current_setting('app.tenant', true), '')"
        )
        nothing = ("0", "0", "0", "0", "off", "")
        begun_on_a_standby = ("0", "0", "0", "0", "on", "")

        def look() -> None:
            try:
                with stock(endpoint, autocommit=True) as conn:
                    for _ in range(200):
                        if self._stop.is_set():
                            return
                        with self.report.timed(f"foreign client, {path}"):
                            row = conn.execute(asked).fetchone()
                        if row == begun_on_a_standby:
                            # It was promoted under the statement, whose transaction stays READ ONLY: the next one is not.
                            row = conn.execute(asked).fetchone()
                        if row != nothing:
                            self.report.wrong.append(f"a foreign client of the {path} met {row}")
            except psycopg.Error as exc:
                failure = classify(exc)
                self.report.raised[f"foreign client, {failure.rule}"] += 1
                if not failure.transient:
                    self.report.wrong.append(f"foreign client: {failure.rule}: {exc.sqlstate} {str(exc)[:150]}")

        return look

    async def _tasks(self) -> None:
        async def read(state: EndpointState) -> None:
            async with await AsyncConnection.open(state, autocommit=True) as conn:
                while not self._stop.is_set():
                    number = random.randrange(1000)
                    with use_token(None), self.report.timed(f"asyncio autocommit read, {state.endpoint.name}"):
                        row = await (await conn.execute("SELECT %s", (number,))).fetchone()
                    if row != (number,):
                        self.report.wrong.append(f"a read of {number} returned {row}")

        async def write() -> None:
            async with _closing(await AsyncConnection.open(self.primary)) as conn:
                while not self._stop.is_set():
                    number = next(self._numbers)
                    try:
                        with self.report.timed("asyncio transaction that writes"):
                            await conn.execute("INSERT INTO stress VALUES (%s, 1), (%s, 2)", (number, number))
                            await conn.commit()
                        self.report.acknowledged.add(number)
                    except psycopg.Error as exc:
                        self._judge(number, exc)
                        await conn.rollback()

        works = [read(state) for state in (self.primary, self.replica) for _ in range(2)] + [write() for _ in range(4)]
        await asyncio.gather(*works)


@asynccontextmanager
async def _closing(conn: AsyncConnection[Any]) -> AsyncIterator[AsyncConnection[Any]]:
    try:
        yield conn
    finally:
        await conn.close()


def main() -> int:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=None, help="of the faults; a random one is chosen, and shown, by default")
    options = parser.parse_args()
    seed = random.randrange(1_000_000) if options.seed is None else options.seed
    console = Console()
    console.print(f"seed {seed}, {options.minutes:g} minutes")
    with Lab(server_round_robin=1) as lab:
        report = Stress(lab, seed).run(options.minutes * 60)
    console.print(report.table())
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
