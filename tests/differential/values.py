"""Every type that psycopg adapts, by name."""

from __future__ import annotations

import datetime as dt
import enum
import ipaddress
import uuid
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
from psycopg.adapt import Dumper
from psycopg.postgres import types
from psycopg.types.composite import CompositeInfo, register_composite
from psycopg.types.enum import EnumInfo, register_enum
from psycopg.types.json import Json, Jsonb
from psycopg.types.multirange import DateMultirange, Int4Multirange, Multirange
from psycopg.types.numeric import Float4, Float8, FloatDumper, Int2, Int4, Int8, IntNumeric, Oid
from psycopg.types.range import DateRange, Int4Range, Int8Range, NumericRange, Range, TimestamptzRange

if TYPE_CHECKING:
    from psycopg import Connection

__all__ = ["SCHEMA", "VALUES", "Registered"]

SCHEMA: Final = """
CREATE SCHEMA differential;
SET search_path = differential;
CREATE TYPE mood AS ENUM ('sad', 'ok');
CREATE TYPE pair AS (a int, b text);
CREATE DOMAIN score AS int CHECK (VALUE < 100);
CREATE TABLE numbers (n int PRIMARY KEY, f float8, d numeric, t text);
INSERT INTO numbers SELECT i, i / 4.0, i / 8.0, 't' || i FROM generate_series(1, 5) i;
CREATE FUNCTION kind(int4) RETURNS text LANGUAGE sql IMMUTABLE RETURN 'int4';
CREATE FUNCTION kind(numeric) RETURNS text LANGUAGE sql IMMUTABLE RETURN 'numeric';
CREATE FUNCTION kind(float8) RETURNS text LANGUAGE sql IMMUTABLE RETURN 'float8';
CREATE FUNCTION kind(text) RETURNS text LANGUAGE sql IMMUTABLE RETURN 'text';
CREATE FUNCTION warned(anyelement) RETURNS int LANGUAGE plpgsql AS
  $$BEGIN RAISE WARNING 'given %', $1 USING HINT = 'none'; RETURN 1; END$$;
"""


class Mood(enum.Enum):
    """Registered with psycopg."""

    sad = "sad"
    ok = "ok"


class Plain(enum.Enum):
    """Known to nobody."""

    ok = "ok"


class Word(enum.StrEnum):
    ok = "ok"


class Level(enum.IntEnum):
    HIGH = 3


class Pair(NamedTuple):
    a: int
    b: str


@dataclass(frozen=True)
class Own:
    """Types of applications, with dumpers of their own."""

    value: Any


class Spot(Own):
    pass


class Expression(Own):
    pass


class Money(Own):
    pass


class SpotDumper(Dumper):
    """Writes text; psycopg quotes it."""

    oid = types["point"].oid

    def dump(self, obj: Any) -> bytes:
        return f"({obj.value},1)".encode()


class ExpressionDumper(SpotDumper):
    """Writes an expression where the client binds."""

    def quote(self, obj: Any) -> bytes:
        return b"point(%d, 1)" % obj.value


class MoneyDumper(FloatDumper):
    """psycopg's, for numbers, with a text of its own."""

    oid = types["money"].oid

    def dump(self, obj: Any) -> bytes:
        return f"{obj.value:.2f}".encode()


DAY: Final = dt.date(2026, 11, 28)
TIME: Final = dt.datetime(2026, 11, 28, 10, 30, 15, 250_000)
KOLKATA: Final = ZoneInfo("Asia/Kolkata")

VALUES: Final[dict[str, Any]] = {
    "None": None,
    "int 1": 1,
    "int 3": 3,
    "int -5": -5,
    "int 40000": 40_000,
    "int 2**40": 1 << 40,
    "int 2**70": 1 << 70,
    "IntEnum": Level.HIGH,
    "float 2.5": 2.5,
    "float 3.0": 3.0,
    "float 0.1": 0.1,
    "float -0.0": -0.0,
    "float nan": float("nan"),
    "float inf": float("inf"),
    "float 1e300": 1e300,
    "Decimal 100": Decimal(100),
    "Decimal 2.50": Decimal("2.50"),
    "Decimal 1E+5": Decimal("1E+5"),
    "Decimal NaN": Decimal("NaN"),
    "True": True,
    "False": False,
    "str a": "a",
    "str empty": "",
    "str 3": "3",
    "str ok": "ok",
    "str date": "2026-11-28",
    "str escapes": 'it\'s \\ 100% "é"\n$1;--',
    "bytes": b"\x00'\\\xff",
    "bytearray": bytearray(b"ab"),
    "date": DAY,
    "time": TIME.time(),
    "time with zone": dt.time(10, 30, tzinfo=dt.UTC),
    "datetime": TIME,
    "datetime with zone": TIME.replace(tzinfo=KOLKATA),
    "timedelta": dt.timedelta(days=-2, hours=3, microseconds=7),
    "UUID": uuid.UUID(int=7),
    "Json": Json({"a": [1]}),
    "Jsonb": Jsonb({"a": [1]}),
    "list int": [1, 3],
    "list int nested": [[1, 2], [3, 40_000]],
    "list int 2**40": [1, 1 << 40],
    "list int None": [1, None],
    "list float": [2.5, 3.0],
    "list Decimal": [Decimal("2.50")],
    "list mixed": [1, Decimal("2.5")],
    "list str": ["t1", "b'\\\"", ""],
    "list bool": [True, None],
    "list date": [DAY],
    "list UUID": [uuid.UUID(int=7)],
    "list bytes": [b"\x00\\"],
    "list Jsonb": [Jsonb([1])],
    "list Mood": [Mood.ok],
    "list Pair": [Pair(1, "x")],
    "list empty": [],
    "list None": [None],
    "Range": Range(1, 3),
    "Range Decimal": Range(Decimal("1.5"), None),
    "Int4Range": Int4Range(1, 3),
    "Int8Range": Int8Range(1, 1 << 40),
    "NumericRange": NumericRange(Decimal("1.5"), None),
    "DateRange": DateRange(DAY, None, "(]"),
    "TimestamptzRange": TimestamptzRange(TIME.replace(tzinfo=dt.UTC), None),
    "Range empty": Range(empty=True),
    "Multirange": Multirange([Range(1, 3)]),
    "Int4Multirange": Int4Multirange([Range(1, 3), Range(5, 7)]),
    "DateMultirange": DateMultirange([Range(DAY, None)]),
    "enum registered": Mood.ok,
    "Enum": Plain.ok,
    "StrEnum": Word.ok,
    "composite": Pair(1, "a,'b"),
    "tuple": (1, "a"),
    "IPv4Address": ipaddress.ip_address("10.0.0.1"),
    "IPv6Interface": ipaddress.ip_interface("fe80::1/64"),
    "IPv4Network": ipaddress.ip_network("10.0.0.0/8"),
    "numpy int16": np.int16(3),
    "numpy int64": np.int64(3),
    "numpy uint64": np.uint64(3),
    "numpy float32": np.float32(2.5),
    "numpy float64": np.float64(2.5),
    "numpy bool": np.bool_(True),
    "Int2": Int2(3),
    "Int4": Int4(3),
    "Int8": Int8(3),
    "IntNumeric": IntNumeric(3),
    "Float4": Float4(2.5),
    "Float8": Float8(2.5),
    "Oid": Oid(3),
    "own dumper": Spot(1),
    "own expression": Expression(1),
    "own number": Money(2),
}


class Registered:
    """The types of applications, as one connection found them; to be registered on others."""

    def __init__(self, conn: Connection[Any]) -> None:
        self._mood, self._pair = EnumInfo.fetch(conn, "differential.mood"), CompositeInfo.fetch(conn, "differential.pair")

    def on(self, conn: Any) -> None:
        """Register them on a connection, sync or async."""
        assert self._mood is not None
        assert self._pair is not None
        register_enum(self._mood, conn, Mood)
        register_composite(self._pair, conn, Pair)
        for cls, dumper in ((Spot, SpotDumper), (Expression, ExpressionDumper), (Money, MoneyDumper)):
            conn.adapters.register_dumper(cls, dumper)
