"""Connections that a bridge in a thread of this process carries, and how it is seen what carries one."""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
import threading
from contextlib import closing, contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ps_core._bridge import process
from ps_core._websocket import local_parameters, target_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ps_core import Topology


@contextmanager
def bridge_in_a_thread(topology: Topology, tick: float = 2.5) -> Iterator[tuple[dict[str, Any], asyncio.AbstractEventLoop]]:
    """Carry connections to the direct endpoint; give libpq's parameters for it, and the bridge's event loop.

    What blocks in libpq, with Python's lock, would stop it for good.
    """
    endpoint = topology.direct
    target = target_of(endpoint.parameters(), endpoint.https_port, {})
    found: list[asyncio.AbstractEventLoop] = []
    ready, stop = threading.Event(), threading.Event()
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:

        async def carry() -> None:
            bridge = process.Bridge(tick)
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(f"{folder}/.s.PGSQL.1")
            listener.listen()
            await bridge.listen(listener, {**asdict(target), "url": target.url})
            found.append(asyncio.get_running_loop())
            ticking = asyncio.create_task(bridge._tick())
            ready.set()
            await asyncio.to_thread(stop.wait)
            ticking.cancel()
            await bridge.close()

        thread = threading.Thread(target=lambda: asyncio.run(carry()))
        thread.start()
        assert ready.wait(10)
        try:
            yield local_parameters(endpoint.parameters(), folder=folder, number=1, user=None), found[0]
        finally:
            stop.set()
            thread.join()


def socket_family(connection: Any) -> socket.AddressFamily:
    """Return what kind of socket libpq has under a connection of psycopg's."""
    with closing(socket.socket(fileno=os.dup(connection.fileno()))) as under:
        return under.family
