"""What a typed parameter costs: ten parameters to a statement, in microseconds, without a server.

    python -m tests.benchmarks.literals

psycopg's own server-side and client-side queries, and ours, take turns in one run. Printed is the median of the rounds, in
time of the processor.
"""

import datetime as dt
import statistics
import time
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Final

from psycopg._queries import PostgresClientQuery, PostgresQuery
from psycopg.adapt import Transformer

from ps_core._connection.literals import TypedQuery

ROUNDS: Final = 60
WAYS: Final[dict[str, Callable[[Any], Any]]] = {
    "bound by the server": PostgresQuery,
    "bare literals (psycopg's client-side cursor)": PostgresClientQuery,
    "typed literals (ours)": TypedQuery,
}
PARAMETERS: Final[dict[str, tuple[Any, ...]]] = {
    "ten small integers": tuple(range(10)),
    "ten floats": tuple(number / 3 for number in range(10)),
    "ten strings": tuple(f"name {number}" for number in range(10)),
    "a mixture": (1, 1 << 40, 2.5, Decimal("2.50"), True, "a", None, dt.date(2026, 11, 28), [1, 2], b"ab"),
}


def measure(rounds: int = ROUNDS, each: int = 200) -> dict[str, dict[str, float]]:
    """Return microseconds for ten parameters, by kind and way. A new transformer each time, as a cursor makes one."""
    query = b"select " + b", ".join([b"%s"] * 10)
    found: dict[str, dict[str, float]] = {}
    for kind, values in PARAMETERS.items():
        times: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(rounds):
            for way, make in WAYS.items():
                began = time.process_time()
                for _ in range(each):
                    make(Transformer(None)).convert(query, values)
                times[way].append((time.process_time() - began) / each * 1e6)
        found[kind] = {way: statistics.median(spent) for way, spent in times.items()}
    return found


def main() -> None:
    """Print the table."""
    print("| µs for ten parameters | " + " | ".join(WAYS) + " |")
    print("|---|" + "--:|" * len(WAYS))
    for kind, times in measure().items():
        print(f"| {kind} | " + " | ".join(f"{times[way]:.1f}" for way in WAYS) + " |")


if __name__ == "__main__":
    main()
