"""Code that was written for SQLAlchemy alone, and libraries that know nothing else."""

import types
from pathlib import Path
from typing import Any

import flask
import pandas as pd
import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from flask_sqlalchemy.session import Session as FlaskSession
from sqlalchemy import orm, select

import ps_sqlalchemy
from ps_lab import Lab
from ps_sqlalchemy import Engine, Session
from tests.ps_sqlalchemy.conftest import SERVED_BY_REPLICA, Item

APPLICATION = Path(__file__).with_name("application.py").read_text()
STOCK = "from sqlalchemy import create_engine\nfrom sqlalchemy.orm import Session, sessionmaker\n"
OURS = "from ps_sqlalchemy import create_engine\nfrom ps_sqlalchemy import Session, sessionmaker\n"


def run(name: str, source: str, url: str) -> Any:
    """Run the application."""
    module = types.ModuleType(name)
    exec(compile(source, name, "exec"), module.__dict__)
    return module.run(url)


def test_same_application_with_other_imports(ps_lab: Lab) -> None:
    """Two lines of imports are all that differs; what it sees is the same, and with ours the replicas answer some of it."""
    assert APPLICATION.count(STOCK) == 1
    primary = ps_lab.topology.primary
    stock = sa.URL.create(
        "postgresql+psycopg", primary.user, primary.password, primary.host, primary.port, primary.dbname, dict(primary.params)
    )
    with ps_lab.round_trips() as by_stock:
        expected = run("app_stock", APPLICATION, stock.render_as_string(hide_password=False))
    url = f"{ps_lab.url}&ps_bouncer=write-pool&ps_replica_bouncer=read-pool"
    with ps_lab.round_trips() as by_ours:
        found = run("app_ours", APPLICATION.replace(STOCK, OURS), url)
    assert [str(value) for value in found] == [str(value) for value in expected]
    assert len(expected) > 40
    assert by_stock.by_path["replica"] == 0
    assert by_ours.by_path["replica"] > 0
    assert by_ours.count < by_stock.count


def test_pandas(ps_lab: Lab, engine: Engine) -> None:
    """`to_sql` writes on the primary, `read_sql` reads with an engine, a connection, a session's connection, and the replicas."""
    frame = pd.DataFrame({"n": [1, 2, 3], "s": ["a", None, "100%"]})
    try:
        frame.to_sql("sa_frame", engine, index=False)
        frame.to_sql("sa_frame", engine, index=False, if_exists="append", method="multi")
        ps_lab.wait_replicas_caught_up()
        with engine.connect() as conn, Session(engine) as session:
            sources: list[Any] = [engine, conn, session.connection(), engine.replica]
            for source in sources:
                read = pd.read_sql(sa.text("SELECT * FROM sa_frame ORDER BY n, s"), source)
                assert read["n"].tolist() == [1, 1, 2, 2, 3, 3]
                assert read["s"].isna().sum() == 2
        chunks = list(pd.read_sql_query("SELECT n FROM sa_frame", engine, chunksize=4))
        assert [len(chunk) for chunk in chunks] == [4, 2]
        frame.to_sql("sa_frame", engine, index=False, if_exists="replace")
        assert len(pd.read_sql_table("sa_frame", engine)) == 3
    finally:
        ps_lab.sql("DROP TABLE IF EXISTS sa_frame")


def test_inspect(engine: Engine, items: type[Item]) -> None:
    """The inspector works on each endpoint."""
    for side in (engine, engine.replica, engine.direct):
        assert side is not None
        inspector = sa.inspect(side)
        assert [column["name"] for column in inspector.get_columns("sa_item")] == ["id", "note"]
        assert inspector.get_pk_constraint("sa_item")["constrained_columns"] == ["id"]


def test_null_pool(ps_lab: Lab, items: type[Item]) -> None:
    """Without a pool every piece of work has a connection of its own, on both sides."""
    engine = ps_sqlalchemy.create_engine(ps_lab.topology, poolclass=sa.NullPool)
    assert engine.replica is not None
    for side in (engine, engine.replica):
        assert isinstance(side.pool, sa.NullPool)
    for number in (1, 2):
        with ps_lab.round_trips() as trips, Session(engine) as session:
            assert session.scalar(SERVED_BY_REPLICA) is True
            session.add(items(id=number, note="a"))
            session.commit()
            ps_lab.wait_replicas_caught_up()
            assert session.scalar(SERVED_BY_REPLICA) is True
        assert trips.startups == 3, "a read, a write, and a read in another transaction"
    engine.dispose()


def test_scoped_session_and_sqlalchemys_own_factory(engine: Engine, items: type[Item]) -> None:
    """`class_=Session` routes in SQLAlchemy's own factory, and in the registry around it."""
    registry = orm.scoped_session(orm.sessionmaker(engine, class_=Session))
    assert registry.scalar(SERVED_BY_REPLICA) is True
    registry.add(items(id=1, note="a"))
    registry.flush()
    assert registry.scalar(SERVED_BY_REPLICA) is False
    registry.remove()
    assert registry.scalar(SERVED_BY_REPLICA) is True
    assert registry.scalars(select(items)).all() == []
    registry.remove()


class RoutedSession(Session, FlaskSession):  # type: ignore[misc] # its get_bind is typed more widely
    """Flask-SQLAlchemy wants its own Session below: it knows the engines of the app."""


def test_flask_sqlalchemy(ps_lab: Lab) -> None:
    """`db.session` routes on the engines that Flask-SQLAlchemy makes from URLs, and heeds a model's bind key."""
    url = f"{ps_lab.url.replace('postgresql:', 'postgresql+ps:')}&ps_bouncer=write-pool&ps_replica_bouncer=read-pool"
    app = flask.Flask("shop")
    app.config |= {"SQLALCHEMY_DATABASE_URI": url, "SQLALCHEMY_BINDS": {"other": url}}
    db = SQLAlchemy(session_options={"class_": RoutedSession})
    db.init_app(app)

    class Note(db.Model):  # type: ignore[name-defined,misc]
        """In the database that is the default."""

        __tablename__ = "sa_flask_note"
        id = db.Column(db.Integer, primary_key=True)

    class Other(db.Model):  # type: ignore[name-defined,misc]
        """In another one."""

        __tablename__ = "sa_flask_other"
        __bind_key__ = "other"
        id = db.Column(db.Integer, primary_key=True)

    with app.app_context():
        try:
            db.create_all()
            ps_lab.wait_replicas_caught_up()
            assert db.session.scalar(SERVED_BY_REPLICA) is True
            assert db.session.scalars(select(Note)).all() == []
            db.session.add(Note(id=1))
            db.session.flush()
            assert db.session.scalar(SERVED_BY_REPLICA) is False
            db.session.commit()
            assert Note.query.count() == 1
            heard: list[str] = []
            sa.event.listen(db.engines["other"], "before_cursor_execute", lambda *args: heard.append(args[2]))
            db.session.add(Other(id=1))
            db.session.commit()
            assert db.session.scalar(select(Other.id)) == 1
            assert [statement.split()[0] for statement in heard] == ["INSERT", "SELECT"]
        finally:
            db.session.remove()
            db.drop_all()
            for engine in db.engines.values():
                engine.dispose()
