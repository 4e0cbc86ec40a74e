"""The matrix of what was met: collected while the tests run, and written down as a page of the documentation."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ps_core.failures import Failure, Ran
from tests.adversity.harness import AUTOCOMMIT, PATHS, WRITES, Met, Ours, Phase, Row
from tests.adversity.verdicts import NOT_REPRODUCED, VERDICTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

PAGE = Path(__file__).parents[2] / "docs" / "generated" / "adversity.md"
_HEAD = """\
# Adversity: what was met, and what became of it

<!-- Written by the tests in tests/adversity with PS_WRITE_DOCS=1; not by hand. -->

Real faults of real servers, behind PgBouncer 1.18, met by stock psycopg and by the connection of `ps_core` in each phase of
their work. "Verdict" is what `classify` makes of psycopg's error: the kind, whether the statement ran, and the rule that
decided. Where two are named, either is met, depending on who notices first. "Sent again": the caller sees no error.
"""
_PHASES = [phase.value for phase in Phase]
_COLUMNS = ("endpoint", "phase", "stock psycopg", "verdict", "ps_core", "outcome")


@dataclass(slots=True)
class Matrix:
    """The rows, by event. The page has them in an order of its own."""

    events: dict[str, list[tuple[str, str, str, str, str, str]]] = field(default_factory=dict)
    met: set[str] = field(default_factory=set)
    """The rules that decided somewhere."""
    seen: dict[str, str] = field(default_factory=dict)
    """What the user of a framework sees, by fault."""
    file: str = ""
    """The file whose test runs."""
    files: set[str] = field(default_factory=set)
    """The files that said what the user sees."""
    ran: set[str] = field(default_factory=set)
    """The tests that are over, by id."""

    def sees(self, fault: str, text: str, *, synthetic: bool = False) -> None:
        """Write down, in one line, what applications of both frameworks see of a fault, which the test has asserted.

        `synthetic`: only the words of the fault are known, and the lab speaks them.
        """
        text += " (Synthetic: the words are the documentation's.)" if synthetic else ""
        assert self.seen.setdefault(fault, text) == text, f"two lines for {fault}"
        self.files.add(self.file)

    def crowd(self, met: Met, row: Row) -> None:
        """Check one phase of a crowd, and write it down."""
        try:
            met.check(row.path, row.phase, row.rules, row.ours)
        finally:
            plain = met.clients["psycopg", row.path, row.phase].failure
            if plain is not None:
                self.met.add(plain.rule)
        self._add(
            met.event,
            row.path,
            row.phase.value,
            row.rules,
            [ours.value for ours in row.ours],
            _outcomes(row.path, row.phase, row),
        )

    def add(
        self, event: str, endpoint: str, phase: str, failure: Failure, rule: str | Sequence[str], *, ours: str, outcome: str
    ) -> None:
        """Check the rule of one error, and write it down with what our connection did, which the test has checked."""
        expected = (rule,) if isinstance(rule, str) else rule
        self.met.add(failure.rule)
        assert failure.rule in expected, failure
        self._add(event, endpoint, phase, expected, [ours], [outcome])

    def _add(
        self, event: str, endpoint: str, phase: str, rules: Sequence[str | None], ours: Iterable[str], outcome: Iterable[str]
    ) -> None:
        verdicts = " or ".join(_verdict(rule) for rule in rules)
        noticed = "no error" if rules == (None,) else "an error, or none" if None in rules else "an error"
        self.events.setdefault(event, []).append((endpoint, phase, noticed, verdicts, " or ".join(ours), " or ".join(outcome)))

    def page(self) -> str:
        """Return the whole page."""
        parts = [_HEAD, "\n## What a user sees\n\n", _line(("fault", "what the user of ps_sqlalchemy or ps_django sees"))]
        parts += [_line(("---", "---")), *(_line(line) for line in sorted(self.seen.items()))]
        for event, rows in sorted(self.events.items()):
            parts += [f"\n## {event}\n\n", _line(_COLUMNS), _line("---" for _ in _COLUMNS)]
            phases: dict[tuple[str, ...], list[str]] = {}
            for endpoint, phase, *rest in sorted(set(rows), key=_place):
                phases.setdefault((endpoint, *rest), []).append(phase)
            parts += [_line((endpoint, "; ".join(names), *rest)) for (endpoint, *rest), names in phases.items()]
        parts += ["\n## Not reproduced here\n\n", _line(("rule", "why")), _line(("---", "---"))]
        parts += [_line((f"`{rule}`", why)) for rule, why in sorted(NOT_REPRODUCED.items())]
        return "".join(parts)


def _place(row: tuple[str, ...]) -> tuple[object, ...]:
    """Return where a row stands: by endpoint, and by phase as a client goes through them; what is no phase comes after them."""
    endpoint, phase, *_ = row
    return (
        [name not in endpoint for name in PATHS],
        endpoint,
        _PHASES.index(phase) if phase in _PHASES else len(_PHASES),
        row,
    )


def _outcomes(path: str, phase: Phase, row: Row) -> list[str]:
    return list(dict.fromkeys(_outcome(path, phase, row, ours) for ours in row.ours))


def _outcome(path: str, phase: Phase, row: Row, ours: Ours) -> str:
    writes = path != "replica" and phase in WRITES
    if ours is Ours.UNKNOWN:
        return "the caller is told that nobody can tell"
    if ours is not Ours.RAISED:
        return "committed, once" if writes else "answered"
    ran = {verdict.ran for rule in row.rules if rule is not None for verdict in VERDICTS[rule]}
    if writes and phase in AUTOCOMMIT and Ran.UNKNOWN in ran:
        return "committed or not: ran unknown"
    return "rolled back" if writes else "no answer"


def _verdict(rule: str | None) -> str:
    if rule is None:
        return "-"
    verdict = max(VERDICTS[rule], key=lambda verdict: verdict.ran.value)
    return f"{verdict.kind.value}, ran: {verdict.ran.value} (`{rule}`)"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"
