"""PlanetScale's cluster read-only mode (disk full). Synthetic: a trigger raises its text; no more is documented."""

import pytest

from ps_core.context import use_token
from ps_core.failures import classify
from ps_lab import Lab
from tests.adversity.applications import Application, refused_once, wait_for_replicas
from tests.adversity.harness import Path, Paths, prepare, raised
from tests.adversity.matrix import Matrix


@pytest.mark.parametrize("path", ["primary", "direct"])
@pytest.mark.parametrize("sqlstate", ["25006", "P0001", "53100"])
def test_read_only_cluster(ps_lab: Lab, paths: Paths, matrix: Matrix, path: Path, sqlstate: str) -> None:
    """It is neither a failover nor a demotion: raised, never tried again, whatever SQLSTATE comes with it."""
    prepare(ps_lab)
    ps_lab.sql(
        "CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" RAISE EXCEPTION 'invalid statement because cluster is read-only' USING ERRCODE = '{sqlstate}'; END $$"
    )
    ps_lab.sql("CREATE TRIGGER refuse BEFORE INSERT ON ledger FOR EACH ROW EXECUTE FUNCTION refuse()")
    for autocommit in (True, False):
        for conn in (paths.stock(path, autocommit=autocommit), paths.ours(path, autocommit=autocommit)):
            error = raised(conn.execute, "INSERT INTO ledger VALUES (1)")
            assert not conn.closed
            conn.rollback()
            matrix.add(
                "The cluster is read-only (synthetic)",
                path,
                "autocommit write under way" if autocommit else "first statement of a transaction under way",
                classify(error),
                "cluster_read_only",
                ours="raised",
                outcome="rolled back",
            )
    assert ps_lab.sql("SELECT count(*) FROM ledger") == [(0,)]


def test_applications(ps_lab: Lab, matrix: Matrix, applications: list[Application]) -> None:
    """Writes are refused in PlanetScale's words, and not tried again; reads go on."""
    ps_lab.sql(
        "CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " RAISE EXCEPTION 'invalid statement because cluster is read-only' USING ERRCODE = '25006'; END $$"
    )
    ps_lab.sql("CREATE TRIGGER refuse BEFORE INSERT ON bank_transfer FOR EACH ROW EXECUTE FUNCTION refuse()")
    wait_for_replicas(applications)
    for application in applications:
        assert "cluster is read-only" in str(refused_once(application)), application.name
        with use_token(None):  # of somebody else: replicas may not have yet what this one has seen
            assert application.look(0) == [True], application.name
    ps_lab.sql("DROP TABLE bank_transfer")
    matrix.sees("The cluster is read-only (disk full)", "a write raises its words, once; reads are answered", synthetic=True)
