"""django-prometheus."""

import re
from typing import Any

from django.db import IntegrityError, models
from django.http import HttpRequest, JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from django_prometheus.models import ExportModelOperationsMixin

from tests.ecosystem.site import Visitor


class Note(ExportModelOperationsMixin("note"), models.Model):  # type: ignore[misc]
    """Something written."""

    text = models.CharField(max_length=50, unique=True)


@csrf_exempt
def page(request: HttpRequest) -> JsonResponse:
    """Read; or write, read, and fail to write."""
    if request.method == "POST":
        Note.objects.filter(text="a").delete()
        Note.objects.create(text="a")
        Note.objects.bulk_create([Note(text="b"), Note(text="c")], ignore_conflicts=True)
        try:
            Note.objects.create(text="a")
        except IntegrityError:
            return JsonResponse({"found": Note.objects.get(text="a").text})
    return JsonResponse({"found": Note.objects.count()})


urlpatterns = [path("", page)]


def values(visitor: Visitor) -> dict[str, float]:
    """Return the counters that its page has."""
    text = visitor.ask("GET", "/metrics").text
    found = re.findall(r"^(django_(?:db|model|http_responses_total_by_status)\w*_total\{.*\}) (\S+)", text, re.MULTILINE)
    return {name: float(value) for name, value in found if "connections" not in name}


def work(visitor: Visitor) -> dict[str, Any]:
    """Make a request of each kind; return by how much that raised the counters."""
    for method in ("GET", "POST"):  # What a new connection begins with is a statement, too.
        visitor.ask(method, "/")
    visitor.cookies.clear()  # Else a late replica refuses, and the primary answers: two statements.
    before = values(visitor)
    visitor.ask("GET", "/")
    visitor.ask("POST", "/")
    after = values(visitor)
    return {name: after[name] - before.get(name, 0) for name in sorted(after) if after[name] != before.get(name, 0)}
