"""django-pgbulk."""

from typing import Any
from uuid import uuid4

import pgbulk
from django.db import models, transaction
from django.http import HttpRequest, JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

from tests.ecosystem.site import Visitor


class Price(models.Model):
    """What is written in bulk."""

    run = models.CharField(max_length=32)
    name = models.CharField(max_length=50)
    amount = models.IntegerField()

    class Meta:
        constraints = (models.UniqueConstraint(fields=["run", "name"], name="one_price"),)


@csrf_exempt
def prices(request: HttpRequest, run: str) -> JsonResponse:
    """Upsert, copy and update many rows, or show them."""
    found: list[Any] = []
    if request.method == "POST":
        rows = [Price(run=run, name=str(number), amount=number) for number in range(100)]
        made = pgbulk.upsert(Price, rows, ["run", "name"], ["amount"], returning=True)
        again = pgbulk.upsert(
            Price, [Price(run=run, name="5", amount=50), Price(run=run, name="x", amount=1)], ["run", "name"], returning=True
        )
        found = [len(made.created), len(made.updated), len(again.created), len(again.updated)]
    if request.method == "PUT":
        with transaction.atomic():
            pgbulk.copy(Price, [Price(run=run, name=f"copied {number}", amount=number) for number in range(100)], exclude=["id"])
            rows = list(Price.objects.filter(run=run, amount__lt=3).order_by("name"))
            for row in rows:
                row.amount += 1000
            pgbulk.update(Price, rows, ["amount"])
    all_rows = Price.objects.filter(run=run)
    return JsonResponse({"found": found, **all_rows.aggregate(number=models.Count("*"), sum=models.Sum("amount"))})


urlpatterns = [path("<str:run>/", prices)]


def work(visitor: Visitor) -> dict[str, Any]:
    """Write in each way, and look after each."""
    run = uuid4().hex
    return {"steps": [visitor.ask(method, f"/{run}/").json() for method in ("POST", "GET", "PUT", "GET")]}
