"""django-postgres-extra."""

from typing import Any
from uuid import uuid4

from django.db import models, transaction
from django.http import HttpRequest, JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from psqlextra.models import PostgresModel
from psqlextra.query import ConflictAction

from tests.ecosystem.site import Visitor


class Price(PostgresModel):
    """What is upserted."""

    run = models.CharField(max_length=32)
    name = models.CharField(max_length=50)
    amount = models.IntegerField()

    class Meta:
        constraints = (models.UniqueConstraint(fields=["run", "name"], name="one_price"),)


@csrf_exempt
def prices(request: HttpRequest, run: str) -> JsonResponse:
    """Upsert in each way, or show what there is."""
    target = ["run", "name"]
    if request.method == "POST":
        Price.objects.upsert(target, {"run": run, "name": "tea", "amount": 1})
        Price.objects.bulk_upsert(target, [{"run": run, "name": name, "amount": 5} for name in ("tea", "cup")])
        Price.objects.on_conflict(target, ConflictAction.NOTHING).insert(run=run, name="tea", amount=7)
        with transaction.atomic():
            got = Price.objects.on_conflict(target, ConflictAction.UPDATE).insert_and_get(run=run, name="cup", amount=9)
        return JsonResponse({"got": [got.name, got.amount]})
    return JsonResponse({"prices": list(Price.objects.filter(run=run).order_by("name").values_list("name", "amount"))})


urlpatterns = [path("<str:run>/", prices)]


def work(visitor: Visitor) -> dict[str, Any]:
    """Upsert, and look."""
    run = uuid4().hex
    return {"steps": [visitor.ask(method, f"/{run}/").json() for method in ("GET", "POST", "GET")]}
