"""The dialects `postgresql+ps_http` and `postgresql+ps_http_async`, SQLAlchemy's psycopg dialect over HTTPS; and `http_batch`.

Over HTTPS no transaction stays open between two statements, while SQLAlchemy begins one with the first statement and commits it
later. So an engine of these dialects only reads: each statement is one request, READ ONLY. What writes is put together in a block
of `http_batch`, which is one request and one transaction.

Nothing is asked of a server before a statement needs it: a first SELECT is one request.
"""

from __future__ import annotations

import contextvars
import re
from dataclasses import dataclass, replace
from functools import cached_property, partial
from threading import get_ident
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self

import psycopg
import sqlalchemy as sa
from greenlet import GreenletExit, getcurrent, greenlet  # type: ignore[import-untyped]
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg, PGExecutionContext_psycopg
from sqlalchemy.engine.interfaces import ExecuteStyle
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.util import await_only, greenlet_spawn

from ps_core._notes import carry_notes
from ps_core.errors import ConfigurationError, not_supported
from ps_http import AsyncClient, Client, dbapi
from ps_http._adapting import Adapting
from ps_sqlalchemy.dialect import _carry_notes
from ps_sqlalchemy.engine import Engine as PSEngine
from ps_sqlalchemy.engine import root_of
from ps_sqlalchemy.url import endpoint_of, topology_of, url_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import TracebackType

    from sqlalchemy.sql.base import Executable

    from ps_core.topology import Endpoint, Topology
    from ps_http._answer import Raw
    from ps_http._plan import Work
    from ps_http.client import Batch
    from ps_sqlalchemy.url import To

__all__ = ["HttpBatch", "HttpPending", "PSDialectHttp", "PSDialectHttpAsync", "http_batch"]

# Also for a checkout that is not installed, where there are no entry points.
registry.register("postgresql.ps_http", "ps_sqlalchemy.http", "PSDialectHttp")
registry.register("postgresql.ps_http_async", "ps_sqlalchemy.http", "PSDialectHttpAsync")

_INSTEAD: Final = (
    "write `with ps_sqlalchemy.http_batch(engine) as batch:`, whose statements are one request and one transaction, and return"
    ' their results at its end; or make the engine by ps_sqlalchemy.create_engine(..., transport="websocket"), which is'
    " PostgreSQL itself over the same port"
)
_WRITES: Final = f"the statement may write, and an engine over HTTPS only reads: {_INSTEAD}"
_BEFORE: Final = (
    "a default of a column, a sequence or a listener takes a statement of its own before this one, which depends on its result:"
    " let the server compute it (server_default), or execute that one first"
)
_NO_TRANSACTION: Final = f"an engine over HTTPS has no transaction that stays open between requests: {_INSTEAD}"
_OF_CLIENT: Final = " (In SQLAlchemy, `client.batch()` is `ps_sqlalchemy.http_batch(engine)`.)"
_LEVELS: Final = ("AUTOCOMMIT", "READ COMMITTED", "READ UNCOMMITTED")
"""Those that a statement by itself can have: several have no snapshot in common."""
_WHERE: Final = frozenset({"user", "password", "host", "dbname"})
"""What `do_connect` and `connect_args` may change."""
_SHARED: Final = frozenset({"json_serializer", "json_deserializer", "native_inet_types", "insertmanyvalues_page_size"})
"""Options of an engine's dialect that hold for its batches, too."""
_ASK: Final = (
    "SELECT pg_catalog.version(), pg_catalog.current_schema(), pg_catalog.current_setting('default_transaction_isolation'),"
    " pg_catalog.current_setting('standard_conforming_strings')"
)


class _Cursor(dbapi.Cursor):
    """A cursor that reads; or one of a batch, which waits for its result until the batch is over."""

    connection: _Connection

    def execute(self, query: Any, params: Any = None, **options: Any) -> Self:
        batch = self.connection.of_batch
        if batch is None:
            try:
                return super().execute(query, params, **options)
            except psycopg.errors.ReadOnlySqlTransaction as exc:  # it looked like a read
                exc.args = (f"{exc}\n{_WRITES}",)
                raise
        self._begin()
        pending = batch.execute(query, params)
        _wait_for_end()
        self._take(pending.result, pending.result.rowcount)
        return self

    def executemany(self, query: Any, params_seq: Iterable[Any], **options: Any) -> None:
        batch = self.connection.of_batch
        if batch is None:
            return super().executemany(query, params_seq, **options)
        self._begin()
        pending = batch.executemany(query, params_seq)
        _wait_for_end()
        self._take(None, sum(max(one.result.rowcount, 0) for one in pending))
        return None

    async def _async_soft_close(self) -> None:
        """Nothing is open that SQLAlchemy's asyncio would have to close."""


class _Connection(dbapi.Connection):
    """A connection that only reads, or whose statements belong to a batch."""

    refusal = _WRITES
    of_batch: Batch | None = None
    """The batch that statements are for."""
    expected: object = None
    """What is being added to it."""

    def cursor(self, *_: Any, **__: Any) -> _Cursor:  # one of the server's (`stream_results`), too: the answer is there at once
        self._check()
        return _Cursor(self)

    def _work(self, query: Any, params: Any) -> Work:
        try:
            return super()._work(query, params)
        except psycopg.NotSupportedError as exc:
            if str(exc) == _WRITES:
                raise
            raise not_supported(f"{exc}{_OF_CLIENT}") from None


class _AwaitedClient(Client):
    """A client that waits for a request as SQLAlchemy does on an event loop."""

    def __init__(self, target: Any, *, to: str = "primary") -> None:
        super().__init__(target, to=to)
        self._awaited = AsyncClient(target, to=to)

    def close(self) -> None:
        await_only(self._awaited.close())

    def _do(self, work: Work) -> tuple[Raw, ...]:
        found: tuple[Raw, ...] = await_only(self._awaited._do(work))
        return found


@dataclass(frozen=True, slots=True)
class _Server:
    """What SQLAlchemy asks of a server when it first connects."""

    version: tuple[int, ...]
    schema: str | None
    isolation: str
    backslash_escapes: bool


class _Context(PGExecutionContext_psycopg):
    def _execute_scalar(self, stmt: Any, type_: Any, parameters: Any = None) -> NoReturn:
        raise not_supported(f"{_BEFORE} ({stmt})")


class PSDialectHttp(PGDialect_psycopg):
    """SQLAlchemy's `postgresql+psycopg` over HTTPS. It only reads, each statement by one request."""

    driver = "ps_http"
    supports_statement_cache = True
    execution_ctx_cls = _Context
    # As of PostgreSQL 17, the oldest that PlanetScale has; SQLAlchemy would ask the server for its version.
    supports_smallserial = True
    supports_identity_columns = True
    _supports_drop_index_concurrently = True
    _supports_jsonb_subscripting = True
    # Its own conversion by text: psycopg's needs the type's OID, which the server would be asked for.
    _has_native_hstore = False

    def __init__(self, ps_topology: Topology | None = None, ps_to: To = "primary", dbapi: Any = None, **kwargs: Any) -> None:
        self._ps_topology = ps_topology
        self._ps_to: To = ps_to
        self._ps_changed: tuple[dict[str, Any], Client] | None = None
        """The client of what a listener last changed."""
        kwargs["use_native_hstore"] = False
        super().__init__(dbapi=dbapi, **kwargs)  # type: ignore[no-untyped-call]

    @classmethod
    def import_dbapi(cls) -> Any:
        driver = ModuleType(psycopg.__name__, psycopg.__doc__)
        driver.__dict__.update(vars(psycopg), adapters=Adapting().adapters)
        return driver

    @classmethod
    def get_async_dialect_cls(cls, url: sa.URL) -> type[PSDialectHttpAsync]:
        return PSDialectHttpAsync

    @classmethod
    def get_pool_class(cls, url: sa.URL) -> Any:
        return sa.NullPool  # a connection is an object in this process: there is nothing to keep

    @classmethod
    def engine_created(cls, engine: sa.Engine) -> None:
        dialect: Any = engine.dialect
        if not sa.event.contains(engine, "engine_disposed", dialect._ps_close):  # for asyncio, this is called twice
            sa.event.listen(engine, "engine_disposed", dialect._ps_close)
            sa.event.listen(dialect, "handle_error", partial(_carry_notes))

    # --- connecting ---

    def create_connect_args(self, url: sa.URL) -> Any:
        if self._ps_topology is None:
            self._ps_topology, self._ps_to = topology_of(url.set(drivername="postgresql"))
        self._ps_client  # noqa: B018 - refuses what cannot work, before the first statement
        endpoint = endpoint_of(self._ps_topology, self._ps_to)
        return [], {name: getattr(endpoint, name) for name in _WHERE}

    @cached_property
    def _ps_client(self) -> Client:
        """What all connections share."""
        if self._ps_topology is None:
            raise ConfigurationError("the dialect has no URL: make an engine by sqlalchemy.create_engine")
        return self._ps_make_client(self._ps_topology, self._ps_to)

    def _ps_make_client(self, topology: Topology, to: To) -> Client:
        cls = _AwaitedClient if self.is_async else Client
        client = cls(endpoint_of(topology, to)) if to == "replica" else cls(topology, to=to)
        client._adapt().adapters = self._psycopg_adapters_map  # type: ignore[assignment]
        return client

    def connect(self, *cargs: Any, **cparams: Any) -> Any:
        """Return a connection; nothing is sent. `cparams` may lead elsewhere.

        Raises:
            ConfigurationError: they hold what the URL has to say.
        """
        unknown = cparams.keys() - _WHERE
        if unknown:
            names = ", ".join(sorted(unknown))
            raise ConfigurationError(
                f"connect_args, do_connect: {names}: over HTTPS these can be {', '.join(sorted(_WHERE))}: write the topology's"
                " settings as ps_... parameters of the URL"
            )
        assert self._ps_topology is not None
        usual = endpoint_of(self._ps_topology, self._ps_to)
        changed = {name: value for name, value in cparams.items() if value != getattr(usual, name)}
        if not changed:
            return _Connection(self._ps_client, autocommit=False)
        if self._ps_changed is None or self._ps_changed[0] != changed:
            if self._ps_changed is not None:
                self._ps_changed[1].close()
            self._ps_changed = changed, self._ps_make_client(_elsewhere(self._ps_topology, changed), self._ps_to)
        return _Connection(self._ps_changed[1], autocommit=False)

    def _ps_close(self, engine: sa.Engine) -> None:
        """Close what the connections' clients keep; they can still be used."""
        self._ps_client.close()
        if self._ps_changed is not None:
            self._ps_changed[1].close()
            self._ps_changed = None

    def on_connect(self) -> Any:
        return None  # there are no notices; the isolation level SQLAlchemy sets by itself

    def do_ping(self, dbapi_connection: Any) -> bool:
        return True  # nothing is held that could be lost

    def is_disconnect(self, e: Any, connection: Any, cursor: Any) -> bool:
        return False  # the next statement makes its own way

    # --- what the server is asked for when it is needed, and not before ---

    def initialize(self, connection: Any) -> None:
        """Ask nothing."""

    @cached_property
    def _ps_server(self) -> _Server:
        version, schema, isolation, strings = self._ps_client.execute(_ASK)[0]
        numbers = re.match(r"PostgreSQL (\d+)(?:\.(\d+))?", version)
        if numbers is None:
            raise ConfigurationError(f"no version of PostgreSQL: {version!r}")
        return _Server(
            version=tuple(int(number) for number in numbers.groups() if number is not None),
            schema=schema,
            isolation=isolation.upper(),
            backslash_escapes=strings == "off",
        )

    @cached_property
    def server_version_info(self) -> Any:  # type: ignore[override]
        return self._ps_server.version

    @cached_property
    def default_schema_name(self) -> Any:  # type: ignore[override]
        return self._ps_server.schema

    @cached_property
    def default_isolation_level(self) -> Any:  # type: ignore[override]
        return self._ps_server.isolation

    @cached_property
    def supports_virtual_generated_columns(self) -> Any:  # type: ignore[override]
        return self._ps_server.version >= (18,)

    @cached_property
    def _backslash_escapes(self) -> Any:  # type: ignore[override]
        return self._ps_server.backslash_escapes

    def do_execute(self, cursor: Any, statement: str, parameters: Any, context: Any = None) -> None:
        self._ps_check(cursor, context)
        cursor.execute(statement, parameters)

    def do_executemany(self, cursor: Any, statement: str, parameters: Any, context: Any = None) -> None:
        self._ps_check(cursor, context)
        cursor.executemany(statement, parameters)

    @staticmethod
    def _ps_check(cursor: Any, context: Any) -> None:
        """Refuse, before a batch is sent, what would execute something more when it has its result, which is too late."""
        connection = cursor.connection
        if context is None or not isinstance(connection, _Connection) or connection.of_batch is None:
            return
        if context.execute_style is ExecuteStyle.INSERTMANYVALUES:
            raise not_supported(
                "a list of parameters and RETURNING would be several statements, each after the result of the one before: write"
                " insert(...).values([...]), or execute each by itself"
            )
        if context.invoked_statement is not None and context.invoked_statement is not connection.expected:
            raise not_supported(_BEFORE)

    # --- transactions, of which there are none ---

    def get_isolation_level_values(self, dbapi_connection: Any) -> Any:
        return (*_LEVELS, "REPEATABLE READ", "SERIALIZABLE")

    def set_isolation_level(self, dbapi_connection: Any, level: str) -> None:
        if level not in _LEVELS:
            raise ConfigurationError(
                f"isolation_level: {level}: over HTTPS each statement is a transaction of its own, so that several cannot share"
                " one snapshot: write `with ps_sqlalchemy.http_batch(engine, isolation=...) as batch:`"
            )
        # In AUTOCOMMIT, too, the connection only reads: a tool that sets it to read is not to write by it.
        dbapi_connection.isolation_level = None if level == "AUTOCOMMIT" else level

    def reset_isolation_level(self, dbapi_conn: Any) -> None:
        self.set_isolation_level(dbapi_conn, self._on_connect_isolation_level or "AUTOCOMMIT")

    def get_isolation_level(self, dbapi_connection: Any) -> Any:
        return (dbapi_connection.isolation_level or self._ps_server.isolation).upper()

    def get_default_isolation_level(self, dbapi_conn: Any) -> Any:
        return self.default_isolation_level

    def do_savepoint(self, connection: Any, name: str) -> NoReturn:
        raise not_supported(f"SAVEPOINT: {_NO_TRANSACTION}")

    def do_begin_twophase(self, connection: Any, xid: Any) -> NoReturn:
        raise not_supported(f"two-phase commit: {_NO_TRANSACTION}")


class PSDialectHttpAsync(PSDialectHttp):
    """The same for asyncio."""

    is_async = True
    supports_statement_cache = True

    def get_driver_connection(self, connection: Any) -> Any:
        return connection


def _elsewhere(topology: Topology, changed: Mapping[str, Any]) -> Topology:
    """Return the same endpoints with another login, host or database."""

    def move(endpoint: Endpoint) -> Endpoint:
        user = changed.get("user", endpoint.user).partition("|")[0] + "".join(endpoint.user.partition("|")[1:])
        return replace(endpoint, **{**changed, "user": user})

    return replace(
        topology,
        primary=move(topology.primary),
        direct=move(topology.direct),
        replicas=tuple(map(move, topology.replicas)),
    )


# --- writing ---


def _wait_for_end() -> None:
    """Wait, in the middle of SQLAlchemy's execution of a statement, for the end of its batch."""
    parent = getcurrent().parent
    assert parent is not None
    parent.switch()


class HttpPending:
    """The result of a statement in a batch: there when the block is over."""

    def __init__(self) -> None:
        self._result: sa.CursorResult[Any] | None = None
        self._error: Exception | None = None

    @property
    def result(self) -> sa.CursorResult[Any]:
        """SQLAlchemy's result.

        Raises:
            RuntimeError: the batch was not sent yet, or failed.
            Exception: the batch is committed, and a listener, or a type that reads a key which the server made, raised this.
        """
        if self._error is not None:
            raise self._error
        if self._result is None:
            raise RuntimeError("the result is there when the block of the batch is over, and did not fail")
        return self._result


class HttpBatch:
    """Statements that are sent together at the end of the block; see `http_batch`."""

    def __init__(self, engine: sa.Engine, **modes: Any) -> None:
        self._engine = engine
        self._modes = modes
        self._running: list[tuple[greenlet, HttpPending]] = []
        self._inside: Any = None
        """The driver's connection, within the block."""

    def _begin(self) -> Self:
        if self._inside is not None:
            raise RuntimeError("this batch is not over: begin another one")
        self._connection = self._engine.connect()
        self._thread = get_ident()
        try:
            inside: Any = self._connection.connection.dbapi_connection
            self._batch: Batch = inside.batch(**self._modes)
            inside.of_batch = self._batch
            self._inside = inside
        except BaseException:
            self._connection.close()
            raise
        return self

    def execute(self, statement: Executable, parameters: Any = None) -> HttpPending:
        """Add a statement of SQLAlchemy's Core. Its result is there when the block is over.

        `parameters` are as of `Connection.execute`: a dictionary, or a list of several for one INSERT, UPDATE or DELETE each.

        Raises:
            sqlalchemy.exc.NotSupportedError: it controls transactions, needs a session, or would be several that need each other.
            sqlalchemy.exc.StatementError: it cannot be compiled, or a value cannot be adapted.
            RuntimeError: the block has not begun, or is over, or was begun by another thread.
        """
        if self._inside is None:
            raise RuntimeError("execute within the block: `with http_batch(engine) as batch:`")
        pending = HttpPending()
        self._check_thread()
        self._inside.expected = statement

        def run() -> None:
            pending._result = self._connection.execute(statement, parameters)

        one = greenlet(run)
        one.gr_context = contextvars.copy_context()
        one.switch()  # until the cursor has handed the statement to the batch
        self._running.append((one, pending))
        return pending

    def _end(self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None) -> None:
        connection = self._connection
        self._check_thread()
        try:
            try:
                self._batch.__exit__(exc_type, exc, traceback)
            except psycopg.Error as error:
                if len(self._running) == 1:
                    self._go_on(self._running[0][0], error)
                raise self._wrap(error) from error
            if exc_type is None:
                for one, pending in self._running:
                    try:
                        self._go_on(one)
                    except Exception as error:  # noqa: BLE001 - all is committed, and is not to seem undone
                        pending._error = error
                connection.commit()
        finally:
            connection.execution_options(skip_user_error_events=True)  # what is left was not executed
            for one, _ in self._running:
                if not one.dead:
                    self._go_on(one, GreenletExit())
            self._running.clear()
            self._inside.of_batch = None
            self._inside = None
            connection.close()

    def _check_thread(self) -> None:
        if get_ident() != self._thread:  # greenlets cannot be continued there: it has to be said before anything is sent
            raise RuntimeError("a batch begins, takes its statements and ends in one thread")

    @staticmethod
    def _go_on(one: greenlet, error: BaseException | None = None) -> None:
        """Let the execution of a statement go on, with its result, or with an error."""
        one.parent = getcurrent()
        if error is None:
            one.switch()
        else:
            one.throw(error)

    def _wrap(self, error: psycopg.Error) -> Exception:
        """Return an error as SQLAlchemy's. The server does not say which statement it is of."""
        dialect: Any = self._engine.dialect
        wrapped = sa.exc.DBAPIError.instance(None, None, error, psycopg.Error, hide_parameters=True, dialect=dialect)
        carry_notes(error, wrapped)
        return wrapped

    def __enter__(self) -> Self:
        return self._begin()

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None) -> None:
        self._end(exc_type, exc, traceback)

    async def __aenter__(self) -> Self:
        return await greenlet_spawn(self._begin)

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await greenlet_spawn(self._end, exc_type, exc, traceback)


def http_batch(
    engine: sa.Engine | AsyncEngine, *, isolation: str | None = None, read_only: bool = False, deferrable: bool = False
) -> HttpBatch:
    """Return a block whose statements are sent together at its end: one request over HTTPS, and one transaction.

    All of them take effect, or none; an exception in the block sends nothing. What a later statement needs of an earlier one's
    result cannot be had in it. With an engine for asyncio, write `async with`; `execute` is not awaited in it.

    Args:
        engine: An engine of `postgresql+ps_http`, or one of `ps_sqlalchemy.create_engine`, whose endpoints are then used.
        isolation: An isolation level of PostgreSQL's ("serializable", ...); by default the role's.
        read_only: Whether the transaction is READ ONLY.
        deferrable: Whether it is DEFERRABLE.

    Raises:
        ConfigurationError: the engine is none of this package's, or cannot be reached over HTTPS.
        sqlalchemy.exc.DBAPIError: at the end of the block, the server refuses something; its `orig` is psycopg's error. That is
            `ps_core.CommitOutcomeUnknown` where no answer tells what became of the transaction.
    """
    whole = engine.sync_engine if isinstance(engine, AsyncEngine) else engine
    if not isinstance(whole, sa.Engine):
        raise ConfigurationError(f"http_batch: write an engine, not a {type(whole).__name__}: a batch is its own transaction")
    if not isinstance(whole.dialect, PSDialectHttp):
        whole = _beside(whole)
    # What is not asked for here is as the engine's options say (`postgresql_readonly`).
    return HttpBatch(whole, isolation=isolation, read_only=read_only or None, deferrable=deferrable or None)


def _beside(engine: sa.Engine) -> sa.Engine:
    """Return an engine over HTTPS for the endpoints of one of `ps_sqlalchemy`, with its options."""
    root = root_of(engine)
    dialect: Any = root.dialect
    if not isinstance(root, PSEngine):
        raise ConfigurationError(
            "http_batch: write an engine of postgresql+ps_http://, or one of ps_sqlalchemy.create_engine on the primary"
        )
    found: sa.Engine | None = root.__dict__.get("_ps_http")
    if found is None:
        drivername = "postgresql+ps_http_async" if dialect.is_async else "postgresql+ps_http"
        arguments = {name: value for name, value in dialect.ps_arguments.items() if name in _SHARED}
        url = url_of(root.topology.primary, drivername)
        found = sa.create_engine(url, ps_topology=root.topology, hide_parameters=root.hide_parameters, **arguments)
        root.__dict__["_ps_http"] = found
        sa.event.listen(root, "engine_disposed", lambda _: found.dispose())
    # Of a transaction there, not of a batch.
    options = {name: value for name, value in engine.get_execution_options().items() if name != "isolation_level"}
    return found.execution_options(**options) if options else found
