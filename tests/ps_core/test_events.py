"""Events: what is told when, to the log and to whoever subscribed."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from ps_core import Connection, Event, RetryPolicy, connect, deadline, limits, subscribe, use_token
from ps_core._endpoint import EndpointState
from ps_core._registry import replicas_of, states_of
from ps_core.errors import ConfigurationError, DeadlineExceeded
from ps_core.events import Name, emit
from ps_lab import Lab
from ps_lab.processes import wait_until


@contextmanager
def heard() -> Iterator[list[Event]]:
    """Collect what is told in the block."""
    events: list[Event] = []
    unsubscribe = subscribe(events.append)
    try:
        yield events
    finally:
        unsubscribe()


def told(events: list[Event], *names: Name) -> list[tuple[str, str, str]]:
    """Return the events of these names."""
    return [(event.name.value, event.endpoint, event.reason) for event in events if event.name in names]


@pytest.mark.fast
def test_log(caplog: pytest.LogCaptureFixture) -> None:
    """Each event has a logger of its own, a sentence, and the record for who wants its fields."""
    caplog.set_level(logging.DEBUG, "ps_core.events")
    for name in Name:
        emit(Event(name=name, endpoint="primary", reason="connection_lost", attempt=2, seconds=0.25))
    assert [record.name for record in caplog.records] == [f"ps_core.events.{name}" for name in Name]
    assert caplog.records[3].getMessage() == "endpoint 'primary': tried again, connection_lost (attempt 2, 0.250 s)"
    event: Event = caplog.records[3].ps_event  # type: ignore[attr-defined]
    assert (event.name, event.attempt) == (Name.RETRY, 2)


@pytest.mark.fast
def test_what_is_no_hook() -> None:
    """It is refused where it is handed over, and not at the first event."""
    hook: Any = "print"
    with pytest.raises(ConfigurationError, match=r"(?m)^subscribe: write a function of an event, not 'print'$"):
        subscribe(hook)


@pytest.mark.fast
def test_hook_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """A hook that fails does not keep the others from hearing, nor the work from going on."""

    def fails(event: Event) -> None:
        raise ZeroDivisionError

    unsubscribe = subscribe(fails)
    try:
        with heard() as events:
            emit(Event(name=Name.DEMOTED, endpoint="primary"))
    finally:
        unsubscribe()
    assert told(events, Name.DEMOTED) == [("demoted", "primary", "")]
    assert "a hook failed on demoted" in caplog.text
    with heard() as events:
        emit(Event(name=Name.DEMOTED, endpoint="primary"))
    assert len(events) == 1


def test_lost_connection(ps_lab: Lab) -> None:
    """A connection that is lost and replaced is one event, and no outage."""
    with connect(ps_lab.url, autocommit=True) as conn, heard() as events:
        conn.execute("SELECT 1")
        ps_lab.edge.cut()
        conn.execute("SELECT 1")
    assert [(event.name, event.attempt) for event in events] == [(Name.RETRY, 1)]
    assert events[0].reason == "connection_lost"


def test_outage(ps_lab: Lab) -> None:
    """An endpoint that is away is told once, however many wait, and so is its return with the time."""
    state, _, _ = states_of(ps_lab.topology)
    conns = [Connection.open(state, autocommit=True) for _ in range(4)]
    ps_lab.bouncers["write-pool"].stop()
    began = time.monotonic()
    with heard() as events:
        threads = [threading.Thread(target=conn.execute, args=("SELECT 1",)) for conn in conns]
        for thread in threads:
            thread.start()
        while not told(events, Name.OUTAGE_OPENED):
            assert time.monotonic() < began + 20
        ps_lab.bouncers["write-pool"].start()
        for thread in threads:
            thread.join(30)
    passed = time.monotonic() - began
    (opened,) = told(events, Name.OUTAGE_OPENED)
    assert opened[1] == "primary"
    (closed,) = [event for event in events if event.name is Name.OUTAGE_CLOSED]
    assert closed.seconds is not None
    assert 0 < closed.seconds < passed
    for conn in conns:
        conn.close()


def test_gives_up_with_a_history(ps_lab: Lab) -> None:
    """What is raised in the end tells what the tries met, without the server's words."""
    state = EndpointState(endpoint=ps_lab.topology.primary)
    with Connection.open(state, policy=RetryPolicy(max_elapsed=1.5), autocommit=True) as conn:
        ps_lab.bouncers["write-pool"].stop()
        try:
            with pytest.raises(psycopg.OperationalError) as failure:
                conn.execute("SELECT 1")
        finally:
            ps_lab.bouncers["write-pool"].start()
    first, *met = failure.value.__notes__[0].splitlines()
    assert first.startswith("ps-postgres: tried the endpoint 'primary' again for ")
    assert met
    assert all(line.startswith("  'primary': ") for line in met)


def test_deadline(ps_lab: Lab) -> None:
    """A deadline that ends a wait is told."""
    with connect(ps_lab.url, autocommit=True) as conn, heard() as events:
        conn.execute("SELECT 1")
        ps_lab.edge.hang()
        try:
            for statement in ("SELECT 1", "SELECT set_config('a.b', 'c', false)"):
                with pytest.raises(DeadlineExceeded), deadline(0.2):
                    conn.execute(statement)
        finally:
            ps_lab.edge.resume()
    assert told(events, Name.DEADLINE_EXCEEDED)


def test_replica_that_is_gone(ps_lab: Lab) -> None:
    """A replica endpoint that is left out, the fallback, and its return are told, each once."""
    policy = RetryPolicy(max_elapsed=20)
    replicas = replicas_of(ps_lab.topology)
    assert replicas is not None
    ps_lab.wait_replicas_caught_up()  # with what the fallback shows
    with (
        Connection.open(replicas.first(), replicas=replicas, policy=policy, autocommit=True) as conn,
        heard() as events,
        use_token(None),
    ):
        conn.execute("SELECT 1")
        ps_lab.bouncers["read-pool"].stop()
        try:
            assert conn.execute("SELECT pg_is_in_recovery()").fetchone() == (False,)
        finally:
            ps_lab.restart_bouncer("read-pool")
        until = time.monotonic() + 20
        while conn.execute("SELECT pg_is_in_recovery()").fetchone() != (True,):
            assert time.monotonic() < until
    names = (Name.EJECTED, Name.FALLBACK, Name.READMITTED)
    assert [name for name, _, _ in told(events, *names)] == ["ejected", "fallback", "readmitted"]


def test_commit_outcome(ps_lab: Lab) -> None:
    """What became of a COMMIT whose answer was lost is told."""
    ps_lab.sql(
        "CREATE TABLE told (id int); GRANT ALL ON told TO app;"
        " CREATE FUNCTION held() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN PERFORM pg_advisory_xact_lock(77); RETURN NULL; END';"
        " CREATE CONSTRAINT TRIGGER held AFTER INSERT ON told DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION held()"
    )
    state = EndpointState(endpoint=ps_lab.topology.primary, identity=ps_lab.branch, tracks=True)
    waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 77 AND NOT granted"
    try:
        with Connection.open(state) as conn, psycopg.connect(ps_lab.primary.dsn()) as holder, heard() as events:
            holder.execute("SELECT pg_advisory_xact_lock(77)")
            with limits(statement="60s"):
                conn.execute("INSERT INTO told VALUES (1)")
            commit = threading.Thread(target=conn.commit)
            commit.start()
            wait_until(lambda: ps_lab.sql(waiting) == [(1,)], "a COMMIT under way")
            ps_lab.edge.cut()
            holder.commit()
            commit.join(30)
        assert told(events, Name.COMMIT_OUTCOME) == [("commit_outcome", "primary", "committed")]
    finally:
        ps_lab.sql("DROP TABLE told; DROP FUNCTION held()")


def test_opentelemetry(ps_lab: Lab) -> None:
    """Events are counted, an outage's time is a histogram; the current span gets the route and the events."""
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider

    from ps_core.otel import instrument

    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    stop = instrument(provider)
    try:
        with TracerProvider().get_tracer("tests").start_as_current_span("request") as span:
            assert isinstance(span, ReadableSpan)
            emit(Event(name=Name.ROUTE, endpoint="replica", reason="read"))
            emit(Event(name=Name.OUTAGE_CLOSED, endpoint="primary", seconds=1.5))
            with connect(ps_lab.url, autocommit=True) as conn:
                ps_lab.edge.cut()
                conn.execute("SELECT 1")
    finally:
        stop()
    emit(Event(name=Name.ROUTE, endpoint="replica", reason="after the end"))
    data = reader.get_metrics_data()
    assert data is not None
    metrics: dict[str, list[Any]] = {
        metric.name: list(metric.data.data_points) for metric in data.resource_metrics[0].scope_metrics[0].metrics
    }
    counted = {point.attributes["ps_postgres.event"]: point.value for point in metrics["ps_postgres.events"]}
    assert counted == {"route": 1, "outage_closed": 1, "retry": 1}
    (outage,) = metrics["ps_postgres.outage.duration"]
    assert (outage.sum, outage.attributes["db.system.name"]) == (1.5, "postgresql")
    assert span.attributes is not None
    assert span.attributes["ps_postgres.reason"] == "read"
    assert [event.name for event in span.events] == ["ps_postgres.outage_closed", "ps_postgres.retry"]
    provider.shutdown()
