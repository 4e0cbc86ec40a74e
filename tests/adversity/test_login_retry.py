"""server_login_retry at its upstream default: a restart of a second is fifteen seconds of errors from the pooler."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ps_lab import Lab
from tests.adversity.harness import Crowd, Met, Ours, Phase, Row, Rules, Verdict, table
from tests.adversity.matrix import Matrix

HIDDEN: Rules = ("pooler_login_retry", "results_hidden_by_driver", None)
EXPECTED: dict[Phase, tuple[Rules, Verdict]] = {
    Phase.CONNECT: (("pooler_login_retry", None), (Ours.AGAIN, Ours.UNNOTICED)),
    # Those who are queued before the first login has failed are not told, and wait.
    Phase.IDLE_READ: (("pooler_login_retry", "pooler_varset_failed", None), (Ours.AGAIN, Ours.UNNOTICED)),
    Phase.IDLE_WRITE: (("pooler_login_retry", "pooler_varset_failed", None), (Ours.AGAIN, Ours.UNNOTICED)),
    Phase.IDLE_OPENING: (HIDDEN, (Ours.AGAIN, Ours.UNNOTICED)),
}


@contextmanager
def fault(crowd: Crowd) -> Iterator[None]:
    crowd.lab.primary.stop(signal.SIGQUIT)
    yield
    crowd.lab.primary.start()


@pytest.fixture(scope="module")
def met(ps_lab: Lab) -> Iterator[Met]:
    for bouncer in ps_lab.bouncers.values():
        bouncer.reload(server_login_retry=15)
    try:
        yield Crowd(ps_lab, {"primary": tuple(EXPECTED)}, patience=3).run("The server restarts, server_login_retry=15", fault)
    finally:
        for bouncer in ps_lab.bouncers.values():
            bouncer.reload(server_login_retry=1)


@pytest.mark.parametrize("row", table("primary", EXPECTED))
def test_login_retry(met: Met, matrix: Matrix, row: Row) -> None:
    """The default policy outlasts the pooler's fifteen seconds; nothing ran meanwhile, so writes go through, too."""
    matrix.crowd(met, row)


def test_users(met: Met, matrix: Matrix) -> None:
    """Applications wait for the pooler to try its login again."""
    matrix.sees(met.event, f"a wait of up to fifteen seconds; {met.users.saw(unknown=True)}")
