"""PlanetScale's Traffic Control blocks a query: 53000. Synthetic: a function raises its SQLSTATE and text."""

from functools import partial

import pytest

from ps_core.failures import classify
from ps_lab import Lab
from tests.adversity.applications import NUMBERS, Application, refused
from tests.adversity.harness import PATHS, Path, Paths, prepare, raised
from tests.adversity.matrix import Matrix


@pytest.mark.parametrize("path", PATHS)
def test_traffic_control(ps_lab: Lab, paths: Paths, matrix: Matrix, path: Path) -> None:
    """The connection lives and is not replaced; the caller is told, and may try again after a while."""
    prepare(ps_lab)
    ps_lab.sql(
        "CREATE OR REPLACE FUNCTION block() RETURNS int LANGUAGE plpgsql STABLE AS $$ BEGIN RAISE EXCEPTION"
        " '[PGINSIGHTS] Traffic Control: query exceeded budget ''exports'' (cpu share 20%%)' USING ERRCODE = '53000'; END $$"
    )
    ps_lab.wait_replicas_caught_up()
    for autocommit in (True, False):
        for conn in (paths.stock(path, autocommit=autocommit), paths.ours(path, autocommit=autocommit)):
            before = conn.pgconn
            error = raised(conn.execute, "SELECT block()")
            assert conn.pgconn is before
            assert not conn.closed
            conn.rollback()
            matrix.add(
                "Traffic Control blocks a query (synthetic)",
                path,
                "autocommit read under way" if autocommit else "first statement of a transaction under way",
                classify(error),
                "traffic_control",
                ours="raised",
                outcome="rolled back",
            )


def test_applications(ps_lab: Lab, matrix: Matrix, applications: list[Application]) -> None:
    """A read is refused in PlanetScale's words; a transaction waits for the budget, and is committed once."""
    ps_lab.sql(
        "CREATE OR REPLACE FUNCTION block(lasts boolean) RETURNS int LANGUAGE plpgsql STABLE AS $$ BEGIN"
        " IF lasts THEN RAISE EXCEPTION"
        " '[PGINSIGHTS] Traffic Control: query exceeded budget ''exports'' (cpu share 20%%)' USING ERRCODE = '53000'; END IF;"
        " RETURN 1; END $$"
    )
    ps_lab.sql("CREATE OR REPLACE VIEW blocked AS SELECT block(true)")
    ps_lab.wait_replicas_caught_up()
    for application in applications:
        error = refused(application, partial(application.execute, "SELECT * FROM blocked"))
        assert "Traffic Control" in str(error), application.name
    for application in applications:
        calls: list[int] = []

        def block_once(calls: list[int] = calls) -> None:
            calls.append(1)
            ps_lab.sql(f"CREATE OR REPLACE VIEW blocked AS SELECT block({len(calls) == 1})")

        application.add(number := next(NUMBERS), "SELECT * FROM blocked", each=block_once)
        assert len(calls) == 2, application.name
        assert application.look(number, "primary") == [False], application.name
    ps_lab.sql("DROP VIEW blocked")
    matrix.sees(
        "Traffic Control blocks a query (53000)",
        "a read raises its words at once; run_transaction runs again until block or deadline are over (30 s without one)",
        synthetic=True,
    )
