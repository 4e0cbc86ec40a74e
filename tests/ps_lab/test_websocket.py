"""`/v2` of the edge: the wire protocol in a WebSocket, with the ways, the counts and the faults of the other ports."""

import asyncio
import contextlib
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from websockets.exceptions import ConnectionClosedError, ConnectionClosedOK
from websockets.sync.client import ClientConnection

from ps_lab import Lab
from ps_lab.client import close, reset
from ps_lab.https import destination
from ps_lab.processes import wait_until
from tests.ps_lab.conftest import Connect, whereabouts
from tests.ps_lab.test_edge import GSS_REQUEST, SSL_REQUEST, asleep, rest_of, startup
from tests.ps_lab.tunnel import Tunnel, context, dial

SIZE = 100_000_000


@pytest.fixture
def tunnel(ps_lab: Lab) -> Iterator[Callable[..., psycopg.Connection[Any]]]:
    """Return a function that connects psycopg by `/v2`; all is closed after the test."""
    with contextlib.ExitStack() as stack:

        def open_connection(query: str = "", suffix: str = "") -> psycopg.Connection[Any]:
            way = stack.enter_context(Tunnel(ps_lab, query))
            conn = psycopg.connect(**way.parameters(suffix), autocommit=True, cursor_factory=psycopg.ClientCursor)
            stack.callback(conn.close)
            return conn

        yield open_connection


def address(lab: Lab, port: Any) -> str:
    """Return the query of an address at one of the lab's ports."""
    return f"?address=localhost:{lab.edge.ports[port]}"


def received(websocket: ClientConnection) -> bytes:
    """Read until it is closed, and return all of it."""
    parts = []
    with contextlib.suppress(ConnectionClosedOK):
        while True:
            part = websocket.recv(timeout=10)
            assert isinstance(part, bytes)
            parts.append(part)
    return b"".join(parts)


def next_result(pgconn: psycopg.pq.abc.PGconn) -> psycopg.pq.abc.PGresult:
    """Return the next result, waiting outside of libpq: inside, it would hold the lock that the tunnel's thread needs."""
    while (unsent := pgconn.flush()) or pgconn.is_busy():
        readable, _, _ = select.select([pgconn.socket], [pgconn.socket] if unsent else [], [], 10)
        if readable:
            pgconn.consume_input()
    result = pgconn.get_result()
    assert result is not None
    return result


# --- the handshake ---


def test_handshake(ps_lab: Lab) -> None:
    """The edge speaks HTTP/1.1, answers pings, and takes no extension and no subprotocol, whatever is offered."""
    with dial(ps_lab, compression="deflate", subprotocols=["x"]) as websocket:
        assert websocket.response is not None
        assert websocket.response.status_code == 101
        assert not websocket.response.headers.get("Sec-WebSocket-Extensions")
        assert websocket.subprotocol is None
        assert websocket.ping().wait(10)
    tls = context(ps_lab)
    tls.set_alpn_protocols(["h2", "http/1.1"])
    with socket.create_connection(("localhost", ps_lab.edge.ports["https"])) as plain:
        with tls.wrap_socket(plain, server_hostname="localhost") as sock:
            assert sock.selected_alpn_protocol() == "http/1.1"


UPGRADE = b"Host: x\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
KEY = b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"


@pytest.mark.parametrize(
    ("request_", "status", "body"),
    [
        (b"GET /v3 HTTP/1.1\r\n" + UPGRADE + KEY, 400, b'"query is not supported"'),
        (b"GET /v2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n", 400, b'"query is not supported"'),
        (b"GET /v2?address=localhost:1 HTTP/1.1\r\n" + UPGRADE + KEY, 400, b'"address localhost:1 is not allowed"'),
        (b"GET /v2 HTTP/1.1\r\n" + UPGRADE, 400, b"Sec-WebSocket-Key"),
        (b"GET /v2 HTTP/1.1\r\n" + UPGRADE + KEY.replace(b"AA==", b"A"), 400, b"Sec-WebSocket-Key"),
        (b"POST /v2 HTTP/1.1\r\n" + UPGRADE + KEY, 400, b'"query is not supported"'),
        (b"GET /v2 HTTP/1.1\r\n" + UPGRADE.replace(b"13", b"12") + KEY, 400, b"Sec-WebSocket-Version"),
        (b"GET /v2 HTTP/1.1\r\n" + UPGRADE.replace(b"Upgrade, close", b"close") + KEY, 426, b"Connection"),
        (b"this is no request\r\n", 400, b"illegal request line"),
        (b"\x00\x00\x00\x08\x04\xd2\x16\x2f\r\n", 400, b"illegal request line"),
        (b"GET /v2 HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 40_000, 431, b""),
    ],
)
def test_bad_requests(ps_lab: Lab, request_: bytes, status: int, body: bytes) -> None:
    """What is no handshake is answered by a status, and the connection is closed."""
    with socket.create_connection(("localhost", ps_lab.edge.ports["https"]), timeout=5) as plain:
        with context(ps_lab).wrap_socket(plain, server_hostname="localhost") as sock:
            sock.sendall(request_ + b"\r\n")
            answer = rest_of(sock)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert body in answer


def test_without_tls(ps_lab: Lab) -> None:
    """A client that speaks in the clear is left."""
    with socket.create_connection(("localhost", ps_lab.edge.ports["https"]), timeout=5) as sock:
        sock.sendall(b"GET /v2 HTTP/1.1\r\n" + UPGRADE + KEY + b"\r\n")
        assert b"HTTP" not in rest_of(sock)
    wait_until(lambda: ps_lab.edge.status()["clients"] == 0, "the edge has forgotten it")


# --- the ways ---


@pytest.mark.fast
@pytest.mark.parametrize(
    ("address", "port"),
    [
        (None, "direct"),
        ("x.pg.psdb.cloud:5432", "direct"),
        ("x.pg.psdb.cloud:6432", "pooled"),
        ("localhost:1001", "direct"),
        ("localhost:1002", "pooled"),
        ("[::1]:1002", "pooled"),
    ],
)
def test_destinations(address: str | None, port: str) -> None:
    """The port of an address is one of the edge's, or PlanetScale's."""
    assert destination(address, {"direct": 1001, "pooled": 1002, "https": 1003}) == port


@pytest.mark.fast
@pytest.mark.parametrize("address", ["", "x", ":5432", "x:", "x:1003", "x:443", "x:5432x", "x:-1"])
def test_no_destination(address: str) -> None:
    """Any other address is refused."""
    with pytest.raises(ValueError, match="is not allowed"):
        destination(address, {"direct": 1001, "pooled": 1002, "https": 1003})


@pytest.mark.parametrize(
    ("port", "suffix", "path", "is_replica"),
    [
        (None, "", "direct", False),
        ("direct", "replica", "replica", True),
        ("pooled", "", "primary", False),
        ("pooled", "write-pool", "primary", False),
        ("pooled", "read-pool", "replica", True),
    ],
)
def test_ways(
    ps_lab: Lab, tunnel: Callable[..., psycopg.Connection[Any]], port: str | None, suffix: str, path: str, is_replica: bool
) -> None:
    """Address and suffix are routed as port and suffix are; the start of the connection and the round trips are counted."""
    with ps_lab.round_trips() as counter:
        conn = tunnel(address(ps_lab, port) if port else "", suffix)
        assert (counter.count, counter.startups) == (0, 1)
        assert whereabouts(conn)[1] is is_replica
        with conn.transaction():
            conn.execute("SELECT 1")
    assert dict(counter.by_path) == {path: 4}


def test_refusals(ps_lab: Lab) -> None:
    """What the edge refuses it refuses with the same message as elsewhere, and then it closes."""
    for user, text in (
        ("app", "invalid user format: username must include branch (e.g., user.branch)"),
        (f"app.{ps_lab.branch}|replica", f"pooler only supports primary destinations for branch {ps_lab.branch}"),
    ):
        with dial(ps_lab, address(ps_lab, "pooled")) as websocket:
            websocket.send(startup(user))
            assert f"SFATAL\0C28000\0M{text}\0".encode() in received(websocket)
            assert (websocket.close_code, websocket.close_reason) == (1000, "")
    with ps_lab.edge.refuse("08006", "branch x unavailable"), dial(ps_lab) as websocket:
        websocket.send(startup(f"app.{ps_lab.branch}"))
        assert b"C08006\0Mbranch x unavailable\0" in received(websocket)


def test_no_tls_inside(ps_lab: Lab) -> None:
    """TLS is outside: requests for TLS and GSS inside are answered with N, also where the startup message follows at once."""
    with dial(ps_lab) as websocket:
        for request in (GSS_REQUEST, SSL_REQUEST):
            websocket.send(request)
            assert websocket.recv() == b"N"
        websocket.send(SSL_REQUEST + startup("app"))
        assert received(websocket).startswith(b"NE")


def test_borders_of_frames(ps_lab: Lab) -> None:
    """The borders of frames mean nothing: a message may come in many, also in fragments, and many in one."""
    message = startup("app")
    with dial(ps_lab) as websocket:
        for at in range(len(message)):
            websocket.send(message[at : at + 1])
        assert b"invalid user format" in received(websocket)
    with dial(ps_lab) as websocket:
        # The server has the message, and may have answered and closed, before the empty frame that ends it is sent.
        with contextlib.suppress(ConnectionClosedOK):
            websocket.send(message[at : at + 1] for at in range(len(message)))
        assert b"invalid user format" in received(websocket)


def test_text_frame(ps_lab: Lab) -> None:
    """A text frame ends it with 1003, and what follows counts for nothing."""
    with dial(ps_lab) as websocket:
        websocket.send("text")
        with pytest.raises(ConnectionClosedError):
            websocket.recv()
        assert websocket.close_code == 1003


@contextlib.contextmanager
def upgraded(lab: Lab) -> Iterator[socket.socket]:
    """Make the handshake, and leave the frames to the caller."""
    with socket.create_connection(("localhost", lab.edge.ports["https"]), timeout=5) as plain:
        with context(lab).wrap_socket(plain, server_hostname="localhost") as sock:
            sock.sendall(b"GET /v2 HTTP/1.1\r\n" + UPGRADE + KEY + b"\r\n")
            assert sock.recv(65536).startswith(b"HTTP/1.1 101 ")
            yield sock


def test_bad_frames(ps_lab: Lab) -> None:
    """What is no frame of a client ends it with 1002, and one that is larger than Neon's proxy takes with 1009."""
    for frame, code in ((b"\x82\x01x", 1002), (b"\x82\xff" + struct.pack("!Q", (64 << 20) + 1), 1009)):
        with upgraded(ps_lab) as sock:
            sock.sendall(frame)
            assert rest_of(sock)[2:4] == struct.pack("!H", code)


def test_cancel(ps_lab: Lab, tunnel: Callable[..., psycopg.Connection[Any]]) -> None:
    """A cancel request by a WebSocket of its own reaches the server that runs the statement."""
    conn = tunnel(address(ps_lab, "pooled"), "write-pool")

    def cancel() -> None:
        wait_until(lambda: asleep(ps_lab), "the statement runs")
        conn.cancel_safe()

    canceller = threading.Thread(target=cancel)
    canceller.start()
    with pytest.raises(psycopg.errors.QueryCanceled):
        conn.execute("SELECT pg_sleep(20)")
    canceller.join()
    assert conn.execute("SELECT 1").fetchone() == (1,)
    with dial(ps_lab) as websocket:
        websocket.send(struct.pack("!IIII", 16, 80877102, 1, 2))
        assert received(websocket) == b""


# --- how it ends ---


def test_client_closes(ps_lab: Lab, tunnel: Callable[..., psycopg.Connection[Any]]) -> None:
    """A Close of the client's, or its going away, is the end of the stream: the server's side is closed, too."""
    query = "SELECT 1 FROM pg_stat_activity WHERE pid = %s"
    for how in ("close", "vanish"):
        with Tunnel(ps_lab) as way:
            conn = psycopg.connect(**way.parameters(), autocommit=True)
            pid = conn.info.backend_pid
            assert ps_lab.sql(query, pid) == [(1,)]
            if how == "close":
                way.close()
                assert way.close_code == 1000
            else:
                way.vanish()
            wait_until(lambda pid=pid: not ps_lab.sql(query, pid), "the session has ended")  # type: ignore[misc]
            conn.close()


def test_server_closes(ps_lab: Lab) -> None:
    """Where the server ends the session, what it said arrives, then a Close."""
    with Tunnel(ps_lab) as way, psycopg.connect(**way.parameters(), autocommit=True) as conn:
        ps_lab.sql("SELECT pg_terminate_backend(%s)", conn.info.backend_pid)
        with pytest.raises(psycopg.errors.AdminShutdown):
            conn.execute("SELECT 1")
        wait_until(lambda: way.close_code is not None, "the Close")
        assert way.close_code == 1000


def test_a_client_that_does_not_answer_a_close(ps_lab: Lab) -> None:
    """A client that leaves a Close unanswered is left."""
    message = startup("app")
    with upgraded(ps_lab) as sock:
        sock.sendall(bytes([0x82, 0x80 | len(message), 0, 0, 0, 0]) + message)
        answer = rest_of(sock)
    assert b"invalid user format" in answer
    assert answer.endswith(b"\x88\x02\x03\xe8")


async def test_closed_twice(ps_lab: Lab) -> None:
    """A client that is closed twice, as a WebSocket is whose client answers the Close, can still be broken."""
    gone, accepted = asyncio.Event(), asyncio.get_running_loop().create_future()

    class Protocol(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            accepted.set_result(transport)

        def connection_lost(self, exc: Exception | None) -> None:
            gone.set()

    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(ps_lab._guard.folder / "edge.pem")
    server = await asyncio.get_running_loop().create_server(Protocol, "localhost", 0, ssl=tls)
    async with server:
        plain = socket.create_connection(server.sockets[0].getsockname()[:2])
        with context(ps_lab).wrap_socket(plain, server_hostname="localhost", do_handshake_on_connect=False) as client:
            await asyncio.to_thread(client.do_handshake)
            transport = await accepted
            close(transport)
            close(transport)
            reset(transport)
            await asyncio.wait_for(gone.wait(), 5)


# --- faults ---


def test_cut(ps_lab: Lab, tunnel: Callable[..., psycopg.Connection[Any]], connect: Connect) -> None:
    """`cut` breaks the WebSockets of the path that it names, without a Close; those before their start with all."""
    write, read = tunnel(address(ps_lab, "pooled"), "write-pool"), tunnel(address(ps_lab, "pooled"), "read-pool")
    ps_lab.edge.cut("primary")
    with pytest.raises(psycopg.OperationalError):
        write.execute("SELECT 1")
    read.execute("SELECT 1")
    with dial(ps_lab) as websocket:
        websocket.ping().wait(10)
        ps_lab.edge.cut()
        with pytest.raises(ConnectionClosedError):
            websocket.recv()
        assert websocket.close_code == 1006
    with socket.create_connection(("localhost", ps_lab.edge.ports["https"]), timeout=5) as plain:
        with context(ps_lab).wrap_socket(plain, server_hostname="localhost") as sock:
            wait_until(lambda: ps_lab.edge.status()["clients"], "the edge knows it")
            ps_lab.edge.cut()
            assert rest_of(sock) == b""


def test_hang(ps_lab: Lab) -> None:
    """On a path that hangs neither messages nor pings are answered until `resume`, and then all are."""
    with Tunnel(ps_lab, address(ps_lab, "pooled")) as way, psycopg.connect(**way.parameters(), autocommit=True) as conn:
        with ps_lab.edge.hang("primary"):
            conn.pgconn.send_query(b"SELECT 42")
            pong = way.ping()
            with pytest.raises(TimeoutError):
                pong.result(0.5)
            conn.pgconn.consume_input()
            assert conn.pgconn.is_busy()
        assert pong.result(10)
        assert next_result(conn.pgconn).get_value(0, 0) == b"42"
        assert conn.pgconn.get_result() is None


def test_hang_of_everything(ps_lab: Lab) -> None:
    """Where all hangs, the handshake is not answered, and is after `resume`."""
    with ps_lab.edge.hang():
        with pytest.raises(TimeoutError), dial(ps_lab, open_timeout=0.5):
            pass
    with dial(ps_lab) as websocket:
        assert websocket.ping().wait(10)


def test_delay(ps_lab: Lab, tunnel: Callable[..., psycopg.Connection[Any]]) -> None:
    """What is forwarded is late by the delay, each way."""
    conn = tunnel()
    with ps_lab.edge.delay(0.1):
        began = time.monotonic()
        conn.execute("SELECT 1")
        assert time.monotonic() - began >= 0.2


def test_cut_answers(ps_lab: Lab, tunnel: Callable[..., psycopg.Connection[Any]]) -> None:
    """The statement ran, and nobody is told."""
    conn = tunnel(address(ps_lab, "pooled"), "write-pool")
    conn.execute("CREATE TABLE websocket_answer (n int)")
    with ps_lab.edge.cut_answers("primary", containing="INSERT"):
        conn.execute("SELECT 1")
        with pytest.raises(psycopg.OperationalError):
            conn.execute("INSERT INTO websocket_answer VALUES (1)")
    assert ps_lab.sql("SELECT n FROM websocket_answer") == [(1,)]
    ps_lab.sql("DROP TABLE websocket_answer")


# --- much data ---


def test_much_data(tunnel: Callable[..., psycopg.Connection[Any]]) -> None:
    """Much data goes through both ways, unharmed."""
    conn = tunnel()
    conn.execute("CREATE TEMPORARY TABLE lines (line text)")
    line = b"x" * 9_999 + b"\n"
    with conn.cursor().copy("COPY lines FROM STDIN") as copy:
        for _ in range(SIZE // len(line)):
            copy.write(line)
    assert conn.execute("SELECT sum(length(line) + 1) FROM lines").fetchone() == (SIZE,)
    with conn.cursor().copy("COPY lines TO STDOUT") as copy:
        assert sum(map(len, copy)) == SIZE


def test_slow_reader_slows_the_server(ps_lab: Lab, connect: Connect) -> None:
    """A client that does not read makes the server wait: the edge does not keep the result in memory.

    It would have had the time that the same takes for another client.
    """
    with Tunnel(ps_lab) as way, psycopg.connect(**way.parameters(application_name="slow-reader")) as conn:
        much = "SELECT repeat('x', 10000) FROM generate_series(1, 5000)"
        conn.pgconn.send_query(much.encode())
        conn.pgconn.flush()
        query = "SELECT wait_event FROM pg_stat_activity WHERE application_name = 'slow-reader'"
        for _ in range(2):
            wait_until(lambda: ps_lab.sql(query) == [("ClientWrite",)], "the server waits for its client", timeout=5)
            assert len(connect().execute(much).fetchall()) == 5000
        assert next_result(conn.pgconn).ntuples == 5000
        assert conn.pgconn.get_result() is None


def test_slow_server_slows_the_writer(ps_lab: Lab) -> None:
    """A server that does not read makes the client wait: the edge does not keep the statement in memory."""
    with Tunnel(ps_lab) as way, psycopg.connect(**way.parameters(), autocommit=True) as conn:
        pgconn = conn.pgconn
        pgconn.enter_pipeline_mode()
        pgconn.send_query_params(b"SELECT pg_sleep(60)", None)
        pgconn.pipeline_sync()
        pgconn.flush()
        wait_until(lambda: asleep(ps_lab), "the statement runs")
        pgconn.send_query_params(b"SELECT length($1)", [b"x" * SIZE])
        pgconn.pipeline_sync()
        pgconn.nonblocking = 1
        while pgconn.flush() and select.select([], [pgconn.socket], [], 1)[1]:
            pass
        assert way.sent < SIZE / 5
        ps_lab.sql("SELECT pg_cancel_backend(%s)", conn.info.backend_pid)
        assert next_result(pgconn).error_field(psycopg.pq.DiagnosticField.SQLSTATE) == b"57014"
        assert pgconn.get_result() is None
        assert next_result(pgconn).status == psycopg.pq.ExecStatus.PIPELINE_SYNC
        assert next_result(pgconn).get_value(0, 0) == str(SIZE).encode()
        assert pgconn.get_result() is None
        assert next_result(pgconn).status == psycopg.pq.ExecStatus.PIPELINE_SYNC
        pgconn.exit_pipeline_mode()
        pgconn.nonblocking = 0
