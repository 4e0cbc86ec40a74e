"""PgBouncers die: those that clients connect to, or the local one behind the dedicated one."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from ps_lab import Lab
from ps_lab.processes import wait_until
from tests.adversity.harness import (
    IDLE,
    READ_ONLY,
    Crowd,
    Met,
    Ours,
    Path,
    Phase,
    Row,
    Rules,
    Verdict,
    broken,
    long_limits,
    of_replica,
    refuses,
    table,
)
from tests.adversity.matrix import Matrix

DEDICATED = broken("connection_lost", connect=("edge_upstream", Ours.AGAIN), commit=Ours.UNNOTICED)
REPLICA = of_replica(DEDICATED)
LOGIN: tuple[Rules, Verdict] = ("pooler_login_retry", Ours.AGAIN)
LOCAL = broken("pooler_server_crashed", connect=LOGIN, commit=Ours.UNNOTICED) | {
    **dict.fromkeys(IDLE, LOGIN),
    Phase.IDLE_OPENING: (("pooler_login_retry", "results_hidden_by_driver"), Ours.AGAIN),
}
BOUNCERS: dict[Path, str] = {"primary": "write-pool", "replica": "read-pool"}


def killing(*names: str) -> Callable[[Crowd], AbstractContextManager[None]]:
    """Return the fault: these bouncers are killed, and started again when everybody has met that."""

    @contextmanager
    def fault(crowd: Crowd) -> Iterator[None]:
        for name in names:
            crowd.lab.bouncers[name].stop()
        crowd.wait_until_closed(*(path for path, name in BOUNCERS.items() if name in names))
        if "local" in names:
            # The dedicated bouncer's server connections break. Who comes before its first login has failed is not told.
            wait_until(lambda: refuses(long_limits(crowd.lab).primary), "the dedicated bouncer to notice")
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


def test_users_of_the_dedicated_bouncers(dedicated: Met, matrix: Matrix) -> None:
    """Applications wait for the bouncers that they connect to."""
    matrix.sees(dedicated.event, f"a wait until it is back; {dedicated.users.saw()}")


def test_users_behind_the_local_bouncer(local: Met, matrix: Matrix) -> None:
    """So they do for the one behind."""
    matrix.sees(local.event, f"a wait until it is back; {local.users.saw()}")
