"""What ends by a limit of ours says so: as a table without a server, and on psycopg's errors."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

import ps_core
from ps_core import AsyncConnection, DeadlineExceeded, connect, deadline, limits
from ps_core._documentation import PREFIX
from ps_core._notes import InForce, carry_notes, deadline_note, limit_note, limit_of
from ps_core.timeouts import DIRECT, POOLED, Timeouts
from ps_lab.processes import wait_until
from tests.adversity.harness import Doing, raised, running, wait_until_over

if TYPE_CHECKING:
    from collections.abc import Callable

    from ps_core import Connection
    from ps_core._endpoint import EndpointState
    from ps_lab import Lab
    from ps_lab.routes import Path

pytestmark = pytest.mark.fast


def held(timeouts: Timeouts = POOLED, **values: Any) -> InForce:
    """Return what is in force on an endpoint that is called "primary"."""
    return InForce(**{"endpoint": "primary", "timeouts": timeouts, **values})


NOTES: list[tuple[str, str, InForce, tuple[str, ...]]] = [
    (
        "the endpoint's",
        "statement",
        held(),
        ("statement_timeout of 2 s", "'primary'", "PS_STATEMENT_TIMEOUT", "limits(statement="),
    ),
    ("a replica's", "statement", held(endpoint="replica"), ("'replica'", "ps_statement_timeout")),
    ("the transaction's", "transaction", held(), ("transaction_timeout of 3 s", "PS_TRANSACTION_TIMEOUT", "limits(transaction=")),
    (
        "idle",
        "idle_in_transaction",
        held(),
        ("idle_in_transaction_session_timeout of 30 s", "ps_idle_in_transaction_timeout in"),
    ),
    ("a lock's", "lock", held(DIRECT, endpoint="direct"), ("lock_timeout of 5 s", "'direct'", "PS_LOCK_TIMEOUT", "limits(lock=")),
    ("a block's", "statement", held(limits={"statement": 0.1}), ('`limits(statement="0.1s")`', "of 0.1 s")),
    ("a block's lock", "lock", held(limits={"lock": 0.05}), ('`limits(lock="0.05s")`',)),
    ("another limit in a block", "transaction", held(limits={"lock": 0.05}), ("of 3 s", "The setting transaction_timeout")),
    ("the role's, which is shorter", "statement", held(role={"statement_timeout": 500}), ("of 0.5 s", "ALTER ROLE ... RESET")),
    (
        "the role's, where there is none of ours",
        "lock",
        held(role={"lock_timeout": 500}),
        ("of 0.5 s", "another role"),
    ),
    ("ours, which is shorter than the role's", "statement", held(role={"statement_timeout": 5000}), ("of 2 s", "The setting")),
    (
        "a deadline",
        "statement",
        held(deadline=1.5, remaining=0.9),
        ("the deadline of 1.5 s", "the 0.9 s that were", "more time"),
    ),
    ("a deadline where no limit is", "statement", held(DIRECT, deadline=1.5, remaining=1.5), ("the deadline of 1.5 s",)),
    ("a deadline that is over", "statement", held(deadline=1.0, remaining=-1.0), ("the deadline of 1 s",)),
    ("a limit before the deadline", "statement", held(deadline=9.0, remaining=8.0), ("statement_timeout of 2 s", "The setting")),
    (
        "a transaction with a timeout of its own",
        "transaction",
        held(text="SET LOCAL statement_timeout = '60s'"),
        ("transaction_timeout of 3 s", "SET of statement_timeout does not raise it"),
    ),
]
SILENT: list[tuple[str, str, InForce]] = [
    ("none of ours", "lock", held()),
    ("switched off", "statement", held(limits={"statement": None})),
    ("switched off by a longer statement", "transaction", held(limits={"statement": 60.0})),
    ("the transaction's own", "statement", held(text="SET LOCAL Statement_Timeout = 100")),
]


@pytest.mark.parametrize(("name", "in_force", "parts"), [row[1:] for row in NOTES], ids=[row[0] for row in NOTES])
def test_note(name: str, in_force: InForce, parts: tuple[str, ...]) -> None:
    """A note says which limit, its value, of which endpoint, where it is set, and how to raise it."""
    note = limit_note(name, in_force)
    assert note is not None
    assert note.startswith(PREFIX)
    assert [part for part in parts if part not in note] == [], note


@pytest.mark.parametrize(("name", "in_force"), [row[1:] for row in SILENT], ids=[row[0] for row in SILENT])
def test_no_note(name: str, in_force: InForce) -> None:
    """An error that is not known to be ours has no note."""
    assert limit_note(name, in_force) is None


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (psycopg.errors.QueryCanceled("canceling statement due to statement timeout"), "statement"),
        (psycopg.errors.QueryCanceled("canceling statement due to user request"), None),
        (
            psycopg.OperationalError("FATAL:  terminating connection due to transaction timeout"),
            "transaction",
        ),
        (psycopg.errors.IdleInTransactionSessionTimeout("terminating connection due to idle-in-..."), "idle_in_transaction"),
        (psycopg.errors.LockNotAvailable("canceling statement due to lock timeout"), "lock"),
        (psycopg.errors.LockNotAvailable('could not obtain lock on relation "ledger"'), None),
        (psycopg.errors.UniqueViolation("duplicate key value"), None),
        (psycopg.OperationalError("the connection is closed"), None),
    ],
    ids=str,
)
def test_limit_of(error: psycopg.Error, name: str | None) -> None:
    """A user who cancels, and NOWAIT, are no limits."""
    assert limit_of(error) == name


def test_carry_notes() -> None:
    """Ours are carried, once; others' stay where they are."""
    error, wrapper = psycopg.Error(), Exception()
    error.add_note("another's")
    error.add_note(deadline_note(1.5))
    for _ in range(2):
        carry_notes(error, wrapper)
    assert wrapper.__notes__ == [deadline_note(1.5)]
    assert "1.5 s" in deadline_note(1.5)
    carry_notes(None, wrapper)
    assert "None" not in deadline_note(None)


# --- on real servers ---


def notes(error: BaseException) -> str:
    """Return the notes on an error."""
    return "\n".join(getattr(error, "__notes__", ()))


SLEEP = "SELECT pg_sleep(5)"


def copy_out(conn: Connection[Any]) -> None:
    """Read by COPY."""
    with conn.cursor().copy(f"COPY ({SLEEP}) TO STDOUT") as copy:
        copy.read()


def second(conn: Connection[Any]) -> None:
    """Read by the second statement of a transaction."""
    with conn.transaction():
        conn.execute("SELECT 1")
        conn.execute(SLEEP)


def in_pipeline(conn: Connection[Any]) -> None:
    """Read in a pipeline."""
    with conn.pipeline():
        conn.execute(SLEEP).fetchone()


def named(conn: Connection[Any]) -> None:
    """Read by a named cursor."""
    with conn.cursor("named") as cursor:
        cursor.execute(SLEEP)
        cursor.fetchone()


def by_executemany(conn: Connection[Any]) -> None:
    """Read by `executemany`."""
    conn.cursor().executemany("SELECT pg_sleep(%s)", [(5,)])


def streamed(conn: Connection[Any]) -> None:
    """Read by `stream()`."""
    list(conn.cursor().stream(SLEEP))


@pytest.mark.parametrize(
    "way", [lambda conn: conn.execute(SLEEP), second, copy_out, in_pipeline, named, by_executemany, streamed]
)
def test_every_way(primary: EndpointState, way: Callable[[Any], object]) -> None:
    """A statement timeout says so in every way of sending."""
    with connect(primary.endpoint) as conn:
        with limits(statement="50ms"):
            error = raised(way, conn)
        assert 'limits(statement="0.05s")' in notes(error)
        assert "'primary'" in notes(error)
        conn.rollback()


@pytest.mark.parametrize("to", ["primary", "replica", "direct"])
def test_limits_of_the_server(ps_lab: Lab, table: str, to: Path) -> None:
    """57014, 25P04, 25P03 and 55P03 of each endpoint; the values are the settings'."""
    settings: dict[str, Any] = {"statement_timeout": "100ms", "transaction_timeout": "200ms", "lock_timeout": "60ms"}
    with connect(ps_lab.url, to=to, bouncer="write-pool", replica_bouncer="read-pool", **settings) as conn:
        if to != "direct":
            error = raised(conn.execute, SLEEP)
            assert f"statement_timeout of 0.1 s ended this on the endpoint '{to}" in notes(error)
            assert "PS_STATEMENT_TIMEOUT" in notes(error)
            conn.rollback()
            conn.execute("SET LOCAL statement_timeout = '60s'")
            error = raised(conn.execute, SLEEP)
            assert "transaction_timeout of 0.2 s" in notes(error)
            assert "does not raise it" in notes(error)
            conn.rollback()
        else:
            with psycopg.connect(ps_lab.primary.dsn()) as holder:
                holder.execute(f"LOCK TABLE {table}")
                error = raised(conn.execute, f"INSERT INTO {table} VALUES (1)")
                assert "lock_timeout of 0.06 s ended this on the endpoint 'direct'" in notes(error)
                conn.rollback()
                assert notes(raised(conn.execute, f"LOCK TABLE {table} NOWAIT")) == ""
            conn.rollback()
        conn.execute("SET LOCAL statement_timeout = 20")
        assert notes(raised(conn.execute, SLEEP)) == ""
        conn.rollback()
        with limits(idle_in_transaction="50ms", statement="off", transaction="off"):
            conn.execute("SELECT pg_current_xact_id_if_assigned()")
            if conn.info.transaction_status != 0:
                wait_until_over(conn)
                error = raised(conn.execute, "SELECT 1")
                assert 'limits(idle_in_transaction="0.05s")' in notes(error)
        conn.rollback()


def test_deadline_sent_by_the_server(ps_lab: Lab, primary: EndpointState) -> None:
    """Where the server ends a statement that had what was left of a deadline, the note names the deadline."""
    with connect(primary.endpoint) as conn, deadline("150ms"):
        error = raised(conn.execute, SLEEP)
        assert isinstance(error, psycopg.errors.QueryCanceled)
        assert "the deadline of 0.15 s ended this on the endpoint 'primary'" in notes(error)
        conn.rollback()
    with connect(primary.endpoint) as conn, deadline("1ms"):
        until = time.monotonic() + 0.005
        wait_until(lambda: time.monotonic() > until, "the end of the deadline")
        with pytest.raises(DeadlineExceeded) as over:
            conn.execute("SELECT 1")
    assert "the deadline of 0.001 s" in notes(over.value)


def test_user_cancels(ps_lab: Lab, primary: EndpointState) -> None:
    """A user's cancel request is no limit."""
    with connect(primary.endpoint) as conn, limits(statement="30s"):
        text = "SELECT 3, pg_sleep(20)"
        statement = Doing(raised, conn.execute, text)
        wait_until(lambda: running(ps_lab, text), "statement")

        def is_told() -> bool:
            conn.cancel_safe()
            return statement.done

        wait_until(is_told, "the cancel request to arrive")
        error = statement.end()
        assert error.sqlstate == "57014"
        assert notes(error) == ""
        conn.rollback()


async def test_async(primary: EndpointState) -> None:
    """The same for asyncio."""
    async with await AsyncConnection.connect(primary.endpoint) as conn:
        with limits(statement="50ms"), pytest.raises(psycopg.errors.QueryCanceled) as statement:
            await conn.execute(SLEEP)
        await conn.rollback()
        with limits(statement="off", transaction="50ms"), pytest.raises(psycopg.Error) as transaction:
            await conn.execute(SLEEP)
        await conn.rollback()
        with deadline("100ms"), pytest.raises(psycopg.errors.QueryCanceled) as over:
            await conn.execute(SLEEP)
        await conn.rollback()
    assert 'limits(statement="0.05s")' in notes(statement.value)
    assert 'limits(transaction="0.05s")' in notes(transaction.value)
    assert "the deadline of 0.1 s" in notes(over.value)


def test_no_secret(primary: EndpointState) -> None:
    """No password is in a note."""
    with connect(primary.endpoint) as conn, limits(statement="20ms"):
        error = raised(conn.execute, SLEEP)
        conn.rollback()
    password = str(ps_core.conninfo(primary.endpoint).get("password", ""))
    assert password
    assert password not in notes(error)
