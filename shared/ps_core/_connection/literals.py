"""Parameters as literals of the type that psycopg would give them, had the server bound them.

A bare number is typed by PostgreSQL from how it is written: `2.5` is numeric, while psycopg's parameter for a float is float8. So
`:a / :b`, overloaded functions, `ORDER BY :n` and what is stored would be others than with psycopg's own cursor. Here, each value
whose type psycopg knows is cast to it, in parentheses, so that it can stand wherever a parameter can:

    1 -> ('1'::int2)    2.5 -> ('2.5'::float8)    True -> ('t'::bool)    [1, 2] -> ('{1,2}'::int2[])

What psycopg leaves to the server to type (str, None) stays a bare literal. The same holds for an expression that an application's
own dumper writes, and for `psycopg.sql.Literal`.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg import pq
from psycopg._queries import PostgresClientQuery
from psycopg.adapt import PyFormat
from psycopg.postgres import types

try:
    from psycopg._tstrings import TemplateProcessor
except ImportError:  # psycopg 3.2
    TemplateProcessor = None  # type: ignore[assignment, misc]

if TYPE_CHECKING:
    from psycopg.abc import Dumper, Params, Transformer
    from psycopg.adapt import AdaptersMap

__all__ = ["TypedQuery", "is_psycopgs", "type_name", "typed_literal", "without_text_dumper"]

_BARE: Final = {types[name].oid for name in ("bool", "int2", "int4", "int8", "numeric", "float4", "float8", "oid")}
"""What psycopg's own dumpers write as a literal without quotes."""
_TEXT: Final = types["text"].oid
TEXT: Final = int(pq.Format.TEXT)
_LAST_BUILTIN: Final = 8192
_PLAIN: Final = re.compile(rb"[\w+.-]+")
_names: Final = {info.oid: info.name.encode() for info in types if info.oid < _LAST_BUILTIN} | {
    info.array_oid: info.name.encode() + b"[]" for info in types if info.array_oid
}


class TypedQuery(PostgresClientQuery):
    """A query whose parameters are merged by the client, as literals of the type that psycopg gives a parameter."""

    __slots__ = ()

    def dump(self, vars: Params | None) -> None:  # noqa: A002 - psycopg's name
        """Set `params` and `query` for these values."""
        if vars is None:
            self.params = None
            return
        tx, parts = self._tx, self._parts
        values = self.validate_and_reorder_params(parts, vars, self._order)
        self.params = params = tuple(
            [b"NULL" if value is None else typed_literal(tx, value, parts[at].format) for at, value in enumerate(values)]
        )
        self.query = self.template % params

    def _convert_template(self, query: Any, vars: Params | None) -> None:  # noqa: A002
        if vars is not None:
            super()._convert_template(query, vars)  # raises
        processor = _Template(query, server_params=False, tx=self._tx)
        processor.process()
        self.query, self.params = processor.query, processor.params


def typed_literal(tx: Transformer, value: Any, form: PyFormat = PyFormat.AUTO) -> bytes:
    """Return what stands in the statement for a value that is not None, given by a placeholder of this form (`%s`, `%t`, `%b`).

    Raises:
        psycopg.ProgrammingError: no dumper is registered that writes such a value as text.
    """
    if type(value) is int and _has_own_ints(tx.adapters, form):
        return _int_literal(value)
    dumper = tx.get_dumper(value, form)
    oid = dumper.oid
    if dumper.format != TEXT:
        try:
            dumper = tx.get_dumper(value, PyFormat.TEXT)
        except psycopg.ProgrammingError:
            why = "the client binds parameters as text"
            raise without_text_dumper(value, f'{why}: register a text dumper, or connect with binding="server"') from None
    typed, bare, own_dump, name = _form_of(type(dumper), oid)
    if typed and bare:
        data = dumper.dump(value)
        if data is not None and (own_dump or _PLAIN.fullmatch(data)):
            name = name or type_name(tx, oid)
            return b"('%b'::%b)" % (bytes(data), name) if name else b"'%b'" % bytes(data)
    literal = bytes(dumper.quote(value))
    if typed and literal.endswith(b"'") and (name := name or type_name(tx, oid)):
        return b"(%b::%b)" % (literal, name)
    return literal


def _has_own_ints(adapters: AdaptersMap, form: PyFormat) -> bool:
    """Return whether psycopg itself writes integers, and so as `_int_literal` does: an application may have other dumpers."""
    return _dumps_ints(adapters.get_dumper(int, PyFormat.TEXT)) and _dumps_ints(adapters.get_dumper(int, form))


@lru_cache(maxsize=16)
def _dumps_ints(cls: type[Dumper]) -> bool:
    return is_psycopgs(cls) and cls.__name__ in ("IntDumper", "IntBinaryDumper")


def _int_literal(value: int) -> bytes:
    """Return an integer as the smallest type that holds it, as psycopg's dumpers do, at a tenth of what asking them costs."""
    if -(2**15) <= value < 2**15:
        return b"('%d'::int2)" % value
    if -(2**31) <= value < 2**31:
        return b"('%d'::int4)" % value
    return b"('%d'::int8)" % value if -(2**63) <= value < 2**63 else b"('%d'::numeric)" % value


@lru_cache(maxsize=512)
def _form_of(cls: type[Dumper], oid: int) -> tuple[bool, bool, bool, bytes]:
    """Return how the values of a dumper are written: with their type or not, what it dumps between quotes or what it quotes.

    And whether what it dumps is psycopg's own, and the name of the type, where that is a built-in one.
    """
    own_quote, own_dump = _whose(cls)
    typed = bool(oid) and (oid != _TEXT or own_quote)
    return typed, own_quote and (oid in _BARE or not own_dump), own_dump, _names.get(oid, b"")


def _whose(cls: type[Dumper]) -> tuple[bool, bool]:
    """Return whether `quote` and `dump` are psycopg's own: another's may write an expression."""

    def own(name: str) -> bool:
        return is_psycopgs(getattr(cls, name))

    return own("quote"), own("dump")


def is_psycopgs(one: Any) -> bool:
    """Return whether psycopg itself defines a class or a method: an application's is another one."""
    return (one.__module__ or "").partition(".")[0] in ("psycopg", "psycopg_binary", "psycopg_c")


def without_text_dumper(value: Any, why: str) -> psycopg.ProgrammingError:
    """Return the error for a value that only has a binary dumper, and why that does not do."""
    return psycopg.ProgrammingError(f"cannot adapt type {type(value).__name__!r}: it has a binary dumper only, and {why}")


def type_name(tx: Transformer, oid: int) -> bytes:
    """Return what a cast to a type is written with; empty where the type is not known."""
    if oid in _names:
        return _names[oid]
    info = tx.adapters.types.get(oid)
    if info is None:
        return b""
    return info.regtype.encode(tx.encoding) + (b"[]" if oid == info.array_oid else b"")


if TemplateProcessor is not None:

    class _Template(TemplateProcessor):
        """psycopg's way from a template string to a text, with typed literals."""

        def _process_client_variable(self, item: Any, fmt: str) -> None:
            start = len(self._chunks)
            super()._process_client_variable(item, fmt)  # checks the format
            literal = b"NULL" if item.value is None else typed_literal(self._tx, item.value, PyFormat(fmt))
            self._chunks[start:], self.params[-1] = [literal], literal
