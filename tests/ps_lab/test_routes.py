"""Where the edge sends a connection: decided by port, user name and the state of the servers."""

from dataclasses import replace
from typing import Any

import pytest

from ps_lab.routes import Path, Port, Refusal, Route, Routes

pytestmark = pytest.mark.fast

ROUTES = Routes(
    branch="br1",
    local="/local",
    bouncers={"write-pool": "/write", "read-pool": "/read"},
    replica_bouncers=["read-pool"],
    primary="/pg-1",
    replicas=["/pg-2"],
    closed_roles=["postgres"],
)


@pytest.mark.parametrize(
    ("port", "user", "path", "socket"),
    [
        ("direct", "app.br1", "direct", "/pg-1"),
        ("direct", "app.br1|replica", "replica", "/pg-2"),
        ("pooled", "app.br1", "primary", "/local"),
        ("pooled", "app.br1|write-pool", "primary", "/write"),
        ("pooled", "app.br1|read-pool", "replica", "/read"),
        ("direct", "a.b.br1", "direct", "/pg-1"),
    ],
)
def test_ways(port: Port, user: str, path: Path, socket: str) -> None:
    """Each port and suffix has its way; what is before the branch is the name for the server."""
    assert ROUTES.find(port, user) == Route(path, socket, user.partition("|")[0].removesuffix(".br1"))


@pytest.mark.parametrize(
    ("port", "user", "state", "sqlstate", "text"),
    [
        ("direct", "", {}, "28000", "invalid user format: username must include branch (e.g., user.branch)"),
        ("direct", "app|replica", {}, "28000", "invalid user format: username must include branch (e.g., user.branch)"),
        ("pooled", "app.br2", {}, "28000", "branch br2 does not exist"),
        ("pooled", "app.br1|replica", {}, "28000", "pooler only supports primary destinations for branch br1"),
        ("pooled", "app.br1|local", {}, "28000", "member local not found in branch br1"),
        ("direct", "postgres.br1", {}, "28P01", 'password authentication failed for user "postgres"'),
        ("pooled", "postgres.br1", {}, "28P01", 'password authentication failed for user "postgres"'),
        ("direct", "app.br1|read-pool", {}, "28000", "member read-pool not found in branch br1"),
        ("direct", "app.br1", {"primary": None}, "08006", "no primary available for branch br1"),
        ("direct", "app.br1|replica", {"replicas": []}, "08006", "no replica available for branch br1"),
        ("direct", "app.br1", {"primary": None, "replicas": []}, "08006", "no running members available for branch br1"),
        ("direct", "app.br1|replica", {"primary": None, "replicas": []}, "08006", "no running members available for branch br1"),
    ],
)
def test_refusals(port: Port, user: str, state: dict[str, Any], sqlstate: str, text: str) -> None:
    """What has no way is refused with the SQLSTATE and text of PlanetScale's error reference."""
    with pytest.raises(Refusal) as refusal:
        replace(ROUTES, **state).find(port, user)
    assert (refusal.value.sqlstate, str(refusal.value)) == (sqlstate, text)
    packet = refusal.value.packet()
    assert packet[:1] == b"E"
    assert int.from_bytes(packet[1:5]) == len(packet) - 1
    assert packet[5:] == f"SFATAL\0C{sqlstate}\0M{text}\0\0".encode()
