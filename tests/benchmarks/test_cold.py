"""The measurement of cold starts runs, and round trips are as many as they should be."""

import pytest

from ps_lab import Lab
from tests.benchmarks.cold import DIRECT_TLS, WAYS, cold_round_trips, measure, report, warm_round_trips

EXPECTED = {
    "psycopg": 6,  # SSLRequest, TLS, startup, SCRAM's two, the query
    DIRECT_TLS: 5,
    "ps_core": 7,  # the role's defaults are asked for once
    "psycopg, WebSocket": 6,  # TLS, the upgrade, startup, SCRAM's two, the query
    "ps_http": 2,  # TLS, the query
    "ps_http with psycopg": 2,
}


@pytest.mark.tools
def test_quick(ps_lab: Lab) -> None:
    """Round trips are counted on the wire; whoever asks `ps_http` with plain values imports no psycopg."""
    runs = measure(ps_lab, 2)
    assert {way: cold_round_trips(runs, way) for way in WAYS} == {way: (EXPECTED[way], 1) for way in WAYS}
    assert {way: warm_round_trips(runs, way) for way in WAYS} == dict.fromkeys(WAYS, (1, 0))
    assert {way for way in WAYS if not all(run.psycopg for delay in (0.002, 0.08) for run in runs[way, delay])} == {"ps_http"}
    assert not any(run.psycopg for delay in (0.002, 0.08) for run in runs["ps_http", delay])
    text = "\n".join(report(runs, 0.0))
    assert "| of a second query |" + " 1 + 0 |" * len(WAYS) in text
