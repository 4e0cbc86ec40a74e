"""One place that takes requests: kept-alive connections over TLS, for threads and across forks. Here things are done.

`http.client` does it, since it takes a fifth of the time to import that other libraries take. What a failure says of whether the
server can have got the request is told here, where it is known.
"""

from __future__ import annotations

import http.client
import os
import select
import socket
import ssl
import threading
import time
import weakref
from base64 import b64encode
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from ps_core._fork import renew_after_fork
from ps_core._plain_errors import ConfigurationError
from ps_core.failures import Failure, Kind, Ran
from ps_http._request import PATH

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ps_core._websocket import Target
    from ps_http._request import Request

__all__ = ["IDLE", "Answer", "Lost", "Transport", "context_for", "proxy_for"]

IDLE: Final = 30.0
"""Seconds for which a connection without requests is used again: one that a load balancer, or a freeze of the whole machine, has
ended meanwhile may look open, and a write that is lost with it has an unknown outcome."""
_KEPT: Final = 4
"""Connections without requests that are kept: one, where no threads ask at the same time."""
_PIECE: Final = 1 << 16
_KEEPALIVE: Final = (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 10_000))
"""The same as `ps_core.topology` sets for libpq: a server that is gone is noticed within some 10 s."""


class Answer:
    """What came back, whatever it says."""

    __slots__ = ("body", "request_id", "status")

    def __init__(self, status: int, body: bytes, request_id: str | None) -> None:
        self.status = status
        self.body = body
        self.request_id = request_id


class Lost(Exception):
    """No answer came."""

    def __init__(self, message: str, failure: Failure, *, timed_out: bool = False) -> None:
        super().__init__(message)
        self.failure = failure
        self.timed_out = timed_out
        """The time was over."""

    @classmethod
    def while_connecting(cls, error: Exception, host: str) -> Lost:
        """Return what a failed connect was: nothing was sent."""
        if isinstance(error, ssl.SSLCertVerificationError):
            text = f"the certificate of {host} is not valid: {error.verify_message}"
            return cls(text, _failure("http_certificate", Ran.NO, Kind.CONFIGURATION))
        rule = "dns" if isinstance(error, socket.gaierror) else "http_connect_failed"
        return cls(
            f"could not connect to {host}: {_said(error)}", _failure(rule, Ran.NO), timed_out=isinstance(error, TimeoutError)
        )

    @classmethod
    def while_sending(cls, error: Exception) -> Lost:
        """Return what a failure was before the last byte was handed over: the server cannot have got the whole request."""
        text = f"the connection was lost while the request was sent: {_said(error)}"
        return cls(text, _failure("http_not_sent", Ran.NO), timed_out=isinstance(error, TimeoutError))

    @classmethod
    def while_waiting(cls, error: Exception) -> Lost:
        """Return what a failure was behind it: the server may have done anything."""
        text = f"the connection was lost before the answer was there: {_said(error)}"
        return cls(text, _failure("http_lost", Ran.UNKNOWN), timed_out=isinstance(error, TimeoutError))


def _failure(rule: str, ran: Ran, kind: Kind = Kind.TRANSIENT) -> Failure:
    return Failure(kind=kind, ran=ran, usable=False, rule=rule)


def _said(error: Exception) -> str:
    # Not the text of an http.client error: it may quote what came.
    if isinstance(error, TimeoutError):
        return "the time was over"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) if isinstance(error, OSError) and error.args else type(error).__name__


def context_for(target: Target) -> ssl.SSLContext:
    """Return what checks the server's certificate and name.

    Raises:
        ConfigurationError: the file with the certificates of authorities cannot be read.
    """
    try:
        return ssl.create_default_context(cafile=target.authorities)
    except OSError as exc:
        raise ConfigurationError(
            f"sslrootcert={target.authorities}: it cannot be read: {exc.strerror or 'no certificate'}"
        ) from None


def proxy_for(host: str, environ: Mapping[str, str]) -> tuple[str, int, dict[str, str]] | None:
    """Return the host, the port and the headers of the proxy that leads to `host`, as `HTTPS_PROXY` and `NO_PROXY` say.

    Raises:
        ConfigurationError: the variable names no proxy that can be used.
    """
    given = environ.get("https_proxy") or environ.get("HTTPS_PROXY")
    if not given:
        return None
    without = (environ.get("no_proxy") or environ.get("NO_PROXY") or "").lower().split(",")
    for name in (one.strip().lstrip(".") for one in without):
        if name and (name == "*" or f".{host.lower()}".endswith(f".{name}")):
            return None
    url = urlsplit(given if "://" in given else f"http://{given}")
    try:
        port = url.port or 80
    except ValueError:
        port = 0
    if url.scheme != "http" or not url.hostname or not port:
        raise ConfigurationError("HTTPS_PROXY: write http://HOST:PORT, or http://USER:PASSWORD@HOST:PORT")
    headers = {}
    if url.username:
        login = f"{unquote(url.username)}:{unquote(url.password or '')}"
        headers["Proxy-Authorization"] = f"Basic {b64encode(login.encode()).decode()}"
    return url.hostname, port, headers


class Transport:
    """Sends requests to one server."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._context = context_for(target)
        self._idle: list[tuple[http.client.HTTPSConnection, float, float]] = []
        # Nobody opened them, so nobody has to close them.
        weakref.finalize(self, _close, self._idle)
        self.forget_threads()
        renew_after_fork(self)

    def forget_threads(self) -> None:
        """Begin without connections: after a fork, those are the parent's. Closing ours says nothing to the server."""
        self._lock = threading.Lock()
        _close(self._idle)

    close = forget_threads

    def post(self, request: Request, *, connect: float, until: float | None) -> Answer:
        """Send a request and return the answer.

        `connect` bounds the connect, in seconds, and `until`, on `time.monotonic`'s clock, everything.

        Raises:
            Lost: there is none.
        """
        conn = self._take() or self._connect(connect, until)
        keep = False
        try:
            try:
                self._bound(conn, until)
                conn.request("POST", PATH, request.body, request.headers)
            except (OSError, http.client.HTTPException) as exc:
                raise Lost.while_sending(exc) from None
            try:
                self._bound(conn, until)
                response = conn.getresponse()
                parts = []
                while part := response.read(_PIECE):
                    parts.append(part)
                    self._bound(conn, until)
            except (OSError, http.client.HTTPException) as exc:
                raise Lost.while_waiting(exc) from None
            keep = not response.will_close
            return Answer(response.status, b"".join(parts), response.getheader("Neon-Request-Id"))
        finally:
            if keep:
                self._give_back(conn)
            else:
                conn.close()

    def _connect(self, seconds: float, until: float | None) -> http.client.HTTPSConnection:
        target = self.target
        proxy = proxy_for(target.host, os.environ)
        if until is not None:
            seconds = max(0.001, min(seconds, until - time.monotonic()))
        if proxy is None:
            conn = http.client.HTTPSConnection(target.host, target.https_port, timeout=seconds, context=self._context)
        else:
            conn = http.client.HTTPSConnection(*proxy[:2], timeout=seconds, context=self._context)
            conn.set_tunnel(target.host, target.https_port, proxy[2])
        try:
            conn.connect()
        except (OSError, http.client.HTTPException) as exc:
            conn.close()
            raise Lost.while_connecting(exc, target.host) from None
        for name, value in (("SO_KEEPALIVE", 1), *_KEEPALIVE):
            if hasattr(socket, name):
                level = socket.SOL_SOCKET if name == "SO_KEEPALIVE" else socket.IPPROTO_TCP
                conn.sock.setsockopt(level, getattr(socket, name), value)
        return conn

    @staticmethod
    def _bound(conn: http.client.HTTPSConnection, until: float | None) -> None:
        if conn.sock is None:  # the last byte was read, and the server closes
            return
        left = None if until is None else until - time.monotonic()
        if left is not None and left <= 0:
            raise TimeoutError
        conn.sock.settimeout(left)

    def _take(self) -> http.client.HTTPSConnection | None:
        """Return a connection that is open as far as can be told; None: there is none."""
        now, clock = time.monotonic(), time.time()
        while True:
            with self._lock:
                if not self._idle:
                    return None
                conn, since, at = self._idle.pop()
            # Two clocks: the monotonic one may stand still while the machine is frozen.
            if max(now - since, clock - at) < IDLE and not _is_readable(conn.sock):
                return conn
            conn.close()

    def _give_back(self, conn: http.client.HTTPSConnection) -> None:
        with self._lock:
            if len(self._idle) < _KEPT:
                self._idle.append((conn, time.monotonic(), time.time()))
                return
        conn.close()


def _close(idle: list[tuple[http.client.HTTPSConnection, float, float]]) -> None:
    while idle:
        idle.pop()[0].close()


def _is_readable(sock: socket.socket) -> bool:
    """Return whether something came without being asked for: the server's goodbye, in all likelihood."""
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(sock, select.POLLIN | select.POLLPRI)
        return bool(poll.poll(0))
    return bool(select.select([sock], [], [], 0)[0])
