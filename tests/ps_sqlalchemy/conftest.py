"""Engines on the lab, and a small model."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import func, orm, select
from sqlalchemy.sql import Select

from ps_core import use_token
from ps_lab import Lab
from ps_lab.processes import wait_until
from ps_sqlalchemy import Engine, create_engine


class Base(orm.DeclarativeBase):
    """The models' base."""


class Item(Base):
    """Something with a note."""

    __tablename__ = "sa_item"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    note: orm.Mapped[str]


SERVED_BY_REPLICA: Select[Any] = select(func.pg_is_in_recovery())
"""Whether a replica answered."""


@contextmanager
def engine_for(lab: Lab, **options: Any) -> Iterator[Any]:
    """An engine of a test's own, on the lab's bouncers."""
    engine = create_engine(lab.url, **{"bouncer": "write-pool", "replica_bouncer": "read-pool", **options})
    try:
        yield engine
    finally:
        engine.dispose()


def plain_url(lab: Lab, driver: str = "ps") -> str:
    """Return the URL for an application that takes nothing else."""
    return lab.url.replace("postgresql:", f"postgresql+{driver}:") + "&ps_bouncer=write-pool&ps_replica_bouncer=read-pool"


@pytest.fixture(scope="module")  # not longer: another file changes the primary under its connections
def engine(ps_lab: Lab) -> Iterator[Engine]:
    """An engine as the README makes it."""
    engine = create_engine(
        ps_lab.url, bouncer="write-pool", replica_bouncer="read-pool", statement_timeout="2s", transaction_timeout="3s"
    )
    for pool in (engine, engine.replica):
        assert pool is not None
        with pool.connect():
            pass
    yield engine
    engine.dispose()


@pytest.fixture(autouse=True)
def settled(request: pytest.FixtureRequest) -> None:
    """Begin each test with replicas that have all there is, and that are read from.

    An earlier one may have left a write that only one of them has by now, so that a second read is the primary's, or the fallback
    to it, which then ends.
    """
    if "ps_lab" in request.fixturenames:
        replica = request.getfixturevalue("engine").replica

        def on_replica() -> bool:
            with use_token(None), replica.connect() as conn:
                return bool(conn.scalar(SERVED_BY_REPLICA))

        wait_until(on_replica, "reads on replicas")
        request.getfixturevalue("ps_lab").wait_replicas_caught_up()


@pytest.fixture
def items(ps_lab: Lab, engine: Engine) -> Iterator[type[Item]]:
    """The table of `Item`, empty."""
    Base.metadata.create_all(engine.direct)
    ps_lab.wait_replicas_caught_up()
    yield Item
    Base.metadata.drop_all(engine.direct)
