"""`ReplicaRouter`: reads to a replica where the context says so, everything else to the primary."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.db import connections

from ps_core.context import current
from ps_core.routing import Route, Situation, decide

if TYPE_CHECKING:
    from django.db.models import Model

__all__ = ["ReplicaRouter"]


class ReplicaRouter:
    """Put it first in `DATABASE_ROUTERS`.

    Reads go to a replica inside `with ps_django.reading():`, or everywhere with `PS_DJANGO = {"READS": "replica"}`; never inside
    `atomic` on the primary.
    """

    def __init__(self) -> None:
        self._replicas: dict[str, list[str]] = {}
        self._weights: dict[str, list[float]] = {}
        self._family: dict[str, str] = {}
        for alias, entry in settings.DATABASES.items():
            options = entry.get("OPTIONS") or {}
            primary = options.get("ps_primary")
            if primary is None:
                continue
            self._family[alias] = primary
            if options.get("ps_role") == "replica":
                self._replicas.setdefault(primary, []).append(alias)
                self._weights.setdefault(primary, []).append(float(options.get("ps_weight", 1.0)))

    def db_for_read(self, model: type[Model], **hints: Any) -> str | None:
        """Return a replica's alias where a read may go there; None leaves it to the next router, and in the end to `default`."""
        replicas = self._replicas.get("default")
        if not replicas:
            return None
        asked = current().route
        decision = decide(
            Situation(
                reads=True,
                asked=asked,
                declared=connections["default"].in_atomic_block,
                reading=getattr(settings, "PS_DJANGO", {}).get("READS") == "replica",
            )
        )
        if decision.route is Route.PRIMARY or connections["default"].in_atomic_block:
            return None
        return random.choices(replicas, self._weights["default"])[0]  # noqa: S311 - spreads load, guards nothing

    def db_for_write(self, model: type[Model], **hints: Any) -> str | None:
        """Return None: writes go where they went without this router, to the primary."""
        return None

    def allow_relation(self, obj1: Model, obj2: Model, **hints: Any) -> bool | None:
        """Allow relations between instances of the same database, whichever of its endpoints they came from."""
        first, second = (self._family.get(obj._state.db or "default", obj._state.db) for obj in (obj1, obj2))
        return True if first == second else None

    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool | None:
        """Refuse migrations on replicas and on the direct alias: `migrate` of the primary takes the direct path by itself."""
        return False if db in self._family else None
