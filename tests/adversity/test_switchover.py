"""Planned maintenance: the local bouncer pauses, the primary stops, a replica takes over."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ps_lab import Lab
from ps_lab.processes import wait_until
from tests.adversity.harness import READ_ONLY, Crowd, Met, Ours, Phase, Row, Rules, Verdict, broken, table
from tests.adversity.matrix import Matrix

PRIMARY: dict[Phase, tuple[Rules, Verdict]] = {
    # Those that come wait in the bouncer, those that are under way have time to end.
    **dict.fromkeys(Phase, (None, Ours.UNNOTICED)),
    # Left open for longer than the bouncer waits.
    Phase.IN_TRANSACTION: (("pooler_server_crashed", "admin_shutdown"), Ours.RAISED),
}
DIRECT = broken(
    "admin_shutdown",
    connect=(("edge_no_member", "server_not_ready", None), (Ours.AGAIN, Ours.UNNOTICED)),
    commit=Ours.RAISED,
)
REPLICA: dict[Phase, tuple[Rules, Verdict]] = dict.fromkeys(READ_ONLY, (None, (Ours.UNNOTICED, Ours.AGAIN)))


@contextmanager
def fault(crowd: Crowd) -> Iterator[None]:
    old, before = crowd.lab.primary, pauses(crowd.lab)
    switchover = threading.Thread(target=crowd.lab.switchover, args=(3.0,))
    switchover.start()
    wait_until(lambda: pauses(crowd.lab) > before, "PAUSE")
    crowd.release("primary")
    wait_until(lambda: not old.running, "end of the old primary")
    crowd.wait_until_closed("direct")
    yield
    switchover.join()


def pauses(lab: Lab) -> int:
    """Return how often the local bouncer was told to pause."""
    return lab.log_tail("local", 1_000_000).count("PAUSE command issued")


@pytest.fixture(scope="module")
def met(ps_lab: Lab) -> Met:
    return Crowd(ps_lab).run("Switchover", fault)


@pytest.mark.parametrize("row", table("primary", PRIMARY) + table("replica", REPLICA) + table("direct", DIRECT))
def test_switchover(met: Met, matrix: Matrix, row: Row) -> None:
    """Through the bouncers a switchover is a wait; direct connections break, and are healed where nothing is open on them."""
    matrix.crowd(met, row)


def test_users(met: Met, matrix: Matrix) -> None:
    """Applications wait."""
    matrix.sees(met.event, f"a wait of as long as it takes; {met.users.saw()}")
