"""A process forks with connections open, and both go on: as gunicorn does with preload_app, and multiprocessing."""

import asyncio
import json
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

from django.db import connections, transaction
from sqlalchemy import text

import ps_sqlalchemy
from ps_lab import Lab
from tests.adversity.applications import BOUNCERS
from tests.adversity.harness import prepare
from tests.adversity.matrix import Matrix

TIMES = 20
FAULT = "A fork with connections open"


@contextmanager
def child(work: Callable[[], Any]) -> Iterator[list[Any]]:
    """Run `work` in a forked process beside the block; its result is in the list afterwards."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the lab's threads have nothing to do with the child
        pid = os.fork()
    if pid == 0:  # pragma: no cover - another process
        try:
            try:
                result = [work()]
            except BaseException as exc:  # noqa: BLE001 - the parent looks at it
                result = [repr(exc)]
            os.write(write, json.dumps(result).encode())
        finally:
            os._exit(0)
    os.close(write)
    results: list[Any] = []
    with os.fdopen(read) as pipe:
        try:
            yield results
        finally:
            results += json.loads(pipe.read() or "[]")
            os.waitpid(pid, 0)


def sockets(*driver_connections: Any) -> list[int]:
    """Return what distinguishes the sockets of connections, in whichever process."""
    return [os.fstat(conn.pgconn.socket).st_ino for conn in driver_connections]


def served(matrix: Matrix, lab: Lab, here: list[int], there: list[Any]) -> None:
    """Check that the processes used different connections, and that every write of either is there once."""
    assert isinstance(there[0], list), there
    assert len(here) == len(there[0]) == 2
    assert not {*here} & {*there[0]}
    assert sorted(lab.sql("SELECT id FROM ledger")) == sorted((number,) for number in (1, 2) for _ in range(TIMES))
    matrix.sees(FAULT, "nothing: parent and child have connections of their own")


def test_sqlalchemy(ps_lab: Lab, matrix: Matrix) -> None:
    """Engines whose connections are in the pool, and one that is checked out in the parent's transaction."""
    prepare(ps_lab)

    def work(number: int) -> list[int]:
        for _ in range(TIMES):
            with ps_sqlalchemy.Session(engine) as session:
                session.scalar(text("SELECT 1"))
            with ps_sqlalchemy.Session(engine) as session, session.begin():
                session.execute(text(f"INSERT INTO ledger VALUES ({number})"))
        assert engine.replica is not None
        with engine.connect() as primary, engine.replica.connect() as replica:
            return sockets(primary.connection.driver_connection, replica.connection.driver_connection)

    with closing_engine(ps_lab) as engine:
        before = {*work(0)}
        ps_lab.sql("TRUNCATE ledger")
        with ps_sqlalchemy.Session(engine) as session, session.begin():
            session.execute(text("INSERT INTO ledger VALUES (0)"))
            with child(lambda: work(2)) as there:
                here = work(1)
            session.rollback()
    served(matrix, ps_lab, here, there)
    assert before & {*here}, "the parent keeps what it has"


@contextmanager
def closing_engine(lab: Lab) -> Iterator[ps_sqlalchemy.Engine]:
    """An engine as the README makes it."""
    engine = ps_sqlalchemy.create_engine(lab.url, **BOUNCERS)
    try:
        yield engine
    finally:
        engine.dispose()


def test_asyncio(ps_lab: Lab, matrix: Matrix) -> None:
    """An engine of asyncio, in the parent's loop and in one of the child's."""
    prepare(ps_lab)
    engine = ps_sqlalchemy.create_async_engine(ps_lab.url, **BOUNCERS)

    async def work(number: int) -> list[int]:
        for _ in range(TIMES):
            async with ps_sqlalchemy.AsyncSession(engine) as session:
                await session.scalar(text("SELECT 1"))
            async with ps_sqlalchemy.AsyncSession(engine) as session, session.begin():
                await session.execute(text(f"INSERT INTO ledger VALUES ({number})"))
        assert engine.replica is not None
        async with engine.connect() as primary, engine.replica.connect() as replica:
            raw = [await conn.get_raw_connection() for conn in (primary, replica)]
            return sockets(*(conn.driver_connection for conn in raw))

    loop = asyncio.new_event_loop()
    with closing(loop):
        before = {*loop.run_until_complete(work(0))}
        ps_lab.sql("TRUNCATE ledger")
        with child(lambda: asyncio.run(work(2))) as there:
            here = loop.run_until_complete(work(1))
        loop.run_until_complete(engine.dispose())
    served(matrix, ps_lab, here, there)
    assert before & {*here}, "the parent keeps what it has"


def test_django(ps_lab: Lab, matrix: Matrix, site: None) -> None:
    """Django's connections of this thread, which a child inherits with it."""
    prepare(ps_lab)

    def work(number: int) -> list[int]:
        for _ in range(TIMES):
            with connections["replica"].cursor() as cursor:
                cursor.execute("SELECT 1")
            with transaction.atomic(), connections["default"].cursor() as cursor:
                cursor.execute(f"INSERT INTO ledger VALUES ({number})")
        return sockets(connections["default"].connection, connections["replica"].connection)

    before = work(0)
    ps_lab.sql("TRUNCATE ledger")
    with child(lambda: work(2)) as there:
        here = work(1)
    served(matrix, ps_lab, here, there)
    assert before == here, "the parent keeps what it has"
