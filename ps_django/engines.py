"""Which entries of DATABASES are ours: told by the class of their backend, whatever their ENGINE is called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from django.core.exceptions import ImproperlyConfigured
from django.db.utils import load_backend

from ps_django.backend.base import DatabaseWrapper
from ps_django.config import ENGINE, POSTGIS, in_place_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["is_ours", "ours_of", "strangers"]

_OWN: Final = (ENGINE, POSTGIS)
"""Known without what they need (GDAL): Django says what is missing, when the alias is used."""


def is_ours(engine: str | None) -> bool:
    """Return whether an ENGINE is our backend, or derived from it.

    Raises:
        django.core.exceptions.AppRegistryNotReady: it needs the applications' models, which are not loaded yet.
    """
    if engine is None or engine in _OWN:
        return engine is not None
    try:
        wrapper = load_backend(engine).DatabaseWrapper
    except (ImproperlyConfigured, ImportError, AttributeError):
        return False  # Django says that, when the alias is used
    return issubclass(wrapper, DatabaseWrapper)


def ours_of(entries: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the entries of DATABASES that are ours."""
    return {alias: entry for alias, entry in entries.items() if is_ours(entry.get("ENGINE"))}


def strangers(entries: Mapping[str, dict[str, Any]]) -> Iterator[tuple[str, str, str]]:
    """Yield the alias of each entry that has options of ours and another backend, what is wrong with it, and what to write."""
    ours = ours_of(entries)
    for alias, entry in entries.items():
        if alias not in ours and "ps_role" in (entry.get("OPTIONS") or {}):
            engine = entry.get("ENGINE")
            yield (
                alias,
                f"{alias!r} has options of ps_django, and its ENGINE {engine!r} is not derived from {ENGINE!r}.",
                f"Write ORIGINAL_BACKEND = {ENGINE!r} for django_tenants.postgresql_backend, POSTGRES_EXTRA_DB_BACKEND_BASE ="
                f" {ENGINE!r} for psqlextra.backend; else ENGINE = {in_place_of(engine)!r}, or a backend that is derived from"
                " it.",
            )
