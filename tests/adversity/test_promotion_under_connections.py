"""A standby is promoted while connections are open that are there to read: it would take their writes from then on."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack
from itertools import count
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from django.db import InternalError, connections, transaction
from sqlalchemy import text

import ps_core
import ps_django
import ps_sqlalchemy
from ps_core.context import use_token
from ps_django.backend.base import DatabaseWrapper
from ps_lab import Lab
from ps_lab.postgres import Postgres
from ps_lab.processes import wait_until
from tests.adversity.harness import prepare
from tests.adversity.matrix import Matrix

FAULT = "A standby is promoted under open connections"
LINE = "reads go on; a write is refused there (25006), and one that may go elsewhere is done on the primary"
WHO = "SELECT current_setting('cluster_name'), pg_is_in_recovery()"
REFUSED = "read-only transaction"
ENDPOINTS: tuple[dict[str, Any], ...] = ({"replica_bouncer": "read-pool"}, {"direct_replica": True})
NUMBERS = count(1)


@pytest.fixture
def standby(ps_lab: Lab) -> Iterator[Postgres]:
    """A replica to promote, of which neither the edge nor the bouncers hear. It is a replica again afterwards."""
    prepare(ps_lab)
    ps_lab.sql("CREATE OR REPLACE FUNCTION put(id int) RETURNS int LANGUAGE sql AS 'INSERT INTO ledger VALUES (id) RETURNING id'")
    ps_lab.wait_replicas_caught_up()
    server = ps_lab.replicas[0]
    yield server
    server.stop()
    server.clone(ps_lab.primary)
    ps_lab.restart_replica()


def until_on(lab: Lab, server: Postgres, ask: Callable[[], tuple[str, bool]], *, promoted: bool = False) -> None:
    """Ask until `server` has answered.

    The pooler takes its server connections in turn, and makes one, to the next server, only when none is idle: from time to time
    it gives up those that it has, which may all lead to another server, and another client keeps the first of the new ones.
    """
    asked = count(1)

    def answered() -> bool:
        if next(asked) % 10:
            return ask() == (server.name, not promoted)
        lab.bouncers["read-pool"].admin("RECONNECT")
        with psycopg.connect(**ps_core.conninfo(lab.topology.replicas[0]), prepare_threshold=None) as other:
            other.execute("SELECT 1")
            return ask() == (server.name, not promoted)

    wait_until(answered, f"an answer of {server.name}", interval=0)


def written(lab: Lab, server: Postgres) -> tuple[int, int]:
    """Return how much the ledger holds on the primary, and on `server`."""
    primary, other = (lab.sql("SELECT count(*) FROM ledger", server=name)[0][0] for name in (None, server.name))
    return primary, other


def refused(work: Callable[..., Any], *args: Any) -> None:
    """Check that the server forbids it."""
    with use_token(None), pytest.raises((sa.exc.InternalError, InternalError, psycopg.InternalError), match=REFUSED):
        work(*args)


def insert() -> Any:
    """Return a write that was never seen before."""
    return text(f"INSERT INTO ledger VALUES ({next(NUMBERS)})")


def who(conn: sa.Connection) -> tuple[str, bool]:
    """Return which server answers, and whether it is a replica; one with a timeline of its own has positions of its own, too."""
    with use_token(None):
        name, in_recovery = conn.execute(text(WHO)).one()
    return name, in_recovery


def in_driver(conn: sa.Connection, *statements: str) -> None:
    """Execute behind SQLAlchemy's back, in a transaction that comes to nothing."""
    driver: Any = conn.connection.driver_connection
    try:
        for statement in statements:
            driver.execute(statement)
    finally:
        driver.rollback()


def test_sqlalchemy(ps_lab: Lab, matrix: Matrix, standby: Postgres) -> None:
    """Reads go on where they were, in a transaction and outside; what writes is refused there, whoever asks for it."""
    with ExitStack() as stack:
        conns: list[sa.Connection] = []
        engines = [ps_sqlalchemy.create_engine(ps_lab.url, bouncer="write-pool", **endpoint) for endpoint in ENDPOINTS]
        for engine in engines:
            stack.callback(engine.dispose)
            for isolation_level in ("READ COMMITTED", "REPEATABLE READ"):
                assert engine.replica is not None
                side = engine.replica.execution_options(isolation_level=isolation_level)

                def connect(side: sa.Engine = side) -> tuple[str, bool]:
                    conns.append(stack.enter_context(side.connect()))
                    return who(conns[-1])

                until_on(ps_lab, standby, connect)
        standby.promote()
        for conn in conns:
            if conn.get_execution_options()["isolation_level"] == "READ COMMITTED":
                conn.rollback()
            who(conn)
            refused(conn.execute, insert())
            conn.rollback()
            for begin in ("BEGIN READ WRITE", "SET TRANSACTION READ WRITE"):
                refused(in_driver, conn, begin, insert().text)
            conn.close()
        assert written(ps_lab, standby) == (0, 0)
        for engine in engines:
            with use_token(None), ps_sqlalchemy.Session(engine) as session:

                def ask(session: ps_sqlalchemy.Session = session) -> tuple[str, bool]:
                    session.invalidate()  # the pool may hold connections that lead elsewhere
                    with use_token(None):
                        return tuple(session.execute(text(WHO)).one())

                until_on(ps_lab, standby, ask, promoted=True)
                session.scalar(text(f"SELECT put({next(NUMBERS)})"))
                session.commit()
        assert written(ps_lab, standby) == (2, 0)
    matrix.sees(FAULT, LINE)


def test_asyncio(ps_lab: Lab, matrix: Matrix, standby: Postgres) -> None:
    """The same with asyncio."""

    async def work() -> None:
        engine = ps_sqlalchemy.create_async_engine(ps_lab.url, bouncer="write-pool", direct_replica=True)
        assert engine.replica is not None
        async with AsyncExitStack() as stack:
            stack.push_async_callback(engine.dispose)
            conns: list[Any] = []
            while not conns or await conns[-1].run_sync(who) != (standby.name, True):
                conns.append(await stack.enter_async_context(engine.replica.connect()))
            await asyncio.to_thread(standby.promote)
            assert await conns[-1].run_sync(who) == (standby.name, False)
            await conns[-1].rollback()
            with pytest.raises(sa.exc.InternalError, match=REFUSED):
                await conns[-1].execute(insert())
            await conns[-1].rollback()
            async with ps_sqlalchemy.AsyncSession(engine) as session:
                await session.execute(text(WHO))
                await session.execute(text(f"SELECT put({next(NUMBERS)})"))
                await session.commit()
        assert written(ps_lab, standby) == (1, 0)

    asyncio.run(work())
    matrix.sees(FAULT, LINE)


def test_django(ps_lab: Lab, matrix: Matrix, site: None, standby: Postgres) -> None:
    """On the replica alias reads go on; what writes is done on the primary, and refused in a transaction of its own."""
    usual = connections["replica"]
    with ExitStack() as stack:
        stack.callback(connections.__setitem__, "replica", usual)
        wrappers: list[Any] = []

        def ask(statement: str = WHO) -> Any:
            with use_token(None), connections["replica"].cursor() as cursor:
                cursor.execute(statement)
                return cursor.fetchone()

        for endpoint in ENDPOINTS:
            entry = ps_django.databases(ps_lab.url, bouncer="write-pool", **endpoint)["replica"]

            def connect(entry: dict[str, Any] = entry) -> Any:
                wrappers.append(DatabaseWrapper({**usual.settings_dict, **entry}, "replica"))
                stack.callback(wrappers[-1].close)
                connections["replica"] = wrappers[-1]
                return ask()

            until_on(ps_lab, standby, connect)
        standby.promote()
        for wrapper in wrappers:
            connections["replica"] = wrapper
            ask()
            assert ask(f"{insert().text} RETURNING 1") == (1,)
            ask(f"SELECT put({next(NUMBERS)})")
            with transaction.atomic(using="replica"):
                ask()
                refused(ask, f"{insert().text} RETURNING 1")
                transaction.set_rollback(True, using="replica")
        until_on(ps_lab, standby, ask, promoted=True)
    assert written(ps_lab, standby) == (2 * len(wrappers), 0)
    matrix.sees(FAULT, LINE)
