"""A row that was read from a replica never overwrites a newer one, wherever its instance went, whatever was written how.

While this file runs, the replicas replay nothing: each test takes a row of its own that they have, and changes it on the primary.
"""

import asyncio
import gc
import itertools
import math
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm, select
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.ext.mutable import MutableComposite, MutableDict, MutableList
from sqlalchemy.orm.attributes import flag_modified
from sqlalchemy.orm.exc import StaleDataError

import ps_sqlalchemy
from ps_core import use_token
from ps_lab import Lab
from ps_sqlalchemy import AsyncSession, Engine, Session, using_primary

ROWS = 1000

Json = sa.JSON()


class Array:
    """A type like numpy's: `==` gives an array, which has no truth."""

    def __init__(self, values: list[float]) -> None:
        self.values = values

    def __eq__(self, other: object) -> "Array":  # type: ignore[override]
        others = other.values if isinstance(other, Array) else [other]
        return Array([float(one == two) for one, two in zip(self.values, others, strict=False)])

    def __bool__(self) -> bool:
        raise ValueError("the truth value of an array is ambiguous")

    __hash__ = None  # type: ignore[assignment]


class Opaque:
    """An object that equals itself alone."""

    def __init__(self, value: Any) -> None:
        self.value = value


class ArrayType(sa.types.TypeDecorator[Any]):
    """A column of `Array`."""

    impl = ARRAY(sa.Float)
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return None if value is None else value.values

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        return None if value is None else Array(value)


class OpaqueType(sa.types.TypeDecorator[Any]):
    """A column of `Opaque`."""

    impl = JSONB
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return None if value is None else value.value

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        return None if value is None else Opaque(value)


@dataclass
class Point(MutableComposite):
    """Two columns."""

    x: int
    y: int

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        self.changed()

    def __getstate__(self) -> tuple[int, int]:
        return self.x, self.y

    def __setstate__(self, state: tuple[int, int]) -> None:
        self.x, self.y = state


class Base(orm.DeclarativeBase):
    """The base of this file's classes."""


class Row(Base):
    """A row with a column of each kind."""

    __tablename__ = "stale_row"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    kind: orm.Mapped[str] = orm.mapped_column(server_default="row")
    note: orm.Mapped[str] = orm.mapped_column(server_default="old")
    other: orm.Mapped[str] = orm.mapped_column(server_default="old")
    late: orm.Mapped[str] = orm.mapped_column(server_default="old", deferred=True)
    ratio: orm.Mapped[float] = orm.mapped_column(sa.Float, server_default="NaN")
    amount: orm.Mapped[Decimal] = orm.mapped_column(sa.Numeric, server_default="NaN")
    ratios: orm.Mapped[list[float]] = orm.mapped_column(ARRAY(sa.Float), server_default="{1,NaN}")
    vector: orm.Mapped[Any] = orm.mapped_column(ArrayType, nullable=True, server_default="{1,2}")
    opaque: orm.Mapped[Any] = orm.mapped_column(OpaqueType, server_default='{"a": 1}')
    data: orm.Mapped[Any] = orm.mapped_column(MutableDict.as_mutable(JSONB()), server_default='{"a": 1, "in": {"b": [1]}}')
    tags: orm.Mapped[Any] = orm.mapped_column(MutableList.as_mutable(ARRAY(sa.Text)), server_default="{old}")
    plain: orm.Mapped[Any] = orm.mapped_column(Json, server_default='{"a": 1}')
    none: orm.Mapped[Any] = orm.mapped_column(Json, nullable=True)
    x: orm.Mapped[int] = orm.mapped_column(server_default="1")
    y: orm.Mapped[int] = orm.mapped_column(server_default="1")
    parent_id: orm.Mapped[int | None] = orm.mapped_column(sa.ForeignKey("stale_row.id"))
    point: orm.Mapped[Point] = orm.composite(Point, "x", "y")
    children: orm.Mapped[list["Row"]] = orm.relationship()
    friends: orm.Mapped[list["Row"]] = orm.relationship(
        secondary=sa.Table(
            "stale_friend",
            Base.metadata,
            sa.Column("one", sa.ForeignKey("stale_row.id"), primary_key=True),
            sa.Column("two", sa.ForeignKey("stale_row.id"), primary_key=True),
        ),
        primaryjoin="Row.id == stale_friend.c.one",
        secondaryjoin="Row.id == stale_friend.c.two",
    )
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "row"}  # noqa: RUF012 - SQLAlchemy's form


class Sub(Row):
    """A row in two tables."""

    __tablename__ = "stale_sub"
    id: orm.Mapped[int] = orm.mapped_column(sa.ForeignKey("stale_row.id"), primary_key=True)
    extra: orm.Mapped[str] = orm.mapped_column(server_default="old")
    __mapper_args__ = {"polymorphic_identity": "sub"}  # noqa: RUF012


class Versioned(Base):
    """A row with a version of its own."""

    __tablename__ = "stale_versioned"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    note: orm.Mapped[str] = orm.mapped_column(server_default="old")
    other: orm.Mapped[str] = orm.mapped_column(server_default="old")
    version: orm.Mapped[int] = orm.mapped_column(server_default="1")
    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012


class Outer(Base):
    """Mapped to an outer join, one side of which PostgreSQL cannot lock."""

    __table__ = sa.outerjoin(Row.__table__, Sub.__table__)
    id = orm.column_property(Row.__table__.c.id, Sub.__table__.c.id)


@pytest.fixture(scope="module")
def numbers(ps_lab: Lab, engine: Engine) -> Iterator[Iterator[int]]:
    """Return numbers of rows that all have, of each table, while replicas replay nothing more."""
    Base.metadata.create_all(engine.direct)
    ps_lab.sql(
        "INSERT INTO stale_row (id, kind, parent_id) SELECT n, CASE WHEN n % 2 = 0 THEN 'sub' ELSE 'row' END,"
        f" CASE WHEN n % 10 = 4 THEN n - 1 END FROM generate_series(1, {ROWS}) n;"
        f"INSERT INTO stale_sub SELECT 2 * n FROM generate_series(1, {ROWS // 2}) n;"
        f"INSERT INTO stale_versioned SELECT generate_series(1, {ROWS})"
    )
    ps_lab.wait_replicas_caught_up()
    ps_lab.set_replay_delay(3600)
    try:
        yield itertools.count(1, 10)
    finally:
        ps_lab.set_replay_delay(0)
        ps_lab.wait_replicas_caught_up()
        Base.metadata.drop_all(engine.direct)


@pytest.fixture(autouse=True)
def settled(numbers: Iterator[int]) -> Iterator[None]:
    """Replicas stay behind, and nobody has seen more."""
    with use_token(None):
        yield


@pytest.fixture
def number(numbers: Iterator[int]) -> int:
    """A row of the test's own."""
    return next(numbers)


@contextmanager
def statements(engine: Engine) -> Iterator[list[str]]:
    """The statements that are sent, by their first word."""
    heard: list[str] = []
    listener = lambda *args: heard.append(args[2].split()[0])  # noqa: E731 - to be removed again
    sa.event.listen(engine, "before_cursor_execute", listener)
    try:
        yield heard
    finally:
        sa.event.remove(engine, "before_cursor_execute", listener)


def change(ps_lab: Lab, number: int, what: str = "note = 'newer'", table: str = "stale_row") -> None:
    """Change a row on the primary, where replicas do not see it."""
    ps_lab.sql(f"UPDATE {table} SET {what} WHERE id = {number}")


def stored(ps_lab: Lab, number: int, column: str = "note", table: str = "stale_row") -> Any:
    """Return what the primary has."""
    return ps_lab.sql(f"SELECT {column} FROM {table} WHERE id = {number}")[0][0]


def from_replica(session: Session, number: int, *options: Any, model: Any = Row) -> Any:
    """Return a row that a replica gave."""
    with use_token(None):
        assert session.scalar(select(sa.func.pg_is_in_recovery()))
        return session.scalars(select(model).where(model.id == number).options(*options)).one()


# --- values that are changed in place ---


def in_dict(row: Row) -> None:
    row.data["mine"] = 1


def in_nested(row: Row) -> None:
    row.data["in"]["b"].append("mine")
    flag_modified(row, "data")


def in_list(row: Row) -> None:
    row.tags.append("mine")


def in_plain(row: Row) -> None:
    row.plain["mine"] = 1
    flag_modified(row, "plain")


def in_none(row: Row) -> None:
    row.none = {"mine": 1}
    flag_modified(row, "none")


def in_string(row: Row) -> None:
    row.note = "mine"
    flag_modified(row, "note")


def in_composite(row: Row) -> None:
    row.point.y = 7


def in_array(row: Row) -> None:
    row.vector.values.append(7.0)
    flag_modified(row, "vector")


def replaced(row: Row) -> None:
    row.data["mine"] = 1
    row.data = {"mine": 2}


IN_PLACE: dict[Callable[[Row], None], tuple[str, str]] = {
    in_dict: ("data", """'{"newer": 1}'"""),
    in_nested: ("data", """'{"a": 1, "in": {"b": [2]}}'"""),
    replaced: ("data", """'{"a": 2, "in": {"b": [1]}}'"""),
    in_list: ("tags", "'{newer}'"),
    in_plain: ("plain", """'{"newer": 1}'"""),
    in_none: ("none", """'{"newer": 1}'"""),
    in_string: ("note", "'newer'"),
    in_composite: ("y", "5"),
    in_array: ("vector", "'{9}'"),
}


@pytest.mark.parametrize("way", IN_PLACE, ids=lambda way: way.__name__)
def test_changed_in_place(ps_lab: Lab, engine: Engine, number: int, way: Callable[[Row], None]) -> None:
    """What was read is compared, not what it was changed to: a newer value is refused, the same one written over."""
    column, value = IN_PLACE[way]
    with Session(engine) as session:
        row = from_replica(session, number)
        way(row)
        session.commit()
    written = stored(ps_lab, number, f'"{column}"')
    change(ps_lab, number + 1, f'"{column}" = {value}')
    newer = stored(ps_lab, number + 1, f'"{column}"')
    assert written != newer
    with Session(engine) as session:
        row = from_replica(session, number + 1)
        way(row)
        with pytest.raises(StaleDataError, match=f"'{column}' was changed on the primary"):
            session.commit()
    assert stored(ps_lab, number + 1, f'"{column}"') == newer


def test_changed_in_place_unnoticed(ps_lab: Lab, engine: Engine, number: int) -> None:
    """What SQLAlchemy does not see is neither written nor compared: the write of another column goes through."""
    with Session(engine) as session:
        row = from_replica(session, number)
        row.plain["mine"] = 1
        row.note = "mine"
        session.commit()
    assert stored(ps_lab, number) == "mine"
    assert stored(ps_lab, number, "plain") == {"a": 1}


# --- values that do not equal themselves ---


@pytest.mark.parametrize(
    ("column", "newer"),
    [
        ("ratio", "1"),
        ("amount", "1"),
        ("ratios", "'{2,NaN}'"),
        ("vector", "'{1,3}'"),
        ("vector", "'{1,2,3}'"),
        ("vector", "NULL"),
        ("opaque", """'{"a": 2}'"""),
    ],
)
def test_values_without_equality(ps_lab: Lab, engine: Engine, number: int, column: str, newer: str) -> None:
    """NaN, arrays and objects: what is the same is not stale, what differs is."""
    with Session(engine) as session:
        row = from_replica(session, number)
        assert math.isnan(row.ratio)
        row.note = "mine"
        session.commit()
    assert stored(ps_lab, number) == "mine"
    with Session(engine) as session:
        from_replica(session, number + 1).note = "mine"
        change(ps_lab, number + 1, f"{column} = {newer}")
        with pytest.raises(StaleDataError, match=f"'{column}' was changed"):
            session.commit()
    assert stored(ps_lab, number + 1) == "old"


# --- instances that go elsewhere ---


def pickled(row: Any) -> Any:
    return pickle.loads(pickle.dumps(row))


def expunged(first: Session, second: Session, row: Any) -> Any:
    first.expunge(row)
    second.add(row)
    return row


def closed(first: Session, second: Session, row: Any) -> Any:
    first.close()
    second.add(row)
    return row


def merged(first: Session, second: Session, row: Any) -> Any:
    first.close()
    row.note = "mine"
    with using_primary():
        return second.merge(row)


def merged_from_replica(first: Session, second: Session, row: Any) -> Any:
    row.note = "mine"
    return second.merge(row)


def merged_unread(first: Session, second: Session, row: Any) -> Any:
    return second.merge(row, load=False)


def merged_as_child(first: Session, second: Session, row: Any) -> Any:
    row.note = "mine"
    with using_primary():
        return second.merge(Row(id=ROWS + row.id, children=[row])).children[0]


def pickled_and_added(first: Session, second: Session, row: Any) -> Any:
    row = pickled(row)
    second.add(row)
    return row


def changed_and_pickled(first: Session, second: Session, row: Any) -> Any:
    row.note = "mine"
    row.data["mine"] = 1
    return pickled_and_added(first, second, row)


def pickled_twice_and_merged(first: Session, second: Session, row: Any) -> Any:
    return merged(first, second, pickled(pickled(row)))


def transient_and_merged(first: Session, second: Session, row: Any) -> Any:
    orm.make_transient(row)
    return merged(first, second, row)


def transient_and_detached(first: Session, second: Session, row: Any) -> Any:
    orm.make_transient(row)
    orm.make_transient_to_detached(row)
    second.add(row)
    return row


WAYS = (
    expunged,
    closed,
    merged,
    merged_from_replica,
    merged_unread,
    merged_as_child,
    pickled_and_added,
    changed_and_pickled,
    pickled_twice_and_merged,
    transient_and_merged,
    transient_and_detached,
)


@pytest.mark.parametrize("newer", [True, False], ids=["newer", "same"])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_instances_elsewhere(ps_lab: Lab, engine: Engine, number: int, way: Callable[..., Any], *, newer: bool) -> None:
    """An instance takes what a replica gave to every session that it comes to."""
    if newer:
        change(ps_lab, number, "other = 'newer'")
    with Session(engine) as first, Session(engine) as second:
        row = way(first, second, from_replica(first, number))
        row.note = "mine"
        if newer:
            with pytest.raises(StaleDataError, match="'other' was changed on the primary"):
                second.commit()
        else:
            second.commit()
    assert (stored(ps_lab, number), stored(ps_lab, number, "other")) == (("old", "newer") if newer else ("mine", "old"))


def test_merged_onto_own_write(engine: Engine, number: int) -> None:
    """Nor does it overwrite what the session that it is merged into has written meanwhile."""
    with Session(engine) as first, Session(engine) as second:
        row = from_replica(first, number)
        with using_primary():
            second.get_one(Row, number).other = "mine"
            row.note = "mine"
            second.merge(row)
        assert_refused(second)


def test_session_that_is_gone(ps_lab: Lab, engine: Engine, number: int) -> None:
    """The session that read need not be closed."""
    row = from_replica(Session(engine), number)
    gc.collect()
    change(ps_lab, number)
    with Session(engine) as session:
        session.add(row)
        row.note = "mine"
        with pytest.raises(StaleDataError):
            session.commit()


@pytest.mark.parametrize("how", ["read_only", "engine.replica", "connection", "stock", "URL", "URL readonly"])
def test_other_sessions_that_read(ps_lab: Lab, engine: Engine, number: int, how: str) -> None:
    """It does not matter which of our sessions read it; SQLAlchemy's own ones do not tell."""
    replica = engine.replica
    assert replica is not None
    url = f"{ps_lab.url}&ps_bouncer=write-pool&ps_replica_bouncer=read-pool".replace("postgresql:", "postgresql+ps:")
    by_url = sa.create_engine(url)
    with replica.connect() as connection:
        makers: dict[str, Callable[[], Any]] = {
            "read_only": lambda: Session(engine, read_only=True),
            "engine.replica": lambda: Session(replica),
            "connection": lambda: Session(connection),
            "stock": lambda: orm.Session(replica),
            "URL": lambda: Session(by_url),
            "URL readonly": lambda: Session(by_url.execution_options(postgresql_readonly=True)),
        }
        with makers[how]() as reading:
            row = from_replica(reading, number)
            reading.expunge(row)
    by_url.dispose()
    change(ps_lab, number)
    with Session(engine) as session:
        session.add(row)
        row.note = "mine"
        if how == "stock":
            session.commit()
        else:
            with pytest.raises(StaleDataError):
                session.commit()


# --- ways of reading ---


def by_statement(session: Session, number: int) -> Any:
    return session.scalars(
        select(Row).from_statement(sa.text("SELECT * FROM stale_row WHERE id = :n").columns(*Row.__table__.c)), {"n": number}
    ).one()


def by_alias(session: Session, number: int) -> Any:
    other = orm.aliased(Row)
    return session.execute(select(other, sa.literal(1)).where(other.id == number)).one()[0]


def by_hook(session: Session, number: int) -> Any:
    sa.event.listen(session, "do_orm_execute", lambda state: state.invoke_statement())
    return session.get_one(Row, number)


def by_frozen_result(session: Session, number: int) -> Any:
    frozen = session.execute(select(Row).where(Row.id == number)).freeze()
    session.close()
    merge: Any = orm.loading.merge_frozen_result
    return merge(session, select(Row), frozen, load=False)().scalar_one()


def by_late_fetch(session: Session, number: int) -> Any:
    result = session.scalars(select(Row).where(Row.id == number))
    with using_primary():
        session.scalar(select(1))
    return result.one()


def by_refresh(session: Session, number: int) -> Any:
    with using_primary():
        row = session.get_one(Row, number)
    with use_token(None):  # else the replica would have to have what the primary had
        session.refresh(row)
    return row


def by_expired_attribute(session: Session, number: int) -> Any:
    with using_primary():
        row = session.get_one(Row, number)
    session.expire(row)
    with use_token(None):
        assert row.other == "old"
    return row


READS: dict[str, Callable[[Session, int], Any]] = {
    "get": lambda session, number: session.get_one(Row, number),
    "scalar": lambda session, number: session.scalar(select(Row).where(Row.id == number)),
    "query": lambda session, number: session.query(Row).filter_by(id=number).one(),
    "yield_per": lambda session, number: next(iter(session.scalars(select(Row).where(Row.id == number)).yield_per(1))),
    "stream": lambda session, number: session.scalars(
        select(Row).where(Row.id == number), execution_options={"stream_results": True}
    ).one(),
    "lazy": lambda session, number: session.get_one(Row, number - 1).children[0],
    "joined": lambda session, number: (
        session.scalars(select(Row).where(Row.id == number - 1).options(orm.joinedload(Row.children))).unique().one().children[0]
    ),
    "selectin": lambda session, number: (
        session.scalars(select(Row).where(Row.id == number - 1).options(orm.selectinload(Row.children))).one().children[0]
    ),
    "subquery": lambda session, number: (
        session.scalars(select(Row).where(Row.id == number - 1).options(orm.subqueryload(Row.children))).one().children[0]
    ),
    "polymorphic": lambda session, number: session.scalars(select(orm.with_polymorphic(Row, "*")).where(Row.id == number)).one(),
    "statement": by_statement,
    "alias": by_alias,
    "hook": by_hook,
    "frozen": by_frozen_result,
    "late": by_late_fetch,
    "refresh": by_refresh,
    "expired": by_expired_attribute,
}


@pytest.mark.parametrize("way", READS)
def test_ways_of_reading(ps_lab: Lab, engine: Engine, number: int, way: str) -> None:
    """However a row was read from a replica, it is compared."""
    number += 3  # which has a parent
    with Session(engine) as session:
        row = READS[way](session, number)
        change(ps_lab, number, "other = 'newer'")
        row.note = "mine"
        assert_refused(session)


# --- which writes compare ---


def assert_refused(session: Session, column: str = "other") -> None:
    """The flush raises."""
    with pytest.raises(StaleDataError, match=f"'{column}' was changed on the primary"):
        session.flush()


def test_bulk_save_objects(ps_lab: Lab, engine: Engine, number: int) -> None:
    """`bulk_save_objects` compares, too."""
    change(ps_lab, number + 1, "other = 'newer'")
    with Session(engine) as session:
        same, stale = from_replica(session, number), from_replica(session, number + 1)
        session.expunge_all()
        same.note = stale.note = "mine"
        session.bulk_save_objects([same, Versioned(id=ROWS + number)])
        session.commit()
        with pytest.raises(StaleDataError):
            session.bulk_save_objects([stale])
    assert (stored(ps_lab, number), stored(ps_lab, number + 1)) == ("mine", "old")


@pytest.mark.parametrize("way", ["append", "remove", "delete"])
def test_foreign_keys_of_children(ps_lab: Lab, engine: Engine, number: int, way: str) -> None:
    """A child whose foreign key its parent's collection changes is compared."""
    parents, childs = (number, number + 1) if way == "append" else (number + 2, number + 3)
    change(ps_lab, childs, "other = 'newer'")
    with Session(engine) as session:
        child = from_replica(session, childs)
        with using_primary():
            parent = session.get_one(Row, parents)
            assert parent.children == ([] if way == "append" else [child])
        if way == "append":
            parent.children.append(child)
        elif way == "remove":
            parent.children.remove(child)
        else:
            session.delete(parent)
        assert_refused(session)


def test_collections_of_a_stale_parent(ps_lab: Lab, engine: Engine, number: int) -> None:
    """A row in an association table overwrites nothing."""
    change(ps_lab, number)
    with Session(engine) as session:
        row = from_replica(session, number)
        with statements(engine) as heard:
            row.friends.append(session.get_one(Row, number + 1))
            session.commit()
    assert heard[-1] == "INSERT"
    assert stored(ps_lab, number) == "newer"


@pytest.mark.parametrize("dirty", ["collection", "same value"])
def test_listeners_that_write(ps_lab: Lab, engine: Engine, number: int, dirty: str) -> None:
    """A `before_update` listener may write a row that would not be written: it is compared."""

    def touch(mapper: Any, connection: Any, row: Row) -> None:
        row.x += 1

    change(ps_lab, number, "other = 'newer'")
    sa.event.listen(Row, "before_update", touch)
    try:
        with Session(engine) as session:
            row = from_replica(session, number)
            if dirty == "collection":
                row.friends.append(session.get_one(Row, number + 2))
            else:
                row.note += ""
            assert_refused(session)
    finally:
        sa.event.remove(Row, "before_update", touch)


def test_same_values(ps_lab: Lab, engine: Engine, number: int) -> None:
    """Setting what is there already writes nothing, and compares nothing."""
    change(ps_lab, number)
    with Session(engine) as session, statements(engine) as heard:
        row = from_replica(session, number)
        heard.clear()
        row.note += ""
        session.commit()
    assert heard == []


def test_row_that_is_replaced(ps_lab: Lab, engine: Engine, number: int) -> None:
    """Where a row is deleted and added again, which SQLAlchemy does with an UPDATE, it is compared."""
    change(ps_lab, number, "other = 'newer'", "stale_versioned")
    change(ps_lab, number, "other = 'newer'")
    with Session(engine) as session:
        session.delete(from_replica(session, number))
        session.add(Row(id=number, note="mine"))
        assert_refused(session)


@pytest.mark.parametrize(("table", "column"), [("stale_row", "other"), ("stale_sub", "extra")])
@pytest.mark.parametrize("written", ["note", "extra"])
def test_inheritance(ps_lab: Lab, engine: Engine, number: int, table: str, column: str, written: str) -> None:
    """The columns of all tables of a mapper are compared, also those that were read later."""
    number += 1
    with Session(engine) as session:
        row = from_replica(session, number)
        assert type(row) is Sub
        assert row.extra == "old"  # a statement of its own
        setattr(row, written, "mine")
        change(ps_lab, number, f"{column} = 'newer'", table)
        assert_refused(session, column)


def test_outer_join(ps_lab: Lab, engine: Engine, number: int) -> None:
    """A class that is mapped to an outer join can be written."""
    with Session(engine) as session:
        row = from_replica(session, number + 1, model=Outer)
        row.note = "mine"
        session.commit()
        from_replica(Session(engine), number + 1, model=Outer)
    assert stored(ps_lab, number + 1) == "mine"
    with Session(engine) as session:
        row = from_replica(session, number + 1, model=Outer)
        row.other = "mine"
        assert_refused(session, "note")


def test_versions_of_their_own(ps_lab: Lab, engine: Engine, number: int) -> None:
    """A version that was read with the rest is enough; one that was not, or by itself later, is not."""
    change(ps_lab, number, "other = 'newer', version = 2", "stale_versioned")
    with Session(engine) as session:
        from_replica(session, number, model=Versioned).note = "mine"
        with statements(engine) as heard, pytest.raises(StaleDataError, match="expected to update 1 row"):
            session.flush()
        assert heard == ["UPDATE"]
    with Session(engine) as session:
        from_replica(session, number, orm.defer(Versioned.version), model=Versioned).note = "mine"
        assert_refused(session)
    with Session(engine) as session:
        row = from_replica(session, number, model=Versioned)
        with using_primary():
            session.refresh(row, ["version"])
        row.note = "mine"
        assert_refused(session)


# --- what is compared ---


def test_deferred_and_expired_attributes(ps_lab: Lab, engine: Engine, number: int) -> None:
    """What a replica did not give, or what was expired since, is not compared; what it gave later is."""
    change(ps_lab, number, "other = 'newer', late = 'newer'")
    with Session(engine) as session:
        row = from_replica(session, number, orm.defer(Row.other))
        session.expire(row, ["data"])
        row.note = row.late = "mine"
        session.rollback()
        row = from_replica(session, number, orm.defer(Row.other))
        assert row.late == "old"
        row.note = "mine"
        assert_refused(session, "late")
    with Session(engine) as session:
        row = from_replica(session, number)
        session.expire(row, ["other"])
        row.other = "mine"
        session.commit()
    assert stored(ps_lab, number, "other") == "mine"


def test_attributes_that_the_primary_gave(ps_lab: Lab, engine: Engine, number: int) -> None:
    """A refresh on the primary of what was stale makes it good; of something else, it does not."""
    change(ps_lab, number, "other = 'newer'")
    with Session(engine) as session:
        row = from_replica(session, number)
        with using_primary():
            session.refresh(row, ["x"])
        row.note = "mine"
        assert_refused(session)
    with Session(engine) as session:
        row = from_replica(session, number)
        with using_primary():
            session.refresh(row, ["other"])
        row.note = "mine"
        session.commit()
    with Session(engine) as session:  # and an attribute that a replica gives to a row that the primary gave
        with using_primary():
            row = session.scalars(select(Row).where(Row.id == number).options(orm.defer(Row.y))).one()
        change(ps_lab, number, "y = 2")
        with use_token(None):
            assert row.y == 1
        row.note = "again"
        assert_refused(session, "y")


def test_own_updates(ps_lab: Lab, engine: Engine, number: int) -> None:
    """What the session itself updates by a statement is not stale."""
    with Session(engine) as session:
        row = from_replica(session, number)
        session.execute(sa.update(Row).where(Row.id == number).values(other="mine"))
        row.note = "mine"
        session.commit()
    assert stored(ps_lab, number, "other") == "mine"


def test_savepoints(ps_lab: Lab, engine: Engine, number: int) -> None:
    """A savepoint that is rolled back takes its locks, and the values that were compared, with it."""
    with Session(engine) as session:
        row = from_replica(session, number)
        with session.begin_nested() as nested:
            row.note = "mine"
            session.flush()
            nested.rollback()
        change(ps_lab, number, "other = 'newer'")
        assert row.other == "newer"
        row.note = "mine"
        session.commit()
    assert stored(ps_lab, number) == "mine"


@pytest.mark.parametrize("how", ["refresh", "for update", "access"])
def test_read_again_after_the_error(ps_lab: Lab, engine: Engine, number: int, how: str) -> None:
    """After the rollback that any failed flush needs, what is read is what the primary has, and can be written."""
    change(ps_lab, number, "other = 'newer'")
    with Session(engine) as session:
        row = from_replica(session, number)
        row.note = "mine"
        assert_refused(session)
        session.rollback()
        if how == "refresh":
            session.refresh(row)
        elif how == "for update":
            session.get_one(Row, number, with_for_update=True)
        assert row.other == "newer"
        row.note = "mine"
        session.commit()
    assert stored(ps_lab, number) == "mine"


# --- what it costs ---


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "expired"])
def test_rows_of_the_primary_cost_nothing(engine: Engine, number: int, *, keep: bool) -> None:
    """Rows that the primary gave, or that were compared once, cost no statement, in this session and the next."""
    with Session(engine, expire_on_commit=not keep) as session:
        replicas = from_replica(session, number)
        with using_primary():
            row = session.get_one(Row, number + 1)
            with statements(engine) as heard:
                row.note = "mine"
                session.commit()
                assert heard == ["UPDATE"]
                replicas.note = "mine" if keep else replicas.note + "mine"
                session.commit()
                assert heard == ["UPDATE", "SELECT", "UPDATE"]  # what is kept is compared, what had expired was read again
                assert [row.note, replicas.note]
                heard.clear()
                row.note = replicas.note = "again"
                session.commit()
                assert heard == ["UPDATE"]
        session.refresh(row)
    session.close()
    with Session(engine) as session:
        with using_primary():
            row = session.get_one(Row, number)
        session.expunge(row)
    with Session(engine) as session, statements(engine) as heard:
        session.add(row)
        row.note = "mine"
        session.commit()
        assert heard == ["UPDATE"]


def test_triggers(ps_lab: Lab, engine: Engine, number: int) -> None:
    """What a trigger makes of the session's own write is not stale in the next one."""
    ps_lab.sql(
        "CREATE FUNCTION stale_touch() RETURNS trigger LANGUAGE plpgsql AS"
        " $$BEGIN NEW.version = OLD.version; NEW.other = OLD.other || '+'; RETURN NEW; END$$;"
        f"CREATE TRIGGER touch BEFORE UPDATE ON stale_row FOR EACH ROW WHEN (OLD.id = {number})"
        " EXECUTE FUNCTION stale_touch()".replace("NEW.version = OLD.version; ", "")
    )
    with Session(engine, expire_on_commit=False) as session:
        row = from_replica(session, number)
        for note in ("mine", "again"):
            row.note = note
            session.commit()
    assert stored(ps_lab, number, "other") == "old++"


def test_rows_without_values(ps_lab: Lab, engine: Engine, number: int) -> None:
    """Where nothing but the key was read, there is nothing to compare."""
    change(ps_lab, number)
    with Session(engine) as session, statements(engine) as heard:
        row = from_replica(session, number, orm.load_only(Row.id), orm.defer(Row.kind))
        session.expire(row, ["kind"])
        heard.clear()
        row.note = "mine"
        session.commit()
    assert heard == ["UPDATE"]


def test_one_statement_for_all(ps_lab: Lab, engine: Engine, number: int) -> None:
    """Rows of one mapper are compared in one statement, children that a collection changes among them."""
    with Session(engine) as session:
        rows = session.scalars(select(Row).where(Row.id.in_([number, number + 2, number + 4]))).all()
        with using_primary():
            parent = session.get_one(Row, number + 6)
        assert not parent.children
        with statements(engine) as heard:
            rows[0].note = "mine"
            parent.children = list(rows[1:])
            session.commit()
    assert heard == ["SELECT", "UPDATE", "UPDATE"]


def test_stock_sessions(ps_lab: Lab, engine: Engine, number: int) -> None:
    """SQLAlchemy's own session, and one with `stale_check=False`, write as they always do; what they wrote is no replica's."""
    for kind in (orm.Session, lambda engine: Session(engine, stale_check=False)):
        with Session(engine) as session:
            row = from_replica(session, number)
        change(ps_lab, number)
        with kind(engine) as session:
            session.expire_on_commit = False
            session.add(row)
            row.note = "mine"
            session.commit()
        assert stored(ps_lab, number) == "mine"
        with Session(engine) as session:
            session.add(row)
            row.note = "again"
            session.commit()


def test_async_sessions(ps_lab: Lab, number: int) -> None:
    """An AsyncSession takes instances of another one, and compares them."""

    async def main() -> None:
        engine = ps_sqlalchemy.create_async_engine(ps_lab.url, bouncer="write-pool", replica_bouncer="read-pool")
        try:
            for newer in (False, True):
                async with AsyncSession(engine) as session:
                    with use_token(None):
                        row = (await session.scalars(select(Row).where(Row.id == number + newer))).one()
                if newer:
                    change(ps_lab, number + 1, "other = 'newer'")
                async with AsyncSession(engine) as session:
                    row.note = "mine"
                    with using_primary():
                        await session.merge(row)
                    if newer:
                        with pytest.raises(StaleDataError, match="'other' was changed"):
                            await session.commit()
                    else:
                        await session.commit()
        finally:
            await engine.dispose()

    asyncio.run(main())
    assert (stored(ps_lab, number), stored(ps_lab, number + 1)) == ("mine", "old")
