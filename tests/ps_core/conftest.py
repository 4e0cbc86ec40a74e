"""Links and connections to the lab's endpoints."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest

from ps_core import Connection, use_token
from ps_core._endpoint import EndpointState
from ps_core._registry import replicas_of
from ps_core.topology import Endpoint
from ps_lab import Lab

Connect = Callable[..., Connection[Any]]


@pytest.fixture(scope="module")  # not longer: it learns
def primary(ps_lab: Lab) -> EndpointState:
    """The primary, through both bouncers; the role's own limits are read already."""
    return _warm(ps_lab.topology.primary, ps_lab)


@pytest.fixture(scope="module")
def replica(ps_lab: Lab) -> EndpointState:
    """The replicas, through their bouncer."""
    return _warm(ps_lab.topology.replicas[0], ps_lab)


@pytest.fixture(scope="module")
def direct(ps_lab: Lab) -> EndpointState:
    """The direct endpoint."""
    return _warm(ps_lab.topology.direct, ps_lab)


@pytest.fixture(autouse=True)
def nothing_seen() -> Iterator[None]:
    """Let every test begin as a caller who has seen nothing."""
    with use_token(None):
        yield


def _warm(endpoint: Endpoint, lab: Lab) -> EndpointState:
    state = EndpointState(endpoint=endpoint, identity=lab.branch)
    Connection.open(state).close()
    return state


def tracking(lab: Lab, name: str, *, assumed_role: str | None = None) -> EndpointState:
    """Return an endpoint where positions are asked for and heeded; "stand-in" is the primary in a replica's place."""
    topology = lab.topology
    if name == "stand-in":
        shared = replicas_of(topology)
        assert shared is not None
        assert shared.fallback is not None
        endpoint = shared.fallback.endpoint
    else:
        endpoint = topology.replicas[0] if name == "replica" else getattr(topology, name)
    return EndpointState(endpoint=replace(endpoint, assumed_role=assumed_role), identity=lab.branch, tracks=True)


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Return a function that opens connections, which are closed after the test."""
    with ExitStack() as stack:

        def open_connection(state: EndpointState, **options: Any) -> Connection[Any]:
            conn = Connection.open(state, **options)
            stack.callback(conn.close)
            return conn

        yield open_connection


@pytest.fixture
def table(ps_lab: Lab) -> Iterator[str]:
    """An empty table `item (id bigint, note text)`, and on the primary only."""
    ps_lab.sql("DROP TABLE IF EXISTS item; CREATE TABLE item (id bigint, note text); ALTER TABLE item OWNER TO app")
    ps_lab.wait_replicas_caught_up()
    yield "item"
    ps_lab.sql("DROP TABLE IF EXISTS item")
