"""A local PlanetScale of real servers: PostgreSQL, PgBouncers, an edge; and faults on demand."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ps_lab.edge import RoundTrips
    from ps_lab.lab import Lab

__all__ = ["Lab", "RoundTrips"]


def __getattr__(name: str) -> Any:
    # pytest imports this package in every run, for its plugin: what the lab needs is imported when it is asked for.
    if name == "Lab":
        from ps_lab.lab import Lab

        return Lab
    if name == "RoundTrips":
        from ps_lab.edge import RoundTrips

        return RoundTrips
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
