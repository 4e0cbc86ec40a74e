"""How it scales: what must hold at a smaller size, and the arithmetic."""

from collections.abc import Iterator
from dataclasses import replace
from math import ceil
from pathlib import Path

import pytest

from ps_core._retry.gate import OutageGate
from ps_lab import Lab
from tests.benchmarks.scale import GATES, QUICK, Fleet, Reach, load, memories, reaches, sums, write


@pytest.fixture
def roomy_bouncers(ps_lab: Lab) -> Iterator[None]:
    """The bouncers take more clients than PlanetScale's default of 100."""
    for bouncer in ps_lab.bouncers.values():
        bouncer.reload(max_client_conn=1000)
    yield
    for bouncer in ps_lab.bouncers.values():
        bouncer.reload(max_client_conn=100)


@pytest.mark.tools
@pytest.mark.usefixtures("roomy_bouncers")
def test_many_connections(ps_lab: Lab) -> None:
    """100 connections of 2 processes, a switchover and an outage: no failed read, and no more attempts than the gates allow."""
    found = load(ps_lab, QUICK)
    assert found.seen.failed == []
    begin, end = found.outage
    # Those under way when the outage begins and those that just begin when it ends are one more each.
    assert found.attempts(begin, end) <= QUICK.processes * GATES * (ceil((end - begin) / OutageGate.MIN_INTERVAL) + 2)


@pytest.mark.tools
@pytest.mark.usefixtures("roomy_bouncers")
def test_report(ps_lab: Lab, tmp_path: Path) -> None:
    """A run of the smallest size measures everything, and the report has a row for each."""
    effort = replace(QUICK, processes=1, connections=4, opening=0.1, outage=0.1)
    path, found = write(ps_lab, effort, tmp_path)
    text = path.read_text()
    assert len(found.costs) == 2 * len(effort.threads) + 2 * len(effort.tasks)
    assert [text.count(f"\n| {cost.kind} | {cost.level} |") for cost in found.costs] == [1] * len(found.costs)
    assert [text.count(f"\n| {row} |") for row in (*sums(Fleet(), 1.0), *found.traffic)] == [1] * 12


@pytest.mark.tools
def test_distinct_statements() -> None:
    """10,000 distinct statements leave 1,024 in the memory of hidden writes, in 128 KiB, and 1,024 analysed texts in 1 MiB."""
    found = memories()
    assert found.statements == 10_000
    assert found.remembered == 1024
    assert found.size <= 128 * 1024
    assert found.analysis_size <= 1024 * 1024


@pytest.mark.parametrize(
    ("fleet", "login", "first"),
    [
        (Fleet(), 0.001, Reach("max_client_conn of the dedicated bouncers", 20)),
        (Fleet(connections=1), 0.001, Reach("max_client_conn of the dedicated bouncers", 100)),
        (Fleet(), 0.1, Reach("logins within connect_timeout, when all connect at once", 10)),
        (
            Fleet(max_client_conn=5000),
            0.001,
            Reach("default_pool_size of the local bouncer, if all went to the primary", 200),
        ),
        (
            Fleet(max_client_conn=5000, bouncers=10),
            0.001,
            Reach("default_pool_size of the local bouncer, if all went to the primary", 200),
        ),
    ],
)
def test_what_is_hit_first(fleet: Fleet, login: float, first: Reach) -> None:
    """The limit that the fewest processes reach comes first."""
    found = reaches(fleet, login)
    assert found[0] == first
    assert [row.processes for row in found] == sorted(row.processes for row in found)


def test_sums() -> None:
    """What 1,000 processes come to, counted by hand."""
    found = sums(Fleet(), 6.0)
    assert list(found.values()) == [5000, 5000, 50, 1, 20_000, 100, pytest.approx(5000), 6000, 5000]
