"""Django's PostgreSQL backend over ps_core's connection. Each override says why it is there."""

from __future__ import annotations

import os
import sys
import time
from contextlib import ExitStack, closing, contextmanager
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import psycopg
from django.db import DatabaseError, Error, connections
from django.db.backends.base.base import NO_DB_ALIAS
from django.db.backends.postgresql import base, client, creation, schema
from django.db.backends.utils import CursorWrapper
from django.db.utils import DatabaseErrorWrapper
from django.utils.functional import cached_property
from psycopg import pq

from ps_core import Connection as PSConnection
from ps_core import conninfo
from ps_core._connection.base import must_carry
from ps_core._connection.cursors import Cursor as PSCursor
from ps_core._connection.cursors import ServerBindingCursor as PSServerBindingCursor
from ps_core._message.statement import analyse
from ps_core._notes import carry_notes
from ps_core._retry.deadline import GRACE
from ps_core._websocket import VARIABLES
from ps_core.context import block, current, remaining
from ps_core.errors import DeadlineExceeded
from ps_core.events import emit_fallback
from ps_core.failures import FOR_PRIMARY, READ_FOR_PRIMARY, Kind, classify
from ps_django import path, tenants
from ps_django.config import endpoint_of, policy_of, replicas_of_alias, state_of_alias
from ps_django.long_transactions import LongTransactions
from ps_django.transaction import in_block_of_request, in_transaction, is_within_request, own_blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ps_core._endpoint import EndpointState
    from ps_django.path import PathDecision

__all__ = ["DatabaseWrapper"]

T = TypeVar("T")

_WATCH: Final = path.watch
_MODULES: Final = sys.modules


class Cursor(base.CursorMixin, PSCursor[Any]):
    """Django's cursor (with `callproc`), over ours."""

    # Django's own takes `interval '%s days'`, and applications write that.
    _quotes_hold_values = True
    _query_cls = base.Cursor._query_cls  # type: ignore[attr-defined] # bare literals, as Django's own cursor writes them


class ServerBindingCursor(base.CursorMixin, PSServerBindingCursor[Any]):
    """The same for `OPTIONS["server_side_binding"]`."""


_CURSORS: Final[dict[Any, Any]] = {base.Cursor: Cursor, base.ServerBindingCursor: ServerBindingCursor}


def _over_ours(factory: Any) -> Any:
    """Return a class of cursors over ours, where it is derived from Django's: django-prometheus and OpenTelemetry make such."""
    for of_django, ours in _CURSORS.items():
        if isinstance(factory, type) and issubclass(factory, of_django):
            return type(factory.__name__, (factory, ours), {"__module__": factory.__module__})
    return factory


class Connection(PSConnection[Any]):
    """Our connection, whose `cursor_factory` is Django's own class, as everybody expects; the cursors that it makes are ours."""

    _derived: tuple[Any, Any] = (None, None)
    """A factory of somebody else's, and the class that stands for it."""

    def cursor(self, name: str = "", *, binary: bool = False, row_factory: Any = None, **of_named: Any) -> Any:
        """Return a cursor, as psycopg's method."""
        if name:
            return super().cursor(name, binary=binary, row_factory=row_factory, **of_named)
        self._check_connection_ok()
        factory: Any = self.cursor_factory
        cursor = (_CURSORS.get(factory) or self._class_for(factory))(self, row_factory=row_factory or self.row_factory)
        if binary:
            cursor.format = pq.Format.BINARY
        return cursor

    def _class_for(self, factory: Any) -> Any:
        # Packages make a class for each connection.
        if self._derived[0] is not factory:
            self._derived = factory, _over_ours(factory)
        return self._derived[1]


class _Driver:
    """What Django knows as `Database`: psycopg, but for `connect`."""

    def __init__(self, connect: Any) -> None:
        self.connect = connect

    def __getattr__(self, name: str) -> Any:
        return getattr(psycopg, name)


class _Pool:
    """psycopg's pool, whose wait for a connection is bounded by the caller's deadline."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def getconn(self) -> Any:
        """Return a connection, within the pool's own `timeout` and the deadline."""
        left = remaining()
        try:
            return self._pool.getconn(None if left is None else min(left, self._pool.timeout))
        except psycopg.OperationalError:
            remaining()  # where the deadline was first, this says so
            raise


class _FallingBack(CursorWrapper):
    """Let the primary answer what the replica could not (`FOR_PRIMARY`), or would with other settings of the session.

    The primary's alias does (`ps_writer`). In a transaction on this alias, what is rolled back here that one would commit: there
    the primary stands in on this alias's connection, READ ONLY, until the transaction ends.
    """

    _on_primary = False
    """The cursor is the primary's."""

    def _execute(self, sql: Any, params: Any, *ignored_wrapper_args: Any) -> Any:
        if PSConnection.any_session and self.db.ps_is_replica:
            self._take_side(sql)
        try:
            return super()._execute(sql, params, *ignored_wrapper_args)  # type: ignore[misc] # not in the stubs
        except DatabaseError as exc:
            if not self._falls_back(exc):
                raise
        return super()._execute(sql, params, *ignored_wrapper_args)  # type: ignore[misc]

    def _executemany(self, sql: Any, param_list: Any, *ignored_wrapper_args: Any) -> Any:
        if self.db.ps_is_replica:
            param_list = list(param_list)  # the primary may have to be given them, too
        execute_many = super()._executemany  # type: ignore[misc]
        return self._ask(sql, lambda: execute_many(sql, param_list, *ignored_wrapper_args))

    def callproc(self, procname: Any, params: Any = None, kparams: Any = None) -> Any:
        """Call a function, as Django's method."""
        call = super().callproc
        return self._ask(procname, lambda: call(procname, params, kparams))

    # Django finds these by its `__getattr__`, at more than twice the cost, and wraps their errors in the same way.

    def fetchone(self) -> Any:
        """Return the next row, as psycopg's method."""
        with self.db.wrap_database_errors:
            return self.cursor.fetchone()

    def fetchmany(self, *args: Any, **kwargs: Any) -> Any:
        """Return the next rows, as psycopg's method."""
        with self.db.wrap_database_errors:
            return self.cursor.fetchmany(*args, **kwargs)

    def fetchall(self) -> Any:
        """Return the other rows, as psycopg's method."""
        with self.db.wrap_database_errors:
            return self.cursor.fetchall()

    def close(self) -> None:
        """Close the cursor, as psycopg's method."""
        self.cursor.close()

    # Django leaves the errors of what follows as they are: see `_BothErrorsWrapper`.

    @contextmanager
    def copy(self, statement: Any, params: Any = None, *, writer: Any = None) -> Iterator[Any]:
        """Begin a COPY, as psycopg's method."""

        def begin() -> Any:
            with self.db.ps_wrap_as_both:
                return stack.enter_context(self.cursor.copy(statement, params, writer=writer))

        with self.db.ps_wrap_as_both, ExitStack() as stack:
            yield self._ask(statement, begin)

    def stream(self, query: Any, params: Any = None, **options: Any) -> Iterator[Any]:
        """Iterate over rows as they come, as psycopg's method."""

        def begin() -> tuple[Any, list[Any]]:
            with self.db.ps_wrap_as_both:
                rows = self.cursor.stream(query, params, **options)
                return rows, list(islice(rows, 1))

        with self.db.ps_wrap_as_both:
            rows, first = self._ask(query, begin)
            with closing(rows):
                yield from first
                yield from rows

    def scroll(self, value: int, mode: str = "relative") -> None:
        """Move the cursor, as psycopg's method."""
        with self.db.ps_wrap_as_both:
            self.cursor.scroll(value, mode)

    def _ask(self, sql: Any, run: Callable[[], T]) -> T:
        if PSConnection.any_session and self.db.ps_is_replica:
            self._take_side(sql)
        try:
            return run()
        except DatabaseError as exc:
            if not self._falls_back(exc):
                raise
        return run()

    def _take_side(self, sql: Any) -> None:
        # What sets something is for this very alias.
        on_primary = not (isinstance(sql, str) and analyse(sql).touches_session) and self.db.ps_lacks_of_primary()
        if on_primary is not self._on_primary:
            self._lead(to_primary=on_primary)

    def _falls_back(self, exc: DatabaseError) -> bool:
        """Return whether the primary is to be asked what ended in `exc`; this cursor leads there then."""
        failure = classify(exc)
        if self._on_primary or failure.kind not in FOR_PRIMARY or not self.db.ps_is_replica:
            return False
        if self.db.ps_writer is not None:
            self._lead(to_primary=True)
        elif not self._stands_in(failure.kind):
            return False
        emit_fallback(self.db.alias, failure)
        return True

    def _stands_in(self, kind: Kind) -> bool:
        if kind not in READ_FOR_PRIMARY:
            return False
        driver = self.cursor.connection
        if kind is Kind.RECOVERY_CONFLICT and driver.info.transaction_status != pq.TransactionStatus.IDLE:
            return False  # a transaction with a snapshot of its own: the primary cannot go on with that
        if self.db.ps_lagging is not None:
            self._lead(to_primary=True)
            return True
        with self.db.wrap_database_errors:
            if not driver.stand_in():
                return False
        if name := getattr(self.cursor, "name", ""):  # Django's class, which does not follow its connection
            self.cursor.close()
            self.cursor = self.db.create_cursor(name)
            self.close = self.db.ps_wrap_as_both(self.cursor.close)  # type: ignore[method-assign]
        return True

    def _lead(self, *, to_primary: bool) -> None:
        self.cursor.close()
        self._on_primary = to_primary
        # Through its wrapper's own method: a derived one brings the connection into its tenant's schema there.
        wrapper: Any = connections[self.db.settings_dict["OPTIONS"]["ps_primary"]] if to_primary else self.db
        self.cursor = wrapper._cursor().cursor


class _DebugFallingBack(_FallingBack, base.CursorDebugWrapper):
    """The same; where there are replicas, `connection.queries` tells which endpoint answered."""

    @contextmanager
    def debug_sql(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        with super().debug_sql(*args, **kwargs):
            yield
        conn, options = getattr(self.cursor, "connection", None), self.db.settings_dict["OPTIONS"]
        # Django documents two keys: the third is there where another endpoint could have answered.
        if self.db.queries_log and conn is not None and ("ps_primary" in options or "ps_direct" in options):
            self.db.queries_log[-1]["endpoint"] = conn.state.endpoint.name

    @contextmanager
    def copy(self, statement: Any, params: Any = None, *, writer: Any = None) -> Iterator[Any]:
        """The same, as Django logs it."""
        with ExitStack() as stack:
            with self.debug_sql(statement, params):
                copy = stack.enter_context(super().copy(statement, params, writer=writer))
            yield copy


class DatabaseClient(client.DatabaseClient):
    """`dbshell` takes the direct path by itself."""

    @classmethod
    def settings_to_cmd_args_env(cls, settings_dict: dict[str, Any], parameters: Any) -> Any:
        options = {name: value for name, value in settings_dict["OPTIONS"].items() if not name.startswith("ps_")}
        entry = {**settings_dict, "OPTIONS": options}
        endpoint = endpoint_of("dbshell", settings_dict)
        if endpoint.transport == "tcp":
            return super().settings_to_cmd_args_env(entry, parameters)
        # psql lives as long as this process, and so does what carries its connection.
        given = conninfo(endpoint)
        entry |= {"HOST": given["host"], "PORT": given["port"]}
        for_libpq = {variable: given[name] for name, variable in VARIABLES.items() if name in given}
        args, env = super().settings_to_cmd_args_env(entry, parameters)
        return args, {**(env or {}), **for_libpq}

    def runshell(self, parameters: Any) -> None:
        wrapper = cast("DatabaseWrapper", self.connection)
        direct = wrapper.direct_settings()
        if direct is not None and "ps_direct" in wrapper.settings_dict["OPTIONS"]:  # a replica's shell is on the replica
            self.connection.settings_dict = {**direct, "NAME": self.connection.settings_dict["NAME"]}
        super().runshell(parameters)


class DatabaseSchemaEditor(schema.DatabaseSchemaEditor):
    """DDL takes the direct path by itself: a transaction pooler's limits are not made for it."""

    def __enter__(self) -> Any:
        self._ps_direct = cast("DatabaseWrapper", self.connection).ps_on_direct_path()
        self._ps_direct.__enter__()
        try:
            return super().__enter__()
        except BaseException as exc:
            self._ps_direct.__exit__(type(exc), exc, exc.__traceback__)
            raise

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> None:
        with_error = (exc_type, exc_value, traceback)
        try:
            super().__exit__(*with_error)
        finally:
            self._ps_direct.__exit__(*with_error)


class DatabaseCreation(creation.DatabaseCreation):
    """Test databases, which are used on the direct path without limits of ours for as long as they are there.

    Nothing of theirs goes through a pooler, whose idle connections would be in the way of CREATE DATABASE ... TEMPLATE. A mirror
    answers from the connection of what it mirrors, whose transaction it sees.
    """

    def _create_test_db(self, *args: Any, **kwargs: Any) -> Any:
        # What `create_test_db` begins with. The settings are those of all threads (LiveServerTestCase), and are handed to the
        # processes of parallel tests.
        self.connection.settings_dict["TEST"][path.MARK] = "direct"
        return super()._create_test_db(*args, **kwargs)  # type: ignore[misc] # not in the stubs

    def destroy_test_db(self, old_database_name: Any = None, *args: Any, **kwargs: Any) -> None:
        super().destroy_test_db(old_database_name, *args, **kwargs)
        if old_database_name is not None:  # else it was a clone
            self.connection.settings_dict["TEST"].pop(path.MARK, None)

    def set_as_test_mirror(self, primary_settings_dict: dict[str, Any]) -> None:
        super().set_as_test_mirror(primary_settings_dict)
        self.connection.settings_dict["TEST"][path.MARK] = "direct"

    def _destroy_test_db(self, test_database_name: str, verbosity: int) -> None:
        # A test that asked for a pooler, or an alias without a direct path: poolers keep connections to it for a while.
        name = self.connection.ops.quote_name(test_database_name)
        with self.connection._nodb_cursor() as cursor:
            cursor.execute(f"DROP DATABASE {name} WITH (FORCE)")


class _ErrorWrapper(DatabaseErrorWrapper):
    """Raises Django's errors in the driver's place, with our notes on them."""

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> None:
        if exc_type is None:
            return
        try:
            super().__exit__(exc_type, exc_value, traceback)
        except Error as exc:
            carry_notes(exc_value, exc)
            raise


class _BothErrorsWrapper(_ErrorWrapper):
    """The same for what Django lets the driver's errors out of (COPY): what is raised is of both classes."""

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> None:
        try:
            super().__exit__(exc_type, exc_value, traceback)
        except Error as exc:
            if isinstance(exc_value, Error):
                return
            error = _error_of(type(exc), exc_type, exc.args)
            vars(error).update(vars(exc_value))
            raise error.with_traceback(traceback) from exc_value


class _OfBoth:
    """What the errors that are Django's and the driver's have in common: they can be pickled."""

    def __reduce__(self) -> Any:
        reduced: Any = super().__reduce__()
        return _error_of, (*type(self).__bases__[1:], reduced[1]), *reduced[2:]


def _error_of(of_django: type, of_driver: type, args: tuple[Any, ...]) -> Any:
    kind: Any = _kind_of(of_django, of_driver)
    return kind.__new__(kind, *args)


@cache
def _kind_of(of_django: type, of_driver: type) -> type:
    return type(of_driver.__name__, (_OfBoth, of_django, of_driver), {"__module__": of_driver.__module__})


class _Kind(type):
    """Lets a wrapper know the tenant with which it was made, so that one that it is given later is known for that."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        wrapper = super().__call__(*args, **kwargs)
        wrapper.ps_tenant = tenants.tenant_of(wrapper)
        return wrapper


class DatabaseWrapper(base.DatabaseWrapper, metaclass=_Kind):
    """Django's wrapper; the connection inside opens and bounds its transactions, and replaces what was lost."""

    SchemaEditorClass = DatabaseSchemaEditor
    client_class = DatabaseClient
    creation_class = DatabaseCreation
    ps_lagging: Any = None
    """The connection that answers instead, in a `ps_django.test.lagging_replica()` block."""

    ps_tenant: tuple[Any, bool] | None = None
    """The tenant that this wrapper has by itself or, on a replica's alias, was given last: see `ps_django.tenants`."""

    _ps_decision: PathDecision | None = None
    """The decision with which the open connection was made."""
    _ps_visits = False
    """Whether it is on the direct path for as long as a block or a command lasts."""
    _ps_kept: tuple[Any, PathDecision | None] | None = None
    """The connection on the alias's own path and its decision, where the open one is on the direct path for a while."""
    _ps_blocks = 0
    """The schema editors that are open."""
    _ps_transactions: LongTransactions | None = None
    """What looks for long transactions, in a command."""

    _ps_savepoint_of: Any = None
    """The block of a request in which a savepoint was made on this alias: it undoes nothing that the primary's alias does."""

    def __init__(self, settings_dict: dict[str, Any], alias: str = "default") -> None:
        super().__init__(settings_dict, alias)
        from ps_django import _writes

        _writes.lead_to_primary()
        if self.ps_state.endpoint.pooled:
            # A server-side cursor lives on one server connection; a transaction pooler gives the next fetch another one.
            self.settings_dict["DISABLE_SERVER_SIDE_CURSORS"] = True

    @cached_property
    def wrap_database_errors(self) -> Any:
        """Django's, whose errors have our notes, too."""
        return _ErrorWrapper(self)

    @cached_property
    def ps_wrap_as_both(self) -> Any:
        """The same, where Django has none."""
        return _BothErrorsWrapper(self)

    def ps_decide(self) -> PathDecision:
        """Return which path a connection would take here and now, which limits it would have, and why."""
        return path.path_decision(
            self.settings_dict, connections.settings, without_database=self.alias == NO_DB_ALIAS, block=self._ps_blocks > 0
        )

    @property
    def ps_decision(self) -> PathDecision:
        """The decision of the open connection; where there is none, of the next one."""
        return self._ps_decision if self.connection is not None and self._ps_decision is not None else self.ps_decide()

    @property
    def ps_state(self) -> EndpointState:
        """The endpoint and what its connections share. Not kept: the test runner changes NAME."""
        return self.ps_state_at(self.ps_decision)

    def ps_state_at(self, decision: PathDecision) -> EndpointState:
        alias, settings = self.alias, self.settings_dict
        if decision.direct and (direct := path.direct_of(settings, connections.settings)) is not None:
            alias, settings = direct, {**connections.settings[direct], "NAME": settings["NAME"]}
        return state_of_alias(alias, settings, connections.settings, decision)

    @property
    def ps_mirrors(self) -> str | None:
        """The alias whose connection answers, in tests; not for another wrapper that is made of the alias's settings."""
        settings = self.settings_dict
        mark = settings["TEST"].get(path.MARK)
        if mark != "direct" and (mark is not None or "django.test.utils" not in _MODULES or not path.in_test_environment()):
            return None
        return settings["TEST"].get("MIRROR") if connections.settings.get(self.alias) is settings else None

    @property
    def ps_forbidden(self) -> bool:
        """Whether the running test does not name this mirror in its `databases`: Django puts a failure in each method's place."""
        return self.ps_mirrors is not None and hasattr(self.cursor, "wrapped")

    def direct_settings(self) -> dict[str, Any] | None:
        """Return the settings of the direct path; None where there is none."""
        alias = path.direct_of(self.settings_dict, connections.settings)
        return None if alias is None else connections.settings[alias]

    def ps_connections(self) -> list[Any]:
        """Return the connections that are open: the one in use, and the one on the alias's own path that is kept meanwhile."""
        return [one for one in (self.connection, self._ps_kept and self._ps_kept[0]) if one is not None]

    def is_idle(self) -> bool:
        """Return whether nothing has been asked of the server in this transaction."""
        return self.connection is None or self.connection.pgconn.transaction_status == pq.TransactionStatus.IDLE

    def connect(self) -> None:
        """Connect as the work here and now asks for."""
        self._ps_decision = self.ps_decide()
        self._ps_visits = self._ps_decision.direct and self._ps_decision.limits == "endpoint"
        tenants.forget_what_was_set(self)
        super().connect()
        self.connection.begin_session()  # what `connection_created` sets is older than the work
        if self._ps_decision.limits == "command" and self._ps_transactions is None and self.ps_state.endpoint.pooled:
            self._ps_transactions = LongTransactions(self)

    def get_connection_params(self) -> dict[str, Any]:
        """Return what stock psycopg needs to reach the alias's server: `psycopg.connect(**params)`."""
        params = super().get_connection_params()
        keep = ("context", "cursor_factory", "prepare_threshold", "client_encoding", "service")
        return {**conninfo(self.ps_state.endpoint), **{name: params[name] for name in keep if name in params}}

    def _ps_connect(self, state: EndpointState, usual: dict[str, Any], params: dict[str, Any]) -> Any:
        """Connect to `state`, with those of `params` that are not the `usual` ones of an endpoint: they are a subclass's."""
        params = {name: value for name, value in params.items() if name not in usual or usual[name] != value}
        params["policy"] = policy_of(self.alias, self.settings_dict, connections.settings)
        primary = self.settings_dict["OPTIONS"].get("ps_primary")
        if state.endpoint.role != "replica" or primary not in connections.settings:
            return Connection.open(state, **params)
        replicas = replicas_of_alias(primary, connections.settings, self.ps_decision)
        if replicas is None or state not in replicas.states:
            return Connection.open(state, **params)
        return Connection.open(state, replicas=replicas, **params)

    @property
    def Database(self) -> Any:  # type: ignore[override] # noqa: N802 - Django's name
        def connect(**params: Any) -> Any:
            state = self.ps_state
            return self._ps_connect(state, dict(conninfo(state.endpoint)), params)

        return _Driver(connect)

    @property
    def pool(self) -> Any:
        """Django's pool (`OPTIONS["pool"]`), of our connections, whose wait for one is bounded by the deadline.

        It is a pool of connections on the alias's own path.
        """
        options = self.settings_dict["OPTIONS"]
        wanted = options.get("pool")
        # Django asks with each cursor.
        if not wanted or (self._ps_decision is not None and self._ps_decision.direct):
            return None
        if self.alias not in self._connection_pools:  # type: ignore[attr-defined]
            usual = dict(conninfo(self.ps_state.endpoint))

            def connect_anew(params: dict[str, Any]) -> Any:
                return self._ps_connect(self.ps_state_at(self.ps_decide()._replace(direct=False)), usual, params)

            class Pooled(psycopg.Connection[Any]):
                """What the pool calls to connect."""

                @classmethod
                def connect(cls, conninfo: str = "", **params: Any) -> Any:
                    return connect_anew(params)

            options["pool"] = {**(wanted if isinstance(wanted, dict) else {}), "connection_class": Pooled}
            try:
                pool = super().pool
            finally:
                options["pool"] = wanted
        else:
            pool = super().pool
        return None if pool is None else _Pool(pool)

    def _commit(self) -> None:
        try:
            super()._commit()  # type: ignore[misc] # not in the stubs
        except DeadlineExceeded:
            self.rollback()  # `atomic` rolls back after Django's own errors alone
            raise

    def _savepoint_commit(self, sid: str) -> None:
        with _past_the_deadline():
            super()._savepoint_commit(sid)  # type: ignore[misc]

    def savepoint(self) -> Any:
        """Make a savepoint, as Django's method."""
        if self.ps_is_replica and in_block_of_request(self):
            self._ps_savepoint_of = own_blocks(self)[0]
        return super().savepoint()

    def set_rollback(self, rollback: bool) -> None:
        """Set whether the block is rolled back, as Django's method; with it what the primary's alias did in its place."""
        super().set_rollback(rollback)
        if self.ps_is_replica and in_block_of_request(self):
            primary: Any = connections[self.settings_dict["OPTIONS"]["ps_primary"]]
            if is_within_request(primary):
                primary.set_rollback(rollback)

    def check_constraints(self, table_names: Any = None) -> None:
        """Check deferred constraints, as Django's method; not on an alias that mirrors one whose transaction failed."""
        if self.ps_mirrors is None or not connections[self.ps_mirrors].needs_rollback:
            super().check_constraints(table_names)

    def chunked_cursor(self) -> Any:
        """Return a server-side cursor where one can live: outside of a transaction, where it has to carry nothing."""
        self.ps_take_path()
        if must_carry(self.ps_state.endpoint) and not self.in_atomic_block:
            return self.cursor()
        cursor: Any = super().chunked_cursor()
        cursor.close = self.ps_wrap_as_both(cursor.cursor.close)  # it asks the server
        return cursor

    def _cursor(self, name: str | None = None) -> Any:
        if _WATCH.on or self._ps_visits or len(_MODULES) != _WATCH.modules:
            self.ps_take_path()
        if self._ps_follows:
            self._ps_follow_primary()
        if self.settings_dict["TEST"].get("MIRROR") is None or self.ps_mirrors is None:
            return super()._cursor(name)  # type: ignore[misc] # not in the stubs
        tenants.forget_what_was_set(self)  # on the primary's connection, which its own wrapper may bring elsewhere
        mirrored = self.ps_lagging or connections[self.ps_mirrors]
        mirrored.ensure_connection()
        return self._prepare_cursor(mirrored.create_cursor(name))  # type: ignore[attr-defined]

    @cached_property
    def pg_version(self) -> int:
        """The server's version; a replica has its primary's. Checks ask for that of each alias, and replicas may be away."""
        if self.ps_is_replica:
            version: int = connections[self.settings_dict["OPTIONS"]["ps_primary"]].pg_version  # type: ignore[attr-defined]
            return version
        return super().pg_version

    @cached_property
    def ps_is_replica(self) -> bool:
        options = self.settings_dict["OPTIONS"]
        return options.get("ps_role") == "replica" and options.get("ps_primary") in connections.settings

    @property
    def ps_writer(self) -> str | None:
        """The alias of this replica's primary, where what is done through that ends as the work here does; else None.

        So it does where no transaction is open here, or where ATOMIC_REQUESTS opened one on both.
        """
        primary: str = self.settings_dict["OPTIONS"]["ps_primary"]
        if in_transaction(self):
            other: Any = connections[primary]
            if not (in_block_of_request(self) and is_within_request(other) and self._ps_savepoint_of is not own_blocks(self)[0]):
                return None
        return primary

    @cached_property
    def _ps_follows(self) -> bool:
        return self.ps_is_replica and tenants.keeps_tenant(self)

    def ps_lacks_of_primary(self) -> bool:
        """Return whether something was SET on the primary's alias that does not hold on this one of a replica.

        Whoever SETs something says so to the primary's alias, and does not know where their reads will be answered.
        """
        primary = connections[self.settings_dict["OPTIONS"]["ps_primary"]].connection
        # In a transaction of their own here somebody asked for this very alias. A tenant's path is set by each wrapper itself.
        but_for = ("search_path",) if self._ps_follows else ()
        if primary is None or self.connection is None or (self.in_atomic_block and not in_block_of_request(self)):
            return False
        return bool(self.connection.lacks(primary, but_for=but_for))

    def _ps_follow_primary(self) -> None:
        tenants.follow(self, connections[self.settings_dict["OPTIONS"]["ps_primary"]])

    def make_cursor(self, cursor: Any) -> Any:
        """Return the wrapper that may go on with another cursor, on the primary."""
        return _FallingBack(cursor, self)

    def make_debug_cursor(self, cursor: Any) -> Any:
        """The same where queries are logged."""
        return _DebugFallingBack(cursor, self)

    def _configure_role(self, connection: Any) -> bool:
        # Behind a pooler, SET ROLE would stay on the server's connection: there it travels with each transaction.
        return False if self.ps_state.endpoint.pooled else bool(super()._configure_role(connection))  # type: ignore[misc]

    @contextmanager
    def ps_on_direct_path(self) -> Iterator[None]:
        """Run the block on the direct endpoint, if there is one and nothing was asked in a transaction that is open."""
        self._ps_blocks += 1
        path.watch.add_blocks(1)
        try:
            self.ps_take_path()
            yield
        finally:
            self._ps_blocks -= 1
            path.watch.add_blocks(-1)
            self.ps_take_path()

    def ps_take_path(self) -> None:
        """Let the open connection be on the path that the work asks for: what a transaction has begun on, it ends on."""
        if len(_MODULES) != _WATCH.modules:
            _WATCH.look()
        decision = self._ps_decision
        if self.connection is None or decision is None:
            return
        in_block = self._ps_visits or self._ps_blocks > 0 or path.on_direct.get()
        if not in_block and not (_WATCH.command and path.DIRECT.intersection(path.running())):
            return
        if self.ps_decide().direct is decision.direct or self._ps_has_begun():
            return
        if decision.direct:
            self._ps_leave_direct_path()
        else:
            self._ps_go_direct()

    @property
    def ps_is_bound(self) -> bool:
        """Whether a transaction has begun on the alias's own path, which is not the direct one."""
        decision = self._ps_decision
        on_own_path = self.connection is not None and not (decision is not None and decision.direct)
        return on_own_path and self._ps_has_begun() and self.direct_settings() is not None

    def _ps_has_begun(self) -> bool:
        return not self.is_idle() and (self.in_atomic_block or not self.autocommit)

    def _ps_go_direct(self) -> None:
        # A wrapper of the same class makes the connection: subclasses (PostGIS) prepare theirs, and so do receivers of
        # `connection_created`. It is not the pool's, whose connections are on the alias's own path.
        twin: Any = type(self)({**self.settings_dict}, self.alias)
        twin._ps_blocks = 1
        twin.ensure_connection()
        if (session := self.connection.session_sql()) is not None:
            try:
                with twin.wrap_database_errors, twin.connection.transaction():
                    twin.connection.execute(session)  # what holds behind the pooler holds there: it is the same work
            except BaseException:
                twin.close()
                raise
        self._ps_kept, self.connection = (self.connection, self._ps_decision), twin.connection
        self._ps_decision, twin.connection = twin._ps_decision, None
        self._ps_visits = True
        self._ps_carry_over()

    def _ps_leave_direct_path(self) -> None:
        if self._ps_kept is None:
            if not self.in_atomic_block:  # in which nobody may connect anew
                self.close()
                self._ps_visits = False
            return
        direct, kept = self.connection, self._ps_kept
        (self.connection, self._ps_decision), self._ps_kept = kept, None
        self._ps_visits = False
        direct.close()
        self._ps_carry_over()

    def _ps_carry_over(self) -> None:
        tenants.forget_what_was_set(self)
        if self.connection.autocommit is not self.autocommit:
            with self.wrap_database_errors:
                self.connection.autocommit = self.autocommit

    def _close(self) -> None:
        kept, self._ps_kept = self._ps_kept, None
        self._ps_visits = False
        try:
            super()._close()  # type: ignore[misc]
        finally:
            if kept is not None:
                self.connection, self._ps_decision = kept
                super()._close()  # type: ignore[misc]
            self._ps_decision = None


@contextmanager
def _past_the_deadline() -> Iterator[None]:
    """Let a savepoint be ended past the deadline, too: the block around it may go on without one."""
    until = current().deadline
    with block(deadline=None if until is None else max(until, time.monotonic() + GRACE)):
        yield


_inherited_by_fork: Final[list[Any]] = []
"""Connections and pools of the process that this one was forked from: kept, so that nothing ends them here."""


def _forget_connections() -> None:
    # Two processes on one connection break each other's transactions. The pools' threads were not forked, either.
    for wrapper in connections.all(initialized_only=True):
        if isinstance(wrapper, DatabaseWrapper) and wrapper.connection is not None:
            _inherited_by_fork.extend((wrapper.connection, wrapper._ps_kept))
            wrapper.connection = wrapper._ps_kept = None
            if wrapper.in_atomic_block:  # the parent's: as `close()` leaves it
                wrapper.closed_in_transaction = wrapper.needs_rollback = True
    pools: dict[str, Any] = DatabaseWrapper._connection_pools  # type: ignore[attr-defined]
    ours = [alias for alias in pools if isinstance(connections[alias], DatabaseWrapper)]
    _inherited_by_fork.extend(pools.pop(alias) for alias in ours)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_connections)
