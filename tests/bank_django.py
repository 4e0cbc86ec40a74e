"""The bank of `ps_demo.bank` as Django has it: models of the same tables, which the soak and the comparison make themselves."""

from typing import Any

from django.db import models
from django.db.models import F


class Account(models.Model):
    """An account."""

    id: Any = models.IntegerField(primary_key=True)
    balance: Any = models.BigIntegerField()

    class Meta:
        app_label = "bank"


class Transfer(models.Model):
    """One movement of money. `reference` is the client's own name for it."""

    id: Any = models.BigAutoField(primary_key=True)
    reference: Any = models.BigIntegerField()
    source: Any = models.IntegerField()
    target: Any = models.IntegerField()
    amount: Any = models.IntegerField()

    class Meta:
        app_label = "bank"


def transfer(reference: int, source: int, target: int, amount: int) -> None:
    """Move money between two accounts, and note it. The caller has opened the transaction."""
    for account, change in ((source, -amount), (target, amount)):
        Account.objects.filter(pk=account).update(balance=F("balance") + change)
    Transfer.objects.create(reference=reference, source=source, target=target, amount=amount)
