"""The measurement of the WebSocket runs, and counts as many round trips as over TCP."""

from ps_lab import Lab
from tests.benchmarks.websocket import QUICK, WAYS, measure, report


def test_measure(ps_lab: Lab) -> None:
    """Everything is measured in each way."""
    found = measure(ps_lab, QUICK)
    assert set(found) == set(WAYS)
    assert [found[way].round_trips for way in WAYS[:2]] == [2, 2]
    assert report(found, QUICK).count("\n") == 12
