"""The soak's work in Django, as views would do it. Imported when Django is set up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.db import close_old_connections, connections, models
from django.db.models import BooleanField, F, Func, TextField, Value

import ps_django
from ps_django.transaction import run_transaction
from tests.soak.checks import Answer, Write

if TYPE_CHECKING:
    from tests.soak.checks import Read, Transfer

__all__ = ["Site"]


class _Unmanaged(models.Model):
    class Meta:
        abstract = True
        app_label = "shop"
        managed = False


class Account(_Unmanaged):
    """An account."""

    balance: models.BigIntegerField[int, int] = models.BigIntegerField()

    class Meta(_Unmanaged.Meta):
        db_table = "soak_account"


class Movement(_Unmanaged):
    """A transfer between two accounts."""

    client: models.IntegerField[int, int] = models.IntegerField()
    number: models.IntegerField[int, int] = models.IntegerField()
    source: models.IntegerField[int, int] = models.IntegerField()
    target: models.IntegerField[int, int] = models.IntegerField()
    amount: models.IntegerField[int, int] = models.IntegerField()

    class Meta(_Unmanaged.Meta):
        db_table = "soak_transfer"


class Row(_Unmanaged):
    """A client's register."""

    client: models.IntegerField[int, int] = models.IntegerField(primary_key=True)
    version: models.IntegerField[int, int] = models.IntegerField()

    class Meta(_Unmanaged.Meta):
        db_table = "soak_register"


def _setting(name: str) -> Func:
    return Func(Value(name), function="current_setting", output_field=TextField())


def _look(client: int) -> Answer:
    row: Any = Row.objects.annotate(  # the stubs do not know of annotations
        statement=_setting("statement_timeout"),
        transaction=_setting("transaction_timeout"),
        replica=Func(function="pg_is_in_recovery", output_field=BooleanField()),
    ).get(pk=client)
    return Answer(row.statement, row.transaction, row.version, row.replica)


class Site:
    """The views."""

    def read(self, work: Read) -> Answer:
        """Read the client's register."""
        close_old_connections()
        try:
            with ps_django.reading():
                return _look(work.client)
        finally:
            close_old_connections()

    def write(self, work: Transfer | Write) -> Answer:
        """Transfer, or write the register, in a transaction that may be run again."""

        def change() -> Answer:
            if isinstance(work, Write):
                Row.objects.filter(pk=work.client).update(version=work.version)
            else:
                Account.objects.filter(pk=work.source).update(balance=F("balance") - work.amount)
                Account.objects.filter(pk=work.target).update(balance=F("balance") + work.amount)
                Movement.objects.create(
                    client=work.client, number=work.number, source=work.source, target=work.target, amount=work.amount
                )
            return _look(work.client)

        close_old_connections()
        try:
            return run_transaction(change)
        finally:
            close_old_connections()

    def end_thread(self) -> None:
        """Close this thread's connections."""
        connections.close_all()

    def dispose(self) -> None:
        """Close what belongs to the main thread."""
        connections.close_all()
