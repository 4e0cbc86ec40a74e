"""`connect` and `connect_async`, and what psycopg_pool connects with: for those who use psycopg alone."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Final, Literal

import psycopg

from ps_core._connection.asyncio import AsyncConnection
from ps_core._connection.cursors import AsyncServerBindingCursor, ServerBindingCursor
from ps_core._connection.sync import Connection
from ps_core._registry import replicas_of, state_of, states_of
from ps_core._retry.policy import RetryPolicy
from ps_core.context import deadline
from ps_core.errors import ConfigurationError
from ps_core.topology import Endpoint, Topology, TopologySettings

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

__all__ = ["AsyncPooledConnection", "PooledConnection", "connect", "connect_async"]

_SETTINGS: Final = frozenset(TopologySettings.__annotations__)


def connect(
    target: str | Topology | Endpoint,
    *,
    to: Literal["primary", "replica", "direct"] = "primary",
    binding: Literal["client", "server"] = "client",
    **options: Any,
) -> Connection[Any]:
    """Return a connection for those who use psycopg alone.

    `binding="server"` lets the server bind parameters (and prepared statements be used, where `prepare_threshold` is set):
    BEGIN with its settings, and COMMIT in autocommit, then travel in messages of their own.

    `target` is a role's URL, a `Topology` or one `Endpoint`; `to` names the endpoint of the first two. `options` are
    `psycopg.connect`'s, `retry` (a `RetryPolicy`) and, with a URL, the topology's settings (`bouncer`, `statement_timeout`, ...).

    Raises:
        ConfigurationError: what is asked for cannot work.
        psycopg.OperationalError: no connection could be made.
    """
    if binding == "server":
        options.setdefault("cursor_factory", ServerBindingCursor)
    return Connection.open(**_target(target, to, options), **options)


async def connect_async(
    target: str | Topology | Endpoint,
    *,
    to: Literal["primary", "replica", "direct"] = "primary",
    binding: Literal["client", "server"] = "client",
    **options: Any,
) -> AsyncConnection[Any]:
    """Like `connect`, for asyncio."""
    if binding == "server":
        options.setdefault("cursor_factory", AsyncServerBindingCursor)
    return await AsyncConnection.open(**_target(target, to, options), **options)


def _target(target: str | Topology | Endpoint, to: str, options: dict[str, Any]) -> dict[str, Any]:
    policy: RetryPolicy | None = options.pop("retry", None)
    if isinstance(target, Endpoint):
        return {"state": state_of(target, policy=policy or RetryPolicy())}
    if isinstance(target, str):
        target = Topology.from_url(target, **{name: options.pop(name) for name in list(options) if name in _SETTINGS})
    if to == "replica":
        replicas = replicas_of(target, policy=policy)
        if replicas is None:
            raise ConfigurationError("to='replica': there is none: write replica_bouncer=... or direct_replica=True")
        return {"state": replicas.first(), "replicas": replicas}
    primary, _, direct = states_of(target, policy=policy)
    return {"state": {"primary": primary, "direct": direct}[to]}


class PooledConnection(psycopg.Connection[Any]):
    """The `connection_class` of a `psycopg_pool.ConnectionPool`, whose `conninfo` and `kwargs` are then `connect`'s arguments."""

    @classmethod
    def connect(cls, conninfo: str = "", **kwargs: Any) -> Any:
        """Return `ps_core.connect`'s connection. `connect_timeout`, by which a pool bounds its wait, bounds all tries."""
        with _bounded(kwargs):
            return connect(conninfo, **kwargs)


class AsyncPooledConnection(psycopg.AsyncConnection[Any]):
    """The same for `psycopg_pool.AsyncConnectionPool`."""

    @classmethod
    async def connect(cls, conninfo: str = "", **kwargs: Any) -> Any:
        """Like `PooledConnection.connect`."""
        with _bounded(kwargs):
            return await connect_async(conninfo, **kwargs)


def _bounded(kwargs: dict[str, Any]) -> AbstractContextManager[None]:
    seconds = kwargs.pop("connect_timeout", None)
    return nullcontext() if seconds is None else deadline(seconds)
