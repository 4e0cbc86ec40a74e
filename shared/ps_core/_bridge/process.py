"""The process that carries connections between Unix sockets and WebSockets.

`ps_core._bridge.start` starts it, and hands it listening sockets, each with where its connections lead. For each connection that
libpq makes there, it dials one WebSocket, and then carries bytes. It ends when the process that started it has ended, and takes
its folder with it.

It imports nothing of ours, not even the package that it lies in: it is to start fast. It is a process of its own because a thread
could be stopped by what it serves: libpq's blocking calls hold Python's lock while they wait for the bytes that the thread would
carry (`psycopg.Connection.cancel`, for one).
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import resource
import shutil
import signal
import socket
import ssl
import struct
import sys
import termios
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.request import getproxies, proxy_bypass

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import (
    ConnectionClosed,
    InvalidHandshake,
    InvalidProxy,
    InvalidProxyStatus,
    InvalidStatus,
    ProxyError,
    WebSocketException,
)

if TYPE_CHECKING:
    from collections.abc import Coroutine

__all__ = ["Bridge", "run"]

_CHUNK: Final = 64 * 1024
"""Bytes that are read at once."""
_TICK: Final = 2.5
"""Seconds between two looks at who is silent."""
_PING_AFTER: Final = 2
_LOST_AFTER: Final = 5
"""Ticks of silence. Together some 12 s, as with the keepalives of TCP."""
_CLOSING: Final = 1.0
"""Seconds for a goodbye, to the server and of this process."""


_ROUNDS: Final = 20
"""Rounds of the event loop, in which what can be read is read and passed on; the end of a WebSocket takes some eight."""


_TRY_AGAIN: Final = (408, 425, 429, 500, 502, 503, 504)
"""Statuses of HTTP after which another try may succeed (RFC 9110; 425: RFC 8470, 429: RFC 6585)."""


class _NotReached(Exception):
    """Why there is no WebSocket, for the client to read."""


class _Silence:
    """How long nothing was heard of a server.

    It is counted in ticks rather than in seconds: a process that was frozen and thaws has missed no tick, and asks before it
    takes a connection for lost.
    """

    def __init__(self) -> None:
        self.ticks = 0
        self.listening = True
        """Whether bytes of the server's would be seen: not while the client takes none."""

    def heard(self) -> None:
        self.ticks = 0


class _Carried:
    """One connection of libpq's, and its WebSocket."""

    def __init__(self, target: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._target = target
        self._reader = reader
        self._writer = writer
        self._server: ClientConnection | None = None
        self._silence = _Silence()
        self._lost = asyncio.Event()
        self._asking: asyncio.Task[None] | None = None
        self._sent = self._taken = 0
        """Bytes: what was sent, and what of it the other side had taken at the last tick."""

    async def run(self) -> None:
        """Carry until one of both sides is closed."""
        try:
            await self._connect()
        except _NotReached as exc:
            self._writer.write(_fatal(str(exc)))
        except (OSError, ConnectionClosed):  # one side went away in the first moment
            pass
        finally:
            if self._asking is not None:
                self._asking.cancel()
            self._writer.close()  # first: a goodbye to the server takes its time
            if self._server is not None:
                try:
                    if not self._lost.is_set():
                        await self._server.close()
                finally:
                    self._server.transport.abort()

    async def _connect(self) -> None:
        first = await self._reader.read(_CHUNK)  # a startup message, or a cancel request; then the client waits
        if not first:
            return
        next_, dialling = _tasks(self._reader.read(_CHUNK), _dial(self._target))
        try:
            await asyncio.wait((next_, dialling), return_when=asyncio.FIRST_COMPLETED)
            if next_.done() and not next_.result():
                return  # the client has given up
            self._server = await dialling
            await self._server.send(first)
            ways = _tasks(self._up(self._server, next_), self._down(self._server), self._lost.wait())
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                await _end(ways)
        finally:
            await _end((next_, dialling))
            if self._server is None and not dialling.cancelled() and dialling.exception() is None:
                self._server = dialling.result()  # in the moment in which the client gave up

    async def _up(self, server: ClientConnection, next_: asyncio.Task[bytes]) -> None:
        data = await next_
        while data:
            self._sent += len(data)
            await server.send(data)
            data = await self._reader.read(_CHUNK)

    async def _down(self, server: ClientConnection) -> None:
        while True:
            self._silence.listening = True
            data = await server.recv(decode=False)
            self._silence.heard()
            self._silence.listening = False
            self._writer.write(data)
            await self._writer.drain()

    def tick(self) -> None:
        """Ask a server that is silent for a sign of life, and give up one that gives none."""
        if self._server is None or not self._silence.listening:
            return
        self._silence.ticks += 1
        # On a slow line a ping waits behind what was sent before it; that this goes on is a sign of life, too.
        waiting = _not_taken(self._server.transport)
        before, self._taken = self._taken, self._sent - waiting
        if waiting and self._taken > before:
            self._silence.heard()
        if self._silence.ticks == _PING_AFTER:
            self._asking = asyncio.create_task(self._ask(self._server))
        elif self._silence.ticks >= _LOST_AFTER:
            self._lost.set()

    async def _ask(self, server: ClientConnection) -> None:
        with suppress(ConnectionClosed):
            answer = await server.ping()  # waits, too, where what was sent before is not taken
            await answer
            self._silence.heard()


def _not_taken(transport: asyncio.WriteTransport) -> int:
    """Return how many bytes were written that the other side has not acknowledged; on macOS only those that wait here."""
    in_kernel = bytearray(4)
    with suppress(OSError, ValueError):  # it may be closed by now
        fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, in_kernel)
    return transport.get_write_buffer_size() + int.from_bytes(in_kernel, sys.byteorder)


def _tasks(*work: Coroutine[Any, Any, Any]) -> tuple[asyncio.Task[Any], ...]:
    return tuple(asyncio.create_task(one) for one in work)


async def _end(tasks: tuple[asyncio.Task[Any], ...]) -> None:
    """End tasks, and raise what one of them failed with, but for the end of a connection."""
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, Exception) and not isinstance(result, (OSError, ConnectionClosed, _NotReached)):
            raise result


class _Connect(connect):
    """Dials, and follows no redirect: who is behind it could ask for the password."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


async def _dial(target: dict[str, Any]) -> ClientConnection:
    where = f"{target['host']}:{target['https_port']}"
    try:
        return await _Connect(
            target["url"],
            ssl=_tls(target["authorities"]),
            compression=None,
            max_size=None,
            open_timeout=None,  # the client's connect_timeout bounds it: who goes away ends the dialling
            close_timeout=_CLOSING,
            ping_interval=None,
            user_agent_header="ps-postgres",
            happy_eyeballs_delay=0.25,
        )
    except (ssl.SSLCertVerificationError, FileNotFoundError) as exc:
        raise _NotReached(f"the certificate of {where} cannot be verified: {exc}") from exc
    except socket.gaierror as exc:
        name = f'"{target["host"]}"{_or_proxy(target)}'
        raise _NotReached(f"could not translate host name {name} to address: {exc.strerror}") from exc
    except InvalidStatus as exc:
        status = exc.response.status_code
        kind = "cannot answer now" if status in _TRY_AGAIN else "is no PostgreSQL WebSocket"
        raise _NotReached(f"{target['url']} {kind}: HTTP status {status}") from exc
    except InvalidProxyStatus as exc:
        status = exc.response.status_code
        kind = "cannot connect now" if status in _TRY_AGAIN else "refused"
        raise _NotReached(f"the proxy on the way to {where} {kind}: HTTP status {status}") from exc
    except (InvalidProxy, ProxyError, ValueError) as exc:  # its text may hold the proxy's password, or a part of it
        raise _NotReached(f"the proxy on the way to {where} refused, or is none: {type(exc).__name__}") from exc
    except ImportError as exc:  # a SOCKS proxy needs a library of its own
        raise _NotReached(f"the proxy on the way to {where} refused, or is none: {exc}") from exc
    except (OSError, EOFError, InvalidHandshake, WebSocketException) as exc:
        raise _NotReached(f"could not connect to {where}{_or_proxy(target)}: {exc}") from exc


def _or_proxy(target: dict[str, Any]) -> str:
    """Return what a message adds where the way leads through a proxy, which may be what was not reached."""
    through = {"wss", "socks", "https"} & getproxies().keys() and not proxy_bypass(f"{target['host']}:{target['https_port']}")
    return " (or the proxy on the way to it)" if through else ""


_contexts: Final[dict[tuple[object, ...], ssl.SSLContext]] = {}


def _tls(authorities: str | None) -> ssl.SSLContext:
    """Return what checks the server's certificate and name; a file that has changed is read again."""
    key: tuple[object, ...] = (None,)
    if authorities is not None:
        found = Path(authorities).stat()
        key = authorities, found.st_mtime_ns, found.st_size
    if key not in _contexts:
        _contexts.clear()
        _contexts[key] = ssl.create_default_context(cafile=authorities)
        _contexts[key].set_alpn_protocols(["http/1.1"])
    return _contexts[key]


def _fatal(message: str) -> bytes:
    """Return an ErrorResponse, as a server would send it to a client that it does not let in."""
    fields = {"S": "FATAL", "V": "FATAL", "C": "08001", "M": message}
    body = b"".join(f"{kind}{text}\0".encode() for kind, text in fields.items()) + b"\0"
    return b"E" + struct.pack("!I", len(body) + 4) + body


class Bridge:
    """All connections, and the sockets where they are made."""

    def __init__(self, tick: float = _TICK) -> None:
        self._tick_seconds = tick
        self._carried: dict[asyncio.Task[None], _Carried] = {}
        self._servers: list[asyncio.Server] = []

    async def obey(self, owner: socket.socket) -> None:
        """Listen on each socket that comes from the process that started this one, until it has ended."""
        loop = asyncio.get_running_loop()
        ended, lines, sockets = asyncio.Event(), bytearray(), []
        owner.setblocking(False)
        tasks = {loop.create_task(self._tick())}

        def read() -> None:
            try:
                data, descriptors, _, _ = socket.recv_fds(owner, _CHUNK, 64)
            except BlockingIOError:
                return
            except OSError:
                data, descriptors = b"", []
            sockets.extend(descriptors)
            lines.extend(data)
            while b"\n" in lines:
                line, _, rest = bytes(lines).partition(b"\n")
                lines[:] = rest
                listener, target = socket.socket(fileno=sockets.pop(0)), json.loads(line)
                task = loop.create_task(self.listen(listener, target) if target else self.settle(listener))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            if not data:
                loop.remove_reader(owner)
                ended.set()

        loop.add_reader(owner, read)
        await ended.wait()
        # What the owner sent last is on its way.
        if self._carried:
            await asyncio.wait(self._carried, timeout=_CLOSING)
        await self.close()

    async def listen(self, listener: socket.socket, target: dict[str, Any]) -> None:
        """Carry what connects to `listener` to `target`, which is a `Target` with its `url`."""

        async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._carried[task] = carried = _Carried(target, reader, writer)
            try:
                await carried.run()
            finally:
                del self._carried[task]

        self._servers.append(await asyncio.start_unix_server(carry, sock=listener, limit=_CHUNK))

    async def close(self) -> None:
        """Take no more connections, and end the existing ones."""
        for server in self._servers:
            server.close()
        for task in list(self._carried):
            task.cancel()
        await asyncio.gather(*self._carried, return_exceptions=True)

    async def settle(self, listener: socket.socket) -> None:
        """Close what connects to `listener` when all that the servers had sent before, ends included, is with the clients."""

        async def close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            for _round in range(_ROUNDS):
                await asyncio.sleep(0)
            writer.close()

        self._servers.append(await asyncio.start_unix_server(close, sock=listener))

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(self._tick_seconds)
            for carried in list(self._carried.values()):
                carried.tick()


def run(folder: str) -> None:
    """Carry as long as the process that started this one lives."""
    # A supervisor's signal to all processes of a service is for the one that started this one, which still has work to end.
    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    # What the program lets its children inherit, as a server's listening sockets, is not for this one.
    with suppress(OSError):
        for descriptor in [int(path.name) for path in Path("/dev/fd").iterdir()]:
            if descriptor > 2:
                with suppress(OSError):  # the one of the listing itself
                    os.close(descriptor)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # two for each connection; macOS takes no infinity
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        asyncio.run(Bridge().obey(socket.socket(fileno=0)))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
