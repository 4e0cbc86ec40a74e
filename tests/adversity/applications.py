"""Applications of both frameworks, sync and async, at work while a fault happens; and what their clients see of it.

`ApplicationClients` are a client of each, in a thread of its own. A unit of their work: a read on a replica, a write through
`run_transaction`, a routed read of what was written, the same on the primary through the dedicated bouncer, and through the
local one.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import copy_context
from itertools import count
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeVar

import psycopg
import sqlalchemy as sa
from asgiref.sync import sync_to_async
from django.db import DatabaseError, connections

import ps_django
import ps_django.transaction
import ps_sqlalchemy
from ps_core.context import use_token, using_primary
from ps_core.errors import CommitOutcomeUnknown
from ps_demo.bank_sqlalchemy import Transfer, ddl
from ps_lab.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ps_lab import Lab

T = TypeVar("T")
Where = Literal["routed", "primary", "local", "direct"]
BOUNCERS: dict[str, Any] = {"bouncer": "write-pool", "replica_bouncer": "read-pool"}
PAUSE = 0.1
"""Seconds between two units of a client's work: the machine is for the others."""
NUMBERS = count(1)


def nothing() -> None:
    """Do nothing."""


NOTE: dict[str, int] = {"source": 1, "target": 2, "amount": 1}
"""What is noted of a write beside its reference, which the client chooses. No balance changes: no client waits for another."""


def transfers() -> Any:
    """Return the manager of the bank's transfers as Django has it, which has to be set up before."""
    from ps_demo.bank_django import Transfer

    return Transfer.objects


def make_table(lab: Lab) -> None:
    """Make the bank's tables, with a transfer 0."""
    lab.sql(ddl())
    noted = "SELECT 0, 1, 2, 1 WHERE NOT EXISTS (TABLE bank_transfer)"
    lab.sql(f"INSERT INTO bank_transfer (reference, source, target, amount) {noted}")
    lab.wait_replicas_caught_up()


class Application:
    """What a client does with a framework. SQL errors come as the framework raises them."""

    name: ClassVar[str]
    error: ClassVar[type[Exception]]
    """The class of all errors of the database, as the framework names it."""

    def look(self, number: int, where: Where = "routed") -> list[bool]:
        """Return for each row with this number, by the ORM, whether a replica answered."""
        raise NotImplementedError

    def add(self, number: int, *before: str, each: Callable[[], object] = nothing) -> None:
        """Add such a row by the ORM in `run_transaction`, behind these statements; each attempt calls `each` before the last."""
        raise NotImplementedError

    def execute(self, sql: str, where: Where = "routed") -> list[Any]:
        """Run one statement, in a transaction of its own, and return the first column of what it returns."""
        raise NotImplementedError

    def renew(self) -> None:
        """Drop the connections, so that what comes next makes new ones."""
        raise NotImplementedError

    def close(self) -> None:
        """Drop the connections for good."""
        self.renew()

    def is_unknown(self, error: BaseException) -> bool:
        """Return whether it says that the outcome of the COMMIT is unknown."""
        return isinstance(self.cause(error), CommitOutcomeUnknown)

    @staticmethod
    def cause(error: BaseException) -> psycopg.Error:
        """Return the driver's error."""
        cause = getattr(error, "orig", None) or error.__cause__
        assert isinstance(cause, psycopg.Error), repr(error)
        return cause


def _rows(number: int) -> sa.Select[tuple[bool]]:
    return sa.select(sa.func.pg_is_in_recovery()).where(Transfer.reference == number)


def _on(where: Where) -> AbstractContextManager[None]:
    return nullcontext() if where == "routed" else using_primary()


class SQLAlchemy(Application):
    """Sessions."""

    name, error = "SQLAlchemy", sa.exc.DBAPIError

    def __init__(self, url: str, **settings: Any) -> None:
        self._engine = ps_sqlalchemy.create_engine(url, **{**BOUNCERS, **settings})
        self._local = ps_sqlalchemy.create_engine(url)

    def _session(self, where: Where) -> ps_sqlalchemy.Session:
        return ps_sqlalchemy.Session({"local": self._local, "direct": self._engine.direct}.get(where, self._engine))

    def look(self, number: int, where: Where = "routed") -> list[bool]:
        with _on(where), self._session(where) as session:
            return list(session.scalars(_rows(number)))

    def add(self, number: int, *before: str, each: Callable[[], object] = nothing) -> None:
        def work(session: ps_sqlalchemy.Session) -> None:
            for statement in before[:-1]:
                session.execute(sa.text(statement))
            each()
            for statement in before[-1:]:
                session.execute(sa.text(statement))
            session.add(Transfer(reference=number, **NOTE))

        ps_sqlalchemy.run_transaction(ps_sqlalchemy.sessionmaker(self._engine), work)

    def execute(self, sql: str, where: Where = "routed") -> list[Any]:
        with _on(where), self._session(where) as session:
            result: Any = session.execute(sa.text(sql))
            rows = list(result.scalars()) if result.returns_rows else []
            session.commit()
        return rows

    def renew(self) -> None:
        for engine in (self._engine, self._local):
            engine.dispose()


class AsyncSQLAlchemy(Application):
    """Sessions of asyncio. It has an event loop of its own, in the thread that uses it."""

    name, error = "SQLAlchemy, asyncio", sa.exc.DBAPIError

    def __init__(self, url: str, **settings: Any) -> None:
        self._engine = ps_sqlalchemy.create_async_engine(url, **{**BOUNCERS, **settings})
        self._local = ps_sqlalchemy.create_async_engine(url)
        self._runner = asyncio.Runner()

    def _run(self, work: Any) -> Any:
        return self._runner.run(work, context=copy_context())

    def _session(self, where: Where) -> ps_sqlalchemy.AsyncSession:
        return ps_sqlalchemy.AsyncSession(self._local if where == "local" else self._engine)

    def look(self, number: int, where: Where = "routed") -> list[bool]:
        async def work() -> list[bool]:
            with _on(where):
                async with self._session(where) as session:
                    return list(await session.scalars(_rows(number)))

        found: list[bool] = self._run(work())
        return found

    def add(self, number: int, *before: str, each: Callable[[], object] = nothing) -> None:
        async def work(session: ps_sqlalchemy.AsyncSession) -> None:
            for statement in before[:-1]:
                await session.execute(sa.text(statement))
            each()
            for statement in before[-1:]:
                await session.execute(sa.text(statement))
            session.add(Transfer(reference=number, **NOTE))

        self._run(ps_sqlalchemy.arun_transaction(ps_sqlalchemy.async_sessionmaker(self._engine), work))

    def execute(self, sql: str, where: Where = "routed") -> list[Any]:
        async def work() -> list[Any]:
            engine = {"local": self._local, "direct": self._engine.direct}.get(where, self._engine)
            with _on(where):
                async with ps_sqlalchemy.AsyncSession(engine) as session:
                    result: Any = await session.execute(sa.text(sql))
                    rows = list(result.scalars()) if result.returns_rows else []
                    await session.commit()
            return rows

        found: list[Any] = self._run(work())
        return found

    def renew(self) -> None:
        async def work() -> None:
            for engine in (self._engine, self._local):
                await engine.dispose()

        self._run(work())

    def close(self) -> None:
        self.renew()
        self._runner.close()


class Django(Application):
    """The ORM, with `ReplicaRouter` and `reading()`. What the site's aliases do not lead to has aliases of its own."""

    name, error = "Django", DatabaseError

    def __init__(self, url: str, **settings: Any) -> None:
        number = next(NUMBERS)
        others = ps_django.databases(url, **{**BOUNCERS, **settings})
        wanted: dict[Where, Any] = {"routed": others["replica"], "primary": others["default"], "direct": others["direct"]}
        wanted["local"] = ps_django.databases(url)["default"]
        self._aliases: dict[Where, str] = {where: f"{where}-{number}" for where in wanted}
        for where, entry in wanted.items():
            for option, other in (("ps_primary", "primary"), ("ps_direct", "direct")):
                if option in entry["OPTIONS"]:
                    entry["OPTIONS"][option] = f"{other}-{number}"
            connections.databases[self._aliases[where]] = connections.configure_settings({"default": entry})["default"]

    def _rows(self, number: int, where: Where) -> Any:
        from ps_demo.bank_django import InRecovery

        found = transfers().using(self._aliases[where]) if where in ("local", "direct") else transfers()
        return found.filter(reference=number).values_list(InRecovery(), flat=True)

    @staticmethod
    def _on(where: Where) -> AbstractContextManager[None]:
        return ps_django.reading() if where == "routed" else ps_django.using_primary()

    def look(self, number: int, where: Where = "routed") -> list[bool]:
        with self._on(where):
            return list(self._rows(number, where))

    def add(self, number: int, *before: str, each: Callable[[], object] = nothing) -> None:
        def work() -> None:
            for statement in before[:-1]:
                self._execute(statement, "default")
            each()
            for statement in before[-1:]:
                self._execute(statement, "default")
            transfers().create(reference=number, **NOTE)

        ps_django.transaction.run_transaction(work)

    def execute(self, sql: str, where: Where = "routed") -> list[Any]:
        return self._execute(sql, self._aliases[where])

    @staticmethod
    def _execute(sql: str, alias: str) -> list[Any]:
        with connections[alias].cursor() as cursor:
            cursor.execute(sql)
            return [row[0] for row in cursor.fetchall()] if cursor.description else []

    def renew(self) -> None:
        connections.close_all()

    def close(self) -> None:
        self.renew()
        for alias in self._aliases.values():
            del connections.databases[alias]


class AsyncDjango(Django):
    """The same in async code: its queries as Django offers them, what else there is by `sync_to_async`."""

    name = "Django, async"

    def __init__(self, url: str, **settings: Any) -> None:
        super().__init__(url, **settings)
        self._runner = asyncio.Runner()

    def _run(self, work: Any) -> Any:
        return self._runner.run(work, context=copy_context())

    def look(self, number: int, where: Where = "routed") -> list[bool]:
        async def work() -> list[bool]:
            with self._on(where):
                return [answer async for answer in self._rows(number, where)]

        found: list[bool] = self._run(work())
        return found

    def add(self, number: int, *before: str, each: Callable[[], object] = nothing) -> None:
        self._run(sync_to_async(super().add)(number, *before, each=each))

    def execute(self, sql: str, where: Where = "routed") -> list[Any]:
        found: list[Any] = self._run(sync_to_async(super().execute)(sql, where))
        return found

    def renew(self) -> None:
        self._run(sync_to_async(super().renew)())

    def close(self) -> None:
        super().close()
        self._runner.close()


APPLICATIONS: tuple[type[SQLAlchemy | AsyncSQLAlchemy | Django], ...] = (SQLAlchemy, AsyncSQLAlchemy, Django, AsyncDjango)


@contextmanager
def at_hand(url: str, **settings: Any) -> Iterator[list[Application]]:
    """Yield one of each on a role's URL. The ORM of Django's is the site's, whatever the URL."""
    with ExitStack() as stack:
        found: list[Application] = []
        for kind in APPLICATIONS:
            found.append(kind(url, **settings))
            stack.callback(found[-1].close)
        yield found


def refused(application: Application, work: Callable[[], object]) -> psycopg.Error:
    """Return the driver's error inside the framework's that `work` raises."""
    try:
        work()
    except application.error as exc:
        return application.cause(exc)
    raise AssertionError(f"{application.name}: no error")


def refused_once(application: Application, *before: str) -> psycopg.Error:
    """Add a row behind these statements, which is refused; return the driver's error, after the one attempt there may be."""
    calls: list[int] = []
    error = refused(application, lambda: application.add(next(NUMBERS), *before, each=lambda: calls.append(1)))
    assert len(calls) == 1, f"{application.name}: {len(calls)} attempts"
    return error


def wait_for_replicas(applications: list[Application]) -> None:
    """Return when replicas answer all of them, as callers who have seen nothing."""
    for application in applications:
        with use_token(None):
            wait_until(lambda: application.look(0) == [True], f"an answer of a replica to {application.name}")  # noqa: B023 - here


def renewing(application: Application, work: Callable[[], T]) -> T:
    """Do what a thread is for that ends: connections of Django are each thread's own."""
    try:
        return work()
    finally:
        application.renew()


class ApplicationClient:
    """A client of one application at work, in a thread of its own."""

    def __init__(self, application: type[SQLAlchemy | AsyncSQLAlchemy | Django], url: str, order: int) -> None:
        self.name = application.name
        self.begun = self.done = 0
        """Units of work."""
        self.acknowledged: list[int] = []
        self.unknown: list[int] = []
        """Writes that raised `CommitOutcomeUnknown`."""
        self.wrong: list[str] = []
        """Reads that raised, writes that raised something else, and answers that are not true."""
        self.error: Exception | None = None
        """The first of those errors."""
        self.by_replica = 0
        """Reads that a replica answered."""
        self._application, self._url, self._order = application, url, order
        self._stop, self._wake = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"client of {self.name}", daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether it works no more."""
        return not self._thread.is_alive()

    def wake(self) -> None:
        """Let the next unit begin now."""
        self._wake.set()

    def end(self) -> None:
        """Let the unit under way be the last one."""
        self._stop.set()
        self._wake.set()
        self._thread.join(60)
        assert self.ended, f"{self._thread.name} hangs"

    def _run(self) -> None:
        try:
            application = self._application(self._url)
            try:
                with use_token(None):
                    while not self._stop.is_set():
                        self._unit(application)
                        self._wake.wait(PAUSE)
                        self._wake.clear()
            finally:
                application.close()
        except Exception as exc:  # noqa: BLE001 - the test looks at it
            self._went_wrong("the client's thread", exc)

    def _unit(self, application: Application) -> None:
        self.begun += 1
        if self.begun % 4 == self._order:
            application.renew()
        number = next(NUMBERS)
        with use_token(None):
            self._look(application, 0, "routed")
        try:
            application.add(number)
            self.acknowledged.append(number)
            for where in ("routed", "primary", "local"):
                self._look(application, number, where)
        except application.error as exc:
            if application.is_unknown(exc):
                self.unknown.append(number)
            else:
                self._went_wrong("write", exc)
        self.done += 1

    def _went_wrong(self, what: str, exc: Exception) -> None:
        self.wrong.append(f"{what}: {exc!r}")
        self.error = self.error or exc

    def _look(self, application: Application, number: int, where: Where) -> None:
        try:
            answers = application.look(number, where)
        except application.error as exc:
            self._went_wrong(f"{where} read", exc)
            return
        if len(answers) != 1:
            self.wrong.append(f"{where} read: {len(answers)} times there")
        self.by_replica += any(answers)


class ApplicationClients:
    """A client of each application, at work within the block and until each has seen a whole unit after it."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._clients: list[ApplicationClient] = []
        make_table(lab)

    def __enter__(self) -> Self:
        self._clients = [ApplicationClient(application, self._lab.url, order) for order, application in enumerate(APPLICATIONS)]
        self._wait("first unit", [1] * len(self._clients), "done")
        # Where the test before has left the replicas out, they are back with a probe.
        self._wait("read on a replica", [1] * len(self._clients), "by_replica")
        return self

    def meet(self) -> None:
        """Return when each of them is at work in what happens now."""
        self._wait("unit", [client.begun + (client.begun == client.done) for client in self._clients], "begun")

    def __exit__(self, exc_type: object, *_: object) -> None:
        try:
            if exc_type is None:
                self._wait("unit afterwards", [client.begun + 1 for client in self._clients], "done")
        finally:
            for client in self._clients:
                client.end()

    def _wait(self, what: str, least: list[int], counter: str) -> None:
        def reached() -> bool:
            for client in self._clients:
                client.wake()
            return all(
                client.ended or getattr(client, counter) >= number for client, number in zip(self._clients, least, strict=True)
            )

        wait_until(reached, f"{what} of each client", timeout=50)

    def saw(self, *, unknown: bool = False) -> str:
        """Check what they saw, and return it in words. `unknown`: nobody may be able to tell what became of a COMMIT."""
        rows = dict(self._lab.sql("SELECT reference, count(*) FROM bank_transfer GROUP BY reference"))
        for client in self._clients:
            if client.wrong:
                raise AssertionError(f"{client.name}: {client.wrong}") from client.error
            assert client.by_replica, client.name
            assert unknown or not client.unknown, f"{client.name}: {len(client.unknown)} of unknown outcome"
            assert {rows.get(number, 0) for number in client.acknowledged} == {1}, client.name
            assert {rows.get(number, 0) for number in client.unknown} <= {0, 1}, client.name
        told = "; where nobody can tell whether it was, CommitOutcomeUnknown" if unknown else ""
        return f"no read fails, every run_transaction is committed once{told}, and own writes are seen"
