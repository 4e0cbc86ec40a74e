"""Tokens of another time: of the timeline before a promotion, of another branch, expired."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context

import pytest
from django.db import connections
from sqlalchemy import text

import ps_django
import ps_sqlalchemy
from ps_core import use_token
from ps_core.consistency import InvalidToken, Token, parse_lsn
from ps_lab import Lab
from ps_lab.processes import wait_until
from tests.adversity.applications import BOUNCERS
from tests.adversity.harness import prepare
from tests.adversity.matrix import Matrix

LOOK = "SELECT pg_is_in_recovery(), (SELECT count(*) FROM ledger)"
FAR = parse_lsn("FFFF/0")
"""A position that no replica of the lab reaches."""

Reader = Callable[[], tuple[bool, int]]
"""Reads as an application that may be answered by a replica: whether one did, and how many rows it saw."""


@contextmanager
def sqlalchemy(lab: Lab) -> Iterator[Reader]:
    """Read with a session."""
    engine = ps_sqlalchemy.create_engine(lab.url, **BOUNCERS)

    def read() -> tuple[bool, int]:
        with ps_sqlalchemy.Session(engine) as session:
            by_replica, rows = session.execute(text(LOOK)).one()
        return by_replica, rows

    try:
        yield read
    finally:
        engine.dispose()


@contextmanager
def asynchronous(lab: Lab) -> Iterator[Reader]:
    """Read with a session of asyncio."""
    engine = ps_sqlalchemy.create_async_engine(lab.url, **BOUNCERS)

    async def aread() -> tuple[bool, int]:
        async with ps_sqlalchemy.AsyncSession(engine) as session:
            by_replica, rows = (await session.execute(text(LOOK))).one()
        return by_replica, rows

    with asyncio.Runner() as runner:
        try:
            yield lambda: runner.run(aread(), context=copy_context())
        finally:
            runner.run(engine.dispose())


@contextmanager
def django(lab: Lab) -> Iterator[Reader]:
    """Read with the replica alias, where the router sends what reads."""

    def read() -> tuple[bool, int]:
        with ps_django.reading(), connections["replica"].cursor() as cursor:
            cursor.execute(LOOK)
            by_replica, rows = cursor.fetchone()
        return by_replica, rows

    yield read


@pytest.fixture(params=[sqlalchemy, asynchronous, django], ids=lambda user: user.__name__)
def read(request: pytest.FixtureRequest, ps_lab: Lab, site: None) -> Iterator[Reader]:
    """Each of the applications."""
    prepare(ps_lab)
    with request.param(ps_lab) as read:
        yield read


def write(lab: Lab) -> None:
    """Write a row."""
    engine = ps_sqlalchemy.create_engine(lab.url, **BOUNCERS)
    with ps_sqlalchemy.Session(engine) as session, session.begin():
        session.execute(text("INSERT INTO ledger VALUES (1)"))
    engine.dispose()


def token_of_write(lab: Lab) -> str:
    """Write a row in another request, and return what its user carries on."""
    with use_token(None) as tracker:
        write(lab)
        return str(tracker.token)


def test_timeline(ps_lab: Lab, matrix: Matrix, read: Reader) -> None:
    """A token of before a promotion is honoured after it: no replica that has less answers, and those that have it do."""
    ps_lab.set_replay_delay(60)
    try:
        token = token_of_write(ps_lab)
        before = timeline(ps_lab)
        ps_lab.crash_primary(detection=0.1)
        ps_lab.sql("INSERT INTO ledger VALUES (2)")
        assert timeline(ps_lab) > before
        with use_token(token):
            assert min(rows for _, rows in (read() for _ in range(8))) >= 1
        newer = token_of_write(ps_lab)
        with use_token(newer, identity=ps_lab.branch):
            assert read() == (False, 3)
    finally:
        ps_lab.set_replay_delay(0)
    with use_token(None):
        wait_until(lambda: read()[0], "an answer of a replica")
    for given in (token, newer):
        with use_token(given, identity=ps_lab.branch):
            assert [read() for _ in range(4)] == [(True, 3)] * 4
    matrix.sees(
        "A promotion, with tokens of the old timeline",
        "what they have seen before, or more: from the primary until a replica has it, then from replicas",
    )


def timeline(lab: Lab) -> str:
    """Return the primary's timeline."""
    return str(lab.sql("SELECT left(pg_walfile_name(pg_current_wal_insert_lsn()), 8)")[0][0])


@pytest.mark.parametrize(
    ("identity", "age", "warning"),
    [("other", 0, None), ("other", -30, None), (None, 301, "expired"), (None, -3600, "from the future")],
    ids=["branch", "branch ahead", "expired", "future"],
)
def test_counts_for_nothing(
    ps_lab: Lab,
    matrix: Matrix,
    read: Reader,
    caplog: pytest.LogCaptureFixture,
    identity: str | None,
    age: float,
    warning: str | None,
) -> None:
    """Such a token pins nobody to the primary, and takes nothing from what is seen under it."""
    token = Token(identity=identity or ps_lab.branch, position=FAR, at=time.time() - age)
    with caplog.at_level(logging.WARNING, "ps_core"), use_token(str(token)):
        assert read() == (True, 0)
        ps_lab.set_replay_delay(60)
        try:
            write(ps_lab)
            assert read() == (False, 1)
        finally:
            ps_lab.set_replay_delay(0)
    assert caplog.messages == ([f"ignored a consistency token: {warning}: see {InvalidToken.url}"] if warning else [])
    matrix.sees("A token of another branch, or an expired one", "nothing: it is ignored, with a warning where it has expired")
