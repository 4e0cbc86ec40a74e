"""The engine factories: a real `sqlalchemy.Engine` on the primary, with `.replica` and `.direct` beside it.

The replicas' engine shares the primary's dialect and cache of compiled statements, and what listens to the primary's hears of the
replicas' statements and connections, too: to an application it is one engine.
"""

from __future__ import annotations

import os
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Unpack, cast
from weakref import WeakSet

import sqlalchemy as sa
from sqlalchemy.dialects import registry
from sqlalchemy.engine.base import OptionEngine as SAOptionEngine
from sqlalchemy.engine.create import _pool_translate_kwargs
from sqlalchemy.ext.asyncio import AsyncEngine as SAAsyncEngine
from sqlalchemy.ext.asyncio import create_async_engine as sa_create_async_engine
from sqlalchemy.util import get_cls_kwargs

from ps_core._names import given_to_complete, nearest, no_such
from ps_core._registry import policy_for, replicas_of, states_of
from ps_core.errors import ConfigurationError, UnknownSetting
from ps_core.topology import Topology, TopologySettings
from ps_sqlalchemy.pool import max_fallback_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from ps_core import RetryPolicy
    from ps_core._endpoint import EndpointState
    from ps_core.replicas import Replicas
    from ps_core.topology import Endpoint
    from ps_sqlalchemy.options import EngineOptions

__all__ = ["AsyncEngine", "Engine", "create_async_engine", "create_engine"]

# Also for a checkout that is not installed, where there are no entry points.
registry.register("postgresql.ps", "ps_sqlalchemy.dialect", "PSDialect")
registry.register("postgresql.ps_async", "ps_sqlalchemy.dialect", "PSDialectAsync")

_SETTINGS = frozenset(TopologySettings.__annotations__)
# Bouncers drain within 24 hours; the connection that was used last is the one that is least likely to have been dropped.
_POOL_DEFAULTS = {"pool_recycle": 3600, "pool_timeout": 10, "pool_use_lifo": True}
_POOL_OPTIONS = ("pool_", "max_overflow")
_SIDES = ("replica_", "direct_")
# What sqlalchemy.create_engine takes itself, beside what it hands to the dialect, the pool and the engine.
_OF_FACTORY = frozenset(
    {"connect_args", "empty_in_strategy", "enable_from_linting", "future", "plugins", "poolclass"}
    | {"_coerce_config", "_initialize", "_is_async"}
)
_CONNECTS = frozenset({"creator", "async_creator", "module", "pool"})
# What it, or we, fill in.
_FILLED_IN = frozenset({*_CONNECTS, "_dispatch", "dbapi", "dialect", "ps_policy", "ps_state", "url"})
_POOL_EVENTS = ("connect", "checkout", "checkin", "reset", "invalidate", "soft_invalidate", "close", "detach", "close_detached")

_engines: WeakSet[Engine] = WeakSet()


class Engine(sa.Engine):
    """An engine on the primary endpoint."""

    topology: Topology
    replica: sa.Engine | None
    """An engine on the replica endpoints; None where the topology has none."""
    _ps_make_direct: Callable[[], sa.Engine]

    @cached_property
    def direct(self) -> sa.Engine:
        """An engine on the direct endpoint, for migrations, LISTEN and session features. Made when it is first asked for."""
        return self._ps_make_direct()

    def dispose(self, close: bool = True) -> None:
        """Dispose the pools of all endpoints."""
        super().dispose(close=close)
        for engine in (self.replica, self.__dict__.get("direct")):
            if engine is not None:
                engine.dispose(close=close)


class _OptionEngine(SAOptionEngine):
    """What `Engine.execution_options()` returns: the same endpoints under other options."""

    _proxied: Engine

    @property
    def topology(self) -> Topology:
        return self._proxied.topology

    @cached_property
    def replica(self) -> sa.Engine | None:
        replica = self._proxied.replica
        return None if replica is None else replica.execution_options(**self._ps_options)

    @cached_property
    def direct(self) -> sa.Engine:
        return self._proxied.direct.execution_options(**self._ps_options)

    def update_execution_options(self, **opt: Any) -> None:
        super().update_execution_options(**opt)
        self._ps_options = {**self.__dict__.get("_ps_options", {}), **opt}
        for name in ("replica", "direct"):
            self.__dict__.pop(name, None)


Engine._option_cls = _OptionEngine


class _ReplicaOption(SAOptionEngine):
    """The same under other options."""

    _proxied: _Replica

    @property
    def ps_replicas(self) -> Replicas:
        return self._proxied.ps_replicas


class _Replica(sa.Engine):
    """The engine on the replica endpoints. Made from one of SQLAlchemy's by `_join`."""

    _option_cls = _ReplicaOption
    _ps_primary: Engine
    ps_replicas: Replicas
    """The endpoints."""

    @property
    def _has_events(self) -> bool:
        return self._ps_primary._has_events or self.__dict__.get("_has_events", False)

    @_has_events.setter
    def _has_events(self, value: bool) -> None:
        self.__dict__["_has_events"] = value

    def _ps_join(self, primary: Engine) -> None:
        self._ps_primary = primary
        self.dialect = primary.dialect
        self._compiled_cache = primary._compiled_cache
        self.dispatch = self.dispatch._join(primary.dispatch)  # as SQLAlchemy's OptionEngine does it
        self.pool._dialect = primary.dialect
        self.pool.__dict__.pop("dispatch", None)  # what its own dialect had registered
        for name in _POOL_EVENTS:
            sa.event.listen(self.pool, name, partial(_forward, primary, name))


def _forward(primary: Engine, name: str, *args: Any) -> None:
    for listener in getattr(primary.pool.dispatch, name):
        listener(*args)


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
        ConfigurationError: what is asked for cannot work.
    """
    return _create(target, retry, cast("dict[str, Any]", options), "postgresql+ps", sa.create_engine)


def create_async_engine(
    target: str | sa.URL | Topology, *, retry: RetryPolicy | None = None, **options: Unpack[EngineOptions]
) -> AsyncEngine:
    """Like `create_engine`, for asyncio."""

    def make(url: sa.URL, **kwargs: Any) -> sa.Engine:
        return sa_create_async_engine(url, **kwargs).sync_engine

    return AsyncEngine(_create(target, retry, cast("dict[str, Any]", options), "postgresql+ps_async", make))


def _create(
    target: str | sa.URL | Topology,
    retry: RetryPolicy | None,
    options: dict[str, Any],
    drivername: str,
    factory: Callable[..., sa.Engine],
) -> Engine:
    settings = {name: options.pop(name) for name in list(options) if name in _SETTINGS}
    sides = {
        side: {name.removeprefix(side): options.pop(name) for name in list(options) if name.startswith(side)} for side in _SIDES
    }
    _check_options(options, sides, drivername)
    if isinstance(target, Topology):
        if settings:
            raise given_to_complete(target, settings)
        topology = target
    else:
        url = target.render_as_string(hide_password=False) if isinstance(target, sa.URL) else target
        topology = Topology.from_url(url, **settings)
    primary, _, direct = states_of(topology)
    replicas = replicas_of(topology)
    if replicas is None and sides["replica_"]:
        names = ", ".join(f"replica_{name}" for name in sides["replica_"])
        raise ConfigurationError(f"{names}: there are no replicas: write replica_bouncer=..., or leave this out")
    policy = retry or policy_for(topology.retry_timeout)

    def make(state: EndpointState, side: dict[str, Any], **defaults: Any) -> sa.Engine:
        given = {**options, **side}
        if "poolclass" in side:  # sizes that were meant for another class
            given = {name: value for name, value in given.items() if name in side or not name.startswith(_POOL_OPTIONS)}
        elif "poolclass" not in given:
            given = {**_POOL_DEFAULTS, **defaults, **given}
        # Loggers tell the sides apart: sqlalchemy.engine.Engine.replica, or .NAME.replica.
        name = f"{given['logging_name']}.{state.endpoint.role}" if given.get("logging_name") else state.endpoint.role
        names = {"logging_name": name, "pool_logging_name": name}
        arguments = {**names, **given, "logging_name": name}
        return factory(_url(state.endpoint, drivername), ps_state=state, ps_policy=policy, **arguments)

    engine = make(primary, {})
    engine.__class__ = Engine  # sqlalchemy.create_engine offers no way to name the class
    assert isinstance(engine, Engine)
    engine.topology = topology
    engine.replica = None
    if replicas is not None:
        if (max_fallback := max_fallback_of(topology.replica_fallback, engine)) is not None:
            replicas = replicas.limited_to(max_fallback)
        # Whatever connection was used last: over several endpoints, reads should be spread.
        side = sides["replica_"]
        connect_args = {**options, **side}.get("connect_args", {})
        execution_options = {**options, **side}.get("execution_options", {})
        if "isolation_level" in side:  # of the dialect, which both sides share; an engine may have one of its own
            execution_options = {**execution_options, "isolation_level": side.pop("isolation_level")}
        # These go to the engine's dialect, so that they have to wait for the one that it keeps.
        replica = make(replicas.states[0], {**side, "execution_options": {}}, pool_use_lifo=len(replicas.states) == 1)
        replica.pool._creator = _creator(engine.dialect, replica.url, connect_args, replicas)
        replica.__class__ = _Replica
        assert isinstance(replica, _Replica)
        replica._ps_join(engine)
        replica.ps_replicas = replicas
        replica.update_execution_options(**execution_options)
        engine.replica = replica
    engine._ps_make_direct = lambda: make(direct, sides["direct_"])
    _engines.add(engine)
    return engine


def _check_options(options: Mapping[str, Any], sides: Mapping[str, Mapping[str, Any]], drivername: str) -> None:
    """Refuse each option that SQLAlchemy would not take: it would say so late, or, for a side that there is not, never.

    `options` hold for all endpoints, those of `sides` (without their prefix) for one.

    Raises:
        UnknownSetting: there is no such option, or the pool class takes none of that name.
        ConfigurationError: the option says how to connect, or cannot be another one for the replicas.
    """
    dialect: Any = sa.URL.create(drivername).get_dialect()
    usual = dialect.get_pool_class(sa.URL.create(drivername))
    known = _options_of(dialect, usual)
    names = ["retry", *_SETTINGS, *known, *(side + name for side in _SIDES for name in known)]
    of_all = options.get("poolclass") or usual
    shared = _shared_by_replicas(dialect)
    for side, given in (("", options), *sides.items()):
        poolclass = given.get("poolclass") or of_all
        taken = _options_of(dialect, poolclass)
        for name in given:
            if side == "replica_" and name in shared:
                raise ConfigurationError(f"replica_{name}: replicas share it with the primary: write {name}, for all endpoints")
            if name in taken:
                continue
            if name in _CONNECTS:
                raise ConfigurationError(
                    f"{side}{name}: the topology says how to connect: write the URL's parameters, {side}connect_args,"
                    f" {side}poolclass or {side}pool_size"
                )
            if name in known:
                raise UnknownSetting(
                    f"{side}{name}: {poolclass.__name__} has no such option: leave it out, or write another poolclass"
                )
            # A plugin may take any other one. What none takes, SQLAlchemy refuses.
            if ("plugins" in options or "plugins" in given) and nearest(side + name, _SETTINGS, cutoff=0.85) is None:
                continue
            raise no_such(
                "option",
                side + name,
                names,
                otherwise="write a setting of ps_core.topology.TopologySettings, or an option of sqlalchemy.create_engine",
            )


def _options_of(dialect: type, poolclass: type) -> Collection[str]:
    """Return the keywords of `sqlalchemy.create_engine` with this dialect and pool, as it finds them itself."""
    of_pool = (_pool_translate_kwargs.get(name, name) for name in get_cls_kwargs(poolclass))
    return {*_OF_FACTORY, *get_cls_kwargs(dialect), *of_pool, *get_cls_kwargs(sa.Engine)} - _FILLED_IN


def _shared_by_replicas(dialect: type) -> Collection[str]:
    """Return the options of what the replicas' engine has from the primary's: its dialect, and its cache of statements."""
    return {*get_cls_kwargs(dialect), "enable_from_linting", "query_cache_size"} - {"isolation_level"}


def _creator(dialect: Any, url: sa.URL, connect_args: dict[str, Any], replicas: Replicas) -> Callable[..., Any]:
    """Return what connects to the replicas, as sqlalchemy.create_engine makes it for the primary."""
    cargs, cparams = dialect.create_connect_args(url)
    cparams.update(connect_args)

    def connect(connection_record: Any = None) -> Any:  # SQLAlchemy looks for this name
        args, params = list(cargs), dict(cparams)
        for listener in dialect.dispatch.do_connect if dialect._has_events else ():
            connection = listener(dialect, connection_record, args, params)
            if connection is not None:
                return connection
        return dialect.connect(*args, ps_replicas=replicas, **params)

    return connect


def _url(endpoint: Endpoint, drivername: str) -> sa.URL:
    query: dict[str, Any] = dict(endpoint.params)
    host: str | None = endpoint.host
    port: int | None = None if endpoint.ports == (None,) else endpoint.port
    if "," in endpoint.host or endpoint.host.startswith("/"):  # where SQLAlchemy has several hosts, and Unix sockets
        info = endpoint.conninfo()
        query |= {name: str(info[name]) for name in ("host", "port") if name in info}
        host = port = None
    return sa.URL.create(
        drivername,
        username=endpoint.user or None,
        password=endpoint.password or None,
        host=host or None,
        port=port,
        database=endpoint.dbname or None,
        query=query,
    )


def _forget_connections() -> None:
    # A process that was forked must not use its parent's connections, nor close them.
    for engine in list(_engines):
        engine.dispose(close=False)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_connections)
