"""Packages on top of SQLAlchemy: the recipes of docs/howto/packages.md, run, and where their work goes."""

import json
import logging
import os
import subprocess
import sys
import types
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated, Any, cast

import celery  # type: ignore[import-untyped]
import celery.signals  # type: ignore[import-untyped]
import fastapi_users
import optuna
import polars as pl
import pytest
import sqladmin
import sqlalchemy as sa
import sqlmodel
from celery.contrib.testing.worker import start_worker  # type: ignore[import-untyped]
from fastapi import Depends
from fastapi_users import schemas
from fastapi_users.authentication import AuthenticationBackend, BearerTransport, JWTStrategy
from sqlalchemy import func, orm, select, text
from sqlalchemy.ext.asyncio import AsyncSession as StockAsyncSession
from starlette.testclient import TestClient

import ps_sqlalchemy
from docs.examples.django_shop import run
from ps_core import use_token
from ps_lab import Lab
from ps_lab.processes import wait_until
from ps_sqlalchemy import Topology
from tests.docs.pages import DOCS, blocks_of
from tests.ps_sqlalchemy.conftest import SERVED_BY_REPLICA

with warnings.catch_warnings():  # it uses what SQLAlchemy 2.1 deprecates
    warnings.simplefilter("ignore", sa.exc.SADeprecationWarning)
    from advanced_alchemy.base import BigIntAuditBase
    from advanced_alchemy.config import SQLAlchemyAsyncConfig
    from advanced_alchemy.extensions.litestar import SQLAlchemyPlugin
    from advanced_alchemy.repository import SQLAlchemyAsyncRepository, SQLAlchemySyncRepository
    from litestar import Litestar, get, post
    from litestar.di import NamedDependency

BLOCKS = blocks_of(DOCS / "howto" / "packages.md")
MODULE = "recipes"
LATE = 60.0


def code(*captions: str) -> str:
    """Return the blocks of the page with these captions, after the one that all begin with."""
    texts = {block.caption: block.text for block in reversed(BLOCKS)}
    return "\n".join(texts[caption] for caption in ("", *captions))


class Base(orm.DeclarativeBase):
    """The tests' own tables, those apart for which a package has a base of its own."""


class Note(Base):
    """Something written."""

    __tablename__ = "sa_package_note"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    text: orm.Mapped[str]


class Hero(sqlmodel.SQLModel, table=True):
    """SQLModel's."""

    __tablename__ = "sa_package_hero"
    id: int | None = sqlmodel.Field(default=None, primary_key=True)
    name: str


class Author(BigIntAuditBase):
    """advanced-alchemy's."""

    __tablename__ = "sa_package_author"
    name: orm.Mapped[str]


class Authors(SQLAlchemySyncRepository[Author]):
    """Its repository."""

    model_type = Author


class AsyncAuthors(SQLAlchemyAsyncRepository[Author]):
    """The same for asyncio."""

    model_type = Author


Recipe = Callable[..., Any]
Tables = Callable[[sa.MetaData], None]


@pytest.fixture(scope="module")
def database(ps_lab: Lab) -> Iterator[str]:
    """The URL of a database of their own: some packages make tables, sequences and types."""
    with run.database(ps_lab, "packages") as urls:
        ps_lab.wait_replicas_caught_up()
        yield urls["PS_URL"]


@pytest.fixture
def recipe(database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recipe]:
    """Return what runs blocks of the page by their captions, after the one that all begin with, in a module that it returns."""
    monkeypatch.setenv("DATABASE_URL", database)
    module = cast("Any", types.ModuleType(MODULE))
    monkeypatch.setitem(sys.modules, MODULE, module)  # a job of APScheduler's is found by its name

    def follow(*captions: str, **names: Any) -> Any:
        module.__dict__.update(names)
        exec(compile(code(*captions), "packages.md", "exec", dont_inherit=True), module.__dict__)
        return module

    yield follow
    if "engine" in module.__dict__:  # not in a test that is skipped
        module.engine.dispose()


@pytest.fixture
def tables(ps_lab: Lab, database: str) -> Iterator[Tables]:
    """Return what makes tables, on the replicas as well, which are late from then on."""
    engine = ps_sqlalchemy.create_engine(database)
    made: list[sa.MetaData] = []

    def make(metadata: sa.MetaData) -> None:
        made.append(metadata)
        metadata.create_all(engine.direct)
        ps_lab.wait_replicas_caught_up()
        ps_lab.set_replay_delay(LATE)

    try:
        yield make
    finally:
        ps_lab.set_replay_delay(0)
        for metadata in made:
            metadata.drop_all(engine.direct)
        ps_lab.wait_replicas_caught_up()
        engine.dispose()


def stock_url(database: str) -> sa.URL:
    """Return the primary's URL for SQLAlchemy's own dialect."""
    primary = Topology.from_url(database, bouncer="write-pool").primary
    return sa.URL.create(
        "postgresql+psycopg", primary.user, primary.password, primary.host, primary.port, primary.dbname, dict(primary.params)
    )


@pytest.fixture
def stock(database: str) -> Iterator[sa.Engine]:
    """SQLAlchemy's own engine with psycopg, on the primary."""
    engine = sa.create_engine(stock_url(database))
    yield engine
    engine.dispose()


# --- SQLModel ---


def test_sqlmodel(recipe: Recipe, tables: Tables) -> None:
    """`exec()` reads on a replica until the session writes; the next session reads what it wrote."""
    page = recipe("SQLModel")
    tables(Hero.metadata)
    with page.Session(page.engine) as session:
        assert session.exec(sqlmodel.select(func.pg_is_in_recovery())).one() is True
        session.add(Hero(name="Deadpond"))
        session.flush()
        assert session.exec(sqlmodel.select(func.pg_is_in_recovery())).one() is False
        session.commit()
    with page.Session(page.engine) as session:
        assert session.exec(sqlmodel.select(Hero.name)).all() == ["Deadpond"]
    with use_token(None), orm.sessionmaker(page.engine, class_=page.Session)() as session:
        assert session.exec(sqlmodel.select(Hero.name)).all() == []
        assert session.exec(sqlmodel.select(func.pg_is_in_recovery())).one() is True
    with use_token(None), sqlmodel.Session(page.engine) as own:
        assert own.exec(sqlmodel.select(Hero.name)).all() == ["Deadpond"]


async def test_sqlmodel_async(recipe: Recipe, tables: Tables) -> None:
    """The same for asyncio."""
    page = recipe("SQLModel")
    tables(Hero.metadata)
    try:
        async with page.AsyncSession(page.async_engine) as session:
            assert (await session.exec(sqlmodel.select(func.pg_is_in_recovery()))).one() is True
            session.add(Hero(name="Deadpond"))
            await session.flush()
            assert (await session.exec(sqlmodel.select(func.pg_is_in_recovery()))).one() is False
            await session.commit()
        sessions = sa.ext.asyncio.async_sessionmaker(page.async_engine, class_=page.AsyncSession)
        async with sessions() as session:
            assert (await session.exec(sqlmodel.select(Hero.name))).all() == ["Deadpond"]
        with use_token(None):
            async with sessions() as session:
                assert (await session.exec(sqlmodel.select(Hero.name))).all() == []
                assert (await session.exec(sqlmodel.select(func.pg_is_in_recovery()))).one() is True
    finally:
        await page.async_engine.dispose()


# --- FastAPI and what is on top of it ---


@contextmanager
def served(page: Any) -> Iterator[TestClient]:
    """Serve the page's application, whose engine is disposed where its requests are served."""
    with TestClient(page.app) as client:
        try:
            yield client
        finally:
            assert client.portal is not None
            client.portal.call(page.async_engine.dispose)


def test_fastapi(ps_lab: Lab, recipe: Recipe, tables: Tables) -> None:
    """GET reads on a replica, and what the client's own POST wrote on the primary."""
    page = recipe("FastAPI")
    session = Annotated[ps_sqlalchemy.AsyncSession, Depends(page.get_session)]

    async def notes(session: Any) -> list[str]:
        return list((await session.scalars(select(Note.text))).all())

    async def write(session: Any) -> None:
        session.add(Note(text="one"))
        await session.commit()

    for view in (notes, write):
        view.__annotations__["session"] = session
    page.app.get("/notes")(notes)
    page.app.post("/notes")(write)
    tables(Base.metadata)
    with served(page) as client:
        with ps_lab.round_trips() as trips:
            assert client.get("/notes").json() == []
        assert trips.by_path["replica"] == trips.count
        with ps_lab.round_trips() as trips:
            assert client.post("/notes").status_code == 200
        assert trips.by_path["primary"] == trips.count
        assert client.get("/notes").json() == ["one"]
        client.cookies.clear()  # somebody else
        assert client.get("/notes").json() == []


class UserManager(fastapi_users.UUIDIDMixin, fastapi_users.BaseUserManager[Any, uuid.UUID]):
    """Copied from the documentation of fastapi-users."""

    reset_password_token_secret = verification_token_secret = "a secret of more than 32 characters"


class UserRead(schemas.BaseUser[uuid.UUID]):
    """Copied from the documentation."""


class UserUpdate(schemas.BaseUserUpdate):
    """Copied from the documentation."""


class UserCreate(schemas.BaseUserCreate):
    """Copied from the documentation."""


def add_users(page: Any) -> None:
    """Add the routes of fastapi-users to the page's application, as its documentation has it."""

    async def get_user_manager(user_db: Any) -> Any:
        yield UserManager(user_db)

    get_user_manager.__annotations__["user_db"] = Annotated[object, Depends(page.get_user_db)]

    def get_strategy() -> JWTStrategy[Any, uuid.UUID]:
        return JWTStrategy(secret="a secret of more than 32 characters", lifetime_seconds=3600)

    backend = AuthenticationBackend(name="jwt", transport=BearerTransport(tokenUrl="jwt/login"), get_strategy=get_strategy)
    users = fastapi_users.FastAPIUsers[Any, uuid.UUID](get_user_manager, [backend])
    page.app.include_router(users.get_auth_router(backend), prefix="/jwt")
    page.app.include_router(users.get_register_router(UserRead, UserCreate))
    page.app.include_router(users.get_users_router(UserRead, UserUpdate), prefix="/users")


@pytest.mark.parametrize("carries", ["cookie", "header", "neither"])
def test_fastapi_users(ps_lab: Lab, recipe: Recipe, tables: Tables, carries: str) -> None:
    """Register, log in, and be known at once, where the client carries what it has seen; later on, by a replica."""
    pytest.importorskip("fastapi_users_db_sqlalchemy", reason="`make test-applications` installs it")
    page = recipe("FastAPI", "fastapi-users")
    add_users(page)
    tables(page.Base.metadata)
    account = {"email": "a@example.org", "password": "teapot"}
    with served(page) as client:
        with ps_lab.round_trips() as trips:
            registered = client.post("/register", json=account)
            assert registered.status_code == 201
            answer = client.post("/jwt/login", data={"username": account["email"], "password": account["password"]})
        assert trips.by_path["primary"] == trips.count
        headers = {"Authorization": f"Bearer {answer.json()['access_token']}"}
        if carries != "cookie":
            client.cookies.clear()
        if carries == "header":
            headers["X-Seen"] = registered.headers["X-Seen"]
        assert client.get("/users/me", headers=headers).status_code == (401 if carries == "neither" else 200)
        client.cookies.clear()
        headers.pop("X-Seen", None)
        ps_lab.set_replay_delay(0)
        with ps_lab.round_trips() as trips:
            assert client.get("/users/me", headers=headers).json()["email"] == account["email"]
        assert trips.by_path["replica"] == trips.count


class NoteAdmin(sqladmin.ModelView, model=Note):
    """Notes."""

    column_list = (Note.id, Note.text)


@pytest.mark.parametrize("given", ["session_maker", "engine"])
def test_sqladmin(ps_lab: Lab, recipe: Recipe, tables: Tables, given: str) -> None:
    """Pages are read on replicas, and forms handled on the primary; with an engine alone, all of it is on the primary."""
    if given == "session_maker":
        page = recipe("FastAPI", "sqladmin")
    else:
        page = recipe("FastAPI")
        page.admin = sqladmin.Admin(page.app, page.async_engine)
    page.admin.add_view(NoteAdmin)
    tables(Base.metadata)
    side = "replica" if given == "session_maker" else "primary"
    with served(page) as client:
        with ps_lab.round_trips() as trips:
            assert client.get("/admin/note/list").status_code == 200
        assert trips.by_path[side] == trips.count
        for number, path in enumerate(("create", "edit/1")):
            with ps_lab.round_trips() as trips:
                sent = client.post(f"/admin/note/{path}", data={"text": f"teapot {number}"}, follow_redirects=False)
                assert sent.status_code == 302
            assert trips.by_path["primary"] == trips.count
            assert f"teapot {number}" in client.get("/admin/note/list").text
            assert f"teapot {number}" in client.get("/admin/note/details/1").text
        client.cookies.clear()  # somebody else
        assert ("teapot 1" in client.get("/admin/note/list").text) is (given == "engine")


# --- advanced-alchemy and Litestar ---


def test_advanced_alchemy(recipe: Recipe, tables: Tables) -> None:
    """A repository reads on a replica until its session writes; another one reads what was written."""
    page = recipe("advanced-alchemy")
    tables(Author.metadata)
    with page.config.get_session() as session:
        authors = Authors(session=session)
        assert authors.get_many() == []
        assert session.scalar(SERVED_BY_REPLICA) is True
        authors.add(Author(name="Tove"))
        assert session.scalar(SERVED_BY_REPLICA) is False
        session.commit()
    with page.config.get_session() as session:
        assert [author.name for author in Authors(session=session).get_many()] == ["Tove"]
    with use_token(None), page.config.get_session() as session:
        assert Authors(session=session).get_many() == []


@pytest.mark.parametrize("given", ["session_maker", "session_maker_class"])
async def test_advanced_alchemy_async(recipe: Recipe, tables: Tables, given: str) -> None:
    """The same for asyncio; `updated_at` moves by an update."""
    page = recipe("advanced-alchemy")
    config = page.async_config
    if given == "session_maker":
        maker: Any = ps_sqlalchemy.async_sessionmaker(page.async_engine, expire_on_commit=False)
        config = SQLAlchemyAsyncConfig(engine_instance=page.async_engine, session_maker=maker)
    tables(Author.metadata)
    try:
        async with config.get_session() as session:
            authors = AsyncAuthors(session=session)
            assert await authors.get_many() == []
            assert await session.scalar(SERVED_BY_REPLICA) is True
            author = await authors.add(Author(name="Tove"))
            assert await session.scalar(SERVED_BY_REPLICA) is False
            await session.commit()
            await session.refresh(author)
            made = author.updated_at
        async with config.get_session() as session:
            authors = AsyncAuthors(session=session)
            (author,) = await authors.get_many()
            author.name = "Tove Jansson"
            await authors.update(author)
            await session.commit()
        async with config.get_session() as session:
            (author,) = await AsyncAuthors(session=session).get_many()
            assert author.name == "Tove Jansson"
            assert author.updated_at > made
        with use_token(None):
            async with config.get_session() as session:
                assert await AsyncAuthors(session=session).get_many() == []
    finally:
        await page.async_engine.dispose()


@get("/authors")
async def list_authors(db_session: NamedDependency[StockAsyncSession]) -> list[str]:
    return [author.name for author in await AsyncAuthors(session=db_session).get_many()]


@post("/authors")
async def add_author(db_session: NamedDependency[StockAsyncSession]) -> None:
    await AsyncAuthors(session=db_session).add(Author(name="Tove"))


@pytest.fixture
def root_logger() -> Iterator[None]:
    """The root logger, which Litestar sets up, is afterwards what it was."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    root.handlers = handlers


@pytest.mark.usefixtures("root_logger")
@pytest.mark.parametrize("middleware", ["around", "inside"])
def test_litestar(ps_lab: Lab, recipe: Recipe, tables: Tables, middleware: str) -> None:
    """GET reads on a replica, and what the client's own POST wrote, where the middleware is around the application."""
    page = recipe("Litestar", route_handlers=[list_authors, add_author])
    tables(Author.metadata)
    asgi = page.asgi
    if middleware == "inside":  # what the page advises against
        asgi = Litestar(
            [list_authors, add_author],
            plugins=[SQLAlchemyPlugin(page.config)],
            middleware=[lambda app: page.ASGIMiddleware(app, keys=["a secret"])],
        )
    with TestClient(asgi) as client:
        with ps_lab.round_trips() as trips:
            assert client.get("/authors").json() == []
        assert trips.by_path["replica"] == trips.count
        with ps_lab.round_trips() as trips:
            assert client.post("/authors").status_code == 201
        assert trips.by_path["primary"] == trips.count
        assert client.get("/authors").json() == (["Tove"] if middleware == "around" else [])
        client.cookies.clear()  # somebody else
        assert client.get("/authors").json() == []


# --- without sessions of ours ---


def test_polars(ps_lab: Lab, recipe: Recipe, tables: Tables, stock: sa.Engine) -> None:
    """A connection is read from where it is, with the frame that stock has; what was written is read back at once."""
    page = recipe("polars")
    assert page.frame.to_dicts() == [{"one": 1}]
    tables(Base.metadata)
    query = "SELECT id, text, pg_is_in_recovery() AS late FROM sa_package_note"
    with page.engine.connect() as primary, page.engine.replica.connect() as replica, stock.connect() as own:
        assert pl.read_database("SELECT pg_is_in_recovery() AS there", replica)["there"].to_list() == [True]
        replica.rollback()
        primary.execute(sa.insert(Note), [{"text": "a"}, {"text": "b"}])
        primary.commit()
        written = pl.read_database(query, primary)
        assert written.equals(pl.read_database(query, own))
        assert written["late"].to_list() == [False, False]
        with ps_sqlalchemy.Session(page.engine) as session:
            assert pl.read_database(query, session.connection()).equals(written)
        (frame,) = pl.read_database(sa.text(query), primary, iter_batches=True, batch_size=5)
        assert frame.equals(written)
        assert pl.read_database(query, replica).equals(written)  # by the primary, in the replica's place
    with use_token(None), page.engine.replica.connect() as replica:
        assert pl.read_database(query, replica).is_empty()
    with pytest.raises(TypeError, match="Unrecognised connection type"):  # as the page says
        pl.read_database(query, page.engine)
    with ps_sqlalchemy.Session(page.engine) as session:
        assert pl.read_database(sa.text(query), session).columns == ["column_0", "column_1", "column_2"]


@pytest.fixture
def worker_logging() -> Iterator[None]:
    """A worker sets up the root logger, unless somebody else does."""

    def leave_alone(**_: object) -> None: ...

    celery.signals.setup_logging.connect(leave_alone)
    yield
    celery.signals.setup_logging.disconnect(leave_alone)


@pytest.mark.usefixtures("worker_logging")
def test_celery_results(ps_lab: Lab, recipe: Recipe) -> None:
    """A result that a worker stored is there when it says so, from the primary, though the URL names replicas."""
    page = recipe("Celery")
    page.celery.conf.update(broker_url="memory://", broker_transport_options={"polling_interval": 0.01})

    def double(number: int) -> int:
        return 2 * number

    task = page.celery.task(shared=False)(double)
    other = celery.Celery("shop", backend=f"db+{page.url}", set_as_current=False)
    ps_lab.set_replay_delay(LATE)
    try:
        with ps_lab.round_trips() as trips:
            with start_worker(page.celery, pool="solo", perform_ping_check=False, shutdown_timeout=30):
                result = task.delay(21)
                assert result.get(timeout=30, interval=0.05) == 42
            assert other.AsyncResult(result.id).get(timeout=30) == 42
            other.backend.store_result("by hand", 1, "SUCCESS")
            assert page.celery.AsyncResult("by hand").get(timeout=30) == 1
        assert trips.by_path["primary"] == trips.count > 0
    finally:
        ps_lab.set_replay_delay(0)


def test_apscheduler(ps_lab: Lab, recipe: Recipe) -> None:
    """A job is stored, found at once, run when it is due, and gone, all on the primary; the engine goes on after the shutdown."""
    ran: list[str] = []
    page = recipe("APScheduler", job=ran.append)
    ps_lab.set_replay_delay(LATE)
    try:
        with ps_lab.round_trips() as trips:
            page.scheduler.start()
            later = page.scheduler.add_job(f"{MODULE}:job", "interval", hours=1, args=["later"])
            assert page.scheduler.get_job(later.id).args == ("later",)
            page.scheduler.add_job(f"{MODULE}:job", "date", run_date=datetime.now(UTC), args=["now"])
            wait_until(lambda: ran == ["now"] and len(page.scheduler.get_jobs()) == 1, "the job that is due")
            page.scheduler.shutdown()
            with page.engine.connect() as connection:
                assert connection.scalars(text("SELECT id FROM apscheduler_jobs")).all() == [later.id]
        assert trips.by_path["primary"] == trips.count > 0
    finally:
        ps_lab.set_replay_delay(0)


def test_optuna(ps_lab: Lab, recipe: Recipe) -> None:
    """Two threads run trials, whose results another storage reads at once, all on the primary."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    ps_lab.set_replay_delay(LATE)
    try:
        with ps_lab.round_trips() as trips:
            page = recipe("Optuna")
            page.study.optimize(lambda trial: trial.suggest_float("x", -1, 1) ** 2, n_trials=6, n_jobs=2)
            storage = optuna.storages.RDBStorage(page.url)
            other = optuna.load_study(study_name=page.study.study_name, storage=storage)
            assert [trial.number for trial in other.trials] == list(range(6))
            assert other.best_value == page.study.best_value
        assert trips.by_path["primary"] == trips.count > 0
        for one in (page.storage, storage):
            one.remove_session()
            one.engine.dispose()
    finally:
        ps_lab.set_replay_delay(0)


# --- Sentry and OpenTelemetry: both change SQLAlchemy for all of a process, so that each has one of its own ---

WATCHED = """
import json
import sqlalchemy as sa
from sqlalchemy import orm, text
import ps_sqlalchemy
from ps_core import use_token

STATEMENTS = {
    "read": "SELECT 'read'",
    "failing": "SELECT 1 / 0",
    "refused": "SELECT id, '{kind}' FROM " + os.environ["VIEW"],  # one that no replica has refused yet
}

def work(kind, engine, name, failed=lambda: None):
    \"\"\"Run a statement in a session; on the primary by itself for the engine that is called so.\"\"\"
    class_ = orm.Session if kind == "stock" else ps_sqlalchemy.Session
    with use_token(None), class_(engine) as session:
        if kind.endswith("primary"):
            session.connection()
        try:
            session.execute(text(STATEMENTS[name].format(kind=kind)))
        except sa.exc.DataError:
            failed()

def each(*engines):
    for kind, engine in engines:
        for name in STATEMENTS:
            yield kind, engine, name
"""

SENTRY = """
class Kept(sentry_sdk.transport.Transport):
    def __init__(self):
        super().__init__()
        self.items = []

    def capture_envelope(self, envelope):
        self.items += [item.payload.json for item in envelope.items]

sentry_sdk.get_client().transport = kept = Kept()
own = sa.create_engine(os.environ["STOCK_URL"])
later = create_engine(os.environ["DATABASE_URL"], **endpoints)
for engine_ in (own, engine, engine.replica, later, later.replica):
    engine_.connect().close()  # what a first connection asks is no statement of the application's

found = {}
ours = [("before", engine), ("before, primary", engine), ("after", later), ("after, primary", later)]
for kind, engine_, name in each(("stock", own), *ours):
    kept.items.clear()
    with sentry_sdk.isolation_scope() as scope:
        scope.clear_breadcrumbs()
        current = []
        note = lambda: current.append(sentry_sdk.get_current_span() is transaction)
        with sentry_sdk.start_transaction(name="work", sampled=True) as transaction:
            work(kind, engine_, name, failed=note)
            note()
            sentry_sdk.capture_message("done")
    events = {item.get("type"): item for item in kept.items if item}
    top = events["transaction"]["contexts"]["trace"]["span_id"]
    spans = [span for span in events["transaction"]["spans"] if span["op"] == "db"]
    crumbs = [crumb for crumb in events[None]["breadcrumbs"]["values"] if crumb["category"] == "query"]
    found[f"{kind}, {name}"] = {
        "spans": [[span["description"], span.get("status"), span["parent_span_id"] == top] for span in spans],
        "breadcrumbs": [crumb["message"] for crumb in crumbs],
        "nothing is left open": all(current),
    }
print(json.dumps(found))
"""

OPENTELEMETRY = """
import asyncio, logging
INSTRUMENT
own = sa.create_engine(os.environ["STOCK_URL"])
warned = []
class Warned(logging.Handler):
    def emit(self, record):
        warned.append(record.getMessage())
logging.getLogger("opentelemetry").addHandler(Warned(logging.WARNING))
for engine_ in (own, engine, engine.replica):
    engine_.connect().close()

def spans():
    found = [
        [span.attributes["db.statement"], span.status.status_code.name, span.attributes["db.user"].partition("|")[2]]
        for span in exporter.get_finished_spans()
        if span.name != "connect"
    ]
    exporter.clear()
    return found

spans()
found = {}
for kind, engine_, name in each(("stock", own), ("ours", engine)):
    work(kind, engine_, name)
    found[f"{kind}, {name}"] = spans()

with engine.direct.connect() as connection:
    connection.execute(text("SELECT 'direct'"))
found["direct"] = spans()

async def asynchronous():
    async with async_engine.replica.connect() as connection:
        await connection.execute(text("SELECT 'async'"))
    await async_engine.dispose()

asyncio.run(asynchronous())
found["async"] = [span for span in spans() if "async" in span[0]]
found["warned"] = warned
try:
    SQLAlchemyInstrumentor().uninstrument()
except sa.exc.InvalidRequestError as exc:
    found["left"] = str(exc)
work("ours", engine, "read")
found["after"] = spans()
print(json.dumps(found))
"""

PROVIDER = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
exporter, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
"""


@pytest.fixture(scope="module")
def watched(ps_lab: Lab, database: str) -> Callable[[str], Any]:
    """Return what runs a script, with a view that writes, and returns what it told."""
    view = "writing"
    for query in (
        "CREATE TABLE written (id int)",
        "CREATE FUNCTION note() RETURNS int LANGUAGE sql AS 'INSERT INTO written VALUES (1) RETURNING 1'",
        f"CREATE VIEW {view} AS SELECT note() AS id",
        f"GRANT ALL ON written, {view} TO app",
    ):
        ps_lab.sql(query, dbname="packages")
    ps_lab.wait_replicas_caught_up()
    urls = {"DATABASE_URL": database, "STOCK_URL": stock_url(database).render_as_string(hide_password=False)}
    env = {**os.environ, **urls, "VIEW": view, "SENTRY_DSN": "https://key@localhost/1"}

    def script(text: str) -> Any:
        done = subprocess.run([sys.executable, "-c", text], env=env, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:  # no assertion: a script that does not run is no defect that a test expects
            raise RuntimeError(done.stderr)
        return json.loads(done.stdout)

    return script


@pytest.fixture(scope="module")
def sentry(watched: Callable[[str], Any]) -> Any:
    """What Sentry heard of each statement, by stock and by engines that were made before and after it began."""
    return watched(code("Sentry") + WATCHED + SENTRY)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("before", "read"),
        ("before", "failing"),
        ("before, primary", "read"),
        ("before, primary", "failing"),
        ("before, primary", "refused"),
        ("after", "read"),
        ("after", "failing"),
        ("after, primary", "read"),
        ("after, primary", "failing"),
        ("after, primary", "refused"),
    ],
)
def test_sentry(sentry: Any, kind: str, name: str) -> None:
    """A statement, and one that fails, is one span and one breadcrumb, as on stock, wherever it goes."""
    wanted = sentry[f"stock, {name}"]
    assert wanted["nothing is left open"]
    assert len(wanted["spans"]) == len(wanted["breadcrumbs"]) == 1
    wanted = json.loads(json.dumps(wanted).replace("'stock'", f"'{kind}'"))
    assert sentry[f"{kind}, {name}"] == wanted


@pytest.mark.parametrize("kind", ["before", "after"])
def test_sentry_after_a_refusal(sentry: Any, kind: str) -> None:
    """What a replica refuses and the primary does leaves no span open, of which all that follows would be a part."""
    found = sentry[f"{kind}, refused"]
    assert found["nothing is left open"]
    assert all(of_transaction for *_, of_transaction in found["spans"])
    assert found["spans"][-1][1] == sentry["stock, refused"]["spans"][0][1]


INSTRUMENT_FIRST = """
from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor
SQLAlchemyInstrumentor().instrument(skip_dep_check=True)
"""


@pytest.mark.parametrize("order", ["page", "instrumented first"])
def test_opentelemetry(watched: Callable[[str], Any], order: str) -> None:
    """A statement, and one that fails, is one span, as on stock, and says where it went; then none."""
    if order == "page":
        instrument = code("OpenTelemetry").removeprefix(code())
        script = PROVIDER + code() + WATCHED + OPENTELEMETRY.replace("INSTRUMENT", instrument)
    else:
        script = PROVIDER + INSTRUMENT_FIRST + code() + WATCHED + OPENTELEMETRY.replace("INSTRUMENT", "")
    found = watched(script)
    for name, side in (("read", "read-pool"), ("failing", "read-pool"), ("refused", "write-pool")):
        ((statement, status, _),) = found[f"stock, {name}"]
        assert found[f"ours, {name}"][-1:] == [[statement.replace("'stock'", "'ours'"), status, side]]
        assert name == "refused" or len(found[f"ours, {name}"]) == 1
    assert found["direct"] == [["SELECT 'direct'", "UNSET", ""]]
    assert found["async"] == [["SELECT 'async'", "UNSET", "read-pool"]]
    assert found["warned"] == []  # as of a span that ended twice
    if order == "page":
        assert "left" not in found
        assert found["after"] == []
    else:  # it is around create_async_engine and around what that calls: on stock, too, `uninstrument()` ends there
        assert "postgresql+ps_async" in found["left"]
        assert "ps_to" not in found["left"]
