"""What users of other routers, wrappers and retry helpers rely on."""

import threading
from collections.abc import Iterator

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy import text

from ps_core import use_token
from ps_lab import Lab
from ps_sqlalchemy import Engine, Session, run_transaction, using_primary, using_replica
from tests.ps_sqlalchemy.conftest import SERVED_BY_REPLICA, Item


@pytest.fixture(autouse=True)
def nothing_seen() -> Iterator[None]:
    """Begin each test without a token."""
    with use_token(None):
        yield


def test_pins_of_interleaved_threads(engine: Engine) -> None:
    """Two threads that interleave pins do not see each other's (django-multidb-router)."""
    barrier = threading.Barrier(2, timeout=20)
    found = {}

    def work(name: str, block: object) -> None:
        with block, Session(engine) as session:  # type: ignore[attr-defined]
            for turn in range(3):
                barrier.wait()
                found[name, turn] = session.scalar(SERVED_BY_REPLICA)

    threads = [threading.Thread(target=work, args=pair) for pair in (("pinned", using_primary()), ("free", using_replica()))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert {name: {found[name, turn] for turn in range(3)} for name in ("pinned", "free")} == {"pinned": {False}, "free": {True}}


def test_lost_transaction_never_goes_on(ps_lab: Lab, engine: Engine, items: type[Item]) -> None:
    """A connection that is lost inside a transaction never goes on with row 2 without row 1 (GitLab documents that leak)."""
    with Session(engine) as session:
        session.add(items(id=1, note="one"))
        session.flush()
        pid = session.scalar(text("SELECT pg_backend_pid()"))
        ps_lab.sql("SELECT pg_terminate_backend(%s)", pid)
        with pytest.raises(sa.exc.OperationalError) as failure:
            session.execute(sa.insert(items).values(id=2, note="two"))
        assert failure.value.connection_invalidated
        with pytest.raises(sa.exc.PendingRollbackError):
            session.execute(sa.insert(items).values(id=2, note="two"))
        session.rollback()
        session.add(items(id=3, note="three"))
        session.commit()
    assert ps_lab.sql("SELECT id FROM sa_item") == [(3,)]


def test_pin_outlives_a_failed_write(ps_lab: Lab, engine: Engine, items: type[Item]) -> None:
    """A write that failed keeps its transaction on the primary (Rails writes its marker also when the block raises)."""
    ps_lab.sql("INSERT INTO sa_item VALUES (1, 'a')")
    with Session(engine) as session:
        assert session.scalar(SERVED_BY_REPLICA) is True
        savepoint = session.begin_nested()
        with pytest.raises(sa.exc.IntegrityError):
            session.execute(sa.insert(items).values(id=1, note="a"))
        savepoint.rollback()
        assert session.scalar(SERVED_BY_REPLICA) is False
        session.rollback()
        assert session.scalar(SERVED_BY_REPLICA) is True


def test_errors_keep_their_class(engine: Engine, items: type[Item]) -> None:
    """Errors of the server keep their class, their driver's class and its diagnostics (the AWS wrapper fails this)."""
    with engine.connect() as conn:
        autocommit = conn.execution_options(isolation_level="AUTOCOMMIT")
        autocommit.execute(sa.insert(items).values(id=1, note="a"))
        for _ in range(2):
            with pytest.raises(sa.exc.IntegrityError) as failure:
                autocommit.execute(sa.insert(items).values(id=1, note="a"))
            assert isinstance(failure.value.orig, psycopg.errors.UniqueViolation)
            assert failure.value.orig.diag.constraint_name == "sa_item_pkey"
            assert not failure.value.connection_invalidated


def test_session_state_is_carried_over(ps_lab: Lab, engine: Engine) -> None:
    """Autocommit and isolation level hold on the connection that replaces a lost one, and are reset on return to the pool."""
    for level, shown in (("AUTOCOMMIT", "read committed"), ("SERIALIZABLE", "serializable")):
        with engine.connect().execution_options(isolation_level=level) as conn:
            for _ in range(2):
                assert conn.scalar(text("SHOW transaction_isolation")) == shown
                conn.rollback()
                assert conn.connection.driver_connection.autocommit is (level == "AUTOCOMMIT")  # type: ignore[union-attr]
                ps_lab.edge.cut("primary")
    with engine.connect() as conn:
        assert conn.scalar(text("SHOW transaction_isolation")) == "read committed"


def test_temporary_state_of_a_block_is_not_kept(engine: Engine) -> None:
    """A connection that was returned in the middle of a transaction, or in a failed one, is clean for the next (psycopg_pool)."""
    for broken in (False, True):
        conn = engine.connect()
        conn.execute(text("SET LOCAL work_mem = '7MB'"))
        if broken:
            with pytest.raises(sa.exc.ProgrammingError):
                conn.execute(text("SELECT nothing"))
        conn.close()
        with engine.connect() as again:
            assert again.scalar(text("SHOW work_mem")) != "7MB"


def test_unknown_failures_are_raised_at_once(engine: Engine, items: type[Item]) -> None:
    """What no other try would mend is raised after one call, by run_transaction too."""
    calls = []

    def work(conn: sa.Connection) -> None:
        calls.append(1)
        conn.execute(text("SELECT 1 / 0"))

    with pytest.raises(sa.exc.DataError):
        run_transaction(engine, work)
    assert len(calls) == 1
