"""What a caller sees of one statement, and in what two of them differ."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any, Final

import psycopg

__all__ = ["Outcome", "Watch", "arun", "differing", "of_cursor", "of_error", "run", "shown"]

_DIAG: Final = (
    "severity",
    "sqlstate",
    "message_primary",
    "message_detail",
    "message_hint",
    "context",
    "schema_name",
    "table_name",
)


@dataclass
class Outcome:
    """All that one statement lets its caller see."""

    seen: dict[str, Any] = field(default_factory=dict)

    @property
    def error(self) -> str:
        """The class of the exception; "" where there was none."""
        found: str = self.seen.get("error", "")
        return found


def shown(value: Any) -> str:
    """Return a value with its Python type, and those of what it holds."""
    if isinstance(value, list | tuple):
        return f"{type(value).__name__}({', '.join(shown(item) for item in value)})"
    return f"{type(value).__name__}:{value!r}"


def of_cursor(cursor: Any, rows: Any) -> dict[str, Any]:
    """Return what a cursor shows after a statement that worked."""
    return {
        "rows": [shown(row) for row in rows],
        "names": [column.name for column in cursor.description or ()],
        "types": [
            (column.type_code, column.internal_size, column.precision, column.scale) for column in cursor.description or ()
        ],
        "rowcount": cursor.rowcount,
        "status": cursor.statusmessage,
    }


def of_error(exc: BaseException) -> dict[str, Any]:
    """Return what an exception tells."""
    found: dict[str, Any] = {"error": type(exc).__name__}
    if isinstance(exc, psycopg.Error):
        found["sqlstate"] = exc.sqlstate
        found["diag"] = {name: getattr(exc.diag, name) for name in _DIAG}
        found["position"] = exc.diag.statement_position
    if not isinstance(exc, psycopg.Error) or exc.sqlstate is None:
        found["message"] = str(exc)
    return found


class Watch:
    """Collects the notices and Python warnings of one connection."""

    def __init__(self, conn: Any) -> None:
        self._notices: list[tuple[Any, ...]] = []
        conn.add_notice_handler(self._note)

    def _note(self, diag: Any) -> None:
        self._notices.append((diag.severity, diag.sqlstate, diag.message_primary, diag.message_hint))

    def take(self) -> list[tuple[Any, ...]]:
        taken, self._notices = self._notices, []
        return taken


def run(conn: Any, watch: Watch, text: str, value: Any) -> Outcome:
    """Run a form with a value on a psycopg connection, sync."""
    params = {"v": value} if "%(v)s" in text else (value,)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            cursor = conn.execute(text, params)
            seen = of_cursor(cursor, cursor.fetchall() if cursor.description else [])
        except Exception as exc:  # noqa: BLE001 - whatever it is, it is compared
            seen = of_error(exc)
    return Outcome({**seen, "notices": watch.take(), "warnings": [str(item.message) for item in warned]})


async def arun(conn: Any, watch: Watch, text: str, value: Any) -> Outcome:
    """The same for asyncio."""
    params = {"v": value} if "%(v)s" in text else (value,)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            cursor = await conn.execute(text, params)
            seen = of_cursor(cursor, await cursor.fetchall() if cursor.description else [])
        except Exception as exc:  # noqa: BLE001
            seen = of_error(exc)
    return Outcome({**seen, "notices": watch.take(), "warnings": [str(item.message) for item in warned]})


def differing(stock: Outcome, ours: Outcome) -> frozenset[str]:
    """Return the names of what differs."""
    names = stock.seen.keys() | ours.seen.keys()
    return frozenset(name for name in names if stock.seen.get(name, ...) != ours.seen.get(name, ...))
