"""Engines: one for the application, whatever endpoints are behind it."""

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.util import greenlet_spawn

import ps_core
import ps_sqlalchemy
from ps_core import ConfigurationError, DeadlineExceeded, deadline, use_token
from ps_core._connection.cursors import AsyncCursor, Cursor
from ps_core._registry import replicas_of
from ps_core.share import _of_environment
from ps_lab import Lab
from ps_sqlalchemy import Engine, Session
from tests.ps_sqlalchemy.conftest import SERVED_BY_REPLICA, engine_for, plain_url

if TYPE_CHECKING:
    from collections.abc import Callable

URL = "postgresql://app.branch:secret@host/db"

asynchronously = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "asyncio"])


def test_replica_shares_the_compiled_cache_and_hears_the_engine(ps_lab: Lab) -> None:
    """A statement is compiled once for both sides, and listeners on the engine receive both."""
    with engine_for(ps_lab) as engine:
        statements, connections = [], []
        event.listen(engine, "before_cursor_execute", lambda conn, *_: statements.append(conn.engine is engine))
        event.listen(engine, "connect", lambda dbapi_connection, _: connections.append(dbapi_connection.state.endpoint.role))
        statement = sa.select(sa.literal(1).label("one"))
        for side in (engine, engine.replica):
            assert side is not None
            with side.connect() as conn:
                assert conn.scalar(statement) == 1
        assert engine.replica is not None
        assert engine.dialect is engine.replica.dialect
        assert engine._compiled_cache is engine.replica._compiled_cache
        assert engine._compiled_cache is not None
        assert len(engine._compiled_cache) == 1
        assert statements == [True, False]
        assert connections == ["primary", "replica"]


def test_what_listens_to_the_replica_is_for_the_replica(ps_lab: Lab) -> None:
    """An event of `engine.replica` is not one of the engine."""
    with engine_for(ps_lab) as engine:
        assert engine.replica is not None
        heard = []
        event.listen(engine.replica, "before_cursor_execute", lambda *_: heard.append("statement"))
        event.listen(engine.replica, "connect", lambda *_: heard.append("connect"))
        with engine.connect() as conn:
            conn.execute(text("SELECT 1"))
        assert heard == []
        with engine.replica.connect() as conn:
            conn.execute(text("SELECT 1"))
        assert heard == ["connect", "statement"]


def test_replica_alone_initializes_the_dialect(ps_lab: Lab) -> None:
    """An application that only ever reads gets a dialect that knows its server."""
    with engine_for(ps_lab) as engine:
        assert engine.replica is not None
        with engine.replica.connect() as conn:
            assert conn.dialect.server_version_info is not None
            assert sa.inspect(conn).get_schema_names()


@pytest.mark.filterwarnings("ignore:The create_engine.server_side_cursors parameter is deprecated")
def test_engine_that_streams(ps_lab: Lab) -> None:
    """An engine all of whose results are streamed connects, and streams, on every side (asyncio has no such engines)."""
    with engine_for(ps_lab, server_side_cursors=True) as engine:
        for side in (engine, engine.replica, engine.direct):
            assert side is not None
            with side.connect() as conn:
                result = conn.execute(text("SELECT * FROM generate_series(1, 3)"))
                assert isinstance(result.cursor, psycopg.ServerCursor)
                assert result.scalars().all() == [1, 2, 3]


@asynchronously
def test_what_a_session_would_keep(ps_lab: Lab, asynchronous: bool) -> None:
    """Refused as SQLAlchemy's NotSupportedError, however it is written; the direct engine has sessions, and it can be allowed."""
    lock = sa.select(sa.func.pg_advisory_lock(1019), sa.func.pg_advisory_unlock(1019))
    made = sa.Table("kept", sa.MetaData(), sa.Column("a", sa.Integer), prefixes=["TEMPORARY"])
    dropped = sa.Table(
        "taken_along", sa.MetaData(), sa.Column("a", sa.Integer), prefixes=["TEMPORARY"], postgresql_on_commit="DROP"
    )
    words: dict[str, Callable[[Any], object]] = {
        "a session advisory lock": lambda conn: conn.execute(lock),
        "what LISTEN asks for": lambda conn: conn.execute(text("LISTEN told")),
        "a temporary object": made.create,
        "a prepared statement": lambda conn: conn.exec_driver_sql("PREPARE one AS SELECT 1"),
    }

    def refuses(conn: sa.Connection) -> None:
        for what, run in words.items():
            with pytest.raises(sa.exc.NotSupportedError) as caught:
                run(conn)
            assert type(caught.value.orig) is psycopg.NotSupportedError
            assert f"'primary' is behind a transaction pooler, where {what} would stay with" in str(caught.value.orig)
            assert 'use the direct endpoint (to="direct", engine.direct, Django\'s alias "direct")' in str(caught.value.orig)
        dropped.create(conn)
        conn.execute(sa.insert(dropped).values(a=1))
        assert conn.scalar(sa.select(dropped.c.a)) == 1
        conn.rollback()

    def sends(conn: sa.Connection) -> None:
        conn.execute(lock)
        made.create(conn)
        conn.rollback()

    def on(engine: Any, run: Any) -> None:
        if not asynchronous:
            with engine.connect() as conn:
                run(conn)
            return

        async def work() -> None:
            async with engine.connect() as conn:
                await conn.run_sync(run)
            await engine.dispose()

        asyncio.run(work())

    make: Any = ps_sqlalchemy.create_async_engine if asynchronous else ps_sqlalchemy.create_engine
    for url, run in (("", refuses), ("&ps_session_state=refuse", refuses), ("&ps_session_state=allow", sends)):
        engine = make(ps_lab.url + url, bouncer="write-pool")
        try:
            on(engine, run)
            on(engine.direct, sends)
        finally:
            if not asynchronous:
                engine.dispose()


def test_do_connect_reaches_both_sides(ps_lab: Lab) -> None:
    """A token that is fetched for each connection (`do_connect`) is used on both sides."""
    with engine_for(ps_lab) as engine:
        names = iter(("one", "two"))

        @event.listens_for(engine, "do_connect")
        def name(dialect: Any, record: Any, cargs: list[Any], cparams: dict[str, Any]) -> None:
            cparams["application_name"] = next(names)

        for side, expected in ((engine, "one"), (engine.replica, "two")):
            assert side is not None
            with side.connect() as conn:
                driver: Any = conn.connection.driver_connection
                assert driver.info.get_parameters()["application_name"] == expected


@pytest.mark.parametrize(
    ("setting", "environment", "expected"), [(None, None, "ps-postgres"), (None, "env", "env"), ("shop", "env", "shop")]
)
def test_application_name(
    ps_lab: Lab, monkeypatch: pytest.MonkeyPatch, setting: str | None, environment: str | None, expected: str
) -> None:
    """The server is told who connects: by the setting, PGAPPNAME, or this library where no pooler is in between."""
    monkeypatch.delenv("PGAPPNAME", raising=False)
    if environment is not None:
        monkeypatch.setenv("PGAPPNAME", environment)
    with engine_for(ps_lab, application_name=setting) as engine:
        for side in (engine, engine.replica, engine.direct):
            assert side is not None
            if expected == "ps-postgres" and side is not engine.direct:
                continue  # a pooler's client without a name has that of whoever had the server connection before
            with side.connect() as conn:
                assert conn.scalar(text("SHOW application_name")) == expected


def test_options_by_side(ps_lab: Lab) -> None:
    """SQLAlchemy's options hold for all sides; with a prefix, for one."""
    with engine_for(ps_lab, pool_size=3, replica_pool_size=7, direct_poolclass=sa.NullPool) as engine:
        assert isinstance(engine.pool, sa.QueuePool)
        assert engine.replica is not None
        assert isinstance(engine.replica.pool, sa.QueuePool)
        assert (engine.pool.size(), engine.replica.pool.size()) == (3, 7)
        assert isinstance(engine.direct.pool, sa.NullPool)
    with engine_for(ps_lab, poolclass=sa.NullPool) as engine, engine.connect() as conn:
        assert conn.scalar(text("SELECT 1")) == 1


@pytest.mark.parametrize("option", ["creator", "async_creator", "pool", "module"])
@pytest.mark.fast
def test_creator_is_refused(option: str) -> None:
    """What would connect past the topology is refused."""
    options: dict[str, Any] = {option: None}
    with pytest.raises(ConfigurationError, match=option):
        ps_sqlalchemy.create_engine(URL, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"retry": 3}, r"(?m)^retry: write a policy, as in RetryPolicy\(attempts=3\), not 3$"),
        ({"replica_isolation_level": "serializable"}, "^replica_isolation_level: a replica has no SERIALIZABLE"),
    ],
)
@pytest.mark.fast
def test_refused_before_the_first_connection(options: dict[str, Any], message: str) -> None:
    """What could not work later is refused when the engine is made."""
    with pytest.raises(ConfigurationError, match=message):
        ps_sqlalchemy.create_engine(URL, replica_bouncer="read-pool", **options)


@pytest.mark.fast
def test_share_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """So is a wrong PS_REPLICA_SHARE."""
    monkeypatch.setenv("PS_REPLICA_SHARE", "50%")
    _of_environment.cache_clear()
    try:
        with pytest.raises(ConfigurationError, match=r"^PS_REPLICA_SHARE: write a number from 0"):
            ps_sqlalchemy.create_engine(URL, replica_bouncer="read-pool")
    finally:
        _of_environment.cache_clear()


@pytest.mark.fast
def test_fallback_share_needs_a_pool() -> None:
    """A share of a pool without a size is refused; with one, it is a number of connections."""
    with pytest.raises(ConfigurationError, match="replica_fallback"):
        ps_sqlalchemy.create_engine(URL, replica_bouncer="read-pool", replica_fallback=0.25, poolclass=sa.NullPool)
    engine: Any = ps_sqlalchemy.create_engine(
        URL, replica_bouncer="read-pool", replica_fallback=0.25, pool_size=8, max_overflow=4
    )
    url = (
        sa.make_url(URL)
        .set(drivername="postgresql+ps")
        .update_query_dict({"ps_replica_bouncer": "read-pool", "ps_replica_fallback": "0.25"})
    )
    with pytest.raises(ConfigurationError, match="replica_fallback"):
        sa.create_engine(url, poolclass=sa.NullPool)
    assert ps_sqlalchemy.replica_of(sa.create_engine(url, pool_size=8, max_overflow=4)).ps_replicas.max_fallback == 3
    unlimited: Any = ps_sqlalchemy.create_engine(URL, replica_bouncer="read-pool", replica_fallback="primary")
    shared = replicas_of(engine.topology)
    assert shared is not None
    # A number of this engine's own: neither the set nor another engine is bound by it.
    assert [one.max_fallback for one in (engine.replica.ps_replicas, unlimited.replica.ps_replicas, shared)] == [3, None, None]
    assert engine.replica.ps_replicas.states == shared.states


@pytest.mark.fast
def test_no_password_is_rendered() -> None:
    """Neither the engine nor its URL shows the password."""
    engine = ps_sqlalchemy.create_engine(URL, replica_bouncer="read-pool")
    for text_ in (
        repr(engine),
        str(engine.url),
        repr(engine.url),
        repr(engine.replica),
        repr(engine.direct),
        repr(engine.topology),
    ):
        assert "secret" not in text_


def test_execution_options_keep_the_sides(ps_lab: Lab) -> None:
    """`engine.execution_options()` keeps `.replica` and `.direct`, and sessions on it are routed, under its options."""
    with engine_for(ps_lab) as engine:
        strict: Any = engine.execution_options(isolation_level="REPEATABLE READ")
        assert strict.topology is engine.topology
        assert strict.replica is strict.replica
        with Session(strict) as session:
            assert session.scalar(SERVED_BY_REPLICA) is True
            assert session.scalar(text("SHOW transaction_isolation")) == "repeatable read"
        with strict.direct.connect() as conn:
            assert conn.get_isolation_level() == "REPEATABLE READ"
        with engine.connect() as conn:
            assert conn.get_isolation_level() == "READ COMMITTED"


def test_checkout_is_bounded_by_the_deadline(ps_lab: Lab) -> None:
    """Waiting for a connection ends with the deadline, and says so; without one, with SQLAlchemy's own error."""
    with engine_for(ps_lab, pool_size=1, max_overflow=0, pool_timeout=0.1) as engine, engine.connect():
        with deadline(0.05), pytest.raises(DeadlineExceeded):
            engine.connect()
        with deadline(5), pytest.raises(sa.exc.TimeoutError, match="QueuePool limit"):
            engine.connect()
        assert engine.pool.timeout() == 0.1


def test_checkout_is_bounded_by_the_deadline_in_asyncio(ps_lab: Lab) -> None:
    """The same for asyncio."""

    async def main() -> None:
        engine = ps_sqlalchemy.create_async_engine(ps_lab.url, bouncer="write-pool", pool_size=1, max_overflow=0)
        try:
            async with engine.connect():
                with deadline(0.05), pytest.raises(DeadlineExceeded):
                    async with engine.connect():
                        pass
        finally:
            await engine.dispose()

    asyncio.run(main())


def test_one_lost_connection_leaves_the_pool_alone(ps_lab: Lab) -> None:
    """A transaction that is lost is raised as a disconnect; the other connections of the pool stay."""
    with engine_for(ps_lab, pool_size=2) as engine, engine.connect() as first:
        pids = []
        for conn in (first, engine.connect()):
            pids.append(conn.scalar(text("SELECT pg_backend_pid()")))
            if conn is not first:
                other = conn.connection.driver_connection
                conn.close()
        ps_lab.sql("SELECT pg_terminate_backend(%s)", pids[0])
        with pytest.raises(sa.exc.OperationalError) as failure:
            first.execute(text("SELECT 1"))
        assert failure.value.connection_invalidated
        first.rollback()
        with engine.connect() as one, engine.connect() as two:
            assert other in (one.connection.driver_connection, two.connection.driver_connection)
            assert one.scalar(text("SELECT 1")) == two.scalar(text("SELECT 1"))


@pytest.mark.parametrize("timeout", ["0", "1s"])
@pytest.mark.parametrize("made", ["by create_engine", "from a URL", "with psycopg"])
def test_retry_timeout(ps_lab: Lab, made: str, timeout: str) -> None:
    """`retry_timeout` ends the tries for an endpoint that is down, long before a deadline does, in all its forms."""
    connect: Any
    if made == "by create_engine":
        connect = ps_sqlalchemy.create_engine(ps_lab.url, bouncer="write-pool", retry_timeout=timeout).connect
    elif made == "from a URL":
        connect = sa.create_engine(f"{plain_url(ps_lab)}&ps_retry_timeout={timeout}").connect
    else:
        connect = partial(ps_core.connect, f"{ps_lab.url}&ps_bouncer=write-pool&ps_retry_timeout={timeout}")
    ps_lab.bouncers["write-pool"].stop()
    try:
        with deadline("15s"), pytest.raises((sa.exc.OperationalError, psycopg.OperationalError)):
            connect()
    finally:
        ps_lab.restart_bouncer("write-pool")


def test_forked_process_makes_its_own_connections(ps_lab: Lab) -> None:
    """A child does not touch its parent's connections, although nobody told its engine."""
    with engine_for(ps_lab) as engine:
        who = text("SELECT pg_backend_pid(), pg_is_in_recovery()")
        for side in (engine, engine.replica):
            assert side is not None
            with side.connect() as conn:
                conn.execute(who)
        read, write = os.pipe()
        parents = {id(side): side.pool for side in (engine, engine.replica) if side is not None}
        pid = os.fork()
        if pid == 0:  # pragma: no cover - another process
            try:
                with engine.connect() as conn:
                    fine = conn.scalar(text("SELECT 1")) == 1 and engine.pool is not parents[id(engine)]
                os.write(write, b"fine" if fine else b"shared")
            finally:
                os._exit(0)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            assert pipe.read() == b"fine"
        os.waitpid(pid, 0)
        for side in (engine, engine.replica):
            assert side is not None
            with side.connect() as conn:
                assert conn.execute(who).one()


def test_url_alone_reads_from_the_replicas(ps_lab: Lab) -> None:
    """On an engine made from nothing but a URL, `postgresql_readonly=True` means the replicas, everything else the primary."""
    engine = sa.create_engine(plain_url(ps_lab))
    try:
        for _ in range(2):
            with engine.connect() as conn:
                assert conn.scalar(SERVED_BY_REPLICA) is False
            with engine.connect().execution_options(postgresql_readonly=True) as conn:
                assert conn.scalar(SERVED_BY_REPLICA) is True
                with pytest.raises(sa.exc.InternalError) as failure:
                    conn.execute(text("CREATE TABLE never (id int)"))
                assert isinstance(failure.value.orig, psycopg.errors.ReadOnlySqlTransaction)
        reader = engine.execution_options(postgresql_readonly=True)
        with reader.connect() as conn:
            assert conn.scalar(SERVED_BY_REPLICA) is True
        with engine.connect() as conn:
            conn.execute(text("SELECT 1"))
            with pytest.raises(sa.exc.InvalidRequestError):
                conn.execution_options(postgresql_readonly=True)
        assert engine.pool.checkedin() == 1  # type: ignore[attr-defined]
    finally:
        engine.dispose()


def test_url_alone_in_asyncio(ps_lab: Lab) -> None:
    """The same for asyncio."""

    async def main() -> None:
        engine = create_async_engine(plain_url(ps_lab, "ps_async"))
        try:
            for readonly in (False, True, False):
                async with engine.connect() as conn:
                    await conn.execution_options(postgresql_readonly=readonly)
                    assert await conn.scalar(SERVED_BY_REPLICA) is readonly
        finally:
            await engine.dispose()

    asyncio.run(main())


@asynchronously
def test_url_alone_has_all_sides(ps_lab: Lab, asynchronous: bool) -> None:
    """Its engine is one of ours, with a replica and a direct engine that are as it was asked to be."""
    options: Any = {
        "pool_size": 3,
        "max_overflow": 1,
        "pool_recycle": 77,
        "json_serializer": lambda _: '"mine"',
        "connect_args": {"application_name": "of_url"},
        "execution_options": {"schema_translate_map": {"x": "public"}},
        "hide_parameters": True,
        "logging_name": "shop",
    }
    made: Any
    if asynchronous:
        made = create_async_engine(plain_url(ps_lab, "ps_async"), **options)
        engine: Any = made.sync_engine
        assert ps_sqlalchemy.replica_of(made).sync_engine is engine.replica
    else:
        made = engine = sa.create_engine(plain_url(ps_lab), **options)
        assert ps_sqlalchemy.replica_of(made) is engine.replica
    assert isinstance(engine, Engine)
    assert engine.topology.replicas
    json = sa.select(sa.literal({"a": 1}, sa.JSON))

    def work() -> None:
        sides: dict[str, Any] = {"primary": engine, "replica": engine.replica, "direct": engine.direct}
        for role, side in sides.items():
            assert (side.pool.size(), side.pool._max_overflow, side.pool._recycle) == (3, 1, 77)
            assert side.hide_parameters
            assert side.get_execution_options() == options["execution_options"]
            assert side.logging_name == ("shop" if role == "primary" else f"shop.{role}")
            with side.connect() as conn:
                driver = conn.connection.driver_connection
                assert driver.state.endpoint.role == role
                assert driver.info.get_parameters()["application_name"] == "of_url"
                assert conn.scalar(SERVED_BY_REPLICA) is (role == "replica")
                assert conn.scalar(json) == "mine"
        engine.update_execution_options(of_shop=None)
        assert all("of_shop" in side.get_execution_options() for side in sides.values())
        engine.dispose()
        assert all(side.pool.checkedin() == 0 for side in sides.values())

    asyncio.run(greenlet_spawn(work)) if asynchronous else work()
    assert ps_sqlalchemy.replica_of(sa.create_engine("postgresql+psycopg://app@host/db")) is None
    without = sa.create_engine(ps_lab.url.replace("postgresql://", "postgresql+ps://"))
    assert isinstance(without, Engine)
    assert without.replica is None


def test_made_for_asyncio_alone(ps_lab: Lab) -> None:
    """Engines and what is beside them are ours once, however often SQLAlchemy says that they were made."""
    engine: Any = create_async_engine(plain_url(ps_lab, "ps_async")).sync_engine
    heard = len(tuple(engine.dialect.dispatch.handle_error))
    assert heard == 1
    engine.dialect.engine_created(engine)
    assert len(tuple(engine.dialect.dispatch.handle_error)) == heard
    assert type(engine.replica).__mro__[1] is sa.Engine


@pytest.mark.parametrize("made", ["by create_engine", "from a URL"])
@pytest.mark.parametrize("size", [1, 5])
def test_sessions_need_one_place_of_a_pool(ps_lab: Lab, made: str, size: int) -> None:
    """Threads, as many as the pool has places, read and then write, all at once."""
    options: Any = {"pool_size": size, "max_overflow": 0, "pool_timeout": 3}
    engine = (
        ps_sqlalchemy.create_engine(ps_lab.url, bouncer="write-pool", replica_bouncer="read-pool", **options)
        if made == "by create_engine"
        else sa.create_engine(plain_url(ps_lab), **options)
    )
    ps_lab.sql("CREATE TABLE IF NOT EXISTS sa_places (n int); GRANT ALL ON sa_places TO PUBLIC; TRUNCATE sa_places")
    ps_lab.wait_replicas_caught_up()
    have_read = threading.Barrier(size, timeout=30)

    def read_and_write(number: int) -> bool:
        with use_token(None), Session(engine) as session:
            on_replica = session.scalar(SERVED_BY_REPLICA)
            have_read.wait()
            session.execute(text("INSERT INTO sa_places VALUES (:n)"), {"n": number})
            session.commit()
            return bool(on_replica)

    with ThreadPoolExecutor(size) as threads:
        assert all(threads.map(read_and_write, range(size)))
    assert ps_lab.sql("SELECT count(*) FROM sa_places") == [(size,)]
    engine.dispose()
    ps_lab.sql("DROP TABLE sa_places")


def test_listeners_of_an_engine_under_options(ps_lab: Lab) -> None:
    """Listeners on `engine.execution_options()` receive events of its own replica, not the engine's, also options of options."""
    with engine_for(ps_lab) as engine:
        heard: list[str] = []
        optioned: Any = engine.execution_options(logging_token="a")

        def listen(target: Any, name: str) -> None:
            event.listen(target, "before_cursor_execute", lambda *_: heard.append(name))

        listen(engine, "engine")
        listen(optioned, "options")
        listen(engine.replica, "replica")
        with optioned.replica.connect() as conn:
            conn.execute(text("SELECT 1"))
        assert sorted(heard) == ["engine", "options", "replica"]
        heard.clear()
        assert engine.replica is not None
        with engine.replica.connect() as conn:
            conn.execute(text("SELECT 1"))
        assert sorted(heard) == ["engine", "replica"]
        again = optioned.execution_options(isolation_level="REPEATABLE READ")
        with Session(again) as session:
            assert session.scalar(SERVED_BY_REPLICA)
            assert session.scalar(text("SHOW transaction_isolation")) == "repeatable read"
        with again.direct.connect() as conn:
            assert conn.get_isolation_level() == "REPEATABLE READ"


def test_called_lost_by_a_listener(ps_lab: Lab) -> None:
    """Where an application calls an error of a sound connection a disconnect, its pool gives up all connections, as stock's."""
    with engine_for(ps_lab) as engine:

        @event.listens_for(engine, "handle_error")
        def call_it_lost(context: Any) -> None:
            context.is_disconnect = True

        first, second = engine.connect(), engine.connect()
        other = second.connection.driver_connection
        second.close()
        with pytest.raises(sa.exc.ProgrammingError):
            first.execute(text("SELECT nothing"))
        assert first.invalidated
        first.close()
        with engine.connect() as one, engine.connect() as two:
            assert other not in (one.connection.driver_connection, two.connection.driver_connection)


def test_cursor_factory_of_the_users(ps_lab: Lab) -> None:
    """Another class of cursors works in transactions, where the first connection asks what SQLAlchemy wants to know, too."""
    with engine_for(ps_lab, connect_args={"cursor_factory": psycopg.ClientCursor}) as engine, engine.connect() as conn:
        assert conn.scalar(text("SELECT 1")) == 1
        assert type(conn.connection.cursor()) is psycopg.ClientCursor


def test_pre_ping_works(ps_lab: Lab) -> None:
    """`pool_pre_ping=True` is not needed, and does no harm."""
    with engine_for(ps_lab, pool_pre_ping=True) as engine:
        for _ in range(2):
            with engine.connect() as conn:
                assert conn.scalar(text("SELECT 1")) == 1
        ps_lab.edge.cut()
        with engine.connect() as conn:
            assert conn.scalar(text("SELECT 1")) == 1


def test_several_replica_endpoints(ps_lab: Lab) -> None:
    """One engine serves all replica endpoints; when one is gone, the reads of both sides go on with the other."""
    with engine_for(ps_lab, direct_replica=True, replica_pool_size=2) as engine, Session(engine) as session:
        assert engine.replica is not None
        with engine.replica.connect() as one:
            one.execute(text("SELECT 1"))
            with engine.replica.connect() as two:
                two.execute(text("SELECT 1"))
        ps_lab.bouncers["read-pool"].stop()
        try:
            with engine.replica.connect() as one, engine.replica.connect() as two:
                for conn in (one, two):
                    assert conn.scalar(SERVED_BY_REPLICA) is True
                    driver: Any = conn.connection.driver_connection
                    assert driver.state.endpoint.name == "replica-2"
            assert session.scalar(SERVED_BY_REPLICA) is True
        finally:
            ps_lab.restart_bouncer("read-pool")


def test_handle_error_is_for_failures_that_users_see(ps_lab: Lab) -> None:
    """A write that a replica refused and the primary did is no failure; a real one is one, once, on either side."""
    ps_lab.sql("CREATE SEQUENCE IF NOT EXISTS sa_numbers; GRANT ALL ON SEQUENCE sa_numbers TO PUBLIC")
    ps_lab.sql("CREATE OR REPLACE FUNCTION sa_writes() RETURNS bigint LANGUAGE sql AS 'SELECT nextval(''sa_numbers'')'")
    ps_lab.wait_replicas_caught_up()
    with engine_for(ps_lab) as engine:
        heard: list[str] = []
        event.listen(engine, "handle_error", lambda context: heard.append(type(context.original_exception).__name__))
        with Session(engine) as session:
            found: Any = session.scalar(sa.select(sa.func.sa_writes(), sa.literal("handle_error")))
            assert found > 0
        assert heard == []
        with Session(engine) as session, pytest.raises(sa.exc.ProgrammingError):
            session.execute(text("SELECT nothing"))
        assert heard == ["UndefinedColumn"]
    ps_lab.sql("DROP FUNCTION sa_writes; DROP SEQUENCE sa_numbers")


@pytest.mark.parametrize("asked", ["pg_catalog.version()", "current_schema()", "to_regtype"])
@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_first_connection_is_lost(ps_lab: Lab, kind: str, asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What SQLAlchemy asks an engine's first connection is asked again where that is lost."""
    lost: list[str] = []

    def losing(self: Any, query: Any, params: Any = None, **options: Any) -> Any:
        if not lost and asked in str(query):
            lost.append(asked)
            ps_lab.edge.cut("primary")
        return gen(self, query, params, **options)

    gen = Cursor._execute_gen
    for cursor in (Cursor, AsyncCursor):
        monkeypatch.setattr(cursor, "_execute_gen", losing)
    if kind == "sync":
        engine = ps_sqlalchemy.create_engine(ps_lab.url)
        with Session(engine) as session:
            assert session.scalar(text("SELECT 1")) == 1
        engine.dispose()
    else:
        aengine = ps_sqlalchemy.create_async_engine(ps_lab.url)
        async with ps_sqlalchemy.AsyncSession(aengine) as asession:
            assert await asession.scalar(text("SELECT 1")) == 1
        await aengine.dispose()
    assert lost == [asked]
