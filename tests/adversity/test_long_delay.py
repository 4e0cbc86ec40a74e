"""Replicas replay many seconds late: nobody waits for them."""

import asyncio
import time
from collections.abc import Iterator

import pytest
from django.db import connections
from django.test import Client
from sqlalchemy import text

import ps_django
import ps_sqlalchemy
from ps_core.context import use_token
from ps_lab import Lab
from tests.adversity.applications import BOUNCERS
from tests.adversity.harness import prepare
from tests.adversity.matrix import Matrix

FAULT = "Replicas replay a minute late"
LINE = "whoever has written reads it at once, from the primary; the others read what the replicas have; nobody waits"
LOOK = "SELECT pg_is_in_recovery(), (SELECT count(*) FROM ledger)"
WRITE = "INSERT INTO ledger VALUES (1)"


@pytest.fixture(autouse=True)
def late(ps_lab: Lab) -> Iterator[None]:
    """Replicas that will not have replayed what is written while a test runs."""
    prepare(ps_lab)
    ps_lab.set_replay_delay(60)
    began = time.monotonic()
    yield
    assert time.monotonic() - began < 30
    ps_lab.set_replay_delay(0)


def test_sqlalchemy(ps_lab: Lab, matrix: Matrix) -> None:
    """The refusal costs its reader one round trip; who has seen nothing is not refused."""
    engine = ps_sqlalchemy.create_engine(ps_lab.url, **BOUNCERS)

    def look() -> tuple[bool, int]:
        with ps_sqlalchemy.Session(engine) as session:
            by_replica, rows = session.execute(text(LOOK)).one()
        return by_replica, rows

    try:
        with ps_sqlalchemy.Session(engine) as session, session.begin():
            session.execute(text(WRITE))
        look()
        with ps_lab.round_trips() as counter:
            assert look() == (False, 1)
        assert counter.by_path == {"replica": 1, "primary": 2}, "with the transaction's end"
        with use_token(None), ps_lab.round_trips() as counter:
            assert look() == (True, 0)
        assert counter.by_path == {"replica": 1}
    finally:
        engine.dispose()
    matrix.sees(FAULT, LINE)


async def test_asyncio(ps_lab: Lab, matrix: Matrix) -> None:
    """The same with asyncio, and in tasks that the writer starts."""
    engine = ps_sqlalchemy.create_async_engine(ps_lab.url, **BOUNCERS)

    async def look() -> tuple[bool, int]:
        async with ps_sqlalchemy.AsyncSession(engine) as session:
            by_replica, rows = (await session.execute(text(LOOK))).one()
        return by_replica, rows

    try:
        with use_token(None):
            async with ps_sqlalchemy.AsyncSession(engine) as session, session.begin():
                await session.execute(text(WRITE))
            assert await asyncio.gather(*(look() for _ in range(4))) == [(False, 1)] * 4
        with use_token(None):
            assert await asyncio.gather(*(look() for _ in range(4))) == [(True, 0)] * 4
    finally:
        await engine.dispose()
    matrix.sees(FAULT, LINE)


def test_django(ps_lab: Lab, matrix: Matrix, site: None) -> None:
    """The replica alias, and the user's next request."""

    def look() -> tuple[bool, int]:
        with ps_django.reading(), connections["replica"].cursor() as cursor:
            cursor.execute(LOOK)
            by_replica, rows = cursor.fetchone()
        return by_replica, rows

    with connections["default"].cursor() as cursor:
        cursor.execute(WRITE)
    look()
    with ps_lab.round_trips() as counter:
        assert look() == (False, 1)
    assert counter.by_path == {"replica": 1, "primary": 1}
    with use_token(None):
        assert look() == (True, 0)
        writer, other = Client(), Client()
        writer.post("/products", {"name": "web late"})
        assert writer.get("/products").json()["names"].count("web late") == 1
        assert "web late" not in other.get("/products").json()["names"]
    matrix.sees(FAULT, LINE)
