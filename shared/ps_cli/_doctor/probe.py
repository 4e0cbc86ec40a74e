"""`ps-postgres doctor --probe-443`: what is not known of SQL over port 443, asked of a branch, each question by one request.

PlanetScale's page says how the Neon serverless driver is used with it, and not what its servers do beyond that.
"""

from __future__ import annotations

import asyncio
import json
import platform
import struct
import time
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from http.client import HTTPConnection, HTTPException
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote
from uuid import uuid4

import psycopg

from ps_cli._doctor.https import ProxyError, addresses_of, see_https, trusting, way_of
from ps_cli._doctor.observe import masked
from ps_cli._doctor.show import https_line
from ps_core import conninfo
from ps_core.errors import ConfigurationError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator, Mapping

    from ps_cli._doctor.https import Way
    from ps_cli._doctor.seen import Setup
    from ps_core.topology import Endpoint

__all__ = ["Probe", "message_of", "said_by_sql"]

SIZE: Final = 11_000_000
"""Bytes of the long body and of the long answer: Neon's proxy takes and gives 10 MiB."""
SLEEP: Final = 30
"""Seconds that a statement sleeps which is hung up on."""
_ANSWER: Final = 20.0
"""Seconds to wait for an answer; Neon's proxy gives up after 15."""
_LOOK: Final = 5.0
"""Seconds to look for the statement that sleeps, and as many for its end."""
_SHOWN: Final = 300
"""Characters of an answer that are shown."""
_WHO: Final = (
    "SELECT current_user, inet_server_port(), pg_is_in_recovery(), current_setting('application_name'), pg_backend_pid()"
)
# Refused in a read-only transaction before anybody looks who may; it would insert nothing.
_INSERT: Final = "INSERT INTO pg_catalog.pg_description SELECT * FROM pg_catalog.pg_description WHERE false"
_RUNS: Final = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%' || $1 || '%'"
_AUTHENTICATION: Final = {0: "none", 3: "cleartext password", 5: "MD5 password", 10: "SASL"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Login:
    """What stands in the connection string of a request."""

    user: str
    password: str
    dbname: str
    host: str
    port: int | None = None
    options: str = ""

    def url(self) -> str:
        user, password, dbname, options = (quote(part, safe="") for part in (self.user, self.password, self.dbname, self.options))
        at = self.host if self.port is None else f"{self.host}:{self.port}"
        return f"postgresql://{user}:{password}@{at}/{dbname}{options and f'?options={options}'}"


class Probe:
    """The questions to the host of one set-up.

    Raises:
        ConfigurationError: a WebSocket is not possible here.
    """

    def __init__(self, setup: Setup, addresses: Mapping[str, str]) -> None:
        primary = setup.endpoints[0]
        # Of libpq's parameters, none but the roots mean anything here.
        params = tuple(pair for pair in primary.params if pair[0] == "sslrootcert" and pair[1] != "system")
        self._endpoints: list[Endpoint] = [
            replace(endpoint, transport="websocket", params=params)
            for endpoint in setup.endpoints
            if endpoint.host == primary.host
        ]
        try:
            self._way: Way = way_of(self._endpoints[0])
        except ProxyError as exc:
            raise ConfigurationError(f"the proxy that the environment names: {exc}") from None
        self._seen = see_https(self._endpoints[0], addresses)
        self._given = addresses
        self._password = primary.password
        self._login = _Login(
            user=primary.user.partition("|")[0], password=primary.password, dbname=primary.dbname, host=primary.host
        )

    @property
    def is_open(self) -> bool:
        """Whether there is anybody to ask: nothing secret is sent to who has no good certificate."""
        return self._seen.tls is not None and not self._seen.tls.fault

    def introduction(self) -> str:
        """Return what is about to be sent."""
        tools = ", ".join(f"{name} {version(name)}" for name in ("ps-postgres", "psycopg", "websockets"))
        return f"""\
{tools}, Python {platform.python_version()}, {datetime.now(UTC):%Y-%m-%d}
{self._login.host}: {https_line(self._seen)}

What will be sent there, as {self._login.user}, over TLS, in a minute at most:
- the user's password, in a header of each request to /sql, as that protocol has it; and once a wrong one;
- SELECTs that read no table but pg_stat_activity, and an INSERT in a read-only transaction that would insert nothing;
- one request with a body of {SIZE // 1_000_000} MB, one with an answer of {SIZE // 1_000_000} MB;
- one that sleeps {SLEEP} s on the server, and is hung up on when it is seen to run;
- logins by the WebSocket /v2, as each of {", ".join(dict.fromkeys(endpoint.user for endpoint in self._endpoints))}.
Nothing is changed. What is printed has no password in it.
"""

    def answers(self) -> Iterator[tuple[str, str]]:
        """Ask, and yield each question with its answer as it comes."""
        for question, ask in self._questions():
            began = time.perf_counter()
            try:
                answer = ask()
            except (OSError, HTTPException, psycopg.Error) as exc:
                answer = f"{type(exc).__name__}: {str(exc).strip().partition(chr(10))[0]}"
            answer = masked(answer, self._password)
            yield question, f"{answer[:_SHOWN]}{'...' * (len(answer) > _SHOWN)} ({time.perf_counter() - began:.2f} s)"

    def _questions(self) -> Iterator[tuple[str, Callable[[], str]]]:
        login = self._login
        for times in ("", ", again: is the process the same?"):
            yield f"/sql{times}", partial(self._sql, _WHO)
        role, _, branch = login.user.partition(".")
        endpoints = {(endpoint.user, endpoint.port): endpoint for endpoint in self._endpoints}
        for user, port in dict.fromkeys((*endpoints, (f"{login.user}|replica", None))):
            here = replace(login, user=user, port=port)
            yield f"/sql as {user}, port {port or 'not written'}", partial(self._sql, _WHO, here)
        yield "/sql, an error of the server's", partial(self._sql, "SELECT 1/0")
        wrong = {
            "a wrong password": replace(login, password=f"{login.password}x"),
            "no such branch": replace(login, user=f"{role}.nosuchbranch" if branch else f"{role}_nobody"),
            "no such database": replace(login, dbname="ps_doctor_nowhere"),
        }
        for name, here in wrong.items():
            yield f"/sql, {name}", partial(self._sql, _WHO, here)
        yield f"/sql, an answer of {SIZE} bytes", partial(self._sql, f"SELECT repeat('x', {SIZE})")
        yield f"/sql, a body of {SIZE} bytes", partial(self._sql, "SELECT length($1::text)", params=["x" * SIZE])
        yield (
            "/sql, Accept-Encoding: gzip",
            partial(self._sql, "SELECT repeat('x', 10000)", headers={"Accept-Encoding": "gzip"}),
        )
        yield f"/sql, hanging up on pg_sleep({SLEEP})", self._hang_up
        yield "/sql, an INSERT in a read-only batch (25006 is right)", self._insert
        yield (
            "/sql, ?options=-c statement_timeout=1s",
            partial(self._sql, "SHOW statement_timeout", replace(login, options="-c statement_timeout=1s")),
        )
        addresses = {f"?address={self._way.host}:{port}": None for _, port in endpoints}
        for query in ("", *addresses):
            yield f"/v2{query}, a login begun, and a ping", partial(self._begin, query)
        for endpoint in self._endpoints:
            yield (
                f"/v2?address={self._way.host}:{endpoint.port}, a whole login as {endpoint.user}",
                partial(self._log_in, endpoint),
            )

    # --- /sql ---

    def _open(self) -> HTTPConnection:
        return self._way.open(self._address(), trusting(self._way.roots, "http/1.1"), _ANSWER)

    def _address(self) -> str:
        return "" if self._way.proxy else self._given.get(self._way.host) or addresses_of(self._way.host)[0]

    def _send(self, http: HTTPConnection, body: Mapping[str, Any], login: _Login, headers: Mapping[str, str]) -> None:
        known = {
            "Neon-Connection-String": login.url(),
            "Neon-Raw-Text-Output": "true",
            "Neon-Array-Mode": "true",
            "Content-Type": "application/json",
            "User-Agent": "ps-postgres",
        }
        http.request("POST", "/sql", json.dumps(body), {**known, **headers})

    def _post(self, body: Mapping[str, Any], login: _Login, headers: Mapping[str, str]) -> str:
        with closing(self._open()) as http:
            with suppress(BrokenPipeError, ConnectionResetError):  # answered before it was read to its end
                self._send(http, body, login, headers)
            response = http.getresponse()
            return said_by_sql(response.status, dict(response.getheaders()), response.read())

    def _sql(
        self,
        query: str,
        login: _Login | None = None,
        *,
        params: list[str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> str:
        return self._post({"query": query, "params": params or []}, login or self._login, headers or {})

    def _insert(self) -> str:
        return self._post({"queries": [{"query": _INSERT, "params": []}]}, self._login, {"Neon-Batch-Read-Only": "true"})

    def _hang_up(self) -> str:
        mark = f"ps_doctor_{uuid4().hex}"
        runs = partial(self._sql, _RUNS, params=[mark])
        with closing(self._open()) as http:
            self._send(http, {"query": f"SELECT pg_sleep({SLEEP}) /* {mark} */", "params": []}, self._login, {})
            if (answer := _wait(runs, '[["1"]]')) is not None:
                return f"it was not seen to run: {answer}"
        began = time.monotonic()
        if (answer := _wait(runs, '[["0"]]')) is not None:
            return f"it is not ended within {_LOOK:g} s: {answer}"
        return f"it is ended within {time.monotonic() - began:.1f} s"

    # --- /v2 ---

    def _begin(self, query: str) -> str:
        """Send what begins a login, and return what the server asks for; no password is sent."""
        raw = self._way.connect(self._address(), _ANSWER)
        raw.setblocking(False)
        # Not by websockets.sync: over TLS, closing it may wait for ever for a thread of its own that reads.
        return asyncio.run(self._begin_on(raw, query))

    async def _begin_on(self, raw: socket.socket, query: str) -> str:
        from websockets.asyncio.client import connect
        from websockets.exceptions import InvalidStatus, WebSocketException

        at = "" if self._way.port == 443 else f":{self._way.port}"
        pairs = {"user": self._login.user, "database": self._login.dbname}
        startup = struct.pack("!I", 196608) + b"".join(f"{name}\0{value}\0".encode() for name, value in pairs.items()) + b"\0"
        options: dict[str, Any] = {"compression": None, "open_timeout": None, "close_timeout": 1, "ping_interval": None}
        try:
            async with (
                asyncio.timeout(_ANSWER),
                connect(
                    f"wss://{self._way.host}{at}/v2{query}",
                    sock=raw,
                    ssl=trusting(self._way.roots, "http/1.1"),
                    **options,
                ) as websocket,
            ):
                try:
                    ponged = f"pong after {await asyncio.wait_for(await websocket.ping(), 2):.3f} s"
                except TimeoutError:
                    ponged = "no pong"
                await websocket.send(struct.pack("!I", len(startup) + 4) + startup)
                data = b""
                while len(data) < 5 or len(data) < 1 + int.from_bytes(data[1:5]):
                    data += await websocket.recv(decode=False)
                return f"{message_of(data)}; {ponged}"
        except InvalidStatus as exc:
            body = (exc.response.body or b"").decode(errors="replace")
            return f"HTTP status {exc.response.status_code} {body}".strip()
        except WebSocketException as exc:
            return f"{type(exc).__name__}: {exc}"

    def _log_in(self, endpoint: Endpoint) -> str:
        params = {**conninfo(endpoint), "connect_timeout": int(_ANSWER)}
        with closing(psycopg.connect(**params, autocommit=True, prepare_threshold=None)) as conn:
            row = conn.execute(_WHO.encode()).fetchone()
        return json.dumps(row, default=str)


def said_by_sql(status: int, headers: Mapping[str, str], body: bytes) -> str:
    """Return what is worth telling of an answer of `/sql`."""
    words = [f"HTTP status {status}"]
    encoding = next((value for name, value in headers.items() if name.lower() == "content-encoding"), "")
    if encoding:
        return f"{words[0]}, {len(body)} bytes, Content-Encoding: {encoding}"
    if len(body) > 2000:
        return f"{words[0]}, {len(body)} bytes"
    text = body.decode(errors="replace")
    try:
        found = json.loads(text)
        return f"{words[0]} {json.dumps(found['rows'])}" if status == 200 else f"{words[0]} {json.dumps(_told(found))}"
    except (ValueError, KeyError, TypeError):
        return f"{words[0]} {text}".strip()


def _told(found: Any) -> Any:
    """Return the fields of an error that say something."""
    return {name: value for name, value in found.items() if value is not None} if isinstance(found, dict) else found


def message_of(data: bytes) -> str:
    """Return what a server's first message to a client means."""
    body = data[5 : 1 + int.from_bytes(data[1:5])]
    if data[:1] == b"R" and len(body) >= 4:
        kind = int.from_bytes(body[:4])
        names = [name.decode(errors="replace") for name in body[4:].split(b"\0") if name] if kind == 10 else []
        return f"it asks for {' '.join([_AUTHENTICATION.get(kind, f'authentication {kind}'), *names])}"
    if data[:1] == b"E":
        fields = {part[:1]: part[1:].decode(errors="replace") for part in body.split(b"\0") if part}
        return f"it says {fields.get(b'S', '')} {fields.get(b'C', '')}: {fields.get(b'M', '')}"
    return f"it sends a message {data[:1]!r}"


def _wait(ask: Callable[[], str], wanted: str) -> str | None:
    """Return None as soon as the answer ends in `wanted`, or the last answer, if that takes too long."""
    until = time.monotonic() + _LOOK
    while not (answer := ask()).endswith(wanted):
        if time.monotonic() > until:
            return answer
        time.sleep(0.2)
    return None
