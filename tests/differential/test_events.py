"""SQLAlchemy's events, on stock and on ours: which fired, in which order, on what and with what, each once.

The same work runs on SQLAlchemy's own engine and on each engine of ours; what listens to the classes, to an engine or to a pool
notes what it hears.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.util import greenlet_spawn

import ps_sqlalchemy
from tests.differential.clients import stock_engine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ps_lab import Lab

DIALECT: Final = ("do_connect", "do_execute", "do_executemany", "do_execute_no_params", "handle_error")
ENGINE: Final = (
    "before_execute",
    "after_execute",
    "before_cursor_execute",
    "after_cursor_execute",
    "begin",
    "commit",
    "rollback",
    "savepoint",
    "rollback_savepoint",
    "release_savepoint",
    "engine_connect",
    "set_connection_execution_options",
    "set_engine_execution_options",
    "engine_disposed",
)
POOL: Final = (
    "connect",
    "first_connect",
    "checkout",
    "checkin",
    "reset",
    "invalidate",
    "soft_invalidate",
    "close",
    "detach",
    "close_detached",
)
WHERE: Final = ("host", "port", "user", "dbname", "password")
LEVELS: Final = ("classes", "engine", "pool", "classes, engine and pool")
TARGETS: Final = ("primary", "replica", "direct")
KINDS: Final = ("by create_engine", "from a URL")
"""Left out: `do_setinputsizes`, which the dialect does not use, and the events of two-phase transactions."""


def _shown(value: Any) -> Any:
    """What can be compared of an argument."""
    if isinstance(value, sa.Connection | sa.Engine | sa.engine.Dialect):
        return type(value).__mro__[-3].__name__ if isinstance(value, sa.engine.Dialect) else _kind(value)
    if isinstance(value, sa.engine.ExceptionContext):
        told = (type(value.original_exception).__name__, type(value.sqlalchemy_exception).__name__, value.statement)
        return (*told, value.is_disconnect, value.engine is not None, value.connection is not None)
    if isinstance(value, dict) and "host" in value:
        return {name: type(value[name]).__name__ for name in WHERE}
    if isinstance(value, str | bytes | bool | int | None | list | tuple | Mapping):
        return repr(value)
    return "an error" if isinstance(value, BaseException) else ""


def _kind(value: Any) -> str:
    return "connection" if isinstance(value, sa.Connection) else "engine"


class Heard:
    """What was heard, by listeners that can be removed."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str, Any]] = []
        self._listeners: list[tuple[Any, str, Any]] = []

    def listen(self, target: Any, label: str, names: tuple[str, ...]) -> None:
        for name in names:
            listener = partial(self._note, label, name)
            event.listen(target, name, listener)
            self._listeners.append((target, name, listener))

    def _note(self, label: str, name: str, *args: Any) -> None:
        self.events.append((label, name, tuple(map(_shown, args))))

    def remove(self) -> None:
        for target, name, listener in self._listeners:
            event.remove(target, name, listener)


@pytest.fixture
def heard() -> Iterator[Heard]:
    heard = Heard()
    yield heard
    heard.remove()


def work(engine: Any, detaches: bool) -> None:
    """Make everything happen that anything listens to, in a way that a replica takes, too."""
    with engine.connect() as conn:
        conn.execute(sa.select(sa.literal(1)))
        conn.execute(sa.text("select :a"), {"a": 1})
        conn.exec_driver_sql("select 1", execution_options={"no_parameters": True})
        conn.exec_driver_sql("select %s", [(1,), (2,)])
        conn.commit()
        with conn.begin():
            with conn.begin_nested():
                conn.execute(sa.text("select 2"))
            with suppress(sa.exc.ProgrammingError), conn.begin_nested():
                conn.execute(sa.text("select nothing"))
        with suppress(sa.exc.ProgrammingError):
            conn.execute(sa.text("select nothing"))
        conn.rollback()
        conn.execution_options(isolation_level="REPEATABLE READ")
        conn.execute(sa.text("select 3"))
    with engine.execution_options(stream_results=True).connect() as conn:
        conn.execute(sa.text("select 4")).all()
    with engine.connect() as conn, engine.connect() as other:
        conn.invalidate()
        conn.execute(sa.text("select 5"))
        other.execute(sa.text("select 6"))
        if detaches:
            other.detach()
    raw = engine.raw_connection()
    raw.invalidate(soft=True)
    raw.close()
    engine.raw_connection().close()
    engine.dispose()


def _listen(heard: Heard, engine: Any, level: str) -> None:
    if "classes" in level:
        heard.listen(sa.Engine, "class", (*DIALECT, *ENGINE))
        heard.listen(sa.pool.Pool, "class", POOL)
    if "engine" in level:
        heard.listen(engine, "engine", (*DIALECT, *ENGINE, *POOL))
    if "pool" in level:
        heard.listen(engine.pool, "pool", POOL)


def _run(asynchronous: bool, engine: Any) -> None:
    if asynchronous:
        # Stock leaves a detached connection open there, with a warning.
        asyncio.run(greenlet_spawn(work, engine, False))
    else:
        work(engine, True)


def _ours(lab: Lab, kind: str, asynchronous: bool) -> Any:
    if kind == "by create_engine":
        make: Any = ps_sqlalchemy.create_async_engine if asynchronous else ps_sqlalchemy.create_engine
        engine = make(lab.url, bouncer="write-pool", replica_bouncer="read-pool", pool_use_lifo=True)
    else:
        url = lab.url.replace("postgresql:", f"postgresql+ps{'_async' if asynchronous else ''}:")
        url += "&ps_bouncer=write-pool&ps_replica_bouncer=read-pool"
        engine = (create_async_engine if asynchronous else sa.create_engine)(url, pool_use_lifo=True)
    return engine.sync_engine if isinstance(engine, AsyncEngine) else engine


PAGE: Final = Path(__file__).parents[2] / "docs" / "generated" / "events.md"
INTRODUCTION: Final = """\
# SQLAlchemy's events

<!-- Written by tests/differential/test_events.py with PS_WRITE_DOCS=1; not by hand. -->

How often a listener on SQLAlchemy's classes (`sa.Engine`, `sa.pool.Pool`), on an engine, and on its pool hears of the same work:
on stock's engine and on each of ours. The test compares every call, in its order, with its arguments, sync and asyncio, with each
kind of listener alone and with all of them; here is their number, sync. Ours are `create_engine`'s and those that
`sqlalchemy.create_engine` makes of a URL: the primary's, `.replica` and `.direct`, each heard by what listens to the primary's.

| event | class | engine | pool | the same on |
|---|---:|---:|---:|---|
"""


def page(expected: list[tuple[str, str, Any]]) -> str:
    """The table of what stock heard, which all of ours heard."""
    counted = Counter((label, name) for label, name, _ in expected)
    same = ", ".join(TARGETS)
    rows = []
    for name in (*DIALECT, *ENGINE, *POOL):
        numbers = [str(counted[label, name] or "") for label in ("class", "engine", "pool")]
        rows.append(f"| `{name}` | {' | '.join(numbers)} | {same} |\n")
    return INTRODUCTION + "".join(rows)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "asyncio"])
def test_same_events(ps_lab: Lab, heard: Heard, asynchronous: bool, level: str) -> None:
    """On the primary's engine, the replicas' and the direct one: what listens hears what it hears on stock."""
    stock = stock_engine(ps_lab, "psycopg_async" if asynchronous else "psycopg", pool_use_lifo=True)
    stock = stock.sync_engine if asynchronous else stock
    _listen(heard, stock, level)
    _run(asynchronous, stock)
    expected, heard.events = heard.events, []
    heard.remove()
    heard._listeners.clear()
    named = {name for _, name, _ in expected}
    without = {"detach", "close_detached"} if asynchronous else set()
    wanted = {"classes": (*DIALECT, *ENGINE, *POOL), "pool": POOL}.get(level, (*DIALECT, *ENGINE, *POOL))
    assert {*wanted} - named == without
    with ExitStack() as stack:
        for kind in KINDS:
            for to in TARGETS:
                engine = _ours(ps_lab, kind, asynchronous)
                stack.callback(engine.dispose)
                _listen(heard, engine, level)
                heard.events = []
                _run(asynchronous, engine if to == "primary" else getattr(engine, to))
                found, heard.events = heard.events, []
                heard.remove()
                heard._listeners.clear()
                assert found == expected, (kind, to)
    if level == LEVELS[-1] and not asynchronous:
        if os.environ.get("PS_WRITE_DOCS"):
            PAGE.write_text(page(expected))
        assert PAGE.read_text() == page(expected), "write it anew: PS_WRITE_DOCS=1 pytest tests/differential/test_events.py"
