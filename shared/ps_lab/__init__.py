"""A local PlanetScale of real servers: PostgreSQL, PgBouncers, an edge; and faults on demand."""

from ps_lab.edge import RoundTrips
from ps_lab.lab import Lab

__all__ = ["Lab", "RoundTrips"]
