"""Every way of writing is known to have written, and every way of reading to have not: tokens and lost COMMITs depend on it."""

import asyncio
import threading
import time
from collections.abc import Callable
from contextvars import Context
from functools import partial
from statistics import mode
from typing import Any

import psycopg
import pytest
from psycopg.pq import TransactionStatus

import ps_core
from ps_core import AsyncConnection, Connection, RetryPolicy, classify, current_token, deadline, use_token
from ps_core._connection.cursors import ServerBindingCursor
from ps_core._endpoint import EndpointState
from ps_core.consistency import parse_lsn
from ps_core.errors import CommitOutcomeUnknown
from ps_core.events import Event, Name, subscribe
from ps_lab import Lab
from ps_lab.processes import wait_until
from tests.ps_core.conftest import Connect
from tests.ps_core.test_healing import commit_waits, count, raised_by
from tests.ps_core.wire import sending

INSERT = "INSERT INTO item VALUES (%s)"


def execute(conn: Connection[Any]) -> None:
    """One statement."""
    conn.execute(INSERT, (1,))


def executemany(conn: Connection[Any]) -> None:
    """Several, in a pipeline of psycopg's."""
    conn.cursor().executemany(INSERT, [(1,), (2,)])


def executemany_returning(conn: Connection[Any]) -> None:
    """The same with results."""
    conn.cursor().executemany(INSERT + " RETURNING id", [(1,), (2,)], returning=True)


def several(conn: Connection[Any]) -> None:
    """A text of two statements."""
    conn.execute("INSERT INTO item VALUES (1); SELECT 1")


def copy(conn: Connection[Any]) -> None:
    """COPY FROM."""
    with conn.cursor().copy("COPY item FROM STDIN") as copying:
        copying.write("1\t\\N\n")


def pipeline(conn: Connection[Any]) -> None:
    """A pipeline of the caller's."""
    with conn.pipeline():
        conn.execute(INSERT, (1,))


def pipeline_of_many(conn: Connection[Any]) -> None:
    """`executemany` in such a one."""
    with conn.pipeline():
        conn.cursor().executemany(INSERT, [(1,), (2,)])


def function(conn: Connection[Any]) -> None:
    """What looks like a read."""
    conn.execute("SELECT add_item()")


def stream(conn: Connection[Any]) -> None:
    """A write that delivers rows as it goes."""
    assert list(conn.cursor().stream(INSERT + " RETURNING id", (1,))) == [(1,)]


def server_bound(conn: Connection[Any]) -> None:
    """With parameters that the server binds."""
    ServerBindingCursor(conn).execute(INSERT, (1,))


def own_transaction(conn: Connection[Any]) -> None:
    """BEGIN and COMMIT of the caller's own."""
    for text in ("BEGIN", "INSERT INTO item VALUES (1)", "COMMIT"):
        conn.execute(text)


WRITES = [execute, executemany, executemany_returning, several, copy, pipeline, pipeline_of_many, function, stream, server_bound]
NO_POSITION = {several, copy, pipeline, pipeline_of_many, stream, own_transaction}
"""In autocommit, what has no room for a question: reads go to the primary afterwards."""


def read_many(conn: Connection[Any]) -> None:
    """Several reads in a pipeline."""
    conn.cursor().executemany("SELECT %s::int", [(1,), (2,)])


def copy_out(conn: Connection[Any]) -> None:
    """COPY TO."""
    with conn.cursor().copy("COPY item TO STDOUT") as copying:
        assert list(copying) == []


def read_in_pipeline(conn: Connection[Any]) -> None:
    """A pipeline that reads."""
    with conn.pipeline():
        conn.execute("SELECT 1")


def read(conn: Connection[Any]) -> None:
    """One read."""
    conn.execute("SELECT count(*) FROM item")


def setting(conn: Connection[Any]) -> None:
    """What Django asks of each new connection."""
    conn.execute("SELECT set_config('TimeZone', 'UTC', false)")


READS = [read, read_many, copy_out, read_in_pipeline, setting]


@pytest.fixture
def state(ps_lab: Lab, table: str) -> EndpointState:
    """The primary, where replicas are to see what is written there."""
    ps_lab.sql(f"CREATE OR REPLACE FUNCTION add_item() RETURNS int LANGUAGE sql AS 'INSERT INTO {table} VALUES (1) RETURNING 1'")
    return EndpointState(endpoint=ps_lab.topology.primary, identity=ps_lab.branch, tracks=True)


@pytest.mark.parametrize("write", WRITES)
def test_transaction(ps_lab: Lab, state: EndpointState, connect: Connect, write: Callable[[Connection[Any]], None]) -> None:
    """The COMMIT of a transaction that wrote in any way brings its position back, and says that it wrote."""
    conn = connect(state)
    before = parse_lsn(ps_lab.sql("SELECT pg_current_wal_insert_lsn()::text")[0][0])
    with use_token(None) as tracker:
        write(conn)
        conn.commit()
        assert tracker.has_news
        assert tracker.token is not None
        assert tracker.token.position is not None
        assert tracker.token.position > before
    assert count(ps_lab, "item") in (1, 2)


@pytest.mark.parametrize("write", [*WRITES, own_transaction])
def test_autocommit(ps_lab: Lab, state: EndpointState, connect: Connect, write: Callable[[Connection[Any]], None]) -> None:
    """In autocommit a write brings its position back, too, or says that only the primary has certainly what was written."""
    conn = connect(state, autocommit=True)
    before = parse_lsn(ps_lab.sql("SELECT pg_current_wal_insert_lsn()::text")[0][0])
    with use_token(None) as tracker:
        write(conn)
        assert tracker.has_news
        assert tracker.token is not None
        assert (tracker.token.position is None) == (write in NO_POSITION)
        assert tracker.token.position is None or tracker.token.position > before
        conn.execute("SELECT 1")  # by now the primary tells one that covers it
        assert tracker.token.position is not None
        assert tracker.token.position > before
    assert count(ps_lab, "item") in (1, 2)


@pytest.mark.parametrize("autocommit", [True, False])
@pytest.mark.parametrize("work", READS)
def test_reads(state: EndpointState, connect: Connect, work: Callable[[Connection[Any]], None], autocommit: bool) -> None:
    """A request that only read has no news for the next one."""
    conn = connect(state, autocommit=autocommit)
    with use_token(None) as tracker:
        work(conn)
        conn.commit()
        assert not tracker.has_news


@pytest.mark.parametrize("autocommit", [True, False])
def test_executemany_costs_no_round_trip(
    ps_lab: Lab, primary: EndpointState, state: EndpointState, table: str, connect: Connect, autocommit: bool
) -> None:
    """What is asked behind its statements travels with them."""
    trips = []
    for each in (primary, state):
        conn, counted = connect(each, autocommit=autocommit), []
        for _ in range(30):
            with ps_lab.round_trips() as counter:
                conn.cursor().executemany(INSERT, [(1,)])
                conn.commit()
            counted.append(counter.count)
        # psycopg sends a pipeline in parts: where it is interrupted between two, the server answers the first before the second.
        trips.append(mode(counted))
    assert trips[0] == trips[1]


def test_asyncio_without_a_tracker(state: EndpointState) -> None:
    """A COMMIT, which asyncio runs as a task of its own, is seen in the context that committed."""

    async def main() -> None:
        async with await AsyncConnection.open(state) as conn:
            await conn.cursor().executemany(INSERT, [(1,), (2,)])
            await conn.commit()
            token = current_token()
            assert token is not None
            assert token.position is not None

    Context().run(asyncio.run, main())


@pytest.mark.parametrize("tracks", [True, False])
@pytest.mark.parametrize("write", [execute, executemany])
def test_lost_commit_is_looked_up(
    ps_lab: Lab, state: EndpointState, connect: Connect, write: Callable[[Connection[Any]], None], tracks: bool
) -> None:
    """When the answer to COMMIT is lost, the transaction's id says what became of it, whether there are replicas or not."""
    conn = connect(EndpointState(endpoint=state.endpoint, identity=state.identity, tracks=tracks))
    assert lose_commit(ps_lab, conn, write) == []
    assert count(ps_lab, "item") in (1, 2)
    assert conn.execute("SELECT 1").fetchone() == (1,)


def test_lost_commit_without_an_id(ps_lab: Lab, state: EndpointState, connect: Connect) -> None:
    """A text of several statements brings no id back: the outcome is unknown."""
    conn = connect(state)
    (error,) = lose_commit(ps_lab, conn, several)
    assert isinstance(error, CommitOutcomeUnknown)


def test_verify_answers_without_an_id(ps_lab: Lab, state: EndpointState, connect: Connect) -> None:
    """There the caller's own question tells that it was committed."""
    conn = connect(state)
    assert lose_commit(ps_lab, conn, several, "SELECT count(*) > 0 FROM item") == []
    assert count(ps_lab, "item") == 1


def test_verify_asks_nothing_before_it_is_needed(state: EndpointState, connect: Connect) -> None:
    """A question of the caller's adds nothing to what is sent, also where its block begins behind the write."""
    conn = connect(state)
    with sending(conn) as sent:
        execute(conn)
        conn.commit()
        with ps_core.commit_check(verify="SELECT true"):
            execute(conn)
            conn.commit()
        execute(conn)
        with ps_core.commit_check(verify="SELECT true"):
            conn.commit()
    write = "BEGIN; settings; INSERT INTO item VALUES (('1'::int2)); id"
    assert sent.messages == 3 * [write, "synchronous_commit; COMMIT; committed position"]


def lose_commit(
    lab: Lab, conn: Connection[Any], write: Callable[[Connection[Any]], None], verify: str | None = None
) -> list[BaseException]:
    """Write and commit, lose the answer, and return what was raised."""
    errors: list[BaseException] = []

    def commit() -> None:
        try:
            if verify is None:
                conn.commit()
            else:
                with ps_core.commit_check(verify=verify):
                    conn.commit()
        except psycopg.Error as exc:
            errors.append(exc)

    with commit_waits(lab) as waiting:
        write(conn)  # not before: the transaction's time would run while the replicas are sent away
        committer = threading.Thread(target=commit)
        committer.start()
        waiting()
        lab.edge.refuse("08006", f"no primary available for branch {lab.branch}")
        lab.edge.cut("primary")
    lab.edge.resume()  # by now it is committed
    committer.join(40)
    assert not committer.is_alive()
    return errors


# --- parameters that the server binds ---


def test_server_bound_hidden_write(ps_lab: Lab, state: EndpointState, connect: Connect) -> None:
    """What looks like a read and writes runs without READ ONLY, once, and is remembered."""
    ps_lab.sql("CREATE OR REPLACE FUNCTION lies() RETURNS int STABLE LANGUAGE plpgsql AS 'BEGIN RETURN add_item(); END'")
    conn = connect(state, autocommit=True)
    for _ in range(2):
        ServerBindingCursor(conn).execute("SELECT lies()")
    assert len(state.refused_read_only) == 1
    assert count(ps_lab, "item") == 2


def test_server_bound_behind(ps_lab: Lab, table: str, connect: Connect) -> None:
    """A replica that is behind is told to the caller, and leaves the connection usable."""
    state = EndpointState(endpoint=ps_lab.topology.replicas[0], identity=ps_lab.branch, tracks=True)
    conn = connect(state, autocommit=True)
    with use_token(f"1.{ps_lab.branch}.FFFFFFF-0.{int(time.time())}"):
        error = raised_by(lambda: ServerBindingCursor(conn).execute("SELECT 1"))
    assert classify(error).rule == "replica_behind"
    assert conn.info.transaction_status == TransactionStatus.IDLE
    with use_token(None):
        assert ServerBindingCursor(conn).execute("SELECT 2").fetchone() == (2,)


# --- what ends tries, and what does not ---


@pytest.mark.parametrize("attempts", [0, 1, 3])
def test_attempts(ps_lab: Lab, primary: EndpointState, attempts: int) -> None:
    """`attempts` counts the tries after the first failure: of a new connection, and of a statement whose connection is lost."""
    policy = RetryPolicy(attempts=attempts, first_wait="1ms", max_wait="1ms")
    conn = Connection.open(EndpointState(endpoint=primary.endpoint), policy=policy, autocommit=True)
    told: list[Event] = []
    unsubscribe = subscribe(lambda event: told.append(event) if event.name is Name.RETRY else None)
    try:
        ps_lab.edge.refuse("08006", f"no primary available for branch {ps_lab.branch}")
        with pytest.raises(psycopg.OperationalError):
            Connection.open(EndpointState(endpoint=primary.endpoint), policy=policy)
        assert len(told) == attempts + 1  # the first failure is told, too
        told.clear()
        ps_lab.edge.cut("primary")
        with pytest.raises(psycopg.OperationalError):
            conn.execute("SELECT 1")
        assert len(told) == (attempts + 1 if attempts else 0)
    finally:
        unsubscribe()
        ps_lab.edge.resume()
        conn.close()


def test_late_answer_is_taken(ps_lab: Lab, primary: EndpointState, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that is there when the deadline is long over is an answer: the connection stays."""
    conn = connect(primary)
    monkeypatch.setattr(
        conn, "wait", partial(conn.wait, interval=20)
    )  # until the answer is there: psycopg looks up after 0.1 s also without one
    with ps_lab.edge.delay(0.6), deadline(0.3):
        assert conn.execute("SELECT 7").fetchone() == (7,)
    conn.rollback()


def test_rollback_past_the_deadline(ps_lab: Lab, primary: EndpointState, connect: Connect) -> None:
    """A ROLLBACK that is sent when the deadline and its grace are over is waited for: the connection stays."""
    conn = connect(primary)
    with deadline(0.6):
        conn.execute("SELECT 1")
        pid = conn.info.backend_pid
        until = time.monotonic() + 1.2
        wait_until(lambda: time.monotonic() > until, "the end of the deadline's grace")
        with ps_lab.edge.delay(0.1):
            conn.rollback()
    assert conn.info.backend_pid == pid
    assert not conn.broken


def test_pipeline_that_is_lost(ps_lab: Lab, primary: EndpointState, connect: Connect) -> None:
    """After a pipeline that met the end of its connection, the next statement makes a new one."""
    conn = connect(primary, autocommit=True)

    def work() -> None:
        with conn.pipeline():
            conn.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    assert isinstance(raised_by(work), psycopg.Error)
    conn.rollback()
    assert conn.execute("SELECT 1").fetchone() == (1,)
