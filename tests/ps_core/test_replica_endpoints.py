"""Connections that may go on with another replica endpoint, and in the end with the primary."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import psycopg
import pytest

import ps_core
from ps_core import AsyncConnection, Connection
from ps_core._registry import replicas_of
from ps_core.replicas import Replicas
from ps_core.topology import Topology
from ps_lab import Lab
from ps_lab.processes import wait_until

WHO = "SELECT current_setting('transaction_read_only'), pg_is_in_recovery(), inet_server_port()"


def both(lab: Lab, **settings: Any) -> Topology:
    """Two replica endpoints, the replica bouncer first, and reads that have to be spread by hand."""
    return Topology.from_url(
        lab.url, bouncer="write-pool", replica_bouncer="read-pool", direct_replica=True, replica_weights=[1, 1e-9], **settings
    )


def who(conn: Connection[Any]) -> tuple[Any, ...]:
    """Return whether a transaction is read only, whether a replica answers, and the port."""
    row: tuple[Any, ...] | None = conn.execute(WHO).fetchone()
    assert row is not None
    return row


def fresh(topology: Topology) -> Replicas:
    """Return a set of its own, with nothing left out."""
    shared = replicas_of(topology)
    assert shared is not None
    fallback = shared.fallback
    return Replicas(shared.states, fallback=fallback and type(fallback)(endpoint=fallback.endpoint))


@contextmanager
def down(lab: Lab) -> Iterator[None]:
    """Take the replica bouncer away."""
    lab.bouncers["read-pool"].stop()
    try:
        yield
    finally:
        lab.restart_bouncer("read-pool")


def test_goes_on_with_the_other_endpoint_and_comes_back(ps_lab: Lab) -> None:
    """A read whose endpoint is gone is served by another one, without an error; new connections avoid it until it is back."""
    replicas = fresh(both(ps_lab))
    bouncer, other = replicas.states
    with Connection.open(bouncer, replicas=replicas, autocommit=True) as conn:
        with down(ps_lab):
            assert who(conn)[:2] == ("on", True)
            assert conn.state is other
            assert replicas.out == (bouncer,)
            with Connection.open(replicas.first(), replicas=replicas, autocommit=True) as second:
                assert who(second)[:2] == ("on", True)
                assert second.state is other
        wait_until(lambda: replicas.choose() is bouncer, "a probe of the bouncer")
        with Connection.open(bouncer, replicas=replicas, autocommit=True) as third:
            assert third.state is bouncer
        assert not replicas.out


def test_falls_back_to_the_primary_read_only_and_returns(ps_lab: Lab) -> None:
    """Where no replica is left, reads go to the primary, where a write is still refused; they return by themselves."""
    replicas = fresh(ps_lab.topology)
    (bouncer,) = replicas.states
    with Connection.open(bouncer, replicas=replicas, autocommit=True) as conn:
        with down(ps_lab):
            assert who(conn)[:2] == ("on", False)
            assert conn.state is replicas.fallback
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                conn.execute("CREATE TABLE never (id int)")
        wait_until(lambda: who(conn)[1] is True, "a read on a replica")
        assert conn.state is bouncer


def test_falls_back_in_asyncio(ps_lab: Lab) -> None:
    """The same for asyncio."""

    async def main() -> None:
        replicas = fresh(ps_lab.topology)
        async with await AsyncConnection.open(replicas.first(), replicas=replicas, autocommit=True) as conn:
            with down(ps_lab):
                row = await (await conn.execute(WHO)).fetchone()
                assert row is not None
                assert row[:2] == ("on", False)
            until = time.monotonic() + 30
            while conn.state is replicas.fallback:
                assert time.monotonic() < until
                await conn.execute(WHO)

    asyncio.run(main())


def test_fallback_forbidden(ps_lab: Lab) -> None:
    """With replica_fallback="none" the loss of the replicas is an error, and the primary is left alone."""
    topology = replace(ps_lab.topology, replica_fallback=0.0)
    replicas, policy = replicas_of(topology), ps_core.RetryPolicy(max_elapsed=0.5)
    assert replicas is not None
    assert replicas.fallback is None
    with Connection.open(replicas.first(), replicas=replicas, policy=policy, autocommit=True) as conn, down(ps_lab):
        with ps_lab.round_trips() as trips, pytest.raises(psycopg.OperationalError):
            conn.execute(WHO)
        assert trips.by_path["primary"] == 0


def test_fallback_comes_before_the_end(ps_lab: Lab) -> None:
    """However long the next wait would be, the primary is asked once the patience is over."""
    replicas = fresh(ps_lab.topology)
    policy = ps_core.RetryPolicy(first_wait=30, max_wait=30, max_elapsed=10)
    with down(ps_lab), Connection.open(replicas.states[0], replicas=replicas, policy=policy, autocommit=True) as conn:
        assert conn.state is replicas.fallback


def test_fallback_capped(ps_lab: Lab) -> None:
    """No more connections than allowed go to the primary at once; one that is closed makes room."""
    shared = fresh(ps_lab.topology)
    replicas, unlimited = shared.limited_to(1), shared.limited_to(None)
    state = replicas.states[0]
    options: dict[str, Any] = {"policy": ps_core.RetryPolicy(max_elapsed=3), "autocommit": True}
    with down(ps_lab):
        with Connection.open(state, replicas=replicas, **options) as first:
            assert first.state is replicas.fallback
            with pytest.raises(psycopg.OperationalError):
                Connection.open(state, replicas=replicas, **options)
            # The number is that of one user of the set, not of the set.
            with Connection.open(state, replicas=unlimited, **options) as another:
                assert another.state is replicas.fallback
        with Connection.open(state, replicas=replicas, **options) as second:
            assert second.state is replicas.fallback


def test_a_read_transaction_moves_while_it_only_read(ps_lab: Lab) -> None:
    """An explicit transaction at READ COMMITTED that only read goes on elsewhere; one that is really open does not."""
    replicas = fresh(ps_lab.topology)
    with Connection.open(replicas.first(), replicas=replicas) as conn:
        conn.execute(WHO)
        with down(ps_lab):
            assert who(conn)[1] is False
        conn.commit()
        wait_until(lambda: who(conn)[1] is True, "a read on a replica")
        conn.commit()
        conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        conn.execute(WHO)
        with down(ps_lab), pytest.raises(psycopg.OperationalError):
            conn.execute(WHO)
        conn.rollback()


def test_psycopg_alone(ps_lab: Lab) -> None:
    """`connect(to="replica")` goes to the replicas as a whole."""
    with ps_core.connect(ps_lab.topology, to="replica", autocommit=True) as conn:
        assert conn._replicas is replicas_of(ps_lab.topology)


@pytest.mark.parametrize(("setting", "share"), [("primary", 1.0), ("none", 0.0), ("0.25", 0.25), (0.5, 0.5), (None, 1.0)])
@pytest.mark.fast
def test_fallback_setting(setting: Any, share: float) -> None:
    """The setting has a form for the URL and a keyword."""
    url = "postgresql://app.branch:pw@host/db"
    assert Topology.from_url(url, replica_fallback=setting).replica_fallback == share
    if isinstance(setting, str):
        assert Topology.from_url(f"{url}?ps_replica_fallback={setting}").replica_fallback == share


@pytest.mark.parametrize(
    "settings",
    [{"replica_fallback": "never"}, {"replica_fallback": 2}, {"replica_weights": "1,2"}, {"replica_weights": "a"}],
)
@pytest.mark.fast
def test_settings_refused(settings: Any) -> None:
    """What is no share, or no weight for each endpoint, is refused with the name of the setting."""
    with pytest.raises(ps_core.ConfigurationError, match=next(iter(settings))):
        Topology.from_url("postgresql://app.branch:pw@host/db", replica_bouncer="one", **settings)


@pytest.mark.parametrize("binding", ["client", "server"])
@pytest.mark.parametrize("autocommit", [True, False])
def test_nothing_writes_on_the_fallback(ps_lab: Lab, table: str, autocommit: bool, binding: Any) -> None:
    """On the primary as it stands in for replicas, and so on a standby that was promoted, no way to execute writes."""
    insert = f"INSERT INTO {table} VALUES (1, NULL)"

    def copy(conn: Any) -> None:
        with conn.cursor().copy(f"COPY {table} FROM STDIN") as copy:
            copy.write_row((1, "a"))

    def pipeline(conn: Any) -> None:
        with conn.pipeline():
            conn.execute(insert)

    def cursor(conn: Any) -> None:
        with conn.cursor("named") as named:
            named.execute("SELECT write_one()")
            named.fetchall()

    ways: dict[str, Callable[[Any], object]] = {
        "execute": lambda conn: conn.execute(insert),
        "executemany": lambda conn: conn.cursor().executemany(f"INSERT INTO {table} VALUES (%s, %s)", [(1, "a"), (2, "b")]),
        "stream": lambda conn: list(conn.cursor().stream(f"{insert} RETURNING id")),
        "copy": copy,
        "pipeline": pipeline,
        "a function, named cursor": cursor,
        "a function": lambda conn: conn.execute("SELECT write_one()"),
        "DDL": lambda conn: conn.execute("CREATE TABLE never (id int)"),
        "VACUUM": lambda conn: conn.execute(f"VACUUM {table}"),
        "CONCURRENTLY": lambda conn: conn.execute(f"CREATE INDEX CONCURRENTLY ON {table} (id)"),
        "several": lambda conn: conn.execute(f"BEGIN; {insert}; COMMIT" if autocommit else f"SELECT 1; {insert}"),
        "several transactions": lambda conn: conn.execute(f"COMMIT; {insert}"),
    }
    shared = replicas_of(ps_lab.topology)
    assert shared is not None
    assert shared.fallback is not None
    endpoint = shared.fallback.endpoint
    errors = psycopg.errors
    refused: tuple[type[psycopg.Error], ...] = (
        *(errors.ReadOnlySqlTransaction, errors.ActiveSqlTransaction, errors.NoActiveSqlTransaction, errors.SyntaxError),
        psycopg.NotSupportedError,  # several transactions
    )
    ps_lab.sql(f"CREATE OR REPLACE FUNCTION write_one() RETURNS int LANGUAGE sql AS '{insert}; SELECT 1'")
    with ps_core.connect(endpoint, autocommit=autocommit, binding=binding) as conn:
        wrote = []
        for name, way in ways.items():
            try:
                way(conn)
            except refused:
                conn.rollback()
            else:
                wrote.append(name)
    ps_lab.sql("DROP FUNCTION write_one()")
    assert wrote == []
    assert ps_lab.sql(f"SELECT count(*) FROM {table}") == [(0,)]
