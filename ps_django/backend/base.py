"""Django's PostgreSQL backend over ps_core's connection. Each override says why it is there."""

from __future__ import annotations

import os
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import psycopg
from django.db import DatabaseError, connections
from django.db.backends.postgresql import base, client, creation, schema
from django.db.backends.utils import CursorWrapper
from psycopg import pq

from ps_core import Connection
from ps_core._connection.cursors import Cursor as PSCursor
from ps_core._connection.cursors import ServerBindingCursor as PSServerBindingCursor
from ps_core._retry.deadline import GRACE
from ps_core.context import block, current, remaining
from ps_core.errors import DeadlineExceeded
from ps_core.events import emit_fallback
from ps_core.failures import FOR_PRIMARY, classify
from ps_django.config import link_of, policy_of, replicas_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ps_core._endpoint import EndpointState

__all__ = ["DatabaseWrapper"]

_COMMANDS_ON_DIRECT_PATH: Final = frozenset(
    {"createcachetable", "dbshell", "dumpdata", "flush", "inspectdb", "loaddata", "migrate", "optimizemigration", "sqlflush"}
    | {"remove_stale_contenttypes", "sqlmigrate", "sqlsequencereset", "test", "testserver"}
)
"""Management commands whose work a transaction pooler's limits are not made for: whole processes, which go to the direct path."""


class Cursor(base.CursorMixin, PSCursor[Any]):
    """Django's cursor (with `callproc`), over ours."""

    # Django's own takes `interval '%s days'`, and applications write that.
    _quotes_hold_values = True


class ServerBindingCursor(base.CursorMixin, PSServerBindingCursor[Any]):
    """The same for `OPTIONS["server_side_binding"]`."""


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
    """Run on the primary what the replica could not do (`FOR_PRIMARY`)."""

    def _execute(self, sql: Any, params: Any, *ignored_wrapper_args: Any) -> Any:
        try:
            return super()._execute(sql, params, *ignored_wrapper_args)  # type: ignore[misc] # not in the stubs
        except DatabaseError as exc:
            options = self.db.settings_dict["OPTIONS"]
            primary = options.get("ps_primary")
            failure = classify(exc)
            if (
                options.get("ps_role") != "replica"
                or primary is None
                or self.db.in_atomic_block
                or not self.db.get_autocommit()
                or failure.kind not in FOR_PRIMARY
            ):
                raise
            emit_fallback(self.db.alias, failure)
        self.cursor.close()
        other = connections[primary]
        other.ensure_connection()
        self.cursor = other.create_cursor()
        return super()._execute(sql, params, *ignored_wrapper_args)  # type: ignore[misc]


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


class DatabaseClient(client.DatabaseClient):
    """`dbshell` takes the direct path by itself."""

    @classmethod
    def settings_to_cmd_args_env(cls, settings_dict: dict[str, Any], parameters: Any) -> Any:
        options = {name: value for name, value in settings_dict["OPTIONS"].items() if not name.startswith("ps_")}
        return super().settings_to_cmd_args_env({**settings_dict, "OPTIONS": options}, parameters)

    def runshell(self, parameters: Any) -> None:
        direct = cast("DatabaseWrapper", self.connection).direct_settings()
        if direct is not None:
            self.connection.settings_dict = {**direct, "NAME": self.connection.settings_dict["NAME"]}
        super().runshell(parameters)


class DatabaseSchemaEditor(schema.DatabaseSchemaEditor):
    """DDL takes the direct path by itself: a transaction pooler's limits are not made for it."""

    def __enter__(self) -> Any:
        self._ps_direct = cast("DatabaseWrapper", self.connection).on_direct_path()
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
    """Test databases: a mirror answers from the connection of what it mirrors, whose transaction it sees."""

    def set_as_test_mirror(self, primary_settings_dict: dict[str, Any]) -> None:
        super().set_as_test_mirror(primary_settings_dict)
        # The settings are those of all threads (LiveServerTestCase), and are handed to the processes of parallel tests.
        test = self.connection.settings_dict["TEST"]
        test["PS_MIRRORS"] = test["MIRROR"]

    def _destroy_test_db(self, test_database_name: str, verbosity: int) -> None:
        # A pooler keeps connections to it for a while.
        name = self.connection.ops.quote_name(test_database_name)
        with self.connection._nodb_cursor() as cursor:
            cursor.execute(f"DROP DATABASE {name} WITH (FORCE)")


class DatabaseWrapper(base.DatabaseWrapper):
    """Django's wrapper; the connection inside opens, bounds and heals its transactions."""

    SchemaEditorClass = DatabaseSchemaEditor
    client_class = DatabaseClient
    creation_class = DatabaseCreation
    ps_lagging: Any = None
    """The connection that answers instead, in a `ps_django.test.lagging_replica()` block."""

    def __init__(self, settings_dict: dict[str, Any], alias: str = "default") -> None:
        super().__init__(settings_dict, alias)
        if self.ps_state.endpoint.pooled:
            # A server-side cursor lives on one server connection; a transaction pooler gives the next fetch another one.
            self.settings_dict["DISABLE_SERVER_SIDE_CURSORS"] = True

    @property
    def ps_state(self) -> EndpointState:
        """The endpoint and what its connections share. Not kept: the test runner changes NAME."""
        if _runs_on_direct_path() and (direct := self.direct_settings()) is not None:
            return link_of(
                self.settings_dict["OPTIONS"]["ps_direct"], {**direct, "NAME": self.settings_dict["NAME"]}, connections.settings
            )
        return link_of(self.alias, self.settings_dict, connections.settings)

    @property
    def ps_mirrors(self) -> str | None:
        """The alias whose connection answers, in tests; not for another wrapper that is made of the alias's settings."""
        settings = self.settings_dict
        return settings["TEST"].get("PS_MIRRORS") if connections.settings.get(self.alias) is settings else None

    @property
    def ps_forbidden(self) -> bool:
        """Whether the running test does not name this mirror in its `databases`: Django puts a failure in each method's place."""
        return self.ps_mirrors is not None and hasattr(self.cursor, "wrapped")

    def direct_settings(self) -> dict[str, Any] | None:
        """Return the settings of the direct path; None where there is none."""
        alias = self.settings_dict["OPTIONS"].get("ps_direct")
        return connections[alias].settings_dict if alias is not None and alias in connections else None

    def is_idle(self) -> bool:
        """Return whether nothing has been asked of the server in this transaction."""
        return self.connection is None or self.connection.pgconn.transaction_status == pq.TransactionStatus.IDLE

    def _ps_connect(self, **params: Any) -> Any:
        state, primary = self.ps_state, self.settings_dict["OPTIONS"].get("ps_primary")
        params["policy"] = policy_of(self.alias, self.settings_dict, connections.settings)
        if state.endpoint.role != "replica" or primary not in connections.settings:
            return Connection.open(state, **params)
        replicas = replicas_of(primary, connections.settings)
        if replicas is None or state not in replicas.states:
            return Connection.open(state, **params)
        return Connection.open(state, replicas=replicas, **params)

    @property
    def Database(self) -> Any:  # type: ignore[override] # noqa: N802 - Django's name
        return _Driver(self._ps_connect)

    @property
    def pool(self) -> Any:
        """Django's pool (`OPTIONS["pool"]`), of our connections, whose wait for one is bounded by the deadline."""
        options = self.settings_dict["OPTIONS"]
        wanted = options.get("pool")
        if wanted and self.alias not in self._connection_pools:  # type: ignore[attr-defined]
            connect = self._ps_connect

            class Pooled(psycopg.Connection[Any]):
                """What the pool calls to connect."""

                @classmethod
                def connect(cls, conninfo: str = "", **params: Any) -> Any:
                    return connect(**params)

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

    def chunked_cursor(self) -> Any:
        """Return a server-side cursor where one can live: not behind a pooler outside a transaction."""
        if self.ps_state.endpoint.pooled and not self.in_atomic_block:
            return self.cursor()
        return super().chunked_cursor()

    def _cursor(self, name: str | None = None) -> Any:
        if self.ps_mirrors is None:
            return super()._cursor(name)  # type: ignore[misc] # not in the stubs
        mirrored = self.ps_lagging or connections[self.ps_mirrors]
        mirrored.ensure_connection()
        return self._prepare_cursor(mirrored.create_cursor(name))  # type: ignore[attr-defined]

    def make_cursor(self, cursor: Any) -> Any:
        """Return the wrapper that may go on with another cursor, on the primary."""
        return _FallingBack(cursor, self)

    def make_debug_cursor(self, cursor: Any) -> Any:
        """The same where queries are logged."""
        return _DebugFallingBack(cursor, self)

    def get_connection_params(self) -> dict[str, Any]:
        """Return what is Django's and psycopg's own. Where to connect is the endpoint's."""
        params = super().get_connection_params()
        keep = ("context", "cursor_factory", "prepare_threshold", "client_encoding", "service")
        params = {name: params[name] for name in keep if name in params}
        ours: dict[Any, Any] = {base.Cursor: Cursor, base.ServerBindingCursor: ServerBindingCursor}
        if "cursor_factory" in params:
            params["cursor_factory"] = ours.get(params["cursor_factory"], params["cursor_factory"])
        return params

    @contextmanager
    def _nodb_cursor(self) -> Iterator[Any]:
        # Databases are created and dropped on the direct path: a pooler's idle connections would be in the way.
        settings = self.direct_settings()
        alias = self.settings_dict["OPTIONS"].get("ps_direct")
        wrapper = self if settings is None else DatabaseWrapper(settings, alias)
        with super(DatabaseWrapper, wrapper)._nodb_cursor() as cursor:
            yield cursor

    def _configure_role(self, connection: Any) -> bool:
        # Behind a pooler, SET ROLE would stay on the server's connection: there it travels with each transaction.
        return False if self.ps_state.endpoint.pooled else bool(super()._configure_role(connection))  # type: ignore[misc]

    @contextmanager
    def on_direct_path(self) -> Iterator[None]:
        """Run the block on the direct endpoint, if there is one and no transaction is open."""
        settings = self.direct_settings()
        if settings is None or self.in_atomic_block or _runs_on_direct_path():
            yield
            return
        pooled, self.connection = self.connection, None
        alias = self.settings_dict["OPTIONS"]["ps_direct"]
        direct = DatabaseWrapper({**settings, "NAME": self.settings_dict["NAME"]}, alias)
        try:
            direct.connect()
            self.connection, direct.connection = direct.connection, None
            yield
        finally:
            if self.connection is not None:
                self.connection.close()
            self.connection = pooled


@contextmanager
def _past_the_deadline() -> Iterator[None]:
    """Let a savepoint be ended past the deadline, too: the block around it may go on without one."""
    until = current().deadline
    with block(deadline=None if until is None else max(until, time.monotonic() + GRACE)):
        yield


def _runs_on_direct_path() -> bool:
    return len(sys.argv) > 1 and Path(sys.argv[0]).name in _MANAGERS and sys.argv[1] in _COMMANDS_ON_DIRECT_PATH


_MANAGERS: Final = ("manage.py", "django-admin", "django-admin.py", "__main__.py")


_of_parent: Final[list[Any]] = []
"""Connections and pools of the process that this one was forked from: kept, so that nothing ends them here."""


def _forget_connections() -> None:
    # Two processes on one connection break each other's transactions. The pools' threads were not forked, either.
    for wrapper in connections.all(initialized_only=True):
        if isinstance(wrapper, DatabaseWrapper) and wrapper.connection is not None:
            _of_parent.append(wrapper.connection)
            wrapper.connection = None
            if wrapper.in_atomic_block:  # the parent's: as `close()` leaves it
                wrapper.closed_in_transaction = wrapper.needs_rollback = True
    pools: dict[str, Any] = DatabaseWrapper._connection_pools  # type: ignore[attr-defined]
    ours = [alias for alias in pools if isinstance(connections[alias], DatabaseWrapper)]
    _of_parent.extend(pools.pop(alias) for alias in ours)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_connections)
