"""What writes and names a replica's alias (`using("replica")`) is the primary's, with what it reads before it writes.

The database would correct a single statement (`backend.base`). But Django's methods are of several: they look, open a block,
lock. What they decide by has to be where they write.
"""

from __future__ import annotations

from copy import copy
from functools import wraps
from typing import Any

from django.db import connections
from django.db.models import Model, QuerySet
from django.db.models.deletion import Collector
from django.db.models.lookups import In

__all__ = ["lead_to_primary", "writer_of"]


def writer_of(alias: str) -> str:
    """Return the alias that writes for `alias`: the primary's for a replica's.

    But not in a transaction on that one, which would not roll back what the other one writes: there, writes are refused.
    """
    if alias not in connections.settings:
        return alias  # Django says that there is none
    connection: Any = connections[alias]
    return (getattr(connection, "ps_is_replica", False) and connection.ps_writer) or alias


def lead_to_primary() -> None:
    """Let the three places by which everything in Django's ORM writes ask `writer_of`, and subqueries follow."""
    if hasattr(Model.save_base, "ps_leads"):
        return
    db: Any = QuerySet.db
    save_base, collector, process_rhs = Model.save_base, Collector.__init__, In.process_rhs

    @wraps(db.fget)
    def db_of(self: Any) -> str:
        alias: str = db.fget(self)
        return writer_of(alias) if self._for_write and self._db else alias

    @wraps(save_base)
    def save(
        self: Any,
        raw: bool = False,
        force_insert: Any = False,
        force_update: bool = False,
        using: str | None = None,
        update_fields: Any = None,
    ) -> None:
        save_base(self, raw, force_insert, force_update, using and writer_of(using), update_fields)

    @wraps(collector)
    def collect(self: Any, using: str, *args: Any, **kwargs: Any) -> None:
        collector(self, writer_of(using), *args, **kwargs)

    @wraps(process_rhs)
    def process(self: Any, compiler: Any, connection: Any) -> Any:
        named = getattr(self.rhs, "_db", None)
        if named is None or named == connection.alias or writer_of(named) != connection.alias:
            return process_rhs(self, compiler, connection)
        # Django refuses a subquery that names another alias; it writes, and goes with what it is in.
        lookup = copy(self)
        lookup.rhs = self.rhs.clone() if hasattr(self.rhs, "clone") else copy(self.rhs)
        lookup.rhs._db = connection.alias
        return process_rhs(lookup, compiler, connection)

    save.ps_leads = True  # type: ignore[attr-defined]
    QuerySet.db = property(db_of)  # type: ignore[assignment,method-assign]
    Model.save_base, Collector.__init__ = save, collect  # type: ignore[method-assign]
    In.process_rhs = process  # type: ignore[method-assign]
