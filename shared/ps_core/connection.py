"""The psycopg connections (sync and async) that open, bound and heal transactions in the round trips that are made anyway.

A statement that arrives while the connection is idle travels in one simple-query message with what has to come before it:

    explicit transaction   BEGIN ...; SET LOCAL statement_timeout=...; ...; <statement>
    autocommit             SET LOCAL statement_timeout=...; ...; <statement>

and the cursor is positioned on the statement's own result. So a transaction of n statements costs n+1 round trips instead of the
driver's n+2, with its timeouts set, and nothing outlives the transaction on the pooler's server connection.

On a replica, a transaction at READ COMMITTED that so far only read is not opened at all: every plain read travels by itself
(in autocommit form, READ ONLY), which is the same to the caller since each statement has its own snapshot at that level anyway.
The first statement that is more than a plain read opens the transaction for real.

When the opening statement meets a lost connection, the connection takes over a new one (`_adopt`) and sends it again; the
framework above never notices. What may be sent again is decided in one place, `Shared._may_replay`.

psycopg's protocol code is written as generators that both of its connection classes drive, so all of ours is written once, too.
Four of its private methods are overridden (`_execute_gen`, `_start_query`, `_exec_command`, `_get_tx_start_command`); they are
the same from 3.2 to 3.3, and the tests run on both ends.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

import psycopg
import tenacity

from ps_core.commit import UNDECIDED, Outcome
from ps_core.context import hold_tracker
from ps_core.cursors import AsyncCursor, Cursor
from ps_core.errors import CommitOutcomeUnknown
from ps_core.healing import Attempts, bounded, deadline_unwrapped, verdict_of_failure
from ps_core.protocol import Shared

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator

    from psycopg.abc import PQGen, PQGenConn

    from ps_core.commit import Lookup
    from ps_core.link import Link
    from ps_core.replicas import Replicas

__all__ = ["AsyncConnection", "AsyncCursor", "Connection", "Cursor"]

Row = TypeVar("Row", covariant=True)  # noqa: PLC0105 - psycopg's name


class Connection(Shared[Row], psycopg.Connection[Row]):
    """A `psycopg.Connection` that opens, bounds and heals its transactions. Made by `open`."""

    @classmethod
    def _connect_gen(cls, conninfo: str = "", **kwargs: Any) -> PQGenConn[Self]:
        return (yield from bounded(super()._connect_gen(conninfo, **kwargs)))  # `timeout` in early 3.2

    @classmethod
    def connect(cls, *args: Any, **kwargs: Any) -> Self:
        """Refuse: `ps_core.connect()` opens one, and `PooledConnection` is for psycopg_pool.

        Raises:
            TypeError: always.
        """
        raise TypeError(_NO_CONNECT)

    @classmethod
    def _connect(cls, **options: Any) -> Self:
        return super().connect(**options)

    @classmethod
    def open(cls, link: Link, *, replicas: Replicas | None = None, **options: Any) -> Self:
        """Connect to `link`'s endpoint, trying again while it is down (as the link's policy says).

        With `replicas`, of which `link` is one, the connection goes on with another endpoint where its own fails. `options` are
        `psycopg.Connection.connect`'s: `autocommit`, `row_factory`, `context`, `cursor_factory` and libpq parameters,
        which override the endpoint's. Raises `psycopg.OperationalError`.
        """
        home, attempts = link, Attempts(link, replicas=replicas)
        with attempts.explaining():
            for attempt in tenacity.Retrying(**attempts.options):
                with attempt, (link := attempts.next_link()).gate.turn(attempts.remaining()) as turn:
                    with attempts.connecting_in_time():
                        conn = cls._connect(**_connect_options(link, options, Cursor))
                        conn._bind(link, options, replicas, home)
                        conn.wait(conn._arrive_gen(turn))
                    if link.role is None:
                        link.role = conn.wait(conn._read_role_gen())
        return conn

    def go_to(self, replicas: Replicas | None) -> None:
        """Let what follows be served by `replicas`; None: by the endpoint that the connection was opened for.

        The connection to the other side is kept for the way back.

        Raises:
            psycopg.ProgrammingError: a transaction is open.
        """
        if (replicas is not None) is self._away:
            return
        self.wait(self._check_intrans_gen("endpoint"))
        if self._aside is None:
            assert replicas is not None  # the first way is away
            self._aside = type(self).open(replicas.first(), replicas=replicas, **self._options)
        self._exchange(self._aside)
        self._away = not self._away

    def close(self) -> None:
        """Close the connection, and the one that is kept for `go_to`."""
        super().close()
        if self._aside is not None:
            self._aside.close()

    def revive(self) -> None:
        """Connect anew where the connection was lost and nothing is open on it; else do nothing."""
        self._retire()
        if self.broken and self.can_revive():
            self._replay(psycopg.OperationalError("the connection is closed"), _nothing)

    def _replay(self, first: BaseException, run: Callable[[], object]) -> None:
        """Connect anew and `run` again, as often as the policy allows and the rule says that it is safe."""
        attempts = Attempts(self.link, replicas=self._replicas, connection=self, first=first)
        with attempts.explaining():
            for attempt in tenacity.Retrying(**attempts.options):
                with attempt, (link := attempts.next_link()).gate.turn(attempts.remaining()) as turn:
                    attempts.connecting = True
                    with attempts.connecting_in_time():
                        donor: Connection[Any] = Connection._connect(**_connect_options(link, self._options, Cursor))
                        with self.lock:
                            if (rest := self._adopt(donor, link)) is not None:
                                self.wait(rest)
                        self.wait(self._arrive_gen(turn))
                    turn.connected()
                    attempts.connecting = False
                    run()

    def wait(self, gen: PQGen[Any], *args: Any, **kwargs: Any) -> Any:
        """Like psycopg's; on a lost connection with nothing open on it, settings such as `autocommit` can still be changed."""
        if self.broken and self.can_revive():
            return _without_waiting(gen)
        self._sync_wait_cancelled = False
        with deadline_unwrapped():
            result = super().wait(gen, *args, **kwargs)
        self._check_durable()
        return result

    def rollback(self) -> None:
        """Roll back. Where the connection was lost, the transaction went with it, and the next statement makes a new one."""
        if not (self._has_nothing_to_end() or self._forget_lost_transaction()):
            super().rollback()

    def commit(self) -> None:
        """Commit. Where the answer does not come, look up what became of it.

        Returns where the transaction is certainly committed.

        Raises:
            CommitOutcomeUnknown: nobody can tell.
            psycopg.Error: it was certainly not committed.
        """
        self._unsettled = ()
        try:
            super().commit()
        except CommitOutcomeUnknown as unknown:
            self._settle(unknown)

    @contextmanager
    def transaction(self, savepoint_name: str | None = None, force_rollback: bool = False) -> Iterator[psycopg.Transaction]:
        """Like psycopg's; its COMMIT is settled as in `commit`."""
        self._unsettled = ()
        try:
            with super().transaction(savepoint_name, force_rollback) as transaction:
                yield transaction
        except CommitOutcomeUnknown as unknown:
            self._settle(unknown)

    @contextmanager
    def pipeline(self) -> Iterator[psycopg.Pipeline]:
        """Like psycopg's. A connection that is lost in it can be used again afterwards."""
        with self._unwedging(), super().pipeline() as pipeline:
            yield pipeline

    def _settle(self, unknown: CommitOutcomeUnknown) -> None:
        lookups, self._unsettled = self._unsettled, ()
        verdict = Outcome.UNKNOWN
        for lookup in lookups:
            if verdict in UNDECIDED:
                verdict = verdict.then(self._look_up(lookup, unknown))
        self._conclude(verdict, unknown)

    def _look_up(self, lookup: Lookup, unknown: CommitOutcomeUnknown) -> Outcome:
        try:
            attempts = Attempts(self.link, first=unknown)
            for attempt in tenacity.Retrying(**attempts.options):
                with attempt, self.link.gate.turn(attempts.remaining()):
                    with psycopg.Connection.connect(**_look_up_options(self.link, self._options)) as donor:
                        row = donor.execute(lookup.query.encode(), lookup.params or None).fetchone()
                    return self._judge_row(lookup, row)
        except (psycopg.Error, TimeoutError) as exc:
            return verdict_of_failure(exc)
        return Outcome.UNKNOWN

    def _try_cancel(self, *, timeout: float = 5.0) -> None:
        # Cancelling a COMMIT that waits for the synchronous replica would let it succeed without one.
        if not self._committing:
            super()._try_cancel(timeout=timeout)


class AsyncConnection(Shared[Row], psycopg.AsyncConnection[Row]):
    """A `psycopg.AsyncConnection` that opens, bounds and heals its transactions. Made by `open`."""

    @classmethod
    def _connect_gen(cls, conninfo: str = "", **kwargs: Any) -> PQGenConn[Self]:
        return (yield from bounded(super()._connect_gen(conninfo, **kwargs)))  # `timeout` in early 3.2

    @classmethod
    async def connect(cls, *args: Any, **kwargs: Any) -> Self:
        """Like `Connection.connect`."""
        raise TypeError(_NO_CONNECT)

    @classmethod
    async def _connect(cls, **options: Any) -> Self:
        return await super().connect(**options)

    @classmethod
    async def open(cls, link: Link, *, replicas: Replicas | None = None, **options: Any) -> Self:
        """Like `Connection.open`."""
        home, attempts = link, Attempts(link, replicas=replicas)
        with attempts.explaining():
            async for attempt in tenacity.AsyncRetrying(**attempts.options):
                with attempt:
                    async with (link := attempts.next_link()).gate.aturn(attempts.remaining()) as turn:
                        with attempts.connecting_in_time():
                            conn = await cls._connect(**_connect_options(link, options, AsyncCursor))
                            conn._bind(link, options, replicas, home)
                            await conn.wait(conn._arrive_gen(turn))
                        if link.role is None:
                            link.role = await conn.wait(conn._read_role_gen())
        return conn

    async def go_to(self, replicas: Replicas | None) -> None:
        """Like `Connection.go_to`."""
        if (replicas is not None) is self._away:
            return
        await self.wait(self._check_intrans_gen("endpoint"))
        if self._aside is None:
            assert replicas is not None
            self._aside = await type(self).open(replicas.first(), replicas=replicas, **self._options)
        self._exchange(self._aside)
        self._away = not self._away

    async def close(self) -> None:
        """Like `Connection.close`."""
        await super().close()
        if self._aside is not None:
            await self._aside.close()

    async def revive(self) -> None:
        """Like `Connection.revive`."""
        self._retire()
        if self.broken and self.can_revive():
            await self._replay(psycopg.OperationalError("the connection is closed"), _anothing)

    async def _replay(self, first: BaseException, run: Callable[[], Any]) -> None:
        """Like `Connection._replay`."""
        attempts = Attempts(self.link, replicas=self._replicas, connection=self, first=first)
        with attempts.explaining():
            async for attempt in tenacity.AsyncRetrying(**attempts.options):
                with attempt:
                    async with (link := attempts.next_link()).gate.aturn(attempts.remaining()) as turn:
                        attempts.connecting = True
                        options = _connect_options(link, self._options, AsyncCursor)
                        with attempts.connecting_in_time():
                            donor: AsyncConnection[Any] = await AsyncConnection._connect(**options)
                            async with self.lock:
                                if (rest := self._adopt(donor, link)) is not None:
                                    await self.wait(rest)
                            await self.wait(self._arrive_gen(turn))
                        turn.connected()
                        attempts.connecting = False
                        await run()

    async def wait(self, gen: PQGen[Any], *args: Any, **kwargs: Any) -> Any:
        """Like `Connection.wait`."""
        if self.broken and self.can_revive():
            return _without_waiting(gen)
        self._sync_wait_cancelled = False
        with deadline_unwrapped():
            result = await super().wait(gen, *args, **kwargs)
        self._check_durable()
        return result

    async def rollback(self) -> None:
        """Like `Connection.rollback`."""
        if not (self._has_nothing_to_end() or self._forget_lost_transaction()):
            await super().rollback()

    async def commit(self) -> None:
        """Like `Connection.commit`. Cancellation waits for its answer."""
        self._unsettled = ()
        hold_tracker()  # the COMMIT is a task of its own
        try:
            await _uncancelled(super().commit())
        except CommitOutcomeUnknown as unknown:
            await self._settle(unknown)

    @asynccontextmanager
    async def transaction(
        self, savepoint_name: str | None = None, force_rollback: bool = False
    ) -> AsyncIterator[psycopg.AsyncTransaction]:
        """Like `Connection.transaction`."""
        self._unsettled = ()
        try:
            async with super().transaction(savepoint_name, force_rollback) as transaction:
                yield transaction
        except CommitOutcomeUnknown as unknown:
            await self._settle(unknown)

    @asynccontextmanager
    async def pipeline(self) -> AsyncIterator[psycopg.AsyncPipeline]:
        """Like `Connection.pipeline`."""
        with self._unwedging():
            async with super().pipeline() as pipeline:
                yield pipeline

    async def _settle(self, unknown: CommitOutcomeUnknown) -> None:
        lookups, self._unsettled = self._unsettled, ()
        verdict = Outcome.UNKNOWN
        for lookup in lookups:
            if verdict in UNDECIDED:
                verdict = verdict.then(await self._look_up(lookup, unknown))
        self._conclude(verdict, unknown)

    async def _look_up(self, lookup: Lookup, unknown: CommitOutcomeUnknown) -> Outcome:
        try:
            attempts = Attempts(self.link, first=unknown)
            async for attempt in tenacity.AsyncRetrying(**attempts.options):
                with attempt:
                    async with self.link.gate.aturn(attempts.remaining()):
                        async with await psycopg.AsyncConnection.connect(**_look_up_options(self.link, self._options)) as donor:
                            cursor = await donor.execute(lookup.query.encode(), lookup.params or None)
                            row = await cursor.fetchone()
                        return self._judge_row(lookup, row)
        except (psycopg.Error, TimeoutError) as exc:
            return verdict_of_failure(exc)
        return Outcome.UNKNOWN

    async def _try_cancel(self, *, timeout: float = 5.0) -> None:
        if not self._committing:
            await super()._try_cancel(timeout=timeout)


_NO_CONNECT: Final = (
    "this class has to know the endpoint: write ps_core.connect(...) or connect_async(...); for psycopg_pool,"
    " `from ps_core.connect import PooledConnection` (or AsyncPooledConnection)"
)


async def _uncancelled(work: Coroutine[Any, Any, None]) -> None:
    """Run `work` to its end, also when the caller is cancelled meanwhile; the cancellation is raised afterwards."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as exc:
            cancelled = exc
        except Exception:  # noqa: BLE001 - raised below, by the task
            break
    task.result()
    if cancelled is not None:
        raise cancelled


def _without_waiting(gen: PQGen[Any]) -> Any:
    """Run what needs no server to its end."""
    try:
        next(gen)
    except StopIteration as done:
        return done.value
    gen.close()
    raise psycopg.OperationalError("the connection is lost")


def _nothing() -> None:
    pass


async def _anothing() -> None:
    pass


def _connect_options(link: Link, options: dict[str, Any], cursor_factory: type) -> dict[str, Any]:
    # Client-side binding never prepares. Where somebody chooses another cursor, prepared statements stay off all the same:
    # behind a pooler they may return another client's rows.
    return {**link.endpoint.conninfo(), "cursor_factory": cursor_factory, "prepare_threshold": None, **options}


def _look_up_options(link: Link, options: dict[str, Any]) -> dict[str, Any]:
    ours = ("cursor_factory", "row_factory", "context")
    return {**link.endpoint.conninfo(), **{name: options[name] for name in options if name not in ours}, "autocommit": True}
