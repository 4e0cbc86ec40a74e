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
Its private names that are used here are listed, with their signatures, in tests/ps_core/test_private_names.py.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
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
from ps_core._connection.cursors import Cursor, ServerBindingCursor, ServerCursor
from ps_core._connection.pipeline import PipelineMixin
from ps_core._message.commit import Outcome
from ps_core._registry import target_of
from ps_core._retry.attempts import Attempts
from ps_core._retry.deadline import bounded, connecting_until, deadline_within
from ps_core._retry.policy import ONCE, USUAL, RetryPolicy
from ps_core.context import leave_blocks_in_pool_worker
from ps_core.errors import CommitOutcomeUnknown, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from psycopg.abc import PQGen, PQGenConn
    from psycopg.rows import RowFactory, TupleRow

    from ps_core._endpoint import EndpointState
    from ps_core._message.commit import Lookup
    from ps_core.replicas import Replicas
    from ps_core.topology import Endpoint, Topology

__all__ = ["Connection"]


R = TypeVar("R")


class Pipeline(PipelineMixin, psycopg.Pipeline):
    """A `psycopg.Pipeline` in which each implicit transaction begins with its settings."""


class Connection(BaseConnection[Row], psycopg.Connection[Row]):
    """A `psycopg.Connection` that opens and bounds its transactions, and replaces what was lost.

    `connect` makes one, as psycopg's does; so does whatever takes a connection class, such as `psycopg_pool.ConnectionPool`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.server_cursor_factory = ServerCursor

    @classmethod
    def _connect_gen(cls, conninfo: str = "", **kwargs: Any) -> PQGenConn[Self]:
        return (yield from bounded(super()._connect_gen(conninfo, **kwargs)))  # `timeout` in early 3.2

    @overload  # type: ignore[override] # psycopg's takes any keyword with a str or int
    @classmethod
    def connect(
        cls,
        conninfo: str | Topology | Endpoint = "",
        *,
        to: Literal["primary", "replica", "direct"] = "primary",
        binding: Literal["client", "server"] | None = None,
        retry: RetryPolicy | None = None,
        row_factory: RowFactory[R],
        **options: Any,
    ) -> Connection[R]: ...

    @overload
    @classmethod
    def connect(
        cls,
        conninfo: str | Topology | Endpoint = "",
        *,
        to: Literal["primary", "replica", "direct"] = "primary",
        binding: Literal["client", "server"] | None = None,
        retry: RetryPolicy | None = None,
        row_factory: None = None,
        **options: Any,
    ) -> Connection[TupleRow]: ...

    @classmethod
    def connect(
        cls,
        conninfo: str | Topology | Endpoint = "",
        *,
        to: Literal["primary", "replica", "direct"] = "primary",
        binding: Literal["client", "server"] | None = None,
        retry: RetryPolicy | None = None,
        row_factory: Any = None,
        **options: Any,
    ) -> Connection[Any]:
        """Return a connection, as psycopg's `connect` does; `ps_core.connect` is this method.

        Args:
            conninfo: A role's URL (or "host=... user=..."), a `Topology`, or one `Endpoint`.
            to: Which endpoint of a URL or a `Topology` it goes to.
            binding: "server" lets the server bind parameters (and prepared statements be used, where `prepare_threshold` is
                set): BEGIN with its settings, and COMMIT in autocommit, then travel in messages of their own. None: as the
                target says (`binding`, `ps_binding`), by default the client.
            retry: The policy by which it is tried again; by default the topology's `retry_timeout` says how long.
            row_factory: As psycopg's; type checkers infer the rows from it.
            options: `psycopg.connect`'s, and with a URL the topology's settings (`bouncer`, `statement_timeout`, ...). A number
                as `connect_timeout` is psycopg's: seconds, at least 2, that bound the call, here all tries together.

        Raises:
            ConfigurationError: these settings cannot work together, or one of them cannot work at all.
            psycopg.OperationalError: no connection could be made.
        """
        if binding not in (None, "client", "server"):
            raise ConfigurationError(f"binding: write 'client' or 'server', not {binding!r}")
        if binding == "client":
            options.setdefault("cursor_factory", Cursor)
        elif binding == "server":
            options.setdefault("cursor_factory", ServerBindingCursor)
        within = time_to_connect(options)
        state, replicas, policy = target_of(conninfo, to, retry, options)
        return cls.open(state, replicas=replicas, policy=policy, within=within, row_factory=row_factory, **options)

    @classmethod
    def _connect(cls, **options: Any) -> Self:
        return super().connect(**options)

    @classmethod
    def dial(cls, state: EndpointState, options: dict[str, Any]) -> Self:
        """Connect to `state`'s endpoint, once, whatever other callers met there; `options` as in `open`.

        Until it is opened, a connection that is lost is not made anew.
        """
        conn = cls._connect(**connect_options(state, options, client=Cursor, server=ServerBindingCursor))
        conn._bind(state, options, None, state, ONCE, None)
        conn._keeps_state = True  # so that it is not made anew: the caller is doing that
        return conn

    @overload
    @classmethod
    def open(
        cls,
        state: EndpointState,
        *,
        replicas: Replicas | None = None,
        policy: RetryPolicy = USUAL,
        within: float | None = None,
        connector: Callable[[EndpointState], Connection[Any]] | None = None,
        row_factory: RowFactory[R],
        **options: Any,
    ) -> Connection[R]: ...

    @overload
    @classmethod
    def open(
        cls,
        state: EndpointState,
        *,
        replicas: Replicas | None = None,
        policy: RetryPolicy = USUAL,
        within: float | None = None,
        connector: Callable[[EndpointState], Connection[Any]] | None = None,
        row_factory: None = None,
        **options: Any,
    ) -> Connection[TupleRow]: ...

    @classmethod
    def open(
        cls,
        state: EndpointState,
        *,
        replicas: Replicas | None = None,
        policy: RetryPolicy = USUAL,
        within: float | None = None,
        connector: Callable[[EndpointState], Connection[Any]] | None = None,
        row_factory: Any = None,
        **options: Any,
    ) -> Connection[Any]:
        """Connect to `state`'s endpoint, trying again while it is down, as `policy` says, for `within` seconds at most.

        With `replicas`, of which `state` is one, the connection goes on with another endpoint where its own fails. `options` are
        `psycopg.Connection.connect`'s: `autocommit`, `row_factory`, `context`, `cursor_factory` and libpq parameters,
        which override the endpoint's. `connector` makes the connection of each try, later ones included, in their place: what
        `dial` returns, where it asks for a token that has a time to live.

        Raises:
            psycopg.OperationalError: the endpoint cannot be reached, or refuses.
        """
        leave_blocks_in_pool_worker()
        if row_factory is not None:
            options["row_factory"] = row_factory
        home, attempts = state, Attempts(state, policy=policy, within=within, replicas=replicas)
        with attempts.explaining():
            for attempt in tenacity.Retrying(**attempts.options):
                with attempt, (state := attempts.next_state()).gate.turn(attempts.remaining(), state.endpoint.name) as turn:
                    with attempts.bounded_connect():
                        conn = connector(state) if connector else cls.dial(state, options)
                        conn._bind(state, options, replicas, home, policy, connector)
                        with conn._finished_if_not_opened():
                            conn.wait(conn._arrive_gen(turn))
                    if state.role is None:
                        with conn._finished_if_not_opened():
                            conn.wait(conn._learn_gen())
        return conn

    def go_to(self, replicas: Replicas | None) -> None:
        """Let what follows be served by `replicas`; None: by the endpoint that the connection was opened for.

        The connection to the other side is kept for the way back.

        Raises:
            psycopg.ProgrammingError: a transaction is open.
        """
        self.go_home()
        if (replicas is not None) is self._on_replicas:
            return
        self.wait(self._check_intrans_gen("endpoint"))
        if self._other_side is None:
            assert replicas is not None  # the first way is away
            self._other_side = self._open_other_side(replicas.first(), replicas)
        self._on_replicas = not self._on_replicas
        self._cross(self._other_side)

    def stand_in(self) -> bool:
        """Let the primary answer what follows, READ ONLY, in the place of the replica that refused it, until the
        transaction ends, or `go_home`.

        Returns False where that is not possible: it is forbidden, the primary did already, this is no replica's connection, or
        more than the statement that was refused is in the open transaction.
        """
        replicas, fallback = self._replicas, self._may_stand_in()
        if replicas is None or fallback is None:
            return False
        self.rollback()  # nothing but the statement that was refused was in it
        if self._substitute is None:
            self._substitute = self._open_other_side(fallback, None)
        self.stands_in = True
        self._cross(self._substitute)
        replicas.report_connected(self)
        return True

    def go_home(self) -> None:
        """End what `stand_in` began."""
        if not self.stands_in:
            return
        self.stands_in = False
        self._cross(self._substitute)
        if self._replicas is not None and self._replicas.max_fallback is not None:
            substitute, self._substitute = self._substitute, None  # the share is of connections, not of those that are used
            substitute.close()

    def _open_other_side(self, state: EndpointState, replicas: Replicas | None) -> Any:
        opening = {"replicas": replicas, "policy": self._policy, "connector": self._connector}
        return type(self).open(state, **opening, **self._options)

    def _cross(self, other: Any) -> None:
        rest = self._exchange(other)
        if rest is not None:
            self.wait(rest)

    def close(self) -> None:
        """Close the connection, and the one that is kept for `go_to`."""
        super().close()
        for other in (self._other_side, self._substitute):
            if other is not None:
                other.close()

    def revive(self) -> None:
        """Connect anew where the connection was lost and nothing is open on it; else do nothing."""
        self._retire()
        if self.broken and self.can_revive():
            self._replay(psycopg.OperationalError("the connection is closed"), _nothing)

    def _replay(self, first: BaseException, run: Callable[[], object]) -> None:
        """Connect anew and `run` again, as often as the policy allows and the rule says that it is safe."""
        attempts = Attempts(
            self.state,
            policy=self._policy,
            replicas=self._replicas,
            home=self._home,
            may_replay=self._may_replay,
            first=first,
        )
        with attempts.explaining():
            for attempt in tenacity.Retrying(**attempts.options):
                with attempt, (state := attempts.next_state()).gate.turn(attempts.remaining(), state.endpoint.name) as turn:
                    attempts.connecting = True
                    with attempts.bounded_connect():
                        donor = self._connector(state) if self._connector else Connection.dial(state, self._options)
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
        context = self._begin_wait()
        if context.deadline is not None or connecting_until.get() is not None:
            gen = bounded(gen, self)  # the one place in which a deadline ends what is under way
        try:
            result = super().wait(gen, *args, **kwargs)
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

    def set_autocommit(self, value: bool) -> None:
        """Like psycopg's, which waits for nothing where nothing is open: Django calls this twice for each transaction."""
        with self.lock:
            if self.pgconn.transaction_status == IDLE and not self._pipeline:
                self._autocommit = bool(value)
            else:
                self.wait(self._set_autocommit_gen(value))

    def rollback(self) -> None:
        """Roll back. Where the connection was lost, the transaction went with it, and the next statement makes a new one."""
        if not (self._has_nothing_to_end() or self._forget_lost_transaction()):
            super().rollback()
        if self.stands_in:
            self.go_home()

    def commit(self) -> None:
        """Commit. Where the answer does not come, look up what became of it.

        Returns where the transaction is certainly committed.

        Raises:
            CommitOutcomeUnknown: nothing says whether it was committed.
            psycopg.Error: it was certainly not committed.
        """
        self._unsettled = ()
        try:
            super().commit()
        except CommitOutcomeUnknown as unknown:
            self._settle(unknown)
        if self.stands_in:
            self.go_home()

    @contextmanager
    def transaction(self, savepoint_name: str | None = None, force_rollback: bool = False) -> Iterator[psycopg.Transaction]:
        """Like psycopg's; its COMMIT is settled as in `commit`."""
        self._unsettled = ()
        try:
            with self._counting_blocks(), super().transaction(savepoint_name, force_rollback) as transaction:
                yield transaction
        except CommitOutcomeUnknown as unknown:
            self._settle(unknown)

    @contextmanager
    def pipeline(self) -> Iterator[psycopg.Pipeline]:
        """Like psycopg's. A connection that is lost in it can be used again afterwards."""
        self.revive()
        with self._unwedging():
            with self.lock:
                self._check_connection_ok()
                ours: Any = self._pipeline or Pipeline(self)
                self._pipeline = ours
            try:
                with super().pipeline() as pipeline:
                    yield pipeline
            finally:
                if (rest := ours.rest()) is not None:
                    with self.lock:
                        self.wait(rest)

    @contextmanager
    def _pipeline_nolock(self) -> Iterator[psycopg.Pipeline]:
        pipeline = self._pipeline = Pipeline(self, _no_lock=True)
        try:
            with pipeline:
                yield pipeline
        finally:
            self._pipeline = None
            if (rest := pipeline.rest()) is not None:
                self.wait(rest)

    def _settle(self, unknown: CommitOutcomeUnknown) -> None:
        settling, verdict = self._settle_gen(unknown), None
        with suppress(StopIteration):
            while True:
                # None begins it.
                verdict = self._look_up(settling.send(verdict), unknown)  # type: ignore[arg-type]

    def _look_up(self, lookup: Lookup, unknown: CommitOutcomeUnknown) -> Outcome:
        try:
            attempts = Attempts(self.state, policy=self._policy, first=unknown)
            for attempt in tenacity.Retrying(**attempts.options):
                with attempt:
                    with self.state.gate.turn(attempts.remaining()):
                        donor = self._connector(self.state) if self._connector else Connection.dial(self.state, self._options)
                    # Out of the turn: the barrier may take long, and nobody has to wait for it to connect.
                    # psycopg's own `wait` would cancel it when interrupted; this drops the connection.
                    asking = self._look_up_gen(donor, lookup, attempts.until)
                    return waiting.wait(asking, donor.pgconn.socket, interval=WAIT_INTERVAL)
        except (psycopg.Error, TimeoutError):
            pass
        return Outcome.UNKNOWN

    def _try_cancel(self, *, timeout: float = 5.0) -> None:
        # Cancelling a COMMIT that waits for the synchronous replica would let it succeed without one.
        if not self._may_be_committing():
            self._cancelling = True
            super()._try_cancel(timeout=timeout)


def _nothing() -> None:
    pass
