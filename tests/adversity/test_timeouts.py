"""Limits of the server's: each says what it was, none is taken for a failover, none is tried again."""

from functools import partial
from typing import Any

import psycopg
import pytest

from ps_core.context import limits
from ps_core.failures import classify
from ps_lab import Lab
from ps_lab.processes import wait_until
from tests.adversity.applications import Application, refused_once
from tests.adversity.harness import PATHS, Doing, Path, Paths, prepare, raised, raised_once, running, wait_until_over
from tests.adversity.matrix import Matrix


def on_stock(conn: psycopg.Connection[Any], **settings: int) -> None:
    """Begin a transaction of stock psycopg's with these limits, in milliseconds."""
    for name, value in settings.items():
        conn.execute(f"SET LOCAL {name} = {value}")


@pytest.mark.parametrize("path", PATHS)
def test_statement_timeout(ps_lab: Lab, paths: Paths, matrix: Matrix, path: Path) -> None:
    """57014: the statement is rolled back, the connection lives, and the statement ran once."""
    stock = paths.stock(path, autocommit=False)
    on_stock(stock, statement_timeout=100)
    error = raised(stock.execute, "SELECT pg_sleep(5)")
    for autocommit in (True, False):
        conn = paths.ours(path, autocommit=autocommit)
        with limits(statement="100ms", transaction="1s"), ps_lab.round_trips() as trips:
            ours = raised_once(ps_lab, conn.execute, "SELECT pg_sleep(5)")
        assert trips.count == 1
        assert classify(ours) == classify(error)
        assert not conn.closed
        conn.rollback()
        conn.execute("SELECT 1")
    matrix.add(
        "statement_timeout (57014)",
        path,
        "statement under way",
        classify(error),
        "query_canceled",
        ours="raised",
        outcome="rolled back",
    )


@pytest.mark.parametrize("path", PATHS)
def test_cancelled(ps_lab: Lab, paths: Paths, matrix: Matrix, path: Path) -> None:
    """57014 by a cancel request: the same SQLSTATE, the same verdict."""
    state = paths.state(path, statement_timeout="30s", transaction_timeout="40s")
    for conn, text in ((paths.stock(path), "SELECT 1, pg_sleep(20)"), (paths.ours(state), "SELECT 2, pg_sleep(20)")):
        statement = Doing(raised, conn.execute, text)
        wait_until(partial(running, ps_lab, text), "statement")
        # Once is not enough on the replicas: a pooler with several hosts passes a cancel request to any of them.

        def is_told(conn: Any = conn, statement: Doing = statement) -> bool:
            conn.cancel_safe()
            return statement.done

        wait_until(is_told, "the cancel request to arrive")
        error = statement.end()
        assert not conn.closed
        matrix.add(
            "Cancelled by its user (57014)",
            path,
            "statement under way",
            classify(error),
            "query_canceled",
            ours="raised",
            outcome="rolled back",
        )


@pytest.mark.parametrize("path", PATHS)
def test_transaction_timeout(ps_lab: Lab, paths: Paths, matrix: Matrix, path: Path) -> None:
    """25P04 ends the connection, and is a limit all the same: not tried again; the connection goes on after rollback()."""
    stock = paths.stock(path, autocommit=False)
    on_stock(stock, transaction_timeout=100)
    error = raised(stock.execute, "SELECT pg_sleep(5)")
    conn = paths.ours(path, autocommit=False)
    with limits(statement="off", transaction="100ms"):
        ours = raised_once(ps_lab, conn.execute, "SELECT pg_sleep(5)")
    assert classify(ours) == classify(error)
    conn.rollback()
    assert conn.execute("SELECT 1").fetchone() == (1,)
    matrix.add(
        "transaction_timeout (25P04)",
        path,
        "first statement of a transaction under way",
        classify(error),
        "transaction_timeout",
        ours="raised",
        outcome="rolled back",
    )


@pytest.mark.parametrize("path", ["primary", "direct"])
def test_idle_in_transaction(ps_lab: Lab, paths: Paths, matrix: Matrix, path: Path) -> None:
    """25P03 while nothing was sent: the next statement is told, and not sent on another connection."""
    prepare(ps_lab)
    stock = paths.stock(path, autocommit=False)
    on_stock(stock, idle_in_transaction_session_timeout=100)
    conn = paths.ours(path, autocommit=False)
    with limits(idle_in_transaction="100ms"):
        conn.execute("INSERT INTO ledger VALUES (1)")
    wait_until_over(stock, conn)
    error, ours = raised(stock.execute, "SELECT 1"), raised(conn.execute, "INSERT INTO ledger VALUES (2)")
    assert classify(ours).kind is classify(error).kind
    conn.rollback()
    assert conn.execute("SELECT count(*) FROM ledger").fetchone() == (0,)
    matrix.add(
        "idle_in_transaction_session_timeout (25P03)",
        path,
        "idle in a transaction, then a statement",
        classify(error),
        "idle_in_transaction_timeout",
        ours="raised",
        outcome="rolled back",
    )


@pytest.mark.parametrize("path", ["primary", "direct"])
def test_lock_timeout(ps_lab: Lab, paths: Paths, matrix: Matrix, path: Path) -> None:
    """55P03: by lock_timeout, or at once by NOWAIT."""
    prepare(ps_lab)
    with psycopg.connect(ps_lab.primary.dsn()) as holder:
        holder.execute("LOCK TABLE ledger")
        stock = paths.stock(path, autocommit=False)
        error = raised(stock.execute, "LOCK TABLE ledger NOWAIT")
        conn = paths.ours(path, autocommit=False)
        with limits(lock="50ms"):
            ours = raised(conn.execute, "INSERT INTO ledger VALUES (1)")
        assert classify(ours) == classify(error)
        assert not conn.closed
        conn.rollback()
    conn.execute("INSERT INTO ledger VALUES (2)")
    conn.commit()
    assert ps_lab.sql("SELECT id FROM ledger") == [(2,)]
    matrix.add(
        "lock_timeout (55P03)",
        path,
        "first statement of a transaction under way",
        classify(error),
        "lock_not_available",
        ours="raised",
        outcome="rolled back",
    )


def test_idle_session(ps_lab: Lab, paths: Paths, matrix: Matrix) -> None:
    """57P05 ends a session that is idle: nothing is open on it, so it is replaced."""
    ps_lab.sql("ALTER ROLE app SET idle_session_timeout = 100")
    try:
        stock, conn = paths.stock("direct"), paths.ours("direct")
        wait_until_over(stock, conn)
        error = raised(stock.execute, "SELECT 1")
        assert conn.execute("SELECT 1").fetchone() == (1,)
    finally:
        ps_lab.sql("ALTER ROLE app RESET idle_session_timeout")
    matrix.add(
        "idle_session_timeout (57P05)",
        "direct",
        "idle, then an autocommit read",
        classify(error),
        "idle_session_timeout",
        ours="sent again",
        outcome="answered",
    )


def test_applications(matrix: Matrix, applications: list[Application]) -> None:
    """The framework's error, in one attempt."""
    for application in applications:
        with limits(statement="100ms"):
            error = refused_once(application, "SELECT pg_sleep(5)")
        assert isinstance(error, psycopg.errors.QueryCanceled), application.name
        assert application.look(0, "primary") == [False], application.name
    matrix.sees("A limit of the server's is reached (57014)", "the framework's error, once; nothing of the transaction is left")
