"""The dialects `postgresql+ps` and `postgresql+ps_async`: SQLAlchemy's psycopg dialect over ps_core's connections.

Only the way to a DBAPI connection differs. `name` and `driver` stay "postgresql" and "psycopg": applications compare them.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from psycopg.pq import TransactionStatus
from psycopg.types import TypeInfo
from sqlalchemy import URL, event
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg, PGDialectAsync_psycopg
from sqlalchemy.util import await_only

from ps_core import AsyncConnection, Connection
from ps_core._notes import carry_notes
from ps_core._registry import policy_for, replicas_of, states_of
from ps_core.context import use_token
from ps_core.failures import Kind, classify
from ps_core.topology import Topology
from ps_sqlalchemy.pool import AsyncAdaptedQueuePool, QueuePool, max_fallback_of
from ps_sqlalchemy.transaction import note_commit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine
    from sqlalchemy.engine import ExceptionContext

    from ps_core import RetryPolicy
    from ps_core._endpoint import EndpointState
    from ps_core.failures import Failure
    from ps_core.replicas import Replicas

__all__ = ["READ_ONLY_ON_PRIMARY", "PSDialect", "PSDialectAsync", "falling_back"]

_TYPE: Final = "SELECT typname, oid, typarray FROM pg_catalog.pg_type WHERE oid OPERATOR(pg_catalog.=) pg_catalog.to_regtype(%s)"

READ_ONLY_ON_PRIMARY: Final = "primary"
"""A value of `postgresql_readonly` on an engine that was made from a URL alone: READ ONLY, and not on a replica."""


class Refusals:
    """The kinds of failures that a caller handles by asking the primary."""

    def __init__(self, kinds: tuple[Kind, ...]) -> None:
        self.kinds = kinds
        self.error: BaseException | None = None
        """The one that was met."""
        self.failure: Failure | None = None
        """What it was."""


_falls_back: Final[ContextVar[Refusals | None]] = ContextVar("ps_sqlalchemy_falls_back", default=None)


@contextmanager
def falling_back(kinds: tuple[Kind, ...]) -> Iterator[Refusals]:
    """Within the block, a refusal of these kinds is handled: `handle_error` is for failures that users see."""
    outer = _falls_back.set(refusals := Refusals(kinds))
    try:
        yield refusals
    finally:
        _falls_back.reset(outer)


class PSDialect(PGDialect_psycopg):
    """SQLAlchemy's `postgresql+psycopg` whose connections open, bound and heal their transactions."""

    supports_statement_cache = True

    def __init__(self, ps_state: EndpointState | None = None, ps_policy: RetryPolicy | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)  # type: ignore[no-untyped-call]
        self.ps_state = ps_state
        """The endpoint that connections go to; None until the URL is seen."""
        self.ps_replicas: Replicas | None = None
        """Where connections that are read-only go, on an engine that was made from a URL alone."""
        self.ps_policy = ps_policy
        """When connections are tried again; None until the URL is seen."""

    @classmethod
    def get_async_dialect_cls(cls, url: URL) -> type[PSDialectAsync]:
        return PSDialectAsync

    @classmethod
    def get_pool_class(cls, url: URL) -> Any:
        return QueuePool

    @classmethod
    def engine_created(cls, engine: Engine) -> None:
        dialect: Any = engine.dialect
        event.listen(dialect, "handle_error", _carry_notes)
        if dialect.ps_replicas is not None and (bound := max_fallback_of(dialect._ps_fallback, engine)) is not None:
            dialect.ps_replicas = dialect.ps_replicas.limited_to(bound)

    def create_connect_args(self, url: URL) -> Any:
        # The state says where to connect. What stays here are the options that are psycopg's own (adapters, client_encoding).
        if self.ps_state is None:
            topology = Topology.from_url(url.render_as_string(hide_password=False))
            self.ps_replicas = replicas_of(topology)
            self.ps_state = states_of(topology)[0]
            self.ps_policy = policy_for(topology.retry_timeout)
            self._ps_fallback = topology.replica_fallback
        return [], super().create_connect_args(URL.create(url.drivername))[1]  # type: ignore[no-untyped-call]

    def connect(self, *, ps_replicas: Replicas | None = None, **cparams: Any) -> Any:
        return Connection.open(**self._ps_target(ps_replicas), **cparams)

    def _ps_target(self, replicas: Replicas | None) -> dict[str, Any]:
        state = self.ps_state if replicas is None else replicas.first()
        return {"state": state, "replicas": replicas, "policy": self.ps_policy}

    def initialize(self, connection: Any) -> None:
        # What the first connection is asked is read in autocommit: there, a lost connection does not fail it.
        dbapi_connection = connection.connection.dbapi_connection
        before = dbapi_connection.autocommit
        self._do_autocommit(dbapi_connection, True)  # type: ignore[no-untyped-call]
        try:
            # Also with `server_side_cursors=True`: such a cursor needs a transaction. And what is asked here is the same on a
            # replica that is behind what the caller has seen.
            with use_token(None):
                super().initialize(connection.execution_options(stream_results=False))  # type: ignore[no-untyped-call]
        finally:
            self._do_autocommit(dbapi_connection, before)  # type: ignore[no-untyped-call]

    def get_default_isolation_level(self, dbapi_conn: Any) -> Any:
        # In autocommit the server does not tell of the level that was just set for transactions.
        level = self._on_connect_isolation_level
        return super().get_default_isolation_level(dbapi_conn) if level in (None, "AUTOCOMMIT") else level  # type: ignore[no-untyped-call]

    def _type_info_fetch(self, connection: Any, name: str) -> TypeInfo | None:
        # psycopg's `TypeInfo.fetch` asks in a transaction.
        row = connection.exec_driver_sql(_TYPE, (name,)).fetchone()
        return None if row is None else TypeInfo(*row)

    def set_readonly(self, connection: Any, value: Any) -> None:
        # On an engine that was made from a URL alone, this is how an application says that it only reads.
        if self.ps_replicas is not None:
            self._ps_go_to(connection, self.ps_replicas if value and value != READ_ONLY_ON_PRIMARY else None)
        super().set_readonly(connection, bool(value))  # type: ignore[no-untyped-call]

    def _ps_go_to(self, connection: Any, replicas: Replicas | None) -> None:
        connection.go_to(replicas)

    def do_commit(self, dbapi_connection: Any) -> None:
        super().do_commit(dbapi_connection)  # type: ignore[no-untyped-call]
        note_commit()

    def is_disconnect(self, e: Any, connection: Any, cursor: Any) -> bool:
        # A connection that was lost with nothing open on it makes a new one by itself when it is next used. Where it was refused
        # for what it was opened with, such as a password that has changed, the pool opens another one (`do_connect`).
        driver = getattr(connection, "driver_connection", connection)
        if isinstance(driver, Connection | AsyncConnection) and driver.can_revive():
            return classify(e).kind is Kind.CONFIGURATION
        return bool(super().is_disconnect(e, connection, cursor))  # type: ignore[no-untyped-call]

    # --- what a replica refuses and the primary then does is no failure ---

    @property
    def _has_events(self) -> bool:
        refusals = _falls_back.get()
        return self.__dict__.get("_has_events", False) and (refusals is None or refusals.error is None)

    @_has_events.setter
    def _has_events(self, value: bool) -> None:
        self.__dict__["_has_events"] = value

    def do_execute(self, cursor: Any, statement: str, parameters: Any, context: Any = None) -> None:
        try:
            cursor.execute(statement, parameters)
        except self.loaded_dbapi.Error as exc:
            _note_refusal(exc, context)
            raise

    def do_executemany(self, cursor: Any, statement: Any, parameters: Any, context: Any = None) -> None:
        try:
            cursor.executemany(statement, parameters)
        except self.loaded_dbapi.Error as exc:
            _note_refusal(exc, context)
            raise

    def do_execute_no_params(self, cursor: Any, statement: str, context: Any = None) -> None:
        try:
            cursor.execute(statement)
        except self.loaded_dbapi.Error as exc:
            _note_refusal(exc, context)
            raise


def _carry_notes(context: ExceptionContext) -> None:
    if context.sqlalchemy_exception is not None:
        carry_notes(context.original_exception, context.sqlalchemy_exception)


def _note_refusal(exc: Exception, context: Any) -> None:
    refusals = _falls_back.get()
    if context is None or refusals is None or (failure := classify(exc)).kind not in refusals.kinds:
        return
    driver = context.root_connection.connection.driver_connection
    if failure.kind is Kind.RECOVERY_CONFLICT and driver.info.transaction_status != TransactionStatus.IDLE:
        return  # a transaction with a snapshot of its own: the primary cannot go on with that
    refusals.error, refusals.failure = exc, failure


class PSDialectAsync(PSDialect, PGDialectAsync_psycopg):
    """The same for asyncio."""

    supports_statement_cache = True

    @classmethod
    def get_pool_class(cls, url: URL) -> Any:
        return AsyncAdaptedQueuePool

    def connect(self, *, ps_replicas: Replicas | None = None, **cparams: Any) -> Any:
        opening = partial(AsyncConnection.open, **self._ps_target(ps_replicas))
        return self.loaded_dbapi.connect(async_creator_fn=opening, **cparams)

    def _ps_go_to(self, connection: Any, replicas: Replicas | None) -> None:
        await_only(connection.driver_connection.go_to(replicas))
