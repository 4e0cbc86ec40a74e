"""What comes back: a status and a body, to results, or to what failed and whether anything ran. Pure; without psycopg.

Only an answer that has exactly the form of the protocol is one. A status by itself proves little, since any proxy on the way may
say it: what it says of whether the statement ran counts where it comes in the protocol's own form, or where no proxy could have
passed the request on.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from ps_core.failures import Failure, Kind, Ran

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Column", "Problem", "Raw", "read_answer"]


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a result."""

    name: str
    type_code: int
    """The OID of its type."""
    size: int = -1
    """Bytes of the type (`typlen`); -1: it varies."""
    modifier: int = -1
    """`atttypmod`; -1: none."""


@dataclass(frozen=True, slots=True)
class Raw:
    """The result of one statement, as text."""

    columns: tuple[Column, ...]
    rows: list[list[str | None]]
    command: str
    """The first word of the command tag."""
    count: int | None
    """The number in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """An answer that holds no results."""

    status: int
    message: str
    fields: Mapping[str, str | None] | None = None
    """What PostgreSQL said, by the protocol's names; None: it was not PostgreSQL that spoke."""
    failure: Failure


class _By(Enum):
    """What a status proves."""

    FORM = "that nothing ran, where it comes in the protocol's own form"
    ALWAYS = "that nothing ran, whoever says so"


_NEVER_RAN: Final[dict[int, tuple[_By, Kind, str]]] = {
    408: (_By.FORM, Kind.TRANSIENT, "http_connect_timeout"),
    413: (_By.ALWAYS, Kind.PERMANENT, "http_request_too_large"),
    429: (_By.ALWAYS, Kind.OVERLOAD, "http_rate_limited"),
    503: (_By.FORM, Kind.TRANSIENT, "http_unavailable"),
}
_REDIRECTS: Final = range(300, 400)
_REFUSED_BEFORE: Final = {401, 403, 404, 405, 407, 411, 414, 415, 421, 426, 431, 511}
"""What a server says to a request that it does not take at all."""
_TOO_LARGE: Final = 507
_CANCELLED: Final = "Query cancelled"
"""What Neon's proxy says when a request takes longer than it gives one: not to be sent again by itself."""
# What Neon's proxy says, without an SQLSTATE, before it has sent anything to PostgreSQL. What else it says so ("connection
# closed") may have met a statement under way.
_BEFORE: Final[tuple[tuple[re.Pattern[str], Kind, str], ...]] = (
    (
        re.compile(
            r"password authentication failed|SASL authentication failed|no such (user|database)|(role|database) .* does not exist"
            r"|is not permitted to log in|login rejected|branch \S+ does not exist|member \S+ not found"
            r"|invalid user format|pooler only supports primary|JWT authentication|no pg_hba.conf entry"
            r"|unsupported (options )?startup parameter"
        ),
        Kind.CONFIGURATION,
        "http_login_refused",
    ),
    (
        re.compile(
            r"^(missing header|invalid (connection string|isolation level|header)|could not parse the HTTP request|query is not"
            r" supported|address \S+ is not allowed)|^request is too large"
        ),
        Kind.CONFIGURATION,
        "http_request_refused",
    ),
    (
        re.compile(
            r"failed to connect to upstream|no (primary|replica|running members) available|connection retry timeout - branch"
            r"|server_login_retry|query_wait_timeout|pooler is shutting down|the database system is"
        ),
        Kind.TRANSIENT,
        "http_upstream",
    ),
    (re.compile(r"too many (connections|clients)|no more connections allowed"), Kind.OVERLOAD, "http_upstream_full"),
)
_ERROR_KEYS: Final = (
    *("code", "severity", "detail", "hint", "position", "internalPosition", "internalQuery", "where", "schema", "table"),
    *("column", "dataType", "constraint", "file", "line", "routine"),
)


def read_answer(status: int, body: bytes, *, alone: bool, count: int) -> tuple[Raw, ...] | Problem:
    """Return the results of `count` statements (`alone`: of one by itself), or what came in their place."""
    data = _json(body)
    if status == 200:
        results = [data] if alone else data.get("results") if isinstance(data, dict) else None
        try:
            if not isinstance(results, list) or len(results) != count:
                raise TypeError
            return tuple(map(_result, results))
        except (TypeError, KeyError, ValueError):
            return Problem(status=status, message=_strange(data), failure=_lost("http_no_answer", Kind.PERMANENT))
    message, own = "", False
    if isinstance(data, dict):
        for key in ("message", "msg"):
            if isinstance(data.get(key), str):
                message, own = data[key], True
                break
    if own and isinstance(data, dict) and isinstance(data.get("code"), str) and len(data["code"]) == 5:
        fields = {key: value if isinstance(value := data.get(key), str) else None for key in ("message", *_ERROR_KEYS)}
        return Problem(status=status, message=message, fields=fields, failure=_lost("http_statement_error", Kind.PERMANENT))
    return Problem(
        status=status, message=_named(status, message or _strange(data)), failure=_failure(status, message, own=own, alone=alone)
    )


def _failure(status: int, message: str, *, own: bool, alone: bool) -> Failure:
    if status in _REDIRECTS:
        return _never("http_redirect", Kind.CONFIGURATION)
    if status in _REFUSED_BEFORE:
        return _never("http_refused", Kind.CONFIGURATION)
    if status in _NEVER_RAN:
        by, kind, rule = _NEVER_RAN[status]
        return _never(rule, kind) if own or by is _By.ALWAYS else _lost("http_from_a_proxy")
    if own and status in (400, 500):
        for pattern, kind, rule in _BEFORE:
            if pattern.search(message):
                return _never(rule, kind)
    if own and message.startswith(_CANCELLED):
        return _lost("http_cancelled", Kind.TIMEOUT)
    if own and status == _TOO_LARGE:
        # One statement by itself commits whether or not its rows are passed on; a batch is told before its COMMIT.
        ran = Ran.UNKNOWN if alone else Ran.ROLLED_BACK
        return Failure(kind=Kind.PERMANENT, ran=ran, usable=True, rule="http_answer_too_large")
    return _lost(f"http_{status}")


def _never(rule: str, kind: Kind) -> Failure:
    return Failure(kind=kind, ran=Ran.NO, usable=False, rule=rule)


def _lost(rule: str, kind: Kind = Kind.TRANSIENT) -> Failure:
    return Failure(kind=kind, ran=Ran.UNKNOWN, usable=False, rule=rule)


def _named(status: int, said: str) -> str:
    advice = {
        413: ": the statements and their values are more than the server takes in one request: send fewer at a time",
        _TOO_LARGE: ": the rows are more than the server passes on in one answer: ask for fewer at a time (LIMIT)",
    }.get(status, ": write the host of the database itself" if status in _REDIRECTS else "")
    return f"HTTP status {status}: {said}{advice}"


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return None


def _strange(data: Any) -> str:
    """Say what an answer is that is none of the protocol's. Nothing of it is shown: it may be anybody's."""
    if data is None:
        return "the answer is no JSON: something other than the database's server has answered"
    return "the answer is not what SQL over HTTPS answers"


def _result(data: Any) -> Raw:
    """Read one result.

    Raises:
        KeyError, TypeError, ValueError: it has not the form of one.
    """
    columns = tuple(_column(field) for field in data["fields"])
    rows, command, count = data["rows"], data["command"], data["rowCount"]
    if not (isinstance(rows, list) and isinstance(command, str) and type(count) in (int, type(None))):
        raise TypeError
    width = len(columns)
    for row in rows:
        if type(row) is not list or len(row) != width:
            raise TypeError
        for text in row:
            if text is not None and type(text) is not str:
                raise TypeError
    return Raw(columns, rows, command, count)


def _column(field: Any) -> Column:
    name, oid = field["name"], field["dataTypeID"]
    if type(name) is not str or type(oid) is not int:
        raise TypeError
    size, modifier = field.get("dataTypeSize", -1), field.get("dataTypeModifier", -1)
    return Column(name, oid, size if type(size) is int else -1, modifier if type(modifier) is int else -1)
