"""The port "https" of the edge: the protocol of the Neon serverless driver, as PlanetScale speaks it.

`/v2` is a WebSocket (`ps_lab.websocket`) that carries what the other ports take.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs

import h11

from ps_lab.client import Client, reset
from ps_lab.websocket import WebSocket

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ps_lab.relay import Relay
    from ps_lab.routes import Listener, Port, Route

__all__ = ["HttpsConnection", "destination"]

_USUAL_PORTS: Final[Mapping[Port, int]] = {"direct": 5432, "pooled": 6432}
NOT_SUPPORTED: Final = "query is not supported"
"""What Neon's proxy says to requests of any other kind."""


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
    """One connection to the port, up to its upgrade."""

    def __init__(self, relay: Relay) -> None:
        self.relay = relay
        self.route: Route | None = None
        self.lost = asyncio.Event()
        self._http = h11.Connection(h11.SERVER)
        self._request: h11.Request | None = None
        self._tls: asyncio.Transport = None  # type: ignore[assignment]

    # --- what happens to it ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._tls = transport  # type: ignore[assignment]
        self.relay.clients.add(self)
        if self.relay.hangs():
            self.set_hung(True)

    def connection_lost(self, exc: Exception | None) -> None:
        self.relay.clients.discard(self)
        self.lost.set()

    def data_received(self, data: bytes) -> None:
        try:
            self._http.receive_data(data)
            self._read()
        except h11.RemoteProtocolError as exc:
            self._answer(exc.error_status_hint, str(exc))

    # --- what is done to it ---

    def abort(self) -> None:
        """Break it by a reset."""
        reset(self._tls)

    def set_hung(self, hung: bool) -> None:
        """Stop reading, or go on."""
        if not self._tls.is_closing():
            (self._tls.pause_reading if hung else self._tls.resume_reading)()

    # --- its requests ---

    def _read(self) -> None:
        while True:
            event = self._http.next_event()
            if isinstance(event, h11.Request):
                self._request = event
            elif isinstance(event, h11.EndOfMessage):
                assert self._request is not None
                self._handle(self._request)
                return
            elif not isinstance(event, h11.Data):
                return

    def _handle(self, request: h11.Request) -> None:
        path, _, query = request.target.decode("ascii").partition("?")
        if path == "/v2" and dict(request.headers).get(b"upgrade", b"").lower() == b"websocket":
            try:
                port = destination(parse_qs(query).get("address", [None])[0], self.relay.ports)
            except ValueError as exc:
                self._answer(400, str(exc))
            else:
                self._upgrade(request, port)
            return
        self._answer(400, NOT_SUPPORTED)

    def _upgrade(self, request: h11.Request, port: Port) -> None:
        self.relay.clients.discard(self)
        lines = [b"%s %s HTTP/%s" % (request.method, request.target, request.http_version)]
        lines += [b"%s: %s" % header for header in request.headers]
        rest, _ = self._http.trailing_data
        WebSocket(self._tls, Client(self.relay, port, tunnelled=True)).open(b"\r\n".join(lines) + b"\r\n\r\n", rest)

    def _answer(self, status: int, body: object) -> None:
        content = json.dumps(body).encode()
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(content))), ("Connection", "close")]
        for event in (h11.Response(status_code=status, headers=headers), h11.Data(content), h11.EndOfMessage()):
            self._tls.write(self._http.send(event) or b"")
        self._tls.close()
