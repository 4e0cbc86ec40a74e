"""What a session may be told, and what it refuses."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
import sqlalchemy.ext.asyncio
from sqlalchemy import orm, select, text
from sqlalchemy.orm.exc import StaleDataError

import ps_sqlalchemy
from ps_core import ConfigurationError, limits, local_settings, set_replica_share, subscribe, use_token
from ps_core.errors import UnknownSetting
from ps_lab import Lab
from ps_sqlalchemy import (
    AsyncSession,
    Engine,
    Session,
    async_sessionmaker,
    sessionmaker,
    using_primary,
    using_replica,
    without_sticky_writes,
)
from tests.ps_sqlalchemy.conftest import SERVED_BY_REPLICA, Base, Item


class Versioned(Base):
    """A row with a version of its own."""

    __tablename__ = "sa_versioned"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    note: orm.Mapped[str]
    version: orm.Mapped[int] = orm.mapped_column()
    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 - SQLAlchemy's name and form


def on_replica(session: Session) -> bool:
    """Return whether a read of this session is served by a replica."""
    return bool(session.scalar(SERVED_BY_REPLICA))


# --- options and blocks ---


def test_route_of_one_statement(engine: Engine, items: type[Item]) -> None:
    """`ps_route` decides for one statement, before and after a write, and leaves the session as it was."""
    with Session(engine) as session:
        assert session.scalar(SERVED_BY_REPLICA.execution_options(ps_route="primary")) is False
        assert on_replica(session)
        assert session.scalar(SERVED_BY_REPLICA, execution_options={"ps_route": "primary"}) is False
        assert on_replica(session)
        session.add(items(id=1, note="a"))
        session.flush()
        assert not on_replica(session)
        assert session.scalar(SERVED_BY_REPLICA, execution_options={"ps_route": "replica"}) is True
        assert not on_replica(session)
    with Session(engine) as session, session.begin():
        assert session.scalar(SERVED_BY_REPLICA, execution_options={"ps_route": "replica"}) is True
    with Session(engine) as session, pytest.raises(ConfigurationError, match="ps_route"):
        session.execute(SERVED_BY_REPLICA, execution_options={"ps_route": "secondary"})


def test_options_that_do_not_exist(engine: Engine) -> None:
    """An option of ours that nobody heeds is refused: it may be there for a tenant, or for the primary."""
    with Session(engine) as session:
        for option, message in (
            ("ps_rout", r"(?m)^there is no execution option ps_rout: did you mean ps_route\?$"),
            ("ps_local_settings", "no execution option ps_local_settings"),
        ):
            with pytest.raises(UnknownSetting, match=message):
                session.execute(SERVED_BY_REPLICA, execution_options={option: "primary"})
            with pytest.raises(UnknownSetting, match=message):
                session.execute(SERVED_BY_REPLICA.execution_options(**{option: "primary"}))
        with pytest.raises(UnknownSetting, match=r"with limits\(\.\.\.\)"):
            session.connection(execution_options={"ps_limits": {"statement": "60s"}})
    for set_option in (engine.execution_options, engine.update_execution_options, engine.connect().execution_options):
        with pytest.raises(UnknownSetting, match=r"^ps_route is no option of an engine or a connection"):
            set_option(ps_route="primary")


def test_limits_of_one_statement(engine: Engine) -> None:
    """`ps_limits` bounds the transaction that the statement opens; `limits` does so for a block, on either side."""
    shown = text("SELECT current_setting('statement_timeout')")
    with Session(engine) as session:
        assert session.scalar(shown) == "2s"
        assert session.scalar(shown, execution_options={"ps_limits": {"statement": "9s"}}) == "9s"
        assert session.scalar(shown) == "2s"
    for route in (using_primary, using_replica):
        with route(), limits(statement="7s"), local_settings({"app.tenant": "42"}), Session(engine) as session:
            assert session.scalar(shown) == "7s"
            assert session.scalar(text("SELECT current_setting('app.tenant')")) == "42"


def test_blocks_nest_and_restore(engine: Engine) -> None:
    """Blocks nest, and what was before comes back, also after an exception."""
    with Session(engine) as session:
        with using_primary():
            assert not on_replica(session)
            with using_replica():
                assert on_replica(session)
            assert not on_replica(session)
        with pytest.raises(ZeroDivisionError), using_primary():
            raise ZeroDivisionError
        assert on_replica(session)


def test_reading_context_of_a_declared_transaction(engine: Engine, items: type[Item]) -> None:
    """In a reading context, a declared transaction starts on a replica, and goes to the primary with its first write."""
    with using_replica(), Session(engine) as session, session.begin():
        assert on_replica(session)
        session.add(items(id=1, note="a"))
        session.flush()
        assert not on_replica(session)


def test_without_sticky_writes(engine: Engine, items: type[Item]) -> None:
    """A write in the block does not send the rest to the primary; one after it does."""
    with Session(engine) as session:
        with without_sticky_writes():
            session.add(items(id=1, note="audit"))
            session.flush()
        assert on_replica(session)
        session.execute(sa.update(items).values(note="b"))
        assert not on_replica(session)
        session.commit()
        assert session.get_one(items, 1).note == "b"


def test_sessions_do_not_influence_each_other(engine: Engine, items: type[Item]) -> None:
    """What one session wrote, or rolled back, says nothing about another one of the same task."""
    with Session(engine) as one, Session(engine) as two:
        one.add(items(id=1, note="a"))
        one.flush()
        assert (on_replica(one), on_replica(two)) == (False, True)
        one.rollback()
        assert (on_replica(one), on_replica(two)) == (True, True)


def test_replica_share(engine: Engine) -> None:
    """The operators' switch turns replicas off and on; what asks for a replica gets one all the same."""
    try:
        set_replica_share(0)
        with Session(engine) as session:
            assert not on_replica(session)
            with using_replica():
                assert not on_replica(session)  # this transaction has been on the primary
        with using_replica(), Session(engine) as session:
            assert on_replica(session)
        set_replica_share(0.5)
        first: list[Any] = []
        for _ in range(60):
            with Session(engine) as session:
                sides = set()
                for _ in range(3):
                    with use_token(None):  # or a replica that is a moment behind another is not asked
                        sides.add(on_replica(session))
                assert len(sides) == 1  # one answer for the whole transaction
                first += sides
        assert 5 < sum(first) < 55
    finally:
        set_replica_share(None)


def test_two_phase_is_refused(engine: Engine) -> None:
    """Two-phase commit is refused when the session is made, with what to write instead."""
    with pytest.raises(ConfigurationError, match="twophase=False"):
        Session(engine, twophase=True)
    with pytest.raises(ConfigurationError, match=r"engine\.direct"):
        sessionmaker(engine, twophase=True)()


def test_echo_shows_the_statement_and_the_route(ps_lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    """The loggers tell which side a statement went to; the opening is not in it."""
    engine = ps_sqlalchemy.create_engine(ps_lab.url, bouncer="write-pool", replica_bouncer="read-pool")
    try:
        with caplog.at_level(logging.INFO, "sqlalchemy.engine"), Session(engine) as session:
            session.execute(text("SELECT 'here'"))
            session.execute(text("SELECT 'there'"), execution_options={"ps_route": "primary"})
        told = [(record.name.rpartition(".")[2], record.getMessage()) for record in caplog.records]
        assert [name for name, message in told if message.endswith("SELECT 'here'")] == ["replica"]
        assert [name for name, message in told if message.endswith("SELECT 'there'")] == ["primary"]
        assert "SET LOCAL" not in caplog.text
    finally:
        engine.dispose()


# --- read-only sessions ---


def test_read_only_session(ps_lab: Lab, engine: Engine, items: type[Item]) -> None:
    """A read-only session reads from replicas alone, declared or not, and sends nothing that would write."""
    with Session(engine, read_only=True) as session, session.begin():
        assert on_replica(session)
        assert session.connection().scalar(SERVED_BY_REPLICA) is True
    with ps_lab.round_trips() as trips, Session(engine, read_only=True) as session:
        session.add(items(id=1, note="a"))
        with pytest.raises(sa.exc.InvalidRequestError, match="read_only"):
            session.flush()
        with pytest.raises(sa.exc.InvalidRequestError, match="read_only"):
            session.commit()
        session.expunge_all()
        for statement in (sa.insert(items).values(id=2, note="b"), select(items).with_for_update(), sa.delete(items)):
            with pytest.raises(sa.exc.InvalidRequestError, match="read_only"):
                session.execute(statement)
        with pytest.raises(sa.exc.InvalidRequestError, match="read_only"):
            session.bulk_insert_mappings(sa.inspect(items), [{"id": 3, "note": "c"}])
    assert trips.count == 0
    with Session(engine, read_only=True) as session, pytest.raises(sa.exc.InternalError):
        session.execute(text("INSERT INTO sa_item VALUES (4, 'd')"))
    assert ps_lab.sql("SELECT count(*) FROM sa_item") == [(0,)]


@pytest.mark.parametrize("made", ["by create_engine", "from a URL"])
async def test_read_only_session_that_is_behind(ps_lab: Lab, engine: Engine, items: type[Item], made: str) -> None:
    """What the caller has seen and no replica has is read on the primary, and what writes is refused there, too."""
    url = f"{ps_lab.url}&ps_bouncer=write-pool&ps_replica_bouncer=read-pool".replace("postgresql://", "postgresql+ps://")
    reading = engine if made == "by create_engine" else sa.create_engine(url)
    asyncio_engine = ps_sqlalchemy.create_async_engine(ps_lab.url, bouncer="write-pool", replica_bouncer="read-pool")
    failed: list[Any] = []
    note = failed.append
    sa.event.listen(reading, "handle_error", note)
    ps_lab.set_replay_delay(60)
    try:
        with Session(engine) as session:
            session.add(items(id=1, note="a"))
            session.commit()
        with Session(reading, read_only=True) as session:
            assert session.scalar(select(items.note)) == "a"
            assert session.get(items, 1) is not None
            with use_token(None):
                assert on_replica(session)
        assert not failed
        with Session(reading, read_only=True) as session, pytest.raises(sa.exc.InternalError, match="read-only"):
            session.execute(text("INSERT INTO sa_item VALUES (4, 'd')"))
        with Session(reading, read_only=True) as session, pytest.raises(sa.exc.InternalError, match="read-only"):
            session.execute(text("INSERT INTO sa_item VALUES (4, 'd')"), execution_options={"ps_route": "primary"})
        async with AsyncSession(asyncio_engine, read_only=True) as asession:
            assert await asession.scalar(select(items.note)) == "a"
    finally:
        ps_lab.set_replay_delay(0)
        ps_lab.wait_replicas_caught_up()
        sa.event.remove(reading, "handle_error", note)
        await asyncio_engine.dispose()
        if reading is not engine:
            reading.dispose()
    assert ps_lab.sql("SELECT id FROM sa_item") == [(1,)]


def test_read_only_session_without_replicas(ps_lab: Lab, items: type[Item]) -> None:
    """Where there are no replicas, a read-only session reads from the primary, READ ONLY."""
    engine = ps_sqlalchemy.create_engine(ps_lab.url, bouncer="write-pool")
    try:
        with Session(engine, read_only=True) as session:
            assert not on_replica(session)
            with pytest.raises(sa.exc.InternalError):
                session.execute(text("INSERT INTO sa_item VALUES (4, 'd')"))
    finally:
        engine.dispose()


# --- stale rows ---


@pytest.fixture
def lagging(ps_lab: Lab, engine: Engine, items: type[Item]) -> Iterator[type[Item]]:
    """Three items that replicas have, and a change of the first one that they do not have yet."""
    with Session(engine) as session:
        session.add_all([*(items(id=number, note="old") for number in (1, 2, 3)), Versioned(id=1, note="old", version=1)])
        session.commit()
    ps_lab.wait_replicas_caught_up()
    ps_lab.set_replay_delay(60)
    ps_lab.sql("UPDATE sa_item SET note = 'newer' WHERE id = 1; UPDATE sa_versioned SET note = 'newer', version = 2")
    try:
        yield items
    finally:
        ps_lab.set_replay_delay(0)
        ps_lab.wait_replicas_caught_up()


def test_no_lost_update(ps_lab: Lab, engine: Engine, lagging: type[Item]) -> None:
    """A row that is newer on the primary than what the replica gave is not overwritten."""
    with use_token(None), Session(engine) as session:
        item = session.get_one(lagging, 1)
        assert item.note == "old"
        item.note = "mine"
        with pytest.raises(StaleDataError, match="'note' was changed on the primary"):
            session.commit()
    assert ps_lab.sql("SELECT note FROM sa_item WHERE id = 1") == [("newer",)]


def test_no_lost_delete(ps_lab: Lab, engine: Engine, lagging: type[Item]) -> None:
    """Nor is it deleted."""
    with use_token(None), Session(engine) as session:
        session.delete(session.get_one(lagging, 1))
        with pytest.raises(StaleDataError, match="changed on the primary"):
            session.flush()
    assert ps_lab.sql("SELECT count(*) FROM sa_item") == [(3,)]


def test_rows_that_did_not_change_cost_one_statement(ps_lab: Lab, engine: Engine, lagging: type[Item]) -> None:
    """All dirty rows of a mapper are compared in one statement, in the first flush; a second flush of theirs costs nothing."""
    heard: list[str] = []
    listener = lambda *args: heard.append(args[2].split()[0])  # noqa: E731 - to be removed again
    sa.event.listen(engine, "before_cursor_execute", listener)
    try:
        with use_token(None), Session(engine) as session:
            rows = session.scalars(select(lagging).where(lagging.id > 1).order_by(lagging.id)).all()
            assert len(rows) == 2
            heard.clear()
            for row in rows:
                row.note = "mine"
            session.flush()
            rows[0].note = "again"
            session.flush()
            session.commit()
    finally:
        sa.event.remove(engine, "before_cursor_execute", listener)
    assert heard == ["SELECT", "UPDATE", "UPDATE"]
    assert ps_lab.sql("SELECT note FROM sa_item ORDER BY id") == [("newer",), ("again",), ("mine",)]


def test_stale_check_off(ps_lab: Lab, engine: Engine, lagging: type[Item]) -> None:
    """`stale_check=False` leaves it as SQLAlchemy does it."""
    with use_token(None), Session(engine, stale_check=False) as session:
        session.get_one(lagging, 1).note = "mine"
        session.commit()
    assert ps_lab.sql("SELECT note FROM sa_item WHERE id = 1") == [("mine",)]


def test_own_version_is_used_instead(ps_lab: Lab, engine: Engine, lagging: type[Item]) -> None:
    """A mapper with a version column has no extra statement, and the same error."""
    with use_token(None), Session(engine) as session:
        row = session.get_one(Versioned, 1)
        row.note = "mine"
        with ps_lab.round_trips() as trips, pytest.raises(StaleDataError, match="expected to update 1 row"):
            session.flush()
        assert trips.by_path == {"primary": 2}  # the UPDATE, and the rollback


def test_locked_rows_are_read_again(ps_lab: Lab, engine: Engine, lagging: type[Item]) -> None:
    """What the error recommends works: with_for_update() reads the row on the primary, and the write goes through."""
    with use_token(None), Session(engine) as session:
        session.get_one(lagging, 1)
        item = session.get_one(lagging, 1, with_for_update=True, populate_existing=True)
        assert item.note == "newer"
        item.note = "mine"
        session.commit()
    assert ps_lab.sql("SELECT note FROM sa_item WHERE id = 1") == [("mine",)]


def test_kept_rows_are_compared_in_the_next_transaction(ps_lab: Lab, engine: Engine, lagging: type[Item]) -> None:
    """With expire_on_commit=False a row outlives the transaction that read it from a replica, and is compared all the same."""
    with use_token(None), Session(engine, expire_on_commit=False) as session:
        item = session.get_one(lagging, 1)
        session.commit()
        item.note = "mine"
        with pytest.raises(StaleDataError, match="changed on the primary"):
            session.commit()


def test_async_session(ps_lab: Lab, items: type[Item]) -> None:
    """AsyncSession takes the same options, and refuses and compares the same way."""

    async def main() -> None:
        engine = ps_sqlalchemy.create_async_engine(ps_lab.url, bouncer="write-pool", replica_bouncer="read-pool")
        try:
            async with AsyncSession(engine, read_only=True) as session:
                assert await session.scalar(SERVED_BY_REPLICA) is True
                session.add(items(id=1, note="a"))
                with pytest.raises(sa.exc.InvalidRequestError, match="read_only"):
                    await session.commit()
            async with AsyncSession(engine) as session:
                assert await session.scalar(SERVED_BY_REPLICA, execution_options={"ps_route": "primary"}) is False
                assert await session.scalar(SERVED_BY_REPLICA) is True
            ps_lab.sql("INSERT INTO sa_item VALUES (7, 'old')")
            ps_lab.wait_replicas_caught_up()
            async with AsyncSession(engine) as session:
                item: Any = await session.get(items, 7)
                ps_lab.sql("UPDATE sa_item SET note = 'newer'")
                item.note = "mine"
                with pytest.raises(StaleDataError, match="changed on the primary"):
                    await session.commit()
        finally:
            await engine.dispose()

    asyncio.run(main())


# --- the sessions inside of asyncio's ---


class Plain(orm.Session):
    """Somebody else's session, with a method more, and one of SQLAlchemy's that is not ours."""

    def count(self) -> int:
        """Return how many rows there are."""
        return self.scalars(select(sa.func.count()).select_from(Item)).one()

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        """Do as SQLAlchemy's."""
        return super().execute(*args, **kwargs)


class OwnRouting(orm.Session):
    """One that chooses its engines."""

    def get_bind(self, *args: Any, **kwargs: Any) -> Any:
        """Do as SQLAlchemy's."""
        return super().get_bind(*args, **kwargs)


class OwnArguments(orm.Session):
    """One with arguments of its own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)


class Routed(Session):
    """One of ours."""


class OfPlain(AsyncSession):
    """A subclass that names its sync class."""

    sync_session_class = Plain


class OfMaker(AsyncSession):
    """One that names a sessionmaker."""

    sync_session_class = orm.sessionmaker(class_=Plain)  # type: ignore[assignment]


class StrangersFirst(sa.ext.asyncio.AsyncSession):
    """The same as SQLModel's AsyncSession: it names its sync class, and reaches for what that has more."""

    sync_session_class: type[orm.Session] = Plain

    async def count(self) -> int:
        """Return how many rows there are."""
        return await self.run_sync(lambda session: session.count())  # type: ignore[attr-defined]


class OfBoth(StrangersFirst, AsyncSession):
    """An application's, of both."""


MAKERS: dict[str, Any] = {
    "SQLAlchemy's": lambda engine: AsyncSession(engine, sync_session_class=orm.Session),
    "a subclass": lambda engine: AsyncSession(engine, sync_session_class=Plain),
    "one of ours": lambda engine: AsyncSession(engine, sync_session_class=Routed),
    "a sessionmaker": lambda engine: AsyncSession(engine, sync_session_class=orm.sessionmaker()),
    "a sessionmaker of ours": lambda engine: AsyncSession(engine, sync_session_class=sessionmaker()),
    "a function": lambda engine: AsyncSession(engine, sync_session_class=partial(Routed)),
    "async_sessionmaker": lambda engine: async_sessionmaker(engine, sync_session_class=Plain)(),
    "configure()": lambda engine: configured(async_sessionmaker(engine), Plain)(),
    "stock async_sessionmaker": lambda engine: sa.ext.asyncio.async_sessionmaker(
        engine, class_=AsyncSession, sync_session_class=Plain
    )(),
    "class attribute": OfPlain,
    "class attribute, a sessionmaker": OfMaker,
    "class_": lambda engine: async_sessionmaker(engine, class_=OfPlain)(),
    "two bases": OfBoth,
}


def configured(maker: Any, sync_session_class: Any) -> Any:
    """Do what advanced-alchemy does to an async_sessionmaker."""
    maker.configure(sync_session_class=sync_session_class)
    return maker


@pytest.mark.parametrize("made", MAKERS)
async def test_sync_session_class(ps_lab: Lab, items: type[Item], made: str) -> None:
    """Whatever class of sessions is asked for inside of an AsyncSession, it is routed, refuses, and compares rows."""
    engine = ps_sqlalchemy.create_async_engine(ps_lab.url, bouncer="write-pool", replica_bouncer="read-pool")
    ps_lab.sql("INSERT INTO sa_item VALUES (7, 'old')")
    ps_lab.wait_replicas_caught_up()
    try:
        async with MAKERS[made](engine) as session:
            assert isinstance(session, AsyncSession)
            assert await session.scalar(SERVED_BY_REPLICA) is True
            item: Any = await session.get(items, 7)
            ps_lab.sql("UPDATE sa_item SET note = 'newer'")
            item.note = "mine"
            with pytest.raises(StaleDataError, match="changed on the primary"):
                await session.commit()
        async with MAKERS[made](engine) as session, session.begin():
            assert await session.scalar(SERVED_BY_REPLICA) is False
            assert isinstance(session.sync_session, Session)
            if made not in ("SQLAlchemy's", "one of ours", "a function", "a sessionmaker", "a sessionmaker of ours"):
                assert isinstance(session.sync_session, Plain)
                assert await session.run_sync(lambda sync: sync.count()) == 1
    finally:
        await engine.dispose()


class Marking(orm.sessionmaker[orm.Session]):
    """A sessionmaker that does more."""

    def __call__(self, **kwargs: Any) -> orm.Session:
        session = super().__call__(**kwargs)
        session.info["marked"] = True
        return session


async def test_sessionmaker_inside(ps_lab: Lab, items: type[Item]) -> None:
    """A sessionmaker in place of the class, as advanced-alchemy sets one, keeps its listeners, old and new, and its arguments."""
    heard: list[str] = []
    inside = Marking(expire_on_commit=False, info={"a": 1})
    sa.event.listen(inside, "before_flush", lambda *_: heard.append("before"))
    engine = ps_sqlalchemy.create_async_engine(ps_lab.url, bouncer="write-pool", replica_bouncer="read-pool")
    maker = ps_sqlalchemy.async_sessionmaker(engine, read_only=False)
    maker.configure(sync_session_class=inside)
    try:
        async with maker.begin() as session:
            session.add(items(id=1, note="a"))
        sa.event.listen(inside, "after_commit", lambda _: heard.append("after"))
        inside.configure(info={"b": 2})
        async with maker.begin() as session:
            session.add(items(id=2, note="a"))
            assert session.info == {"b": 2, "marked": True}
        assert heard == ["before", "before", "after"]
        assert not issubclass(inside.class_, Session)
        assert isinstance(inside(), orm.Session)
        assert not isinstance(inside(), Session)
    finally:
        await engine.dispose()


def test_routed_once() -> None:
    """The class is made once, under the name of the one that it is made of, which stays as it was."""
    first, second = (type(AsyncSession(sync_session_class=Plain).sync_session) for _ in range(2))
    assert first is second
    assert (first.__name__, first.__module__) == ("Plain", __name__)
    assert issubclass(first, Plain)
    assert not issubclass(Plain, Session)

    class Derived(Plain):
        """A class of its own."""

    assert issubclass(type(AsyncSession(sync_session_class=Derived).sync_session), Derived)
    assert type(AsyncSession().sync_session) is Session
    assert type(AsyncSession(sync_session_class=Routed).sync_session) is Routed


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            OwnRouting,
            r"(?m)^sync_session_class: OwnRouting has get_bind of its own, .*: write class OwnRouting\(ps_sqlalchemy\.Session\)$",
        ),
        (orm.sessionmaker(class_=OwnRouting), r"sync_session_class: OwnRouting has get_bind of its own"),
        (OwnArguments, r"sync_session_class: OwnArguments has __init__ of its own"),
        (partial(orm.Session), "(?m)makes a Session: let it make a ps_sqlalchemy.Session$"),
    ],
)
def test_sync_session_class_refused(given: Any, message: str) -> None:
    """What cannot be routed is refused with what to write, by a sessionmaker at once where that can be known."""

    class Own(AsyncSession):
        """One that has it as its attribute."""

        sync_session_class = given if isinstance(given, type) else staticmethod(given)  # type: ignore[assignment]

    makes: tuple[Callable[[], object], ...] = (lambda: AsyncSession(sync_session_class=given), Own)
    for make in makes:
        with pytest.raises(ConfigurationError, match=message):
            make()
    if isinstance(given, type | orm.sessionmaker):
        with pytest.raises(ConfigurationError, match=message):
            ps_sqlalchemy.async_sessionmaker(sync_session_class=given)
        with pytest.raises(ConfigurationError, match=message):
            ps_sqlalchemy.async_sessionmaker(class_=Own)


# --- isolation levels ---


@pytest.mark.parametrize("of_all", [True, False], ids=["create_engine", "execution_options"])
@pytest.mark.parametrize("made", ["by create_engine", "from a URL"])
async def test_serializable_is_the_primarys(ps_lab: Lab, made: str, *, of_all: bool) -> None:
    """At SERIALIZABLE, which PostgreSQL has on no standby, sessions of every kind read on the primary, and the log says why."""
    url = f"{ps_lab.url}&ps_bouncer=write-pool&ps_replica_bouncer=read-pool"
    level = {"isolation_level": "SERIALIZABLE"}
    given: dict[str, Any] = level if of_all else {}
    if made == "by create_engine":
        engine: Any = ps_sqlalchemy.create_engine(url, **given)
        aengine: Any = ps_sqlalchemy.create_async_engine(url, **given)
    else:
        engine = sa.create_engine(url.replace("postgresql:", "postgresql+ps:"), **given)
        aengine = sa.ext.asyncio.create_async_engine(url.replace("postgresql:", "postgresql+ps_async:"), **given)
    strict, astrict = (engine, aengine) if of_all else (engine.execution_options(**level), aengine.execution_options(**level))
    told: list[str] = []
    unsubscribe = subscribe(lambda event: told.append(event.reason) if event.name == "route" else None)
    shown = text("SELECT pg_is_in_recovery(), current_setting('transaction_isolation'), current_setting('transaction_read_only')")
    try:
        for read_only in (False, True):
            expected = (False, "serializable", "on" if read_only else "off")
            with Session(strict, read_only=read_only) as session:
                for _ in range(2):
                    assert session.execute(shown).one() == expected
                with using_replica():
                    assert session.execute(shown, execution_options={"ps_route": "replica"}).one() == expected
            async with AsyncSession(astrict, read_only=read_only) as asession:
                assert (await asession.execute(shown)).one() == expected
        assert set(told) == {"SERIALIZABLE"}
        if not of_all:
            with Session(engine) as session:
                assert on_replica(session)
    finally:
        unsubscribe()
        engine.dispose()
        await aengine.dispose()


@pytest.mark.parametrize("name", ["replica_isolation_level", "replica_execution_options", "execution_options"])
def test_isolation_level_of_the_replicas(ps_lab: Lab, items: type[Item], name: str) -> None:
    """The replicas may have a level of their own; the primary has the engine's, also after a connection had another one."""
    options: dict[str, Any] = {"bouncer": "write-pool", "replica_bouncer": "read-pool"}
    if name == "execution_options":
        options[name] = {"isolation_level": "REPEATABLE READ"}
        of_primary = "repeatable read"
    else:
        own = "REPEATABLE READ" if name == "replica_isolation_level" else {"isolation_level": "REPEATABLE READ"}
        options |= {"isolation_level": "SERIALIZABLE", name: own}
        of_primary = "serializable"
    engine = ps_sqlalchemy.create_engine(ps_lab.url, **options)
    shown = text("SELECT pg_is_in_recovery(), current_setting('transaction_isolation')")
    try:
        for number in (1, 2):
            for read_only in (False, True):
                with use_token(None), Session(engine, read_only=read_only) as session:
                    assert session.execute(shown).one() == (True, "repeatable read")
            with Session(engine) as session:
                session.add(items(id=number, note="a"))
                session.commit()
                with session.begin():
                    assert session.execute(shown).one() == (False, of_primary)
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
                assert conn.execute(shown).one() == (False, "read committed")
    finally:
        engine.dispose()


def test_serializable_on_a_replica(engine: Engine) -> None:
    """A caller who asks a replica itself for SERIALIZABLE is told by the server what to write."""
    replica = engine.execution_options(isolation_level="SERIALIZABLE").replica  # type: ignore[attr-defined]
    with replica.connect() as conn, pytest.raises(sa.exc.NotSupportedError, match=r"(?s)hot standby.*REPEATABLE READ"):
        conn.execute(text("SELECT 1"))
