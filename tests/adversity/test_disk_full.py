"""The disk is nearly full, and PlanetScale makes the cluster read-only. Synthetic: a trigger, and the edge, say its text."""

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from django.db import DatabaseError, connections, transaction
from sqlalchemy import text

import ps_django.transaction
import ps_sqlalchemy
from ps_core.context import deadline
from ps_core.failures import classify
from ps_lab import Lab
from tests.adversity.applications import BOUNCERS
from tests.adversity.harness import prepare
from tests.adversity.matrix import Matrix

FAULT = "The cluster is read-only, its disk is nearly full"
LINE = "writes fail at once with the server's text, and are not tried again; reads go on"
TEXT = "invalid statement because cluster is read-only"
WRITE = "INSERT INTO ledger VALUES (1)"


@pytest.fixture(params=["25006", "53100", "P0001"])
def read_only(request: pytest.FixtureRequest, ps_lab: Lab) -> Callable[[], None]:
    """The mode, with each SQLSTATE that may come with it: none is documented. What is returned ends it."""
    prepare(ps_lab)
    ps_lab.sql(
        "CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN RAISE EXCEPTION '{TEXT}' USING ERRCODE = '{request.param}'; END $$"
    )
    ps_lab.sql("CREATE TRIGGER refuse BEFORE INSERT ON ledger FOR EACH STATEMENT EXECUTE FUNCTION refuse()")
    return lambda: void(ps_lab.sql("DROP TRIGGER refuse ON ledger"))


def void(_: object) -> None:
    """Return nothing."""


def is_refused(error: BaseException) -> bool:
    """Return whether it says what happened, and that another try is of no use."""
    return TEXT in str(error) and classify(error).rule == "cluster_read_only" and not classify(error).transient


def test_sqlalchemy(ps_lab: Lab, matrix: Matrix, read_only: Callable[[], None]) -> None:
    """A session's write, and one of `run_transaction`, which runs once; the session reads on."""
    engine = ps_sqlalchemy.create_engine(ps_lab.url, **BOUNCERS)
    calls = []

    def work(session: ps_sqlalchemy.Session) -> None:
        calls.append(1)
        session.execute(text(WRITE))

    try:
        with pytest.raises(sa.exc.DBAPIError) as caught:
            ps_sqlalchemy.run_transaction(ps_sqlalchemy.sessionmaker(engine), work)
        assert is_refused(caught.value)
        assert len(calls) == 1
        with ps_sqlalchemy.Session(engine) as session:
            assert session.scalar(text("SELECT count(*) FROM ledger")) == 0
            with pytest.raises(sa.exc.DBAPIError) as caught:
                session.execute(text(WRITE))
            assert is_refused(caught.value)
            session.rollback()
            assert session.scalar(text("SELECT count(*) FROM ledger")) == 0
            read_only()
            session.execute(text(WRITE))
            session.commit()
    finally:
        engine.dispose()
    assert ps_lab.sql("SELECT count(*) FROM ledger") == [(1,)]
    matrix.sees(FAULT, LINE, synthetic=True)


async def test_asyncio(ps_lab: Lab, matrix: Matrix, read_only: Callable[[], None]) -> None:
    """The same with asyncio."""
    engine = ps_sqlalchemy.create_async_engine(ps_lab.url, **BOUNCERS)
    calls = []

    async def work(session: Any) -> None:
        calls.append(1)
        await session.execute(text(WRITE))

    try:
        with pytest.raises(sa.exc.DBAPIError) as caught:
            await ps_sqlalchemy.arun_transaction(ps_sqlalchemy.async_sessionmaker(engine), work)
        assert is_refused(caught.value)
        assert len(calls) == 1
        async with ps_sqlalchemy.AsyncSession(engine) as session:
            assert await session.scalar(text("SELECT count(*) FROM ledger")) == 0
        read_only()
        await ps_sqlalchemy.arun_transaction(ps_sqlalchemy.async_sessionmaker(engine), work)
    finally:
        await engine.dispose()
    assert ps_lab.sql("SELECT count(*) FROM ledger") == [(1,)]
    matrix.sees(FAULT, LINE, synthetic=True)


def test_django(ps_lab: Lab, matrix: Matrix, site: None, read_only: Callable[[], None]) -> None:
    """A single write, and one of `run_transaction`, which runs once; both aliases read on."""
    calls = []

    def execute(alias: str, statement: str) -> Any:
        with connections[alias].cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchone() if cursor.description else None

    def work() -> None:
        calls.append(1)
        execute("default", WRITE)

    with pytest.raises(DatabaseError) as caught:
        ps_django.transaction.run_transaction(work)
    assert is_refused(caught.value)
    assert len(calls) == 1
    before = connections["default"].connection.pgconn
    with pytest.raises(DatabaseError) as caught:
        execute("default", WRITE)
    assert is_refused(caught.value)
    for alias in ("default", "replica"):
        assert execute(alias, "SELECT count(*) FROM ledger") == (0,)
    assert connections["default"].connection.pgconn is before
    read_only()
    with transaction.atomic():
        work()
    assert ps_lab.sql("SELECT count(*) FROM ledger") == [(1,)]
    matrix.sees(FAULT, LINE, synthetic=True)


def test_said_by_the_edge(ps_lab: Lab, site: None) -> None:
    """Where it is what a new connection is told, that is said at once, too: it is no outage."""
    engine = ps_sqlalchemy.create_engine(ps_lab.url, **BOUNCERS)
    connections.close_all()
    with ps_lab.edge.refuse("25006", TEXT), deadline("2s"):
        with pytest.raises(sa.exc.DBAPIError) as of_sqlalchemy, engine.connect():
            pass
        with pytest.raises(DatabaseError) as of_django:
            connections["default"].ensure_connection()
    assert is_refused(of_sqlalchemy.value)
    assert is_refused(of_django.value)
    engine.dispose()
