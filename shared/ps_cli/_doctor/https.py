"""Port 443: by a proxy or not, TLS as the bridge does it, and whether `/v2` is a WebSocket. By the standard library alone."""

from __future__ import annotations

import os
import socket
import ssl
import threading
import urllib.request
from base64 import b64encode
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import SplitResult, unquote, urlsplit

from ps_cli._doctor.findings import kind_of, public_address
from ps_cli._doctor.seen import HttpsSeen, TlsSeen

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ps_core.topology import Endpoint

__all__ = ["STEP", "ProxyError", "Way", "addresses_of", "fault_of", "see_https", "trusting", "way_of"]

STEP: Final = 2.0
"""Seconds for one step: the name, the port, a handshake, a question."""
_UPGRADE: Final = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": b64encode(b"ps-postgres says").decode(),
    "User-Agent": "ps-postgres",
}
# OpenSSL's X509_V_ERR_*: name, address; not yet valid, expired.
_FAULTS: Final[dict[int, Literal["name", "date"]]] = {62: "name", 64: "name", 9: "date", 10: "date"}


_PROXIES: Final = ("http", "https", "socks4", "socks4a", "socks5", "socks5h")


class ProxyError(OSError):
    """Why the proxy does not lead on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How a host's HTTPS port is reached."""

    host: str
    port: int
    roots: str
    """The same as libpq's `sslrootcert`."""
    proxy: SplitResult | None
    """With its user and password: not for showing."""

    @property
    def proxy_name(self) -> str:
        """What of the proxy may be shown; "" where there is none."""
        return "" if self.proxy is None else f"{self.proxy.scheme}://{self.proxy.hostname}:{_port_of(self.proxy)}"

    @property
    def is_opaque(self) -> bool:
        """Whether only the bridge can pass the proxy."""
        return self.proxy is not None and self.proxy.scheme != "http"

    def open(self, address: str, context: ssl.SSLContext, seconds: float) -> HTTPConnection:
        """Return a connection over TLS: `connect`, and a handshake.

        Raises:
            OSError: as `connect`, or the handshake failed.
        """
        raw = self.connect(address, seconds)
        http = HTTPConnection(self.host, self.port, timeout=seconds)
        try:
            http.sock = context.wrap_socket(raw, server_hostname=self.host)
        except BaseException:
            raw.close()
            raise
        return http

    def connect(self, address: str, seconds: float) -> socket.socket:
        """Return a connection, before TLS; `address` is the host's, and not needed behind a proxy.

        Raises:
            ProxyError: the proxy cannot be reached, or refuses.
            OSError: nothing answers.
        """
        return socket.create_connection((address, self.port), seconds) if self.proxy is None else self._tunnel(seconds)

    def _tunnel(self, seconds: float) -> socket.socket:
        assert self.proxy is not None
        user, _, password = (unquote(part or "") for part in (self.proxy.username, None, self.proxy.password))
        login = {"Proxy-Authorization": f"Basic {b64encode(f'{user}:{password}'.encode()).decode()}"} if user else {}
        tunnel = HTTPConnection(self.proxy.hostname or "", _port_of(self.proxy), timeout=seconds)
        tunnel.set_tunnel(self.host, self.port, login)
        try:
            tunnel.connect()
        except (OSError, HTTPException) as exc:
            tunnel.close()
            raise ProxyError(getattr(exc, "strerror", None) or str(exc) or "no answer") from None
        raw: socket.socket = tunnel.sock
        return raw


def _port_of(proxy: SplitResult) -> int:
    return proxy.port or (443 if proxy.scheme == "https" else 80)


def way_of(endpoint: Endpoint) -> Way:
    """Return how the bridge would reach the server of an endpoint; libpq's own parameters play no part but for `sslrootcert`.

    Raises:
        ProxyError: what names the proxy cannot be read.
    """
    host = endpoint.host.partition(",")[0]
    return Way(
        host=host,
        port=endpoint.https_port,
        roots=dict(endpoint.params).get("sslrootcert") or os.environ.get("PGSSLROOTCERT", ""),
        proxy=_proxy_of(host, endpoint.https_port),
    )


def _proxy_of(host: str, port: int) -> SplitResult | None:
    """Return the proxy that the library websockets would take, by the environment's variables or the system's settings.

    Raises:
        ProxyError: it cannot be one.
    """
    if urllib.request.proxy_bypass(f"{host}:{port}"):
        return None
    proxies = urllib.request.getproxies()
    for scheme in ("wss", "socks", "https"):
        if (found := proxies.get(scheme)) is not None:
            proxy = urlsplit(f"socks5h://{found[7:]}" if scheme == "socks" and found.startswith("http://") else found)
            with suppress(ValueError):  # of a port that is none
                if proxy.hostname and _port_of(proxy) and proxy.scheme in _PROXIES:
                    return proxy
            raise ProxyError("it is no URL such as http://HOST:PORT")
    return None


def see_https(endpoint: Endpoint, given: Mapping[str, str]) -> HttpsSeen:
    """Look at the HTTPS port of an endpoint's host, as far as that leads; `given` has addresses in the resolver's place."""
    try:
        way = way_of(endpoint)
    except ProxyError as exc:
        host, port = endpoint.host, endpoint.https_port
        return HttpsSeen(host=host, port=port, proxy="that the environment names", proxy_error=str(exc))
    seen = HttpsSeen(host=way.host, port=way.port, proxy=way.proxy_name)
    if way.is_opaque:
        return replace(seen, is_opaque=True)
    address = ""
    if way.proxy is None:
        try:
            seen = replace(seen, addresses=tuple([given[way.host]] if way.host in given else addresses_of(way.host)))
        except OSError as exc:
            return replace(seen, dns_error=exc.strerror or f"no answer within {STEP:g} s")
        if public_address(way.host, seen.addresses):
            return seen
        address, why = _reach(seen.addresses, way.port)
        if why:
            return replace(seen, port_error=why)
    return _shake_hands(way, address, endpoint.port, seen)


def _reach(addresses: tuple[str, ...], port: int) -> tuple[str, str]:
    """Return the first address that takes connections, or why none does."""
    why: list[str] = []
    for address in addresses:
        try:
            with socket.create_connection((address, port), STEP / len(addresses)):
                return address, ""
        except OSError as exc:
            why.append(exc.strerror or "no answer")
    return "", ", ".join(dict.fromkeys(why))


def _shake_hands(way: Way, address: str, port: int, seen: HttpsSeen) -> HttpsSeen:
    if way.roots not in ("", "system") and not Path(way.roots).is_file():
        return replace(seen, tls=TlsSeen(offered=True, fault="roots", reason=f"there is no file {way.roots}"))
    try:
        http = way.open(address, trusting(way.roots, "http/1.1"), STEP)
    except ProxyError as exc:
        return replace(seen, proxy_error=str(exc))
    except ssl.SSLCertVerificationError as exc:
        return replace(seen, tls=TlsSeen(offered=True, fault=fault_of(exc), reason=exc.verify_message))
    except OSError as exc:
        reason = getattr(exc, "reason", None) or exc.strerror or "no answer"
        return replace(seen, tls=TlsSeen(offered=True, fault="handshake", reason=reason))
    try:
        assert isinstance(http.sock, ssl.SSLSocket)
        seen = replace(seen, tls=TlsSeen(offered=True, protocol=http.sock.version() or ""))
        http.request("GET", f"/v2?address={way.host}:{port}", headers=_UPGRADE)
        status = http.getresponse().status
        if status == 101:
            return replace(seen, websocket=True)
        return replace(seen, answer=f"HTTP status {status} to address={way.host}:{port}")
    except (OSError, HTTPException) as exc:
        return replace(seen, answer=getattr(exc, "strerror", None) or "no answer in HTTP")
    finally:
        http.close()


# --- what looking at PostgreSQL's port needs, too ---


def addresses_of(host: str) -> list[str]:
    """Return what the resolver says.

    Raises:
        OSError: the name has no address, or there was no answer within a step's time.
    """
    if kind_of(host) != "name":
        return [host]
    answer: Future[list[str]] = Future()

    def ask() -> None:
        try:
            answer.set_result([str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)])
        except OSError as exc:
            answer.set_exception(exc)
        except UnicodeError:  # a label that is empty or too long
            answer.set_exception(OSError(0, "this is no host name"))

    # A resolver cannot be stopped: its thread is left to itself, and must not keep the process.
    threading.Thread(target=ask, name="ps-doctor-resolver", daemon=True).start()
    return answer.result(STEP)


def trusting(roots: str | None, protocol: str) -> ssl.SSLContext:
    """Return a context that trusts a file of roots, the system's ("system", or none at all), or anybody (None)."""
    if roots is None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        context = ssl.create_default_context(cafile=roots if Path(roots).is_file() else None)
    context.set_alpn_protocols([protocol])
    return context


def fault_of(exc: ssl.SSLCertVerificationError) -> Literal["chain", "name", "date"]:
    """Return what is wrong with a certificate."""
    return _FAULTS.get(exc.verify_code, "chain")
