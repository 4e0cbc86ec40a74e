"""SQLAlchemy over HTTPS: what an engine reads, what it refuses, and what a batch writes, each by how many requests."""

from __future__ import annotations

import asyncio
import datetime as dt
import decimal
import enum
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pandas as pd
import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.dialects import postgresql as pg
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.schema import CreateTable, DropTable

import ps_sqlalchemy
from ps_core import CommitOutcomeUnknown, ConfigurationError
from ps_sqlalchemy import http_batch
from tests.ps_sqlalchemy.conftest import plain_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ps_lab import Lab


class Mood(enum.Enum):
    sad = "sad"
    ok = "ok"


class Base(orm.DeclarativeBase):
    """The models' base."""


class Thing(Base):
    """A table with a column of every type."""

    __tablename__ = "http_thing"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    name: orm.Mapped[str] = orm.mapped_column(unique=True)
    mood: orm.Mapped[Mood | None] = orm.mapped_column(sa.Enum(Mood, name="http_mood"))
    data: orm.Mapped[Any] = orm.mapped_column(pg.JSONB, nullable=True)
    tags: orm.Mapped[list[str] | None] = orm.mapped_column(pg.ARRAY(sa.Text))
    price: orm.Mapped[decimal.Decimal | None] = orm.mapped_column(sa.Numeric(12, 4))
    span: orm.Mapped[Any] = orm.mapped_column(pg.INT4RANGE, nullable=True)
    spans: orm.Mapped[Any] = orm.mapped_column(pg.INT4MULTIRANGE, nullable=True)
    key: orm.Mapped[uuid.UUID | None]
    day: orm.Mapped[dt.date | None]
    at: orm.Mapped[dt.datetime | None] = orm.mapped_column(sa.DateTime(timezone=True))
    took: orm.Mapped[dt.timedelta | None] = orm.mapped_column(sa.Interval)
    raw: orm.Mapped[bytes | None]
    ratio: orm.Mapped[float | None]
    made: orm.Mapped[str | None] = orm.mapped_column(default=lambda: "by Python")


THING: Any = Thing.__table__
FULL: dict[str, Any] = {
    "name": "é\\'%s:x",
    "mood": Mood.ok,
    "data": {"a": [1, None, "x"], "b": {"c": 1.5}},
    "tags": ["a", 'b"c', "", "NULL", "\\"],
    "price": decimal.Decimal("12345678.1250"),
    "span": pg.Range(1, 5),
    "spans": [pg.Range(1, 5), pg.Range(7, 9)],
    "key": uuid.UUID(int=7),
    "day": dt.date(2026, 2, 28),
    "at": dt.datetime(2026, 2, 28, 12, 30, 15, 123456, tzinfo=dt.UTC),
    "took": dt.timedelta(days=1, microseconds=5),
    "raw": b"\x00\xff\\a",
    "ratio": float("inf"),
}
EMPTY: dict[str, Any] = {**dict.fromkeys(FULL), "name": "nothing"}


@pytest.fixture(scope="module")
def stock(ps_lab: Lab) -> Iterator[sa.Engine]:
    """SQLAlchemy's own engine over TCP, with the tables."""
    url = ps_lab.url.partition("&ps_")[0].replace("postgresql:", "postgresql+psycopg:")
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    Base.metadata.create_all(engine)
    yield engine
    Base.metadata.drop_all(engine)


@pytest.fixture
def things(stock: sa.Engine) -> Iterator[None]:
    """Two rows; none after the test."""
    with stock.begin() as connection:
        connection.execute(sa.insert(Thing), [FULL, EMPTY])
    yield
    with stock.begin() as connection:
        connection.execute(sa.text("TRUNCATE http_thing RESTART IDENTITY"))


@pytest.fixture
def no_things(things: None, stock: sa.Engine) -> None:
    """No row."""
    with stock.begin() as connection:
        connection.execute(sa.text("TRUNCATE http_thing RESTART IDENTITY"))


@pytest.fixture
def http(ps_lab: Lab, stock: sa.Engine) -> Iterator[sa.Engine]:
    """An engine of the primary alone."""
    url = ps_lab.url.replace("postgresql:", "postgresql+ps_http:") + "&ps_bouncer=write-pool"
    engine = sa.create_engine(url)
    yield engine
    engine.dispose()


# --- reading ---


def test_first_select(ps_lab: Lab, http: sa.Engine) -> None:
    """Nothing is sent before the first statement, which is one request, as each is; beginning and ending are none."""
    with ps_lab.round_trips() as counted, http.connect() as connection:
        assert counted.count == 0
        assert connection.execute(sa.select(sa.literal(7), sa.literal("x"), sa.literal([1, 2]))).one() == (7, "x", [1, 2])
        assert counted.count == 1
        connection.commit()
        with connection.begin():
            assert connection.scalar(sa.text("SELECT :x"), {"x": "é"}) == "é"
        connection.rollback()
    assert counted.count == 2
    assert (http.dialect.name, http.dialect.driver) == ("postgresql", "ps_http")


STATEMENTS: dict[str, Callable[[], Any]] = {
    "all": lambda: sa.select(THING).order_by(THING.c.id),
    "in": lambda: sa.select(THING.c.id).where(THING.c.name.in_(["nothing", FULL["name"], "%"])),
    "enum": lambda: sa.select(THING.c.id).where(THING.c.mood == Mood.ok),
    "json": lambda: sa.select(THING.c.data["a"][2].astext, THING.c.data["b"]).where(THING.c.data.contains({"b": {"c": 1.5}})),
    "array": lambda: sa.select(THING.c.tags[2]).where(THING.c.tags.contains(["", "\\"])),
    "range": lambda: sa.select(THING.c.span).where(THING.c.span.contains(3)),
    "multirange": lambda: sa.select(THING.c.spans).where(THING.c.spans.overlaps([pg.Range(8, 20)])),
    "dates": lambda: sa.select(THING.c.at + dt.timedelta(hours=1), THING.c.day + 1).where(THING.c.at <= FULL["at"]),
    "uuid": lambda: sa.select(THING.c.key).where(THING.c.key == uuid.UUID(int=7)),
    "decimal": lambda: sa.select(THING.c.price * decimal.Decimal("1.5"), THING.c.ratio).where(THING.c.price > 1),
    "bytes": lambda: sa.select(THING.c.raw).where(THING.c.raw == FULL["raw"]),
    "literal": lambda: sa.select(sa.literal("a\\b'c%", literal_execute=True), sa.text("'100%'")),
    "text": lambda: sa.text("SELECT name, tags, at, took, data, span FROM http_thing WHERE id = :id").bindparams(id=1),
    "cte": lambda: sa.select(sa.select(sa.func.count()).select_from(THING).cte("c")),
    "values": lambda: sa.select(sa.values(sa.column("n", sa.Integer), name="v").data([(1,), (2,)])),
    "same names": lambda: sa.text("SELECT 1 AS a, 2 AS a"),
    "no rows": lambda: sa.select(THING).where(sa.false()),
}


@pytest.mark.parametrize("name", STATEMENTS)
def test_as_stock(name: str, http: sa.Engine, stock: sa.Engine, things: None) -> None:
    """Rows and columns are as over psycopg, of the same types."""
    found = []
    for one in (stock, http):
        with one.connect() as connection:
            result = connection.execute(STATEMENTS[name]())
            rows = result.all()
            found.append((list(result.keys()), rows, [[type(value) for value in row] for row in rows]))
    assert found[0] == found[1]


FRESH = """
import sys, sqlalchemy as sa
engine = sa.create_engine(sys.stdin.read())
with engine.connect() as connection:
    print(connection.scalar(sa.select(sa.literal(b"\\x00\\xff\\\\a", sa.LargeBinary))))
engine.dispose()
"""


def test_fresh_process(http: sa.Engine) -> None:
    """By its URL alone, in a process that never connected by libpq, where psycopg's own dumper of bytes doubles backslashes."""
    url = http.url.render_as_string(hide_password=False)
    done = subprocess.run([sys.executable, "-c", FRESH], input=url, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == (repr(b"\x00\xff\\a"), "")


@pytest.mark.usefixtures("things")
def test_orm(ps_lab: Lab, http: sa.Engine) -> None:
    """A session reads, each statement by one request, and its end sends none."""
    with ps_lab.round_trips() as counted, orm.Session(http) as session:
        things = session.scalars(sa.select(Thing).order_by(Thing.id)).all()
        assert [thing.name for thing in things] == [FULL["name"], "nothing"]
        assert session.get(Thing, 1) is not None
        assert counted.count == 1
        session.commit()
        assert session.get_one(Thing, 2).name == "nothing"
    assert counted.count == 2


def test_pandas(ps_lab: Lab, http: sa.Engine, things: None) -> None:
    """pandas.read_sql reads a query, and a table by its name."""
    with ps_lab.round_trips() as counted, http.connect() as connection:
        frame = pd.read_sql(sa.select(Thing.id, Thing.name).order_by(Thing.id), connection)
        assert list(frame["name"]) == [FULL["name"], "nothing"]
    assert counted.count == 1
    assert len(pd.read_sql("http_thing", http)) == 2
    with pytest.raises(sa.exc.NotSupportedError, match="http_batch"):
        frame.to_sql("http_thing_too", http)


def test_reflection(ps_lab: Lab, http: sa.Engine, stock: sa.Engine) -> None:
    """Tables, and what the inspector tells of them, are as over psycopg; what the server is asked first is one request."""
    made = []
    for one in (stock, http):
        inspector = sa.inspect(one)
        table = sa.Table("http_thing", sa.MetaData(), autoload_with=one)
        asked = inspector.get_columns, inspector.get_indexes, inspector.get_pk_constraint, inspector.get_unique_constraints
        told = [repr(ask("http_thing")) for ask in asked]
        made.append((str(CreateTable(table).compile(one)), told, inspector.has_table("nowhere"), inspector.default_schema_name))
    assert made[0] == made[1]
    assert http.dialect.server_version_info == stock.dialect.server_version_info
    again = sa.create_engine(http.url)
    with ps_lab.round_trips() as counted, again.connect() as connection:
        assert connection.default_isolation_level == "READ COMMITTED"
        assert connection.dialect.default_schema_name == "public"
        assert connection.get_isolation_level() == "READ COMMITTED"
    assert counted.count == 1


def test_replicas(ps_lab: Lab, stock: sa.Engine) -> None:
    """With replicas, they answer reads; a URL of one endpoint leads there alone."""
    ps_lab.wait_replicas_caught_up()
    url = plain_url(ps_lab, "ps_http") + "&ps_statement_timeout=2s"
    for more, in_recovery, timeout in (("", True, "2s"), ("&ps_to=replica", True, "2s"), ("&ps_to=direct", False, "0")):
        engine = sa.create_engine(url + more)
        with engine.connect() as connection:
            row = connection.execute(sa.text("SELECT pg_is_in_recovery(), current_setting('statement_timeout')")).one()
            assert row == (in_recovery, timeout)
        engine.dispose()


def test_isolation_levels(ps_lab: Lab, http: sa.Engine) -> None:
    """Those that one statement can have are taken; in AUTOCOMMIT, too, it only reads. The others are refused."""
    asks = sa.text("SELECT current_setting('transaction_isolation'), current_setting('transaction_read_only')")
    with http.connect() as connection:
        for level in ("AUTOCOMMIT", "READ COMMITTED", "READ UNCOMMITTED"):
            one = connection.execution_options(isolation_level=level)
            with ps_lab.round_trips() as counted:
                expected = "READ COMMITTED" if level == "AUTOCOMMIT" else level
                assert one.execute(asks).one() == (expected.lower(), "on")
            assert counted.count == 1
            assert one.get_isolation_level() == expected
            with pytest.raises(sa.exc.NotSupportedError, match="http_batch"):
                one.execute(sa.insert(Thing).values(name="a"))
            connection.rollback()
        for level in ("REPEATABLE READ", "SERIALIZABLE"):
            with pytest.raises(ConfigurationError, match=r"snapshot.*http_batch"):
                connection.execution_options(isolation_level=level)
        with pytest.raises(sa.exc.ArgumentError):
            connection.execution_options(isolation_level="CHAOS")  # refused
    of_engine = sa.create_engine(http.url, isolation_level="READ UNCOMMITTED")
    for _ in range(2):
        with of_engine.connect() as connection:
            assert connection.execute(asks).one() == ("read uncommitted", "on")
    with pytest.raises(ConfigurationError, match="snapshot"):
        sa.create_engine(http.url, isolation_level="SERIALIZABLE").connect()
    with http.connect().execution_options(postgresql_readonly=True) as connection:
        assert connection.execute(asks).one() == ("read committed", "on")


REFUSED: dict[str, tuple[Callable[[sa.Connection], Any], str]] = {
    "insert": (lambda c: c.execute(sa.insert(THING).values(name="a")), "http_batch"),
    "several": (lambda c: c.execute(sa.insert(THING), [{"name": "a"}, {"name": "b"}]), "http_batch"),
    "returning": (lambda c: c.execute(sa.insert(THING).returning(THING), [{"name": "a"}, {"name": "b"}]), "http_batch"),
    "update": (lambda c: c.execute(sa.update(THING).values(name="a")), "websocket"),
    "delete": (lambda c: c.execute(sa.delete(THING)), "http_batch"),
    "text": (lambda c: c.execute(sa.text("DELETE FROM http_thing")), "http_batch"),
    "driver": (lambda c: c.exec_driver_sql("DELETE FROM http_thing"), "http_batch"),
    "DDL": (lambda c: c.execute(DropTable(THING)), "http_batch"),
    "sequence": (lambda c: c.scalar(sa.Sequence("http_thing_id_seq")), "of its own before this one"),
    "nextval": (lambda c: c.scalar(sa.text("SELECT nextval('http_thing_id_seq')")), "http_batch"),
    "lock": (lambda c: c.execute(sa.select(THING).with_for_update()), "http_batch"),
    "hidden": (lambda c: c.execute(sa.text("SELECT http_writes()")), "http_batch"),
    "SET": (lambda c: c.execute(sa.text("SET work_mem = '1MB'")), "http_batch"),
    "COMMIT": (lambda c: c.execute(sa.text("COMMIT")), "http_batch"),
    "savepoint": (lambda c: c.begin_nested(), "http_batch"),
    "two-phase": (lambda c: c.begin_twophase(), "http_batch"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, http: sa.Engine, stock: sa.Engine, things: None, ps_lab: Lab) -> None:
    """What could write, or needs a transaction, is refused and told what to write instead; nothing is changed."""
    ps_lab.sql(
        "CREATE OR REPLACE FUNCTION http_writes() RETURNS void LANGUAGE sql AS $$DELETE FROM http_thing$$; "
        "GRANT EXECUTE ON FUNCTION http_writes() TO app"
    )
    work, said = REFUSED[name]
    with http.connect() as connection, ps_lab.round_trips() as counted:
        with pytest.raises((sa.exc.DBAPIError, psycopg.NotSupportedError), match=said):
            work(connection)
    assert counted.count == (1 if name == "hidden" else 0)  # this one the server refuses
    with stock.connect() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(Thing)) == 2


def test_session_does_not_flush(http: sa.Engine, things: None, stock: sa.Engine) -> None:
    """A session that has something to write says so, and does not lose it silently."""
    with orm.Session(http) as session:
        session.add(Thing(name="new"))
        with pytest.raises(sa.exc.NotSupportedError, match="http_batch"):
            session.commit()
    with stock.connect() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(Thing)) == 2


def test_errors(http: sa.Engine) -> None:
    """They are psycopg's, in SQLAlchemy's; the connection goes on."""
    with http.connect() as connection:
        with pytest.raises(sa.exc.ProgrammingError) as caught:
            connection.execute(sa.text("SELECT * FROM nowhere"))
        assert isinstance(caught.value.orig, psycopg.errors.UndefinedTable)
        assert not caught.value.connection_invalidated
        with pytest.raises(sa.exc.DataError, match="division by zero"):
            connection.execute(sa.text("SELECT 1 / :n"), {"n": 0})
        assert connection.scalar(sa.text("SELECT 1")) == 1


def test_notes(ps_lab: Lab, stock: sa.Engine) -> None:
    """What a limit of ours has ended says which, in SQLAlchemy's error, too."""
    url = ps_lab.url.replace("postgresql:", "postgresql+ps_http:") + "&ps_bouncer=write-pool&ps_statement_timeout=50ms"
    engine = sa.create_engine(url)
    sleep = sa.text("SELECT pg_sleep(5)")
    with pytest.raises(sa.exc.OperationalError) as read, engine.connect() as connection:
        connection.execute(sleep)
    with pytest.raises(sa.exc.OperationalError) as batched, http_batch(engine) as batch:
        batch.execute(sa.text("SELECT 1"))
        batch.execute(sleep)
    for caught in (read, batched):
        assert isinstance(caught.value.orig, psycopg.errors.QueryCanceled)
        assert any("statement_timeout" in note for note in caught.value.__notes__)
    engine.dispose()


def test_streaming(http: sa.Engine) -> None:
    """There are no cursors of the server's: what asks for them has its rows in parts, which are cut here."""
    numbers = sa.select(sa.func.generate_series(1, 5))
    with http.connect() as connection:
        result = connection.execute(numbers, execution_options={"yield_per": 2})
        assert [len(part) for part in result.partitions()] == [2, 2, 1]
        result = connection.execute(numbers, execution_options={"stream_results": True})
        assert [row[0] for row in result] == [1, 2, 3, 4, 5]


def test_do_connect(ps_lab: Lab, http: sa.Engine) -> None:
    """A listener may change the login, the host and the database; what else it or `connect_args` says, is refused."""
    elsewhere: dict[str, Any] = {}
    seen: list[Any] = []

    @sa.event.listens_for(http, "do_connect")
    def listen(dialect: Any, record: Any, cargs: Any, cparams: dict[str, Any]) -> None:
        seen.append(dict(cparams))
        cparams.update(elsewhere)

    asks = sa.text("SELECT current_database()")
    with http.connect() as connection:
        assert connection.scalar(asks) == "postgres"
    assert seen[0].keys() == {"user", "password", "host", "dbname"}
    elsewhere = {"dbname": "nowhere"}  # none that is there: who is connected to it would be in the way of other tests
    with pytest.raises(sa.exc.OperationalError, match="nowhere"), http.connect() as connection:
        connection.execute(asks)
    elsewhere = {"password": "wrong"}
    with pytest.raises(sa.exc.OperationalError, match="authentication failed") as caught, http.connect() as connection:
        connection.execute(asks)
    assert seen[0]["password"] not in str(caught.value)
    elsewhere = {"connect_timeout": 5}
    with pytest.raises(ConfigurationError, match=r"connect_timeout.*ps_"):
        http.connect()
    with pytest.raises(ConfigurationError, match="sslmode"):
        sa.create_engine(http.url, connect_args={"sslmode": "require"}).connect()


def test_options(http: sa.Engine, stock: sa.Engine) -> None:
    """What cannot work is refused when the engine is made; JSON goes by the application's functions; other pools work."""
    with pytest.raises(ConfigurationError, match="is an address"):
        sa.create_engine(http.url.set(host="127.0.0.1"))
    options: dict[str, Any] = {"json_deserializer": lambda text: f"<{text}>", "json_serializer": lambda value: '"mine"'}
    found = []
    for url in (stock.url, http.url):
        odd = sa.create_engine(url, poolclass=sa.QueuePool, **options)
        for _ in range(2):
            with odd.connect() as connection:
                found.append(connection.scalar(sa.select(sa.literal({"a": 1}, pg.JSONB))))
        if url == http.url:
            with http_batch(odd) as batch:
                batch.execute(sa.select(sa.literal(1)))
            with odd.connect() as connection:  # it has come back to its pool
                assert connection.scalar(sa.select(sa.literal(1))) == 1
        odd.dispose()
    assert found[0] is not None
    assert "mine" in found[0]
    assert len(set(found)) == 1


# --- writing ---


def test_batch(ps_lab: Lab, http: sa.Engine, stock: sa.Engine, no_things: None) -> None:
    """Several statements are one request; their results are there after it, as SQLAlchemy makes them."""
    with ps_lab.round_trips() as counted:
        with http_batch(http, isolation="SERIALIZABLE") as batch:
            full = batch.execute(sa.insert(Thing).values(FULL).returning(THING))
            plain = batch.execute(sa.insert(Thing), {"name": "nothing"})
            many = batch.execute(sa.insert(Thing), [{"name": "a"}, {"name": "b"}])
            pairs = batch.execute(sa.insert(Thing).values([{"name": "c"}, {"name": "d"}]).returning(Thing.id))
            changed = batch.execute(sa.update(Thing).where(Thing.name < "c").values(ratio=1.5))
            read = batch.execute(sa.select(Thing.name).where(Thing.ratio == sa.bindparam("r")), {"r": 1.5})
            gone = batch.execute(sa.delete(Thing).where(Thing.name == "d").returning(Thing.name))
            level = batch.execute(sa.text("SELECT current_setting('transaction_isolation')"))
            with pytest.raises(RuntimeError, match="when the block"):
                full.result  # noqa: B018
            assert counted.count == 0
        for one in (batch, http_batch(http)):
            with pytest.raises(RuntimeError, match="within the block"):
                one.execute(sa.select(1))
    assert counted.count == 1
    row = full.result.mappings().one()
    assert {name: row[name] for name in FULL} == FULL
    assert (row["id"], row["made"]) == (1, "by Python")
    assert plain.result.inserted_primary_key == (2,)
    assert many.result.rowcount == 2
    assert pairs.result.scalars().all() == [5, 6]
    assert changed.result.rowcount == 2
    assert sorted(read.result.scalars()) == ["a", "b"]
    assert gone.result.all() == [("d",)]
    assert level.result.scalar() == "serializable"
    with stock.connect() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(Thing)) == 5


def test_batch_is_atomic(ps_lab: Lab, http: sa.Engine, stock: sa.Engine, things: None) -> None:
    """What fails, or leaves the block by an exception, changes nothing; the error is psycopg's in SQLAlchemy's."""
    with pytest.raises(sa.exc.IntegrityError) as caught:
        with http_batch(http) as batch:
            pending = batch.execute(sa.insert(Thing).values(name="new"))
            batch.execute(sa.insert(Thing).values(name="nothing"))
    assert isinstance(caught.value.orig, psycopg.errors.UniqueViolation)
    assert caught.value.orig.diag.constraint_name == "http_thing_name_key"
    with pytest.raises(RuntimeError):
        pending.result  # noqa: B018
    with pytest.raises(sa.exc.IntegrityError, match="SQL: INSERT INTO http_thing"):  # of one statement, it is told which
        with http_batch(http) as batch:
            batch.execute(sa.insert(Thing).values(name="nothing"))
    with ps_lab.round_trips() as counted:
        with pytest.raises(LookupError), http_batch(http) as batch:
            batch.execute(sa.insert(Thing).values(name="new"))
            raise LookupError
        with http_batch(http):
            pass
    assert counted.count == 0
    with pytest.raises(sa.exc.InternalError, match="read-only"), http_batch(http, read_only=True) as batch:
        batch.execute(sa.insert(Thing).values(name="new"))
    with stock.connect() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(Thing)) == 2


def test_batch_whose_answer_is_lost(ps_lab: Lab, http: sa.Engine, stock: sa.Engine, no_things: None) -> None:
    """It says that nobody knows, and is sent once; a read is sent again, and its caller notices nothing."""
    for count in (1, 2):
        with ps_lab.edge.cut_answers("primary", containing="http_thing"), pytest.raises(sa.exc.OperationalError) as caught:
            with http_batch(http) as batch:
                for number in range(count):
                    batch.execute(sa.insert(Thing).values(name=f"{count}.{number}"))
        assert isinstance(caught.value.orig, CommitOutcomeUnknown)
    with ps_lab.edge.cut_answers("primary", containing="http_thing"), http.connect() as connection:
        read = connection.scalars(sa.select(Thing.name).order_by(Thing.id)).all()
    with stock.connect() as connection:
        assert connection.scalars(sa.select(Thing.name).order_by(Thing.id)).all() == read == ["1.0", "2.0", "2.1"]


def test_batch_refuses(ps_lab: Lab, http: sa.Engine, stock: sa.Engine, no_things: None) -> None:
    """What cannot be part of one is refused at once; what is in it already, and comes after, is sent."""
    ids = sa.Column("id", sa.Integer, primary_key=True)
    asking = sa.Table("http_thing", sa.MetaData(), ids, sa.Column("name", sa.Text), implicit_returning=False)
    asks = sa.Column("name", sa.Text, default=lambda context: context.connection.scalar(sa.select(sa.literal("x"))))
    calling = sa.Table("http_thing", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), asks)
    with http_batch(http) as batch:
        batch.execute(sa.insert(Thing).values(name="before"))
        for statement in ("COMMIT", "SAVEPOINT x", "LISTEN x", "SELECT 1; SELECT 2"):
            with pytest.raises(sa.exc.NotSupportedError):
                batch.execute(sa.text(statement))
        for several in (sa.insert(Thing).returning(Thing.id), sa.insert(Thing).return_defaults()):
            with pytest.raises(sa.exc.NotSupportedError, match="RETURNING"):
                batch.execute(several, [{"name": "a"}, {"name": "b"}])
        with pytest.raises((sa.exc.DBAPIError, psycopg.NotSupportedError), match="of its own before"):
            batch.execute(sa.insert(asking).values(name="a"))
        with pytest.raises(sa.exc.StatementError, match="of its own before"):
            batch.execute(sa.insert(calling))
        with pytest.raises(sa.exc.CompileError):
            batch.execute(sa.insert(Thing).values(nowhere=1))
        batch.execute(sa.insert(Thing).values(name="after"))
    with stock.connect() as connection:
        assert connection.scalars(sa.select(Thing.name).order_by(Thing.id)).all() == ["before", "after"]
    mistakes: tuple[dict[str, Any], ...] = ({"isolation": "chaos"}, {})
    for mistake in mistakes:
        with pytest.raises(ConfigurationError, match="isolation" if mistake else "http_batch"):
            with http_batch(http if mistake else stock, **mistake):
                pass


def test_batch_that_is_committed(http: sa.Engine, stock: sa.Engine, things: None) -> None:
    """What fails behind the COMMIT makes no error of the batch, and takes no other result: the result of its own raises it."""

    class Unread(sa.TypeDecorator[int]):
        impl, cache_ok = sa.Integer, True

        def process_result_value(self, value: Any, dialect: Any) -> int:
            raise LookupError("of a type")

    keyed = sa.table("http_thing", sa.column("id", Unread), sa.column("name", sa.Text))
    with http_batch(http) as batch:
        day = batch.execute(sa.insert(Thing).values(name="a", day=sa.text("'infinity'")).returning(Thing.day))
        own = batch.execute(sa.insert(Thing).values(name="b").returning(keyed.c.id))
        read = batch.execute(sa.text("SELECT 1"))
    assert read.result.scalar() == 1
    with pytest.raises(sa.exc.DataError, match="infinity"):
        day.result.all()
    with pytest.raises(LookupError, match="of a type"):
        own.result.all()
    heard = sa.create_engine(http.url)
    sa.event.listen(heard, "after_cursor_execute", lambda *_: 1 / 0)
    with http_batch(heard) as batch:
        pending = batch.execute(sa.insert(Thing).values(name="c"))
    with pytest.raises(ZeroDivisionError):
        _ = pending.result
    with stock.connect() as connection:
        assert connection.scalar(sa.select(sa.func.count()).where(Thing.name.in_(["a", "b", "c"]))) == 3


def test_batch_of_a_pool(ps_lab: Lab) -> None:
    """A connection that a pool hands out again no longer belongs to a batch."""
    engine = sa.create_engine(ps_lab.url.replace("postgresql:", "postgresql+ps_http:"), poolclass=sa.StaticPool)
    for text in ("SELECT 5", "SELECT 1/0"):
        with suppress(sa.exc.DataError), http_batch(engine) as batch:
            batch.execute(sa.text(text))
        with engine.connect() as connection:
            assert connection.scalar(sa.text("SELECT 1")) == 1
    engine.dispose()


def test_batch_in_threads(http: sa.Engine, stock: sa.Engine, things: None) -> None:
    """What another thread would add to a batch, or end, is refused before it is sent."""
    batch = http_batch(http)
    statement = sa.insert(Thing).values(name="a")
    with ThreadPoolExecutor(1) as other, pytest.raises(RuntimeError, match="one thread"), batch:
        batch.execute(statement)
        with pytest.raises(RuntimeError, match="one thread"):
            other.submit(batch.__exit__, None, None, None).result()
        other.submit(batch.execute, statement).result()
    with stock.connect() as connection:
        assert connection.scalar(sa.select(sa.func.count()).where(Thing.name == "a")) == 0


def test_batch_has_a_block(http: sa.Engine, stock: sa.Engine, things: None) -> None:
    """Statements before the block, behind it, and of a block within the block are refused."""
    batch = http_batch(http)
    statement = sa.insert(Thing).values(name="a")
    with pytest.raises(RuntimeError, match="within the block"):
        batch.execute(statement)
    with pytest.raises(RuntimeError, match="not over"), batch:
        batch.execute(statement)
        batch.__enter__()
    with pytest.raises(RuntimeError, match="within the block"):
        batch.execute(statement)
    with stock.connect() as connection, pytest.raises(ConfigurationError, match="not a Connection"):
        http_batch(connection)  # type: ignore[arg-type]
    with stock.connect() as connection:
        assert connection.scalar(sa.select(sa.func.count()).where(Thing.name == "a")) == 0


def test_batch_is_heard(http: sa.Engine, no_things: None) -> None:
    """Listeners on the engine receive each statement before and after it runs, and may change it."""
    heard: list[str] = []

    @sa.event.listens_for(http, "before_cursor_execute", retval=True)
    def before(conn: Any, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool) -> Any:
        heard.append("before")
        return statement + " /* told */", parameters

    @sa.event.listens_for(http, "after_cursor_execute")
    def after(*_: Any) -> None:
        heard.append("after")

    with http_batch(http) as batch:
        batch.execute(sa.insert(Thing).values(name="a"))
        query = batch.execute(sa.text("SELECT query FROM pg_stat_activity WHERE pid = pg_backend_pid()"))
        assert heard == ["before", "before"]
    assert heard == ["before", "before", "after", "after"]
    assert query.result.scalar_one().endswith("/* told */")


def test_batch_beside(ps_lab: Lab, no_things: None) -> None:
    """An engine over TCP or a WebSocket has batches over HTTPS, with its endpoints, options and JSON functions."""
    engine = ps_sqlalchemy.create_engine(ps_lab.url, bouncer="write-pool", json_serializer=lambda value: '"mine"')
    elsewhere = engine.execution_options(schema_translate_map={"shop": "public"}, isolation_level="AUTOCOMMIT")
    shop = THING.to_metadata(sa.MetaData(), schema="shop")
    with ps_lab.round_trips() as counted:
        for one, table in ((engine, THING), (elsewhere, shop)):
            with http_batch(one) as batch:
                made = batch.execute(sa.insert(table).values(name=table.key, data={"a": 1}).returning(table.c.data))
            assert made.result.scalar() == "mine"
    assert counted.count == 2
    with pytest.raises(sa.exc.InternalError, match="read-only"):
        with http_batch(engine.execution_options(postgresql_readonly=True)) as batch:
            batch.execute(sa.delete(THING))
    engine.dispose()


# --- asyncio ---


def test_asyncio(ps_lab: Lab, no_things: None) -> None:
    """The same with asyncio: reads, reflection, refusals and batches."""

    async def work() -> None:
        engine = create_async_engine(ps_lab.url.replace("postgresql:", "postgresql+ps_http_async:") + "&ps_bouncer=write-pool")
        with ps_lab.round_trips() as counted:
            async with engine.connect() as connection:
                assert (await connection.execute(sa.select(sa.literal(7)))).scalar() == 7
        assert counted.count == 1
        with ps_lab.round_trips() as counted:
            async with http_batch(engine) as batch:
                made = batch.execute(sa.insert(Thing).values(name="a").returning(Thing.id))
                with pytest.raises(sa.exc.NotSupportedError):
                    batch.execute(sa.text("COMMIT"))
            assert made.result.scalar() == 1
        assert counted.count == 1
        with pytest.raises(sa.exc.IntegrityError):
            async with http_batch(engine) as batch:
                batch.execute(sa.insert(Thing).values(name="a"))
        async with engine.connect() as connection, connection.stream(sa.text("SELECT generate_series(1, 3)")) as streamed:
            assert [row[0] async for row in streamed] == [1, 2, 3]
        async with engine.connect() as connection:
            assert "http_thing" in await connection.run_sync(lambda c: sa.inspect(c).get_table_names())
            with pytest.raises(sa.exc.NotSupportedError, match="http_batch"):
                await connection.execute(sa.delete(Thing))
        with ps_lab.round_trips() as counted:
            found = await asyncio.gather(*(fetch(engine, n) for n in range(5)))
        assert (found, counted.count) == ([0, 1, 2, 3, 4], 5)
        await engine.dispose()

    async def fetch(engine: Any, number: int) -> Any:
        async with engine.connect() as connection:
            return await connection.scalar(sa.select(sa.literal(number)))

    asyncio.run(work())
