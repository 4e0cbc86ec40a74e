"""The cursors: they compose the message of a statement and show the statement's own result."""

from __future__ import annotations

import re
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

import psycopg
from psycopg import AsyncClientCursor, ClientCursor, generators, pq
from psycopg._cursor_base import BaseCursor
from psycopg.client_cursor import ClientCursorMixin

from ps_core._connection.base import FATAL, IDLE, IN_TRANSACTION, UNKNOWN, BaseConnection
from ps_core._message.commit import transaction_id
from ps_core._message.plan import TRANSACTION, Asks, Plan
from ps_core._message.script import NOTHING
from ps_core._message.statement import analyse
from ps_core.failures import DEMOTED, RETRYABLE
from ps_core.tags import current_comment, with_comment

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator

    from psycopg.abc import Params, PQGen, Query
    from psycopg.pq.abc import PGresult

    from ps_core._message.script import Script

__all__ = ["AsyncCursor", "AsyncServerBindingCursor", "Cursor", "ServerBindingCursor"]

Row = TypeVar("Row", covariant=True)  # noqa: PLC0105 - psycopg's name

NO_READ: Final = analyse("UPDATE")
"""What is known of a query that is no text."""
_LINE: Final = re.compile(r"^LINE (\d+): ", re.MULTILINE)


class _ExecuteManyMixin(BaseCursor[Any, Row]):
    """The part of the cursors that asks behind `executemany` what `execute` asks behind one statement."""

    __slots__ = ()

    def _executemany_gen_pipeline(self, query: Query, params_seq: Iterable[Params], returning: bool) -> PQGen[None]:
        conn: BaseConnection[Any] = self._conn
        within = not conn._autocommit or bool(conn._num_transactions) or conn.pgconn.transaction_status in IN_TRANSACTION
        yield from super()._executemany_gen_pipeline(query, params_seq, returning)
        statement = analyse(query) if isinstance(query, str) else NO_READ
        conn._ask_in_pipeline(statement, within=within, alone=conn._many)


class _OneMessageMixin(_ExecuteManyMixin[Row], ClientCursorMixin[Any, Row]):
    """The part of the cursors that composes the message; psycopg's own classes drive it, sync and async."""

    __slots__ = ()

    def _execute_gen(
        self, query: Query, params: Params | None = None, *, prepare: bool | None = None, binary: bool | None = None
    ) -> PQGen[None]:
        conn: BaseConnection[Any] = self._conn
        self._pgconn = conn.pgconn  # the connection may have gone on with another one since this cursor was made
        conn._plan = None
        status = conn.pgconn.transaction_status
        if conn._pipeline or status != IDLE:
            text = query if isinstance(query, str) else ""
            conn._begin_within(text)
            if not conn._asks_for_transaction(text):
                yield from super()._execute_gen(query, params, prepare=prepare, binary=binary)
                conn._note_write_within(text)
                return
            plan = Plan(analyse(text), after=TRANSACTION, asks=Asks.TRANSACTION, first=False)
            yield from self._start_query(query)
            pgq = self._convert_query(query, params)
            yield from self._send_gen(plan, text, pgq, binary=binary)
            self._last_query = query
            return
        conn._transaction = None
        conn._suppress_begin = True
        try:
            yield from self._start_query(query)
        finally:
            conn._suppress_begin = False
        pgq = super()._convert_query(query, params)
        text = query if isinstance(query, str) else bytes(pgq.query).decode(self._encoding, "replace")
        _add_tags(pgq)
        way: Plan | None = conn._make_plan(text)
        try:
            while way is not None:
                way = yield from self._send_gen(way, text, pgq, binary=binary)
        finally:
            status = conn.pgconn.transaction_status
            # Lost with its opening statement, a transaction is over for the server; for the caller, at its rollback.
            conn._in_block = status != IDLE and not (status == UNKNOWN and conn._autocommit)
        self._last_query = query

    def _convert_query(self, query: Query, params: Params | None = None) -> Any:
        pgq = super()._convert_query(query, params)
        _add_tags(pgq)
        return pgq

    def _send_gen(self, plan: Plan, text: str, pgq: Any, *, binary: bool | None) -> PQGen[Plan | None]:
        """Send one message and take its results. Return another plan where the server refused this one before anything ran."""
        conn: BaseConnection[Any] = self._conn
        conn._plan = plan
        if conn.pgconn.status != pq.ConnStatus.OK or (plan.first and not plan.begin and not plan.read_only and conn._is_gone()):
            raise psycopg.OperationalError("the connection is closed")  # nothing was sent: `_may_replay` takes it from here
        conn._note_state(plan.statement)
        if plan.apart:
            yield from conn._exec_command(plan.before)
            conn._plan = None
            plan = Plan(plan.statement, first=False)
        head = plan.before.head()
        self._send_between(head, pgq, plan.after, binary=binary)
        results: list[PGresult] = []
        lost = None
        if plan.asks is Asks.COMMITTED_POSITION:
            lost = yield from conn._collect_gen(results)
        else:
            results = yield from conn._answer_gen()
        done = len(plan.before.parts)
        if plan.asks is Asks.COMMITTED_POSITION and any(result.command_status == b"COMMIT" for result in results[done:]):
            lost = None  # it is durable; what came after does not matter but for the position
        elif (refused := next((result for result in results if result.status == FATAL), None)) is not None:
            error = _error_in_users_text(refused, self._encoding, head)
            other = yield from conn._plan_after_refusal_gen(plan, text, error)
            if other is not None:
                return other
            raise error
        elif lost is not None:
            raise lost
        self._check_results(results[: done + 1])
        asked = results.pop() if plan.asks is not Asks.NOTHING and len(results) == done + 1 + len(plan.after.parts) else None
        if plan.asks is Asks.POSITION and not conn._check_place(asked):
            conn._give_up()
            raise psycopg.OperationalError(DEMOTED)  # it only read: `_may_replay`
        if plan.asks in (Asks.POSITION, Asks.COMMITTED_POSITION):
            conn._record_seen(asked, wrote=plan.asks is Asks.COMMITTED_POSITION and not plan.statement.only_sets)
        elif asked is not None and asked.status == pq.ExecStatus.TUPLES_OK:
            conn._transaction = transaction_id(asked)
        end = len(results) if not plan.after.parts else done + 1
        self._check_results(results[done:end])
        self._set_results(results[done:end])
        if plan.asks is Asks.NOTHING and plan.first and not plan.begin:
            conn._note_if_it_may_have_written(plan.statement)
        return None

    def _stream_send_gen(
        self, query: Query, params: Params | None = None, *, binary: bool | None = None, size: int
    ) -> PQGen[None]:
        conn: BaseConnection[Any] = self._conn
        if conn.pgconn.transaction_status != IDLE:
            yield from super()._stream_send_gen(query, params, binary=binary, size=size)
            return
        before, pgq = yield from self._prepare_gen(query, params)
        self._send_between(before.head(), pgq, NOTHING, binary=binary)
        if conn._autocommit:
            conn._note_if_it_may_have_written(analyse(bytes(pgq.query).decode(self._encoding, "replace")))
        if size == 1:
            self._pgconn.set_single_row_mode()
        else:
            self._pgconn.set_chunked_rows_mode(size)
        self._last_query = query
        yield from generators.send(self._pgconn)
        for _ in before.parts:
            result = yield from generators.fetch(self._pgconn)
            if result is not None and result.status == FATAL:
                raise _error_in_users_text(result, self._encoding, before.head())

    def _start_copy_gen(self, statement: Query, params: Params | None = None) -> PQGen[None]:
        conn: BaseConnection[Any] = self._conn
        if conn._pipeline or conn.pgconn.transaction_status != IDLE:
            yield from super()._start_copy_gen(statement, params)
            return
        before, pgq = yield from self._prepare_gen(statement, params)
        self._send_between(before.head(), pgq, NOTHING, binary=False)
        results = yield from conn._answer_gen()
        for result in results[:-1]:
            if result.status == FATAL:
                raise _error_in_users_text(result, self._encoding, before.head())
        if len(results) != len(before.parts) + 1:
            raise psycopg.ProgrammingError("COPY cannot be mixed with other operations")
        if results[-1].status == FATAL:
            raise _error_in_users_text(results[-1], self._encoding, before.head())
        if conn._autocommit and results[-1].status == pq.ExecStatus.COPY_IN:
            conn._note_unknown_position()
        self._check_copy_result(results[-1])
        self._set_results(results[-1:])

    def _prepare_gen(self, query: Query, params: Params | None) -> PQGen[tuple[Script, Any]]:
        """Return what precedes a statement that delivers as it goes, and the statement."""
        conn: BaseConnection[Any] = self._conn
        self._pgconn = conn.pgconn
        conn._plan, conn._transaction = None, None
        conn._suppress_begin = True
        try:
            yield from self._start_query(query)
        finally:
            conn._suppress_begin = False
        pgq = self._convert_query(query, params)
        begin = not conn._autocommit
        conn._in_block = begin
        return (conn._get_tx_start_command() if begin else conn._opening_alone()), pgq

    def _send_between(self, head: bytes, pgq: Any, after: Script, *, binary: bool | None) -> None:
        """Send the user's statement with what goes before and after it. The cursor keeps the user's text as its query."""
        if not head and not after.parts:
            self._execute_send(pgq, binary=binary)
            return
        query = pgq.query
        # On a line of its own: the user's text may end in a comment.
        pgq.query = head + query + (b"\n;" + b";".join(after.parts) if after.parts else b"")
        try:
            self._execute_send(pgq, binary=binary)
        finally:
            pgq.query = query


def _add_tags(pgq: Any) -> None:
    comment = current_comment()
    if comment:
        pgq.query = with_comment(pgq.query, comment)


def _error_in_users_text(result: PGresult, encoding: str, head: bytes) -> psycopg.Error:
    """Return the error with its position counted in the user's text, not in the message that carried it."""
    exc = psycopg.errors.error_from_result(result, encoding=encoding)
    position = exc.diag.statement_position
    if not head or position is None:
        return exc
    before = head.decode(encoding)
    info: dict[int, bytes | None] = {key: result.error_field(key) for key in pq.DiagnosticField}
    info[pq.DiagnosticField.STATEMENT_POSITION] = str(int(position) - len(before)).encode()
    lines = before.count("\n")
    message = _LINE.sub(lambda match: f"LINE {int(match[1]) - lines}: ", str(exc), count=1)
    return type(exc)(message, info=info, encoding=encoding)


class _SyncMethods(BaseCursor[Any, Row]):
    """What callers call on a sync cursor: connect anew where nothing is open, run psycopg's, and heal where that is safe."""

    __slots__ = ()

    def execute(self, query: Any, params: Any = None, *, prepare: bool | None = None, binary: bool | None = None) -> Self:
        """Execute one statement; the module `connection` tells how it travels and when it is sent again."""
        conn = self._conn
        if conn._needs_revival():
            conn.revive()
        try:
            super().execute(query, params, prepare=prepare, binary=binary)  # type: ignore[misc]
        except RETRYABLE as exc:
            if not conn._may_replay(exc):
                raise
            conn._replay(exc, partial(super().execute, query, params, prepare=prepare, binary=binary))  # type: ignore[misc]
        return self

    def executemany(self, query: Any, params_seq: Any, *, returning: bool = False) -> None:
        """Like psycopg's. Never sent again."""
        self._conn.revive()
        with self._conn._sending_many():
            super().executemany(query, params_seq, returning=returning)  # type: ignore[misc]

    def stream(self, query: Any, params: Any = None, *, binary: bool | None = None, size: int = 1) -> Iterator[Row]:
        """Like psycopg's. Never sent again: rows may have been delivered."""
        self._conn.revive()
        yield from super().stream(query, params, binary=binary, size=size)  # type: ignore[misc]

    @contextmanager
    def copy(self, statement: Any, params: Any = None, *, writer: Any = None) -> Iterator[psycopg.Copy]:
        """Like psycopg's. Never sent again."""
        self._conn.revive()
        with super().copy(statement, params, writer=writer) as copy:  # type: ignore[misc]
            yield copy


class _AsyncMethods(BaseCursor[Any, Row]):
    """The same for asyncio."""

    __slots__ = ()

    async def execute(self, query: Any, params: Any = None, *, prepare: bool | None = None, binary: bool | None = None) -> Self:
        """Like `Cursor.execute`."""
        conn = self._conn
        if conn._needs_revival():
            await conn.revive()
        try:
            await super().execute(query, params, prepare=prepare, binary=binary)  # type: ignore[misc]
        except RETRYABLE as exc:
            if not conn._may_replay(exc):
                raise
            await conn._replay(exc, partial(super().execute, query, params, prepare=prepare, binary=binary))  # type: ignore[misc]
        return self

    async def executemany(self, query: Any, params_seq: Any, *, returning: bool = False) -> None:
        """Like `Cursor.executemany`."""
        await self._conn.revive()
        with self._conn._sending_many():
            await super().executemany(query, params_seq, returning=returning)  # type: ignore[misc]

    async def stream(self, query: Any, params: Any = None, *, binary: bool | None = None, size: int = 1) -> AsyncIterator[Row]:
        """Like `Cursor.stream`."""
        await self._conn.revive()
        async for row in super().stream(query, params, binary=binary, size=size):  # type: ignore[misc]
            yield row

    @asynccontextmanager
    async def copy(self, statement: Any, params: Any = None, *, writer: Any = None) -> AsyncIterator[psycopg.AsyncCopy]:
        """Like `Cursor.copy`."""
        await self._conn.revive()
        async with super().copy(statement, params, writer=writer) as copy:  # type: ignore[misc]
            yield copy


class _ServerBindingMixin(_ExecuteManyMixin[Row]):
    """The same guarantees with parameters bound by the server, at the price of messages of their own for what goes around."""

    __slots__ = ()

    def _execute_gen(
        self, query: Query, params: Params | None = None, *, prepare: bool | None = None, binary: bool | None = None
    ) -> PQGen[None]:
        conn: BaseConnection[Any] = self._conn
        self._pgconn = conn.pgconn
        conn._plan = None
        text = query if isinstance(query, str) else ""
        execute = partial(super()._execute_gen, query, params, prepare=prepare, binary=binary)
        if conn._pipeline or conn.pgconn.transaction_status != IDLE:
            conn._begin_within(text)
            yield from execute()
            conn._note_write_within(text)
            return
        plan: Plan | None = conn._make_plan(text, bound_by_server=True)
        while plan is not None:
            plan = yield from self._send_gen(plan, text, execute)

    def _send_gen(self, plan: Plan, text: str, execute: Callable[[], PQGen[None]]) -> PQGen[Plan | None]:
        """Send the opening, the statement, and in autocommit its COMMIT, a message each."""
        conn: BaseConnection[Any] = self._conn
        conn._plan = None if plan.apart else plan
        if conn._is_gone():
            raise psycopg.OperationalError("the connection is closed")
        conn._note_state(plan.statement)
        try:
            if plan.before.parts:
                yield from conn._exec_command(plan.before)
            conn._suppress_begin = True
            yield from execute()
        except psycopg.Error as exc:
            if not plan.begin and conn.pgconn.transaction_status in IN_TRANSACTION:
                yield from conn._exec_command(b"ROLLBACK")
            if not plan.apart:
                other = yield from conn._plan_after_refusal_gen(plan, text, exc, bound_by_server=True)
                if other is not None:
                    return other
            raise
        finally:
            conn._suppress_begin = False
            status = conn.pgconn.transaction_status
            conn._in_block = status != IDLE and not (status == UNKNOWN and conn._autocommit)
        if plan.before.parts and not plan.begin:
            yield from conn._exec_command(b"COMMIT")
        elif not plan.begin:
            conn._note_if_it_may_have_written(plan.statement)
        return None

    def _stream_send_gen(self, *args: Any, **kwargs: Any) -> PQGen[None]:
        self._check_can_open("stream()")
        yield from super()._stream_send_gen(*args, **kwargs)

    def _start_copy_gen(self, *args: Any, **kwargs: Any) -> PQGen[None]:
        self._check_can_open("COPY")
        yield from super()._start_copy_gen(*args, **kwargs)

    def _check_can_open(self, what: str) -> None:
        """Refuse what delivers as it goes in autocommit: nobody could end the transaction that holds its settings."""
        conn: BaseConnection[Any] = self._conn
        if conn._autocommit and conn.pgconn.transaction_status == IDLE and conn._opening_alone().parts:
            raise psycopg.NotSupportedError(
                f'binding="server": {what} in autocommit would have no timeouts: write it in `with conn.transaction():`'
            )


class Cursor(_SyncMethods[Row], _OneMessageMixin[Row], ClientCursor[Row]):
    """A cursor of `Connection`. Parameters are bound by the client, so that statement and opening share a message."""


class AsyncCursor(_AsyncMethods[Row], _OneMessageMixin[Row], AsyncClientCursor[Row]):
    """A cursor of `AsyncConnection`."""


class ServerBindingCursor(_SyncMethods[Row], _ServerBindingMixin[Row], psycopg.Cursor[Row]):
    """A cursor of `Connection` for `binding="server"`."""


class AsyncServerBindingCursor(_AsyncMethods[Row], _ServerBindingMixin[Row], psycopg.AsyncCursor[Row]):
    """A cursor of `AsyncConnection` for `binding="server"`."""
