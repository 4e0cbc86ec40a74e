"""The primary's machine dies; after a while a replica is promoted."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ps_lab import Lab
from ps_lab.processes import wait_until
from tests.adversity.harness import IDLE, READ_ONLY, Crowd, Met, Ours, Phase, Row, Rules, Verdict, broken, table
from tests.adversity.matrix import Matrix

LOGIN: Rules = ("pooler_login_retry", "pooler_server_crashed", "results_hidden_by_driver", None)
CRASHED: Rules = ("pooler_server_crashed", "results_hidden_by_driver", "connection_lost")
PRIMARY = broken(CRASHED, connect=(LOGIN, Ours.AGAIN), commit=(Ours.RAISED, Ours.UNKNOWN)) | dict.fromkeys(
    IDLE, (LOGIN, Ours.AGAIN)
)
DIRECT = broken("connection_lost", connect=("edge_no_member", Ours.AGAIN), commit=(Ours.RAISED, Ours.UNKNOWN))
# The replica that is promoted may break its conflicts, and the pooler leaves it; the reads go on or go elsewhere.
REPLICA: dict[Phase, tuple[Rules, Verdict]] = dict.fromkeys(READ_ONLY, (None, (Ours.UNNOTICED, Ours.AGAIN)))


@contextmanager
def fault(crowd: Crowd) -> Iterator[None]:
    old = crowd.lab.primary
    crash = threading.Thread(target=crowd.lab.crash_primary, args=(0.8,))
    crash.start()
    wait_until(lambda: not old.running, "end of the primary")
    crowd.wait_until_closed("direct")
    yield
    crash.join()


@pytest.fixture(scope="module")
def met(ps_lab: Lab) -> Met:
    return Crowd(ps_lab).run("The primary crashes", fault)


@pytest.mark.parametrize("row", table("primary", PRIMARY) + table("replica", REPLICA) + table("direct", DIRECT))
def test_crash(met: Met, matrix: Matrix, row: Row) -> None:
    """Reads, idle connections and opening statements wait for the new primary; what was open within a transaction is gone."""
    matrix.crowd(met, row)


def test_users(met: Met, matrix: Matrix) -> None:
    """Applications wait for the new primary, and lose nothing that was acknowledged."""
    matrix.sees(met.event, f"a wait until a replica is promoted; {met.users.saw(unknown=True)}")
