"""The edge resets every connection; servers and poolers go on, and may finish what was under way."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ps_lab import Lab
from tests.adversity.harness import PATHS, Crowd, Met, Ours, Phase, Row, broken, of_replica, table
from tests.adversity.matrix import Matrix

# A COMMIT is looked up by its id: the server committed it.
WRITABLE = broken("connection_lost", connect=(None, Ours.UNNOTICED), commit=Ours.UNNOTICED)
REPLICA = of_replica(WRITABLE)


@contextmanager
def fault(crowd: Crowd) -> Iterator[None]:
    crowd.lab.edge.cut()
    crowd.wait_until_closed(*PATHS)
    yield


@pytest.fixture(scope="module")
def met(ps_lab: Lab) -> Met:
    return Crowd(ps_lab).run("The edge cuts connections", fault)


@pytest.mark.parametrize("row", table("primary", WRITABLE) + table("replica", REPLICA) + table("direct", WRITABLE))
def test_edge_cut(met: Met, matrix: Matrix, row: Row) -> None:
    """An autocommit write that the server goes on with may be committed, so it is not sent again; a COMMIT is looked up."""
    matrix.crowd(met, row)


def test_an_autocommit_write_was_committed_behind_the_error(met: Met) -> None:
    """The write that was not sent again had indeed been committed: sending it again would have doubled it."""
    assert [client.rows for client in met.clients.values() if client.phase is Phase.WRITE and client.path != "replica"] == [1] * 6


def test_users(met: Met, matrix: Matrix) -> None:
    """Applications do not notice."""
    matrix.sees(met.event, f"nothing; {met.users.saw()}")
