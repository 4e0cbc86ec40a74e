"""The measurement of typed parameters runs; its figures are in docs/connection.md."""

from pathlib import Path

import pytest

from tests.benchmarks.literals import PARAMETERS, WAYS, measure

pytestmark = pytest.mark.fast

PAGE = Path(__file__).parents[2] / "docs" / "connection.md"


def test_measure() -> None:
    """Each kind in each way, and the page has a line for each kind."""
    found = measure(rounds=1, each=1)
    assert {kind: set(times) for kind, times in found.items()} == {kind: set(WAYS) for kind in PARAMETERS}
    page = PAGE.read_text()
    assert all(f"| {kind} |" in page for kind in PARAMETERS)
