"""An endpoint that is down sees one caller of the process at a time; interleaved clients never see each other's settings."""

import logging
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import count as counting

import psycopg
import pytest

import ps_core
from ps_core import Connection
from ps_core._endpoint import EndpointState
from ps_core.context import limits, local_settings
from ps_lab import Lab
from ps_lab.processes import wait_until

CALLERS = 200
OUTAGE = 5.0
BOUNCERS = ("local", "write-pool")


@pytest.fixture
def roomy_bouncers(ps_lab: Lab) -> Iterator[None]:
    """The primary's bouncers take more clients than PlanetScale's default of 100."""
    for name in BOUNCERS:
        ps_lab.bouncers[name].reload(max_client_conn=1000)
    yield
    for name in BOUNCERS:
        ps_lab.bouncers[name].reload(max_client_conn=100)


class Attempts(logging.Handler):
    """Counts psycopg's connection attempts, and remembers when they were."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.at: list[float] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Count one."""
        if record.msg.startswith("connection attempt"):
            self.at.append(time.monotonic())


@pytest.mark.usefixtures("roomy_bouncers")
def test_outage_is_no_storm(ps_lab: Lab, record_property: object) -> None:
    """200 threads in an outage of 5 s: at most 3 connection attempts a second, and all go on when the endpoint is back."""
    state = EndpointState(endpoint=ps_lab.topology.primary)
    with ThreadPoolExecutor(16) as pool:
        conns = list(pool.map(lambda _: Connection.open(state, autocommit=True), range(CALLERS)))
    logger, handler = logging.getLogger("psycopg"), Attempts()
    level = logger.level
    done, errors = [], []

    def call(conn: Connection) -> None:
        try:
            conn.execute("SELECT 1")
            done.append(time.monotonic())
        except Exception as exc:  # noqa: BLE001
            errors.append(exc)

    threads = [threading.Thread(target=call, args=(conn,)) for conn in conns]
    ps_lab.edge.refuse("08006", f"no primary available for branch {ps_lab.branch}")
    ps_lab.edge.cut("primary")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    began = time.monotonic()
    try:
        for thread in threads:
            thread.start()
        wait_until(lambda: time.monotonic() >= began + OUTAGE, "the end of the outage")
    finally:
        ps_lab.edge.resume()
    back = time.monotonic()
    try:
        wait_until(lambda: not state.gate.closed, "the gate", timeout=1.0)
        for thread in threads:
            thread.join(30)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        for conn in conns:
            conn.close()
    assert errors == []
    assert len(done) == CALLERS
    during = [at for at in handler.at if at < back]
    assert 1 <= len(during) <= 3 * OUTAGE
    print(f"\noutage: {len(during)} attempts in {OUTAGE:g} s, all {CALLERS} done {max(done) - back:.2f} s after its end")


STATEMENTS = int(os.environ.get("PS_STATEMENTS", "3000"))
"""How many statements `test_tenants_never_see_each_other` runs."""


def test_tenants_never_see_each_other(ps_lab: Lab) -> None:
    """Row-level security under interleaved tenants, with foreign clients on the same pools: nobody sees another's rows."""
    for statement in (
        "DROP TABLE IF EXISTS secret",
        "CREATE TABLE secret (tenant text, note text)",
        "INSERT INTO secret SELECT tenant, 'n' FROM unnest(ARRAY['1','2']) tenant, generate_series(1, 5)",
        "ALTER TABLE secret ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY own ON secret USING (tenant = current_setting('app.tenant', true))",
        "GRANT SELECT ON secret TO app",
    ):
        ps_lab.sql(statement)
    ps_lab.wait_replicas_caught_up()
    stop, wrong = threading.Event(), []
    turns = counting()

    def tenant(name: str, endpoint: str) -> None:
        state = EndpointState(
            endpoint=getattr(ps_lab.topology, endpoint) if endpoint == "primary" else ps_lab.topology.replicas[0]
        )
        with (
            Connection.open(state, autocommit=True) as plain,
            Connection.open(state) as conn,
            local_settings({"app.tenant": name}),
        ):
            while not stop.is_set():
                for connection in (plain, conn):
                    rows = connection.execute("SELECT tenant FROM secret").fetchall()
                    connection.rollback()
                    if rows != [(name,)] * 5:
                        wrong.append((name, rows))
                    next(turns)

    def stranger() -> None:
        options = ps_core.conninfo(ps_lab.topology.primary)
        with psycopg.connect(**options, autocommit=True, cursor_factory=psycopg.ClientCursor) as conn:
            while not stop.is_set():
                rows = conn.execute("SELECT tenant FROM secret").fetchall()
                if rows:
                    wrong.append(("stranger", rows))

    jobs = [threading.Thread(target=tenant, args=(name, endpoint)) for name in "12" for endpoint in ("primary", "replica")]
    jobs += [threading.Thread(target=stranger) for _ in range(2)]
    for job in jobs:
        job.start()
    wait_until(lambda: wrong or next(turns) > STATEMENTS, f"{STATEMENTS} statements", timeout=60 + STATEMENTS / 100)
    stop.set()
    for job in jobs:
        job.join(30)
    ps_lab.sql("DROP TABLE secret")
    assert wrong == []


def test_fork_while_a_thread_holds_a_gate(ps_lab: Lab) -> None:
    """A child that was forked while another thread was at the gate, or probing, connects all the same."""
    state = EndpointState(endpoint=ps_lab.topology.primary)
    state.gate.report_loss()
    with state.gate.turn(5):  # probing
        with state.gate._lock:
            pid = os.fork()
            if pid == 0:  # pragma: no cover - another process
                status = 1
                try:
                    with Connection.open(state, autocommit=True) as conn:
                        status = 0 if conn.execute("SELECT 1").fetchone() == (1,) else 2
                finally:
                    os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_slow_statement_holds_up_nobody(ps_lab: Lab) -> None:
    """All lost their connections; who probes with a statement that takes long keeps the others waiting for the login alone."""
    state = EndpointState(endpoint=ps_lab.topology.primary)
    slow, quick = (Connection.open(state, autocommit=True) for _ in range(2))

    def wait() -> None:
        with limits(statement="60s"):
            slow.execute("SELECT pg_advisory_xact_lock_shared(78)")

    running = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 78 AND NOT granted"

    with closing(slow), closing(quick), psycopg.connect(ps_lab.primary.dsn()) as holder:
        holder.execute("SELECT pg_advisory_xact_lock(78)")
        ps_lab.edge.cut("primary")
        # A write that is sent with BEGIN may be sent again: it is the opening of its transaction.
        slow.autocommit = False
        thread = threading.Thread(target=wait)
        thread.start()
        wait_until(lambda: ps_lab.sql(running) == [(1,)], "the slow statement")
        assert quick.execute("SELECT 1").fetchone() == (1,)
        assert thread.is_alive()
        holder.commit()
        thread.join(20)
