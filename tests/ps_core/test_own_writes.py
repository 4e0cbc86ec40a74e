"""Own writes after each way of writing and each way of reading, in both frameworks, on replicas that are behind.

`kept()` of the other tests of every way here checks what is seen: it raises where fewer rows are there than the caller has seen.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Final

import psycopg
import pytest
import sqlalchemy as sa
from django.db import connections, transaction

import ps_django
import ps_sqlalchemy
from ps_core import local_settings, use_token
from ps_core.errors import ReplicaBehind
from tests.ps_core.every_way.ways import READ, ROLE, SCHEMA, WAYS, Way

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ps_lab import Lab

    Connect = Callable[[bool], Any]
    """Returns psycopg's connection to the primary, in autocommit or not, within a block."""

SEES: Final = """
CREATE OR REPLACE FUNCTION ways.kept() RETURNS int LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF (SELECT count(*) FROM ways.item) < coalesce(nullif(current_setting('app.least', true), ''), '0')::int THEN
        RAISE EXCEPTION 'not seen';
    END IF;
    RETURN 1;
END $$
"""


@pytest.fixture(scope="module")
def behind(ps_lab: Lab, site: None) -> Iterator[None]:
    """Replicas that are behind, and stay so."""
    ps_lab.sql(SCHEMA)
    ps_lab.sql(SEES)
    ps_lab.wait_replicas_caught_up()
    ps_lab.set_replay_delay(60)
    try:
        yield
    finally:
        ps_lab.set_replay_delay(0)
        ps_lab.sql("DROP SCHEMA ways CASCADE")
        ps_lab.sql(f"DROP ROLE {ROLE}")


class Framework:
    """How a framework's user gets at the primary and the replicas."""

    def __init__(self, stack: ExitStack, lab: Lab) -> None:
        """Connect; what is to be done at the end is pushed on the stack."""

    def primary(self, autocommit: bool) -> Any:
        """Return a block with psycopg's connection to the primary; it commits."""
        raise NotImplementedError

    def replica(self, autocommit: bool) -> Any:
        """Return a block with psycopg's connection to the replicas."""
        raise NotImplementedError

    def reads(self) -> list[Callable[[], Any]]:
        """Return how the framework itself reads, going to the primary where a replica has not what was seen."""
        raise NotImplementedError


class SQLAlchemy(Framework):
    """An engine."""

    def __init__(self, stack: ExitStack, lab: Lab) -> None:
        self.engine: Any = ps_sqlalchemy.create_engine(lab.url, bouncer="write-pool", replica_bouncer="read-pool")
        stack.callback(self.engine.dispose)

    @contextmanager
    def _at(self, engine: sa.Engine, autocommit: bool) -> Iterator[Any]:
        options = {"isolation_level": "AUTOCOMMIT"} if autocommit else {}
        with engine.connect().execution_options(**options) as conn:
            driver: Any = conn.connection.driver_connection
            yield driver
            driver.commit()

    def primary(self, autocommit: bool) -> Any:
        return self._at(self.engine, autocommit)

    def replica(self, autocommit: bool) -> Any:
        return self._at(self.engine.replica, autocommit)

    def reads(self) -> list[Callable[[], Any]]:
        def session(**options: Any) -> None:
            with ps_sqlalchemy.Session(self.engine) as session:
                assert session.execute(sa.text(READ), execution_options=options).all() == [(1,)]

        def twice() -> None:
            with ps_sqlalchemy.Session(self.engine) as session:
                session.execute(sa.text("SELECT 1"))
                assert session.scalars(sa.text(READ)).all() == [1]

        return [session, lambda: session(stream_results=True), lambda: session(yield_per=10), twice]


class Django(Framework):
    """The aliases of a project."""

    @contextmanager
    def _at(self, alias: str, autocommit: bool) -> Iterator[Any]:
        with ExitStack() as stack:
            if not autocommit:
                stack.enter_context(transaction.atomic(using=alias))
            connections[alias].ensure_connection()
            conn: Any = connections[alias].connection
            if autocommit:
                stack.callback(conn.rollback)  # of a BEGIN of its own
            yield conn

    def primary(self, autocommit: bool) -> Any:
        return self._at("default", autocommit)

    def replica(self, autocommit: bool) -> Any:
        return self._at("replica", autocommit)

    def reads(self) -> list[Callable[[], Any]]:
        from django.contrib.auth.models import Group

        def cursor() -> None:
            with ps_django.reading(), connections["replica"].cursor() as cursor:
                cursor.execute(READ)
                assert cursor.fetchall() == [(1,)]

        def raw() -> None:
            with ps_django.reading():
                assert [group.pk for group in Group.objects.raw("SELECT ways.kept() AS id, '' AS name")] == [1]

        return [cursor, raw]


@pytest.fixture(params=[SQLAlchemy, Django])
def framework(request: pytest.FixtureRequest, ps_lab: Lab, behind: None) -> Iterator[Framework]:
    """Each framework."""
    with ExitStack() as stack:
        yield request.param(stack, ps_lab)


def is_stale(run: Callable[[], object]) -> bool:
    """Return whether a read did not see what it has to: nothing else may fail but what a replica refuses."""
    try:
        run()
    except ReplicaBehind:
        return False
    except (psycopg.errors.NoActiveSqlTransaction, psycopg.NotSupportedError):
        return False  # a named cursor in autocommit, AND CHAIN on replicas
    except Exception as exc:
        if "not seen" not in str(exc):
            raise
        return True
    return False


def stale_reads(framework: Framework, lab: Lab) -> list[str]:
    """Read in every way on the replicas and by the framework, and return those that did not see all there is."""
    with local_settings({"app.least": str(lab.sql("SELECT count(*) FROM ways.item")[0][0])}):
        stale = [f"read {at}" for at, read in enumerate(framework.reads()) if is_stale(read)]
        for way in WAYS:
            for autocommit in (True, False):

                def read(way: Way = way, autocommit: bool = autocommit) -> None:
                    assert way.read is not None
                    with framework.replica(autocommit) as conn:
                        way.run(conn, str, way.read)

                if way.read is not None and is_stale(read):
                    stale.append(f"{way.name}, autocommit={autocommit}")
    return stale


@pytest.mark.parametrize("autocommit", [True, False])
@pytest.mark.parametrize("way", [way for way in WAYS if way.write], ids=lambda way: way.name)
def test_own_writes(framework: Framework, ps_lab: Lab, way: Way, autocommit: bool) -> None:
    """No read misses a write of its own, however either travelled."""
    if way.name == "named cursor" and autocommit:
        pytest.skip("needs a transaction")
    before = ps_lab.sql("SELECT count(*) FROM ways.item")[0][0]
    with use_token(None):
        with framework.primary(autocommit) as conn:
            way.run(conn, str, way.write or "")
        assert ps_lab.sql("SELECT count(*) FROM ways.item")[0][0] > before
        assert stale_reads(framework, ps_lab) == []


@pytest.mark.parametrize("autocommit", [True, False])
@pytest.mark.parametrize("way", [way for way in WAYS if way.read], ids=lambda way: way.name)
def test_reads_never_go_back(framework: Framework, ps_lab: Lab, way: Way, autocommit: bool) -> None:
    """What was read on the primary, in whatever way, is seen in every later read."""
    if way.name == "named cursor" and autocommit:
        pytest.skip("needs a transaction")
    ps_lab.sql("INSERT INTO ways.item DEFAULT VALUES")
    with use_token(None):
        with framework.primary(autocommit) as conn:
            way.run(conn, str, way.read or "")
        assert stale_reads(framework, ps_lab) == []
