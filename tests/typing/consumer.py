"""An application as its author's type checker sees it. It is checked, and never run: see tests/ps_sqlalchemy/test_typing.py."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, assert_type

import sqlalchemy as sa
from fastapi import FastAPI
from flask import Flask
from psycopg.rows import TupleRow, class_row, dict_row
from sqlalchemy import select
from sqlalchemy.ext import asyncio as sa_asyncio
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, scoped_session
from sqlalchemy.orm import Session as SASession
from sqlalchemy.orm import sessionmaker as sa_sessionmaker

from ps_core import (
    AsyncConnection,
    Connection,
    Endpoint,
    Failure,
    Token,
    classify,
    connect,
    connect_async,
    current_token,
    use_token,
)
from ps_core._endpoint import EndpointState
from ps_http import AsyncBatch, AsyncClient, Batch, Client, Pending, Result
from ps_http import dbapi as http_dbapi
from ps_sqlalchemy import (
    AsyncEngine,
    AsyncSession,
    Engine,
    RetryPolicy,
    Session,
    Topology,
    arun_transaction,
    async_sessionmaker,
    create_async_engine,
    create_engine,
    deadline,
    http_batch,
    limits,
    local_settings,
    run_transaction,
    sessionmaker,
    set_replica_share,
    using_primary,
    using_replica,
    without_sticky_writes,
)
from ps_sqlalchemy.middleware import ASGIMiddleware, WSGIMiddleware
from ps_sqlalchemy.options import EngineOptions  # noqa: TC001 - as an application would


class Base(DeclarativeBase):
    """The tables."""


@dataclass
class Name:
    """What a row is made of."""

    name: str


class Product(Base):
    """Something on sale."""

    __tablename__ = "product"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Own(Session):
    """A session class of a project's own."""

    def only_mine(self) -> None:
        """What only it has."""


class OwnAsync(AsyncSession):
    """The same for asyncio."""

    def only_mine(self) -> None:
        """What only it has."""


def with_own(session: Own) -> int:
    """Work that needs it."""
    session.only_mine()
    return 1


async def with_own_async(session: OwnAsync) -> int:
    """The same for asyncio."""
    session.only_mine()
    return 1


async def sqlalchemy_over_https(engine: sa.Engine, asynchronous: sa_asyncio.AsyncEngine) -> None:
    """Batches take both kinds of engines; their results are SQLAlchemy's."""
    with http_batch(engine, isolation="serializable") as batch:
        made = batch.execute(sa.insert(Product).values(name="a").returning(Product.id))
        batch.execute(select(Product), {"a": 1})
    assert_type(made.result, sa.CursorResult[Any])
    async with http_batch(asynchronous, read_only=True) as beside:
        beside.execute(select(Product))


def engines(url: str) -> None:
    """The factories return engines of SQLAlchemy's, with two more attributes."""
    engine = create_engine(url, bouncer="write-pool", statement_timeout="2s", pool_size=5, retry=RetryPolicy())
    assert_type(engine, Engine)
    plain: sa.Engine = engine
    assert_type(engine.replica, sa.Engine | None)
    assert_type(engine.direct, sa.Engine)
    assert_type(engine.topology, Topology)
    create_engine(
        sa.make_url(url), connect_args={"sslmode": "require"}, echo="debug", json_serializer=repr, poolclass=sa.NullPool
    )
    create_engine(url, replica_bouncer=["a", "b"], replica_pool_size=5, replica_isolation_level="REPEATABLE READ", pooled=None)
    create_engine(url, direct_execution_options={"stream_results": True}, direct_poolclass=sa.NullPool, retry_timeout=0)
    chosen: EngineOptions = {"replica_bouncer": "read-pool", "replica_max_overflow": 5}
    assert_type(create_engine(url, **chosen), Engine)
    anything: dict[str, Any] = {"pool_size": 5}
    assert_type(create_engine(url, **anything), Engine)
    with plain.connect() as conn:
        assert_type(conn.scalars(select(Product.id)).all(), Sequence[int])
    topology = Topology.from_url(url, replica_bouncer="read-pool")
    assert_type(topology.replicas, tuple[Endpoint, ...])
    asynchronous = create_async_engine(topology, pool_size=5, replica_pool_timeout=0.5, pool_reset_on_return=None)
    assert_type(asynchronous, AsyncEngine)
    assert_type(asynchronous.replica, sa_asyncio.AsyncEngine | None)
    assert_type(asynchronous.direct, sa_asyncio.AsyncEngine)


def sessions(engine: Engine) -> str:
    """Sessions and factories are typed as SQLAlchemy's are, and pass for them."""

    def with_connection(conn: sa.Connection) -> str | None:
        return conn.scalar(select(Product.name))

    factory = sessionmaker(engine, expire_on_commit=False)
    with factory() as session:
        assert_type(session, Session)
        assert_type(session.get(Product, 1), Product | None)
        assert_type(session.scalars(select(Product)).all(), Sequence[Product])
        assert_type(session.scalars(select(Product.name)).first(), str | None)
    with factory.begin() as session:
        assert_type(session, Session)
    with Session(engine, read_only=True, stale_check=False) as session, session.begin():
        pass
    own = sessionmaker(engine, class_=Own, expire_on_commit=False)
    assert_type(own, sessionmaker[Own])
    assert_type(own(), Own)
    with own.begin() as mine:
        assert_type(mine, Own)
    plain: sa_sessionmaker[Own] = own
    assert_type(scoped_session(plain)(), Own)
    assert_type(sessionmaker(class_=SASession)(), SASession)
    annotated: sessionmaker[Session] = sessionmaker()
    annotated.configure(bind=engine)
    stock = sa_sessionmaker(engine, class_=Session)
    assert_type(stock(), Session)
    assert_type(scoped_session(factory)(), Session)

    def work(session: Session) -> str:
        return session.scalars(select(Product.name)).one()

    result = run_transaction(factory, work, verify="SELECT true")
    assert_type(result, str)
    assert_type(run_transaction(own, with_own), int)
    assert_type(run_transaction(own, work), str)  # what works with each Session works with one's own
    assert_type(run_transaction(stock, work), str)
    assert_type(run_transaction(factory, lambda session: session.scalars(select(Product.name)).one()), str)
    assert_type(run_transaction(engine, with_connection, marker=True), str | None)
    assert_type(run_transaction(engine.execution_options(logging_token="a"), with_connection), str | None)
    with own() as mine, engine.connect() as conn:
        assert_type(run_transaction(mine, with_own), int)
        assert_type(run_transaction(conn, with_connection, retry=RetryPolicy()), str | None)
    return result


async def asynchronous_sessions(engine: AsyncEngine) -> int:
    """The same for asyncio."""
    factory = async_sessionmaker(engine)
    async with factory() as session:
        assert_type(session, AsyncSession)
        assert_type((await session.scalars(select(Product))).all(), Sequence[Product])

    async def work(session: AsyncSession) -> int:
        return (await session.scalars(select(Product.id))).one()

    async def with_connection(conn: sa_asyncio.AsyncConnection) -> str | None:
        return await conn.scalar(select(Product.name))

    own = async_sessionmaker(engine, class_=OwnAsync, expire_on_commit=False)
    assert_type(own, async_sessionmaker[OwnAsync])
    assert_type(own(), OwnAsync)
    async with own.begin() as mine:
        assert_type(mine, OwnAsync)
    assert_type(AsyncSession(engine, sync_session_class=SASession, expire_on_commit=False).sync_session, SASession)
    AsyncSession(sync_session_class=sa_sessionmaker())
    plain: sa_asyncio.async_sessionmaker[OwnAsync] = own
    assert_type(plain(), OwnAsync)
    assert_type(await arun_transaction(own, with_own_async), int)
    assert_type(await arun_transaction(own, work), int)
    assert_type(await arun_transaction(engine, with_connection, marker=True), str | None)
    async with own() as mine, engine.connect() as conn:
        assert_type(await arun_transaction(mine, with_own_async), int)
        assert_type(await arun_transaction(conn, with_connection), str | None)
    result = await arun_transaction(factory, work)
    assert_type(result, int)
    return result


def blocks() -> None:
    """Blocks change no type of what is in them."""
    with using_primary(), using_replica(), without_sticky_writes(), deadline("2s"), limits(statement=60, lock="off"):
        pass
    with local_settings({"app.tenant": "42"}), use_token("1.branch.0-1.0"):
        assert_type(current_token(), Token | None)
    set_replica_share(0.5)
    assert_type(classify(OSError()), Failure)

    @using_primary()
    def report(day: str) -> int:
        return len(day)

    assert_type(report("x"), int)


def middleware(flask: Flask, fastapi: FastAPI, key: str) -> Any:
    """Frameworks take the middleware as their own."""
    flask.wsgi_app = WSGIMiddleware(flask.wsgi_app, keys=[key])  # type: ignore[method-assign]
    fastapi.add_middleware(ASGIMiddleware, keys=[key], deadline="5s", samesite="strict")
    return ASGIMiddleware(fastapi, keys=[key, b"old"], reads=lambda request: request["path"] == "/")


def mistakes(engine: Engine) -> None:
    """What is wrong is seen: each of these would be an unused ignore if it were not."""
    WSGIMiddleware(None, keys=["x"], samesite="Lax")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    WSGIMiddleware(None)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Session(engine, read_only="yes")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    create_engine(42)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    create_engine("", replica_bouncers="a")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    create_engine("", replica_pool="a")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    create_engine("", statement_timeout=b"2s")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    create_engine("", consistency="eventual")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    create_engine("", pool_size="5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    create_engine("", replica_pool_size="5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    create_async_engine("", direct_ulr="a")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    create_async_engine("", pool_size="5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    sessionmaker(engine)().only_mine()  # type: ignore[attr-defined]  # pyright: ignore[reportUnknownMemberType, reportAttributeAccessIssue]
    run_transaction(engine, with_own)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    run_transaction(sessionmaker(engine), with_own)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    run_transaction(Session(engine), with_own)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    run_transaction(42, with_own)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]


async def mistakes_of_asyncio(engine: Engine, asynchronous: AsyncEngine) -> None:
    """The same for asyncio."""
    async_sessionmaker(engine)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    await arun_transaction(asynchronous, with_own_async)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await arun_transaction(async_sessionmaker(asynchronous), with_own_async)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await arun_transaction(AsyncSession(asynchronous), with_own_async)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    AsyncSession(asynchronous, sync_session_class=AsyncSession)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await arun_transaction(engine, with_own_async)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]


def drivers(url: str, link: EndpointState) -> None:
    """Connections of psycopg's, whose rows are inferred as psycopg's are."""
    with connect(url) as conn:
        assert_type(conn, Connection[TupleRow])
        assert_type(conn.execute("SELECT 1").fetchone(), TupleRow | None)
    with connect(url, row_factory=dict_row) as by_name:
        assert_type(by_name.execute("SELECT 1 AS n").fetchall(), list[dict[str, Any]])
    assert_type(Connection.open(link), Connection[TupleRow])
    assert_type(Connection.open(link, row_factory=dict_row).execute("SELECT 1 AS n").fetchone(), dict[str, Any] | None)
    assert_type(Connection.open(link, row_factory=class_row(Name)).execute("SELECT 'a' AS name").fetchone(), Name | None)


async def drivers_async(url: str, link: EndpointState) -> None:
    """The same for asyncio."""
    async with await connect_async(url, row_factory=dict_row) as conn:
        assert_type(await (await conn.execute("SELECT 1 AS n")).fetchone(), dict[str, Any] | None)
    assert_type(await AsyncConnection.open(link), AsyncConnection[TupleRow])


def over_https(url: str) -> None:
    """SQL over HTTPS: clients, batches, results, DB-API."""
    with Client(url, bouncer="write-pool") as client:
        result = client.execute("select %s", [1])
        assert_type(result, Result)
        assert_type(result[0], tuple[Any, ...])
        assert_type(result.dicts(), list[dict[str, Any]])
        assert_type(client.executemany("select %s", [[1]]), list[Result])
        with client.batch(isolation="serializable", read_only=True) as batch:
            assert_type(batch, Batch)
            assert_type(batch.execute("select %(a)s", {"a": 1}).result, Result)
    connection = http_dbapi.connect(url, autocommit=True)
    assert_type(connection.execute("select 1"), http_dbapi.Cursor)
    Client(url, bouncr="x")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    client.execute("select %s", 1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def over_https_async(url: str) -> None:
    """The same for asyncio."""
    async with AsyncClient(url) as client:
        assert_type(await client.execute("select %s", [1]), Result)
        async with client.batch() as batch:
            assert_type(batch, AsyncBatch)
            assert_type(batch.execute("select 1"), Pending)
    connection = await http_dbapi.connect_async(url)
    assert_type(await connection.execute("select 1"), http_dbapi.AsyncCursor)
