"""The connection on real servers: what travels, what it costs, what a cursor shows."""

import asyncio
import datetime as dt
import decimal
import enum
import ipaddress
import uuid
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest
from psycopg import IsolationLevel, sql
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row
from psycopg.types.composite import CompositeInfo, register_composite
from psycopg.types.enum import EnumInfo, register_enum
from psycopg.types.json import Jsonb
from psycopg.types.range import Range

import ps_core
from ps_core import AsyncConnection, Connection
from ps_core._endpoint import EndpointState
from ps_core.context import deadline, limits, local_settings
from ps_core.errors import DeadlineExceeded
from ps_core.failures import classify
from ps_lab import Lab
from tests.ps_core.conftest import Connect

pytestmark = pytest.mark.fast

LINKS = ["primary", "replica", "direct"]


@pytest.fixture
def state(request: pytest.FixtureRequest) -> EndpointState:
    """The state that the test's parameter names."""
    state: EndpointState = request.getfixturevalue(request.param)
    return state


def shown(conn: Connection[Any], name: str) -> str:
    """Return a setting as the server shows it now."""
    row = conn.execute(f"SHOW {name}").fetchone()
    assert row is not None
    value: str = row[0]
    return value


# --- timeouts ---


@pytest.mark.parametrize("autocommit", [False, True])
@pytest.mark.parametrize("state", ["primary", "replica"], indirect=True)
def test_timeouts_hold(state: EndpointState, autocommit: bool, connect: Connect) -> None:
    """Both timeouts hold through both bouncers, in autocommit and in every transaction, first statement and later ones."""
    conn = connect(state, autocommit=autocommit)
    for _ in range(3):
        assert shown(conn, "statement_timeout") == "2s"
        assert shown(conn, "transaction_timeout") == "3s"
        conn.commit()


def test_direct_endpoint_has_a_lock_timeout_only(direct: EndpointState, connect: Connect) -> None:
    """Migrations may take their time on the direct endpoint, but not queue for a lock."""
    conn = connect(direct)
    assert shown(conn, "statement_timeout") == "0"
    assert shown(conn, "transaction_timeout") == "0"
    assert shown(conn, "lock_timeout") == "5s"


@pytest.mark.parametrize("autocommit", [False, True])
@pytest.mark.parametrize("state", ["primary", "replica"], indirect=True)
def test_statement_timeout_cancels(state: EndpointState, autocommit: bool, connect: Connect) -> None:
    """A statement that runs too long is cancelled by the server, and the connection is good for the next one."""
    conn = connect(state, autocommit=autocommit)
    with limits(statement="100ms"), pytest.raises(psycopg.errors.QueryCanceled, match="statement timeout"):
        conn.execute("SELECT pg_sleep(5)")
    conn.rollback()
    assert conn.execute("SELECT 1").fetchone() == (1,)


def test_transaction_timeout_ends_the_transaction(primary: EndpointState, connect: Connect) -> None:
    """A transaction that stays open too long is ended by the server."""
    conn = connect(primary)
    with limits(statement="900ms", transaction="1s"):
        conn.execute("SELECT 1")
        with pytest.raises(psycopg.Error) as failure:
            for _ in range(2):  # between two statements, the pooler would keep the server's last words to itself
                conn.execute("SELECT pg_sleep(0.7)")
    assert classify(failure.value).rule == "transaction_timeout"


def test_limits_nest_and_respect_the_role(ps_lab: Lab, primary: EndpointState, connect: Connect) -> None:
    """`limits` replaces the endpoint's timeouts for a block; a lower one of the role's own stays."""
    conn = connect(primary)
    with limits(statement="60s"):
        assert (shown(conn, "statement_timeout"), shown(conn, "transaction_timeout")) == ("1min", "0")
        conn.rollback()
        with limits(transaction="90s"):
            assert (shown(conn, "statement_timeout"), shown(conn, "transaction_timeout")) == ("1min", "90s")
            conn.rollback()
        with limits(statement=None):
            assert shown(conn, "statement_timeout") == "0"
            conn.rollback()
    assert shown(conn, "statement_timeout") == "2s"
    conn.rollback()
    ps_lab.sql("ALTER ROLE app SET statement_timeout = '700ms'")
    try:
        ps_lab.bouncers["local"].admin("RECONNECT")
        limited = connect(EndpointState(endpoint=primary.endpoint))
        assert shown(limited, "statement_timeout") == "700ms"
        limited.rollback()
        with limits(statement="60s"):
            assert shown(limited, "statement_timeout") == "700ms"
    finally:
        ps_lab.sql("ALTER ROLE app RESET statement_timeout")
        ps_lab.bouncers["local"].admin("RECONNECT")


def test_running_transaction_timer_is_armed_again(ps_lab: Lab, primary: EndpointState, connect: Connect) -> None:
    """A transaction timeout that the role has by itself does not keep ours from taking effect."""
    ps_lab.sql("ALTER ROLE app SET transaction_timeout = '20s'")
    try:
        ps_lab.bouncers["local"].admin("RECONNECT")
        conn = connect(EndpointState(endpoint=primary.endpoint))
        with limits(statement="900ms", transaction="1s"):
            conn.execute("SELECT 1")
            with pytest.raises(psycopg.Error) as failure:
                for _ in range(2):
                    conn.execute("SELECT pg_sleep(0.7)")
        assert classify(failure.value).rule == "transaction_timeout"
    finally:
        ps_lab.sql("ALTER ROLE app RESET transaction_timeout")
        ps_lab.bouncers["local"].admin("RECONNECT")


def test_nothing_is_left_on_the_server_connection(
    ps_lab: Lab, primary: EndpointState, replica: EndpointState, connect: Connect
) -> None:
    """Foreign clients of the same pools never see our settings, whatever ended our transactions."""
    names = ("statement_timeout", "transaction_timeout", "lock_timeout", "default_transaction_read_only", "app.tenant")
    settings = sql.SQL(",").join(sql.SQL("current_setting({}, true)").format(name) for name in names)
    query = sql.SQL("SELECT pg_backend_pid(), {}").format(settings)
    for ours in (primary, replica):
        conn = connect(ours)
        strangers = [
            psycopg.connect(**ps_core.conninfo(ours.endpoint), autocommit=True, cursor_factory=psycopg.ClientCursor)
            for _ in range(4)
        ]
        seen, pids, shared = set(), set(), set()
        for turn in range(12):
            with local_settings({"app.tenant": str(turn)}), limits(lock="1s"):
                pids |= {pid for (pid,) in conn.execute("SELECT pg_backend_pid()")}
                if turn % 3 == 0:
                    with pytest.raises(psycopg.Error):
                        conn.execute("SELECT 1 / 0")
                conn.commit() if turn % 2 else conn.rollback()
            # As often as the pool has server connections at most: the replicas' bouncer takes them in turn.
            for stranger in strangers * 5:
                row = stranger.execute(query).fetchone()
                assert row is not None
                pid, *values = row
                shared |= pids & {pid}
                seen.add(tuple(value or "" for value in values))
        for stranger in strangers:
            stranger.close()
        assert seen == {("0", "0", "0", "off", "")}
        assert shared, "strangers had connections of their own"


# --- round trips ---


@pytest.mark.parametrize("state", LINKS, indirect=True)
def test_round_trips(ps_lab: Lab, state: EndpointState, connect: Connect) -> None:
    """What each unit of work costs, counted by the edge."""
    on_replica = state.endpoint.read_only
    conn = connect(state)
    plain = connect(state, autocommit=True)

    def cost(work: Any) -> int:
        with ps_lab.round_trips() as counter:
            work()
        return counter.count

    def read(times: int, end: str) -> None:
        for _ in range(times):
            conn.execute("SELECT %s::int", (1,)).fetchone()
        getattr(conn, end)()

    assert cost(lambda: plain.execute("SELECT 1")) == 1
    assert cost(conn.commit) == 0
    for times in (1, 3):
        for end in ("commit", "rollback"):
            # On a replica every read travels by itself, and there is no transaction to end.
            assert cost(lambda times=times, end=end: read(times, end)) == times + (0 if on_replica else 1)
    conn.isolation_level = IsolationLevel.REPEATABLE_READ
    assert cost(lambda: read(2, "commit")) == 3


def test_round_trips_of_writes(ps_lab: Lab, primary: EndpointState, table: str, connect: Connect) -> None:
    """A write in autocommit costs one, a transaction of n statements n + 1; tokens and ids cost nothing."""
    for tracks in (False, True):
        state = EndpointState(endpoint=primary.endpoint, identity=ps_lab.branch, tracks=tracks, role=primary.role)
        conn, plain = connect(state), connect(state, autocommit=True)
        with ps_lab.round_trips() as counter:
            plain.execute(f"INSERT INTO {table} VALUES (1)")
        assert counter.count == 1
        with ps_lab.round_trips() as counter:
            conn.execute(f"INSERT INTO {table} VALUES (2)")
            conn.execute(f"UPDATE {table} SET note = 'x'")
            conn.commit()
        assert counter.count == 3


def test_round_trips_async(ps_lab: Lab, primary: EndpointState, replica: EndpointState) -> None:
    """The asyncio connection costs the same."""

    async def work() -> tuple[int, int]:
        counts = []
        for state in (primary, replica):
            conn = await AsyncConnection.open(state)
            with ps_lab.round_trips() as counter:
                for _ in range(2):
                    await conn.execute("SELECT 1")
                await conn.commit()
            counts.append(counter.count)
            await conn.close()
        return counts[0], counts[1]

    assert asyncio.run(work()) == (3, 2)


# --- what a cursor shows ---

VALUES: list[tuple[str, Any]] = [
    ("text", None),
    ("bool", True),
    ("int2", 7),
    ("int8", 2**62),
    ("float8", -1.5e-300),
    ("numeric", decimal.Decimal("12345678901234567890.123456789")),
    ("text", "o'b\\r; -- \n% ü 漢"),
    ("text", "x" * 1_000_000),
    ("bytea", b"\x00\xff'\\"),
    ("uuid", uuid.UUID("12345678-1234-5678-1234-567812345678")),
    ("date", dt.date(2026, 11, 21)),
    ("timestamp", dt.datetime(2026, 11, 21, 1, 2, 3, 456789)),  # noqa: DTZ001
    ("timestamptz", dt.datetime(2026, 11, 21, 1, 2, 3, 456789, tzinfo=ZoneInfo("Asia/Tokyo"))),
    ("time", dt.time(1, 2, 3)),
    ("interval", dt.timedelta(days=3, seconds=4)),
    ("inet", ipaddress.ip_address("10.0.0.1")),
    ("cidr", ipaddress.ip_network("10.0.0.0/8")),
    ("text[]", ["a", None, 'b"c', "d,e"]),
    ("int4[]", [[1, 2], [3, 4]]),
    ("int4range", Range(1, 5)),
    ("tstzrange", Range(dt.datetime(2026, 1, 1, tzinfo=dt.UTC), None)),
]


@pytest.mark.parametrize(("name", "value"), VALUES, ids=[name for name, _ in VALUES])
def test_types_come_back(name: str, value: object, primary: EndpointState, connect: Connect) -> None:
    """Every value that psycopg adapts comes back as it went, in the opening statement and in a later one."""
    conn = connect(primary)
    for _ in range(2):
        assert conn.execute(f"SELECT %s::{name}", (value,)).fetchone() == (value,)
        assert conn.execute(f"SELECT %(value)s::{name}", {"value": value}).fetchone() == (value,)


class Mood(enum.Enum):
    """An enum of the database's."""

    GOOD = "GOOD"
    BAD = "BAD"


def test_types_of_the_database_come_back(ps_lab: Lab, primary: EndpointState, connect: Connect) -> None:
    """jsonb, enums and composites that were registered come back, too."""
    for statement in (
        "DROP TYPE IF EXISTS point2d, mood",
        "CREATE TYPE mood AS ENUM ('GOOD', 'BAD')",
        "CREATE TYPE point2d AS (x int, y text)",
    ):
        ps_lab.sql(statement)
    conn = connect(primary, autocommit=True)
    mood, point = EnumInfo.fetch(conn, "mood"), CompositeInfo.fetch(conn, "point2d")
    assert mood is not None
    assert point is not None
    register_enum(mood, conn, Mood)
    register_composite(point, conn)
    assert conn.execute("SELECT %s::mood", (Mood.BAD,)).fetchone() == (Mood.BAD,)
    row = conn.execute("SELECT (1, 'a,\"b')::point2d").fetchone()
    assert row is not None
    assert (row[0].x, row[0].y) == (1, 'a,"b')
    assert conn.execute("SELECT %s::point2d", (row[0],)).fetchone() == row
    assert conn.execute("SELECT %s::jsonb", (Jsonb({"a": [1, "'"]}),)).fetchone() == ({"a": [1, "'"]},)


@pytest.mark.parametrize("autocommit", [False, True])
def test_result_is_the_statements_own(autocommit: bool, primary: EndpointState, table: str, connect: Connect) -> None:
    """rowcount, description, statusmessage, nextset and row factories show the user's statement, never the opening."""
    conn = connect(primary, autocommit=autocommit)
    cursor = conn.cursor()
    cursor.execute(f"INSERT INTO {table} VALUES (1, 'a'), (2, 'b')")
    assert (cursor.rowcount, cursor.description, cursor.statusmessage, cursor.nextset()) == (2, None, "INSERT 0 2", None)
    conn.commit()
    cursor.execute(f"SELECT id, note FROM {table} ORDER BY id -- no more")
    assert cursor.description is not None
    assert [column.name for column in cursor.description] == ["id", "note"]
    assert (cursor.rowcount, cursor.fetchall(), cursor.nextset()) == (2, [(1, "a"), (2, "b")], None)
    conn.commit()
    cursor.execute("SELECT 1; SELECT 2;")
    assert (cursor.fetchall(), cursor.nextset(), cursor.fetchall(), cursor.nextset()) == ([(1,)], True, [(2,)], None)
    conn.commit()
    assert conn.cursor(row_factory=dict_row).execute("SELECT 1 AS a").fetchone() == {"a": 1}
    conn.commit()
    composed = sql.SQL("SELECT id FROM {} WHERE note = {}").format(sql.Identifier(table), sql.Literal("b"))
    assert conn.execute(composed).fetchall() == [(2,)]
    conn.commit()
    assert conn.execute(b"SELECT 3").fetchone() == (3,)
    conn.commit()


@pytest.mark.parametrize("autocommit", [False, True])
def test_other_ways_to_execute(autocommit: bool, primary: EndpointState, table: str, connect: Connect) -> None:
    """executemany, COPY both ways, server-side cursors and stream work as with psycopg."""
    conn = connect(primary, autocommit=autocommit)
    cursor = conn.cursor()
    cursor.executemany(f"INSERT INTO {table} VALUES (%s, %s)", [(1, "a"), (2, "b")])
    assert cursor.rowcount == 2
    conn.commit()
    with cursor.copy(f"COPY {table} FROM STDIN") as copy:
        copy.write_row((3, "c"))
    conn.commit()
    with cursor.copy(f"COPY (SELECT id FROM {table} ORDER BY id) TO STDOUT") as copy:
        assert list(copy.rows()) == [("1",), ("2",), ("3",)]
    conn.commit()
    assert [row[0] for row in cursor.stream(f"SELECT id FROM {table} ORDER BY id")] == [1, 2, 3]
    conn.commit()
    with conn.transaction(), conn.cursor("named") as named:
        named.execute(f"SELECT id FROM {table} ORDER BY id")
        assert (named.fetchone(), named.fetchmany(5)) == ((1,), [(2,), (3,)])


def test_executemany_and_copy_have_the_timeouts(primary: EndpointState, table: str, connect: Connect) -> None:
    """What cannot carry the opening itself gets it in a message before."""
    conn = connect(primary)
    cursor = conn.cursor()
    cursor.executemany(f"INSERT INTO {table} VALUES (%s, current_setting('statement_timeout'))", [(1,), (2,)])
    assert conn.execute(f"SELECT DISTINCT note FROM {table}").fetchall() == [("2s",)]
    conn.rollback()
    with conn.transaction():
        assert shown(conn, "transaction_timeout") == "3s"


def test_statements_that_must_stand_alone(ps_lab: Lab, primary: EndpointState, table: str, connect: Connect) -> None:
    """What PostgreSQL refuses in a transaction block works in autocommit; what its text does not show is learned once."""
    conn = connect(primary, autocommit=True)
    ps_lab.sql(f"CREATE OR REPLACE PROCEDURE twice() LANGUAGE plpgsql AS $$ BEGIN INSERT INTO {table} VALUES (1); COMMIT; END $$")
    with limits(statement="10s"):
        conn.execute(f"CREATE INDEX CONCURRENTLY item_id ON {table} (id)")
        conn.execute("CALL twice()")
        with ps_lab.round_trips() as counter:
            conn.execute("CALL twice()")
        assert counter.count == 1
    ps_lab.sql("DROP PROCEDURE twice()")
    assert conn.execute(f"SELECT count(*) FROM {table}").fetchone() == (2,)
    assert len(primary.refused_in_batch) >= 1


# --- errors ---


@pytest.mark.parametrize("autocommit", [False, True])
def test_error_positions_point_into_the_users_text(autocommit: bool, primary: EndpointState, connect: Connect) -> None:
    """Line, caret and position are those of psycopg alone; the framework finds the state that it expects."""
    ours = connect(primary, autocommit=autocommit)
    stock = psycopg.connect(**ps_core.conninfo(primary.endpoint), autocommit=autocommit, cursor_factory=psycopg.ClientCursor)
    with stock:
        for text in ("SELECT *\n  FROM nowhere", "SELCT 1", "SELECT\n\n 1 +", "SELECT 'ü', nothing"):
            told = []
            for conn in (ours, stock):
                with pytest.raises(psycopg.ProgrammingError) as failure:
                    conn.execute(text)
                told.append((str(failure.value), failure.value.diag.statement_position, conn.info.transaction_status))
                conn.rollback()
            assert told[0] == told[1]


def test_failed_transaction_stays_failed(primary: EndpointState, connect: Connect) -> None:
    """After a syntax error in the opening statement the transaction is failed until rollback, as with psycopg alone."""
    conn = connect(primary)
    with pytest.raises(psycopg.errors.SyntaxError):
        conn.execute("SELCT 1")
    assert conn.info.transaction_status == TransactionStatus.INERROR
    with pytest.raises(psycopg.errors.InFailedSqlTransaction):
        conn.execute("SELECT 1")
    conn.rollback()
    assert conn.execute("SELECT 1").fetchone() == (1,)


def test_failed_autocommit_write_leaves_the_connection_idle(
    ps_lab: Lab, primary: EndpointState, table: str, connect: Connect
) -> None:
    """A refused autocommit write that travelled with its own BEGIN leaves no failed transaction behind."""
    state = EndpointState(endpoint=primary.endpoint, identity=ps_lab.branch, tracks=True)
    conn = connect(state, autocommit=True)
    ps_lab.sql(f"CREATE UNIQUE INDEX ON {table} (id)")
    conn.execute(f"INSERT INTO {table} VALUES (1)")
    with pytest.raises(psycopg.errors.UniqueViolation):
        conn.execute(f"INSERT INTO {table} VALUES (1)")
    assert conn.info.transaction_status == TransactionStatus.IDLE
    assert conn.execute(f"SELECT count(*) FROM {table}").fetchone() == (1,)


# --- read only ---


def test_replica_is_always_read_only(replica: EndpointState, table: str, connect: Connect) -> None:
    """Whatever the framework says, work on a replica endpoint is sent READ ONLY."""
    for autocommit in (False, True):
        conn = connect(replica, autocommit=autocommit)
        conn.read_only = False
        assert shown(conn, "transaction_read_only") == "on"
        conn.rollback()
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            conn.execute(f"INSERT INTO {table} VALUES (1)")
        conn.rollback()


def test_hidden_write_in_autocommit_runs_once(ps_lab: Lab, primary: EndpointState, table: str, connect: Connect) -> None:
    """What looks like a read and writes is refused READ ONLY by the server, runs again without, and is remembered.

    No name shows it: the function is declared STABLE, which is a lie.
    """
    ps_lab.sql(f"CREATE OR REPLACE FUNCTION add_item() RETURNS int LANGUAGE sql AS 'INSERT INTO {table} VALUES (1) RETURNING 1'")
    ps_lab.sql("CREATE OR REPLACE FUNCTION lies() RETURNS int STABLE LANGUAGE plpgsql AS 'BEGIN RETURN add_item(); END'")
    state = EndpointState(endpoint=primary.endpoint)
    conn = connect(state, autocommit=True)
    assert shown(conn, "transaction_read_only") == "on"
    for expected in (2, 1):
        with ps_lab.round_trips() as counter:
            conn.execute("SELECT lies()")
        assert counter.count == expected
    assert len(state.refused_read_only) == 1
    assert conn.execute(f"SELECT count(*) FROM {table}").fetchone() == (2,)


def test_a_volatile_function_is_no_read(ps_lab: Lab, primary: EndpointState, table: str, connect: Connect) -> None:
    """A function that is not declared STABLE may write, and the endpoint has told its name: nothing has to be refused first."""
    ps_lab.sql(f"CREATE OR REPLACE FUNCTION add_item() RETURNS int LANGUAGE sql AS 'INSERT INTO {table} VALUES (1) RETURNING 1'")
    state = EndpointState(endpoint=primary.endpoint)
    conn = connect(state, autocommit=True)
    with ps_lab.round_trips() as counter:
        conn.execute("SELECT add_item()")
    assert (counter.count, len(state.refused_read_only)) == (1, 0)
    assert conn.execute(f"SELECT count(*) FROM {table}").fetchone() == (1,)


# --- context ---


def test_local_settings(primary: EndpointState, replica: EndpointState, connect: Connect) -> None:
    """The application's own settings hold in each transaction of the block, on the primary and on replicas, and nowhere else."""
    for state in (primary, replica):
        conn = connect(state)
        with local_settings({"app.user": "o'b\\r; DROP TABLE x"}), local_settings({"app.tenant": "42"}):
            row = conn.execute("SELECT current_setting('app.user'), current_setting('app.tenant')").fetchone()
            assert row == ("o'b\\r; DROP TABLE x", "42")
            conn.commit()
        row = conn.execute("SELECT coalesce(current_setting('app.tenant', true), '')").fetchone()
        assert row == ("",)
        conn.commit()


def test_deadline(ps_lab: Lab, primary: EndpointState, connect: Connect) -> None:
    """What is left of the deadline bounds the statement; when nothing is left, nothing is sent."""
    conn = connect(primary)
    with deadline("5s"), deadline(0.9), deadline(4):
        assert int(shown(conn, "statement_timeout").removesuffix("ms")) <= 900
        conn.rollback()
        with pytest.raises(psycopg.errors.QueryCanceled):
            conn.execute("SELECT pg_sleep(3)")
        conn.rollback()
        with ps_lab.round_trips() as counter, pytest.raises(DeadlineExceeded):
            conn.execute("SELECT 1")
        assert counter.count == 0
    assert shown(conn, "statement_timeout") == "2s"


def test_notices_are_delivered(primary: EndpointState, connect: Connect) -> None:
    """Notices of a statement that travels with its opening reach the handlers."""
    conn, heard = connect(primary), []
    conn.add_notice_handler(lambda diag: heard.append(diag.message_primary))
    conn.execute("DO $$ BEGIN RAISE NOTICE 'told'; END $$")
    conn.commit()
    assert heard == ["told"]
