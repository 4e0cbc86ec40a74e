"""The ways to run a form with a value: each once on stock and once on ours, on the same server."""

from __future__ import annotations

import asyncio
import re
import warnings
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import psycopg
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

import ps_core
import ps_sqlalchemy
from ps_core import AsyncConnection, Connection
from ps_core._connection.cursors import ServerBindingCursor
from ps_core._endpoint import EndpointState
from tests.differential.outcome import Outcome, Watch, arun, of_cursor, of_error, run, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from ps_lab import Lab
    from tests.differential.values import Registered

    Run = Callable[[str, Any], Outcome]
    """A form with a value, to what is seen of it."""

__all__ = ["WAYS", "Way", "stock_engine"]

NO_PREPARED: Final[dict[str, Any]] = {"prepare_threshold": None}
ALLOWED: Final[dict[str, Any]] = {"bouncer": "write-pool", "session_state": "allow"}
"""One of the forms makes a temporary table, in autocommit, too."""


@contextmanager
def _psycopg(
    lab: Lab, registered: Registered, *, endpoint: str = "primary", autocommit: bool = True, **options: Any
) -> Iterator[tuple[Run, Run]]:
    place = getattr(lab.topology, endpoint)
    link = EndpointState(endpoint=replace(place, session_state="allow"), identity=lab.branch)
    with (
        psycopg.connect(**ps_core.conninfo(place), **NO_PREPARED, autocommit=autocommit) as stock,
        Connection.open(link, autocommit=autocommit, **options) as ours,
    ):
        runs: list[Run] = []
        for conn in (stock, ours):
            registered.on(conn)

            def execute(text: str, value: Any, conn: Any = conn, watch: Watch = Watch(conn)) -> Outcome:  # noqa: B008
                outcome = run(conn, watch, text, value)
                if not autocommit:
                    conn.rollback()
                return outcome

            runs.append(execute)
        yield runs[0], runs[1]


@contextmanager
def _asyncio(lab: Lab, registered: Registered) -> Iterator[tuple[Run, Run]]:
    place = lab.topology.primary
    with asyncio.Runner() as runner:
        stock: Any = runner.run(psycopg.AsyncConnection.connect(**ps_core.conninfo(place), **NO_PREPARED, autocommit=True))
        link = EndpointState(endpoint=replace(place, session_state="allow"), identity=lab.branch)
        ours: Any = runner.run(AsyncConnection.open(link, autocommit=True))
        runs: list[Run] = []
        for conn in (stock, ours):
            registered.on(conn)

            def execute(text: str, value: Any, conn: Any = conn, watch: Watch = Watch(conn)) -> Outcome:  # noqa: B008
                return runner.run(arun(conn, watch, text, value))

            runs.append(execute)
        try:
            yield runs[0], runs[1]
        finally:
            runner.run(stock.close())
            runner.run(ours.close())


def stock_engine(lab: Lab, driver: str = "psycopg", **options: Any) -> Any:
    """Return SQLAlchemy's own engine on the primary's bouncer."""
    place = lab.topology.primary
    url = sa.URL.create(
        f"postgresql+{driver}", place.user, place.password, place.host, place.port, place.dbname, dict(place.params)
    )
    make = create_async_engine if "async" in driver else sa.create_engine
    return make(url, connect_args=NO_PREPARED, **options)


def _text(form: str) -> sa.TextClause:
    return sa.text(re.sub(r"%%|%\(v\)s|%s", lambda found: "%" if found[0] == "%%" else ":v", form))


def _sa_run(conn: sa.Connection, form: str, value: Any) -> Outcome:
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            result = conn.execute(_text(form), {"v": value})
            seen: dict[str, Any] = {"rowcount": result.rowcount}
            if result.returns_rows:
                names, types = list(result.keys()), [column[1] for column in result.cursor.description]
                seen = {"rows": [shown(tuple(row)) for row in result], "names": names, "types": types}
        except Exception as exc:  # noqa: BLE001 - whatever it is, it is compared
            seen = {**of_error(getattr(exc, "orig", None) or exc), "wrapped": type(exc).__name__}
    return Outcome({**seen, "warnings": [str(item.message) for item in warned]})


@contextmanager
def _sqlalchemy(lab: Lab, registered: Registered, **options: Any) -> Iterator[tuple[Run, Run]]:
    engines = (
        stock_engine(lab, isolation_level="AUTOCOMMIT"),
        ps_sqlalchemy.create_engine(lab.url, **ALLOWED, isolation_level="AUTOCOMMIT", **options),
    )
    with ExitStack() as stack:
        runs: list[Run] = []
        for engine in engines:
            stack.callback(engine.dispose)
            conn = stack.enter_context(engine.connect())
            registered.on(conn.connection.driver_connection)
            runs.append(partial(_sa_run, conn))
        yield runs[0], runs[1]


@contextmanager
def _sqlalchemy_asyncio(lab: Lab, registered: Registered) -> Iterator[tuple[Run, Run]]:
    engines = (
        stock_engine(lab, "psycopg_async", isolation_level="AUTOCOMMIT"),
        ps_sqlalchemy.create_async_engine(lab.url, **ALLOWED, isolation_level="AUTOCOMMIT"),
    )
    with asyncio.Runner() as runner:
        runs: list[Run] = []
        conns = []
        for engine in engines:
            conn = runner.run(engine.connect().start())
            conns.append(conn)
            registered.on(runner.run(conn.get_raw_connection()).driver_connection)

            def execute(form: str, value: Any, conn: Any = conn) -> Outcome:
                outcome: Outcome = runner.run(conn.run_sync(_sa_run, form, value))
                return outcome

            runs.append(execute)
        try:
            yield runs[0], runs[1]
        finally:
            for conn, engine in zip(conns, engines, strict=True):
                runner.run(conn.close())
                runner.run(engine.dispose())


@contextmanager
def _django(lab: Lab, registered: Registered, **options: Any) -> Iterator[tuple[Run, Run]]:
    from django.db import connections
    from django.db.backends.postgresql.base import DatabaseWrapper

    ours = connections["default"].copy("default")
    settings = {**ours.settings_dict, "OPTIONS": {**ours.settings_dict["OPTIONS"], **options}}
    ours.settings_dict = {**settings, "OPTIONS": {**settings["OPTIONS"], "ps_session_state": "allow"}}
    place = lab.topology.primary
    stock: Any = DatabaseWrapper(
        {
            **settings,
            "HOST": place.host,
            "PORT": place.port,
            "USER": place.user,
            "PASSWORD": place.password,
            "NAME": place.dbname,
            "OPTIONS": {**dict(place.params), **options},
            "DISABLE_SERVER_SIDE_CURSORS": True,
        },
        "stock",
    )
    try:
        runs: list[Run] = []
        for connection in (stock, ours):
            connection.ensure_connection()
            registered.on(connection.connection)

            def execute(form: str, value: Any, connection: Any = connection) -> Outcome:
                params = {"v": value} if "%(v)s" in form else [value]
                try:
                    with connection.cursor() as cursor:
                        cursor.execute(form, params)
                        seen = of_cursor(cursor.cursor, cursor.fetchall() if cursor.description else [])
                except Exception as exc:  # noqa: BLE001
                    seen = {**of_error(exc.__cause__ or exc), "wrapped": type(exc).__name__}
                return Outcome(seen)

            runs.append(execute)
        yield runs[0], runs[1]
    finally:
        stock.close()
        ours.close()


class Way(NamedTuple):
    """A way to run forms."""

    open: Callable[[Lab, Registered], AbstractContextManager[tuple[Run, Run]]]
    step: int
    """In the cheap form, every how many-th pair is run; no divisor of the number of values, so that all forms and values come."""
    same: bool = False
    """Nothing at all may differ: both bind in the same place."""


WAYS: Final[dict[str, Way]] = {
    "psycopg, autocommit": Way(_psycopg, 11),
    "psycopg, in a transaction": Way(partial(_psycopg, autocommit=False), 61),
    "psycopg, direct": Way(partial(_psycopg, endpoint="direct"), 61),
    'psycopg, binding="server"': Way(partial(_psycopg, cursor_factory=ServerBindingCursor), 61, same=True),
    "psycopg, asyncio": Way(_asyncio, 61),
    "SQLAlchemy, text()": Way(_sqlalchemy, 61),
    'SQLAlchemy, binding="server"': Way(partial(_sqlalchemy, binding="server"), 61, same=True),
    "SQLAlchemy, asyncio": Way(_sqlalchemy_asyncio, 61),
    "Django": Way(_django, 61, same=True),
    "Django, server_side_binding": Way(partial(_django, server_side_binding=True), 61, same=True),
}
