"""The engine factories: a real `sqlalchemy.Engine` on the primary, with `.replica` and `.direct` beside it."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects import registry
from sqlalchemy.ext.asyncio import AsyncEngine as SAAsyncEngine
from sqlalchemy.ext.asyncio import create_async_engine as sa_create_async_engine

from ps_core.link import Link, links_of
from ps_core.retry import RetryPolicy
from ps_core.topology import Topology, TopologySettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from ps_core.topology import Endpoint

__all__ = ["AsyncEngine", "Engine", "create_async_engine", "create_engine"]

# Also for a checkout that is not installed, where there are no entry points.
registry.register("postgresql.ps", "ps_sqlalchemy.dialect", "PSDialect")
registry.register("postgresql.ps_async", "ps_sqlalchemy.dialect", "PSDialectAsync")

_SETTINGS = frozenset(TopologySettings.__annotations__)
# Bouncers drain within 24 hours; the connection that was used last is the one that is least likely to have been dropped.
_POOL_DEFAULTS = {"pool_recycle": 3600, "pool_timeout": 10, "pool_use_lifo": True}


class Engine(sa.Engine):
    """An engine on the primary endpoint."""

    topology: Topology
    replica: sa.Engine | None
    """An engine on the replica endpoint; None where the topology has none."""
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


class AsyncEngine(SAAsyncEngine):
    """An asyncio engine on the primary endpoint."""

    sync_engine: Engine

    @cached_property
    def replica(self) -> SAAsyncEngine | None:
        """An engine on the replica endpoint; None where the topology has none."""
        engine = self.sync_engine.replica
        return None if engine is None else SAAsyncEngine(engine)

    @cached_property
    def direct(self) -> SAAsyncEngine:
        """An engine on the direct endpoint."""
        return SAAsyncEngine(self.sync_engine.direct)


def create_engine(target: str | sa.URL | Topology, *, retry: RetryPolicy | None = None, **options: Any) -> Engine:
    """Return an engine on the primary with `.replica` and `.direct`.

    `target` is a role's URL as PlanetScale shows it, or a `Topology`. `options` are the topology's settings (`bouncer`,
    `replica_bouncer`, `statement_timeout`, ...; see `ps_core.topology.TopologySettings`) and all of `sqlalchemy.create_engine`'s,
    which hold for the pool of each endpoint.

    Raises:
        ConfigurationError: what is asked for cannot work.
    """
    return _create(target, retry, options, "postgresql+ps", sa.create_engine)


def create_async_engine(target: str | sa.URL | Topology, *, retry: RetryPolicy | None = None, **options: Any) -> AsyncEngine:
    """Like `create_engine`, for asyncio."""

    def make(url: sa.URL, **kwargs: Any) -> sa.Engine:
        return sa_create_async_engine(url, **kwargs).sync_engine

    return AsyncEngine(_create(target, retry, options, "postgresql+ps_async", make))


def _create(
    target: str | sa.URL | Topology,
    retry: RetryPolicy | None,
    options: dict[str, Any],
    drivername: str,
    factory: Callable[..., sa.Engine],
) -> Engine:
    settings = {name: options.pop(name) for name in list(options) if name in _SETTINGS}
    if isinstance(target, Topology):
        if settings:
            raise TypeError(f"a Topology is complete: give {', '.join(settings)} to Topology.from_url instead")
        topology = target
    else:
        url = target if isinstance(target, str) else target.render_as_string(hide_password=False)
        topology = Topology.from_url(url, **settings)
    policy = retry or RetryPolicy()
    if "poolclass" not in options and "pool" not in options:
        options = {**_POOL_DEFAULTS, **options}

    primary, replicas, direct = links_of(topology, policy=policy)

    def make(link: Link) -> sa.Engine:
        return factory(_url(link.endpoint, drivername), ps_link=link, **options)

    engine = make(primary)
    engine.__class__ = Engine  # sqlalchemy.create_engine offers no way to name the class
    assert isinstance(engine, Engine)
    engine.topology = topology
    engine.replica = make(replicas[0]) if replicas else None
    engine._ps_make_direct = lambda: make(direct)
    return engine


def _url(endpoint: Endpoint, drivername: str) -> sa.URL:
    return sa.URL.create(
        drivername,
        username=endpoint.user,
        password=endpoint.password,
        host=endpoint.host,
        port=endpoint.port,
        database=endpoint.dbname,
        query=dict(endpoint.params),
    )
