"""The URLs of endpoints: what an engine of a topology shows, and what a URL alone stands for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import sqlalchemy as sa

from ps_core.errors import ConfigurationError
from ps_core.topology import HTTPS_PORT, Topology

if TYPE_CHECKING:
    from ps_core.topology import Endpoint

__all__ = ["TO", "To", "endpoint_of", "topology_of", "url_of"]

To: TypeAlias = Literal["primary", "replica", "direct"]
"""The endpoints of a topology that an engine leads to."""

TO: Final = "ps_to"
"""The parameter of a URL that stands for one endpoint of these: `engine.direct.url` has it."""


def endpoint_of(topology: Topology, to: To) -> Endpoint:
    """Return the endpoint that an engine names: of several replicas the first."""
    return topology.replicas[0] if to == "replica" else topology.direct if to == "direct" else topology.primary


def topology_of(url: sa.URL) -> tuple[Topology, To]:
    """Return the endpoints that a URL alone stands for, and which of them it leads to.

    Raises:
        ConfigurationError: these settings cannot work together, or one of them cannot work at all.
    """
    to = url.query.get(TO, "primary")
    whole = url.difference_update_query([TO])
    if to == "primary":
        return Topology.from_url(whole.render_as_string(hide_password=False)), "primary"
    if to == "direct":
        return Topology.from_url(whole.render_as_string(hide_password=False)), "direct"
    if to == "replica":
        itself = whole.difference_update_query([name for name in whole.query if name.startswith("ps_")])
        base = whole.set(username=(whole.username or "").partition("|")[0] or None)
        urls = itself.render_as_string(hide_password=False)
        return Topology.from_url(base.render_as_string(hide_password=False), replica_urls=urls), "replica"
    raise ConfigurationError(f"{TO}: write 'primary', 'replica' or 'direct', not {to!r}")


def url_of(endpoint: Endpoint, drivername: str) -> sa.URL:
    """Return the URL of an endpoint; of one beside the primary's with the parameter that says so."""
    query: dict[str, Any] = dict(endpoint.params)
    if endpoint.role != "primary":
        query[TO] = endpoint.role
        if not endpoint.pooled:
            query["ps_pooled"] = "false"
    if endpoint.transport != "tcp":
        query["ps_transport"] = endpoint.transport
    if endpoint.https_port != HTTPS_PORT:
        query["ps_https_port"] = str(endpoint.https_port)
    host: str | None = endpoint.host
    port: int | None = None if endpoint.ports == (None,) else endpoint.port
    if "," in endpoint.host or endpoint.host.startswith("/"):  # where SQLAlchemy has several hosts, and Unix sockets
        info = endpoint.parameters()
        query |= {name: str(info[name]) for name in ("host", "port") if name in info}
        host = port = None
    return sa.URL.create(
        drivername,
        username=endpoint.user or None,
        password=endpoint.password or None,
        host=host or None,
        port=port,
        database=endpoint.dbname or None,
        query=query,
    )
