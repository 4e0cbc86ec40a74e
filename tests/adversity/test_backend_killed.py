"""A backend dies by SIGKILL (out of memory): the server throws everybody out and recovers by itself."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ps_lab import Lab
from ps_lab.processes import wait_until
from tests.adversity.harness import Crowd, Met, Ours, Phase, Row, Rules, Verdict, broken, table
from tests.adversity.matrix import Matrix

# A pooled client meets the recovery (the pooler's login fails), what the pooler has heard of it already, or nothing any more.
MEETS_RECOVERY = ("pooler_login_retry", "pooler_server_crashed", "server_not_ready", None)
# psycopg's own BEGIN meets two errors, the server's and the pooler's, and reports neither.
HIDDEN = (*MEETS_RECOVERY, "results_hidden_by_driver")
CRASHED = ("pooler_server_crashed", "results_hidden_by_driver", "connection_lost")
MEETS: tuple[Rules, Verdict] = (MEETS_RECOVERY, (Ours.AGAIN, Ours.UNNOTICED))
# Unknown where the id was handed out again: the server forgets those whose WAL it had not written.
COMMIT = (Ours.RAISED, Ours.UNKNOWN)
PRIMARY = broken(CRASHED, connect=((*MEETS_RECOVERY, "pooler_login_timeout"), (Ours.AGAIN, Ours.UNNOTICED)), commit=COMMIT) | {
    Phase.IDLE_READ: MEETS,
    Phase.IDLE_WRITE: MEETS,
    Phase.IDLE_OPENING: (HIDDEN, (Ours.AGAIN, Ours.UNNOTICED)),
}
DIRECT = broken(
    "connection_lost",
    connect=(("server_not_ready", "connect_failed", None), (Ours.AGAIN, Ours.UNNOTICED)),
    commit=COMMIT,
)


@contextmanager
def fault(crowd: Crowd) -> Iterator[None]:
    pids = [pid for (pid,) in crowd.lab.sql("SELECT pid FROM pg_stat_activity WHERE usename = 'app'")]
    os.kill(pids[0], signal.SIGKILL)
    wait_until(lambda: not any(alive(pid) for pid in pids), "end of the backends")
    crowd.wait_until_closed("direct")
    yield


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture(scope="module")
def met(ps_lab: Lab) -> Met:
    return Crowd(ps_lab, {"primary": tuple(Phase), "direct": tuple(Phase)}).run("A backend is killed (57P02)", fault)


@pytest.mark.parametrize("row", table("primary", PRIMARY) + table("direct", DIRECT))
def test_backend_killed(met: Met, matrix: Matrix, row: Row) -> None:
    """The server's recovery is a wait for idle connections and opening statements, and an error within transactions."""
    matrix.crowd(met, row)


def test_users(met: Met, matrix: Matrix) -> None:
    """Applications wait until the server has recovered."""
    matrix.sees(met.event, f"a wait until the server has recovered; {met.users.saw(unknown=True)}")
