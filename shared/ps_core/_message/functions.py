"""Which functions of a database may write: what a text shows only to those who know the names. Pure.

READ ONLY changes what a function does: one that swallows every exception succeeds with nothing written. So an endpoint is asked,
in one query, for the names outside pg_catalog that are VOLATILE (as every function is that nobody declared otherwise), and a text
that has such a name, anywhere, may write. Mark functions that only read as STABLE or IMMUTABLE.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from ps_core._message.statement import QUOTE, identifiers

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["FUNCTIONS_SQL", "REFRESH_EVERY", "Functions"]

REFRESH_EVERY: Final = 60.0
"""Seconds for which the names of an endpoint are taken for known. The query travels behind a message that is sent anyway."""

# VOLATILE, and harmless all the same (each was looked at): but for what resets statistics.
_HARMLESS: Final = [
    *("pageinspect", "pg_buffercache", "pg_stat_statements", "pgcrypto", "pgrowlocks", "pgstattuple", "sslinfo", "tablefunc"),
    "uuid-ossp",
]

FUNCTIONS_SQL: Final = (
    b"SELECT pg_catalog.lower(p.proname::pg_catalog.text), pg_catalog.bool_or(NOT l.lanpltrusted)"
    b" FROM pg_catalog.pg_proc p"
    b" LEFT JOIN pg_catalog.pg_aggregate a ON a.aggfnoid::pg_catalog.oid OPERATOR(pg_catalog.=) p.oid"
    b" JOIN pg_catalog.pg_proc f ON f.oid OPERATOR(pg_catalog.=) p.oid"
    b" OR f.oid OPERATOR(pg_catalog.=) a.aggtransfn::pg_catalog.oid OR f.oid OPERATOR(pg_catalog.=) a.aggfinalfn::pg_catalog.oid"
    b" JOIN pg_catalog.pg_language l ON l.oid OPERATOR(pg_catalog.=) f.prolang"
    b" WHERE p.pronamespace OPERATOR(pg_catalog.<>) 11::pg_catalog.oid"  # pg_catalog
    b" AND f.provolatile OPERATOR(pg_catalog.=) 'v'::pg_catalog.\"char\""
    b" AND p.prorettype OPERATOR(pg_catalog.<>) ALL (ARRAY[2279, 3838]::pg_catalog.oid[])"  # trigger, event_trigger
    b" AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d"
    b" JOIN pg_catalog.pg_extension e ON e.oid OPERATOR(pg_catalog.=) d.refobjid"
    b" WHERE d.classid OPERATOR(pg_catalog.=) 1255::pg_catalog.oid AND d.objid OPERATOR(pg_catalog.=) p.oid"  # pg_proc
    b" AND d.deptype OPERATOR(pg_catalog.=) 'e'::pg_catalog.\"char\""
    b" AND (e.extname::pg_catalog.text OPERATOR(pg_catalog.=) ANY ('{%s}'::pg_catalog.text[])"
    b" AND p.proname::pg_catalog.text OPERATOR(pg_catalog.!~~) '%%reset%%'"
    # What it has in C only computes (ST_Collect, ST_MakeLine); in other languages, it adds columns and locks rows.
    b" OR e.extname::pg_catalog.text OPERATOR(pg_catalog.=) 'postgis' AND f.prolang OPERATOR(pg_catalog.=) 13::pg_catalog.oid))"
    b" GROUP BY 1"
) % ",".join(_HARMLESS).encode()
"""The question. It names everything of pg_catalog's as such: a caller's search_path must not change the answer."""


@dataclass(slots=True, weakref_slot=True, eq=False)
class Functions:
    """The names of one database that may write, as its endpoints reported them last. Every reader sees a whole set."""

    may_write: frozenset[str] = frozenset()
    """In lower case."""
    beside: frozenset[str] = frozenset()
    """Those of them in untrusted languages (C, too): they may do what a rollback does not undo."""
    _reported: dict[str, tuple[float, frozenset[str], frozenset[str]]] = field(default_factory=dict)
    due: dict[str, float] = field(default_factory=dict)
    """From when on each endpoint is to be asked, by its name."""
    lessons: int = 0
    """How often the servers taught us what a text does not show: names that may write, and texts that were refused.

    What was composed before the last lesson is composed anew (`EndpointState.composed`).
    """

    def is_due(self, endpoint: str, now: float) -> bool:
        """Return whether the caller should ask `endpoint`; others should not, then, until the answer is old."""
        if now < self.due.get(endpoint, 0.0):
            return False
        self.due[endpoint] = now + REFRESH_EVERY
        return True

    def take(self, endpoint: str, rows: Iterable[tuple[str, bool]], now: float) -> None:
        """Take what `endpoint` answered. A replica that lags behind takes no name away that the primary has just reported.

        What an endpoint said longer ago than that does not count: it may not be asked any more, and names go, too.
        """
        rows = [(_sought(name), beside) for name, beside in rows]
        self._reported = {name: said for name, said in self._reported.items() if now - said[0] < REFRESH_EVERY}
        self._reported[endpoint] = now, frozenset(name for name, _ in rows), frozenset(name for name, beside in rows if beside)
        self.due[endpoint] = now + REFRESH_EVERY
        may_write = frozenset().union(*(names for _, names, _ in self._reported.values()))
        beside = frozenset().union(*(names for _, _, names in self._reported.values()))
        if (may_write, beside) != (self.may_write, self.beside):
            self.beside, self.may_write = beside, may_write
            self.learn()

    def learn(self) -> None:
        """Count a lesson. It is known before: what is composed by an older count is taken for old."""
        self.lessons += 1


def _sought(name: str) -> str:
    """Return what of a name a text must have to call it: the longest identifier in it, or a quote where it has none."""
    return max(identifiers(name) - {QUOTE}, key=len, default=QUOTE)
