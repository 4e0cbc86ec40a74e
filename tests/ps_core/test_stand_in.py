"""A connection to a replica lets the primary answer in its place, READ ONLY, and returns when the transaction ends."""

import asyncio
import time
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from ps_core import AsyncConnection, Connection, RetryPolicy, Token, Topology, use_token
from ps_core._registry import state_of
from ps_core.errors import Demoted, ReplicaBehind
from ps_lab import Lab

FAR = 1 << 62
WHERE = "SELECT pg_is_in_recovery()"


class Driven:
    """A connection, sync or asyncio, with the same methods."""

    def __init__(self, kind: str, topology: Topology, **options: Any) -> None:
        self._runner = asyncio.Runner()
        self._run: Callable[[Any], Any] = lambda result: result
        if kind == "asyncio":
            self._run = lambda result: self._runner.run(result, context=copy_context())
        connect: Any = AsyncConnection.connect if kind == "asyncio" else Connection.connect
        self.conn: Any = self._run(connect(topology, to="replica", **options))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *args: self._run(getattr(self.conn, name)(*args))

    def close(self) -> None:
        """Close the connection, and its loop."""
        self._run(self.conn.close())
        self._runner.close()

    def ask(self, query: str) -> Any:
        """The first value of the answer."""
        return self._run(self._run(self.conn.execute(query)).fetchone())[0]


@pytest.fixture(params=["sync", "asyncio"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def topology_of(lab: Lab, **settings: Any) -> Topology:
    return Topology.from_url(lab.url, bouncer="write-pool", replica_bouncer="read-pool", **settings)


def ahead(lab: Lab, position: int | None = FAR) -> Token:
    """What a caller has seen that no replica has."""
    return Token(identity=lab.branch, position=position, at=time.time())


def refuse(driven: Driven, lab: Lab, position: int | None = FAR) -> None:
    """Let the replica refuse a read."""
    with use_token(ahead(lab, position)), pytest.raises(ReplicaBehind):
        driven.execute(WHERE)


@pytest.mark.parametrize("position", [FAR, None])
@pytest.mark.parametrize("autocommit", [True, False])
def test_stands_in(ps_lab: Lab, kind: str, autocommit: bool, position: int | None) -> None:
    """The primary answers what it was refused, writes nothing, and what follows the transaction is the replica's."""
    driven = Driven(kind, topology_of(ps_lab), autocommit=autocommit)
    with use_token(None):
        assert driven.ask(WHERE) is True
        driven.rollback()
    refuse(driven, ps_lab, position)
    assert driven.stand_in() is True
    assert driven.conn.stands_in
    with use_token(ahead(ps_lab, position)):
        assert driven.ask(WHERE) is False
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            driven.execute("CREATE TABLE never (id int)")
    driven.rollback()
    with use_token(None):
        assert driven.ask(WHERE) is True
    assert not driven.conn.stands_in
    driven.close()


def test_session_travels(ps_lab: Lab, kind: str) -> None:
    """What was SET holds on both sides, and the time zone that the pooler keeps, too; a lost connection is made anew there."""
    driven = Driven(kind, topology_of(ps_lab), autocommit=True)
    with use_token(None):
        driven.execute("SET search_path = pg_catalog")
        driven.execute("SET TIME ZONE 'Asia/Tokyo'")
    refuse(driven, ps_lab)
    assert driven.stand_in()
    for _ in range(2):
        with use_token(ahead(ps_lab)):
            assert driven.ask("SHOW search_path") == "pg_catalog"
            assert driven.ask("SHOW TimeZone") == "Asia/Tokyo"
            assert driven.ask(WHERE) is False
        ps_lab.edge.cut()
    driven.go_home()
    with use_token(None):
        assert driven.ask("SHOW search_path") == "pg_catalog"
        assert driven.ask("SHOW TimeZone") == "Asia/Tokyo"
        assert driven.ask(WHERE) is True
    driven.close()


def test_where_it_may_not(ps_lab: Lab, kind: str) -> None:
    """Not by a setting, not for the primary, not twice, and not in a transaction that has more in it."""
    driven = Driven(kind, topology_of(ps_lab, replica_fallback="none"), autocommit=True)
    with use_token(ahead(ps_lab)), pytest.raises(ReplicaBehind, match="replica_fallback='none' forbids the primary"):
        driven.execute(WHERE)
    assert driven.stand_in() is False
    driven.close()
    driven = Driven(kind, topology_of(ps_lab))
    with use_token(None):
        driven._run(driven.conn.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ))
        assert driven.ask(WHERE) is True
    assert driven.stand_in() is False
    driven.rollback()
    refuse(driven, ps_lab)
    assert driven.stand_in() is True
    assert driven.stand_in() is False
    driven.close()
    with Connection.connect(topology_of(ps_lab)) as primary:
        assert primary.stand_in() is False


@pytest.mark.parametrize("position", [FAR, None])
def test_demoted_primary(ps_lab: Lab, position: int | None) -> None:
    """A server that is no longer the primary does not stand in: the guard lets nothing pass, and all are made anew."""
    place = replace(topology_of(ps_lab).replicas[0], name="fallback")
    state = state_of(place, identity=ps_lab.branch, consistency="monotonic", on_primary=True)
    with Connection.open(state, policy=RetryPolicy(attempts=0), autocommit=True) as conn:
        with use_token(ahead(ps_lab, position)), pytest.raises(Demoted):
            conn.execute(WHERE)
        assert conn.broken
        assert state.generation >= 1
