"""A way for psycopg through the edge's WebSocket: a Unix socket of the test's, and two threads for each connection."""

import os
import socket
import ssl
import tempfile
import threading
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from typing import Any, Self

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from ps_lab import Lab
from tests.ps_lab.conftest import parameters


def context(lab: Lab) -> ssl.SSLContext:
    """Return what a client needs that trusts the lab."""
    return ssl.create_default_context(cafile=str(parameters(lab)["sslrootcert"]))


def dial(lab: Lab, query: str = "", **options: Any) -> AbstractContextManager[ClientConnection]:
    """Open a WebSocket to the edge, closed after the block."""
    url = f"wss://localhost:{lab.edge.ports['https']}/v2{query}"
    return connect(url, ssl=context(lab), **{"proxy": None, "ping_interval": None, "close_timeout": 2, **options})


class Tunnel:
    """A folder with a socket that libpq takes as `host`; `sent` is how many bytes have left for the edge."""

    def __init__(self, lab: Lab, query: str = "") -> None:
        self._lab = lab
        self._query = query
        self._folder = tempfile.TemporaryDirectory(prefix="tunnel-", dir="/tmp")
        self._listener = socket.socket(socket.AF_UNIX)
        self._stack = ExitStack()
        self._threads: list[threading.Thread] = []
        self.sockets: list[ClientConnection] = []
        self.sent = 0

    def __enter__(self) -> Self:
        self._listener.bind(str(Path(self._folder.name, ".s.PGSQL.5432")))
        self._listener.listen()
        self._run(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for far in self.sockets:  # websockets' thread that reads does not notice a close while it has a part of a TLS record
            with suppress(OSError), socket.socket(fileno=os.dup(far.socket.fileno())) as raw:
                raw.shutdown(socket.SHUT_RDWR)
        self._stack.close()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()
        self._folder.cleanup()

    def parameters(self, suffix: str = "", **changes: Any) -> dict[str, Any]:
        """Return libpq's parameters."""
        way = {"host": self._folder.name, "port": 5432, "sslmode": "disable", "sslrootcert": ""}
        return {**parameters(self._lab, "direct", suffix), **way, **changes}

    def _run(self, work: Any, *args: object) -> None:
        thread = threading.Thread(target=work, args=args)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = self._stack.enter_context(dial(self._lab, self._query, compression=None, max_size=None, max_queue=4))
                self.sockets.append(far)
                self._run(self._forth, near, far)
                self._run(self._back, near, far)

    def _forth(self, near: socket.socket, far: ClientConnection) -> None:
        with suppress(OSError, ConnectionClosed):
            while part := near.recv(65536):
                far.send(part)
                self.sent += len(part)
        far.close()

    def _back(self, near: socket.socket, far: ClientConnection) -> None:
        with near:
            with suppress(OSError, ConnectionClosed):
                for part in far:
                    assert isinstance(part, bytes)
                    near.sendall(part)
            with suppress(OSError):
                near.shutdown(socket.SHUT_RDWR)  # the other thread may be waiting for what it reads
