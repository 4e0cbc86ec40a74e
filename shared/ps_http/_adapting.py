"""The same by psycopg's adapters, for all types that it knows and that applications register."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg._queries import PostgresClientQuery
from psycopg.adapt import AdaptersMap, Dumper, Loader, PyFormat, Transformer
from psycopg.postgres import types
from psycopg.pq import Format

from ps_core._connection.literals import is_psycopgs, type_name, without_text_dumper
from ps_http._values import Query, placeholder

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from psycopg.abc import AdaptContext, Params
    from psycopg.abc import Query as AnyQuery

    from ps_http._answer import Column

__all__ = ["Adapting"]


class _BytesDumper(Dumper):
    """psycopg's own doubles the backslashes in a process that never connected by libpq."""

    oid = types["bytea"].oid

    def dump(self, obj: Any) -> bytes:
        return b"\\x" + bytes(obj).hex().encode()


class _BinaryDumper(_BytesDumper):
    """The same of DB-API's `Binary`."""

    def dump(self, obj: Any) -> bytes:
        return super().dump(obj.obj)


class _IntervalLoader(Loader):
    """psycopg's own in Python asks its connection for IntervalStyle; this one reads the server's default, as that does."""

    def load(self, data: Any) -> timedelta:
        text = bytes(data).decode()
        found = _INTERVAL.fullmatch(text)
        if found is None:
            raise psycopg.DataError(f"can't parse interval {text!r}")
        sign = -1 if found["sign"] == "-" else 1
        days = 365 * int(found["years"] or 0) + 30 * int(found["months"] or 0) + int(found["days"] or 0)
        seconds = 3600 * int(found["hours"] or 0) + 60 * int(found["minutes"] or 0)
        try:
            return timedelta(days, sign * seconds, sign * round(float(found["seconds"] or 0) * 1_000_000))
        except OverflowError as exc:
            raise psycopg.DataError(f"can't parse interval {text!r}: {exc}") from None


_INTERVAL: Final = re.compile(
    r"(?:(?P<years>[-+]?\d+) years?\s*)?(?:(?P<months>[-+]?\d+) mons?\s*)?(?:(?P<days>[-+]?\d+) days?\s*)?"
    r"(?:(?P<sign>[-+])?(?P<hours>\d+):(?P<minutes>\d+):(?P<seconds>\d+(?:\.\d+)?))?"
)


class _Placeholders(PostgresClientQuery):
    """A query whose values go beside it, as text, with a cast at each placeholder."""

    __slots__ = ("values",)

    values: tuple[str | None, ...]

    def dump(self, vars: Params | None) -> None:  # noqa: A002 - psycopg's name
        """Set `query` and `values` for these values."""
        self.values = ()
        self.params = None
        if vars is None:
            return
        parts, order = self._parts, self._order
        values = self.validate_and_reorder_params(parts, vars, order)
        numbers: dict[str | int, str] = {}
        given: list[str | None] = []
        texts = []
        for at, value in enumerate(values):
            name = order[at] if order else at
            if name not in numbers:
                text, cast = _dump(self._tx, value, parts[at].format)
                given.append(text)
                numbers[name] = placeholder(len(given), cast)
            texts.append(numbers[name].encode())
        self.query = self.template % tuple(texts)
        self.values = tuple(given)


def _dump(tx: Any, value: Any, form: PyFormat) -> tuple[str | None, str]:
    if value is None:
        return None, ""
    oid = tx.get_dumper(value, form).oid
    try:
        dumper = tx.get_dumper(value, PyFormat.TEXT)
    except psycopg.ProgrammingError:
        raise without_text_dumper(value, "SQL over HTTPS takes text: register a text dumper") from None
    data = dumper.dump(value)
    return None if data is None else bytes(data).decode(), type_name(tx, oid).decode() if oid else ""


class _Described:
    """What psycopg's `Column` asks of a cursor and its result."""

    _encoding = "utf-8"

    def __init__(self, columns: Sequence[Column], adapters: AdaptersMap) -> None:
        self.pgresult = self
        self.adapters = adapters
        self._columns = columns

    def fname(self, index: int) -> bytes:
        return self._columns[index].name.encode()

    def ftype(self, index: int) -> int:
        return self._columns[index].type_code

    def fmod(self, index: int) -> int:
        return self._columns[index].modifier

    def fsize(self, index: int) -> int:
        return self._columns[index].size


def _is_own(cls: type | None) -> bool:
    """Return whether a dumper or loader is psycopg's own: an application's stays."""
    return cls is not None and is_psycopgs(cls)


class Adapting:
    """psycopg's adapters for one client, as an `AdaptContext` of psycopg's: types are registered on it as on a connection."""

    connection = None

    def __init__(self, context: AdaptContext | None = None) -> None:
        self.adapters = AdaptersMap(psycopg.adapters if context is None else context.adapters)
        for cls, dumper in (
            (bytes, _BytesDumper),
            (bytearray, _BytesDumper),
            (memoryview, _BytesDumper),
            (psycopg.Binary, _BinaryDumper),
        ):
            if _is_own(self.adapters.get_dumper(cls, PyFormat.TEXT)):
                self.adapters.register_dumper(cls, dumper)
        if _is_own(self.adapters.get_loader(types["interval"].oid, Format.TEXT)):
            self.adapters.register_loader("interval", _IntervalLoader)

    def query(self, query: AnyQuery, params: Params | None) -> Query:
        """Return a statement with its parameters.

        Raises:
            psycopg.Error: they do not fit together, or a value cannot be adapted.
        """
        converted = _Placeholders(Transformer(self))
        converted.convert(query, params)
        return Query(bytes(converted.query).decode(), converted.values)

    def load(self, oids: Sequence[int], rows: Iterable[Sequence[str | None]]) -> list[tuple[Any, ...]]:
        """Return rows of values."""
        tx = Transformer(self)
        tx.set_loader_types(oids, Format.TEXT)
        return [tx.load_sequence([None if text is None else text.encode() for text in row]) for row in rows]

    def describe(self, columns: Sequence[Column]) -> list[psycopg.Column]:
        """Return columns as psycopg's cursors describe them."""
        described: Any = _Described(columns, self.adapters)
        return [psycopg.Column(described, index) for index in range(len(columns))]
