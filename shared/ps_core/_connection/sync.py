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
framework above never notices. What may be sent again is decided in one place, `BaseConnection._may_replay`.

psycopg's protocol code is written as generators that both of its connection classes drive, so all of ours is written once, too.
Four of its private methods are overridden (`_execute_gen`, `_start_query`, `_exec_command`, `_get_tx_start_command`); they are
the same from 3.2 to 3.3, and the tests run on both ends.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self, TypeVar

import psycopg
import tenacity

from ps_core._connection.base import NO_CONNECT, OK, BaseConnection, connect_options, look_up_options, without_waiting
from ps_core._connection.cursors import Cursor
from ps_core._message.commit import UNDECIDED, Outcome
from ps_core._retry.attempts import Attempts, verdict_of_failure
from ps_core._retry.deadline import bounded, deadline_within
from ps_core.errors import CommitOutcomeUnknown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from psycopg.abc import PQGen, PQGenConn

    from ps_core._endpoint import EndpointState
    from ps_core._message.commit import Lookup
    from ps_core.replicas import Replicas

__all__ = ["Connection"]

Row = TypeVar("Row", covariant=True)  # noqa: PLC0105 - psycopg's name


class Connection(BaseConnection[Row], psycopg.Connection[Row]):
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
        raise TypeError(NO_CONNECT)

    @classmethod
    def _connect(cls, **options: Any) -> Self:
        return super().connect(**options)

    @classmethod
    def open(cls, state: EndpointState, *, replicas: Replicas | None = None, **options: Any) -> Self:
        """Connect to `state`'s endpoint, trying again while it is down (as the link's policy says).

        With `replicas`, of which `state` is one, the connection goes on with another endpoint where its own fails. `options` are
        `psycopg.Connection.connect`'s: `autocommit`, `row_factory`, `context`, `cursor_factory` and libpq parameters,
        which override the endpoint's. Raises `psycopg.OperationalError`.
        """
        home, attempts = state, Attempts(state, replicas=replicas)
        with attempts.explaining():
            for attempt in tenacity.Retrying(**attempts.options):
                with attempt, (state := attempts.next_state()).gate.turn(attempts.remaining()) as turn:
                    with attempts.bounded_connect():
                        conn = cls._connect(**connect_options(state, options, Cursor))
                        conn._bind(state, options, replicas, home)
                        conn.wait(conn._arrive_gen(turn))
                    if state.role is None:
                        conn.wait(conn._learn_gen())
        return conn

    def go_to(self, replicas: Replicas | None) -> None:
        """Let what follows be served by `replicas`; None: by the endpoint that the connection was opened for.

        The connection to the other side is kept for the way back.

        Raises:
            psycopg.ProgrammingError: a transaction is open.
        """
        if (replicas is not None) is self._on_replicas:
            return
        self.wait(self._check_intrans_gen("endpoint"))
        if self._other_side is None:
            assert replicas is not None  # the first way is away
            self._other_side = type(self).open(replicas.first(), replicas=replicas, **self._options)
        self._exchange(self._other_side)
        self._on_replicas = not self._on_replicas

    def close(self) -> None:
        """Close the connection, and the one that is kept for `go_to`."""
        super().close()
        if self._other_side is not None:
            self._other_side.close()

    def revive(self) -> None:
        """Connect anew where the connection was lost and nothing is open on it; else do nothing."""
        self._retire()
        if self.broken and self.can_revive():
            self._replay(psycopg.OperationalError("the connection is closed"), _nothing)

    def _replay(self, first: BaseException, run: Callable[[], object]) -> None:
        """Connect anew and `run` again, as often as the policy allows and the rule says that it is safe."""
        attempts = Attempts(self.state, replicas=self._replicas, home=self._home, may_replay=self._may_replay, first=first)
        with attempts.explaining():
            for attempt in tenacity.Retrying(**attempts.options):
                with attempt, (state := attempts.next_state()).gate.turn(attempts.remaining()) as turn:
                    attempts.connecting = True
                    with attempts.bounded_connect():
                        donor: Connection[Any] = Connection._connect(**connect_options(state, self._options, Cursor))
                        with self.lock:
                            if (rest := self._adopt(donor, state)) is not None:
                                self.wait(rest)
                        self.wait(self._arrive_gen(turn))
                    turn.connected()
                    attempts.connecting = False
                    run()

    def wait(self, gen: PQGen[Any], *args: Any, **kwargs: Any) -> Any:
        """Like psycopg's; on a lost connection with nothing open on it, settings such as `autocommit` can still be changed."""
        if self.pgconn.status != OK and self.can_revive():
            return without_waiting(gen)
        self._sync_wait_cancelled = False
        try:
            result = super().wait(gen, *args, **kwargs)
        except psycopg.OperationalError as exc:
            if (passed := deadline_within(exc)) is not None:
                raise passed from None
            raise
        if self._sync_wait_cancelled:
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
            attempts = Attempts(self.state, first=unknown)
            for attempt in tenacity.Retrying(**attempts.options):
                with attempt, self.state.gate.turn(attempts.remaining()):
                    with psycopg.Connection.connect(**look_up_options(self.state, self._options)) as donor:
                        row = donor.execute(lookup.query.encode(), lookup.params or None).fetchone()
                    return self._judge_row(lookup, row)
        except (psycopg.Error, TimeoutError) as exc:
            return verdict_of_failure(exc)
        return Outcome.UNKNOWN

    def _try_cancel(self, *, timeout: float = 5.0) -> None:
        # Cancelling a COMMIT that waits for the synchronous replica would let it succeed without one.
        if not self._committing:
            super()._try_cancel(timeout=timeout)


def _nothing() -> None:
    pass
