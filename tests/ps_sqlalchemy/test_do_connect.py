"""`do_connect`: a listener is asked for each connection that is made, with what names its server, on every side."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.util import greenlet_spawn

import ps_core
import ps_sqlalchemy
from ps_core import ConfigurationError, Topology
from ps_lab import Lab

WHO = text("SELECT current_user, pg_is_in_recovery()")
SIDES = ("primary", "replica", "direct")
WHERE = ("host", "port", "user", "dbname", "password")

kinds = pytest.mark.parametrize("kind", ["by create_engine", "from a URL"])
asynchronously = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "asyncio"])


@contextmanager
def engine_for(url: str, kind: str, asynchronous: bool, **options: Any) -> Iterator[Any]:
    """An engine with a replica; for asyncio, the engine inside of it."""
    if kind == "by create_engine":
        make: Any = ps_sqlalchemy.create_async_engine if asynchronous else ps_sqlalchemy.create_engine
        engine = make(url, bouncer="write-pool", replica_bouncer="read-pool", **options)
    else:
        url = url.replace("postgresql:", f"postgresql+ps{'_async' if asynchronous else ''}:")
        url += "&ps_bouncer=write-pool&ps_replica_bouncer=read-pool"
        engine = (create_async_engine if asynchronous else sa.create_engine)(url, **options)
    engine = engine.sync_engine if isinstance(engine, AsyncEngine) else engine
    try:
        yield engine
    finally:
        run(asynchronous, engine.dispose)


def run(asynchronous: bool, work: Callable[[], Any]) -> Any:
    """Run what is written for a sync engine, for asyncio as SQLAlchemy runs it there."""
    return asyncio.run(greenlet_spawn(work)) if asynchronous else work()


def side_of(engine: Any, side: str) -> Any:
    """One of the engines."""
    return engine if side == "primary" else getattr(engine, side)


@kinds
@asynchronously
def test_names_the_server(ps_lab: Lab, kind: str, asynchronous: bool) -> None:
    """The parameters name host, port, user, dbname and password of the endpoint, as stock's do; of no other one."""
    topology = Topology.from_url(ps_lab.url, bouncer="write-pool", replica_bouncer="read-pool")
    with engine_for(ps_lab.url, kind, asynchronous) as engine:
        asked: list[Any] = []

        @event.listens_for(engine, "do_connect")
        def note(dialect: Any, record: Any, cargs: list[Any], cparams: dict[str, Any]) -> None:
            asked.append((dialect.name, record is not None, cargs, {name: cparams[name] for name in WHERE}))

        def work() -> None:
            for side, endpoint in zip(SIDES, (topology.primary, topology.replicas[0], topology.direct), strict=True):
                asked.clear()
                with side_of(engine, side).connect() as conn:
                    assert conn.scalar(text("SELECT pg_is_in_recovery()")) is (side == "replica")
                info = endpoint.parameters()
                assert asked == [("postgresql", True, [], {name: info[name] for name in WHERE})]

        run(asynchronous, work)


@kinds
@asynchronously
@pytest.mark.parametrize("by", ["dialect.connect", "dialect.dbapi.connect", "dialect.loaded_dbapi.connect, named"])
def test_connects_by_itself(ps_lab: Lab, kind: str, asynchronous: bool, by: str) -> None:
    """A listener connects with a connection of ours to that server, which is replaced when it is lost."""
    with engine_for(ps_lab.url, kind, asynchronous) as engine:
        asked = []

        @event.listens_for(engine, "do_connect")
        def connect(dialect: Any, record: Any, cargs: list[Any], cparams: dict[str, Any]) -> Any:
            asked.append(cparams["user"])
            if by == "dialect.connect":
                return dialect.connect(*cargs, **cparams)
            if by == "dialect.dbapi.connect":
                return dialect.dbapi.connect(*cargs, **cparams)
            return dialect.loaded_dbapi.connect(**{name: cparams[name] for name in WHERE}, application_name="named")

        def work() -> None:
            for side in SIDES:
                asked.clear()
                with side_of(engine, side).connect() as conn:
                    driver: Any = conn.connection.driver_connection
                    assert isinstance(driver, ps_core.Connection | ps_core.AsyncConnection)
                    assert driver.state.endpoint.role == side
                    assert conn.scalar(text("SELECT pg_is_in_recovery()")) is (side == "replica")
                    assert len(asked) == 1
                    if side != "direct":
                        assert conn.scalar(text("SHOW statement_timeout")) == "2s"
                    conn.commit()
                    ps_lab.edge.cut()
                    assert conn.scalar(text("SELECT 1")) == 1
                    assert len(asked) == 2

        run(asynchronous, work)


@kinds
@asynchronously
def test_works_on_what_it_connects(ps_lab: Lab, kind: str, asynchronous: bool) -> None:
    """A listener may use its connection; what it SETs holds as what is SET later does, and is SET again on one made anew."""
    with engine_for(ps_lab.url, kind, asynchronous) as engine:

        @event.listens_for(engine, "do_connect")
        def connect(dialect: Any, record: Any, cargs: list[Any], cparams: dict[str, Any]) -> Any:
            connection = dialect.connect(*cargs, **cparams)
            cursor = connection.cursor()
            cursor.execute("SET search_path = information_schema, public")
            cursor.close()
            connection.commit()
            return connection

        def work() -> None:
            for side in SIDES:
                with side_of(engine, side).connect() as conn:
                    for _ in range(2):
                        assert conn.scalar(text("SHOW search_path")) == "information_schema, public"
                        conn.commit()
                        ps_lab.edge.cut()

        run(asynchronous, work)


@kinds
@asynchronously
def test_another_drivers_connection_is_refused(ps_lab: Lab, kind: str, asynchronous: bool) -> None:
    """It would run without limits, and nothing would heal it."""
    given: list[Any] = []
    with engine_for(ps_lab.url, kind, asynchronous) as engine:

        @event.listens_for(engine, "do_connect")
        def connect(dialect: Any, record: Any, cargs: list[Any], cparams: dict[str, Any]) -> Any:
            del cparams["context"]
            given.append(psycopg.connect(**cparams))
            return given[-1]

        def work() -> None:
            for side in SIDES:
                with pytest.raises(ConfigurationError, match=r"a psycopg\.Connection would run without limits"):
                    side_of(engine, side).connect()

        run(asynchronous, work)
    for connection in given:
        connection.close()


def test_another_drivers_creator_is_refused(ps_lab: Lab) -> None:
    """So it is where SQLAlchemy was told how to connect; one that makes ours will do, but not for replicas."""
    url = ps_lab.url.replace("postgresql:", "postgresql+ps:")
    info: Any = ps_core.conninfo(ps_lab.topology.primary)
    stock = psycopg.connect(**info)
    with pytest.raises(ConfigurationError, match="creator"):
        sa.create_engine(url, creator=lambda: stock, poolclass=sa.NullPool).connect()
    stock.close()
    engine = sa.create_engine(url, creator=lambda: ps_core.connect(ps_lab.url), poolclass=sa.NullPool)
    with engine.connect() as conn:
        assert conn.scalar(text("SHOW statement_timeout")) == "2s"
    with pytest.raises(ConfigurationError, match="the URL says how to connect to the primary and to replicas"):
        sa.create_engine(url + "&ps_replica_bouncer=read-pool", creator=lambda: ps_core.connect(ps_lab.url))


@kinds
@asynchronously
def test_changed_user_holds_for_that_connection(ps_lab: Lab, kind: str, asynchronous: bool) -> None:
    """A listener's user connects, also when the connection is replaced; the next one is who they are without it."""
    other = sa.make_url(ps_lab.create_role("do_connect_other"))
    try:
        with engine_for(ps_lab.url, kind, asynchronous) as engine:

            def change(dialect: Any, record: Any, cargs: list[Any], cparams: dict[str, Any]) -> None:
                cparams["user"] = f"{other.username}|{cparams['user'].partition('|')[2]}".rstrip("|")
                cparams["password"] = other.password

            def work() -> None:
                for side in SIDES:
                    event.listen(engine, "do_connect", change)
                    with side_of(engine, side).connect() as conn:
                        expected = ("do_connect_other", side == "replica")
                        assert tuple(conn.execute(WHO).one()) == expected
                        conn.commit()
                        ps_lab.edge.cut()
                        assert tuple(conn.execute(WHO).one()) == expected
                        event.remove(engine, "do_connect", change)
                        with side_of(engine, side).connect() as second:
                            assert tuple(second.execute(WHO).one()) == ("app", side == "replica")

            run(asynchronous, work)
    finally:
        ps_lab.drop_role("do_connect_other")


@asynchronously
def test_token_that_expires_over_a_failover(ps_lab: Lab, asynchronous: bool) -> None:
    """Open connections outlive their password, a failover takes them, and each is made anew with the password that holds then."""
    url = ps_lab.create_role("do_connect_token")
    password = [sa.make_url(url).password]
    try:
        with engine_for(url, "by create_engine", asynchronous) as engine:
            asked: list[str] = []

            @event.listens_for(engine, "do_connect")
            def token(dialect: Any, record: Any, cargs: list[Any], cparams: dict[str, Any]) -> None:
                asked.append(cparams["user"].rpartition("|")[2])
                cparams["password"] = password[0]

            def work() -> None:
                with engine.connect() as on_primary, engine.replica.connect() as on_replica, engine.direct.connect() as on_direct:
                    conns = (on_primary, on_replica, on_direct)
                    for conn in conns:
                        conn.execute(WHO)
                        conn.commit()
                    password[0] = sa.make_url(ps_lab.set_password("do_connect_token")).password
                    made = len(asked)  # the primary may have stood in for a replica that was behind
                    ps_lab.switchover()
                    ps_lab.edge.cut()
                    for conn in conns:
                        assert conn.execute(WHO).one()[0] == "do_connect_token"
                        conn.commit()
                    assert {"write-pool", "read-pool"} <= {*asked[made:]}
                    assert len(asked) >= made + 3

            run(asynchronous, work)
    finally:
        ps_lab.drop_role("do_connect_token")


def test_pops_the_password(ps_lab: Lab, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a listener takes away is not sent: libpq's own sources count then, such as a password file."""
    password = sa.make_url(ps_lab.url).password
    file = tmp_path / "pgpass"
    file.write_text(f"*:*:*:*:{password}\n")
    file.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(file))
    with engine_for(ps_lab.url, "by create_engine", False) as engine:

        @event.listens_for(engine, "do_connect")
        def pop(dialect: Any, record: Any, cargs: list[Any], cparams: dict[str, Any]) -> None:
            del cparams["password"]

        with engine.connect() as conn:
            assert not conn.connection.driver_connection.info.get_parameters().get("password")
            assert conn.scalar(text("SELECT 1")) == 1
        file.write_text("*:*:*:*:wrong\n")
        engine.dispose()
        with pytest.raises(sa.exc.OperationalError, match="authentication failed"):
            engine.connect()


def test_listener_that_raises(ps_lab: Lab) -> None:
    """Its error reaches the caller, at once; the next caller connects."""
    with engine_for(ps_lab.url, "by create_engine", False) as engine:

        def fail(*_: Any) -> None:
            raise LookupError("no token")

        event.listen(engine, "do_connect", fail)
        for side in SIDES:
            with pytest.raises(LookupError, match="no token"):
                side_of(engine, side).connect()
        event.remove(engine, "do_connect", fail)
        for side in SIDES:
            with side_of(engine, side).connect() as conn:
                assert conn.scalar(text("SELECT 1")) == 1


@pytest.mark.parametrize("side", [*SIDES, "replica without a pooler"])
def test_url_of_a_side(ps_lab: Lab, side: str) -> None:
    """An engine that is made of a side's URL leads there, under the limits of that endpoint."""
    side, _, without = side.partition(" ")
    replicas: Any = {"direct_replica": True, "replica_bouncer": None} if without else {"replica_bouncer": "read-pool"}
    engine = ps_sqlalchemy.create_engine(ps_lab.url, bouncer="write-pool", **replicas)
    url = side_of(engine, side).url
    again = sa.create_engine(url)
    try:
        with again.connect() as conn:
            driver: Any = conn.connection.driver_connection
            assert (driver.state.endpoint.port, driver.info.user) == (url.port, url.username)
            assert conn.scalar(text("SELECT pg_is_in_recovery()")) is (side == "replica")
            assert conn.scalar(text("SHOW statement_timeout")) == ("0" if side == "direct" else "2s")
            assert driver.state.endpoint.role == side
    finally:
        again.dispose()
    with pytest.raises(ConfigurationError, match="ps_to: write 'primary', 'replica' or 'direct', not 'somewhere'"):
        sa.create_engine(url.update_query_dict({"ps_to": "somewhere"}))
