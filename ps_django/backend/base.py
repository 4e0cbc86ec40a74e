"""Django's PostgreSQL backend over ps_core's connection. Each override says why it is there."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import psycopg
from django.db import DatabaseError, connections
from django.db.backends.postgresql import base, schema
from django.db.backends.utils import CursorWrapper

from ps_core.connection import Connection
from ps_core.connection import Cursor as PSCursor
from ps_core.failures import Kind, classify
from ps_django.config import link_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ps_core.link import Link

__all__ = ["DatabaseWrapper"]

_STOCK_CURSOR = base.Cursor


class Cursor(base.CursorMixin, PSCursor[Any]):
    """Django's cursor (with `callproc`), over ours."""


class _Driver:
    """What Django knows as `Database`: psycopg, but for `connect`."""

    def __init__(self, connect: Any) -> None:
        self.connect = connect

    def __getattr__(self, name: str) -> Any:
        return getattr(psycopg, name)


class _FallingBack(CursorWrapper):
    """Run on the primary what the replica could not do: it lags behind what the caller has seen, or the statement writes."""

    def _execute(self, sql: Any, params: Any, *ignored_wrapper_args: Any) -> Any:
        try:
            return super()._execute(sql, params, *ignored_wrapper_args)  # type: ignore[misc] # not in the stubs
        except DatabaseError as exc:
            primary = self.db.settings_dict["OPTIONS"].get("ps_primary")
            if (
                self.db.ps_link.endpoint.role != "replica"
                or primary is None
                or self.db.in_atomic_block
                or classify(exc).kind not in (Kind.BEHIND, Kind.NOT_PRIMARY)
            ):
                raise
        self.cursor.close()
        other = connections[primary]
        other.ensure_connection()
        self.cursor = other.create_cursor()
        return super()._execute(sql, params, *ignored_wrapper_args)  # type: ignore[misc]


class _DebugFallingBack(_FallingBack, base.CursorDebugWrapper):
    pass


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


class DatabaseWrapper(base.DatabaseWrapper):
    """Django's wrapper; the connection inside opens, bounds and heals its transactions."""

    SchemaEditorClass = DatabaseSchemaEditor

    def __init__(self, settings_dict: dict[str, Any], alias: str = "default") -> None:
        super().__init__(settings_dict, alias)
        if self.ps_link.endpoint.pooled:
            # A server-side cursor lives on one server connection; a transaction pooler gives the next fetch another one.
            self.settings_dict["DISABLE_SERVER_SIDE_CURSORS"] = True

    @property
    def ps_link(self) -> Link:
        """The endpoint and what its connections share. Not kept: the test runner changes NAME."""
        return link_of(self.alias, self.settings_dict)

    @property
    def Database(self) -> Any:  # type: ignore[override] # noqa: N802 - Django's name
        return _Driver(partial(Connection.open, self.ps_link))

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
        if params.get("cursor_factory") is _STOCK_CURSOR:
            params["cursor_factory"] = Cursor
        return params

    @contextmanager
    def on_direct_path(self) -> Iterator[None]:
        """Run the block on the direct endpoint, if there is one and no transaction is open."""
        alias = self.settings_dict["OPTIONS"].get("ps_direct")
        if alias is None or alias not in connections or self.in_atomic_block:
            yield
            return
        pooled, self.connection = self.connection, None
        direct = DatabaseWrapper({**connections[alias].settings_dict, "NAME": self.settings_dict["NAME"]}, alias)
        try:
            direct.connect()
            self.connection, direct.connection = direct.connection, None
            yield
        finally:
            if self.connection is not None:
                self.connection.close()
            self.connection = pooled
