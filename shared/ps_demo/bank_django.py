"""The bank in Django, on the tables that `bank_sqlalchemy` makes. To import when Django is set up.

Stock Django: the comparison runs it on other packages, too.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from django.db import close_old_connections, models
from django.db.models import F

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Account", "InRecovery", "Transfer", "read", "request", "transfer"]


class Account(models.Model):
    """An account."""

    id: models.IntegerField[int, int] = models.IntegerField(primary_key=True)
    balance: models.BigIntegerField[int, int] = models.BigIntegerField()

    class Meta:
        app_label = "bank"


class Transfer(models.Model):
    """One movement of money. `reference` is the client's own name for it."""

    id: models.BigAutoField[int, int] = models.BigAutoField(primary_key=True)
    reference: models.BigIntegerField[int, int] = models.BigIntegerField()
    source: models.IntegerField[int, int] = models.IntegerField()
    target: models.IntegerField[int, int] = models.IntegerField()
    amount: models.IntegerField[int, int] = models.IntegerField()

    class Meta:
        app_label = "bank"


class InRecovery(models.Func):
    """Whether the server that answers is a replica."""

    function = "pg_is_in_recovery"
    output_field = models.BooleanField()


@contextmanager
def request() -> Iterator[None]:
    """Do what Django does before and after each request."""
    close_old_connections()
    try:
        yield
    finally:
        close_old_connections()


def read(account: int) -> bool:
    """Read a balance; return whether a replica answered."""
    row: Any = Account.objects.annotate(by_replica=InRecovery()).get(pk=account)  # the stubs do not know of annotations
    return bool(row.by_replica)


def transfer(reference: int, source: int, target: int, amount: int) -> None:
    """Move money between two accounts, and note it. The caller has opened the transaction."""
    for account, change in ((source, -amount), (target, amount)):
        Account.objects.filter(pk=account).update(balance=F("balance") + change)
    Transfer.objects.create(reference=reference, source=source, target=target, amount=amount)
