"""The host's name does not resolve."""

from dataclasses import replace

import pytest

from ps_core.context import deadline
from ps_core.errors import DeadlineExceeded
from ps_core.failures import classify
from ps_lab import Lab
from tests.adversity.applications import at_hand
from tests.adversity.harness import QUICK, Paths, raised
from tests.adversity.matrix import Matrix


def test_dns(paths: Paths, matrix: Matrix) -> None:
    """A name that does not resolve is tried again, as names are while endpoints move, and given up when the policy says so."""
    endpoint = replace(paths.endpoint("direct"), host="no-such-host.invalid")
    error = raised(paths.stock, endpoint)
    ours = raised(paths.ours, paths.state(endpoint, QUICK))
    assert "ps-postgres: tried the endpoint" in ours.__notes__[0]
    matrix.add("DNS fails", "direct", "connecting", classify(error), "dns", ours="raised after its time", outcome="no connection")


def test_applications(ps_lab: Lab, matrix: Matrix, site: None) -> None:
    """Callers wait for the name to resolve, until the deadline, whose error says why."""
    with at_hand(ps_lab.url.replace("localhost", "no-such-host.invalid")) as applications:
        for application in applications:
            with deadline("300ms"), pytest.raises(DeadlineExceeded) as caught:
                application.execute("SELECT 1", "primary")
            assert classify(caught.value).rule == "dns", application.name
    matrix.sees("DNS fails", "a wait until the name resolves, until the deadline (30 s without one)")
