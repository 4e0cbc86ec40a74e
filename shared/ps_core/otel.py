"""OpenTelemetry: what `ps_core.events` tells, as metrics, and as events and attributes of the current span. Extra `otel`.

Statements themselves are traced by OpenTelemetry's own instrumentation (SQLAlchemyInstrumentor knows our engines,
DjangoInstrumentor our requests); this adds what only this library knows. Attributes are those of the semantic conventions for
databases where there is one; the others begin with `ps_postgres.`. Prometheus reads the metrics through OpenTelemetry's exporter.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

from opentelemetry import metrics, trace

from ps_core.events import Event, Name, subscribe

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["instrument"]


def instrument(meter_provider: metrics.MeterProvider | None = None) -> Callable[[], None]:
    """Report every event from now on; return what ends that.

    Metrics: `ps_postgres.events` (a counter by `ps_postgres.event`, `ps_postgres.endpoint` and `ps_postgres.reason`) and
    `ps_postgres.outage.duration` (a histogram in seconds). The current span gets `ps_postgres.endpoint` and `ps_postgres.reason`
    of the last route, and an event for everything else.
    """
    meter = metrics.get_meter("ps_postgres", version("ps-postgres"), meter_provider)
    counter = meter.create_counter("ps_postgres.events", unit="{event}", description="What ps-postgres did beside statements")
    outages = meter.create_histogram("ps_postgres.outage.duration", unit="s", description="How long an endpoint was away")

    def report(event: Event) -> None:
        attributes = {"db.system.name": "postgresql", "ps_postgres.endpoint": event.endpoint, "ps_postgres.reason": event.reason}
        counter.add(1, attributes | {"ps_postgres.event": event.name.value})
        if event.name is Name.OUTAGE_CLOSED and event.seconds is not None:
            outages.record(event.seconds, attributes)
        span = trace.get_current_span()
        if not span.is_recording():
            return
        if event.name is Name.ROUTE:
            span.set_attributes(attributes)
            return
        details: dict[str, str | float] = dict(attributes)
        if event.attempt is not None:
            details["ps_postgres.attempt"] = event.attempt
        if event.seconds is not None:
            details["ps_postgres.seconds"] = event.seconds
        span.add_event(f"ps_postgres.{event.name}", details)

    return subscribe(report)
