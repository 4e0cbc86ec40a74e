"""Sentry's SDK."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sentry_sdk
from django.db import models, transaction
from django.http import HttpRequest, JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from sentry_sdk.envelope import Envelope
from sentry_sdk.transport import Transport

from tests.ecosystem.site import Visitor


class Note(models.Model):
    """Something written."""

    text = models.CharField(max_length=50)


class Kept(Transport):
    """Keeps what would be sent."""

    items: list[dict[str, Any]] = []  # noqa: RUF012

    def capture_envelope(self, envelope: Envelope) -> None:
        """Keep events and traces."""
        self.items += [item.payload.json for item in envelope.items if item.type in ("event", "transaction")]


@contextmanager
def running() -> Iterator[None]:
    """Begin as its documentation has it; which integrations there are it finds out by itself."""
    sentry_sdk.init("https://key@example.org/1", transport=Kept, traces_sample_rate=1.0)
    yield


@csrf_exempt
def page(request: HttpRequest) -> JsonResponse:
    """Read, write, or fail."""
    if request.method == "POST":
        with transaction.atomic():
            Note.objects.create(text=request.POST["text"])
        Note.objects.filter(text="none").update(text="some")
    found = list(Note.objects.filter(text="none"))
    if "fail" in request.GET:
        raise ZeroDivisionError
    return JsonResponse({"found": len(found)})


urlpatterns = [path("", page)]


def work(visitor: Visitor) -> dict[str, Any]:
    """Make a request of each kind, and return what was sent of it."""
    Kept.items.clear()
    visitor.ask("GET", "/")
    visitor.ask("POST", "/", data={"text": "a"})
    visitor.ask("GET", "/?fail", 500)
    sentry_sdk.flush()
    traces = [item for item in Kept.items if item.get("type") == "transaction"]
    (event,) = [item for item in Kept.items if item.get("type") != "transaction"]
    return {
        "spans": [
            [span["description"] for span in trace["spans"] if span["op"].startswith("db") and span["description"] != "connect"]
            for trace in traces
        ],
        "error": event["exception"]["values"][0]["type"],
        "breadcrumbs": [one["message"] for one in event["breadcrumbs"]["values"] if one["category"] == "query"],
    }
