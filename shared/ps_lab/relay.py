"""The relay: the process of the edge.

    python -m ps_lab.relay CERTIFICATE

One asyncio server with three ports. Each terminates TLS. On the direct port and the pooled port a `Client` reads the startup
message, finds the way by port and by the user name's suffix (`routes`), and then relays bytes; "https" is for `https`. The relay
counts the clients' round trips, and cuts, hangs, delays, refuses on demand. `ps_lab.edge` tells it what to do by a socket, its
standard input: lines of JSON, [verb, argument, ...], each answered by a line.

It is a process of its own because a client in the same one could hold Python's lock while libpq waits for the relay's answer, as
psycopg's `Connection.cancel` does.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
import sys
from collections import Counter, deque
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from ps_lab.backends import Backends
from ps_lab.client import CANCEL_REQUEST, GSS_REQUEST, LONGEST_STARTUP, SSL_REQUEST, Client
from ps_lab.https import HttpsConnection
from ps_lab.routes import Refusal, Routes
from ps_lab.sql_over_http import Limits

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from ps_lab.routes import Listener, Path, Route

__all__ = ["Relay"]

_TLS_HANDSHAKE: Final = 0x16
_WELCOME_TIMEOUT: Final = 60.0
"""Seconds that a client has for what comes before its startup message: PostgreSQL's authentication_timeout."""


class Relay:
    """The server. Its methods `do_*` are the verbs of the control socket."""

    def __init__(self, certificate: str) -> None:
        self.routes: Routes
        self.ports: dict[Listener, int] = {}
        self.clients: set[Client | HttpsConnection] = set()
        self.keys: dict[bytes, Route] = {}
        """Where connections went, by the key that their cancel requests carry."""
        self.refusal: Refusal | None = None
        self.delay_seconds = 0.0
        self._answer_cuts: list[tuple[Path | None, bytes, int]] = []
        self.backends = Backends()
        self.limits = Limits()
        self._recent: deque[float] = deque()  # when requests of `POST /sql` came
        self.round_trips: Counter[str] = Counter()
        """By path."""
        self.startups = 0
        self.loop = asyncio.get_running_loop()
        self.resumed = asyncio.Event()
        self._hung: set[str | None] = set()
        self._tls = _context(certificate, "postgresql")
        self._https = _context(certificate, "http/1.1")
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

    async def do_listen(self) -> dict[Listener, int]:
        """Listen on free ports, and return them."""
        names: tuple[Listener, ...] = ("direct", "pooled", "https")
        for name in names:
            listener = socket.create_server(("127.0.0.1", 0), backlog=512)
            listener.setblocking(False)
            self.run(self._accept(listener, name))
            self.ports[name] = listener.getsockname()[1]
        return self.ports

    async def do_route(self, routes: dict[str, Any]) -> None:
        """Send new connections these ways. Direct ones to a replica that was promoted are broken, as PlanetScale documents."""
        self.routes = Routes(**routes)
        self.backends.drop()
        for client in self._on("replica"):
            if isinstance(client, Client) and client.route is not None and client.route.socket == self.routes.primary:
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
        self.backends.drop(path)
        victims = self._on(path)
        for client in victims:
            client.abort()
        for client in victims:
            await client.lost.wait()

    async def do_cut_answers(self, path: Path | None, containing: str, times: int) -> None:
        """Break connections when the server has answered."""
        self._answer_cuts.append((path, containing.encode(), times))

    def takes_answer(self, client: Client | HttpsConnection, data: bytes) -> bool:
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

    async def do_limit_sql(self, limits: dict[str, Any]) -> None:
        """Set limits of `POST /sql`."""
        self.limits = replace(self.limits, **limits)

    async def do_resume(self) -> None:
        """End all faults."""
        self.delay_seconds, self.refusal, self.limits = 0.0, None, Limits()
        self._answer_cuts.clear()
        self._hung.clear()
        self.resumed.set()
        for client in self.clients:
            client.set_hung(False)

    def admits(self) -> bool:
        """Return whether a request of `POST /sql` is within the rate, and count it then."""
        now = self.loop.time()
        while self._recent and self._recent[0] <= now - 1:
            self._recent.popleft()
        if self.limits.per_second is not None and len(self._recent) >= self.limits.per_second:
            return False
        self._recent.append(now)
        return True

    def hangs(self, path: Path | None = None) -> bool:
        """Return whether a path hangs."""
        return None in self._hung or path in self._hung

    def _on(self, path: Path | None) -> list[Client | HttpsConnection]:
        return [client for client in self.clients if path is None or (client.route is not None and client.route.path == path)]

    def run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a task."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _accept(self, listener: socket.socket, name: Listener) -> None:
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
            self.run(self._welcome(raw, name))

    async def _welcome(self, raw: socket.socket, name: Listener) -> None:
        """Read what comes before TLS. It is peeked at: after a direct negotiation the handshake is not ours to read."""
        handed_over = False
        try:
            async with asyncio.timeout(_WELCOME_TIMEOUT):
                tls = True if name == "https" else await self._negotiate(raw)
            if tls is not None:
                handed_over = True
                context = self._https if name == "https" else self._tls
                # An idle client does not answer a close_notify; a real edge does not wait for that.
                options: dict[str, Any] = {"ssl": context, "ssl_shutdown_timeout": 0.1} if tls else {}
                await self.loop.connect_accepted_socket(lambda: self._protocol(name), raw, **options)
        except (OSError, struct.error):  # the client went away, or speaks another protocol
            pass
        finally:
            if not handed_over:
                raw.close()

    def _protocol(self, name: Listener) -> asyncio.Protocol:
        return HttpsConnection(self) if name == "https" else Client(self, name)

    async def _negotiate(self, raw: socket.socket) -> bool | None:
        """Return whether TLS is next; None if there is nothing more to do."""
        while True:
            head = await self._peek(raw)
            if head[:1] == bytes([_TLS_HANDSHAKE]):
                return True
            length, code = struct.unpack("!II", head)
            if code == CANCEL_REQUEST:
                return False
            if code == SSL_REQUEST:
                await self.loop.sock_recv(raw, 8)
                await self.loop.sock_sendall(raw, b"S")
                return True
            if code == GSS_REQUEST:
                await self.loop.sock_recv(raw, 8)
                await self.loop.sock_sendall(raw, b"N")
                continue
            # Read to its end, or the kernel would answer the rest with a reset, and the client might not see the error.
            await self.loop.sock_recv(raw, min(length, LONGEST_STARTUP))
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


def _context(certificate: str, protocol: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    context.set_alpn_protocols([protocol])
    return context


async def main(certificate: str) -> None:
    """Serve as long as the control socket is open."""
    await Relay(certificate).obey(socket.socket(fileno=0))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
