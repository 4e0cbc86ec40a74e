"""docs/generated/differential.md."""

from __future__ import annotations

import platform
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

import django
import psycopg
import sqlalchemy as sa

from tests.differential.forms import FORMS
from tests.differential.remaining import REMAINING
from tests.differential.values import VALUES
from tests.ps_core.test_private_names import CALLED, OVERRIDDEN, READ

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["PAGE", "Totals", "remaining_table"]

PAGE: Final = Path(__file__).parents[2] / "docs" / "generated" / "differential.md"


class Totals:
    """What was compared, by way."""

    def __init__(self) -> None:
        self.pairs: Counter[str] = Counter()
        self.kinds: Counter[tuple[str, str]] = Counter()
        """By way and kind of difference."""
        self.unexplained: Counter[str] = Counter()
        self.surface: Counter[str] = Counter()
        """Scenarios, by what they are run on."""

    def write(self) -> None:
        """Write the page."""
        PAGE.write_text("\n".join(self._lines()) + "\n")

    def _lines(self) -> Iterator[str]:
        versions = (
            f"psycopg {psycopg.__version__} ({psycopg.pq.__impl__}), SQLAlchemy {sa.__version__}, Django {django.get_version()}"
        )
        yield "# The comparison with stock"
        yield ""
        yield "Written by `make differential`; `make test` runs a part of it. Do not edit."
        yield ""
        yield (
            f"The same statement with the same value, on stock and on ours, on the same bouncer: {len(VALUES)} values × {len(FORMS)} statement"
            f" forms. Rows with their Python types, column names and type codes, row count, status, what is stored, exception with SQLSTATE and"
            f" all that it tells, notices and warnings are compared. Stock is psycopg's default cursor with `prepare_threshold=None`,"
            f" `postgresql+psycopg`, and Django's own backend. {versions}, Python {platform.python_version()}."
        )
        yield ""
        yield "| way | pairs compared | the same | different and explained below | unexplained |"
        yield "|---|--:|--:|--:|--:|"
        for way, pairs in self.pairs.items():
            explained = sum(count for (place, _), count in self.kinds.items() if place == way)
            wrong = self.unexplained[way]
            yield f"| {way} | {pairs:,} | {pairs - explained - wrong:,} | {explained:,} | {wrong:,} |"
        pairs, explained, wrong = self.pairs.total(), self.kinds.total(), self.unexplained.total()
        yield f"| in all | {pairs:,} | {pairs - explained - wrong:,} | {explained:,} | {wrong:,} |"
        yield ""
        yield (
            "Beside the grid, what psycopg's connections and cursors offer and SQLAlchemy's typed statements, inserts and ORM run as scenarios on"
            f" both: {', '.join(f'{count} {what}' for what, count in self.surface.items())}; 0 differences. `cursor(binary=True)` is refused where the"
            " client binds (NotSupportedError)."
        )
        yield ""
        yield "## What remains"
        yield ""
        yield from remaining_table(self.kinds)
        yield ""
        yield "## Private names of psycopg that are used"
        yield ""
        yield "`tests/ps_core/test_private_names.py` holds each with its signature, and that there is no other."
        yield ""
        yield from private_names_table()


def private_names_table() -> Iterator[str]:
    """Yield the table of psycopg's private names."""
    yield "| what | names |"
    yield "|---|---|"
    for what, names in (("overridden", OVERRIDDEN), ("called", CALLED)):
        yield f"| {what} | " + ", ".join(f"`{name}{signature or ''}`" for name, signature in names.items()) + " |"
    for what, read in READ.items():
        yield f"| read or set, of a {what} | " + ", ".join(f"`{name}`" for name in read) + " |"


def remaining_table(kinds: Counter[tuple[str, str]]) -> Iterator[str]:
    """Yield the table of what differs and is to stay so, with how often it was met."""
    yield "| what | example | stock | ours | why | instead | pairs |"
    yield "|---|---|---|---|---|---|--:|"
    for kind in REMAINING:
        count = sum(found for (_, name), found in kinds.items() if name == kind.kind)
        cells = (kind.kind, kind.example, kind.stock, kind.ours, kind.reason, kind.way_out)
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + f" | {count:,} |"
