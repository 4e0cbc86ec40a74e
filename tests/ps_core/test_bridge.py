"""Connections over a WebSocket, and the process that carries them: what it survives, what it leaves, and what it says."""

import asyncio
import os
import re
import resource
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

import ps_core
from ps_core import ConfigurationError, Kind, Ran, Topology, classify, deadline
from ps_core._bridge import start
from ps_core._websocket import target_of
from ps_core.context import use_token
from ps_lab import Lab
from ps_lab.processes import wait_until
from tests.carried import bridge_in_a_thread, socket_family
from tests.ps_core.test_healing import count

if TYPE_CHECKING:
    from ps_lab.routes import Path as Side

HERE = Path(__file__).parent


def over_websocket(lab: Lab, **settings: Any) -> Topology:
    """Return the lab's topology over its WebSocket."""
    settings = {"transport": "websocket", "bouncer": "write-pool", "replica_bouncer": "read-pool", **settings}
    return Topology.from_url(lab.url, **settings)


@pytest.fixture
def topology(ps_lab: Lab) -> Topology:
    return over_websocket(ps_lab)


@pytest.fixture
def bridge(monkeypatch: pytest.MonkeyPatch) -> Iterator[start._Bridge]:
    """A process that carries for this test alone, and is gone with it."""
    own = start._Bridge()
    monkeypatch.setattr(start, "_bridge", own)
    yield own
    pid, folder = own._pid, own._folder
    own.forget_threads()
    if pid:
        wait_until(lambda: os.waitpid(pid, os.WNOHANG) != (0, 0), "the end of the process")
        assert not Path(folder or "").exists()


def script(lab: Lab, name: str, *args: str) -> subprocess.Popen[str]:
    """Start one of the programs below in a process of its own."""
    url = lab.url + ("" if "ps_transport" in lab.url else "&ps_transport=websocket")
    command = [sys.executable, "-X", "faulthandler", str(HERE / "bridge_programs.py"), name, url, *args]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(running: subprocess.Popen[str]) -> str:
    """Let a program end, and return what else it said."""
    said, _ = running.communicate(timeout=100)
    assert running.returncode == 0, said
    return said


def children(pid: int) -> list[int]:
    """Return the processes that a process has started and that run."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_gone(pid: int) -> bool:
    """Return whether a process has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.fast
def test_every_endpoint(topology: Topology) -> None:
    """Primary, replica and direct endpoint are reached, by a socket that only this user can reach."""
    paths: tuple[tuple[Side, bool], ...] = (("primary", False), ("replica", True), ("direct", False))
    for to, in_recovery in paths:
        # Without a token: what the primary has flushed may end within a record. No replica has replayed that far before the rest
        # is flushed, too, which takes up to 15 s where nobody commits.
        with use_token(None), ps_core.connect(topology, to=to) as conn:
            assert conn.execute("SELECT pg_is_in_recovery()").fetchone() == (in_recovery,)
            assert socket_family(conn) == socket.AF_UNIX
            assert Path(conn.info.host).stat().st_mode & 0o777 == 0o700

    async def work() -> None:
        async with await ps_core.connect_async(topology, to="replica") as conn:
            assert await (await conn.execute("SELECT pg_is_in_recovery()")).fetchone() == (True,)

    asyncio.run(work())


def test_stock_psycopg(topology: Topology, ps_lab: Lab) -> None:
    """`ps_core.conninfo` is what stock psycopg needs for it, and for TCP."""
    for endpoint in (topology.direct, ps_lab.topology.direct):
        params: Any = ps_core.conninfo(endpoint)
        with psycopg.connect(**params) as conn:
            assert conn.execute("SELECT 1").fetchone() == (1,)


def test_as_many_round_trips_as_over_tcp(ps_lab: Lab, topology: Topology, table: str) -> None:
    """A read, and a transaction that writes."""
    seen = []
    for endpoint in (topology.primary, over_websocket(ps_lab, transport="tcp").primary):
        with ps_core.connect(endpoint) as conn:
            conn.execute("SELECT 1")
            conn.commit()
            with ps_lab.round_trips() as counter:
                conn.execute(f"INSERT INTO {table} VALUES (1)")
                conn.execute("SELECT 2")
                conn.commit()
            seen.append((counter.count, counter.startups))
    assert seen == [(3, 0), (3, 0)]


BLOCKING = (
    "cancel", "cancel_safe", "exec_", "exec_params", "prepare", "exec_prepared", "describe_prepared", "encrypt_password",
    "PQconnectdb", "PQping", "reset", "copy out", "copy in",
)  # fmt: skip
"""What waits for the server inside of libpq, with Python's lock or without."""


def test_blocking_calls(ps_lab: Lab) -> None:
    """None of them stops what carries its bytes. A watchdog that needs no lock of Python's would end the program."""
    assert tuple(finish(script(ps_lab, "blocking")).splitlines()) == BLOCKING


def test_nothing_is_left(ps_lab: Lab) -> None:
    """1,000 connections leave no thread, process, descriptor or file; and at the end of the program nothing at all."""
    running = script(ps_lab, "thousand")
    assert running.stdout is not None
    first = running.stdout.readline()
    then = running.stdout.readline()
    if first != then:
        raise AssertionError(first + then + finish(running))
    (helper,) = children(running.pid)
    folder = Path(first.split()[-1])
    assert folder.is_dir()
    finish(running)
    wait_until(lambda: is_gone(helper) and not folder.exists(), "the end of the process")


def test_killed_program(ps_lab: Lab) -> None:
    """What carries the connections of a program that is killed ends with it, and so do its connections."""
    running = script(ps_lab, "hold", "killed")
    assert running.stdout is not None
    folder = Path(running.stdout.readline().strip())
    (helper,) = children(running.pid)
    running.kill()
    running.communicate()
    wait_until(lambda: is_gone(helper) and not folder.exists(), "the end of the process")
    of_it = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'killed'"
    wait_until(lambda: ps_lab.sql(of_it) == [(0,)], "the end of its connections")


def test_fork(ps_lab: Lab) -> None:
    """A forked process has a bridge of its own, which ends with it; the parent's goes on."""
    assert finish(script(ps_lab, "fork")).split() == ["parent", "child", "ended", "parent"]


@pytest.mark.parametrize("autocommit", [False, True])
def test_killed_bridge(topology: Topology, bridge: start._Bridge, autocommit: bool, table: str, ps_lab: Lab) -> None:
    """The next statement starts another one, as after any lost connection, even if it writes."""
    with ps_core.connect(topology, autocommit=autocommit) as conn:
        conn.execute("SELECT 1")
        conn.commit()
        pid, folder = bridge._pid, Path(conn.info.host)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: is_gone(pid), "its end")
        conn.execute(f"INSERT INTO {table} VALUES (1)")
        conn.commit()
        assert bridge._pid != pid
        assert not folder.exists()
        assert conn.execute("SELECT 2").fetchone() == (2,)
    assert count(ps_lab, table) == 1


def test_signals_for_all(topology: Topology, bridge: start._Bridge) -> None:
    """A supervisor's signal to all processes of a service does not end it: requests that are under way are still answered."""
    with ps_core.connect(topology) as conn:
        for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(bridge._pid, name)
            assert conn.execute("SELECT 1").fetchone() == (1,)


def test_killed_bridge_asyncio(topology: Topology, bridge: start._Bridge) -> None:
    """The same with asyncio."""

    async def work() -> None:
        async with await ps_core.connect_async(topology, to="replica") as conn:
            await conn.execute("SELECT 1")
            await conn.rollback()
            os.kill(bridge._pid, signal.SIGKILL)
            assert await (await conn.execute("SELECT 2")).fetchone() == (2,)

    asyncio.run(work())


def test_frozen(topology: Topology, bridge: start._Bridge, ps_lab: Lab, table: str) -> None:
    """A connection that was closed while the processes were frozen is made anew before a write is sent: no outcome is unknown."""
    for _ in range(20):
        with ps_core.connect(topology, autocommit=True) as conn:
            os.kill(bridge._pid, signal.SIGSTOP)
            ps_lab.edge.cut("primary")
            os.kill(bridge._pid, signal.SIGCONT)
            conn.execute(f"INSERT INTO {table} VALUES (1)")
    assert count(ps_lab, table) == 20


# --- what is silent ---


@pytest.fixture
def in_thread(topology: Topology) -> Iterator[tuple[dict[str, Any], asyncio.AbstractEventLoop]]:
    """A bridge with short ticks, in a thread (nothing here blocks in libpq), and how stock psycopg gets there."""
    with bridge_in_a_thread(topology, tick=0.1) as found:
        yield found


def test_dead_peer(in_thread: tuple[dict[str, Any], asyncio.AbstractEventLoop], ps_lab: Lab) -> None:
    """A server that answers no ping is given up, while a client waits for it as well as while it is idle."""
    params, _ = in_thread
    for waits in (False, True):
        with closing(psycopg.connect(**params, autocommit=True)) as conn, ps_lab.edge.hang():
            if waits:
                with pytest.raises(psycopg.OperationalError, match="server closed the connection"):
                    conn.execute("SELECT 1")
            else:
                wait_until(lambda: is_closed(conn), "its end")


def test_dead_peer_takes_nothing(in_thread: tuple[dict[str, Any], asyncio.AbstractEventLoop], ps_lab: Lab) -> None:
    """Nor does one that no longer takes what a client sends keep the bridge from asking it, and the others."""
    params, _ = in_thread
    with closing(psycopg.connect(**params)) as idle, closing(psycopg.connect(**params)) as conn:
        conn.execute("CREATE TEMPORARY TABLE filled (line text)")
        with pytest.raises(psycopg.OperationalError), conn.cursor().copy("COPY filled FROM STDIN") as copy, ps_lab.edge.hang():
            for _ in range(1000):  # more than all the buffers on the way
                copy.write(b"x" * 65535 + b"\n")
        with ps_lab.edge.hang():
            wait_until(lambda: is_closed(idle), "the end of the other")


def test_silent_server_lives(in_thread: tuple[dict[str, Any], asyncio.AbstractEventLoop]) -> None:
    """One that only works for a long time answers pings, and a bridge that thaws asks before it gives up."""
    params, loop = in_thread
    with closing(psycopg.connect(**params, autocommit=True)) as conn:
        assert conn.execute("SELECT 1 FROM pg_sleep(1.5)").fetchone() == (1,)  # fifteen ticks
        loop.call_soon_threadsafe(time.sleep, 1.5)
        assert conn.execute("SELECT 2").fetchone() == (2,)


def test_slow_line(slow_proxy: None, in_thread: tuple[dict[str, Any], asyncio.AbstractEventLoop]) -> None:
    """A line that takes longer for what is sent than a server may be silent is slow, and not dead."""
    params, _ = in_thread
    with psycopg.connect(**params) as conn:
        conn.execute("CREATE TEMPORARY TABLE filled (line text)")
        with conn.cursor().copy("COPY filled FROM STDIN") as copy:
            for _ in range(4000):
                copy.write(b"x" * 1023 + b"\n")
        assert conn.execute("SELECT count(*) FROM filled").fetchone() == (4000,)


@pytest.fixture
def slow_proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A proxy for one connection that takes 64 KiB in 30 ms, and has next to no buffer."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def back(server: socket.socket, client: socket.socket) -> None:
            with suppress(OSError):
                while data := server.recv(65536):
                    client.sendall(data)
                client.shutdown(socket.SHUT_RDWR)

        def carry() -> None:
            client, _ = listener.accept()
            with client, suppress(OSError):
                host, _, port = client.recv(65536).split()[1].decode().rpartition(":")
                with socket.create_connection((host, int(port))) as server:
                    client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                    answers = threading.Thread(target=back, args=(server, client))
                    answers.start()
                    since = 0
                    while data := client.recv(4096):
                        server.sendall(data)
                        since += len(data)
                        if since > 65536:
                            since = 0
                            threading.Event().wait(0.03)
                    server.shutdown(socket.SHUT_RDWR)
                    answers.join()

        thread = threading.Thread(target=carry)
        thread.start()
        for name in ("https_proxy", "no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{listener.getsockname()[1]}")
        yield
        thread.join(30)


def is_closed(conn: psycopg.Connection[Any]) -> bool:
    """Return whether the other side has closed a connection."""
    try:
        conn.pgconn.consume_input()
    except psycopg.OperationalError:
        return True
    return False


# --- what is not reached ---


@pytest.fixture
def answering(ps_lab: Lab) -> Iterator[Callable[[bytes, bool], int]]:
    """Servers, with TLS or without, that answer whatever is asked with these bytes, and close."""
    with ExitStack() as stack:

        def serve(answer: bytes, tls: bool = True) -> int:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(ps_lab._guard.folder / "edge.pem")

            def run() -> None:
                with suppress(OSError):
                    while True:
                        raw, _ = listener.accept()
                        with suppress(OSError), context.wrap_socket(raw, server_side=True) if tls else raw as conn:
                            conn.recv(65536)
                            conn.sendall(answer)

            thread = threading.Thread(target=run)
            thread.start()
            stack.callback(thread.join)
            stack.callback(listener.shutdown, socket.SHUT_RDWR)
            return int(listener.getsockname()[1])

        yield serve


def status(code: int, headers: bytes = b"") -> bytes:
    return b"HTTP/1.1 %d Because\r\nContent-Length: 0\r\n%s\r\n" % (code, headers)


NOT_REACHED = [
    ("HTTP 404", status(404), Kind.CONFIGURATION, "is no PostgreSQL WebSocket: HTTP status 404"),
    ("HTTP 403", status(403), Kind.CONFIGURATION, "HTTP status 403"),
    ("HTTP 302", status(302, b"Location: wss://localhost:1/v2\r\n"), Kind.CONFIGURATION, "HTTP status 302"),
    ("HTTP 200", status(200), Kind.CONFIGURATION, "HTTP status 200"),
    ("HTTP 503", status(503), Kind.TRANSIENT, "cannot answer now: HTTP status 503"),
    ("HTTP 429", status(429), Kind.TRANSIENT, "HTTP status 429"),
    ("no HTTP", b"what?\r\n\r\n", Kind.TRANSIENT, "could not connect to localhost:"),
    ("nothing", b"", Kind.TRANSIENT, "could not connect to localhost:"),
]


@pytest.mark.fast
@pytest.mark.parametrize(("answer", "kind", "text"), [row[1:] for row in NOT_REACHED], ids=[row[0] for row in NOT_REACHED])
def test_not_reached(ps_lab: Lab, answering: Any, answer: bytes, kind: Kind, text: str) -> None:
    """What stands in the way is in the message, and says whether another try can help. Nothing ran."""
    check_not_reached(over_websocket(ps_lab, https_port=answering(answer)), kind, text)


def check_not_reached(topology: Topology, kind: Kind, text: str) -> None:
    params: Any = ps_core.conninfo(topology.direct)
    with pytest.raises(psycopg.OperationalError) as caught:
        psycopg.connect(**params)
    assert text in str(caught.value)
    failure = classify(caught.value)
    assert (failure.kind, failure.ran) == (kind, Ran.NO), failure
    assert params["password"] not in str(caught.value)


def test_nobody_listens(ps_lab: Lab) -> None:
    """A port that is closed, and a name that does not exist."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    check_not_reached(over_websocket(ps_lab, https_port=port), Kind.TRANSIENT, f"could not connect to localhost:{port}")
    elsewhere = Topology.from_url("postgresql://app:s3cret@nowhere.invalid/postgres", transport="websocket")
    check_not_reached(elsewhere, Kind.TRANSIENT, 'could not translate host name "nowhere.invalid"')


def test_certificates(ps_lab: Lab, answering: Any, tmp_path: Path) -> None:
    """A server that nobody vouches for is not talked to; nor is one that speaks no TLS."""
    url = ps_lab.url.partition("?")[0]
    settings: Any = {"transport": "websocket", "https_port": ps_lab.edge.ports["https"], "direct_port": 5432}
    check_not_reached(Topology.from_url(url, **settings), Kind.CONFIGURATION, "certificate")
    (tmp_path / "ca.pem").write_text("")
    for path in (tmp_path / "none.pem", tmp_path / "ca.pem"):
        check_not_reached(Topology.from_url(f"{url}?sslrootcert={path}", **settings), Kind.CONFIGURATION, "certificate")
    plain = answering(b"HTTP/1.1 400 Bad Request\r\n\r\n", tls=False)
    check_not_reached(over_websocket(ps_lab, https_port=plain), Kind.TRANSIENT, "could not connect to localhost:")


def test_relative_path_of_authorities(
    bridge: start._Bridge, ps_lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It is meant as for libpq, from the folder that the program is in, wherever the other process was started."""
    (tmp_path / "ca.pem").write_bytes((ps_lab._guard.folder / "ca.pem").read_bytes())
    with ps_core.connect(over_websocket(ps_lab)) as conn:
        conn.execute("SELECT 1")
    monkeypatch.chdir(tmp_path)
    url = re.sub("sslrootcert=[^&]+", "sslrootcert=ca.pem", ps_lab.url)
    with ps_core.connect(Topology.from_url(url, transport="websocket")) as conn:
        conn.execute("SELECT 2")


def test_deadline_bounds_the_dialling(topology: Topology, bridge: start._Bridge, ps_lab: Lab) -> None:
    """A server that does not answer is not waited for longer than the caller waits; the dialling ends with the caller."""
    with ps_core.connect(topology) as conn:
        conn.execute("SELECT 1")
    open_before = descriptors(bridge._pid)
    with ps_lab.edge.hang():
        with pytest.raises((ps_core.DeadlineExceeded, psycopg.OperationalError)), deadline("500ms"):
            ps_core.connect(topology)
        wait_until(lambda: descriptors(bridge._pid) <= open_before, "the end of the dialling")


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


# --- proxies ---


@pytest.fixture
def proxy() -> Iterator[tuple[int, list[str]]]:
    """An HTTP proxy, and what it was asked."""
    asked: list[str] = []
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(None)
    threads: list[threading.Thread] = []

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def carry(client: socket.socket) -> None:
        with client:
            head = client.recv(65536).decode()
            asked.append(head.partition("\r\n")[0])
            if ".example" in head:
                client.sendall(status(502 if "down.example" in head else 407))
                return
            host, _, port = head.split()[1].rpartition(":")
            with socket.create_connection((host, int(port))) as server:
                client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                back = threading.Thread(target=pump, args=(server, client))
                back.start()
                pump(client, server)
                back.join()

    def accept() -> None:
        with suppress(OSError):
            while True:
                threads.append(threading.Thread(target=carry, args=(listener.accept()[0],)))
                threads[-1].start()

    threads.append(threading.Thread(target=accept))
    threads[0].start()
    yield listener.getsockname()[1], asked
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    for thread in threads:
        thread.join()


def test_socks_proxy(topology: Topology, monkeypatch: pytest.MonkeyPatch, request: Any) -> None:
    """What a SOCKS proxy needs is said, where it is not installed."""
    for name in ("https_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", "socks5h://127.0.0.1:1")
    request.getfixturevalue("bridge")
    if find_spec("python_socks") is None:
        check_not_reached(topology, Kind.CONFIGURATION, "python-socks")
    else:
        check_not_reached(topology, Kind.CONFIGURATION, "the proxy on the way to localhost:")


def test_proxy(ps_lab: Lab, topology: Topology, proxy: Any, monkeypatch: pytest.MonkeyPatch, request: Any) -> None:
    """HTTPS_PROXY is honoured, and NO_PROXY; what a proxy forbids is said, and not tried again."""
    port, asked = proxy
    for name in ("https_proxy", "no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("NO_PROXY", "nowhere.invalid")
    request.getfixturevalue("bridge")
    with ps_core.connect(topology) as conn:
        conn.execute("SELECT 1")
    assert asked == [f"CONNECT localhost:{ps_lab.edge.ports['https']} HTTP/1.1"]
    for host, kind, said in (
        ("refused.example", Kind.CONFIGURATION, "refused: HTTP status 407"),
        ("down.example", Kind.TRANSIENT, "cannot connect now: HTTP status 502"),
    ):
        beyond = Topology.from_url(f"postgresql://app:s3cret@{host}/postgres", transport="websocket")
        check_not_reached(beyond, kind, f"the proxy on the way to {host}:443 {said}")
    past_it = Topology.from_url("postgresql://app:s3cret@nowhere.invalid/postgres", transport="websocket")
    check_not_reached(past_it, Kind.TRANSIENT, "could not translate host name")


@pytest.mark.parametrize("proxy", ["http://user:s3cret@127.0.0.1:1", "http://user:s3cret@nowhere.invalid:1"])
def test_proxy_that_is_not_there(topology: Topology, proxy: str, monkeypatch: pytest.MonkeyPatch, request: Any) -> None:
    """A host is not blamed alone for the proxy on the way to it."""
    for name in ("https_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    request.getfixturevalue("bridge")
    check_not_reached(topology, Kind.TRANSIENT, "(or the proxy on the way to it)")


@pytest.mark.parametrize(
    "proxy",
    [
        "ftp://user:s3cret@127.0.0.1:1",
        "user:s3cret@127.0.0.1:1",
        "http://user:s3#cret@127.0.0.1:1",
        "http://user:s3/cret@127.0.0.1:1",
        "http://user:s3cret@127.0.0.1:99999",
    ],
)
def test_proxy_that_is_none(
    topology: Topology, proxy: str, monkeypatch: pytest.MonkeyPatch, request: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """A URL that names no proxy is refused, and its password is in no message."""
    for name in ("https_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    request.getfixturevalue("bridge")
    params: Any = ps_core.conninfo(topology.direct)
    with pytest.raises(psycopg.OperationalError, match=r"the proxy on the way to \S+ refused, or is none") as caught:
        psycopg.connect(**params)
    assert classify(caught.value).kind is Kind.CONFIGURATION
    assert "cret" not in str(caught.value)
    assert capfd.readouterr().err == ""


# --- where it cannot be started ---


def test_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside of uWSGI the interpreter is the one of the environment; a frozen program has none."""
    monkeypatch.setattr(sys, "executable", "/usr/bin/uwsgi")
    assert start._python() == f"{sys.prefix}/bin/python3"
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(ConfigurationError, match="no interpreter"):
        start._python()


def test_interpreter_not_allowed(
    bridge: start._Bridge, topology: Topology, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An interpreter that this user may not run is said at once: to try again is no use."""
    (tmp_path / "python3").write_text("")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python3"))
    with pytest.raises(ConfigurationError, match="Permission denied"):
        ps_core.connect(topology)
    folder = bridge._folder
    monkeypatch.undo()
    target = target_of(topology.direct.parameters(), topology.direct.https_port, {})
    assert bridge.reach(target)["folder"] != folder


def test_other_user(topology: Topology, bridge: start._Bridge, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has changed its user, as gunicorn's workers do, starts another one: the folder is the first user's."""
    first: Any = ps_core.conninfo(topology.direct)
    pid = bridge._pid
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    second = ps_core.conninfo(topology.direct)
    assert second["host"] != first["host"]
    assert "requirepeer" not in second  # a number without a name
    wait_until(lambda: os.waitpid(pid, os.WNOHANG) != (0, 0), "the end of the first") if not is_gone(pid) else None


def test_long_temporary_folder(
    bridge: start._Bridge, topology: Topology, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A Unix socket's path is short: where the temporary folder is not, /tmp is taken."""
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    assert ps_core.conninfo(topology.direct)["host"].startswith("/tmp/ps-")


def test_no_temporary_folder(bridge: start._Bridge, topology: Topology, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where the temporary folder is gone, /tmp is taken; where there is none, that is said."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    assert ps_core.conninfo(topology.direct)["host"].startswith("/tmp/ps-")

    def none(**_: object) -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(tempfile, "mkdtemp", none)
    with pytest.raises(ConfigurationError, match=r"needs a temporary folder .* No usable .* set TMPDIR"):
        start._Bridge().reach(target_of(topology.direct.parameters(), topology.direct.https_port, {}))


@pytest.mark.parametrize("folder_too", [False, True], ids=["the sockets", "the folder"])
def test_cleaned_temporary_folder(bridge: start._Bridge, topology: Topology, folder_too: bool) -> None:
    """What somebody who cleans up has removed is made again, and the connections that there are go on."""
    with ps_core.connect(topology, to="direct") as conn:
        conn.execute("SELECT 1")
        pid, folder = bridge._pid, Path(bridge._folder or "")
        for path in folder.iterdir():
            path.unlink()
        if folder_too:
            folder.rmdir()
        with ps_core.connect(topology, to="direct") as other:
            other.execute("SELECT 2")
        start.settle()
        assert sorted(path.name for path in folder.iterdir()) == [".s.PGSQL.0", ".s.PGSQL.1"]
        assert folder.stat().st_mode & 0o777 == 0o700
        conn.execute("SELECT 3")
        assert bridge._pid == pid


def test_name_of_the_folder_taken(bridge: start._Bridge, topology: Topology) -> None:
    """Nobody else's folder is entered: there is another process, with another one."""
    before: Any = ps_core.conninfo(topology.direct)
    pid, folder = bridge._pid, Path(before["host"])
    for path in folder.iterdir():
        path.unlink()
    os.chown(folder, 12345, -1)
    after: Any = ps_core.conninfo(topology.direct)
    assert after["host"] != before["host"]
    with psycopg.connect(**after) as conn:
        conn.execute("SELECT 1")
    wait_until(lambda: is_gone(pid), "the end of the first")


def test_closed_descriptors(ps_lab: Lab) -> None:
    """A daemon that closes all descriptors, without a fork, connects anew; what took their numbers is left alone."""
    assert finish(script(ps_lab, "daemon")) == "untouched\n"


def test_inherits_nothing(bridge: start._Bridge, topology: Topology) -> None:
    """What the program lets its children inherit, as a server's listening sockets, ends with the program."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.set_inheritable(True)
        with ps_core.connect(topology) as conn:
            conn.execute("SELECT 1")
            # While the connection stands: its end closes descriptors that are being listed.
            links = [str(path.readlink()) for path in Path(f"/proc/{bridge._pid}/fd").iterdir()]
        assert f"socket:[{os.fstat(listener.fileno()).st_ino}]" not in links


def test_module_path(bridge: start._Bridge, topology: Topology, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An application's modules may be called as some of Python's, and its path may have what is no string."""
    for name in ("resource", "struct", "process"):
        (tmp_path / f"{name}.py").write_text("")
    monkeypatch.setattr(sys, "path", [str(tmp_path), tmp_path, *sys.path])
    with ps_core.connect(topology) as conn:
        conn.execute("SELECT 1")


def test_no_descriptors_left(bridge: start._Bridge, topology: Topology) -> None:
    """What the system lacks for the process now, it may have for the next try."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(psycopg.OperationalError, match="the process that carries it cannot be started") as caught:
            ps_core.conninfo(topology.direct)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    failure = classify(caught.value)
    assert (failure.kind, failure.ran) == (Kind.TRANSIENT, Ran.NO), failure
    with ps_core.connect(topology) as conn:
        conn.execute("SELECT 1")


def test_green_threads(bridge: start._Bridge, topology: Topology) -> None:
    """With gevent or eventlet, only a socket that does not block by itself is not waited for."""
    ps_core.conninfo(topology.direct)
    assert bridge._control is not None
    assert bridge._control.gettimeout() == 0
