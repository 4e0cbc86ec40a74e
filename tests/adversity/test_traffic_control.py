"""PlanetScale's Traffic Control blocks a query: 53000. Synthetic: a function raises its SQLSTATE and text."""

import pytest

from ps_core.failures import classify
from ps_lab import Lab
from tests.adversity.harness import PATHS, Path, Paths, prepare, raised
from tests.adversity.matrix import Matrix


@pytest.mark.parametrize("path", PATHS)
def test_traffic_control(ps_lab: Lab, paths: Paths, matrix: Matrix, path: Path) -> None:
    """The connection lives and is not replaced; the caller is told, and may try again after a while."""
    prepare(ps_lab)
    ps_lab.sql(
        "CREATE OR REPLACE FUNCTION block() RETURNS int LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION"
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
