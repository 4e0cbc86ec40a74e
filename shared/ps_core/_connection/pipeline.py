"""The pipelines: what is sent in one keeps the promises of what is sent by itself."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from psycopg._pipeline import BasePipeline  # type: ignore[attr-defined] # where 3.2 has it

from ps_core._connection.base import IDLE, IN_TRANSACTION, OK, ROWS
from ps_core._message.commit import SYNCHRONOUS_COMMIT_SQL, TRANSACTION_SQL
from ps_core._message.plan import After, Before, Plan, Way
from ps_core._message.script import Script, Setting
from ps_core.consistency import COMMITTED_POSITION_SQL
from ps_core.context import remaining, unknown_positions
from ps_core.errors import not_supported

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg.abc import PQGen
    from psycopg.pq.abc import PGresult

__all__ = ["PipelineMixin"]


class _Answer:
    """Takes, in a cursor's place, the answer to a question of ours out of a pipeline."""

    def __init__(self, take: Callable[[PGresult], None]) -> None:
        self._take = take

    def _check_results(self, results: list[PGresult]) -> None:
        """Leave errors to the statement that they belong to."""

    def _set_results(self, results: list[PGresult]) -> None:
        self._take(results[-1])


class PipelineMixin(BasePipeline):
    """psycopg's pipeline, which knows where its implicit transactions begin and end: each Sync ends one.

    In autocommit, settings and the guard of a replica precede the first command of each, and where it only read, its position is
    asked for at its end. Where it wrote, that would have to be behind its Sync, before which nothing is committed; and two Syncs
    are never under way at once: PgBouncer gives the server to the next client with the first one's answer if this one goes away,
    and that client gets the second one's. So the caller is pinned to the primary; `executemany`, which is one unit, is in a
    transaction of ours instead, whose COMMIT comes before the Sync.
    """

    _conn: Any
    _opened = False
    """Settings precede what follows until the next Sync."""
    _explicit = False
    """The command that was planned last is in an explicit transaction."""
    _over = False
    """The explicit transaction that libpq takes to be open, until the next Sync, was ended."""
    _begun = False
    """A transaction of ours is around what it writes."""
    _owes_position = False
    """An error was met where something had been read, and how far the server was is not known."""
    _read = _wrote = False
    """What the implicit transaction did so far."""

    def __init__(self, conn: Any, **kwargs: Any) -> None:
        super().__init__(conn, **kwargs)
        self._in_transaction: bool = self.pgconn.transaction_status in IN_TRANSACTION
        """An explicit transaction was open when it began, or was begun by text: libpq says no more than that it is busy."""
        self.alone: bool = conn._many
        """It is `executemany`'s own."""

    def ask(self, sql: bytes, take: Callable[[PGresult], None]) -> None:
        """Enqueue a question of ours; `take` gets the answer."""
        self.command_queue.append(partial(self.pgconn.send_query_params, sql, None))
        answer: Any = _Answer(take)
        self.result_queue.append((answer, None))

    def plan(self, text: str) -> Plan:
        """Decide how a command travels, enqueue what precedes it, and note what follows from it.

        Raises:
            MayWrite, ReplicaBehind, psycopg.NotSupportedError, psycopg.ProgrammingError: it cannot travel here.
        """
        conn, status = self._conn, self.pgconn.transaction_status
        explicit = self._explicit = self._is_explicit() and not self._over
        if self._over and not conn._autocommit:
            raise not_supported(
                "behind a COMMIT or ROLLBACK by text in a pipeline, a statement would have no transaction: call sync() of the"
                " pipeline, or connection.commit()"
            )
        plan: Plan = conn._plan_for(text, way=Way.PIPELINE, within=explicit or self._opened)
        if plan.statement.controls and conn._session.begun is not None:
            raise not_supported(
                "the transaction has set something for the session, and the end of a transaction or a savepoint by text in a"
                " pipeline does not say whether that holds: use `with connection.transaction():`, or connection.commit()"
            )
        if explicit and conn._session.now.owes:
            self.ask(Script.set_config(conn._owed()), conn._raise_if_failed)
        if plan.before in (Before.SETTINGS, Before.READ):
            if self.alone and conn.state.tracks and plan.before is Before.SETTINGS and not plan.reads:
                self._begun = True
                self.ask(b"BEGIN", conn._raise_if_failed)
            self._open()
        elif plan.before is Before.GUARD and explicit and status != IDLE:
            self._ask_guard(conn._guard_within())
        if not explicit:
            self._opened = (plan.is_accompanied or self._opened) and not plan.statement.ends
            if conn.state.tracks:
                self._note(plan)
        return plan

    def follow(self, plan: Plan, text: str) -> None:
        """Enqueue what follows a command, of which `text` is the caller's.

        The settings of a transaction that it begins; of one that it ends, note that.
        """
        if plan.statement.begins:
            self._in_transaction = True
        if plan.statement.ends and self._explicit:
            self._in_transaction = self._in_transaction and plan.statement.chains
            self._opened = self._opened and plan.statement.chains
            self._over = not plan.statement.chains  # psycopg syncs behind a BEGIN of its own, so it is known only now
            self._conn._note_end()
        if plan.after is After.SETTINGS and (settings := self._conn._settings()):
            for mode in self._conn._modes(text=text):
                self.ask(mode, self._conn._raise_if_failed)
            self.ask(Script.set_config(settings), self._conn._raise_if_failed)
            self._opened = True

    def end_many(self, plan: Plan) -> None:
        """Enqueue what follows the commands of an `executemany`, as it follows a single statement.

        In autocommit: how it is to commit, the COMMIT of our BEGIN, and how far the server is. In a transaction: its id, behind
        its first write.
        """
        conn = self._conn
        if self._begun:
            remaining()
            level: list[PGresult] = []
            covers = unknown_positions()
            self.ask(SYNCHRONOUS_COMMIT_SQL, level.append)
            self.ask(b"COMMIT", conn._raise_if_failed)
            self.ask(COMMITTED_POSITION_SQL, lambda asked: conn._record_committed(level[0], asked, covers=covers))
        elif self._is_explicit() and conn._transaction is None and not (conn.state.endpoint.read_only or plan.reads):
            self.ask(TRANSACTION_SQL, conn._take_transaction)

    def rest(self) -> PQGen[None] | None:
        """Return what is still to be done behind it where an error was met in it; None: nothing."""
        return self._rest_gen() if (self._begun or self._owes_position) and not self._conn._pipeline else None

    def _rest_gen(self) -> PQGen[None]:
        conn, pgconn = self._conn, self.pgconn
        if self._begun and pgconn.transaction_status in IN_TRANSACTION:
            yield from conn._exec_command(b"ROLLBACK")
        if self._owes_position:
            asked, covers = None, unknown_positions()
            if pgconn.status == OK and pgconn.transaction_status == IDLE:
                pgconn.send_query(conn._position_sql())
                asked = (yield from conn._answer_gen())[-1]
            conn._record_seen(asked, wrote=False, covers=covers)

    def _is_explicit(self) -> bool:
        """Return whether an explicit transaction is open, or is about to be."""
        conn = self._conn
        status = self.pgconn.transaction_status
        return not conn._autocommit or bool(conn._num_transactions) or self._in_transaction or status in IN_TRANSACTION

    def _open(self) -> None:
        """Enqueue the settings, and the guard of a replica, in front of the first command of an implicit transaction."""
        conn = self._conn
        for mode in conn._modes():
            self.ask(mode, conn._raise_if_failed)
        settings = conn._settings()
        if conn.state.endpoint.read_only:
            settings.append(Setting(b"transaction_read_only", b"'on'"))
            guard = conn._guard()
            if guard and not conn._has_snapshots():
                guard = (b"BEGIN", *guard, b"COMMIT")
            self._ask_guard(guard)
        if settings:
            self.ask(Script.set_config(settings), conn._raise_if_failed)

    def _ask_guard(self, guard: tuple[bytes, ...]) -> None:
        for part in guard:
            self.ask(part, partial(self._conn._raise_if_failed, guard=True))

    def _note(self, plan: Plan) -> None:
        statement = plan.statement
        if self._conn.state.endpoint.read_only or plan.reads:
            self._read = True
        elif statement.controls or not (statement.only_sets or statement.is_harmless):
            self._wrote = True
            self._conn._note_unknown_position()  # until the answer comes

    def _enqueue_sync(self) -> None:
        state, only_read = self._conn.state, self._read and not self._wrote
        self._opened = self._over = self._read = self._wrote = False
        if only_read and state.tracks_reads:
            self.ask(self._conn._position_sql(), partial(self._take_position, unknown_positions()))
        super()._enqueue_sync()

    def _take_position(self, covers: int, result: PGresult) -> None:
        """Merge the position behind what was read; where an error came before it, it is asked for at the end."""
        if result.status in ROWS:
            self._conn._record_seen(result, wrote=False, covers=covers)
        else:
            self._owes_position = True
