"""What a replica replays conflicts with what is read there: 40001, as an error or as the end of the connection."""

from collections.abc import Iterator
from functools import partial

import psycopg
import pytest
import sqlalchemy as sa
from psycopg import IsolationLevel

import ps_sqlalchemy
from ps_core.context import limits
from ps_core.failures import classify
from ps_lab import Lab
from ps_lab.processes import wait_until
from tests.adversity.applications import BOUNCERS, Application, renewing
from tests.adversity.harness import Doing, Paths, raised, running, wait_until_over
from tests.adversity.matrix import Matrix


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


def wait_for_reads(lab: Lab, number: int, since: object = None) -> None:
    """Wait until so many reads are under way on the replicas that began after a time of the lab's."""
    asked = (
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
        " AND query_start > coalesce(%s::timestamptz, '-infinity')"
    )
    wait_until(lambda: sum(lab.sql(asked, since, server=each.name)[0][0] for each in lab.replicas) == number, f"{number} reads")


def conflict(lab: Lab) -> object:
    """Let the replicas replay a lock that conflicts with every read of `victim`. Return when that was."""
    when = lab.sql("SELECT clock_timestamp()")[0][0]
    lab.sql("DO $$ BEGIN LOCK TABLE victim IN ACCESS EXCLUSIVE MODE; END $$")
    return when


@pytest.mark.parametrize("autocommit", [True, False])
def test_statement_under_way(impatient: Lab, paths: Paths, matrix: Matrix, autocommit: bool) -> None:
    """The statement is cancelled, the connection lives; what replay has waited for is through, and the read is sent again."""
    stock, ours = paths.stock("replica", autocommit=autocommit), paths.ours("replica", autocommit=autocommit)
    query = "SELECT *, pg_sleep(1.5) FROM victim"
    work, error = Doing(ours.execute, query), Doing(raised, stock.execute, query)
    wait_for_reads(impatient, 2)
    conflict(impatient)
    matrix.add(
        "Replay conflicts with a statement (40001)",
        "replica",
        "autocommit read under way" if autocommit else "first read under way",
        classify(error.end()),
        "recovery_conflict",
        ours="sent again",
        outcome="answered",
    )
    assert work.end().fetchone()[0] == 1
    assert not running(impatient, "pg_sleep(1.5)")


def test_again_and_again(impatient: Lab, paths: Paths, matrix: Matrix) -> None:
    """A read that is cancelled twice is raised: frameworks ask the primary then, and psycopg alone has no other endpoint."""
    ours = paths.ours("replica")
    work = Doing(raised, ours.execute, "SELECT *, pg_sleep(1.5) FROM victim")
    wait_for_reads(impatient, 1)
    since = conflict(impatient)
    wait_for_reads(impatient, 1, since)
    conflict(impatient)
    matrix.add(
        "Replay conflicts with a statement (40001)",
        "replica",
        "a second time",
        classify(work.end()),
        "recovery_conflict",
        ours="raised",
        outcome="no answer",
    )
    assert ours.execute("SELECT 2").fetchone() == (2,)


def test_snapshot(impatient: Lab, paths: Paths, matrix: Matrix) -> None:
    """What reads at REPEATABLE READ has a snapshot, with which no other statement can go on."""
    ours = paths.ours("replica", autocommit=False)
    ours.set_isolation_level(IsolationLevel.REPEATABLE_READ)
    work = Doing(raised, ours.execute, "SELECT *, pg_sleep(1.5) FROM victim")
    wait_for_reads(impatient, 1)
    conflict(impatient)
    matrix.add(
        "Replay conflicts with a statement (40001)",
        "replica",
        "under way at REPEATABLE READ",
        classify(work.end()),
        "recovery_conflict",
        ours="raised",
        outcome="no answer",
    )
    ours.rollback()
    assert ours.execute("SELECT 2").fetchone() == (2,)


def test_core(impatient: Lab) -> None:
    """A Core connection to the replicas goes on with the primary, READ ONLY, where replay has cancelled its read twice."""
    engine = ps_sqlalchemy.create_engine(impatient.url, **BOUNCERS)
    where = "CASE WHEN pg_is_in_recovery() THEN pg_sleep(1.5) END IS NULL"

    def read() -> object:
        with engine.replica.connect() as conn:  # type: ignore[union-attr]
            return conn.execute(sa.text(f"SELECT pg_is_in_recovery() FROM victim WHERE {where}")).scalar()

    work = Doing(read)
    wait_for_reads(impatient, 1)
    since = conflict(impatient)
    wait_for_reads(impatient, 1, since)
    conflict(impatient)
    assert work.end() is False
    engine.dispose()


def test_snapshot_of_a_session(impatient: Lab) -> None:
    """A session does not go on with another snapshot on the primary, either."""
    engine = ps_sqlalchemy.create_engine(impatient.url, **BOUNCERS)

    def read() -> psycopg.Error:
        with ps_sqlalchemy.Session(engine, read_only=True) as session:
            session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
            with pytest.raises(sa.exc.OperationalError) as caught:
                session.execute(sa.text("SELECT *, pg_sleep(1.5) FROM victim"))
            assert isinstance(caught.value.orig, psycopg.Error)
            return caught.value.orig

    try:
        work = Doing(read)
        wait_for_reads(impatient, 1)
        conflict(impatient)
        assert classify(work.end()).rule == "recovery_conflict"
    finally:
        engine.dispose()


def test_idle_in_transaction(impatient: Lab, paths: Paths, matrix: Matrix) -> None:
    """A real transaction that is idle is ended together with its connection: FATAL 40001."""
    conns = [paths.stock("replica", autocommit=False), paths.ours("replica", autocommit=False)]
    for conn in conns:
        conn.set_isolation_level(IsolationLevel.REPEATABLE_READ)
        conn.execute("SELECT * FROM victim")
    impatient.sql("TRUNCATE victim")
    wait_until_over(*conns)
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


def test_applications(impatient: Lab, matrix: Matrix, applications: list[Application]) -> None:
    """Nobody notices: a replica answers at the second try, or else the primary."""
    # Longer than it takes all of them to begin, and no longer where nothing conflicts.
    query = "SELECT pg_is_in_recovery(), pg_sleep(CASE WHEN pg_is_in_recovery() THEN 4 ELSE 0 END) FROM victim"

    def read(application: Application) -> list[bool]:
        with limits(statement="20s", transaction="30s"):
            return application.execute(query)

    for replays, by_replica in ((1, True), (2, False)):
        works = [Doing(renewing, application, partial(read, application)) for application in applications]
        wait_for_reads(impatient, 4)
        since = conflict(impatient)
        if replays == 2:
            wait_for_reads(impatient, 4, since)
            conflict(impatient)
        for work, application in zip(works, applications, strict=True):
            assert work.end() == [by_replica], application.name
            assert application.look(0) == [True], application.name
    matrix.sees(
        "Replay conflicts with a read (40001)",
        "nothing but that it takes longer: it is sent again; where replay cancels that, too, the primary answers",
    )
