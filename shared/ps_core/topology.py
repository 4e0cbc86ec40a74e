"""Which endpoint serves which work: the primary, the replicas and the direct path, all derived from one URL.

Every setting has three forms that give equal objects: a keyword (`bouncer="write-pool"`), a parameter of the URL
(`ps_bouncer=write-pool`) and an environment variable (`PS_BOUNCER=write-pool`). A keyword beats the URL, and the URL
beats the environment.
"""

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, Literal, Self, TypeAlias, TypedDict, Unpack, cast, get_args

from ps_core._names import nearest, no_such
from ps_core._plain_errors import ConfigurationError, UnknownSetting
from ps_core._websocket import HTTPS_PORT, check_websockets, target_of
from ps_core.dsn import Dsn, Pairs
from ps_core.providers import Address, Paths, paths_of
from ps_core.timeouts import DIRECT, POOLED, Duration, Timeouts, parse_bound, parse_duration

__all__ = [
    "HTTPS_PORT",
    "RETRY_TIMEOUT",
    "Consistency",
    "Endpoint",
    "Topology",
    "TopologySettings",
    "check_side",
    "check_startup",
    "database_identity",
    "parse_consistency",
    "parse_flag",
    "parse_port",
    "parse_retry_timeout",
    "parse_session_state",
    "parse_transport",
    "parse_weight",
]

Consistency: TypeAlias = Literal["monotonic", "read_your_writes", "none"]
"""What reads on replicas promise; see `TopologySettings.consistency`."""

RETRY_TIMEOUT: Final = 30.0
"""`ps_core._retry.policy.RetryPolicy.max_elapsed`'s default."""


# PlanetScale's ports; elsewhere they mean nothing.
_DIRECT_PORT: Final = 5432
_POOLED_PORT: Final = 6432
_REPLICA: Final = "replica"
# libpq's parameters that say what a setting of ours says.
_LIBPQ_SETTINGS: Final[tuple[str, ...]] = ("application_name", "connect_timeout")
# What comes behind PS_ in the variables of `ps_lab`.
_LAB: Final = "LAB_"
_SSLMODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
# An empty name, as in "-c=", lets PgBouncer 1.20 to 1.26.0 spin for all its clients (CVE-2026-107349): none is sent.
_UNNAMED_OPTION: Final = re.compile(r"(?:^|(?<!\\)\s)(?:-c\s*|--)(?:\\?=|$)")
# A peer that is gone is noticed within some 10 s: when idle or waiting for an answer by the keepalives, when sending by
# tcp_user_timeout (milliseconds). libpq ignores them on Unix sockets and where the system has no such option.
_KEEPALIVES: Final = {
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}


class TopologySettings(TypedDict, total=False):
    """The settings of `Topology.from_url`. In a URL and in the environment, lists are separated by commas."""

    bouncer: str | None
    """Dedicated bouncer for the primary; without one, the local PgBouncer serves."""
    replica_bouncer: str | Sequence[str] | None
    """Dedicated bouncers for replicas."""
    replica_urls: str | Sequence[str] | None
    """Whole URLs of more replicas, as dedicated read replicas have."""
    replica_weights: str | Sequence[float] | None
    """Shares of the reads that the replica endpoints take, in their order; 1 each by default, 0 takes no new ones."""
    replica_fallback: str | float | None
    """What serves reads while no replica can be reached: "primary" (the default), "none", or the primary with at most this share
    of its pool (0.25), so that the loss of the replicas cannot take the primary down."""
    direct_replica: bool | str
    """Read from a replica over the direct port (`|replica`), without a pooler."""
    direct_url: str | None
    """Whole URL of the direct endpoint, for another role (migrations) or host."""
    direct_port: int | str | None
    """The port without a pooler, where it is not 5432."""
    pooled_port: int | str | None
    """The port of the poolers, where it is not 6432."""
    transport: str
    """What carries the connections: "tcp" (the default), or "websocket": TLS on port 443, for networks that let nothing else out
    (docs/howto/serverless.md). It needs the extra `websocket`."""
    https_port: int | str | None
    """The port of the WebSocket, where it is not 443."""
    binding: str | None
    """Where parameters are bound: "client" (the default), in one message with what opens the transaction; or "server": BEGIN with
    its settings then takes a round trip of its own, and in autocommit COMMIT another."""
    pooled: bool | str | None
    """Whether the primary is behind a transaction pooler. By default it is taken to be, unless no port is pooled or the host says
    otherwise (`ps_core.providers`): what works behind a pooler works without one, too."""
    session_state: str | None
    """What becomes of statements behind a transaction pooler that leave in the session what nobody can hold: session advisory
    locks, LISTEN, temporary tables, cursors WITH HOLD, PREPARE, LOAD. "refuse" (the default), or "allow", which sends them all
    the same, and warns once. Without a pooler, and on the direct endpoint, they work."""
    statement_timeout: Duration | None
    transaction_timeout: Duration | None
    idle_in_transaction_timeout: Duration | None
    """These three apply to the primary and the replicas; the defaults are `ps_core.timeouts.POOLED`."""
    lock_timeout: Duration | None
    """Applies to the direct endpoint; 5 s by default."""
    connect_timeout: Duration
    retry_timeout: Duration
    """How long a lost connection, or a refused connect, is tried again, on other endpoints too: 30 s by default, 0 for never.
    Keep it below what ends a request or a worker from outside."""
    consistency: Consistency
    """What reads on replicas promise: "monotonic" (the default), they see one's own writes and never go backwards;
    "read_your_writes", they see one's own writes, and a read asks for no position; "none", replicas serve what they have, and
    nothing is asked for or heeded."""
    application_name: str | None
    """What `pg_stat_activity`, PgBouncer and Traffic Control show. Without it, libpq's PGAPPNAME; then, on endpoints that are not
    pooled, "ps-postgres"."""
    marker_schema: str
    """The schema of the table `ps_commit_marker`, for `commit_check(marker=True)`: "public" by default."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Endpoint:
    """One place to connect to, and how.

    Raises:
        ConfigurationError: something here cannot work on the server or in libpq.
    """

    name: str
    """"primary", "replica", "replica-2", ..., "direct": for logs and metrics."""
    role: Literal["primary", "replica", "direct"]
    host: str
    """The host, as in `Dsn.host`."""
    port: int
    """Where several hosts have ports of their own, the first one's."""
    user: str
    """Complete, with its suffix."""
    password: str
    dbname: str
    params: Pairs = ()
    """libpq's other parameters. What is given here beats what `conninfo` would say by itself."""
    pooled: bool
    """Whether a transaction pooler is in between: no startup options, no session state."""
    weight: float = 1.0
    """Share of the reads relative to the other replicas; 0 takes no new ones."""
    timeouts: Timeouts
    application_name: str | None = None
    assumed_role: str | None = None
    """The role that each transaction takes on (SET LOCAL role)."""
    marker_schema: str = "public"
    """The schema of the table that `commit_check(marker=True)` writes into."""
    binding: Literal["client", "server"] = "client"
    """Where parameters are bound."""
    session_state: Literal["refuse", "allow"] = "refuse"
    """Whether what a session would keep is refused behind a transaction pooler."""
    ports: tuple[int | None, ...] = ()
    """The ports, as in `Dsn.ports`; `(None,)`: libpq chooses it (PGPORT, the service file)."""
    transport: Literal["tcp", "websocket"] = "tcp"
    """What carries the connections."""
    https_port: int = HTTPS_PORT
    """The port of the WebSocket."""
    read_only: bool = field(init=False, repr=False, compare=False)
    """Whether only reads can work here."""
    refuses_session: bool = field(init=False, repr=False, compare=False)
    """Whether what a session would keep is refused here."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "read_only", self.role == "replica")
        object.__setattr__(self, "refuses_session", self.pooled and self.session_state != "allow")
        object.__setattr__(self, "params", tuple(sorted(dict(self.params).items())))
        object.__setattr__(self, "weight", parse_weight(self.weight, name=f"weight of {self.name}"))
        for host in self.host.lower().split(","):
            if host == "planetscale.com" or host.endswith(".planetscale.com"):
                raise ConfigurationError(
                    f"{host!r} is not a database: write the host that the branch's Connect page shows, *.psdb.cloud"
                )
        parse_schema(self.marker_schema, name="marker_schema")
        _binding(self.binding, name=f"binding of {self.name}")
        parse_session_state(self.session_state, name=f"session_state of {self.name}")
        parse_transport(self.transport, name=f"transport of {self.name}")
        _check_suffix(self)
        _check_params(self)

    @property
    def sslmode(self) -> str:
        """The mode that libpq takes: as `params` or the environment say, else its default, which is strict with system roots.

        Over the WebSocket, "verify-full": nothing less is possible there.
        """
        if self.transport == "websocket":
            return "verify-full"
        params = dict(self.params)
        root = params.get("sslrootcert", os.environ.get("PGSSLROOTCERT"))
        return params.get("sslmode", os.environ.get("PGSSLMODE", "verify-full" if root == "system" else "prefer"))

    def conninfo(self) -> dict[str, str | int]:
        """Return all keyword arguments that `psycopg.connect` needs, the password included: those of `parameters`.

        Raises:
            ConfigurationError: a WebSocket carries the connections, which libpq alone does not reach.
        """
        if self.transport == "websocket":
            raise ConfigurationError(
                f'{self.name} has transport="websocket": write ps_core.conninfo(endpoint), which starts what carries connections'
            )
        return self.parameters()

    def parameters(self) -> dict[str, str | int]:
        """Return libpq's parameters, whatever carries the connection.

        Timeouts are in it only where the server takes them as startup options: on endpoints that are not pooled.
        Options from the URL come behind ours, so that they win.
        """
        params: dict[str, str | int] = {
            "host": self.host,
            "port": ",".join(str(port or "") for port in self.ports) if self.ports else self.port,
            "user": self.user,
            "password": self.password,
            "dbname": self.dbname,
            "application_name": self.application_name or "",
            "connect_timeout": max(2, math.ceil(self.timeouts.connect)),
            **_KEEPALIVES,
            **dict(self.params),
        }
        if not self.pooled:
            # A standby's connections stay open when it is promoted.
            read_only = "-c default_transaction_read_only=on " if self.read_only else ""
            params["options"] = read_only + f"{self.timeouts.startup_options()} {params.get('options', '')}".strip()
            # Not behind a pooler: where its clients' names differ, it sets the name anew each time that they take turns.
            params.setdefault("fallback_application_name", "ps-postgres")
        return {name: value for name, value in params.items() if value != ""}

    def render(self) -> str:
        """Return a URL for logs: `***` in the place of each secret."""
        return Dsn(
            host=self.host,
            port=None if self.ports == (None,) else self.port,
            ports=self.ports if len(self.ports) > 1 else (),
            user=self.user,
            password=self.password,
            dbname=self.dbname,
            params=self.params,
            ps=() if self.transport == "tcp" else (("transport", self.transport),),
        ).render()

    def __repr__(self) -> str:
        return f"<Endpoint {self.name} {self.user}@{self.host}:{self.port}/{self.dbname}>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """The endpoints of one database.

    Raises:
        ConfigurationError: `consistency` is no level.
    """

    primary: Endpoint
    replicas: tuple[Endpoint, ...] = ()
    direct: Endpoint
    """For DDL, LISTEN, session features: not pooled, unless no other port is known."""
    replica_fallback: float = 1.0
    """Share of the primary's pool that may serve reads while no replica can be reached."""
    retry_timeout: float = RETRY_TIMEOUT
    """Seconds for which a lost connection is tried again; 0: never."""
    consistency: Consistency = "monotonic"
    """What reads on the replicas promise; see `TopologySettings.consistency`."""
    identity: str
    """The branch where the user name has one, else host and database: what a WAL position belongs to."""

    def __post_init__(self) -> None:
        parse_consistency(self.consistency, name="consistency")

    @classmethod
    def from_url(cls, url: str, **settings: Unpack[TopologySettings]) -> Self:
        """Derive the endpoints from a role's URL and from `settings`; see `Dsn.parse` and `TopologySettings`.

        A keyword that is given wins over the URL's `ps_*`, None included. Reads no environment.

        Raises:
            ConfigurationError: these settings cannot work, or a setting is unknown.
        """
        dsn = Dsn.parse(url)
        return cls._derive(dsn, {**_settings_in(dsn), **_parse(settings)})

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, **settings: Unpack[TopologySettings]) -> Self:
        """Like `from_url`, with the URL from PS_URL or else DATABASE_URL, and settings from `PS_*`; empty means not set.

        `environ` is `os.environ` by default. A variable that is no setting, but nearly one (`PS_REPLICA_BOUNCERS`), is refused;
        others are left alone.

        Raises:
            ConfigurationError: as `from_url`, neither URL is set, or the name of a variable is misspelled.
        """
        env = os.environ if environ is None else environ
        _check_variables(env)
        url = env.get("PS_URL") or env.get("DATABASE_URL")
        if not url:
            raise ConfigurationError("set PS_URL or DATABASE_URL to postgresql://USER:PASSWORD@HOST/DBNAME")
        dsn = Dsn.parse(url)
        found = {name: value for name in _PARSERS if (value := env.get(f"PS_{name.upper()}"))}
        return cls._derive(dsn, {**_parse(found, prefix="PS_"), **_settings_in(dsn), **_parse(settings)})

    @classmethod
    def _derive(cls, dsn: Dsn, settings: dict[str, Any]) -> Self:
        get = settings.get
        bouncer: str | None = get("bouncer")
        replica_bouncers: tuple[str, ...] = get("replica_bouncer", ())
        direct_replica: bool | None = get("direct_replica")
        if dsn.suffix == _REPLICA:
            raise ConfigurationError(
                "the URL's user name ends in |replica: write it without, and the replicas as "
                "ps_replica_bouncer=NAME or ps_direct_replica=true"
            )
        names = [name for name in (bouncer, *replica_bouncers) if name]
        if len(set(names)) < len(names):
            raise ConfigurationError(f"bouncers {', '.join(names)}: a bouncer has one target, so write each name once")

        planetscale = _is_planetscale(dsn.host) or bool(bouncer or replica_bouncers or direct_replica or dsn.suffix)
        provider = None if planetscale else paths_of(dsn.host, dsn.port)
        if provider is not None and provider.leads_to == "replicas":
            raise ConfigurationError(
                f"{dsn.host} leads to replicas: write the primary's host in the URL, and this one in ps_replica_urls"
            )
        ports_given = get("direct_port") is not None or get("pooled_port") is not None
        if dsn.port is None and not (dsn.ports or ports_given or planetscale or provider):
            dsn = replace(dsn, ports=(None,))
        elif dsn.ports and ports_given:
            raise ConfigurationError("hosts with ports of their own are one path: write the other one as ps_direct_url")
        direct_at, pooled_at, use_pooled = _addresses(dsn, settings, provider, planetscale=planetscale)
        if dsn.suffix and dsn.port is not None and (dsn.host, dsn.port) == direct_at:
            raise ConfigurationError(_bouncer_on_direct(dsn.suffix, dsn.port))
        work_at = pooled_at if use_pooled else direct_at
        if work_at is None:
            raise ConfigurationError(
                f"pooled={str(use_pooled).lower()}: the URL names no such port: add "
                f"{'ps_pooled_port' if use_pooled else 'ps_direct_port'}=PORT"
            )
        if replica_bouncers and pooled_at is None:
            raise ConfigurationError("replica_bouncer: the URL names no pooled port: add ps_pooled_port=PORT")
        if direct_replica and direct_at is None:
            raise ConfigurationError("direct_replica: the URL names no direct port: add ps_direct_port=PORT")

        connect = get("connect_timeout", POOLED.connect)
        bounded = Timeouts(
            statement=get("statement_timeout", POOLED.statement),
            transaction=get("transaction_timeout", POOLED.transaction),
            idle_in_transaction=get("idle_in_transaction_timeout", POOLED.idle_in_transaction),
            connect=connect,
        )
        patient = Timeouts(lock=get("lock_timeout", DIRECT.lock), connect=connect)
        application_name = get("application_name")

        def path(suffix: str | None, at: Address | None, *without: str) -> Dsn:
            host, port = at or (dsn.host, None)
            user = f"{dsn.base_user}|{suffix}" if suffix else dsn.base_user
            params = tuple(pair for pair in dsn.params if pair[0] not in (*_LIBPQ_SETTINGS, *without))
            return replace(dsn, host=host, user=user, port=port, params=params)

        endpoint = partial(
            _endpoint,
            application_name=application_name,
            marker_schema=get("marker_schema", "public"),
            binding=get("binding", "client"),
            session_state=get("session_state", "refuse"),
            transport=get("transport", "tcp"),
            https_port=get("https_port") or HTTPS_PORT,
        )
        primary = endpoint(path(bouncer, work_at), "primary", pooled=use_pooled, timeouts=bounded)
        # Replicas without target_session_attrs, which is meant for the primary: no replica would do.
        paths = [(path(name, pooled_at, "target_session_attrs"), True) for name in replica_bouncers]
        if direct_replica:
            paths.append((path(_REPLICA, direct_at, "target_session_attrs"), False))
        known = {direct_at: False, pooled_at: True}
        paths += [_kind(url, known, default=get("pooled") is not False) for url in get("replica_urls", ())]
        direct_url = get("direct_url")
        if direct_url is None:
            direct = path(None, direct_at or pooled_at), direct_at is None
        else:
            direct = _kind(direct_url, known, default=False)
            provided = paths_of(direct_url.host, direct_url.port)
            if direct_url.suffix or direct[1] or (provided is not None and provided.leads_to == "replicas"):
                raise ConfigurationError(
                    "direct_url: it leads to a pooler or a replica: write the port without a pooler (5432 on "
                    "PlanetScale) and a user name without |suffix"
                )
        weights: tuple[float, ...] = get("replica_weights") or (1.0,) * len(paths)
        if len(weights) != len(paths):
            raise ConfigurationError(f"replica_weights: write one number for each of the {len(paths)} replica endpoints")
        return cls(
            primary=primary,
            replicas=tuple(
                replace(endpoint(url, "replica", number, pooled=pooled, timeouts=bounded), weight=weight)
                for number, ((url, pooled), weight) in enumerate(zip(paths, weights, strict=True), 1)
            ),
            replica_fallback=get("replica_fallback", 1.0),
            retry_timeout=get("retry_timeout", RETRY_TIMEOUT),
            consistency=get("consistency", "monotonic"),
            direct=endpoint(direct[0], "direct", pooled=direct[1], timeouts=patient),
            identity=database_identity(
                dsn, provider, host=(direct_at or work_at)[0] or dict(dsn.params).get("service", ""), dbname=primary.dbname
            ),
        )


def _endpoint(
    dsn: Dsn,
    role: Literal["primary", "replica", "direct"],
    number: int = 1,
    *,
    pooled: bool,
    timeouts: Timeouts,
    application_name: str | None,
    marker_schema: str,
    binding: Literal["client", "server"],
    session_state: Literal["refuse", "allow"],
    transport: Literal["tcp", "websocket"],
    https_port: int,
) -> Endpoint:
    params, dbname = dict(dsn.params), dsn.dbname
    if _is_planetscale(dsn.host):
        dbname = dbname or "postgres"
        if params.setdefault("sslmode", "verify-full") == "verify-full":
            # libpq by itself looks for ~/.postgresql/root.crt and fails where there is none.
            params.setdefault("sslrootcert", "system")
    return Endpoint(
        name=role if number == 1 else f"{role}-{number}",
        role=role,
        host=dsn.host,
        port=dsn.port or _DIRECT_PORT,
        ports=dsn.ports,
        user=dsn.user,
        password=dsn.password,
        dbname=dbname,
        params=tuple(params.items()),
        pooled=pooled,
        timeouts=timeouts,
        application_name=application_name,
        marker_schema=marker_schema,
        binding=binding,
        session_state=session_state,
        transport=transport,
        https_port=https_port,
    )


def _is_planetscale(host: str) -> bool:
    return host.lower().rstrip(".").endswith(".psdb.cloud")


def _addresses(
    dsn: Dsn, settings: Mapping[str, Any], provider: Paths | None, *, planetscale: bool
) -> tuple[Address | None, Address | None, bool]:
    """Return the direct and the pooled address (None: nothing is known of it), and whether the primary is to be pooled."""
    pooled: bool | None = settings.get("pooled")
    if provider is not None and settings.get("direct_port") is None and settings.get("pooled_port") is None:
        # A session pooler passes on no startup options, which would bound the primary: its other path can be bounded.
        use_pooled = provider.leads_to != "server" if pooled is None else pooled
        if provider.pooled if use_pooled else provider.direct:
            return provider.direct, provider.pooled, use_pooled
    direct_port, pooled_port = _ports(dsn.port, settings, planetscale=planetscale)
    if _is_planetscale(dsn.host) and (direct_port == _POOLED_PORT or pooled_port == _DIRECT_PORT):
        raise ConfigurationError(
            f"direct port {direct_port}, pooled port {pooled_port}: at PlanetScale {_DIRECT_PORT} is direct and {_POOLED_PORT}"
            f" the bouncers': leave out ps_direct_port and ps_pooled_port"
        )
    return (
        (dsn.host, direct_port) if direct_port else None,
        (dsn.host, pooled_port) if pooled_port else None,
        pooled_port is not None if pooled is None else pooled,
    )


def _ports(port: int | None, settings: Mapping[str, Any], *, planetscale: bool) -> tuple[int | None, int | None]:
    """Return the direct and the pooled port: None for at most one of them, of which nothing is known."""
    direct, pooled = settings.get("direct_port"), settings.get("pooled_port")
    if direct is None and pooled is None:
        if planetscale and port in (None, _DIRECT_PORT, _POOLED_PORT):
            return _DIRECT_PORT, _POOLED_PORT
        port = port or _DIRECT_PORT
        return (port, None) if settings.get("pooled") is False else (None, port)
    if port not in (None, direct, pooled):
        if direct is not None and pooled is not None:
            raise ConfigurationError(
                f"port {port} is neither ps_direct_port ({direct}) nor ps_pooled_port ({pooled}): write one of the two"
            )
        direct, pooled = direct or port, pooled or port
    if direct == pooled:
        raise ConfigurationError(f"port {direct} cannot be both direct and pooled: write the one of the two that it is")
    return direct, pooled


def _kind(dsn: Dsn, known: Mapping[Address | None, bool], *, default: bool) -> tuple[Dsn, bool]:
    """Return a whole URL that was given for one endpoint, with its port, and whether it is pooled."""
    planetscale = bool(dsn.suffix) or _is_planetscale(dsn.host)
    if dsn.suffix:
        default = dsn.suffix != _REPLICA
    elif not planetscale and (provider := paths_of(dsn.host, dsn.port)) and provider.leads_to != "session pooler":
        default = provider.leads_to == "pooler"
    if dsn.port is None:
        return replace(dsn, port=_POOLED_PORT if planetscale and default else _DIRECT_PORT), default
    if planetscale:
        default = {_DIRECT_PORT: False, _POOLED_PORT: True}.get(dsn.port, default)
    return dsn, known.get((dsn.host, dsn.port), default)


def _bouncer_on_direct(name: str, port: int) -> str:
    return (
        f"bouncer {name!r} cannot be reached on port {port}, which is direct: write port {_POOLED_PORT} "
        f"(or name another pooled port as ps_pooled_port)"
    )


def _check_suffix(endpoint: Endpoint) -> None:
    name, bar, suffix = endpoint.user.partition("|")
    if not bar:
        return
    if not name:
        raise ConfigurationError(f"|{suffix} needs a user name before it: write USER.BRANCH in the URL")
    if suffix != _REPLICA:
        _bouncer(suffix, name=f"user of {endpoint.name}")
        if not endpoint.pooled:
            raise ConfigurationError(_bouncer_on_direct(suffix, endpoint.port))
    elif endpoint.pooled:
        raise ConfigurationError(
            f"|replica cannot be reached on port {endpoint.port}, whose pooler serves the primary only: write port "
            f"{_DIRECT_PORT}, or a replica bouncer's name in its place"
        )


def check_side(endpoint: Endpoint, to: str) -> None:
    """Refuse what `to=` says beside an endpoint, which is one place; "primary" is what it says where nothing is given.

    Raises:
        ConfigurationError: it says something else than the endpoint is.
    """
    if to not in ("primary", endpoint.role):
        raise ConfigurationError(f"to={to!r}: {endpoint.name!r} is one endpoint: leave it out, or give a Topology or a URL")


def check_startup(endpoint: Endpoint, params: Mapping[str, Any]) -> None:
    """Refuse libpq's `options` behind a transaction pooler, which would refuse the connection.

    Raises:
        ConfigurationError: see there.
    """
    if endpoint.pooled and params.get("options"):
        raise ConfigurationError(
            f"options cannot pass a transaction pooler ({endpoint.name}, port {endpoint.port}): write ALTER ROLE ... SET, or "
            f"options for the direct endpoint alone (in ps_direct_url, or SQLAlchemy's direct_connect_args), or ps_pooled=false "
            f"where there is no pooler"
        )


def _check_params(endpoint: Endpoint) -> None:
    params = dict(endpoint.params)
    if endpoint.transport == "websocket":
        check_websockets()
        target_of(endpoint.parameters(), endpoint.https_port, os.environ)
    check_startup(endpoint, params)
    if _UNNAMED_OPTION.search(params.get("options", "")):
        raise ConfigurationError("options has a setting without a name: write -c NAME=VALUE")
    system, mode = params.get("sslrootcert") == "system", endpoint.sslmode
    if mode not in _SSLMODES:
        raise ConfigurationError(f"sslmode={mode!r}: write one of {', '.join(_SSLMODES)}")
    if system and mode != "verify-full":
        raise ConfigurationError(f"sslrootcert=system with sslmode={mode}: write sslmode=verify-full, or a file's path")
    if params.get("sslnegotiation") == "direct" and _SSLMODES.index(mode) < _SSLMODES.index("require"):
        raise ConfigurationError(f"sslnegotiation=direct with sslmode={mode}: write sslmode=verify-full, or require")


def _settings_in(dsn: Dsn) -> dict[str, Any]:
    """Return the settings that a URL makes: by `ps_*`, else by libpq's parameter or the user name's suffix."""
    params = dict(dsn.params)
    settings: dict[str, str] = {name: params[name] for name in _LIBPQ_SETTINGS if name in params}
    if "connect_timeout" in settings:
        settings["connect_timeout"] += "s"
    if dsn.suffix not in ("", _REPLICA):
        settings["bouncer"] = dsn.suffix
    return _parse({**settings, **dict(dsn.ps)}, prefix="ps_")


def _check_variables(env: Mapping[str, str]) -> None:
    known = {"URL", "REPLICA_SHARE", *(name.upper() for name in _PARSERS)}
    for variable in env:
        name = variable.removeprefix("PS_")
        if name == variable or name in known or name.startswith(_LAB) or not env[variable]:
            continue
        # Without the prefix: all would be like each other. What is less like a setting may be another application's.
        if (near := nearest(name, known, cutoff=0.85)) is not None:
            raise UnknownSetting(f"there is no variable {variable}: did you mean PS_{near}?")


def _parse(given: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    for name in given:
        if name not in _PARSERS:
            raise no_such("setting", name, _PARSERS, prefix=prefix)
    return {name: _PARSERS[name](value, name=prefix + name) for name, value in given.items()}


def _text(value: Any, *, name: str) -> str | None:
    if not isinstance(value, str | None):
        raise ConfigurationError(f"{name}: write a string, not {value!r}")
    return value or None


def _items(value: Any, *, name: str, separator: str = r"[,\s]+") -> Sequence[Any]:
    """Return what a list holds, or a text that is one. What it shows of another value is no password."""
    if isinstance(value, str):
        return re.split(separator, value)
    if value is None or (isinstance(value, Sequence) and not isinstance(value, bytes)):
        return value or ()
    raise ConfigurationError(f"{name}: write a list, or one string with commas, not a value of type {type(value).__name__}")


def parse_schema(value: Any, *, name: str) -> str:
    """Return the name of a schema.

    Raises:
        ConfigurationError: it cannot be one.
    """
    if not isinstance(value, str) or not value or "\x00" in value or len(value.encode()) > 63:
        raise ConfigurationError(f"{name}: {value!r} is no schema's name: write 1 to 63 bytes, without quotes around them")
    return value


def _binding(value: str | None, *, name: str) -> str:
    if value not in (None, "", "client", "server"):
        raise ConfigurationError(f"{name}: write 'client' or 'server', not {value!r}")
    return value or "client"


def parse_session_state(value: str | None, *, name: str) -> Literal["refuse", "allow"]:
    """Return what becomes of what a session would keep; "refuse" where nothing is said.

    Raises:
        ConfigurationError: it is neither.
    """
    if value not in (None, "", "refuse", "allow"):
        raise ConfigurationError(f"{name}: write 'refuse' or 'allow', not {value!r}")
    return "allow" if value == "allow" else "refuse"


def parse_transport(value: str | None, *, name: str) -> Literal["tcp", "websocket"]:
    """Return what carries the connections; "tcp" where nothing is said.

    Raises:
        ConfigurationError: it is neither.
    """
    if value not in (None, "", "tcp", "websocket"):
        raise ConfigurationError(f"{name}: write 'tcp' or 'websocket', not {value!r}")
    return "websocket" if value == "websocket" else "tcp"


def parse_consistency(value: Any, *, name: str) -> Consistency:
    """Return a level of consistency. None is not taken for "none", nor for the default.

    Raises:
        ConfigurationError: it is no level.
    """
    if not isinstance(value, str) or value not in get_args(Consistency):
        raise ConfigurationError(f"{name}: write 'monotonic', 'read_your_writes' or 'none', not {value!r}")
    return cast("Consistency", value)


def parse_flag(value: bool | str | None, *, name: str) -> bool | None:
    """Return what `value` says: True, or "true", "1", "yes", "on"; False, or "false", "0", "no", "off"; None as it is.

    Raises:
        ConfigurationError: it is none of these.
    """
    if value is None:
        return None
    for flag, words in ((True, ("true", "1", "yes", "on")), (False, ("false", "0", "no", "off"))):
        if value is flag or (isinstance(value, str) and value.lower() in words):
            return flag
    raise ConfigurationError(f"{name}: {value!r} is no yes or no: write true or false")


def parse_port(value: int | str | None, *, name: str) -> int | None:
    """Return a port; None as it is.

    Raises:
        ConfigurationError: it is no number from 1 to 65535.
    """
    if value is None:
        return None
    port = int(value) if re.fullmatch(r"[0-9]{1,5}", str(value)) else 0
    if not 0 < port < 65536:
        raise ConfigurationError(f"{name}: {value!r} is no port: write a number from 1 to 65535")
    return port


def _bouncer(value: str | None, *, name: str) -> str | None:
    value = _text(value, name=name)
    if not value:
        return None
    if value in ("primary", _REPLICA):
        raise ConfigurationError(
            f"{name}: {value!r} is reserved: write a dedicated bouncer's own name (no name: the local PgBouncer; "
            f"a replica without a bouncer: ps_direct_replica=true)"
        )
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,12}", value):
        raise ConfigurationError(f"{name}: {value!r} is no bouncer's name: write its name alone, at most 12 of A-Z a-z 0-9 _ -")
    return value


def _bouncers(value: str | Sequence[str] | None, *, name: str) -> tuple[str, ...]:
    return tuple(found for item in _items(value, name=name) if (found := _bouncer(item, name=name)))


def _url(value: str | None, *, name: str) -> Dsn | None:
    if not value:
        return None
    try:
        dsn = Dsn.parse(value)
    except ConfigurationError as exc:
        raise type(exc)(f"{name}: {exc}") from exc
    if dsn.ps:
        raise ConfigurationError(f"{name}: ps_{dsn.ps[0][0]} has no meaning in this URL: write it in the main one")
    return dsn


def _weights(value: str | Sequence[float] | None, *, name: str) -> tuple[float, ...]:
    return tuple(parse_weight(item, name=name) for item in _items(value, name=name) if item != "")


def parse_weight(value: str | float, *, name: str) -> float:
    """Return the share of the reads that an endpoint takes.

    Raises:
        ConfigurationError: it is no number from 0 on.
    """
    try:
        weight = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        weight = math.nan
    if not 0 <= weight < math.inf:
        raise ConfigurationError(f"{name}: write a number from 0 on, not {value!r}")
    return weight


def _fallback(value: Any, *, name: str) -> float:
    words = {None: 1.0, "primary": 1.0, "none": 0.0}
    try:
        share = words[value] if value in words else float(value)
    except (TypeError, ValueError):
        share = math.nan
    if isinstance(value, bool) or not 0 <= share <= 1:
        raise ConfigurationError(f"{name}: write 'primary', 'none', or a share of the primary's pool such as 0.25, not {value!r}")
    return share


def database_identity(dsn: Dsn, provider: Paths | None, *, host: str, dbname: str) -> str:
    """Return what a WAL position belongs to: the branch that the user name holds, else the server's host and the database."""
    # Elsewhere than on a host of many tenants, a known provider's user name may have a dot for any reason.
    branch = dsn.branch if provider is None or provider.shared else ""
    return branch or f"{host}/{dbname}"


def parse_retry_timeout(value: Duration | None, *, name: str) -> float:
    """Return `value` in seconds; 0 stays 0.

    Raises:
        ConfigurationError: `value` is no duration, or none at all: there has to be an end.
    """
    if value in (0, "0", "0s") and not isinstance(value, bool):
        return 0.0
    return parse_bound(value, name=name, otherwise=", or 0 for no retries")


def _urls(value: str | Sequence[str] | None, *, name: str) -> tuple[Dsn, ...]:
    # A comma may also stand between the hosts of one URL.
    items = _items(value, name=name, separator=r"[,\s]+(?=[\w+]+://)")
    return tuple(found for item in items if (found := _url(item, name=name)))


_PARSERS: Final[Mapping[str, Callable[..., Any]]] = {
    "bouncer": _bouncer,
    "replica_bouncer": _bouncers,
    "replica_urls": _urls,
    "replica_weights": _weights,
    "replica_fallback": _fallback,
    "direct_replica": parse_flag,
    "direct_url": _url,
    "direct_port": parse_port,
    "pooled_port": parse_port,
    "transport": parse_transport,
    "https_port": parse_port,
    "pooled": parse_flag,
    "binding": _binding,
    "session_state": parse_session_state,
    "statement_timeout": parse_duration,
    "transaction_timeout": parse_duration,
    "idle_in_transaction_timeout": parse_duration,
    "lock_timeout": parse_duration,
    "connect_timeout": parse_bound,
    "retry_timeout": parse_retry_timeout,
    "consistency": parse_consistency,
    "application_name": _text,
    "marker_schema": parse_schema,
}
