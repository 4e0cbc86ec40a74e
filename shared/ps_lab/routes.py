"""Where the edge sends a connection: decided by port, user name and the state of the servers."""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Listener", "Path", "Port", "Refusal", "Route", "Routes"]

Port = Literal["direct", "pooled"]
"""Where a client of PostgreSQL's wire protocol means to go."""
Listener = Literal[Port, "https"]
"""What the edge listens on: over "https", the client says which port it means."""
Path = Literal["primary", "replica", "direct"]


class Refusal(Exception):
    """What the edge answers in place of a connection: an SQLSTATE and a text of PlanetScale's client error reference."""

    def __init__(self, sqlstate: str, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        self.hint = hint

    def packet(self) -> bytes:
        """Return the ErrorResponse. Like other middlemen, the edge sends no more than severity, SQLSTATE, message, and hint."""
        fields = {"S": "FATAL", "C": self.sqlstate, "M": str(self), "H": self.hint}
        body = b"".join(f"{kind}{text}\0".encode() for kind, text in fields.items() if text is not None) + b"\0"
        return b"E" + struct.pack("!I", len(body) + 4) + body


@dataclass(frozen=True, slots=True)
class Route:
    """Where a connection goes."""

    path: Path
    """For counting, and for faults."""
    socket: str
    """The Unix socket of the server or bouncer."""
    user: str
    """The name to connect with there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Routes:
    """Where which connections go at the moment. All but the names are paths of Unix sockets."""

    branch: str
    local: str
    """The bouncer in front of the primary, for pooled connections without suffix."""
    bouncers: Mapping[str, str]
    """The dedicated bouncers, by name."""
    replica_bouncers: Sequence[str]
    """Those of them that lead to replicas."""
    primary: str | None
    replicas: Sequence[str]
    """The replicas that are running."""
    closed_roles: Sequence[str]
    """Those that need no password on the servers' own sockets, and so cannot be let in from outside."""

    def find(self, port: Port, user: str) -> Route:
        """Return the way of a connection of `user` to `port`.

        Raises:
            Refusal: there is none.
        """
        name, _, suffix = user.partition("|")
        role, dot, branch = name.rpartition(".")
        if not dot:
            raise Refusal("28000", "invalid user format: username must include branch (e.g., user.branch)")
        if branch != self.branch:
            raise Refusal("28000", f"branch {branch} does not exist")
        if role in self.closed_roles:
            raise Refusal("28P01", f'password authentication failed for user "{role}"')
        if port == "pooled":
            if not suffix:
                return Route("primary", self.local, role)
            if suffix == "replica":
                raise Refusal("28000", f"pooler only supports primary destinations for branch {branch}")
            if suffix in self.bouncers:
                return Route("replica" if suffix in self.replica_bouncers else "primary", self.bouncers[suffix], role)
        if suffix not in ("", "replica"):
            raise Refusal("28000", f"member {suffix} not found in branch {branch}")
        if self.primary is None and not self.replicas:
            raise Refusal("08006", f"no running members available for branch {branch}")
        if suffix:
            if not self.replicas:
                raise Refusal("08006", f"no replica available for branch {branch}")
            return Route("replica", random.choice(self.replicas), role)  # noqa: S311
        if self.primary is None:
            raise Refusal("08006", f"no primary available for branch {branch}")
        return Route("direct", self.primary, role)
