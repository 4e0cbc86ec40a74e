"""psycopg_pool over this library's connection."""

import asyncio
from typing import Any

import psycopg
import psycopg_pool
import pytest

from ps_core import AsyncConnection, Connection
from ps_core.connect import AsyncPooledConnection, PooledConnection
from ps_lab import Lab

SHOWN = "SELECT pg_is_in_recovery(), current_setting('statement_timeout')"
SIDES = {"bouncer": "write-pool", "replica_bouncer": "read-pool", "statement_timeout": "1500ms"}


@pytest.mark.parametrize("pool_class", [psycopg_pool.ConnectionPool, psycopg_pool.NullConnectionPool])
@pytest.mark.parametrize("to", ["primary", "replica"])
def test_pool(ps_lab: Lab, pool_class: type[psycopg_pool.ConnectionPool[Any]], to: str) -> None:
    """A pool's connections go to their endpoint, have its timeouts in and out of transactions, and heal."""
    kwargs = {"to": to, "autocommit": True, **SIDES}
    with pool_class(ps_lab.url, connection_class=PooledConnection, kwargs=kwargs, min_size=0, max_size=1, timeout=20) as pool:
        for _ in range(2):
            with pool.connection() as conn:
                assert isinstance(conn, Connection)
                assert conn.execute(SHOWN).fetchone() == (to == "replica", "1500ms")
                with conn.transaction():
                    assert conn.execute(SHOWN).fetchone() == (to == "replica", "1500ms")
                ps_lab.edge.cut()
                assert conn.execute(SHOWN).fetchone() == (to == "replica", "1500ms")


async def test_async_pool(ps_lab: Lab) -> None:
    """The same for asyncio."""
    async with psycopg_pool.AsyncConnectionPool(
        ps_lab.url, connection_class=AsyncPooledConnection, kwargs=SIDES, min_size=0, max_size=1, open=False, timeout=20
    ) as pool:
        for _ in range(2):
            async with pool.connection() as conn:
                assert isinstance(conn, AsyncConnection)
                assert await (await conn.execute(SHOWN)).fetchone() == (False, "1500ms")
                await conn.commit()
                ps_lab.edge.cut()
                assert await (await conn.execute(SHOWN)).fetchone() == (False, "1500ms")


def test_pool_bounds_its_wait(ps_lab: Lab) -> None:
    """A pool without connections of its own gives up after its timeout, however long a connect would be tried again."""
    pool: psycopg_pool.ConnectionPool[Any] = psycopg_pool.NullConnectionPool(
        ps_lab.url, connection_class=PooledConnection, kwargs=SIDES, timeout=1, open=True
    )
    ps_lab.bouncers["write-pool"].stop()
    try:
        with pytest.raises((psycopg.OperationalError, TimeoutError)) as failure, pool.connection():
            pass
        assert "30.0 s" not in "".join(getattr(failure.value, "__notes__", ()))
    finally:
        ps_lab.restart_bouncer("write-pool")
        pool.close()


def test_without_an_endpoint(ps_lab: Lab) -> None:
    """The connections' own classes, which could not know where they are, say what to write."""
    with pytest.raises(TypeError, match="PooledConnection"):
        Connection.connect(ps_lab.url)
    with pytest.raises(TypeError, match="connect_async"):
        asyncio.run(AsyncConnection.connect(ps_lab.url))
