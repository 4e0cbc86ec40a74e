"""The fault table: each status and each instant at which a connection can be cut, to what the caller gets and what happened.

What the lab cannot be made to say, `Says` says, which answers given bytes; nothing of a database is pretended there.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import psycopg
import pytest
import trustme

import ps_http
from ps_core import CommitOutcomeUnknown, DeadlineExceeded, Event, classify, deadline, subscribe
from ps_core.context import current
from ps_core.events import Name
from ps_core.failures import Kind, Ran
from ps_http import _aio
from ps_lab.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ps_lab import Lab
    from tests.ps_http.conftest import Driven


@pytest.fixture
def impatient(drive: Callable[..., Driven], ps_lab: Lab) -> Driven:
    """A client that tries nothing again."""
    return drive(ps_lab.url, bouncer="write-pool", retry_timeout=0)


def numbers(lab: Lab, table: str) -> list[int]:
    return [n for (n,) in lab.sql(f"select n from {table} order by n")]


# --- what the lab says ---


def test_answer_is_lost(ps_lab: Lab, client: Driven, table: str) -> None:
    """A write whose answer is lost is of unknown outcome, and is not sent again: it happened, once. So does a batch."""
    client.execute("select 1")
    heard: list[Event] = []
    ended = subscribe(heard.append)
    with ps_lab.edge.cut_answers("primary", containing=f"into {table}"), pytest.raises(CommitOutcomeUnknown) as caught:
        client.execute(f"insert into {table} values (1)")
    ended()
    assert (Name.COMMIT_OUTCOME, "unknown") in [(event.name, event.reason) for event in heard]
    assert isinstance(caught.value.__cause__, ps_http.HttpError)
    assert classify(caught.value).ran is Ran.UNKNOWN
    with ps_lab.edge.cut_answers("primary", containing=f"into {table}"), pytest.raises(CommitOutcomeUnknown):
        with client.batch() as batch:
            batch.executemany(f"insert into {table} values (%s)", [[2], [3]])
    with ps_lab.edge.cut_answers("primary", containing="vacuum"), pytest.raises(CommitOutcomeUnknown):
        client.execute(f"vacuum {table}")
    assert numbers(ps_lab, table) == [1, 2, 3]


def test_answer_of_a_read_is_lost(ps_lab: Lab, client: Driven) -> None:
    """A read is sent again, and its caller notices nothing; so is a batch that is READ ONLY."""
    client.execute("select 1")
    with ps_lab.edge.cut_answers("primary", containing="select 4711", times=2):
        assert client.execute("select 4711").scalar() == 4711
        assert ps_lab.edge.status()["answer_cuts"] == 0
    with ps_lab.edge.cut_answers("primary", containing="select 4711"):
        with client.batch(read_only=True) as batch:
            pending = batch.execute("select 4711")
    assert pending.result.scalar() == 4711


def test_connection_is_cut_while_it_is_idle(ps_lab: Lab, client: Driven, table: str) -> None:
    """A connection that was lost meanwhile is not used: a write goes on a new one."""
    client.execute("select 1")
    ps_lab.edge.cut()
    client.execute(f"insert into {table} values (1)")
    assert numbers(ps_lab, table) == [1]


def test_unavailable(ps_lab: Lab, client: Driven, impatient: Driven, table: str) -> None:
    """503: it never ran, so a write is sent again too, until the server takes it."""
    with ps_lab.edge.refuse("57P03", "no primary available for branch"):
        with pytest.raises(ps_http.HttpError, match="status 503") as caught:
            impatient.execute(f"insert into {table} values (1)")
        assert (caught.value.status, classify(caught.value).ran) == (503, Ran.NO)
        assert caught.value.request_id
        assert numbers(ps_lab, table) == []
        tried: list[Event] = []

        def heard(event: Event) -> None:
            tried.append(event)
            if len(tried) == 3:
                ps_lab.edge.resume()

        ended = subscribe(heard)
        try:
            client.execute(f"insert into {table} values (1)")
        finally:
            ended()
    assert numbers(ps_lab, table) == [1]
    assert len(tried) >= 3


def test_outage(ps_lab: Lab) -> None:
    """While the endpoint is down one caller asks for all, and when it is back all are served: each write once."""
    heard: list[Event] = []
    ps_lab.sql("CREATE TABLE http_outage (n int)")
    ps_lab.sql("ALTER TABLE http_outage OWNER TO app")
    with ps_http.Client(ps_lab.url, bouncer="write-pool") as client, ThreadPoolExecutor(8) as pool:
        ended = subscribe(heard.append)
        try:
            with ps_lab.edge.refuse("57P03", "no primary available for branch"):
                work = [pool.submit(client.execute, "insert into http_outage values (%s)", [n]) for n in range(8)]
                wait_until(lambda: [event.name for event in heard].count(Name.RETRY) >= 10, "several tries")
            for one in work:
                assert one.result(30).rowcount == 1
        finally:
            ended()
    names = [event.name for event in heard]
    assert names.count(Name.OUTAGE_OPENED) == names.count(Name.OUTAGE_CLOSED) == 1
    assert ps_lab.sql("SELECT n FROM http_outage ORDER BY n") == [(n,) for n in range(8)]
    ps_lab.sql("DROP TABLE http_outage")


def test_rate_limited(ps_lab: Lab, client: Driven, table: str) -> None:
    """429: it never ran, and is sent again later."""
    with ps_lab.edge.limit_sql(per_second=1):
        for n in (1, 2):
            client.execute(f"insert into {table} values (%s)", [n])
    assert numbers(ps_lab, table) == [1, 2]


def test_too_large(ps_lab: Lab, client: Driven, table: str) -> None:
    """413: it never ran. 507: a batch was rolled back, so nothing of a statement is left; alone it would have been committed."""
    with ps_lab.edge.limit_sql(request_bytes=4000), pytest.raises(ps_http.HttpError, match="fewer at a time") as caught:
        client.execute(f"insert into {table} values (1, %s)", ["x" * 5000])
    assert (caught.value.status, classify(caught.value).kind) == (413, Kind.PERMANENT)
    with ps_lab.edge.limit_sql(response_bytes=1000):
        with pytest.raises(ps_http.HttpError, match="LIMIT") as caught:
            client.execute(f"insert into {table} values (1) returning repeat('x', 2000)")
        assert (caught.value.status, classify(caught.value).ran) == (507, Ran.ROLLED_BACK)
        with pytest.raises(ps_http.HttpError, match="LIMIT"):
            client.execute("select repeat('x', 2000)")
    assert numbers(ps_lab, table) == []


def test_wrong_password(ps_lab: Lab, drive: Callable[..., Driven]) -> None:
    """It is told at once, as a configuration's fault, and without the password."""
    url = ps_lab.create_role("http_wrong")
    client = drive(url, bouncer="write-pool")
    client.execute("select 1")
    ps_lab.set_password("http_wrong")
    try:
        with pytest.raises(ps_http.HttpError) as caught:
            drive(url.replace("@", "x@"), bouncer="write-pool").execute("select 1")
        assert classify(caught.value).kind is Kind.CONFIGURATION
        assert classify(caught.value).ran is Ran.NO
    finally:
        ps_lab.drop_role("http_wrong")


def test_server_ends(ps_lab: Lab, client: Driven, table: str) -> None:
    """A backend that is terminated under a write leaves its outcome unknown, under a read it is asked again."""

    def terminate(what: str) -> None:
        wait_until(
            lambda: ps_lab.sql(
                "select pg_terminate_backend(pid) from pg_stat_activity where query like %s and pid <> pg_backend_pid()"
                " and wait_event = 'PgSleep'",
                what,
            ),
            "the statement",
        )

    thread = threading.Thread(target=terminate, args=(f"insert into {table}%",))
    thread.start()
    with pytest.raises(CommitOutcomeUnknown) as caught:
        client.execute(f"insert into {table} select 1 from pg_sleep(1.5)")
    thread.join()
    assert isinstance(caught.value.__cause__, psycopg.Error)
    assert numbers(ps_lab, table) == []
    thread = threading.Thread(target=terminate, args=("select 4711%",))
    thread.start()
    assert client.execute("select 4711 from pg_sleep(0.5)").scalar() == 4711
    thread.join()


def test_switchover(ps_lab: Lab, client: Driven, table: str) -> None:
    """Work goes on at the new primary."""
    client.execute(f"insert into {table} values (1)")
    ps_lab.switchover()
    client.execute(f"insert into {table} values (2)")
    assert numbers(ps_lab, table) == [1, 2]


def test_deadline(ps_lab: Lab, client: Driven, table: str) -> None:
    """It ends a read, and the wait for a write, whose outcome is then unknown; where it is over before, nothing is sent."""
    client.execute("select 1")
    with ps_lab.edge.hang():
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded), deadline(0.3):
            client.execute("select 1")
        with pytest.raises(CommitOutcomeUnknown) as caught, deadline(0.3):
            client.execute(f"insert into {table} values (1)")
        assert time.monotonic() - began < 5
    cause = caught.value.__cause__
    # Its connection hung, too: either the connect or the wait was ended.
    assert isinstance(cause, DeadlineExceeded)
    with ps_lab.round_trips() as counted, deadline(0.001):
        wait_until(_is_over, "the deadline")
        with pytest.raises(DeadlineExceeded):
            client.execute("select 1")
    assert counted.count == 0
    with pytest.raises(psycopg.errors.QueryCanceled), deadline(0.5):
        client.execute("select pg_sleep(3)")


def test_time_is_over_while_the_body_is_sent(ps_lab: Lab, table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With asyncio, the end may come when the last byte is gone and the library has not come to say so: nothing is resent."""
    tell, heard = _aio._Progress.__call__, []

    async def hear(self: _aio._Progress, event: str, info: object) -> None:
        heard.append(event)
        if event == "http11.send_request_body.complete":
            await asyncio.Event().wait()
        await tell(self, event, info)

    async def write() -> None:
        async with ps_http.AsyncClient(ps_lab.url, bouncer="write-pool") as client:
            await client.execute("select 1")
            monkeypatch.setattr(_aio._Progress, "__call__", hear)
            with deadline("200ms"):
                await client.execute(f"insert into {table} values (1)")

    with pytest.raises(CommitOutcomeUnknown):
        asyncio.run(write())
    assert heard.count("http11.send_request_headers.started") == 1


def test_deadline_while_another_probes(ps_lab: Lab, client: Driven) -> None:
    """Callers wait for the endpoint to come back no longer than their deadline."""
    client.execute("select 1")
    gate = client.client._site.primary.gate
    gate.report_loss()
    try:
        with gate.turn(1):  # somebody's probe
            with pytest.raises(DeadlineExceeded), deadline(0.2):
                client.execute("select 1")
    finally:
        assert client.execute("select 1").scalar() == 1


def _is_over() -> bool:
    until = current().deadline
    return until is not None and time.monotonic() > until


# --- what it cannot be made to say ---


class Says:
    """A TLS server that answers each request with given bytes, or cuts the connection at a given instant."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._context = context
        self.answer: bytes | None = b""
        self.cut: str = ""
        self.requests: list[bytes] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _serve(self) -> None:
        while True:
            try:
                raw, _ = self._listener.accept()
            except OSError:
                return
            with raw:
                with suppress(OSError, ssl.SSLError, ValueError):
                    self._talk(raw)

    def _talk(self, raw: socket.socket) -> None:
        if self.cut == "before TLS":
            return
        with self._context.wrap_socket(raw, server_side=True) as tls:
            if self.cut == "after TLS":
                return
            head = b""
            while b"\r\n\r\n" not in head:
                if not (part := tls.recv(65536)):
                    return
                head += part
                if self.cut == "while sending":
                    reset(tls)
                    return
            head, _, body = head.partition(b"\r\n\r\n")
            length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            while len(body) < length:
                body += tls.recv(65536)
            self.requests.append(head + b"\r\n\r\n" + body)
            if self.answer is not None:
                tls.sendall(self.answer)
            tls.unwrap()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def says(authority: trustme.CA) -> Iterator[Says]:
    """A server whose certificate is good."""
    with serving(authority, "localhost") as server:
        yield server


@contextmanager
def serving(authority: trustme.CA, name: str) -> Iterator[Says]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    server = Says(context)
    try:
        yield server
    finally:
        server.close()


def reset(tls: ssl.SSLSocket) -> None:
    """Close by a reset."""
    tls.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    tls.close()


def url_of(server: Says, authority: trustme.CA, folder: Path, host: str = "localhost") -> str:
    path = folder / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return f"postgresql://app:s3cret@{host}/postgres?sslrootcert={path}&ps_https_port={server.port}&ps_retry_timeout=0"


def response(status: int, body: bytes, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


HTML = b"<html>s3cret</html>"
MANGLED = (
    response(200, b'{"results":[')[:-4],  # the end is missing
    b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
    b"SSH-2.0-OpenSSH_9.9\r\n",
    b"HTTP/1.1 ",
    b"",
)


@pytest.mark.parametrize(
    ("answer", "unknown"),
    [
        *((response(status, HTML), True) for status in (200, 400, 408, 500, 502, 503, 504, 507)),
        *((response(status, HTML), False) for status in (401, 403, 404, 405, 413, 421, 429)),
        *((response(status, b"", "Location: https://elsewhere.example/sql"), False) for status in (301, 302, 307, 308)),
        (response(503, b'{"msg":"unavailable"}'), False),
        (response(408, b'{"msg":"connecting timed out"}'), False),
        *((answer, True) for answer in MANGLED),
    ],
)
def test_statuses(
    says: Says, authority: trustme.CA, tmp_path: Path, drive: Callable[..., Driven], answer: bytes, unknown: bool
) -> None:
    """A write is of unknown outcome, or it is known that it never ran; it is sent once, and a redirect is not followed."""
    client = drive(url_of(says, authority, tmp_path))
    says.answer = answer
    with pytest.raises(psycopg.OperationalError) as caught:
        client.execute("insert into t values (1)")
    assert isinstance(caught.value, CommitOutcomeUnknown) is unknown
    error = caught.value.__cause__ if unknown else caught.value
    assert isinstance(error, ps_http.HttpError)
    assert classify(error).ran is (Ran.UNKNOWN if unknown else Ran.NO)
    assert len(says.requests) == 1
    assert "s3cret" not in f"{caught.value!r} {caught.value} {error!r} {error}"


@pytest.mark.parametrize("cut", ["before TLS", "after TLS"])
def test_cuts(says: Says, authority: trustme.CA, tmp_path: Path, drive: Callable[..., Driven], cut: str) -> None:
    """A connection that is cut before it is there never carried anything; one that is cut right then may have."""
    client = drive(url_of(says, authority, tmp_path))
    says.cut = cut
    with pytest.raises(psycopg.OperationalError) as caught:
        client.execute("insert into t values (1)")
    if cut == "before TLS":
        assert classify(caught.value).ran is Ran.NO
    assert says.requests == []


def test_cut_while_sending(says: Says, authority: trustme.CA, tmp_path: Path, drive: Callable[..., Driven]) -> None:
    """A request of which the end was not handed over cannot have been run. asyncio buffers, and may not be able to tell."""
    client = drive(url_of(says, authority, tmp_path))
    says.cut = "while sending"
    with pytest.raises(psycopg.OperationalError) as caught:
        client.execute("insert into t values (%s)", ["x" * 30_000_000])
    if isinstance(client.client, ps_http.Client):
        assert "while the request was sent" in str(caught.value)
        assert classify(caught.value).ran is Ran.NO
    assert says.requests == []


def test_reads_are_never_wrong(says: Says, authority: trustme.CA, tmp_path: Path, drive: Callable[..., Driven]) -> None:
    """An answer that is none is an error also of a read."""
    client = drive(url_of(says, authority, tmp_path))
    for body in (HTML, b"{}", b'{"results":[]}', b"null"):
        says.answer = response(200, body)
        with pytest.raises(ps_http.HttpError):
            client.execute("select 1")


def test_nothing_listens(drive: Callable[..., Driven], tmp_path: Path, authority: trustme.CA) -> None:
    """What cannot be connected to never ran, and says which host."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    (tmp_path / "ca.pem").write_bytes(authority.cert_pem.bytes())
    url = f"postgresql://app:s3cret@localhost/postgres?sslrootcert={tmp_path}/ca.pem&ps_https_port={port}&ps_retry_timeout=0"
    with pytest.raises(psycopg.OperationalError, match=r"connect to localhost|come back") as caught:
        drive(url).execute("insert into t values (1)")
    assert classify(caught.value).ran is Ran.NO
    with pytest.raises(psycopg.OperationalError, match=r"nowhere\.invalid") as caught:
        drive("postgresql://app:s3cret@nowhere.invalid/postgres?ps_retry_timeout=0").execute("insert into t values (1)")
    assert classify(caught.value).ran is Ran.NO


def test_certificates(authority: trustme.CA, tmp_path: Path, drive: Callable[..., Driven]) -> None:
    """A certificate of somebody else, or of another name, ends it before anything is sent."""
    with serving(trustme.CA(), "localhost") as server:
        with pytest.raises(ps_http.HttpError, match="certificate of localhost") as caught:
            drive(url_of(server, authority, tmp_path)).execute("select 1")
        assert classify(caught.value).kind is Kind.CONFIGURATION
        assert server.requests == []
    with serving(authority, "other.example") as server:
        with pytest.raises(ps_http.HttpError, match="certificate of localhost"):
            drive(url_of(server, authority, tmp_path)).execute("select 1")
        assert server.requests == []


def test_no_secret_is_told(
    says: Says, authority: trustme.CA, tmp_path: Path, drive: Callable[..., Driven], caplog: pytest.LogCaptureFixture
) -> None:
    """The password is in the header, and in no log, `repr` or error."""
    caplog.set_level(logging.DEBUG)
    client = drive(url_of(says, authority, tmp_path))
    says.answer = response(500, HTML)
    with pytest.raises(CommitOutcomeUnknown) as caught:
        client.execute("insert into t values (%s)", ["s3cret value"])
    assert b"s3cret" in says.requests[0]
    told = [caplog.text, repr(client.client), repr(client.client._site.primary)]
    error: BaseException | None = caught.value
    while error is not None:
        told += [repr(error), str(error), *getattr(error, "__notes__", ())]
        error = error.__cause__ or error.__context__
    assert "s3cret" not in " ".join(told)
