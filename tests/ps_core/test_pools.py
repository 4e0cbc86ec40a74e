"""psycopg_pool over this library's connection."""

import asyncio
import contextvars
import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg
import psycopg_pool
import pytest

import ps_core
from ps_core import AsyncConnection, Connection, DeadlineExceeded, deadline, local_settings
from ps_lab import Lab
from ps_lab.processes import wait_until

SHOWN = "SELECT pg_is_in_recovery(), current_setting('statement_timeout')"
SIDES: dict[str, Any] = {"bouncer": "write-pool", "replica_bouncer": "read-pool", "statement_timeout": "1500ms"}


@pytest.mark.parametrize("pool_class", [psycopg_pool.ConnectionPool, psycopg_pool.NullConnectionPool])
@pytest.mark.parametrize("to", ["primary", "replica"])
def test_pool(ps_lab: Lab, pool_class: type[psycopg_pool.ConnectionPool[Any]], to: str) -> None:
    """A pool's connections go to their endpoint, have its timeouts in and out of transactions, and heal."""
    kwargs = {"to": to, "autocommit": True, **SIDES}
    pool = pool_class(ps_lab.url, connection_class=Connection, kwargs=kwargs, min_size=0, max_size=1, timeout=20)
    with pool, ps_core.use_token(None):
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
        ps_lab.url, connection_class=AsyncConnection, kwargs=SIDES, min_size=0, max_size=1, open=False, timeout=20
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
        ps_lab.url, connection_class=Connection, kwargs=SIDES, timeout=1, open=True
    )
    ps_lab.bouncers["write-pool"].stop()
    try:
        with pytest.raises((psycopg.OperationalError, TimeoutError)) as failure, pool.connection():
            pass
        assert "30.0 s" not in "".join(getattr(failure.value, "__notes__", ()))
    finally:
        ps_lab.restart_bouncer("write-pool")
        pool.close()


def copied(make: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return what `make` makes, all of whose threads begin with a copy of this context."""
    context, run = contextvars.copy_context(), threading.Thread.run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "run", lambda thread: context.copy().run(run, thread))
        return make(*args, **kwargs)


SHORT = 0.3
"""Seconds of a deadline that is over before the pool's worker connects."""
LEFT = "SELECT current_setting('app.tenant', true)"


def test_pool_opened_in_a_block(ps_lab: Lab) -> None:
    """A pool's workers go on without the blocks in which the pool was opened: its deadline and its local settings."""
    seen: list[Any] = []

    def configure(conn: Connection[Any]) -> None:
        seen.extend(left or None for (left,) in conn.execute(LEFT))
        conn.commit()

    with deadline(SHORT), local_settings({"app.tenant": "7"}):
        # Some Pythons hand a thread its starter's context: here every one does.
        pool: psycopg_pool.ConnectionPool[Any] = copied(
            psycopg_pool.ConnectionPool,
            ps_lab.url,
            connection_class=Connection,
            kwargs=SIDES,
            min_size=0,
            max_size=1,
            open=True,
            timeout=20,
            configure=configure,
        )
    with pool:
        passed = time.monotonic() + SHORT
        wait_until(lambda: time.monotonic() > passed, "the end of the deadline")
        with pool.connection() as conn:
            assert not conn.execute(LEFT).fetchone()[0]
    assert seen == [None]


async def test_async_pool_opened_in_a_block(ps_lab: Lab) -> None:
    """The same for asyncio, whose tasks copy the context; what a client does is in the client's own blocks."""
    seen: list[Any] = []

    async def configure(conn: AsyncConnection[Any]) -> None:
        seen.extend([left or None async for (left,) in await conn.execute(LEFT)])
        await conn.commit()

    pool = psycopg_pool.AsyncConnectionPool(
        ps_lab.url,
        connection_class=AsyncConnection,
        kwargs=SIDES,
        min_size=0,
        max_size=1,
        open=False,
        timeout=20,
        configure=configure,
    )
    with deadline(SHORT), local_settings({"app.tenant": "7"}):
        await pool.open()
    passed = time.monotonic() + SHORT
    await asyncio.to_thread(wait_until, lambda: time.monotonic() > passed, "the end of the deadline")
    async with pool:
        with local_settings({"app.tenant": "8"}):
            async with pool.connection() as conn:
                assert await (await conn.execute(LEFT)).fetchone() == ("8",)
    assert seen == [None]


async def test_async_null_pool_connects_for_its_client(ps_lab: Lab) -> None:
    """A pool that connects in its client's own task is bounded by that client's deadline."""
    async with psycopg_pool.AsyncNullConnectionPool(
        ps_lab.url, connection_class=AsyncConnection, kwargs=SIDES, open=False, timeout=20
    ) as pool:
        ps_lab.edge.hang()
        try:
            with pytest.raises(DeadlineExceeded), deadline(SHORT):
                async with pool.connection():
                    pass
        finally:
            ps_lab.edge.resume()


# --- as psycopg's connect ---


def test_connect_is_the_classes_own(ps_lab: Lab) -> None:
    """`ps_core.connect` is `Connection.connect`, and takes a string, keywords, a topology or an endpoint."""
    assert ps_core.connect == Connection.connect
    assert ps_core.connect_async == AsyncConnection.connect
    where = {name: str(value) for name, value in ps_core.conninfo(ps_lab.topology.direct).items()}
    named: dict[str, Any] = {name: where[name] for name in ("host", "port", "user", "password", "dbname")}
    for conn in (
        Connection.connect(ps_lab.url, **SIDES),
        Connection.connect(conninfo=ps_lab.url, to="replica", **SIDES),
        Connection.connect(psycopg.conninfo.make_conninfo("", **named), pooled=None),
        Connection.connect(**named, sslmode="prefer"),
        Connection.connect(ps_lab.topology, to="direct", row_factory=psycopg.rows.dict_row),
        Connection.connect(ps_lab.topology.primary),
    ):
        # Without a token: the replica may be behind what the primary has just told.
        with conn, ps_core.use_token(None):
            assert isinstance(conn, Connection)
            assert conn.execute("SELECT 1 AS one").fetchone() in ((1,), {"one": 1})


def test_subclass(ps_lab: Lab) -> None:
    """`connect` of a subclass makes that subclass, as psycopg's does."""

    class Own(Connection[Any]):
        """An application's own."""

    with Own.connect(ps_lab.url, **SIDES) as conn:
        assert type(conn) is Own


@pytest.mark.parametrize("which", ["stock", "ours"])
def test_connect_timeout(ps_lab: Lab, which: str) -> None:
    """`connect_timeout` bounds the call, as psycopg's does, and ends it with the same error."""
    endpoint = ps_lab.topology.primary
    ps_lab.edge.hang()
    began = time.monotonic()
    try:
        with pytest.raises(psycopg.errors.ConnectionTimeout):
            if which == "stock":
                psycopg.connect(**{**ps_core.conninfo(endpoint), "connect_timeout": 2})
            else:
                Connection.connect(endpoint, connect_timeout=2)
    finally:
        ps_lab.edge.resume()
    assert 1.5 < time.monotonic() - began < 4


def test_connect_timeout_with_a_unit() -> None:
    """With a unit it is the topology's setting, for each try; what is neither is refused."""
    with pytest.raises(ps_core.ConfigurationError, match="connect_timeout: 'soon'"):
        Connection.connect("postgresql://app.br:pw@127.0.0.1:1/db", connect_timeout="soon")
    with pytest.raises(psycopg.OperationalError):
        Connection.connect("postgresql://app.br:pw@127.0.0.1:1/db", connect_timeout="3s", retry_timeout="0s")
