"""What the hosts of known providers lead to: a pooler, the server itself, or its replicas. A table; nothing connects.

Only what a host name says for certain is here, by the provider's own documentation (the pages below, read in October
2026). User names say nothing: Supabase's `postgres.<project>` looks like PlanetScale's `postgres.<branch>`. A host that
is not here (a CNAME, an address, Cloudflare Hyperdrive, your own PgBouncer or pgcat) has one port of unknown kind,
unless `ps_pooled_port`, `ps_direct_port` or `ps_pooled` say what it is.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

__all__ = ["Address", "Paths", "paths_of"]

Address = tuple[str, int]
"""Host and port."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Paths:
    """What one host and port of a provider leads to, and where its other path is."""

    leads_to: Literal["pooler", "server", "session pooler", "replicas"]
    """A session pooler gives each client a server connection of its own, but passes on no startup options."""
    pooled: Address | None = None
    direct: Address | None = None
    shared: bool = False
    """Whether the host serves many projects, which the user names tell apart."""


def paths_of(host: str, port: int | None) -> Paths | None:
    """Return what a URL's host and port (5432 by default) lead to; None where the table does not know."""
    for pattern, read in _HOSTS:
        if found := pattern.fullmatch(host):
            return read(found, port or 5432)
    return None


def _neon(found: re.Match[str], port: int) -> Paths:
    # "-pooler" on the endpoint's id is all that differs: https://neon.com/docs/connect/connection-pooling
    endpoint, pooler, domain = found.groups()
    return Paths(
        leads_to="pooler" if pooler else "server",
        pooled=(f"{endpoint}-pooler{domain}", port),
        direct=(f"{endpoint}{domain}", port),
    )


def _rds(found: re.Match[str], port: int) -> Paths:
    # https://docs.aws.amazon.com/AmazonRDS/latest/AuroraUserGuide/Aurora.Overview.Endpoints.html
    # https://docs.aws.amazon.com/AmazonRDS/latest/AuroraUserGuide/rds-proxy-endpoints.html
    # Forms of the names, China's included: RdsUtils.java in https://github.com/aws/aws-advanced-jdbc-wrapper
    match found[1].lower():
        case "proxy-":
            return Paths(leads_to="pooler", pooled=(found[0], port))
        case "cluster-ro-":
            return Paths(leads_to="replicas", direct=(found[0], port))
        case _:
            return Paths(leads_to="server", direct=(found[0], port))


def _by_port(found: re.Match[str], port: int, *, pooled: int, shared: bool = False) -> Paths | None:
    # Whether there is a pooler on the other port depends on the plan or on settings, but for what is shared.
    if port not in (5432, pooled):
        return None
    return Paths(
        leads_to="pooler" if port == pooled else "session pooler" if shared else "server",
        pooled=(found[0], pooled),
        direct=(found[0], 5432),
        shared=shared,
    )


def _host(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern + r"\.?", re.IGNORECASE | re.ASCII)


_HOSTS: Final[tuple[tuple[re.Pattern[str], Callable[[re.Match[str], int], Paths | None]], ...]] = (
    (_host(r"(ep-[a-z0-9-]+?)(-pooler)?(\.[a-z0-9.-]+\.neon\.tech)"), _neon),
    # Supavisor: session mode on 5432; the dedicated PgBouncer: https://supabase.com/docs/guides/database/connecting-to-postgres
    (_host(r"[a-z0-9-]+\.pooler\.supabase\.com"), partial(_by_port, pooled=6543, shared=True)),
    (_host(r"db\.[a-z0-9]+\.supabase\.co"), partial(_by_port, pooled=6543)),
    (
        _host(
            r"[a-z0-9.-]+\.(proxy-|cluster-ro-|cluster-custom-|cluster-|)[a-z0-9]+"
            r"(?:\.[a-z0-9-]+\.rds|\.rds\.[a-z0-9-]+)\.amazonaws\.com(?:\.cn)?"
        ),
        _rds,
    ),
    # Managed Connection Pooling: https://cloud.google.com/sql/docs/postgres/managed-connection-pooling
    # Names: https://cloud.google.com/sql/docs/postgres/connect-to-instance-using-write-endpoint
    (_host(r"[a-z0-9.-]+\.(?:sql|sql-psa)\.goog"), partial(_by_port, pooled=6432)),
    # https://docs.crunchybridge.com/how-to/pgbouncer
    (_host(r"[a-z0-9.-]+\.db\.postgresbridge\.com"), partial(_by_port, pooled=5431)),
)
