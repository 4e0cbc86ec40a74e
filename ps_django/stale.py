"""Instances that were loaded from a replica, and are saved as a whole: a lost update in waiting."""

from __future__ import annotations

import logging
from functools import wraps
from typing import TYPE_CHECKING, Any, Final, TypeVar

from django.db import DEFAULT_DB_ALIAS, models, router
from django.db.models.signals import pre_save

from ps_core._documentation import Documented
from ps_django.long_transactions import calling_line
from ps_django.settings import current_settings

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["StaleWriteError", "fresh", "watch"]

M = TypeVar("M", bound=models.Model)

_log = logging.getLogger("ps_django")

_LOADED_FROM: Final = "ps_loaded_from"


class StaleWriteError(Documented, RuntimeError):
    """All fields of an instance that was loaded from a replica were to be saved (`PS_DJANGO = {"STALE_WRITES": "refuse"}`)."""


def fresh(instance: M, *, lock: bool = False) -> M:
    """Return `instance` as the primary has it now; `lock`: with its row locked until the end of the transaction.

    Raises:
        django.core.exceptions.ObjectDoesNotExist: the row is gone.
        django.db.transaction.TransactionManagementError: `lock` outside `atomic()`.
    """
    rows = type(instance)._base_manager.using(router.db_for_write(type(instance), instance=instance))
    return (rows.select_for_update() if lock else rows).get(pk=instance.pk)


def watch(family: Mapping[str, str]) -> None:
    """Look at every save: `family` tells the primary of each replica's alias."""

    # Packages send the signal by hand, without what they do not need.
    def check(
        sender: Any, instance: models.Model, using: str | None = None, update_fields: Any = None, raw: bool = False, **_: Any
    ) -> None:
        loaded_from = _loaded_from(instance)
        if raw or instance._state.adding or family.get(loaded_from) != using:
            return
        if update_fields is not None:
            _note(instance, loaded_from)
            return
        wanted = current_settings().stale_writes
        message = (
            f"{sender.__name__} {instance.pk!r} was loaded from {loaded_from!r}, and all of its fields are saved: what was"
            " changed since is overwritten. Write save(update_fields=[...]), or load it with ps_django.fresh(instance)"
        )
        if wanted == "refuse":
            raise StaleWriteError(message)
        if wanted == "warn":
            _log.warning("%s (%s): see %s", message, calling_line(), StaleWriteError.url, extra={"ps_event": "stale_write"})
        _note(instance, None)

    pre_save.connect(check, weak=False, dispatch_uid="ps_django.stale")
    if not hasattr(models.Model.refresh_from_db, "ps_stale"):
        models.Model.refresh_from_db = _watched(models.Model.refresh_from_db, family)  # type: ignore[method-assign]


# After a save or a refresh of some fields, Django takes the alias that was used for that of the whole instance (`_state.db`).
# Where the other fields came from is kept beside it, and travels with it when the instance is pickled.


def _loaded_from(instance: models.Model) -> str:
    alias: str | None = getattr(instance._state, _LOADED_FROM, None) or instance._state.db
    return alias or DEFAULT_DB_ALIAS


def _note(instance: models.Model, alias: str | None) -> None:
    setattr(instance._state, _LOADED_FROM, alias)


def _watched(refresh: Any, family: Mapping[str, str]) -> Any:
    @wraps(refresh)
    def refresh_from_db(self: models.Model, using: Any = None, fields: Any = None, from_queryset: Any = None) -> None:
        loaded_from = _loaded_from(self)
        refresh(self, using, fields, from_queryset)
        if fields is None:
            _note(self, None)
        elif family.get(loaded_from) == self._state.db:
            _note(self, loaded_from)

    refresh_from_db.ps_stale = True  # type: ignore[attr-defined]
    return refresh_from_db
