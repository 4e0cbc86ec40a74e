"""The application in Django: models, views, and the site's URLs. Imported when Django's settings are there."""

from typing import Any

from django.conf import settings
from django.db import models, transaction
from django.db.models import BooleanField, F, Func
from django.http import HttpRequest, HttpResponse
from django.urls import path
from django.utils.module_loading import import_string


class Account(models.Model):
    """An account."""

    id: Any = models.IntegerField(primary_key=True)
    balance: Any = models.BigIntegerField()

    class Meta:
        app_label = "compare"


class Transfer(models.Model):
    """One movement of money. `reference` is the client's own name for it."""

    id: Any = models.BigAutoField(primary_key=True)
    reference: Any = models.BigIntegerField()
    source: Any = models.IntegerField()
    target: Any = models.IntegerField()
    amount: Any = models.IntegerField()

    class Meta:
        app_label = "compare"


class InRecovery(Func):
    """Whether the server that answers is a replica."""

    function = "pg_is_in_recovery"
    output_field = BooleanField()


def read(_: HttpRequest, account: int) -> HttpResponse:
    """Answer whether a replica told the balance."""
    found: Any = Account.objects.annotate(by_replica=InRecovery()).get(pk=account)
    return HttpResponse(f"{found.by_replica}")


def read_own(_: HttpRequest, reference: int) -> HttpResponse:
    """Answer whether the transfer is there."""
    return HttpResponse(f"{Transfer.objects.filter(reference=reference).exists()}")


def transfer(_: HttpRequest, reference: int, source: int, target: int, amount: int) -> HttpResponse:
    """Move money between two accounts, and note it."""

    def work() -> None:
        for account, change in ((source, -amount), (target, amount)):
            Account.objects.filter(pk=account).update(balance=F("balance") + change)
        Transfer.objects.create(reference=reference, source=source, target=target, amount=amount)

    import_string(settings.TRANSACT)(work)
    return HttpResponse("True")


def in_atomic(work: Any) -> None:
    """Do the work in a transaction."""
    with transaction.atomic():
        work()


urlpatterns = [
    path("account/<int:account>", read),
    path("transfer/<int:reference>", read_own),
    path("transfer/<int:reference>/<int:source>/<int:target>/<int:amount>", transfer),
]
