"""`ps_core.connect`: for psycopg alone; the two ways to bind parameters; what travels where execute() is not used."""

import asyncio
import signal
import threading
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg.pq import TransactionStatus

import ps_core
from ps_core import Connection, use_token
from ps_core._connection.cursors import Cursor, ServerBindingCursor
from ps_core._endpoint import EndpointState
from ps_core._message.commit import marker_table_sql
from ps_core._registry import replicas_of
from ps_core.errors import CommitOutcomeUnknown
from ps_lab import Lab
from ps_lab.processes import wait_until
from tests.ps_core.conftest import Connect
from tests.ps_core.test_healing import commit_waits, count, raised_by

if TYPE_CHECKING:
    from ps_lab.routes import Path


def test_connect(ps_lab: Lab) -> None:
    """One URL leads to the primary, a replica and the direct endpoint; what is missing is refused."""
    settings: dict[str, Any] = {"bouncer": "write-pool", "replica_bouncer": "read-pool", "statement_timeout": "1s"}
    paths: tuple[tuple[Path, bool, str], ...] = (("primary", False, "1s"), ("replica", True, "1s"), ("direct", False, "0"))
    for to, in_recovery, timeout in paths:
        # Nobody waits here for what the primary has shown.
        with use_token(None), ps_core.connect(ps_lab.url, to=to, **settings) as conn:
            row = conn.execute("SELECT pg_is_in_recovery(), current_setting('statement_timeout')").fetchone()
            assert row == (in_recovery, timeout)
    with pytest.raises(ps_core.ConfigurationError, match=r"options cannot pass a transaction pooler \(primary"):
        ps_core.connect(ps_lab.url, options="-c search_path=a", **settings)
    with ps_core.connect(ps_lab.url, to="direct", options="-c search_path=a") as conn:
        assert conn.execute("SHOW search_path").fetchone() == ("a",)
    with pytest.raises(ps_core.ConfigurationError, match=r"^to='replica': 'primary' is one endpoint: leave it out"):
        ps_core.connect(ps_lab.topology.primary, to="replica")
    with pytest.raises(ps_core.ConfigurationError, match="replica_bouncer"):
        ps_core.connect(ps_lab.url, to="replica")
    with ps_core.connect(ps_lab.topology.direct, autocommit=True) as conn:
        assert conn.execute("SELECT 1").fetchone() == (1,)

    async def work() -> None:
        async with await ps_core.connect_async(ps_lab.url, to="replica", **settings) as conn:
            assert await (await conn.execute("SELECT pg_is_in_recovery()")).fetchone() == (True,)

    with use_token(None):
        asyncio.run(work())


@pytest.mark.parametrize("autocommit", [False, True])
def test_server_side_binding(ps_lab: Lab, autocommit: bool, table: str) -> None:
    """The server binds parameters with the same timeouts, READ ONLY and healing, at its own price in round trips."""
    with ps_core.connect(ps_lab.topology, binding="server", autocommit=autocommit) as conn:
        conn.execute("SELECT 1")
        conn.commit()
        with ps_lab.round_trips() as counter:
            assert conn.execute("SELECT %s::int, current_setting('statement_timeout')", (7,)).fetchone() == (7, "2s")
            conn.commit()
        assert counter.count == 3
        assert isinstance(conn.cursor(), psycopg.Cursor)
        assert not isinstance(conn.cursor(), psycopg.ClientCursor)
        ps_lab.edge.cut("primary")
        conn.execute(f"INSERT INTO {table} VALUES (%s)", (1,))
        conn.commit()
        with pytest.raises(psycopg.errors.DivisionByZero):
            conn.execute("SELECT 1 / %s", (0,))
        assert conn.info.transaction_status == (TransactionStatus.IDLE if autocommit else TransactionStatus.INERROR)
        conn.rollback()
        assert conn.execute("SELECT 2").fetchone() == (2,)
    assert count(ps_lab, table) == 1

    async def work() -> None:
        async with await ps_core.connect_async(ps_lab.topology, binding="server", autocommit=autocommit) as conn:
            assert await (await conn.execute("SELECT %s::int", (7,))).fetchone() == (7,)

    asyncio.run(work())


@pytest.mark.parametrize("autocommit", [False, True])
def test_timeouts_hold_for_other_ways_to_execute(primary: EndpointState, table: str, autocommit: bool, connect: Connect) -> None:
    """executemany, stream and COPY are bounded, too, in autocommit as in transactions."""
    conn = connect(primary, autocommit=autocommit)
    cursor = conn.cursor()
    cursor.executemany(f"INSERT INTO {table} VALUES (%s, current_setting('statement_timeout'))", [(1,), (2,)])
    assert cursor.rowcount == 2
    conn.commit()
    assert conn.execute(f"SELECT DISTINCT note FROM {table}").fetchall() == [("2s",)]
    conn.commit()
    assert list(cursor.stream("SELECT current_setting('transaction_timeout')")) == [("3s",)]
    conn.commit()
    assert [row[0] for row in cursor.stream("SELECT generate_series(1, 5)", size=2)] == [1, 2, 3, 4, 5]
    conn.commit()
    with cursor.copy("COPY (SELECT current_setting('statement_timeout')) TO STDOUT") as copy:
        assert list(copy.rows()) == [("2s",)]
    conn.commit()
    for work in (
        lambda: list(cursor.stream("SELCT 1")),
        lambda: cursor.copy("COPY nowhere FROM STDIN").__enter__(),
        lambda: cursor.executemany("INSERT INTO nowhere VALUES (%s)", [(1,)]),
    ):
        with pytest.raises(psycopg.ProgrammingError):
            work()
        conn.rollback()
    assert conn.execute("SHOW statement_timeout").fetchone() == ("2s",)


def test_fatal_in_executemany_does_not_wedge(ps_lab: Lab, primary: EndpointState, table: str, connect: Connect) -> None:
    """A FATAL that meets psycopg's pipeline leaves a connection that knows that it is lost."""
    conn = connect(primary)
    with pytest.raises(psycopg.Error):
        conn.cursor().executemany(
            f"INSERT INTO {table} SELECT 1 WHERE pg_terminate_backend(pg_backend_pid()) AND %s", [(True,), (True,)]
        )
    assert conn.closed
    conn.rollback()
    assert conn.execute("SELECT 1").fetchone() == (1,)


def test_deadline_ends_the_wait_for_a_stopped_pooler(ps_lab: Lab, primary: EndpointState, connect: Connect) -> None:
    """A pooler that is stopped never answers, and no timeout of libpq's fires: the deadline does, for statements and connects."""
    conn = connect(primary, autocommit=True)
    conn.execute("SELECT 1")
    bouncer = ps_lab.bouncers["write-pool"]
    bouncer.signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        with ps_core.deadline(0.3), pytest.raises(ps_core.DeadlineExceeded):
            conn.execute("SELECT 2")
        with ps_core.deadline(0.3), pytest.raises(ps_core.DeadlineExceeded):
            Connection.open(primary)
        assert time.monotonic() - began < 5  # libpq's own limit for a connect
    finally:
        bouncer.signal(signal.SIGCONT)
    assert conn.execute("SELECT 3").fetchone() == (3,)


def test_deadline_bounds_trying_again(ps_lab: Lab, primary: EndpointState, connect: Connect) -> None:
    """While the endpoint is down, the deadline ends the tries before the policy does."""
    conn = connect(primary, autocommit=True)
    ps_lab.edge.refuse("08006", f"no primary available for branch {ps_lab.branch}")
    ps_lab.edge.cut("primary")
    try:
        began = time.monotonic()
        with ps_core.deadline(0.5), pytest.raises(ps_core.DeadlineExceeded):
            conn.execute("SELECT 1")
        assert time.monotonic() - began < 20  # the policy's end is at 30
    finally:
        ps_lab.edge.resume()
    assert conn.execute("SELECT 1").fetchone() == (1,)


def test_deadline_passed_before_commit(ps_lab: Lab, primary: EndpointState, table: str, connect: Connect) -> None:
    """A COMMIT that comes too late is not sent, and the ROLLBACK is."""
    conn = connect(primary)
    with ps_core.deadline(1):
        conn.execute(f"INSERT INTO {table} VALUES (1)")
        with pytest.raises(psycopg.errors.QueryCanceled):
            conn.execute("SAVEPOINT a; SELECT pg_sleep(20)")
    conn.rollback()
    conn.execute(f"INSERT INTO {table} VALUES (2)")
    with ps_core.deadline(0.001):
        late = time.monotonic() + 0.01
        while time.monotonic() < late:
            pass
        with pytest.raises(ps_core.DeadlineExceeded):
            conn.commit()
        conn.rollback()
    assert count(ps_lab, table) == 0


@pytest.mark.parametrize("autocommit", [False, True])
def test_demoted_server_is_left(ps_lab: Lab, direct: EndpointState, table: str, autocommit: bool, connect: Connect) -> None:
    """A write that a demoted server refuses runs on the new primary, and the pool's other connections are replaced, too."""
    state = EndpointState(endpoint=direct.endpoint)
    real, ps_lab.primary = ps_lab.primary, ps_lab.replicas[0]
    ps_lab._tell_edge()
    try:
        stale, other = connect(state, autocommit=autocommit), connect(state, autocommit=True)
        other.execute("SELECT set_config('TimeZone', 'Asia/Tokyo', false)")
        other._keeps_state = False  # nothing but the time zone, which is carried over
        assert other.execute("SELECT pg_is_in_recovery()").fetchone() == (True,)
    finally:
        ps_lab.primary = real
        ps_lab._tell_edge()
    stale.execute(f"INSERT INTO {table} VALUES (1)")
    stale.commit()
    assert count(ps_lab, table) == 1
    assert other.execute("SELECT pg_is_in_recovery(), current_setting('TimeZone')").fetchone() == (False, "Asia/Tokyo")


@pytest.mark.parametrize("factory", [Cursor, ServerBindingCursor])
def test_reads_leave_a_demoted_server(
    ps_lab: Lab, direct: EndpointState, table: str, factory: type[psycopg.Cursor[Any]], connect: Connect
) -> None:
    """A read that was to be on the primary is not answered by a server that is no longer one; nor is a write."""
    states = [EndpointState(endpoint=direct.endpoint, identity=ps_lab.branch, tracks=True) for _ in range(2)]
    real, ps_lab.primary = ps_lab.primary, ps_lab.replicas[0]
    ps_lab._tell_edge()
    try:
        reader, writer = (connect(state, autocommit=True) for state in states)
    finally:
        ps_lab.primary = real
        ps_lab._tell_edge()
    assert Cursor(reader).execute("SELECT pg_is_in_recovery()").fetchone() == (False,)
    factory(writer).execute(f"INSERT INTO {table} VALUES (1)")
    assert count(ps_lab, table) == 1
    assert [state.generation for state in states] == [1, 1]


def test_read_only_that_was_asked_for_is_no_demotion(primary: EndpointState, table: str, connect: Connect) -> None:
    """25006 in a transaction that was declared READ ONLY is the caller's, and leaves the transaction failed."""
    conn = connect(primary)
    conn.read_only = True
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        conn.execute(f"INSERT INTO {table} VALUES (1)")
    assert conn.info.transaction_status == TransactionStatus.INERROR
    conn.rollback()
    conn.read_only = None
    conn.execute("SET TRANSACTION READ ONLY")
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        conn.execute(f"INSERT INTO {table} VALUES (1)")
    assert conn.info.transaction_status == TransactionStatus.INERROR


def test_marker_and_verify_settle_a_lost_commit(ps_lab: Lab, primary: EndpointState, table: str) -> None:
    """With a marker row, or a query of the caller's, the outcome is told without the transaction's id."""
    ps_lab.sql(marker_table_sql())
    state = EndpointState(endpoint=primary.endpoint)
    for check in (ps_core.commit_check(marker=True), ps_core.commit_check(verify=f"SELECT count(*) = 2 FROM {table}")):
        outcomes: list[Any] = []

        def work(check: Any = check, outcomes: list[Any] = outcomes) -> None:
            with Connection.open(state) as conn, check:
                conn.execute(f"INSERT INTO {table} VALUES (1)")
                outcomes.append("ready")
                conn.commit()
                outcomes.append("committed")

        with commit_waits(ps_lab) as waiting:
            thread = threading.Thread(target=work)
            thread.start()
            waiting()
            ps_lab.edge.cut("primary")
        thread.join(30)
        assert outcomes == ["ready", "committed"]
    assert count(ps_lab, table) == 2
    with Connection.open(state) as conn, ps_core.commit_check(marker=True):
        before = count(ps_lab, "ps_commit_marker")
        conn.execute(f"INSERT INTO {table} VALUES (3)")
        with ps_lab.round_trips() as counter:
            conn.commit()
        assert (counter.count, count(ps_lab, "ps_commit_marker")) == (1, before + 1)
    ps_lab.sql("DROP TABLE ps_commit_marker")
    with Connection.open(state) as conn, ps_core.commit_check(marker=True):
        conn.execute(f"INSERT INTO {table} VALUES (4)")
        assert isinstance(raised_by(conn.commit), psycopg.errors.UndefinedTable)
    assert count(ps_lab, table) == 3


def test_verify_proves_no_rollback_while_the_commit_is_on_its_way(ps_lab: Lab, primary: EndpointState, table: str) -> None:
    """What is not to be seen yet may still commit: with the id that is waited for, without one the outcome is unknown."""
    state = EndpointState(endpoint=primary.endpoint)
    write = f"INSERT INTO {table} VALUES (1)"
    # The lookup of the id ends while the transaction is under way; that of the query waits behind it, for its own commit.
    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    # An idle server connection may have had an earlier test's lookup last.
    asked = "SELECT 1 FROM pg_stat_activity WHERE state = 'idle' AND query LIKE '%%pg_xact_status%%' AND query_start > %s"
    for text, expected in ((write, []), (f"{write}; SELECT 2", [CommitOutcomeUnknown])):
        before = count(ps_lab, table)
        errors: list[BaseException] = []

        def work(text: str = text, before: int = before, errors: list[BaseException] = errors) -> None:
            with ps_core.commit_check(verify=f"SELECT count(*) > {before} FROM {table}"):
                conn = Connection.open(state)
                try:
                    conn.execute(text)
                    conn.commit()
                except psycopg.Error as exc:
                    errors.append(exc)
                finally:
                    conn.close()

        def asks(thread: threading.Thread, cut: Any) -> bool:
            return not thread.is_alive() or bool(ps_lab.sql(asked, cut)) or ps_lab.sql(waits) == [(2,)]

        with commit_waits(ps_lab) as waiting:
            thread = threading.Thread(target=work)
            thread.start()
            waiting()
            cut = ps_lab.sql("SELECT clock_timestamp()")[0][0]
            ps_lab.edge.cut("primary")
            wait_until(partial(asks, thread, cut), "a lookup")
        thread.join(30)
        assert [type(error) for error in errors] == expected
        assert count(ps_lab, table) == before + 1


@pytest.mark.parametrize("token", ["", "1.b", "garbage", "1.other.0-1.5", "2.b.0-1.5"])
def test_bad_tokens_are_ignored_with_a_warning(token: str, caplog: pytest.LogCaptureFixture) -> None:
    """A token that does not count here pins nobody, and is logged without its text."""
    with ps_core.use_token(token, identity="b"):
        assert ps_core.current_token() is None
    assert "ignored a consistency token" in caplog.text


def test_use_token_begins_afresh_and_restores() -> None:
    """A block with a token knows nothing of the surrounding one, and leaves nothing behind."""
    now, before = time.time(), ps_core.current_token()
    outer, inner = (ps_core.Token(identity="b", position=position, at=now) for position in (7, 5))
    with ps_core.use_token(outer):
        with ps_core.use_token(str(inner), identity="b") as tracker:
            assert tracker.token == ps_core.Token(identity="b", position=5, at=float(int(now)))
        assert ps_core.current_token() == outer
        with ps_core.use_token(None):
            assert ps_core.current_token() is None
    assert ps_core.current_token() == before


def test_two_databases(ps_lab: Lab) -> None:
    """A user who wrote to one database and read from another one sees the write all the same, in the next request too."""
    first, second = ps_lab.topology, replace(ps_lab.topology, identity="other")
    ps_lab.sql("CREATE TABLE twice (id int); GRANT ALL ON twice TO app")
    ps_lab.wait_replicas_caught_up()
    ps_lab.set_replay_delay(60)
    read = "SELECT count(*) FROM twice"
    try:
        with ps_core.connect(first, autocommit=True) as writer, ps_core.connect(first, to="replica", autocommit=True) as reader:
            with ps_core.use_token(None) as tracker, ps_core.connect(second, to="replica", autocommit=True) as other:
                writer.execute("INSERT INTO twice VALUES (1)")
                other.execute("SELECT 1")
                token = str(tracker.token)
                with pytest.raises(psycopg.errors.InvalidParameterValue, match="replica_behind"):
                    reader.execute(read)
            with ps_core.use_token(token), pytest.raises(psycopg.errors.InvalidParameterValue, match="replica_behind"):
                reader.execute(read)
            with ps_core.use_token(None):
                assert reader.execute(read).fetchone() == (0,)
    finally:
        ps_lab.set_replay_delay(0)
        ps_lab.sql("DROP TABLE twice")


def test_prepared_statements_of_two_sides(ps_lab: Lab) -> None:
    """Without a pooler, a connection that changes sides uses on each what it has prepared there."""
    topology = ps_core.Topology.from_url(ps_lab.url, direct_replica=True)
    topology = replace(topology, primary=replace(topology.direct, name="primary", role="primary"))
    assert not topology.replicas[0].pooled
    with ps_core.connect(topology, autocommit=True, binding="server", prepare_threshold=0) as conn:
        query = "SELECT %s::int, pg_is_in_recovery()"
        for _ in range(2):
            assert conn.execute(query, (1,)).fetchone() == (1, False)
            conn.go_to(replicas_of(topology))
            assert conn.execute(query, (1,)).fetchone() == (1, True)
            conn.go_to(None)
        assert conn.prepare_threshold == 0
