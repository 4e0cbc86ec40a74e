"""The comparison runs end to end, and what it is about would show."""

from dataclasses import replace
from pathlib import Path

import pytest

from ps_demo.figures import FAILED, REPLICA, WRITE, Event, Recording
from ps_lab import Lab
from tests.compare.__main__ import QUICK, compare, introduce
from tests.compare.report import INTRODUCTION, SUMMARY, Findings, Window, render
from tests.compare.system import SYSTEMS


def row(page: str, heading: str, name: str) -> dict[str, str]:
    """Return a system's row of a table, by column; of two columns with one name, the first."""
    lines = page.partition(f"## {heading}\n")[2].split("\n## ")[0].splitlines()
    head, *rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("| ")]
    (found,) = [cells for cells in rows if cells[0] == name]
    return dict(reversed(list(zip(head, found, strict=True))))


def findings(acknowledged: list[int], present: list[int], pairs: list[tuple[int, bool]]) -> Findings:
    """Return findings of one event, from second 10 to 11, with reads before, during and after it."""
    recording = Recording()
    for start, latency, flags in (
        (9.0, 5.0, 0),  # under way when it began
        (10.5, 0.5, REPLICA),
        (10.6, 0.001, FAILED),
        (10.7, 0.25, WRITE),
        (12.5, 9.0, 0),  # when it was over
    ):
        recording.add(start, start + latency, flags)
    recording.acknowledged.extend(acknowledged)
    window = Window(name="fault", events=[Event("fault", 10, 11)], recording=recording, stuck=1, present=present)
    return Findings(
        module="module",
        name="it",
        remark="",
        versions={},
        round_trips={"read": 1.0},
        pairs=pairs,
        windows=[window],
        throughput={(0.0, "read", 1): 100.0},
        attempts=[],
    )


@pytest.mark.parametrize(
    ("acknowledged", "present", "pairs", "expected"),
    [
        ([1, 2], [1, 2, 3], [(1, True)], ("0", "0", "0")),
        ([1, 2], [1], [(1, True)], ("1", "0", "0")),
        ([1, 2], [1, 2, 2], [(1, True)], ("0", "1", "0")),
        ([1], [1, 3, 3], [(1, True)], ("0", "1", "0")),
        ([1], [1], [(1, True), (2, False)], ("0", "0", "1")),
    ],
)
def test_counts(acknowledged: list[int], present: list[int], pairs: list[tuple[int, bool]], expected: tuple[str, ...]) -> None:
    """A lost, a doubled and a stale one are counted, a write that raised and is there is none of them."""
    page = "\n".join(render("", [findings(acknowledged, present, pairs)]))
    summary = row(page, "In short", "it")
    assert tuple(summary[column] for column in (SUMMARY[5], SUMMARY[6], SUMMARY[7])) == expected
    assert (summary["reads failed"], summary["of"], summary["reads by replicas"]) == ("1", "4", "33%")


def test_latencies() -> None:
    """What an event met under way belongs to it, what began afterwards or failed does not; who still waits is told."""
    page = "\n".join(render("", [findings([], [], [])]))
    around = row(page, "Fault", "it")
    assert (around["p50"], around["max"]) == ("500", "5,000")
    assert around["reads failed"] == "1 (and 1 unanswered)"


def test_files() -> None:
    """Every system has its file, and every file is compared."""
    files = {file.stem for file in (Path(__file__).parent / "systems").glob("*.py")} - {"__init__"}
    assert files == set(SYSTEMS)


@pytest.mark.tools
def test_compare(ps_lab: Lab) -> None:
    """Stock SQLAlchemy and ours run on the lab; round trips are exact, replicas answer ours alone, and ours fails nothing."""
    found = compare(ps_lab, ["sqlalchemy_stock", "sqlalchemy_ours"], replace(QUICK, pairs=3))
    stock, ours = found
    assert (stock.round_trips, ours.round_trips) == ({"read": 4, "transfer": 6}, {"read": 1, "transfer": 4})
    page = "\n".join(render(introduce(ps_lab), found))
    assert page.startswith(INTRODUCTION[:20])
    assert row(page, "In short", stock.name)["reads by replicas"] == "0%"
    summary = row(page, "In short", ours.name)
    assert [summary[column] for column in SUMMARY[1:8:2]] == ["0", "0", "0", "0"]
    assert summary["own writes not seen"] == summary["writes doubled"] == "0"
    assert int(summary["reads by replicas"].rstrip("%")) > 50
    assert all(rate > 0 for findings in found for rate in findings.throughput.values())
    assert len(ours.throughput) == 8
    ps_lab.sql("DROP TABLE bank_account, bank_transfer")
