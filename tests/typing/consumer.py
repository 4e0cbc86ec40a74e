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


def engines(url: str) -> None:
    """The factories return engines of SQLAlchemy's, with two more attributes."""
    engine = create_engine(url, bouncer="write-pool", statement_timeout="2s", pool_size=5, retry=RetryPolicy())
    assert_type(engine, Engine)
    plain: sa.Engine = engine
    assert_type(engine.replica, sa.Engine | None)
    assert_type(engine.direct, sa.Engine)
    assert_type(engine.topology, Topology)
    with plain.connect() as conn:
        assert_type(conn.scalars(select(Product.id)).all(), Sequence[int])
    topology = Topology.from_url(url, replica_bouncer="read-pool")
    assert_type(topology.replicas, tuple[Endpoint, ...])
    asynchronous = create_async_engine(topology)
    assert_type(asynchronous, AsyncEngine)
    assert_type(asynchronous.replica, sa_asyncio.AsyncEngine | None)
    assert_type(asynchronous.direct, sa_asyncio.AsyncEngine)


def sessions(engine: Engine) -> str:
    """Sessions and factories are typed as SQLAlchemy's are, and pass for them."""
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
    stock = sa_sessionmaker(engine, class_=Session)
    assert_type(stock(), Session)
    assert_type(scoped_session(factory)(), Session)

    def work(session: Session) -> str:
        return session.scalars(select(Product.name)).one()

    result = run_transaction(factory, work, verify="SELECT true")
    assert_type(result, str)
    return result


async def asynchronous_sessions(engine: AsyncEngine) -> int:
    """The same for asyncio."""
    factory = async_sessionmaker(engine)
    async with factory() as session:
        assert_type(session, AsyncSession)
        assert_type((await session.scalars(select(Product))).all(), Sequence[Product])

    async def work(session: AsyncSession) -> int:
        return (await session.scalars(select(Product.id))).one()

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
