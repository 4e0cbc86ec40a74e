"""The application in Django: views, and the site's URLs. Imported when Django's settings are there."""

from typing import Any

from django.conf import settings
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.urls import path
from django.utils.module_loading import import_string

from ps_demo import bank_django


def read(_: HttpRequest, account: int) -> HttpResponse:
    """Answer whether a replica told the balance."""
    return HttpResponse(f"{bank_django.read(account)}")


def read_own(_: HttpRequest, reference: int) -> HttpResponse:
    """Answer whether the transfer is there."""
    return HttpResponse(f"{bank_django.Transfer.objects.filter(reference=reference).exists()}")


def transfer(_: HttpRequest, reference: int, source: int, target: int, amount: int) -> HttpResponse:
    """Move money between two accounts, and note it."""
    import_string(settings.TRANSACT)(lambda: bank_django.transfer(reference, source, target, amount))
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
