"""COMMIT waits for its replica and somebody cancels it: the server then reports a success that a promotion may undo."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest
import sqlalchemy as sa
from django.db import OperationalError, connections, transaction
from psycopg.pq import TransactionStatus
from sqlalchemy import text

import ps_django.transaction
import ps_sqlalchemy
from ps_core import AsyncConnection
from ps_core._connection.cursors import AsyncServerBindingCursor
from ps_core.context import deadline
from ps_core.errors import CommitOutcomeUnknown
from ps_lab import Lab
from tests.adversity.applications import BOUNCERS
from tests.adversity.harness import Doing, Paths, prepare
from tests.adversity.matrix import Matrix
from tests.adversity.test_commit_in_flight import WAITS, ledger, replicas_cut_off

INSERT = "INSERT INTO ledger VALUES (1)"
CANCEL = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"


@pytest.fixture
def engine(ps_lab: Lab) -> Iterator[ps_sqlalchemy.Engine]:
    """An engine as the README makes it."""
    engine = ps_sqlalchemy.create_engine(ps_lab.url, **BOUNCERS)
    yield engine
    engine.dispose()


def unknown(work: Doing) -> bool:
    """Return whether the caller was told, in the framework's own error, that the outcome is unknown."""
    with pytest.raises((sa.exc.OperationalError, OperationalError)) as caught:
        work.end()
    return isinstance(getattr(caught.value, "orig", caught.value.__cause__), CommitOutcomeUnknown)


def in_asyncio(lab: Lab, work: Callable[[ps_sqlalchemy.AsyncEngine], Any]) -> Any:
    """Run `work` with an asyncio engine of its own."""

    async def run() -> Any:
        engine = ps_sqlalchemy.create_async_engine(lab.url, **BOUNCERS)
        try:
            return await work(engine)
        finally:
            await engine.dispose()

    return asyncio.run(run())


def in_thread(work: Callable[[], Any]) -> Doing:
    """Run what uses Django's connections in a thread, and close that thread's connections."""

    def run() -> Any:
        try:
            return work()
        finally:
            connections.close_all()

    return Doing(run)


def execute() -> None:
    """Write with Django."""
    with connections["default"].cursor() as cursor:
        cursor.execute(INSERT)


def test_nobody_is_told_of_success(ps_lab: Lab, paths: Paths, matrix: Matrix, engine: ps_sqlalchemy.Engine, site: None) -> None:
    """All hear that the outcome is unknown, and none runs its transaction again: after the promotion nothing is there."""
    prepare(ps_lab)
    calls: list[str] = []

    def insert(session: Any) -> None:
        calls.append("sqlalchemy")
        session.execute(text(INSERT))

    async def ainsert(session: Any) -> None:
        calls.append("asyncio")
        await session.execute(text(INSERT))

    async def arun(engine: ps_sqlalchemy.AsyncEngine) -> None:
        await ps_sqlalchemy.arun_transaction(ps_sqlalchemy.async_sessionmaker(engine), ainsert)

    def django() -> None:
        calls.append("django")
        execute()

    stock = paths.stock("primary", autocommit=False)
    stock.execute("INSERT INTO ledger VALUES (2)")
    with replicas_cut_off(ps_lab) as waiting:
        works = [
            Doing(ps_sqlalchemy.run_transaction, ps_sqlalchemy.sessionmaker(engine), insert),
            Doing(in_asyncio, ps_lab, arun),
            in_thread(lambda: ps_django.transaction.run_transaction(django)),
        ]
        believes = Doing(stock.commit)
        waiting(4)
        ps_lab.sql(CANCEL)
        believes.end()  # stock psycopg says that all is well
        assert [unknown(work) for work in works] == [True] * 3
        assert ledger(ps_lab) == [1, 1, 1, 2]
        ps_lab.crash_primary(detection=0.1)
    assert ledger(ps_lab) == []
    assert sorted(calls) == ["asyncio", "django", "sqlalchemy"]
    with ps_sqlalchemy.Session(engine) as session, session.begin():
        insert(session)
    assert ledger(ps_lab) == [1]
    matrix.sees("COMMIT's wait for its replica is cancelled", "an error that says that nobody can tell; never a success")


@pytest.mark.parametrize("user", ["sqlalchemy", "asyncio", "django"])
def test_single_write(ps_lab: Lab, engine: ps_sqlalchemy.Engine, site: None, user: str) -> None:
    """The same for a write in autocommit, whose COMMIT travels with it."""
    prepare(ps_lab)

    def sqlalchemy() -> None:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
            conn.execute(text(INSERT))

    async def aexecute(engine: ps_sqlalchemy.AsyncEngine) -> None:
        async with engine.connect() as conn:
            await conn.execution_options(isolation_level="AUTOCOMMIT")
            await conn.execute(text(INSERT))

    work = {"sqlalchemy": sqlalchemy, "asyncio": lambda: in_asyncio(ps_lab, aexecute), "django": execute}[user]
    with replicas_cut_off(ps_lab) as waiting:
        doing = in_thread(work)
        waiting(1)
        ps_lab.sql(CANCEL)
        assert unknown(doing)
    assert ledger(ps_lab) == [1]


@pytest.mark.parametrize("how", ["cancel", "timeout"])
def test_task_is_cancelled(ps_lab: Lab, matrix: Matrix, how: str) -> None:
    """A task that is cancelled in its COMMIT waits for the answer and is cancelled then, with what it wrote on the replicas."""
    prepare(ps_lab)

    async def work(engine: ps_sqlalchemy.AsyncEngine) -> None:
        committing = asyncio.Event()

        async def transact() -> None:
            async with ps_sqlalchemy.AsyncSession(engine) as session, session.begin():
                await session.execute(text(INSERT))
                committing.set()

        limit = asyncio.timeout(None)  # over when the COMMIT is under way

        async def transact_in_time() -> None:
            async with limit:
                await transact()

        with ExitStack() as stack:
            waiting = await asyncio.to_thread(stack.enter_context, replicas_cut_off(ps_lab))
            task = asyncio.create_task(transact() if how == "cancel" else transact_in_time())
            await committing.wait()
            await asyncio.to_thread(waiting, 1)
            if how == "cancel":
                task.cancel()
            else:
                limit.reschedule(0)
            done, _ = await asyncio.wait([task], timeout=0.4)
            assert not done
            assert await asyncio.to_thread(ps_lab.sql, WAITS) == [(1,)], "the server was told"
            await asyncio.to_thread(stack.close)
        with pytest.raises(asyncio.CancelledError if how == "cancel" else TimeoutError):
            await task
        assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        async with ps_sqlalchemy.AsyncSession(engine) as session:
            assert await session.scalar(text("SELECT count(*) FROM ledger")) == 1

    in_asyncio(ps_lab, work)
    assert ledger(ps_lab) == [1]
    matrix.sees("A task is cancelled while its COMMIT waits for its replica", "the cancellation, once the COMMIT is answered")


async def several(conn: AsyncConnection[Any]) -> None:
    await conn.execute(f"{INSERT}; SELECT 1")


async def many(conn: AsyncConnection[Any]) -> None:
    await conn.cursor().executemany("INSERT INTO ledger VALUES (%s)", [(1,)])


async def copied(conn: AsyncConnection[Any]) -> None:
    async with conn.cursor().copy("COPY ledger (id) FROM STDIN") as copy:
        await copy.write_row((1,))


async def by_server(conn: AsyncConnection[Any]) -> None:
    await AsyncServerBindingCursor(conn).execute("INSERT INTO ledger VALUES (%s)", (1,))


async def by_text(conn: AsyncConnection[Any]) -> None:
    await conn.execute("BEGIN")
    await conn.execute(INSERT)
    await conn.execute("/* of the caller's own */ COMMIT")


async def piped(conn: AsyncConnection[Any]) -> None:
    async with conn.pipeline():
        await conn.execute(INSERT)


async def inserted(conn: AsyncConnection[Any]) -> None:
    await conn.execute(INSERT)


@pytest.mark.parametrize("tracks", [True, False])
@pytest.mark.parametrize("way", [inserted, several, many, copied, by_server, by_text, piped])
def test_task_with_a_single_write_is_cancelled(
    ps_lab: Lab, paths: Paths, way: Callable[[AsyncConnection[Any]], Any], tracks: bool
) -> None:
    """A write in autocommit has its COMMIT in its own message: cancelling its task sends no cancel, however it travels."""
    prepare(ps_lab)
    state = paths.state("primary")
    state.tracks = tracks

    async def work() -> None:
        conn = await AsyncConnection.open(state, autocommit=True)
        try:
            with ExitStack() as stack:
                waiting = await asyncio.to_thread(stack.enter_context, replicas_cut_off(ps_lab))
                task = asyncio.create_task(way(conn))
                await asyncio.to_thread(waiting, 1)
                task.cancel()
                done, _ = await asyncio.wait([task], timeout=0.2)
                assert not done
                assert await asyncio.to_thread(ps_lab.sql, WAITS) == [(1,)], "the server was told"
                await asyncio.to_thread(stack.close)
            with pytest.raises(asyncio.CancelledError):
                await task
        finally:
            await conn.close()

    asyncio.run(work())
    assert ledger(ps_lab) == [1]


def test_what_only_reads_is_cancelled(paths: Paths) -> None:
    """What holds no COMMIT is cancelled as stock cancels it: a read in autocommit, a statement of a transaction, maintenance."""

    async def work(autocommit: bool, query: str) -> None:
        conn = await AsyncConnection.open(paths.state("primary"), autocommit=autocommit)
        try:
            with pytest.raises(asyncio.TimeoutError):
                async with asyncio.timeout(0.1):
                    await conn.execute(query)
            assert conn.info.transaction_status != TransactionStatus.ACTIVE
        finally:
            await conn.close()

    began = time.monotonic()
    for autocommit, query in (
        (True, "SELECT pg_sleep(1.5)"),
        (False, "SELECT pg_sleep(1.5)"),
        (False, "SELECT pg_sleep(1.5) FOR UPDATE"),
    ):
        asyncio.run(work(autocommit, query))
    assert time.monotonic() - began < 1.5


@pytest.mark.parametrize("way", ["stream", "copy"])
def test_what_is_read_in_part_is_cancelled(paths: Paths, way: str) -> None:
    """A stream of rows, or a COPY to the client, that is left early is cancelled, as with stock: else all of it is awaited."""
    conn = paths.ours("direct")
    rows = "SELECT repeat('x', 20000), pg_sleep(0.2) FROM generate_series(1, 40)"
    began = time.monotonic()
    if way == "stream":
        stream = conn.cursor().stream(rows)
        next(stream)
        stream.close()  # type: ignore[attr-defined]
    else:
        with suppress(InterruptedError), conn.cursor().copy(f"COPY ({rows}) TO STDOUT") as copy:
            next(iter(copy))
            raise InterruptedError
    assert conn.execute("SELECT 1").fetchone() == (1,)
    assert time.monotonic() - began < 6


def test_deadline_ends_the_wait(ps_lab: Lab, matrix: Matrix, engine: ps_sqlalchemy.Engine, site: None) -> None:
    """A deadline bounds the wait for COMMIT's answer, whose outcome is unknown then; the COMMIT itself goes on."""
    prepare(ps_lab)

    # The deadline is the COMMIT's alone: it is not over before, however long it takes to connect.
    def sqlalchemy() -> None:
        with ExitStack() as bound, ps_sqlalchemy.Session(engine) as session, session.begin():
            session.execute(text(INSERT))
            bound.enter_context(deadline(0.5))

    async def asynchronous(engine: ps_sqlalchemy.AsyncEngine) -> None:
        with ExitStack() as bound:
            async with ps_sqlalchemy.AsyncSession(engine) as session, session.begin():
                await session.execute(text(INSERT))
                bound.enter_context(deadline(0.5))

    def django() -> None:
        with ExitStack() as bound, transaction.atomic():
            execute()
            bound.enter_context(deadline(0.5))

    with replicas_cut_off(ps_lab):
        works = [in_thread(sqlalchemy), Doing(in_asyncio, ps_lab, asynchronous), in_thread(django)]
        assert [unknown(work) for work in works] == [True] * 3
    assert ledger(ps_lab) == [1, 1, 1]
    matrix.sees("A deadline passes while COMMIT waits for its replica", "an error that says that nobody can tell, in time")
