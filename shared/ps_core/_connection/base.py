"""What the sync and the asyncio connection have in common, as generators that yield and never wait."""

from __future__ import annotations

import os
import re
import time
import uuid
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self, TypeVar
from weakref import ReferenceType, ref

import psycopg
from psycopg import IsolationLevel, generators, pq
from psycopg.conninfo import timeout_from_conninfo

from ps_core._bridge.start import settle, through_bridge
from ps_core._message.change import ESCAPES, KEPT_BY_POOLER, MODES, ROLE, SEARCH_PATH, Change, NotHeld, modes_named, read_change
from ps_core._message.commit import (
    ASK_AGAIN,
    SYNC_REP_ROUTINE,
    SYNCHRONOUS_COMMIT_SQL,
    TRANSACTION_SQL,
    Lookup,
    Outcome,
    Raises,
    Reply,
    TransactionId,
    ending,
    lookups_of,
    marker_sql,
    read_ending,
    settling,
    transaction_id,
)
from ps_core._message.functions import FUNCTIONS_SQL
from ps_core._message.plan import After, Before, Facts, Message, Plan, Refused, Way, make_plan
from ps_core._message.replay import Next, Refusal, after_refusal, may_replay
from ps_core._message.script import NOTHING, Script, Setting
from ps_core._message.session import Session, split_list
from ps_core._message.statement import Statement, analyse
from ps_core._notes import InForce, limit_note, limit_of, reads_note
from ps_core._retry.attempts import StillRunning
from ps_core._retry.deadline import bounded_until
from ps_core.consistency import (
    BEYOND_ALL,
    COMMITTED_POSITION_SQL,
    IN_RECOVERY,
    MAX_AGE,
    POSITION_SQL,
    REPLICA_POSITION_SQL,
    WRITTEN_POSITION_SQL,
    Token,
    guard_setting,
    guard_sql,
    parse_lsn,
    place_sql,
)
from ps_core.context import Context, current, current_token, current_tracker, record_seen, remaining, unknown_positions
from ps_core.errors import (
    RETRYABLE,
    CommitOutcomeUnknown,
    DeadlineExceeded,
    Demoted,
    LostAtCommit,
    MayWrite,
    NotOnReplica,
    ReplicaBehind,
    SessionSettingRefused,
    not_supported,
)
from ps_core.events import Event, Name, emit
from ps_core.failures import classify, is_made_by_pooler
from ps_core.notices import kind_of
from ps_core.topology import check_startup

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from psycopg.abc import PQGen
    from psycopg.pq.abc import PGresult

    from ps_core._endpoint import EndpointState
    from ps_core._retry.gate import Turn
    from ps_core._retry.policy import RetryPolicy
    from ps_core.replicas import Replicas
    from ps_core.topology import Endpoint

__all__ = [
    "OK",
    "SEVERAL",
    "WAIT_INTERVAL",
    "BaseConnection",
    "connect_options",
    "must_carry",
    "time_to_connect",
    "without_waiting",
]

Row = TypeVar("Row", covariant=True)  # noqa: PLC0105 - psycopg's name

# Numbers, as the driver has them: with a member of an enumeration, comparing takes five times as long.
OK: Final = int(pq.ConnStatus.OK)
IDLE: Final = int(pq.TransactionStatus.IDLE)
UNKNOWN: Final = int(pq.TransactionStatus.UNKNOWN)
ACTIVE: Final = int(pq.TransactionStatus.ACTIVE)
IN_TRANSACTION: Final = (int(pq.TransactionStatus.INTRANS), int(pq.TransactionStatus.INERROR))
FATAL: Final = int(pq.ExecStatus.FATAL_ERROR)
TUPLES: Final = int(pq.ExecStatus.TUPLES_OK)
ROWS: Final = (TUPLES, int(pq.ExecStatus.SINGLE_TUPLE), int(pq.ExecStatus.TUPLES_CHUNK))
WAIT_INTERVAL: Final = 0.1
"""Seconds between two looks at the clock while a server is waited for; psycopg's own."""

READ_ONLY: Final = b"SET LOCAL transaction_read_only=on"
SET_STATEMENT_TIMEOUT: Final = b"SET LOCAL statement_timeout="
ONE_SNAPSHOT: Final = b"SET LOCAL transaction_isolation='repeatable read'"
POSITION: Final = Script(POSITION_SQL)
REPLICA_POSITION: Final = Script(REPLICA_POSITION_SQL)
TRANSACTION_ID: Final = Script(TRANSACTION_SQL)
COMMIT_AND_POSITION: Final = Script(b"COMMIT", WRITTEN_POSITION_SQL)
COMMIT_AS_SET_AND_POSITION: Final = Script(SYNCHRONOUS_COMMIT_SQL, b"COMMIT", COMMITTED_POSITION_SQL)
SETTLED_FOR: Final = 1.0
"""Seconds in which a process is not taken to have been frozen: a WebSocket that is used again sooner is not asked about."""
ROLE_SQL: Final = (
    # What a connection asks for itself as it starts is the endpoint's, not the role's.
    b"SELECT name, CASE WHEN source OPERATOR(pg_catalog.=) 'client' AND vartype OPERATOR(pg_catalog.=) 'integer' THEN '0'"
    b" ELSE reset_val END FROM pg_catalog.pg_settings WHERE name OPERATOR(pg_catalog.=) ANY (ARRAY['statement_timeout',"
    b" 'transaction_timeout', 'idle_in_transaction_session_timeout', 'lock_timeout', 'default_transaction_isolation'])"
)
DRIVERS_OWN: Final = (
    *("_adapters", "_autocommit", "_begin_statement", "_closed", "_created_at", "_deferrable", "_expire_at", "_isolation_level"),
    *("_notice_handlers", "_notifies_backlog", "_notify_handlers", "_num_transactions", "_pipeline", "_pool", "_prepared"),
    *("_read_only", "_tpc", "cursor_factory", "lock", "pgconn", "row_factory", "server_cursor_factory"),
)
"""What psycopg's connections, and its pool, keep in an instance."""
LONGEST_REMEMBERED: Final = 4096
"""Messages of longer texts are not kept: these are generated."""
MOST_REMEMBERED: Final = 1024
"""An endpoint remembers at most this many messages."""
_ALIKE: Final = (After.NOTHING, After.POSITION, After.PLACE, After.COMMIT, After.COMMIT_AS_SET, After.TRANSACTION_ID)
"""What follows a statement alike each time."""
SEVERAL: Final = "?;?"
"""In the place of a text that is not known: not one statement."""
_NO_CONTEXT: Final = Context()
_NO_SESSION: Final = Session()
OPENING_ALONE: Final = Plan(analyse(""))
"""While only what goes before a statement is under way: whatever the statement is, it was not sent."""


_REFUSED: Final[dict[Refused, tuple[Callable[[str], psycopg.Error], str]]] = {
    Refused.MAY_WRITE: (
        MayWrite,
        "cannot execute this in a read-only transaction, and {endpoint!r} is an endpoint for reads: the server refused it there"
        " before, or it names a VOLATILE function (declare one that only reads STABLE), or nothing can make it READ ONLY",
    ),
    Refused.NO_ROLE: (
        not_supported,
        "this statement must stand alone, and would run without the local settings, the assumed role or what was SET for the"
        " session: use a connection without them, to the direct endpoint",
    ),
    Refused.SEVERAL_TRANSACTIONS: (
        not_supported,
        "a text of several transactions: what follows the first would run without timeouts, limits(), local settings and assumed"
        " role: send each by itself, or all of it to the direct endpoint, without limits() and local settings",
    ),
    Refused.SEVERAL: (psycopg.ProgrammingError, "COPY and stream() take one statement, and cannot be mixed with others"),
    Refused.UNGUARDED: (
        not_supported,
        "AND CHAIN, and BEGIN in a pipeline, begin a transaction on {endpoint!r}, an endpoint for reads, without asking whether"
        " it has what the caller has seen: use `with connection.transaction():`",
    ),
    Refused.SERIALIZABLE: (
        NotOnReplica,
        "cannot use serializable mode on {endpoint!r}, an endpoint for reads: default_transaction_isolation was SET for the"
        " session, and a hot standby has no such level",
    ),
    Refused.SESSION: (
        not_supported,
        "it sets something for the session, which a transaction pooler does not keep, and only execute() outside of pipelines can"
        " take it: use that, or SET LOCAL",
    ),
    Refused.OPEN_ENDED: (
        not_supported,
        "in autocommit, stream() with parameters that the server binds and a named cursor WITH HOLD would have no timeouts, local"
        " settings or assumed role: use them in `with connection.transaction():`",
    ),
    **{
        refused: (
            not_supported,
            f"{{endpoint!r}} is behind a transaction pooler, where {what} would stay with a server connection that other clients"
            f' get: {instead}, or use the direct endpoint (to="direct", engine.direct, Django\'s alias "direct"); where there is'
            ' no such pooler, write pooled=False; session_state="allow" sends it all the same',
        )
        for refused, what, instead in (
            (
                Refused.LOCK,
                "a session advisory lock",
                "take pg_advisory_xact_lock() or pg_try_advisory_xact_lock(), which the end of the transaction releases",
            ),
            (Refused.CHANNEL, "what LISTEN asks for", "ask for news in a query"),
            (
                Refused.TEMPORARY,
                "a temporary object",
                "write CREATE TEMP TABLE ... ON COMMIT DROP in the transaction that uses it",
            ),
            (Refused.HELD_CURSOR, "a cursor WITH HOLD", "read it without WITH HOLD in one transaction"),
            (Refused.PREPARED, "a prepared statement", "send the statement itself each time"),
            (Refused.LIBRARY, "a library", "write ALTER ROLE ... SET session_preload_libraries"),
        )
    },
}
"""Each refusal has its class, and says what to write instead."""


class BaseConnection(psycopg.BaseConnection[Row]):
    """What the sync and the asyncio connection have in common: everything but the waiting."""

    any_session: ClassVar[bool] = False
    """Whether any connection of this process ever held something."""
    state: EndpointState
    _home: EndpointState
    """The endpoint that it was opened for; `state` is where it is now."""
    _options: dict[str, Any]
    """What the caller gave beside the endpoint."""
    _replicas: Replicas | None
    """The endpoints of which `state` is one, any of which would do."""
    _policy: RetryPolicy
    """When to try again."""
    _connector: Any
    """What connects, in the place of `dial`."""
    _pid: int
    _version: int
    """The server's version, as in 180004."""
    _generation: int
    _other_side: Any
    """A connection to the endpoints that this one is not at; see `go_to`."""
    _at_home: bool
    """It is at the endpoint that it was opened for, and need not ask whether to return: `_needs_revival` says whether."""
    _on_replicas: bool
    stands_in: bool
    """The primary answers in the replica's place; see `stand_in`."""
    _substitute: Any
    """The connection to the primary by which it answers then, and meanwhile the replica's."""
    _settled_at: float
    """When it was last asked whether a WebSocket's end is known."""
    _asks_anywhere: bool
    """See `asking_anywhere`."""
    _plan: Plan | None
    _parameters: dict[bytes, bytes | None] | None
    """The session's, of a libpq connection that was given up."""
    _watches_escapes: bool
    """Whether `standard_conforming_strings` was off, or named in a statement: it may be off, and the server is to be asked."""
    _parameters_before: dict[bytes, bytes | None] | None
    """The session's, before the open transaction may have set some."""
    _suppress_begin: bool
    _keeps_state: bool
    _in_block: bool
    _committing: bool
    """A COMMIT of ours is under way, by itself or in the message of a write in autocommit."""
    _began_idle: bool
    """No transaction was open when the wait that is under way began."""
    _plan_before: Plan | None
    """`_plan` when that wait began."""
    _writing: bool
    """What is under way by COPY or `stream()` may write."""
    _opened_in: Context
    """The context in which the transaction was opened, which decided what bounds it."""
    _opened_at: float
    """When, where that has a deadline."""
    _timeouts_text: str
    """The statements since then that name a timeout: they may have set one."""
    _cancelling: bool
    """What is under way was cancelled, and its end is awaited."""
    _many: bool
    """An `executemany` is under way."""
    _planned: bool
    """What psycopg is about to send was planned: it is a cursor of ours that sends it."""
    _ended: bool
    """That a transaction ended in the wait that is under way is known."""
    _text_within: str
    """The statement of an open transaction that is under way."""
    _guarded: int
    """How far the guard has asked that was sent last, in the transaction that is open."""
    _unknown_positions: int
    """How often the caller had seen what only the primary has, when the message was composed; see `Tracker.record_seen`."""
    _place: tuple[dict[Any, Message], Any] | None
    """Where the message is kept that is being composed."""
    _told: bytes | None
    """The position that was told last, as it was told."""
    _known: Token | None
    """What the caller had seen when that was merged."""
    _sync_wait_cancelled: bool
    _made_functions: bool
    """The open transaction may have made or changed functions: behind its COMMIT, their names are asked for."""
    _session: Session
    """What is held of the session, which the pooler does not keep."""
    _unsettled_session: Session
    """What was held when the last COMMIT was sent."""
    _change: Change | None
    """What the statement that is under way does to it."""
    _transaction: TransactionId | None
    """The open transaction, once it has written."""
    _unsettled: tuple[Lookup, ...]
    """How to look up what became of a COMMIT that was not answered; the first that knows decides."""

    # The driver's attributes have slots, too. Python finds what has a slot by its place in the instance, in a tenth of the time;
    # and methods so where no attribute is kept by name. What a later driver adds is found by name, as what users add is.
    __slots__ = (*(name for name in __annotations__ if name != "any_session"), *DRIVERS_OWN)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._replicas = self._connector = self._other_side = self._substitute = None
        self._at_home = self._on_replicas = self.stands_in = self._asks_anywhere = False
        self._plan = self._plan_before = self._place = self._change = self._transaction = None
        self._parameters = self._parameters_before = self._told = self._known = None
        self._watches_escapes = self._suppress_begin = self._keeps_state = self._in_block = self._committing = False
        self._began_idle = self._writing = self._cancelling = self._many = self._planned = self._ended = False
        self._sync_wait_cancelled = self._made_functions = False
        self._settled_at = self._opened_at = 0.0
        self._timeouts_text = self._text_within = ""
        self._guarded = self._unknown_positions = self._version = 0
        self._opened_in, self._unsettled = _NO_CONTEXT, ()
        self._session = self._unsettled_session = _NO_SESSION
        super().__init__(*args, **kwargs)

    def _bind(
        self,
        state: EndpointState,
        options: dict[str, Any],
        replicas: Replicas | None,
        home: EndpointState,
        policy: RetryPolicy,
        connector: Any,
    ) -> None:
        if not hasattr(self, "state"):  # else it was dialled, and is now opened
            self.add_notice_handler(partial(BaseConnection._on_notice, ref(self)))
        self._keeps_state = False
        self._version = self.pgconn.server_version
        self.state, self._home = state, home
        self._options, self._policy, self._connector = options, policy, connector
        self._replicas = replicas
        self._at_home = self._is_at_home()
        self._pid = os.getpid()
        self._generation = state.generation
        self._read_only = True if state.endpoint.read_only else None
        self._watches_escapes = self._escapes()

    @contextmanager
    def _finished_if_not_opened(self) -> Iterator[None]:
        """Leave nothing open where the caller never gets the connection: it fails, or is cancelled."""
        try:
            yield
        except BaseException:
            self.pgconn.finish()
            raise

    def _set_read_only_gen(self, value: bool | None) -> PQGen[None]:
        # A connection to a standby stays open when it is promoted, and would accept writes from then on: always READ ONLY there.
        yield from super()._set_read_only_gen(True if self.state.endpoint.read_only else value)

    # --- opening ---------------------------------------------------------------------------------------------------------------

    def _start_query(self) -> PQGen[None]:
        # A cursor's execute() brings the opening along by itself; executemany and named cursors come here, and other classes'.
        if self._suppress_begin:
            return
        planned, self._planned = self._planned, False
        if self.pgconn.transaction_status != IDLE and not self._text_within:  # of which `_begin_within` says whether it may
            remaining()
        if not planned:
            if self._session.now.owes and not self._pipeline:
                yield from self._send_before_gen(Before.NOTHING)
            self._start_foreign()
        if self._autocommit:
            return
        self._in_block = True
        yield from super()._start_query()

    def _start_foreign(self) -> None:
        """Let a cursor of another class keep the promises, without its text.

        Raises:
            psycopg.NotSupportedError: it cannot.
        """
        pipeline: Any = self._pipeline
        if pipeline:
            remaining()
            pipeline.plan(SEVERAL)
        elif self._autocommit and self.pgconn.transaction_status == IDLE:
            if must_carry(self.state.endpoint):
                raise not_supported(
                    "in autocommit, only cursors of ps_core carry timeouts, local settings, an assumed role and the guard of a"
                    ' replica: leave `cursor_factory` out (binding="server" binds and prepares as psycopg.Cursor does), or use it'
                    " in `with connection.transaction():`"
                )
            self._note_unknown_position()

    def _raise_if_failed(self, result: PGresult, *, guard: bool = False) -> None:
        """Raise what a command of ours met; of a `guard`, that the replica is behind."""
        if result.status == FATAL:
            error = self._error(result)
            raise (self._behind(error, result) if guard else None) or error

    def _take_transaction(self, result: PGresult) -> None:
        if result.status == TUPLES:
            self._transaction = transaction_id(result)

    @contextmanager
    def _sending_many(self) -> Iterator[None]:
        """Let a pipeline that an `executemany` begins know that it is its own.

        Raises:
            DeadlineExceeded: the deadline is over. Once its pipeline has begun, that would cost the open transaction.
        """
        idle = self.pgconn.transaction_status == IDLE
        if not idle:
            remaining()
        self._many = True
        try:
            with self._unwedging():
                yield
        except ReplicaBehind:
            self._began_idle = idle  # of the first of its waits
            raise
        finally:
            self._many = False

    @contextmanager
    def _unwedging(self) -> Iterator[None]:
        """Close a connection that psycopg can no longer use and does not know to be lost: a FATAL met its pipeline."""
        outermost = not self._pipeline
        try:
            yield
        except psycopg.Error:
            if outermost and self.pgconn.pipeline_status != pq.PipelineStatus.OFF:
                self._give_up()
            raise

    @contextmanager
    def _counting_blocks(self) -> Iterator[None]:
        """Let a block of `transaction()` be over when its connection is lost, too: psycopg leaves it counted on a closed one."""
        before = self._num_transactions
        try:
            yield
        finally:
            if self.broken:
                self._num_transactions = before

    def _begin_within(self, text: str) -> None:
        """Begin a statement of a transaction, or of a pipeline, that is open.

        Raises:
            DeadlineExceeded: the deadline is over. It must not keep what is to be undone, as by ROLLBACK TO SAVEPOINT.
        """
        if not text.startswith("ROLLBACK"):
            remaining()
        self._in_block, self._text_within = True, text

    def _note_end_within(self, statement: Statement) -> None:
        """Note a COMMIT of the caller's own: it brings no position back."""
        if self.pgconn.transaction_status != IDLE and not statement.chains:
            return
        self._transaction, self._ended = None, True
        if statement.verb not in ("ROLLBACK", "ABORT"):
            self._note_unknown_position()
        elif self.state.tracks and self.state.tracks_reads and not self.state.endpoint.read_only:
            self._record_seen(None, wrote=False)  # on a replica, the position came along

    def _note_without_position(self, plan: Plan) -> None:
        """Note what brings no position back: only the primary has certainly what was seen, until it is asked."""
        if plan.may_write or plan.statement.may_change:
            self._note_unknown_position()
        elif self.state.tracks and self.state.tracks_reads and (plan.statement.reads or plan.statement.copies_out):
            self._record_seen(None, wrote=False)

    def _note_end(self) -> None:
        """Note the end of a transaction that came about in a way that nobody planned."""
        self._transaction, self._session = None, self._session.ended(committed=False)
        self._note_unknown_position()

    def _note_unknown_position(self) -> None:
        self._writing = True
        if self.state.tracks and not self.state.endpoint.read_only:
            self._record_seen(None, wrote=True)

    def _get_tx_start_command(self) -> Any:
        return self._script_before(Before.TRANSACTION)

    def _opening(self, *, begins: bool = False, begun_by: str = "") -> Script:
        """Return what sets all that a transaction carries.

        `begins`: psycopg's BEGIN is in front, with the modes it was told; `begun_by`: a text of the caller's is.
        """
        if self._session.now.any or current().local_settings:
            modes = self._modes(begins=begins, text=begun_by)
            return Script(*modes, *Script.set_local(self._settings()).parts)
        return self.state.opening(self.pgconn.server_version)

    def _modes(self, *, begins: bool = False, text: str = "") -> tuple[bytes, ...]:
        """Return what gives a transaction the modes of the session, where what begins it names no others."""
        if not self._session.now.any or (text and analyse(text).chains):
            return ()  # a chained transaction has those of the one before
        modes = self._session.now.modes()
        named = set(modes_named(text)) if text else set()
        if self.state.endpoint.read_only:
            named.add("transaction_read_only")  # it is READ ONLY there, whatever is held
        if begins:
            attributes = (self._isolation_level, self._read_only, self._deferrable)
            named |= {mode for mode, value in zip(MODES.values(), attributes, strict=True) if value is not None}
        return tuple(f"SET LOCAL {mode}='{value}'".encode() for mode, value in modes.items() if mode not in named)

    def _settings(self) -> list[Setting]:
        """Return all that a transaction carries but its modes: ours, what the session has set, what the caller's blocks say."""
        held = self._session.now
        if not held.any or (self._change is not None and self._change.is_way_out):
            settings = self.state.settings(self.pgconn.server_version)
        else:
            settings = self.state.settings(self.pgconn.server_version, held.timeouts())
            for one in held.assignments(self.state.endpoint.assumed_role):
                try:
                    settings.append(self._setting(*one))
                except UnicodeEncodeError:
                    raise SessionSettingRefused(
                        f"{one.name!r} was SET for the session, and client_encoding {self.pgconn._encoding} has not all of its"
                        f" characters. The statement did not run. RESET {one.name} lets go of it",
                        setting=one.name,
                    ) from None
        for name, value in current().local_settings:
            settings.append(self._setting(name, value, split_list(value) if name == SEARCH_PATH else None))
        return settings

    def _setting(self, name: str, value: str, members: Sequence[str] | None = None, by_function: bool = False) -> Setting:
        listed = b",".join(map(self._literal, members)) if members else None
        return Setting(name.encode(), self._literal(value), listed, by_function)

    def _owed(self) -> list[Setting]:
        """Return what the open transaction lacks, and note that it gets it."""
        now = self._session.now
        settings = [one for one in self._settings() if now.lacks_of_transaction(one.name.decode())]
        self._session = self._session.paid()
        return settings

    def _literal(self, value: str) -> bytes:
        return bytes(pq.Escaping(self.pgconn).escape_literal(value.encode(self.pgconn._encoding)))

    # --- the session -----------------------------------------------------------------------------------------------------------

    def lacks(self, other: BaseConnection[Any], *, but_for: Sequence[str] = ()) -> bool:
        """Return whether `other` holds what was SET for its session, and this connection does not, nor anything later.

        `but_for`: names of settings that do not count; nor does `application_name`.
        """
        return self._session.now.lacks(other._session.now, but_for=but_for)

    def begin_session(self) -> None:
        """Let all that was SET until now count as earlier than what is SET on other connections."""
        if self._session.now.any:
            self._session = Session(self._session.now.earliest())

    def session_sql(self) -> bytes | None:
        """Return what sets in a real session all that is held of this one; None: nothing is."""
        settings = [
            self._setting(one.name, one.value)
            for one in self._session.now.assignments(self.state.endpoint.assumed_role, timeouts=True)
        ]
        return Script.set_config(settings, local=False) if settings else None

    def _read_change(self, text: str) -> Change | None:
        """Return what a text, values included, does to a session that the pooler does not keep.

        Raises:
            psycopg.NotSupportedError: it sets what cannot be held.
        """
        change = read_change(text, escapes=self._escapes())
        if "conforming" in text.lower():
            self._watches_escapes = True
        if isinstance(change, NotHeld):
            if not self.state.endpoint.refuses_session:
                return None
            raise not_supported(change.why)
        return change

    def _escapes(self) -> bool:
        """Return whether a backslash is an escape in every string: what a text says is told differently then."""
        return self.pgconn.parameter_status(ESCAPES.encode()) == b"off"

    def _note_parameters(self) -> None:
        """Note what a transaction found that may set what the pooler keeps."""
        if self._parameters_before is None:
            self._parameters_before = self._read_parameters()

    def _note_lost_change(self, text: str) -> None:
        """Use a lost connection no more where the statement that failed was to set something: what is held is not what is wanted.

        Whoever passes over the error, as some do with a SET, would go on as another tenant.
        """
        if self.state.endpoint.pooled and analyse(text).touches_session:
            self._keeps_state = True

    def _follow_session(self, text: str, tag: str) -> None:
        """Follow what a text of the caller's does to the transaction: `tag` is what the server says of it."""
        if self.pgconn.transaction_status == IDLE or analyse(text).chains:
            self._session = self._session.ended(committed=tag.startswith(("COMMIT", "PREPARE")))
        else:
            self._session = self._session.followed(text)

    def _error_of(self, result: PGresult, at: int, before: Script, after: Script = NOTHING) -> psycopg.Error:
        """Return the error that is the result of the command `at` of a message, counted from 0.

        The caller's is one command where anything is `after` it whose errors matter.
        """
        error = _error_in_users_text(result, self.pgconn._encoding, before, self._change)
        if at == before.guard:
            return self._behind(error, result) or error
        parts = (*before.parts, b"", *after.parts)
        if at < len(parts) and self._session.now.any:
            return self._refused_setting(parts[at], error, result) or error
        return error

    def _refused_setting(self, part: bytes, error: psycopg.Error, result: PGresult) -> SessionSettingRefused | None:
        """Return the error of a command of ours as what it is, where that sets what is held."""
        match = _NAME_SET.match(part)
        if match is None or error.sqlstate is None or error.diag.statement_position is not None:
            return None  # what cannot be parsed is the caller's own, and fails the whole message
        name, held = (match[1] or match[2]).replace(b'"', b"").decode(), self._session.now
        if held.value_of(name) is None and not (name == ROLE and held.sets_role):
            return None
        # RESET of one setting may need the right that is missing; RESET ALL needs none.
        alone = name == ROLE and not any(one.role for one in held.held)
        way_out = "SET ROLE NONE, or SET ROLE to another one," if alone else "RESET ALL"
        refused = SessionSettingRefused(
            f"{name!r} was SET for the session, and the server refuses it now: {str(error).splitlines()[0]}. The statement did"
            f" not run. {way_out} lets go of it; so does DISCARD ALL",
            setting=name,
            info=result,
            encoding=error._encoding,
        )
        refused.sqlstate = error.sqlstate
        return refused

    def _take_session(self, answers: list[PGresult], *, begins: bool) -> None:
        """Hold what the statement that ran has set. `answers`: the values; `begins`: it is the first of a transaction."""
        change, self._change = self._change, None
        if change is None:
            return
        told = [answer.get_value(0, 0) for answer in answers]
        values = [None if value is None else bytes(value).decode(self.pgconn._encoding) for value in told]
        settings = self._session.now.changed(change, values, begins=begins, at=next(_COUNT))
        BaseConnection.any_session = BaseConnection.any_session or settings.any
        self._session = self._session.changed(settings, in_transaction=self.pgconn.transaction_status != IDLE)

    def _exec_command(self, command: Any, result_format: pq.Format = pq.Format.TEXT) -> PQGen[PGresult | None]:
        """Like psycopg's, and able to send a script, whose several results its own would refuse."""
        if not isinstance(command, Script):
            if command in (b"COMMIT", b"ROLLBACK") and not self._pipeline and self.pgconn.transaction_status in IN_TRANSACTION:
                end = yield from self._end_gen(command)
                if self._made_functions:
                    yield from self._ask_functions_gen()
                return end
            if command == b"COMMIT" and self._pipeline:
                yield from self._refuse_late_commit_gen()
                self._note_unknown_position()
            if self._session.begun is not None and self._pipeline and command in (b"COMMIT", b"ROLLBACK"):
                pipeline_: Any = self._pipeline
                pipeline_.ask(command, self._take_end)
                return None
            result = yield from super()._exec_command(command, result_format)
            if isinstance(command, bytes) and command.startswith((b"SAVEPOINT", b"RELEASE", b"ROLLBACK TO")):
                self._session = self._session.followed(command.decode(self.pgconn._encoding))
            return result
        if self._pipeline:
            pipeline: Any = self._pipeline
            for at, part in enumerate(command.parts):
                pipeline.ask(part, partial(self._raise_if_failed, guard=at == command.guard))
            return None
        self._check_connection_ok()
        self.pgconn.send_query(command.head)
        results: list[PGresult] = yield from self._answer_gen()
        for at, result in enumerate(results):
            if result.status == FATAL:
                raise self._error_of(result, at, command)
        return results[0]

    def _plan_after_refusal_gen(self, plan: Plan, text: str, error: psycopg.Error) -> PQGen[Plan | None]:
        """Return another plan for a statement that the server refused without side effects; None to raise the refusal."""
        in_error = self.pgconn.transaction_status == pq.TransactionStatus.INERROR
        if self.pgconn.status != OK or not plan.first:
            return None
        failure = classify(error)
        refusal = Refusal(
            plan=plan,
            sqlstate=error.sqlstate,
            kind=failure.kind,
            endpoint_reads=self.state.endpoint.read_only,
            session_reads=bool(self._read_only) or self._session.now.value_of("default_transaction_read_only") == "on",
            in_failed_transaction=in_error,
        )
        if error.sqlstate == "25006" and (refusal.endpoint_reads or plan.read_only):
            self.state.refused_read_only.add(text)
        then = after_refusal(refusal)
        if in_error and (then is not Next.RAISE or plan.own_begin):
            yield from self._exec_command(b"ROLLBACK")  # nothing but this statement was in it
        if then is Next.ASK_WHETHER_DEMOTED:
            if (yield from self._is_demoted_gen()):
                raise Demoted("the server is no longer the primary")
            then = after_refusal(replace(refusal, still_primary=True))
        if then is Next.RAISE:
            return None
        if then is Next.APART:
            return replace(plan, apart=True)
        if then is Next.AGAIN:
            emit(Event(name=Name.RETRY, endpoint=self.state.endpoint.name, reason=failure.rule, attempt=1))
            return replace(self._plan_for(text, by_server=plan.by_server), again=True)
        if then is Next.ALONE:
            self.state.refused_in_batch.add(text)
        return self._plan_for(text, by_server=plan.by_server)

    def _usual(self, text: str, *, by_server: bool, within: bool = False) -> Message | None:
        """Return what `execute` sends of a text in these circumstances, where it was composed before and is kept.

        Where it is not, `_keep` may keep it. What the session holds, and what blocks ask for, is left to the decision itself.
        """
        self._place, context = None, current()
        if self._session.now.any or self._watches_escapes or context.opening:
            return None
        state, autocommit, guard, begin = self.state, self._autocommit, 0, b""
        reads = state.endpoint.read_only
        # Of a replica's transaction, its level decides, too.
        each = not reads or (autocommit and not within) or self._has_snapshot_each(really_open=within)
        if not within:
            tracker = current_tracker() if state.tracks else None
            self._unknown_positions = 0 if tracker is None else tracker.unknown_positions
            if reads and tracker is not None and (token := tracker.token) is not None and not self._asks_anywhere:
                if token.others or token.identity != state.identity or time.time() - token.at > MAX_AGE:
                    token = self._seen()
                if token is not None:
                    if token.position is None:
                        return None
                    guard = token.position
            self._guarded = guard
            if not autocommit:
                begin = super()._get_tx_start_command()
        key = (text, guard > 0, begin, each, autocommit, within, by_server, self._transaction is not None, self._version)
        lessons, messages = state.composed
        if lessons != state.functions.lessons:
            messages = state.compose_anew()
        message = messages.get(key)
        if message is None:
            self._place = messages, key
        elif message.position != guard:
            message = messages[key] = message.guarding(guard)
        return message

    def _keep(self, plan: Plan) -> Message | None:
        """Compose what was not `_usual` until now, and keep it, where it is the same for each statement of its text."""
        if self._place is None or self._change is not None:
            return None
        (messages, key), statement = self._place, plan.statement
        text, guard, begin, within = key[0], self._guarded, key[2], key[5]
        special = statement.touches_session or statement.keeps_state or statement.makes_functions or statement.verb == "SET"
        if special or len(text) > LONGEST_REMEMBERED or plan.after not in _ALIKE or _NOTED.search(text):
            return None
        if not within and plan.before is Before.NOTHING:
            return None
        before = NOTHING if within else self._script_of(plan.before, (guard_sql(guard),) if guard else (), begin)
        if len(messages) >= MOST_REMEMBERED:
            messages.clear()
        message = messages[key] = Message(plan, before, self._script_after(plan, text), 0 if within else guard)
        return message

    def _plan_for(
        self,
        text: str,
        *,
        statement: Statement | None = None,
        way: Way = Way.MESSAGE,
        by_server: bool = False,
        within: bool = False,
        with_hold: bool = False,
    ) -> Plan:
        """Decide how a statement travels. `statement`: what `text` says, where that is known already.

        Raises:
            MayWrite: the endpoint is one for reads, and the statement may write.
            psycopg.NotSupportedError, psycopg.ProgrammingError: it cannot travel this way; see `Refused`.
        """
        state = self.state
        endpoint, functions = state.endpoint, state.functions
        if state.tracks and not within:
            self._unknown_positions = unknown_positions()
        if "timeout" in text or "TIMEOUT" in text:
            self._timeouts_text += text
        statement, context = statement or analyse(text), current()
        if (statement.touches_session or statement.verb == "SET") and "conforming" in text.lower():
            self._watches_escapes = True
        named = statement.calls_any(functions.may_write)
        change = self._change
        if change is None and endpoint.refuses_session and way is not Way.MESSAGE:
            change = self._read_change(text) if statement.touches_session or self._escapes() else None
        has_identity = endpoint.assumed_role is not None or bool(context.local_settings) or self._session.now.decides
        plan = make_plan(
            statement,
            Facts(
                way=way,
                within=within,
                autocommit=self._autocommit,
                by_server=by_server,
                with_hold=with_hold,
                endpoint_reads=endpoint.read_only,
                refuses_session=endpoint.refuses_session,
                tracks=state.tracks,
                tracks_reads=state.tracks_reads,
                may_write=text in state.refused_read_only or named,
                beside=named and statement.calls_any(functions.beside),
                refused_in_batch=text in state.refused_in_batch,
                has_settings=endpoint.pooled or bool(self._opening().parts),
                held_by_session=not (endpoint.pooled or has_identity or context.limits),
                has_identity=has_identity,
                snapshot_each=(
                    not endpoint.read_only or (self._autocommit and not within) or self._has_snapshot_each(really_open=within)
                ),
                known=self._transaction is not None,
                sets_session=change is not None,
                asks_session=change is not None and bool(change.asks),
                serializable=(
                    self._session.now.any
                    and self._session.now.value_of("default_transaction_isolation") == "serializable"
                    and self._isolation_level is None
                ),
                sets_commit=self._session.now.any and self._session.now.value_of("synchronous_commit") is not None,
                leaves_session=change is not None and change.is_way_out,
            ),
        )
        if isinstance(plan, Refused):
            error, message = _REFUSED[plan]
            raise error(message.format(endpoint=endpoint.name))
        if statement.keeps_state or statement.makes_functions:
            self._note_state(statement)
        return plan

    def _script_before(self, before: Before) -> Script:
        """Return what goes before a statement."""
        if before is Before.NOTHING:
            return Script.set_local(self._owed()) if self._session.now.owes else NOTHING
        if before is Before.GUARD:
            guard = self._guard_within()
            owed = Script.set_local(self._owed()).parts if self._session.now.owes else ()
            return Script(*owed, *guard, guard=len(owed) if guard else None)
        begin = super()._get_tx_start_command() if before is Before.TRANSACTION else b""
        return self._script_of(before, self._guard(), begin)

    def _script_of(self, before: Before, guard: tuple[bytes, ...], begin: bytes) -> Script:
        """Return what goes before a statement, with this guard, and this BEGIN where the caller opens a transaction."""
        if before is Before.TRANSACTION:
            # The first query takes the snapshot and settles the modes. The guard is one: it has to be over before.
            if guard:
                return Script(b"BEGIN", *guard, b"COMMIT", begin, *self._opening(begins=True).parts, guard=1)
            return Script(begin, *self._opening(begins=True).parts)
        opening = self._opening()
        each = self._has_snapshots() if self._session.now.any else self.state.has_snapshot_each
        if before is Before.SETTINGS:
            return opening
        if before is Before.READ and (not guard or each):
            if not guard:
                return opening.then(READ_ONLY)
            parts = tuple(part for part in opening.parts if not part.startswith(SET_STATEMENT_TIMEOUT))
            for part in opening.parts:
                if part not in parts:
                    guard = (guard_setting(guard[0], part.removeprefix(SET_STATEMENT_TIMEOUT)),)
            return Script(*parts, *guard, READ_ONLY, guard=len(parts))
        if before is Before.BEGIN:
            return Script(b"BEGIN", *opening.parts)
        if before is Before.BEGIN_READ_ONLY and each:
            return Script(b"BEGIN READ ONLY", *opening.parts, *guard, guard=1 + len(opening.parts))
        parts = (b"BEGIN", *guard, b"COMMIT") if guard else ()
        if before is Before.BEGIN_READ_ONLY:
            parts = (*parts, b"BEGIN READ ONLY")
        snapshot = (ONE_SNAPSHOT,) if before is Before.SNAPSHOT and each else ()
        if snapshot and self._session.now.any:
            # Of the modes, this is the one that counts, and they come before all that takes a snapshot, as what is held may.
            parts, snapshot = (*parts, *snapshot, *Script.set_local(self._settings()).parts), ()
        elif before is not Before.GUARD_APART:
            parts = (*parts, *opening.parts, *snapshot)
        if before not in (Before.GUARD_APART, Before.BEGIN_READ_ONLY) and self.state.endpoint.read_only:
            parts = (*parts, READ_ONLY)
        if before is Before.SNAPSHOT:
            parts = (*parts, self._position_sql())
        return Script(*parts, guard=1 if guard else None)

    def _send_before_gen(self, before: Before) -> PQGen[None]:
        """Send what goes before a statement in a message of its own."""
        script = self._script_before(before)
        if script.parts:
            yield from self._exec_command(script)

    def _position_sql(self) -> bytes:
        """Return what asks this endpoint how far its server is."""
        return REPLICA_POSITION_SQL if self.state.endpoint.read_only else POSITION_SQL

    def _script_after(self, plan: Plan, text: str) -> Script:
        """Return what goes after a statement, of which `text` is the caller's."""
        after = plan.after
        if after is After.NOTHING:
            return NOTHING
        if after is After.POSITION:
            return REPLICA_POSITION if self.state.endpoint.read_only else POSITION
        if after is After.PLACE:
            return NOTHING.then(place_sql(self.pgconn.server_version))
        if after is After.COMMIT:
            return COMMIT_AND_POSITION
        if after is After.COMMIT_AS_SET:
            return COMMIT_AS_SET_AND_POSITION
        if after is After.TRANSACTION_ID:
            return TRANSACTION_ID
        if after is After.SESSION:
            assert self._change is not None  # it planned this
            return Script(*self._change.questions())
        session = self._session
        if plan.statement.chains:  # what follows is the next transaction's, and the end of this one may have undone something
            undone = (
                plan.statement.verb in ("ROLLBACK", "ABORT") or self.pgconn.transaction_status != pq.TransactionStatus.INTRANS
            )
            self._session = session.ended(committed=not undone)
        opening, self._session = self._opening(begun_by=text), session
        return Script(*opening.parts, READ_ONLY) if self.state.endpoint.read_only else opening

    def _ask_functions_gen(self) -> PQGen[None]:
        """Ask for the names of functions that may write, where a transaction that is over made or changed some."""
        if not self._made_functions or self.pgconn.transaction_status != IDLE:
            return
        self._made_functions = False
        result = yield from super()._exec_command(FUNCTIONS_SQL)
        assert result is not None  # outside a pipeline there is one
        self._take_functions(result)

    def _take_functions(self, result: PGresult) -> None:
        """Take the names of functions that may write."""
        if result.status != TUPLES:
            return
        rows = ((result.get_value(row, 0), result.get_value(row, 1)) for row in range(result.ntuples))
        self.state.functions.take(
            self.state.endpoint.name,
            [(bytes(name).decode(self.pgconn._encoding), beside == b"t") for name, beside in rows if name is not None],
            time.monotonic(),
        )

    def _seen(self) -> Token | None:
        """Return how far the caller has seen this branch."""
        token, identity = current_token(), self.state.identity
        return token if token is None or token.identity == identity else token.of(identity)

    def _guard(self) -> tuple[bytes, ...]:
        """Return the guard that a read on a replica carries: none where the caller has seen nothing yet."""
        self._guarded = 0
        if self._asks_anywhere or not (self.state.tracks and self.state.endpoint.read_only):
            return ()
        token = self._seen()
        if token is None:
            return ()
        if token.position is None:
            # Of this caller, only the primary has certainly all that it has seen.
            if self.state.on_primary:
                self._guarded = BEYOND_ALL
                return (guard_sql(BEYOND_ALL),)
            raise ReplicaBehind(self._behind_text("what this caller has seen has no known position"))
        self._guarded = token.position
        return (guard_sql(token.position),)

    @contextmanager
    def asking_anywhere(self) -> Iterator[None]:
        """Return a block that asks what is the same on every server, such as its version.

        A replica that is behind what the caller has seen answers, too, and nothing counts as seen. Where the connection is made
        anew meanwhile, it goes where the caller's next statement can be answered.
        """
        outer, self._asks_anywhere = self._asks_anywhere, True
        try:
            yield
        finally:
            self._asks_anywhere = outer

    def _behind(self, error: psycopg.Error, result: PGresult) -> psycopg.Error | None:
        """Return the error of a guard as what it is: the server has not replayed what the caller has seen."""
        if error.sqlstate != "22023":
            return None
        if self.state.on_primary:  # it is in recovery: a primary that was demoted
            self._note_demotion()
            if not self._pipeline:
                self._give_up()
            return Demoted("the server is no longer the primary")
        text = self._behind_text("it has not replayed yet what this caller has seen")
        return ReplicaBehind(text, info=result, encoding=error._encoding)

    def _behind_text(self, why: str) -> str:
        replicas, may = self._replicas, "; the primary has it"
        if replicas is not None and replicas.fallback is None:
            may = ", and replica_fallback='none' forbids the primary to answer in its place"
        elif replicas is not None and replicas.max_fallback is not None:
            may += f", but no more than the {replicas.max_fallback} connections of replica_fallback may ask it in its place"
        elif self._keeps_state:
            may += ", but what was SET on this connection cannot be carried there"
        return f"replica_behind: the endpoint {self.state.endpoint.name!r} did not answer: {why}{may}"

    def _guard_within(self) -> tuple[bytes, ...]:
        """Return the guard of a later statement of a transaction: none where the caller has seen no more since the last one."""
        before = self._guarded
        guard = self._guard()
        return guard if self._guarded > before else ()

    def _record_seen(self, result: PGresult | None, *, wrote: bool, covers: int | None = None) -> None:
        """Merge a position that came back; see `_record_position`."""
        value = None if result is None or result.status not in ROWS else result.get_value(0, 0)
        known = self._record_position(None if value is None else bytes(value).decode(), wrote=wrote, covers=covers)
        certain = known is not None and known.position is not None and known.identity == self.state.identity
        self._told, self._known = (value, known) if certain else (None, None)

    def _is_known(self, asked: PGresult | None) -> bool:
        """Return whether a position that came back was merged before, and nothing else since: most are the same as the last one.

        What the caller has seen then counts as seen when it was merged, which was in this second: a token's text says no more.
        """
        known, tracker = self._known, current_tracker()
        if known is None or tracker is None or tracker.token is not known or not 0 <= time.time() - known.at < 1:
            return False
        if asked is None or asked.status != TUPLES or asked.get_value(0, 0) != self._told:
            return False
        return self.state.endpoint.read_only or asked.get_value(0, 1) == b"f"

    def _record_position(self, lsn: str | None, *, wrote: bool, covers: int | None = None) -> Token | None:
        """Merge a position; where none came, only the primary has certainly what this caller has seen.

        `covers`: how many unknown positions there were when it was asked; None: when the last message was composed.
        """
        if self._asks_anywhere:
            return None  # what is the same everywhere is nothing that was seen
        position = None if lsn is None else parse_lsn(lsn, reached=True)
        token = Token(identity=self.state.identity, position=position, at=time.time())
        covers = self._unknown_positions if covers is None else covers
        return record_seen(token, wrote=wrote, unknown_positions=None if self.state.endpoint.read_only else covers)

    def _record_committed(
        self, setting: PGresult | None, asked: PGresult | None, *, wrote: bool = True, covers: int | None = None
    ) -> None:
        """Merge the position of a commit of which `setting` tells whether it waited for its flush; None: the last of `asked`."""
        lsn = None
        if asked is not None and asked.status == TUPLES:
            level = asked.get_value(0, 2) if setting is None else setting.get_value(0, 0)
            lsn = asked.get_value(0, 1 if level == b"off" else 0)
        elif asked is not None and asked.status == FATAL and self._error(asked).sqlstate == IN_RECOVERY:
            self._note_demotion()
        self._record_position(None if lsn is None else bytes(lsn).decode(), wrote=wrote, covers=covers)

    def _check_place(self, result: PGresult | None) -> bool:
        """Return whether the server that was asked is the one that this endpoint is for; else use it no more.

        A primary that was demoted goes on to answer, and lags behind what this caller may have seen.
        """
        if (
            self.state.endpoint.read_only
            or result is None
            or result.status != TUPLES
            or result.get_value(0, result.nfields - 1) not in (b"t", b"on")
        ):
            return True
        self._note_demotion()
        return False

    def _note_demotion(self) -> None:
        """Let every connection of this endpoint be replaced before its next use: its server is no longer the primary."""
        emit(Event(name=Name.DEMOTED, endpoint=self.state.endpoint.name))
        self.state.generation += 1

    def _has_snapshot_each(self, *, really_open: bool) -> bool:
        """Return whether each statement of an explicit transaction has a snapshot of its own, as at READ COMMITTED.

        `really_open`: it is, or is about to be; else whether reads may travel without it.
        """
        if not really_open and (self._deferrable or self._num_transactions):
            return False
        level = self._isolation_level
        if level is None:
            return self._has_snapshots() if self._session.now.any else self.state.has_snapshot_each
        return level is IsolationLevel.READ_COMMITTED

    def _has_snapshots(self) -> bool:
        """Return whether each statement has a snapshot of its own at the level that transactions have by themselves."""
        level = self._session.now.value_of("default_transaction_isolation")
        return self.state.has_snapshot_each if level is None else level in ("read committed", "read uncommitted")

    # --- the end of a transaction ---

    def _take_end(self, result: PGresult) -> None:
        """Learn in a pipeline how a transaction ended that has set something for the session."""
        self._raise_if_failed(result)
        self._session = self._session.ended(committed=result.command_status == b"COMMIT")

    def _end_gen(self, command: bytes, *, read_only: bool = False) -> PQGen[PGresult | None]:
        """Send COMMIT or ROLLBACK with what goes with it; what that is and what the answers mean, `ending` and its module say.

        `read_only`: the transaction was begun so by us; else it is what the connection's attribute says.
        """
        state, context = self.state, current()
        read_only = read_only or bool(self._read_only)
        commits = command == b"COMMIT" and self.pgconn.transaction_status != pq.TransactionStatus.INERROR
        if commits and context.deadline is not None:
            yield from self._refuse_late_commit_gen()
        known, self._transaction = self._transaction, None
        self._ended = True
        # Before the session's end: the lookup has what this transaction had.
        settings = () if context.verify is None or not commits else self._settings_for_verify()
        session = self._unsettled_session = self._session
        if session.begun is not None or session.savepoints:
            self._session = session.ended(committed=False)
        self._unknown_positions = unknown_positions()
        marker = str(uuid.uuid4()) if commits and context.marker and not read_only else None
        schema, encoding = state.endpoint.marker_schema, self.pgconn._encoding
        end = ending(
            command,
            failed=not commits,
            known=known,
            marker=None if marker is None else marker_sql(marker, schema).encode(encoding),
            tracks=state.tracks,
            tracks_reads=state.tracks_reads,
            read_only=read_only,
            on_replica=state.endpoint.read_only,
        )
        results: list[PGresult] = []
        functions = state.functions.is_due(state.endpoint.name, time.monotonic())
        self.pgconn.send_query(end.message + b";" + FUNCTIONS_SQL if functions else end.message)
        lost = yield from self._collect_gen(results, commits=commits)
        if functions and len(results) > len(end.parts):
            self._take_functions(results.pop())
        ended = read_ending(end, [*map(self._reply, results)], lost=lost is not None, wait_cancelled=self._sync_wait_cancelled)
        errors = [result for result in results if result.status == FATAL]
        error = self._error(errors[0]) if errors else lost
        match ended.raises:
            case Raises.NOT_CONFIRMED:
                raise _unknown(ended.transaction, _NOT_CONFIRMED) from error
            case Raises.UNSETTLED:
                # What the session may hold beside its opening nobody could give the connection that asks.
                verify = None if self._keeps_state or state.endpoint.read_only else context.verify
                self._unsettled = lookups_of(ended, marker=marker, schema=schema, verify=verify, settings=settings)
                raise _unknown(ended.transaction, "the connection was lost before its answer came") from error
            case Raises.ERROR | Raises.LOST:
                if command == b"ROLLBACK" and self._forget_lost_transaction():
                    return None  # the server rolled back by itself
                assert error is not None  # it says so
                raise error
            case Raises.NOTHING:
                pass
        self._in_block = False
        if session.begun is not None and ended.outcome is Outcome.COMMITTED:
            self._session = session.ended(committed=True)
        if ended.is_demoted:
            self._note_demotion()
        if state.tracks and (state.tracks_reads or ended.wrote):
            self._record_position(ended.position, wrote=ended.wrote)
        return [result for result in results if result.command_status in (b"COMMIT", b"ROLLBACK")][0]  # noqa: RUF015 - no call

    def _refuse_late_commit_gen(self) -> PQGen[None]:
        """Roll back in place of a COMMIT past the deadline. Nobody else will: at a block's end psycopg commits or does nothing.

        Raises:
            DeadlineExceeded: the deadline is over.
        """
        try:
            remaining()
        except DeadlineExceeded:
            yield from self._exec_command(b"ROLLBACK")
            raise

    def _settings_for_verify(self) -> tuple[str, ...]:
        """Return what sets, in another transaction, what this one has: its opening, and what a pooler keeps by client."""
        escaping, encoding = pq.Escaping(self.pgconn), self.pgconn._encoding
        reported = [
            Setting(name, bytes(escaping.escape_literal(value)))
            for name, value in self._read_parameters().items()
            if value is not None and name in (b"TimeZone", b"DateStyle")
        ]
        return tuple(part.decode(encoding) for part in (*self._opening().parts, *Script.set_local(reported).parts))

    def _reply(self, result: PGresult) -> Reply:
        """Return one result as plain values."""
        if result.status == FATAL:
            routine = result.error_field(pq.DiagnosticField.SOURCE_FUNCTION)
            error = self._error(result)
            return Reply(
                error=error.sqlstate or "",
                routine=bytes(routine or b"").decode(),
                by_server=error.sqlstate is not None and not is_made_by_pooler(error),
            )
        if not result.ntuples:
            return Reply((result.command_status or b"").decode())
        encoding, values = self.pgconn._encoding, [result.get_value(0, column) for column in range(result.nfields)]
        return Reply(row=tuple([None if value is None else value.decode(encoding) for value in values]))

    def _settle_gen(self, unknown: CommitOutcomeUnknown) -> Generator[Lookup, Outcome, None]:
        """Yield the lookups that are needed, take what each proves, and do what `commit` does then: return, or raise."""
        lookups, self._unsettled = self._unsettled, ()
        self._conclude((yield from settling(lookups)), unknown)

    def _look_up_gen(self, donor: psycopg.BaseConnection[Any], lookup: Lookup, until: float) -> PQGen[Outcome]:
        """Ask, on a connection of its own, what became of a COMMIT; raise to ask again.

        No timeout of the server's ends the wait for its barrier: `until` does, and the connection is dropped.
        """
        cancelled: list[str] = []
        donor.add_notice_handler(
            lambda said: cancelled.append(SYNC_REP_ROUTINE) if said.source_function == SYNC_REP_ROUTINE else None
        )
        results: list[PGresult] = []
        lost: psycopg.Error | None = None
        try:
            donor.pgconn.send_query(lookup.message().encode(donor.pgconn._encoding))
            yield from bounded_until(until, generators.send(donor.pgconn))
            while (result := (yield from bounded_until(until, generators.fetch(donor.pgconn)))) is not None:
                results.append(result)
        except psycopg.OperationalError as exc:
            lost = exc
        finally:
            donor.pgconn.finish()
        what = lookup.read([*map(self._reply, results)], wait_cancelled=bool(cancelled))
        if what in ASK_AGAIN:
            raise StillRunning(f"the transaction is {what.value}")
        error = next((self._error(result) for result in results if result.status == FATAL), lost)
        if what is Outcome.UNKNOWN and error is not None:
            raise error
        return what

    def _conclude(self, verdict: Outcome, unknown: CommitOutcomeUnknown) -> None:
        """Turn a verdict into what `commit` does: return, or raise."""
        if verdict is Outcome.OVER:
            verdict = Outcome.UNKNOWN
        emit(Event(name=Name.COMMIT_OUTCOME, endpoint=self.state.endpoint.name, reason=verdict.value))
        if verdict is Outcome.COMMITTED:
            self._in_block = False
            self._session = self._unsettled_session.ended(committed=True)
            if self.state.tracks:
                self._record_seen(None, wrote=True)
        elif verdict is Outcome.ROLLED_BACK:
            raise LostAtCommit("the connection was lost at COMMIT, and the transaction was rolled back") from unknown.__cause__
        else:
            if self._unsettled_session.begun is not None:
                self._keeps_state = True  # nobody knows what the session has
            raise unknown

    def _collect_gen(self, results: list[PGresult], *, commits: bool = True) -> PQGen[psycopg.Error | None]:
        """Take the results of a message one by one, so that a connection that is lost does not take those before with it.

        `commits`: there is a COMMIT in it.
        """
        self._committing = commits
        try:
            yield from generators.send(self.pgconn)
            while (result := (yield from generators.fetch(self.pgconn))) is not None:
                results.append(result)
        except psycopg.OperationalError as exc:
            return exc
        except DeadlineExceeded as exc:
            lost = psycopg.OperationalError(str(exc))
            lost.__cause__ = exc  # as which it is raised, but where the outcome of a COMMIT is what matters
            return lost
        finally:
            self._committing = False
        return None

    def _answer_gen(self) -> PQGen[list[PGresult]]:
        """Send what is in libpq's buffer, and take the results."""
        results: list[PGresult] = yield from generators.execute(self.pgconn)
        return results

    def _arrive_gen(self, turn: Turn) -> PQGen[None]:
        """Make sure of a server, where others wait for that, or an endpoint that was left out would be back.

        A pooler welcomes its clients whether it has one or not.
        """
        replicas = self._replicas
        if self.state.endpoint.pooled and (turn.is_probe or (replicas is not None and self.state in replicas.out)):
            self.pgconn.send_query(b"SELECT 1")
            results: list[PGresult] = yield from self._answer_gen()
            if results and results[-1].status == FATAL:
                self._give_up()
                raise self._error(results[-1])
        if replicas is not None:
            replicas.report_connected(self)

    def _error(self, result: PGresult) -> psycopg.Error:
        return psycopg.errors.error_from_result(result, encoding=self.pgconn._encoding)

    def _goes_on(self) -> bool:
        """Return whether the wait that begins is for more of what was under way before, as of `stream()` and COPY."""
        return self.pgconn.transaction_status == ACTIVE and not (self._pipeline or self._cancelling)

    def _is_in_flight(self) -> bool:
        """Return whether the server owes an answer."""
        return bool(self._pipeline) or self.pgconn.transaction_status == ACTIVE

    def _begin_wait(self) -> Context:
        """Note where a wait begins, for `_may_be_committing`. Return the context in which it does."""
        context = current()
        self._sync_wait_cancelled = False
        self._plan_before, self._text_within, self._change = self._plan, "", None
        self._planned = self._ended = False
        status = self.pgconn.transaction_status
        if status != ACTIVE:  # else it goes on with what an earlier one began
            self._began_idle, self._writing, self._cancelling = status == IDLE, False, False
        if status == IDLE:
            self._parameters_before = None
            self._opened_in = context
            if context.deadline is not None:
                self._opened_at = time.monotonic()
            if self.state.endpoint.pooled:
                self._timeouts_text = ""
        return context

    def _note_cause(self, error: psycopg.Error) -> None:
        """Note on an error what of ours caused it: which limit, and how to raise it; or that the endpoint only reads."""
        name, endpoint, state = limit_of(error), self.state.endpoint, self.state
        if self.pgconn.status != OK and not self._began_idle and state.tracks and state.tracks_reads and not endpoint.read_only:
            self._record_seen(None, wrote=False)  # the end of the transaction would have brought the position of what it saw
        if name is None:
            if error.sqlstate == "25006" and endpoint.read_only:
                _add_note(error, reads_note(endpoint.name))
            return
        context = self._opened_in
        held = InForce(
            endpoint=endpoint.name,
            timeouts=endpoint.timeouts,
            limits=dict(context.limits.values) if context.limits else {},
            role=self.state.role or {},
            deadline=context.deadline_seconds,
            remaining=None if context.deadline is None else context.deadline - self._opened_at,
            text=" ".join((self._timeouts_text, *(one.name for one in self._session.now.held))),
        )
        _add_note(error, limit_note(name, held))

    def _may_be_committing(self) -> bool:
        """Return whether a COMMIT may be in flight, in whichever way it travels.

        Cancelling one that waits for its synchronous standby would let it succeed without. In autocommit everything commits that
        is not known to read only; maintenance (VACUUM and its like) may take hours, has nothing to lose, and stays cancellable.
        """
        if self._committing or self.state.endpoint.read_only:
            return self._committing
        if not self._began_idle:
            return analyse(self._text_within).controls
        if not self._autocommit:
            return False
        plan = None if self._plan is self._plan_before else self._plan
        if plan is None:
            return self._writing or bool(self._pipeline)
        return not (plan.read_only or plan.statement.must_stand_alone)

    def _check_durable(self) -> None:
        """Raise where the server reported success for what no other server has: in autocommit, a COMMIT has no call of its own.

        Raises:
            CommitOutcomeUnknown: see there.
        """
        if self._sync_wait_cancelled:
            raise _unknown(None, _NOT_CONFIRMED)

    def _hear(self) -> None:
        """Let the libpq connection that was taken over tell this connection's handlers, as psycopg's constructor does."""
        wself: ReferenceType[psycopg.BaseConnection[Any]] = ref(self)
        self.pgconn.notice_handler = partial(psycopg.BaseConnection._notice_handler, wself)
        self.pgconn.notify_handler = partial(psycopg.BaseConnection._notify_handler, wself)

    @staticmethod
    def _on_notice(wself: ReferenceType[BaseConnection[Any]], notice: psycopg.errors.Diagnostic) -> None:
        self = wself()
        if self is None:
            return
        if notice.source_function == SYNC_REP_ROUTINE:
            self._sync_wait_cancelled = True
        elif found := kind_of(notice.message_primary or ""):
            kind, text = found
            emit(Event(name=Name.NOTICE, endpoint=self.state.endpoint.name, reason=kind, text=text))

    def _learn_gen(self) -> PQGen[None]:
        """Learn, with the first connection to the endpoint, the role's own timeouts and which functions may write.

        `reset_val` is what the session began with, whatever another client has set since.
        """
        self.pgconn.send_query(ROLE_SQL + b";" + FUNCTIONS_SQL)
        results: list[PGresult] = yield from self._answer_gen()
        for result in results:
            if result.status == FATAL:
                raise self._error(result)
        role, functions = results
        rows = ((role.get_value(row, 0), role.get_value(row, 1)) for row in range(role.ntuples))
        own = {bytes(name).decode(): bytes(value).decode() for name, value in rows if name is not None and value is not None}
        level = self.state.default_isolation = own.pop("default_transaction_isolation")
        self.state.has_snapshot_each = level in ("read committed", "read uncommitted")
        self.state.role = {name: int(value) for name, value in own.items()}
        self._take_functions(functions)

    # --- healing ---------------------------------------------------------------------------------------------------------------

    def _note_state(self, statement: Statement) -> None:
        if statement.makes_functions:
            self._made_functions = True
        # Behind a transaction pooler there is no session that could keep anything.
        if statement.keeps_state and not self.state.endpoint.pooled:
            self._keeps_state = True

    def _is_demoted_gen(self) -> PQGen[bool]:
        """Ask, after a write was refused, whether the server is no longer the primary; if so, give its connections up."""
        result = yield from super()._exec_command(b"SELECT pg_catalog.pg_is_in_recovery()")
        if result is None or result.get_value(0, 0) != b"t":
            return False
        self._note_demotion()
        self._give_up()
        return True

    def _is_gone(self) -> bool:
        """Return whether the other side has closed an idle connection, as far as this machine has been told.

        For what could not be sent again if it were lost under way. The first read may bring the server's last words, the second
        finds the end.
        """
        if self.state.endpoint.transport == "websocket" and (now := time.monotonic()) > self._settled_at + SETTLED_FOR:
            settle()
            self._settled_at = now
        try:
            self.pgconn.consume_input()
            self.pgconn.consume_input()
        except psycopg.OperationalError:
            return True
        return False

    @property
    def pid(self) -> int:
        """The process that made it."""
        return self._pid

    def _may_heal(self) -> bool:
        return not (self._keeps_state or self._closed or os.getpid() != self._pid)

    def can_revive(self) -> bool:
        """Return whether a broken connection may be used again without anybody having to know: nothing is open on it."""
        return self.broken and not self._in_block and self._may_heal()

    def _needs_revival(self) -> bool:
        # What `_is_out_of_place` asks, asked before every statement.
        state, replicas = self.state, self._replicas
        if self.pgconn.status != OK or self._generation != state.generation:
            return True
        return replicas is not None and not self._at_home and replicas.should_return_home(state, self._home)

    def _is_at_home(self) -> bool:
        return self._replicas is None or (self.state is self._home and self.state is not self._replicas.fallback)

    def _is_out_of_place(self) -> bool:
        """Return whether its server was found demoted, or it serves reads elsewhere while its own endpoint may be back."""
        return self._generation != self.state.generation or (
            self._replicas is not None and self._replicas.should_return_home(self.state, self._home)
        )

    def _retire(self) -> None:
        """Give up an idle connection that is out of place, or that the other side has closed."""
        idle = self.pgconn.transaction_status == IDLE and not self._pipeline
        if idle and self._may_heal() and (self._is_out_of_place() or self._is_gone()):
            self._give_up()

    def _has_nothing_to_end(self) -> bool:
        """Return whether a rollback would do nothing: pools roll back whatever comes back to them."""
        return self.pgconn.transaction_status == IDLE and not (self._pipeline or self._num_transactions or self._tpc)

    def _forget_lost_transaction(self) -> bool:
        """Return whether a rollback has nothing to do: the transaction went with its connection."""
        if not self.broken or self._tpc or not self._may_heal():
            return False
        self._in_block, self._transaction = False, None
        return True

    def _check_intrans_gen(self, attribute: str) -> PQGen[None]:
        if self.pgconn.status == OK or not self.can_revive():
            yield from super()._check_intrans_gen(attribute)

    def _may_replay(self, exc: BaseException) -> bool:
        """Return whether the statement that just failed may be sent again on a new connection."""
        plan = self._plan
        if plan is None or not plan.first or not isinstance(exc, RETRYABLE) or not self._may_heal():
            return False
        if self._policy.attempts == 0 or isinstance(exc, CommitOutcomeUnknown):
            return False
        return may_replay(plan, classify(exc))

    def _check_connection_ok(self) -> None:
        if self.pgconn.status != OK and not self.can_revive():
            super()._check_connection_ok()

    def _give_up(self) -> None:
        """Close the libpq connection as lost. What is to outlive it is read before."""
        self._parameters = self._session_parameters()
        self.pgconn.finish()

    def _session_parameters(self) -> dict[bytes, bytes | None]:
        """Return the session's, as the open transaction found them: it is undone where its connection is lost."""
        return self._parameters or self._parameters_before or self._read_parameters()

    def _read_parameters(self) -> dict[bytes, bytes | None]:
        return {name: self.pgconn.parameter_status(name) for name in map(str.encode, KEPT_BY_POOLER)}

    def _adopt(self, donor: psycopg.BaseConnection[Any], state: EndpointState) -> PQGen[None] | None:
        """Go on with the donor's libpq connection, which leads to `state`'s endpoint. Cursors follow when they are next used.

        Returns what is still to be run: session parameters that a framework had set, such as its time zone.
        """
        values = self._session_parameters()
        before, self.pgconn = self.pgconn, donor.pgconn
        del donor.pgconn  # its finalizer then leaves the connection alone
        before.finish()
        self._version = self.pgconn.server_version
        self.state, self._generation = state, state.generation
        self._at_home = self._is_at_home()
        self._session = self._session.ended(committed=False)
        self._hear()
        threshold, prepared_max = self.prepare_threshold, self.prepared_max
        self._prepared = type(self._prepared)()
        self.prepare_threshold, self.prepared_max = threshold, prepared_max
        return self._restored(values)

    def _restored(self, values: dict[bytes, bytes | None]) -> PQGen[None] | None:
        """Return what gives the server the session's parameters where it has others; a new connection, in a lost one's place."""
        if self.pgconn.status != OK:
            self._parameters = values
            return None
        lost = {name: value for name, value in values.items() if value and value != self.pgconn.parameter_status(name)}
        self._parameters = values if lost else None
        return self._restore_gen(lost) if lost else None

    def _may_stand_in(self) -> EndpointState | None:
        """Return the endpoint that may answer in the place of the replica that this connection is at."""
        replicas = self._replicas
        if self.stands_in or replicas is None or replicas.fallback is None or self.state is replicas.fallback:
            return None
        if self._keeps_state:  # what was SET on a connection without a pooler cannot be carried
            return None
        status = self.pgconn.transaction_status
        if status != IDLE and not (status == pq.TransactionStatus.INERROR and self._began_idle):
            return None
        return replicas.fallback if replicas.takes_place() else None

    def _exchange(self, other: Self) -> PQGen[None] | None:
        """Exchange libpq connections, and where they lead to. Returns what is still to be run, as `_adopt` does."""
        # Exchanged is what belongs to the libpq connection: where it leads, the generation of its server, what was prepared and
        # told there. The caller's stays: autocommit and modes, what is SET for the session (`_session`), blocks, when to prepare.
        values, usual = self._session_parameters(), (self.prepare_threshold, self.prepared_max)
        exchanged = ("pgconn", "state", "_home", "_generation", "_version", "_at_home", "_replicas", "_parameters", "_prepared")
        for name in exchanged:
            mine, theirs = getattr(self, name), getattr(other, name)
            setattr(self, name, theirs)
            setattr(other, name, mine)
        self.prepare_threshold, self.prepared_max = usual
        self._hear()
        other._hear()
        return self._restored(values)

    def _restore_gen(self, parameters: dict[bytes, bytes]) -> PQGen[None]:
        for name, value in parameters.items():
            literal = bytes(pq.Escaping(self.pgconn).escape_literal(value))
            yield from super()._exec_command(b"SET SESSION %s=%s" % (name, literal))
        self._parameters = None


def must_carry(endpoint: Endpoint) -> bool:
    """Return whether what is sent in autocommit has to bring something along: timeouts, settings, a role, a guard."""
    context = current()
    return bool(endpoint.pooled or endpoint.read_only or endpoint.assumed_role or context.local_settings or context.limits)


_COUNT: Final = count(1)
"""Numbers what is SET in this process."""
_NOTED: Final = re.compile("timeout|TIMEOUT|(?i:conforming)")
"""What is noted of a text each time that it is sent."""
_LINE: Final = re.compile(r"^LINE (\d+): ", re.MULTILINE)
_LOCAL: Final = re.compile(r"(?im)^(LINE \d+: .*?\bSET) LOCAL(.*\n)( +)")
_NAME_SET: Final = re.compile(rb"SET LOCAL ([^=]+)=|SELECT pg_catalog\.set_config\('([^']+)'")
_NOT_CONFIRMED: Final = "its wait for the synchronous replica was cancelled"


def _error_in_users_text(result: PGresult, encoding: str, before: Script, change: Change | None) -> psycopg.Error:
    """Return the error with its position counted in the user's text, not in the message that carried it."""
    exc = psycopg.errors.error_from_result(result, encoding=encoding)
    position = exc.diag.statement_position
    longer = 0 if change is None else change.longer
    if not (before.parts or longer) or position is None:
        return exc
    head = before.head.decode(encoding)
    at = int(position) - len(head)
    if change is not None and at > change.at:
        at -= longer
    info: dict[int, bytes | None] = {key: result.error_field(key) for key in pq.DiagnosticField}
    info[pq.DiagnosticField.STATEMENT_POSITION] = str(at).encode()
    lines = head.count("\n")
    message = _LINE.sub(lambda match: f"LINE {int(match[1]) - lines}: ", str(exc), count=1)
    if longer:
        # What the server quotes has a LOCAL in it that nobody wrote.
        message = _LOCAL.sub(lambda match: match[1] + match[2] + match[3][longer:], message, count=1)
    return type(exc)(message, info=info, encoding=encoding)


def _add_note(error: psycopg.Error, note: str | None) -> None:
    if note is not None and note not in getattr(error, "__notes__", ()):
        error.add_note(note)


def _unknown(transaction: TransactionId | None, why: str) -> CommitOutcomeUnknown:
    return CommitOutcomeUnknown(
        f"nobody can tell whether the transaction was committed: {why}",
        transaction=transaction.xid if transaction else None,
        timeline=transaction.timeline if transaction else None,
    )


def without_waiting(gen: PQGen[Any]) -> Any:
    """Run what needs no server to its end."""
    try:
        next(gen)
    except StopIteration as done:
        return done.value
    gen.close()
    raise psycopg.OperationalError("the connection is lost")


def time_to_connect(options: dict[str, Any]) -> float | None:
    """Take psycopg's `connect_timeout` out of `options`, and return the seconds that psycopg makes of it; None: none is given.

    With a unit ("3s") it is the topology's setting, which bounds each try to connect, also later ones.
    """
    given = options.get("connect_timeout")
    if given is None or (isinstance(given, str) and not given.strip().isdecimal()):
        return None
    return timeout_from_conninfo({"connect_timeout": options.pop("connect_timeout")})


def connect_options(state: EndpointState, options: dict[str, Any], *, client: type, server: type) -> dict[str, Any]:
    """Return what psycopg's `connect` is given. `client` and `server` are the cursors that bind there."""
    cursor_factory = server if state.endpoint.binding == "server" else client
    # Client-side binding never prepares. Where somebody chooses another cursor, prepared statements stay off all the same:
    # behind a pooler they may return another client's rows.
    endpoint = state.endpoint
    check_startup(endpoint, options)
    wanted = {**endpoint.parameters(), "cursor_factory": cursor_factory, "prepare_threshold": None, **options}
    return through_bridge(wanted, endpoint.https_port) if endpoint.transport == "websocket" else wanted
