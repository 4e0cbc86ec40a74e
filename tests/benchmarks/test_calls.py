"""Calls of functions of ours for each unit of work: the cost that no machine changes.

With PS_WRITE_DOCS=1 in the environment, what was measured is written to docs/generated/calls.md.
"""

import os
from pathlib import Path
from typing import Final

import pytest

from ps_lab import Lab
from tests.benchmarks.calls import calls
from tests.benchmarks.units import Way, worker

DOCUMENT = Path(__file__).parents[2] / "docs" / "generated" / "calls.md"
INTRODUCTION = """\
# Calls of ours

How many functions of this project a unit of work calls, on a connection that has done it before: `call` events of
`sys.setprofile` in files of ps_core, ps_sqlalchemy and ps_django. A generator counts once. A test holds each
number: it may go down, not up. Three of Django's read and five of its block stand in the place of as many calls of Django's
own: what turns the driver's errors into Django's, and carries our notes along.

Before is commit 34d57a8, counted in the same way.

| unit of one statement | endpoint | before | now |
|---|---|---:|---:|
"""

Unit = tuple[str, str, str, Way]
UNITS: Final[dict[Unit, tuple[int, int]]] = {
    ("psycopg: a read in autocommit, no positions", "psycopg: reads in autocommit", "replica", Way.OURS): (43, 11),
    ("psycopg: a read in autocommit", "psycopg: reads in autocommit", "replica", Way.TOKENS): (62, 12),
    ("SQLAlchemy: a session that reads", "SQLAlchemy: session", "replica", Way.TOKENS): (99, 46),
    ("SQLAlchemy: a transaction that writes", "SQLAlchemy: transaction of writes", "primary", Way.TOKENS): (104, 61),
    ("Django: a read", "Django: reads", "replica", Way.TOKENS): (62, 21),
    ("Django: an atomic block that writes", "Django: atomic of writes", "primary", Way.TOKENS): (95, 51),
}
"""The calls on commit 34d57a8, and the most that are allowed now."""


@pytest.fixture(scope="module")
def measured(ps_lab: Lab) -> dict[Unit, int]:
    """What is counted for each unit."""
    with worker(ps_lab) as pool:
        return {unit: pool.submit(calls, *unit[1:]).result() for unit in UNITS}


@pytest.mark.parametrize("unit", UNITS, ids=[unit[0] for unit in UNITS])
def test_calls(measured: dict[Unit, int], unit: Unit) -> None:
    """A unit of work calls at most so many functions of ours, which are fewer than they were."""
    before, most = UNITS[unit]
    assert measured[unit] <= most < before


def test_document(measured: dict[Unit, int]) -> None:
    """The table in the documentation is the one that was counted."""
    rows = (f"| {unit[0]} | {unit[2]} | {UNITS[unit][0]} | {count} |\n" for unit, count in measured.items())
    text = INTRODUCTION + "".join(rows)
    if os.environ.get("PS_WRITE_DOCS"):
        DOCUMENT.write_text(text)
    assert DOCUMENT.read_text() == text, "write it anew: PS_WRITE_DOCS=1 pytest tests/benchmarks/test_calls.py"
