"""Datadog's tracer."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ddtrace
from ddtrace.trace import Span, TraceFilter, tracer
from django.db import models, transaction
from django.http import HttpRequest, JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

from tests.ecosystem.site import Visitor


class Note(models.Model):
    """Something written."""

    text = models.CharField(max_length=50)


class Kept(TraceFilter):
    """Keeps what would be sent."""

    spans: list[Span] = []  # noqa: RUF012

    def process_trace(self, trace: list[Span]) -> None:
        """Keep all, send nothing."""
        self.spans += trace


@contextmanager
def running() -> Iterator[None]:
    """Begin as its documentation has it."""
    tracer.configure(trace_processors=[Kept()])
    ddtrace.patch(django=True, psycopg=True)
    yield


@csrf_exempt
def page(request: HttpRequest) -> JsonResponse:
    """Read, or write in a transaction and without."""
    if request.method == "POST":
        with transaction.atomic():
            Note.objects.create(text=request.POST["text"])
        Note.objects.filter(text="none").update(text="some")
    return JsonResponse({"found": Note.objects.filter(text="none").count()})


urlpatterns = [path("", page)]


def work(visitor: Visitor) -> dict[str, Any]:
    """Make a request of each kind, and return its statements."""
    found = []
    for method in ("GET", "POST"):
        Kept.spans.clear()
        visitor.ask(method, "/", data={"text": "a"} if method == "POST" else None)
        found.append([[one.name, one.resource] for one in Kept.spans if "site_note" in one.resource])
    return {"found": found}
