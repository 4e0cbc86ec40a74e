"""The edge resets every connection; servers and poolers go on, and may finish what was under way."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ps_lab import Lab
from tests.adversity.harness import READ_ONLY, Crowd, Met, Ours, Phase, Row, table
from tests.adversity.matrix import Matrix

WRITABLE = {
    Phase.CONNECT: (None, Ours.UNNOTICED),
    Phase.IDLE_READ: ("connection_lost", Ours.AGAIN),
    Phase.IDLE_WRITE: ("connection_lost", Ours.AGAIN),
    Phase.IDLE_OPENING: ("connection_lost", Ours.AGAIN),
    Phase.READ: ("connection_lost", Ours.AGAIN),
    Phase.WRITE: ("connection_lost", Ours.RAISED),
    Phase.OPENING: ("connection_lost", Ours.AGAIN),
    Phase.IN_TRANSACTION: ("connection_lost", Ours.RAISED),
    Phase.LATER: ("connection_lost", Ours.RAISED),
    # Looked up by its id: the server committed it.
    Phase.COMMIT: ("connection_lost", Ours.UNNOTICED),
}
REPLICA = {phase: WRITABLE[phase] for phase in READ_ONLY} | {
    Phase.IN_TRANSACTION: ("connection_lost", Ours.AGAIN),
    Phase.LATER: ("connection_lost", Ours.AGAIN),
}


@contextmanager
def fault(crowd: Crowd) -> Iterator[None]:
    crowd.lab.edge.cut()
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
