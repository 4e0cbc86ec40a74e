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
framework above never notices. What may be sent again is decided in one place, `_Shared._may_replay`.

psycopg's protocol code is written as generators that both of its connection classes drive, so all of ours is written once, too.
Four of its private methods are overridden (`_execute_gen`, `_start_query`, `_exec_command`, `_get_tx_start_command`); they are
the same from 3.2 to 3.3, and the tests run on both ends.
"""

from __future__ import annotations

import logging
import os
import re
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar
from weakref import ReferenceType, ref

import psycopg
import tenacity
from psycopg import AsyncClientCursor, ClientCursor, IsolationLevel, generators, pq
from psycopg.client_cursor import ClientCursorMixin

from ps_core.context import current
from ps_core.failures import Ran, classify
from ps_core.link import NOTHING, Link, Script
from ps_core.statements import Statement, analyse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from psycopg.abc import Params, PQGen, Query
    from psycopg.pq.abc import PGresult


__all__ = ["AsyncConnection", "Connection", "Link"]

_log = logging.getLogger("ps_core")

Row = TypeVar("Row", covariant=True)  # noqa: PLC0105 - psycopg's name

_IDLE: Final = pq.TransactionStatus.IDLE
_FATAL: Final = pq.ExecStatus.FATAL_ERROR
_RETRYABLE: Final = (psycopg.OperationalError, psycopg.InternalError)
_LINE: Final = re.compile(r"^LINE (\d+): ", re.MULTILINE)
_READ_ONLY: Final = b"SET LOCAL transaction_read_only=on"


@dataclass(slots=True)
class _Plan:
    """How one statement travels that arrives while the connection is idle."""

    statement: Statement
    before: Script = NOTHING
    after: Script = NOTHING
    begin: bool = False
    """An explicit transaction is opened."""
    read_only: bool = False
    """This one statement is sent READ ONLY, which nobody asked for: a refusal (25006) is ours to handle."""
    apart: bool = False
    """The opening travels in a message of its own, the statement after it."""


class _Shared(psycopg.BaseConnection[Row]):
    """What the sync and the async connection have in common: everything but the waiting."""

    link: Link
    _connect_options: dict[str, Any]
    _pid: int
    _plan: _Plan | None = None
    _holding = False
    _keeps_state = False
    _in_block = False

    def _bind(self, link: Link, options: dict[str, Any]) -> None:
        self.link = link
        self._connect_options = options
        self._pid = os.getpid()
        self._read_only = True if link.endpoint.read_only else None

    def _set_read_only_gen(self, value: bool | None) -> PQGen[None]:
        # A connection to a standby stays open when it is promoted, and would accept writes from then on: always READ ONLY there.
        yield from super()._set_read_only_gen(True if self.link.endpoint.read_only else value)

    # --- opening ---------------------------------------------------------------------------------------------------------------

    def _start_query(self) -> PQGen[None]:
        # A cursor's execute() brings the opening along by itself; COPY, executemany, stream and named cursors come here.
        if not self._holding:
            yield from super()._start_query()

    def _get_tx_start_command(self) -> Any:
        return Script(super()._get_tx_start_command(), *self._opening().parts)

    def _opening(self) -> Script:
        script = self.link.opening(self.pgconn.server_version)
        own = current().local_settings
        return Script(*script.parts, *(self._set_local(name, value) for name, value in own)) if own else script

    def _set_local(self, name: str, value: str) -> bytes:
        # Quoted part by part: app.user is fine as a name, but its second half is a reserved word.
        quoted = b".".join(b'"%s"' % part.encode() for part in name.split("."))
        literal = pq.Escaping(self.pgconn).escape_literal(value.encode(self.pgconn._encoding))
        return b"SET LOCAL %s=%s" % (quoted, bytes(literal))

    def _exec_command(self, command: Any, result_format: pq.Format = pq.Format.TEXT) -> PQGen[PGresult | None]:
        """Like psycopg's, and able to send a script, whose several results its own would refuse."""
        if not isinstance(command, Script):
            result = yield from super()._exec_command(command, result_format)
            return result
        if self._pipeline:
            for part in command.parts:
                yield from super()._exec_command(part)
            return None
        self._check_connection_ok()
        self.pgconn.send_query(command.head())
        results: list[PGresult] = yield from generators.execute(self.pgconn)
        for result in results:
            if result.status == _FATAL:
                raise psycopg.errors.error_from_result(result, encoding=self.pgconn._encoding)
        return results[0]

    def _make_plan(self, text: str) -> _Plan:
        """Decide how a statement travels that arrives while the connection is idle."""
        link, statement = self.link, analyse(text)
        reads = statement.reads and text not in link.hidden_writes
        if not self._autocommit and not (reads and self._may_read_without_transaction()):
            opening = self._get_tx_start_command()
            return _Plan(statement, before=opening, begin=True, apart=not statement.single)
        if statement.begins:
            return _Plan(statement, after=self._opening())
        if statement.bare or statement.controls or not statement.count or text in link.loners:
            return _Plan(statement)
        if reads:
            return _Plan(statement, before=Script(*self._opening().parts, _READ_ONLY), read_only=True)
        return _Plan(statement, before=self._opening())

    def _may_read_without_transaction(self) -> bool:
        """Return whether a plain read of an explicit transaction may travel by itself (see the module)."""
        return (
            self.link.endpoint.read_only
            and self._isolation_level in (None, IsolationLevel.READ_COMMITTED)
            and not self._deferrable
            and not self._num_transactions
        )

    def _read_role_gen(self) -> PQGen[dict[str, int]]:
        """Read what the role has by itself. `reset_val` is what the session began with, whatever another client has set since."""
        result = yield from super()._exec_command(
            b"SELECT name, reset_val FROM pg_settings WHERE name IN ('statement_timeout', 'transaction_timeout',"
            b" 'idle_in_transaction_session_timeout', 'lock_timeout')"
        )
        assert result is not None  # outside a pipeline there is one
        rows = ((result.get_value(row, 0), result.get_value(row, 1)) for row in range(result.ntuples))
        return {bytes(name).decode(): int(value) for name, value in rows if name is not None and value is not None}

    def _restore_gen(self, before: pq.abc.PGconn) -> PQGen[None]:
        """Give the new connection what drivers and frameworks set for the session, and what poolers keep track of."""
        for name in (b"TimeZone", b"DateStyle", b"IntervalStyle"):
            value = before.parameter_status(name)
            if value is not None and value != self.pgconn.parameter_status(name):
                literal = bytes(pq.Escaping(self.pgconn).escape_literal(value))
                yield from super()._exec_command(b"SET SESSION %s=%s" % (name, literal))

    # --- healing ---------------------------------------------------------------------------------------------------------------

    def _note_state(self, statement: Statement) -> None:
        # Behind a transaction pooler there is no session that could keep anything.
        if statement.keeps_state and not self.link.endpoint.pooled:
            self._keeps_state = True

    def _may_heal(self) -> bool:
        return not (self._keeps_state or self._closed or os.getpid() != self._pid)

    def _may_revive(self) -> bool:
        """Return whether a broken connection may be used again without anybody having to know: nothing was open on it."""
        return self.broken and self._autocommit and not self._in_block and self._may_heal()

    def _may_replay(self, exc: BaseException) -> bool:
        """Return whether the statement that just failed may be sent again on a new connection.

        Safe because of one of three facts: nothing of an explicit transaction is durable before its COMMIT; what was sent READ
        ONLY changed nothing; what never reached a server did not run.
        """
        plan = self._plan
        if plan is None or not isinstance(exc, _RETRYABLE) or not self._may_heal():
            return False
        failure = classify(exc)
        if failure.usable or not failure.transient:
            return False
        if plan.apart:
            return True  # only the opening was under way
        return plan.statement.single and (plan.begin or plan.read_only or failure.ran is Ran.NO)

    def _check_connection_ok(self) -> None:
        if not self._may_revive():
            super()._check_connection_ok()

    def _adopt_gen(self, donor: psycopg.BaseConnection[Any]) -> PQGen[None]:
        """Go on with the donor's libpq connection. Cursors follow when they are next used."""
        wself: ReferenceType[psycopg.BaseConnection[Any]] = ref(self)
        pgconn = donor.pgconn
        del donor.pgconn  # its finalizer then leaves the connection alone
        pgconn.notice_handler = partial(psycopg.BaseConnection._notice_handler, wself)
        pgconn.notify_handler = partial(psycopg.BaseConnection._notify_handler, wself)
        before, self.pgconn = self.pgconn, pgconn
        threshold, prepared_max = self.prepare_threshold, self.prepared_max
        self._prepared = type(self._prepared)()
        self.prepare_threshold, self.prepared_max = threshold, prepared_max
        try:
            yield from self._restore_gen(before)
        finally:
            before.finish()


class _Attempts:
    """The tries of one healing: tenacity's loop and the gate, and the rule that says whether to go on."""

    def __init__(self, link: Link, *, connection: _Shared[Any] | None = None, first: BaseException | None = None) -> None:
        self.link = link
        self.connecting = True
        self._connection = connection
        self._until = time.monotonic() + float(link.policy.max_elapsed)
        self._first = first
        self.options = link.policy.loop_options(retry=self._go_on, remaining=None)
        if first is not None:
            _log.info(
                "endpoint %r: connection lost (%s), trying again",
                link.endpoint.name,
                classify(first).rule,
                extra={"ps_event": "retry"},
            )
            link.gate.report_loss()

    def remaining(self) -> float:
        return self._until - time.monotonic()

    def _go_on(self, exc: BaseException) -> bool:
        if self.connecting or self._connection is None:
            return isinstance(exc, _RETRYABLE) and classify(exc).transient
        return self._connection._may_replay(exc)

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Raise what ended the tries, with a note of how long they went on; a wait that timed out raises what began them."""
        began = time.monotonic()
        try:
            yield
        except (psycopg.Error, TimeoutError) as exc:
            error = self._first if isinstance(exc, TimeoutError) and self._first is not None else exc
            if isinstance(error, TimeoutError):
                error = psycopg.errors.ConnectionTimeout(str(error))
            if _is_transient(error):
                tried = time.monotonic() - began
                error.add_note(f"ps-postgres: tried the endpoint {self.link.endpoint.name!r} again for {tried:.1f} s")
            raise error from (None if error is exc else exc)


def _is_transient(exc: BaseException) -> bool:
    return isinstance(exc, _RETRYABLE) and classify(exc).transient


class _Cursor(ClientCursorMixin[Any, Row]):
    """The part of the cursors that composes the message; psycopg's own classes drive it, sync and async."""

    __slots__ = ()

    def _execute_gen(
        self, query: Query, params: Params | None = None, *, prepare: bool | None = None, binary: bool | None = None
    ) -> PQGen[None]:
        conn: _Shared[Any] = self._conn
        self._pgconn = conn.pgconn  # the connection may have gone on with another one since this cursor was made
        conn._plan = None
        status = conn.pgconn.transaction_status
        if conn._pipeline or (status != _IDLE and not conn._may_revive()):
            conn._in_block = True
            if isinstance(query, str):
                conn._note_state(analyse(query))
            yield from super()._execute_gen(query, params, prepare=prepare, binary=binary)
            return
        conn._in_block = False
        conn._holding = True
        try:
            yield from self._start_query(query)
        finally:
            conn._holding = False
        pgq = self._convert_query(query, params)
        text = query if isinstance(query, str) else bytes(pgq.query).decode(self._encoding, "replace")
        plan: _Plan | None = conn._make_plan(text)
        self._query = pgq
        while plan is not None:
            plan = yield from self._send_gen(plan, text, pgq, binary=binary)
        self._last_query = query

    def _send_gen(self, plan: _Plan, text: str, pgq: Any, *, binary: bool | None) -> PQGen[_Plan | None]:
        """Send one message and take its results. Return another plan where the server refused this one before anything ran."""
        conn: _Shared[Any] = self._conn
        conn._plan = plan
        if conn.pgconn.status != pq.ConnStatus.OK:
            raise psycopg.OperationalError("the connection is closed")  # nothing was sent: `_may_replay` takes it from here
        conn._note_state(plan.statement)
        if plan.apart:
            yield from conn._exec_command(plan.before)
            conn._plan = None
            plan = _Plan(plan.statement)
        head = plan.before.head()
        if head or plan.after.parts:
            pgq.query, query = head + pgq.query + (b"\n;" + plan.after.head() if plan.after.parts else b""), pgq.query
            try:
                self._execute_send(pgq, binary=binary)
            finally:
                pgq.query = query
        else:
            self._execute_send(pgq, binary=binary)
        results = yield from generators.execute(self._pgconn)
        refused = next((result for result in results if result.status == _FATAL), None)
        if refused is not None:
            other = self._other_way(plan, text, results)
            if other is not None:
                return other
            raise _error_in_users_text(refused, self._encoding, head)
        self._check_results(results)
        self._set_results(results[len(plan.before.parts) : len(results) - len(plan.after.parts)])
        return None

    def _other_way(self, plan: _Plan, text: str, results: list[PGresult]) -> _Plan | None:
        """Return the plan to go on with after a refusal that left nothing behind, None to raise it."""
        conn: _Shared[Any] = self._conn
        if not plan.before.parts or conn.pgconn.status != pq.ConnStatus.OK or conn.pgconn.transaction_status != _IDLE:
            return None
        if plan.begin:
            # BEGIN did not run: the message did not parse. The caller expects a failed transaction, and gets one.
            return replace(plan, apart=True)
        state = results[-1].error_field(pq.DiagnosticField.SQLSTATE)
        if state == b"25006" and plan.read_only and not conn.link.endpoint.read_only:
            conn.link.hidden_writes.add(text)
        elif state in (b"25001", b"2D000"):
            # VACUUM and its like, or a procedure that commits: refused, or undone, because it shared its message.
            conn.link.loners.add(text)
        else:
            return None
        return conn._make_plan(text)


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


class Cursor(_Cursor[Row], ClientCursor[Row]):
    """A cursor of `Connection`."""

    def execute(self, query: Any, params: Any = None, *, prepare: bool | None = None, binary: bool | None = None) -> Self:
        """Execute one statement; the module tells how it travels and when it is sent again."""
        run = partial(super().execute, query, params, prepare=prepare, binary=binary)
        try:
            run()
        except _RETRYABLE as exc:
            if not self._conn._may_replay(exc):
                raise
            self._conn._replay(exc, run)
        return self


class AsyncCursor(_Cursor[Row], AsyncClientCursor[Row]):
    """A cursor of `AsyncConnection`."""

    async def execute(self, query: Any, params: Any = None, *, prepare: bool | None = None, binary: bool | None = None) -> Self:
        """Execute one statement; the module tells how it travels and when it is sent again."""
        run = partial(super().execute, query, params, prepare=prepare, binary=binary)
        try:
            await run()
        except _RETRYABLE as exc:
            if not self._conn._may_replay(exc):
                raise
            await self._conn._replay(exc, run)
        return self


class Connection(_Shared[Row], psycopg.Connection[Row]):
    """A `psycopg.Connection` that opens, bounds and heals its transactions. Made by `open`."""

    @classmethod
    def open(cls, link: Link, **options: Any) -> Self:
        """Connect to `link`'s endpoint, trying again while it is down (as the link's policy says).

        `options` are `psycopg.Connection.connect`'s: `autocommit`, `row_factory`, `context`, `cursor_factory` and libpq
        parameters, which override the endpoint's. Raises `psycopg.OperationalError`.
        """
        options = _connect_options(link, options, Cursor)
        attempts = _Attempts(link)
        with attempts.explaining():
            for attempt in tenacity.Retrying(**attempts.options):
                with attempt, link.gate.turn(attempts.remaining()):
                    conn = cls.connect(**options)
                    conn._bind(link, options)
                    if link.role is None:
                        link.role = conn.wait(conn._read_role_gen())
        return conn

    def _replay(self, first: BaseException, run: Callable[[], object]) -> None:
        """Connect anew and `run` again, as often as the policy allows and the rule says that it is safe."""
        attempts = _Attempts(self.link, connection=self, first=first)
        with attempts.explaining():
            for attempt in tenacity.Retrying(**attempts.options):
                with attempt, self.link.gate.turn(attempts.remaining()):
                    attempts.connecting = True
                    donor = psycopg.Connection.connect(**self._connect_options)
                    with self.lock:
                        self.wait(self._adopt_gen(donor))
                    attempts.connecting = False
                    run()


class AsyncConnection(_Shared[Row], psycopg.AsyncConnection[Row]):
    """A `psycopg.AsyncConnection` that opens, bounds and heals its transactions. Made by `open`."""

    @classmethod
    async def open(cls, link: Link, **options: Any) -> Self:
        """Like `Connection.open`."""
        options = _connect_options(link, options, AsyncCursor)
        attempts = _Attempts(link)
        with attempts.explaining():
            async for attempt in tenacity.AsyncRetrying(**attempts.options):
                with attempt:
                    async with link.gate.aturn(attempts.remaining()):
                        conn = await cls.connect(**options)
                        conn._bind(link, options)
                        if link.role is None:
                            link.role = await conn.wait(conn._read_role_gen())
        return conn

    async def _replay(self, first: BaseException, run: Callable[[], Any]) -> None:
        """Like `Connection._replay`."""
        attempts = _Attempts(self.link, connection=self, first=first)
        with attempts.explaining():
            async for attempt in tenacity.AsyncRetrying(**attempts.options):
                with attempt:
                    async with self.link.gate.aturn(attempts.remaining()):
                        attempts.connecting = True
                        donor = await psycopg.AsyncConnection.connect(**self._connect_options)
                        async with self.lock:
                            await self.wait(self._adopt_gen(donor))
                        attempts.connecting = False
                        await run()


def _connect_options(link: Link, options: dict[str, Any], cursor_factory: type) -> dict[str, Any]:
    # Client-side binding never prepares. Where somebody chooses another cursor, prepared statements stay off all the same:
    # behind a pooler they may return another client's rows.
    return {**link.endpoint.conninfo(), "cursor_factory": cursor_factory, "prepare_threshold": None, **options}
