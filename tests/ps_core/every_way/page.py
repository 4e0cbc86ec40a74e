"""docs/generated/every-way.md."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tests.ps_core.every_way.ways import Place, Way

__all__ = ["PAGE", "Table"]

PAGE: Final = Path(__file__).parents[3] / "docs" / "generated" / "every-way.md"
PROMISES: Final = (
    "settings",
    "what was SET",
    "guard",
    "after a read",
    "after a write",
    "deadline",
    "lost answer",
    "after an error",
)
HEAD: Final = """\
# Every way of sending, and what it keeps

<!-- Written by tests/ps_core/test_every_way.py with PS_WRITE_DOCS=1; not by hand. -->

However you send a statement, the same promises hold, or the statement is refused. Each cell was met on real servers, by the sync
connection with a text given as `str`, `bytes` and `sql.Composable`, and by the asyncio connection: settings and positions on the
primary, a replica, the primary in a replica's place, and the direct endpoint; the guard on a replica; errors on all but the
stand-in. The deadline and the lost answer were met on the primary; they and what was SET with one form of text.

- **settings**: timeouts, `limits()`, local settings and the assumed role hold where the statement runs, and it is READ ONLY on
  an endpoint for reads, where a write is refused.
- **what was SET**: the same where all of these were SET for the session before, on the poolers' endpoints.
- **guard**: a replica that has not replayed what the caller has seen refuses the read; "later" is a read of a transaction that
  was opened before the caller saw it.
- **after a read**, **after a write**: a position comes back, so that no later read goes behind it. "pin": none can, and later
  reads go to the primary until one has told its position.
- **deadline**: where the answer never comes, the deadline ends the wait.
- **lost answer**: where the answer is lost with its connection, the statement is sent again only where nothing can be doubled;
  else the error is raised.
- **after an error**: a statement that is wrong raises the server's own error, and leaves nothing for the next client of the
  pooler.

"—": there is no such statement (COPY FROM reads nothing), or it was refused before.

"""
MORE: Final = """
Nothing is left on the pooler's server connection either, with foreign clients looking on all the time, after a statement that
was cancelled or timed out, an error of the second of several statements, a COPY that the caller gives up or that fails under
way, a stream that is abandoned, a named cursor that is closed early, a pipeline that is aborted or left, and a transaction that
is left by an exception.

What PostgreSQL runs only outside of a transaction block (VACUUM, CREATE INDEX CONCURRENTLY and their like) carries no timeouts;
with local settings or an assumed role, it is refused. So is a text of several transactions: what follows the first would carry
nothing.
"""


class Table:
    """What was met, by promise, way, state and place."""

    def __init__(self) -> None:
        self._met: defaultdict[tuple[str, str, str], dict[str, set[str]]] = defaultdict(dict)
        self._notes: list[str] = []

    def note(self, promise: str, way: Way, state: str, place: Place, met: str) -> None:
        """Write down what was met in one cell."""
        self._met[promise, way.name, state].setdefault("replicas" if place.reads else "", set()).add(met)

    def is_whole(self, ways: Sequence[Way], states: Sequence[str]) -> bool:
        """Return whether every way ran in every state."""
        return all(("settings", way.name, state) in self._met for way in ways for state in states) and all(
            any(promise == name for name, _, _ in self._met) for promise in PROMISES
        )

    def page(self, ways: Iterable[Way], states: Sequence[str]) -> str:
        """Return the page."""
        self._notes = []
        lines = [f"| way | state | {' | '.join(PROMISES)} |", "|---" * (2 + len(PROMISES)) + "|"]
        for way in ways:
            for state in states:
                cells = [self._cell(self._met.get((promise, way.name, state), {})) for promise in PROMISES]
                lines.append(f"| {way.name if state == states[0] else ''} | {state} | {' | '.join(cells)} |")
        notes = [f"{number}. {note}" for number, note in enumerate(self._notes, 1)]
        return HEAD + "\n".join(lines) + "\n\n" + "\n".join(notes) + "\n" + MORE

    def _cell(self, met: dict[str, set[str]]) -> str:
        """Return one cell: where replicas differ, they are named."""
        shown = {place: self._shown(outcomes) for place, outcomes in met.items()}
        if len(set(shown.values())) <= 1:
            return next(iter(shown.values()), "—")
        return f"{shown['']}; replicas: {shown['replicas']}"

    def _shown(self, outcomes: set[str]) -> str:
        values = sorted({self._short(outcome) for outcome in outcomes} - {"refused: READ ONLY"})
        return ", ".join(values) or "refused"

    def _short(self, outcome: str) -> str:
        job, _, what = outcome.partition(": ") if outcome.startswith(("read: ", "write: ")) else ("", "", outcome)
        if what.startswith("ReplicaBehind"):
            return "kept"
        if ": " in what and not what.startswith("refused"):
            what = what.replace("'replica'", "…").replace("'fallback'", "…")
            if what not in self._notes:
                self._notes.append(what)
            return f"refused ({self._notes.index(what) + 1})"
        if what in ("sent again", "raised"):
            return f"{job} {what}"
        return what
