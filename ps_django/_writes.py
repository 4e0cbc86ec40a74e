"""What writes and names a replica's alias (`using("replica")`) is the primary's, with what it reads before it writes.

The database would correct a single statement (`backend.base`). But Django's methods are of several: they look, open a block,
lock. What they decide by has to be where they write.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

from django.db import connections
from django.db.models import Model, QuerySet
from django.db.models.deletion import Collector

from ps_django.transaction import in_block_of_request, in_transaction

__all__ = ["lead_to_primary", "writer_of"]


def writer_of(alias: str) -> str:
    """Return the alias that writes for `alias`: the primary's for a replica's.

    But not where a transaction is open on that one: what another alias writes, it would not roll back. It refuses writes. The
    transactions that ATOMIC_REQUESTS opened on both end together.
    """
    connection: Any = connections[alias]
    if not getattr(connection, "ps_is_replica", False):
        return alias
    primary: str = connection.settings_dict["OPTIONS"]["ps_primary"]
    if in_transaction(connection):
        other: Any = connections[primary]
        if not (in_block_of_request(connection) and other.settings_dict["ATOMIC_REQUESTS"] and in_transaction(other)):
            return alias
    return primary


def lead_to_primary() -> None:
    """Let the three places by which everything in Django's ORM writes ask `writer_of`."""
    if hasattr(Model.save_base, "ps_leads"):
        return
    db: Any = QuerySet.db
    save_base, collector = Model.save_base, Collector.__init__

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

    save.ps_leads = True  # type: ignore[attr-defined]
    QuerySet.db = property(db_of)  # type: ignore[assignment,method-assign]
    Model.save_base, Collector.__init__ = save, collect  # type: ignore[method-assign]
