"""The dialects `postgresql+ps` and `postgresql+ps_async`: SQLAlchemy's psycopg dialect over ps_core's connections.

Only the way to a DBAPI connection differs. `name` and `driver` stay "postgresql" and "psycopg": applications compare them.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from contextvars import ContextVar
from copy import copy
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import TransactionStatus
from psycopg.types import TypeInfo
from sqlalchemy import URL, event
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg, PGDialectAsync_psycopg, PsycopgAdaptDBAPI
from sqlalchemy.util import await_only, greenlet_spawn, immutabledict

from ps_core import AsyncConnection, Connection
from ps_core._connection.cursors import AsyncCursor, Cursor
from ps_core._notes import carry_notes
from ps_core._registry import policy_for, replicas_of, states_of
from ps_core._retry.attempts import NotOfEndpoint
from ps_core.errors import ConfigurationError, UnknownSetting
from ps_core.events import emit_fallback
from ps_core.failures import READ_FOR_PRIMARY, Kind, classify
from ps_sqlalchemy._falling_back import falls_back
from ps_sqlalchemy.engine import READ_ONLY_ON_PRIMARY, adopt, root_of
from ps_sqlalchemy.engine import Engine as PSEngine
from ps_sqlalchemy.pool import AsyncAdaptedQueuePool, QueuePool
from ps_sqlalchemy.transaction import note_commit
from ps_sqlalchemy.url import endpoint_of, topology_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from sqlalchemy import Engine
    from sqlalchemy.engine import ExceptionContext

    from ps_core import RetryPolicy
    from ps_core._endpoint import EndpointState
    from ps_core.replicas import Replicas
    from ps_core.topology import Topology
    from ps_sqlalchemy.engine import Sides
    from ps_sqlalchemy.url import To

__all__ = ["PSDialect", "PSDialectAsync"]

_TYPE: Final = "SELECT typname, oid, typarray FROM pg_catalog.pg_type WHERE oid OPERATOR(pg_catalog.=) pg_catalog.to_regtype(%s)"


_WHERE: Final = ("host", "port", "user", "password", "dbname")
_ELSEWHERE: Final = frozenset({"host", "hostaddr", "port"})
"""What a listener changes so that its connection leads to another server, whose failure says nothing of the endpoint."""


class _Try:
    """A connection that is being made, while `do_connect` is asked: what a listener connects is for its endpoint alone."""

    def __init__(self, topology: Topology | None, state: EndpointState) -> None:
        self.topology, self.state = topology, state
        self.error: BaseException | None = None
        """What the endpoint itself was met with."""


_trying: Final[ContextVar[_Try | None]] = ContextVar("ps_sqlalchemy_trying", default=None)


def _options(state: EndpointState, cargs: tuple[Any, ...], cparams: dict[str, Any]) -> dict[str, Any]:
    """Return what `cargs` and `cparams` say otherwise than the endpoint does."""
    given = {**conninfo_to_dict(cargs[0] if cargs else ""), **cparams}
    usual = state.endpoint.parameters()
    left_out = {name: None for name in _WHERE if name in usual and name not in given}
    return left_out | {name: value for name, value in given.items() if name not in usual or usual[name] != value}


def _check_ours(connection: Any) -> Any:
    """Return the driver's connection inside of what SQLAlchemy has of it.

    Raises:
        ConfigurationError: it is none of ours.
    """
    driver = getattr(connection, "driver_connection", connection)
    if not isinstance(driver, Connection | AsyncConnection):
        kind = f"{type(driver).__module__}.{type(driver).__qualname__}"
        raise ConfigurationError(
            f"do_connect, creator: a {kind} would run without limits, and nothing would heal it: return"
            " dialect.connect(*cargs, **cparams), or change cparams and return nothing"
        )
    return driver


class PSDialect(PGDialect_psycopg):
    """SQLAlchemy's `postgresql+psycopg` whose connections open, bound and heal their transactions.

    `ps_to` names the endpoints of `ps_topology` that connections go to; what an engine is made of otherwise, SQLAlchemy says.
    """

    supports_statement_cache = True

    def __init__(
        self,
        ps_topology: Topology | None = None,
        ps_to: To = "primary",
        ps_policy: RetryPolicy | None = None,
        ps_sides: Sides | None = None,
        dbapi: Any = None,
        **kwargs: Any,
    ) -> None:
        self.ps_arguments = kwargs
        """What else the dialect was made with."""
        super().__init__(dbapi=None if dbapi is None else self._ps_driver(dbapi), **kwargs)  # type: ignore[no-untyped-call]
        self.ps_topology = ps_topology
        """The endpoints; None until the URL is seen."""
        self.ps_to = ps_to
        self.ps_policy: Any = ps_policy
        """When connections are tried again; None until the URL is seen."""
        self.ps_sides = ps_sides
        """What makes the engines beside this one's; None: they are made like it."""
        self.ps_replicas: Replicas | None = None
        """The endpoints, where connections go to replicas."""
        self.ps_goes_to: Replicas | None = None
        """Where connections that are read-only go, on an engine that was made from a URL alone."""
        self.ps_connect_args: dict[str, Any] = {}
        """What `connect_args` says."""
        self.ps_heard_by: PSDialect | None = None
        """The dialect whose listeners get this one's events, too."""

    def _ps_driver(self, dbapi: Any) -> Any:
        """Return the driver's module, whose `connect` makes connections of ours; another one (`module=`) as it is."""
        if dbapi is not psycopg:
            return dbapi
        driver = ModuleType(dbapi.__name__, dbapi.__doc__)
        driver.__dict__.update(vars(dbapi), connect=self.ps_connect)
        return driver

    @classmethod
    def get_async_dialect_cls(cls, url: URL) -> type[PSDialectAsync]:
        return PSDialectAsync

    @classmethod
    def get_pool_class(cls, url: URL) -> Any:
        return QueuePool

    @classmethod
    def engine_created(cls, engine: Engine) -> None:
        dialect: Any = engine.dialect
        if dialect.ps_to == "primary" and not isinstance(engine, PSEngine):  # for asyncio, this is called twice
            # A function of its own for each: SQLAlchemy's registry goes by ids, which the next dialect may have again.
            event.listen(dialect, "handle_error", partial(_carry_notes))
            adopt(engine)

    def ps_join(self, primary: PSDialect) -> None:
        """Pass this dialect's events to what listens to the primary's."""
        self.__class__ = _AsyncBeside if self.is_async else _Beside
        self.__dict__.pop("dispatch", None)
        self.dispatch = self.dispatch._join(primary.dispatch)

    # --- connecting ---

    @property
    def ps_state(self) -> EndpointState:
        """The endpoint that the next connection goes to."""
        assert self.ps_topology is not None
        if self.ps_replicas is not None:
            return self.ps_replicas.first()
        primary, _, direct = states_of(self.ps_topology)
        return direct if self.ps_to == "direct" else primary

    def create_connect_args(self, url: URL) -> Any:
        if self.ps_topology is None:
            self.ps_topology, self.ps_to = topology_of(url)
            self.ps_policy = policy_for(self.ps_topology.retry_timeout)
            self.ps_goes_to = replicas_of(self.ps_topology) if self.ps_to == "primary" else None
        if self.ps_to == "replica":
            self.ps_replicas = replicas_of(self.ps_topology)
        return [], {**endpoint_of(self.ps_topology, self.ps_to).parameters(), **self._ps_options()}

    def _ps_options(self) -> dict[str, Any]:
        """Return the options that are psycopg's own (adapters, client_encoding)."""
        options: dict[str, Any] = super().create_connect_args(URL.create("postgresql"))[1]  # type: ignore[no-untyped-call]
        return options

    def ps_open(self, connect_args: dict[str, Any], record: Any) -> Any:
        """Return a connection for a pool: what SQLAlchemy's own `creator` does, asking `do_connect` for each one that is made."""
        connector = partial(self._ps_connector, connect_args, record)
        options = {**self._ps_options(), **connect_args}
        return Connection.open(self.ps_state, replicas=self.ps_replicas, policy=self.ps_policy, connector=connector, **options)

    def _ps_connector(self, connect_args: dict[str, Any], record: Any, state: EndpointState) -> Any:
        return _check_ours(self._ps_ask(connect_args, record, state))

    def _ps_ask(self, connect_args: dict[str, Any], record: Any, state: EndpointState) -> Any:
        """Connect to an endpoint, once, as the listeners of `do_connect` want it."""
        if state.on_primary and self.ps_heard_by is not None:  # in the replica's place, as the primary's engine connects
            connect_args = self.ps_heard_by.ps_connect_args
        cargs: list[Any] = []
        cparams = {**state.endpoint.parameters(), **self._ps_options(), **connect_args}
        reset = _trying.set(trying := _Try(self.ps_topology, state))
        try:
            for listener in self.dispatch.do_connect if self._has_events else ():
                connection = listener(self, record, cargs, cparams)
                if connection is not None:
                    return connection
            return self.connect(*cargs, **cparams)
        except Exception as exc:
            if exc is trying.error:
                raise
            raise NotOfEndpoint(exc) from exc  # it is the listener's: no other try would help, nor is the endpoint down
        finally:
            _trying.reset(reset)

    def ps_connect(self, *cargs: Any, **cparams: Any) -> Any:
        """Return a connection to where `cparams` lead: what `dialect.connect` and `dialect.dbapi.connect` are here."""
        trying = _trying.get()
        if trying is None or trying.topology is not self.ps_topology:
            state = self.ps_state
            return self._ps_open(state, **_options(state, cargs, cparams))
        options = _options(trying.state, cargs, cparams)
        try:
            return self._ps_dial(trying.state, options)
        except Exception as exc:
            if not _ELSEWHERE & options.keys():
                trying.error = exc
            raise

    def _ps_open(self, state: EndpointState, **options: Any) -> Any:
        return Connection.open(state, policy=self.ps_policy, **options)

    def _ps_dial(self, state: EndpointState, options: dict[str, Any]) -> Any:
        return Connection.dial(state, options)

    def on_connect(self) -> Any:
        then = super().on_connect()  # type: ignore[no-untyped-call]

        def check(connection: Any) -> None:
            _check_ours(connection)
            then(connection)

        return check

    def initialize(self, connection: Any) -> None:
        # What the first connection is asked is read in autocommit, by cursors of ours: there, a lost connection does not fail it.
        dbapi_connection = connection.connection.dbapi_connection
        driver = connection.connection.driver_connection
        autocommit, cursor_factory = dbapi_connection.autocommit, driver.cursor_factory
        idle = driver.info.transaction_status == TransactionStatus.IDLE  # a listener may have begun a transaction on it
        if idle:
            self._do_autocommit(dbapi_connection, True)  # type: ignore[no-untyped-call]
        driver.cursor_factory = AsyncCursor if self.is_async else Cursor
        if self.server_side_cursors:
            connection = connection.execution_options(stream_results=False)  # such a cursor needs a transaction
        try:
            with driver.asking_anywhere():
                super().initialize(connection)  # type: ignore[no-untyped-call]
        finally:
            driver.cursor_factory = cursor_factory
            if idle:
                self._do_autocommit(dbapi_connection, autocommit)  # type: ignore[no-untyped-call]

    def set_engine_execution_options(self, engine: Any, opts: Mapping[str, Any]) -> None:
        _check_execution_options(opts)
        # As SQLAlchemy's; but what is set on the primary's engine does not set it on those beside it, which have it, or another.
        names = set(self.connection_characteristics).intersection(opts)
        if not names:
            return
        characteristics, own = immutabledict({name: opts[name] for name in names}), root_of(engine)

        @event.listens_for(engine, "engine_connect")
        def set_connection_characteristics(connection: Any) -> None:
            if root_of(connection.engine) is own:
                self._set_connection_characteristics(connection, characteristics)  # type: ignore[no-untyped-call]

    def set_connection_execution_options(self, connection: Any, opts: Mapping[str, Any]) -> None:
        _check_execution_options(opts)
        super().set_connection_execution_options(connection, opts)

    def get_isolation_level(self, dbapi_connection: Any) -> Any:
        with getattr(dbapi_connection, "driver_connection", dbapi_connection).asking_anywhere():
            return super().get_isolation_level(dbapi_connection)  # type: ignore[no-untyped-call]

    def get_default_isolation_level(self, dbapi_conn: Any) -> Any:
        # In autocommit the server does not tell of the level that was just set for transactions.
        level = self._on_connect_isolation_level
        return super().get_default_isolation_level(dbapi_conn) if level in (None, "AUTOCOMMIT") else level  # type: ignore[no-untyped-call]

    def _type_info_fetch(self, connection: Any, name: str) -> TypeInfo | None:
        # psycopg's `TypeInfo.fetch` asks in a transaction.
        row = self._ps_fetchone(connection.connection.driver_connection, _TYPE, (name,))
        return None if row is None else TypeInfo(*row)

    def _ps_fetchone(self, driver: Any, statement: str, parameters: tuple[Any, ...]) -> Any:
        return driver.execute(statement, parameters).fetchone()

    def set_readonly(self, connection: Any, value: Any) -> None:
        # On an engine that was made from a URL alone, this is how an application says that it only reads.
        if self.ps_goes_to is not None:
            driver = getattr(connection, "driver_connection", connection)
            goes = bool(value) and value != READ_ONLY_ON_PRIMARY
            self._ps_wait(driver.go_to(self.ps_goes_to if goes else None))
        super().set_readonly(connection, bool(value))  # type: ignore[no-untyped-call]

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
        refusals = falls_back.get()
        if refusals is not None and refusals.error is not None:
            return False
        # What listens to `sa.Engine` is noted on SQLAlchemy's own class.
        heard = self.__dict__.get("_has_events", False) or super()._has_events
        return heard or (self.ps_heard_by is not None and self.ps_heard_by._has_events)

    @_has_events.setter
    def _has_events(self, value: bool) -> None:
        self.__dict__["_has_events"] = value

    def do_execute(self, cursor: Any, statement: str, parameters: Any, context: Any = None) -> None:
        try:
            cursor.execute(statement, parameters)
        except self.loaded_dbapi.Error as exc:
            with self._ps_on_primary(exc, cursor, statement, parameters, context):
                cursor.execute(statement, parameters)

    def do_executemany(self, cursor: Any, statement: Any, parameters: Any, context: Any = None) -> None:
        try:
            cursor.executemany(statement, parameters)
        except self.loaded_dbapi.Error as exc:
            with self._ps_on_primary(exc, cursor, statement, parameters, context):
                cursor.executemany(statement, parameters)

    def do_execute_no_params(self, cursor: Any, statement: str, context: Any = None) -> None:
        try:
            cursor.execute(statement)
        except self.loaded_dbapi.Error as exc:
            with self._ps_on_primary(exc, cursor, statement, (), context):
                cursor.execute(statement)

    @contextmanager
    def _ps_on_primary(self, exc: Exception, cursor: Any, statement: str, parameters: Any, context: Any) -> Iterator[None]:
        """Let the primary answer, READ ONLY, what the replica of this connection could not, until the transaction ends.

        Raises:
            exc: it is none of that, or the caller does the same in a better way, and is told.
        """
        _hide_values(exc, context)
        failure = classify(exc)
        refusals = falls_back.get()
        if refusals is not None and not refusals.handled:
            refusals = None
        kinds = READ_FOR_PRIMARY if refusals is None else refusals.kinds
        if context is None or failure.kind not in kinds:
            raise exc
        dbapi_connection = context.root_connection.connection.dbapi_connection
        driver = getattr(dbapi_connection, "driver_connection", dbapi_connection)
        if failure.kind is Kind.RECOVERY_CONFLICT and driver.info.transaction_status != TransactionStatus.IDLE:
            raise exc  # a transaction with a snapshot of its own: the primary cannot go on with that
        if refusals is not None:
            refusals.error, refusals.failure = exc, failure
            connection = context.root_connection
            if connection._has_events or connection.engine._has_events:
                # What listens has heard of its beginning, and hears no error.
                heard = (connection, cursor, statement, parameters, context, context.executemany)
                connection.dispatch.after_cursor_execute(*heard)
            raise exc
        endpoint = driver.state.endpoint.name
        if not self._ps_wait(driver.stand_in()):
            raise exc
        emit_fallback(endpoint, failure)
        try:
            yield
        except self.loaded_dbapi.Error as error:
            _hide_values(error, context)
            raise
        finally:
            if driver.autocommit:
                self._ps_wait(driver.go_home())

    def _ps_wait(self, result: Any) -> Any:
        """Return the result of a method of the driver's connection."""
        return result


_QUOTED: Final = re.compile(r"\n\S+ \d+: [^\n]*\n *\^")
"""The line of the statement that libpq quotes: "LINE 1: ...", in the language of the process."""


def _check_execution_options(options: Iterable[str]) -> None:
    """Refuse those of ours: only a session hears them, from a statement or from `execute()`."""
    for name in options:
        if str(name).startswith("ps_"):
            raise UnknownSetting(
                f"{name} is no option of an engine or a connection: write `with limits(...)`, `with using_primary()` or"
                f" `with using_replica()`, or give it to a session's execute()"
            )


def _hide_values(error: Exception, context: Any) -> None:
    """Take the quoted line out of an error under `hide_parameters=True`: the client binds, so that values are in the text."""
    if context is not None and context.engine.hide_parameters and error.args:
        error.args = (_QUOTED.sub("", str(error.args[0])), *error.args[1:])


def _carry_notes(context: ExceptionContext) -> None:
    if context.sqlalchemy_exception is not None:
        carry_notes(context.original_exception, context.sqlalchemy_exception)


class PSDialectAsync(PSDialect, PGDialectAsync_psycopg):
    """The same for asyncio."""

    supports_statement_cache = True

    @classmethod
    def get_pool_class(cls, url: URL) -> Any:
        return AsyncAdaptedQueuePool

    def _ps_driver(self, dbapi: Any) -> Any:
        if type(dbapi) is not PsycopgAdaptDBAPI:
            return dbapi
        driver = copy(dbapi)
        driver.connect = self.ps_connect  # type: ignore[method-assign]
        return driver

    def _ps_adapted(self, opening: Any) -> Any:
        connect: Any = PsycopgAdaptDBAPI.connect  # the module's own is replaced
        return connect(self.loaded_dbapi, async_creator_fn=lambda: opening)

    def ps_open(self, connect_args: dict[str, Any], record: Any) -> Any:
        async def connector(state: EndpointState) -> Any:
            # Listeners, and what they call, are not asyncio's.
            return await greenlet_spawn(self._ps_connector, connect_args, record, state)

        options = {**self._ps_options(), **connect_args}
        return self._ps_open(self.ps_state, replicas=self.ps_replicas, connector=connector, **options)

    def ps_connect(self, *cargs: Any, **cparams: Any) -> Any:
        if (creator := cparams.pop("async_creator_fn", None)) is not None:  # create_async_engine(async_creator=...)
            return self._ps_adapted(creator(*cargs, **cparams))
        return super().ps_connect(*cargs, **cparams)

    def _ps_open(self, state: EndpointState, **options: Any) -> Any:
        return self._ps_adapted(AsyncConnection.open(state, policy=self.ps_policy, **options))

    def _ps_dial(self, state: EndpointState, options: dict[str, Any]) -> Any:
        return self._ps_adapted(AsyncConnection.dial(state, options))

    def _ps_fetchone(self, driver: Any, statement: str, parameters: tuple[Any, ...]) -> Any:
        return await_only(await_only(driver.execute(statement, parameters)).fetchone())

    def _ps_wait(self, result: Any) -> Any:
        return await_only(result)


class _Beside(PSDialect):
    """The dialect of an engine beside the primary's, whose listeners, those of the classes among them, get its events."""

    _sa_propagate_class_events = False
    supports_statement_cache = True


class _AsyncBeside(PSDialectAsync):
    """The same for asyncio."""

    _sa_propagate_class_events = False
    supports_statement_cache = True
