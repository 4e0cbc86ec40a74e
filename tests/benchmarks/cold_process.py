"""One process of `tests.benchmarks.cold`. It imports nothing that its way does not need, and so it is run by its path.

Its argument is the way, PS_URL says where. It prints the seconds of the imports, the first query and the CPU; waits for a line;
prints the seconds of the second query, those of the CPU, and whether psycopg was imported; and waits until its input ends.
"""

# ruff: noqa: E402 - when something is imported is what is measured
from __future__ import annotations

import time

BEGAN, CPU_BEGAN = time.perf_counter(), time.process_time()

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Opened = tuple[float, Callable[[], object]]


def stock(**options: str) -> Opened:
    """By psycopg."""
    import psycopg

    imported = time.perf_counter()
    url = os.environ["PS_URL"].partition("&ps_direct_port")[0]
    conn = psycopg.connect(url, autocommit=True, **options)  # type: ignore[arg-type]
    return imported, lambda: conn.execute("select %s", [1]).fetchone()


def ours() -> Opened:
    """By this package's connection."""
    from ps_core import connect

    imported = time.perf_counter()
    conn = connect(os.environ["PS_URL"], to="direct", autocommit=True)
    return imported, lambda: conn.execute("select %s", [1]).fetchone()


def websocket() -> Opened:
    """By psycopg, through this package's bridge."""
    import psycopg

    from ps_core import Topology, conninfo

    imported = time.perf_counter()
    topology = Topology.from_url(os.environ["PS_URL"], transport="websocket")
    conn = psycopg.connect(**conninfo(topology.direct), autocommit=True)
    return imported, lambda: conn.execute("select %s", [1]).fetchone()


def https(value: object) -> Opened:
    """By single requests."""
    from ps_http import Client

    imported = time.perf_counter()
    client = Client(os.environ["PS_URL"], to="direct")
    return imported, lambda: client.execute("select %s", [value]).one()


WAYS: dict[str, Callable[[], Opened]] = {
    "psycopg": stock,
    "psycopg, direct TLS": lambda: stock(sslnegotiation="direct"),
    "ps_core": ours,
    "psycopg, WebSocket": websocket,
    "ps_http": lambda: https(1),
    "ps_http with psycopg": lambda: https(b"bytes"),  # whose adapters such values need
}


def cpu() -> float:
    """Return the seconds of CPU time of this process since it began, and of the one that carries its WebSockets."""
    start, there = sys.modules.get("ps_core._bridge.start"), 0.0
    if start is not None and start._bridge is not None and start._bridge._pid:
        with open(f"/proc/{start._bridge._pid}/schedstat") as file:  # noqa: PTH123 - pathlib would be imported for it
            there = int(file.read().split()[0]) / 1e9
    return time.process_time() - CPU_BEGAN + there


def main() -> None:
    """Ask twice."""
    imported, ask = WAYS[sys.argv[1]]()
    ask()
    print(imported - BEGAN, time.perf_counter() - BEGAN, cpu(), flush=True)
    sys.stdin.readline()
    began = time.perf_counter()
    ask()
    print(time.perf_counter() - began, cpu(), "psycopg" in sys.modules, flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    main()
