"""OpenTelemetry's instrumentation of Django and psycopg, with our own metrics and events beside it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.conf import settings
from django.db import models, transaction
from django.http import HttpRequest, JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from opentelemetry import metrics, trace
from opentelemetry.instrumentation.django import DjangoInstrumentor
from opentelemetry.instrumentation.psycopg import PsycopgInstrumentor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import ps_core.otel
from tests.ecosystem.site import Visitor


class Note(models.Model):
    """Something written."""

    text = models.CharField(max_length=50)


spans = InMemorySpanExporter()
reader = InMemoryMetricReader()


@contextmanager
def running() -> Iterator[None]:
    """Begin as its documentation has it."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    trace.set_tracer_provider(provider)
    metrics.set_meter_provider(MeterProvider([reader]))
    DjangoInstrumentor().instrument()
    PsycopgInstrumentor().instrument()
    if not settings.STOCK:
        ps_core.otel.instrument()
    yield


@csrf_exempt
def page(request: HttpRequest) -> JsonResponse:
    """Read, or write in a transaction and without."""
    if request.method == "POST":
        with transaction.atomic():
            note = Note.objects.create(text=request.POST["text"])
            note.save(update_fields=["text"])
        Note.objects.filter(text="none").update(text="some")
    return JsonResponse({"found": Note.objects.filter(text="none").count()})


urlpatterns = [path("", page)]


def statements(visitor: Visitor, method: str) -> tuple[list[str], str]:
    """Return the statements below the span of a request, and the endpoint that its span names."""
    spans.clear()
    visitor.ask(method, "/", data={"text": "a"} if method == "POST" else None)
    found = spans.get_finished_spans()
    (request,) = (one for one in found if one.kind is trace.SpanKind.SERVER)
    assert request.context is not None
    below = [one for one in found if one.parent and one.parent.span_id == request.context.span_id]
    assert len(found) == len(below) + 1
    texts = [str((one.attributes or {})["db.statement"]) for one in below]
    # What a new connection begins with is a statement, too.
    return [one for one in texts if "TimeZone" not in one], str((request.attributes or {}).get("ps_postgres.endpoint", ""))


def work(visitor: Visitor) -> dict[str, Any]:
    """Make a request of each kind, and return its statements, and the names of what was measured."""
    get, post, after = (statements(visitor, method) for method in ("GET", "POST", "GET"))
    measured = reader.get_metrics_data()
    assert measured is not None
    return {
        "get": get[0],
        "post": post[0],
        "after": len(after[0]),
        "routes": [get[1], post[1]],
        "metrics": sorted(
            metric.name
            for resource in measured.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name != "ps_postgres.outage.duration"
        ),
    }
