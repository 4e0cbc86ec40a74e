"""Values of Python's as parameters, and texts of PostgreSQL's as values, without psycopg where none of them needs it. Pure.

The protocol sends parameters as text and says no types, so that the server would guess them. So each placeholder becomes one
with a cast to the type that psycopg gives the value: the server then sees what it sees of psycopg. What psycopg leaves to the
server to type (str, None) stays without one.

>>> plain_query("select * from t where n = %s and a = %(a)s", [1])  # psycopg has to say what is wrong
>>> plain_query("select * from t where n = %s and a = %s", [1, "x"])
Query(text='select * from t where n = ($1::int2) and a = $2', params=('1', 'x'))
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["Query", "plain_loaders", "plain_query", "psycopg_is_there"]


@dataclass(frozen=True, slots=True)
class Query:
    """A statement as it is sent: with `$1`, `$2`, ..."""

    text: str
    params: tuple[str | None, ...] = field(default=(), repr=True)
    """PostgreSQL's text forms."""


def psycopg_is_there() -> bool:
    """Return whether psycopg is imported: dumpers and loaders of the application's may be registered there."""
    return "psycopg" in sys.modules


# --- parameters ---

_PLACEHOLDER: Final = re.compile(r"%(?:(?P<escaped>%)|s|\((?P<name>[^()%]+)\)s)?")
_RANGES: Final = ((1 << 15, "int2"), (1 << 31, "int4"), (1 << 63, "int8"))


@lru_cache(maxsize=256)
def _split(text: str) -> tuple[tuple[str, ...], tuple[str | int, ...]] | None:
    """Return the parts of a template between its placeholders, and what these are called; None: psycopg has to judge it."""
    parts: list[str] = []
    names: list[str | int] = []
    part, at = "", 0
    for found in _PLACEHOLDER.finditer(text):
        part += text[at : found.start()]
        at = found.end()
        if found["escaped"]:
            part += "%"
        elif found[0] == "%":
            return None
        else:
            parts.append(part)
            names.append(found["name"] or len(names))
            part = ""
    if len({type(name) for name in names}) > 1:
        return None
    return (*parts, part + text[at:]), tuple(names)


def plain_query(template: object, params: Sequence[Any] | Mapping[str, Any] | None) -> Query | None:
    """Return a statement with its parameters; None where psycopg has to do it, or to say what is wrong with it."""
    if type(template) is not str:
        return None
    if params is None:
        return Query(template)
    split = _split(template)
    if split is None:
        return None
    parts, names = split
    if type(params) in (list, tuple):
        if len(params) != len(names) or (names and type(names[0]) is str):
            return None
    elif type(params) is not dict or any(name not in params for name in names):
        return None
    numbers: dict[str | int, str] = {}
    given: list[str | None] = []
    text = parts[0]
    for name, part in zip(names, parts[1:], strict=True):
        if name not in numbers:
            dumped = _dump(params[name])  # type: ignore[index] # a name of a dict, or a number of a list
            if dumped is None:
                return None
            value, cast = dumped
            given.append(value)
            numbers[name] = placeholder(len(given), cast)
        text += numbers[name] + part
    return Query(text, tuple(given))


def placeholder(number: int, cast: str) -> str:
    """Return a placeholder, in parentheses where it has a cast, so that it can stand wherever a value can (`%s[1]`)."""
    return f"(${number}::{cast})" if cast else f"${number}"


def _dump(value: object) -> tuple[str | None, str] | None:
    """Return the text and the type of a value; None: it is not one of the plain ones."""
    if value is None:
        return None, ""
    match value:
        case str() if type(value) is str:
            return None if "\x00" in value else (value, "")
        case bool():
            return "t" if value else "f", "bool"
        case int() if type(value) is int:
            magnitude = value if value >= 0 else -value - 1
            return str(value), next((name for end, name in _RANGES if magnitude < end), "numeric")
        case float() if type(value) is float:
            return repr(value), "float8"
    return None


# --- results ---


def _bool(text: str) -> bool:
    return text == "t"


def _numeric(text: str) -> Any:
    from decimal import Decimal

    return Decimal(text)


def _json(text: str) -> Any:
    import json

    return json.loads(text)


def _uuid(text: str) -> Any:
    from uuid import UUID

    return UUID(text)


def _date(text: str) -> Any:
    from datetime import date

    return date.fromisoformat(_iso(text))


def _timestamp(text: str) -> Any:
    from datetime import datetime

    return datetime.fromisoformat(_iso(text))


def _timestamptz(text: str) -> Any:
    from datetime import UTC, datetime

    return datetime.fromisoformat(_iso(text)).astimezone(UTC)


def _iso(text: str) -> str:
    """Return a date as the style ISO writes it, of years from 1 to 9999.

    Raises:
        ValueError: it is another one: psycopg says what it makes of it.
    """
    if text[4:5] != "-" or text.endswith("BC"):
        raise ValueError(text)
    return text


_PLAIN: Final[dict[int, Callable[[str], Any]]] = {
    16: _bool,
    **dict.fromkeys((20, 21, 23, 26), int),  # int8, int2, int4, oid
    **dict.fromkeys((700, 701), float),  # float4, float8
    **dict.fromkeys((18, 19, 25, 705, 1042, 1043, 2278), str),  # "char", name, text, unknown, bpchar, varchar, void
    1700: _numeric,
    **dict.fromkeys((114, 3802), _json),
    2950: _uuid,
    1082: _date,
    1114: _timestamp,
    1184: _timestamptz,
}
"""By the OID of their types, what makes of a text what psycopg makes of it."""


def plain_loaders(oids: Sequence[int]) -> list[Callable[[str], Any]] | None:
    """Return what makes values of the texts of each column; None: psycopg has to."""
    loaders = [_PLAIN.get(oid) for oid in oids]
    return None if None in loaders else loaders  # type: ignore[return-value]
