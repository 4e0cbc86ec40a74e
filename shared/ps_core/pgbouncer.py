"""A PgBouncer on the application's side, in front of the database's own: its ini, its users, and whether a given ini fits.

Both tiers have caps, and each has to fit the one behind it:

    clients of the application  <=  max_client_conn here
    pool_size here x machines   <=  max_client_conn of the database's bouncers
    transactions at once        <=  default_pool_size of the database's bouncers; more of them wait

https://www.pgbouncer.org/config.html; https://planetscale.com/blog/scaling-postgres-connections-with-pgbouncer
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Final, Literal

from ps_core.dsn import Dsn
from ps_core.errors import ConfigurationError
from ps_core.topology import Endpoint, Topology

__all__ = ["DEFAULT_POOL_SIZE", "MAX_CLIENT_CONN", "Load", "Remark", "application_urls", "check", "pgbouncer_ini", "userlist"]

PORT: Final = 6432
MAX_CLIENT_CONN: Final = 100
"""PlanetScale's default `max_client_conn` of one PgBouncer: https://planetscale.com/docs/postgres/connecting/pgbouncer."""
DEFAULT_POOL_SIZE: Final = 20
"""PlanetScale's default `default_pool_size` of one PgBouncer (the same page)."""
_SPARE: Final = 10
"""Clients beyond the application's: the console, a shell, a check."""
_SSLMODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_CA_FILE: Final = "/etc/ssl/certs/ca-certificates.crt"
"""The system's roots on Debian and Ubuntu: PgBouncer takes a file."""
_FILES: Final = {"sslrootcert": "server_tls_ca_file", "sslcert": "server_tls_cert_file", "sslkey": "server_tls_key_file"}
# One line, and one `name=value` of a database's, as PgBouncer reads them.
_LINE: Final = re.compile(r"([\w.*-]+)\s*=\s*(.*)", re.ASCII)
_PAIR: Final = re.compile(r"(\w+)\s*=\s*('(?:[^']|'')*'|\S*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What the application may open, and what the database's bouncers take.

    Raises:
        ConfigurationError: a number is not from 1 on.
    """

    workers: int
    """Processes of the application behind one app-side PgBouncer."""
    pool_size: int
    """Connections of a worker to one endpoint, overflow included."""
    machines: int = 1
    """App-side PgBouncers."""
    max_client_conn: int = MAX_CLIENT_CONN
    """Clients that an endpoint's bouncers take together, or the server where it has no bouncer."""
    default_pool_size: int = DEFAULT_POOL_SIZE
    """Server connections that an endpoint's bouncers open together."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and value < 1:
                raise ConfigurationError(f"{field.name}: write a whole number from 1 on, not {value}")

    @property
    def clients(self) -> int:
        """Connections of one machine to one endpoint, at most."""
        return self.workers * self.pool_size

    def clients_of(self, endpoint: Endpoint, topology: Topology) -> int:
        """Return the same with what the primary gets while no replica can be reached."""
        if endpoint.read_only or not topology.replicas:
            return self.clients
        return self.clients + int(self.clients * topology.replica_fallback)

    def clients_of_all(self, topology: Topology) -> int:
        """Return what `max_client_conn` has to allow for on one machine."""
        return sum(self.clients_of(endpoint, topology) for endpoint in _endpoints(topology)) + _SPARE


@dataclass(frozen=True, slots=True, kw_only=True)
class Remark:
    """One thing that does not fit, and what to write."""

    level: Literal["warning", "error"]
    text: str


def pgbouncer_ini(
    topology: Topology,
    load: Load,
    *,
    auth_file: str,
    listen: str = "127.0.0.1",
    port: int = PORT,
    version: tuple[int, int] = (1, 24),
) -> str:
    """Return the ini of an app-side PgBouncer of `version`; `listen` is a loopback address or the folder of a Unix socket.

    There is no password in it: `auth_file` has what `userlist` returns.

    Raises:
        ConfigurationError: the caps leave no connection for an endpoint, or one ini cannot serve the endpoints.
    """
    lines = [
        "; An app-side PgBouncer, made by `ps-postgres pgbouncer`: `--check` says whether it still fits.",
        "",
        "[databases]",
        f"; {load.workers} workers x {load.pool_size} connections = {load.clients} clients of each endpoint.",
        "; A pool_size is the least of these clients, of",
        f";   the database's default_pool_size, {load.default_pool_size}: more transactions at once would only wait there,",
        f";   nine tenths of its max_client_conn, {load.max_client_conn}, for {load.machines} machine(s): others need some.",
    ]
    for name, endpoint in _databases(topology).items():
        clients = load.clients_of(endpoint, topology)
        size = min(clients, load.default_pool_size, load.max_client_conn * 9 // 10 // load.machines)
        if size < 1:
            raise ConfigurationError(
                f"{load.machines} machines cannot share the {load.max_client_conn} clients that {endpoint.name} takes: "
                f"write fewer machines, or raise max_client_conn there"
            )
        if len(endpoint.ports) > 1:
            raise ConfigurationError(
                f"{endpoint.name}: PgBouncer takes one port for all hosts: write hosts of one port, or one host"
            )
        pairs = {
            "host": endpoint.host,
            "port": str(endpoint.port),
            "dbname": endpoint.dbname,
            "user": endpoint.user,
            "pool_size": str(size),
        }
        if clients > load.clients:
            lines.append(f"; {clients} clients here, with the reads that come while no replica can be reached.")
        lines.append(f"{name} = " + " ".join(f"{key}={_value(value)}" for key, value in pairs.items()))
    lines += ["", "[pgbouncer]"]
    for settings, why in _settings(topology, load, auth_file, listen, port, version):
        lines += [f"; {line}" for line in why.splitlines()]
        lines += [f"{key} = {value}" for key, value in settings.items()]
    return "\n".join(lines) + "\n"


def _settings(
    topology: Topology, load: Load, auth_file: str, listen: str, port: int, version: tuple[int, int]
) -> Iterator[tuple[dict[str, object], str]]:
    """Yield groups of settings, each with the reason for it."""
    folder = listen.startswith("/")
    yield (
        {"listen_addr": "" if folder else listen, "listen_port": port, "unix_socket_dir": listen if folder else ""},
        "For this machine alone: there is no TLS between the application and here.",
    )
    yield {"auth_type": "scram-sha-256", "auth_file": auth_file}, "The passwords, for both sides, are in a file of mode 0600."
    yield {"pool_mode": "transaction"}, "As the database's bouncers."
    clients = " + ".join(f"{load.clients_of(endpoint, topology)} of {endpoint.name}" for endpoint in _endpoints(topology))
    yield {"max_client_conn": load.clients_of_all(topology)}, f"{clients}, and {_SPARE} to spare."
    yield {"reserve_pool_size": 0}, "Each pool has its size above, and no more."
    yield _tls(topology), "To the database. PgBouncer knows no sslrootcert=system: name the file that has the system's roots."
    yield (
        {"server_connect_timeout": f"{topology.primary.timeouts.connect:g}", "server_login_retry": 1, "query_wait_timeout": 120},
        "A login that failed is tried again after a second: the default of 15 turns a short outage into 15 s of errors.\n"
        "A switchover (up to 30 s) is waited for, as the database's bouncers do.",
    )
    yield (
        {"tcp_keepalive": 1, "tcp_keepidle": 5, "tcp_keepintvl": 2, "tcp_keepcnt": 3, "tcp_user_timeout": 10_000},
        "A peer that is gone is noticed within some 10 s. The application's own keepalives end here.",
    )
    yield {"server_lifetime": 3600, "server_idle_timeout": 600}, "Bouncers that are replaced drain within 24 h."
    extra = {} if version < (1, 21) else {"max_prepared_statements": 200, "track_extra_parameters": "IntervalStyle"}
    yield {"ignore_startup_parameters": "extra_float_digits", **extra}, "As on PlanetScale's."


def _tls(topology: Topology) -> dict[str, object]:
    """Return what PgBouncer has once for all databases: the strictest mode, and the only files."""
    settings: dict[str, object] = {"server_tls_sslmode": max((end.sslmode for end in _endpoints(topology)), key=_SSLMODES.index)}
    for param, name in _FILES.items():
        files = {dict(end.params).get(param, "") for end in _endpoints(topology)}
        if len(files) > 1:
            raise ConfigurationError(f"{param}: PgBouncer has one for all databases: write the same file in each URL")
        file = files.pop()
        if param == "sslrootcert" and not file and str(settings["server_tls_sslmode"]).startswith("verify"):
            raise ConfigurationError(f"sslrootcert: PgBouncer has no default for it: write a file, such as {_CA_FILE}")
        if file:
            settings[name] = _CA_FILE if file == "system" else file
    return settings


def userlist(topology: Topology) -> str:
    """Return the text of `auth_file`: the user name without a suffix, for clients, and those that the database is shown.

    Raises:
        ConfigurationError: a password is missing, is not the only one of its user, or something has a control character.
    """
    passwords: dict[str, str] = {}
    for endpoint in _endpoints(topology):
        for user in (_client(topology), endpoint.user) if endpoint is topology.primary else (endpoint.user,):
            if not endpoint.password:
                raise ConfigurationError(f"password of {endpoint.name}: PgBouncer needs one: write it in the URL")
            if passwords.setdefault(user, endpoint.password) != endpoint.password:
                raise ConfigurationError(f"{user!r} has two passwords in the URLs: PgBouncer knows one of each user")
    return "".join('"{}" "{}"\n'.format(*(text.replace('"', '""') for text in pair)) for pair in passwords.items())


def application_urls(topology: Topology, *, listen: str = "127.0.0.1", port: int = PORT) -> dict[str, list[Dsn]]:
    """Return what the application connects to then, by setting: "url", "replica_urls" and "direct_url", which goes past it."""
    here = Dsn(host=listen, port=port, user=_client(topology), password=topology.primary.password)
    primary, *replicas = (replace(here, dbname=name) for name in _databases(topology))
    end = topology.direct
    direct = Dsn(host=end.host, port=end.port, user=end.user, password=end.password, dbname=end.dbname, params=end.params)
    return {"url": [primary], "replica_urls": replicas, "direct_url": [] if end.pooled else [direct]}


def check(ini: str, topology: Topology, load: Load) -> list[Remark]:
    """Return what of an ini does not fit the topology and the caps. It is not changed, and nothing in it is secret."""
    sections: dict[str, dict[str, str]] = {"databases": {}, "pgbouncer": {}}
    section: dict[str, str] | None = None
    for number, line in enumerate(map(str.strip, ini.splitlines()), 1):
        if not line or line[0] in ";#":
            continue
        if line.startswith("%include"):
            return [_error(f"line {number}: %include is not followed: check a file that has all")]
        if found := re.fullmatch(r"\[(\w+)\]", line):
            section = sections.setdefault(found[1], {})
        elif section is not None and (found := _LINE.fullmatch(line)):
            section[found[1]] = found[2]
        else:
            return [_error(f"line {number} cannot be read: write NAME = VALUE in the sections [databases] and [pgbouncer]")]
    return list(_check(_Ini(sections["databases"], sections["pgbouncer"]), topology, load))


class _Ini:
    """The two sections, with PgBouncer's defaults."""

    def __init__(self, databases: dict[str, str], settings: dict[str, str]) -> None:
        self.settings = settings
        self.databases = {
            name: {key: value[1:-1].replace("''", "'") if value.startswith("'") else value for key, value in _PAIR.findall(text)}
            for name, text in databases.items()
        }

    def number(self, name: str, default: int, line: dict[str, str] | None = None) -> int:
        text = (line or {}).get(name) or self.settings.get(name, "")
        return int(text) if text.isdecimal() else default

    def pool(self, line: dict[str, str]) -> int:
        """Return the server connections of a database's pool, at most."""
        # The name of a line's reserve changed in 1.24.
        reserve = line.get("reserve_pool_size") or line.get("reserve_pool", "")
        named = {"default_pool_size": line.get("pool_size", ""), "reserve_pool_size": reserve}
        size = self.number("default_pool_size", 20, named) + self.number("reserve_pool_size", 0, named)
        cap = self.number("max_db_connections", 0, line)
        return min(size, cap) if cap else size


def _check(ini: _Ini, topology: Topology, load: Load) -> Iterator[Remark]:
    needed = load.clients_of_all(topology)
    if (cap := ini.number("max_client_conn", 100)) < needed:
        yield _error(f"max_client_conn = {cap}: the application may open {needed} connections: write max_client_conn = {needed}")
    for endpoint in _endpoints(topology):
        lines = {
            name: line
            for name, line in ini.databases.items()
            if line.get("host") == endpoint.host
            and (line.get("port") or "5432") == str(endpoint.port)
            and line.get("user", endpoint.user) == endpoint.user
        }
        if not lines:
            yield _error(
                f"no database leads to {endpoint.name}: write one with host={endpoint.host} port={endpoint.port} "
                f"user={_value(endpoint.user)}"
            )
            continue
        yield from _check_pools(ini, lines, endpoint, load)
        for name, line in lines.items():
            if (mode := line.get("pool_mode", ini.settings.get("pool_mode", "session"))) != "transaction":
                yield _error(f"{name}: pool_mode = {mode}: each client would keep a connection: write pool_mode = transaction")
        here, wanted = ini.settings.get("server_tls_sslmode", "prefer"), endpoint.sslmode
        if here not in _SSLMODES or _SSLMODES.index(here) < _SSLMODES.index(wanted):
            yield _error(f"server_tls_sslmode = {here}: {endpoint.name} wants more: write server_tls_sslmode = {wanted}")
    for name, line in ini.databases.items():
        if "password" in line:
            yield _error(f"{name}: it has a password: write that in auth_file, a file of mode 0600")
    if ini.settings.get("server_tls_sslmode", "").startswith("verify") and not ini.settings.get("server_tls_ca_file"):
        yield _warning(f"no server_tls_ca_file to verify with: write one, such as {_CA_FILE}")
    if (retry := ini.number("server_login_retry", 15)) > 2:
        yield _warning(f"server_login_retry = {retry}: a short outage becomes {retry} s of errors: write server_login_retry = 1")


def _check_pools(ini: _Ini, lines: dict[str, dict[str, str]], endpoint: Endpoint, load: Load) -> Iterator[Remark]:
    pools = sum(map(ini.pool, lines.values()))
    names = ", ".join(lines)
    if pools * load.machines > load.max_client_conn:
        yield _error(
            f"{names}: {pools} server connections x {load.machines} machine(s) are more than {endpoint.name} takes "
            f"(max_client_conn {load.max_client_conn}): write a smaller pool_size, or raise max_client_conn there"
        )
    elif pools > load.default_pool_size:
        yield _warning(
            f"{names}: {pools} server connections share {load.default_pool_size} behind {endpoint.name} (default_pool_size): "
            f"the others wait there; write pool_size={load.default_pool_size}"
        )
    if any("user" not in line for line in lines.values()):
        yield _warning(f"{names}: without user= each role has a pool of this size: write user={_value(endpoint.user)}")


def _endpoints(topology: Topology) -> tuple[Endpoint, ...]:
    endpoints = (topology.primary, *topology.replicas)
    for end in endpoints:
        if end.transport != "tcp":
            raise ConfigurationError(f'{end.name} has transport="{end.transport}", and PgBouncer connects by TCP: leave it out')
        # One line could become several.
        if re.search(
            r"[\x00-\x1f]", "".join((end.host, end.user, end.password, end.dbname, *(value for _, value in end.params)))
        ):
            raise ConfigurationError(f"{end.name}: PgBouncer's files cannot hold control characters: write others in the URL")
    return endpoints


def _databases(topology: Topology) -> dict[str, Endpoint]:
    """Return the names under which clients find the endpoints."""
    name = topology.primary.dbname
    if not name or name == "pgbouncer":
        raise ConfigurationError("the URL names no database (PgBouncer keeps 'pgbouncer' for itself): write HOST/DBNAME")
    name = re.sub(r"[^\w.-]", "_", name, flags=re.ASCII)  # all that a key of the ini may have
    return {name if end is topology.primary else f"{name}_{end.name.replace('-', '_')}": end for end in _endpoints(topology)}


def _client(topology: Topology) -> str:
    return topology.primary.user.partition("|")[0]


def _value(text: str) -> str:
    return text if re.fullmatch(r"[\w.,:/-]+", text, re.ASCII) else "'{}'".format(text.replace("'", "''"))


def _error(text: str) -> Remark:
    return Remark(level="error", text=text)


def _warning(text: str) -> Remark:
    return Remark(level="warning", text=text)
