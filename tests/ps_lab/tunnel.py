"""A way for psycopg through the edge's WebSocket: a Unix socket of the test's, and a loop that carries what goes over it."""

import asyncio
import ssl
import tempfile
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, Self, TypeVar

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as aio_connect
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection as SyncConnection
from websockets.sync.client import connect

from ps_lab import Lab
from tests.ps_lab.conftest import parameters

T = TypeVar("T")


def context(lab: Lab) -> ssl.SSLContext:
    """Return what a client needs that trusts the lab."""
    return ssl.create_default_context(cafile=str(parameters(lab)["sslrootcert"]))


def url(lab: Lab, query: str = "") -> str:
    """Return where the edge's WebSockets are."""
    return f"wss://localhost:{lab.edge.ports['https']}/v2{query}"


def dial(lab: Lab, query: str = "", **options: Any) -> AbstractContextManager[SyncConnection]:
    """Open a WebSocket to the edge, closed after the block."""
    opened: AbstractContextManager[SyncConnection] = connect(
        url(lab, query), ssl=context(lab), **{"proxy": None, "ping_interval": None, "close_timeout": 2, **options}
    )
    return opened


class Tunnel:
    """A folder with a socket that libpq takes as `host`, carried by a loop in a thread. It speaks for its last WebSocket.

    A loop, not threads: one thread that reads and one that writes the same TLS connection harm each other.
    """

    def __init__(self, lab: Lab, query: str = "") -> None:
        self._lab = lab
        self._url = url(lab, query)
        self._folder = tempfile.TemporaryDirectory(prefix="tunnel-", dir="/tmp")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._websocket: ClientConnection | None = None
        self.sent = 0
        """How many bytes have left for the edge, but for what waits to be sent."""

    def __enter__(self) -> Self:
        self._thread.start()
        path = str(Path(self._folder.name, ".s.PGSQL.5432"))
        self._server = self._run(asyncio.start_unix_server(self._carry, path)).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._run(self._end()).result(10)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)
            assert not self._thread.is_alive()
            self._loop.close()
            self._folder.cleanup()

    def parameters(self, suffix: str = "", **changes: Any) -> dict[str, Any]:
        """Return libpq's parameters."""
        way = {"host": self._folder.name, "port": 5432, "sslmode": "disable", "sslrootcert": ""}
        return {**parameters(self._lab, "direct", suffix), **way, **changes}

    @property
    def close_code(self) -> int | None:
        """By what code the WebSocket was closed, if it was."""
        return self._open.close_code

    def close(self) -> None:
        """Close the WebSocket by a Close, and wait for the server's."""
        self._run(self._open.close()).result(10)

    def vanish(self) -> None:
        """Drop the connection under the WebSocket."""
        self._loop.call_soon_threadsafe(self._open.transport.abort)

    def ping(self) -> Future[float]:
        """Send a ping; return what waits for its pong."""

        async def ping() -> float:
            return await (await self._open.ping())

        return self._run(ping())

    @property
    def _open(self) -> ClientConnection:
        assert self._websocket is not None
        return self._websocket

    def _run(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        options: dict[str, Any] = {"proxy": None, "ping_interval": None, "compression": None, "max_size": None, "max_queue": 4}
        with suppress(OSError, ConnectionClosed):
            async with aio_connect(self._url, ssl=context(self._lab), close_timeout=2, **options) as websocket:
                self._websocket = websocket
                back = asyncio.create_task(self._back(websocket, writer))
                try:
                    while part := await reader.read(65536):
                        await websocket.send(part)
                        self.sent += len(part)
                finally:
                    await websocket.close()
                    await back
        writer.close()
        self._tasks.discard(task)

    async def _back(self, websocket: ClientConnection, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, ConnectionClosed):
            async for part in websocket:
                assert isinstance(part, bytes)
                writer.write(part)
                await writer.drain()
        writer.close()  # which ends what reads from there, too

    async def _end(self) -> None:
        self._server.close()
        if self._websocket is not None:
            self._websocket.transport.abort()
        if self._tasks:
            await asyncio.wait(self._tasks)
