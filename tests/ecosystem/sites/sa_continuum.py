"""SQLAlchemy-Continuum."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy_continuum import make_versioned

from tests.ecosystem.script import direct, engine, sessionmaker

make_versioned(user_cls=None)


class Base(orm.DeclarativeBase):
    """The site's tables."""


class Article(Base):
    """What has versions."""

    __versioned__: dict[str, Any] = {}  # noqa: RUF012
    __tablename__ = "article"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    name: orm.Mapped[str]


orm.configure_mappers()
Base.metadata.create_all(direct)
sessions = sessionmaker(engine)


def work() -> dict[str, Any]:
    """Make an article, change it, revert that and delete it, and look at its versions after each step."""
    shown = []

    def show(pk: int) -> None:
        with sessions() as session:
            article = session.get(Article, pk)
            if article is not None:
                shown.append([article.name, [[one.name, one.operation_type] for one in article.versions]])
            else:
                versions = sa.text("SELECT name, operation_type FROM article_version WHERE id = :pk ORDER BY transaction_id")
                shown.append([None, [list(row) for row in session.execute(versions, {"pk": pk})]])

    with sessions.begin() as session:
        session.add(article := Article(name="first"))
        session.flush()
        pk = article.id
    show(pk)
    with sessions.begin() as session:
        session.get(Article, pk).name = "second"
    show(pk)
    with sessions.begin() as session:
        session.get(Article, pk).versions[0].revert()
    show(pk)
    with sessions.begin() as session:
        session.delete(session.get(Article, pk))
    show(pk)
    return {"shown": shown}
