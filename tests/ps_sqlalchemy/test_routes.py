"""Which server answered, for every way in which a session reads and writes.

With PS_WRITE_DOCS=1 in the environment, what was measured is written to docs/generated/sqlalchemy-routes.md.
"""

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm, select, text
from sqlalchemy.orm import aliased

import ps_sqlalchemy
from ps_core import use_token
from ps_lab import Lab
from ps_sqlalchemy import AsyncSession, Engine, Session, using_primary, using_replica
from tests.ps_sqlalchemy.conftest import Base

DOCUMENT = Path(__file__).parents[2] / "docs" / "generated" / "sqlalchemy-routes.md"
PRIMARY, REPLICA = "primary", "replica"
BOTH = "replica, then primary"


class Author(Base):
    """Someone with books."""

    __tablename__ = "sa_author"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    name: orm.Mapped[str]
    books: orm.Mapped[list["Book"]] = orm.relationship(back_populates="author", order_by="Book.id")


class Book(Base):
    """A book."""

    __tablename__ = "sa_book"
    id: orm.Mapped[int] = orm.mapped_column(sa.Identity(), primary_key=True)
    author_id: orm.Mapped[int] = orm.mapped_column(sa.ForeignKey(Author.id))
    title: orm.Mapped[str]
    text: orm.Mapped[str] = orm.mapped_column(deferred=True, default="...")
    author: orm.Mapped[Author] = orm.relationship(back_populates="books")


@pytest.fixture(scope="module")
def library(ps_lab: Lab, engine: Engine) -> Iterator[None]:
    """Two authors with two books each."""
    Base.metadata.create_all(engine.direct)
    ps_lab.sql(
        "CREATE OR REPLACE FUNCTION sa_hidden(n bigint) RETURNS bigint LANGUAGE sql AS"
        " 'UPDATE sa_author SET name = name WHERE id = n; SELECT n'; CREATE SEQUENCE IF NOT EXISTS sa_route_numbers;"
        " GRANT ALL ON SEQUENCE sa_route_numbers TO PUBLIC"
    )
    with Session(engine) as session:
        for number in (1, 2):
            books = [Book(title=f"{number}.{volume}") for volume in (1, 2)]
            session.add(Author(id=number, name=f"author {number}", books=books))
        session.commit()
    ps_lab.wait_replicas_caught_up()
    yield
    ps_lab.sql("DROP FUNCTION sa_hidden(bigint); DROP SEQUENCE sa_route_numbers")
    Base.metadata.drop_all(engine.direct)


WITH_INSERT = "WITH n AS (INSERT INTO sa_book (author_id, title, text) VALUES (1, 't', '') RETURNING id) TABLE n"
Work = Callable[[Any], object]


def _nested(session: Session) -> None:
    with session.begin_nested():
        session.execute(select(Book))


def _write_then_rollback(session: Session) -> None:
    session.execute(sa.update(Author).values(name="never"))
    session.rollback()
    session.execute(select(Author))


def _load(option: Any) -> Work:
    return lambda s: [[book.title for book in author.books] for author in s.scalars(select(Author).options(option)).unique()]


def _raise(session: Session) -> None:
    author = session.scalars(select(Author).options(orm.raiseload(Author.books))).first()
    assert author is not None
    with pytest.raises(sa.exc.InvalidRequestError):
        author.books  # noqa: B018 - it is the access that raises


def _merge(session: Session) -> None:
    session.merge(Author(id=1, name="author 1"))


def _expired(session: Session) -> None:
    author = session.get_one(Author, 1)
    session.expire(author)
    assert author.name


WAYS: dict[str, tuple[str, Work]] = {
    "`execute(select(...))`": (REPLICA, lambda s: s.execute(select(Author)).all()),
    "`scalars(select(...))`": (REPLICA, lambda s: s.scalars(select(Author)).all()),
    "`scalar(select(...))`": (REPLICA, lambda s: s.scalar(select(sa.func.count()).select_from(Book))),
    "`query(...).all()`": (REPLICA, lambda s: s.query(Author).all()),
    "`get()`": (REPLICA, lambda s: s.get(Author, 1)),
    "`get_one()`": (REPLICA, lambda s: s.get_one(Author, 1)),
    "`get(with_for_update=True)`": (PRIMARY, lambda s: s.get(Author, 1, with_for_update=True)),
    "`merge()`, nothing changed": (REPLICA, _merge),
    "lazy loading": (REPLICA, lambda s: s.get_one(Author, 1).books),
    "lazy loading, many to one": (REPLICA, lambda s: s.scalars(select(Book)).first().author),
    "`selectinload`": (REPLICA, _load(orm.selectinload(Author.books))),
    "`joinedload`": (REPLICA, _load(orm.joinedload(Author.books))),
    "`subqueryload`": (REPLICA, _load(orm.subqueryload(Author.books))),
    "`raiseload`": (REPLICA, _raise),
    "deferred column": (REPLICA, lambda s: s.scalars(select(Book)).first().text),
    "`refresh()`": (REPLICA, lambda s: s.refresh(s.get_one(Author, 1))),
    "expired attribute": (REPLICA, _expired),
    "`yield_per`": (REPLICA, lambda s: list(s.scalars(select(Book).execution_options(yield_per=1)))),
    "`stream_results`": (REPLICA, lambda s: list(s.scalars(select(Book).execution_options(stream_results=True)))),
    "CTE that reads": (REPLICA, lambda s: s.execute(select(aliased(Book, select(Book).cte()))).all()),
    "`text('SELECT ...')`": (REPLICA, lambda s: s.execute(text("SELECT * FROM sa_book")).all()),
    "`text('WITH ... SELECT')`": (REPLICA, lambda s: s.execute(text("WITH x AS (SELECT 1) SELECT * FROM x")).all()),
    "`union`": (REPLICA, lambda s: s.execute(sa.union(select(Author.id), select(Book.id))).all()),
    "`text()` that is not known to read": (PRIMARY, lambda s: s.execute(text("SET LOCAL work_mem = '5MB'"))),
    "`with_for_update()`": (PRIMARY, lambda s: s.execute(select(Author).with_for_update()).all()),
    "`text('SELECT ... FOR UPDATE')`": (PRIMARY, lambda s: s.execute(text("SELECT * FROM sa_book FOR UPDATE")).all()),
    "`add()` and flush": (PRIMARY, lambda s: (s.add(Book(author_id=1, title="new")), s.flush())),
    "`execute(update(...))`": (PRIMARY, lambda s: s.execute(sa.update(Author).values(name=Author.name))),
    "`execute(delete(...))`": (PRIMARY, lambda s: s.execute(sa.delete(Book).where(Book.id < 0))),
    "`insert().returning()`": (
        PRIMARY,
        lambda s: s.execute(sa.insert(Book).values(author_id=1, title="r").returning(Book.id)).all(),
    ),
    "bulk insert": (PRIMARY, lambda s: s.execute(sa.insert(Book), [{"author_id": 1, "title": str(n)} for n in range(3)])),
    "bulk update by key": (PRIMARY, lambda s: s.execute(sa.update(Author), [{"id": 1, "name": "author 1"}])),
    "`bulk_save_objects()`": (PRIMARY, lambda s: s.bulk_save_objects([Book(author_id=1, title="b")])),
    "CTE with DML, first time": (
        BOTH,
        lambda s: s.execute(select(sa.insert(Book).values(author_id=1, title="c").returning(Book.id).cte("new"))).all(),
    ),
    "`text('WITH ... INSERT')`": (PRIMARY, lambda s: s.execute(text(WITH_INSERT))),
    "`nextval()` in `text()`": (PRIMARY, lambda s: s.scalar(text("SELECT nextval('sa_route_numbers')"))),
    "advisory lock in `text()`": (PRIMARY, lambda s: s.scalar(text("SELECT pg_advisory_xact_lock(1)"))),
    "advisory lock in `func`": (PRIMARY, lambda s: s.scalar(select(sa.func.pg_advisory_xact_lock(1)))),
    "a function that writes, first time": (BOTH, lambda s: s.scalar(select(sa.func.sa_hidden(1)))),
    "a function that writes, from then on": (PRIMARY, lambda s: s.scalar(select(sa.func.sa_hidden(2)))),
    "`connection()`": (PRIMARY, lambda s: s.connection().execute(select(Author)).all()),
    "`begin_nested()` and a read": (PRIMARY, _nested),
    "a write, `rollback()`, and a read": ("primary, then replica", _write_then_rollback),
    "`execution_options(ps_route='primary')`": (
        PRIMARY,
        lambda s: s.execute(select(Author).execution_options(ps_route="primary")).all(),
    ),
}
DECLARED: dict[str, tuple[str, Any, Work]] = {
    "a read inside `Session.begin()`": (PRIMARY, None, lambda s: s.execute(select(Author)).all()),
    "the same, `using_replica()`": (REPLICA, using_replica, lambda s: s.execute(select(Author)).all()),
    "the same, `read_only=True`": (REPLICA, "read_only", lambda s: s.execute(select(Author)).all()),
}


@pytest.mark.parametrize("way", WAYS)
def test_way(ps_lab: Lab, engine: Engine, library: None, way: str) -> None:
    """Each way is served where the table says, counted on the wire."""
    expected, work = WAYS[way]
    with use_token(None), Session(engine) as session:
        with ps_lab.round_trips() as trips:
            work(session)
        assert set(trips.by_path) == set(expected.split(", then "))


@pytest.mark.parametrize("way", DECLARED)
def test_declared(ps_lab: Lab, engine: Engine, library: None, way: str) -> None:
    """The same for transactions that were begun by the application."""
    expected, block, work = DECLARED[way]
    with use_token(None), block() if callable(block) else using_nothing():
        with Session(engine, read_only=block == "read_only") as session, session.begin(), ps_lab.round_trips() as trips:
            work(session)
    assert set(trips.by_path) == {expected}


def using_nothing() -> Any:
    """A block that changes nothing."""
    return use_token(None)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("form", ["construct", "text"])
def test_known_write_takes_no_connection_of_the_replicas(engine: Engine, form: str) -> None:
    """A read that was refused because it writes goes to the primary at once; no connection to a replica is checked out."""
    statement: Any = select(sa.func.sa_hidden(sa.literal(7)), sa.literal(form))
    if form == "text":
        statement = text("SELECT sa_hidden(7), 'known'")
    checked_out: list[Any] = []

    def note(*_: Any) -> None:
        checked_out.append(1)

    assert engine.replica is not None
    sa.event.listen(engine.replica.pool, "checkout", note)
    try:
        for _ in range(3):
            with Session(engine) as session:
                session.execute(statement)
        assert len(checked_out) <= 1
        with Session(engine) as session:
            session.execute(select(sa.literal(7), sa.literal(form)))
        assert len(checked_out) <= 2
        assert checked_out
    finally:
        sa.event.remove(engine.replica.pool, "checkout", note)


def test_autobegin_off(ps_lab: Lab, engine: Engine, library: None) -> None:
    """With autobegin=False every transaction is declared, and without one SQLAlchemy's own error is raised."""
    with use_token(None), Session(engine, autobegin=False) as session:
        with pytest.raises(sa.exc.InvalidRequestError, match="Autobegin is disabled"):
            session.execute(select(Author))
        with session.begin(), ps_lab.round_trips() as trips:
            session.execute(select(Author)).all()
        assert set(trips.by_path) == {PRIMARY}


def test_core_connections(ps_lab: Lab, engine: Engine, library: None) -> None:
    """Core's connections are on the side whose engine made them."""
    assert engine.replica is not None
    for side, expected in ((engine, PRIMARY), (engine.replica, REPLICA)):
        with use_token(None), ps_lab.round_trips() as trips, side.connect() as conn:
            conn.execute(select(Author)).all()
        assert set(trips.by_path) == {expected}


@pytest.mark.parametrize("stream", [False, True])
def test_asyncio(ps_lab: Lab, library: None, stream: bool) -> None:
    """In asyncio, too, streams included."""

    async def main() -> None:
        engine = ps_sqlalchemy.create_async_engine(ps_lab.url, bouncer="write-pool", replica_bouncer="read-pool")
        try:
            async with AsyncSession(engine) as session:
                await session.execute(select(1))
                with ps_lab.round_trips() as trips:
                    if stream:
                        result = await session.stream_scalars(select(Book).execution_options(yield_per=1))
                        assert [book.id async for book in result]
                    else:
                        assert (await session.get_one(Author, 1)).name
                        await session.refresh(await session.get_one(Author, 1), ["books"])
                assert set(trips.by_path) == {REPLICA}
                session.add(Book(author_id=1, title="async"))
                with ps_lab.round_trips() as trips:
                    await session.flush()
                    await session.execute(select(Author))
                assert set(trips.by_path) == {PRIMARY}
        finally:
            await engine.dispose()

    with use_token(None):
        asyncio.run(main())


def test_same_answer_whatever_the_route(engine: Engine, library: None) -> None:
    """A block decides for everything in it."""
    with use_token(None), using_primary(), Session(engine) as session:
        assert session.scalar(select(sa.func.pg_is_in_recovery())) is False


@pytest.mark.fast
def test_document() -> None:
    """The table that is committed is the one that these tests assert."""
    rows = [*((way, expected) for way, (expected, _) in WAYS.items()), *((way, row[0]) for way, row in DECLARED.items())]
    page = (
        "# Where a session's work goes\n\n"
        "<!-- Written by tests/ps_sqlalchemy/test_routes.py with PS_WRITE_DOCS=1; not by hand. -->\n\n"
        "Counted on the wire, each in a fresh session.\n\n| way | server that answered |\n|---|---|\n"
        + "".join(f"| {way} | {expected} |\n" for way, expected in rows)
    )
    if os.environ.get("PS_WRITE_DOCS"):
        DOCUMENT.write_text(page)
    assert DOCUMENT.read_text() == page, "write it anew: PS_WRITE_DOCS=1 pytest tests/ps_sqlalchemy/test_routes.py"
