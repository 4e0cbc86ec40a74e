"""`AsyncConnection`: what `Connection` does, for asyncio."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, overload

import psycopg
import tenacity
from psycopg import waiting
from psycopg.rows import Row

from ps_core._connection.base import (
    IDLE,
    OK,
    WAIT_INTERVAL,
    BaseConnection,
    connect_options,
    time_to_connect,
    without_waiting,
)
from ps_core._connection.cursors import AsyncCursor, AsyncServerBindingCursor, AsyncServerCursor
from ps_core._connection.pipeline import PipelineMixin
from ps_core._message.commit import Outcome
from ps_core._registry import target_of
from ps_core._retry.attempts import Attempts
from ps_core._retry.deadline import bounded, connecting_until, deadline_within
from ps_core._retry.policy import ONCE, USUAL, RetryPolicy
from ps_core.context import ensure_tracker, leave_blocks_in_pool_worker
from ps_core.errors import CommitOutcomeUnknown, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine

    from psycopg.abc import PQGen, PQGenConn
    from psycopg.rows import AsyncRowFactory, TupleRow

    from ps_core._endpoint import EndpointState
    from ps_core._message.commit import Lookup
    from ps_core.replicas import Replicas
    from ps_core.topology import Endpoint, Topology

__all__ = ["AsyncConnection"]


R = TypeVar("R")


class AsyncPipeline(PipelineMixin, psycopg.AsyncPipeline):
    """Like `Pipeline`."""


class AsyncConnection(BaseConnection[Row], psycopg.AsyncConnection[Row]):
    """A `psycopg.AsyncConnection` that opens and bounds its transactions, and replaces what was lost. Made by `connect`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.server_cursor_factory = AsyncServerCursor

    @classmethod
    def _connect_gen(cls, conninfo: str = "", **kwargs: Any) -> PQGenConn[Self]:
        return (yield from bounded(super()._connect_gen(conninfo, **kwargs)))  # `timeout` in early 3.2

    @overload  # type: ignore[override] # psycopg's takes any keyword with a str or int
    @classmethod
    async def connect(
        cls,
        conninfo: str | Topology | Endpoint = "",
        *,
        to: Literal["primary", "replica", "direct"] = "primary",
        binding: Literal["client", "server"] | None = None,
        retry: RetryPolicy | None = None,
        row_factory: AsyncRowFactory[R],
        **options: Any,
    ) -> AsyncConnection[R]: ...

    @overload
    @classmethod
    async def connect(
        cls,
        conninfo: str | Topology | Endpoint = "",
        *,
        to: Literal["primary", "replica", "direct"] = "primary",
        binding: Literal["client", "server"] | None = None,
        retry: RetryPolicy | None = None,
        row_factory: None = None,
        **options: Any,
    ) -> AsyncConnection[TupleRow]: ...

    @classmethod
    async def connect(
        cls,
        conninfo: str | Topology | Endpoint = "",
        *,
        to: Literal["primary", "replica", "direct"] = "primary",
        binding: Literal["client", "server"] | None = None,
        retry: RetryPolicy | None = None,
        row_factory: Any = None,
        **options: Any,
    ) -> AsyncConnection[Any]:
        """Like `Connection.connect`."""
        if binding not in (None, "client", "server"):
            raise ConfigurationError(f"binding: write 'client' or 'server', not {binding!r}")
        if binding == "client":
            options.setdefault("cursor_factory", AsyncCursor)
        elif binding == "server":
            options.setdefault("cursor_factory", AsyncServerBindingCursor)
        within = time_to_connect(options)
        state, replicas, policy = target_of(conninfo, to, retry, options)
        conn: AsyncConnection[Any] = await cls.open(
            state, replicas=replicas, policy=policy, within=within, row_factory=row_factory, **options
        )
        return conn

    @classmethod
    async def _connect(cls, **options: Any) -> Self:
        return await super().connect(**options)

    @classmethod
    async def dial(cls, state: EndpointState, options: dict[str, Any]) -> Self:
        """Like `Connection.dial`."""
        conn = await cls._connect(**connect_options(state, options, client=AsyncCursor, server=AsyncServerBindingCursor))
        conn._bind(state, options, None, state, ONCE, None)
        conn._keeps_state = True  # so that it is not made anew: the caller is doing that
        return conn

    @overload
    @classmethod
    async def open(
        cls,
        state: EndpointState,
        *,
        replicas: Replicas | None = None,
        policy: RetryPolicy = USUAL,
        within: float | None = None,
        connector: Callable[[EndpointState], Awaitable[AsyncConnection[Any]]] | None = None,
        row_factory: AsyncRowFactory[R],
        **options: Any,
    ) -> AsyncConnection[R]: ...

    @overload
    @classmethod
    async def open(
        cls,
        state: EndpointState,
        *,
        replicas: Replicas | None = None,
        policy: RetryPolicy = USUAL,
        within: float | None = None,
        connector: Callable[[EndpointState], Awaitable[AsyncConnection[Any]]] | None = None,
        row_factory: None = None,
        **options: Any,
    ) -> AsyncConnection[TupleRow]: ...

    @classmethod
    async def open(
        cls,
        state: EndpointState,
        *,
        replicas: Replicas | None = None,
        policy: RetryPolicy = USUAL,
        within: float | None = None,
        connector: Callable[[EndpointState], Awaitable[AsyncConnection[Any]]] | None = None,
        row_factory: Any = None,
        **options: Any,
    ) -> AsyncConnection[Any]:
        """Like `Connection.open`."""
        leave_blocks_in_pool_worker()
        if row_factory is not None:
            options["row_factory"] = row_factory
        home, attempts = state, Attempts(state, policy=policy, within=within, replicas=replicas)
        with attempts.explaining():
            async for attempt in tenacity.AsyncRetrying(**attempts.options):
                with attempt:
                    async with (state := attempts.next_state()).gate.aturn(attempts.remaining(), state.endpoint.name) as turn:
                        with attempts.bounded_connect():
                            conn = await (connector(state) if connector else cls.dial(state, options))
                            conn._bind(state, options, replicas, home, policy, connector)
                            with conn._finished_if_not_opened():
                                await conn.wait(conn._arrive_gen(turn))
                        if state.role is None:
                            with conn._finished_if_not_opened():
                                await conn.wait(conn._learn_gen())
        return conn

    async def go_to(self, replicas: Replicas | None) -> None:
        """Like `Connection.go_to`."""
        await self.go_home()
        if (replicas is not None) is self._on_replicas:
            return
        await self.wait(self._check_intrans_gen("endpoint"))
        if self._other_side is None:
            assert replicas is not None
            self._other_side = await self._open_other_side(replicas.first(), replicas)
        self._on_replicas = not self._on_replicas
        await self._cross(self._other_side)

    async def stand_in(self) -> bool:
        """Like `Connection.stand_in`."""
        replicas, fallback = self._replicas, self._may_stand_in()
        if replicas is None or fallback is None:
            return False
        await self.rollback()  # nothing but the statement that was refused was in it
        if self._substitute is None:
            self._substitute = await self._open_other_side(fallback, None)
        self.stands_in = True
        await self._cross(self._substitute)
        replicas.report_connected(self)
        return True

    async def go_home(self) -> None:
        """Like `Connection.go_home`."""
        if not self.stands_in:
            return
        self.stands_in = False
        await self._cross(self._substitute)
        if self._replicas is not None and self._replicas.max_fallback is not None:
            substitute, self._substitute = self._substitute, None  # the share is of connections, not of those that are used
            await substitute.close()

    async def _open_other_side(self, state: EndpointState, replicas: Replicas | None) -> Any:
        opening = {"replicas": replicas, "policy": self._policy, "connector": self._connector}
        return await type(self).open(state, **opening, **self._options)

    async def _cross(self, other: Any) -> None:
        rest = self._exchange(other)
        if rest is not None:
            await self.wait(rest)

    async def close(self) -> None:
        """Like `Connection.close`."""
        await super().close()
        for other in (self._other_side, self._substitute):
            if other is not None:
                await other.close()

    async def revive(self) -> None:
        """Like `Connection.revive`."""
        self._retire()
        if self.broken and self.can_revive():
            await self._replay(psycopg.OperationalError("the connection is closed"), _anothing)

    async def _replay(self, first: BaseException, run: Callable[[], Any]) -> None:
        """Like `Connection._replay`."""
        attempts = Attempts(
            self.state,
            policy=self._policy,
            replicas=self._replicas,
            home=self._home,
            may_replay=self._may_replay,
            first=first,
        )
        with attempts.explaining():
            async for attempt in tenacity.AsyncRetrying(**attempts.options):
                with attempt:
                    async with (state := attempts.next_state()).gate.aturn(attempts.remaining(), state.endpoint.name) as turn:
                        attempts.connecting = True
                        connector = self._connector
                        with attempts.bounded_connect():
                            donor = await (connector(state) if connector else AsyncConnection.dial(state, self._options))
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
        context = self._begin_wait()
        if context.deadline is not None or connecting_until.get() is not None:
            gen = bounded(gen, self)  # the one place in which a deadline ends what is under way
        try:
            result = await super().wait(gen, *args, **kwargs)
        except psycopg.Error as exc:
            if (passed := deadline_within(exc)) is not None:
                raise passed from None
            self._note_cause(exc)
            raise
        finally:
            if not (self._began_idle or self._ended or self._pipeline) and self.pgconn.transaction_status == IDLE:
                self._note_end()
        if self._sync_wait_cancelled:
            self._check_durable()
        return result

    async def set_autocommit(self, value: bool) -> None:
        """Like psycopg's, which waits for nothing where nothing is open."""
        async with self.lock:
            if self.pgconn.transaction_status == IDLE and not self._pipeline:
                self._autocommit = bool(value)
            else:
                await self.wait(self._set_autocommit_gen(value))

    async def rollback(self) -> None:
        """Like `Connection.rollback`."""
        if not (self._has_nothing_to_end() or self._forget_lost_transaction()):
            await super().rollback()
        if self.stands_in:
            await self.go_home()

    async def commit(self) -> None:
        """Like `Connection.commit`. Cancellation waits for its answer."""
        self._unsettled = ()
        ensure_tracker()  # the COMMIT is a task of its own
        try:
            await _uncancelled(super().commit())
        except CommitOutcomeUnknown as unknown:
            await self._settle(unknown)
        if self.stands_in:
            await self.go_home()

    @asynccontextmanager
    async def transaction(
        self, savepoint_name: str | None = None, force_rollback: bool = False
    ) -> AsyncIterator[psycopg.AsyncTransaction]:
        """Like `Connection.transaction`."""
        self._unsettled = ()
        try:
            with self._counting_blocks():
                async with super().transaction(savepoint_name, force_rollback) as transaction:
                    yield transaction
        except CommitOutcomeUnknown as unknown:
            await self._settle(unknown)

    @asynccontextmanager
    async def pipeline(self) -> AsyncIterator[psycopg.AsyncPipeline]:
        """Like `Connection.pipeline`."""
        await self.revive()
        with self._unwedging():
            async with self.lock:
                self._check_connection_ok()
                ours: Any = self._pipeline or AsyncPipeline(self)
                self._pipeline = ours
            try:
                async with super().pipeline() as pipeline:
                    yield pipeline
            finally:
                if (rest := ours.rest()) is not None:
                    async with self.lock:
                        await self.wait(rest)

    @asynccontextmanager
    async def _pipeline_nolock(self) -> AsyncIterator[psycopg.AsyncPipeline]:
        pipeline = self._pipeline = AsyncPipeline(self, _no_lock=True)
        try:
            async with pipeline:
                yield pipeline
        finally:
            self._pipeline = None
            if (rest := pipeline.rest()) is not None:
                await self.wait(rest)

    async def _settle(self, unknown: CommitOutcomeUnknown) -> None:
        settling, verdict = self._settle_gen(unknown), None
        with suppress(StopIteration):
            while True:
                # None begins it.
                verdict = await self._look_up(settling.send(verdict), unknown)  # type: ignore[arg-type]

    async def _look_up(self, lookup: Lookup, unknown: CommitOutcomeUnknown) -> Outcome:
        try:
            attempts = Attempts(self.state, policy=self._policy, first=unknown)
            async for attempt in tenacity.AsyncRetrying(**attempts.options):
                with attempt:
                    async with self.state.gate.aturn(attempts.remaining()):
                        connector = self._connector
                        donor = await (connector(self.state) if connector else AsyncConnection.dial(self.state, self._options))
                    asking = self._look_up_gen(donor, lookup, attempts.until)
                    return await waiting.wait_async(asking, donor.pgconn.socket, interval=WAIT_INTERVAL)
        except (psycopg.Error, TimeoutError):
            pass
        return Outcome.UNKNOWN

    async def _try_cancel(self, *, timeout: float = 5.0) -> None:
        if not self._may_be_committing():
            self._cancelling = True
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
