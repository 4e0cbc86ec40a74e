"""A deadline holds in every way of sending: what is under way when nothing is answered any more ends in time."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal

import pytest

from ps_core import AsyncConnection, CommitOutcomeUnknown, Connection, DeadlineExceeded, connect, deadline, limits
from ps_core._retry import deadline as of_deadlines
from ps_lab.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from ps_core._endpoint import EndpointState
    from ps_lab import Lab

AFTER = 0.05
"""Seconds of the deadlines."""
GRACE = 0.05
"""Seconds of the grace in these tests: what is shown is that it ends, and shorter is sooner."""
SLACK = 0.5
"""Seconds beyond the deadline and its grace: two looks at the clock, and the machine's own time."""

LARGE = "SELECT repeat('x', 1000) FROM generate_series(1, 20000)"
"""More than what is on the way may hold."""
INSERT = "INSERT INTO item VALUES (%s)"


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let deadlines have less grace."""
    monkeypatch.setattr(of_deadlines, "GRACE", GRACE)


class Ways:
    """The ways of sending, each of which meets the fault while it is under way."""

    def opening(self, conn: Connection[Any], fault: Callable[[], None]) -> None:
        fault()
        conn.execute("SELECT 1")

    def second_statement(self, conn: Connection[Any], fault: Callable[[], None]) -> None:
        conn.execute("SELECT 1")
        fault()
        conn.execute("SELECT 2")

    def second_write(self, conn: Connection[Any], fault: Callable[[], None]) -> None:
        conn.execute("SELECT 1")
        fault()
        conn.execute(INSERT, (1,))

    def executemany(self, conn: Connection[Any], fault: Callable[[], None]) -> None:
        fault()
        conn.cursor().executemany(INSERT, [(1,), (2,)])

    def executemany_within(self, conn: Connection[Any], fault: Callable[[], None]) -> None:
        conn.execute("SELECT 1")
        fault()
        conn.cursor().executemany(INSERT, [(1,), (2,)], returning=False)

    def copy_in_begins(self, conn: Connection[Any], fault: Callable[[], None]) -> None:
        fault()
        with conn.cursor().copy("COPY item FROM STDIN"):
            pass

    def copy_in_ends(self, conn: Connection[Any], fault: Callable[[], None]) -> None:
        with conn.cursor().copy("COPY item FROM STDIN") as copy:
            copy.write_row((1, "one"))
            fault()

    def copy_in_writes(self, conn: Connection[Any], fault: Callable[[], None]) -> None:
        with conn.cursor().copy("COPY item FROM STDIN") as copy:
            fault()
            while True:
                copy.write(b"1\tone\n" * 10_000)

    def copy_out_begins(self, conn: Connection[Any], fault: Callable[[], None]) -> None:
        fault()
        with conn.cursor().copy(f"COPY ({LARGE}) TO STDOUT") as copy:
            copy.read()

    def copy_out_reads(self, conn: Connection[Any], fault: Callable[[], None]) -> None:
        with conn.cursor().copy(f"COPY ({LARGE}) TO STDOUT") as copy:
            copy.read()
            fault()
            for _ in copy:
                pass

    def stream_begins(self, conn: Connection[Any], fault: Callable[[], None]) -> None:
        fault()
        for _ in conn.cursor().stream(LARGE):
            pass

    def stream_goes_on(self, conn: Connection[Any], fault: Callable[[], None]) -> None:
        begun = False
        for _ in conn.cursor().stream(LARGE):
            if not begun:
                fault()
            begun = True

    def pipeline_syncs(self, conn: Connection[Any], fault: Callable[[], None]) -> None:
        with conn.pipeline() as pipeline:
            conn.execute("SELECT 1")
            pipeline.sync()
            fault()
            conn.execute("SELECT 2")
            pipeline.sync()

    def pipeline_fetches(self, conn: Connection[Any], fault: Callable[[], None]) -> None:
        with conn.pipeline():
            fault()
            conn.execute("SELECT 1").fetchone()

    def pipeline_ends(self, conn: Connection[Any], fault: Callable[[], None]) -> None:
        with conn.pipeline():
            conn.execute("SELECT 1")
            fault()

    def named_cursor_declares(self, conn: Connection[Any], fault: Callable[[], None]) -> None:
        with conn.cursor("named") as cursor:
            fault()
            cursor.execute(LARGE)

    def named_cursor_fetches(self, conn: Connection[Any], fault: Callable[[], None]) -> None:
        with conn.cursor("named") as cursor:
            cursor.execute(LARGE)
            fault()
            cursor.fetchone()

    def savepoint_begins(self, conn: Connection[Any], fault: Callable[[], None]) -> None:
        with conn.transaction():
            conn.execute("SELECT 1")
            fault()
            with conn.transaction():
                pass

    def savepoint_within(self, conn: Connection[Any], fault: Callable[[], None]) -> None:
        with conn.transaction(), conn.transaction():
            conn.execute("SELECT 1")
            fault()
            conn.execute("SELECT 2")

    def savepoint_ends(self, conn: Connection[Any], fault: Callable[[], None]) -> None:
        with conn.transaction(), conn.transaction():
            conn.execute("SELECT 1")
            fault()

    def commit(self, conn: Connection[Any], fault: Callable[[], None]) -> None:
        conn.execute(INSERT, (1,))
        fault()
        conn.commit()

    def commit_of_block(self, conn: Connection[Any], fault: Callable[[], None]) -> None:
        with conn.transaction():
            conn.execute(INSERT, (1,))
            fault()

    def commit_of_reads(self, conn: Connection[Any], fault: Callable[[], None]) -> None:
        conn.execute("SELECT 1")
        fault()
        conn.commit()

    def notifies(self, conn: Connection[Any], fault: Callable[[], None]) -> None:
        conn.set_autocommit(True)
        fault()
        for _ in conn.notifies():
            pass


class AsyncWays:
    """The same for asyncio."""

    async def opening(self, conn: AsyncConnection[Any], fault: Callable[[], None]) -> None:
        fault()
        await conn.execute("SELECT 1")

    async def second_statement(self, conn: AsyncConnection[Any], fault: Callable[[], None]) -> None:
        await conn.execute("SELECT 1")
        fault()
        await conn.execute("SELECT 2")

    async def second_write(self, conn: AsyncConnection[Any], fault: Callable[[], None]) -> None:
        await conn.execute("SELECT 1")
        fault()
        await conn.execute(INSERT, (1,))

    async def executemany(self, conn: AsyncConnection[Any], fault: Callable[[], None]) -> None:
        fault()
        await conn.cursor().executemany(INSERT, [(1,), (2,)])

    async def executemany_within(self, conn: AsyncConnection[Any], fault: Callable[[], None]) -> None:
        await conn.execute("SELECT 1")
        fault()
        await conn.cursor().executemany(INSERT, [(1,), (2,)])

    async def copy_in_begins(self, conn: AsyncConnection[Any], fault: Callable[[], None]) -> None:
        fault()
        async with conn.cursor().copy("COPY item FROM STDIN"):
            pass

    async def copy_in_ends(self, conn: AsyncConnection[Any], fault: Callable[[], None]) -> None:
        async with conn.cursor().copy("COPY item FROM STDIN") as copy:
            await copy.write_row((1, "one"))
            fault()

    async def copy_in_writes(self, conn: AsyncConnection[Any], fault: Callable[[], None]) -> None:
        async with conn.cursor().copy("COPY item FROM STDIN") as copy:
            fault()
            while True:
                await copy.write(b"1\tone\n" * 10_000)

    async def copy_out_begins(self, conn: AsyncConnection[Any], fault: Callable[[], None]) -> None:
        fault()
        async with conn.cursor().copy(f"COPY ({LARGE}) TO STDOUT") as copy:
            await copy.read()

    async def copy_out_reads(self, conn: AsyncConnection[Any], fault: Callable[[], None]) -> None:
        async with conn.cursor().copy(f"COPY ({LARGE}) TO STDOUT") as copy:
            await copy.read()
            fault()
            async for _ in copy:
                pass

    async def stream_begins(self, conn: AsyncConnection[Any], fault: Callable[[], None]) -> None:
        fault()
        async for _ in conn.cursor().stream(LARGE):
            pass

    async def stream_goes_on(self, conn: AsyncConnection[Any], fault: Callable[[], None]) -> None:
        begun = False
        async for _ in conn.cursor().stream(LARGE):
            if not begun:
                fault()
            begun = True

    async def pipeline_syncs(self, conn: AsyncConnection[Any], fault: Callable[[], None]) -> None:
        async with conn.pipeline() as pipeline:
            await conn.execute("SELECT 1")
            await pipeline.sync()
            fault()
            await conn.execute("SELECT 2")
            await pipeline.sync()

    async def pipeline_fetches(self, conn: AsyncConnection[Any], fault: Callable[[], None]) -> None:
        async with conn.pipeline():
            fault()
            await (await conn.execute("SELECT 1")).fetchone()

    async def pipeline_ends(self, conn: AsyncConnection[Any], fault: Callable[[], None]) -> None:
        async with conn.pipeline():
            await conn.execute("SELECT 1")
            fault()

    async def named_cursor_declares(self, conn: AsyncConnection[Any], fault: Callable[[], None]) -> None:
        async with conn.cursor("named") as cursor:
            fault()
            await cursor.execute(LARGE)

    async def named_cursor_fetches(self, conn: AsyncConnection[Any], fault: Callable[[], None]) -> None:
        async with conn.cursor("named") as cursor:
            await cursor.execute(LARGE)
            fault()
            await cursor.fetchone()

    async def savepoint_begins(self, conn: AsyncConnection[Any], fault: Callable[[], None]) -> None:
        async with conn.transaction():
            await conn.execute("SELECT 1")
            fault()
            async with conn.transaction():
                pass

    async def savepoint_within(self, conn: AsyncConnection[Any], fault: Callable[[], None]) -> None:
        async with conn.transaction(), conn.transaction():
            await conn.execute("SELECT 1")
            fault()
            await conn.execute("SELECT 2")

    async def savepoint_ends(self, conn: AsyncConnection[Any], fault: Callable[[], None]) -> None:
        async with conn.transaction(), conn.transaction():
            await conn.execute("SELECT 1")
            fault()

    async def commit(self, conn: AsyncConnection[Any], fault: Callable[[], None]) -> None:
        await conn.execute(INSERT, (1,))
        fault()
        await conn.commit()

    async def commit_of_block(self, conn: AsyncConnection[Any], fault: Callable[[], None]) -> None:
        async with conn.transaction():
            await conn.execute(INSERT, (1,))
            fault()

    async def commit_of_reads(self, conn: AsyncConnection[Any], fault: Callable[[], None]) -> None:
        await conn.execute("SELECT 1")
        fault()
        await conn.commit()

    async def notifies(self, conn: AsyncConnection[Any], fault: Callable[[], None]) -> None:
        await conn.set_autocommit(True)
        fault()
        async for _ in conn.notifies():
            pass


WAYS = [name for name in vars(Ways) if not name.startswith("_")]
RAISED: dict[str, type[Exception]] = dict.fromkeys(("commit", "commit_of_block", "commit_of_reads"), CommitOutcomeUnknown)
"""Where it is not DeadlineExceeded."""
CASES = [(way, "client") for way in WAYS]
CASES += [(way, "server") for way in ("opening", "second_statement", "second_write", "executemany", "commit", "pipeline_syncs")]


def test_both_have_all_ways() -> None:
    """What is tried on a sync connection is tried on an asyncio one."""
    assert [name for name in vars(AsyncWays) if not name.startswith("_")] == WAYS


class Kept:
    """When the fault began, and whether the deadline was kept."""

    def __init__(self, lab: Lab, stack: ExitStack) -> None:
        self._lab, self._stack = lab, stack
        self._began = 0.0

    def begin(self) -> None:
        self._stack.enter_context(self._lab.edge.hang())
        self._stack.enter_context(deadline(AFTER))
        self._began = time.monotonic()

    def check(self) -> None:
        took = time.monotonic() - self._began
        assert AFTER <= took < AFTER + GRACE + SLACK, f"{took:.2f} s"


@pytest.mark.parametrize(("way", "binding"), CASES)
def test_kept(ps_lab: Lab, primary: EndpointState, table: str, way: str, binding: Literal["client", "server"]) -> None:
    """Nothing is answered: the wait ends with the deadline's error, in time, and the connection can be used again."""
    with connect(primary.endpoint, binding=binding) as conn, limits(statement="60s"):
        with ExitStack() as stack:
            kept = Kept(ps_lab, stack)
            with pytest.raises(RAISED.get(way, DeadlineExceeded)):
                getattr(Ways(), way)(conn, kept.begin)
            kept.check()
        conn.rollback()
        assert conn.execute("SELECT 7").fetchone() == (7,)
        conn.rollback()


@pytest.mark.parametrize(("way", "binding"), CASES)
async def test_kept_async(
    ps_lab: Lab, primary: EndpointState, table: str, way: str, binding: Literal["client", "server"]
) -> None:
    """The same for asyncio."""
    async with await AsyncConnection.connect(primary.endpoint, binding=binding) as conn:
        with limits(statement="60s"), ExitStack() as stack:
            kept = Kept(ps_lab, stack)
            with pytest.raises(RAISED.get(way, DeadlineExceeded)):
                await getattr(AsyncWays(), way)(conn, kept.begin)
            kept.check()
        await conn.rollback()
        assert await (await conn.execute("SELECT 7")).fetchone() == (7,)
        await conn.rollback()


@pytest.mark.parametrize("way", ["second_statement", "executemany_within", "copy", "stream", "fetch", "declare"])
def test_nothing_begins_after_the_deadline(ps_lab: Lab, primary: EndpointState, table: str, way: str) -> None:
    """In a transaction that is open, nothing is sent when the time is over, in whichever way; ROLLBACK is."""
    with connect(primary.endpoint) as conn, conn.cursor("one") as named, conn.cursor("two") as other, limits(statement="60s"):
        named.execute(LARGE)
        cursor = conn.cursor()
        with ps_lab.round_trips() as trips, deadline("1ms"):
            until = time.monotonic() + 0.005
            wait_until(lambda: time.monotonic() > until, "the end of the deadline")
            with pytest.raises(DeadlineExceeded, match="passed"):
                match way:
                    case "second_statement":
                        cursor.execute("SELECT 1")
                    case "executemany_within":
                        cursor.executemany(INSERT, [(1,), (2,)])
                    case "copy":
                        with cursor.copy("COPY item FROM STDIN"):
                            pass
                    case "stream":
                        next(iter(cursor.stream(LARGE)))
                    case "fetch":
                        named.fetchone()
                    case _:
                        other.execute(LARGE)
            assert trips.count == 0
            conn.rollback()
        assert conn.execute("SELECT 7").fetchone() == (7,)
        conn.rollback()


SLOW = "SELECT repeat('x', 20000), pg_sleep(0.02) FROM generate_series(1, 200)"


@pytest.mark.parametrize("way", ["stream", "copy"])
def test_rows_that_keep_coming(ps_lab: Lab, primary: EndpointState, way: str) -> None:
    """Rows that come without end are no reason to go on: not even where the server's own timeout is longer."""
    with connect(primary.endpoint) as conn, limits(statement="60s"):
        conn.execute("SELECT 1")
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded), deadline(AFTER):
            if way == "stream":
                for _ in conn.cursor().stream(SLOW):
                    pass
            else:
                with conn.cursor().copy(f"COPY ({SLOW}) TO STDOUT") as copy:
                    for _ in copy:
                        pass
        assert AFTER <= time.monotonic() - began < AFTER + GRACE + SLACK
        conn.rollback()
        assert conn.execute("SELECT 7").fetchone() == (7,)
        conn.rollback()


async def test_rows_that_keep_coming_async(ps_lab: Lab, primary: EndpointState) -> None:
    """The same for asyncio."""
    async with await AsyncConnection.connect(primary.endpoint) as conn:
        with limits(statement="60s"):
            await conn.execute("SELECT 1")
            began = time.monotonic()
            with pytest.raises(DeadlineExceeded), deadline(AFTER):
                async for _ in conn.cursor().stream(SLOW):
                    pass
        assert AFTER <= time.monotonic() - began < AFTER + GRACE + SLACK
        await conn.rollback()


def test_leaving_past_the_deadline(ps_lab: Lab, primary: EndpointState) -> None:
    """A reader who has had enough rows when the deadline and its grace are over keeps the connection: the rest is cancelled."""
    with connect(primary.endpoint) as conn, limits(statement="60s"):
        conn.execute("SELECT 1")
        pid = conn.info.backend_pid
        with deadline(AFTER):
            until = time.monotonic() + AFTER + GRACE + 0.05
            rows: Any = conn.cursor().stream(SLOW)
            next(rows)
            wait_until(lambda: time.monotonic() > until, "the end of the deadline's grace")
            rows.close()
        conn.rollback()
        assert conn.info.backend_pid == pid
        assert not conn.broken
