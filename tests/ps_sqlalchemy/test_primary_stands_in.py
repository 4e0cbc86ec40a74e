"""The primary answers READ ONLY what a replica could not, outside of our sessions, too: Core, pandas, `inspect()`."""

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd
import pytest
import sqlalchemy as sa
from sqlalchemy import event, orm, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.util import greenlet_spawn

import ps_sqlalchemy
from ps_core import Token, use_token
from ps_core.errors import ReplicaBehind
from ps_lab import Lab
from ps_sqlalchemy import Engine, Session, replica_of, run_transaction
from tests.ps_sqlalchemy.conftest import SERVED_BY_REPLICA, Item

IDS = select(Item.id).order_by(Item.id)


def _streamed(replica: Any) -> Any:
    with replica.connect().execution_options(stream_results=True) as conn:
        return list(conn.scalars(IDS))


def _at(level: str) -> Callable[[Any], Any]:
    def read(replica: Any) -> Any:
        with replica.connect().execution_options(isolation_level=level) as conn:
            return conn.scalars(IDS).all()

    return read


def _core(replica: Any) -> Any:
    with replica.connect() as conn:
        return conn.scalars(IDS).all()


def _text(replica: Any) -> Any:
    with replica.connect() as conn:
        assert conn.exec_driver_sql("SELECT 1", execution_options={"no_parameters": True}).scalar() == 1
        return conn.scalars(text("SELECT id FROM sa_item ORDER BY id")).all()


def _many(replica: Any) -> Any:
    with replica.connect() as conn:
        conn.exec_driver_sql("SELECT %s FROM sa_item", [(1,), (2,)])
        return conn.scalars(IDS).all()


def _session(replica: Any) -> Any:
    with orm.Session(replica) as session:
        assert [item.id for item in session.scalars(select(Item))] == [1]
        return session.scalars(IDS).all()


def _our_session(replica: Any) -> Any:
    with Session(replica) as session:
        assert [item.id for item in session.scalars(select(Item))] == [1]
        return session.scalars(IDS).all()


def _our_session_on_connection(replica: Any) -> Any:
    with replica.connect() as conn, Session(conn) as session:
        return session.scalars(IDS).all()


def _inspected(replica: Any) -> Any:
    return [1] if sa.inspect(replica).has_table("sa_new_table") else []


def _run(replica: Any) -> Any:
    return run_transaction(replica, lambda conn: conn.scalars(IDS).all())


WAYS: dict[str, Callable[[Any], Any]] = {
    "Core": _core,
    "Core, text": _text,
    "Core, stream_results": _streamed,
    "Core, executemany": _many,
    "Core, AUTOCOMMIT": _at("AUTOCOMMIT"),
    "Core, REPEATABLE READ": _at("REPEATABLE READ"),
    "stock Session": _session,
    "our Session": _our_session,
    "our Session on a connection": _our_session_on_connection,
    "inspect()": _inspected,
    "run_transaction": _run,
    "pandas": lambda replica: pd.read_sql("SELECT id FROM sa_item", replica)["id"].tolist(),
}
KINDS = ("by create_engine", "from a URL", "from a URL, postgresql_readonly")


def engine_of(lab: Lab, kind: str, asynchronous: bool = False, **settings: Any) -> Any:
    """An engine with a replica; for asyncio, the engine inside of it."""
    if kind == "by create_engine":
        make: Any = ps_sqlalchemy.create_async_engine if asynchronous else ps_sqlalchemy.create_engine
        engine = make(lab.url, bouncer="write-pool", replica_bouncer="read-pool", **settings)
    else:
        url = lab.url.replace("postgresql:", f"postgresql+ps{'_async' if asynchronous else ''}:")
        url += "&ps_bouncer=write-pool&ps_replica_bouncer=read-pool"
        url += "".join(f"&ps_{name}={value}" for name, value in settings.items())
        engine = (create_async_engine if asynchronous else sa.create_engine)(url)
    return engine.sync_engine if isinstance(engine, AsyncEngine) else engine


def reader(engine: Any, kind: str) -> Any:
    """The engine whose connections are the replicas'."""
    return engine.execution_options(postgresql_readonly=True) if kind.endswith("readonly") else replica_of(engine)


@pytest.fixture
def behind(ps_lab: Lab, engine: Engine, items: type[Item]) -> Iterator[Lab]:
    """Replicas that are a minute late, of a caller who has written a row and made a table."""
    ps_lab.set_replay_delay(60)
    try:
        ps_lab.sql("CREATE TABLE sa_new_table (id int)")
        with Session(engine) as session:
            session.add(items(id=1, note="a"))
            session.commit()
        yield ps_lab
    finally:
        ps_lab.sql("DROP TABLE IF EXISTS sa_new_table")
        ps_lab.set_replay_delay(0)
        ps_lab.wait_replicas_caught_up()


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "asyncio"])
@pytest.mark.parametrize("kind", KINDS)
def test_behind(behind: Lab, kind: str, asynchronous: bool) -> None:
    """Each way sees the caller's own write, whether a position tells how far that is or not; the next caller is on a replica."""
    engine = engine_of(behind, kind, asynchronous)
    heard: list[Any] = []
    event.listen(engine, "handle_error", heard.append)
    replica = reader(engine, kind)
    unknown = Token(identity=behind.branch, position=None, at=time.time())

    def work() -> None:
        with use_token(None), replica.connect() as conn:
            assert conn.scalar(SERVED_BY_REPLICA)  # one connection is in the pool
        for name, way in WAYS.items():
            assert way(replica) == [1], name
            with use_token(unknown):
                assert way(replica) == [1], name
            with use_token(None), replica.connect() as conn:
                assert conn.scalar(SERVED_BY_REPLICA), name
        engine.dispose()

    asyncio.run(greenlet_spawn(work)) if asynchronous else work()
    assert heard == []


@pytest.mark.parametrize("kind", KINDS)
def test_read_only_until_the_transaction_ends(behind: Lab, kind: str) -> None:
    """It stays with the primary for its transaction, and nothing is written there; what follows is the replica's again."""
    engine = engine_of(behind, kind)
    own = Token(identity=behind.branch, position=1 << 62, at=time.time())
    with use_token(None), reader(engine, kind).connect() as conn:
        assert conn.scalar(SERVED_BY_REPLICA)
        for ending in (conn.commit, conn.rollback):
            with use_token(own):
                assert not conn.scalar(SERVED_BY_REPLICA)
            with use_token(None):
                assert not conn.scalar(SERVED_BY_REPLICA)
            ending()
            with use_token(None):
                assert conn.scalar(SERVED_BY_REPLICA)
            ending()
        with use_token(own), pytest.raises(sa.exc.InternalError, match="read-only"):
            conn.execute(text("INSERT INTO sa_item VALUES (2, 'b')"))
        conn.rollback()
        with use_token(own):
            assert not conn.scalar(SERVED_BY_REPLICA)
            with pytest.raises(sa.exc.InternalError, match="read-only"):
                conn.execute(text("INSERT INTO sa_item VALUES (2, 'b')"))
    engine.dispose()
    assert behind.sql("SELECT id FROM sa_item") == [(1,)]


@pytest.mark.parametrize("kind", KINDS)
def test_forbidden(behind: Lab, kind: str) -> None:
    """Where the primary may not stand in, the error says what happened."""
    engine = engine_of(behind, kind, replica_fallback="none")
    heard: list[Any] = []
    event.listen(engine, "handle_error", heard.append)
    replica = reader(engine, kind)
    unknown = Token(identity=behind.branch, position=None, at=time.time())
    for token, why in (
        (Token(identity=behind.branch, position=1 << 62, at=time.time()), "it has not replayed yet what this caller has seen"),
        (unknown, "what this caller has seen has no known position"),
    ):
        with use_token(token), replica.connect() as conn, pytest.raises(sa.exc.DBAPIError) as caught:
            conn.scalar(SERVED_BY_REPLICA)
        assert isinstance(caught.value.orig, ReplicaBehind)
        told = f"the endpoint 'replica' did not answer: {why}, and replica_fallback='none' forbids the primary to answer"
        assert told in str(caught.value.orig)
    assert len(heard) == 2
    engine.dispose()


def test_share_of_the_primary(behind: Lab) -> None:
    """No more connections than the share allows go to the primary; the others are told."""
    engine = engine_of(behind, "by create_engine", replica_fallback=0.25, pool_size=8, max_overflow=0)
    own = Token(identity=behind.branch, position=1 << 62, at=time.time())
    with use_token(own), engine.replica.connect() as one, engine.replica.connect() as two, engine.replica.connect() as three:
        assert not one.scalar(SERVED_BY_REPLICA)
        assert not two.scalar(SERVED_BY_REPLICA)
        with pytest.raises(sa.exc.DBAPIError, match="replica_behind"):
            three.scalar(SERVED_BY_REPLICA)
        three.rollback()
        one.rollback()
        assert not three.scalar(SERVED_BY_REPLICA)
    engine.dispose()


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_write(ps_lab: Lab, engine: Engine, items: type[Item], kind: str) -> None:
    """What writes is refused on a replica as the server refuses it, and a note says where it can be run."""
    ps_lab.sql(
        "CREATE OR REPLACE FUNCTION sa_stand_in() RETURNS int LANGUAGE sql AS"
        " 'INSERT INTO sa_item VALUES (7, ''h''); SELECT 7'; GRANT ALL ON sa_item TO PUBLIC"
    )
    ps_lab.wait_replicas_caught_up()
    ours = engine_of(ps_lab, kind)
    for _ in range(2):
        with reader(ours, kind).connect() as conn, pytest.raises(sa.exc.InternalError) as caught:
            conn.scalar(select(sa.func.sa_stand_in()))
        assert any("only reads" in note and "engine" in note for note in caught.value.__notes__)
    ours.dispose()
    ps_lab.sql("DROP FUNCTION sa_stand_in()")
    assert ps_lab.sql("SELECT id FROM sa_item") == []


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_connects_to_be_told_no(ps_lab: Lab, kind: str) -> None:
    """A caller whose position is not known gets a connection to the primary, also while a replica hangs."""
    engine = engine_of(ps_lab, kind)
    unknown = Token(identity=ps_lab.branch, position=None, at=time.time())
    with use_token(unknown):
        with reader(engine, kind).connect() as conn:
            assert not conn.scalar(SERVED_BY_REPLICA)
            with pytest.raises(sa.exc.InternalError, match="read-only"):
                conn.execute(text("CREATE TABLE never (id int)"))
            if kind != "from a URL, postgresql_readonly":
                assert conn.connection.driver_connection.state.endpoint.name == "fallback"
    with use_token(None), reader(engine, kind).connect() as conn:  # the same connection
        assert conn.scalar(SERVED_BY_REPLICA)
    engine.dispose()
