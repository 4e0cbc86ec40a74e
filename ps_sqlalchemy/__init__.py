"""SQLAlchemy on PlanetScale for Postgres: bounded transactions, reads from replicas, failovers felt as latency."""

from typing import TYPE_CHECKING, Any

from ps_core import RetryPolicy
from ps_core.context import deadline, limits, local_settings, using_primary, using_replica, without_sticky_writes
from ps_core.errors import ConfigurationError
from ps_core.share import set_replica_share
from ps_core.topology import Topology
from ps_sqlalchemy.engine import AsyncEngine, Engine, create_async_engine, create_engine, replica_of
from ps_sqlalchemy.session import AsyncSession, Session, async_sessionmaker, sessionmaker
from ps_sqlalchemy.transaction import arun_transaction, run_transaction

if TYPE_CHECKING:
    from ps_sqlalchemy.http import http_batch

__all__ = [
    "AsyncEngine",
    "AsyncSession",
    "ConfigurationError",
    "Engine",
    "RetryPolicy",
    "Session",
    "Topology",
    "arun_transaction",
    "async_sessionmaker",
    "create_async_engine",
    "create_engine",
    "deadline",
    "http_batch",
    "limits",
    "local_settings",
    "replica_of",
    "run_transaction",
    "sessionmaker",
    "set_replica_share",
    "using_primary",
    "using_replica",
    "without_sticky_writes",
]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name == "http_batch":  # most applications have no use for SQL over HTTPS, and need not wait for it
            from ps_sqlalchemy.http import http_batch

            return http_batch
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
