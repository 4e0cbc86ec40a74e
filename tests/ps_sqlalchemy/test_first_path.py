"""The main job: sessions read from replicas and write to the primary, bounded."""

import asyncio

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy import select, text

from ps_core.context import limits
from ps_core.errors import ConfigurationError
from ps_lab import Lab
from ps_sqlalchemy import (
    AsyncSession,
    Engine,
    Session,
    Topology,
    create_async_engine,
    create_engine,
    using_primary,
    using_replica,
)
from tests.ps_sqlalchemy.conftest import SERVED_BY_REPLICA, Item

pytestmark = pytest.mark.fast


def test_engine_is_a_real_engine(engine: Engine) -> None:
    """The factory returns an Engine on the primary, with one on the replicas and one on the direct path."""
    assert isinstance(engine, sa.Engine)
    assert (engine.dialect.name, engine.dialect.driver) == ("postgresql", "psycopg")
    assert "pscale_pw" not in repr(engine)
    assert "pscale_pw" not in str(engine.url)
    for pool, in_recovery in ((engine, False), (engine.replica, True), (engine.direct, False)):
        assert pool is not None
        with pool.connect() as conn:
            assert conn.scalar(SERVED_BY_REPLICA) is in_recovery
    assert sa.inspect(engine.direct).get_schema_names()


def test_url_alone_makes_an_engine(ps_lab: Lab) -> None:
    """`postgresql+ps://` in any application that takes only a URL; the settings are its `ps_*` parameters."""
    url = ps_lab.url.replace("postgresql://", "postgresql+ps://") + "&ps_bouncer=write-pool&ps_statement_timeout=1s"
    plain = sa.create_engine(url)
    with plain.connect() as conn:
        assert conn.scalar(text("SHOW statement_timeout")) == "1s"
    plain.dispose()


def test_refusals(ps_lab: Lab) -> None:
    """What cannot work is refused when the engine is made, and a Topology takes no settings."""
    with pytest.raises(ConfigurationError, match="statement_timeout"):
        create_engine(ps_lab.url, statement_timeout="3s", transaction_timeout="3s")
    with pytest.raises(ConfigurationError, match="bouncer"):
        create_engine(ps_lab.url, bouncer="replica")
    with pytest.raises(TypeError, match=r"Topology\.from_url"):
        create_engine(Topology.from_url(ps_lab.url), bouncer="write-pool")


@pytest.mark.parametrize("side", ["primary", "replica"])
def test_timeouts_hold(engine: Engine, side: str) -> None:
    """Both timeouts hold in every transaction on both bouncers, and a statement that takes too long is cancelled."""
    pool = engine if side == "primary" else engine.replica
    assert pool is not None
    for _ in range(3):
        with pool.begin() as conn:
            assert conn.scalar(text("SHOW statement_timeout")) == "2s"
            assert conn.scalar(text("SHOW transaction_timeout")) == "3s"
    with limits(statement="300ms"), pool.connect() as conn, pytest.raises(sa.exc.OperationalError) as failure:
        conn.execute(text("SELECT pg_sleep(20)"))
    assert isinstance(failure.value.orig, psycopg.errors.QueryCanceled)


def test_reads_and_writes_are_routed(ps_lab: Lab, engine: Engine, items: type[Item]) -> None:
    """Reads go to a replica until the session writes; a declared transaction, and what is not known as a read, to the primary."""
    with Session(engine) as session:
        assert session.scalar(SERVED_BY_REPLICA) is True
        assert session.scalars(select(items)).all() == []
        session.add(items(id=1, note="a"))
        session.flush()
        assert session.scalar(SERVED_BY_REPLICA) is False
        session.commit()
        ps_lab.wait_replicas_caught_up()
        assert session.scalar(SERVED_BY_REPLICA) is True
    with Session(engine) as session:
        found = session.get(items, 1)
        assert found is not None
        assert found.note == "a"
        assert session.scalar(select(sa.func.pg_is_in_recovery()).with_for_update()) is False
    with Session(engine) as session, session.begin():
        assert session.scalar(SERVED_BY_REPLICA) is False
    with Session(engine) as session:
        assert session.scalar(text("SELECT pg_is_in_recovery()")) is True
        assert session.scalar(text("WITH x AS (UPDATE sa_item SET note = 'b' RETURNING 1) SELECT pg_is_in_recovery()")) is False
        session.commit()
    ps_lab.wait_replicas_caught_up()
    with Session(engine) as session, using_primary():
        assert session.scalar(SERVED_BY_REPLICA) is False
        with using_replica():
            assert session.scalar(SERVED_BY_REPLICA) is True
        assert session.scalar(SERVED_BY_REPLICA) is False


def test_round_trips(ps_lab: Lab, engine: Engine, items: type[Item]) -> None:
    """A session that reads n times on a replica costs n round trips; a transaction of n statements n + 1; an empty one none."""
    for reads in (1, 4):
        with ps_lab.round_trips() as counter, Session(engine) as session:
            for _ in range(reads):
                session.scalars(select(items)).all()
        assert (counter.count, counter.by_path["replica"]) == (reads, reads)
    with ps_lab.round_trips() as counter, Session(engine) as session, session.begin():
        session.execute(sa.insert(items).values(id=1, note="a"))
        session.execute(sa.update(items).values(note="b"))
    assert (counter.count, counter.by_path["primary"]) == (3, 3)
    with ps_lab.round_trips() as counter, Session(engine) as session, session.begin():
        pass
    assert counter.count == 0


def test_async(ps_lab: Lab, items: type[Item]) -> None:
    """The asyncio engine and session do the same."""

    async def work() -> None:
        engine = create_async_engine(ps_lab.url, bouncer="write-pool", replica_bouncer="read-pool")
        async with AsyncSession(engine) as session:
            assert await session.scalar(SERVED_BY_REPLICA) is True
            session.add(items(id=1, note="a"))
            await session.commit()
        async with AsyncSession(engine) as session, session.begin():
            assert await session.scalar(SERVED_BY_REPLICA) is False
            assert (await session.scalars(select(items.note))).all() == ["a"]
        ps_lab.wait_replicas_caught_up()
        with ps_lab.round_trips() as counter:
            async with AsyncSession(engine) as session:
                await session.scalar(SERVED_BY_REPLICA)
        assert counter.count == 1
        ps_lab.edge.cut()
        async with AsyncSession(engine) as session:
            assert await session.scalar(SERVED_BY_REPLICA) is True
        await engine.dispose()

    asyncio.run(work())
