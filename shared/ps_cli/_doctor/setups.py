"""What to check: from a URL, the environment, Django's settings or a SQLAlchemy engine."""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ps_cli._doctor.seen import Setup
from ps_core.errors import ConfigurationError
from ps_core.topology import Topology

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["UnreadableError", "of_django", "of_engine", "of_topology"]


class UnreadableError(Exception):
    """The application's own code failed. The text says where, and not with what: that may hold a password."""


def of_topology(topology: Topology, pool_size: int | None = None) -> Setup:
    """Return the primary, the replicas and the direct path."""
    endpoints = (topology.primary, *topology.replicas, topology.direct)
    return Setup(endpoints=endpoints, fallback=topology.replica_fallback, pool_size=pool_size)


def of_engine(name: str) -> Setup:
    """Return what a SQLAlchemy engine leads to: one of ours with its topology, any other by its URL.

    Raises:
        UnreadableError: "module:attribute" cannot be imported, or is no engine on PostgreSQL.
        ConfigurationError: its URL cannot work.
    """
    module, _, attribute = name.partition(":")
    engine = _of_application(lambda: getattr(import_module(module), attribute or "engine"))
    engine = getattr(engine, "sync_engine", engine)
    url, pool = getattr(engine, "url", None), getattr(engine, "pool", None)
    if url is None or url.get_backend_name() != "postgresql":
        raise UnreadableError("it is no SQLAlchemy engine on PostgreSQL")
    topology = getattr(engine, "topology", None) or Topology.from_url(
        url.set(drivername="postgresql").render_as_string(hide_password=False)
    )
    size, overflow = getattr(pool, "size", int)(), getattr(pool, "_max_overflow", 0)
    return of_topology(topology, size + overflow if size and overflow >= 0 else None)


def of_django(module: str) -> Iterator[Setup]:
    """Yield each database of a settings module that has our backend, with its replicas and its direct path.

    Raises:
        UnreadableError: the module cannot be imported, or no entry of DATABASES has our backend.
        ConfigurationError: an entry cannot work.
    """
    import django
    from django.conf import settings
    from django.core.exceptions import AppRegistryNotReady, ImproperlyConfigured

    from ps_django.config import ENGINE, endpoint_of, families
    from ps_django.engines import ours_of, strangers

    def read() -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
        entries = dict(settings.DATABASES)
        try:
            return entries, ours_of(entries)
        except AppRegistryNotReady:  # of a backend that imports models, such as django-tenants'
            django.setup()
            return entries, ours_of(entries)

    os.environ["DJANGO_SETTINGS_MODULE"] = module
    entries, ours = _of_application(read)
    for _, wrong, hint in strangers(entries):
        raise ConfigurationError(f"{wrong} {hint}")
    if not ours:
        raise UnreadableError(f"no entry of DATABASES has the ENGINE {ENGINE!r}, or one that is derived from it")
    primary_of = families(ours)
    signs = "ps_django.middleware.ConsistencyMiddleware" in settings.MIDDLEWARE
    key = ""
    with suppress(ImproperlyConfigured):  # Django's answer where it is empty
        key = settings.SECRET_KEY
    signing_key: Literal["set", "empty", "insecure"]
    signing_key = "insecure" if key.startswith("django-insecure-") else "set" if key else "empty"
    for primary, entry in ours.items():
        if primary in primary_of:
            continue
        options = entry.get("OPTIONS") or {}
        family = [primary, *(alias for alias, of in primary_of.items() if of == primary)]
        pool = options.get("pool")
        yield Setup(
            endpoints=tuple(endpoint_of(alias, ours[alias]) for alias in family),
            fallback=0.0 if options.get("ps_replica_fallback") == "none" else 1.0,
            pool_size=pool.get("max_size", pool.get("min_size", 4)) if isinstance(pool, dict) else None,
            signing_key=signing_key if signs and options.get("ps_consistency") != "none" else None,
        )


def _of_application(read: Callable[[], Any]) -> Any:
    sys.path.insert(0, str(Path.cwd()))  # as `manage.py` and `python -m` have it
    try:
        return read()
    except Exception as exc:  # noqa: BLE001 - whatever the application raises
        where = traceback.extract_tb(exc.__traceback__)[-1]
        raise UnreadableError(f"{type(exc).__name__} in {where.filename}, line {where.lineno}") from None
