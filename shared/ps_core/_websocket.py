"""What libpq's parameters mean where a WebSocket carries the connection: where it leads, and what is left for libpq."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ps_core._plain_errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["HTTPS_PORT", "VARIABLES", "Target", "check_websockets", "is_address", "local_parameters", "target_of"]

HTTPS_PORT: Final = 443

_TLS_DONE_HERE: Final = "TLS is done by the process that carries the connection"
_REFUSED: Final = {
    "channel_binding": ("require", f"{_TLS_DONE_HERE}, so that libpq has no channel to bind to: leave it out"),
    "gssencmode": ("require", "the connection is encrypted by TLS: leave it out"),
}
"""The value of a parameter that cannot hold, and why."""
_UNKNOWN_HERE: Final = {
    **dict.fromkeys(
        ("sslcert", "sslkey", "sslpassword"),
        f"{_TLS_DONE_HERE}, and the server asks for no client certificate there: log in with a password",
    ),
    **dict.fromkeys(
        ("sslcrl", "sslcrldir"), f"{_TLS_DONE_HERE}, which reads no lists of revoked certificates: leave it out, or use TCP"
    ),
    **dict.fromkeys(
        ("ssl_min_protocol_version", "ssl_max_protocol_version"),
        f"{_TLS_DONE_HERE}, by TLS 1.2 or 1.3 as both sides can: leave it out, or use TCP",
    ),
    "hostaddr": "the server's certificate and the way to it are found by its name: write the name as host, alone",
    "requirepeer": "it is set by ps-postgres, for the process that carries the connection: leave it out",
}
"""Parameters that cannot hold at all, and why."""
VARIABLES: Final = {
    "channel_binding": "PGCHANNELBINDING",
    "gssencmode": "PGGSSENCMODE",
    "sslcert": "PGSSLCERT",
    "sslkey": "PGSSLKEY",
    "sslcrl": "PGSSLCRL",
    "sslcrldir": "PGSSLCRLDIR",
    "ssl_min_protocol_version": "PGSSLMINPROTOCOLVERSION",
    "ssl_max_protocol_version": "PGSSLMAXPROTOCOLVERSION",
    "hostaddr": "PGHOSTADDR",
    "requirepeer": "PGREQUIREPEER",
    "sslmode": "PGSSLMODE",
    "sslrootcert": "PGSSLROOTCERT",
}
"""libpq's own variables, which say the same (PostgreSQL's documentation, "Environment Variables")."""
_FOR_TCP: Final = (
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
    "tcp_user_timeout",
    "sslnegotiation",
    "sslcompression",
    "sslsni",
    "sslcertmode",
)
"""What says nothing about a WebSocket, and would say nothing to libpq on a Unix socket."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a WebSocket leads."""

    host: str
    https_port: int
    port: int
    """The PostgreSQL port that the server is asked for."""
    authorities: str | None
    """The path of a file with the certificates of those who may vouch for the server; None: the system's."""

    @property
    def url(self) -> str:
        """The address of the WebSocket, as Drizzle's page for PlanetScale and Neon's own proxy have it."""
        port = "" if self.https_port == HTTPS_PORT else f":{self.https_port}"
        return f"wss://{self.host}{port}/v2?address={self.host}:{self.port}"


@cache
def check_websockets() -> None:
    """Raise a ConfigurationError where `transport="websocket"` is not possible."""
    from importlib.metadata import PackageNotFoundError, version  # here: it takes longer than all the rest

    try:
        found = int(version("websockets").partition(".")[0])
    except PackageNotFoundError:
        found = 0
    if found < 15:  # the first that knows proxies
        raise ConfigurationError(
            'transport="websocket" needs the library websockets, 15 or later: pip install "ps-postgres[websocket]"'
        )


def target_of(
    params: Mapping[str, object], https_port: int, environ: Mapping[str, str], *, way: str = 'transport="websocket"'
) -> Target:
    """Return where the WebSocket of a connection with these parameters of libpq's leads.

    `way` is what messages call what is on this port.

    Raises:
        ConfigurationError: a parameter, or libpq's variable for it in `environ`, asks for what a WebSocket cannot have.
    """

    def given(name: str) -> tuple[str, str]:
        """Return the value of a parameter, and what it is called where it was found."""
        if params.get(name) not in (None, ""):
            return str(params[name]), name
        variable = VARIABLES.get(name, "")
        return environ.get(variable, ""), variable

    for name, (value, why) in _REFUSED.items():
        found, called = given(name)
        if found == value:
            raise ConfigurationError(f"{called}={value} with {way}: {why}")
    for name, why in _UNKNOWN_HERE.items():
        found, called = given(name)
        if found:
            raise ConfigurationError(f"{called} with {way}: {why}")
    mode, called = given("sslmode")
    if mode not in ("", "verify-full"):
        raise ConfigurationError(
            f"{called}={mode} with {way}: write sslmode=verify-full, or leave it out: the server's certificate"
            " and name are always checked"
        )
    root, _ = given("sslrootcert")
    # The process that reads the file keeps the folder that it was started in.
    authorities = None if root in ("", "system") else str(Path(root).absolute())
    host, port = str(params.get("host") or ""), str(params.get("port") or "5432")
    if not host or host.startswith(("/", "@")):
        raise ConfigurationError(f"{way} needs the name of a host: a Unix socket needs neither TLS nor port 443: use TCP")
    if "," in host or "," in port:
        raise ConfigurationError(f"{way} leads to one host: write one name, and one port")
    if is_address(host):
        raise ConfigurationError(
            f"{way}: {host} is an address: write the name of the host, by which the server finds the database"
        )
    return Target(host=host, https_port=https_port, port=int(port), authorities=authorities)


def is_address(host: str) -> bool:
    """Return whether a host is an IP address, and not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def local_parameters(params: Mapping[str, object], *, folder: str, number: int, user: str | None) -> dict[str, object]:
    """Return what libpq is given in place of `params`, to connect to the Unix socket `number` in `folder`.

    `user` is whose process has to be at its other end. What libpq would take from its own variables is said, too.
    """
    left_out = (*_REFUSED, *_UNKNOWN_HERE, *_FOR_TCP, "sslmode", "sslrootcert")
    return {
        **{name: value for name, value in params.items() if name not in left_out},
        "host": folder,
        "port": number,
        # TLS is not libpq's. On a Unix socket it would take any sslmode, and do nothing.
        "sslmode": "disable",
        "sslrootcert": "",
        "channel_binding": "disable",
        "gssencmode": "disable",
        **({} if user is None else {"requirepeer": user}),
    }
