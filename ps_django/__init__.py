"""Django on PlanetScale for Postgres: bounded transactions, reads from replicas, failovers felt as latency.

Three settings: `DATABASES = ps_django.databases(url, ...)`, `DATABASE_ROUTERS = ["ps_django.routers.ReplicaRouter"]`, and the
middleware. Nothing here imports Django's ORM, so that a settings module can import it.
"""

from typing import TYPE_CHECKING, Any

from django.core.checks import Tags, register

from ps_core.context import (
    deadline,
    limits,
    local_settings,
    reading,
    use_token,
    using_primary,
    using_replica,
    without_sticky_writes,
)
from ps_core.errors import ConfigurationError
from ps_core.share import set_replica_share
from ps_django.config import databases

if TYPE_CHECKING:
    from ps_django.direct import conninfo, on_direct_path
    from ps_django.middleware import exempt
    from ps_django.stale import StaleWriteError, fresh

__all__ = [
    "ConfigurationError",
    "StaleWriteError",
    "conninfo",
    "databases",
    "deadline",
    "exempt",
    "fresh",
    "limits",
    "local_settings",
    "on_direct_path",
    "reading",
    "set_replica_share",
    "use_token",
    "using_primary",
    "using_replica",
    "without_sticky_writes",
]


@register("ps_django")
def _check_settings(**kwargs: Any) -> Any:
    from ps_django import checks

    return checks.check_settings(**kwargs)


@register(Tags.database)
def _check_databases(**kwargs: Any) -> Any:
    from ps_django import checks

    return checks.check_databases(**kwargs)


def __getattr__(name: str) -> Any:
    # These need Django's settings, which may be about to import this package.
    if name in ("fresh", "StaleWriteError"):
        from ps_django import stale

        return getattr(stale, name)
    if name in ("conninfo", "on_direct_path"):
        from ps_django import direct

        return getattr(direct, name)
    if name == "exempt":
        from ps_django import middleware

        return middleware.exempt
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
