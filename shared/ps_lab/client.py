"""A client of the edge, and its connection to a server or bouncer."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from ps_lab.routes import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from ps_lab.relay import Relay
    from ps_lab.routes import Port, Route

__all__ = ["CANCEL_REQUEST", "GSS_REQUEST", "LONGEST_STARTUP", "SSL_REQUEST", "Client", "reset"]

SSL_REQUEST: Final = 80877103
GSS_REQUEST: Final = 80877104
CANCEL_REQUEST: Final = 80877102
LONGEST_STARTUP: Final = 10_000
"""Bytes of a startup message that PostgreSQL takes."""
_PROTOCOL: Final = 3
_READY: Final = ord("Z")
_KEY_DATA: Final = ord("K")
_ERROR: Final = ord("E")
_FLUSH: Final = b"H\x00\x00\x00\x04"


class _Upstream(asyncio.Protocol):
    def __init__(self, client: Client) -> None:
        self.client = client

    def data_received(self, data: bytes) -> None:
        self.client.from_server(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.client.close()

    def pause_writing(self) -> None:
        _read(self.client.transport, False)

    def resume_writing(self) -> None:
        self.client.read_on(self.client.transport)


class Client(asyncio.Protocol):
    """One client connection, and its connection to the server.

    One that is `tunnelled` has its TLS outside, and is told that there is none inside, as a server without TLS does.
    """

    def __init__(self, relay: Relay, port: Port, *, tunnelled: bool = False) -> None:
        self.relay = relay
        self.port: Port = port
        self._tunnelled = tunnelled
        self.route: Route | None = None
        self.transport: asyncio.Transport = None  # type: ignore[assignment]
        self.upstream: asyncio.Transport | None = None
        self.lost = asyncio.Event()
        self._hung = False
        self._doomed = False  # the next answer is swallowed, and the connection broken
        self._buffer = bytearray()  # the client's, until it is connected
        self._answers: bytearray | None = bytearray()  # the server's, until the first ReadyForQuery
        self._server_spoke = False
        self._key: bytes | None = None
        self._task: asyncio.Task[None] | None = None
        self._late: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._due = 0.0

    # --- what happens to the connection ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.relay.clients.add(self)
        if self.relay.hangs():
            self.set_hung(True)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()
        self.relay.clients.discard(self)
        if self._key is not None:
            self.relay.keys.pop(self._key, None)
        if self.upstream is not None:
            self._pass(self.upstream.close)

    def data_received(self, data: bytes) -> None:
        if self.upstream is None:
            self._buffer += data
            if self._task is None:
                self._start_up()
            return
        # psycopg leaves a pipeline with a Flush behind its Sync: where the answer was faster, nothing more is waited for.
        waits = data[:1] != b"X" and data != _FLUSH
        if self._answers is None and self._server_spoke and waits and self.route is not None:
            self._server_spoke = False
            self.relay.round_trips[self.route.path] += 1
        self._doomed = self._doomed or self.relay.takes_answer(self, data)
        self._pass(_write, self.upstream, data)

    def from_server(self, data: bytes) -> None:
        """Relay what the server sent."""
        if self._doomed:
            self.abort()
            return
        if self._answers is not None:
            self._watch_start_up(data)
        self._server_spoke = True
        self._pass(_write, self.transport, data)

    def pause_writing(self) -> None:
        if self.upstream is not None:
            _read(self.upstream, False)

    def resume_writing(self) -> None:
        if self.upstream is not None:
            self.read_on(self.upstream)

    def read_on(self, transport: asyncio.Transport) -> None:
        """Read again from a side whose other side has caught up."""
        if not self._hung:
            _read(transport, True)

    # --- what is done to it ---

    def close(self) -> None:
        """Close the client's side, after what is still to be written."""
        self._pass(close, self.transport)

    def abort(self) -> None:
        """Break both sides at once, the client's by a reset."""
        reset(self.transport)
        if self.upstream is not None:
            self.upstream.abort()

    def set_hung(self, hung: bool) -> None:
        """Stop reading from both sides, or go on."""
        self._hung = hung
        for transport in (self.transport, self.upstream):
            if transport is not None:
                _read(transport, not hung)

    def _pass(self, action: Callable[..., None], *args: object) -> None:
        """Do something now, or when the delay is over; always in order, also where the delay has changed meanwhile."""
        if not self.relay.delay_seconds and not self._late:
            action(*args)
            return
        self._late.append((action, args))
        self._due = max(self._due, self.relay.loop.time() + self.relay.delay_seconds)
        self.relay.loop.call_at(self._due, self._pass_late)

    def _pass_late(self) -> None:
        action, args = self._late.popleft()
        action(*args)

    # --- its beginning ---

    def _start_up(self) -> None:
        if len(self._buffer) < 4:
            return
        (length,) = struct.unpack_from("!I", self._buffer)
        if length < 8:
            self._refuse(Refusal("08006", f"startup message too short: {length} bytes"))
        elif length > LONGEST_STARTUP:
            self._refuse(Refusal("08006", "failed to parse startup header"))
        elif len(self._buffer) >= length:
            packet, rest = bytes(self._buffer[:length]), bytes(self._buffer[length:])
            (code,) = struct.unpack_from("!I", packet, 4)
            if code == CANCEL_REQUEST:
                self._task = self.relay.loop.create_task(self._cancel(packet))
            elif self._tunnelled and code in (SSL_REQUEST, GSS_REQUEST):
                del self._buffer[:length]
                self._pass(_write, self.transport, b"N")
                self._start_up()
            elif code >> 16 == _PROTOCOL:
                self._task = self.relay.loop.create_task(self._connect(packet, rest))
            else:
                self._refuse(Refusal("08006", "failed to parse startup header"))

    def _refuse(self, error: Refusal) -> None:
        _write(self.transport, error.packet())
        close(self.transport)

    async def _cancel(self, packet: bytes) -> None:
        """Hand a cancel request to where the connection went that has this key; the client waits for the end of file only."""
        route = self.relay.keys.get(packet[8:])
        if route is not None:
            if self.relay.hangs(route.path):
                await self.relay.resumed.wait()
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_unix_connection(route.socket)
                try:
                    writer.write(packet)
                    await reader.read()
                finally:
                    writer.close()
        close(self.transport)

    async def _connect(self, packet: bytes, rest: bytes) -> None:
        fields = packet[8:].split(b"\0")
        parameters = dict(zip(fields[::2], fields[1::2], strict=False))
        try:
            if self.relay.refusal is not None:
                raise self.relay.refusal
            self.route = self.relay.routes.find(self.port, parameters.get(b"user", b"").decode(errors="replace"))
            parameters[b"user"] = self.route.user.encode()
            try:
                transport, _ = await self.relay.loop.create_unix_connection(lambda: _Upstream(self), self.route.socket)
            except OSError as exc:
                raise Refusal("08006", "failed to connect to upstream") from exc
        except Refusal as error:
            self._refuse(error)
            return
        if self.lost.is_set():
            transport.close()
            return
        self.relay.startups += 1
        self.upstream = transport
        body = packet[4:8] + b"".join(name + b"\0" + value + b"\0" for name, value in parameters.items() if name) + b"\0"
        transport.write(struct.pack("!I", len(body) + 4) + body + rest)
        if self.relay.hangs(self.route.path):
            self.set_hung(True)

    def _watch_start_up(self, data: bytes) -> None:
        answers = self._answers
        assert answers is not None
        answers += data
        while len(answers) >= 5:
            length = 1 + struct.unpack_from("!I", answers, 1)[0]
            if len(answers) < length:
                return
            kind, body = answers[0], bytes(answers[5:length])
            del answers[:length]
            if kind == _KEY_DATA and self.route is not None:
                self._key = body
                self.relay.keys[body] = self.route
            if kind in (_READY, _ERROR):
                self._answers = None
                return


def close(transport: asyncio.Transport) -> None:
    """Close a client's connection after what is still to be written, once.

    asyncio's TLS transport forgets its connection when it is closed twice: what is asked of it then raises AttributeError, and
    nothing can break it.
    """
    if not transport.is_closing():
        transport.close()


def reset(transport: asyncio.Transport) -> None:
    """Break a client's connection at once, so that it sees a reset."""
    raw = transport.get_extra_info("socket")
    if raw is not None:
        with contextlib.suppress(OSError):  # closed already
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def _write(transport: asyncio.Transport, data: bytes) -> None:
    if not transport.is_closing():
        transport.write(data)


def _read(transport: asyncio.Transport, on: bool) -> None:
    if not transport.is_closing():
        (transport.resume_reading if on else transport.pause_reading)()
