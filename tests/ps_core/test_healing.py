"""What is sent again after a lost connection, and what is not. Each refusal here would lose or double something."""

import asyncio
import os
import select
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg
import pytest

from ps_core import AsyncConnection, Connection, RetryPolicy
from ps_core._endpoint import EndpointState
from ps_core.context import limits
from ps_core.events import Event, Name, subscribe
from ps_core.replicas import Replicas
from ps_lab import Lab
from ps_lab.processes import wait_until
from ps_lab.routes import Path
from tests.ps_core.conftest import Connect


def count(lab: Lab, table: str) -> int:
    """Return how many rows there are, asked past everything."""
    rows: int = lab.sql(f"SELECT count(*) FROM {table}")[0][0]
    return rows


@pytest.mark.parametrize("autocommit", [False, True])
def test_loss_of_an_idle_connection_is_not_noticed(
    ps_lab: Lab, autocommit: bool, primary: EndpointState, table: str, connect: Connect
) -> None:
    """Reads and writes on a connection that was cut while idle work, and a cursor made before works, too."""
    conn = connect(primary, autocommit=autocommit)
    cursor = conn.cursor()
    for statement in ("SELECT 1", f"INSERT INTO {table} VALUES (1)", "SELECT 2"):
        cursor.execute("SELECT 0")
        conn.commit()
        ps_lab.edge.cut("primary")
        cursor.execute(statement)
        conn.commit()
    assert count(ps_lab, table) == 1


@pytest.mark.parametrize("autocommit", [False, True])
def test_read_under_way_is_sent_again(
    ps_lab: Lab, autocommit: bool, primary: EndpointState, replica: EndpointState, connect: Connect
) -> None:
    """A read whose connection is cut while it runs is sent again, on the primary and on replicas."""
    paths: tuple[tuple[EndpointState, Path], ...] = ((primary, "primary"), (replica, "replica"))
    for state, path in paths:
        conn = connect(state, autocommit=autocommit)
        tries: list[Event] = []
        unsubscribe = subscribe(lambda event: tries.append(event) if event.name is Name.RETRY else None)  # noqa: B023
        try:
            with cut_under_way(ps_lab, path):
                assert conn.execute("SELECT held()").fetchone() == (7,)
        finally:
            unsubscribe()
        assert [(event.endpoint, event.reason) for event in tries] == [(path, "connection_lost")]
        conn.rollback()


@contextmanager
def cut_under_way(lab: Lab, path: Path) -> Iterator[None]:
    """Cut a path as soon as a statement of the block's is under way: `held()` waits until then, however long that takes."""
    lab.sql(
        "CREATE OR REPLACE FUNCTION held() RETURNS int LANGUAGE plpgsql STABLE AS"
        " 'BEGIN PERFORM pg_advisory_xact_lock_shared(79); RETURN 7; END'"
    )
    lab.wait_replicas_caught_up()
    waiting = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND objid = 79 AND NOT granted"
    with ExitStack() as holders:
        for server in lab.servers:
            holders.enter_context(psycopg.connect(server.dsn())).execute("SELECT pg_advisory_xact_lock(79)")

        def cut() -> None:
            try:
                wait_until(lambda: any(server.sql(waiting) for server in lab.servers), "the statement to run")
                lab.edge.cut(path)
            finally:
                holders.close()

        cutter = threading.Thread(target=cut)
        cutter.start()
        try:
            with limits(statement="60s"):
                yield
        finally:
            cutter.join()
            lab.sql("DROP FUNCTION held()")


def test_write_under_way_is_not_sent_again(ps_lab: Lab, primary: EndpointState, table: str, connect: Connect) -> None:
    """An autocommit write whose connection is cut while it runs is not sent again: it may have been committed."""
    conn = connect(primary, autocommit=True)
    with cut_under_way(ps_lab, "primary"), pytest.raises(psycopg.OperationalError):
        conn.execute(f"INSERT INTO {table} SELECT 1 FROM held()")
    assert conn.execute(f"SELECT count(*) <= 1 FROM {table}").fetchone() == (True,)


def test_function_that_writes_is_not_doubled(ps_lab: Lab, primary: EndpointState, table: str, connect: Connect) -> None:
    """A function that nobody knew to write: it runs once, since the server refuses it READ ONLY before anything happened."""
    conn = connect(EndpointState(endpoint=primary.endpoint), autocommit=True)
    with cut_under_way(ps_lab, "primary"):
        ps_lab.sql(
            f"CREATE OR REPLACE FUNCTION held_add() RETURNS int LANGUAGE sql AS 'INSERT INTO {table} VALUES (1); SELECT held()'"
        )
        with pytest.raises(psycopg.OperationalError):
            conn.execute("SELECT held_add()")
    ps_lab.sql("DROP FUNCTION held_add()")
    assert count(ps_lab, table) <= 1


def test_later_statement_of_a_transaction_is_not_sent_again(
    ps_lab: Lab, primary: EndpointState, table: str, connect: Connect
) -> None:
    """A state lost inside a transaction is raised, and never continued on a fresh state: row 2 without row 1."""
    conn = connect(primary)
    conn.execute(f"INSERT INTO {table} VALUES (1)")
    ps_lab.edge.cut("primary")
    with pytest.raises(psycopg.OperationalError):
        conn.execute(f"INSERT INTO {table} VALUES (2)")
    with pytest.raises(psycopg.OperationalError):
        conn.execute(f"INSERT INTO {table} VALUES (3)")
    assert conn.closed
    assert count(ps_lab, table) == 0


def test_several_statements_are_not_sent_again(ps_lab: Lab, primary: EndpointState, table: str, connect: Connect) -> None:
    """A text of several statements may hold a COMMIT of its own: it is sent once."""
    conn = connect(primary, autocommit=True)
    with cut_under_way(ps_lab, "primary"), pytest.raises(psycopg.OperationalError):
        conn.execute(f"BEGIN; SELECT held(); INSERT INTO {table} VALUES (1); COMMIT")
    active = "SELECT 1 FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%held()%' AND pid <> pg_backend_pid()"
    wait_until(lambda: not ps_lab.sql(active), "the server to be done with it")
    assert count(ps_lab, table) <= 1  # which of the two, nobody knows


def test_session_state_is_never_lost_silently(ps_lab: Lab, direct: EndpointState, connect: Connect) -> None:
    """On a direct connection that may hold session state, the loss is raised; without any, it is replaced."""
    plain, stateful = connect(direct, autocommit=True), connect(direct, autocommit=True)
    plain.execute("SELECT 1")
    stateful.execute("SELECT pg_advisory_lock(7)")
    ps_lab.edge.cut("direct")
    assert plain.execute("SELECT 1").fetchone() == (1,)
    with pytest.raises(psycopg.OperationalError):
        stateful.execute("SELECT 1")


def test_session_parameters_survive(ps_lab: Lab, primary: EndpointState, connect: Connect) -> None:
    """The time zone that a framework set for the session is that of the new connection, too."""
    conn = connect(primary, autocommit=True)
    conn.execute("SELECT set_config('TimeZone', 'Asia/Tokyo', false)")
    ps_lab.edge.cut("primary")
    assert conn.execute("SHOW TimeZone").fetchone() == ("Asia/Tokyo",)
    assert str(conn.info.timezone) == "Asia/Tokyo"


@pytest.mark.parametrize("bouncer", ["local", "write-pool"])
def test_restart_of_a_bouncer(ps_lab: Lab, bouncer: str, primary: EndpointState, table: str, connect: Connect) -> None:
    """A bouncer that crashes between two transactions is not noticed, whichever of the two it is."""
    for autocommit in (False, True):
        conn = connect(primary, autocommit=autocommit)
        conn.execute("SELECT 1")
        conn.commit()
        ps_lab.restart_bouncer(bouncer)
        conn.execute(f"INSERT INTO {table} VALUES (1)") if not autocommit else conn.execute("SELECT 1")
        conn.commit()
    assert count(ps_lab, table) == 1


def test_backend_that_is_terminated(ps_lab: Lab, direct: EndpointState, connect: Connect) -> None:
    """57P01 while idle is not noticed on a direct connection either."""
    conn = connect(direct)
    for _ in range(2):
        row = conn.execute("SELECT pg_backend_pid()").fetchone()
        assert row is not None
        conn.commit()
        ps_lab.sql("SELECT pg_terminate_backend(%s, 5000)", row[0])
        assert conn.execute("SELECT 1").fetchone() == (1,)
        conn.commit()


@pytest.mark.parametrize("event", ["switchover", "crash_primary"])
def test_change_of_primary(
    ps_lab: Lab, event: str, primary: EndpointState, replica: EndpointState, direct: EndpointState, table: str, connect: Connect
) -> None:
    """Reads in a loop on every endpoint go through a switchover and a crash without an error; so do opening writes."""
    stop, errors, done = threading.Event(), [], []

    def work(state: EndpointState, autocommit: bool, statement: str) -> None:
        try:
            conn = Connection.open(state, autocommit=autocommit)
            while not stop.is_set():
                conn.execute(statement)
                conn.rollback()
                done.append(state.endpoint.name)
            conn.close()
        except Exception as exc:  # noqa: BLE001
            errors.append(exc)

    jobs = [(state, autocommit, "SELECT 1") for state in (primary, replica, direct) for autocommit in (False, True)]
    jobs.append((primary, False, f"INSERT INTO {table} VALUES (1)"))
    threads = [threading.Thread(target=work, args=job) for job in jobs]
    for thread in threads:
        thread.start()
    getattr(ps_lab, event)()
    before = len(done)
    try:
        wait_until(lambda: errors or len(done) > before + 200, "work after the event", timeout=40)
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    assert errors == []
    assert count(ps_lab, table) == 0


def test_retries_end(ps_lab: Lab, primary: EndpointState, connect: Connect) -> None:
    """When the endpoint stays away, the error that is raised is the driver's, with a note of what was tried."""
    policy = RetryPolicy(max_elapsed=0.5)
    conn = connect(EndpointState(endpoint=primary.endpoint), policy=policy, autocommit=True)
    ps_lab.edge.refuse("08006", f"no primary available for branch {ps_lab.branch}")
    ps_lab.edge.cut("primary")
    try:
        with pytest.raises(psycopg.OperationalError, match=r"no primary available|closed") as failure:
            conn.execute("SELECT 1")
    finally:
        ps_lab.edge.resume()
    assert "tried the endpoint 'primary' again" in failure.value.__notes__[0]
    assert conn.execute("SELECT 1").fetchone() == (1,)


def test_wrong_password_is_not_retried(ps_lab: Lab, primary: EndpointState) -> None:
    """A password that is wrong is reported at once."""
    with ps_lab.round_trips() as counter, pytest.raises(psycopg.OperationalError, match=r"password|SASL"):
        Connection.open(EndpointState(endpoint=primary.endpoint), password="pscale_pw_wrong")
    assert counter.startups == 1


def test_closed_connection_stays_closed(primary: EndpointState) -> None:
    """A connection that the application closed behaves as psycopg's."""
    conn = Connection.open(primary, autocommit=True)
    cursor = conn.cursor()
    conn.close()
    with pytest.raises(psycopg.OperationalError, match="closed"):
        cursor.execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError, match="closed"):
        conn.cursor()


def test_forked_child_does_not_heal(ps_lab: Lab, primary: EndpointState, connect: Connect) -> None:
    """A child process does not take over the connection of its parent."""
    conn = connect(primary, autocommit=True)
    conn._pid = os.getpid() + 1  # what the child sees
    ps_lab.edge.cut("primary")
    with pytest.raises(psycopg.OperationalError):
        conn.execute("SELECT 1")


class commit_waits:  # noqa: N801
    """Let COMMIT wait for its synchronous replica within the block; what is yielded waits until one does."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    def __enter__(self) -> Any:
        for replica in self.lab.replicas:
            replica.sql("ALTER SYSTEM SET primary_conninfo = ''")
            replica.sql("SELECT pg_reload_conf()")
        self._wait("SELECT count(*) = 0 FROM pg_stat_replication")
        return lambda: self._wait("SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event = 'SyncRep'")

    def __exit__(self, *_: object) -> None:
        for replica in self.lab.replicas:
            replica.follow(self.lab.primary)
        self._wait(f"SELECT count(*) = {len(self.lab.replicas)} FROM pg_stat_replication WHERE state = 'streaming'")

    def _wait(self, query: str) -> None:
        wait_until(lambda: self.lab.sql(query)[0][0], query)


def raised_by(work: Any) -> BaseException:
    """Return what `work` raises."""
    try:
        work()
    except BaseException as exc:  # noqa: BLE001
        return exc
    raise AssertionError("nothing was raised")


def test_async_heals_too(ps_lab: Lab, primary: EndpointState, replica: EndpointState) -> None:
    """The asyncio connection heals in the same cases; a cancelled retry leaves the event loop in order."""

    async def work() -> None:
        paths: tuple[tuple[EndpointState, Path], ...] = ((primary, "primary"), (replica, "replica"))
        for state, path in paths:
            conn = await AsyncConnection.open(state)
            cursor = conn.cursor()
            for _ in range(3):
                await cursor.execute("SELECT 1")
                await conn.commit()
                ps_lab.edge.cut(path)
            await cursor.execute("SELECT 2")
            assert await cursor.fetchone() == (2,)
            await conn.rollback()
            await conn.close()
        conn = await AsyncConnection.open(primary, autocommit=True)
        ps_lab.edge.refuse("08006", "no primary available for branch x")
        ps_lab.edge.cut("primary")
        try:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await conn.execute("SELECT 1")
        finally:
            ps_lab.edge.resume()
        await conn.execute("SELECT 1")
        await conn.close()

    asyncio.run(work())


def test_rollback_of_a_lost_transaction_is_quiet(ps_lab: Lab, primary: EndpointState, table: str, connect: Connect) -> None:
    """A transaction that went with its connection is rolled back; after rollback() the connection works again."""
    conn = connect(primary)
    conn.execute(f"INSERT INTO {table} VALUES (1)")
    ps_lab.edge.cut("primary")
    conn.rollback()
    conn.execute(f"INSERT INTO {table} VALUES (2)")
    ps_lab.edge.cut("primary")
    with pytest.raises(psycopg.OperationalError):
        conn.execute(f"INSERT INTO {table} VALUES (3)")
    conn.rollback()
    conn.execute(f"INSERT INTO {table} VALUES (4)")
    conn.commit()
    assert ps_lab.sql(f"SELECT id FROM {table}") == [(4,)]


def test_parameters_go_with_their_connection(
    ps_lab: Lab, primary: EndpointState, replica: EndpointState, connect: Connect
) -> None:
    """A time zone that was set on the primary is that of a replica which serves the same connection, and is restored on both."""
    replicas = Replicas([replica])
    conn = connect(primary, autocommit=True)
    conn.execute("SET TIME ZONE 'Asia/Tokyo'")
    conn._give_up()
    conn.go_to(replicas)
    assert conn.execute("SHOW timezone").fetchone() == ("Asia/Tokyo",)
    ps_lab.edge.cut("replica")
    assert conn.execute("SHOW timezone").fetchone() == ("Asia/Tokyo",)
    conn.go_to(None)
    assert conn.execute("SHOW timezone").fetchone() == ("Asia/Tokyo",)


@pytest.mark.skipif(not hasattr(select, "POLLRDHUP"), reason="only Linux tells that the other side has closed, before it is read")
def test_last_words_are_not_the_end(ps_lab: Lab, direct: EndpointState, table: str, connect: Connect) -> None:
    """A server that was told to end says so and closes: both are read before a write is sent, which is then sent elsewhere."""
    conn = connect(direct, autocommit=True)
    closed = select.poll()
    closed.register(conn.fileno(), select.POLLRDHUP)
    ps_lab.sql("SELECT pg_terminate_backend(%s)", conn.info.backend_pid)
    assert closed.poll(10_000)
    conn.execute(f"INSERT INTO {table} VALUES (1)")
    assert count(ps_lab, table) == 1
