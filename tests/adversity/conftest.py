"""The matrix, and the lab as every test has to leave it."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from ps_core.context import use_token
from ps_lab import Lab
from ps_lab.processes import wait_until
from tests.adversity.applications import Application, at_hand, make_table
from tests.adversity.harness import Paths
from tests.adversity.matrix import Matrix


@pytest.fixture(scope="session")
def matrix() -> Matrix:
    """What was met so far."""
    return Matrix()


@pytest.fixture(scope="session", autouse=True)
def django_is_set_up(site: None) -> None:
    """Let users of Django be at work in every file."""


@pytest.fixture(autouse=True)
def at_work(matrix: Matrix, request: pytest.FixtureRequest) -> Iterator[None]:
    """Let the matrix know whose lines these are, and which tests are over."""
    matrix.file = request.path.name
    yield
    matrix.ran.add(request.node.nodeid)


@pytest.fixture(autouse=True)
def nothing_seen() -> Iterator[None]:
    """Let every test begin as a caller who has seen nothing; a COMMIT without an answer pins its caller to the primary."""
    with use_token(None):
        yield


@pytest.fixture
def paths(ps_lab: Lab) -> Iterator[Paths]:
    """Links and connections to every endpoint."""
    with ExitStack() as stack:
        yield Paths(ps_lab, stack)


@pytest.fixture
def applications(ps_lab: Lab) -> Iterator[list[Application]]:
    """One of each framework, sync and async."""
    make_table(ps_lab)
    with at_hand(ps_lab.url) as found:
        yield found


@pytest.fixture(scope="module", autouse=True)
def whole(request: pytest.FixtureRequest) -> Iterator[None]:
    """Bring the session's lab back: all servers up and following, poolers and edge without a fault."""
    yield
    if "ps_lab" not in {name for item in request.session.items if item.path == request.path for name in item.fixturenames}:  # type: ignore[attr-defined]
        return
    make_whole(request.getfixturevalue("ps_lab"), request.path.name)


def make_whole(lab: Lab, after: str) -> None:
    """Bring a lab back, and say what was left broken after what."""
    broken = _repair(lab)
    following = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"
    wait_until(lambda: lab.sql(following)[0][0] == len(lab.replicas), "replicas that follow")
    lab.sql("DROP TABLE IF EXISTS ledger, bank_account, bank_transfer")
    assert not broken, f"{after} left the lab broken; it was repaired: {'; '.join(broken)}"


def _repair(lab: Lab) -> list[str]:
    """Make the lab as it was at the start, and return what was not."""
    broken = []
    status = lab.edge.status()
    if status["hung"] or status["delay"] or status["refusal"] or status["answer_cuts"]:
        broken.append(f"the edge: {status}")
        lab.edge.resume()
    for name, bouncer in lab.bouncers.items():
        if not bouncer.running:
            broken.append(f"{name} was down")
            bouncer.start()
    lab.wait_replicas_caught_up()  # also for a server that comes back in the background
    if down := [replica.name for replica in lab.replicas if not replica.running]:
        broken.append(f"{', '.join(down)} down")
        lab.restart_replica()
    if lab.sql("SELECT 1 FROM pg_settings WHERE name = 'recovery_min_apply_delay' AND setting <> '0'"):
        broken.append("a replay delay")
        lab.set_replay_delay(0)
    for (role,) in lab.sql("SELECT rolname FROM pg_roles WHERE rolcanlogin AND rolname <> 'app' AND NOT rolsuper"):
        broken.append(f"role {role}")
        lab.drop_role(role)
    return broken
