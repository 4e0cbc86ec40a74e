"""What is sent: an endpoint, statements and modes, to a POST. Pure.

The names are those of the protocol of Neon's serverless driver, which PlanetScale speaks.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from ps_core._plain_errors import ConfigurationError
from ps_core._websocket import target_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ps_core._websocket import Target
    from ps_core.topology import Endpoint
    from ps_http._values import Query

__all__ = ["ISOLATION_LEVELS", "PATH", "Modes", "Request", "connection_string", "make_request", "target_for"]

PATH: Final = "/sql"
_DIRECT_PORT: Final = 5432
_HOST: Final = re.compile(r"[A-Za-z0-9._-]+")
ISOLATION_LEVELS: Final = {
    "serializable": "Serializable",
    "repeatable read": "RepeatableRead",
    "read committed": "ReadCommitted",
    "read uncommitted": "ReadUncommitted",
}
"""PostgreSQL's names to the protocol's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Modes:
    """The modes of a batch's transaction."""

    isolation: str | None = None
    """A key of `ISOLATION_LEVELS`; None: as the role has it."""
    read_only: bool = False
    deferrable: bool = False


@dataclass(frozen=True, slots=True, repr=False)
class Request:
    """One POST. Its `repr` shows nothing: a header holds the password, and the body values."""

    headers: dict[str, str]
    body: bytes

    def __repr__(self) -> str:
        return f"<Request of {len(self.body)} bytes>"


def target_for(endpoint: Endpoint) -> Target:
    """Return the server that takes an endpoint's requests.

    Raises:
        ConfigurationError: the endpoint asks for what HTTPS cannot have, or lacks what it needs.
    """
    for name in ("user", "password", "dbname"):
        if not getattr(endpoint, name):
            raise ConfigurationError(
                f"SQL over HTTPS needs a {name} in the connection string: libpq's defaults, variables and files are not read"
            )
    target = target_of(endpoint.parameters(), endpoint.https_port, os.environ, way="SQL over HTTPS")
    if not _HOST.fullmatch(target.host):  # it is part of a header, too
        raise ConfigurationError(f"SQL over HTTPS: {target.host!r} is no host's name: write letters, digits, dots and hyphens")
    return target


def connection_string(endpoint: Endpoint) -> str:
    """Return the header that says where a request goes, and as whom."""
    port = "" if endpoint.port == _DIRECT_PORT else f":{endpoint.port}"
    login = f"{quote(endpoint.user, safe='')}:{quote(endpoint.password, safe='')}"
    named = {"application_name": endpoint.application_name, "options": dict(endpoint.params).get("options")}
    query = "&".join(f"{name}={quote(value, safe='')}" for name, value in named.items() if value)
    return f"postgresql://{login}@{endpoint.host}{port}/{quote(endpoint.dbname, safe='')}{query and '?' + query}"


def make_request(endpoint: Endpoint, queries: Sequence[Query], modes: Modes | None) -> Request:
    """Return the POST of one statement by itself (`modes` is None), or of several in a transaction.

    Raises:
        UnicodeEncodeError: a text has half of a surrogate pair, which no server takes.
    """
    headers = {
        "Neon-Connection-String": connection_string(endpoint),
        "Neon-Raw-Text-Output": "true",
        "Neon-Array-Mode": "true",
        "Content-Type": "application/json",
        "Accept": "application/json",
        "User-Agent": "ps-postgres",
    }
    if modes is not None:
        if modes.isolation is not None:
            headers["Neon-Batch-Isolation-Level"] = ISOLATION_LEVELS[modes.isolation]
        if modes.read_only:
            headers["Neon-Batch-Read-Only"] = "true"
        if modes.deferrable:
            headers["Neon-Batch-Deferrable"] = "true"
    asked = [{"query": query.text, "params": query.params} for query in queries]
    body = asked[0] if modes is None else {"queries": asked}
    return Request(headers, json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode())
