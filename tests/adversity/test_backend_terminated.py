"""Somebody terminates all sessions of the application: pg_terminate_backend, 57P01."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ps_lab import Lab
from tests.adversity.harness import Crowd, Met, Ours, Phase, Row, table
from tests.adversity.matrix import Matrix

POOLED = {
    # The poolers connect anew for idle clients.
    Phase.CONNECT: (None, Ours.UNNOTICED),
    Phase.IDLE_READ: (None, Ours.UNNOTICED),
    Phase.IDLE_WRITE: (None, Ours.UNNOTICED),
    Phase.IDLE_OPENING: (None, Ours.UNNOTICED),
    Phase.READ: ("admin_shutdown", Ours.AGAIN),
    Phase.WRITE: ("admin_shutdown", Ours.RAISED),
    Phase.OPENING: ("admin_shutdown", Ours.AGAIN),
    Phase.IN_TRANSACTION: ("admin_shutdown", Ours.RAISED),
    Phase.LATER: ("admin_shutdown", Ours.RAISED),
    Phase.COMMIT: ("results_hidden_by_driver", Ours.RAISED),
}
REPLICA = {
    Phase.CONNECT: (None, Ours.UNNOTICED),
    Phase.IDLE_READ: (None, Ours.UNNOTICED),
    Phase.IDLE_OPENING: (None, Ours.UNNOTICED),
    Phase.READ: ("admin_shutdown", Ours.AGAIN),
    Phase.OPENING: ("admin_shutdown", Ours.AGAIN),
    # At READ COMMITTED, reads of a transaction on a replica travel one by one.
    Phase.IN_TRANSACTION: ("admin_shutdown", Ours.UNNOTICED),
    Phase.LATER: ("admin_shutdown", Ours.AGAIN),
}
DIRECT = POOLED | {
    Phase.IDLE_READ: ("admin_shutdown", Ours.AGAIN),
    Phase.IDLE_WRITE: ("admin_shutdown", Ours.AGAIN),
    Phase.IDLE_OPENING: ("admin_shutdown", Ours.AGAIN),
    Phase.COMMIT: ("admin_shutdown", Ours.RAISED),
}


@contextmanager
def fault(crowd: Crowd) -> Iterator[None]:
    for server in crowd.lab.servers:
        server.sql("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = 'app'")
    yield


@pytest.fixture(scope="module")
def met(ps_lab: Lab) -> Met:
    return Crowd(ps_lab).run("Backends are terminated (57P01)", fault)


@pytest.mark.parametrize("row", table("primary", POOLED) + table("replica", REPLICA) + table("direct", DIRECT))
def test_backend_terminated(met: Met, matrix: Matrix, row: Row) -> None:
    """Idle connections and opening statements are healed; a transaction is rolled back, and its caller told."""
    matrix.crowd(met, row)
