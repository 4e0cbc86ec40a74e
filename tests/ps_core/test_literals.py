"""What parameters become: a table without a server. tests/differential holds the same against the server's own binding."""

import datetime as dt
import decimal
import enum
from typing import Any

import numpy as np
import psycopg
import pytest
from psycopg import adapt, sql
from psycopg.abc import Transformer
from psycopg.adapt import PyFormat
from psycopg.types.json import Jsonb
from psycopg.types.numeric import Float4, FloatDumper, Int8BinaryDumper, Int8Dumper, IntNumeric, Oid
from psycopg.types.range import Range
from psycopg.types.string import StrDumper

from ps_core._connection import literals
from ps_core._connection.literals import TypedQuery, typed_literal

pytestmark = pytest.mark.fast


class Plain(FloatDumper):
    """A dumper that writes a number in its own way; psycopg quotes it."""

    def dump(self, obj: Any) -> bytes:
        return b"%d.5" % obj.value


class Tricky(FloatDumper):
    """The same, with what must not reach the statement unquoted."""

    def dump(self, obj: Any) -> bytes:
        return b"1'); drop table item; --"


class Expression(adapt.Dumper):
    """A dumper whose literal is an expression."""

    oid = psycopg.postgres.types["point"].oid

    def dump(self, obj: Any) -> bytes:
        return b"(1,2)"

    def quote(self, obj: Any) -> bytes:
        return b"point(1, 2)"


class TextExpression(Expression):
    """The same, of text that ends in a quote."""

    oid = psycopg.postgres.types["text"].oid

    def quote(self, obj: Any) -> bytes:
        return b"upper('a') || 'b'"


class BinaryOnly(adapt.Dumper):
    format = psycopg.pq.Format.BINARY

    def dump(self, obj: Any) -> bytes:
        return b"\0"


class Value:
    value = 2


class Number(float):
    pass


class Colour(enum.IntEnum):
    RED = 3


def transformer(*registered: tuple[Any, type]) -> Transformer:
    adapters = adapt.AdaptersMap(psycopg.adapters)
    for cls, dumper in registered:
        adapters.register_dumper(cls, dumper)

    class Context:
        connection = None

    Context.adapters = adapters  # type: ignore[attr-defined]
    return adapt.Transformer(Context())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "literal"),
    [
        (1, b"('1'::int2)"),
        (-1, b"('-1'::int2)"),
        (1 << 20, b"('1048576'::int4)"),
        (1 << 40, b"('1099511627776'::int8)"),
        (1 << 70, b"('1180591620717411303424'::numeric)"),
        (Colour.RED, b"('3'::int2)"),
        (2.5, b"('2.5'::float8)"),
        (-0.0, b"('-0.0'::float8)"),
        (float("nan"), b"('nan'::float8)"),
        (float("-inf"), b"('-inf'::float8)"),
        (decimal.Decimal("1.50"), b"('1.50'::numeric)"),
        (decimal.Decimal("sNaN"), b"('NaN'::numeric)"),
        (Float4(1.5), b"('1.5'::float4)"),
        (IntNumeric(7), b"('7'::numeric)"),
        (Oid(7), b"('7'::oid)"),
        (True, b"('t'::bool)"),
        (np.int64(3), b"('3'::int8)"),
        (np.uint64(3), b"('3'::numeric)"),
        (np.float32(1.5), b"('1.5'::float4)"),
        (np.bool_(False), b"('f'::bool)"),
        (dt.date(2026, 1, 2), b"('2026-01-02'::date)"),
        ([1, 2], b"('{1,2}'::int2[])"),
        ([[1.5]], b"('{{1.5}}'::float8[])"),
        (Jsonb(1), b"('1'::jsonb)"),
        (Range(dt.date(2026, 1, 2), None), b"('[2026-01-02,)'::daterange)"),
        # What psycopg leaves to the server to type.
        ("a'b", b"'a''b'"),
        ([], b"'{}'"),
        (["a"], b"'{a}'"),
        (Range(1, 3), b"'[1,3)'"),
    ],
)
def test_literals(value: Any, literal: bytes) -> None:
    """A value whose type psycopg knows is cast to it, in parentheses; what psycopg leaves to the server stays as it is."""
    assert typed_literal(transformer(), value) == literal


@pytest.mark.parametrize(
    ("dumper", "literal"),
    [
        (Plain, b"('2.5'::float8)"),
        (Expression, b"point(1, 2)"),
        (TextExpression, b"upper('a') || 'b'"),
        (type("Sub", (Plain,), {"oid": 700}), b"('2.5'::float4)"),
    ],
)
def test_dumpers_of_applications(dumper: type, literal: bytes) -> None:
    """An expression stays one; what psycopg itself quotes has the dumper's type."""
    assert typed_literal(transformer((Value, dumper)), Value()) == literal


@pytest.mark.parametrize("form", [PyFormat.AUTO, PyFormat.TEXT, PyFormat.BINARY])
@pytest.mark.parametrize("bits", [15, 31, 63, 70])
def test_integers_are_as_psycopg_writes_them(form: PyFormat, bits: int) -> None:
    """At and beside each limit of a type."""
    tx = transformer()
    for value in (sign * (2**bits + more) for sign in (1, -1) for more in (-1, 0, 1)):
        name = literals.type_name(tx, tx.get_dumper(value, form).oid)
        assert typed_literal(tx, value, form) == b"('%b'::%b)" % (
            bytes(tx.get_dumper(value, PyFormat.TEXT).dump(value) or b""),
            name,
        )


def test_integers_of_applications() -> None:
    """Another dumper that an application has registered for them writes them, as its type: for all placeholders, or for some."""

    class Doubled(Int8Dumper):
        def dump(self, obj: Any) -> bytes:
            return b"%d" % (2 * obj)

    assert typed_literal(transformer((int, Doubled)), 7) == b"('14'::int8)"
    wider = transformer((int, Int8BinaryDumper))
    assert typed_literal(wider, 7) == b"('7'::int8)"
    assert typed_literal(wider, 7, PyFormat.TEXT) == b"('7'::int2)"


def test_a_dumper_is_not_trusted_to_write_a_number() -> None:
    """Only what looks like a number is put between quotes unseen; the rest stays as psycopg's own client-side cursor has it."""
    tx = transformer((Number, Tricky))
    assert typed_literal(tx, Number(1)) == tx.as_literal(Number(1))


def test_text_has_its_type_where_psycopg_gives_it_one() -> None:
    """`%b`, and a dumper that was chosen for it, type a string as text."""
    assert typed_literal(transformer(), "a", PyFormat.BINARY) == b"('a'::text)"
    assert typed_literal(transformer((str, StrDumper)), "a") == b"('a'::text)"


def test_a_binary_dumper_alone_is_refused() -> None:
    """The message says what to write instead."""
    with pytest.raises(psycopg.ProgrammingError, match=r"'Value': it has a binary dumper only.*register a text dumper"):
        typed_literal(transformer((Value, BinaryOnly)), Value())


def test_placeholders() -> None:
    """By position and by name, used twice, beside `%%` and NULL; `sql.Literal` is as it was composed."""
    query = TypedQuery(transformer())
    query.convert("select %s, %s, '%%'", (1, None))
    assert query.query == b"select ('1'::int2), NULL, '%'"
    query.convert("select %(a)s, %(b)s, %(a)s", {"a": 1, "b": 2.5})
    assert query.query == b"select ('1'::int2), ('2.5'::float8), ('1'::int2)"
    query.dump({"a": True, "b": "x"})
    assert query.query == b"select ('t'::bool), 'x', ('t'::bool)"
    query.convert(sql.SQL("select {}, %s").format(sql.Literal(5)), (5,))
    assert query.query == b"select 5, ('5'::int2)"


def test_template_strings() -> None:
    """psycopg's processor of template strings (Python 3.14) writes typed literals; run here on the items that one consists of."""

    pytest.importorskip("psycopg._tstrings", reason="psycopg 3.2 has none")
    from psycopg._compat import Interpolation

    class Item(Interpolation[Any]):
        conversion = None

        def __init__(self, value: Any, format_spec: str = "") -> None:
            self.value, self.format_spec, self.expression = value, format_spec, "x"

    template: Any = ["select ", Item(1), ", ", Item(None), ", ", Item(2.5, "t"), ", ", Item(3, "l"), ", ", Item("n", "i")]
    processor = literals._Template(template, tx=transformer(), server_params=False)
    processor.process()
    assert processor.query == b"""select ('1'::int2), NULL, ('2.5'::float8), 3, "n\""""
    assert processor.params == [b"('1'::int2)", b"NULL", b"('2.5'::float8)"]
    with pytest.raises(psycopg.ProgrammingError, match="format 'z' not supported"):
        literals._Template([Item(1, "z")], tx=transformer(), server_params=False).process()  # type: ignore[arg-type]
