"""Instances that were loaded from a replica, and are saved as a whole: a lost update in waiting."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, TypeVar

from django.db import DEFAULT_DB_ALIAS, models, router
from django.db.models.signals import pre_save

from ps_django.long_transactions import calling_line
from ps_django.settings import current_settings

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["StaleWriteError", "fresh", "watch"]

M = TypeVar("M", bound=models.Model)

_log = logging.getLogger("ps_django")


class StaleWriteError(RuntimeError):
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
        loaded_from = instance._state.db or DEFAULT_DB_ALIAS
        if update_fields is not None or raw or instance._state.adding or family.get(loaded_from) != using:
            return
        wanted = current_settings().stale_writes
        message = (
            f"{sender.__name__} {instance.pk!r} was loaded from {loaded_from!r}, and all of its fields are saved: what was"
            " changed since is overwritten. Write save(update_fields=[...]), or load it with ps_django.fresh(instance)"
        )
        if wanted == "refuse":
            raise StaleWriteError(message)
        if wanted == "warn":
            _log.warning("%s (%s)", message, calling_line(), extra={"ps_event": "stale_write"})

    pre_save.connect(check, weak=False, dispatch_uid="ps_django.stale")
