"""SQLAlchemy on PlanetScale for Postgres: bounded transactions, reads from replicas, failovers felt as latency."""

from ps_core import RetryPolicy
from ps_core.context import deadline, limits, local_settings, using_primary, using_replica, without_sticky_writes
from ps_core.errors import ConfigurationError
from ps_core.share import set_replica_share
from ps_core.topology import Topology
from ps_sqlalchemy.engine import AsyncEngine, Engine, create_async_engine, create_engine, replica_of
from ps_sqlalchemy.http import http_batch
from ps_sqlalchemy.session import AsyncSession, Session, async_sessionmaker, sessionmaker
from ps_sqlalchemy.transaction import arun_transaction, run_transaction

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
