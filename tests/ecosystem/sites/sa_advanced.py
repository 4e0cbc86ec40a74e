"""advanced-alchemy."""

from typing import Any
from uuid import uuid4

from advanced_alchemy.base import BigIntAuditBase
from advanced_alchemy.config import SQLAlchemySyncConfig
from advanced_alchemy.filters import LimitOffset, OrderBy, SearchFilter
from advanced_alchemy.repository import SQLAlchemySyncRepository
from sqlalchemy import orm

from tests.ecosystem.script import direct, engine, sessionmaker


class Author(BigIntAuditBase):
    """What repositories keep."""

    __tablename__ = "author"
    run: orm.Mapped[str]
    name: orm.Mapped[str]


class Authors(SQLAlchemySyncRepository[Author]):
    """Copied from its documentation."""

    model_type = Author


Author.metadata.create_all(direct)
config = SQLAlchemySyncConfig(engine_instance=engine, session_maker_class=sessionmaker)


def work() -> dict[str, Any]:
    """Write in each way, each in a session of its own, and look after each."""
    run, shown = uuid4().hex, []

    def show() -> None:
        with config.get_session() as session:
            authors = Authors(session=session)
            found, number = authors.get_many_and_count(
                SearchFilter("name", "Tove"), OrderBy("name"), LimitOffset(2, 0), Author.run == run
            )
            shown.append([[one.name for one in found], number, authors.count(Author.run == run)])

    def change(how: Any) -> None:
        with config.get_session() as session:
            how(Authors(session=session))
            session.commit()
        show()

    change(lambda authors: authors.add(Author(run=run, name="Tove Jansson")))
    change(lambda authors: authors.add_many([Author(run=run, name=name) for name in ("Tove D.", "Tove L.", "Astrid")]))
    change(lambda authors: authors.upsert(Author(id=authors.get_one(run=run, name="Astrid").id, run=run, name="Tove A.")))
    change(lambda authors: authors.delete_where(Author.name == "Tove D.", Author.run == run))
    return {"shown": shown}
