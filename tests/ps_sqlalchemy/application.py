"""An application written for SQLAlchemy. `test_applications.py` runs it as it is, and with two lines of imports exchanged."""

import datetime as dt
import decimal
import enum
import uuid
from collections.abc import Iterator
from typing import Any

from sqlalchemy import (
    JSON,
    ForeignKey,
    String,
    delete,
    event,
    exc,
    func,
    insert,
    inspect,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    mapped_column,
    relationship,
    scoped_session,
    selectinload,
)

# isort: split
from sqlalchemy import create_engine
from sqlalchemy.orm import Session, sessionmaker


class Base(DeclarativeBase):
    """The tables."""


class Kind(enum.Enum):
    """Kinds of books."""

    PROSE = 1
    VERSE = 2


class Author(Base):
    """An author of books."""

    __tablename__ = "app_author"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(40), unique=True)
    books: Mapped[list["Book"]] = relationship(back_populates="author", cascade="all, delete-orphan", order_by="Book.id")


class Book(Base):
    """What they wrote."""

    __tablename__ = "app_book"
    id: Mapped[int] = mapped_column(primary_key=True)
    author_id: Mapped[int] = mapped_column(ForeignKey("app_author.id"))
    title: Mapped[str]
    price: Mapped[decimal.Decimal | None]
    kind: Mapped[Kind] = mapped_column(default=Kind.PROSE)
    tags: Mapped[list[str]] = mapped_column(ARRAY(String), default=list)
    facts: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    published: Mapped[dt.date | None]
    key: Mapped[uuid.UUID] = mapped_column(default=lambda: uuid.UUID(int=7))
    author: Mapped[Author] = relationship(back_populates="books")


def run(url: str) -> list[object]:
    """Do what applications do, and return all that was seen."""
    engine = create_engine(url)
    seen: list[object] = []
    heard: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *args: heard.append(args[2].split()[0]))
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    seen.append(sorted(name for name in inspect(engine).get_table_names() if name.startswith("app_")))
    factory = sessionmaker(engine)
    event.listen(factory, "after_commit", lambda session: seen.append("committed"))
    try:
        for step in (_write, _read, _change, _fail, _core, _scoped):
            seen += [step.__name__, *step(factory)]
    finally:
        Base.metadata.drop_all(engine)
        engine.dispose()
    return [*seen, [word for word in heard if word in {"INSERT", "UPDATE", "DELETE"}]]


def _write(factory: "sessionmaker[Session]") -> Iterator[object]:
    with factory() as session:
        author = Author(name="Ada")
        author.books = [
            Book(title="One", price=decimal.Decimal("9.50"), tags=["a", "b'c"], facts={"n": [1, None, "x%s"]}),
            Book(title="Two", kind=Kind.VERSE, published=dt.date(2024, 2, 29)),
        ]
        session.add(author)
        session.commit()
        yield author.id, [book.id for book in author.books]
    with factory.begin() as session:
        session.execute(insert(Author), [{"name": f"author {number}"} for number in range(50)])
        ids = session.scalars(insert(Author).returning(Author.id), [{"name": "x"}, {"name": "y"}]).all()
        statement = upsert(Author).values(name="x").on_conflict_do_update(index_elements=["name"], set_={"name": "z"})
        yield len(ids), session.scalar(statement.returning(Author.name))


def _read(factory: "sessionmaker[Session]") -> Iterator[object]:
    with factory() as session:
        yield session.scalar(select(func.count()).select_from(Author))
        book = session.scalars(select(Book).where(Book.title == "One")).one()
        yield book.price, book.kind, book.tags, book.facts, book.published, book.key, book.author.name
        authors = session.scalars(select(Author).options(selectinload(Author.books)).order_by(Author.id).limit(2))
        yield [(author.name, [book.title for book in author.books]) for author in authors]
        yield [name for (name,) in session.execute(select(Author.name).order_by(Author.id)).yield_per(10)][-3:]
        yield session.execute(text("SELECT :n + 1 AS n, '100%' AS s"), {"n": 41}).mappings().one()
        numbered = select(Author.name, func.row_number().over(order_by=Author.name).label("n")).cte("numbered")
        yield session.execute(select(numbered).where(numbered.c.n <= 2)).all()
        yield session.get(Author, -1), session.query(Book).filter(Book.kind == Kind.VERSE).count()
        yield session.connection().get_isolation_level()


def _change(factory: "sessionmaker[Session]") -> Iterator[object]:
    with factory() as session:
        book = session.scalars(select(Book).where(Book.title == "One")).one()
        book.price = decimal.Decimal("10.00")
        book.facts = {"changed": True}
        session.flush()
        yield session.scalar(select(Book.price).where(Book.id == book.id))
        with session.begin_nested() as savepoint:
            session.add(Author(name="not kept"))
            session.flush()
            savepoint.rollback()
        yield session.scalar(select(Author).where(Author.name == "not kept"))
        session.commit()
        yield book.facts
        session.execute(update(Author).where(Author.name.like("author %")).values(name=func.upper(Author.name)))
        session.rollback()
        yield session.scalar(select(func.count()).where(Author.name.like("AUTHOR %")))
        other = session.merge(Author(id=book.author_id, name="Ada Lovelace"))
        session.commit()
        session.refresh(other, with_for_update=True)
        yield other.name
        session.delete(other)
        session.commit()
        yield session.scalar(select(func.count()).select_from(Book))
        yield session.execute(delete(Author).where(Author.name == "y").returning(Author.name)).all()
        session.commit()


def _fail(factory: "sessionmaker[Session]") -> Iterator[object]:
    with factory() as session:
        session.add(Author(name="z"))
        try:
            session.commit()
        except exc.IntegrityError as error:
            yield type(error.orig).__name__, "app_author_name_key" in str(error)
        session.rollback()
        try:
            session.execute(text("SELECT 1/0"))
        except exc.DataError as error:
            yield type(error.orig).__name__
        session.rollback()
        yield session.scalar(text("SELECT 1"))


def _core(factory: "sessionmaker[Session]") -> Iterator[object]:
    engine = factory.kw["bind"]
    with engine.begin() as connection:
        yield connection.execute(insert(Author).values(name="core")).inserted_primary_key is not None
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        yield connection.scalar(select(Author.name).where(Author.name == "core"))
    with engine.connect() as connection:
        result = connection.execution_options(stream_results=True, max_row_buffer=5).execute(
            select(Author.name).order_by(Author.id)
        )
        yield len([row for part in result.partitions(7) for row in part])
    with engine.connect().execution_options(isolation_level="SERIALIZABLE") as connection:
        yield connection.scalar(text("SHOW transaction_isolation"))


def _scoped(factory: "sessionmaker[Session]") -> Iterator[object]:
    registry = scoped_session(factory)
    registry.add(Author(name="scoped"))
    registry.commit()
    yield registry() is registry()
    registry.remove()
    yield registry.scalar(select(Author.name).where(Author.name == "scoped"))
    registry.remove()
