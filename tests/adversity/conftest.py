"""The matrix, and the lab as every test has to leave it."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ps_core.context import use_token
from ps_lab import Lab
from ps_lab.processes import wait_until
from tests.adversity.harness import Paths
from tests.adversity.matrix import Matrix

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run what looks at the whole matrix after what fills it."""
    items.sort(key=lambda item: item.path.name == "test_matrix.py" and item.path.parent == _HERE)


@pytest.fixture(scope="session")
def matrix() -> Matrix:
    """What was met so far."""
    return Matrix()


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


@pytest.fixture(scope="module", autouse=True)
def whole(request: pytest.FixtureRequest) -> Iterator[None]:
    """Bring the session's lab back: all servers up and following, poolers and edge without a fault."""
    yield
    if "ps_lab" not in {name for item in request.session.items if item.path == request.path for name in item.fixturenames}:  # type: ignore[attr-defined]
        return
    lab: Lab = request.getfixturevalue("ps_lab")
    lab.edge.resume()
    lab.restart_replica()
    following = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"
    wait_until(lambda: lab.sql(following)[0][0] == len(lab.replicas), "replicas that follow")
    assert all(bouncer.running for bouncer in lab.bouncers.values())
    lab.sql("DROP TABLE IF EXISTS ledger")
