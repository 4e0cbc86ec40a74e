"""Two transactions want the same: 40001 and 40P01. The caller's to run again, as a whole."""

import threading
from functools import partial

import psycopg
import pytest
from psycopg import IsolationLevel

from ps_core.failures import classify
from ps_lab import Lab
from tests.adversity.applications import NUMBERS, Application, renewing
from tests.adversity.harness import Doing, Path, Paths, prepare, raised
from tests.adversity.matrix import Matrix


@pytest.mark.parametrize("path", ["primary", "direct"])
def test_serialization_failure(ps_lab: Lab, paths: Paths, matrix: Matrix, path: Path) -> None:
    """40001: raised, the connection lives, nothing of the transaction is left."""
    prepare(ps_lab)
    ps_lab.sql("INSERT INTO ledger VALUES (1)")
    for conn in (paths.stock(path, autocommit=False), paths.ours(path, autocommit=False)):
        conn.set_isolation_level(IsolationLevel.REPEATABLE_READ)
        conn.execute("SELECT * FROM ledger")
        ps_lab.sql("UPDATE ledger SET id = id")
        error = raised(conn.execute, "UPDATE ledger SET id = 2")
        assert not conn.closed
        conn.rollback()
        matrix.add(
            "Serialization failure (40001)",
            path,
            "later statement of a transaction under way",
            classify(error),
            "serialization_failure",
            ours="raised",
            outcome="rolled back",
        )
    assert ps_lab.sql("SELECT id FROM ledger") == [(1,)]


@pytest.mark.parametrize("path", ["primary", "direct"])
def test_deadlock(ps_lab: Lab, paths: Paths, matrix: Matrix, path: Path) -> None:
    """40P01: the one that is chosen is told, the other one goes on."""
    prepare(ps_lab)
    ps_lab.sql("INSERT INTO ledger VALUES (1), (2)")
    ps_lab.sql("ALTER DATABASE postgres SET deadlock_timeout = '50ms'")
    try:
        for ours in (False, True):
            first, second = (
                paths.ours(path, autocommit=False) if ours else paths.stock(path, autocommit=False) for _ in range(2)
            )
            first.execute("UPDATE ledger SET held = NULL WHERE id = 1")
            second.execute("UPDATE ledger SET held = NULL WHERE id = 2")
            works = [
                Doing(conn.execute, f"UPDATE ledger SET held = NULL WHERE id = {other}")
                for conn, other in ((first, 2), (second, 1))
            ]
            errors = []
            for work, conn in zip(works, (first, second), strict=True):
                try:
                    work.end()
                except psycopg.Error as exc:
                    errors.append(exc)
                    assert not conn.closed
                conn.rollback()
            (error,) = errors
            matrix.add(
                "Deadlock (40P01)",
                path,
                "later statement of a transaction under way",
                classify(error),
                "deadlock",
                ours="raised",
                outcome="rolled back",
            )
    finally:
        ps_lab.sql("ALTER DATABASE postgres RESET deadlock_timeout")


def test_applications_of_rows_that_change(ps_lab: Lab, matrix: Matrix, applications: list[Application]) -> None:
    """A transaction that loses is run again as a whole."""
    prepare(ps_lab)
    ps_lab.sql("INSERT INTO ledger VALUES (1)")
    for application in applications:
        calls: list[int] = []

        def change(calls: list[int] = calls) -> None:
            calls.append(1)
            if len(calls) == 1:
                ps_lab.sql("UPDATE ledger SET id = id")

        application.add(
            number := next(NUMBERS),
            "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ",
            "SELECT * FROM ledger",
            "UPDATE ledger SET held = NULL",
            each=change,
        )
        assert len(calls) == 2, application.name
        assert application.look(number, "primary") == [False], application.name
    matrix.sees("Serialization failure (40001)", "nothing: run_transaction runs it again; its writes are there once")


def test_applications_who_wait_for_each_other(ps_lab: Lab, matrix: Matrix, applications: list[Application]) -> None:
    """Two transactions that wait for each other are both committed, one of them in its second run."""
    prepare(ps_lab)
    ps_lab.sql("INSERT INTO ledger VALUES (1), (2)")
    ps_lab.sql("ALTER DATABASE postgres SET deadlock_timeout = '50ms'")
    update = "UPDATE ledger SET held = NULL WHERE id ="
    try:
        for pair in (applications[:2], applications[2:]):
            both = threading.Barrier(2)
            calls: list[str] = []

            def meet(name: str, both: threading.Barrier = both, calls: list[str] = calls) -> None:
                calls.append(name)
                if calls.count(name) == 1:
                    both.wait(20)

            numbers = [next(NUMBERS), next(NUMBERS)]
            works = [
                Doing(
                    renewing,
                    application,
                    partial(
                        application.add, number, f"{update} {one}", f"{update} {other}", each=partial(meet, application.name)
                    ),
                )
                for application, number, one, other in zip(pair, numbers, (1, 2), (2, 1), strict=True)
            ]
            for work in works:
                work.end()
            assert len(calls) == 3, calls
            assert [applications[0].look(number, "primary") for number in numbers] == [[False]] * 2
    finally:
        ps_lab.sql("ALTER DATABASE postgres RESET deadlock_timeout")
    matrix.sees("Deadlock (40P01)", "nothing: run_transaction runs again the one that was chosen; both are committed, once")
