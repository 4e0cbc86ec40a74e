"""Django on PlanetScale for Postgres: bounded transactions, reads from replicas, failovers felt as latency.

Three settings: `DATABASES = ps_django.databases(url, ...)`, `DATABASE_ROUTERS = ["ps_django.routers.ReplicaRouter"]`, and the
middleware. Nothing here imports Django's ORM, so that a settings module can import it.
"""

from ps_core.context import using_primary, using_replica
from ps_core.errors import ConfigurationError
from ps_django.config import databases

__all__ = ["ConfigurationError", "databases", "reading", "using_primary", "using_replica"]

reading = using_replica
