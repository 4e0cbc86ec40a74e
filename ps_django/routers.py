"""`ReplicaRouter`: reads to a replica where the context says so, everything else to the primary."""

from __future__ import annotations

import sys
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from django.conf import settings
from django.db import DEFAULT_DB_ALIAS, connections, router

from ps_core.context import current
from ps_core.events import emit_route
from ps_core.routing import Route, Situation, decide
from ps_core.share import shares
from ps_django import _writes, stale
from ps_django.config import families, replicas_of_alias
from ps_django.path import path_decision
from ps_django.settings import current_settings
from ps_django.transaction import in_block_of_request, in_transaction

if TYPE_CHECKING:
    from django.db.models import Model

    from ps_core.replicas import Replicas

__all__ = ["ReplicaRouter"]

_MODULES: Final = sys.modules


class ReplicaRouter:
    """Put it first in `DATABASE_ROUTERS`. Routers behind it choose among databases, this one among a database's endpoints.

    Reads go to a replica in a request that only reads (`ConsistencyMiddleware`), inside `with ps_django.reading():`, or
    everywhere with `PS_DJANGO = {"READS": "replica"}`; never in a transaction on the primary (`atomic`, autocommit that is off),
    but for the block of ATOMIC_REQUESTS as long as nothing was asked of the primary in it. In a test that does not name the
    replica's alias in its `databases`, the primary's alias answers.
    """

    def __init__(self) -> None:
        self._family = families(settings.DATABASES)
        self._replicas = {primary: _replicas_of(primary) for primary in set(self._family.values())}
        self._situation = cache(_situation)
        stale.watch(self._family)
        _writes.lead_to_primary()

    def db_for_read(self, model: type[Model], **hints: Any) -> str | None:
        """Return a replica's alias where a read may go there; else None, or what the routers behind this one said."""
        chosen = self._of_others("db_for_read", model, hints)
        primary = self._primary(chosen, hints)
        replicas = self._replicas.get(primary)
        if replicas is None:
            return chosen
        context = current()
        reading = context.reading or current_settings().reads == "replica"
        decision = decide(self._situation(replicas, context.route, _in_transaction(primary), reading))
        alias = primary
        if decision.route is Route.REPLICA:
            alias = replicas.preferred().endpoint.name
            if "django.test.utils" in _MODULES:  # else it is no mirror, and nobody has to look up its wrapper
                replica: Any = connections[alias]
                alias = primary if replica.ps_forbidden else replica.alias
        emit_route(decision, alias)
        return alias

    def db_for_write(self, model: type[Model], **hints: Any) -> str | None:
        """Return the primary of the database that the other routers or the instance name."""
        return self._primary(self._of_others("db_for_write", model, hints), hints)

    def allow_relation(self, obj1: Model, obj2: Model, **hints: Any) -> bool | None:
        """Allow relations between instances of the same database, whichever of its endpoints they came from."""
        first, second = (self._family.get(obj._state.db or DEFAULT_DB_ALIAS, obj._state.db) for obj in (obj1, obj2))
        return True if first == second else None

    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool | None:
        """Refuse migrations on replicas and on the direct alias: `migrate` of the primary takes the direct path by itself."""
        return False if db in self._family else None

    def _primary(self, alias: str | None, hints: dict[str, Any]) -> str:
        if alias is None:
            instance = hints.get("instance")
            alias = (instance is not None and instance._state.db) or DEFAULT_DB_ALIAS
        return self._family.get(alias, alias)

    def _of_others(self, method: str, model: type[Model], hints: dict[str, Any]) -> str | None:
        for other in router.routers:
            if other is not self and (ask := getattr(other, method, None)) is not None:
                chosen: str | None = ask(model, **hints)
                if chosen:
                    return chosen
        return None


def _replicas_of(primary: str) -> Replicas | None:
    return replicas_of_alias(primary, settings.DATABASES, path_decision(settings.DATABASES[primary], settings.DATABASES))


def _situation(replicas: Replicas, block: Route | None, on_primary: bool, reading: bool) -> Situation:
    """Return what a read finds: one of a few for each set of replicas."""
    return Situation(
        reads=True,  # Django says so
        block=block,
        on_primary=on_primary,
        reading=reading,
        pinned=replicas.may_lack_what_was_seen,
        in_share=shares,
        away=replicas.are_away,
    )


def _in_transaction(alias: str) -> bool:
    """Return whether reads belong to a transaction of the application's on the primary."""
    connection: Any = connections[alias]
    if not in_transaction(connection):
        return False
    of_request = in_block_of_request(connection) and current().reading
    return not (of_request and (connection.is_idle() or len(connection.atomic_blocks) > 1))
