"""What a replica replays conflicts with what is read there: 40001, as an error or as the end of the connection."""

from collections.abc import Iterator
from functools import partial

import pytest
from psycopg import IsolationLevel

from ps_core.failures import classify
from ps_lab import Lab
from ps_lab.processes import wait_until
from tests.adversity.harness import Doing, Paths, raised, running
from tests.adversity.matrix import Matrix
from tests.adversity.users import Application, refused, renewing


@pytest.fixture
def impatient(ps_lab: Lab) -> Iterator[Lab]:
    """The lab with replicas that do not wait for their readers, and a table `victim`."""
    ps_lab.sql("DROP TABLE IF EXISTS victim")
    ps_lab.sql("CREATE TABLE victim AS SELECT 1 AS id")
    ps_lab.wait_replicas_caught_up()
    for replica in ps_lab.replicas:
        replica.sql("ALTER SYSTEM SET max_standby_streaming_delay = '10ms'")
        replica.sql("SELECT pg_reload_conf()")
    yield ps_lab
    for replica in ps_lab.replicas:
        replica.sql("ALTER SYSTEM RESET max_standby_streaming_delay")
        replica.sql("SELECT pg_reload_conf()")
    ps_lab.sql("DROP TABLE IF EXISTS victim")


@pytest.mark.parametrize("autocommit", [True, False])
def test_statement_under_way(impatient: Lab, paths: Paths, matrix: Matrix, autocommit: bool) -> None:
    """The statement is cancelled, the connection lives; the caller is told, since the conflict may come again."""
    stock, ours = paths.stock("replica", autocommit=autocommit), paths.ours("replica", autocommit=autocommit)
    query = "SELECT *, pg_sleep(1.5) FROM victim"
    works = [Doing(raised, conn.execute, query) for conn in (stock, ours)]
    asked = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
    wait_until(lambda: sum(impatient.sql(asked, server=replica.name)[0][0] for replica in impatient.replicas) == 2, "both reads")
    impatient.sql("TRUNCATE victim")
    errors = [work.end() for work in works]
    for conn, error in zip((stock, ours), errors, strict=True):
        matrix.add(
            "Replay conflicts with a statement (40001)",
            "replica",
            "autocommit read under way" if autocommit else "first statement of a transaction under way",
            classify(error),
            "serialization_failure",
            ours="raised",
            outcome="no answer",
        )
        conn.rollback()
        conn.execute("SELECT 1")
    assert not running(impatient, "pg_sleep(1.5)")


def test_idle_in_transaction(impatient: Lab, paths: Paths, matrix: Matrix) -> None:
    """A real transaction that is idle is ended together with its connection: FATAL 40001."""
    conns = [paths.stock("replica", autocommit=False), paths.ours("replica", autocommit=False)]
    for conn in conns:
        conn.set_isolation_level(IsolationLevel.REPEATABLE_READ)
        conn.execute("SELECT * FROM victim")
    impatient.sql("TRUNCATE victim")
    position = impatient.sql("SELECT pg_current_wal_flush_lsn()::text")[0][0]
    wait_until(lambda: all(replica.has_replayed(position) for replica in impatient.replicas), "replay")
    for conn in conns:
        error = raised(conn.execute, "SELECT 2")
        matrix.add(
            "Replay conflicts with an idle transaction (40001, FATAL)",
            "replica",
            "idle in a transaction, then a statement",
            classify(error),
            "recovery_conflict_fatal",
            ours="raised",
            outcome="no answer",
        )
    conns[1].rollback()
    assert conns[1].execute("SELECT 2").fetchone() == (2,)


def test_users(impatient: Lab, matrix: Matrix, applications: list[Application]) -> None:
    """Whose statement is cancelled is told, and may ask again at once."""
    query = "SELECT id, pg_sleep(1.5) FROM victim"
    works = [
        Doing(renewing, application, partial(refused, application, partial(application.execute, query)))
        for application in applications
    ]
    asked = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
    wait_until(lambda: sum(impatient.sql(asked, server=replica.name)[0][0] for replica in impatient.replicas) == 4, "all reads")
    impatient.sql("TRUNCATE victim")
    for work, application in zip(works, applications, strict=True):
        assert work.end().sqlstate == "40001", application.name
        assert application.look(0) == [True], application.name
    matrix.sees("Replay conflicts with a read (40001)", "an error that says so, at once; the next read is answered")
