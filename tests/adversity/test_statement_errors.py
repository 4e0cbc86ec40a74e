"""Errors of the statement's own: raised as they come, once, on a connection that stays as it is."""

import psycopg
import pytest

from ps_core.failures import classify
from ps_lab import Lab
from tests.adversity.applications import NUMBERS, Application, refused_once
from tests.adversity.harness import PATHS, Path, Paths, raised
from tests.adversity.matrix import Matrix

_RAISE = "DO $$ BEGIN RAISE 'no room' USING ERRCODE = '{}'; END $$"
STATEMENTS = {
    "syntax": ("SELEC 1", "statement_error"),
    "no such table": ("SELECT * FROM no_such_table", "statement_error"),
    "division by zero": ("SELECT 1/0", "statement_error"),
    # As many locks as the server has room for.
    "out of memory (53200)": ("SELECT count(pg_advisory_xact_lock_shared(i)) FROM generate_series(1, 200000) i", "out_of_memory"),
    "disk full (53100), raised by a function": (_RAISE.format("53100"), "disk_full"),
    "insufficient resources (53000), raised by a function": (_RAISE.format("53000"), "insufficient_resources"),
    # Texts that the tables know, in an error that is not about the connection.
    "a text that quotes": ("SELECT 'server conn crashed? query_wait_timeout'::int", "statement_error"),
}
# On a replica an advisory lock is refused before it is taken: it would be another server's.
CASES = [(path, name) for path in PATHS for name in STATEMENTS if path != "replica" or "advisory" not in STATEMENTS[name][0]]


@pytest.mark.parametrize(("path", "name"), CASES)
def test_statement_error(ps_lab: Lab, paths: Paths, matrix: Matrix, path: Path, name: str) -> None:
    """The connection is not replaced, and after a rollback it works."""
    statement, rule = STATEMENTS[name]
    stock = raised(paths.stock(path).execute, statement)
    for autocommit in (True, False):
        conn = paths.ours(path, autocommit=autocommit)
        before = conn.pgconn
        error = raised(conn.execute, statement)
        assert (type(error), str(error)) == (type(stock), str(stock))
        conn.rollback()
        assert conn.execute("SELECT 1").fetchone() == (1,)
        assert conn.pgconn is before
    matrix.add(
        f"Statement error: {name}", path, "statement under way", classify(stock), rule, ours="raised", outcome="rolled back"
    )


def test_applications(ps_lab: Lab, matrix: Matrix, applications: list[Application]) -> None:
    """The framework's error, in one attempt, on the connection that was there."""
    for application in applications:
        application.add(next(NUMBERS))
        with ps_lab.round_trips() as counter:
            error = refused_once(application, "SELECT 1/0")
        assert isinstance(error, psycopg.errors.DivisionByZero), application.name
        assert counter.startups == 0, application.name
    matrix.sees("An error of the statement's own", "the framework's error, once")
