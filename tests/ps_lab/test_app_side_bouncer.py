"""Two tiers of poolers: one on the application's side, as `ps-postgres pgbouncer` configures it, before the dedicated ones."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy import orm, select, text

import ps_core
from ps_core import use_token
from ps_core.events import Event, Name, subscribe
from ps_core.topology import Topology
from ps_lab import Lab
from ps_lab.pgbouncer import AppSideBouncer
from ps_lab.processes import wait_until
from ps_sqlalchemy import Engine, Session, create_engine

WHERE = text("SELECT pg_is_in_recovery()")
LIMIT = "current_setting('statement_timeout')"


class Base(orm.DeclarativeBase):
    """The model's base."""


class Note(Base):
    """Something to write."""

    __tablename__ = "tier_note"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)


@pytest.fixture(scope="module")
def tiers() -> Iterator[Lab]:
    """A lab with the PgBouncer of the application's side."""
    with Lab(app_side_bouncer=True) as lab:
        yield lab


@pytest.fixture(scope="module")
def engine(tiers: Lab) -> Iterator[Engine]:
    """An engine on it, with nothing said but the URL; the table goes in on the direct path."""
    engine = create_engine(tiers.url)
    Base.metadata.create_all(engine.direct)
    tiers.wait_replicas_caught_up()
    yield engine
    engine.dispose()


def app_side(lab: Lab) -> AppSideBouncer:
    assert lab.app_side is not None
    return lab.app_side


def test_routing(tiers: Lab, engine: Engine) -> None:
    """Writes come to the primary and reads to a replica, each through both tiers; the direct path goes past both."""
    with Session(engine) as session, session.begin():
        session.add(Note(id=1))
        assert session.scalar(WHERE) is False
    with use_token(None), Session(engine) as session:
        assert session.scalar(WHERE) is True
    with engine.direct.connect() as connection:
        assert connection.scalar(text("SELECT pg_is_in_recovery()")) is False
    pools = {(row[0], row[1]) for row in app_side(tiers).admin("SHOW POOLS")} - {("pgbouncer", "pgbouncer")}
    assert pools == {
        ("postgres", f"app.{tiers.branch}|write-pool"),
        ("postgres_replica", f"app.{tiers.branch}|read-pool"),
    }
    for name in ("write-pool", "read-pool"):
        assert ("postgres", "app") in {(row[0], row[1]) for row in tiers.bouncers[name].admin("SHOW POOLS")}


def test_timeouts_hold_and_do_not_leak(tiers: Lab, engine: Engine) -> None:
    """A statement ends at the limit; another client of the same server connection is not bounded by it."""
    with ps_core.limits(statement="150ms"), Session(engine) as session, pytest.raises(sa.exc.OperationalError) as caught:
        session.execute(text("SELECT pg_sleep(5) FOR UPDATE"))
    assert isinstance(caught.value.orig, psycopg.errors.QueryCanceled)
    for endpoint, writes in ((tiers.topology.primary, True), (tiers.topology.replicas[0], False)):
        with psycopg.connect(**endpoint.conninfo(), autocommit=True, cursor_factory=psycopg.ClientCursor) as conn:  # type: ignore[arg-type]
            with ps_core.limits(statement="1500ms"), use_token(None), Session(engine) as session:
                pid, limit = session.execute(text(f"SELECT pg_backend_pid(), {LIMIT} {'FOR UPDATE' * writes}")).one()
                session.commit()
            assert limit == "1500ms"
            met: dict[int, str] = {}  # the replicas' bouncer takes its server connections in turn

            def is_met(conn: Any = conn, pid: int = pid, met: dict[int, str] = met) -> bool:
                met.update(conn.execute(f"SELECT pg_backend_pid(), {LIMIT}"))
                return pid in met

            wait_until(is_met, "the same one")
            assert set(met.values()) == {"0"}


def test_read_under_way_is_sent_again(tiers: Lab, engine: Engine) -> None:
    """A read that is under way when all connections behind the near tier are cut is sent again."""
    tiers.sql(
        "CREATE OR REPLACE FUNCTION held() RETURNS bool LANGUAGE plpgsql STABLE AS"
        " 'BEGIN PERFORM pg_advisory_xact_lock_shared(81); RETURN pg_is_in_recovery(); END'"
    )
    tiers.wait_replicas_caught_up()
    waiting = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND objid = 81 AND NOT granted"
    answers: list[Any] = []
    tries: list[Event] = []

    def read() -> None:
        with use_token(None), ps_core.limits(statement="60s"), Session(engine) as session:
            answers.append(session.scalar(text("SELECT held()")))

    unsubscribe = subscribe(lambda event: tries.append(event) if event.name is Name.RETRY else None)
    reader = threading.Thread(target=read)
    try:
        with ExitStack() as holders:
            for server in tiers.servers:
                holders.enter_context(psycopg.connect(server.dsn())).execute("SELECT pg_advisory_xact_lock(81)")
            reader.start()
            wait_until(lambda: any(server.sql(waiting) for server in tiers.servers), "the read to be under way")
            tiers.edge.cut()
            wait_until(lambda: tries, "the loss to be noticed")
        reader.join(30)
    finally:
        unsubscribe()
    assert answers == [True]
    assert tries[0].endpoint == "replica"


def test_own_writes_are_seen(tiers: Lab, engine: Engine) -> None:
    """With a replay delay, a session reads its own write; with nothing written, replicas serve."""
    tiers.set_replay_delay(0.5)
    try:
        for number in range(10, 20):
            with Session(engine) as session, session.begin():
                session.add(Note(id=number))
            with Session(engine) as session:
                assert session.get(Note, number) is not None
        with use_token(None), Session(engine) as session:
            assert session.scalar(WHERE) is True
    finally:
        tiers.set_replay_delay(0)


@pytest.mark.parametrize("event", ["switchover", "crash_primary", "cut"])
def test_no_read_fails(tiers: Lab, engine: Engine, event: str) -> None:
    """A change of the primary, or the loss of all connections behind the near tier, costs no read and no acknowledged write."""
    stop, errors, acknowledged, reads = threading.Event(), [], [], [0]
    first = 1_000_000 * ["switchover", "crash_primary", "cut"].index(event) + 100

    def read() -> None:
        try:
            while not stop.is_set():
                with use_token(None), Session(engine) as session:
                    session.scalar(select(sa.func.count()).select_from(Note))
                reads[0] += 1
        except Exception as exc:  # noqa: BLE001
            errors.append(exc)

    def write() -> None:
        number = first
        while not stop.is_set():
            number += 1
            try:
                with Session(engine) as session, session.begin():
                    session.add(Note(id=number))
            except sa.exc.DBAPIError:
                continue  # unknown: it may be there or not
            acknowledged.append(number)

    threads = [threading.Thread(target=work) for work in (read, read, write)]
    for thread in threads:
        thread.start()
    try:
        (tiers.edge.cut if event == "cut" else getattr(tiers, event))()
        before = reads[0], len(acknowledged)
        wait_until(
            lambda: errors or (reads[0] > before[0] + 20 and len(acknowledged) > before[1] + 20), "work after it", timeout=40
        )
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    for error in errors:
        raise error
    assert set(acknowledged) <= {row[0] for row in tiers.sql("SELECT id FROM tier_note")}


def test_app_side_restart(tiers: Lab, engine: Engine) -> None:
    """When the near tier itself is killed and started again, the next transaction and the next read go through."""
    with Session(engine) as session:
        session.execute(text("SELECT 1"))
    app_side(tiers).stop()
    app_side(tiers).start()
    with Session(engine) as session, session.begin():
        session.add(Note(id=2))

    def on_replica() -> bool:
        with use_token(None), Session(engine) as session:
            return bool(session.scalar(WHERE))

    wait_until(on_replica, "the end of the fallback to the primary that an earlier test may have left")


def test_django(tiers: Lab, engine: Engine) -> None:
    """Django with nothing said but the URL: writes on the primary, reads on a replica, the timeouts held."""
    script = """
import sys
import django
from django.conf import settings
import ps_django
settings.configure(
    DATABASES=ps_django.databases(sys.stdin.read()),
    DATABASE_ROUTERS=["ps_django.routers.ReplicaRouter"],
    INSTALLED_APPS=["django.contrib.contenttypes"],
)
django.setup()
from django.contrib.contenttypes.models import ContentType
from django.core.management import call_command
from django.db import connections
call_command("migrate", verbosity=0)
row = ContentType.objects.create(app_label="a", model="b")
assert ContentType.objects.get(pk=row.pk) == row
for alias, replica in (("default", False), ("replica", True), ("direct", False)):
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT pg_is_in_recovery(), current_setting('statement_timeout')")
        print(alias, *cursor.fetchone())
"""
    command = [sys.executable, "-W", "error", "-c", script]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, input=tiers.url, capture_output=True, text=True, timeout=60, cwd=root, check=False)
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["default False 2s", "replica True 2s", "direct False 0"]


def test_topology(tiers: Lab) -> None:
    """The lab's URL is that of the near tier alone: no suffix, and the identity that the URL without the layer has."""
    topology = tiers.topology
    assert [end.user for end in (topology.primary, *topology.replicas)] == [f"app.{tiers.branch}"] * 2
    assert topology.primary.host == str(app_side(tiers).socket_folder)
    assert topology.identity == Topology.from_url(tiers.url_of("app")).identity


def test_password(tiers: Lab) -> None:
    """A role's new password holds on both sides of the near tier at once."""
    old = tiers.topology.primary.password
    tiers.set_password("app")
    try:
        new = tiers.topology.primary
        assert new.password != old
        app_side(tiers).admin("RECONNECT")
        with psycopg.connect(**new.conninfo()) as conn:  # type: ignore[arg-type]
            assert conn.execute("SELECT current_user").fetchall() == [("app",)]
        with pytest.raises(psycopg.OperationalError, match=r"(password|SASL) authentication failed"):
            psycopg.connect(**{**new.conninfo(), "password": old})  # type: ignore[arg-type]
    finally:
        tiers.set_password("app", old)
