"""The stress, for eight seconds."""

import pytest

from ps_lab import Lab
from tests.adversity.stress import Stress


@pytest.mark.tools
@pytest.mark.timeout(120)
def test_stress() -> None:
    """Under random faults no autocommit read fails, no acknowledged write is lost or doubled, no setting is left to others."""
    with Lab(server_round_robin=1) as lab:
        report = Stress(lab, seed=7).run(8)
    assert report.wrong == []
    assert report.acknowledged
    assert report.done.keys() == {
        "autocommit read, primary",
        "autocommit read, replica",
        "function that writes, in autocommit",
        "transaction that writes",
        "read under row-level security",
        "foreign client, primary",
        "foreign client, replica",
        "asyncio autocommit read, primary",
        "asyncio autocommit read, replica",
        "asyncio transaction that writes",
    }
    assert sum(report.faults.values()) > 5
