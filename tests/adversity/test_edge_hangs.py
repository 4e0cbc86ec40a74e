"""The edge takes connections and says nothing more."""

from dataclasses import replace

import pytest

from ps_core.context import deadline
from ps_core.errors import DeadlineExceeded
from ps_core.failures import classify
from ps_lab import Lab
from ps_lab.processes import wait_until
from tests.adversity.harness import PATHS, Doing, Path, Paths, raised
from tests.adversity.matrix import Matrix
from tests.adversity.users import Application, Users


@pytest.mark.parametrize("path", PATHS)
def test_connect_timeout(ps_lab: Lab, paths: Paths, matrix: Matrix, path: Path) -> None:
    """A connect that is not answered within its timeout is tried again."""
    limits = paths.endpoint(path).timeouts
    endpoint = replace(paths.endpoint(path), timeouts=replace(limits, connect=2.0))
    state = paths.state(endpoint)
    with ps_lab.edge.hang():
        works = [Doing(raised, paths.stock, endpoint), Doing(lambda: paths.ours(state).execute("SELECT 1").fetchone())]
        wait_until(lambda: state.gate.closed, "the outage to be met")
        error = works[0].end()
    assert works[1].end() == (1,)
    matrix.add("The edge hangs", path, "connecting", classify(error), "connect_timeout", ours="sent again", outcome="answered")


def test_users(ps_lab: Lab, matrix: Matrix, applications: list[Application]) -> None:
    """While nothing comes, a deadline is kept; those who have none go on when something comes again."""
    for application in applications:
        application.look(0)
    with ps_lab.edge.hang():
        for application in applications:
            with deadline("100ms"), pytest.raises(DeadlineExceeded):
                application.look(0)
    with Users(ps_lab) as users:
        with ps_lab.edge.hang():
            users.meet()
    matrix.sees("The edge hangs", f"a wait, no longer than the deadline; {users.saw()}")
