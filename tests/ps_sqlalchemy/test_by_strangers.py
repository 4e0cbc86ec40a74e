"""What strangers found with the docs alone, each once: engines, their sides, their options and events."""

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy import event, text
from sqlalchemy.engine import CreateEnginePlugin
from sqlalchemy.ext.asyncio import create_async_engine

import ps_core
import ps_sqlalchemy
from ps_core import ConfigurationError, Token, use_token
from ps_lab import Lab
from ps_lab.processes import wait_until
from ps_sqlalchemy import Engine, Session
from tests.differential.clients import stock_engine
from tests.ps_sqlalchemy.conftest import SERVED_BY_REPLICA, engine_for, plain_url

URL = "postgresql://app.branch:secret@host/db"


@pytest.fixture
def ahead(ps_lab: Lab) -> Token:
    """What a caller has seen that no replica has."""
    return Token(identity=ps_lab.branch, position=1 << 62, at=time.time())


@pytest.fixture
def unknown(ps_lab: Lab) -> Token:
    """A caller whose position is not known."""
    return Token(identity=ps_lab.branch, position=None, at=time.time())


LEVELS: dict[str, Callable[[Lab], Any]] = {
    "options": lambda lab: ps_sqlalchemy.create_engine(lab.url).execution_options(isolation_level="AUTOCOMMIT"),
    "at creation": lambda lab: ps_sqlalchemy.create_engine(lab.url, execution_options={"isolation_level": "AUTOCOMMIT"}),
    "from a URL": lambda lab: sa.create_engine(plain_url(lab), execution_options={"isolation_level": "AUTOCOMMIT"}),
}


@pytest.mark.parametrize("how", LEVELS)
def test_direct_first(ps_lab: Lab, how: str) -> None:
    """The direct engine, used first under a level of the engine's, gives its connection back as it was."""
    engine = LEVELS[how](ps_lab)
    with engine.direct.connect() as conn:
        assert conn.connection.driver_connection.autocommit
    raw = engine.direct.raw_connection()
    assert not raw.driver_connection.autocommit
    raw.close()
    engine.dispose()


@pytest.mark.parametrize("own", ["SERIALIZABLE", "AUTOCOMMIT"])
def test_level_of_the_replicas_alone(ps_lab: Lab, own: str) -> None:
    """What is set on the primary's engine does not beat what is set for the replicas."""
    options = {"execution_options": {"isolation_level": own}, "replica_isolation_level": "REPEATABLE READ"}
    with engine_for(ps_lab, **options) as engine, use_token(None):
        with engine.replica.connect() as conn:
            assert conn.get_isolation_level() == "REPEATABLE READ"
        with Session(engine) as session:
            assert session.scalar(SERVED_BY_REPLICA)
        with engine.connect() as conn:
            assert conn.connection.driver_connection.autocommit is (own == "AUTOCOMMIT")
            assert own == "AUTOCOMMIT" or conn.get_isolation_level() == own


def test_levels_of_options_of_options(ps_lab: Lab) -> None:
    """Among several, the same level counts as on stock: the first engine's; for replicas, their own."""
    stock = stock_engine(ps_lab, execution_options={"isolation_level": "READ UNCOMMITTED"})
    options: Any = {"execution_options": {"isolation_level": "READ UNCOMMITTED"}, "replica_isolation_level": "REPEATABLE READ"}
    with engine_for(ps_lab, **options) as engine:
        for change in ({"isolation_level": "READ COMMITTED"}, {"a": 1}):
            stock, engine = stock.execution_options(**change), engine.execution_options(**change)  # noqa: PLW2901
            with stock.connect() as expected, engine.connect() as conn:
                assert conn.get_isolation_level() == expected.get_isolation_level() == "READ UNCOMMITTED"
            with engine.replica.connect() as conn:
                assert conn.get_isolation_level() == "REPEATABLE READ"
    stock.dispose()


def test_options_of_options(ps_lab: Lab, unknown: Token) -> None:
    """They stand in, too, and keep their listeners when the options change."""
    with engine_for(ps_lab) as engine:
        optioned = engine.execution_options(a=1)
        for replica in (engine.replica.execution_options(a=1).execution_options(b=2), optioned.replica.execution_options(b=1)):
            with use_token(unknown), replica.connect() as conn:
                assert not conn.scalar(SERVED_BY_REPLICA)
        heard: list[Any] = []
        event.listen(optioned.replica, "before_cursor_execute", lambda *_: heard.append(1))
        optioned.update_execution_options(c=3)
        with use_token(None), optioned.replica.connect() as conn:
            assert conn.get_execution_options()["c"] == 3
            conn.execute(text("SELECT 1"))
        assert heard == [1]


def test_share_holds_for_all_at_once(ps_lab: Lab, ahead: Token) -> None:
    """However many ask in the same moment, no more than the share are on the primary; and none stays there."""
    count, allowed = 8, 2
    with engine_for(ps_lab, replica_fallback=0.25, pool_size=count, max_overflow=0) as engine:
        with use_token(None):
            conns = [engine.replica.connect() for _ in range(count)]
            for conn in conns:
                conn.execute(text("SELECT 1"))
                conn.rollback()
        begin = threading.Barrier(count, timeout=30)
        answers: list[Any] = []

        def read(conn: sa.Connection) -> None:
            with use_token(ahead):
                begin.wait()
                try:
                    answers.append(conn.scalar(SERVED_BY_REPLICA))
                except sa.exc.DBAPIError as exc:
                    answers.append(type(exc.orig).__name__)

        threads = [threading.Thread(target=read, args=(conn,)) for conn in conns]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert sorted(map(str, answers)) == ["False"] * allowed + ["ReplicaBehind"] * (count - allowed)
        for conn in conns:
            conn.close()
        for conn in [engine.replica.connect() for _ in range(count)]:
            assert conn.connection.driver_connection._substitute is None
            conn.close()


def test_share_holds_for_all_that_connect_at_once(ps_lab: Lab, unknown: Token) -> None:
    """So it is for connections that are opened on the primary: no more than the share."""
    count, allowed = 8, 2
    with engine_for(ps_lab, replica_fallback=0.25, pool_size=count, max_overflow=0) as engine:
        with use_token(None), engine.replica.connect():
            pass
        engine.replica.dispose()
        begin = threading.Barrier(count, timeout=30)
        end = threading.Barrier(count, timeout=30)
        answers: list[Any] = []

        def read() -> None:
            with use_token(unknown):
                begin.wait()
                with engine.replica.connect() as conn:
                    try:
                        answers.append(str(conn.scalar(SERVED_BY_REPLICA)))
                    except sa.exc.DBAPIError as exc:
                        assert "no more than the 2 connections of replica_fallback" in str(exc)  # noqa: PT017
                        answers.append("told")
                    end.wait()

        threads = [threading.Thread(target=read) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert sorted(answers) == ["False"] * allowed + ["told"] * (count - allowed)


@pytest.mark.parametrize("token", ["ahead", "unknown"])
def test_session_of_a_replica_without_a_pooler(ps_lab: Lab, token: str, request: pytest.FixtureRequest) -> None:
    """What was SET there cannot be carried to the primary, which then does not answer without it."""
    seen: Token = request.getfixturevalue(token)
    engine = ps_sqlalchemy.create_engine(ps_lab.url, bouncer="write-pool", direct_replica=True)
    replica: Any = engine.replica
    with use_token(None), replica.connect() as conn:
        conn.execute(text("SET search_path = information_schema"))
        conn.commit()
        with use_token(seen), pytest.raises(sa.exc.DBAPIError, match="what was SET on this connection cannot be carried there"):
            conn.scalar(text("SHOW search_path"))
        conn.rollback()
        assert conn.scalar(text("SHOW search_path")) == "information_schema"
    engine.dispose()


def test_writes_of_readers_in_autocommit(ps_lab: Lab, ahead: Token, unknown: Token) -> None:
    """`postgresql_readonly=True` on an engine from a URL is READ ONLY on the primary, too, whoever asks."""
    ps_lab.sql("CREATE TABLE IF NOT EXISTS sa_readers (n int); GRANT ALL ON sa_readers TO PUBLIC")
    ps_lab.wait_replicas_caught_up()
    engine = sa.create_engine(plain_url(ps_lab))
    for token in (None, ahead, unknown):
        options: Any = {"isolation_level": "AUTOCOMMIT", "postgresql_readonly": True}
        with use_token(token), engine.connect().execution_options(**options) as conn:
            assert conn.scalar(SERVED_BY_REPLICA) is (token is None)
            with pytest.raises(sa.exc.DBAPIError, match="read-only"):
                conn.execute(text("INSERT INTO sa_readers VALUES (1)"))
    engine.dispose()
    assert ps_lab.sql("SELECT count(*) FROM sa_readers") == [(0,)]
    ps_lab.sql("DROP TABLE sa_readers")


def test_replicas_that_are_out(ps_lab: Lab, unknown: Token) -> None:
    """While replicas are left out, a caller whose position is not known stays on the primary, on one connection."""
    with engine_for(ps_lab) as engine:
        ps_lab.bouncers["read-pool"].stop()
        try:
            with use_token(None), engine.replica.connect() as conn:
                assert not conn.scalar(SERVED_BY_REPLICA)
            replicas = engine.replica.ps_replicas
            wait_until(lambda: all(replicas._next_probe(state) <= time.monotonic() for state in replicas.states), "a due probe")
            with use_token(unknown), engine.replica.connect() as conn, ps_lab.round_trips() as trips:
                for _ in range(4):
                    assert not conn.scalar(SERVED_BY_REPLICA)
                    conn.commit()
            assert trips.startups <= 1
        finally:
            ps_lab.restart_bouncer("read-pool")

        def returned() -> bool:
            with use_token(None), engine.replica.connect() as conn:
                return bool(conn.scalar(SERVED_BY_REPLICA))

        wait_until(returned, "reads on the replica")


@pytest.mark.parametrize("kind", ["sync", "asyncio"])
@pytest.mark.parametrize("error", [TimeoutError("token service"), psycopg.errors.AdminShutdown("of another server")], ids=str)
def test_error_of_a_listener(ps_lab: Lab, kind: str, error: Exception) -> None:
    """What a listener of `do_connect` raises is raised at once, as on stock, and says nothing of the endpoint."""
    with engine_for(ps_lab) as other:
        asked: list[int] = []

        def fail(*_: Any) -> None:
            asked.append(1)
            raise error

        expected = (type(error), sa.exc.DBAPIError)
        if kind == "sync":
            with engine_for(ps_lab) as engine:
                event.listen(engine, "do_connect", fail)
                for side in (engine, engine.replica, engine.direct):
                    with pytest.raises(expected) as caught:
                        side.connect()
                    assert error in (caught.value, getattr(caught.value, "orig", None))
        else:

            async def work() -> None:
                engine = ps_sqlalchemy.create_async_engine(ps_lab.url, bouncer="write-pool", replica_bouncer="read-pool")
                event.listen(engine.sync_engine, "do_connect", fail)
                for side in (engine, engine.replica, engine.direct):
                    assert side is not None
                    with pytest.raises(expected):
                        await side.connect()
                await engine.dispose()

            asyncio.run(work())
        assert len(asked) == 3
        assert other.replica.ps_replicas.out == ()
        with use_token(None), other.replica.connect() as conn:
            assert conn.scalar(SERVED_BY_REPLICA)


def test_place_of_a_listener_that_is_away(ps_lab: Lab) -> None:
    """A server that a listener leads to, and that is away, is no failure of the endpoint."""
    with engine_for(ps_lab) as engine, engine_for(ps_lab) as other:

        @event.listens_for(engine, "do_connect")
        def elsewhere(dialect: Any, record: Any, cargs: Any, cparams: Any) -> None:
            cparams["port"] = 1

        for side in (engine, engine.replica, engine.direct):
            with pytest.raises(sa.exc.OperationalError, match=r"port 1 failed|Connection refused|address=localhost:1 is no"):
                side.connect()
        assert other.replica.ps_replicas.out == ()
        with other.connect() as conn:
            assert conn.scalar(text("SELECT 1")) == 1


def test_hidden_parameters(ps_lab: Lab) -> None:
    """With `hide_parameters=True` no value is in an error, although the client binds."""
    with engine_for(ps_lab, hide_parameters=True) as engine:
        for side in (engine, engine.replica, engine.direct):
            with side.connect() as conn, pytest.raises(sa.exc.ProgrammingError) as caught:
                conn.execute(text("SELECT nope WHERE :a = 1"), {"a": 987})
            assert "987" not in str(caught.value)
            assert 'column "nope" does not exist' in str(caught.value)
        ahead = Token(identity=ps_lab.branch, position=1 << 62, at=time.time())
        with use_token(ahead), engine.replica.connect() as conn, pytest.raises(sa.exc.ProgrammingError) as caught:
            conn.execute(text("SELECT nope WHERE :a = 1"), {"a": 987})
        assert "987" not in str(caught.value)
    with engine_for(ps_lab) as engine, engine.connect() as conn, pytest.raises(sa.exc.ProgrammingError, match="987"):
        conn.execute(text("SELECT nope WHERE :a = 1"), {"a": 987})


def test_detached(ps_lab: Lab, ahead: Token) -> None:
    """A connection that was detached from its pool is stood in for, too."""
    with engine_for(ps_lab) as engine, use_token(None):
        conn = engine.replica.connect()
        conn.detach()
        with use_token(ahead):
            assert not conn.scalar(SERVED_BY_REPLICA)
        conn.close()


def test_asked_anywhere(ps_lab: Lab, ahead: Token) -> None:
    """The isolation level is the same on a replica that is behind."""
    with engine_for(ps_lab) as engine, use_token(ahead), engine.replica.connect() as conn:
        assert conn.get_isolation_level() == "READ COMMITTED"


def test_first_connection_goes_home_while_it_is_asked(ps_lab: Lab, ahead: Token, unknown: Token) -> None:
    """What SQLAlchemy asks the first connection is the same on a replica that is behind, where the connection has just gone."""
    with engine_for(ps_lab) as engine, ExitStack() as later, use_token(unknown):

        @event.listens_for(engine.replica, "do_connect")
        def connect(dialect: Any, _: Any, cargs: Any, cparams: Any) -> Any:
            opened = dialect.connect(*cargs, **cparams)
            later.enter_context(use_token(ahead))
            return opened

        with engine.replica.connect() as conn:
            assert not conn.scalar(SERVED_BY_REPLICA)


def test_connect_args_of_the_replicas(ps_lab: Lab, ahead: Token) -> None:
    """The primary is asked as its own engine connects, not as the replicas' does."""
    other = sa.make_url(ps_lab.create_role("sa_of_replicas"))
    own = {"user": f"{other.username}|read-pool", "password": other.password}
    try:
        with engine_for(ps_lab, replica_connect_args=own) as engine:
            who = text("SELECT current_user, pg_is_in_recovery()")
            with use_token(None), engine.replica.connect() as conn:
                assert tuple(conn.execute(who).one()) == ("sa_of_replicas", True)
                conn.rollback()
                with use_token(ahead):
                    assert tuple(conn.execute(who).one()) == ("app", False)
    finally:
        ps_lab.drop_role("sa_of_replicas")


def test_error_in_autocommit(ps_lab: Lab, ahead: Token) -> None:
    """A statement that fails on the primary in the replica's place leaves nobody there."""
    with engine_for(ps_lab, replica_isolation_level="AUTOCOMMIT") as engine, use_token(None), engine.replica.connect() as conn:
        with use_token(ahead), pytest.raises(sa.exc.ProgrammingError):
            conn.execute(text("SELECT nope"))
        assert conn.scalar(SERVED_BY_REPLICA)


def test_listeners_of_the_replica_count_wherever_it_is(ps_lab: Lab, ahead: Token, unknown: Token) -> None:
    """Listeners on `engine.replica` receive its connections on the primary, which need no place in the primary's pool."""
    with engine_for(ps_lab, pool_size=1, max_overflow=0, pool_timeout=1, replica_pool_size=5) as engine, engine.connect():

        @event.listens_for(engine.replica, "connect")
        def set_path(dbapi_connection: Any, _: Any) -> None:
            dbapi_connection.cursor().execute("SET search_path = information_schema")
            dbapi_connection.commit()

        for token in (None, ahead, unknown):
            with use_token(token), engine.replica.connect() as conn:
                assert conn.engine is engine.replica
                assert conn.scalar(text("SHOW search_path")) == "information_schema"


class Plugin(CreateEnginePlugin):
    """One that listens to each engine that is made."""

    heard: list[str] = []  # noqa: RUF012 - SQLAlchemy makes the plugin anew for each engine

    def update_url(self, url: sa.URL) -> sa.URL:
        return url

    def engine_created(self, engine: sa.Engine) -> None:
        event.listen(engine, "connect", lambda *_: self.heard.append("connect"))
        event.listen(engine, "before_cursor_execute", lambda *_: self.heard.append("statement"))


@pytest.mark.parametrize("made", ["by create_engine", "from a URL"])
def test_plugins_and_pool_events(ps_lab: Lab, made: str) -> None:
    """Listeners that plugins and `pool_events` add receive the events of each side once."""
    from sqlalchemy.dialects import plugins

    plugins.register("ps_test", __name__, "Plugin")
    heard: list[str] = []
    events = [(lambda *_: heard.append("connect"), "connect"), (lambda *_: heard.append("checkout"), "checkout")]
    options: Any = {"plugins": ["ps_test"], "pool_events": events}
    engine: Any = (
        ps_sqlalchemy.create_engine(ps_lab.url, replica_bouncer="read-pool", **options)
        if made == "by create_engine"
        else sa.create_engine(plain_url(ps_lab), **options)
    )
    for side in (engine, engine.replica, engine.direct):
        heard.clear()
        Plugin.heard.clear()
        with side.connect() as conn:
            conn.execute(text("SELECT 1"))
        assert heard == ["connect", "checkout"]
        assert Plugin.heard == ["connect", "statement"]
    engine.dispose()


@pytest.mark.fast
def test_options_before_direct() -> None:
    """What is updated before the direct engine is made holds there, too; so does `echo`."""
    engine: Any = ps_sqlalchemy.create_engine(URL, replica_bouncer="read-pool")
    engine.update_execution_options(x=1)
    assert engine.direct.get_execution_options() == {"x": 1}
    engine.update_execution_options(y=2)
    assert engine.direct.get_execution_options() == engine.replica.get_execution_options() == {"x": 1, "y": 2}
    engine.echo = True
    assert engine.replica.echo
    assert engine.direct.echo
    engine.echo = False


@pytest.mark.fast
def test_pool_class_of_a_side() -> None:
    """A side with a pool class of its own keeps what that takes."""
    options: Any = {"pool_reset_on_return": None, "pool_pre_ping": True, "pool_recycle": 77, "pool_logging_name": "mine"}
    engine: Any = ps_sqlalchemy.create_engine(URL, pool_size=7, direct_poolclass=sa.NullPool, **options)
    pool = engine.direct.pool
    assert (pool._reset_on_return.name, pool._pre_ping, pool._recycle, pool.logging_name) == ("reset_none", True, 77, "mine")


@pytest.mark.fast
def test_loggers_of_pools() -> None:
    """They are SQLAlchemy's."""
    for make, name in ((ps_sqlalchemy.create_engine, "QueuePool"), (ps_sqlalchemy.create_async_engine, "AsyncAdaptedQueuePool")):
        pool: Any = make(URL).pool
        logger = pool.logger if isinstance(pool.logger, logging.Logger) else pool.logger.logger
        assert logger.name.startswith(f"sqlalchemy.pool.impl.{name}")


async def test_async_creator(ps_lab: Lab) -> None:
    """One that makes connections of ours works on an engine made from a URL alone; another driver's are refused."""
    url = ps_lab.url.replace("postgresql:", "postgresql+ps_async:")

    async def ours() -> Any:
        return await ps_core.AsyncConnection.connect(ps_lab.url)

    engine = create_async_engine(url, async_creator=ours, poolclass=sa.NullPool)
    async with engine.connect() as conn:
        assert await conn.scalar(text("SHOW statement_timeout")) == "2s"
    info: Any = ps_core.conninfo(ps_lab.topology.primary)
    made: list[Any] = []

    async def stocks() -> Any:
        made.append(await psycopg.AsyncConnection.connect(**info))
        return made[-1]

    other = create_async_engine(url, async_creator=stocks, poolclass=sa.NullPool)
    with pytest.raises(ConfigurationError, match="creator"):
        async with other.connect():
            pass
    await made[0].close()


def test_none(ps_lab: Lab) -> None:
    """None means that nothing is asked for."""
    options: dict[str, Any] = {"replica_isolation_level": None, "execution_options": None, "replica_execution_options": None}
    with engine_for(ps_lab, **options) as engine, use_token(None), engine.replica.connect() as conn:
        assert conn.get_isolation_level() == "READ COMMITTED"


def test_fork_says_nothing_to_listeners(ps_lab: Lab) -> None:
    """A child's engines begin with pools of their own, whatever listens to `engine_disposed`."""
    with engine_for(ps_lab) as first, engine_for(ps_lab) as second:
        for engine in (first, second):
            event.listen(engine, "engine_disposed", lambda _: os._exit(3))
            with engine.connect() as conn:
                conn.execute(text("SELECT 1"))
        pools = [first.pool, second.pool, first.replica.pool]
        pid = os.fork()
        if pid == 0:  # pragma: no cover - another process
            fine = all(a is not b for a, b in zip(pools, (first.pool, second.pool, first.replica.pool), strict=True))
            os._exit(0 if fine else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        for engine in (first, second):
            for one in list(engine.dispatch.engine_disposed):
                engine.dispatch.engine_disposed.listeners.remove(one)


@pytest.mark.fast
def test_url_of_one_endpoint() -> None:
    """The URL of a side is for SQLAlchemy's own `create_engine`; ours says so."""
    engine = ps_sqlalchemy.create_engine(URL)
    with pytest.raises(ConfigurationError, match=r"ps_to: this URL leads to one endpoint: give it to sqlalchemy\.create_engine"):
        ps_sqlalchemy.create_engine(engine.direct.url)
    assert isinstance(engine, Engine)
