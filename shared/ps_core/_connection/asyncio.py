"""`AsyncConnection`: what `Connection` does, for asyncio."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Self, TypeVar

import psycopg
import tenacity

from ps_core._connection.base import NO_CONNECT, OK, BaseConnection, connect_options, look_up_options, without_waiting
from ps_core._connection.cursors import AsyncCursor
from ps_core._message.commit import UNDECIDED, Outcome
from ps_core._retry.attempts import Attempts, verdict_of_failure
from ps_core._retry.deadline import bounded, deadline_within
from ps_core.context import ensure_tracker
from ps_core.errors import CommitOutcomeUnknown

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from psycopg.abc import PQGen, PQGenConn

    from ps_core._endpoint import EndpointState
    from ps_core._message.commit import Lookup
    from ps_core.replicas import Replicas

__all__ = ["AsyncConnection"]

Row = TypeVar("Row", covariant=True)  # noqa: PLC0105 - psycopg's name


class AsyncConnection(BaseConnection[Row], psycopg.AsyncConnection[Row]):
    """A `psycopg.AsyncConnection` that opens, bounds and heals its transactions. Made by `open`."""

    @classmethod
    def _connect_gen(cls, conninfo: str = "", **kwargs: Any) -> PQGenConn[Self]:
        return (yield from bounded(super()._connect_gen(conninfo, **kwargs)))  # `timeout` in early 3.2

    @classmethod
    async def connect(cls, *args: Any, **kwargs: Any) -> Self:
        """Like `Connection.connect`."""
        raise TypeError(NO_CONNECT)

    @classmethod
    async def _connect(cls, **options: Any) -> Self:
        return await super().connect(**options)

    @classmethod
    async def open(cls, state: EndpointState, *, replicas: Replicas | None = None, **options: Any) -> Self:
        """Like `Connection.open`."""
        home, attempts = state, Attempts(state, replicas=replicas)
        with attempts.explaining():
            async for attempt in tenacity.AsyncRetrying(**attempts.options):
                with attempt:
                    async with (state := attempts.next_state()).gate.aturn(attempts.remaining()) as turn:
                        with attempts.bounded_connect():
                            conn = await cls._connect(**connect_options(state, options, AsyncCursor))
                            conn._bind(state, options, replicas, home)
                            await conn.wait(conn._arrive_gen(turn))
                        if state.role is None:
                            await conn.wait(conn._learn_gen())
        return conn

    async def go_to(self, replicas: Replicas | None) -> None:
        """Like `Connection.go_to`."""
        if (replicas is not None) is self._on_replicas:
            return
        await self.wait(self._check_intrans_gen("endpoint"))
        if self._other_side is None:
            assert replicas is not None
            self._other_side = await type(self).open(replicas.first(), replicas=replicas, **self._options)
        self._exchange(self._other_side)
        self._on_replicas = not self._on_replicas

    async def close(self) -> None:
        """Like `Connection.close`."""
        await super().close()
        if self._other_side is not None:
            await self._other_side.close()

    async def revive(self) -> None:
        """Like `Connection.revive`."""
        self._retire()
        if self.broken and self.can_revive():
            await self._replay(psycopg.OperationalError("the connection is closed"), _anothing)

    async def _replay(self, first: BaseException, run: Callable[[], Any]) -> None:
        """Like `Connection._replay`."""
        attempts = Attempts(self.state, replicas=self._replicas, home=self._home, may_replay=self._may_replay, first=first)
        with attempts.explaining():
            async for attempt in tenacity.AsyncRetrying(**attempts.options):
                with attempt:
                    async with (state := attempts.next_state()).gate.aturn(attempts.remaining()) as turn:
                        attempts.connecting = True
                        options = connect_options(state, self._options, AsyncCursor)
                        with attempts.bounded_connect():
                            donor: AsyncConnection[Any] = await AsyncConnection._connect(**options)
                            async with self.lock:
                                if (rest := self._adopt(donor, state)) is not None:
                                    await self.wait(rest)
                            await self.wait(self._arrive_gen(turn))
                        turn.connected()
                        attempts.connecting = False
                        await run()

    async def wait(self, gen: PQGen[Any], *args: Any, **kwargs: Any) -> Any:
        """Like `Connection.wait`."""
        if self.pgconn.status != OK and self.can_revive():
            return without_waiting(gen)
        self._sync_wait_cancelled = False
        try:
            result = await super().wait(gen, *args, **kwargs)
        except psycopg.OperationalError as exc:
            if (passed := deadline_within(exc)) is not None:
                raise passed from None
            raise
        if self._sync_wait_cancelled:
            self._check_durable()
        return result

    async def rollback(self) -> None:
        """Like `Connection.rollback`."""
        if not (self._has_nothing_to_end() or self._forget_lost_transaction()):
            await super().rollback()

    async def commit(self) -> None:
        """Like `Connection.commit`. Cancellation waits for its answer."""
        self._unsettled = ()
        ensure_tracker()  # the COMMIT is a task of its own
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
            attempts = Attempts(self.state, first=unknown)
            async for attempt in tenacity.AsyncRetrying(**attempts.options):
                with attempt:
                    async with self.state.gate.aturn(attempts.remaining()):
                        async with await psycopg.AsyncConnection.connect(**look_up_options(self.state, self._options)) as donor:
                            cursor = await donor.execute(lookup.query.encode(), lookup.params or None)
                            row = await cursor.fetchone()
                        return self._judge_row(lookup, row)
        except (psycopg.Error, TimeoutError) as exc:
            return verdict_of_failure(exc)
        return Outcome.UNKNOWN

    async def _try_cancel(self, *, timeout: float = 5.0) -> None:
        if not self._committing:
            await super()._try_cancel(timeout=timeout)


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


async def _anothing() -> None:
    pass
