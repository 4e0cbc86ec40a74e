"""`DATABASES` from one URL, and an endpoint from one entry of `DATABASES`."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any, Final, TypedDict, Unpack

from ps_core._names import no_such
from ps_core._registry import policy_for, replicas_at, state_of
from ps_core.consistency import identity_of
from ps_core.dsn import Dsn
from ps_core.errors import ConfigurationError
from ps_core.providers import paths_of
from ps_core.timeouts import DIRECT, POOLED, Timeouts
from ps_core.topology import (
    HTTPS_PORT,
    RETRY_TIMEOUT,
    Endpoint,
    Topology,
    TopologySettings,
    database_identity,
    parse_consistency,
    parse_flag,
    parse_port,
    parse_retry_timeout,
    parse_session_state,
    parse_transport,
    parse_weight,
)
from ps_django.path import AS_CONFIGURED, limited

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ps_core import RetryPolicy
    from ps_core._endpoint import EndpointState
    from ps_core.replicas import Replicas
    from ps_core.topology import Consistency
    from ps_django.path import PathDecision

__all__ = ["check_direct", "consistency_of", "databases", "families", "policy_of", "replicas_of_alias", "state_of_alias"]

ENGINE: Final = "ps_django.backend"
POSTGIS: Final = "ps_django.postgis"
_DOTTED: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
# Django's and psycopg's own entries of OPTIONS; everything else there is libpq's.
_NOT_LIBPQ: Final = frozenset(
    {"assume_role", "isolation_level", "pool", "server_side_binding", "context", "cursor_factory", "prepare_threshold", "service"}
)
_TIMEOUTS: Final = {
    "ps_statement_timeout": "statement",
    "ps_transaction_timeout": "transaction",
    "ps_idle_in_transaction_timeout": "idle_in_transaction",
    "ps_lock_timeout": "lock",
    "ps_connect_timeout": "connect",
}
_OWN: Final = frozenset(
    {
        "ps_role",
        "ps_pooled",
        "ps_primary",
        "ps_direct",
        "ps_weight",
        "ps_replica_fallback",
        "ps_retry_timeout",
        "ps_application_name",
        "ps_marker_schema",
        "ps_session_state",
        "ps_identity",
        "ps_consistency",
        "ps_transport",
        "ps_https_port",
        *_TIMEOUTS,
    }
)


_OF_PRIMARY: Final = ("ps_consistency", "ps_identity", "ps_replica_fallback", "ps_retry_timeout")
"""What holds for all aliases of a primary, and is read from its entry alone."""


def databases(
    url: str | Mapping[str, str] | None = None, *, engine: str = ENGINE, **settings: Unpack[TopologySettings]
) -> dict[str, dict[str, Any]]:
    """Return `DATABASES`: `default` (the primary), `replica` (`replica-2`, ... where there are more), `direct`.

    `url` is a role's URL; a mapping, or nothing at all, means an environment (`os.environ`): PS_URL or DATABASE_URL, and `PS_*`.
    `settings` are `ps_core.topology.TopologySettings`, as in `bouncer="write-pool"`. Add to the entries what Django has for
    them (CONN_MAX_AGE, ATOMIC_REQUESTS, ...). `engine` is the ENGINE of all of them: "ps_django.postgis" for GeoDjango, or
    a backend that is derived from ours, as in `engine="django_tenants.postgresql_backend"` with
    `ORIGINAL_BACKEND = "ps_django.backend"`.

    Raises:
        ConfigurationError: these settings cannot work together, or one of them cannot work at all.
    """
    if not _DOTTED.fullmatch(engine or ""):
        raise ConfigurationError(f"engine: write the dotted path of a backend, as in {ENGINE!r}, not {engine!r}")
    if engine.startswith("django."):
        ours = in_place_of(engine)
        raise ConfigurationError(f"engine: {engine!r} is Django's own: write {ours!r}, or a backend that is derived from it")
    if isinstance(url, str):
        topology = Topology.from_url(url, **settings)
    else:
        topology = Topology.from_env(os.environ if url is None else url, **settings)
    of_primary: dict[str, Any] = {"ps_identity": identity_of(topology.identity)}
    if topology.retry_timeout != RETRY_TIMEOUT:
        of_primary["ps_retry_timeout"] = topology.retry_timeout
    fallback = {0.0: "none", 1.0: "primary"}.get(topology.replica_fallback)
    if fallback is None:
        raise ConfigurationError("replica_fallback: there is no pool of which this could be a share: write 'primary' or 'none'")
    if topology.replicas:
        of_primary["ps_replica_fallback"] = fallback
    if topology.replicas and topology.consistency != "monotonic":
        of_primary["ps_consistency"] = topology.consistency
    entries = {"default": _entry(topology.primary, ps_direct="direct", **of_primary)}
    for endpoint in (*topology.replicas, topology.direct):
        entries[endpoint.name] = _entry(endpoint, ps_primary="default") | {"TEST": {"MIRROR": "default"}}
    for entry in entries.values():
        entry["ENGINE"] = engine
    return entries


def in_place_of(engine: str | None) -> str:
    """Return which ENGINE of ours does what another one does."""
    return POSTGIS if "postgis" in (engine or "") else ENGINE


def _entry(endpoint: Endpoint, **own: Any) -> dict[str, Any]:
    timeouts = {key: value for key, name in _TIMEOUTS.items() if (value := getattr(endpoint.timeouts, name)) is not None}
    if endpoint.weight != 1:
        own["ps_weight"] = endpoint.weight
    if endpoint.application_name:
        own["ps_application_name"] = endpoint.application_name
    if endpoint.marker_schema != "public":
        own["ps_marker_schema"] = endpoint.marker_schema
    if endpoint.binding == "server":
        own["server_side_binding"] = True
    if endpoint.pooled and not endpoint.refuses_session:
        own["ps_session_state"] = endpoint.session_state
    if endpoint.transport != "tcp":
        own["ps_transport"] = endpoint.transport
    if endpoint.https_port != HTTPS_PORT:
        own["ps_https_port"] = endpoint.https_port
    if len(endpoint.ports) > 1:
        raise ConfigurationError("Django's PORT is one for all hosts: write HOST1,HOST2 with the same port, or one host")
    return {
        "ENGINE": ENGINE,
        "NAME": endpoint.dbname,
        "USER": endpoint.user,
        "PASSWORD": endpoint.password,
        "HOST": endpoint.host,
        "PORT": str(endpoint.port),
        "OPTIONS": {**dict(endpoint.params), "ps_role": endpoint.role, "ps_pooled": endpoint.pooled, **timeouts, **own},
    }


def endpoint_of(alias: str, entry: Mapping[str, Any]) -> Endpoint:
    """Return the endpoint that an entry of `DATABASES` describes.

    Raises:
        ConfigurationError: an option is unknown, or cannot work.
    """
    try:
        return _endpoint(alias, entry)
    except ConfigurationError as exc:
        raise type(exc)(f"DATABASES[{alias!r}]: {exc}") from exc


def _endpoint(alias: str, entry: Mapping[str, Any]) -> Endpoint:
    options = entry.get("OPTIONS") or {}
    unknown = [name for name in options if name.startswith("ps_") and name not in _OWN]
    if unknown:
        raise no_such("option", unknown[0], sorted(_OWN))
    role = options.get("ps_role", "primary")
    if role not in ("primary", "replica", "direct"):
        raise ConfigurationError(f"ps_role: write 'primary', 'replica' or 'direct', not {role!r}")
    _check_of_primary(options)
    defaults = DIRECT if role == "direct" else POOLED
    pooled = _flag(options, "ps_pooled")
    if pooled is None:
        pooled = role != "direct"
    host = entry.get("HOST") or ""
    port = entry.get("PORT") or (6432 if pooled else 5432)
    if not host and not entry.get("PORT"):  # a Unix socket, or PGHOST: there libpq has a port of its own
        port = os.environ.get("PGPORT") or 5432
    timeouts = {name: options.get(key, getattr(defaults, name)) for key, name in _TIMEOUTS.items()}
    return Endpoint(
        name=alias,
        role=role,
        host=host,
        port=int(port),
        user=entry.get("USER") or "",
        password=entry.get("PASSWORD") or "",
        dbname=entry.get("NAME") or "postgres",
        params=tuple(
            (name, str(value)) for name, value in options.items() if not name.startswith("ps_") and name not in _NOT_LIBPQ
        ),
        pooled=pooled,
        weight=parse_weight(options.get("ps_weight", 1.0), name="ps_weight"),
        timeouts=Timeouts(**timeouts),
        application_name=options.get("ps_application_name"),
        marker_schema=options.get("ps_marker_schema", "public"),
        session_state=parse_session_state(options.get("ps_session_state"), name="ps_session_state"),
        assumed_role=options.get("assume_role") if pooled else None,
        transport=parse_transport(options.get("ps_transport"), name="ps_transport"),
        https_port=parse_port(options.get("ps_https_port"), name="ps_https_port") or HTTPS_PORT,
    )


def _flag(options: Mapping[str, Any], name: str) -> bool | None:
    # Packages that make DATABASES of a URL leave it a string, or make a number of it.
    value = options.get(name)
    return parse_flag(str(value) if type(value) is int else value, name=name)


def _check_of_primary(options: Mapping[str, Any]) -> None:
    """Check the options that hold for all aliases of a primary."""
    if "ps_consistency" in options:
        parse_consistency(options["ps_consistency"], name="ps_consistency")
    if "ps_retry_timeout" in options:
        parse_retry_timeout(options["ps_retry_timeout"], name="ps_retry_timeout")
    if (fallback := options.get("ps_replica_fallback", "primary")) not in ("primary", "none"):
        raise ConfigurationError(f"ps_replica_fallback: write 'primary' or 'none', not {fallback!r}")
    if not isinstance(identity := options.get("ps_identity"), str | None):
        raise ConfigurationError(f"ps_identity: write a string, not {identity!r}")


def state_of_alias(
    alias: str, entry: Mapping[str, Any], entries: Mapping[str, Mapping[str, Any]], decision: PathDecision = AS_CONFIGURED
) -> EndpointState:
    """Return what all connections of this alias share that have the limits of `decision`, in all threads of the process."""
    return state_of(limited(endpoint_of(alias, entry), decision), **_common(alias, entry, entries))


class _Common(TypedDict):
    """What is the same for a primary, its replicas and its direct path."""

    identity: str
    consistency: Consistency


def policy_of(alias: str, entry: Mapping[str, Any], entries: Mapping[str, Mapping[str, Any]]) -> RetryPolicy:
    """Return when connections of this alias are tried again: as its primary's entry says."""
    options = _of_primary(alias, entry, entries)[1].get("OPTIONS") or {}
    return policy_for(options.get("ps_retry_timeout", RETRY_TIMEOUT))


def _of_primary(alias: str, entry: Mapping[str, Any], entries: Mapping[str, Mapping[str, Any]]) -> tuple[str, Mapping[str, Any]]:
    primary = (entry.get("OPTIONS") or {}).get("ps_primary", alias)
    return primary, entry if primary == alias else entries.get(primary, entry)


def _common(alias: str, entry: Mapping[str, Any], entries: Mapping[str, Mapping[str, Any]]) -> _Common:
    primary, entry = _of_primary(alias, entry, entries)
    options = entry.get("OPTIONS") or {}
    return {
        "identity": options.get("ps_identity") or _identity(endpoint_of(primary, entry)),
        "consistency": consistency_of(primary, entry, entries),
    }


def consistency_of(alias: str, entry: Mapping[str, Any], entries: Mapping[str, Mapping[str, Any]]) -> Consistency:
    """Return what reads promise through this alias: as its primary's entry says; else "monotonic" where there is a replica.

    Raises:
        ConfigurationError: it says something else than a level.
    """
    primary, entry = _of_primary(alias, entry, entries)
    options = entry.get("OPTIONS") or {}
    if "ps_consistency" in options:
        return parse_consistency(options["ps_consistency"], name=f"DATABASES[{primary!r}]: ps_consistency")
    return "monotonic" if _replicas(primary, entries) else "none"


def _identity(endpoint: Endpoint) -> str:
    """Return the branch as `Topology` names it."""
    dsn = Dsn(user=endpoint.user)
    provider = None if dsn.suffix else paths_of(endpoint.host, endpoint.port)
    host, _ = (provider and provider.direct) or (endpoint.host, endpoint.port)
    return identity_of(database_identity(dsn, provider, host=host, dbname=endpoint.dbname))


def families(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return the primary's alias for the alias of each replica and direct path.

    Raises:
        ConfigurationError: an entry names an unknown primary, or one that is none; says something else than its
            primary's of what holds for all of them; or a replica's ENGINE is not its primary's.
    """
    found = {}
    for alias, entry in tuple(entries.items()):
        primary = (entry.get("OPTIONS") or {}).get("ps_primary")
        if primary is not None:
            _check_named(alias, "ps_primary", primary, entries, "replica", "direct")
            own, of_primary = entry["OPTIONS"], entries[primary].get("OPTIONS") or {}
            for name in _OF_PRIMARY:
                if name in own and own[name] != of_primary.get(name):
                    raise ConfigurationError(
                        f"DATABASES[{alias!r}]: {name} holds for all aliases of a primary: write it in the OPTIONS of"
                        f" DATABASES[{primary!r}]"
                    )
            engines = entry.get("ENGINE"), entries[primary].get("ENGINE")
            if own.get("ps_role") == "replica" and engines[0] != engines[1]:
                raise ConfigurationError(
                    f"DATABASES[{alias!r}]: ENGINE={engines[0]!r}, and that of its primary {primary!r} is {engines[1]!r}: write"
                    f" the same, or reads on the replica are without what the primary's backend does"
                )
            found[alias] = primary
    return found


def check_direct(entries: Mapping[str, Mapping[str, Any]]) -> None:
    """Check that what entries name as their direct path could be one: without it, migrations take the alias's own path.

    Raises:
        ConfigurationError: an entry names an unknown alias, or a replica's.
    """
    for alias, entry in tuple(entries.items()):
        if (direct := (entry.get("OPTIONS") or {}).get("ps_direct")) is not None:
            _check_named(alias, "ps_direct", direct, entries, "replica")


def _check_named(alias: str, option: str, named: Any, entries: Mapping[str, Mapping[str, Any]], *wrong: str) -> None:
    """Refuse an alias that does not exist, or is of a `wrong` role."""

    def fits(entry: Mapping[str, Any]) -> bool:
        return (entry.get("OPTIONS") or {}).get("ps_role", "primary") not in wrong

    if named not in entries or not fits(entries[named]):
        fitting = ", ".join(name for name, entry in tuple(entries.items()) if fits(entry) and name != alias)
        raise ConfigurationError(f"DATABASES[{alias!r}]: {option}={named!r}: write one of {fitting}, or leave it out")


def replicas_of_alias(
    primary: str, entries: Mapping[str, Mapping[str, Any]], decision: PathDecision = AS_CONFIGURED
) -> Replicas | None:
    """Return the replicas of a primary's alias, with limits as decided, each named as its alias; None where it has none."""
    endpoints = tuple(limited(endpoint_of(alias, entry), decision) for alias, entry in _replicas(primary, entries))
    if not endpoints:
        return None
    options = entries[primary].get("OPTIONS") or {}
    falls_back = options.get("ps_replica_fallback", "primary") == "primary"
    fallback = limited(endpoint_of(primary, entries[primary]), decision) if falls_back else None
    return replicas_at(endpoints, fallback, **_common(primary, entries[primary], entries))


def _replicas(primary: str, entries: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    return [
        (alias, entry)
        for alias, entry in tuple(entries.items())  # another thread may add an alias to `connections.settings` meanwhile
        if (options := entry.get("OPTIONS") or {}).get("ps_primary") == primary and options.get("ps_role") == "replica"
    ]
