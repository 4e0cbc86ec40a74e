"""Somebody terminates all sessions of the application: pg_terminate_backend, 57P01."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ps_lab import Lab
from tests.adversity.harness import IDLE, Crowd, Met, Ours, Phase, Row, broken, of_replica, table
from tests.adversity.matrix import Matrix

DIRECT = broken("admin_shutdown", connect=(None, Ours.UNNOTICED), commit=Ours.RAISED)
# The poolers connect anew for idle clients.
POOLED = DIRECT | dict.fromkeys(IDLE, (None, Ours.UNNOTICED)) | {Phase.COMMIT: ("results_hidden_by_driver", Ours.RAISED)}
# At READ COMMITTED, reads of a transaction on a replica travel one by one.
REPLICA = of_replica(POOLED) | {Phase.IN_TRANSACTION: ("admin_shutdown", Ours.UNNOTICED)}


@contextmanager
def fault(crowd: Crowd) -> Iterator[None]:
    for server in crowd.lab.servers:
        server.sql("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = 'app'")
    crowd.wait_until_closed("direct")
    yield


@pytest.fixture(scope="module")
def met(ps_lab: Lab) -> Met:
    return Crowd(ps_lab).run("Backends are terminated (57P01)", fault)


@pytest.mark.parametrize("row", table("primary", POOLED) + table("replica", REPLICA) + table("direct", DIRECT))
def test_backend_terminated(met: Met, matrix: Matrix, row: Row) -> None:
    """Idle connections and opening statements are healed; a transaction is rolled back, and its caller told."""
    matrix.crowd(met, row)


def test_users(met: Met, matrix: Matrix) -> None:
    """Applications go on with other connections."""
    matrix.sees(met.event, f"nothing, but for a transaction of their own that was open; {met.users.saw(unknown=True)}")
