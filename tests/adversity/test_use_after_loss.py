"""What stock psycopg says of a connection that is lost already, or whose pipeline was interrupted."""

import psycopg
import pytest

from ps_core.context import use_token
from ps_core.failures import classify
from ps_lab import Lab
from tests.adversity.applications import NUMBERS, Application, wait_for_replicas
from tests.adversity.harness import PATHS, Path, Paths, raised
from tests.adversity.matrix import Matrix


@pytest.mark.parametrize("path", PATHS)
def test_use_after_loss(ps_lab: Lab, paths: Paths, matrix: Matrix, path: Path) -> None:
    """Stock psycopg's connection stays lost; ours goes on where nothing was open on it."""
    stock, ours = paths.stock(path), paths.ours(path)
    ps_lab.edge.cut(path)
    raised(stock.execute, "SELECT 1")
    error = raised(stock.execute, "SELECT 1")
    assert ours.execute("SELECT 1").fetchone() == (1,)
    matrix.add(
        "Use after a loss",
        path,
        "idle, then an autocommit read",
        classify(error),
        "connection_closed",
        ours="sent again",
        outcome="answered",
    )


def test_wedged_pipeline(ps_lab: Lab, paths: Paths, matrix: Matrix) -> None:
    """A FATAL within stock psycopg's pipeline leaves a connection that looks alive and never answers again."""
    stock = paths.stock(cursor_factory=psycopg.Cursor)

    def work() -> None:
        with stock.pipeline() as pipeline:
            stock.execute("SELECT pg_sleep(0)")
            pipeline.sync()
            for _ in range(3):
                stock.execute("SELECT pg_terminate_backend(pg_backend_pid())")
            pipeline.sync()

    error = raised(work)
    matrix.add(
        "A FATAL within a pipeline",
        "primary",
        "statement under way",
        classify(error),
        ("pipeline_wedged", "admin_shutdown", "connection_lost", "pooler_server_crashed", "results_hidden_by_driver"),
        ours="raised",
        outcome="rolled back",
    )


def test_applications(ps_lab: Lab, matrix: Matrix, applications: list[Application]) -> None:
    """Connections that were lost in the pool are replaced when they are next used."""
    wait_for_replicas(applications)
    for application in applications:
        application.look(0, "primary")
    ps_lab.edge.cut()
    for application in applications:
        with use_token(None):  # each is somebody else: replicas may not have yet what the one before has written
            assert application.look(0) == [True], application.name
            application.add(number := next(NUMBERS))
            assert application.look(number, "primary") == [False], application.name
    matrix.sees("Idle connections are lost", "nothing")
