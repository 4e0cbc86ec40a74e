"""The port "https" of the edge: the protocol of the Neon serverless driver, as PlanetScale speaks it.

`/v2` is a WebSocket (`ps_lab.websocket`) that carries what the other ports take. `POST /sql` is a request of statements, read and
answered as `ps_lab.sql_over_http` says, and run by `ps_lab.backends`.
"""

from __future__ import annotations

import asyncio
import json
import sys
import traceback
import uuid
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs

import h11

from ps_lab.client import Client, close, reset
from ps_lab.routes import Refusal
from ps_lab.sql_over_http import Batch, Login, Modes, Problem
from ps_lab.websocket import WebSocket

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ps_lab.relay import Relay
    from ps_lab.routes import Listener, Port, Route

__all__ = ["HttpsConnection", "destination"]

_USUAL_PORTS: Final[Mapping[Port, int]] = {"direct": 5432, "pooled": 6432}
_CORS: Final = {
    "Allow": "OPTIONS, POST",
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Headers": (
        "Authorization, Neon-Connection-String, Neon-Raw-Text-Output, Neon-Array-Mode, Neon-Pool-Opt-In,"
        " Neon-Batch-Read-Only, Neon-Batch-Isolation-Level, Neon-Batch-Deferrable"
    ),
    "Access-Control-Max-Age": "86400",
}


def destination(address: str | None, ports: Mapping[Listener, int]) -> Port:
    """Return which of the edge's ports an address "host:port" means. Without an address, it is the direct one.

    Raises:
        ValueError: it is no such address, or nothing listens there.
    """
    if address is None:
        return "direct"
    host, _, number = address.rpartition(":")
    for port, usual in _USUAL_PORTS.items():
        if host and number in (str(usual), str(ports[port])):
            return port
    raise ValueError(f"address {address} is not allowed")


class HttpsConnection(asyncio.Protocol):
    """One connection to the port: requests one after the other, up to an upgrade."""

    def __init__(self, relay: Relay) -> None:
        self.relay = relay
        self.route: Route | None = None
        """The route of the last request."""
        self.lost = asyncio.Event()
        self._http = h11.Connection(h11.SERVER)
        self._tls: asyncio.Transport = None  # type: ignore[assignment]
        self._request: h11.Request | None = None
        self._body = bytearray()
        self._doomed = False  # the answer is swallowed, and the connection broken
        self._task: asyncio.Task[None] | None = None

    # --- what happens to it ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._tls = transport  # type: ignore[assignment]
        self.relay.clients.add(self)
        if self.relay.hangs():
            self.set_hung(True)

    def connection_lost(self, exc: Exception | None) -> None:
        self.relay.clients.discard(self)
        self.lost.set()
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        if not self._tls.is_closing():
            self._http.receive_data(data)
            self._read()

    # --- what is done to it ---

    def abort(self) -> None:
        """Break it by a reset."""
        reset(self._tls)

    def set_hung(self, hung: bool) -> None:
        """Stop reading, or go on. Between requests that is for a hang of everything: the next one may take another path."""
        busy = self._task is not None and not self._task.done()
        if not self._tls.is_closing():
            (self._tls.pause_reading if hung and (busy or self.relay.hangs()) else self._tls.resume_reading)()

    # --- its requests ---

    def _read(self) -> None:
        try:
            while self._take(self._http.next_event()):
                pass
        except h11.RemoteProtocolError as exc:
            self._answer(exc.error_status_hint, str(exc), {"Connection": "close"})

    def _take(self, event: object) -> bool:
        """Take a part of a request, and return whether there may be more."""
        match event:
            case h11.Request():
                self._request = event
                self._body.clear()
                if self._http.they_are_waiting_for_100_continue:
                    self._send(h11.InformationalResponse(status_code=100, headers=[]))
            case h11.Data():
                if len(self._body) <= self.relay.limits.request_bytes:  # else it is read only to its end
                    self._body += event.data
            case h11.EndOfMessage():
                assert self._request is not None
                self._handle(self._request)
            case _:
                return False
        return True

    def _handle(self, request: h11.Request) -> None:
        headers = {name.decode(): value.decode("latin-1") for name, value in request.headers}
        path, _, query = request.target.decode("ascii").partition("?")
        match request.method, path:
            case b"POST", "/sql":
                self._task = self.relay.run(self._sql(headers, bytes(self._body)))
            case b"OPTIONS", "/sql":
                self._answer(200, None, _CORS)
            case b"GET", "/v2" if headers.get("upgrade", "").lower() == "websocket":
                try:
                    port = destination(parse_qs(query).get("address", [None])[0], self.relay.ports)
                except ValueError as exc:
                    self._answer(400, str(exc))
                else:
                    self._upgrade(request, port)
            case _:
                self._answer(400, "query is not supported")

    def _upgrade(self, request: h11.Request, port: Port) -> None:
        self.relay.clients.discard(self)
        lines = [b"%s %s HTTP/%s" % (request.method, request.target, request.http_version)]
        lines += [b"%s: %s" % header for header in request.headers]
        rest, _ = self._http.trailing_data
        WebSocket(self._tls, Client(self.relay, port, tunnelled=True)).open(b"\r\n".join(lines) + b"\r\n\r\n", rest)

    # --- POST /sql ---

    async def _sql(self, headers: dict[str, str], body: bytes) -> None:
        self._doomed = False
        status, content, more = 200, b"", {"Access-Control-Allow-Origin": "*"}
        try:
            content, echoed = await self._run(headers, body)
            more |= echoed
        except Problem as problem:
            status, content = problem.status, json.dumps(problem.body).encode()
        except Exception:  # noqa: BLE001
            traceback.print_exc(file=sys.stderr)
            status, content = 500, json.dumps({"msg": "internal error"}).encode()
        await self._travel()
        if self._doomed:
            self.abort()
        elif not self._tls.is_closing():
            self._answer(status, content, more)
            self._read()  # what came meanwhile

    async def _run(self, headers: dict[str, str], body: bytes) -> tuple[bytes, dict[str, str]]:
        """Run what a request asks for, and return the body of its answer and additional headers of it."""
        relay, limits = self.relay, self.relay.limits
        if not relay.admits():
            raise Problem(429, "too many requests", msg=True)
        login, modes = Login.parse(headers), Modes.parse(headers)
        if len(body) > limits.request_bytes:
            raise Problem(413, f"request is too large (max is {limits.request_bytes} bytes)")
        batch = Batch.parse(body)
        try:
            if relay.refusal is not None:
                raise relay.refusal
            port = destination(login.address, relay.ports)
            first, self.route = self.route is None, relay.routes.find(port, login.user)
        except Refusal as refusal:
            raise Problem.of_refusal(refusal) from refusal
        except ValueError as exc:
            raise Problem(400, str(exc)) from exc
        relay.startups += first
        relay.round_trips[self.route.path] += 1
        await self._travel()
        self._doomed = relay.takes_answer(self, batch.text)
        content = await relay.backends.run(self.route, login, batch, modes, limits)
        return content.encode(), {} if batch.alone else dict(modes.echoed)

    async def _travel(self) -> None:
        """Wait as long as what is forwarded takes one way, and where it goes no further, until it does."""
        await asyncio.sleep(self.relay.delay_seconds)
        while self.relay.hangs(self.route.path if self.route else None):
            self.set_hung(True)
            await self.relay.resumed.wait()

    # --- answers ---

    def _answer(self, status: int, content: object, more: Mapping[str, str] | None = None) -> None:
        """Answer a request by JSON, which may be bytes already, and be ready for the next one."""
        body = content if isinstance(content, bytes) else b"" if content is None else json.dumps(content).encode()
        headers = {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "Neon-Request-Id": str(uuid.uuid4()),
            **(more or {}),
        }
        self._send(h11.Response(status_code=status, headers=list(headers.items())))
        if self._request is None or self._request.method != b"HEAD":
            self._send(h11.Data(body))
        self._send(h11.EndOfMessage())
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
        else:
            close(self._tls)

    def _send(self, event: h11.Event) -> None:
        self._tls.write(self._http.send(event) or b"")
