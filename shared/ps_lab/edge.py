"""The edge: the stand-in for PlanetScale's router in front of everything.

One asyncio server in a thread of its own, with a direct port and a pooled port. It terminates TLS, reads the startup message,
finds the way by port and by the user name's suffix, and then relays bytes. It counts the clients' round trips, and cuts, hangs,
delays and refuses on demand.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from pathlib import Path

__all__ = ["Edge", "EdgeError", "Port", "RoundTrips", "Route"]

Port = Literal["direct", "pooled"]

_SSL_REQUEST: Final = 80877103
_GSS_REQUEST: Final = 80877104
_CANCEL_REQUEST: Final = 80877102
_TLS_HANDSHAKE: Final = 0x16
_READY: Final = ord("Z")
_KEY_DATA: Final = ord("K")
_ERROR: Final = ord("E")
_LINGER_RST: Final = struct.pack("ii", 1, 0)


class EdgeError(Exception):
    """What the edge answers in place of a connection: an SQLSTATE and a text of PlanetScale's client error reference."""

    def __init__(self, sqlstate: str, message: str) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate

    def packet(self) -> bytes:
        """Return the ErrorResponse. Like other middlemen, the edge sends no more than severity, SQLSTATE and message."""
        body = b"SFATAL\0" + b"C" + self.sqlstate.encode() + b"\0M" + str(self).encode() + b"\0\0"
        return b"E" + struct.pack("!I", len(body) + 4) + body


@dataclass(frozen=True, slots=True)
class Route:
    """Where a connection goes."""

    path: str
    """"primary", "replica" or "direct": for counting, and for faults."""
    socket: str
    """The Unix socket of the server or bouncer."""
    user: str
    """The name to connect with there."""


@dataclass(slots=True)
class RoundTrips:
    """What was counted since the block began: client messages that were sent after an answer of the server's, start-up apart."""

    by_path: Counter[str] = field(default_factory=Counter)
    startups: int = 0

    @property
    def count(self) -> int:
        """All of them."""
        return self.by_path.total()


class _Upstream(asyncio.Protocol):
    def __init__(self, client: _Client) -> None:
        self.client = client
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self.client.from_server(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.client.close()


class _Client(asyncio.Protocol):
    """One client connection, and its connection to the server."""

    def __init__(self, edge: Edge, port: Port) -> None:
        self.edge = edge
        self.port: Port = port
        self.route: Route | None = None
        self.transport: asyncio.Transport = None  # type: ignore[assignment]
        self.upstream: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._answers: bytearray | None = bytearray()  # the server's, until the first ReadyForQuery
        self._server_spoke = False
        self._key: bytes | None = None
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.edge.clients.add(self)
        if self.edge.hung(None):
            self.transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.edge.clients.discard(self)
        if self._key is not None:
            self.edge.keys.pop(self._key, None)
        if self.upstream is not None:
            self.upstream.close()

    def data_received(self, data: bytes) -> None:
        if self.upstream is None:
            self._buffer += data
            if self._task is None:
                self._start_up()
            return
        if self._answers is None and self._server_spoke and data[:1] != b"X":
            self._server_spoke = False
            self.edge.count(self.route)
        self._write(self.upstream, data)

    def from_server(self, data: bytes) -> None:
        """Relay what the server sent."""
        if self._answers is not None:
            self._watch_start_up(data)
        self._server_spoke = True
        self._write(self.transport, data)

    def close(self) -> None:
        """Close both sides, after what is still to be written."""
        if self.edge.delay_seconds:
            self.edge.loop.call_later(self.edge.delay_seconds, self.transport.close)
        else:
            self.transport.close()

    def abort(self) -> None:
        """Break both sides at once (RST)."""
        for transport in (self.transport, self.upstream):
            if transport is not None:
                raw = transport.get_extra_info("socket")
                if raw is not None and raw.family != socket.AF_UNIX:
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RST)
                transport.abort()

    def set_hung(self, hung: bool) -> None:
        """Stop reading from both sides, or go on."""
        for transport in (self.transport, self.upstream):
            if transport is not None and not transport.is_closing():
                (transport.pause_reading if hung else transport.resume_reading)()

    def _write(self, transport: asyncio.Transport, data: bytes) -> None:
        if self.edge.delay_seconds:
            self.edge.loop.call_later(self.edge.delay_seconds, transport.write, data)
        else:
            transport.write(data)

    def _start_up(self) -> None:
        if len(self._buffer) < 8:
            return
        length, code = struct.unpack_from("!II", self._buffer)
        if len(self._buffer) < length:
            return
        packet, rest = bytes(self._buffer[:length]), bytes(self._buffer[length:])
        if code == _CANCEL_REQUEST:
            self._task = self.edge.loop.create_task(self._cancel(packet))
        else:
            self._task = self.edge.loop.create_task(self._connect(packet, rest))

    async def _cancel(self, packet: bytes) -> None:
        path = self.edge.keys.get(packet[8:])
        if path is not None:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_unix_connection(path)
                writer.write(packet)
                await reader.read()
                writer.close()
        self.transport.close()

    async def _connect(self, packet: bytes, rest: bytes) -> None:
        fields = packet[8:].split(b"\0")
        parameters = dict(zip(fields[::2], fields[1::2], strict=False))
        try:
            if self.edge.refusal is not None:
                raise self.edge.refusal
            self.route = self.edge.router(self.port, parameters.get(b"user", b"").decode())
            parameters[b"user"] = self.route.user.encode()
            body = packet[4:8] + b"".join(name + b"\0" + value + b"\0" for name, value in parameters.items() if name) + b"\0"
            try:
                transport, _ = await self.edge.loop.create_unix_connection(lambda: _Upstream(self), self.route.socket)
            except OSError as exc:
                raise EdgeError("08006", "failed to connect to upstream") from exc
        except EdgeError as error:
            self.transport.write(error.packet())
            self.transport.close()
            return
        if self.transport.is_closing():
            transport.close()
            return
        self.edge.started()
        self.upstream = transport
        transport.write(struct.pack("!I", len(body) + 4) + body + rest)
        if self.edge.hung(self.route.path):
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
                self.edge.keys[body] = self.route.socket
            if kind in (_READY, _ERROR):
                self._answers = None
                return


class Edge:
    """The server; its methods may be called from any thread."""

    def __init__(self, router: Callable[[Port, str], Route], certificate: Path, ports: dict[Port, int]) -> None:
        self.router = router
        """Given the port and the user name; raises `EdgeError`."""
        self.ports = ports
        self.clients: set[_Client] = set()
        self.keys: dict[bytes, str] = {}
        self.refusal: EdgeError | None = None
        self.delay_seconds = 0.0
        self._hung: set[str | None] = set()
        self._counters: list[RoundTrips] = []
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(certificate)
        self._tls.set_alpn_protocols(["postgresql"])
        self.loop = asyncio.new_event_loop()
        self._listeners: list[socket.socket] = []
        self._thread = threading.Thread(target=self._run, name="ps-lab-edge", daemon=True)

    def start(self) -> None:
        """Listen on both ports."""
        for port, number in self.ports.items():
            listener = socket.create_server(("127.0.0.1", number), backlog=512)
            listener.setblocking(False)
            self._listeners.append(listener)
            self.loop.create_task(self._accept(listener, port))
        self._thread.start()

    def close(self) -> None:
        """Break all connections and stop."""
        if self._thread.is_alive():
            self._call(self._abort_all())
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(10)
        for listener in self._listeners:
            listener.close()
        self.loop.close()

    # --- counting ---

    @contextlib.contextmanager
    def round_trips(self) -> Iterator[RoundTrips]:
        """Count within the block."""
        counter = RoundTrips()
        self._counters.append(counter)
        try:
            yield counter
        finally:
            self._counters.remove(counter)

    def count(self, route: Route | None) -> None:
        """A client sent something after an answer."""
        if route is not None:
            for counter in self._counters:
                counter.by_path[route.path] += 1

    def started(self) -> None:
        """A client was connected to a server."""
        for counter in self._counters:
            counter.startups += 1

    # --- faults ---

    def cut(self, path: str | None = None) -> None:
        """Break the connections of a path ("primary", "replica", "direct"), all where none is named."""
        self._call(self._cut(path))

    def hang(self, path: str | None = None) -> None:
        """Stop forwarding on a path, or on all; new connections hang, too. Until `resume`."""
        self._call(self._set_hung(path, hung=True))

    def resume(self) -> None:
        """End `hang`, `delay` and `refuse`."""
        self.delay_seconds, self.refusal = 0.0, None
        self._call(self._set_hung(None, hung=False))

    def delay(self, seconds: float) -> None:
        """Delay what is forwarded, each way. Until `resume`."""
        self.delay_seconds = seconds

    def refuse(self, sqlstate: str, message: str) -> None:
        """Answer new connections with this error. Until `resume`."""
        self.refusal = EdgeError(sqlstate, message)

    def hung(self, path: str | None) -> bool:
        """Return whether a path hangs."""
        return None in self._hung or (path is not None and path in self._hung)

    async def _cut(self, path: str | None) -> None:
        for client in list(self.clients):
            if path is None or (client.route is not None and client.route.path == path):
                client.abort()

    async def _set_hung(self, path: str | None, *, hung: bool) -> None:
        if hung:
            self._hung.add(path)
        else:
            self._hung.clear()
        for client in list(self.clients):
            if not hung or path is None or (client.route is not None and client.route.path == path):
                client.set_hung(hung)

    async def _abort_all(self) -> None:
        current = asyncio.current_task()
        for task in asyncio.all_tasks():
            if task is not current:
                task.cancel()
        for client in list(self.clients):
            client.abort()
        await asyncio.sleep(0)

    # --- plumbing ---

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self.loop).result(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    async def _accept(self, listener: socket.socket, port: Port) -> None:
        welcomes: set[asyncio.Task[None]] = set()
        while True:
            raw, _ = await self.loop.sock_accept(listener)
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            welcome = self.loop.create_task(self._welcome(raw, port))
            welcomes.add(welcome)
            welcome.add_done_callback(welcomes.discard)

    async def _welcome(self, raw: socket.socket, port: Port) -> None:
        """Read what comes before TLS. It is peeked at: after a direct negotiation the handshake is not ours to read."""
        try:
            while True:
                head = await self._peek(raw, 8)
                if head[0] == _TLS_HANDSHAKE:
                    break
                length, code = struct.unpack("!II", head)
                if code == _CANCEL_REQUEST:
                    await self.loop.connect_accepted_socket(lambda: _Client(self, port), raw)
                    return
                await self.loop.sock_recv(raw, length)
                if code == _SSL_REQUEST:
                    await self.loop.sock_sendall(raw, b"S")
                    break
                if code == _GSS_REQUEST:
                    await self.loop.sock_sendall(raw, b"N")
                    continue
                await self.loop.sock_sendall(raw, EdgeError("28000", "SSL connection is required").packet())
                raw.close()
                return
            await self.loop.connect_accepted_socket(lambda: _Client(self, port), raw, ssl=self._tls)
        except (OSError, struct.error, IndexError):
            raw.close()

    async def _peek(self, raw: socket.socket, size: int) -> bytes:
        while True:
            ready = asyncio.Event()
            self.loop.add_reader(raw, ready.set)
            try:
                await ready.wait()
            finally:
                self.loop.remove_reader(raw)
            head = raw.recv(size, socket.MSG_PEEK)
            if len(head) == size or not head or head[0] == _TLS_HANDSHAKE:
                return head
