"""The engines: a real `sqlalchemy.Engine` on the primary, with `.replica` and `.direct` beside it.

An engine made from a URL alone has them, too (`adopt`, which the dialect calls). The replicas' engine shares the primary's
dialect and cache of compiled statements. What listens to the primary's, or to SQLAlchemy's classes, gets the events of the
others' statements and connections, too, once each: to an application it is one engine.
"""

from __future__ import annotations

import os
from functools import cached_property, partial
from inspect import getclosurevars, unwrap
from typing import TYPE_CHECKING, Any, Final, TypeAlias, Unpack, cast
from weakref import WeakSet

import sqlalchemy as sa
from sqlalchemy.dialects import registry
from sqlalchemy.engine.base import OptionEngine as SAOptionEngine
from sqlalchemy.event.base import _JoinedDispatcher as JoinedDispatcher
from sqlalchemy.ext import asyncio as sa_asyncio
from sqlalchemy.ext.asyncio import AsyncEngine as SAAsyncEngine

from ps_core._names import given_to_complete
from ps_core._registry import policy_for
from ps_core._retry.policy import checked_policy
from ps_core.errors import ConfigurationError
from ps_core.share import replica_share
from ps_core.topology import Topology
from ps_sqlalchemy.options import SETTINGS, SIDES, check_options, options_of
from ps_sqlalchemy.pool import max_fallback_of
from ps_sqlalchemy.url import TO, endpoint_of, url_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ps_core import RetryPolicy
    from ps_core.replicas import Replicas
    from ps_sqlalchemy.options import EngineOptions
    from ps_sqlalchemy.url import To

__all__ = [
    "READ_ONLY_ON_PRIMARY",
    "AsyncEngine",
    "Engine",
    "adopt",
    "create_async_engine",
    "create_engine",
    "read_only",
    "replica_of",
    "root_of",
]

Sides: TypeAlias = "Callable[[To], tuple[sa.Engine, Mapping[str, Any]]]"
"""What makes an engine of the same kind on other endpoints; and its execution options."""

READ_ONLY_ON_PRIMARY: Final = "primary"
"""A value of `postgresql_readonly` on an engine that was made from a URL alone: READ ONLY, and not on a replica."""

# Also for a checkout that is not installed, where there are no entry points.
registry.register("postgresql.ps", "ps_sqlalchemy.dialect", "PSDialect")
registry.register("postgresql.ps_async", "ps_sqlalchemy.dialect", "PSDialectAsync")

# Bouncers drain within 24 hours; the connection that was used last is the one that is least likely to have been dropped.
_POOL_DEFAULTS = {"pool_recycle": 3600, "pool_timeout": 10, "pool_use_lifo": True}
_POOL_EVENTS = (
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

_engines: WeakSet[Engine] = WeakSet()


def root_of(engine: Any) -> Any:
    """Return the engine of which this one is a form with other options."""
    while hasattr(engine, "_proxied"):
        engine = engine._proxied
    return engine


def _take(engine: sa.Engine, options: Mapping[str, Any]) -> None:
    """Let `engine` take on options of the primary's, where `set_engine_execution_options` was heard."""
    engine._execution_options = engine._execution_options.union(options)
    engine.dialect.set_engine_execution_options(engine, options)


class Engine(sa.Engine):
    """An engine on the primary endpoint."""

    topology: Topology
    replica: sa.Engine | None
    """An engine on the replica endpoints; None where the topology has none."""
    _ps_make_direct: Callable[[], _Side]

    @cached_property
    def direct(self) -> sa.Engine:
        """An engine on the direct endpoint, for migrations, LISTEN and session features. Made when it is first asked for."""
        side = self._ps_make_direct()
        _take(side, self.__dict__.get("_ps_updates", {}))
        return side

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in ("_has_events", "echo"):  # the first is asked too often to be a property of the others
            for side in self._ps_sides():
                setattr(side, name, value)

    def _ps_sides(self) -> list[_Side]:
        return [side for side in map(self.__dict__.get, ("replica", "direct")) if isinstance(side, _Side)]

    def update_execution_options(self, **opt: Any) -> None:
        """Update the options of the engine, and of those on the other endpoints."""
        super().update_execution_options(**opt)
        self._ps_updates = {**self.__dict__.get("_ps_updates", {}), **opt}
        for side in self._ps_sides():
            _take(side, opt)

    def dispose(self, close: bool = True) -> None:
        """Dispose the pools of all endpoints."""
        for side in self._ps_sides():
            side._ps_dispose(close)
        super().dispose(close=close)

    def _ps_forget(self) -> None:
        """Leave all connections to the process that this one was forked from."""
        for engine in (self, *self._ps_sides()):
            engine.pool = engine.pool.recreate()


class _Options(SAOptionEngine):
    """What `execution_options()` of one of these engines returns."""

    def __init__(self, proxied: Any, options: Any, *, told: bool = False) -> None:
        self._ps_told = told
        """Those who listen know of these options, or need not: it is an engine of our own."""
        super().__init__(proxied, options)
        self._ps_told = False

    def update_execution_options(self, **opt: Any) -> None:
        if self._ps_told:
            _take(self, opt)
        else:
            super().update_execution_options(**opt)


class _OptionEngine(_Options):
    """The same endpoints under other options."""

    _proxied: Engine

    @property
    def topology(self) -> Topology:
        return self._proxied.topology

    def dispose(self, close: bool = True) -> None:
        """Dispose the pools of all endpoints, which are those of the engine that this one was made of."""
        for side in root_of(self)._ps_sides():
            side._ps_dispose(close)
        super().dispose(close=close)

    @cached_property
    def replica(self) -> sa.Engine | None:
        replica = self._proxied.replica
        return None if replica is None else _SideOption(replica, self._ps_options, beside=self)

    @cached_property
    def direct(self) -> sa.Engine:
        return _SideOption(self._proxied.direct, self._ps_options, beside=self)

    def update_execution_options(self, **opt: Any) -> None:
        super().update_execution_options(**opt)
        self._ps_options = {**self.__dict__.get("_ps_options", {}), **opt}
        for side in map(self.__dict__.get, ("replica", "direct")):
            if isinstance(side, _SideOption):
                _take(side, opt)


Engine._option_cls = _OptionEngine._option_cls = _OptionEngine


class _Side(sa.Engine):
    """An engine beside the primary's. Made from one of SQLAlchemy's by `_join`."""

    # The primary's listeners hear of it, and those of the classes are among them.
    _sa_propagate_class_events = False
    _ps_primary: Engine
    ps_replicas: Replicas | None = None
    """The endpoints, where it is the replicas'."""

    def _ps_dispose(self, close: bool) -> None:
        """Begin with a new pool, as the primary does: `engine_disposed` is heard there."""
        if close:
            self.pool.dispose()
        self.pool = self.pool.recreate()


class _Listeners(JoinedDispatcher[Any]):
    """What listens to an engine beside the primary's, but not to that; and all that listens to an engine on the primary."""

    def __init__(self, side: _Side | _SideOption, beside: Any) -> None:
        super().__init__(cast("Any", side.dispatch), beside.dispatch)
        self._side = side

    def __getattr__(self, name: str) -> Any:
        own: list[Any] = []
        side: Any = self._side
        while side is not None:
            own += getattr(side.dispatch, name).parent_listeners
            side = side._proxied if isinstance(side, _SideOption) else None
        return (*own, *getattr(self.parent, name))


class _SideOption(_Options):
    """The same under other options: those that it was given itself, or those of an engine on the primary, `beside` it."""

    _proxied: _Side
    _ps_beside: _OptionEngine | None = None

    def __init__(self, proxied: Any, options: Any, *, beside: _OptionEngine | None = None) -> None:
        if beside is None:
            super().__init__(proxied, options)
            return
        super().__init__(proxied, {}, told=True)
        self._ps_beside = beside
        joined: Any = self.dispatch
        joined.parent = _Listeners(proxied, beside)
        _take(self, options)

    @property
    def ps_replicas(self) -> Replicas | None:
        return self._proxied.ps_replicas

    @property
    def _has_events(self) -> bool:
        return (
            self._proxied._has_events
            or self.__dict__.get("_has_events", False)
            or (self._ps_beside is not None and self._ps_beside._has_events)
        )

    @_has_events.setter
    def _has_events(self, value: bool) -> None:
        self.__dict__["_has_events"] = value


_Side._option_cls = _SideOption._option_cls = _SideOption


def read_only(engine: Any) -> sa.Engine:
    """Return `engine` with connections that are READ ONLY, and stay on its endpoint; the same one each time."""
    reader: sa.Engine | None = engine.__dict__.get("_ps_reader")
    if reader is None:
        options = {"postgresql_readonly": READ_ONLY_ON_PRIMARY}
        ours = issubclass(engine._option_cls, _OptionEngine)
        reader = _OptionEngine(engine, options, told=True) if ours else engine.execution_options(**options)
        engine.__dict__["_ps_reader"] = reader
    return reader


def replica_of(engine: Any) -> Any:
    """Return the engine on the replica endpoints beside `engine`; None where it has none.

    It takes what SQLAlchemy's `create_engine` or `create_async_engine` returned, too: their AsyncEngine has no `replica`.
    """
    if isinstance(engine, SAAsyncEngine):
        replica = getattr(engine.sync_engine, "replica", None)
        return None if replica is None else SAAsyncEngine(replica)
    return getattr(engine, "replica", None)


def adopt(engine: sa.Engine) -> None:
    """Make what SQLAlchemy has made of a URL of this dialect's an `Engine`, with the engines beside it.

    Raises:
        ConfigurationError: it cannot have them.
    """
    dialect: Any = engine.dialect
    topology: Topology = dialect.ps_topology
    connect_args = _own_creator(engine, dialect)
    engine.__class__ = Engine  # sqlalchemy.create_engine offers no way to name the class
    assert isinstance(engine, Engine)
    heard = engine.__dict__.pop("dispatch", None)
    if heard is not None:
        engine.dispatch._update(heard, only_propagate=False)
    engine.topology, engine.replica = topology, None
    make = dialect.ps_sides or partial(_like, engine, connect_args or {})
    own = frozenset(_sqlalchemys(engine.pool))  # each pool has its own
    engine._ps_make_direct = lambda: _join(make("direct"), engine, besides=own)
    if topology.replicas:
        if connect_args is None:
            raise ConfigurationError(
                "creator, pool: the URL says how to connect to the primary and to replicas: write connect_args, or poolclass"
            )
        bound = max_fallback_of(topology.replica_fallback, engine)
        engine.replica = _join(make("replica"), engine, max_fallback=bound)
    _engines.add(engine)


def _own_creator(engine: sa.Engine, dialect: Any) -> dict[str, Any] | None:
    """Let the pool connect by `PSDialect.ps_open`, and return the `connect_args`; None: the user has a creator of their own."""
    creator: Any = engine.pool._creator
    made = getclosurevars(creator).nonlocals if getattr(creator, "__module__", "") == "sqlalchemy.engine.create" else {}
    if made.get("dialect") is not dialect:
        return None
    assert dialect is not None
    usual = dialect.create_connect_args(engine.url)[1]
    given = {name: value for name, value in made["cparams"].items() if name not in usual or usual[name] != value}

    def connect(connection_record: Any = None) -> Any:  # SQLAlchemy looks for this name
        return dialect.ps_open(given, connection_record)

    engine.pool._creator = connect
    dialect.ps_connect_args = given
    return given


def _factory(drivername: str, to: To) -> Callable[..., sa.Engine]:
    """Return SQLAlchemy's function that makes engines; for those beside the primary's what is inside of a tool's wrapper.

    Tools that put themselves around it (OpenTelemetry) tell their listeners about each engine that it makes.
    """
    asynchronous = drivername == "postgresql+ps_async"
    if to != "primary":
        # What create_async_engine calls, which tools put themselves around, too.
        return partial(unwrap(sa.create_engine), **({"_is_async": True} if asynchronous else {}))
    if not asynchronous:
        return sa.create_engine
    create = sa_asyncio.create_async_engine
    return lambda url, **kwargs: create(url, **kwargs).sync_engine


def _like(engine: Engine, connect_args: dict[str, Any], to: To) -> tuple[sa.Engine, Mapping[str, Any]]:
    """Return an engine on other endpoints that is as SQLAlchemy was asked to make this one."""
    dialect: Any = engine.dialect
    arguments = {name: value for name, value in dialect.ps_arguments.items() if name != "compiler_linting"}
    drivername = "postgresql+ps_async" if dialect.is_async else "postgresql+ps"
    cache = engine._compiled_cache
    made = _factory(drivername, to)(
        url_of(endpoint_of(engine.topology, to), drivername),
        poolclass=sa.NullPool,
        ps_topology=engine.topology,
        ps_to=to,
        ps_policy=dialect.ps_policy,
        connect_args=connect_args,
        enable_from_linting=bool(dialect.ps_arguments.get("compiler_linting")),
        hide_parameters=engine.hide_parameters,
        echo=engine.echo,
        logging_name=_logging_name(getattr(engine, "logging_name", None), to),
        query_cache_size=0 if cache is None else cast("Any", cache).capacity,
        **arguments,
    )
    # A pool's sizes are known to itself alone.
    pool, as_made = engine.pool.recreate(), made.pool
    pool._creator, pool._dialect = as_made._creator, as_made._dialect
    pool.__dict__.pop("dispatch", None)
    pool.dispatch._update(as_made.dispatch, only_propagate=False)
    made.pool = pool
    return made, engine.get_execution_options()


def _join(
    made: tuple[sa.Engine, Mapping[str, Any]],
    primary: Engine,
    *,
    besides: frozenset[Any] = frozenset(),
    max_fallback: int | None = None,
) -> _Side:
    """Pass this engine's events to what listens to the primary's, but for the listeners `besides`."""
    side, execution_options = made
    dialect: Any = side.dialect
    _own_creator(side, dialect)
    side.__class__ = _Side
    assert isinstance(side, _Side)
    side._ps_primary = primary
    if "_has_events" in primary.__dict__:
        side._has_events = primary._has_events
    side.__dict__.pop("dispatch", None)
    side.dispatch = side.dispatch._join(primary.dispatch)  # as SQLAlchemy's OptionEngine does it
    if dialect.ps_replicas is not None:
        if max_fallback is not None:
            dialect.ps_replicas = dialect.ps_replicas.limited_to(max_fallback)
        side.ps_replicas = dialect.ps_replicas
        # One dialect for both, so that a statement is compiled once; the other one connects.
        dialect.dispatch = primary.dialect.dispatch
        shared: Any = primary.dialect
        side.dialect = side.pool._dialect = shared
        side._compiled_cache = primary._compiled_cache
        side.pool.__dict__.pop("dispatch", None)
        if shared.ps_goes_to is not None:
            shared.ps_goes_to = side.ps_replicas
    else:
        own = _sqlalchemys(side.pool)
        side.pool.__dict__.pop("dispatch", None)  # with what plugins let listen: that hears of the primary's
        for listener in own:
            sa.event.listen(side.pool, "connect", listener)
        dialect.ps_join(primary.dialect)
    dialect.ps_heard_by = primary.dialect
    _take(side, execution_options)
    for name in _POOL_EVENTS:
        sa.event.listen(side.pool, name, partial(_forward, primary, name, besides))
    return side


def _sqlalchemys(pool: sa.pool.Pool) -> list[Any]:
    """Return what SQLAlchemy itself lets listen to the pool of an engine that it has just made."""
    listeners: Any = pool.dispatch.connect
    return [listener for listener in listeners.listeners if getattr(listener, "__module__", "").startswith("sqlalchemy.")]


def _forward(primary: Engine, name: str, besides: frozenset[Any], *args: Any) -> None:
    for listener in tuple(getattr(primary.pool.dispatch, name).listeners):
        if listener not in besides:
            listener(*args)


def _logging_name(given: str | None, to: To) -> str:
    # Loggers tell the sides apart: sqlalchemy.engine.Engine.replica, or .NAME.replica.
    return f"{given}.{to}" if given else to


class AsyncEngine(SAAsyncEngine):
    """An asyncio engine on the primary endpoint."""

    sync_engine: Engine

    @property
    def topology(self) -> Topology:
        """The endpoints."""
        return self.sync_engine.topology

    @cached_property
    def replica(self) -> SAAsyncEngine | None:
        """An engine on the replica endpoints; None where the topology has none."""
        engine = self.sync_engine.replica
        return None if engine is None else SAAsyncEngine(engine)

    @cached_property
    def direct(self) -> SAAsyncEngine:
        """An engine on the direct endpoint."""
        return SAAsyncEngine(self.sync_engine.direct)

    def execution_options(self, **opt: Any) -> AsyncEngine:
        """Return the same engine under other options."""
        return AsyncEngine(self.sync_engine.execution_options(**opt))


def create_engine(
    target: str | sa.URL | Topology, *, retry: RetryPolicy | None = None, **options: Unpack[EngineOptions]
) -> Engine:
    """Return an engine on the primary with `engine.replica` and `engine.direct`.

    `target` is a role's URL as PlanetScale shows it, or a `Topology`. `options` are the topology's settings (`bouncer`,
    `replica_bouncer`, `statement_timeout`, ...; see `ps_core.topology.TopologySettings`) and all of `sqlalchemy.create_engine`'s,
    which hold for all endpoints; `replica_` or `direct_` before one of them is for that side alone, as in `replica_pool_size=20`.
    `retry` is the whole policy of which `retry_timeout` is the length.

    Raises:
        ConfigurationError: these settings cannot work together, or one of them cannot work at all.
    """
    return _create(target, retry, cast("dict[str, Any]", options), "postgresql+ps")


def create_async_engine(
    target: str | sa.URL | Topology, *, retry: RetryPolicy | None = None, **options: Unpack[EngineOptions]
) -> AsyncEngine:
    """Like `create_engine`, for asyncio."""
    return AsyncEngine(_create(target, retry, cast("dict[str, Any]", options), "postgresql+ps_async"))


def _create(target: str | sa.URL | Topology, retry: RetryPolicy | None, options: dict[str, Any], drivername: str) -> Engine:
    settings = {name: options.pop(name) for name in list(options) if name in SETTINGS}
    sides = {
        side: {name.removeprefix(side): options.pop(name) for name in list(options) if name.startswith(side)} for side in SIDES
    }
    check_options(options, sides, drivername)
    if isinstance(target, Topology):
        if settings:
            raise given_to_complete(target, settings)
        topology = target
    else:
        url = target.render_as_string(hide_password=False) if isinstance(target, sa.URL) else target
        if f"{TO}=" in str(url):
            raise ConfigurationError(
                f"{TO}: this URL leads to one endpoint: give it to sqlalchemy.create_engine, or write the role's URL here"
            )
        topology = Topology.from_url(url, **settings)
    if not topology.replicas and sides["replica_"]:
        names = ", ".join(f"replica_{name}" for name in sides["replica_"])
        raise ConfigurationError(f"{names}: there are no replicas: write replica_bouncer=..., or leave this out")
    policy = policy_for(topology.retry_timeout) if retry is None else checked_policy(retry)
    if str(sides["replica_"].get("isolation_level")).upper().replace("_", " ") == "SERIALIZABLE":
        raise ConfigurationError(
            "replica_isolation_level: a replica has no SERIALIZABLE: write 'REPEATABLE READ', or isolation_level='SERIALIZABLE',"
            " with which sessions use the primary"
        )
    replica_share()  # a wrong PS_REPLICA_SHARE would be noticed by the first read

    def make(to: To, **more: Any) -> tuple[sa.Engine, Mapping[str, Any]]:
        side = sides.get(f"{to}_", {})
        given = {**options, **side}
        if "poolclass" in side:  # sizes that were meant for another class
            taken = options_of(drivername, given["poolclass"])
            given = {name: value for name, value in given.items() if name in side or name in taken}
        elif "poolclass" not in given:
            # Over several endpoints, reads should be spread: not to whatever connection was used last.
            lifo = to != "replica" or len(topology.replicas) == 1
            given = {**_POOL_DEFAULTS, "pool_use_lifo": lifo, **given}
        execution_options = given.pop("execution_options", None) or {}
        if to == "replica" and "isolation_level" in side:
            # Of the dialect, which both sides share; an engine may have one of its own.
            given.pop("isolation_level")
            if (level := side["isolation_level"]) is not None:
                execution_options = {**execution_options, "isolation_level": level}
        name = _logging_name(given.get("logging_name"), to)
        arguments = {"pool_logging_name": name, **given, "logging_name": name}
        url = url_of(endpoint_of(topology, to), drivername)
        engine = _factory(drivername, to)(url, ps_topology=topology, ps_to=to, ps_policy=policy, **arguments, **more)
        return engine, execution_options

    engine, _ = make("primary", ps_sides=make, execution_options=options.get("execution_options"))
    assert isinstance(engine, Engine)
    return engine


def _forget_connections() -> None:
    # A process that was forked must not use its parent's connections, nor close them.
    for engine in list(_engines):
        engine._ps_forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_connections)
