"""Recipes that set something for the session, as they are found in the wild: what they give on stock with sessions of its own.

Each is run on stock SQLAlchemy on the direct path, and on our engine behind the bouncers, while other clients look on.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event, orm, text
from sqlalchemy.ext.asyncio import AsyncSession

import ps_core
import ps_sqlalchemy
from ps_core.topology import Topology
from ps_lab import Lab
from tests.strangers import strangers

SEEN = text(
    "SELECT current_setting('search_path'), nullif(current_setting('app.tenant', true), ''), current_user::text,"
    " (SELECT string_agg(name, ',' ORDER BY name) FROM sa_place)"
)
tenant: ContextVar[int] = ContextVar("tenant")
Recipe = Callable[[sa.Engine], None]


class Base(orm.DeclarativeBase):
    """The models' base."""


class Place(Base):
    """A table of each schema, which holds the schema's name."""

    __tablename__ = "sa_place"
    name: orm.Mapped[str] = orm.mapped_column(primary_key=True)


class PerTenant(Base):
    """The same by another way: the schema is put in by SQLAlchemy."""

    __tablename__ = "sa_place"
    __table_args__ = {"schema": "per_tenant"}  # noqa: RUF012 - SQLAlchemy's
    name: orm.Mapped[str] = orm.mapped_column(primary_key=True)


@pytest.fixture(scope="module", autouse=True)
def schemas(ps_lab: Lab) -> Iterator[None]:
    """A table in three schemas, and a role that reads them."""
    for schema in ("public", "store", "tenant7"):
        ps_lab.sql(f"CREATE SCHEMA IF NOT EXISTS {schema}")
        ps_lab.sql(f"CREATE TABLE {schema}.sa_place (name text PRIMARY KEY)")
        ps_lab.sql(f"INSERT INTO {schema}.sa_place VALUES ('{schema}')")
        ps_lab.sql(f"GRANT USAGE ON SCHEMA {schema} TO app")
        ps_lab.sql(f"GRANT SELECT ON {schema}.sa_place TO PUBLIC")
    ps_lab.sql("CREATE ROLE sa_reader NOLOGIN")
    ps_lab.sql("GRANT sa_reader TO app")
    ps_lab.sql("GRANT USAGE ON SCHEMA store, tenant7 TO sa_reader")
    ps_lab.wait_replicas_caught_up()
    yield
    ps_lab.sql("DROP TABLE public.sa_place")
    ps_lab.sql("DROP SCHEMA store CASCADE")
    ps_lab.sql("DROP SCHEMA tenant7 CASCADE")
    ps_lab.sql("DROP ROLE sa_reader")


@contextmanager
def ours(lab: Lab) -> Iterator[tuple[sa.Engine, sa.Engine]]:
    """Our engine, and the one on the replicas."""
    engine = ps_sqlalchemy.create_engine(lab.url, bouncer="write-pool", replica_bouncer="read-pool", pool_size=1, max_overflow=0)
    try:
        assert engine.replica is not None
        yield engine, engine.replica
    finally:
        engine.dispose()


@contextmanager
def stock(lab: Lab) -> Iterator[tuple[sa.Engine, sa.Engine]]:
    """Stock engines on the direct path: sessions of their own, on the primary and on a replica."""
    topology = Topology.from_url(lab.url, direct_replica=True)
    engines = []
    for endpoint in (topology.direct, topology.replicas[0]):
        conninfo = ps_core.conninfo(endpoint)
        engines.append(sa.create_engine("postgresql+psycopg://", connect_args=conninfo, pool_size=1, max_overflow=0))
    try:
        yield engines[0], engines[1]
    finally:
        for engine in engines:
            engine.dispose()


def observed(engine: sa.Engine) -> list[Any]:
    """Return what statements see in autocommit, in transactions, after a rollback and after an error, on a pool's connection."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        found = [("autocommit", tuple(conn.execute(SEEN).one())) for _ in range(2)]
    return found + in_transactions(engine)


def in_transactions(engine: sa.Engine) -> list[Any]:
    """Return all of that but autocommit."""
    found: list[Any] = []
    with engine.begin() as conn:
        found += [("transaction", tuple(conn.execute(SEEN).one())) for _ in range(2)]
    with engine.connect() as conn:
        conn.execute(SEEN)
        conn.rollback()
        found.append(("rolled back", tuple(conn.execute(SEEN).one())))
    with engine.connect() as conn:
        with pytest.raises(sa.exc.DataError):
            conn.execute(text("SELECT 1/0"))
        conn.rollback()
        found.append(("after an error", tuple(conn.execute(SEEN).one())))
    with orm.Session(engine) as session:
        found.append(("orm", session.scalars(sa.select(Place.name)).all()))
        session.commit()
        found.append(("orm again", session.scalars(sa.select(Place.name)).all()))
    return found


def compare(lab: Lab, recipe: Recipe, expected: tuple[Any, ...] | None, look: Callable[[sa.Engine], Any] = observed) -> None:
    """Assert that ours sees what stock sees, on the primary and on the replica, and others nothing; and in autocommit this."""
    with stock(lab) as engines:
        for engine in engines:
            recipe(engine)
        of_stock = [look(engine) for engine in engines]
    with strangers(lab, "app.tenant"), ours(lab) as engines:
        recipe(engines[0])  # events of the engine are the replica's, too
        of_ours = [look(engine) for engine in engines]
    assert of_ours == of_stock
    if expected is not None:
        assert of_ours[0][0] == ("autocommit", expected)


def connect_committed(engine: sa.Engine) -> None:
    """The recipe of SQLAlchemy's documentation for alternate search paths (docs: "Setting Alternate Search Paths on Connect")."""

    @event.listens_for(engine, "connect", insert=True)
    def set_search_path(dbapi_connection: Any, connection_record: Any) -> None:
        existing_autocommit = dbapi_connection.autocommit
        dbapi_connection.autocommit = True
        cursor = dbapi_connection.cursor()
        cursor.execute("SET SESSION search_path=store,public")
        cursor.close()
        dbapi_connection.autocommit = existing_autocommit


def connect_uncommitted(engine: sa.Engine) -> None:
    """Without a commit, as in many projects: what a rollback undoes, and what not, is the driver's own."""

    def set_search_path(dbapi_connection: Any, connection_record: Any) -> None:
        cursor = dbapi_connection.cursor()
        cursor.execute("SET search_path TO store, public")
        cursor.close()

    event.listen(engine, "connect", set_search_path)


def connect_with_commit(engine: sa.Engine) -> None:
    """With the driver's own commit."""

    @event.listens_for(engine, "connect")
    def set_tenant(dbapi_connection: Any, connection_record: Any) -> None:
        with dbapi_connection.cursor() as cursor:
            cursor.execute("SELECT set_config('app.tenant', %s, false)", ("7",))
        dbapi_connection.commit()


def connect_role(engine: sa.Engine) -> None:
    """A role for all that a connection does."""

    @event.listens_for(engine, "connect")
    def set_role(dbapi_connection: Any, connection_record: Any) -> None:
        with dbapi_connection.cursor() as cursor:
            cursor.execute("SET search_path TO tenant7")
            cursor.execute('SET ROLE "sa_reader"')
        dbapi_connection.commit()


def checkout(engine: sa.Engine) -> None:
    """The tenant of the context, with each connection that is taken from the pool."""

    @event.listens_for(engine, "checkout")
    def set_schema(dbapi_connection: Any, connection_record: Any, connection_proxy: Any) -> None:
        cursor = dbapi_connection.cursor()
        cursor.execute(f"SET search_path TO tenant{tenant.get()}, public")
        cursor.execute(f"SELECT set_config('app.tenant', '{tenant.get()}', false)")
        cursor.close()
        dbapi_connection.commit()


def checkout_and_reset(engine: sa.Engine) -> None:
    """The same, taken back when the connection returns to the pool."""
    checkout(engine)

    @event.listens_for(engine, "checkin")
    def reset(dbapi_connection: Any, connection_record: Any) -> None:
        if dbapi_connection is not None:
            with dbapi_connection.cursor() as cursor:
                cursor.execute("RESET ALL")
            dbapi_connection.commit()


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (connect_committed, ("store, public", None, "app", "store")),
        (connect_with_commit, ('"$user", public', "7", "app", "public")),
        (connect_role, ("tenant7", None, "sa_reader", "tenant7")),
        (checkout, ("tenant7, public", "7", "app", "tenant7")),
        (checkout_and_reset, ("tenant7, public", "7", "app", "tenant7")),
    ],
)
def test_engine_events(ps_lab: Lab, recipe: Recipe, expected: tuple[Any, ...]) -> None:
    """Events of an engine hold on the primary and on the replicas, as on a session of its own."""
    token = tenant.set(7)
    try:
        compare(ps_lab, recipe, expected)
    finally:
        tenant.reset(token)


def test_event_without_commit(ps_lab: Lab) -> None:
    """A transaction that the event leaves open is the first user's: a rollback of theirs undoes the setting, as on stock."""
    compare(ps_lab, connect_uncommitted, None, in_transactions)


SETTERS = {
    "SET LOCAL": lambda conn: conn.execute(text("SET LOCAL app.tenant = '7'")),
    "set_config": lambda conn: conn.execute(text("SELECT set_config('app.tenant', :tenant, true)"), {"tenant": "7"}),
    "driver": lambda conn: conn.exec_driver_sql("SELECT set_config('app.tenant', %s, true)", ("7",)),
    "role": lambda conn: [conn.execute(text(sql)) for sql in ("SET LOCAL search_path = store", "SET LOCAL ROLE sa_reader")],
    "session": lambda conn: conn.execute(text("SELECT set_config('app.tenant', :tenant, false)"), {"tenant": "7"}),
    "search_path": lambda conn: conn.execute(text('SET search_path TO "tenant7", public')),
}


@pytest.mark.parametrize("setter", SETTERS.values(), ids=list(SETTERS))
def test_after_begin(ps_lab: Lab, setter: Callable[[sa.Connection], Any]) -> None:
    """`after_begin` of a session: in each transaction, whatever was committed, rolled back or nested."""

    def look(engine: sa.Engine) -> list[Any]:
        session = orm.Session(engine)

        @event.listens_for(session, "after_begin")
        def set_tenant(session: orm.Session, transaction: Any, connection: sa.Connection) -> None:
            setter(connection)

        found = [tuple(session.execute(SEEN).one())]
        session.commit()
        found.append(tuple(session.execute(SEEN).one()))
        session.rollback()
        with session.begin_nested():
            found.append(tuple(session.execute(SEEN).one()))
        found.append(tuple(session.execute(SEEN).one()))
        session.close()
        with engine.connect() as conn:  # the same connection, for somebody else
            found.append(tuple(conn.execute(SEEN).one()))
        return found

    compare(ps_lab, lambda engine: None, None, look)


def test_sessions_own_statement(ps_lab: Lab) -> None:
    """A session that sets its schema itself, commits and goes on; the connection keeps it for the next one, as stock's does."""

    def look(engine: sa.Engine) -> list[Any]:
        found = []
        with orm.Session(engine) as session:
            session.execute(text('SET search_path TO "tenant7", public'))
            found.append(session.scalars(sa.select(Place.name)).all())
            session.commit()
            found.append(session.scalars(sa.select(Place.name)).all())
            session.execute(text("SET search_path TO store"))
            session.rollback()
            found.append(session.scalars(sa.select(Place.name)).all())
        with orm.Session(engine) as session:
            found.append(session.scalars(sa.select(Place.name)).all())
            session.execute(text("RESET search_path"))
            session.commit()
        with orm.Session(engine) as session:
            found.append(session.scalars(sa.select(Place.name)).all())
        return found

    compare(ps_lab, lambda engine: None, None, look)


def test_schema_translate_map(ps_lab: Lab) -> None:
    """`schema_translate_map` beside a search path: what is translated is in the map's schema, all else in the path's."""

    def look(engine: sa.Engine) -> list[Any]:
        engine = engine.execution_options(schema_translate_map={"per_tenant": "tenant7"})
        both = sa.union_all(sa.select(PerTenant.name), sa.select(Place.name))
        with engine.connect() as conn:
            found = [conn.scalars(both).all()]
            conn.execute(text("SET search_path TO public"))
            found.append(conn.scalars(both).all())
            conn.commit()
        with orm.Session(engine) as session:
            found.append(session.scalars(both).all())
        assert found == [["tenant7", "store"], ["tenant7", "public"], ["tenant7", "public"]]
        return found

    compare(ps_lab, connect_committed, None, look)


def test_routed_sessions(ps_lab: Lab) -> None:
    """Our session reads on the replica and writes on the primary: an event's tenant is on whichever answers."""
    token = tenant.set(7)
    try:
        with strangers(ps_lab, "app.tenant"), ours(ps_lab) as (engine, _):
            checkout(engine)
            factory = orm.sessionmaker(engine, class_=ps_sqlalchemy.Session)
            query = text("SELECT pg_is_in_recovery(), current_setting('app.tenant'), (SELECT name FROM sa_place)")
            found = []
            for _ in range(3):
                with factory() as session:
                    found.append(session.execute(query).one())
                with factory() as session, session.begin():
                    found.append(session.execute(query, execution_options={"ps_route": "primary"}).one())
            assert found == [(True, "7", "tenant7"), (False, "7", "tenant7")] * 3
    finally:
        tenant.reset(token)


async def test_asyncio(ps_lab: Lab) -> None:
    """The same of an asyncio engine, whose events are those of its `sync_engine`."""
    engine = ps_sqlalchemy.create_async_engine(ps_lab.url, bouncer="write-pool", replica_bouncer="read-pool")
    with strangers(ps_lab, "app.tenant"):
        connect_committed(engine.sync_engine)
        assert engine.replica is not None
        for side in (engine, engine.replica):
            for _ in range(2):
                async with side.connect() as conn:
                    assert (await conn.execute(SEEN)).one() == ("store, public", None, "app", "store")
                    await conn.rollback()
                    assert (await conn.execute(SEEN)).one() == ("store, public", None, "app", "store")
        async with AsyncSession(engine) as session:
            await session.execute(text("SET search_path TO tenant7"))
            await session.commit()
            assert (await session.scalars(sa.select(Place.name))).all() == ["tenant7"]
        await engine.dispose()


def test_serializable(ps_lab: Lab) -> None:
    """An event that makes all transactions SERIALIZABLE: no replica has that, so that the primary answers."""
    with ours(ps_lab) as (engine, _):

        @event.listens_for(engine, "connect")
        def all_serializable(dbapi_connection: Any, record: Any) -> None:
            with dbapi_connection.cursor() as cursor:
                cursor.execute("SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE")
            dbapi_connection.commit()

        with ps_sqlalchemy.Session(engine) as session:
            sees = "SELECT pg_is_in_recovery(), current_setting('transaction_isolation')"
            for _ in range(2):
                assert session.execute(text(sees)).one() == (False, "serializable")
                session.commit()
    with ours(ps_lab) as (engine, _), ps_sqlalchemy.Session(engine) as session:  # the statement is not to blame
        assert session.execute(text(sees)).one() == (True, "read committed")
