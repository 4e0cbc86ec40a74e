"""Connections past our own packages, and the proof that each test leaves the lab whole."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest

from ps_lab import Lab
from ps_lab.processes import wait_until
from ps_lab.routes import Port

Connect = Callable[..., psycopg.Connection[Any]]
"""`connect(port, suffix, **libpq)`: a psycopg connection of the role `app`, in autocommit unless told otherwise."""


def parameters(lab: Lab, port: Port = "direct", suffix: str = "", **changes: Any) -> dict[str, Any]:
    """Return libpq's parameters for a path through the edge."""
    user = f"app.{lab.branch}|{suffix}" if suffix else f"app.{lab.branch}"
    params = {**lab.topology.direct.conninfo(), "port": lab.edge.ports[port], "user": user, **changes}
    del params["options"]
    return params


def whereabouts(conn: psycopg.Connection[Any]) -> tuple[str, bool]:
    """Return which server answers, and whether it is a replica."""
    row = conn.execute("SELECT current_setting('cluster_name'), pg_is_in_recovery()").fetchone()
    assert row is not None
    return row[0], row[1]


def meets(lab: Lab, conn: psycopg.Connection[Any]) -> None:
    """Prove that consecutive transactions of a client of the replica bouncer meet each replica, and no other server.

    The bouncer takes its server connections in turn: those that it keeps, or more.
    """
    connections = [row for row in lab.bouncers["read-pool"].admin("SHOW SERVERS") if row[1] == "app"]
    turn = max(len(connections), 2 * len(lab.replicas))
    assert {whereabouts(conn) for _ in range(turn)} == {(replica.name, True) for replica in lab.replicas}


def streaming(lab: Lab) -> int:
    """Return how many replicas follow the primary."""
    return len(lab.sql("SELECT 1 FROM pg_stat_replication WHERE state = 'streaming'"))


@pytest.fixture
def connect(ps_lab: Lab) -> Iterator[Connect]:
    """Return a function that connects; all is closed after the test."""
    with ExitStack() as stack:

        def open_connection(
            port: Port = "direct", suffix: str = "", autocommit: bool = True, **libpq: Any
        ) -> psycopg.Connection[Any]:
            conn = psycopg.connect(
                **parameters(ps_lab, port, suffix, **libpq), autocommit=autocommit, cursor_factory=psycopg.ClientCursor
            )
            stack.callback(conn.close)
            return conn

        yield open_connection


@pytest.fixture(autouse=True)
def whole(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test leaves a lab behind in which all servers run and follow, and an edge that had nothing to complain of."""
    yield
    if "ps_lab" in request.fixturenames:
        lab: Lab = request.getfixturevalue("ps_lab")
        if not all(server.running for server in lab.servers):
            lab.restart_replica()
        wait_until(lambda: streaming(lab) == len(lab.replicas), "replicas that follow")
        assert all(server.running for server in lab.servers)
        assert all(bouncer.running for bouncer in lab.bouncers.values())
        status = lab.edge.status()
        assert (status["hung"], status["delay"], status["refusal"]) == ([], 0, None)
        assert lab.log_tail("edge") == ""
