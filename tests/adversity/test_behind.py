"""A replica has not replayed what the caller has seen: 22023 with the guard's text, and the read did not run."""

import pytest

from ps_core.context import use_token
from ps_core.failures import classify
from ps_lab import Lab
from tests.adversity.applications import NUMBERS, Application, wait_for_replicas
from tests.adversity.harness import Paths, prepare, raised
from tests.adversity.matrix import Matrix


@pytest.mark.parametrize("autocommit", [True, False])
def test_behind(ps_lab: Lab, paths: Paths, matrix: Matrix, autocommit: bool) -> None:
    """A caller who has written is told that the replica is behind, and reads there again when it has caught up."""
    prepare(ps_lab)
    writer, reader = paths.ours("primary"), paths.ours("replica", autocommit=autocommit)
    stock = paths.stock("replica")
    ps_lab.set_replay_delay(30)
    try:
        with use_token(None) as tracker:
            writer.execute("INSERT INTO ledger VALUES (1)")
            token = tracker.token
            error = raised(reader.execute, "SELECT id FROM ledger")
            assert not reader.closed
            reader.rollback()
        assert stock.execute("SELECT id FROM ledger").fetchall() == []
        with use_token(None):
            assert reader.execute("SELECT id FROM ledger").fetchall() == []
            reader.rollback()
    finally:
        ps_lab.set_replay_delay(0)
    with use_token(token):
        assert reader.execute("SELECT id FROM ledger").fetchall() == [(1,)]
    matrix.add(
        "The replica is behind what the caller has seen (22023)",
        "replica",
        "autocommit read under way" if autocommit else "first statement of a transaction under way",
        classify(error),
        "replica_behind",
        ours="raised",
        outcome="no answer: to be read on the primary",
    )


def test_applications(ps_lab: Lab, matrix: Matrix, applications: list[Application]) -> None:
    """Writers read on the primary for as long as the replicas are late; others read what the replicas have."""
    wait_for_replicas(applications)
    ps_lab.set_replay_delay(30)
    try:
        for application in applications:
            with use_token(None):
                application.add(number := next(NUMBERS))
                assert application.look(number) == [False], application.name
            with use_token(None):
                assert application.look(number) == [], application.name
    finally:
        ps_lab.set_replay_delay(0)
    matrix.sees("A replica is behind what the caller has seen", "nothing: the read is answered by the primary")
