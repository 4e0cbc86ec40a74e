"""SQLAlchemy's typed statements, inserts and the ORM, on `postgresql+psycopg` and on ours: same rows, keys, stored values."""

from __future__ import annotations

import asyncio
import datetime as dt
import decimal
import enum
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import pytest
import sqlalchemy as sa
from sqlalchemy import case, cast, func, literal, orm, select
from sqlalchemy.dialects import postgresql as pg

import ps_core
import ps_django
import ps_sqlalchemy
from tests.differential.clients import stock_engine
from tests.differential.outcome import of_error, shown

if TYPE_CHECKING:
    from collections.abc import Callable

    from ps_lab import Lab
    from tests.differential.page import Totals
    from tests.differential.values import Registered


class Level(enum.Enum):
    LOW = "low"
    HIGH = "high"


class Base(orm.DeclarativeBase):
    metadata = sa.MetaData(schema="differential")


class Kept(Base):
    __tablename__ = "sa_kept"
    id: orm.Mapped[int] = orm.mapped_column(sa.Identity(), primary_key=True)
    small: orm.Mapped[int | None] = orm.mapped_column(sa.SmallInteger)
    big: orm.Mapped[int | None] = orm.mapped_column(sa.BigInteger)
    ratio: orm.Mapped[float | None]
    real: orm.Mapped[float | None] = orm.mapped_column(sa.REAL)
    price: orm.Mapped[decimal.Decimal | None] = orm.mapped_column(sa.Numeric(10, 4))
    rate: orm.Mapped[float | None] = orm.mapped_column(sa.Numeric(asdecimal=False))
    flag: orm.Mapped[bool | None]
    name: orm.Mapped[str | None]
    short: orm.Mapped[str | None] = orm.mapped_column(sa.String(5))
    data: orm.Mapped[bytes | None]
    day: orm.Mapped[dt.date | None]
    at: orm.Mapped[dt.datetime | None] = orm.mapped_column(sa.DateTime(timezone=True))
    clock: orm.Mapped[dt.time | None]
    span: orm.Mapped[dt.timedelta | None]
    key: orm.Mapped[uuid.UUID | None]
    doc: orm.Mapped[Any] = orm.mapped_column(pg.JSONB, nullable=True)
    text_doc: orm.Mapped[Any] = orm.mapped_column(sa.JSON, nullable=True)
    numbers: orm.Mapped[Any] = orm.mapped_column(pg.ARRAY(sa.Integer), nullable=True)
    words: orm.Mapped[Any] = orm.mapped_column(pg.ARRAY(sa.Text), nullable=True)
    reach: orm.Mapped[Any] = orm.mapped_column(pg.INT4RANGE, nullable=True)
    days: orm.Mapped[Any] = orm.mapped_column(pg.DATERANGE, nullable=True)
    level: orm.Mapped[Level | None] = orm.mapped_column(sa.Enum(Level, schema="differential"))
    address: orm.Mapped[Any] = orm.mapped_column(pg.INET, nullable=True)


T: Final[Any] = Kept.__table__

ROWS: Final[list[dict[str, Any]]] = [
    {
        "small": 3,
        "big": 1 << 40,
        "ratio": 2.5,
        "real": 0.1,
        "price": decimal.Decimal("33.3333"),
        "rate": 1 / 3,
        "flag": True,
        "name": "it's",
        "short": "abc",
        "data": b"\x00\\'",
        "day": dt.date(2026, 11, 28),
        "at": dt.datetime(2026, 11, 28, 10, tzinfo=dt.UTC),
        "clock": dt.time(10, 30),
        "span": dt.timedelta(hours=-3),
        "key": uuid.UUID(int=7),
        "doc": {"a": [1, None]},
        "text_doc": [1.5],
        "numbers": [1, 2],
        "words": ["a", "b'"],
        "reach": pg.Range(1, 9),
        "days": pg.Range(dt.date(2026, 1, 1), None),
        "level": Level.HIGH,
        "address": "10.0.0.1",
    },
    dict.fromkeys(("small", "big", "ratio", "real", "price", "rate", "flag", "name", "short", "data", "day", "at", "clock")),
    {
        "ratio": float("nan"),
        "price": decimal.Decimal("0.00005"),
        "rate": 3,
        "small": 0,
        "flag": False,
        "numbers": [],
        "words": [],
    },
    {"ratio": 5, "price": 7, "real": 3, "rate": decimal.Decimal("2.5"), "name": "", "doc": 5, "text_doc": "x"},
]
NAMES: Final = [column.name for column in T.columns if column.name != "id"]

STATEMENTS: Final[dict[str, Any]] = {
    "division of literals": select((literal(2.5) / 3).label("x"), literal(10) / 4, literal(decimal.Decimal(100)) / 3),
    "literals": select(
        literal(1).label("a"), literal(2.5).label("b"), literal("c").label("c"), literal(True).label("d"), literal(None)
    ),
    "literal without a label": select(literal(1)),
    "text division": sa.text("select :total / :n as x").bindparams(total=decimal.Decimal(100), n=3),
    "text float": sa.text("select :x as x, pg_typeof(:x)::text as t").bindparams(x=2.5),
    "text list": sa.text("select n from differential.numbers where n = any(:ids) order by n").bindparams(ids=[1, 3]),
    "text expanding": sa.text("select n from differential.numbers where n in :ids order by n").bindparams(
        sa.bindparam("ids", [1, 3], expanding=True)
    ),
    "text typed": sa.text("select :x / 2 as x").bindparams(sa.bindparam("x", 5, sa.Numeric)),
    "text order": sa.text("select n from differential.numbers order by :n, n desc").bindparams(n=1),
    "round": select(func.round(literal(2.345, sa.Numeric), 2), func.round(2.5), func.abs(-3)),
    "sum": select((func.sum(T.c.ratio) * 2.5 / 30).label("x")).where(T.c.ratio < 100),
    "arithmetic": select(
        T.c.small / 2, T.c.small // 2, T.c.small % 2, T.c.price * 2, T.c.price / 3, T.c.ratio + 1, -T.c.big
    ).order_by(T.c.id),
    "compare": select(T.c.price).where(T.c.price == 7, T.c.ratio == 5, T.c.real == 3),
    "in": select(T.c.small).where(T.c.small.in_([0, 3])).order_by(T.c.small),
    "any": select(T.c.small).where(sa.any_(T.c.numbers) == 2),
    "contains": select(T.c.small).where(T.c.words.contains(["a"]), T.c.doc.contains({"a": [1]}), T.c.reach.contains(3)),
    "json": select(T.c.doc["a"][0].as_integer(), T.c.doc["a"], T.c.text_doc[0]).where(T.c.small == 3),
    "case": select(case((T.c.small > 1, 2.5), else_=0)).order_by(T.c.id),
    "coalesce": select(func.coalesce(T.c.price, 0), func.coalesce(T.c.name, "none")).order_by(T.c.id),
    "cast": select(cast(2.5, sa.Integer), cast("7", sa.Integer), cast(7, sa.String), cast("2026-11-28", sa.Date)),
    "type_coerce": select(sa.type_coerce(5, sa.Float), sa.type_coerce("5", sa.Integer)),
    "concat": select(T.c.name + "x", literal("a") + "b").order_by(T.c.id),
    "like": select(T.c.name).where(T.c.name.ilike("%T%"), T.c.name.contains("'", autoescape=True)),
    "interval": select(T.c.at + dt.timedelta(days=1), T.c.day + 1, func.date_trunc("day", T.c.at)).where(T.c.small == 3),
    "slice": select(T.c.id > 0).order_by(T.c.id).limit(2).offset(1),
    "fetch": select(T.c.id > 0).order_by(T.c.id).fetch(1, with_ties=True),
    "array index": select(T.c.numbers[1], T.c.numbers[1:2]).where(T.c.small == 3),
    "values": select(sa.values(sa.column("a", sa.Integer), sa.column("b", sa.Float), name="v").data([(1, 2.5), (2, None)])),
    "union": sa.union_all(select(literal(1)), select(literal(2.5))),
    "group by literal": select(func.count()).select_from(T).group_by(literal(1)),
    "enum": select(T.c.level).where(T.c.level == Level.HIGH),
    "refused": select(literal(1) / 0),
    "refused type": sa.text("select 'a'::int + :n").bindparams(n=1),
}


def statements(conn: sa.Connection) -> dict[str, Any]:
    """What each statement gives."""
    conn.execute(T.delete())
    for row in ROWS:
        conn.execute(T.insert().values(**row))
    conn.commit()
    found: dict[str, Any] = {}
    for name, statement in STATEMENTS.items():
        try:
            result = conn.execute(statement)
            found[name] = (list(result.keys()), [shown(tuple(row)) for row in result])
        except sa.exc.DBAPIError as exc:
            found[name] = (type(exc).__name__, of_error(exc.orig or exc)["error"], getattr(exc.orig, "sqlstate", None))
        conn.rollback()
    return found


def stored(conn: sa.Connection) -> list[Any]:
    """What each way of writing stores, as the server's own text and as it is loaded."""
    found: list[Any] = []

    def note() -> None:
        as_text = sa.text(f"select {', '.join(f'{name}::text' for name in NAMES)} from differential.sa_kept order by id")
        found.append(conn.execute(as_text).all())
        found.append([shown(tuple(row)) for row in conn.execute(select(*(T.c[name] for name in NAMES)).order_by(T.c.id))])
        conn.execute(T.delete())
        conn.commit()

    conn.execute(T.delete())
    whole = [{name: row.get(name) for name in NAMES} for row in ROWS]
    found.extend([len(conn.execute(T.insert().returning(T.c.id), row).all()) for row in whole])
    note()
    conn.execute(T.insert(), whole)
    note()
    result = conn.execute(T.insert().returning(T.c.price, T.c.ratio, sort_by_parameter_order=True), whole)
    found.append([shown(tuple(row)) for row in result])
    note()
    conn.execute(T.insert().values(whole))
    conn.execute(T.update().where(T.c.small == 3).values(price=T.c.price / 3, ratio=T.c.ratio * 2, big=T.c.big + 1, rate=2.5))
    conn.execute(
        T.update().where(T.c.small == sa.bindparam("b")), [{"b": 0, "price": decimal.Decimal("1.5")}, {"b": 3, "price": 2}]
    )
    note()
    insert = pg.insert(T).values(id=1, small=1, price=5)
    conn.execute(insert)
    conn.execute(insert.on_conflict_do_update(index_elements=["id"], set_={"price": insert.excluded.price / 3, "ratio": 2.5}))
    note()
    with orm.Session(conn) as session:
        session.add_all([Kept(**row) for row in ROWS])
        session.flush()
        session.execute(sa.update(Kept).where(Kept.small == 3).values(ratio=Kept.ratio / 3))
        kept = session.scalars(select(Kept).where(Kept.small == 3)).one()
        kept.price = decimal.Decimal(100) / 3
        session.flush()
        session.refresh(kept)
        found.append(shown((kept.price, kept.ratio)))
    note()
    return found


@pytest.fixture(scope="module")
def tables(ps_lab: Lab, registered: Registered) -> None:
    """The table; the schema's fixture drops it."""
    engine = ps_sqlalchemy.create_engine(ps_lab.url)
    Base.metadata.create_all(engine.direct)
    engine.dispose()


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize("run", [statements, stored])
def test_sync(run: Callable[[sa.Connection], Any], ps_lab: Lab, totals: Totals) -> None:
    """Sync."""
    found = []
    for engine in (stock_engine(ps_lab), ps_sqlalchemy.create_engine(ps_lab.url, bouncer="write-pool")):
        with engine.connect() as conn:
            found.append(run(conn))
        engine.dispose()
    compare(found)
    totals.surface["SQLAlchemy"] += len(found[0])


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize("run", [statements, stored])
def test_asyncio(run: Callable[[sa.Connection], Any], ps_lab: Lab, totals: Totals) -> None:
    """Asyncio."""

    async def both() -> list[Any]:
        found = []
        for engine in (
            stock_engine(ps_lab, "psycopg_async"),
            ps_sqlalchemy.create_async_engine(ps_lab.url, bouncer="write-pool"),
        ):
            async with engine.connect() as conn:
                found.append(await conn.run_sync(run))
            await engine.dispose()
        return found

    found = asyncio.run(both())
    compare(found)
    totals.surface["SQLAlchemy, asyncio"] += len(found[0])


def compare(found: list[Any]) -> None:
    stock, ours = found
    if isinstance(stock, dict):
        assert {name: (stock[name], ours[name]) for name in stock if stock[name] != ours[name]} == {}
    else:
        assert [(mine, theirs) for theirs, mine in zip(stock, ours, strict=True) if theirs != mine] == []


def test_binding_is_a_setting(ps_lab: Lab) -> None:
    """`binding="server"`, as a keyword and in the URL, sync and asyncio: parameters travel as such, on every side."""
    forms: tuple[tuple[dict[str, Any], str], ...] = (
        ({"binding": "server"}, ps_lab.url),
        ({}, ps_lab.url + ("&" if "?" in ps_lab.url else "?") + "ps_binding=server"),
    )
    for options, url in forms:
        engine = ps_sqlalchemy.create_engine(url, replica_bouncer="read-pool", **options)
        assert engine.replica is not None
        for side in (engine, engine.replica, engine.direct):
            with side.connect() as conn:
                assert conn.scalar(sa.text("select :n"), {"n": 1}) == 1
                assert list(conn.execute(sa.text("select :n"), {"n": 1}).keys()) == ["?column?"]
            side.dispose()

    async def asynchronous() -> list[str]:
        engine = ps_sqlalchemy.create_async_engine(ps_lab.url, binding="server")
        async with engine.connect() as conn:
            keys = list((await conn.execute(sa.text("select :n"), {"n": 1})).keys())
        await engine.dispose()
        return keys

    assert asyncio.run(asynchronous()) == ["?column?"]
    makes: tuple[Callable[..., object], ...] = (ps_sqlalchemy.create_engine, ps_core.connect)
    for make in makes:
        with pytest.raises(ps_core.ConfigurationError, match="binding: write 'client' or 'server', not 'both'"):
            make(ps_lab.url, binding="both")
    with pytest.raises(ps_core.ConfigurationError, match="binding of primary: write 'client' or 'server', not 'both'"):
        replace(ps_lab.topology.primary, binding="both")  # type: ignore[arg-type]
    assert ps_django.databases(ps_lab.url, binding="server")["direct"]["OPTIONS"]["server_side_binding"] is True


@pytest.mark.parametrize(("binding", "transaction", "autocommit"), [("client", 2, 1), ("server", 3, 3)])
def test_round_trips_of_binding(ps_lab: Lab, binding: str, transaction: int, autocommit: int) -> None:
    """One read in a transaction, and one in autocommit: what docs/connection.md says of its price."""
    engine = ps_sqlalchemy.create_engine(ps_lab.url, bouncer="write-pool", binding=binding)
    query = sa.text("select :n")
    for options, expected in (({}, transaction), ({"isolation_level": "AUTOCOMMIT"}, autocommit)):
        with engine.connect().execution_options(**options) as conn:
            conn.execute(query, {"n": 1})
            conn.commit()
            with ps_lab.round_trips() as counter:
                conn.execute(query, {"n": 1})
                conn.commit()
            assert counter.count == expected
    engine.dispose()
