"""Every type of value in every form of statement, on psycopg's own connection and on ours over HTTPS.

What differs is explained here, or a defect.
"""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, Any, Final

import psycopg
import pytest

import ps_core
from ps_http import dbapi
from tests.differential.conftest import everything, schema_of
from tests.differential.forms import FORMS
from tests.differential.outcome import Outcome, Watch, differing, of_cursor, of_error, run
from tests.differential.values import VALUES

if TYPE_CHECKING:
    from ps_lab import Lab

__all__ = ["everything"]

STEP: Final = 11
"""In the cheap form, every how many-th pair is run (see tests/differential/clients.py)."""
TOLD_LESS: Final = frozenset({"notices", "position", "warnings"})
"""The protocol has no notices, nothing tells which statement of the batch a position is in; and psycopg's extensions warn."""
_UTC: Final = re.compile(r"tzinfo=(?:datetime\.timezone\.utc|zoneinfo\.ZoneInfo\(key='[^']*'\))")
_REFUSED: Final = "NotSupportedError"
_BINARY: Final = "a value that is asked to be sent as binary (%b) is sent as text"


def explained(form: str, stock: Outcome, ours: Outcome) -> str | None:
    """Return why they may differ; None: they may not."""
    theirs, mine = stock.seen, ours.seen
    fields = differing(stock, ours) - TOLD_LESS
    if not fields:
        return "the same"
    if ours.error == _REFUSED:
        if form.startswith(("create temporary", "set local")):
            return "refused: it needs a session"
        return "refused: several statements" if ";" in form and stock.error else None
    if stock.error and ours.error:
        if fields == {"diag"} and _but_context(theirs) == _but_context(mine):
            return "the context of an error"
        said, told = (str(seen.get("diag", {}).get("message_primary")) for seen in (theirs, mine))
        if stock.error == ours.error == "SyntaxError" and re.search(r'"\$\d+"$', said) and told.endswith('"("'):
            return "a syntax error at a parameter"
        return None
    if stock.error or ours.error:
        if mine.get("message") == "can't parse interval 'infinity'":
            return "an infinite interval is an error, where psycopg makes zero of it"
        return _BINARY if "%b" in form else None
    reasons = []
    if "names" in fields and _names_by_cast(theirs, mine):
        reasons.append("a column without a name is called by the cast")
        fields -= {"names"}
    if "status" in fields and str(theirs["status"]).split(" ")[0] == mine["status"]:
        reasons.append("of a command tag with more than one word, the first")
        fields -= {"status"}
    if "rows" in fields and _UTC.sub("", "\n".join(theirs["rows"])) == _UTC.sub("", "\n".join(mine["rows"])):
        reasons.append("timestamptz is in UTC")
        fields -= {"rows"}
    if "rows" in fields and "%b" in form:
        reasons.append(_BINARY)
        fields -= {"rows"}
    return None if fields else "; ".join(reasons)


def _names_by_cast(theirs: dict[str, Any], mine: dict[str, Any]) -> bool:
    return all(a in (b, "?column?") for a, b in zip(theirs.get("names", ()), mine.get("names", ()), strict=True))


def _but_context(seen: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in seen["diag"].items() if name not in ("context", "severity")}


def run_ours(conn: dbapi.Connection, text: str, value: Any) -> Outcome:
    params = {"v": value} if "%(v)s" in text else (value,)
    try:
        cursor = conn.execute(text, params)
        seen = of_cursor(cursor, cursor.fetchall() if cursor.description else [])
    except Exception as exc:  # noqa: BLE001 - whatever it is, it is compared
        seen = of_error(exc)
    return Outcome({**seen, "notices": [], "warnings": []})


@pytest.mark.timeout(600)
def test_values(ps_lab: Lab, everything: bool) -> None:
    """Both let their caller see the same values, types, counts, errors and stored data."""
    place, wrong = ps_lab.topology.primary, []
    why: dict[Any, Any] = {}
    pairs = itertools.islice(itertools.product(FORMS.items(), VALUES.items()), 0, None, 1 if everything else STEP)
    with (
        schema_of(ps_lab) as registered,
        psycopg.connect(**ps_core.conninfo(place), prepare_threshold=None, autocommit=True) as stock,
        dbapi.connect(place, autocommit=True) as ours,
    ):
        watch = Watch(stock)
        for conn in (stock, ours):
            registered.on(conn)
        for (form, text), (value, given) in pairs:
            theirs, mine = run(stock, watch, text, given), run_ours(ours, text, given)
            reason = explained(text, theirs, mine)
            why[reason] = why.get(reason, 0) + 1
            if reason is None:
                fields = differing(theirs, mine) - TOLD_LESS
                wrong.append((form, value, {field: (theirs.seen.get(field), mine.seen.get(field)) for field in fields}))
        ours.client.close()
    print(why)
    assert not wrong, f"{len(wrong)} of {sum(why.values())} differ, the first: {wrong[:40]}"
