"""server_login_retry at its upstream default: a restart of a second is fifteen seconds of errors from the pooler."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ps_core.events import Event, Name, subscribe
from ps_lab import Lab
from ps_lab.processes import wait_until
from tests.adversity.harness import Crowd, Met, Ours, Phase, Row, Rules, Verdict, long_limits, refuses, table
from tests.adversity.matrix import Matrix

EXPECTED: dict[Phase, tuple[Rules, Verdict]] = {
    Phase.CONNECT: ("pooler_login_retry", Ours.AGAIN),
    # The dedicated bouncer may hear it when it is about to SET something on its connection to the local one.
    Phase.IDLE_READ: (("pooler_login_retry", "pooler_varset_failed"), Ours.AGAIN),
    Phase.IDLE_WRITE: (("pooler_login_retry", "pooler_varset_failed"), Ours.AGAIN),
    Phase.IDLE_OPENING: (("pooler_login_retry", "results_hidden_by_driver"), Ours.AGAIN),
}


@contextmanager
def fault(crowd: Crowd) -> Iterator[None]:
    crowd.lab.primary.stop(signal.SIGQUIT)
    try:
        # Those who are queued before the first login has failed are not told, and wait.
        wait_until(lambda: refuses(long_limits(crowd.lab).primary), "the pooler to notice")
        yield
    finally:
        crowd.lab.primary.start()


@pytest.fixture(scope="module")
def heard() -> list[Event]:
    """What happened while the crowd met the fault."""
    return []


@pytest.fixture(scope="module")
def met(ps_lab: Lab, heard: list[Event]) -> Iterator[Met]:
    for bouncer in ps_lab.bouncers.values():
        bouncer.reload(server_login_retry=15)
    unsubscribe = subscribe(heard.append)
    try:
        yield Crowd(ps_lab, {"primary": tuple(EXPECTED)}).run("The server restarts, server_login_retry=15", fault)
    finally:
        unsubscribe()
        for bouncer in ps_lab.bouncers.values():
            bouncer.reload(server_login_retry=1)


@pytest.mark.parametrize("row", table("primary", EXPECTED))
def test_login_retry(met: Met, matrix: Matrix, row: Row) -> None:
    """The default policy outlasts the pooler's fifteen seconds; nothing ran meanwhile, so writes go through, too."""
    matrix.crowd(met, row)


def test_it_took_long(met: Met, heard: list[Event]) -> None:
    """The outage was the pooler's: the server was back long before."""
    assert "pooler_login_retry" in {event.reason for event in heard if event.name is Name.RETRY}
    assert max(event.seconds or 0 for event in heard if event.name is Name.OUTAGE_CLOSED) > 8


def test_applications(met: Met, matrix: Matrix) -> None:
    """Applications wait for the pooler to try its login again."""
    matrix.sees(met.event, f"a wait of up to fifteen seconds; {met.applications.saw(unknown=True)}")
