"""The matrix, and what all files share."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from ps_core.context import use_token
from ps_lab import Lab
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
