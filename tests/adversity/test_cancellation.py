"""Somebody gives up in the middle of a retry, while the endpoints are away: a task, a thread pool, an operator's Ctrl-C."""

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from types import FrameType
from typing import Any

import pytest
from sqlalchemy import text

import ps_sqlalchemy
from ps_core.context import deadline
from ps_core.errors import DeadlineExceeded
from ps_core.events import Event, Name, subscribe
from ps_lab import Lab
from ps_lab.processes import wait_until
from tests.adversity.applications import BOUNCERS, Application, Django, SQLAlchemy
from tests.adversity.harness import Doing
from tests.adversity.matrix import Matrix

SELECT = "SELECT 1"


class Interrupted(BaseException):
    """What an operator's Ctrl-C raises: not an Exception."""


@contextmanager
def away(lab: Lab) -> Iterator[Callable[[], None]]:
    """Break what is connected, and refuse new connections. Yields what waits until somebody has tried again twice."""
    tries: list[Event] = []
    unsubscribe = subscribe(lambda event: tries.append(event) if event.name is Name.RETRY else None)

    def tried() -> None:
        seen = len(tries)
        wait_until(lambda: len(tries) >= seen + 2, "tries")

    try:
        with lab.edge.refuse("08006", f"no primary available for branch {lab.branch}"):
            lab.edge.cut()
            yield tried
    finally:
        unsubscribe()


def once(application: Application) -> list[int]:
    """Read in a thread, and leave no connection there."""
    try:
        return application.execute(SELECT, "primary")
    finally:
        application.renew()


@pytest.mark.parametrize("transaction", [False, True], ids=["read", "transaction"])
async def test_tasks(ps_lab: Lab, matrix: Matrix, transaction: bool) -> None:
    """Tasks that are cancelled end at once, whoever of them probes; the others go on, and no connection is missing."""
    engine = ps_sqlalchemy.create_async_engine(ps_lab.url, **BOUNCERS, pool_size=8)

    async def work() -> Any:
        async with ps_sqlalchemy.AsyncSession(engine) as session:
            if transaction:
                await session.begin()
            return await session.scalar(text("SELECT 1"))

    try:
        await asyncio.gather(*(work() for _ in range(8)))
        with away(ps_lab) as tried:
            tasks = [asyncio.create_task(work()) for _ in range(8)]
            await asyncio.to_thread(tried)
            for task in tasks[:6]:
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await asyncio.wait_for(asyncio.shield(task), 5)
            await asyncio.to_thread(tried)
            assert not any(task.done() for task in tasks[6:])
        assert await asyncio.wait_for(asyncio.gather(*tasks[6:]), 20) == [1, 1]
        assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        assert await asyncio.wait_for(asyncio.gather(*(work() for _ in range(8))), 20) == [1] * 8
    finally:
        await engine.dispose()
    matrix.sees("A caller gives up in the middle of a retry", "its own cancellation, at once; the others go on")


def test_thread_pool(ps_lab: Lab, applications: list[Application]) -> None:
    """A pool of threads that is shut down ends with the deadlines of its threads; what comes later meets no closed gate."""
    for application in applications:
        application.execute(SELECT, "primary")

    def bounded(application: Application) -> bool:
        with deadline("3s"):  # not over before the pool is shut down
            try:
                once(application)
            except DeadlineExceeded:
                return True
        return False

    with away(ps_lab) as tried:
        pool = ThreadPoolExecutor(len(applications))
        futures = [pool.submit(copy_context().run, bounded, application) for application in applications]
        tried()
        late = pool.submit(bounded, applications[0])
        pool.shutdown(cancel_futures=True)
        assert [future.result(0) for future in futures] == [True] * len(applications)
        assert late.cancelled()
    for application in applications:
        assert Doing(once, application).end(20) == [1]


@pytest.mark.parametrize("kind", [SQLAlchemy, Django])
def test_interrupt(ps_lab: Lab, applications: list[Application], kind: type[Application]) -> None:
    """Ctrl-C ends the wait of the thread that it hits, in the midst of a try or before one; another thread goes on."""
    application = next(found for found in applications if type(found) is kind)
    application.execute(SELECT, "primary")

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Interrupted

    def interrupt_after(tried: Callable[[], None]) -> None:
        tried()
        signal.pthread_kill(main, signal.SIGUSR1)

    main = threading.get_ident()
    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with away(ps_lab) as tried:
            other = Doing(once, application)
            tried()
            for _ in range(3):
                killer = Doing(interrupt_after, tried)
                with pytest.raises(Interrupted):
                    application.execute(SELECT, "primary")
                killer.end(20)
            tried()
            assert not other.done
        assert other.end(20) == [1]
        assert application.execute(SELECT, "primary") == [1]
    finally:
        signal.signal(signal.SIGUSR1, before)
