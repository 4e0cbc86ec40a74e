"""What both integrations share. With psycopg alone: `connect`, `connect_async`, and the blocks that bound and route work."""

from typing import TYPE_CHECKING, Any

from ps_core.tags import tags  # at once: its module has the same name

if TYPE_CHECKING:
    from ps_core._bridge.start import conninfo
    from ps_core._connection.asyncio import AsyncConnection
    from ps_core._connection.sync import Connection
    from ps_core._message.commit import marker_table_sql
    from ps_core._retry.policy import RetryPolicy
    from ps_core.consistency import Token
    from ps_core.context import (
        commit_check,
        current_token,
        deadline,
        limits,
        local_settings,
        use_token,
        using_primary,
        using_replica,
        without_sticky_writes,
    )
    from ps_core.errors import CommitOutcomeUnknown, ConfigurationError, DeadlineExceeded
    from ps_core.events import Event, subscribe
    from ps_core.failures import Failure, Kind, Ran, classify
    from ps_core.share import set_replica_share
    from ps_core.timeouts import Timeouts
    from ps_core.topology import Endpoint, Topology

    connect = Connection.connect
    connect_async = AsyncConnection.connect

__all__ = [
    "AsyncConnection",
    "CommitOutcomeUnknown",
    "ConfigurationError",
    "Connection",
    "DeadlineExceeded",
    "Endpoint",
    "Event",
    "Failure",
    "Kind",
    "Ran",
    "RetryPolicy",
    "Timeouts",
    "Token",
    "Topology",
    "classify",
    "commit_check",
    "connect",
    "connect_async",
    "conninfo",
    "current_token",
    "deadline",
    "limits",
    "local_settings",
    "marker_table_sql",
    "set_replica_share",
    "subscribe",
    "tags",
    "use_token",
    "using_primary",
    "using_replica",
    "without_sticky_writes",
]

_HOMES = {
    "_bridge.start": ("conninfo",),
    "_connection.asyncio": ("AsyncConnection",),
    "_connection.sync": ("Connection",),
    "_message.commit": ("marker_table_sql",),
    "_retry.policy": ("RetryPolicy",),
    "consistency": ("Token",),
    "context": (
        "commit_check",
        "current_token",
        "deadline",
        "limits",
        "local_settings",
        "use_token",
        "using_primary",
        "using_replica",
        "without_sticky_writes",
    ),
    "errors": (
        "CommitOutcomeUnknown",
        "ConfigurationError",
        "DeadlineExceeded",
    ),
    "events": (
        "Event",
        "subscribe",
    ),
    "failures": (
        "Failure",
        "Kind",
        "Ran",
        "classify",
    ),
    "share": ("set_replica_share",),
    "timeouts": ("Timeouts",),
    "topology": (
        "Endpoint",
        "Topology",
    ),
}
"""The module of each name: it is imported when the name is first asked for, since `ps_http` does without most of them."""

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        from importlib import import_module

        if name in ("connect", "connect_async"):
            value = __getattr__("Connection" if name == "connect" else "AsyncConnection").connect
        elif (home := next((home for home, names in _HOMES.items() if name in names), None)) is not None:
            value = getattr(import_module(f"{__name__}.{home}"), name)
        elif name.startswith("__"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        else:
            try:
                return import_module(f"{__name__}.{name}")
            except ModuleNotFoundError as exc:
                if exc.name != f"{__name__}.{name}":
                    raise
                raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
