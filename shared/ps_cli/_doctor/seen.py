"""What was seen of a connection set-up. Records only: `observe` fills them, `findings` judges them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from ps_core import pgbouncer
from ps_core._diagnosis import Answer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ps_core.topology import Endpoint

__all__ = ["HttpsSeen", "Load", "PathSeen", "PoolerSeen", "SessionSeen", "Setup", "TlsSeen"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What is to be checked."""

    endpoints: tuple[Endpoint, ...]
    fallback: float = 1.0
    """The same as `Topology.replica_fallback`."""
    pool_size: int | None = None
    """Connections of one worker to one endpoint, at most; None: not known."""
    signing_key: Literal["set", "empty", "insecure"] | None = None
    """The key that signs tokens; None: nothing here signs any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load(pgbouncer.Load):
    """What the application may open, and the caps that a role cannot read from the server."""

    given: frozenset[str] = frozenset()
    """Which of the caps were given, and not assumed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsSeen:
    """What the port answered to TLS handshakes of our own, apart from libpq's."""

    offered: bool
    protocol: str = ""
    """The version, such as "TLSv1.3"."""
    fault: Literal["", "chain", "name", "date", "handshake", "roots"] = ""
    """What verify-full would refuse, by the roots that the endpoint names, or the system's; "handshake": there was none; "roots":
    they cannot be read."""
    reason: str = ""
    """The TLS library's words for it."""
    direct: bool = False
    """Whether the server takes `sslnegotiation=direct`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpsSeen:
    """What was seen of the way to a host's WebSocket, `/v2`, as far as it leads."""

    host: str
    port: int
    proxy: str = ""
    """The proxy that leads there, for showing: without its user and password; "": none."""
    addresses: tuple[str, ...] = ()
    """The host's addresses; () behind a proxy, which resolves the name itself."""
    dns_error: str = ""
    port_error: str = ""
    proxy_error: str = ""
    """Why the proxy does not lead on."""
    tls: TlsSeen | None = None
    """None: not tried."""
    websocket: bool = False
    """Whether `/v2` opens one."""
    answer: str = ""
    """What came in answer to the question for one, where none was opened; "": it was not asked, or was opened."""
    is_opaque: bool = False
    """Whether the proxy is one that only the bridge can pass: nothing was asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolerSeen:
    """How a pooler behaves; None: it could not be told."""

    shares: bool | None = None
    """Whether two clients were seen on one server connection, one after the other."""
    prepares: bool | None = None
    """Whether it follows prepared statements of the protocol."""
    options: Literal["refused", "dropped", "passed"] | None = None
    """What becomes of the startup parameter `options`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSeen(Answer):
    """What the server said to a client that was let in, and what was seen beside."""

    pooler: PoolerSeen | None = None
    round_trip: float = 0.0
    """Seconds: the shortest of some, which a busy machine does not lengthen."""
    clock_ahead: float = 0.0
    """Seconds that the server's clock is ahead of ours."""
    lag: float | None = None
    """Seconds that a replica took to replay what the primary had written; None: not asked, or not within `observe.LAG`."""
    behind: int | None = None
    """Bytes that it had not replayed when it was first asked; None: not asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PathSeen:
    """One path, as far as it could be followed."""

    endpoint: Endpoint
    addresses: tuple[str, ...] = ()
    """The host's addresses; a Unix socket's folder stands for itself."""
    dns_error: str = ""
    port_error: str = ""
    tls: TlsSeen | None = None
    """TLS on PostgreSQL's port; None if it was not tried."""
    https: HttpsSeen | None = None
    """The host's HTTPS port: the path itself with `transport="websocket"`, else the alternative; None if it was not tried."""
    refusal: str | None = None
    """Why there was no session, in the driver's words; None: there was one, or it was not tried."""
    refusal_rule: str = ""
    """`Failure.rule` of that."""
    session: SessionSeen | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    """What each step took, by its name."""
