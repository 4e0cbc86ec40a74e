"""Errors of class 08 that the server passes on: a connection of its own broke (postgres_fdw, dblink), not the client's."""

import pytest

from ps_core.failures import classify
from ps_lab import Lab
from tests.adversity.applications import NUMBERS, Application, refused_once
from tests.adversity.harness import QUICK, Paths, prepare, raised
from tests.adversity.matrix import Matrix


@pytest.mark.parametrize("sqlstate", ["08006", "08001", "08003", "08004", "08000"])
def test_foreign_server(ps_lab: Lab, paths: Paths, sqlstate: str) -> None:
    """Class 08 as an ERROR of the server's tells of another connection (postgres_fdw, dblink): this one lives, and is kept."""
    prepare(ps_lab)
    ps_lab.sql(
        "CREATE OR REPLACE FUNCTION remote() RETURNS int LANGUAGE plpgsql STABLE AS $$ BEGIN"
        f" RAISE EXCEPTION 'could not connect to server \"other\"' USING ERRCODE = '{sqlstate}'; END $$"
    )
    conn = paths.ours(paths.state(policy=QUICK), autocommit=False)
    with ps_lab.round_trips() as counter:
        error = raised(conn.execute, "INSERT INTO ledger SELECT remote()")
    failure = classify(error)
    assert (failure.usable, failure.transient) == (True, False)
    assert counter.startups == 0
    assert counter.count <= 1
    assert not conn.closed
    conn.rollback()


def test_applications(ps_lab: Lab, matrix: Matrix, applications: list[Application]) -> None:
    """The error is raised as the framework's own, and the connection is kept."""
    ps_lab.sql(
        "CREATE OR REPLACE FUNCTION remote() RETURNS int LANGUAGE plpgsql STABLE AS $$ BEGIN"
        " RAISE EXCEPTION 'could not connect to server \"other\"' USING ERRCODE = '08006'; END $$"
    )
    for application in applications:
        application.add(next(NUMBERS))
        with ps_lab.round_trips() as counter:
            error = refused_once(application, "SELECT remote()")
        assert (error.sqlstate, counter.startups) == ("08006", 0), application.name
    matrix.sees("A foreign server is away (08006 from postgres_fdw)", "the error, once; the connection is kept")
