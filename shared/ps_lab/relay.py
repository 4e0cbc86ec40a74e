"""The relay: the process of the edge.

    python relay.py CERTIFICATE

One asyncio server with a direct port and a pooled port. It terminates TLS, reads the startup message, finds the way by port and
by the user name's suffix, and then relays bytes. It counts the clients' round trips, and cuts, hangs, delays, refuses on demand.
`ps_lab.edge` tells it what to do by a socket, its standard input: lines of JSON, [verb, argument, ...], each answered by a line.

It is run as a script, without site-packages, and so imports nothing but the standard library. It is a process of its own because
a client in the same one could hold Python's lock while libpq waits for the relay's answer, as psycopg's `Connection.cancel` does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import ssl
import struct
import sys
from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence

__all__ = ["Path", "Port", "Refusal", "Relay", "Route", "Routes"]

Port = Literal["direct", "pooled"]
Path = Literal["primary", "replica", "direct"]

_SSL_REQUEST: Final = 80877103
_GSS_REQUEST: Final = 80877104
_CANCEL_REQUEST: Final = 80877102
_PROTOCOL: Final = 3
_LONGEST_STARTUP: Final = 10_000
"""Bytes of a startup message that PostgreSQL takes."""
_TLS_HANDSHAKE: Final = 0x16
_READY: Final = ord("Z")
_KEY_DATA: Final = ord("K")
_ERROR: Final = ord("E")
_FLUSH: Final = b"H\x00\x00\x00\x04"
_WELCOME_TIMEOUT: Final = 60.0
"""Seconds that a client has for what comes before its startup message: PostgreSQL's authentication_timeout."""


class Refusal(Exception):
    """What the edge answers in place of a connection: an SQLSTATE and a text of PlanetScale's client error reference."""

    def __init__(self, sqlstate: str, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        self.hint = hint

    def packet(self) -> bytes:
        """Return the ErrorResponse. Like other middlemen, the edge sends no more than severity, SQLSTATE, message, and hint."""
        fields = {"S": "FATAL", "C": self.sqlstate, "M": str(self), "H": self.hint}
        body = b"".join(f"{kind}{text}\0".encode() for kind, text in fields.items() if text is not None) + b"\0"
        return b"E" + struct.pack("!I", len(body) + 4) + body


@dataclass(frozen=True, slots=True)
class Route:
    """Where a connection goes."""

    path: Path
    """For counting, and for faults."""
    socket: str
    """The Unix socket of the server or bouncer."""
    user: str
    """The name to connect with there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Routes:
    """Where which connections go at the moment. All but the names are paths of Unix sockets."""

    branch: str
    local: str
    """The bouncer in front of the primary, for pooled connections without suffix."""
    bouncers: Mapping[str, str]
    """The dedicated bouncers, by name."""
    replica_bouncers: Sequence[str]
    """Those of them that lead to replicas."""
    primary: str | None
    replicas: Sequence[str]
    """Of servers that run."""
    closed_roles: Sequence[str]
    """Those that need no password on the servers' own sockets, and so cannot be let in from outside."""

    def find(self, port: Port, user: str) -> Route:
        """Return the way of a connection of `user` to `port`.

        Raises:
            Refusal: there is none.
        """
        name, _, suffix = user.partition("|")
        role, dot, branch = name.rpartition(".")
        if not dot:
            raise Refusal("28000", "invalid user format: username must include branch (e.g., user.branch)")
        if branch != self.branch:
            raise Refusal("28000", f"branch {branch} does not exist")
        if role in self.closed_roles:
            raise Refusal("28P01", f'password authentication failed for user "{role}"')
        if port == "pooled":
            if not suffix:
                return Route("primary", self.local, role)
            if suffix == "replica":
                raise Refusal("28000", f"pooler only supports primary destinations for branch {branch}")
            if suffix in self.bouncers:
                return Route("replica" if suffix in self.replica_bouncers else "primary", self.bouncers[suffix], role)
        if suffix not in ("", "replica"):
            raise Refusal("28000", f"member {suffix} not found in branch {branch}")
        if self.primary is None and not self.replicas:
            raise Refusal("08006", f"no running members available for branch {branch}")
        if suffix:
            if not self.replicas:
                raise Refusal("08006", f"no replica available for branch {branch}")
            return Route("replica", random.choice(self.replicas), role)  # noqa: S311
        if self.primary is None:
            raise Refusal("08006", f"no primary available for branch {branch}")
        return Route("direct", self.primary, role)


class _Upstream(asyncio.Protocol):
    def __init__(self, client: _Client) -> None:
        self.client = client

    def data_received(self, data: bytes) -> None:
        self.client.from_server(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.client.close()

    def pause_writing(self) -> None:
        _read(self.client.transport, False)

    def resume_writing(self) -> None:
        self.client.read_on(self.client.transport)


class _Client(asyncio.Protocol):
    """One client connection, and its connection to the server."""

    def __init__(self, relay: Relay, port: Port) -> None:
        self.relay = relay
        self.port: Port = port
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
        self._pass(self.transport.close)

    def abort(self) -> None:
        """Break both sides at once, the client's by a reset."""
        raw = self.transport.get_extra_info("socket")
        if raw is not None:
            with contextlib.suppress(OSError):  # closed already
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()
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
        elif length > _LONGEST_STARTUP:
            self._refuse(Refusal("08006", "failed to parse startup header"))
        elif len(self._buffer) >= length:
            packet, rest = bytes(self._buffer[:length]), bytes(self._buffer[length:])
            (code,) = struct.unpack_from("!I", packet, 4)
            if code == _CANCEL_REQUEST:
                self._task = self.relay.loop.create_task(self._cancel(packet))
            elif code >> 16 == _PROTOCOL:
                self._task = self.relay.loop.create_task(self._connect(packet, rest))
            else:
                self._refuse(Refusal("08006", "failed to parse startup header"))

    def _refuse(self, error: Refusal) -> None:
        _write(self.transport, error.packet())
        self.transport.close()

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
        self.transport.close()

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


def _write(transport: asyncio.Transport, data: bytes) -> None:
    if not transport.is_closing():
        transport.write(data)


def _read(transport: asyncio.Transport, on: bool) -> None:
    # A TLS transport that was closed twice has lost its protocol, and raises AttributeError.
    if not transport.is_closing():
        (transport.resume_reading if on else transport.pause_reading)()


class Relay:
    """The server. Its methods `do_*` are the verbs of the control socket."""

    def __init__(self, certificate: str) -> None:
        self.routes: Routes
        self.clients: set[_Client] = set()
        self.keys: dict[bytes, Route] = {}
        """Where connections went, by the key that their cancel requests carry."""
        self.refusal: Refusal | None = None
        self.delay_seconds = 0.0
        self._answer_cuts: list[tuple[Path | None, bytes, int]] = []
        self.round_trips: Counter[str] = Counter()
        """By path."""
        self.startups = 0
        self.loop = asyncio.get_running_loop()
        self.resumed = asyncio.Event()
        self._hung: set[str | None] = set()
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(certificate)
        self._tls.set_alpn_protocols(["postgresql"])
        self._tasks: set[asyncio.Task[None]] = set()

    async def obey(self, control: socket.socket) -> None:
        """Carry out what the control socket says, one line after the other, until it is closed.

        Each is answered by [result, error], one of which is null. A command that fails does not end the relay.
        """
        reader, writer = await asyncio.open_unix_connection(sock=control)
        async for line in reader:
            verb, *arguments = json.loads(line)
            answer: tuple[object, str | None]
            try:
                answer = await getattr(self, f"do_{verb}")(*arguments), None
            except Exception as exc:  # noqa: BLE001
                answer = None, repr(exc)
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()

    async def do_listen(self) -> dict[str, int]:
        """Listen on two free ports, and return them."""
        ports: dict[str, int] = {}
        names: tuple[Port, ...] = ("direct", "pooled")
        for name in names:
            listener = socket.create_server(("127.0.0.1", 0), backlog=512)
            listener.setblocking(False)
            self._run(self._accept(listener, name))
            ports[name] = listener.getsockname()[1]
        return ports

    async def do_route(self, routes: dict[str, Any]) -> None:
        """Send new connections these ways. Direct ones to a replica that was promoted are broken, as PlanetScale documents."""
        self.routes = Routes(**routes)
        for client in self._on("replica"):
            if client.route is not None and client.route.socket == self.routes.primary:
                client.abort()

    async def do_count(self) -> tuple[dict[str, int], int]:
        """Return the round trips by path, and the starts of connections, of all time."""
        return self.round_trips, self.startups

    async def do_status(self) -> dict[str, object]:
        """Return what is going on."""
        hung = sorted(path or "all" for path in self._hung)
        return {
            "clients": len(self.clients),
            "hung": hung,
            "delay": self.delay_seconds,
            "refusal": self.refusal and str(self.refusal),
            "answer_cuts": sum(left for _, _, left in self._answer_cuts),
        }

    async def do_cut(self, path: Path | None) -> None:
        """Break connections; they are broken when this returns."""
        victims = self._on(path)
        for client in victims:
            client.abort()
        for client in victims:
            await client.lost.wait()

    async def do_cut_answers(self, path: Path | None, containing: str, times: int) -> None:
        """Break connections when the server has answered."""
        self._answer_cuts.append((path, containing.encode(), times))

    def takes_answer(self, client: _Client, data: bytes) -> bool:
        """Return whether the answer to what a client sends is to be swallowed, and count it."""
        for at, (path, containing, left) in enumerate(self._answer_cuts):
            if containing in data and client in self._on(path):
                self._answer_cuts[at] = path, containing, left - 1
                if left == 1:
                    del self._answer_cuts[at]
                return True
        return False

    async def do_hang(self, path: Path | None) -> None:
        """Stop forwarding."""
        self._hung.add(path)
        self.resumed.clear()
        for client in self._on(path):
            client.set_hung(True)

    async def do_delay(self, seconds: float) -> None:
        """Delay what is forwarded."""
        self.delay_seconds = seconds

    async def do_refuse(self, sqlstate: str, message: str) -> None:
        """Refuse new connections."""
        self.refusal = Refusal(sqlstate, message)

    async def do_resume(self) -> None:
        """End all faults."""
        self.delay_seconds, self.refusal = 0.0, None
        self._answer_cuts.clear()
        self._hung.clear()
        self.resumed.set()
        for client in self.clients:
            client.set_hung(False)

    def hangs(self, path: Path | None = None) -> bool:
        """Return whether a path hangs."""
        return None in self._hung or path in self._hung

    def _on(self, path: Path | None) -> list[_Client]:
        return [client for client in self.clients if path is None or (client.route is not None and client.route.path == path)]

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listener: socket.socket, port: Port) -> None:
        while True:
            # Not `loop.sock_accept`: cancelled while a client connects, it reports an InvalidStateError to the loop.
            await self._readable(listener)
            try:
                raw, _ = listener.accept()
            except OSError:  # no file descriptor left, or the client is gone already
                await asyncio.sleep(0.02)
                continue
            raw.setblocking(False)
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._run(self._welcome(raw, port))

    async def _welcome(self, raw: socket.socket, port: Port) -> None:
        """Read what comes before TLS. It is peeked at: after a direct negotiation the handshake is not ours to read."""
        handed_over = False
        try:
            async with asyncio.timeout(_WELCOME_TIMEOUT):
                tls = await self._negotiate(raw)
            if tls is not None:
                handed_over = True
                await self.loop.connect_accepted_socket(lambda: _Client(self, port), raw, **self._tls_options(tls=tls))
        except (OSError, struct.error):  # the client went away, or speaks another protocol
            pass
        finally:
            if not handed_over:
                raw.close()

    def _tls_options(self, *, tls: bool) -> dict[str, Any]:
        # An idle client does not answer a close_notify; a real edge does not wait for that.
        return {"ssl": self._tls, "ssl_shutdown_timeout": 0.1} if tls else {}

    async def _negotiate(self, raw: socket.socket) -> bool | None:
        """Return whether TLS is next; None if there is nothing more to do."""
        while True:
            head = await self._peek(raw)
            if head[:1] == bytes([_TLS_HANDSHAKE]):
                return True
            length, code = struct.unpack("!II", head)
            if code == _CANCEL_REQUEST:
                return False
            if code == _SSL_REQUEST:
                await self.loop.sock_recv(raw, 8)
                await self.loop.sock_sendall(raw, b"S")
                return True
            if code == _GSS_REQUEST:
                await self.loop.sock_recv(raw, 8)
                await self.loop.sock_sendall(raw, b"N")
                continue
            # Read to its end, or the kernel would answer the rest with a reset, and the client might not see the error.
            await self.loop.sock_recv(raw, min(length, _LONGEST_STARTUP))
            error = Refusal("28000", "SSL connection is required", "Use sslmode=require or connect with SSL enabled")
            await self.loop.sock_sendall(raw, error.packet())
            return None

    async def _peek(self, raw: socket.socket) -> bytes:
        """Return the next eight bytes, or fewer where they tell already, and leave them there."""
        await self._readable(raw)
        while True:
            head = raw.recv(8, socket.MSG_PEEK)
            if len(head) in (0, 8) or head[0] == _TLS_HANDSHAKE:
                return head
            await asyncio.sleep(0.01)  # a reader would fire at once: some bytes are there

    async def _readable(self, raw: socket.socket) -> None:
        ready = asyncio.Event()
        self.loop.add_reader(raw, ready.set)
        try:
            await ready.wait()
        finally:
            self.loop.remove_reader(raw)


async def main(certificate: str) -> None:
    """Serve as long as the control socket is open."""
    await Relay(certificate).obey(socket.socket(fileno=0))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
