"""libpq's target_session_attrs meets a server of the other kind, as during a failover."""

import pytest

from ps_core.context import deadline
from ps_core.errors import DeadlineExceeded
from ps_core.failures import classify
from ps_core.topology import Topology
from ps_lab import Lab
from tests.adversity.applications import at_hand
from tests.adversity.harness import QUICK, Paths, raised
from tests.adversity.matrix import Matrix


@pytest.mark.parametrize(
    ("replica", "wanted"), [(True, "read-write"), (True, "primary"), (False, "read-only"), (False, "standby")]
)
def test_session_attrs(ps_lab: Lab, paths: Paths, matrix: Matrix, replica: bool, wanted: str) -> None:
    """The server is of the wrong kind for now: tried again for as long as the policy says."""
    topology = Topology.from_url(ps_lab.url, direct_replica=True)
    endpoint = topology.replicas[0] if replica else topology.direct
    error = raised(lambda: paths.stock(endpoint, target_session_attrs=wanted))
    ours = raised(lambda: paths.ours(paths.state(endpoint, QUICK), target_session_attrs=wanted))
    assert "ps-postgres: tried the endpoint" in ours.__notes__[0]
    matrix.add(
        f"target_session_attrs={wanted}",
        "direct replica" if replica else "direct",
        "connecting",
        classify(error),
        "wrong_session_attrs",
        ours="raised after its time",
        outcome="no connection",
    )


def test_applications(ps_lab: Lab, matrix: Matrix, site: None) -> None:
    """Callers wait for a server of the right kind, until the deadline, whose error says why."""
    with at_hand(f"{ps_lab.url}&target_session_attrs=read-only") as applications:
        for application in applications:
            with deadline("300ms"), pytest.raises(DeadlineExceeded) as caught:
                application.execute("SELECT 1", "direct")
            assert classify(caught.value).rule == "wrong_session_attrs", application.name
    matrix.sees(
        "target_session_attrs meets a server of the other kind",
        "a wait until it is of the right kind, until the deadline (30 s without one)",
    )
