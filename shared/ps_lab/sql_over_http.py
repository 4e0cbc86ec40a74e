"""What `POST /sql` says and is told: the requests and answers of Neon's proxy, which its serverless driver is written against.

Nothing here waits or connects. The names of headers and keys, the conversions and the texts are those of Neon's proxy
(neondatabase/neon, proxy/src/serverless).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

import psycopg
from psycopg.pq import Conninfo, DiagnosticField

from ps_core._websocket import is_address

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from psycopg.pq.abc import PGresult

    from ps_lab.routes import Refusal

__all__ = [
    "Batch",
    "Limits",
    "Login",
    "Modes",
    "Problem",
    "Query",
    "array_literal",
    "command_and_count",
    "fields",
    "json_of",
    "rows",
]

_ISOLATION_LEVELS: Final = {
    "Serializable": "SERIALIZABLE",
    "RepeatableRead": "REPEATABLE READ",
    "ReadCommitted": "READ COMMITTED",
    "ReadUncommitted": "READ UNCOMMITTED",
}
_ERROR_KEYS: Final = {
    "code": DiagnosticField.SQLSTATE,
    "detail": DiagnosticField.MESSAGE_DETAIL,
    "hint": DiagnosticField.MESSAGE_HINT,
    "position": DiagnosticField.STATEMENT_POSITION,
    "internalPosition": DiagnosticField.INTERNAL_POSITION,
    "internalQuery": DiagnosticField.INTERNAL_QUERY,
    "severity": DiagnosticField.SEVERITY_NONLOCALIZED,
    "where": DiagnosticField.CONTEXT,
    "table": DiagnosticField.TABLE_NAME,
    "column": DiagnosticField.COLUMN_NAME,
    "schema": DiagnosticField.SCHEMA_NAME,
    "dataType": DiagnosticField.DATATYPE_NAME,
    "constraint": DiagnosticField.CONSTRAINT_NAME,
    "file": DiagnosticField.SOURCE_FILE,
    "line": DiagnosticField.SOURCE_LINE,
    "routine": DiagnosticField.SOURCE_FUNCTION,
}
_USERS_FAULTS: Final = (
    "authentication failed",
    "does not exist",
    "is not permitted to log in",
    "unsupported startup parameter",
    "unrecognized configuration parameter",
    "invalid value for parameter",
    "no such database",
    "no such user",
)
_OID: Final = {info.name: info.oid for info in psycopg.postgres.types}
_ELEMENTS: Final = {info.array_oid: info.oid for info in psycopg.postgres.types if info.array_oid}
_INTEGERS: Final = {_OID["int2"], _OID["int4"]}
_FLOATS: Final = {_OID["float4"], _OID["float8"]}
_JSON: Final = {_OID["json"], _OID["jsonb"]}


class Problem(Exception):
    """An answer that is not 200.

    Neon's proxy has two forms: `{"message": ..., "code": ..., ...}`, and `{"msg": ...}` of what its HTTP server says itself.
    """

    def __init__(self, status: int, message: str, *, msg: bool = False, known: Mapping[str, str | None] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"msg": message} if msg else {"message": message, **dict.fromkeys(_ERROR_KEYS), **(known or {})}

    @classmethod
    def of_result(cls, result: PGresult) -> Problem:
        """Return the answer to a statement that has failed."""
        known = {key: _text(result.error_field(field)) for key, field in _ERROR_KEYS.items()}
        if known["code"] is None:  # libpq's own
            return cls(400, "connection closed")
        return cls(400, _text(result.error_field(DiagnosticField.MESSAGE_PRIMARY)) or "", known=known)

    @classmethod
    def of_refusal(cls, refusal: Refusal) -> Problem:
        """Return the answer where the edge refuses: 57P03 and class 53 stand for a proxy that is unavailable, or full."""
        if refusal.sqlstate == "57P03":
            return cls(503, str(refusal), msg=True)
        if refusal.sqlstate.startswith("53"):
            return cls(429, str(refusal), msg=True)
        return cls(400 if refusal.sqlstate.startswith("28") else 500, str(refusal))

    @classmethod
    def of_connecting(cls, error: psycopg.OperationalError) -> Problem:
        """Return the answer where a server or bouncer refuses a connection, of which libpq tells the text only."""
        _, fatal, message = str(error).partition("FATAL:  ")
        message = message.splitlines()[0] if fatal else "failed to connect to upstream"
        return cls(400 if any(text in message for text in _USERS_FAULTS) else 500, message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a request may take, by default as at Neon's proxy. PlanetScale does not say."""

    request_bytes: int = 10 << 20
    response_bytes: int = 10 << 20
    seconds: float = 15.0
    per_second: int | None = None
    """Requests within a second, of all clients."""


@dataclass(frozen=True, slots=True)
class Login:
    """What a connection string says."""

    user: str
    password: str
    database: str
    address: str | None
    """Host and port; None where there is no port."""
    application_name: str = ""
    options: str = ""
    """Other parameters, as the startup parameter "options"."""

    def __repr__(self) -> str:
        return f"<Login {self.user}>"

    @classmethod
    def parse(cls, headers: Mapping[str, str]) -> Login:
        """Return what the header Neon-Connection-String says. Names of headers are in lower case.

        Raises:
            Problem: it says nothing that can be used.
        """
        if "neon-connection-string" not in headers:
            raise Problem(400, "missing header: Neon-Connection-String")
        try:
            url = urlsplit(headers["neon-connection-string"])
            user, password, database = (
                unquote(part or "", errors="strict") for part in (url.username, url.password, url.path[1:].partition("/")[0])
            )
            parameters = dict(parse_qsl(url.query, errors="strict"))
            host, port = url.hostname, url.port
        except ValueError as exc:
            raise Problem(400, "invalid connection string: it could not be parsed") from exc
        if url.scheme not in ("postgres", "postgresql"):
            raise Problem(400, "invalid connection string: the protocol must be postgres or postgresql")
        if not user:
            raise Problem(400, "invalid connection string: missing username")
        if not database:
            raise Problem(400, "invalid connection string: missing database name")
        if "authorization" in headers:
            if password:
                raise Problem(400, "invalid connection string: both a password and an Authorization header were given")
            raise Problem(400, "JWT authentication is not set up")
        if not password:
            raise Problem(400, "invalid connection string: missing password")
        if not host or is_address(host):
            raise Problem(400, "invalid connection string: the host must be a name")
        address = None if port is None else f"{host}:{port}"
        return cls(user, password, database, address, parameters.pop("application_name", ""), _options(parameters))


@dataclass(frozen=True, slots=True)
class Modes:
    """What the other headers say."""

    raw: bool
    array: bool
    begin: bytes
    """The statement that opens a batch."""
    echoed: Mapping[str, str]
    """What the answer to a batch repeats."""

    @classmethod
    def parse(cls, headers: Mapping[str, str]) -> Modes:
        """Read the headers, whose names are in lower case. A boolean one counts only as "true".

        Raises:
            Problem: the isolation level is none.
        """
        begin, echoed = "BEGIN", {}
        if level := headers.get("neon-batch-isolation-level"):
            if level not in _ISOLATION_LEVELS:
                raise Problem(400, "invalid isolation level")
            begin += f" ISOLATION LEVEL {_ISOLATION_LEVELS[level]}"
            echoed["Neon-Batch-Isolation-Level"] = level
        for name, words in (("Neon-Batch-Read-Only", " READ ONLY"), ("Neon-Batch-Deferrable", " DEFERRABLE")):
            if headers.get(name.lower()) == "true":
                begin += words
                echoed[name] = "true"
        raw, array = (headers.get(name) == "true" for name in ("neon-raw-text-output", "neon-array-mode"))
        return cls(raw, array, begin.encode(), echoed)


@dataclass(frozen=True, slots=True)
class Query:
    """A statement and its parameters, which are text or NULL."""

    text: bytes
    params: Sequence[bytes | None]
    array: bool | None
    """Whether rows are arrays, where it says so itself."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The body of a request."""

    queries: Sequence[Query]
    alone: bool
    """Whether it is a statement outside of a transaction."""

    @property
    def text(self) -> bytes:
        """All that it has of statements and parameters."""
        return b"\n".join(text for query in self.queries for text in (query.text, *query.params) if text is not None)

    @classmethod
    def parse(cls, body: bytes | bytearray) -> Batch:
        """Read a body.

        Raises:
            Problem: it is none of the two forms.
        """
        try:
            data = json.loads(body, parse_constant=_no_constant)
            alone = isinstance(data["query"], str) if "query" in data else False
            queries = [data] if alone else data["queries"]
            if not isinstance(queries, list):
                raise TypeError
            return cls([_query(one) for one in queries], alone)
        except (ValueError, KeyError, TypeError) as exc:  # UnicodeError is a ValueError
            raise Problem(400, "could not parse the HTTP request body: it is not JSON with a query or queries") from exc


def _query(data: Any) -> Query:
    text, params, array = data["query"], data.get("params", []), data.get("arrayMode")
    if not (isinstance(text, str) and isinstance(params, list) and isinstance(array, bool | None)):
        raise TypeError
    return Query(text.encode(), [None if one is None else _parameter(one).encode() for one in params], array)


def _parameter(value: Any) -> str:
    if isinstance(value, str):
        return value
    return array_literal(value) if isinstance(value, list) else _dumps(value)


def array_literal(values: Sequence[Any]) -> str:
    """Return an array of JSON as PostgreSQL's literal: strings are quoted as in JSON, objects are strings of JSON."""
    items = []
    for value in values:
        if value is None:
            items.append("NULL")
        elif isinstance(value, list):
            items.append(array_literal(value))
        else:
            items.append(_dumps(_dumps(value) if isinstance(value, dict) else value))
    return "{" + ",".join(items) + "}"


# --- answers ---


def fields(result: PGresult) -> str:
    """Return the JSON of a result's columns."""
    return _dumps(
        [
            {
                "name": _text(result.fname(column)),
                "dataTypeID": result.ftype(column),
                "tableID": result.ftable(column),
                "columnID": result.ftablecol(column),
                "dataTypeSize": result.fsize(column),
                "dataTypeModifier": result.fmod(column),
                "format": "text",
            }
            for column in range(result.nfields)
        ]
    )


def rows(result: PGresult, *, raw: bool, array: bool) -> Iterator[str]:
    """Yield the JSON of each row. Of columns with the same name, an object has each, of which JavaScript sees the last."""
    columns = range(result.nfields)
    types = [0 if raw else result.ftype(column) for column in columns]
    names = [_dumps(_text(result.fname(column))) for column in columns]
    for row in range(result.ntuples):
        values = [
            "null" if (value := result.get_value(row, column)) is None else json_of(value.decode(), types[column])
            for column in columns
        ]
        if array:
            yield "[" + ",".join(values) + "]"
        else:
            yield "{" + ",".join(f"{name}:{value}" for name, value in zip(names, values, strict=True)) + "}"


def command_and_count(tag: str) -> tuple[str, int | None]:
    """Return the first word of a command's tag, and its number of rows."""
    command, *rest = tag.split(" ")
    return command, int(rest[-1]) if rest and rest[-1].isdecimal() else None


def json_of(text: str, oid: int) -> str:
    """Return a value of PostgreSQL's text form as JSON, converted where its type is one that Neon's proxy converts.

    Raises:
        Problem: it is no text of the type.
    """
    try:
        if oid in _ELEMENTS:
            return _array(text, _ELEMENTS[oid])
        if oid == _OID["bool"]:
            return "true" if text == "t" else "false"
        if oid in _INTEGERS:
            return str(int(text))
        if oid in _FLOATS and text not in ("NaN", "Infinity", "-Infinity"):
            return _dumps(float(text))
    except (ValueError, IndexError) as exc:
        raise Problem(500, "could not parse postgres response") from exc
    return text if oid in _JSON else _dumps(text)


def _array(text: str, element: int) -> str:
    """Return an array's text as JSON. What it says of bounds is lost."""
    if text.startswith("["):
        _, _, text = text.partition("=")
    parts, at = [], 0
    while at < len(text):
        char = text[at]
        if char in "{},":
            parts.append({"{": "[", "}": "]"}.get(char, char))
            at += 1
        elif char == '"':
            item, at = "", at + 1
            while text[at] != '"':
                at += text[at] == "\\"
                item += text[at]
                at += 1
            parts.append(json_of(item, element))
            at += 1
        else:
            end = min(found for found in (text.find(",", at), text.find("}", at)) if found >= 0)
            parts.append("null" if text[at:end] == "NULL" else json_of(text[at:end], element))
            at = end
    return "".join(parts)


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()


def _no_constant(name: str) -> None:
    raise ValueError(name)


def _options(parameters: dict[str, str]) -> str:
    """Return parameters as one startup parameter, which libpq takes, without those that are for libpq itself."""
    given = parameters.pop("options", "")
    ours = {one.keyword.decode() for one in Conninfo.get_defaults()}
    settings = {name: value for name, value in parameters.items() if name and name not in ours}
    quoted = [f"-c {name}={value}".replace("\\", "\\\\") for name, value in settings.items()]
    return " ".join([given, *(one[:3] + one[3:].replace(" ", "\\ ") for one in quoted)]).strip()
