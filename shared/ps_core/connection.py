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

import asyncio
import logging
import os
import re
import time
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar
from weakref import ReferenceType, ref

import psycopg
import tenacity
from psycopg import AsyncClientCursor, ClientCursor, IsolationLevel, generators, pq
from psycopg.client_cursor import ClientCursorMixin

from ps_core.commit import (
    LOOKUP_SQL,
    SYNC_REP_ROUTINE,
    TRANSACTION_SQL,
    UNBOUNDED,
    Outcome,
    TransactionId,
    judge,
    outcome,
    transaction_id,
)
from ps_core.consistency import POSITION_SQL, Token, guard_sql, parse_lsn
from ps_core.context import current, current_token, see
from ps_core.errors import CommitOutcomeUnknown
from ps_core.failures import Ran, classify, is_made_by_pooler
from ps_core.link import NOTHING, Link, Script
from ps_core.statements import Statement, analyse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator

    from psycopg.abc import Params, PQGen, Query
    from psycopg.pq.abc import PGresult


__all__ = ["AsyncConnection", "AsyncCursor", "Connection", "Cursor"]

_log = logging.getLogger("ps_core")

Row = TypeVar("Row", covariant=True)  # noqa: PLC0105 - psycopg's name

_IDLE: Final = pq.TransactionStatus.IDLE
_UNKNOWN: Final = pq.TransactionStatus.UNKNOWN
_FATAL: Final = pq.ExecStatus.FATAL_ERROR
_RETRYABLE: Final = (psycopg.OperationalError, psycopg.InternalError)
_LINE: Final = re.compile(r"^LINE (\d+): ", re.MULTILINE)
_IN_TRANSACTION: Final = (pq.TransactionStatus.INTRANS, pq.TransactionStatus.INERROR)
_READ_ONLY: Final = b"SET LOCAL transaction_read_only=on"
_POSITION: Final = Script(POSITION_SQL)
_TRANSACTION: Final = Script(TRANSACTION_SQL)
_COMMIT_AND_POSITION: Final = Script(UNBOUNDED, b"COMMIT", POSITION_SQL)


class _Asks(Enum):
    """What the last command of a message asks for."""

    NOTHING = 0
    POSITION = 1
    """How far the server is: of a read."""
    COMMITTED_POSITION = 2
    """The same behind a COMMIT: of an autocommit write."""
    TRANSACTION = 3
    """The id of the transaction: behind its first write."""


@dataclass(slots=True)
class _Plan:
    """How one statement travels that arrives while the connection is idle."""

    statement: Statement
    before: Script = NOTHING
    after: Script = NOTHING
    asks: _Asks = _Asks.NOTHING
    first: bool = True
    """Nothing precedes it in its transaction."""
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
    _committing = False
    _sync_wait_cancelled = False
    _read_since_begin = False
    _transaction: TransactionId | None = None
    """The open transaction, once it has written."""
    _unsettled: TransactionId | None = None
    """The transaction whose COMMIT was not answered, until it is looked up."""

    def _bind(self, link: Link, options: dict[str, Any]) -> None:
        self.link = link
        self._connect_options = options
        self._pid = os.getpid()
        self._read_only = True if link.endpoint.read_only else None
        self._watch_notices()

    def _set_read_only_gen(self, value: bool | None) -> PQGen[None]:
        # A connection to a standby stays open when it is promoted, and would accept writes from then on: always READ ONLY there.
        yield from super()._set_read_only_gen(True if self.link.endpoint.read_only else value)

    # --- opening ---------------------------------------------------------------------------------------------------------------

    def _start_query(self) -> PQGen[None]:
        # A cursor's execute() brings the opening along by itself; COPY, executemany, stream and named cursors come here.
        if not self._holding:
            yield from super()._start_query()

    def _get_tx_start_command(self) -> Any:
        begin = super()._get_tx_start_command()
        guard = self._guard()
        if guard and self._isolation_level in (IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE):
            # The snapshot is taken with the first query, which would be the guard: it has to be over before.
            return Script(b"BEGIN", *guard, b"COMMIT", begin, *self._opening().parts)
        return Script(begin, *self._opening().parts, *guard)

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
            if command in (b"COMMIT", b"ROLLBACK") and not self._pipeline and self.pgconn.transaction_status in _IN_TRANSACTION:
                return (yield from self._end_gen(command))
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
            if not statement.single:
                return _Plan(statement, before=opening, begin=True, apart=True)
            return self._asking(_Plan(statement, before=opening, begin=True), reads=reads)
        if statement.begins:
            return _Plan(statement, after=self._opening())
        if statement.bare or statement.controls or not statement.count or text in link.loners:
            return _Plan(statement)
        if reads:
            before = Script(*self._opening().parts, *self._guard(), _READ_ONLY)
            plan = _Plan(statement, before=before, read_only=True)
            return replace(plan, after=_POSITION, asks=_Asks.POSITION) if link.tracks else plan
        if link.tracks and statement.single and not link.endpoint.read_only:
            before = Script(b"BEGIN", *self._opening().parts)
            return _Plan(statement, before=before, after=_COMMIT_AND_POSITION, asks=_Asks.COMMITTED_POSITION)
        return _Plan(statement, before=self._opening())

    def _asking(self, plan: _Plan, *, reads: bool) -> _Plan:
        """Let the first write of an explicit transaction bring the transaction's id back."""
        if reads or self._transaction is not None or self.link.endpoint.read_only or not self.link.tracks:
            return plan
        return replace(plan, after=_TRANSACTION, asks=_Asks.TRANSACTION)

    def _guard(self) -> tuple[bytes, ...]:
        """Return the guard that a read on a replica carries: none where the caller has seen nothing yet."""
        if not (self.link.tracks and self.link.endpoint.read_only):
            return ()
        token = current_token()
        if token is None or token.identity != self.link.identity:
            return ()
        if token.position is None:
            raise _behind_error()
        return (guard_sql(token.position),)

    def _see(self, result: PGresult | None) -> None:
        """Merge a position that came back; where none came, only the primary has certainly what this caller has seen."""
        value = None if result is None or result.status == _FATAL else result.get_value(0, 0)
        position = None if value is None else parse_lsn(bytes(value).decode())
        see(Token(identity=self.link.identity, position=position, at=time.time()))

    def _may_read_without_transaction(self) -> bool:
        """Return whether a plain read of an explicit transaction may travel by itself (see the module)."""
        return (
            self.link.endpoint.read_only
            and self._isolation_level in (None, IsolationLevel.READ_COMMITTED)
            and not self._deferrable
            and not self._num_transactions
        )

    # --- the end of a transaction ---

    def _end_gen(self, command: bytes) -> PQGen[PGresult | None]:
        """Send COMMIT or ROLLBACK, and take the position where one is to be had. Results are read one by one."""
        failed = self.pgconn.transaction_status == pq.TransactionStatus.INERROR
        transaction, self._transaction = self._transaction, None
        commits = command == b"COMMIT" and not failed
        parts = [command]
        if commits:
            self._committing, self._sync_wait_cancelled = True, False
            if self.link.opening(self.pgconn.server_version).parts:
                parts.insert(0, UNBOUNDED)
        if self.link.tracks:
            parts.append(POSITION_SQL)
        results: list[PGresult] = []
        try:
            self.pgconn.send_query(b";".join(parts))
            lost = yield from self._collect_gen(results)
        finally:
            self._committing = False
        errors = [result for result in results if result.status == _FATAL]
        if commits:
            error = self._error(errors[0]) if errors else lost
            end = outcome(results, made_by_server=bool(errors) and not is_made_by_pooler(self._error(errors[0])))
            if end is Outcome.COMMITTED and self._sync_wait_cancelled:
                raise _unknown(transaction, "its wait for the synchronous replica was cancelled") from error
            if end is Outcome.UNKNOWN:
                self._unsettled = transaction
                raise _unknown(transaction, "the connection was lost before its answer came") from error
            if end is Outcome.COMMITTED:
                errors, lost = [], None
        if command == b"ROLLBACK" and self._forget_lost_transaction():
            return None  # the server rolled back by itself
        if errors:
            raise self._error(errors[0])
        if lost is not None:
            raise lost
        self._in_block = False
        if self.link.tracks:
            self._see(results[-1] if len(results) == len(parts) else None)
        return next(result for result in results if result.command_status in (b"COMMIT", b"ROLLBACK"))

    def _judge_row(self, transaction: TransactionId, row: tuple[Any, ...] | None) -> Outcome:
        """Return what the primary's answer to the lookup proves; raise to ask again."""
        assert row is not None
        status, timeline, restarted = row
        verdict = judge(transaction, status=status, timeline=timeline, restarted=restarted)
        if verdict is Outcome.IN_PROGRESS:
            raise _StillRunningError("the transaction is still in progress")
        return verdict

    def _look_up_options(self) -> dict[str, Any]:
        ours = ("cursor_factory", "row_factory", "context")
        return {name: value for name, value in self._connect_options.items() if name not in ours} | {"autocommit": True}

    def _conclude(self, verdict: Outcome, unknown: CommitOutcomeUnknown) -> None:
        """Turn a verdict into what `commit` does: return, or raise."""
        _log.info("endpoint %r: commit outcome %s", self.link.endpoint.name, verdict.value, extra={"ps_event": "commit_outcome"})
        if verdict is Outcome.COMMITTED:
            if self.link.tracks:
                self._see(None)
        elif verdict is Outcome.ROLLED_BACK:
            error = psycopg.OperationalError("the connection was lost at COMMIT, and the transaction was rolled back")
            raise error from unknown.__cause__
        else:
            raise unknown

    def _collect_gen(self, results: list[PGresult]) -> PQGen[psycopg.Error | None]:
        """Take the results of a message one by one, so that a connection that is lost does not take those before with it."""
        try:
            yield from generators.send(self.pgconn)
            while (result := (yield from generators.fetch(self.pgconn))) is not None:
                results.append(result)
        except psycopg.OperationalError as exc:
            return exc
        return None

    def _error(self, result: PGresult) -> psycopg.Error:
        return psycopg.errors.error_from_result(result, encoding=self.pgconn._encoding)

    def _watch_notices(self) -> None:
        wself: ReferenceType[psycopg.BaseConnection[Any]] = ref(self)
        self.pgconn.notice_handler = partial(_Shared._on_notice, wself)
        self.pgconn.notify_handler = partial(psycopg.BaseConnection._notify_handler, wself)

    @staticmethod
    def _on_notice(wself: ReferenceType[psycopg.BaseConnection[Any]], result: PGresult) -> None:
        self = wself()
        if isinstance(self, _Shared) and self._committing:
            routine = result.error_field(pq.DiagnosticField.SOURCE_FUNCTION)
            if routine is not None and bytes(routine).decode() == SYNC_REP_ROUTINE:
                self._sync_wait_cancelled = True
        psycopg.BaseConnection._notice_handler(wself, result)

    def _read_role_gen(self) -> PQGen[dict[str, int]]:
        """Read what the role has by itself. `reset_val` is what the session began with, whatever another client has set since."""
        result = yield from super()._exec_command(
            b"SELECT name, reset_val FROM pg_settings WHERE name IN ('statement_timeout', 'transaction_timeout',"
            b" 'idle_in_transaction_session_timeout', 'lock_timeout')"
        )
        assert result is not None  # outside a pipeline there is one
        rows = ((result.get_value(row, 0), result.get_value(row, 1)) for row in range(result.ntuples))
        return {bytes(name).decode(): int(value) for name, value in rows if name is not None and value is not None}

    # --- healing ---------------------------------------------------------------------------------------------------------------

    def _note_state(self, statement: Statement) -> None:
        # Behind a transaction pooler there is no session that could keep anything.
        if statement.keeps_state and not self.link.endpoint.pooled:
            self._keeps_state = True

    def _is_gone(self) -> bool:
        """Return whether the other side has closed an idle connection, as far as this machine has been told.

        For what could not be sent again if it were lost under way. The first read may bring the server's last words, the second
        finds the end.
        """
        try:
            self.pgconn.consume_input()
            self.pgconn.consume_input()
        except psycopg.OperationalError:
            return True
        return False

    def _may_heal(self) -> bool:
        return not (self._keeps_state or self._closed or os.getpid() != self._pid)

    def _may_revive(self) -> bool:
        """Return whether a broken connection may be used again without anybody having to know: nothing is open on it."""
        return self.broken and not self._in_block and self._may_heal()

    def _forget_lost_transaction(self) -> bool:
        """Return whether a rollback has nothing to do: the transaction went with its connection."""
        if not self.broken or self._tpc or not self._may_heal():
            return False
        self._in_block, self._transaction = False, None
        return True

    def _check_intrans_gen(self, attribute: str) -> PQGen[None]:
        if not self._may_revive():
            yield from super()._check_intrans_gen(attribute)

    def _may_replay(self, exc: BaseException) -> bool:
        """Return whether the statement that just failed may be sent again on a new connection.

        Safe because of one of three facts: nothing of an explicit transaction is durable before its COMMIT; what was sent READ
        ONLY changed nothing; what never reached a server did not run.
        """
        plan = self._plan
        if plan is None or not plan.first or not isinstance(exc, _RETRYABLE) or not self._may_heal():
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

    def _adopt(self, donor: psycopg.BaseConnection[Any]) -> PQGen[None] | None:
        """Go on with the donor's libpq connection. Cursors follow when they are next used.

        Returns what is still to be run: session parameters that a framework had set, such as its time zone.
        """
        before, self.pgconn = self.pgconn, donor.pgconn
        del donor.pgconn  # its finalizer then leaves the connection alone
        self._watch_notices()
        threshold, prepared_max = self.prepare_threshold, self.prepared_max
        self._prepared = type(self._prepared)()
        self.prepare_threshold, self.prepared_max = threshold, prepared_max
        # Poolers keep track of these two by client, so that setting them for the session leaks to nobody.
        values = {name: before.parameter_status(name) for name in (b"TimeZone", b"DateStyle")}
        before.finish()
        lost = {name: value for name, value in values.items() if value and value != self.pgconn.parameter_status(name)}
        return self._restore_gen(lost) if lost else None

    def _restore_gen(self, parameters: dict[bytes, bytes]) -> PQGen[None]:
        for name, value in parameters.items():
            literal = bytes(pq.Escaping(self.pgconn).escape_literal(value))
            yield from super()._exec_command(b"SET SESSION %s=%s" % (name, literal))


def _verdict_of_failure(exc: BaseException) -> Outcome:
    """Return what a failed lookup proves: an id that the server has not reached is of a transaction that it never saw."""
    if isinstance(exc, psycopg.errors.InvalidParameterValue) and "future" in str(exc):
        return Outcome.ROLLED_BACK
    return Outcome.UNKNOWN


def _behind_error() -> psycopg.Error:
    # The same as the server's own, for a caller of whom only the primary has certainly all that it has seen.
    info: dict[int, bytes | None] = {pq.DiagnosticField.SQLSTATE: b"22023", pq.DiagnosticField.SEVERITY_NONLOCALIZED: b"ERROR"}
    return psycopg.errors.InvalidParameterValue("replica_behind: the position to wait for is not known", info=info)


def _unknown(transaction: TransactionId | None, why: str) -> CommitOutcomeUnknown:
    return CommitOutcomeUnknown(
        f"nobody can tell whether the transaction was committed: {why}",
        transaction=transaction.xid if transaction else None,
        timeline=transaction.timeline if transaction else None,
    )


class _StillRunningError(psycopg.OperationalError):
    """The transaction that is looked up has not ended yet."""


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
        if isinstance(exc, _StillRunningError):
            return True
        if self.connecting or self._connection is None:
            return _is_transient(exc)
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
        if conn._pipeline or status != _IDLE:
            conn._in_block = True
            text = query if isinstance(query, str) else ""
            statement = analyse(text)
            conn._note_state(statement)
            plan = _Plan(statement, first=False)
            if statement.single and status == pq.TransactionStatus.INTRANS and not conn._pipeline:
                plan = conn._asking(plan, reads=statement.reads or statement.bare)
            if plan.asks is _Asks.NOTHING:
                yield from super()._execute_gen(query, params, prepare=prepare, binary=binary)
                return
            yield from self._start_query(query)
            pgq = self._convert_query(query, params)
            yield from self._send_gen(plan, text, pgq, binary=binary)
            self._last_query = query
            return
        conn._transaction = None
        conn._holding = True
        try:
            yield from self._start_query(query)
        finally:
            conn._holding = False
        pgq = self._convert_query(query, params)
        text = query if isinstance(query, str) else bytes(pgq.query).decode(self._encoding, "replace")
        way: _Plan | None = conn._make_plan(text)
        try:
            while way is not None:
                way = yield from self._send_gen(way, text, pgq, binary=binary)
        finally:
            status = conn.pgconn.transaction_status
            # Lost with its opening statement, a transaction is over for the server; for the caller, at its rollback.
            conn._in_block = status != _IDLE and not (status == _UNKNOWN and conn._autocommit)
        self._last_query = query

    def _send_gen(self, plan: _Plan, text: str, pgq: Any, *, binary: bool | None) -> PQGen[_Plan | None]:
        """Send one message and take its results. Return another plan where the server refused this one before anything ran."""
        conn: _Shared[Any] = self._conn
        conn._plan = plan
        if conn.pgconn.status != pq.ConnStatus.OK or (plan.first and not plan.begin and not plan.read_only and conn._is_gone()):
            raise psycopg.OperationalError("the connection is closed")  # nothing was sent: `_may_replay` takes it from here
        conn._note_state(plan.statement)
        if plan.apart:
            yield from conn._exec_command(plan.before)
            conn._plan = None
            plan = _Plan(plan.statement)
        head = plan.before.head()
        self._send_between(head, pgq, plan.after, binary=binary)
        results: list[PGresult] = []
        lost = None
        if plan.asks is _Asks.COMMITTED_POSITION:
            lost = yield from conn._collect_gen(results)
        else:
            results = yield from generators.execute(self._pgconn)
        done = len(plan.before.parts)
        if plan.asks is _Asks.COMMITTED_POSITION and any(result.command_status == b"COMMIT" for result in results[done:]):
            lost = None  # it is durable; what came after does not matter but for the position
        elif (refused := next((result for result in results if result.status == _FATAL), None)) is not None:
            other = yield from self._other_way_gen(plan, text, results)
            if other is not None:
                return other
            raise _error_in_users_text(refused, self._encoding, head)
        elif lost is not None:
            raise lost
        self._check_results(results[: done + 1])
        asked = results.pop() if plan.asks is not _Asks.NOTHING and len(results) == done + 1 + len(plan.after.parts) else None
        if plan.asks in (_Asks.POSITION, _Asks.COMMITTED_POSITION):
            conn._see(asked)
        elif asked is not None and asked.status == pq.ExecStatus.TUPLES_OK:
            conn._transaction = transaction_id(asked)
        end = len(results) if not plan.after.parts else done + 1
        self._check_results(results[done:end])
        self._set_results(results[done:end])
        return None

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

    def _other_way_gen(self, plan: _Plan, text: str, results: list[PGresult]) -> PQGen[_Plan | None]:
        """Return the plan to go on with after a refusal that left nothing behind, None to raise it."""
        conn: _Shared[Any] = self._conn
        if plan.asks is _Asks.COMMITTED_POSITION and conn.pgconn.transaction_status == pq.TransactionStatus.INERROR:
            yield from conn._exec_command(b"ROLLBACK")  # ours was the BEGIN
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
        self._conn.revive()
        run = partial(super().execute, query, params, prepare=prepare, binary=binary)
        try:
            run()
        except _RETRYABLE as exc:
            if not self._conn._may_replay(exc):
                raise
            self._conn._replay(exc, run)
        return self

    def executemany(self, query: Any, params_seq: Any, *, returning: bool = False) -> None:
        """Like psycopg's. Never sent again."""
        self._conn.revive()
        super().executemany(query, params_seq, returning=returning)

    def stream(self, query: Any, params: Any = None, *, binary: bool | None = None, size: int = 1) -> Iterator[Row]:
        """Like psycopg's. Never sent again: rows may have been delivered."""
        self._conn.revive()
        return super().stream(query, params, binary=binary, size=size)

    @contextmanager
    def copy(self, statement: Any, params: Any = None, *, writer: Any = None) -> Iterator[psycopg.Copy]:
        """Like psycopg's. Never sent again."""
        self._conn.revive()
        with super().copy(statement, params, writer=writer) as copy:
            yield copy


class AsyncCursor(_Cursor[Row], AsyncClientCursor[Row]):
    """A cursor of `AsyncConnection`."""

    async def execute(self, query: Any, params: Any = None, *, prepare: bool | None = None, binary: bool | None = None) -> Self:
        """Like `Cursor.execute`."""
        await self._conn.revive()
        run = partial(super().execute, query, params, prepare=prepare, binary=binary)
        try:
            await run()
        except _RETRYABLE as exc:
            if not self._conn._may_replay(exc):
                raise
            await self._conn._replay(exc, run)
        return self

    async def executemany(self, query: Any, params_seq: Any, *, returning: bool = False) -> None:
        """Like `Cursor.executemany`."""
        await self._conn.revive()
        await super().executemany(query, params_seq, returning=returning)

    async def stream(self, query: Any, params: Any = None, *, binary: bool | None = None, size: int = 1) -> AsyncIterator[Row]:
        """Like `Cursor.stream`."""
        await self._conn.revive()
        async for row in super().stream(query, params, binary=binary, size=size):
            yield row

    @asynccontextmanager
    async def copy(self, statement: Any, params: Any = None, *, writer: Any = None) -> AsyncIterator[psycopg.AsyncCopy]:
        """Like `Cursor.copy`."""
        await self._conn.revive()
        async with super().copy(statement, params, writer=writer) as copy:
            yield copy


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

    def revive(self) -> None:
        """Connect anew where the connection was lost and nothing is open on it; else do nothing."""
        if self.broken and self._may_revive():
            self._replay(psycopg.OperationalError("the connection is closed"), _nothing)

    def _replay(self, first: BaseException, run: Callable[[], object]) -> None:
        """Connect anew and `run` again, as often as the policy allows and the rule says that it is safe."""
        attempts = _Attempts(self.link, connection=self, first=first)
        with attempts.explaining():
            for attempt in tenacity.Retrying(**attempts.options):
                with attempt, self.link.gate.turn(attempts.remaining()):
                    attempts.connecting = True
                    donor = psycopg.Connection.connect(**self._connect_options)
                    with self.lock:
                        if (rest := self._adopt(donor)) is not None:
                            self.wait(rest)
                    attempts.connecting = False
                    run()

    def wait(self, gen: PQGen[Any], *args: Any, **kwargs: Any) -> Any:
        """Like psycopg's; on a lost connection with nothing open on it, settings such as `autocommit` can still be changed."""
        return _without_waiting(gen) if self.broken and self._may_revive() else super().wait(gen, *args, **kwargs)

    def rollback(self) -> None:
        """Roll back. Where the connection was lost, the transaction went with it, and the next statement makes a new one."""
        if not self._forget_lost_transaction():
            super().rollback()

    def commit(self) -> None:
        """Commit. Where the answer does not come, look up what became of it.

        Returns where the transaction is certainly committed.

        Raises:
            CommitOutcomeUnknown: nobody can tell.
            psycopg.Error: it was certainly not committed.
        """
        with self._settling():
            super().commit()

    @contextmanager
    def transaction(self, savepoint_name: str | None = None, force_rollback: bool = False) -> Iterator[psycopg.Transaction]:
        """Like psycopg's; its COMMIT is settled as in `commit`."""
        with self._settling(), super().transaction(savepoint_name, force_rollback) as transaction:
            yield transaction

    @contextmanager
    def _settling(self) -> Iterator[None]:
        self._unsettled = None
        try:
            yield
        except CommitOutcomeUnknown as unknown:
            transaction, self._unsettled = self._unsettled, None
            if transaction is None:
                raise
            self._conclude(self._look_up(transaction, unknown), unknown)

    def _look_up(self, transaction: TransactionId, unknown: CommitOutcomeUnknown) -> Outcome:
        attempts = _Attempts(self.link, first=unknown)
        try:
            for attempt in tenacity.Retrying(**attempts.options):
                with attempt, self.link.gate.turn(attempts.remaining()):
                    with psycopg.Connection.connect(**self._look_up_options()) as donor:
                        row = donor.execute(LOOKUP_SQL, (transaction.xid, transaction.at)).fetchone()
                    return self._judge_row(transaction, row)
        except (psycopg.Error, TimeoutError) as exc:
            return _verdict_of_failure(exc)
        return Outcome.UNKNOWN

    def _try_cancel(self, *, timeout: float = 5.0) -> None:
        # Cancelling a COMMIT that waits for the synchronous replica would let it succeed without one.
        if not self._committing:
            super()._try_cancel(timeout=timeout)


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

    async def revive(self) -> None:
        """Like `Connection.revive`."""
        if self.broken and self._may_revive():
            await self._replay(psycopg.OperationalError("the connection is closed"), _anothing)

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
                            if (rest := self._adopt(donor)) is not None:
                                await self.wait(rest)
                        attempts.connecting = False
                        await run()

    async def wait(self, gen: PQGen[Any], *args: Any, **kwargs: Any) -> Any:
        """Like `Connection.wait`."""
        return _without_waiting(gen) if self.broken and self._may_revive() else await super().wait(gen, *args, **kwargs)

    async def rollback(self) -> None:
        """Like `Connection.rollback`."""
        if not self._forget_lost_transaction():
            await super().rollback()

    async def commit(self) -> None:
        """Like `Connection.commit`. Cancellation waits for its answer."""
        async with self._settling():
            await _uncancelled(super().commit())

    @asynccontextmanager
    async def transaction(
        self, savepoint_name: str | None = None, force_rollback: bool = False
    ) -> AsyncIterator[psycopg.AsyncTransaction]:
        """Like `Connection.transaction`."""
        async with self._settling(), super().transaction(savepoint_name, force_rollback) as transaction:
            yield transaction

    @asynccontextmanager
    async def _settling(self) -> AsyncIterator[None]:
        self._unsettled = None
        try:
            yield
        except CommitOutcomeUnknown as unknown:
            transaction, self._unsettled = self._unsettled, None
            if transaction is None:
                raise
            self._conclude(await self._look_up(transaction, unknown), unknown)

    async def _look_up(self, transaction: TransactionId, unknown: CommitOutcomeUnknown) -> Outcome:
        attempts = _Attempts(self.link, first=unknown)
        try:
            async for attempt in tenacity.AsyncRetrying(**attempts.options):
                with attempt:
                    async with self.link.gate.aturn(attempts.remaining()):
                        async with await psycopg.AsyncConnection.connect(**self._look_up_options()) as donor:
                            cursor = await donor.execute(LOOKUP_SQL, (transaction.xid, transaction.at))
                            row = await cursor.fetchone()
                        return self._judge_row(transaction, row)
        except (psycopg.Error, TimeoutError) as exc:
            return _verdict_of_failure(exc)
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
