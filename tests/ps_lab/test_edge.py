"""The edge: TLS, what it refuses and how, cancel requests, counting, faults, and clients that misbehave."""

import contextlib
import gc
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

from ps_lab import Lab
from ps_lab.processes import wait_until
from ps_lab.routes import Port
from tests.ps_lab.conftest import Connect, parameters, whereabouts

SSL_REQUEST = struct.pack("!II", 8, 80877103)
GSS_REQUEST = struct.pack("!II", 8, 80877104)


def startup(user: str, protocol: int = 3 << 16) -> bytes:
    """Return a startup message."""
    body = struct.pack("!I", protocol) + b"user\0" + user.encode() + b"\0\0"
    return struct.pack("!I", len(body) + 4) + body


@contextlib.contextmanager
def raw(lab: Lab, port: Port = "direct", *, tls: bool = False) -> Iterator[socket.socket]:
    """Connect as no driver would."""
    with socket.create_connection(("127.0.0.1", lab.edge.ports[port]), timeout=5) as plain:
        if not tls:
            yield plain
            return
        plain.sendall(SSL_REQUEST)
        assert plain.recv(1) == b"S"
        context = ssl.create_default_context(cafile=str(parameters(lab)["sslrootcert"]))
        with context.wrap_socket(plain, server_hostname="localhost") as wrapped:
            yield wrapped


def rest_of(sock: socket.socket) -> bytes:
    """Read until the other side closes."""
    parts = []
    with contextlib.suppress(ConnectionResetError, ssl.SSLEOFError):
        while part := sock.recv(65536):
            parts.append(part)
    return b"".join(parts)


def asleep(lab: Lab) -> list[tuple[Any, ...]]:
    """Return the sleepers among the application's sessions on the primary."""
    return lab.sql("SELECT 1 FROM pg_stat_activity WHERE usename = 'app' AND wait_event = 'PgSleep'")


# --- TLS ---


def test_tls_is_demanded(ps_lab: Lab, connect: Connect) -> None:
    """Without TLS there is PlanetScale's error and hint; with it the certificate is good for both names."""
    for port in ("direct", "pooled"):
        with pytest.raises(psycopg.OperationalError) as failure:
            connect(port, sslmode="disable", sslrootcert="")
        assert "FATAL:  SSL connection is required" in str(failure.value)
        assert "Use sslmode=require or connect with SSL enabled" in str(failure.value)
    for host in ("localhost", "127.0.0.1"):
        assert connect(host=host).pgconn.ssl_in_use
    with raw(ps_lab) as sock:
        sock.sendall(startup(f"app.{ps_lab.branch}"))
        answer = rest_of(sock)
    assert answer[:1] == b"E"
    assert b"C28000\0MSSL connection is required\0H" in answer


@pytest.mark.skipif(psycopg.pq.version() < 170000, reason="libpq before 17 has no direct negotiation")
@pytest.mark.parametrize("port", ["direct", "pooled"])
def test_direct_negotiation(connect: Connect, port: Port) -> None:
    """`sslnegotiation=direct` works on both ports."""
    assert whereabouts(connect(port, sslnegotiation="direct"))[1] is False


def test_gss_is_refused(ps_lab: Lab) -> None:
    """A GSS request is answered with N, and the client may go on to TLS."""
    with raw(ps_lab) as sock:
        for request, answer in ((GSS_REQUEST, b"N"), (GSS_REQUEST, b"N"), (SSL_REQUEST, b"S")):
            sock.sendall(request)
            assert sock.recv(1) == answer


# --- refusals ---


@pytest.mark.parametrize(
    ("port", "user", "text"),
    [
        ("direct", "app", "invalid user format: username must include branch (e.g., user.branch)"),
        ("pooled", "app|write-pool", "invalid user format: username must include branch (e.g., user.branch)"),
        ("direct", "app.nowhere", "branch nowhere does not exist"),
        ("pooled", "app.{branch}|replica", "pooler only supports primary destinations for branch {branch}"),
        ("pooled", "app.{branch}|nobody", "member nobody not found in branch {branch}"),
        ("pooled", "app.{branch}|local", "member local not found in branch {branch}"),
        ("direct", "app.{branch}|write-pool", "member write-pool not found in branch {branch}"),
    ],
)
def test_refusals(ps_lab: Lab, connect: Connect, port: Port, user: str, text: str) -> None:
    """What the edge cannot route it refuses with PlanetScale's text, which is all that a libpq client sees; SQLSTATE 28000."""
    user, text = user.format(branch=ps_lab.branch), text.format(branch=ps_lab.branch)
    with pytest.raises(psycopg.OperationalError) as failure:
        connect(port, user=user)
    assert f"FATAL:  {text}" in str(failure.value)
    with raw(ps_lab, port, tls=True) as sock:
        sock.sendall(startup(user))
        assert f"SFATAL\0C28000\0M{text}\0".encode() in rest_of(sock)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (struct.pack("!I", 5) + b"x", "startup message too short: 5 bytes"),
        (struct.pack("!II", 10_001, 3 << 16), "failed to parse startup header"),
        (startup("app", protocol=2 << 16), "failed to parse startup header"),
    ],
)
def test_malformed_start(ps_lab: Lab, message: bytes, text: str) -> None:
    """What is no startup message is refused as PlanetScale documents it, SQLSTATE 08006."""
    with raw(ps_lab, tls=True) as sock:
        sock.sendall(message)
        assert f"SFATAL\0C08006\0M{text}\0".encode() in rest_of(sock)


def test_wrong_password(connect: Connect) -> None:
    """The server's and the bouncers' own refusal of a password reaches the client."""
    for port, suffix in (("direct", ""), ("pooled", "write-pool")):
        with pytest.raises(psycopg.OperationalError, match=r"password authentication failed|SASL authentication failed"):
            connect(port, suffix, password="wrong")


@pytest.mark.parametrize("bouncer", ["local", "write-pool", "read-pool"])
def test_wrong_password_first(ps_lab: Lab, connect: Connect, bouncer: str) -> None:
    """A bouncer whose first login fails serves the next ones: what PgBouncer 1.25 with SCRAM secrets does not."""
    suffix = "" if bouncer == "local" else bouncer
    ps_lab.bouncers[bouncer].stop()
    ps_lab.bouncers[bouncer].start()
    with pytest.raises(psycopg.OperationalError, match="SASL authentication failed"):
        connect("pooled", suffix, password="wrong")
    assert connect("pooled", suffix).execute("SELECT 1").fetchone() == (1,)


def test_bouncer_down(ps_lab: Lab, connect: Connect) -> None:
    """A bouncer that is gone is PlanetScale's "failed to connect to upstream"; restarted, it serves."""
    ps_lab.bouncers["read-pool"].stop()
    try:
        with pytest.raises(psycopg.OperationalError, match="FATAL:  failed to connect to upstream"):
            connect("pooled", "read-pool")
    finally:
        ps_lab.restart_bouncer("read-pool")
    assert whereabouts(connect("pooled", "read-pool"))[1]


# --- cancel ---


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize(("port", "suffix"), [("direct", ""), ("pooled", ""), ("pooled", "write-pool")])
def test_cancel(ps_lab: Lab, connect: Connect, port: Port, suffix: str, encrypted: bool) -> None:
    """A cancel request, in the clear or by TLS, reaches the server that runs the statement; the connection stays."""
    conn = connect(port, suffix)
    bystander = connect(port, suffix)

    def cancel() -> None:
        wait_until(lambda: asleep(ps_lab), "the statement runs")
        (conn.cancel_safe if encrypted else conn.cancel)()

    canceller = threading.Thread(target=cancel)
    canceller.start()
    with pytest.raises(psycopg.errors.QueryCanceled):
        conn.execute("SELECT pg_sleep(20)")
    canceller.join()
    assert conn.execute("SELECT 1").fetchone() == bystander.execute("SELECT 1").fetchone() == (1,)


def test_cancel_of_nothing(ps_lab: Lab) -> None:
    """A cancel request whose key nobody has is ignored, as a server does: the connection is closed."""
    with raw(ps_lab) as sock:
        sock.sendall(struct.pack("!IIII", 16, 80877102, 1, 2))
        assert rest_of(sock) == b""


# --- counting ---


def _autocommit(conn: psycopg.Connection[Any]) -> None:
    conn.execute("SELECT 1")


def _transaction(conn: psycopg.Connection[Any]) -> None:
    with conn.transaction():
        conn.execute("SELECT 1")


def _three_in_one_message(conn: psycopg.Connection[Any]) -> None:
    conn.execute("BEGIN; SELECT 1; COMMIT")


def _parameters(conn: psycopg.Connection[Any]) -> None:
    psycopg.Cursor(conn).execute("SELECT %s::int", (1,), prepare=False)


def _much(conn: psycopg.Connection[Any]) -> None:
    conn.execute("SELECT repeat('y', 3000000), length(%s)", ("x" * 3_000_000,))


def _copy_out(conn: psycopg.Connection[Any]) -> None:
    with conn.cursor().copy("COPY (SELECT generate_series(1, 100000)) TO STDOUT") as copy:
        assert sum(1 for _ in copy) > 0


def _error(conn: psycopg.Connection[Any]) -> None:
    with pytest.raises(psycopg.errors.DivisionByZero):
        conn.execute("SELECT 1 / 0")


@pytest.mark.parametrize(
    ("work", "expected"),
    [(_autocommit, 1), (_transaction, 3), (_three_in_one_message, 1), (_parameters, 1), (_much, 1), (_copy_out, 1), (_error, 1)],
)
@pytest.mark.parametrize(
    ("port", "suffix", "path"),
    [("direct", "", "direct"), ("pooled", "write-pool", "primary"), ("pooled", "read-pool", "replica")],
)
def test_round_trips(
    ps_lab: Lab,
    connect: Connect,
    port: Port,
    suffix: str,
    path: str,
    work: Callable[[psycopg.Connection[Any]], None],
    expected: int,
) -> None:
    """What psycopg is known to send is counted exactly, by path, each time anew."""
    conn = connect(port, suffix)
    for _ in range(3):
        with ps_lab.round_trips() as counter:
            work(conn)
        assert (counter.count, dict(counter.by_path), counter.startups) == (expected, {path: expected}, 0)


def test_start_and_end_are_not_round_trips(ps_lab: Lab) -> None:
    """A connection's start is counted apart, and its end not at all."""
    with ps_lab.round_trips() as counter:
        psycopg.connect(**parameters(ps_lab)).close()
    assert (counter.count, counter.startups) == (0, 1)


def test_counters_nest(ps_lab: Lab, connect: Connect) -> None:
    """Counters are independent, also of others that have counted the same so far."""
    conn = connect()
    with ps_lab.round_trips() as outer:
        with ps_lab.round_trips() as inner:
            conn.execute("SELECT 1")
        conn.execute("SELECT 1")
    conn.execute("SELECT 1")
    assert (outer.count, inner.count) == (2, 1)


# --- faults ---


def test_cut(ps_lab: Lab, connect: Connect) -> None:
    """`cut` resets the connections of the path that it names, also one that waits for its answer; new ones are served."""
    write, read, direct = connect("pooled", "write-pool"), connect("pooled", "read-pool"), connect()
    ps_lab.edge.cut("primary")
    with pytest.raises(psycopg.OperationalError):
        write.execute("SELECT 1")
    for conn in (read, direct, connect("pooled", "write-pool")):
        conn.execute("SELECT 1")

    def cut() -> None:
        wait_until(lambda: asleep(ps_lab), "the statement runs")
        ps_lab.edge.cut()

    cutter = threading.Thread(target=cut)
    cutter.start()
    with pytest.raises(psycopg.OperationalError):
        direct.execute("SELECT pg_sleep(20)")
    cutter.join()
    with pytest.raises(psycopg.OperationalError):
        read.execute("SELECT 1")


def test_hang(ps_lab: Lab, connect: Connect) -> None:
    """On a path that hangs nothing arrives until `resume`, and then everything; the others go on; new connections hang, too."""
    write, read = connect("pooled", "write-pool"), connect("pooled", "read-pool")
    with ps_lab.edge.hang("primary"):
        write.pgconn.send_query(b"SELECT 42")
        read.execute("SELECT 1")
        with pytest.raises(psycopg.errors.ConnectionTimeout):
            connect("pooled", "write-pool", connect_timeout=2)
        write.pgconn.consume_input()
        assert write.pgconn.is_busy()
    result = write.pgconn.get_result()
    assert result is not None
    assert result.get_value(0, 0) == b"42"


def test_hang_of_everything(ps_lab: Lab) -> None:
    """Where all hangs, a new connection gets no further than TLS, and is served after `resume`."""
    with ps_lab.edge.hang():
        starting = psycopg.pq.PGconn.connect_start(
            psycopg.conninfo.make_conninfo(**{k: v for k, v in parameters(ps_lab).items() if v}).encode()
        )
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline:
            status = starting.connect_poll()
            assert status in (psycopg.pq.PollingStatus.READING, psycopg.pq.PollingStatus.WRITING)
            _wait_for(starting, 0.1)

    def done() -> bool:
        status = starting.connect_poll()
        assert status != psycopg.pq.PollingStatus.FAILED, starting.error_message
        _wait_for(starting, 0.01)
        return status == psycopg.pq.PollingStatus.OK

    wait_until(done, "the connection")
    starting.finish()


def _wait_for(pgconn: psycopg.pq.abc.PGconn, timeout: float) -> None:
    select.select([pgconn.socket], [], [], timeout)


def test_delay(ps_lab: Lab, connect: Connect) -> None:
    """What is forwarded is late by the delay, each way, and in order when the delay ends meanwhile."""
    conn = connect()
    with ps_lab.edge.delay(0.1):
        began = time.monotonic()
        conn.execute("SELECT 1")
        assert time.monotonic() - began >= 0.2
    conn.execute("CREATE TEMPORARY TABLE numbers (id serial, number int)")
    ps_lab.edge.delay(0.2)
    with conn.cursor().copy("COPY numbers (number) FROM STDIN") as copy:
        for number in range(60_000):
            copy.write_row((number,))
            if number == 30_000:
                ps_lab.edge.resume()
    assert conn.execute("SELECT count(*), bool_and(id = number + 1) FROM numbers").fetchone() == (60_000, True)


def test_refuse(ps_lab: Lab, connect: Connect) -> None:
    """`refuse` answers new connections with an error of the caller's choice, and leaves the others alone."""
    conn = connect()
    with ps_lab.edge.refuse("08006", "connection retry timeout - branch x unavailable after 10s"):
        with pytest.raises(psycopg.OperationalError, match="FATAL:  connection retry timeout - branch x unavailable after 10s"):
            connect()
        conn.execute("SELECT 1")
    connect().execute("SELECT 1")


def test_slow_reader_slows_the_server(ps_lab: Lab, connect: Connect) -> None:
    """A client that does not read makes the server wait: the edge does not keep the result in memory. Nothing is lost."""
    conn = connect(application_name="slow-reader")
    conn.pgconn.send_query(b"SELECT repeat('x', 10000) FROM generate_series(1, 5000)")
    conn.pgconn.flush()
    query = "SELECT wait_event FROM pg_stat_activity WHERE application_name = 'slow-reader'"
    wait_until(lambda: ps_lab.sql(query) == [("ClientWrite",)], "the server waits for its client")
    result = conn.pgconn.get_result()
    assert result is not None
    assert result.ntuples == 5000


# --- clients that misbehave ---


def test_clients_that_go_away(ps_lab: Lab, connect: Connect) -> None:
    """Clients that leave or lie at any point of their start are forgotten, and nobody else notices (nor does a log)."""
    user = f"app.{ps_lab.branch}"
    for part in (b"", b"\x00", b"\x16", b"\x16\x03\x01", SSL_REQUEST[:5], SSL_REQUEST, b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 100):
        with raw(ps_lab) as sock:
            sock.sendall(part)
    with raw(ps_lab) as sock:
        sock.sendall(SSL_REQUEST)
        assert sock.recv(1) == b"S"
        sock.sendall(b"this is no TLS at all")
        rest_of(sock)
    for part in (
        b"",
        b"\x00",
        startup(user)[:9],
        startup(user),
        startup(user) + b"Q\0\0\0\x04",
        startup("\udcff".encode("utf-8", "surrogateescape").decode("latin-1")),
    ):
        with raw(ps_lab, tls=True) as sock:
            sock.sendall(part)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    conn = connect()
    conn.pgconn.send_query(b"SELECT repeat('x', 10000) FROM generate_series(1, 2000)")
    conn.close()
    gc.collect()  # psycopg's connections that timed out are in cycles with their exceptions
    wait_until(lambda: ps_lab.edge.status()["clients"] == 0, "the edge has forgotten them")
    assert connect().execute("SELECT 1").fetchone() == (1,)


def test_cut_answers(ps_lab: Lab) -> None:
    """A connection breaks when the server has answered the message that holds a text: it ran, and nobody is told."""
    primary: dict[str, Any] = ps_lab.topology.primary.conninfo()
    with psycopg.connect(**primary, autocommit=True) as conn:
        conn.execute("CREATE TABLE answer (n int)")
        with ps_lab.edge.cut_answers("primary", containing="INSERT"):
            conn.execute("SELECT 1")
            assert ps_lab.edge.status()["answer_cuts"] == 1
            with pytest.raises(psycopg.OperationalError):
                conn.execute("INSERT INTO answer VALUES (1)")
            assert ps_lab.edge.status()["answer_cuts"] == 0
    assert ps_lab.sql("SELECT n FROM answer") == [(1,)]
    ps_lab.sql("DROP TABLE answer")
    with ps_lab.edge.cut_answers(times=3):
        assert ps_lab.edge.status()["answer_cuts"] == 3
    assert ps_lab.edge.status()["answer_cuts"] == 0


def test_a_flush_that_nobody_waits_for_is_no_round_trip(ps_lab: Lab) -> None:
    """psycopg leaves a pipeline with one: behind the answer, it takes no round trip, and what follows takes its own."""
    direct: dict[str, Any] = ps_lab.topology.direct.conninfo()
    with psycopg.connect(**direct, autocommit=True) as conn:
        pgconn = conn.pgconn
        pgconn.enter_pipeline_mode()
        for _ in range(5):
            with ps_lab.round_trips() as counter:
                pgconn.send_query_params(b"SELECT 1", None)
                pgconn.pipeline_sync()
                results = [pgconn.get_result() for _ in range(3)]
                pgconn.send_flush_request()
                pgconn.flush()
            assert results[0] is not None
            assert results[2] is not None
            assert results[2].status == psycopg.pq.ExecStatus.PIPELINE_SYNC
            assert counter.count == 1
        pgconn.exit_pipeline_mode()
