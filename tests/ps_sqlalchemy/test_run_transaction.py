"""`run_transaction` where there is no transaction to run again: every way to AUTOCOMMIT is refused."""

import asyncio
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm, select
from sqlalchemy.ext.asyncio import AsyncSession as StockAsyncSession
from sqlalchemy.ext.asyncio import async_sessionmaker as stock_async_sessionmaker

from ps_core import ConfigurationError, use_token
from ps_lab import Lab
from ps_sqlalchemy import (
    AsyncSession,
    Engine,
    Session,
    arun_transaction,
    async_sessionmaker,
    create_async_engine,
    create_engine,
    run_transaction,
    sessionmaker,
    using_replica,
)
from tests.ps_sqlalchemy.conftest import SERVED_BY_REPLICA, Item

AUTOCOMMIT: dict[str, Any] = {"isolation_level": "AUTOCOMMIT"}
SIDES: dict[str, Any] = {"bouncer": "write-pool", "replica_bouncer": "read-pool"}


def count_one(_: Any) -> int:
    """Return a number."""
    return 1


class Elsewhere(orm.Session):
    """A session that finds its engine by itself."""

    engine: sa.Engine

    def get_bind(self, *_: Any, **__: Any) -> sa.Engine:
        """Return an engine that nobody else knows of."""
        return self.engine


def _elsewhere(engine: Engine) -> Any:
    maker = orm.sessionmaker(class_=Elsewhere)
    Elsewhere.engine = engine.execution_options(**AUTOCOMMIT)
    return maker


BEFORE: dict[str, Callable[[Engine], Any]] = {
    "an engine's option": lambda engine: engine.execution_options(**AUTOCOMMIT),
    "a connection's option": lambda engine: engine.connect().execution_options(**AUTOCOMMIT),
    "a connection of such an engine": lambda engine: engine.execution_options(**AUTOCOMMIT).connect(),
    "a sessionmaker": lambda engine: sessionmaker(engine.execution_options(**AUTOCOMMIT)),
    "a sessionmaker for a class": lambda engine: sessionmaker(binds={Item: engine.execution_options(**AUTOCOMMIT)}),
    "a session": lambda engine: Session(engine.execution_options(**AUTOCOMMIT)),
    "SQLAlchemy's own session": lambda engine: orm.Session(engine.execution_options(**AUTOCOMMIT)),
    "a session on a connection": lambda engine: Session(engine.connect().execution_options(**AUTOCOMMIT)),
}
"""What is refused before the function is called."""
WITHIN: dict[str, Callable[[Engine], Any]] = {
    "a session that finds its engine by itself": _elsewhere,
    "a session for a class": lambda engine: Session(binds={Item: engine.execution_options(**AUTOCOMMIT)}),
}
"""What is refused when the function asks for a connection, before anything is sent."""


def _inserting(called: list[int]) -> Callable[[Any], Any]:
    def work(session: Any) -> None:
        called.append(1)
        session.execute(sa.insert(Item).values(id=1, note="a"))

    return work


@pytest.mark.parametrize("way", [*BEFORE, *WITHIN])
def test_refused(ps_lab: Lab, engine: Engine, items: type[Item], way: str) -> None:
    """Whatever says AUTOCOMMIT, nothing is done."""
    called: list[int] = []
    begin = {**BEFORE, **WITHIN}[way](engine)
    with begin if isinstance(begin, sa.Connection | orm.Session) else nullcontext():
        with ps_lab.round_trips() as trips, pytest.raises(RuntimeError, match="isolation_level='READ COMMITTED'"):
            run_transaction(begin, _inserting(called))
    assert called == [1] * (way in WITHIN)
    assert trips.count == 0
    assert ps_lab.sql("SELECT count(*) FROM sa_item") == [(0,)]


def test_refused_by_the_factory(ps_lab: Lab, items: type[Item]) -> None:
    """`create_engine(isolation_level="AUTOCOMMIT")`, of ours and of SQLAlchemy with our dialect."""
    url = sa.make_url(ps_lab.url).set(drivername="postgresql+ps")
    for engine in (create_engine(ps_lab.url, **SIDES, **AUTOCOMMIT), sa.create_engine(url, **AUTOCOMMIT)):
        for begin in (engine, orm.sessionmaker(engine)):
            with pytest.raises(RuntimeError, match="AUTOCOMMIT"):
                run_transaction(begin, _inserting([]))
        engine.dispose()
    assert ps_lab.sql("SELECT count(*) FROM sa_item") == [(0,)]


def test_option_of_a_connection_in_the_function(ps_lab: Lab, engine: Engine, items: type[Item]) -> None:
    """Nor does the function get there by itself."""

    def work(session: Any) -> None:
        session.connection(execution_options=AUTOCOMMIT).execute(sa.insert(Item).values(id=1, note="a"))

    with pytest.raises(RuntimeError, match="AUTOCOMMIT"):
        run_transaction(sessionmaker(engine), work)
    assert ps_lab.sql("SELECT count(*) FROM sa_item") == [(0,)]


@pytest.mark.parametrize(
    "make",
    [
        lambda engine: engine,
        async_sessionmaker,
        AsyncSession,
        stock_async_sessionmaker,
        StockAsyncSession,
        lambda engine: stock_async_sessionmaker(binds={Item: engine}),
    ],
    ids=["engine", "sessionmaker", "session", "stock sessionmaker", "stock session", "binds"],
)
async def test_refused_in_asyncio(ps_lab: Lab, items: type[Item], make: Callable[[Any], Any]) -> None:
    """The same for `arun_transaction`."""
    engine = create_async_engine(ps_lab.url, **SIDES).execution_options(**AUTOCOMMIT)
    called: list[int] = []

    async def work(session: Any) -> None:
        called.append(1)

    with pytest.raises(RuntimeError, match="AUTOCOMMIT"):
        await arun_transaction(make(engine), work)
    async with engine.connect() as conn:
        with pytest.raises(RuntimeError, match="AUTOCOMMIT"):
            await arun_transaction(conn, work)
    assert called == []
    await engine.dispose()


def test_what_is_written_instead(ps_lab: Lab, items: type[Item]) -> None:
    """What the message says to write works, and leaves the session's listeners as they were."""
    engine = create_engine(ps_lab.url, **SIDES, **AUTOCOMMIT)
    begin = engine.execution_options(isolation_level="READ COMMITTED")
    with Session(begin) as session:
        run_transaction(session, _inserting([]))
        assert not session.dispatch.after_begin
    assert ps_lab.sql("SELECT count(*) FROM sa_item") == [(1,)]
    engine.dispose()


def test_reads_of_replicas_may_be_in_autocommit(ps_lab: Lab, items: type[Item]) -> None:
    """What is read on a replica, READ ONLY, can be read twice: its engine's level is not refused."""
    engine = create_engine(ps_lab.url, **SIDES, replica_isolation_level="AUTOCOMMIT")

    def work(session: Any) -> Any:
        with using_replica():
            return session.scalar(SERVED_BY_REPLICA)

    with use_token(None):
        assert run_transaction(sessionmaker(engine), work) is True
    engine.dispose()


def test_another_engine_in_the_function(engine: Engine, items: type[Item]) -> None:
    """What the function does elsewhere, such as a read in AUTOCOMMIT, is its own affair."""
    other = engine.execution_options(**AUTOCOMMIT)

    def work(session: Any) -> Any:
        with other.connect() as conn:
            return conn.scalar(select(1))

    assert run_transaction(sessionmaker(engine), work) == 1


WRONG: dict[str, tuple[Callable[[Engine], Any], Any, str]] = {
    "a URL": (lambda _: "postgresql://h/d", count_one, "write what begins transactions"),
    "nothing": (lambda _: None, count_one, "write what begins transactions"),
    "a class": (lambda _: Session, count_one, "write what begins transactions"),
    "the arguments swapped": (lambda _: count_one, sessionmaker(), "write what begins transactions"),
    "no function": (lambda engine: engine, None, "write a function"),
    "a result in place of a function": (lambda engine: engine, 5, "write a function"),
    "an asynchronous engine": (lambda _: create_async_engine("postgresql://h/d"), count_one, r"AsyncEngine is for `await arun_"),
    "an asynchronous sessionmaker": (lambda _: async_sessionmaker(), count_one, r"async_sessionmaker is for `await arun_"),
}


@pytest.mark.fast
@pytest.mark.parametrize("way", WRONG)
def test_what_cannot_run(way: str) -> None:
    """It is refused before anything is sent, with what to write."""
    begin, fn, message = WRONG[way]
    with pytest.raises(TypeError, match=f"^run_transaction: .*{message}"):
        run_transaction(begin(create_engine("postgresql://h/d")), fn)


@pytest.mark.fast
def test_what_cannot_run_with_asyncio() -> None:
    """The other kind is refused here, too."""
    others: tuple[Any, ...] = (create_engine("postgresql://h/d"), sessionmaker(), Session())
    for begin in others:
        with pytest.raises(TypeError, match=r"is for `run_transaction\(\.\.\.\)`"):
            asyncio.run(arun_transaction(begin, count_one))  # type: ignore[arg-type]


@pytest.mark.fast
def test_what_would_be_noticed_at_a_loss() -> None:
    """What is needed only when something is lost is refused before the function is called."""
    engine = create_engine("postgresql://h/d")
    for given in ({"retry": 3}, {"retry": None}, {"verify": 5}, {"verify": lambda: True}):
        options: dict[str, Any] = given
        with pytest.raises(ConfigurationError, match=f"^{next(iter(given))}: write"):
            run_transaction(engine, count_one, **options)
