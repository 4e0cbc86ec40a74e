"""PgBouncers die: those that clients connect to, or the local one behind the dedicated one."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from ps_lab import Lab
from tests.adversity.harness import READ_ONLY, Crowd, Met, Ours, Phase, Row, Rules, Verdict, table
from tests.adversity.matrix import Matrix

DEDICATED: dict[Phase, tuple[Rules, Verdict]] = {
    Phase.CONNECT: ("edge_upstream", Ours.AGAIN),
    Phase.IDLE_READ: ("connection_lost", Ours.AGAIN),
    # Before a write is sent, the connection looks whether its end has arrived. Where it arrives later, nobody can tell if it ran.
    Phase.IDLE_WRITE: ("connection_lost", (Ours.AGAIN, Ours.RAISED)),
    Phase.IDLE_OPENING: ("connection_lost", Ours.AGAIN),
    Phase.READ: ("connection_lost", Ours.AGAIN),
    Phase.WRITE: ("connection_lost", Ours.RAISED),
    Phase.OPENING: ("connection_lost", Ours.AGAIN),
    Phase.IN_TRANSACTION: ("connection_lost", Ours.RAISED),
    Phase.LATER: ("connection_lost", Ours.RAISED),
    Phase.COMMIT: ("connection_lost", Ours.UNNOTICED),
}
REPLICA = {phase: DEDICATED[phase] for phase in READ_ONLY} | {
    Phase.IN_TRANSACTION: ("connection_lost", Ours.AGAIN),
    Phase.LATER: ("connection_lost", Ours.AGAIN),
}
# The dedicated bouncer's server connections break. Whoever comes next waits, until the first login fails.
LOGIN: Rules = ("pooler_login_retry", "pooler_server_crashed", "results_hidden_by_driver", None)
LOCAL: dict[Phase, tuple[Rules, Verdict]] = {
    Phase.CONNECT: (LOGIN, (Ours.AGAIN, Ours.UNNOTICED)),
    Phase.IDLE_READ: (LOGIN, (Ours.AGAIN, Ours.UNNOTICED)),
    Phase.IDLE_WRITE: (LOGIN, (Ours.AGAIN, Ours.UNNOTICED)),
    Phase.IDLE_OPENING: (LOGIN, (Ours.AGAIN, Ours.UNNOTICED)),
    Phase.READ: ("pooler_server_crashed", Ours.AGAIN),
    Phase.WRITE: ("pooler_server_crashed", Ours.RAISED),
    Phase.OPENING: ("pooler_server_crashed", Ours.AGAIN),
    Phase.IN_TRANSACTION: ("pooler_server_crashed", Ours.RAISED),
    Phase.LATER: ("pooler_server_crashed", Ours.RAISED),
    Phase.COMMIT: ("pooler_server_crashed", Ours.UNNOTICED),
}


def killing(*names: str) -> Callable[[Crowd], AbstractContextManager[None]]:
    """Return the fault: these bouncers are killed, and started again when everybody has met that."""

    @contextmanager
    def fault(crowd: Crowd) -> Iterator[None]:
        for name in names:
            crowd.lab.bouncers[name].stop()
        yield
        for name in names:
            crowd.lab.bouncers[name].start()

    return fault


@pytest.fixture(scope="module")
def dedicated(ps_lab: Lab) -> Met:
    crowd = Crowd(ps_lab, {"primary": tuple(Phase), "replica": READ_ONLY})
    return crowd.run("Dedicated bouncers are killed", killing("write-pool", "read-pool"))


@pytest.fixture(scope="module")
def local(ps_lab: Lab) -> Met:
    return Crowd(ps_lab, {"primary": tuple(Phase)}).run("The local bouncer is killed", killing("local"))


@pytest.mark.parametrize("row", table("primary", DEDICATED) + table("replica", REPLICA))
def test_dedicated_bouncers_killed(dedicated: Met, matrix: Matrix, row: Row) -> None:
    """What was under way goes on behind the bouncer's back: a read is sent again, a write is not."""
    matrix.crowd(dedicated, row)


@pytest.mark.parametrize("row", table("primary", LOCAL))
def test_local_bouncer_killed(local: Met, matrix: Matrix, row: Row) -> None:
    """The dedicated bouncer says what it knows, 08P01, which is nothing about the statement that was under way."""
    matrix.crowd(local, row)
