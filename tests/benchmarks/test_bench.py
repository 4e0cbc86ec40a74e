"""The benchmark: what it decides, and that it runs."""

from collections import Counter
from itertools import permutations
from pathlib import Path

import pytest

from ps_lab import Lab
from tests.benchmarks.bench import (
    DELAYED,
    FAR,
    FROM,
    NEAR,
    README,
    TARGETS,
    UNTIL,
    Bench,
    Target,
    benchmark,
    filled,
    is_met,
    ways_of,
)
from tests.benchmarks.costs import Cost, Costs, order, ratios
from tests.benchmarks.worker import UNITS, Way

UNIT = "psycopg: read by key"


def costs(*pairs: tuple[float, float]) -> Costs:
    """Return rounds of stock and of ours with tokens, alike on all sides."""
    stock, ours = zip(*pairs, strict=True)
    return {Way.STOCK: [Cost(one, one, one, one) for one in stock], Way.TOKENS: [Cost(one, one, one, one) for one in ours]}


@pytest.mark.fast
@pytest.mark.parametrize(
    ("limit", "rounds", "met"),
    [
        (1.10, [(100, 110)] * 3, True),
        (1.10, [(100, 110.4)] * 3, True),
        (1.10, [(100, 110.6)] * 3, False),
        # One round in which the machine did something else is not in the median, whatever it weighs in a sum.
        (1.10, [(100, 105), (100, 105), (100, 9000)], True),
        # A machine that was slow in one round was slow for both.
        (1.10, [(100, 105), (1000, 1050), (100, 105)], True),
        (1.10, [(100, 120), (1000, 1050), (100, 120)], False),
    ],
)
def test_target(limit: float, rounds: list[tuple[float, float]], met: bool) -> None:
    """A target is met where the median of the rounds' ratios is at most its limit, to two digits."""
    for path in (NEAR, FAR):
        assert is_met(Target(UNIT, Way.TOKENS, "server", limit, path=path), {(path, UNIT): costs(*rounds)}) is met


@pytest.mark.fast
def test_ratio_to_nothing() -> None:
    """A side that did nothing, as the servers at a check-out, breaks no report."""
    assert ratios(costs((0, 0), (0, 0)), Way.TOKENS, "server") == [0, 0]


@pytest.mark.fast
@pytest.mark.parametrize("count", [2, 3, 5])
def test_order(count: int) -> None:
    """Over two turns for each way, each of them is first as often as every other, and as often before another as behind it."""
    names = [str(number) for number in range(count)]
    turns = [order(names, number) for number in range(2 * count)]
    assert all(sorted(turn) == names for turn in turns)
    assert Counter(turn[0] for turn in turns) == dict.fromkeys(names, 2)
    for one, other in permutations(names, 2):
        assert sum(turn.index(one) < turn.index(other) for turn in turns) == count


@pytest.mark.fast
def test_targets_are_measured() -> None:
    """Each target names a unit, ways and a path that the benchmark measures."""
    for target in TARGETS:
        assert {target.way, target.against} <= set(ways_of(target.unit))
        assert target.path == NEAR or target.unit in DELAYED


@pytest.mark.fast
def test_filled() -> None:
    """What stands between the marks is replaced, and nothing else."""
    text = README.read_text()
    once = filled(text, ["| a |", "| b |"])
    assert once.count("| a |\n| b |") == 1
    assert filled(once, ["| c |"]) == filled(text, ["| c |"])
    assert once.partition(FROM)[0] == text.partition(FROM)[0]
    assert once.partition(UNTIL)[2] == text.partition(UNTIL)[2]


@pytest.mark.tools
def test_where_work_goes(ps_lab: Lab) -> None:
    """Both sides read on replicas and write on the primary, and the servers' CPU is found; a check-out asks none of them."""
    with Bench(ps_lab) as bench:
        for unit in ("psycopg: read by key", "SQLAlchemy: Session.get", "Django: get()", "Django: list of 100 with a relation"):
            for way in (Way.STOCK, Way.TOKENS):
                bench.worker(way).do(unit, 1)
                before = _statements(ps_lab)
                cost = bench.worker(way).do(unit, 10)
                assert min(cost.client, cost.server, cost.pooler, cost.clock) > 0
                assert _statements(ps_lab) == before, (unit, way)
        for way in (Way.STOCK, Way.TOKENS):
            bench.worker(way).do("SQLAlchemy: pool check-out", 1)
            assert bench.worker(way).do("SQLAlchemy: pool check-out", 10).server == 0


def _statements(lab: Lab) -> int:
    """Return how many transactions have gone through the primary's bouncers."""
    return sum(int(row[1]) for row in lab.bouncers["local"].admin("SHOW STATS_TOTALS") if row[0] == "postgres")


@pytest.mark.tools
def test_quick(tmp_path: Path) -> None:
    """A run of two rounds measures every unit of work in every way, with the code of a commit, too, and makes the page."""
    with Lab(max_client_conn=2500) as lab:  # as the command's: each way has pools
        report = benchmark(lab, 2, 10, "HEAD", tmp_path).read_text()
    assert [report.count(f"\n| {unit} | stock | ") for unit in UNITS] == [
        1 + (unit in DELAYED) + (UNITS[unit].at_once > 1) for unit in UNITS
    ]
    assert report.count("| met |\n") + report.count("| missed |\n") == len(TARGETS) + 1
    assert "\n|  | before: ours, with tokens | " in report
    assert (tmp_path / "benchmarks.png").read_bytes().startswith(b"\x89PNG")
