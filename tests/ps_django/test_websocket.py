"""Django over a WebSocket: the entries of DATABASES, every alias, its pool, and what other packages take from it."""

import socket
from typing import Any

import psycopg
import pytest
from django.db import connections, transaction
from django.db.utils import ConnectionHandler

import ps_django
from ps_core import ConfigurationError, Topology
from ps_django.config import endpoint_of
from ps_django.test import databases_at
from ps_lab import Lab
from tests.carried import socket_family

SETTINGS: Any = {"transport": "websocket", "bouncer": "write-pool", "replica_bouncer": "read-pool"}
ALIASES = {"default": False, "replica": True, "direct": False}
"""And whether they lead to a replica."""


def test_entries(ps_lab: Lab) -> None:
    """The entries describe the topology's endpoints."""
    topology = Topology.from_url(ps_lab.url, **SETTINGS)
    entries = ps_django.databases(ps_lab.url, **SETTINGS)
    for alias, endpoint in zip(ALIASES, (topology.primary, *topology.replicas, topology.direct), strict=True):
        found = endpoint_of(alias, entries[alias])
        assert (found.host, found.port, found.transport, found.https_port) == (
            (endpoint.host, endpoint.port, "websocket", ps_lab.edge.ports["https"])
        )
    written = {"ENGINE": "ps_django.backend", "NAME": "x", "HOST": "db.example"}
    for options, said in (
        ({"ps_transport": "wss"}, "'tcp' or 'websocket'"),
        ({"ps_transport": "websocket", "sslmode": "require"}, "sslmode=verify-full"),
        ({"ps_transport": "websocket", "sslcert": "c.pem"}, "client certificate"),
        ({"ps_https_port": "none"}, "is no port"),
        ({"ps_transports": "websocket"}, "ps_transport"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            endpoint_of("default", {**written, "OPTIONS": options})
    with pytest.raises(ConfigurationError, match="a Unix socket needs neither"):
        endpoint_of("default", {**written, "HOST": "", "OPTIONS": {"ps_transport": "websocket"}})


@pytest.mark.parametrize("pool", [False, True])
def test_every_alias(ps_lab: Lab, pool: bool) -> None:
    """Primary, replica and direct path, with Django's pool and without."""
    entries = ps_django.databases(ps_lab.url, **SETTINGS)
    if pool:
        for entry in entries.values():
            entry["OPTIONS"]["pool"] = {"min_size": 1, "max_size": 2}
    handler = ConnectionHandler(entries)
    for alias, in_recovery in ALIASES.items():
        connection: Any = handler[alias]
        connection.close_pool()  # one of another test's: Django keeps pools by alias
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_is_in_recovery()")
                assert cursor.fetchone() == (in_recovery,)
            assert socket_family(connection.connection) == socket.AF_UNIX
        finally:
            connection.close()
            if pool:
                connection.close_pool()


def test_other_packages(ps_lab: Lab) -> None:
    """What `get_connection_params` returns is what stock psycopg needs, as packages use it."""
    handler = ConnectionHandler(ps_django.databases(ps_lab.url, **SETTINGS))
    for alias, in_recovery in ALIASES.items():
        connection: Any = handler[alias]
        with psycopg.connect(**connection.get_connection_params()) as stock:
            assert stock.execute("SELECT pg_is_in_recovery()").fetchone() == (in_recovery,)


def test_transaction(ps_lab: Lab) -> None:
    """A block is opened with its settings, in as many round trips as over TCP."""
    with databases_at(ps_lab.url, **SETTINGS):
        connection: Any = connections["default"]
        connection.ensure_connection()
        with ps_lab.round_trips() as trips, transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SELECT current_setting('statement_timeout')")
            assert cursor.fetchone() == ("2s",)
        assert dict(trips.by_path) == {"primary": 2}
