"""Clients of the same bouncers that set nothing, and must not see what others set."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg

import ps_core
from ps_core.topology import Endpoint, Topology
from ps_lab import Lab

CLIENTS = 4
"""Clients of each bouncer, at a time."""


def endpoints(lab: Lab) -> list[Endpoint]:
    """Return the pooled endpoints: the primary's and the replicas'."""
    topology = Topology.from_url(lab.url, bouncer="write-pool", replica_bouncer="read-pool")
    return [topology.primary, *topology.replicas]


def connect(endpoint: Endpoint) -> "psycopg.Connection[Any]":
    """Return a client with psycopg's own class."""
    return psycopg.connect(**ps_core.conninfo(endpoint), autocommit=True)


def seen(client: "psycopg.Connection[Any]", *names: str) -> dict[str, str | None]:
    """Return the role, the search path and settings as a client finds them; an empty one counts as none."""
    columns = ["current_user::text", *(f"nullif(current_setting('{name}', true), '')" for name in ("search_path", *names))]
    row = client.execute(f"SELECT {', '.join(columns)}").fetchone()
    assert row is not None
    return dict(zip(("current_user", "search_path", *names), row, strict=True))


@contextmanager
def strangers(lab: Lab, *names: str) -> Iterator[None]:
    """Let clients of both bouncers look at settings for as long as the block runs, each connection several times, and after it.

    They see what a session of their own has.
    """
    with psycopg.connect(**ps_core.conninfo(Topology.from_url(lab.url).direct), autocommit=True) as own:
        # The direct path has limits as startup options; a client of the bouncers has the role's.
        wanted = seen(own, *names) | dict.fromkeys(set(names) & {"statement_timeout", "lock_timeout"}, "0")
    over = threading.Event()

    def look(endpoint: Endpoint) -> int:
        looks = 0
        while looks < 20 or not over.is_set():
            with connect(endpoint) as client:
                for _ in range(5):
                    assert seen(client, *names) == wanted
                    looks += 1
        return looks

    of_all = endpoints(lab)
    with ThreadPoolExecutor(CLIENTS * len(of_all)) as pool:
        looking = [pool.submit(look, endpoint) for endpoint in of_all for _ in range(CLIENTS)]
        try:
            yield
        finally:
            over.set()
        assert sum(one.result() for one in looking) >= 20 * len(looking)
    for endpoint in of_all:
        with connect(endpoint) as client:
            assert seen(client, *names) == wanted
