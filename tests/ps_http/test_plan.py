"""What travels with statements, as a table, and on the lab where a server does not heed the protocol's headers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from ps_core import Topology
from ps_http import _request, _work
from ps_http._plan import Refused, compose, make_work
from ps_http._request import Modes, connection_string, make_request
from ps_http._values import Query

if TYPE_CHECKING:
    from ps_lab import Lab
    from tests.ps_http.conftest import Driven

TOPOLOGY = Topology.from_url("postgresql://app.br4nch:p%2Fw@h.psdb.cloud/postgres", bouncer="pool", direct_replica=True)
PRIMARY, DIRECT, REPLICA = TOPOLOGY.primary, TOPOLOGY.direct, TOPOLOGY.replicas[0]
READ, WRITE = make_work([Query("select 1")]), make_work([Query("insert into t values (1)")])


def opening(sent: Any) -> dict[str, str]:
    """Return what the opening sets, by name."""
    if not sent.before:
        return {}
    params = sent.queries[0].params
    return dict(zip(params[::2], params[1::2], strict=True))


@pytest.mark.fast
def test_requests() -> None:
    """A read is READ ONLY and brings its position, a write neither; both are bounded."""
    read = compose(READ, PRIMARY, wants_position=True)
    assert opening(read) == {"transaction_read_only": "on", "statement_timeout": "2000ms", "transaction_timeout": "3000ms"}
    assert (read.modes, read.has_position, len(read.queries)) == (Modes(read_only=True), True, 3)
    write = compose(WRITE, PRIMARY, wants_position=True)
    assert opening(write) == {"statement_timeout": "2000ms", "transaction_timeout": "3000ms"}
    assert (write.modes, write.has_position, len(write.queries)) == (Modes(), False, 2)
    assert opening(compose(WRITE, DIRECT)) == {"lock_timeout": "5000ms"}
    assert opening(compose(WRITE, PRIMARY, limits={"statement": None, "transaction": None})) == {}
    assert opening(compose(WRITE, PRIMARY, remaining=0.5))["statement_timeout"] == "500ms"
    batch = make_work([Query("select 1"), Query("delete from t")], is_batch=True, modes=Modes(isolation="serializable"))
    assert opening(compose(batch, PRIMARY))["transaction_isolation"] == "serializable"


@pytest.mark.fast
def test_replicas() -> None:
    """What goes to a replica is READ ONLY whatever it is, and guarded; the guard is the last before the statement."""
    sent = compose(READ, REPLICA, guard=0x3000060)
    assert sent.modes == Modes(read_only=True)
    assert "replica_behind" in sent.queries[0].text.rpartition(",pg_catalog.set_config(")[2]
    assert "'0/3000060'" in sent.queries[0].text
    assert compose(WRITE, REPLICA).modes == Modes(read_only=True)


@pytest.mark.fast
def test_identity() -> None:
    """The role comes first; what must stand alone cannot carry it, and is refused."""
    assumed = replace(PRIMARY, assumed_role="tenant")
    sent = compose(WRITE, assumed, local_settings=[("app.x", "1"), ("search_path", "a")])
    assert list(opening(sent))[-3:] == ["role", "app.x", "search_path"]
    alone = make_work([Query("vacuum t")])
    assert compose(alone, PRIMARY).modes is None
    assert compose(alone, PRIMARY).queries == alone.queries
    for endpoint, settings in ((assumed, []), (PRIMARY, [("app.x", "1")])):
        with pytest.raises(Refused, match="local_settings"):
            compose(alone, endpoint, local_settings=settings)


@pytest.mark.fast
def test_connection_strings() -> None:
    """Each endpoint by its user name and port, encoded; nothing else that is not asked for."""
    assert connection_string(PRIMARY) == "postgresql://app.br4nch%7Cpool:p%2Fw@h.psdb.cloud:6432/postgres"
    assert connection_string(DIRECT) == "postgresql://app.br4nch:p%2Fw@h.psdb.cloud/postgres"
    assert connection_string(REPLICA) == "postgresql://app.br4nch%7Creplica:p%2Fw@h.psdb.cloud/postgres"
    named = Topology.from_url("postgresql://app:x@h/d%2Fb?application_name=a%20b&ps_pooled=false&options=-c%20work_mem%3D8MB")
    assert connection_string(named.primary) == "postgresql://app:x@h/d%2Fb?application_name=a%20b&options=-c%20work_mem%3D8MB"


@pytest.mark.fast
def test_bodies() -> None:
    """A body is compact JSON; a request shows nothing of what it holds."""
    request = make_request(PRIMARY, [Query("select $1", ("é",))], None)
    assert request.body == '{"query":"select $1","params":["é"]}'.encode()
    assert "Neon-Batch-Read-Only" not in request.headers
    request = make_request(PRIMARY, [Query("select 1")], Modes(isolation="repeatable read", read_only=True, deferrable=True))
    assert request.body == b'{"queries":[{"query":"select 1","params":[]}]}'
    batch = {name: value for name, value in request.headers.items() if name.startswith("Neon-Batch")}
    assert batch == {
        "Neon-Batch-Isolation-Level": "RepeatableRead",
        "Neon-Batch-Read-Only": "true",
        "Neon-Batch-Deferrable": "true",
    }
    assert "p%2Fw" not in repr(request)
    with pytest.raises(UnicodeEncodeError):
        make_request(PRIMARY, [Query("select $1", ("\ud800",))], None)


def test_headers_that_are_not_heeded(ps_lab: Lab, client: Driven, table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that does not know the headers of a batch is found out before anything is done."""
    real = _request.make_request

    def without_headers(*args: Any) -> _request.Request:
        request = real(*args)
        headers = {name: value for name, value in request.headers.items() if not name.startswith("Neon-Batch")}
        return _request.Request(headers, request.body)

    monkeypatch.setattr(_work, "make_request", without_headers)
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction), client.batch(read_only=True) as batch:
        batch.execute(f"insert into {table} values (1)")
    with pytest.raises(psycopg.errors.ActiveSqlTransaction), client.batch(isolation="serializable") as batch:
        batch.execute(f"insert into {table} values (1)")
    with client.batch(isolation="read committed") as batch:
        batch.execute(f"insert into {table} values (2)")
    assert ps_lab.sql(f"select n from {table}") == [(2,)]
