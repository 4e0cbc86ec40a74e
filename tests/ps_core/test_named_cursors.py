"""Named cursors on connections that are cut: what can be healed is, and no transaction that is lost goes on silently."""

import gc
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

import ps_sqlalchemy
from ps_core import AsyncConnection, Connection
from ps_core._endpoint import EndpointState
from ps_lab import Lab
from tests.ps_core.conftest import Connect

pytestmark = pytest.mark.fast

MANY = "SELECT generate_series(1, 1000)"


def test_an_idle_connection_that_was_cut_heals(ps_lab: Lab, primary: EndpointState, connect: Connect) -> None:
    """A named cursor as a transaction's first statement, whether it was made before or after the cut."""
    conn = connect(primary)
    conn.execute("SELECT 1")
    conn.commit()
    before: Any = conn.cursor("before")
    for cursor in (before, conn.cursor("after")):
        ps_lab.edge.cut()
        assert len(cursor.execute(MANY).fetchall()) == 1000
        cursor.close()
        conn.commit()


async def test_an_idle_connection_that_was_cut_heals_async(ps_lab: Lab, primary: EndpointState) -> None:
    """The same with asyncio."""
    async with await AsyncConnection.open(primary) as conn:
        await conn.execute("SELECT 1")
        await conn.commit()
        ps_lab.edge.cut()
        async with conn.cursor("after") as cursor:
            await cursor.execute(MANY)
            assert len(await cursor.fetchall()) == 1000


def test_a_cursor_that_was_cut_is_over_with_its_transaction(
    ps_lab: Lab, primary: EndpointState, table: str, connect: Connect
) -> None:
    """Every use raises OperationalError until the rollback, as with psycopg; nothing runs on its own meanwhile."""
    conn = connect(primary)
    cursor: Any = conn.cursor("cut")
    cursor.execute(MANY)
    assert len(cursor.fetchmany(3)) == 3
    ps_lab.edge.cut()
    other: Any = conn.cursor("other")
    for use in (
        lambda: cursor.fetchmany(5),
        cursor.fetchone,
        lambda: list(cursor),
        lambda: cursor.scroll(1),
        lambda: conn.execute(f"INSERT INTO {table} VALUES (1)"),
        lambda: other.execute(MANY),
    ):
        with pytest.raises(psycopg.OperationalError):
            use()
    cursor.close()
    other.close()
    conn.rollback()
    assert conn.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)


def test_executemany_opens_a_transaction_that_is_not_left_silently(
    ps_lab: Lab, primary: EndpointState, table: str, connect: Connect
) -> None:
    """What came first in the transaction is gone: the next statement must not run alone."""
    conn = connect(primary)
    conn.cursor().executemany(f"INSERT INTO {table} VALUES (%s)", [(1,), (2,)])
    ps_lab.edge.cut()
    with pytest.raises(psycopg.OperationalError):
        conn.cursor().executemany(f"INSERT INTO {table} VALUES (%s)", [(3,)])
    with pytest.raises(psycopg.OperationalError):
        conn.execute(f"INSERT INTO {table} VALUES (4)")
    conn.rollback()
    assert conn.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # SQLAlchemy leaves such a cursor open, with stock, too
def test_frameworks_translate_it(ps_lab: Lab) -> None:
    """SQLAlchemy's `stream_results`: its own OperationalError, and the engine's next use works."""
    engine = ps_sqlalchemy.create_engine(ps_lab.url, bouncer="write-pool")
    streaming = sa.text(MANY).execution_options(stream_results=True, max_row_buffer=5)
    for _ in range(2):
        with engine.connect() as conn:
            result = conn.execute(streaming)
            result.fetchmany(3)
            ps_lab.edge.cut()
            with pytest.raises(sa.exc.OperationalError):
                result.fetchall()
    with engine.connect() as conn:
        assert len(conn.execute(streaming).fetchall()) == 1000
    engine.dispose()
    del result
    gc.collect()


def test_factories(primary: EndpointState, connect: Connect) -> None:
    """`cursor(name)` makes ours, and an application's own class is taken."""
    conn = connect(primary)
    assert isinstance(conn, Connection)
    conn.server_cursor_factory = psycopg.ServerCursor
    cursor = conn.cursor("plain")
    assert type(cursor) is psycopg.ServerCursor
    cursor.close()
