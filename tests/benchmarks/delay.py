"""A way that takes time: a TCP proxy in a process of its own, which delays what passes, and counts who waited for whom.

It is below TLS, so that handshakes take their time, too. TCP's own cannot be delayed by what accepts it.
"""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from queue import SimpleQueue
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.connection import Connection

__all__ = ["Counted", "DelayingProxy"]


@dataclass(frozen=True, slots=True)
class Counted:
    """What passed since the last `begin`, by connections that were made since then."""

    connections: int
    """Each took a round trip more, of TCP's handshake."""
    round_trips: int
    """How often a client sent something after it had got something, or as the first."""


class DelayingProxy:
    """Leads to ports of this machine."""

    def __init__(self, ports: Sequence[int]) -> None:
        """Lead to these ports; `ports` are those that lead there, in the same order."""
        processes = get_context("spawn")
        self._pipe, theirs = processes.Pipe()
        self._process = processes.Process(target=_serve, args=(theirs, tuple(ports)), daemon=True)
        self._process.start()
        theirs.close()
        self.ports: tuple[int, ...] = self._pipe.recv()

    def begin(self, seconds: float) -> None:
        """Begin to count, and let a round trip take so long: half of it each way."""
        self._pipe.send(seconds)
        self._pipe.recv()

    def counted(self) -> Counted:
        """Return what passed since then."""
        self._pipe.send(None)
        found: Counted = self._pipe.recv()
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.join()


class _Passage:
    """One connection, with two threads for each direction: one would keep what follows waiting twice."""

    def __init__(self, client: socket.socket, server: socket.socket, one_way: float) -> None:
        self.round_trips = 0
        self._waits = True
        self._one_way = one_way
        for source, sink in ((client, server), (server, client)):
            source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            queue: SimpleQueue[tuple[float, bytes]] = SimpleQueue()
            threading.Thread(target=self._read, args=(source, queue, source is client), daemon=True).start()
            threading.Thread(target=self._write, args=(sink, queue, sink is client), daemon=True).start()

    def _read(self, source: socket.socket, queue: SimpleQueue[tuple[float, bytes]], is_client: bool) -> None:
        data = b"-"
        while data:
            try:
                data = source.recv(1 << 16)
            except OSError:
                data = b""
            due = time.monotonic() + self._one_way
            if is_client and data and self._waits:
                self._waits = False
                self.round_trips += 1
            queue.put((due, data))

    def _write(self, sink: socket.socket, queue: SimpleQueue[tuple[float, bytes]], is_client: bool) -> None:
        data = b"-"
        while data:
            due, data = queue.get()
            time.sleep(max(0.0, due - time.monotonic()))
            if is_client:
                self._waits = True
            with suppress(OSError):  # the other side is gone
                sink.sendall(data) if data else sink.shutdown(socket.SHUT_WR)


def _serve(pipe: Connection, targets: Sequence[int]) -> None:
    passages: list[_Passage] = []
    one_way = 0.0

    def accept(listener: socket.socket, target: int) -> None:
        while True:
            client, _ = listener.accept()
            passages.append(_Passage(client, socket.create_connection(("localhost", target)), one_way))

    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in targets]
    for listener, target in zip(listeners, targets, strict=True):
        threading.Thread(target=accept, args=(listener, target), daemon=True).start()
    pipe.send(tuple(listener.getsockname()[1] for listener in listeners))
    with suppress(EOFError):
        while True:
            asked = pipe.recv()
            if asked is None:
                pipe.send(Counted(len(passages), sum(passage.round_trips for passage in passages)))
            else:
                passages.clear()
                one_way = asked / 2
                pipe.send(None)
