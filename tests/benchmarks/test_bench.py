"""The benchmark runs."""

from pathlib import Path

import pytest

from ps_lab import Lab
from tests.benchmarks.bench import LABELS, QUICK, TARGETS, benchmark


@pytest.mark.tools
def test_quick(ps_lab: Lab, tmp_path: Path) -> None:
    """A run of a few iterations measures every unit of work on every path, and makes the report and the picture."""
    report = benchmark(ps_lab, QUICK, tmp_path).read_text()
    assert [report.count(f"\n| {label} |") for label in LABELS.values()] == [
        3 + sum(target.unit == unit for target in TARGETS) for unit in LABELS
    ]
    assert (tmp_path / "benchmarks.png").read_bytes().startswith(b"\x89PNG")
