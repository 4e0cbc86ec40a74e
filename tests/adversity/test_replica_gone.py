"""Replicas crash: one of two, or all of them."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from ps_core.context import deadline
from ps_core.events import Name, subscribe
from ps_core.failures import classify
from ps_core.topology import Topology
from ps_lab import Lab
from ps_lab.processes import wait_until
from tests.adversity.applications import Application, renewing, wait_for_replicas
from tests.adversity.harness import (
    READ_ONLY,
    Crowd,
    Doing,
    Met,
    Ours,
    Paths,
    Phase,
    Row,
    Rules,
    Verdict,
    raised,
    refuses,
    table,
)
from tests.adversity.matrix import Matrix

CRASHED: Rules = ("pooler_server_crashed", "results_hidden_by_driver")
# A replica that is just back may answer before it is ready.
LOGIN: Rules = ("pooler_login_retry", "server_not_ready", "results_hidden_by_driver", None)
# Half of the statements were on the other replica.
ONE: dict[Phase, tuple[Rules, Verdict]] = {
    **dict.fromkeys(READ_ONLY, (("pooler_server_crashed", "results_hidden_by_driver", None), (Ours.AGAIN, Ours.UNNOTICED))),
    Phase.CONNECT: (None, Ours.UNNOTICED),
}
ALL: dict[Phase, tuple[Rules, Verdict]] = {
    Phase.CONNECT: (LOGIN, Ours.AGAIN),
    Phase.IDLE_READ: (LOGIN, Ours.AGAIN),
    Phase.IDLE_OPENING: (LOGIN, Ours.AGAIN),
    Phase.READ: (CRASHED, Ours.AGAIN),
    Phase.OPENING: (CRASHED, Ours.AGAIN),
    Phase.IN_TRANSACTION: (CRASHED, Ours.AGAIN),
    Phase.LATER: (CRASHED, Ours.AGAIN),
}


@contextmanager
def one_down(crowd: Crowd) -> Iterator[None]:
    crowd.lab.crash_replica(0)
    yield
    crowd.lab.restart_replica()


@contextmanager
def all_down(crowd: Crowd) -> Iterator[None]:
    for index in range(len(crowd.lab.replicas)):
        crowd.lab.crash_replica(index)
    yield
    crowd.lab.restart_replica()


@pytest.fixture(scope="module")
def one(ps_lab: Lab) -> Met:
    return Crowd(ps_lab, {"replica": READ_ONLY}).run("One replica of two crashes", one_down)


@pytest.fixture(scope="module")
def everyone(ps_lab: Lab) -> Met:
    return Crowd(ps_lab, {"replica": READ_ONLY}, patience=1.5).run("All replicas crash", all_down)


@pytest.mark.parametrize("row", table("replica", ONE))
def test_one_replica_gone(one: Met, matrix: Matrix, row: Row) -> None:
    """The reads go on on the other replica, those of a transaction at READ COMMITTED, too."""
    matrix.crowd(one, row)


@pytest.mark.parametrize("row", table("replica", ALL))
def test_all_replicas_gone(everyone: Met, matrix: Matrix, row: Row) -> None:
    """Reads wait until a replica is back."""
    matrix.crowd(everyone, row)


def test_no_direct_replica(ps_lab: Lab, paths: Paths, matrix: Matrix) -> None:
    """A direct connection to a replica is refused by the edge while there is none, and replaced when there is."""
    endpoint = Topology.from_url(ps_lab.url, direct_replica=True).replicas[0]
    state = paths.state(endpoint)
    conn = paths.ours(state)
    conn.execute("SELECT 1")
    for index in range(len(ps_lab.replicas)):
        ps_lab.crash_replica(index)
    try:
        error = raised(paths.stock, endpoint)
        read = Doing(lambda: conn.execute("SELECT 2").fetchone())
        wait_until(lambda: state.gate.closed, "the outage to be met")
    finally:
        ps_lab.restart_replica()
    assert read.end() == (2,)
    matrix.add(
        "All replicas crash",
        "direct replica",
        "connecting",
        classify(error),
        "edge_no_member",
        ours="sent again",
        outcome="answered",
    )


def test_applications_of_the_other_replica(ps_lab: Lab, one: Met, matrix: Matrix, applications: list[Application]) -> None:
    """Reads of applications go on on the other replica."""
    wait_for_replicas(applications)
    ps_lab.crash_replica(0)
    try:
        for application in applications:
            with deadline("10s"):
                assert application.look(0) == [True], application.name
    finally:
        ps_lab.restart_replica()
    matrix.sees(one.event, f"nothing; {one.applications.saw()}")


def test_applications_without_replicas(
    ps_lab: Lab, paths: Paths, everyone: Met, matrix: Matrix, applications: list[Application]
) -> None:
    """Reads of applications go to the primary; writes wait for a replica to confirm them."""
    wait_for_replicas(applications)
    # Not by `crash_replica`, after which the pooler has forgotten its server's greeting, and lets who logs in wait for it.
    for replica in ps_lab.replicas:
        replica.stop(signal.SIGKILL)
    try:
        wait_until(lambda: refuses(paths.endpoint("replica")), "the pooler to notice")
        told, until = [], time.monotonic() + 4  # some probes: the first after a second, the next after two more
        unsubscribe = subscribe(lambda event: told.append(event.name))
        try:
            while time.monotonic() < until:
                for application in applications:
                    with deadline("10s"):
                        assert application.look(0) == [False], application.name
        finally:
            unsubscribe()
        assert Name.EJECTED in told
        assert Name.READMITTED not in told  # a login at the pooler is no replica's return
    finally:
        ps_lab.restart_replica()
    wait_for_replicas(applications)
    matrix.sees(
        everyone.event, f"reads are answered by the primary, and COMMIT waits for a replica; {everyone.applications.saw()}"
    )


def look_in_time(application: Application) -> list[bool]:
    with deadline("5s"):
        return application.look(0)


def test_applications_behind_a_cold_pooler(ps_lab: Lab, applications: list[Application]) -> None:
    """A pooler that was not greeted by a server lets its logins wait: reads are the primary's before a short deadline ends."""
    wait_for_replicas(applications)
    for index in range(len(ps_lab.replicas)):
        ps_lab.crash_replica(index)
    try:
        for application in applications:
            application.renew()  # who is logged in already waits with its statement, which may be a long one: by its own limits
        works = [Doing(renewing, application, partial(look_in_time, application)) for application in applications]
        for work, application in zip(works, applications, strict=True):
            assert work.end() == [False], application.name
    finally:
        ps_lab.restart_replica()
    wait_for_replicas(applications)
