"""What is a value and what is a text: without psycopg the same as with it."""

from __future__ import annotations

import datetime as dt
import sys
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from psycopg.adapt import Dumper, Loader
from psycopg.postgres import types

from ps_http._adapting import Adapting
from ps_http._values import Query, plain_loaders, plain_query
from tests.differential.outcome import shown

pytestmark = pytest.mark.fast

PLAIN = (
    *(None, True, False, 0, 1, -1, 32767, 32768, -32768, -32769, 1 << 31, -(1 << 31), (1 << 31) - 1, 1 << 63, (1 << 63) - 1),
    *(-(1 << 63), 1 << 70, -(1 << 70), 0.0, -0.0, 2.5, 0.1, 1e300, 5e-324, float("nan"), float("inf"), float("-inf")),
    *("", "a", 'it\'s \\ 100% "é"\n$1;--', "\N{PILE OF POO}"),
)


@pytest.mark.parametrize("value", PLAIN, ids=repr)
def test_plain_values(value: Any) -> None:
    """The statement and the texts are those that psycopg's adapters give."""
    adapting = Adapting()
    for template, params in (
        ("select %s", [value]),
        ("select %s, %%, '%%', %s", (value, 1)),
        ("select %(a)s, %(b c)s, %(a)s", {"a": value, "b c": 2, "unused": object()}),
    ):
        plain = plain_query(template, params)
        assert plain is not None
        assert plain == adapting.query(template, params)


def test_without_parameters() -> None:
    """A text without parameters is sent as it is."""
    text = "select '%s', 5 % 2, $1"
    assert plain_query(text, None) == Adapting().query(text, None) == Query(text)
    assert plain_query("select '%%'", ()) == Adapting().query("select '%%'", ()) == Query("select '%'")


@pytest.mark.parametrize(
    ("template", "params", "error"),
    [
        ("select %s", [], psycopg.ProgrammingError),
        ("select %s", [1, 2], psycopg.ProgrammingError),
        ("select %s, %(a)s", [1, 2], psycopg.ProgrammingError),
        ("select %(a)s", {}, psycopg.ProgrammingError),
        ("select %(a)s", [1], TypeError),
        ("select %s", {"a": 1}, TypeError),
        ("select 5 % 2", [], psycopg.ProgrammingError),
        ("select %d", [1], psycopg.ProgrammingError),
        ("select %s", ["\x00"], psycopg.DataError),
        ("select %s", [{"a": 1}], psycopg.ProgrammingError),
        ("select %s", "a", TypeError),
    ],
)
def test_bad_parameters(template: str, params: Any, error: type[Exception]) -> None:
    """What does not fit together is left to psycopg, which says what is wrong."""
    assert plain_query(template, params) is None
    with pytest.raises(error):
        Adapting().query(template, params)


def test_numbers_of_placeholders() -> None:
    """A name that stands twice is one parameter, and a cast is in parentheses."""
    assert plain_query("%(a)s %(b)s %(a)s", {"a": 1, "b": "x"}) == Query("($1::int2) $2 ($1::int2)", ("1", "x"))
    adapted = Adapting().query("%(a)s %(b)s %(a)s[1]", {"a": [1], "b": Decimal("2.50")})
    assert adapted == Query("($1::int2[]) ($2::numeric) ($1::int2[])[1]", ("{1}", "2.50"))


TEXTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("bool", ("t", "f")),
    ("int2", ("-5",)),
    ("int4", ("0", "2147483647")),
    ("int8", ("-9223372036854775808",)),
    ("oid", ("4294967295",)),
    ("float4", ("2.5", "NaN", "-Infinity")),
    ("float8", ("1e+300", "Infinity", "0.1")),
    ("text", ("", "a\nb", "é")),
    ("varchar", ("a",)),
    ("bpchar", ("a  ",)),
    ("name", ("pg_class",)),
    ("numeric", ("2.50", "NaN", "1E+5", "Infinity")),
    ("json", ('{"a": [1, null, 2.5]}', "null")),
    ("jsonb", ('"x"',)),
    ("uuid", ("00000000-0000-0000-0000-000000000007",)),
    ("date", ("2026-11-28", "0001-01-01", "9999-12-31")),
    ("timestamp", ("2026-11-28 10:30:15", "2026-11-28 10:30:15.25", "2026-11-28 10:30:15.123456")),
    ("timestamptz", ("2026-11-28 10:30:15+00", "2026-11-28 10:30:15.5+05:30", "1890-01-01 00:00:00+00:53:28")),
)


@pytest.mark.parametrize(("name", "texts"), TEXTS)
def test_plain_results(name: str, texts: tuple[str, ...]) -> None:
    """A value without psycopg is the value that it makes, and of the same type."""
    oid = types[name].oid
    loaders = plain_loaders([oid])
    assert loaders is not None
    for text in texts:
        ((expected,),) = Adapting().load([oid], [[text]])
        assert shown(loaders[0](text)) == shown(expected)


@pytest.mark.parametrize(
    ("name", "text"),
    [("date", "infinity"), ("date", "28/11/2026"), ("timestamp", "0044-03-15 00:00:00 BC"), ("date", "10000-01-01")],
)
def test_dates_for_psycopg(name: str, text: str) -> None:
    """What Python has no date for is left to psycopg, which says so."""
    oid = types[name].oid
    loaders = plain_loaders([oid])
    assert loaders is not None
    with pytest.raises(ValueError, match=r"\d|infinity"):
        loaders[0](text)
    with pytest.raises(psycopg.DataError):
        Adapting().load([oid], [[text]])


def test_types_for_psycopg() -> None:
    """A type that is not plain makes psycopg load all."""
    assert plain_loaders([types["int4"].oid, types["interval"].oid]) is None


@pytest.mark.parametrize(
    "value", [b"\x00'\\\xff", bytearray(b"\\"), memoryview(b"\x00\\"), [b"\x00\\", None]], ids=lambda value: type(value).__name__
)
def test_bytes(value: Any) -> None:
    """Bytes are what they are in a process that never connected by libpq, too (psycopg doubles the backslashes there)."""
    (text,) = Adapting().query("select %s", [value]).params
    assert text is not None
    oid = types["bytea"].array_oid if isinstance(value, list) else types["bytea"].oid
    ((found,),) = Adapting().load([oid], [[text]])
    assert found == ([b"\x00\\", None] if isinstance(value, list) else bytes(value))
    assert r"\\\\" not in text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1 day", dt.timedelta(days=1)),
        ("-2 days +03:00:00.000007", dt.timedelta(days=-2, hours=3, microseconds=7)),
        ("-00:00:01.5", -dt.timedelta(seconds=1.5)),
        ("1 year 2 mons 3 days 04:05:06", dt.timedelta(days=365 + 60 + 3, hours=4, minutes=5, seconds=6)),
        ("00:00:00", dt.timedelta()),
    ],
)
def test_intervals(text: str, value: dt.timedelta) -> None:
    """Intervals in the server's default style load without a connection."""
    assert Adapting().load([types["interval"].oid], [[text]]) == [(value,)]


@pytest.mark.parametrize("text", ["P1D", "@ 1 day", "1 day x", "999999999999 days"])
def test_bad_intervals(text: str) -> None:
    """Other styles, and what Python has no timedelta for, are errors."""
    with pytest.raises(psycopg.DataError):
        Adapting().load([types["interval"].oid], [[text]])


def test_registered_types_stay() -> None:
    """A dumper or loader that an application has registered with psycopg is used, also in the place of ours."""

    class Own(Dumper):
        oid = types["bytea"].oid

        def dump(self, obj: Any) -> bytes:
            return b"own"

    class OwnInterval(Loader):
        def load(self, data: Any) -> str:
            return "own"

    before = psycopg.adapters
    assert "psycopg" in sys.modules
    try:
        psycopg.adapters = type(before)(before)
        psycopg.adapters.register_dumper(bytes, Own)
        psycopg.adapters.register_loader("interval", OwnInterval)
        adapting = Adapting()
    finally:
        psycopg.adapters = before
    assert adapting.query("select %s", [b"x"]).params == ("own",)
    assert adapting.load([types["interval"].oid], [["1 day"]]) == [("own",)]
