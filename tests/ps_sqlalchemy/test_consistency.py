"""Sessions see what they have seen before, writes that look like reads run once, and whole transactions run again."""

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy import select, text

from ps_core import current_token, limits, use_token
from ps_lab import Lab
from ps_sqlalchemy import (
    AsyncSession,
    Engine,
    Session,
    arun_transaction,
    create_async_engine,
    create_engine,
    run_transaction,
    sessionmaker,
)
from tests.ps_sqlalchemy.conftest import SERVED_BY_REPLICA, Item


def test_own_writes_are_seen(ps_lab: Lab, engine: Engine, items: type[Item]) -> None:
    """With a replay delay, a fresh session of the same context reads its write, on the primary, and later on replicas again."""
    ps_lab.set_replay_delay(60)
    try:
        for number in range(20):
            with Session(engine) as session:
                session.add(items(id=number, note="a"))
                session.commit()
            with Session(engine) as session:
                assert session.get(items, number) is not None
        token = str(current_token())
        with use_token(None), Session(engine) as session:
            assert session.scalar(SERVED_BY_REPLICA) is True
        with use_token(token, identity=ps_lab.branch), Session(engine) as session:
            assert session.scalar(SERVED_BY_REPLICA) is False
    finally:
        ps_lab.set_replay_delay(0)
    with use_token(token, identity=ps_lab.branch), Session(engine) as session:
        assert session.scalar(SERVED_BY_REPLICA) is True


def test_another_thread(ps_lab: Lab, engine: Engine, items: type[Item]) -> None:
    """A thread begins with nothing seen; with a copy of the context it sees what its starter wrote, as `to_thread` makes one."""
    ps_lab.wait_replicas_caught_up()

    def read() -> bool:
        with Session(engine) as session:
            return session.get(items, 1) is not None

    ps_lab.set_replay_delay(60)
    try:
        with use_token(None), ThreadPoolExecutor(1) as pool:
            with Session(engine) as session:
                session.add(items(id=1, note="a"))
                session.commit()
            assert pool.submit(read).result() is False
            assert pool.submit(copy_context().run, read).result() is True
            assert asyncio.run(asyncio.to_thread(read)) is True
    finally:
        ps_lab.set_replay_delay(0)


PAIRS = int(os.environ.get("PS_PAIRS", "200"))
"""Write-then-read pairs of `test_pairs`; 10,000 is what the documentation tells of."""


def test_pairs(ps_lab: Lab, engine: Engine, items: type[Item]) -> None:
    """Writes and reads in fresh sessions, with a replay delay: none is stale, and what saw no write is read on replicas."""
    for number in range(8):
        ps_lab.sql("INSERT INTO sa_item VALUES (%s, '0')", number)
    ps_lab.wait_replicas_caught_up()
    ps_lab.set_replay_delay(0.5)

    def client(number: int) -> tuple[int, int]:
        stale = replica = 0
        with use_token(None):
            for turn in range(PAIRS // 8):
                with Session(engine) as session, session.begin():
                    session.execute(sa.update(items).where(items.id == number).values(note=str(turn)))
                with Session(engine) as session:
                    stale += session.scalar(select(items.note).where(items.id == number)) != str(turn)
                with use_token(None), Session(engine) as session:
                    replica += bool(session.scalar(SERVED_BY_REPLICA))
        return stale, replica

    try:
        with ThreadPoolExecutor(8) as clients:
            results = list(clients.map(client, range(8)))
    finally:
        ps_lab.set_replay_delay(0)
    assert sum(stale for stale, _ in results) == 0
    assert sum(replica for _, replica in results) == PAIRS // 8 * 8
    token = current_token()
    with use_token(token), Session(engine) as session:
        assert session.scalar(SERVED_BY_REPLICA) is True


def test_hidden_write_runs_once_on_the_primary(ps_lab: Lab, engine: Engine, items: type[Item]) -> None:
    """A function that writes is refused by the replica, runs on the primary, and goes there directly the next time."""
    ps_lab.sql(
        "CREATE OR REPLACE FUNCTION sa_add(n int) RETURNS int LANGUAGE sql AS"
        " 'INSERT INTO sa_item VALUES (n, ''f'') RETURNING id'"
    )
    ps_lab.wait_replicas_caught_up()
    for number, on_replica in ((1, 1), (2, 0)):
        with ps_lab.round_trips() as counter, Session(engine) as session:
            assert session.scalar(text("SELECT sa_add(:n)"), {"n": number}) == number
            session.commit()
        assert counter.by_path["replica"] == on_replica
    assert ps_lab.sql("SELECT count(*) FROM sa_item") == [(2,)]


@pytest.mark.parametrize("factory", [sessionmaker, lambda engine: engine, Session], ids=["sessionmaker", "engine", "session"])
def test_run_transaction(ps_lab: Lab, engine: Engine, items: type[Item], factory: Callable[[Engine], Any]) -> None:
    """A connection that is lost in the middle, and a conflict, run the whole function again; the result comes back once."""
    calls = []

    def work(session: Any) -> str:
        calls.append(1)
        session.execute(sa.insert(items).values(id=len(calls), note="a"))
        if len(calls) == 1:
            ps_lab.edge.cut("primary")
        if len(calls) == 2:
            raise sa.exc.OperationalError("", {}, psycopg.errors.SerializationFailure("synthetic"))
        session.execute(select(items))
        return "done"

    assert run_transaction(factory(engine), work) == "done"
    assert ps_lab.sql("SELECT id FROM sa_item") == [(3,)]


def test_two_transfers_both_finish(engine: Engine, items: type[Item]) -> None:
    """Two transactions that deadlock both finish, one of them the second time."""
    with Session(engine) as session, session.begin():
        session.add_all([items(id=1, note="0"), items(id=2, note="0")])
    barrier = threading.Barrier(2, timeout=10)
    first = {1: True, 2: True}

    def transfer(own: int, other: int) -> None:
        def work(session: Any) -> None:
            session.execute(sa.update(items).where(items.id == own).values(note=items.note + "x"))
            if first[own]:
                first[own] = False
                barrier.wait()
            session.execute(sa.update(items).where(items.id == other).values(note=items.note + "y"))

        with limits(statement="60s"):  # PostgreSQL looks for a deadlock after a second
            run_transaction(sessionmaker(engine), work)

    threads = [threading.Thread(target=transfer, args=pair) for pair in ((1, 2), (2, 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    with Session(engine) as session, session.begin():
        assert sorted(map(sorted, session.scalars(select(items.note)))) == [["0", "x", "y"]] * 2


def test_run_transaction_refuses_nesting(engine: Engine, items: type[Item]) -> None:
    """A call inside another, or on a session that is in a transaction, is a clear error; other errors are raised at once."""
    factory = sessionmaker(engine)
    with pytest.raises(RuntimeError, match="inside run_transaction"):
        run_transaction(factory, lambda _: run_transaction(factory, lambda _: None))
    with factory() as session, session.begin(), pytest.raises(RuntimeError, match="in a transaction"):
        run_transaction(session, lambda _: None)
    calls: list[int] = []

    def broken(session: Any) -> None:
        calls.append(1)
        session.execute(sa.insert(items).values(id=1, note=None))

    with pytest.raises(sa.exc.IntegrityError):
        run_transaction(factory, broken)
    assert len(calls) == 1


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_nothing_runs_again_after_the_commit(ps_lab: Lab, engine: Engine, items: type[Item], kind: str) -> None:
    """What an `after_commit` listener raises is raised: the transaction is committed, and its function does not run again."""
    calls = []

    def after_commit(session: Any) -> None:
        raise sa.exc.OperationalError("", {}, psycopg.errors.AdminShutdown("synthetic"))

    def work(session: Any) -> None:
        calls.append(1)
        if len(calls) == 1:  # before the COMMIT it does
            raise sa.exc.OperationalError("", {}, psycopg.errors.SerializationFailure("synthetic"))
        session.add(items(id=len(calls), note="a"))

    async def awork(session: Any) -> None:
        work(session)

    factory, aengine = sessionmaker(engine), create_async_engine(ps_lab.url, bouncer="write-pool")
    sa.event.listen(factory, "after_commit", after_commit)
    with pytest.raises(sa.exc.OperationalError, match="AdminShutdown"):
        if kind == "sync":
            run_transaction(factory, work)
        async with AsyncSession(aengine) as asession:
            sa.event.listen(asession.sync_session, "after_commit", after_commit)
            await arun_transaction(asession, awork)
    await aengine.dispose()
    assert len(calls) == 2
    assert ps_lab.sql("SELECT id FROM sa_item") == [(2,)]


async def test_functions_that_run_when_the_transaction_is_over(ps_lab: Lab, engine: Engine) -> None:
    """An async function in `run_transaction`, and a generator function in either, is refused with what to write."""
    factory: Any = sessionmaker(engine)
    made: Any

    async def work(session: Any) -> None:
        """Would never be awaited."""

    def generate(session: Any) -> Iterator[None]:
        yield

    async def agenerate(session: Any) -> AsyncIterator[None]:
        yield

    with ps_lab.round_trips() as trips:
        for made in (work, partial(work)):
            with pytest.raises(TypeError, match="await arun_transaction"):
                run_transaction(factory, made)
        for made in (generate, agenerate):
            with pytest.raises(TypeError, match="generator function"):
                run_transaction(factory, made)
            with pytest.raises(TypeError, match="generator function"):
                await arun_transaction(factory, made)
    assert trips.count == 0


def test_first_connection_on_a_replica_that_is_behind(ps_lab: Lab) -> None:
    """What an engine asks its first connection is no read of the caller's: their token does not matter to it."""
    engine = create_engine(ps_lab.url, bouncer="write-pool", replica_bouncer="read-pool")
    with use_token(f"1.{ps_lab.branch}.FFFFFFF-0.{int(time.time())}"), Session(engine) as session:
        assert session.scalar(text("SELECT pg_is_in_recovery()")) is False
    assert engine.replica is not None
    assert engine.replica.pool.status().startswith("Pool size: 5  Connections in pool: 1"), "it was made, and its reads refused"
    engine.dispose()
