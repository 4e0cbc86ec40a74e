"""Round trips, exact: each unit of work as stock does it and as this project does it, through the bouncers and direct.

With PS_WRITE_DOCS=1 in the environment, what was measured is written to docs/generated/round-trips.md.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from ps_lab import Lab
from tests.benchmarks.units import Way, run, worker

DOCUMENT = Path(__file__).parents[2] / "docs" / "generated" / "round-trips.md"
WAYS = (Way.STOCK, Way.TESTED, Way.SEPARATE, Way.OURS, Way.TOKENS)
INTRODUCTION = """\
# Round trips

Messages of the client that wait for an answer, as the edge of the lab counts them; connecting is not counted.
Timeouts hold in the columns "stock, separate SET LOCALs" and "ours"; in the others there are none.

- primary: through a dedicated bouncer and the local one; replica: through the replica bouncer; direct: no pooler.
- stock: `psycopg.connect`, `postgresql+psycopg`, `django.db.backends.postgresql`, each on the same endpoint.
- tested on borrow: SQLAlchemy's `pool_pre_ping`, Django's `CONN_HEALTH_CHECKS`, on a connection that is borrowed for the unit.
- separate SET LOCALs: two, for the statement and the transaction timeout. They hold in a transaction only: autocommit gets one.
- ours with tokens: reads on a replica carry the guard; the position comes back, and a transaction's id.
- psycopg prepares a statement on a direct connection when it has seen it five times: counted is what comes after that.
"""


class Row(NamedTuple):
    """A unit of work, and its round trips in the order of WAYS; n is the number of statements. None: there is no such way."""

    label: str
    unit: str
    endpoint: str
    counts: tuple[int, ...]
    expected: tuple[str | None, ...]


def rows(
    label: str, unit: str, endpoints: str, *expected: str | None, counts: tuple[int, ...] = (1, 3)
) -> Iterator[tuple[Row, str]]:
    """Yield a row for each endpoint, with its name as a test."""
    for endpoint in endpoints.split():
        yield Row(label, unit, endpoint, counts, expected), f"{unit.partition(':')[0]}, {label}, {endpoint}"


# label, unit, endpoints, then: stock, tested on borrow, separate SET LOCALs, ours, ours with tokens
ROWS: dict[Row, str] = dict(
    [
        *rows("n reads in autocommit", "psycopg: reads in autocommit", "primary replica direct", "n", None, "n+4", "n", "n"),
        *rows("n writes in autocommit", "psycopg: writes in autocommit", "primary direct", "n", None, "n+4", "n", "n"),
        *rows("transaction of n reads", "psycopg: transaction of reads", "primary direct", "n+2", None, "n+4", "n+1", "n+1"),
        *rows("transaction of n reads", "psycopg: transaction of reads", "replica", "n+2", None, "n+4", "n", "n"),
        *rows("transaction of n writes", "psycopg: transaction of writes", "primary direct", "n+2", None, "n+4", "n+1", "n+1"),
        *rows(
            "`with conn.transaction()`: n reads",
            "psycopg: conn.transaction()",
            "primary replica direct",
            *("n+2", None, "n+4", "n+2", "n+2"),
        ),
        *rows("empty transaction", "psycopg: transaction of reads", "primary", "0", None, "4", "0", "0", counts=(0,)),
        *rows("`with conn.transaction()`: pass", "psycopg: conn.transaction()", "primary", "2", None, "4", "2", "2", counts=(0,)),
        *rows("session that reads n times", "SQLAlchemy: session", "primary direct", "n+2", "n+3", "n+4", "n+1", "n+1"),
        *rows("session that reads n times", "SQLAlchemy: session", "replica", "n+2", "n+3", "n+4", "n", "n"),
        *rows(
            "the same, REPEATABLE READ",
            "SQLAlchemy: session, REPEATABLE READ",
            "primary replica direct",
            *("n+2", "n+3", "n+4", "n+1", "n+1"),
        ),
        *rows(
            "transaction of n writes",
            "SQLAlchemy: transaction of writes",
            "primary direct",
            *("n+2", "n+3", "n+4", "n+1", "n+1"),
        ),
        *rows("empty transaction", "SQLAlchemy: transaction of writes", "primary", "0", "0", "0", "0", "0", counts=(0,)),
        *rows("check-out of a pooled connection", "SQLAlchemy: check-out", "primary replica direct", "0", "1", "0", "0", "0"),
        *rows("n reads outside atomic", "Django: reads", "primary replica direct", "n", "n+1", "n+4", "n", "n"),
        *rows("n writes outside atomic", "Django: writes", "primary direct", "n", "n+1", "n+4", "n", "n"),
        *rows("atomic of n reads", "Django: atomic of reads", "replica", "n+2", "n+3", "n+4", "n", "n"),
        *rows("atomic of n writes", "Django: atomic of writes", "primary direct", "n+2", "n+3", "n+4", "n+1", "n+1"),
        *rows("empty atomic", "Django: atomic of writes", "primary", "0", "1", "4", "0", "0", counts=(0,)),
    ]
)


@pytest.fixture(scope="module")
def measured(ps_lab: Lab) -> dict[Row, tuple[str | None, ...]]:
    """What is measured for each row."""
    found = {}
    with worker(ps_lab) as pool:

        def count(row: Row, way: Way, n: int) -> int:
            pool.submit(run, row.unit, row.endpoint, way, n).result()
            if row.endpoint == "replica":
                ps_lab.wait_replicas_caught_up()
            with ps_lab.round_trips() as counter:
                positioned = pool.submit(run, row.unit, row.endpoint, way, n).result()
            assert set(counter.by_path) <= {row.endpoint}, "it went somewhere else"
            assert positioned == (way is Way.TOKENS and counter.count > 0), "the ways are not what they say"
            return counter.count

        for row in ROWS:
            ways = [way if wanted is not None else None for way, wanted in zip(WAYS, row.expected, strict=True)]
            found[row] = tuple(way and formula({n: count(row, way, n) for n in row.counts}) for way in ways)
    return found


def formula(counts: dict[int, int]) -> str:
    """Return what counts of n statements have in common."""
    if len(set(counts.values())) == 1:
        return str(next(iter(counts.values())))
    more = {trips - n for n, trips in counts.items()}
    return f"n{more.pop():+}".removesuffix("+0") if len(more) == 1 else str(counts)


@pytest.mark.parametrize("row", ROWS, ids=ROWS.values())
def test_round_trips(measured: dict[Row, tuple[str | None, ...]], row: Row) -> None:
    """A unit of work costs exactly these round trips in each of the ways."""
    assert measured[row] == row.expected


def test_document(measured: dict[Row, tuple[str | None, ...]]) -> None:
    """The table in the documentation is the one that was measured."""
    text = render(measured)
    if os.environ.get("PS_WRITE_DOCS"):
        DOCUMENT.parent.mkdir(exist_ok=True)
        DOCUMENT.write_text(text)
    assert DOCUMENT.read_text() == text, "write it anew: PS_WRITE_DOCS=1 pytest tests/benchmarks/test_round_trips.py"


def render(measured: dict[Row, tuple[str | None, ...]]) -> str:
    """Return the document; endpoints that do not differ share a line."""
    lines: dict[tuple[str, str, tuple[str | None, ...]], list[str]] = {}
    for row, counted in measured.items():
        lines.setdefault((row.unit.partition(":")[0], row.label, counted), []).append(row.endpoint)
    parts = [INTRODUCTION]
    for client in dict.fromkeys(client for client, _, _ in lines):
        parts.append(f"\n## {client}\n\n| unit of work | endpoint | {' | '.join(WAYS)} |\n|---|---|{'---|' * len(WAYS)}\n")
        parts += [
            f"| {label} | {', '.join(endpoints)} | {' | '.join(cell or '' for cell in counted)} |\n"
            for (of, label, counted), endpoints in lines.items()
            if of == client
        ]
    return "".join(parts)
