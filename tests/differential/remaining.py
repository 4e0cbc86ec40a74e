"""What differs from psycopg's own binding and is to stay so: data, from which the page is written."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.differential.outcome import Outcome

__all__ = ["REMAINING", "Remaining", "explain"]


@dataclass(frozen=True)
class Remaining:
    """One kind of difference: told by what both sides show, never by the value or the statement alone."""

    kind: str
    example: str
    stock: str
    ours: str
    reason: str
    way_out: str
    applies: Callable[[str, Outcome, Outcome, frozenset[str]], bool]


_PORTAL: Final = re.compile(r"\n?unnamed portal parameter \$\d+ = .*$", re.DOTALL)
_CONSTANT: Final = re.compile(r"non-integer constant in (ORDER BY|GROUP BY|DISTINCT ON)")
_ERROR: Final = frozenset({"diag", "position"})


def _said(outcome: Outcome) -> str:
    return str((outcome.seen.get("diag") or {}).get("message_primary") or "")


def _but_context(outcome: Outcome) -> dict[str, Any]:
    diag = dict(outcome.seen["diag"])
    diag["context"] = _PORTAL.sub("", diag["context"] or "") or None
    return diag


def _syntax(outcome: Outcome) -> bool:
    return outcome.error == "SyntaxError" and _said(outcome).startswith("syntax error at or near")


def _at_parameter(outcome: Outcome) -> bool:
    return _syntax(outcome) and '"$' in _said(outcome)


REMAINING: Final = (
    Remaining(
        "position of an error",
        "`SELECT 1 / %s FROM nowhere`",
        "counts in the text with `$1`",
        "counts in the text with literals",
        "The text that is sent holds the literals.",
        "Nothing to do: the message and `LINE 1: …` show the place.",
        lambda form, stock, ours, fields: fields == {"position"} and bool(stock.error),
    ),
    Remaining(
        "context of an error",
        "`SELECT %s::int` with `'a'`",
        "`unnamed portal parameter $1 = '...'`",
        "a position in the text, no such line",
        "There is no parameter for the server to name. Class, SQLSTATE and message are the same.",
        "Nothing to do.",
        lambda form, stock, ours, fields: (
            bool(stock.error) and fields <= _ERROR and "diag" in fields and _but_context(stock) == _but_context(ours)
        ),
    ),
    Remaining(
        "name of a column without a name",
        "`SELECT %s`",
        "`?column?`",
        "the type: `int2`, `float8`, …",
        "PostgreSQL names a cast after its type.",
        "`SELECT %s AS n`",
        lambda form, stock, ours, fields: fields == {"names"} and stock.seen["names"] == ["?column?"],
    ),
    Remaining(
        "the server cannot type a parameter, and ours works",
        "`SELECT pg_typeof(%s)`, `%s IS NULL`, `concat('v', %s)` with a string or None",
        "IndeterminateDatatype",
        "takes it for text",
        "A literal is typed by where it stands, at the latest as text.",
        "`%s::text` works on both.",
        lambda form, stock, ours, fields: stock.error == "IndeterminateDatatype" and not ours.error,
    ),
    Remaining(
        "one named parameter in places of two types, and ours works",
        "`INSERT INTO t (n, d) VALUES (%(v)s, %(v)s)` (int and numeric) with a string or None",
        "AmbiguousParameter",
        "types each of the two by its place",
        "Stock sends one parameter, ours two literals.",
        "A cast at each place works on both.",
        lambda form, stock, ours, fields: (
            stock.error == "AmbiguousParameter" and ours.error in ("", "InvalidTextRepresentation") and "%(v)s" in form
        ),
    ),
    Remaining(
        "several statements in one text, and ours works",
        "`execute('SELECT %s; SELECT 2', params)`",
        "SyntaxError: cannot insert multiple commands into a prepared statement",
        "runs both",
        "Statements travel as text, as psycopg's do without parameters. Such a text is never sent again.",
        "One statement for each `execute`.",
        lambda form, stock, ours, fields: stock.error == "SyntaxError" and "multiple commands" in _said(stock) and ";" in form,
    ),
    Remaining(
        "no parameter can stand there: both refuse",
        "`SET x = %s`, `DO %s`, `COMMENT ON … IS %s`, `varchar(%s)`, `x IS %s`",
        'SyntaxError at "$1"',
        'SyntaxError at "(" or the literal',
        "The error quotes what was sent.",
        "`set_config('x', %s, true)`; `psycopg.sql.Literal` where SQL wants a constant.",
        lambda form, stock, ours, fields: _at_parameter(stock) and _syntax(ours),
    ),
    Remaining(
        "no parameter can stand there, and a string, None or a bare literal can",
        "`SET LOCAL x = %s`, `COMMENT ON … IS %s`, `interval %s` with a string; `x IS %s` with None",
        'SyntaxError at "$1"',
        "works, or refuses the value",
        "Where psycopg gives no type, the literal is bare, and the grammar takes it for a constant.",
        "`psycopg.sql.Literal` works on both.",
        lambda form, stock, ours, fields: _at_parameter(stock) and not _syntax(ours),
    ),
    Remaining(
        "a string or None as ORDER BY, GROUP BY or DISTINCT ON",
        "`SELECT … ORDER BY %s` with `'name'`",
        "takes it for a constant, which orders nothing",
        "SyntaxError: non-integer constant in ORDER BY",
        "A bare constant there is refused by PostgreSQL. It is nearly always a column's name that was meant.",
        "`psycopg.sql.Identifier` for a column; `%s::text` for a constant.",
        lambda form, stock, ours, fields: ours.error == "SyntaxError" and _CONSTANT.search(_said(ours)) is not None,
    ),
    Remaining(
        "a subscript behind what psycopg gives no type, or behind an expression of a dumper's own",
        "`SELECT %s[1]` with a list of strings",
        "DatatypeMismatch; works for the dumper's value",
        "SyntaxError",
        "A bare literal takes no subscript.",
        "`(%s::text[])[1]` works on both.",
        lambda form, stock, ours, fields: (
            "%s[" in form and stock.error in ("DatatypeMismatch", "") and _syntax(ours) and '"["' in _said(ours)
        ),
    ),
    Remaining(
        "`%b` with what has no type of its own",
        "`SELECT %b` with an empty `Range`",
        "the bytes of the binary form, taken for text",
        "the text",
        "Client-side literals are text; `%b` chooses the type alone.",
        "`%s`, or a cast: `%b::int4range`.",
        lambda form, stock, ours, fields: "%b" in form and fields == {"rows"},
    ),
)


def explain(form: str, stock: Outcome, ours: Outcome, fields: frozenset[str]) -> Remaining | None:
    """Return the kind that a difference is of; None: it is not explained."""
    return next((kind for kind in REMAINING if kind.applies(form, stock, ours, fields)), None)
