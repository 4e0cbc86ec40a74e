"""django-import-export."""

from typing import Any
from uuid import uuid4

import tablib
from django.db import models
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from import_export import resources

from tests.ecosystem.site import Visitor


class Book(models.Model):
    """What is imported."""

    run = models.CharField(max_length=32)
    isbn = models.CharField(max_length=40, unique=True)
    price = models.DecimalField(max_digits=8, decimal_places=2)


class BookResource(resources.ModelResource):
    """Copied from its documentation."""

    class Meta:
        model = Book
        import_id_fields = ("isbn",)
        fields = ("isbn", "run", "price")
        skip_unchanged = True
        use_transactions = True


class BulkResource(BookResource):
    """The same, in bulk."""

    class Meta(BookResource.Meta):
        use_bulk = True


@csrf_exempt
def books(request: HttpRequest, run: str) -> HttpResponse:
    """Import a file, or export what there is."""
    if request.method == "POST":
        rows = tablib.Dataset().load(request.body.decode(), format="csv")
        resource = BulkResource() if "bulk" in request.GET else BookResource()
        result = resource.import_data(rows, dry_run="dry" in request.GET)
        return JsonResponse({"totals": dict(result.totals), "failed": result.has_errors() or result.has_validation_errors()})
    queryset = Book.objects.filter(run=run).order_by("isbn")
    return HttpResponse(BookResource().export(queryset).csv, content_type="text/csv")


urlpatterns = [path("<str:run>/", books)]


def work(visitor: Visitor) -> dict[str, Any]:
    """Import files, dry, by rows, in bulk and a wrong one, and export after each."""
    run = uuid4().hex

    def file(*prices: str) -> str:
        return "isbn,run,price\n" + "".join(f"{run}-{number},{run},{price}\n" for number, price in enumerate(prices))

    found = []
    steps = [
        ("dry", ("1", "2", "3")),
        ("", ("1", "2", "3")),
        ("", ("1", "5", "3", "4")),
        ("", ("7", "x")),
        ("bulk", ("8", "9", "3", "4", "5")),
    ]
    for how, prices in steps:
        told = visitor.ask("POST", f"/{run}/?{how}", content=file(*prices)).json()
        found.append([told, visitor.ask("GET", f"/{run}/").text.replace(run, "run")])
    return {"found": found}
