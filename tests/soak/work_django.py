"""The soak's work in Django, as views would do it. Imported when Django is set up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.db import connections, models
from django.db.models import Func, TextField, Value

import ps_django
from ps_demo import bank_django
from ps_demo.bank_django import InRecovery, request
from ps_django.transaction import run_transaction
from tests.soak.checks import Answer, Write

if TYPE_CHECKING:
    from tests.soak.checks import Read, Transfer

__all__ = ["Site"]


class Row(models.Model):
    """A client's register."""

    client: models.IntegerField[int, int] = models.IntegerField(primary_key=True)
    version: models.IntegerField[int, int] = models.IntegerField()

    class Meta:
        app_label = "soak"
        db_table = "soak_register"


def _setting(name: str) -> Func:
    return Func(Value(name), function="current_setting", output_field=TextField())


def _look(client: int) -> Answer:
    row: Any = Row.objects.annotate(  # the stubs do not know of annotations
        statement=_setting("statement_timeout"),
        transaction=_setting("transaction_timeout"),
        replica=InRecovery(),
    ).get(pk=client)
    return Answer(row.statement, row.transaction, row.version, row.replica)


class Site:
    """The views."""

    def read(self, work: Read) -> Answer:
        """Read the client's register."""
        with request(), ps_django.reading():
            return _look(work.client)

    def write(self, work: Transfer | Write) -> Answer:
        """Transfer, or write the register, in a transaction that may be run again."""

        def change() -> Answer:
            if isinstance(work, Write):
                Row.objects.filter(pk=work.client).update(version=work.version)
            else:
                bank_django.transfer(work.reference, work.source, work.target, work.amount)
            return _look(work.client)

        with request():
            return run_transaction(change)

    def end_thread(self) -> None:
        """Close this thread's connections."""
        connections.close_all()

    def dispose(self) -> None:
        """Close what belongs to the main thread."""
        connections.close_all()
