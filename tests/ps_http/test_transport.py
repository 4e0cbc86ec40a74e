"""Connections: kept alive, shared by threads, left to the parent by a fork, ended by time, and led by a proxy."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

import psycopg
import pytest

import ps_http
from ps_core import ConfigurationError
from ps_http import _transport
from ps_http._transport import proxy_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ps_lab import Lab
    from tests.ps_http.conftest import Driven


def test_kept_alive(ps_lab: Lab, drive: Callable[..., Driven]) -> None:
    """One connection serves all that comes one after the other, of all clients of an endpoint, errors included."""
    with ps_lab.round_trips() as counted:
        for client in (drive(ps_lab.url, bouncer="write-pool"), drive(ps_lab.url, bouncer="write-pool")):
            for _ in range(3):
                client.execute("select 1")
            with pytest.raises(psycopg.errors.DivisionByZero):
                client.execute("select 1/0")
    assert (counted.count, counted.startups) == (8, 1)


def test_not_kept_for_ever(ps_lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that was idle for long is not used again: nobody knows whether it is still there."""
    with ps_http.Client(ps_lab.url, bouncer="write-pool") as client, ps_lab.round_trips() as counted:
        client.execute("select 1")
        monkeypatch.setattr(_transport, "IDLE", 0.0)
        client.execute("select 1")
    assert counted.startups == 2


def test_threads(ps_lab: Lab) -> None:
    """Threads share a client, each with its own answers, and few connections are kept."""
    with ps_http.Client(ps_lab.url, bouncer="write-pool") as client:

        def ask(n: int) -> bool:
            return bool(client.execute("select %s, pg_sleep(0.01)", [n]).one()[0] == n)

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(ask, range(80)))
        assert 1 <= len(client._site.primary.transport._idle) <= 4


async def test_tasks(ps_lab: Lab) -> None:
    """So do tasks; one that is cancelled takes no answer of another's."""
    async with ps_http.AsyncClient(ps_lab.url, bouncer="write-pool") as client:

        async def ask(n: int) -> bool:
            return bool((await client.execute("select %s, pg_sleep(0.01)", [n])).one()[0] == n)

        assert all(await asyncio.gather(*map(ask, range(40))))
        task = asyncio.create_task(client.execute("select pg_sleep(30), 4711"))
        await asyncio.to_thread(
            ps_lab_wait, ps_lab, "select count(*) from pg_stat_activity where query like 'select pg_sleep(30)%'", 1
        )
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await ask(1)
        # Hanging up cancels.
        await asyncio.to_thread(
            ps_lab_wait,
            ps_lab,
            "select count(*) from pg_stat_activity where query like 'select pg_sleep(30)%' and state = 'active'",
            0,
        )


def ps_lab_wait(lab: Lab, query: str, count: int) -> None:
    from ps_lab.processes import wait_until

    wait_until(lambda: lab.sql(query) == [(count,)], query)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_fork(ps_lab: Lab) -> None:
    """A child has connections of its own, and leaves the parent's alone."""
    with ps_http.Client(ps_lab.url, bouncer="write-pool") as client:
        client.execute("select 1")
        with ps_lab.round_trips() as counted:
            child = os.fork()
            if not child:
                code = 1
                try:
                    code = 0 if client.execute("select 2").scalar() == 2 else 1
                finally:
                    os._exit(code)
            assert os.waitpid(child, 0) == (child, 0)
            assert client.execute("select 3").scalar() == 3
        assert (counted.count, counted.startups) == (2, 1)


# --- proxies ---


@pytest.mark.fast
@pytest.mark.parametrize(
    ("environ", "found"),
    [
        ({}, None),
        ({"HTTPS_PROXY": ""}, None),
        ({"HTTPS_PROXY": "http://proxy:3128"}, ("proxy", 3128, {})),
        ({"https_proxy": "proxy:3128/"}, ("proxy", 3128, {})),
        ({"HTTPS_PROXY": "http://proxy"}, ("proxy", 80, {})),
        ({"HTTPS_PROXY": "http://u%40:p%2F@proxy:1"}, ("proxy", 1, {"Proxy-Authorization": "Basic dUA6cC8="})),
        ({"HTTPS_PROXY": "http://proxy:1", "NO_PROXY": "a.example, .psdb.cloud"}, None),
        ({"HTTPS_PROXY": "http://proxy:1", "NO_PROXY": "b.psdb.cloud"}, ("proxy", 1, {})),
        ({"HTTPS_PROXY": "http://proxy:1", "no_proxy": "*"}, None),
        ({"HTTP_PROXY": "http://proxy:1"}, None),
    ],
)
def test_proxies(environ: dict[str, str], found: object) -> None:
    """`HTTPS_PROXY` and `NO_PROXY` say which."""
    assert proxy_for("a.psdb.cloud", environ) == found


@pytest.mark.fast
@pytest.mark.parametrize("proxy", ["socks5://s3cret@proxy:1", "https://proxy:1", "http://", "http://proxy:x"])
def test_bad_proxies(proxy: str) -> None:
    """What cannot be used is refused, and not shown: it may hold a password."""
    with pytest.raises(ConfigurationError, match="HTTPS_PROXY") as caught:
        proxy_for("a.psdb.cloud", {"HTTPS_PROXY": proxy})
    assert "s3cret" not in str(caught.value)


class Proxy:
    """An HTTP proxy that tunnels, or refuses."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.refuses = False
        self.heads: list[bytes] = []
        self._ends: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._serve)]
        self._threads[0].start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()
        for end in self._ends:
            end.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._ends.append(client)
            head = b""
            while b"\r\n\r\n" not in head:
                head += client.recv(4096)
            self.heads.append(head)
            if self.refuses:
                client.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
                client.close()
                continue
            host, _, port = head.split()[1].decode().rpartition(":")
            server = socket.create_connection((host, int(port)))
            self._ends.append(server)
            client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            for pair in ((client, server), (server, client)):
                self._threads.append(threading.Thread(target=self._copy, args=pair))
                self._threads[-1].start()

    @staticmethod
    def _copy(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy that the environment names."""
    proxy = Proxy()
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:s3cret@127.0.0.1:{proxy.port}")
    yield proxy
    proxy.close()


def test_through_a_proxy(ps_lab: Lab, proxy: Proxy, drive: Callable[..., Driven]) -> None:
    """Requests go through a tunnel, in which the certificate is checked as ever; a proxy that refuses says so."""
    url = ps_lab.create_role("http_proxied")
    try:
        client = drive(url, bouncer="write-pool", retry_timeout=0)
        assert client.execute("select 1").scalar() == 1
        assert proxy.heads[0].startswith(f"CONNECT localhost:{ps_lab.edge.ports['https']} ".encode())
        assert b"Basic bWU6czNjcmV0" in proxy.heads[0]
        client._run(client.client.close())
        proxy.refuses = True
        with pytest.raises(ps_http.HttpError) as caught:
            client.execute("select 1")
        assert "s3cret" not in str(caught.value)
        client._run(client.client.close())
    finally:
        ps_lab.drop_role("http_proxied")
