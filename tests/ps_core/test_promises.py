"""Forms of statement that lost a promise once, each by name; the table of all ways is test_every_way.py."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import sqlalchemy as sa
from psycopg import IsolationLevel, sql

import ps_core
import ps_sqlalchemy
from ps_core import AsyncConnection, Connection, limits, local_settings, use_token
from ps_core.consistency import Token, parse_lsn
from ps_core.errors import ReplicaBehind
from tests.ps_core.conftest import tracking

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ps_lab import Lab
    from tests.ps_core.conftest import Connect

FAR = 1 << 62


@pytest.fixture(scope="module")
def counted(ps_lab: Lab) -> Iterator[None]:
    """A table, and a function that writes to it."""
    ps_lab.sql(
        "CREATE TABLE promised (id int); GRANT ALL ON promised TO PUBLIC;"
        " CREATE FUNCTION addrow(n int) RETURNS int LANGUAGE sql AS 'INSERT INTO promised VALUES (n) RETURNING id';"
        " CREATE FUNCTION addrow_unflushed(n int) RETURNS int LANGUAGE sql AS"
        " 'SELECT set_config(''synchronous_commit'', ''off'', true); INSERT INTO promised VALUES (n) RETURNING id'"
    )
    ps_lab.wait_replicas_caught_up()
    yield
    ps_lab.sql("DROP FUNCTION addrow, addrow_unflushed; DROP TABLE promised")


def many(conn: Connection[Any]) -> None:
    """executemany of a function that writes."""
    conn.cursor().executemany("select addrow(%s)", [(1,), (2,)])


def stream(conn: Connection[Any]) -> None:
    """stream of such a function."""
    assert list(conn.cursor().stream("select addrow(1)")) == [(1,)]


def copy_insert(conn: Connection[Any]) -> None:
    """COPY of an INSERT."""
    with conn.cursor().copy("copy (insert into promised values (1) returning id) to stdout") as copy:
        assert list(copy)


def copy_function(conn: Connection[Any]) -> None:
    """COPY of a function that writes."""
    with conn.cursor().copy("copy (select addrow(1)) to stdout") as copy:
        assert list(copy)


def pipeline(text: Any) -> Callable[[Connection[Any]], None]:
    """Return a pipeline of it."""

    def run(conn: Connection[Any]) -> None:
        with conn.pipeline():
            conn.execute(text)

    run.__name__ = f"pipeline_{type(text).__name__}"
    return run


WRITES = [many, stream, copy_insert, copy_function, pipeline("select addrow(1)"), pipeline(b"select addrow(1)")]
WRITES.append(pipeline(sql.SQL("select addrow({})").format(1)))


@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
@pytest.mark.parametrize("autocommit", [True, False])
def test_functions_that_write(ps_lab: Lab, counted: None, connect: Connect, write: Any, autocommit: bool) -> None:
    """A replica that has not replayed what a function wrote does not serve its caller."""
    conn, replica = (
        connect(tracking(ps_lab, "primary"), autocommit=autocommit),
        connect(tracking(ps_lab, "replica"), autocommit=True),
    )
    ps_lab.wait_replicas_caught_up()
    ps_lab.set_replay_delay(60)
    try:
        with use_token(None):
            write(conn)
            conn.commit()
            with pytest.raises(ReplicaBehind):
                replica.execute("select count(*) from promised")
    finally:
        ps_lab.set_replay_delay(0)


@pytest.mark.parametrize(
    "way",
    [
        *("first statement", "later statement", "autocommit", "a function", "executemany", "COMMIT by hand"),
        *("SET, autocommit", "SET, executemany in autocommit", "SET, transaction"),
    ],
)
def test_commits_that_do_not_wait(ps_lab: Lab, counted: None, connect: Connect, way: str) -> None:
    """After synchronous_commit = off, every own write is seen: its position is that of the commit, or it pins."""
    conn = connect(tracking(ps_lab, "primary"), autocommit="autocommit" in way or way == "a function")
    replica = connect(tracking(ps_lab, "replica"), autocommit=True)
    ps_lab.sql("delete from promised")
    if way.startswith("SET, "):
        conn.execute("set synchronous_commit = off")
        conn.commit()
    for number in range(1, 101):
        with use_token(None):
            if way == "autocommit":
                conn.execute(f"set local synchronous_commit = off; insert into promised values ({number})")
            elif way == "SET, executemany in autocommit":
                conn.cursor().executemany("insert into promised values (%s)", [(number,)])
            elif way.startswith("SET, "):
                conn.execute("insert into promised values (%s)", (number,))
            elif way == "a function":
                conn.execute("select addrow_unflushed(%s)", (number,))
            elif way == "first statement":
                conn.execute("set local synchronous_commit = off")
                conn.execute("insert into promised values (%s)", (number,))
            else:
                conn.execute("select 1")
                conn.execute("set local synchronous_commit = off")
                if way == "executemany":
                    conn.cursor().executemany("insert into promised values (%s)", [(number,)])
                else:
                    conn.execute("insert into promised values (%s)", (number,))
            conn.execute("COMMIT") if way == "COMMIT by hand" else conn.commit()
            try:
                row = replica.execute("select count(*) from promised").fetchone()
            except ReplicaBehind:
                continue
            assert row == (number,)


FORMS = [
    "select 1",
    "with w as (select 1 as id, 1 as delete) select * from w",
    "select 1; select 2",
    "do 'begin end'",
    "/* note */ select 1 -- note",
]


@pytest.mark.parametrize("text", FORMS)
@pytest.mark.parametrize("way", ["autocommit", "transaction", "BEGIN by hand"])
def test_every_form_is_guarded(ps_lab: Lab, connect: Connect, text: str, way: str) -> None:
    """On a replica, also what is not known to be a read asks whether it has what the caller has seen."""
    replica = connect(tracking(ps_lab, "replica"), autocommit=way != "transaction")
    with use_token(Token(identity=ps_lab.branch, position=FAR, at=time.time())), pytest.raises(ReplicaBehind):
        if way == "BEGIN by hand":
            replica.execute("BEGIN")
        replica.execute(text)
    replica.rollback()


@pytest.mark.parametrize("level", ["repeatable read", "read committed"])
def test_isolation_of_the_role(ps_lab: Lab, counted: None, connect: Connect, level: str) -> None:
    """Where the role's transactions have one snapshot by themselves, those on a replica do, too."""
    ps_lab.sql(f"ALTER ROLE app SET default_transaction_isolation = '{level}'")
    ps_lab.wait_replicas_caught_up()
    try:
        ps_lab.bouncers["read-pool"].admin("RECONNECT")
        conn = connect(tracking(ps_lab, "replica"))
        before = conn.execute("select count(*) from promised").fetchone()
        ps_lab.sql("insert into promised values (0)")
        ps_lab.wait_replicas_caught_up()
        after = conn.execute("select count(*) from promised").fetchone()
        assert (after == before) is (level == "repeatable read")
        conn.rollback()
        conn.isolation_level = IsolationLevel.READ_COMMITTED  # a level of its own counts more
        before = conn.execute("select count(*) from promised").fetchone()
        ps_lab.sql("insert into promised values (0)")
        ps_lab.wait_replicas_caught_up()
        assert conn.execute("select count(*) from promised").fetchone() != before
    finally:
        ps_lab.sql("ALTER ROLE app RESET default_transaction_isolation")
        ps_lab.wait_replicas_caught_up()
        ps_lab.bouncers["read-pool"].admin("RECONNECT")


def test_serializable_role_reads_on_the_primary(ps_lab: Lab, connect: Connect) -> None:
    """No standby can be SERIALIZABLE: once that is known of the role, its sessions stay on the primary."""
    engine: Any = ps_sqlalchemy.create_engine(ps_lab.url, bouncer="write-pool", replica_bouncer="read-pool")
    recovering = sa.text("select pg_is_in_recovery()")
    with ps_sqlalchemy.Session(engine) as session:
        assert session.scalar(recovering) is True
    for state in engine.replica.ps_replicas.states:
        state.default_isolation = "serializable"
    try:
        with ps_sqlalchemy.Session(engine) as session:
            assert session.scalar(recovering) is False
    finally:
        for state in engine.replica.ps_replicas.states:
            state.default_isolation = "read committed"
        engine.dispose()


SET_IN_FRONT = [
    "set local work_mem = '8MB'; select current_setting('statement_timeout'), current_setting('app.t'), current_user::text",
    "begin; select current_setting('statement_timeout'), current_setting('app.t'), current_user::text; commit",
]


@pytest.mark.parametrize("text", SET_IN_FRONT)
@pytest.mark.parametrize("endpoint", ["primary", "replica", "direct"])
def test_texts_of_several_statements_carry_everything(ps_lab: Lab, connect: Connect, text: str, endpoint: str) -> None:
    """Limits and settings hold in a text that sets something first, or that is a whole transaction."""
    conn = connect(tracking(ps_lab, endpoint), autocommit=True)
    with limits(statement=7), local_settings({"app.t": "42"}):
        cursor = conn.execute(text)
        while cursor.description is None:
            assert cursor.nextset()
        row = cursor.fetchone()
        assert row is not None
        assert row[:2] == ("7s", "42")


def test_chained_transactions_carry_everything(ps_lab: Lab, connect: Connect) -> None:
    """COMMIT AND CHAIN begins another transaction, with the same limits and settings."""
    conn = connect(tracking(ps_lab, "primary"), autocommit=True)
    with limits(statement=7), local_settings({"app.t": "42"}):
        conn.execute("begin")
        for end in ("commit and chain", "rollback and chain"):
            conn.execute(end)
            shown = conn.execute("select current_setting('statement_timeout'), current_setting('app.t')").fetchone()
            assert shown == ("7s", "42")
        conn.execute("commit")


@pytest.mark.parametrize("endpoint", ["primary", "replica", "direct"])
def test_copy_raises_the_servers_error(ps_lab: Lab, connect: Connect, endpoint: str) -> None:
    """A COPY with a syntax error raises that, not that it was mixed with something."""
    conn = connect(tracking(ps_lab, endpoint), autocommit=True)
    expected: Any
    for text, expected in (
        ("copy (selec 1) to stdout", psycopg.errors.SyntaxError),
        ("copy nowhere to stdout", psycopg.errors.UndefinedTable),
        ("copy nowhere (id from stdin", psycopg.errors.SyntaxError),
    ):
        with pytest.raises(expected), conn.cursor().copy(text):
            pass


async def test_stream_of_no_rows_at_a_time(ps_lab: Lab, connect: Connect) -> None:
    """A size of 0 is refused as psycopg refuses it."""
    stock = psycopg.connect(**ps_core.conninfo(ps_lab.topology.primary), autocommit=True)
    with stock, pytest.raises(ValueError, match="size") as expected:
        list(stock.cursor().stream("select 1", size=0))
    conn = connect(tracking(ps_lab, "primary"), autocommit=True)
    with pytest.raises(ValueError, match="size") as raised:
        list(conn.cursor().stream("select 1", size=0))
    assert str(raised.value) == str(expected.value)
    async with await AsyncConnection.open(tracking(ps_lab, "primary"), autocommit=True) as other:
        with pytest.raises(ValueError, match="size"):
            async for _ in other.cursor().stream("select 1", size=0):
                pass
    assert conn.execute("select 1").fetchone() == (1,)


@pytest.mark.parametrize(
    ("lsn", "reached"),
    [
        ("0/16B3748", "0/16B3748"),
        ("0/2000018", "0/2000000"),  # behind the header of a page
        ("0/2000028", "0/2000000"),  # of a segment's first page
        ("0/2000030", "0/2000030"),
        ("0/2002018", "0/2002000"),
    ],
)
def test_positions_in_the_header_of_a_page(lsn: str, reached: str) -> None:
    """A replica that has everything is at the page's start: the next record would begin behind the header."""
    assert parse_lsn(lsn, reached=True) == parse_lsn(reached)
    assert parse_lsn(lsn) != parse_lsn(reached) or lsn == reached
