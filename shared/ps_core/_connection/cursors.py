"""The cursors: they compose the message of a statement and show the statement's own result."""

from __future__ import annotations

import time
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

import psycopg
from psycopg import AsyncClientCursor, ClientCursor, capabilities, generators, pq, sql
from psycopg._cursor_base import BaseCursor
from psycopg._queries import PostgresClientQuery, PostgresQuery
from psycopg.adapt import Transformer
from psycopg.client_cursor import ClientCursorMixin

from ps_core._connection.base import FATAL, IDLE, OK, OPENING_ALONE, SEVERAL, TUPLES, UNKNOWN, BaseConnection
from ps_core._connection.literals import TypedQuery
from ps_core._message.commit import transaction_id
from ps_core._message.functions import FUNCTIONS_SQL
from ps_core._message.plan import After, Before, Plan, Way
from ps_core._message.script import NOTHING
from ps_core._message.statement import analyse, binds_outside_quotes
from ps_core.context import current, remaining
from ps_core.errors import RETRYABLE, Demoted, NotSent, not_supported
from ps_core.tags import current_comment, with_comment

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator

    from psycopg.abc import Params, PQGen, Query
    from psycopg.pq.abc import PGresult

    from ps_core._message.plan import Message
    from ps_core._message.script import Script

__all__ = ["AsyncCursor", "AsyncServerBindingCursor", "AsyncServerCursor", "Cursor", "ServerBindingCursor", "ServerCursor"]

Row = TypeVar("Row", covariant=True)  # noqa: PLC0105 - psycopg's name

# Numbers, as in `base`; and members of enumerations, which Python finds at a tenth of the cost where they are names of a module.
_DONE: Final = (TUPLES, int(pq.ExecStatus.COMMAND_OK), int(pq.ExecStatus.EMPTY_QUERY))
_POSITION: Final = After.POSITION
AT_ONCE: Final = 16
"""Rows of an `executemany` that are handed to libpq at a time."""
_SOME_ROWS: Final = (int(pq.ExecStatus.SINGLE_TUPLE), int(pq.ExecStatus.TUPLES_CHUNK))


class _PlannedMixin(BaseCursor[Any, Row]):
    """What all cursors have in common: a statement that arrives while the connection is idle goes as its plan says."""

    __slots__ = ("_by_server",)
    _merges = False
    """Parameters are merged into the text, where the server need not bind them."""
    _by_server: bool
    """The server binds the parameters of the current statement."""
    _quotes_hold_values = False
    """Values are put in the place of placeholders inside of quotes, too, as Django's own cursors do."""

    def _execute_gen(
        self, query: Query, params: Params | None = None, *, prepare: bool | None = None, binary: bool | None = None
    ) -> PQGen[None]:
        conn: BaseConnection[Any] = self._conn
        pgconn = self._pgconn = conn.pgconn  # the connection may have gone on with another one since this cursor was made
        conn._plan = None
        if conn._pipeline or pgconn.transaction_status != IDLE:
            yield from self._execute_within_gen(query, params, prepare=prepare, binary=binary)
            return
        conn._transaction = None
        self._start(query)
        pgq = self._convert_query(query, params)
        text = query if isinstance(query, str) else self._text(query, pgq)
        quoted = params and self._quotes_hold_values and not binds_outside_quotes(text)
        message = None if quoted else conn._usual(text, by_server=self._by_server)
        if message is None:
            statement = None
            if conn.state.endpoint.pooled and (
                (statement := analyse(text)).touches_session or (conn._watches_escapes and conn._escapes())
            ):
                pgq = self._read_change(query, params, pgq)
            if quoted:
                text, statement = bytes(pgq.query).decode(self._encoding, "replace"), None  # its values may be statements
            plan: Plan | None = conn._plan_for(text, statement=statement, by_server=self._by_server and conn._change is None)
            assert plan is not None
            if (plan.statement.verb == "SET" or plan.statement.touches_session) and plan.begin:
                conn._note_parameters()
            message = None if quoted else conn._keep(plan)
        else:
            plan = message.plan
        statement = plan.statement
        try:
            if message is not None and not plan.apart:
                plan = yield from self._send_gen(plan, text, pgq, binary=binary, message=message)
            while plan is not None:
                if plan.apart:
                    plan = yield from self._send_apart_gen(plan, text, pgq, prepare=prepare, binary=binary)
                else:
                    plan = yield from self._send_gen(plan, text, pgq, binary=binary)
        finally:
            status = conn.pgconn.transaction_status
            # Lost with its opening statement, a transaction is over for the server; for the caller, at its rollback.
            conn._in_block = status != IDLE and not (status == UNKNOWN and conn._autocommit)
        self._last_query = query
        if statement.controls:
            conn._follow_session(text, self._last_tag())
        if statement.ends:
            conn._note_end_within(statement)
        if conn._made_functions:
            yield from conn._ask_functions_gen()

    def _start(self, query: Query) -> None:
        """Begin a statement as psycopg's `_start_query` does, but for BEGIN."""
        if self._closed:
            raise psycopg.InterfaceError("the cursor is closed")
        self._reset()
        if self._last_query is not query or not query:
            self._last_query = None
            self._tx = Transformer(self)

    def _execute_within_gen(
        self, query: Query, params: Params | None, *, prepare: bool | None, binary: bool | None
    ) -> PQGen[None]:
        """Send a statement of a transaction, or of a pipeline, that is open."""
        conn: BaseConnection[Any] = self._conn
        text = query if isinstance(query, str) else self._text(query)
        conn._begin_within(text)
        if conn._pipeline:
            pipeline: Any = conn._pipeline
            plan = pipeline.plan(text)
            conn._planned = True
            yield from super()._execute_gen(query, params, prepare=prepare, binary=binary)
            pipeline.follow(plan, text)
            return
        pgq = statement = None
        message = conn._usual(text, by_server=not self._merges, within=True)
        if message is None:
            if conn.state.endpoint.pooled and (
                (statement := analyse(text)).touches_session or (conn._watches_escapes and conn._escapes())
            ):
                self._start(query)
                pgq = self._read_change(query, params, self._convert_query(query, params))
            by_server = not self._merges and conn._change is None
            plan = conn._plan_for(text, statement=statement, by_server=by_server, within=True)
            if plan.statement.verb == "SET" or plan.statement.touches_session:
                conn._note_parameters()
            conn._keep(plan)
        else:
            plan = message.plan
        conn._planned = True
        alone = plan.after is After.NOTHING and not (plan.is_accompanied or conn._change or conn._session.now.owes)
        if alone and not self._merges:
            yield from super()._execute_gen(query, params, prepare=prepare, binary=binary)
        else:
            if pgq is None:
                self._start(query)
                pgq = self._convert_query(query, params)
            if (plan.by_server or self._by_server) and not (plan.statement.controls or conn._change):
                yield from conn._send_before_gen(plan.before)
                yield from self._maybe_prepare_gen(pgq, prepare=prepare, binary=binary)
                yield from conn._prepared.maintain_gen(conn)
            else:
                yield from self._send_gen(plan, text, pgq, binary=binary)
            self._last_query = query
        if plan.statement.controls:
            conn._follow_session(text, self._last_tag())
        conn._note_end_within(plan.statement)
        if conn._made_functions:
            yield from conn._ask_functions_gen()

    def _read_change(self, query: Query, params: Params | None, pgq: Any) -> Any:
        """Let the connection know what a statement does to the session; return it with its values in it, as that is read.

        Raises:
            psycopg.NotSupportedError: it sets what cannot be held.
        """
        conn: BaseConnection[Any] = self._conn
        merged, by_server = pgq, self._by_server and params
        if by_server:
            merged = PostgresClientQuery(self._tx)
            merged.convert(query, params)
        conn._change = conn._read_change(bytes(merged.query).decode(self._encoding))
        return self._convert_query(bytes(merged.query)) if by_server and conn._change is not None else pgq

    def _maybe_prepare_gen(self, pgq: Any, *, prepare: bool | None = None, binary: bool | None = None) -> PQGen[None]:
        # What is prepared under one search_path means other tables under the next.
        if self._conn._session.now.value_of("search_path") is not None:
            prepare = False
        yield from super()._maybe_prepare_gen(pgq, prepare=prepare, binary=binary)

    def _last_tag(self) -> str:
        """Return how the server calls what the last statement of a text did."""
        return bytes(self._results[-1].command_status or b"").decode() if self._results else ""

    def _must_be_bound_by_server(self, query: Query) -> bool:
        """Return whether a value could end up inside of quotes: the server binds or refuses it then, as with psycopg's cursor."""
        return not (self._quotes_hold_values or not isinstance(query, str | bytes | sql.Composable)) and not binds_outside_quotes(
            self._text(query)
        )

    def _text(self, query: Query, pgq: Any = None) -> str:
        """Return the statement as its author wrote it, whatever it was given as: it decides how it travels.

        A template string has its values in it, so that its text is what is sent; `pgq`, if it was converted already.
        """
        text = _text(query, self)
        if text is not None:
            return text
        return bytes((pgq or self._convert_query(query)).query).decode(self._encoding, "replace")

    def _send_between(self, head: bytes, pgq: Any, after: Script, *, binary: bool | None) -> None:
        """Send the user's statement with what goes before and after it. The cursor keeps the user's text as its query."""
        if not head and not after.parts:
            self._execute_send(pgq, binary=binary)
            return
        query, change = pgq.query, self._conn._change
        sent = query if change is None else change.sent.encode(self._encoding)
        pgq.query = head + sent + after.tail
        try:
            self._execute_send(pgq, binary=binary)
        finally:
            pgq.query = query

    def _send_gen(
        self, plan: Plan, text: str, pgq: Any, *, binary: bool | None, message: Message | None = None
    ) -> PQGen[Plan | None]:
        """Send one message and take its results. Return another plan where the server refused this one before anything ran.

        The message, and a result for each of its commands:

            before ...  | the user's statement(s) | after ...  | names of functions, where they are due
            done        | done:end                | asked      | functions
        """
        conn: BaseConnection[Any] = self._conn
        if not plan.outlives_loss:  # it is sent from an idle connection, which was not lost as far as libpq knows
            self._make_sure(plan)
        conn._plan, state, asks_functions = plan, conn.state, False
        if message is None:
            before, after = conn._script_before(plan.before), conn._script_after(plan, text)
        else:
            _, before, after, _ = message
        if plan.has_room:
            functions, name, now = state.functions, state.endpoint.name, time.monotonic()
            asks_functions = now >= functions.due.get(name, 0.0) and functions.is_due(name, now)
        if message is not None and not (asks_functions or self._by_server or binary or self.format) and self._merges:
            # What psycopg's client-side cursor does.
            self._query = pgq
            conn.pgconn.send_query(before.head + pgq.query + after.tail)
        else:
            self._send_between(before.head, pgq, after.then(FUNCTIONS_SQL) if asks_functions else after, binary=binary)
        results: list[PGresult] = []
        lost = None
        if plan.commits:
            lost = yield from conn._collect_gen(results)
        else:
            results = yield from generators.execute(conn.pgconn)
        done, follow = len(before.parts), len(after.parts)
        # An error ends a message: where the last result is none, none is.
        refused = _first_error(results) if results and results[-1].status == FATAL else None
        if asks_functions and len(results) == done + 2 + follow:
            conn._take_functions(results.pop())
            if refused is not None and refused not in results:
                refused = None  # the names are asked for again, later
        if plan.commits and any(result.command_status == b"COMMIT" for result in results[done:]):
            lost = None  # it is durable; what came after does not matter but for the position
        elif refused is not None:
            error = conn._error_of(refused, results.index(refused), before, after)
            other = yield from conn._plan_after_refusal_gen(plan, text, error)
            if other is not None:
                return other
            raise error
        elif lost is not None:
            raise lost
        whole = len(results) == done + 1 + follow and results[done].status in _DONE
        if not whole:
            self._check_results(results[: done + 1])
        # Of several statements, and of a COMMIT that was answered, all came; else those of what follows may be missing.
        end = done + 1 if follow and plan.statement.count <= 1 else len(results) - follow
        if conn._change is not None:
            conn._take_session(results[end:], begins=plan.begin)
        asked = results.pop() if plan.asks and len(results) == end + follow else None
        if plan.asks_place:
            reads = plan.after is _POSITION
            if not (reads and conn._is_known(asked)):
                if not conn._check_place(asked):
                    conn._give_up()
                    raise Demoted("the server is no longer the primary")
                if reads:
                    conn._record_seen(asked, wrote=False)
        elif plan.after is After.COMMIT_AS_SET:
            conn._record_committed(results[end], asked)
        elif plan.after is After.COMMIT:
            conn._record_committed(None, asked, wrote=not plan.statement.only_sets)
        elif plan.after is After.TRANSACTION_ID and asked is not None and asked.status == TUPLES:
            conn._transaction = transaction_id(asked)
        if not whole:
            self._check_results(results[done:end])
        self._set_results(results[done:end])
        if not (plan.asks or plan.begin) and plan.first and (state.tracks or not plan.reads):
            conn._note_without_position(plan)
        return None

    def _send_apart_gen(
        self, plan: Plan, text: str, pgq: Any, *, prepare: bool | None, binary: bool | None
    ) -> PQGen[Plan | None]:
        """Send what goes before the statement, the statement, and the COMMIT of our own transaction, in messages of their own."""
        conn: BaseConnection[Any] = self._conn
        self._make_sure(plan)
        try:
            conn._plan = OPENING_ALONE
            yield from conn._send_before_gen(plan.before)
            if plan.by_server:
                conn._plan = plan
                yield from self._maybe_prepare_gen(pgq, prepare=prepare, binary=binary)
                yield from conn._prepared.maintain_gen(conn)
        except psycopg.Error as exc:
            other = yield from conn._plan_after_refusal_gen(plan, text, exc)
            if other is not None:
                return other
            raise
        if not plan.by_server:
            conn._plan = None
            following = Plan(plan.statement, after=plan.after, first=False)
            return (yield from self._send_gen(following, text, pgq, binary=binary))
        if plan.own_begin:
            yield from conn._end_gen(b"COMMIT", read_only=plan.before is Before.BEGIN_READ_ONLY)
        elif not plan.begin:
            conn._note_without_position(plan)
        return None

    def _make_sure(self, plan: Plan) -> None:
        """Make sure that the connection is there, as far as this machine was told, where what is sent may not be sent again.

        Raises:
            NotSent: it is lost.
        """
        conn: BaseConnection[Any] = self._conn
        if conn.pgconn.status != OK or (plan.first and not plan.outlives_loss and conn._is_gone()):
            conn._plan = plan
            raise NotSent

    def _executemany_gen_pipeline(self, query: Query, params_seq: Iterable[Params], returning: bool) -> PQGen[None]:
        conn: BaseConnection[Any] = self._conn
        self._pgconn = conn.pgconn
        remaining()
        pipeline: Any = conn._pipeline
        text = self._text(query)
        plan = pipeline.plan(text)
        conn._planned = True
        yield from self._send_many_gen(query, params_seq, returning)
        pipeline.follow(plan, text)
        pipeline.end_many(plan)

    def _send_many_gen(self, query: Query, params_seq: Iterable[Params], returning: bool) -> PQGen[None]:
        yield from super()._executemany_gen_pipeline(query, params_seq, returning)

    def _stream_send_gen(
        self, query: Query, params: Params | None = None, *, binary: bool | None = None, size: int
    ) -> PQGen[None]:
        plan, pgq = yield from self._plan_delivery_gen(query, params, Way.ROWS, extended=bool(params or binary))
        conn: BaseConnection[Any] = self._conn
        if size < 1:
            raise ValueError("size must be >= 1")
        if size > 1:
            capabilities.has_stream_chunked(check=True)
        before = NOTHING if plan.by_server else conn._script_before(plan.before)
        if plan.by_server:
            yield from conn._send_before_gen(plan.before)
        if before.parts:
            self._send_between(before.head, pgq, NOTHING, binary=binary)
        else:
            self._execute_send(pgq, binary=binary, force_extended=True)
        if size == 1:
            self._pgconn.set_single_row_mode()
        else:
            self._pgconn.set_chunked_rows_mode(size)
        self._last_query = query
        yield from generators.send(self._pgconn)
        answered, told = 0, None
        while answered < len(before.parts):
            result = yield from generators.fetch(self._pgconn)
            if result is None:
                return
            if result.status == FATAL:
                raise (yield from self._refused_gen(plan, result, answered, before))
            if result.status in _SOME_ROWS:
                told = result
            else:
                answered += 1
        self._begin_delivery(plan, told)

    def _start_copy_gen(self, statement: Query, params: Params | None = None) -> PQGen[None]:
        if self._conn._pipeline:
            yield from super()._start_copy_gen(statement, params)  # which refuses it
            return
        plan, pgq = yield from self._plan_delivery_gen(statement, params, Way.COPY)
        conn: BaseConnection[Any] = self._conn
        before = conn._script_before(plan.before)
        self._send_between(before.head, pgq, NOTHING, binary=False)
        results = yield from conn._answer_gen()
        refused = _first_error(results)
        if refused is not None:
            raise (yield from self._refused_gen(plan, refused, results.index(refused), before))
        if len(results) != len(before.parts) + 1:
            raise psycopg.ProgrammingError("COPY cannot be mixed with other operations")
        self._begin_delivery(plan, results[-2] if before.parts else None)
        self._check_copy_result(results[-1])
        self._set_results(results[-1:])

    def _plan_delivery_gen(
        self, query: Query, params: Params | None, way: Way, *, extended: bool = False
    ) -> PQGen[tuple[Plan, Any]]:
        """Return how a statement travels that delivers, or takes, while it runs; and what is sent of it.

        `extended`: where the server binds, the extended protocol is needed, whose messages hold one statement.
        """
        conn: BaseConnection[Any] = self._conn
        self._pgconn = conn.pgconn
        within = conn.pgconn.transaction_status != IDLE
        conn._plan = None  # it is never sent again
        if not within:
            conn._transaction = None
        text = self._text(query)
        if within:
            conn._begin_within(text)
        conn._suppress_begin = True
        try:
            yield from self._start_query(query)
        finally:
            conn._suppress_begin = False
        if way is Way.COPY and (params or not isinstance(query, str | bytes | sql.Composable)):
            # For which no server binds parameters: psycopg merges them as bare literals.
            if self._must_be_bound_by_server(query):
                raise not_supported(
                    "COPY: a placeholder may stand inside of quotes or of a comment: write it outside of them, in a text without"
                    " backslashes and dollar quotes"
                )
            merged = PostgresClientQuery(self._tx)
            merged.convert(query, params)
            query, params = merged.query, None
        pgq = self._convert_query(query, params)
        plan = conn._plan_for(text, way=way, by_server=self._by_server and extended, within=within)
        conn._in_block = within or not conn._autocommit
        return plan, pgq

    def _refused_gen(self, plan: Plan, result: PGresult, at: int, before: Script) -> PQGen[psycopg.Error]:
        """Return the error that is the result of the command `at` of a message; leave no transaction of ours open."""
        conn: BaseConnection[Any] = self._conn
        while (yield from generators.fetch(self._pgconn)) is not None:
            pass
        if plan.own_guard and conn.pgconn.transaction_status == pq.TransactionStatus.INERROR:
            yield from conn._exec_command(b"ROLLBACK")
        return conn._error_of(result, at, before)

    def _begin_delivery(self, plan: Plan, told: PGresult | None) -> None:
        """Note what is known before the first row: how far the server is whose snapshot it is, or that this may write."""
        conn: BaseConnection[Any] = self._conn
        if plan.before is Before.SNAPSHOT:
            if not conn._check_place(told):
                conn._give_up()
                raise Demoted("the server is no longer the primary")
            conn._record_seen(told, wrote=False)
        elif plan.first and not plan.begin:
            conn._note_without_position(plan)


class _OneMessageMixin(_PlannedMixin[Row], ClientCursorMixin[Any, Row]):
    """The cursors whose parameters the client binds, so that a statement and what goes around it share a message."""

    _merges = True
    _query_cls = TypedQuery

    def _convert_query(self, query: Query, params: Params | None = None) -> Any:
        plain = not params or (isinstance(query, str) and (self._quotes_hold_values or binds_outside_quotes(query)))
        by_server = self._by_server = not plain and self._must_be_bound_by_server(query)
        pgq: Any = (PostgresQuery if by_server else self._query_cls)(self._tx)
        pgq.convert(query, params)
        if not by_server and current().tags and (comment := current_comment()):
            pgq.query = with_comment(pgq.query, comment)
        return pgq

    def _send_many_gen(self, query: Query, params_seq: Iterable[Params], returning: bool) -> PQGen[None]:
        """Do what psycopg's does, without asking for each row whether its statement is to be prepared: none is."""
        rows = iter(params_seq)
        first = next(rows, None)
        if first is None or self._must_be_bound_by_server(query) or self.format:
            yield from super()._send_many_gen(query, () if first is None else chain((first,), rows), returning)
            return
        yield from self._start_query(query)
        if not returning:
            self._rowcount = 0
        self._execmany_returning = returning
        pipeline: Any = self._conn._pipeline
        send, commands, results = self._pgconn.send_query_params, pipeline.command_queue, pipeline.result_queue
        pgq = self._query = self._convert_query(query, first)
        commands.append(partial(send, pgq.query, None))
        results.append((self, None))
        for at, params in enumerate(rows):
            if at % AT_ONCE == 0:
                yield from pipeline._communicate_gen()
            pgq.dump(params)
            commands.append(partial(send, pgq.query, None))
            results.append((self, None))
        yield from pipeline._communicate_gen()
        self._last_query = query
        if returning:
            yield from pipeline._fetch_gen(flush=True)

    def _execute_send(self, query: Any, *, force_extended: bool = False, binary: bool | None = None) -> None:
        if self._by_server:
            BaseCursor._execute_send(self, query, force_extended=force_extended, binary=binary)
        else:
            super()._execute_send(query, force_extended=force_extended, binary=binary)

    def mogrify(self, query: Query, params: Params | None = None) -> str:
        """Return the statement with its parameters merged, as psycopg's `ClientCursor` does."""
        self._tx = Transformer(self)
        pgq = self._query_cls(self._tx)
        pgq.convert(query, params)
        return bytes(pgq.query).decode(self._tx.encoding)


def _text(query: Query, cursor: BaseCursor[Any, Any]) -> str | None:
    """Return a statement's text as it was written; None of a template string, whose text is only known when it is merged."""
    if isinstance(query, str):
        return query
    if isinstance(query, bytes):
        return query.decode(cursor._encoding, "replace")
    return query.as_string(cursor) if isinstance(query, sql.Composable) else None


def _first_error(results: Iterable[PGresult]) -> PGresult | None:
    for result in results:
        if result.status == FATAL:
            return result
    return None


def _buffered(copy: Any) -> tuple[int, Any]:
    """Return what libpq has received of a COPY already, in the place of a wait; and its length: 0 for nothing, -1 at the end."""
    if copy._finished or current().deadline is not None:
        return 0, None
    pgconn = copy._pgconn
    found: tuple[int, Any] = pgconn.get_copy_data(1)
    if not found[0]:
        try:
            pgconn.consume_input()
        except psycopg.OperationalError:
            return found  # whoever waits meets it, too
        found = pgconn.get_copy_data(1)
    return found


def _end_gen(copy: Any) -> PQGen[Any]:
    """End a COPY of which all has come, as psycopg does."""
    results = yield from generators.fetch_many(copy._pgconn)
    if len(results) > 1:
        raise psycopg.ProgrammingError("you cannot mix COPY with other operations")
    copy.cursor._check_results(results)
    copy._finished, count = True, results[0].command_tuples
    copy.cursor._rowcount = -1 if count is None else count
    return memoryview(b"")


def _read(copy: Any) -> Any:
    length, data = _buffered(copy)
    return data if length > 0 else copy.connection.wait(_end_gen(copy) if length else copy._read_gen())


async def _read_async(copy: Any) -> Any:
    length, data = _buffered(copy)
    return data if length > 0 else await copy.connection.wait(_end_gen(copy) if length else copy._read_gen())


class _SyncMethods(BaseCursor[Any, Row]):
    """What callers call on a sync cursor: connect anew where nothing is open, run psycopg's, and heal where that is safe."""

    __slots__ = ()

    def execute(self, query: Any, params: Any = None, *, prepare: bool | None = None, binary: bool | None = None) -> Self:
        """Execute one statement; the module `connection` tells how it travels and when it is sent again."""
        conn = self._conn
        try:
            settled = conn._at_home and conn.pgconn.status == OK and conn._generation == conn.state.generation
            if not settled and conn._needs_revival():
                conn.revive()
            try:
                super().execute(query, params, prepare=prepare, binary=binary)  # type: ignore[misc]
            except RETRYABLE as exc:
                if not conn._may_replay(exc):
                    raise
                conn._replay(exc, partial(super().execute, query, params, prepare=prepare, binary=binary))  # type: ignore[misc]
        except BaseException:
            if conn.pgconn.status != OK:
                conn._note_lost_change(_text(query, self) or "")
            raise
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
            copy.read = partial(_read, copy)
            yield copy


class _AsyncMethods(BaseCursor[Any, Row]):
    """The same for asyncio."""

    __slots__ = ()

    async def execute(self, query: Any, params: Any = None, *, prepare: bool | None = None, binary: bool | None = None) -> Self:
        """Like `Cursor.execute`."""
        conn = self._conn
        try:
            settled = conn._at_home and conn.pgconn.status == OK and conn._generation == conn.state.generation
            if not settled and conn._needs_revival():
                await conn.revive()
            try:
                await super().execute(query, params, prepare=prepare, binary=binary)  # type: ignore[misc]
            except RETRYABLE as exc:
                if not conn._may_replay(exc):
                    raise
                await conn._replay(exc, partial(super().execute, query, params, prepare=prepare, binary=binary))  # type: ignore[misc]
        except BaseException:
            if conn.pgconn.status != OK:
                conn._note_lost_change(_text(query, self) or "")
            raise
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
            copy.read = partial(_read_async, copy)
            yield copy


class _ServerBindingMixin(_PlannedMixin[Row]):
    """The cursors whose parameters the server binds, at the price of messages of their own for what goes around."""

    _by_server = True


class _NamedMixin(BaseCursor[Any, Row]):
    """What the named cursors have in common: they tell the connection what is under way."""

    __slots__ = ()
    _withhold: bool

    def _declare_gen(self, query: Query, params: Params | None = None, binary: bool | None = None) -> PQGen[None]:
        conn: BaseConnection[Any] = self._conn
        self._pgconn = conn.pgconn
        idle = conn.pgconn.transaction_status == IDLE
        text = _text(query, self) or SEVERAL
        if not idle:
            conn._begin_within(text)
        # Without a transaction, the server refuses what is not WITH HOLD.
        planned = not idle or not conn._autocommit or self._withhold
        plan = None
        if planned:
            plan = conn._plan_for(text, way=Way.CURSOR, by_server=True, within=not idle, with_hold=self._withhold)
        # Nothing but BEGIN and DECLARE: as safe to send again as the opening statement of a transaction.
        conn._plan = plan if plan is not None and plan.begin else None
        if plan is not None and (plan.before is Before.GUARD or conn._session.now.owes):
            yield from conn._send_before_gen(plan.before)
        conn._suppress_begin, conn._planned = plan is None, True
        try:
            yield from super()._declare_gen(query, params, binary)  # type: ignore[misc]
        finally:
            conn._suppress_begin = False
        conn._plan = None
        if idle and plan is not None and not plan.begin:
            conn._note_without_position(plan)

    def _fetch_gen(self, num: int | None) -> PQGen[list[Any]]:
        remaining()
        rows: list[Any] = yield from super()._fetch_gen(num)  # type: ignore[misc]
        return rows


class Cursor(_SyncMethods[Row], _OneMessageMixin[Row], ClientCursor[Row]):
    """A cursor of `Connection`. Parameters are bound by the client, so that statement and opening share a message."""


class AsyncCursor(_AsyncMethods[Row], _OneMessageMixin[Row], AsyncClientCursor[Row]):
    """A cursor of `AsyncConnection`."""


class ServerBindingCursor(_SyncMethods[Row], _ServerBindingMixin[Row], psycopg.Cursor[Row]):
    """A cursor of `Connection` for `binding="server"`."""


class AsyncServerBindingCursor(_AsyncMethods[Row], _ServerBindingMixin[Row], psycopg.AsyncCursor[Row]):
    """A cursor of `AsyncConnection` for `binding="server"`."""


class ServerCursor(_NamedMixin[Row], psycopg.ServerCursor[Row]):
    """A named cursor of `Connection`. Its parameters are bound by the server, as psycopg's."""

    def execute(self, query: Any, params: Any = None, *, binary: bool | None = None, **kwargs: Any) -> Self:
        """Declare the cursor. As the first statement of a transaction it is sent again where that is safe; fetching never is."""
        conn: Any = self._conn
        conn.revive()
        run = partial(super().execute, query, params, binary=binary, **kwargs)
        try:
            run()
        except RETRYABLE as exc:
            if not conn._may_replay(exc):
                raise
            conn._replay(exc, run)
        return self


class AsyncServerCursor(_NamedMixin[Row], psycopg.AsyncServerCursor[Row]):
    """A named cursor of `AsyncConnection`."""

    async def execute(self, query: Any, params: Any = None, *, binary: bool | None = None, **kwargs: Any) -> Self:
        """Like `ServerCursor.execute`."""
        conn: Any = self._conn
        await conn.revive()
        run = partial(super().execute, query, params, binary=binary, **kwargs)
        try:
            await run()
        except RETRYABLE as exc:
            if not conn._may_replay(exc):
                raise
            await conn._replay(exc, run)
        return self
