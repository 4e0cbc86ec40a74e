"""Packets are dropped, and nobody says so: a network of its own between the applications and the edge, whose way back is cut.

It is a network namespace, which needs root and the program `ip`. Where either is missing, that test is skipped, and
a pooler that is stopped stands for it: it takes packets and does not answer.
"""

import asyncio
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, suppress
from functools import partial

import pytest

from ps_core.context import deadline
from ps_core.errors import DeadlineExceeded
from ps_lab import Lab
from tests.adversity.applications import Application, at_hand, make_table
from tests.adversity.harness import PATHS, Doing, Paths
from tests.adversity.matrix import Matrix

_NEWNET = 0x40000000
NEAR, FAR = "10.213.77.1", "10.213.77.2"
DEVICE = "ps-hole"


def run(*command: str) -> None:
    """Run a command of the network, in the namespace of this thread."""
    subprocess.run(command, check=True, capture_output=True)


def unshare() -> None:
    """Give this thread a network of its own."""
    if ctypes.CDLL(None, use_errno=True).unshare(_NEWNET):
        raise OSError(ctypes.get_errno(), "no network namespace")


class FarSide:
    """The other end of a cable: it forwards what comes to the edge's ports to the edge."""

    def __init__(self, lab: Lab, stack: ExitStack) -> None:
        # The namespace lives as long as this thread and its sockets; the cable goes with it.
        self._thread = ThreadPoolExecutor(1, initializer=unshare)
        stack.callback(self._thread.shutdown)
        there = self._thread.submit(threading.get_native_id).result()
        run("ip", "link", "add", DEVICE, "type", "veth", "peer", "name", f"{DEVICE}-far")
        stack.callback(run, "ip", "link", "delete", DEVICE)
        run("ip", "link", "set", f"{DEVICE}-far", "netns", str(there))
        run("ip", "address", "add", f"{NEAR}/30", "dev", DEVICE)
        run("ip", "link", "set", DEVICE, "up")
        self._run("ip", "address", "add", f"{FAR}/30", "dev", f"{DEVICE}-far")
        self._run("ip", "link", "set", f"{DEVICE}-far", "up")
        listeners = [self._thread.submit(socket.create_server, (FAR, port)).result() for port in lab.edge.ports.values()]
        stop = threading.Event()
        forwarder = threading.Thread(target=lambda: asyncio.run(forward(listeners, stop)))
        forwarder.start()
        stack.callback(forwarder.join)
        stack.callback(stop.set)
        stack.callback(self.heal)

    def _run(self, *command: str) -> None:
        self._thread.submit(run, *command).result()

    def swallow(self) -> None:
        """Let nothing come back."""
        self._run("ip", "route", "add", "blackhole", f"{NEAR}/32")

    def heal(self) -> None:
        """Let what was sent come back with the next try of the other side's."""
        with suppress(subprocess.CalledProcessError):  # it is whole
            self._run("ip", "route", "delete", "blackhole", f"{NEAR}/32")


async def forward(listeners: list[socket.socket], stop: threading.Event) -> None:
    """Forward connections of each listener to the same port of this machine."""
    tasks: set[asyncio.Task[None]] = set()
    writers: list[asyncio.StreamWriter] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def accepted(port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        there, back = await asyncio.open_connection("127.0.0.1", port)
        writers.append(back)
        for task in (asyncio.create_task(pump(reader, back)), asyncio.create_task(pump(there, writer))):
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    async with AsyncExitStack() as stack:
        for listener in listeners:
            server = await asyncio.start_server(partial(accepted, listener.getsockname()[1]), sock=listener)
            stack.callback(server.close)
        await asyncio.to_thread(stop.wait)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for writer in writers:
        writer.close()


@pytest.fixture
def far_side(ps_lab: Lab) -> Iterator[FarSide]:
    """The cable, where this machine permits one."""
    if os.geteuid() or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    with ExitStack() as stack:
        try:
            far_side = FarSide(ps_lab, stack)
        except (OSError, subprocess.CalledProcessError) as exc:
            pytest.skip(f"no network namespace here: {exc}")
        yield far_side


def far_url(lab: Lab, **params: object) -> str:
    """Return the application's URL by way of the cable."""
    return f"{lab.url}&hostaddr={FAR}" + "".join(f"&{name}={value}" for name, value in params.items())


@pytest.mark.tcp
def test_dropped_packets(ps_lab: Lab, matrix: Matrix, far_side: FarSide) -> None:
    """A deadline ends the wait; without one, the system notices, and the read goes on when packets come through again."""
    make_table(ps_lab)
    with at_hand(far_url(ps_lab, tcp_user_timeout=500)) as applications:
        for application in applications:
            assert application.execute("SELECT 1", "primary") == [1]
        far_side.swallow()
        for application in applications:
            with deadline("300ms"), pytest.raises(DeadlineExceeded):
                application.execute("SELECT 1", "primary")
        works = [Doing(answer, application) for application in applications]
        with pytest.raises(AssertionError):
            works[0].end(0.5)
        far_side.heal()
        assert [work.end(20) for work in works] == [[1]] * len(works)
    matrix.sees("Packets are dropped", "the end of the deadline; without one, a wait until they come through again")


def answer(application: Application) -> list[int]:
    """Read in a thread, and leave no connection there."""
    try:
        return application.execute("SELECT 1", "primary")
    finally:
        application.renew()


@pytest.mark.tcp
def test_system_timeouts(ps_lab: Lab, paths: Paths) -> None:
    """Every connection to the edge has the system notice within some ten seconds, sending or waiting."""
    for path in PATHS:
        conn = paths.ours(path)
        with socket.socket(fileno=os.dup(conn.pgconn.socket)) as sock:
            options = (
                socket.SO_KEEPALIVE,
                socket.TCP_USER_TIMEOUT,
                socket.TCP_KEEPIDLE,
                socket.TCP_KEEPINTVL,
                socket.TCP_KEEPCNT,
            )
            levels = (socket.SOL_SOCKET, *[socket.IPPROTO_TCP] * 4)
            assert [sock.getsockopt(*pair) for pair in zip(levels, options, strict=True)] == [1, 10_000, 5, 2, 3]


def test_stopped_pooler(ps_lab: Lab, matrix: Matrix, applications: list[Application]) -> None:
    """A pooler that is stopped answers nobody, while its kernel takes what is sent: only a deadline ends that wait."""
    for application in applications:
        application.execute("SELECT 1", "primary")
    bouncer = ps_lab.bouncers["write-pool"]
    bouncer.signal(signal.SIGSTOP)
    try:
        for application in applications:
            with deadline("300ms"), pytest.raises(DeadlineExceeded):
                application.execute("SELECT 1", "primary")
    finally:
        bouncer.signal(signal.SIGCONT)
    for application in applications:
        assert application.execute("SELECT 1", "primary") == [1]
    matrix.sees("A pooler hangs (SIGSTOP)", "the end of the deadline; without one, a wait until it goes on")
