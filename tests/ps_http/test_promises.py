"""What travels with each request: limits, local settings, READ ONLY, the guard of replicas and the position. One POST, always."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from ps_core import Event, Topology, commit_check, deadline, limits, local_settings, subscribe, tags, use_token, using_primary
from ps_core.context import current_token
from ps_core.events import Name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ps_lab import Lab
    from tests.ps_http.conftest import Driven

SETTINGS = (
    "select current_setting('statement_timeout'), current_setting('transaction_timeout'), current_setting('lock_timeout'),"
    " current_setting('transaction_read_only')"
)


@pytest.fixture
def reader(drive: Callable[..., Driven], ps_lab: Lab) -> Driven:
    """A client with replicas."""
    return drive(ps_lab.topology)


@pytest.fixture
def heard() -> Iterator[list[Event]]:
    events: list[Event] = []
    ended = subscribe(events.append)
    yield events
    ended()


def test_limits(ps_lab: Lab, client: Driven, drive: Callable[..., Driven]) -> None:
    """The endpoint's timeouts hold, and those of a block; what is longer than a statement may be ends it."""
    assert client.execute(SETTINGS).one() == ("2s", "3s", "0", "on")
    with limits(statement="10s", lock="1s"):
        assert client.execute(SETTINGS).one() == ("10s", "0", "1s", "on")
    with client.batch() as batch:
        inside = batch.execute(SETTINGS)
        batch.execute("create temporary table http_gone on commit drop as select 1")
    assert inside.result.one() == ("2s", "3s", "0", "off")
    assert drive(ps_lab.url, to="direct").execute(SETTINGS).one() == ("0", "0", "5s", "on")
    with pytest.raises(psycopg.errors.QueryCanceled, match="statement timeout") as caught, limits(statement="100ms"):
        client.execute("select pg_sleep(2)")
    (note,) = caught.value.__notes__
    assert "statement_timeout of 0.1 s ended this on the endpoint 'primary'" in note
    with pytest.raises(psycopg.errors.QueryCanceled) as caught, deadline("300ms"):
        client.execute("select pg_sleep(2)")
    (note,) = caught.value.__notes__
    assert "the deadline of 0.3 s ended this" in note


def test_limits_of_the_role(ps_lab: Lab, drive: Callable[..., Driven]) -> None:
    """A limit that the role has by itself stays where it is lower."""
    url = ps_lab.create_role("http_limited")
    try:
        ps_lab.sql("alter role http_limited set statement_timeout = '700ms'")
        ps_lab.sql("alter role http_limited set lock_timeout = '1min'")
        client = drive(url, to="direct", lock_timeout="20s")
        assert client.execute(SETTINGS).one()[:3] == ("700ms", "0", "20s")
        with limits(statement="500ms"):
            assert client.execute(SETTINGS).one()[0] == "500ms"
        with limits(statement="10s"):
            assert client.execute(SETTINGS).one()[0] == "700ms"
    finally:
        ps_lab.drop_role("http_limited")


def test_local_settings(ps_lab: Lab, client: Driven, table: str) -> None:
    """They hold in the transaction of each request, and are gone with it."""
    asked = "select current_setting('app.tenant', true), current_setting('search_path')"
    with ps_lab.round_trips() as counted, local_settings({"app.tenant": "4'2\\", "search_path": ["pg_catalog", 'o"dd']}):
        assert client.execute(asked).one() == ("4'2\\", '"pg_catalog", "o""dd"')
        with client.batch() as batch:
            inside = batch.execute(asked)
            batch.execute(f"insert into public.{table} values (1)")
        assert inside.result.one()[0] == "4'2\\"
        with pytest.raises(psycopg.NotSupportedError, match="local_settings"):
            client.execute(f"vacuum public.{table}")
    assert counted.count == 2
    assert client.execute(asked).one()[0] in (None, "")


def test_roles(ps_lab: Lab, drive: Callable[..., Driven]) -> None:
    """An assumed role is taken on in each request; so is one of a block."""
    ps_lab.sql("create role http_tenant")
    ps_lab.sql("grant http_tenant to app")
    try:
        topology = ps_lab.topology
        assumed = drive(replace(topology.primary, assumed_role="http_tenant"))
        assert assumed.execute("select current_user, session_user").one() == ("http_tenant", "app")
        with local_settings({"role": "http_tenant"}):
            assert drive(topology.primary).execute("select current_user").scalar() == "http_tenant"
    finally:
        ps_lab.sql("drop role http_tenant")


def test_commit_check(client: Driven, table: str) -> None:
    """What promises a lookup is refused, where something may be written."""
    with commit_check(verify="select true"):
        client.execute("select 1")
        with pytest.raises(psycopg.NotSupportedError, match="commit_check"):
            client.execute(f"insert into {table} values (1)")


def test_tags(ps_lab: Lab, client: Driven) -> None:
    """The comment travels with the statement."""
    with tags(route="/orders/<int:pk>"):
        found = client.execute("select query from pg_stat_activity where pid = pg_backend_pid() and %s", [True]).scalar()
    assert found is not None
    assert found.endswith("/*route='%2Forders%2F%3Apk'*/")


def test_reads_go_to_replicas(ps_lab: Lab, reader: Driven, table: str) -> None:
    """Reads go there READ ONLY, writes to the primary; a batch goes there where it is READ ONLY."""
    asked = "select pg_is_in_recovery()"
    with ps_lab.round_trips() as counted:
        assert reader.execute(asked).scalar() is True
        with reader.batch(read_only=True) as batch:
            pending = batch.execute(asked)
        assert pending.result.scalar() is True
    assert counted.by_path == {"replica": 2}
    with ps_lab.round_trips() as counted, using_primary():
        assert reader.execute(asked).scalar() is False
    with reader.batch() as batch:
        pending = batch.execute(asked)
    assert pending.result.scalar() is False
    with reader.batch(read_only=True, isolation="repeatable read") as batch:
        pending = batch.execute(asked)
    assert pending.result.scalar() is False
    reader.execute(f"insert into {table} values (1)")


def test_own_writes(ps_lab: Lab, reader: Driven, table: str, heard: list[Event]) -> None:
    """A caller sees what it wrote on replicas that are late: the next read goes to the primary, and brings the position.

    From then on the guard tells replicas that are behind, and the primary answers in their place.
    """
    ps_lab.set_replay_delay(60)
    try:
        with use_token(None):
            reader.execute(f"insert into {table} values (1)")
            token = current_token()
            assert token is not None
            assert token.position is None
            with ps_lab.round_trips() as counted:
                assert list(reader.execute(f"select n from {table}")) == [(1,)]
            assert counted.by_path == {"primary": 1}
            token = current_token()
            assert token is not None
            assert token.position is not None
            with ps_lab.round_trips() as counted:
                assert list(reader.execute(f"select n from {table}")) == [(1,)]
            assert counted.by_path == {"replica": 1, "primary": 1}
            assert Name.BEHIND in [event.name for event in heard]
        with use_token(None), ps_lab.round_trips() as counted:
            assert list(reader.execute(f"select n from {table}")) == []
        assert counted.by_path == {"replica": 1}
    finally:
        ps_lab.set_replay_delay(0)
    with use_token(token), ps_lab.round_trips() as counted:
        assert list(reader.execute(f"select n from {table}")) == [(1,)]
    assert counted.by_path == {"replica": 1}


@pytest.mark.parametrize("consistency", ["none", "read_your_writes"])
def test_levels_of_consistency(ps_lab: Lab, drive: Callable[..., Driven], table: str, consistency: Any) -> None:
    """With "none" nothing is asked for or heeded; with "read_your_writes" reads bring no position, and a write pins."""
    reader = drive(replace(ps_lab.topology, consistency=consistency))
    with use_token(None):
        reader.execute(f"select n from {table}")
        assert current_token() is None
        reader.execute(f"insert into {table} values (1)")
        assert (current_token() is None) is (consistency == "none")


def test_replicas_are_away(ps_lab: Lab, drive: Callable[..., Driven], heard: list[Event]) -> None:
    """Where no replica answers, the primary does, unless that is forbidden."""
    ps_lab.bouncers["read-pool"].stop()
    try:
        assert drive(ps_lab.topology).execute("select pg_is_in_recovery()").scalar() is False
        assert Name.FALLBACK in [event.name for event in heard]
        alone = Topology.from_url(
            ps_lab.url, bouncer="write-pool", replica_bouncer="read-pool", replica_fallback="none", retry_timeout="0s"
        )
        with pytest.raises(psycopg.OperationalError):
            drive(alone).execute("select 1")
    finally:
        ps_lab.bouncers["read-pool"].start()


def test_what_writes_leaves_the_replica(ps_lab: Lab, reader: Driven, table: str, heard: list[Event]) -> None:
    """What looks like a read and writes is refused by the replica, and goes to the primary."""
    adds = f"http_adds_{type(reader.client).__name__}()".lower()
    ps_lab.sql(f"create function {adds} returns int language sql volatile as 'insert into {table} values (1) returning n'")
    ps_lab.wait_replicas_caught_up()
    try:
        with ps_lab.round_trips() as counted:
            assert reader.execute(f"select {adds}").scalar() == 1
        assert counted.by_path == {"replica": 1, "primary": 1}
        assert Name.FALLBACK in [event.name for event in heard]
        reader.execute(f"delete from {table}")
        with ps_lab.round_trips() as counted:
            reader.execute(f"select {adds}")
        assert counted.by_path == {"primary": 1}
    finally:
        ps_lab.sql(f"drop function {adds}")
