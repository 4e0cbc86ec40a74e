"""`transport="websocket"`: what libpq's parameters mean there, and which of them cannot hold. Tables, without a server."""

from __future__ import annotations

from typing import Any

import pytest

from ps_core import ConfigurationError, Topology
from ps_core._websocket import Target, local_parameters, target_of

pytestmark = pytest.mark.fast

URL = "postgresql://app.br4nch:s3cret@eu.pg.psdb.cloud/postgres"
HOST: dict[str, Any] = {"host": "eu.pg.psdb.cloud", "port": 6432}


@pytest.mark.parametrize(
    ("params", "https_port", "environ", "url", "authorities"),
    [
        ({}, 443, {}, "wss://eu.pg.psdb.cloud/v2?address=eu.pg.psdb.cloud:6432", None),
        ({}, 8443, {}, "wss://eu.pg.psdb.cloud:8443/v2?address=eu.pg.psdb.cloud:6432", None),
        ({"port": 5432}, 443, {}, "wss://eu.pg.psdb.cloud/v2?address=eu.pg.psdb.cloud:5432", None),
        ({"sslmode": "verify-full", "sslrootcert": "system"}, 443, {}, None, None),
        ({"sslrootcert": "/etc/ca.pem"}, 443, {"PGSSLROOTCERT": "/other.pem"}, None, "/etc/ca.pem"),
        ({}, 443, {"PGSSLROOTCERT": "/other.pem", "PGSSLMODE": "verify-full"}, None, "/other.pem"),
        ({"channel_binding": "prefer", "gssencmode": "prefer"}, 443, {}, None, None),
        ({"channel_binding": "prefer"}, 443, {"PGCHANNELBINDING": "require"}, None, None),
    ],
)
def test_target(
    params: dict[str, Any], https_port: int, environ: dict[str, str], url: str | None, authorities: str | None
) -> None:
    """Where it leads, and whose word is taken for the server."""
    target = target_of({**HOST, **params}, https_port, environ)
    assert target.authorities == authorities
    assert url is None or target.url == url


REFUSED = {
    "sslmode": ["disable", "allow", "prefer", "require", "verify-ca"],
    "channel_binding": ["require"],
    "gssencmode": ["require"],
    "sslcert": ["c.pem"],
    "sslkey": ["k.pem"],
    "sslpassword": ["s3cret"],
    "sslcrl": ["crl.pem"],
    "sslcrldir": ["crls"],
    "ssl_min_protocol_version": ["TLSv1.3"],
    "ssl_max_protocol_version": ["TLSv1.2"],
    "hostaddr": ["192.0.2.1"],
    "requirepeer": ["postgres"],
    "host": ["", "/run/postgresql", "@abstract", "a.example,b.example", "192.0.2.1", "::1"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in REFUSED.items() for value in values])
def test_refused(name: str, value: str) -> None:
    """What a WebSocket cannot have is refused, with the reason and without a secret."""
    with pytest.raises(ConfigurationError, match=r"websocket.*: |websocket.* needs ") as caught:
        target_of({**HOST, name: value}, 443, {})
    assert "s3cret" not in str(caught.value)


VARIABLES = {
    "PGSSLMODE": "require",
    "PGCHANNELBINDING": "require",
    "PGGSSENCMODE": "require",
    "PGSSLCERT": "c.pem",
    "PGSSLKEY": "k.pem",
    "PGSSLCRL": "crl.pem",
    "PGSSLCRLDIR": "crls",
    "PGSSLMINPROTOCOLVERSION": "TLSv1.3",
    "PGSSLMAXPROTOCOLVERSION": "TLSv1.2",
    "PGHOSTADDR": "192.0.2.1",
    "PGREQUIREPEER": "postgres",
}


@pytest.mark.parametrize(("name", "value"), VARIABLES.items())
def test_refused_variables(name: str, value: str) -> None:
    """So is what libpq would take from its own variables; the message names the variable."""
    with pytest.raises(ConfigurationError, match=name):
        target_of(HOST, 443, {name: value})


def test_local_parameters() -> None:
    """Libpq gets the Unix socket, and says nothing of TLS, whatever its own variables say; the rest goes on."""
    params = {
        **HOST,
        "user": "app.br4nch|read-pool",
        "password": "s3cret",
        "options": "-c statement_timeout=1",
        "connect_timeout": 5,
        "sslmode": "verify-full",
        "sslrootcert": "system",
        "keepalives": 1,
        "tcp_user_timeout": 10000,
        "sslnegotiation": "direct",
    }
    assert local_parameters(params, folder="/tmp/ps-x", number=3, user="me") == {
        "host": "/tmp/ps-x",
        "port": 3,
        "user": "app.br4nch|read-pool",
        "password": "s3cret",
        "options": "-c statement_timeout=1",
        "connect_timeout": 5,
        "sslmode": "disable",
        "sslrootcert": "",
        "channel_binding": "disable",
        "gssencmode": "disable",
        "requirepeer": "me",
    }
    assert "requirepeer" not in local_parameters(params, folder="/tmp/ps-x", number=3, user=None)


def test_every_endpoint_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """At construction, for each endpoint, those with URLs of their own included."""
    topology = Topology.from_url(URL, transport="websocket", replica_bouncer="read-pool", https_port=8443)
    for endpoint in (topology.primary, *topology.replicas, topology.direct):
        assert (endpoint.transport, endpoint.https_port, endpoint.sslmode) == ("websocket", 8443, "verify-full")
        with pytest.raises(ConfigurationError, match=r"ps_core\.conninfo"):
            endpoint.conninfo()
    refused: tuple[dict[str, Any], ...] = (
        {"replica_urls": "postgresql://app@192.0.2.1/postgres"},
        {"direct_url": "postgresql://app@/postgres?host=/run/postgresql"},
    )
    for settings in refused:
        with pytest.raises(ConfigurationError, match="websocket"):
            Topology.from_url(URL, transport="websocket", **settings)
    with pytest.raises(ConfigurationError, match="sslmode=verify-full"):
        Topology.from_url(URL + "?sslmode=require", transport="websocket")
    monkeypatch.setenv("PGSSLMODE", "require")
    with pytest.raises(ConfigurationError, match="PGSSLMODE"):
        Topology.from_url("postgresql://app:s3cret@db.example/postgres", transport="websocket")
    with pytest.raises(ConfigurationError, match="'tcp' or 'websocket'"):
        Topology.from_url(URL, transport="wss")


def test_same_target_same_socket() -> None:
    """Targets are compared by what they say."""
    assert target_of(HOST, 443, {}) == Target(host=HOST["host"], https_port=443, port=6432, authorities=None)
