"""From what was seen to what it means. Pure: tables and comparisons.

Each id has an entry in docs/doctor.md, which a test compares with `RULES`.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

from ps_core._diagnosis import faults
from ps_core._documentation import link
from ps_core.consistency import CLOCK_SKEW

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ps_cli._doctor.seen import HttpsSeen, Load, PathSeen, PoolerSeen, SessionSeen, Setup, TlsSeen
    from ps_core._diagnosis import Fault
    from ps_core.topology import Endpoint

__all__ = [
    "LAGS",
    "RULES",
    "TIMEOUTS",
    "Cap",
    "Finding",
    "Rule",
    "chain",
    "exit_status",
    "finding",
    "judge",
    "kind_of",
    "merge",
    "said",
]

Severity = Literal["error", "warning", "note"]

LAGS: Final = 1.0
"""Seconds of replication lag from which reads that follow a write go to the primary so often that it shows."""
FAR: Final = 0.020
"""Seconds of a round trip that only another region explains."""
_BY_HAND: Final = (
    "check in this order: that the endpoint is available and accepted, that private DNS is on for its network, that its security"
    " group lets ports 5432 and 6432 in, and that no network ACL is in the way"
)


@dataclass(frozen=True, slots=True)
class Rule:
    """One kind of finding: its severity, and its sentences with places for what was seen."""

    severity: Severity
    cause: str
    cure: str


RULES: Final[dict[str, Rule]] = {
    # --- configuration ---
    "D001": Rule("error", "The set-up cannot work: {why}", "The sentence says what to write."),
    "D002": Rule("error", "{what} could not be read: {why}", "Let it be imported from this folder without an error."),
    # --- name and port ---
    "D010": Rule("error", "{host} does not resolve: {why}", "Copy the host from the branch's Connect page again{private}."),
    "D011": Rule(
        "error",
        "{host} is a private name and resolves to the public address {address}, so nothing was sent there.",
        f"Here, {_BY_HAND}; from outside of the network, use the public host.",
    ),
    "D012": Rule(
        "error", "Nothing answers at {address}, port {port}: {why}", "Check the port, firewalls and IP restrictions{private}."
    ),
    # --- port 443 ---
    "D013": Rule(
        "error",
        "The proxy {proxy} does not lead to {host}, port {port}: {why}",
        "Look at HTTPS_PROXY, or have the proxy let the host and port pass; NO_PROXY names what is reached without it.",
    ),
    "D014": Rule(
        "error",
        "{host}, port {port}, speaks TLS, and its /v2 opens no WebSocket: {why}",
        "After a status of 429, or from 500 on, run this again; else check the host, or leave ps_transport out, for TCP.",
    ),
    "D015": Rule(
        "note",
        "PostgreSQL's port cannot be reached from here; a WebSocket to {host}, port {port}, opens.",
        "Write ps_transport=websocket, and pip install 'ps-postgres[websocket]': docs/howto/serverless.md says what differs.",
    ),
    # --- TLS ---
    "D020": Rule(
        "error",
        "sslmode={mode}, and the server offers no TLS.",
        "Enable TLS on the server; sslmode=disable is for networks where nobody listens.",
    ),
    "D021": Rule(
        "warning",
        "sslmode={mode} over a network{offered}: passwords apart, all is sent as it is.",
        "Write sslmode=verify-full, with sslrootcert=system or the path of your authority's file.",
    ),
    "D022": Rule(
        "warning",
        "sslmode={mode} does not check {what}: whoever is in between can be the server ({would}).",
        "Write sslmode=verify-full, with sslrootcert=system or the path of your authority's file.",
    ),
    "D023": Rule(
        "error",
        "The server's certificate comes from no authority that is trusted here: {why}",
        "Write sslrootcert=system for public authorities, or the path of your own authority's file.",
    ),
    "D024": Rule("error", "The server's certificate is not for this host: {why}", "Write a host name that the certificate has."),
    "D025": Rule("error", "The server's certificate is out of date: {why}", "Renew it, or set this machine's clock."),
    "D026": Rule(
        "error", "The TLS handshake failed: {why}", "Check that a {server} of TLS 1.2 or later is behind the port."
    ),
    "D027": Rule(
        "error",
        "sslnegotiation=direct, and the server does not take it.",
        "Leave sslnegotiation out: it needs PostgreSQL 17, or a proxy that knows it.",
    ),
    "D028": Rule(
        "note",
        "The server takes direct TLS negotiation, which is not used.",
        "Add sslnegotiation=direct (libpq 17 and later): each new connection takes a round trip less.",
    ),
    "D029": Rule(
        "error",
        "The roots that were given are not found, or not trusted: {why}",
        "Write sslrootcert=system (libpq 16 and later), or the path of a file, as in /etc/ssl/certs/ca-certificates.crt.",
    ),
    # --- login ---
    "D030": Rule(
        "error",
        "The user name or the password was refused.",
        "Copy both from the branch's page of roles, or make a new password there; roles may also have expired.",
    ),
    "D031": Rule(
        "error", "The user name's branch is wrong: {why}", "Write USER.BRANCH, as the branch's Connect page shows the user."
    ),
    "D032": Rule(
        "error",
        "The port knows no bouncer {suffix!r} of this branch.",
        "Write the bouncer's name as the dashboard has it in ps_bouncer or ps_replica_bouncer.",
    ),
    "D033": Rule("error", "There is no database {dbname!r}.", "Write a database that there is; PlanetScale's first is postgres."),
    "D034": Rule(
        "error",
        "Nothing behind the port can serve: {why}",
        "Look at the dashboard whether the bouncer or server is being restarted, has stopped, or sleeps; then run this again.",
    ),
    "D035": Rule(
        "error", "No connection is left: {why}", "Close what is not needed, shrink the pools, or raise the limit that is named."
    ),
    "D036": Rule("error", "The server asks for TLS: {why}", "Write sslmode=verify-full and sslrootcert=system."),
    "D037": Rule(
        "error", "A startup parameter was refused: {why}", "Remove it from the URL, and write ALTER ROLE ... SET for it instead."
    ),
    "D038": Rule("error", "The login did not end in time: {why}", "Run this again; if it stays so, look at the server's load."),
    "D039": Rule("error", "The connection failed: {why}", "The sentence is the server's or libpq's own: search for it."),
    # --- pooled or direct ---
    "D040": Rule(
        "warning",
        "The path is said to be behind a transaction pooler, and the server itself answers.",
        "Write the pooler's port, or ps_pooled=false.",
    ),
    "D041": Rule(
        "error",
        "The path is said to be direct, and a pooler answers: session state and startup options are lost.",
        "Write the port without a pooler (5432 on PlanetScale) in ps_direct_port or ps_direct_url.",
    ),
    "D042": Rule(
        "warning",
        "The pooler gives each client a server connection of its own.",
        "Set pool_mode=transaction there (PlanetScale's bouncers have it), or write ps_pooled=false.",
    ),
    "D043": Rule(
        "note",
        "The pooler does not follow prepared statements.",
        "Leave prepare_threshold at None, as it is by default here, or raise max_prepared_statements (PgBouncer 1.21 and later).",
    ),
    "D044": Rule(
        "warning",
        "The pooler drops the startup parameter options without a word.",
        "Set nothing by options on this path: write ALTER ROLE ... SET, and take options out of ignore_startup_parameters.",
    ),
    "D045": Rule(
        "warning",
        "No path without a pooler is known: migrations, LISTEN and session locks do not work through this one.",
        "Write ps_direct_port or ps_direct_url.",
    ),
    # --- primary or replica ---
    "D050": Rule(
        "error",
        "The path should lead to the primary, and a replica answers: writes fail.",
        "Write a bouncer whose target is the primary; after a failover, let the pooler or tunnel in between find the new one.",
    ),
    "D051": Rule(
        "warning",
        "The path should lead to a replica, and the primary answers.",
        "Look at the bouncer's target on the dashboard, and whether the replicas are away at the moment.",
    ),
    "D052": Rule(
        "error",
        "The primary answers, and its transactions are read-only.",
        "Remove default_transaction_read_only from role, database and clients (through a pooler, a plain SET stays for others).",
    ),
    "D053": Rule(
        "warning",
        "The replica had not replayed {behind} bytes of what the primary had written, and {lag}.",
        "Look at the replica's load and long queries; reads that follow a write go to the primary until it has caught up.",
    ),
    # --- the server's settings ---
    "D060": Rule(
        "warning",
        "The server is PostgreSQL {major}, which has no transaction_timeout.",
        "Nothing has to be done: statement and idle timeouts hold; from 17 on, whole transactions are bounded, too.",
    ),
    "D061": Rule(
        "warning",
        "There is no statement timeout: one statement may hold a pooler's connection for ever.",
        'Write ps_statement_timeout=2s; limits(statement="60s") is for what takes longer.',
    ),
    "D062": Rule(
        "note", "The role's own limits are shorter and win: {which}.", "Raise them with ALTER ROLE ... SET, if ours are meant."
    ),
    "D063": Rule(
        "warning",
        "The role's own limits hold on the direct path, too, and end migrations and index builds: {which}.",
        "Give ps_direct_url another role, as PlanetScale advises for migrations.",
    ),
    "D064": Rule(
        "note",
        "The role has no statement timeout of its own: what does not come through this library is not bounded.",
        "ALTER ROLE {role} SET statement_timeout = '2s', as PlanetScale advises for application roles.",
    ),
    "D065": Rule(
        "warning",
        "The role {role} may not create tables in {schema}: migrations fail.",
        "GRANT CREATE ON SCHEMA public, or give ps_direct_url a role that may.",
    ),
    "D066": Rule(
        "warning",
        "The role {role} has no schema on its search_path in this database.",
        "ALTER ROLE ... SET search_path to a schema that there is.",
    ),
    # --- how far, how many, how late ---
    "D070": Rule(
        "warning",
        "A round trip takes {ms:.0f} ms, and every statement takes one.",
        "Run the application in the region of the branch, or read from a replica that is near.",
    ),
    "D071": Rule(
        "warning",
        "The server's clock is {seconds:.0f} s {direction} this one.",
        "Synchronise this machine's clock (NTP): machines a minute apart do not heed each other's tokens.",
    ),
    "D080": Rule(
        "error",
        "{clients} clients ({workers} workers x {pool_size}) are more than the pooler takes (max_client_conn {cap}).",
        "Use fewer workers, smaller pools or more bouncers, raise max_client_conn, or put a PgBouncer on the application's side.",
    ),
    "D081": Rule(
        "warning",
        "While no replica can be reached, the primary's pooler gets {clients} clients, and takes {cap} (max_client_conn).",
        "Write a share for ps_replica_fallback (0.25, or none), or see to max_client_conn.",
    ),
    "D082": Rule(
        "error",
        "{clients} connections without a pooler are more than the server takes ({cap} of max_connections are for applications).",
        "Go through the pooler, or use fewer workers or smaller pools.",
    ),
    "D083": Rule(
        "error",
        "The pooler may open {pool} server connections, and the server takes {cap} from applications.",
        "Lower default_pool_size below that, with room for direct connections, or raise max_connections.",
    ),
    "D084": Rule(
        "note",
        "{clients} clients share {pool} server connections (default_pool_size): more transactions at once wait in a queue.",
        "Nothing, as long as transactions are short; raise default_pool_size if they wait.",
    ),
    # --- tokens ---
    "D090": Rule(
        "error", "SECRET_KEY is empty, and it signs the users' tokens.", "Set SECRET_KEY to the same random text on all machines."
    ),
    "D091": Rule(
        "warning",
        "SECRET_KEY is the one that startproject made for development: who knows it can sign tokens.",
        "Set SECRET_KEY to a random text that is in no repository.",
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One finding, of one or several paths."""

    id: str
    severity: Severity
    cause: str
    cure: str
    paths: tuple[str, ...] = ()
    """Names of endpoints; () where it is about the whole."""

    @property
    def docs(self) -> str:
        """Where the documentation says more."""
        return link("doctor", self.id)


def finding(number: str, path: str | None = None, **fields: object) -> Finding:
    """Return the finding of this id, its sentences filled in."""
    rule = RULES[number]
    return Finding(
        id=number,
        severity=rule.severity,
        cause=rule.cause.format(**fields),
        cure=rule.cure.format(**fields),
        paths=() if path is None else (path,),
    )


def exit_status(findings: Iterable[Finding]) -> int:
    """Return 2 where there is an error, 1 where there is a warning, else 0."""
    return max(({"error": 2, "warning": 1, "note": 0}[one.severity] for one in findings), default=0)


def merge(findings: Iterable[Finding]) -> list[Finding]:
    """Return each finding once, with all of its paths, the gravest first."""
    merged: dict[tuple[str, str], Finding] = {}
    for one in findings:
        known = merged.setdefault((one.id, one.cause), one)
        if known is not one:
            merged[one.id, one.cause] = replace(known, paths=(*known.paths, *one.paths))
    return sorted(merged.values(), key=lambda one: (("error", "warning", "note").index(one.severity), one.id))


def judge(setup: Setup, paths: Sequence[PathSeen], load: Load | None = None) -> list[Finding]:
    """Return all that there is to say."""
    found = [one for path in paths for one in _of_path(path)]
    found += _of_roles([path.session for path in paths if path.session])
    if load is not None:
        found += _of_load(load, setup, paths)
    if setup.signing_key in ("empty", "insecure"):
        found.append(finding("D090" if setup.signing_key == "empty" else "D091"))
    return merge(found)


def _of_path(path: PathSeen) -> Iterator[Finding]:
    endpoint = path.endpoint
    stop = _on_the_way(path) if path.https is None or endpoint.transport != "websocket" else _on_https(path.https, endpoint.name)
    if endpoint.transport != "websocket" and path.https is not None and path.https.websocket and _is_cut_off(path):
        yield finding("D015", endpoint.name, host=path.https.host, port=path.https.port)
    if stop is not None:
        yield stop
        return
    about_tls = [] if path.tls is None else list(_of_tls(path.tls, endpoint, path.addresses))
    if path.refusal is None:
        yield from about_tls
    elif _NO_ROOTS in path.refusal:
        yield _of_refusal(path)
    else:
        yield from about_tls
        # libpq's words for what was found already.
        if path.refusal_rule not in _TLS_RULES or exit_status(about_tls) < 2:
            yield _of_refusal(path)
    if path.session is not None:
        if path.tls is not None and path.tls.direct and endpoint.sslmode in _SURE and not _asks_directly(endpoint):
            yield finding("D028", endpoint.name)
        yield from _of_session(path.session, endpoint)


# --- name and port ---

# RFC 1918, the range that clouds use beside it, unique local and link-local addresses. Not `is_private`, which has more.
_PRIVATE: Final = tuple(
    ipaddress.ip_network(network)
    for network in (
        "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16", "fc00::/7", "fe80::/10"
    )
)  # fmt: skip


def kind_of(address: str) -> Literal["socket", "name", "loopback", "private", "public"]:
    """Return what kind of address it is. The folder of a Unix socket is a "socket", and so is libpq's own, ""."""
    if not address or address.startswith(("/", "@")):
        return "socket"
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return "name"
    if ip.version == 6 and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    if ip.is_loopback:
        return "loopback"
    return "private" if any(ip in network for network in _PRIVATE) else "public"


def is_private_name(host: str) -> bool:
    """Return whether PlanetScale gives the name to private endpoints: AWS has one label before it, GCP two."""
    return host.lower().rstrip(".").endswith(".private-pg.psdb.cloud")


def _private(host: str) -> str:
    return f"; {_BY_HAND}" if is_private_name(host) else ""


def _on_the_way(path: PathSeen) -> Finding | None:
    """Return what ends the path before anything is sent to a server."""
    endpoint = path.endpoint
    private = _private(endpoint.host)
    if path.dns_error:
        return finding("D010", endpoint.name, host=endpoint.host, why=path.dns_error, private=private)
    public = public_address(endpoint.host, path.addresses)
    if public is not None:
        return finding("D011", endpoint.name, host=endpoint.host, address=public)
    if path.port_error:
        shown = ", ".join(path.addresses)
        return finding("D012", endpoint.name, address=shown, port=endpoint.port, why=path.port_error, private=private)
    return None


def _on_https(seen: HttpsSeen, name: str) -> Finding | None:
    """Return what ends a path by WebSocket before a login."""
    host, port, tls = seen.host, seen.port, seen.tls
    if seen.dns_error:
        return finding("D010", name, host=host, why=seen.dns_error, private=_private(host))
    public = public_address(host, seen.addresses)
    if public is not None:
        return finding("D011", name, host=host, address=public)
    if seen.port_error:
        shown = ", ".join(seen.addresses)
        return finding("D012", name, address=shown, port=port, why=seen.port_error, private=_private(host))
    if seen.proxy_error:
        return finding("D013", name, proxy=seen.proxy, host=host, port=port, why=seen.proxy_error)
    if tls is not None and tls.fault:
        return finding(_FAULTS[tls.fault], name, why=tls.reason, server="web server")
    if tls is not None and not seen.websocket:
        return finding("D014", name, host=host, port=port, why=seen.answer)
    return None


def _is_cut_off(path: PathSeen) -> bool:
    """Return whether nothing that speaks PostgreSQL is reached: firewalls cut also what is no HTTPS by its first bytes."""
    if path.session is not None:
        return False
    return bool(path.dns_error or path.port_error) or (path.tls is not None and path.tls.fault == "handshake")


def public_address(host: str, addresses: Iterable[str]) -> str | None:
    """Return the public address, if any, that a private name resolves to."""
    return next((address for address in addresses if kind_of(address) == "public"), None) if is_private_name(host) else None


# --- TLS ---

_NO_ROOTS: Final = "root certificate file"
_TLS_RULES: Final = {"client_tls_or_option", "connection_lost", "connect_failed"}
_FAULTS: Final = {"chain": "D023", "name": "D024", "date": "D025", "handshake": "D026", "roots": "D029"}
_SURE: Final = ("require", "verify-ca", "verify-full")
"""The modes of which one is sure that there is TLS."""
_UNCHECKED: Final = {"verify-ca": ("name",), "verify-full": ()}
"""What certificate faults each sslmode lets pass; the weaker ones let all pass."""


def _asks_directly(endpoint: Endpoint) -> bool:
    return dict(endpoint.params).get("sslnegotiation") == "direct"


def _of_tls(tls: TlsSeen, endpoint: Endpoint, addresses: Sequence[str]) -> Iterator[Finding]:
    name, mode = endpoint.name, endpoint.sslmode
    if mode in _SURE and not tls.offered:
        yield finding("D020", name, mode=mode)
    elif not tls.offered or mode in ("disable", "allow"):
        if any(kind_of(address) in ("private", "public") for address in addresses):
            yield finding("D021", name, mode=mode, offered="" if tls.offered else ", and the server offers no TLS")
    else:
        yield from _of_handshake(tls, name, mode, direct=_asks_directly(endpoint))


def _of_handshake(tls: TlsSeen, name: str, mode: str, *, direct: bool) -> Iterator[Finding]:
    if tls.fault == "handshake":
        if mode in _SURE:
            yield finding("D026", name, why=tls.reason, server="PostgreSQL server")
        return
    passes = _UNCHECKED.get(mode, ("chain", "name", "date"))
    if tls.fault and tls.fault not in passes:
        yield finding(_FAULTS[tls.fault], name, why=tls.reason)
    elif mode != "verify-full":
        what = "the certificate's name" if mode == "verify-ca" else "the certificate"
        would = f"verify-full would refuse it: {tls.reason}" if tls.fault else "it would pass verify-full"
        yield finding("D022", name, mode=mode, what=what, would=would)
    if direct and not tls.direct:
        yield finding("D027", name)


# --- login ---

_REFUSALS: Final = tuple(
    (re.compile(pattern), number)
    for pattern, number in (
        (r"member \S+ not found in branch|pooler only supports primary destinations", "D032"),
        (r"username must include branch|branch \S+ does not exist", "D031"),
        (r"SSL connection is required|no pg_hba.conf entry .*(no encryption|SSL off)", "D036"),
        (r"does not support SSL", "D020"),
        (r"database \"[^\"]*\" (does not exist|is disabled)|no such database", "D033"),
        (r"unsupported (options )?startup parameter|unrecognized configuration parameter", "D037"),
        (r"(password|SASL) authentication failed|no such user|no password supplied|invalid server signature", "D030"),
        (r"role \"[^\"]*\" (does not exist|is not permitted to log in)|login rejected|wrong password type", "D030"),
        (_NO_ROOTS + r"|certificate verify failed|could not load system root", "D029"),
        (r"does not match host name", "D024"),
    )
)
# By `Failure.rule` of ps_core.failures, where the text is none of the above.
_RULES: Final = {
    "pooler_full": "D035",
    "server_full": "D035",
    "too_many_connections": "D035",
    "connect_timeout": "D038",
    **dict.fromkeys(
        (
            "edge_no_member",
            "edge_retry_timeout",
            "edge_upstream",
            "pooler_login_retry",
            "pooler_login_timeout",
            "pooler_query_wait_timeout",
            "pooler_server_crashed",
            "pooler_shutdown",
            "pooler_no_server",
            "server_not_ready",
            "no_answer",
            "cannot_connect_now",
        ),
        "D034",
    ),
}


def said(message: str) -> str:
    """Return the server's or libpq's own words, without where the connection went."""
    found = re.search(r"(?:FATAL|ERROR):\s+(.*)", message) or re.search(r".*\bfailed: (.*)", message)
    return found[1] if found else message.strip().partition("\n")[0]


def _of_refusal(path: PathSeen) -> Finding:
    message = path.refusal or ""
    number = next((number for pattern, number in _REFUSALS if pattern.search(message)), None)
    if number is None:
        number = _RULES.get(path.refusal_rule, "D039")
    endpoint = path.endpoint
    return finding(
        number,
        endpoint.name,
        why=said(message),
        suffix=endpoint.user.partition("|")[2],
        dbname=endpoint.dbname,
        mode=endpoint.sslmode,
    )


# --- the server ---

TIMEOUTS: Final = {
    "statement_timeout": "statement",
    "transaction_timeout": "transaction",
    "idle_in_transaction_session_timeout": "idle_in_transaction",
}
"""PostgreSQL's settings and the fields of `Timeouts`."""
_OF_FAULTS: Final[dict[Fault, str]] = {
    "old": "D060",
    "no pooler": "D040",
    "pooler": "D041",
    "by session": "D042",
    "only pooled": "D045",
    "replica": "D050",
    "primary": "D051",
    "read-only": "D052",
}


def _of_session(session: SessionSeen, endpoint: Endpoint) -> Iterator[Finding]:
    name = endpoint.name
    for fault in faults(endpoint, session, shared=session.pooler.shares if session.pooler else None):
        yield finding(_OF_FAULTS[fault], name, major=session.version // 10000)
    if session.pooler is not None:
        yield from _of_pooler(session.pooler, endpoint)
    if endpoint.read_only and session.lag is None and session.behind:
        yield finding("D053", name, behind=session.behind, lag="had not two seconds later")
    elif endpoint.read_only and session.lag is not None and session.lag >= LAGS:
        yield finding("D053", name, behind=session.behind, lag=f"did {session.lag:.1f} s later")
    yield from _of_limits(session, endpoint)
    if endpoint.role == "direct":
        if session.schema is None:
            yield finding("D066", name, role=session.role)
        elif not session.may_create:
            yield finding("D065", name, role=session.role, schema=session.schema)
    if session.round_trip >= FAR:
        yield finding("D070", name, ms=session.round_trip * 1000)


def _of_pooler(pooler: PoolerSeen, endpoint: Endpoint) -> Iterator[Finding]:
    if pooler.prepares is False:
        yield finding("D043", endpoint.name)
    if pooler.options == "dropped":
        yield finding("D044", endpoint.name)


def _of_limits(session: SessionSeen, endpoint: Endpoint) -> Iterator[Finding]:
    name = endpoint.name
    if endpoint.role != "direct" and endpoint.timeouts.statement is None and not session.timeouts.get("statement_timeout"):
        yield finding("D061", name)
    theirs = {setting: session.timeouts.get(setting, 0) for setting in TIMEOUTS}
    if endpoint.role == "direct":
        hold = [setting for setting in ("statement_timeout", "transaction_timeout") if theirs[setting]]
        number = "D063"
    else:
        ours = {setting: (getattr(endpoint.timeouts, field) or 0) * 1000 for setting, field in TIMEOUTS.items()}
        hold = [setting for setting in TIMEOUTS if 0 < theirs[setting] < ours[setting]]
        number = "D062"
    if hold:
        yield finding(number, name, which=", ".join(f"{setting} {theirs[setting]:g} ms" for setting in hold))


def _of_roles(sessions: Sequence[SessionSeen]) -> Iterator[Finding]:
    """Return what is the same on all paths, once."""
    for role in dict.fromkeys(session.role for session in sessions):
        if not any(session.timeouts.get("statement_timeout") for session in sessions if session.role == role):
            yield finding("D064", role=role)
    worst = max((session.clock_ahead for session in sessions), key=abs, default=0.0)
    # Half of what tokens allow: two machines may be wrong in opposite directions.
    if abs(worst) > CLOCK_SKEW / 2:
        yield finding("D071", seconds=abs(worst), direction="ahead of" if worst > 0 else "behind")


# --- how many ---


@dataclass(frozen=True, slots=True)
class Cap:
    """One state of the chain of caps."""

    name: str
    value: int
    source: Literal["given", "assumed", "read"]


def chain(load: Load, paths: Sequence[PathSeen]) -> list[Cap]:
    """Return what bounds the application's connections, from the application to the server."""
    caps = [Cap("workers x pool size", load.clients, "given")]
    if any(path.endpoint.pooled for path in paths):
        names = ("max_client_conn", "default_pool_size")
        caps += [Cap(name, getattr(load, name), "given" if name in load.given else "assumed") for name in names]
    server = _server_cap(paths)
    return [*caps, Cap("max_connections", server, "read")] if server else caps


def _server_cap(paths: Iterable[PathSeen]) -> int | None:
    return min((path.session.max_connections for path in paths if path.session and path.session.max_connections), default=None)


def _of_load(load: Load, setup: Setup, paths: Sequence[PathSeen]) -> Iterator[Finding]:
    replicas = any(path.endpoint.read_only for path in paths)
    pooled = [path.endpoint for path in paths if path.endpoint.pooled and path.endpoint.role != "direct"]
    for endpoint in pooled:
        clients = load.clients
        if clients > load.max_client_conn:
            yield finding(
                "D080",
                endpoint.name,
                clients=clients,
                workers=load.workers,
                pool_size=load.pool_size,
                cap=load.max_client_conn,
            )
            continue
        if endpoint.role == "primary" and replicas:
            clients += int(clients * setup.fallback)
            if clients > load.max_client_conn:
                yield finding("D081", endpoint.name, clients=clients, cap=load.max_client_conn)
        if load.clients > load.default_pool_size:
            yield finding("D084", endpoint.name, clients=load.clients, pool=load.default_pool_size)
    for path in paths:
        cap = path.session.max_connections if path.session else 0
        if not cap or path.endpoint.role == "direct":
            continue
        if path.endpoint.pooled and load.default_pool_size >= cap:
            yield finding("D083", path.endpoint.name, pool=load.default_pool_size, cap=cap)
        elif not path.endpoint.pooled and load.clients > cap:
            yield finding("D082", path.endpoint.name, clients=load.clients, cap=cap)
