"""SQLAlchemy over a WebSocket: every engine, every way to make one, and what listens to connections."""

import asyncio
import socket
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.ext import asyncio as sa_asyncio

import ps_sqlalchemy
from ps_core import ConfigurationError
from ps_lab import Lab
from ps_sqlalchemy import Session
from tests.carried import socket_family

SETTINGS: Any = {"transport": "websocket", "bouncer": "write-pool", "replica_bouncer": "read-pool"}
ROLE = sa.text("SELECT pg_is_in_recovery(), current_setting('application_name')")


def family(connection: sa.Connection) -> socket.AddressFamily:
    """Return what kind of socket libpq has."""
    return socket_family(connection.connection.driver_connection)


@pytest.fixture(params=["factory", "URL alone"])
def carried(ps_lab: Lab, request: pytest.FixtureRequest) -> Any:
    if request.param == "factory":
        return ps_sqlalchemy.create_engine(ps_lab.url, **SETTINGS)
    parameters = "&".join(f"ps_{name}={value}" for name, value in SETTINGS.items())
    return sa.create_engine(ps_lab.url.replace("postgresql:", "postgresql+ps:") + "&" + parameters)


def test_every_side(carried: Any) -> None:
    """The primary's engine, the replicas' and the direct one, and an engine made of the URL that each of them shows."""
    for side, in_recovery in ((carried, False), (carried.replica, True), (carried.direct, False)):
        again = sa.create_engine(side.url)
        for one in (side, again):
            with one.connect() as connection:
                assert connection.execute(ROLE).scalar() is in_recovery
                assert family(connection) == socket.AF_UNIX
            one.dispose()


def test_session(carried: Any, ps_lab: Lab) -> None:
    """A session reads on a replica and writes on the primary, in as many round trips as over TCP."""
    with Session(carried) as session:
        session.execute(ROLE)
    with ps_lab.round_trips() as trips, Session(carried) as session:
        assert session.execute(ROLE).scalar() is True
    assert dict(trips.by_path) == {"replica": 1}
    for one in (carried, carried.replica):
        one.dispose()


def test_asyncio(ps_lab: Lab) -> None:
    """The same with asyncio."""

    async def work() -> None:
        engine: Any = ps_sqlalchemy.create_async_engine(ps_lab.url, **SETTINGS)
        for side, in_recovery in ((engine, False), (engine.replica, True), (engine.direct, False)):
            async with side.connect() as connection:
                assert (await connection.execute(ROLE)).scalar() is in_recovery
                assert await connection.run_sync(family) == socket.AF_UNIX
            await side.dispose()

    asyncio.run(work())


def test_do_connect(carried: Any, ps_lab: Lab) -> None:
    """A listener is given the server's own name, as over TCP; what it changes decides where the WebSocket leads."""
    seen: list[dict[str, Any]] = []
    elsewhere: dict[str, Any] = {}

    @sa.event.listens_for(carried, "do_connect")
    def listen(dialect: Any, record: Any, cargs: Any, cparams: dict[str, Any]) -> None:
        seen.append(dict(cparams))
        cparams.update(elsewhere)

    with carried.connect() as connection:
        connection.execute(ROLE)
    carried.dispose()
    assert (seen[0]["host"], seen[0]["port"], seen[0]["sslmode"]) == ("localhost", ps_lab.edge.ports["pooled"], "verify-full")
    for change, error, said in (
        ({"host": "nowhere.invalid"}, sa.exc.OperationalError, 'could not translate host name "nowhere.invalid"'),
        ({"host": "127.0.0.1"}, ConfigurationError, "is an address"),
        ({"sslmode": "disable"}, ConfigurationError, "sslmode=verify-full"),
    ):
        elsewhere = change
        with pytest.raises(error, match=said):
            carried.connect()
    elsewhere = {"password": "wrong"}
    with pytest.raises(sa.exc.OperationalError, match="authentication failed"):
        carried.connect()
    elsewhere = {"application_name": "told"}
    with carried.connect() as connection:
        assert connection.execute(ROLE).one() == (False, "told")
    carried.dispose()


def test_stock_engine(ps_lab: Lab) -> None:
    """SQLAlchemy's own psycopg engine over TCP, beside: it is not touched."""
    url = ps_lab.url.partition("&ps_")[0].replace("postgresql:", "postgresql+psycopg:")
    for make in (sa.create_engine, sa_asyncio.create_async_engine):
        assert make(url).url.query.keys() == {"sslmode", "sslrootcert"}
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        assert isinstance(connection.connection.driver_connection, psycopg.Connection)
        assert family(connection) == socket.AF_INET
    engine.dispose()
