"""The host's name does not resolve."""

from dataclasses import replace

from ps_core.failures import classify
from tests.adversity.harness import QUICK, Paths, raised
from tests.adversity.matrix import Matrix


def test_dns(paths: Paths, matrix: Matrix) -> None:
    """A name that does not resolve is tried again, as names are while endpoints move, and given up when the policy says so."""
    endpoint = replace(paths.endpoint("direct"), host="no-such-host.invalid")
    error = raised(paths.stock, endpoint)
    ours = raised(paths.ours, paths.link(endpoint, QUICK))
    assert "ps-postgres: tried the endpoint" in ours.__notes__[0]
    matrix.add("DNS fails", "direct", "connecting", classify(error), "dns", ours="raised after its time", outcome="no connection")
