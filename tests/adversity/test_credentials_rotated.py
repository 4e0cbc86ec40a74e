"""Credentials are rotated as PlanetScale advises: a second role, everything moved to it, and then the first one deleted."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import text

import ps_sqlalchemy
from ps_core.context import deadline, use_token
from ps_core.errors import DeadlineExceeded
from ps_core.failures import Kind, classify
from ps_core.topology import Topology
from ps_lab import Lab
from ps_lab.processes import wait_until
from tests.adversity.applications import APPLICATIONS, BOUNCERS, NUMBERS, Application, Where, at_hand, refused
from tests.adversity.harness import prepare
from tests.adversity.matrix import Matrix

FAULT = "Credentials are rotated: a second role, then the first is deleted"
LINE = "nothing, where the old connections were given up before; who connects with the deleted role hears so at once"
PATHS: tuple[Where, ...] = ("routed", "primary", "local", "direct")
SECOND = "SELECT current_user = 'second'"


@pytest.fixture
def urls(ps_lab: Lab) -> Iterator[tuple[str, str]]:
    """The URLs of both roles. The first one is gone when the test is over, or before."""
    prepare(ps_lab)
    yield ps_lab.create_role("first"), ps_lab.create_role("second")
    for name in ("first", "second"):
        if ps_lab.sql("SELECT 1 FROM pg_roles WHERE rolname = %s", name):
            ps_lab.drop_role(name)


class Worker:
    """A process of an application as far as connections go: it writes and reads until it is told to end."""

    def __init__(self, kind: type[Any], url: str) -> None:
        self.acknowledged: list[int] = []
        self.errors: list[Exception] = []
        self._kind, self._url = kind, url
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            application: Application = self._kind(self._url)
            try:
                while not self._stop.wait(0.02):
                    with use_token(None):
                        number = next(NUMBERS)
                        application.execute(f"INSERT INTO ledger VALUES ({number})", "primary")
                        self.acknowledged.append(number)
                        assert application.execute(f"SELECT count(*) FROM ledger WHERE id = {number}") == [1]
            finally:
                application.close()
        except Exception as exc:  # noqa: BLE001 - the test looks at it
            self.errors.append(exc)

    def works(self) -> None:
        """Wait until it has done a few more of its writes."""
        wanted = len(self.acknowledged) + 3
        wait_until(lambda: len(self.acknowledged) >= wanted or self.errors, "work")

    def end(self) -> None:
        """Let it finish what it does, as a server that is told to stop."""
        self._stop.set()
        self._thread.join(20)
        assert not self._thread.is_alive()


def test_processes(ps_lab: Lab, matrix: Matrix, urls: tuple[str, str]) -> None:
    """Processes with the new role start beside the old ones, which end; when the old role is dropped, nobody notices."""
    first, second = urls
    old = [Worker(kind, first) for kind in APPLICATIONS]
    for worker in old:
        worker.works()
    new = [Worker(kind, second) for kind in APPLICATIONS]
    for worker in new:
        worker.works()
    for worker in old:
        worker.end()
    ps_lab.drop_role("first")
    for worker in new:
        worker.works()
        worker.end()
    workers = old + new
    assert [error for worker in workers for error in worker.errors] == []
    acknowledged = sorted(number for worker in workers for number in worker.acknowledged)
    assert [number for (number,) in ps_lab.sql("SELECT id FROM ledger ORDER BY id")] == acknowledged
    matrix.sees(FAULT, LINE)


@contextmanager
def engine_on(url: str, **options: Any) -> Iterator[ps_sqlalchemy.Engine]:
    """An engine as the README makes it."""
    engine = ps_sqlalchemy.create_engine(url, **BOUNCERS, **options)
    try:
        yield engine
    finally:
        engine.dispose()


def test_new_engine(ps_lab: Lab, matrix: Matrix, urls: tuple[str, str]) -> None:
    """Within one process: a new engine, and `dispose()` of the old one when what was open on it has ended."""
    with engine_on(urls[0]) as old, engine_on(urls[1]) as new:
        ps_lab.set_replay_delay(60)
        try:
            with ps_sqlalchemy.Session(old) as session, session.begin():
                session.execute(text("INSERT INTO ledger VALUES (1)"))
                with ps_sqlalchemy.Session(new) as other:
                    assert other.scalar(text(SECOND)) is True
            old.dispose()
            with ps_sqlalchemy.Session(new) as session:
                assert session.scalar(text("SELECT count(*) FROM ledger")) == 1, "what was seen by the old one counts"
        finally:
            ps_lab.set_replay_delay(0)
        ps_lab.drop_role("first")
        assert old.pool.checkedin() == 0  # type: ignore[attr-defined]
        with ps_sqlalchemy.Session(new) as session:
            assert session.scalar(text(SECOND)) is True
    matrix.sees(FAULT, LINE)


def use_all(engine: ps_sqlalchemy.Engine) -> list[sa.exc.OperationalError]:
    """Use two connections of each pool, and return what they raised."""
    errors = []
    for side in (engine, engine.replica):
        assert side is not None
        with side.connect() as conn, side.connect() as other:
            for one in (conn, other):
                try:
                    one.execute(text("SELECT 1"))
                except sa.exc.OperationalError as exc:
                    errors.append(exc)
    return errors


@pytest.mark.parametrize(
    "options", [{}, {"isolation_level": "AUTOCOMMIT"}, {"pool_pre_ping": True}], ids=["transactions", "autocommit", "pre-ping"]
)
def test_new_password(ps_lab: Lab, urls: tuple[str, str], options: dict[str, Any]) -> None:
    """SQLAlchemy's `do_connect` event gives new connections the password that holds then; those that are open stay. One that is
    lost and refused is replaced by a new one."""
    passwords = [Topology.from_url(urls[0]).primary.password]

    def connect(dialect: Any, record: Any, args: Any, params: dict[str, Any]) -> None:
        params["password"] = passwords[-1]

    with engine_on(urls[0], **options) as engine:
        sa.event.listen(engine, "do_connect", connect)
        assert use_all(engine) == []
        passwords.append(Topology.from_url(ps_lab.set_password("first")).primary.password)
        assert use_all(engine) == [], "those that are open stay"
        ps_lab.edge.cut()
        refusals = use_all(engine)
        assert len(refusals) <= (0 if "pool_pre_ping" in options else 4)
        assert {classify(error).kind for error in refusals} <= {Kind.CONFIGURATION}
        assert use_all(engine) == []
        passwords.append(Topology.from_url(ps_lab.set_password("first")).primary.password)
        engine.dispose()
        assert use_all(engine) == []


def test_role_is_deleted_too_early(ps_lab: Lab, urls: tuple[str, str]) -> None:
    """A client of the deleted role gets the error at once, on every path; one that waits in a pooler, at its deadline."""
    with at_hand(urls[0]) as applications:
        for application in applications:
            application.execute("SELECT 1", "primary")
        ps_lab.drop_role("first")
        for application in applications:
            with deadline("300ms"), pytest.raises((application.error, DeadlineExceeded)):
                application.execute("SELECT 1", "primary")
            application.renew()
            for where in PATHS:
                with deadline("5s"):
                    error = refused(application, partial(application.execute, "SELECT 1", where))
                assert classify(error).kind is Kind.CONFIGURATION, (application.name, where, error)
