"""What both integrations share. With psycopg alone: `connect`, `connect_async`, and the blocks that bound and route work."""

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
from ps_core.tags import tags
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
