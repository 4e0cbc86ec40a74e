"""`ps-postgres doctor`: its judgement by tables, and its looking on real servers, whole and broken."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from websockets.uri import parse_uri

try:
    from websockets.proxy import get_proxy
except ImportError:  # websockets 15.0
    from websockets.uri import get_proxy  # type: ignore[attr-defined, no-redef]

from ps_cli._doctor.findings import RULES, chain, exit_status, finding, judge, kind_of, merge, said
from ps_cli._doctor.https import _proxy_of
from ps_cli._doctor.probe import message_of, said_by_sql
from ps_cli._doctor.seen import HttpsSeen, Load, PathSeen, PoolerSeen, SessionSeen, Setup, TlsSeen
from ps_cli.main import main
from ps_core._documentation import DOCUMENTATION
from ps_core.topology import Topology
from tests.ps_core.test_bridge import bridge, proxy  # noqa: F401 - fixtures

if TYPE_CHECKING:
    from ps_core.topology import Endpoint
    from ps_lab import Lab

PAGE = Path(__file__).parents[2] / "docs" / "doctor.md"
URL = "postgresql://app.branch:pscale_pw_xyz@h.horizon.psdb.cloud/postgres"
TOPOLOGY = Topology.from_url(URL, bouncer="write-pool", replica_bouncer="read-pool")
TLS = TlsSeen(offered=True, protocol="TLSv1.3")
TIMEOUTS = {"statement_timeout": 2000, "transaction_timeout": 3000, "idle_in_transaction_session_timeout": 30000}
PRIMARY = SessionSeen(
    version=180004,
    role="app",
    in_recovery=False,
    read_only=False,
    behind_pooler=True,
    pooler=PoolerSeen(shares=True, prepares=True, options="refused"),
    timeouts=TIMEOUTS,
    schema="public",
    may_create=True,
    max_connections=97,
)
REPLICA = replace(PRIMARY, in_recovery=True, read_only=True, lag=0.0, behind=0)
DIRECT = replace(PRIMARY, behind_pooler=False, pooler=None, timeouts={})
LOAD = Load(workers=2, pool_size=10, max_client_conn=100, default_pool_size=20)


def path(endpoint: Endpoint = TOPOLOGY.primary, session: SessionSeen | None = PRIMARY, **seen: Any) -> PathSeen:
    """Return a path on which all is well, but for what is given."""
    known: dict[str, Any] = {"addresses": ("192.0.2.1",), "tls": TLS, **seen}
    return PathSeen(endpoint=endpoint, session=session, **known)


def endpoint(url: str = URL, name: str = "primary", **params: str) -> Endpoint:
    """Return the primary, or the direct endpoint, with other parameters of libpq's."""
    found: Endpoint = getattr(Topology.from_url(url), name)
    return replace(found, params=tuple((dict(found.params) | params).items()))


def ids(*paths: PathSeen, setup: Setup | None = None, load: Load | None = None) -> list[str]:
    """Return the ids of what is found."""
    setup = setup or Setup(endpoints=tuple(path.endpoint for path in paths))
    return [one.id for one in judge(setup, paths, load)]


def refused(message: str, rule: str = "", **seen: Any) -> PathSeen:
    """Return a path that ends at the login."""
    return path(session=None, refusal=message, refusal_rule=rule, **seen)


PRIVATE = replace(TOPOLOGY.primary, host="e.gcp-us-central1-1.private-pg.psdb.cloud")
WEAK = endpoint(sslmode="require", sslrootcert="/ca.pem")
PLAIN = endpoint("postgresql://app@db:6432/x?sslmode=disable")
PREFER = endpoint("postgresql://app@db:6432/x")
CA = endpoint(sslmode="verify-ca", sslrootcert="/ca.pem")
BARE = Topology.from_url("postgresql://app@db/x?sslmode=verify-full&ps_pooled=false")
CHAIN = replace(TLS, fault="chain")
OVER = Topology.from_url(URL, transport="websocket")
HTTPS = HttpsSeen(host="h.horizon.psdb.cloud", port=443, addresses=("192.0.2.1",), tls=TLS, websocket=True)
ANSWERED = replace(HTTPS, websocket=False, answer="HTTP status 404")
FAILED = 'connection failed: connection to server at "192.0.2.1", port 6432 failed: '


def over(session: SessionSeen | None = None, **https: Any) -> PathSeen:
    """Return a path by WebSocket; without a session, it ends before a login."""
    return path(OVER.primary, session, tls=None, addresses=(), https=replace(HTTPS, **https))


@pytest.mark.fast
@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (path(), []),
        (path(TOPOLOGY.replicas[0], REPLICA), []),
        (path(dns_error="Name or service not known", addresses=(), session=None), ["D010"]),
        (path(PRIVATE, None, addresses=("10.0.0.7", "203.0.113.9")), ["D011"]),
        (path(PRIVATE, addresses=("10.0.0.7",)), []),
        (path(port_error="Connection refused", session=None), ["D012"]),
        # port 443
        (path(https=HTTPS), []),
        (path(https=ANSWERED), []),
        (path(https=replace(HTTPS, websocket=False, tls=replace(TLS, fault="chain"))), []),
        (path(port_error="no answer", session=None, https=HTTPS), ["D012", "D015"]),
        (path(dns_error="Name or service not known", session=None, https=HTTPS), ["D010", "D015"]),
        (path(session=None, tls=replace(TLS, fault="handshake"), https=HTTPS), ["D026", "D015"]),
        (path(PREFER, tls=replace(TLS, fault="handshake"), https=HTTPS), []),
        (path(port_error="no answer", session=None, https=ANSWERED), ["D012"]),
        (path(port_error="no answer", session=None, https=replace(HTTPS, websocket=False, tls=None)), ["D012"]),
        (refused("FATAL:  SASL authentication failed", "authentication", https=HTTPS), ["D030"]),
        (over(PRIMARY), []),
        (over(PRIMARY, is_opaque=True, websocket=False, tls=None, proxy="socks5h://p:1080"), []),
        (over(dns_error="Name or service not known", addresses=(), websocket=False, tls=None), ["D010"]),
        (over(host=PRIVATE.host, addresses=("203.0.113.9",), websocket=False, tls=None), ["D011"]),
        (over(port_error="Connection refused", websocket=False, tls=None), ["D012"]),
        (over(proxy_error="403 Forbidden", proxy="http://p:3128", websocket=False, tls=None), ["D013"]),
        (over(tls=replace(TLS, fault="chain"), websocket=False), ["D023"]),
        (over(tls=replace(TLS, fault="name"), websocket=False), ["D024"]),
        (over(tls=replace(TLS, fault="date"), websocket=False), ["D025"]),
        (over(tls=replace(TLS, fault="handshake"), websocket=False), ["D026"]),
        (over(tls=replace(TLS, fault="roots"), websocket=False), ["D029"]),
        (over(websocket=False, answer="HTTP status 404"), ["D014"]),
        (replace(over(), refusal="FATAL:  SASL authentication failed", refusal_rule="authentication"), ["D030"]),
        # TLS
        (path(endpoint(), tls=TlsSeen(offered=False)), ["D020"]),
        (path(PLAIN, tls=TlsSeen(offered=False)), ["D021"]),
        (path(PLAIN), ["D021"]),
        (path(PLAIN, addresses=("127.0.0.1",)), []),
        (path(PREFER, tls=TlsSeen(offered=False), addresses=("::1",)), []),
        (path(PREFER), ["D022"]),
        (path(WEAK), ["D022"]),
        (path(WEAK, tls=replace(TLS, fault="name")), ["D022"]),
        (path(CA, tls=replace(TLS, fault="name")), ["D022"]),
        (refused(FAILED + "SSL error: certificate verify failed", "client_tls_or_option", tls=CHAIN), ["D023"]),
        (path(CA, tls=replace(TLS, fault="chain")), ["D023"]),
        (path(tls=replace(TLS, fault="name")), ["D024"]),
        (path(tls=replace(TLS, fault="date")), ["D025"]),
        (path(tls=TlsSeen(offered=True, fault="handshake")), ["D026"]),
        (path(PREFER, tls=TlsSeen(offered=True, fault="handshake")), []),
        (path(endpoint(sslnegotiation="direct")), ["D027"]),
        (path(endpoint(sslnegotiation="direct"), tls=replace(TLS, direct=True)), []),
        (path(tls=replace(TLS, direct=True)), ["D028"]),
        (refused(FAILED + 'root certificate file "/x" does not exist', "client_tls_or_option", tls=CHAIN), ["D029"]),
        (refused(FAILED + "SSL error: certificate verify failed", "client_tls_or_option"), ["D029"]),
        # login
        (refused('FATAL:  password authentication failed for user "app"', "authentication"), ["D030"]),
        (refused("FATAL:  SASL authentication failed", "authentication"), ["D030"]),
        (refused("FATAL:  branch b does not exist", "edge_refused"), ["D031"]),
        (refused("FATAL:  invalid user format: username must include branch (e.g., user.branch)", "edge_refused"), ["D031"]),
        (refused("FATAL:  member wrong not found in branch b", "edge_refused"), ["D032"]),
        (refused('FATAL:  database "x" does not exist', "authentication"), ["D033"]),
        (refused("FATAL:  no such database: x", "authentication"), ["D033"]),
        (refused("FATAL:  no primary available for branch b", "edge_no_member"), ["D034"]),
        (refused("FATAL:  failed to connect to upstream", "edge_upstream"), ["D034"]),
        (refused("no answer within 2 s", "no_answer"), ["D034"]),
        (refused("FATAL:  no more connections allowed (max_client_conn)", "pooler_full"), ["D035"]),
        (refused("FATAL:  sorry, too many clients already", "server_full"), ["D035"]),
        (refused("FATAL:  SSL connection is required", "edge_refused"), ["D036"]),
        (refused('no pg_hba.conf entry for host "::1", user "a", database "b", no encryption', "authentication"), ["D036"]),
        (refused("FATAL:  unsupported startup parameter: options", "startup_parameter"), ["D037"]),
        (refused("connection timeout expired", "connect_timeout"), ["D038"]),
        (refused("FATAL:  the moon is full", "statement_error"), ["D039"]),
        # pooled or direct
        (path(session=replace(PRIMARY, behind_pooler=False, pooler=None)), ["D040"]),
        (path(TOPOLOGY.direct, replace(DIRECT, behind_pooler=True, timeouts={})), ["D041", "D064"]),
        (path(session=replace(PRIMARY, pooler=PoolerSeen(shares=False))), ["D042"]),
        (path(session=replace(PRIMARY, pooler=PoolerSeen(prepares=False))), ["D043"]),
        (path(session=replace(PRIMARY, pooler=PoolerSeen(options="dropped"))), ["D044"]),
        (path(replace(TOPOLOGY.direct, pooled=True), replace(PRIMARY, timeouts={})), ["D045", "D064"]),
        (path(replace(TOPOLOGY.direct, pooled=True), replace(DIRECT, timeouts=TIMEOUTS)), ["D040", "D063"]),
        # primary or replica
        (path(session=REPLICA), ["D050"]),
        (path(TOPOLOGY.direct, replace(REPLICA, behind_pooler=False, timeouts={})), ["D050", "D064"]),
        (path(TOPOLOGY.replicas[0]), ["D051"]),
        (path(session=replace(PRIMARY, read_only=True)), ["D052"]),
        (path(TOPOLOGY.replicas[0], replace(REPLICA, lag=0.9, behind=400)), []),
        (path(TOPOLOGY.replicas[0], replace(REPLICA, lag=1.0, behind=400)), ["D053"]),
        (path(TOPOLOGY.replicas[0], replace(REPLICA, lag=None, behind=400)), ["D053"]),
        (path(TOPOLOGY.replicas[0], replace(REPLICA, lag=None, behind=None)), []),
        # settings
        (path(session=replace(PRIMARY, version=160009)), ["D060"]),
        (path(session=replace(PRIMARY, version=170000)), []),
        (path(replace(TOPOLOGY.primary, timeouts=TOPOLOGY.direct.timeouts), replace(PRIMARY, timeouts={})), ["D061", "D064"]),
        (path(session=replace(PRIMARY, timeouts=TIMEOUTS | {"statement_timeout": 1999})), ["D062"]),
        (path(TOPOLOGY.direct, replace(DIRECT, timeouts=TIMEOUTS)), ["D063"]),
        (path(session=replace(PRIMARY, timeouts={"statement_timeout": 0})), ["D064"]),
        (path(TOPOLOGY.direct, replace(DIRECT, may_create=False)), ["D065", "D064"]),
        (path(TOPOLOGY.direct, replace(DIRECT, schema=None, may_create=False)), ["D066", "D064"]),
        # far and late
        (path(session=replace(PRIMARY, round_trip=0.0199)), []),
        (path(session=replace(PRIMARY, round_trip=0.02)), ["D070"]),
        (path(session=replace(PRIMARY, clock_ahead=-30.0)), []),
        (path(session=replace(PRIMARY, clock_ahead=-31.0)), ["D071"]),
        (path(session=replace(PRIMARY, clock_ahead=31.0)), ["D071"]),
    ],
)  # fmt: skip
def test_path(seen: PathSeen, expected: list[str]) -> None:
    """Each thing that may be wrong with a path has its finding, and what is right has none."""
    assert ids(seen) == expected


@pytest.mark.fast
@pytest.mark.parametrize(
    ("load", "fallback", "expected"),
    [
        (LOAD, 1.0, []),
        (replace(LOAD, workers=10), 0.0, ["D084"]),
        (replace(LOAD, workers=10), 1.0, ["D081", "D084"]),
        (replace(LOAD, workers=8), 0.25, ["D084"]),
        (replace(LOAD, workers=11), 1.0, ["D080"]),
        (replace(LOAD, workers=11, max_client_conn=300), 1.0, ["D084"]),
        (replace(LOAD, default_pool_size=96), 1.0, []),
        (replace(LOAD, default_pool_size=97), 1.0, ["D083"]),
    ],
)
def test_caps(load: Load, fallback: float, expected: list[str]) -> None:
    """The number of clients is held against the pooler's caps and the server's, with replicas and while they are away."""
    paths = [path(), path(TOPOLOGY.replicas[0], REPLICA), path(TOPOLOGY.direct, DIRECT)]
    setup = Setup(endpoints=tuple(one.endpoint for one in paths), fallback=fallback)
    assert ids(*paths, setup=setup, load=load) == expected


@pytest.mark.fast
def test_caps_without_pooler() -> None:
    """Without a pooler, the server's own cap counts."""
    seen = path(BARE.primary, replace(DIRECT, timeouts=TIMEOUTS))
    assert ids(seen, load=replace(LOAD, workers=9)) == []
    assert ids(seen, load=replace(LOAD, workers=10)) == ["D082"]
    assert [cap.name for cap in chain(LOAD, [seen])] == ["workers x pool size", "max_connections"]


@pytest.mark.fast
def test_chain() -> None:
    """The chain of caps says of each where it comes from."""
    caps = chain(replace(LOAD, given=frozenset({"default_pool_size"})), [path()])
    assert [(cap.name, cap.value, cap.source) for cap in caps] == [
        ("workers x pool size", 20, "given"),
        ("max_client_conn", 100, "assumed"),
        ("default_pool_size", 20, "given"),
        ("max_connections", 97, "read"),
    ]


@pytest.mark.fast
@pytest.mark.parametrize(("key", "expected"), [(None, []), ("set", []), ("empty", ["D090"]), ("insecure", ["D091"])])
def test_signing_key(key: Any, expected: list[str]) -> None:
    """The key that signs tokens is asked for where there is one."""
    assert ids(path(), setup=Setup(endpoints=(), signing_key=key)) == expected


@pytest.mark.fast
@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("", "socket"),
        ("/var/run/postgresql", "socket"),
        ("@abstract", "socket"),
        ("localhost", "name"),
        ("10.1.2.3.example", "name"),
        ("127.9.9.9", "loopback"),
        ("::1", "loopback"),
        ("10.255.0.1", "private"),
        ("172.31.255.255", "private"),
        ("172.32.0.0", "public"),
        ("192.168.0.1", "private"),
        ("100.64.0.1", "private"),
        ("fd00::1", "private"),
        ("::ffff:10.0.0.1", "private"),
        ("::ffff:8.8.8.8", "public"),
        ("203.0.113.7", "public"),
        ("2001:4860::1", "public"),
    ],
)
def test_kind_of_address(address: str, kind: str) -> None:
    """Private means what clouds give to private endpoints, and nothing else that is reserved."""
    assert kind_of(address) == kind


@pytest.mark.fast
@pytest.mark.parametrize(
    ("message", "words"),
    [
        (FAILED + "FATAL:  SASL authentication failed\nmore", "SASL authentication failed"),
        (FAILED + 'root certificate file "/x" does not exist\nEither', 'root certificate file "/x" does not exist'),
        ("connection timeout expired", "connection timeout expired"),
        ("", ""),
    ],
)
def test_said(message: str, words: str) -> None:
    """A driver's message is shortened to what the server or libpq said."""
    assert said(message) == words


@pytest.mark.fast
def test_same_on_several_paths() -> None:
    """What is the same on several paths is said once; the gravest comes first, and decides over the exit status."""
    found = [finding("D028", "primary"), finding("D042", "primary"), finding("D028", "direct")]
    assert [(one.id, one.paths) for one in merge(found)] == [("D042", ("primary",)), ("D028", ("primary", "direct"))]
    assert [exit_status(found[:number]) for number in range(3)] == [0, 0, 1]
    assert exit_status([*found, finding("D052", "primary")]) == 2


@pytest.mark.fast
def test_documented() -> None:
    """Each finding has its section in the page, with its severity and a cause and a cure, and no other has one."""
    section = re.compile(r"^## (D\d{3})\n\n(\w+)\.\n\n\*\*Cause\.\*\* .+?\n\n\*\*Cure\.\*\* ", re.MULTILINE | re.DOTALL)
    sections = section.findall(PAGE.read_text())
    assert [(number, severity.lower()) for number, severity in sections] == [
        (number, rule.severity) for number, rule in RULES.items()
    ]
    assert len(re.findall(r"^## D", PAGE.read_text(), re.MULTILINE)) == len(RULES)


# --- on real servers ---


@pytest.fixture
def doctor(capfd: pytest.CaptureFixture[str], ps_lab: Lab) -> Any:
    """Return a function that runs the command, and returns its status and its findings' ids by path."""
    ps_lab.wait_replicas_caught_up()  # or what an earlier test left is a lag that is found

    def run(*arguments: str, **changes: str) -> tuple[int, dict[str, list[str]]]:
        status = main(["doctor", *arguments, "--json"])
        printed, errors = capfd.readouterr()
        assert errors == ""
        for password in ps_lab._passwords.values():
            assert password not in printed
        assert "hidden" not in printed  # a proxy's
        answer = json.loads(printed)
        assert answer["status"] == status
        found = {one["id"]: one["paths"] for one in answer["findings"]}
        if "replica" in found.get("D043", ()):
            # Found where its two clients met the same server connection, which is chance: the pooler takes them in turn.
            found["D043"].remove("replica")
        return status, found

    return run


@pytest.fixture
def url(ps_lab: Lab) -> str:
    """Return the lab's URL with both bouncers."""
    return f"{ps_lab.url}&ps_bouncer=write-pool&ps_replica_bouncer=read-pool"


@pytest.fixture
def usual(ps_lab: Lab) -> dict[str, list[str]]:
    """Return what is found on a healthy lab: notes, which depend on the release of PgBouncer."""
    prepares = ps_lab.bouncers["write-pool"].version >= (1, 21)
    return {"D028": ["primary", "replica", "direct"], **({} if prepares else {"D043": ["primary"]}), "D064": []}


def test_healthy(doctor: Any, url: str, usual: dict[str, list[str]], ps_lab: Lab) -> None:
    """On a healthy lab there are notes, and the exit status is 0. Nothing is left behind on the pooler's server connections."""
    assert doctor(url) == (0, usual)
    with ps_lab.bouncers["write-pool"].connect("app", "postgres") as conn:
        assert conn.execute("SELECT name FROM pg_prepared_statements WHERE name LIKE 'ps_doctor%'").fetchall() == []


def test_direct_replica(doctor: Any, ps_lab: Lab, usual: dict[str, list[str]]) -> None:
    """A replica without a pooler is a healthy path, too."""
    assert doctor(f"{ps_lab.url}&ps_bouncer=write-pool&ps_direct_replica=true") == (0, usual)


def test_other_role(doctor: Any, url: str, usual: dict[str, list[str]], ps_lab: Lab) -> None:
    """A role's own timeouts are read, and so is that it may not create tables."""
    own = ps_lab.create_role("doctored").replace("app.", "doctored.")
    ps_lab.sql("ALTER ROLE doctored SET statement_timeout = '1s'")
    ps_lab.bouncers["local"].admin("RECONNECT")  # it holds for new server connections
    ps_lab.sql("REVOKE CREATE ON SCHEMA public FROM doctored")
    try:
        status, found = doctor(f"{own}&ps_bouncer=write-pool")
    finally:
        ps_lab.sql("ALTER ROLE doctored RESET ALL")
        ps_lab.drop_role("doctored")
    expected = {"D062": ["primary"], "D063": ["direct"], "D065": ["direct"], "D028": ["primary", "direct"]}
    assert (status, found) == (1, expected | {name: usual[name] for name in usual if name == "D043"})


def test_wrong_suffix(doctor: Any, ps_lab: Lab) -> None:
    """A bouncer that does not exist is found on its path alone."""
    status, found = doctor(ps_lab.url, "--bouncer", "wrong")
    assert (status, found["D032"]) == (2, ["primary"])
    assert found["D028"] == ["direct"]


def test_weak_tls(doctor: Any, url: str, usual: dict[str, list[str]]) -> None:
    """TLS that checks no certificate is a warning, on loopback, too: the other end may be a tunnel's."""
    found = {"D022": ["primary", "replica", "direct"], **usual}
    assert doctor(url.replace("sslmode=verify-full", "sslmode=require")) == (1, found)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("sslmode=verify-full", "sslmode=disable", "D036"),
        (r"sslrootcert=[^&]*", "sslrootcert=system", "D023"),
        (r"sslrootcert=[^&]*", "sslrootcert=/nowhere/ca.pem", "D029"),
        (r"pscale_pw_", "pscale_pw_x", "D030"),
        (r"app\.", "app", "D031"),
        (r"/postgres\?", "/elsewhere?", "D033"),
    ],
)
def test_refused(doctor: Any, url: str, old: str, new: str, expected: str) -> None:
    """What each path refuses alike is one finding, and the only one."""
    assert doctor(re.sub(old, new, url)) == (2, {expected: ["primary", "replica", "direct"]})


def test_name_of_certificate(doctor: Any, url: str) -> None:
    """A certificate for another name is told from one of an unknown authority."""
    elsewhere = url.replace("@localhost", "@db.test")
    assert doctor(elsewhere, "--resolve", "db.test=127.0.0.1") == (2, {"D024": ["primary", "replica", "direct"]})


def test_bouncer_down(doctor: Any, url: str, ps_lab: Lab) -> None:
    """A bouncer that is down is found on its path; the others are looked at all the same."""
    ps_lab.bouncers["write-pool"].stop()
    try:
        status, found = doctor(url)
    finally:
        ps_lab.restart_bouncer("write-pool")
    assert (status, found) == (2, {"D034": ["primary"], "D028": ["replica", "direct"], "D064": []})


def test_paused(doctor: Any, url: str, ps_lab: Lab) -> None:
    """A pooler that lets clients in and does not serve them is found, too, and does not hold the command up."""
    ps_lab.pause()
    try:
        status, found = doctor(url)
    finally:
        ps_lab.resume()
    assert (status, found["D034"]) == (2, ["primary"])


def test_silent(doctor: Any, url: str, ps_lab: Lab) -> None:
    """No step waits forever for an edge that is silent."""
    with ps_lab.edge.hang():
        assert doctor(url) == (2, {"D038": ["primary", "replica", "direct"]})


def test_port_of_something_else(doctor: Any) -> None:
    """A port that takes connections and is silent is told from one that refuses them, and not waited for for ever."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        assert doctor(f"postgresql://app:secret@127.0.0.1:{port}/x") == (2, {"D012": ["primary", "direct"]})


def test_demoted_primary(doctor: Any, ps_lab: Lab) -> None:
    """A path to the primary that leads to a standby is an error."""
    status, found = doctor(ps_lab.url, "--bouncer", "read-pool")
    assert (status, found["D050"]) == (2, ["primary"])


def test_replica_that_is_none(doctor: Any, ps_lab: Lab) -> None:
    """A path to a replica that leads to the primary is a warning."""
    status, found = doctor(ps_lab.url, "--replica-bouncer", "write-pool")
    assert (status, found["D051"]) == (1, ["replica"])


def test_direct_that_is_pooled(doctor: Any, ps_lab: Lab) -> None:
    """A pooled port under the name of a direct one is found by the pooler's process number, or by its refusal of options."""
    pooled = ps_lab.edge.ports["pooled"]
    base = re.sub(r"&ps_.*", "", ps_lab.url).replace(f":{ps_lab.edge.ports['direct']}/", f":{pooled}/")
    status, found = doctor(f"{base}&ps_pooled=false")
    assert status == 2
    assert found.keys() & {"D037", "D041"}


def test_replica_lag(doctor: Any, url: str, usual: dict[str, list[str]], ps_lab: Lab) -> None:
    """A replica that has not replayed what the primary has written is a warning."""
    ps_lab.set_replay_delay(30)
    try:
        ps_lab.sql("CREATE TABLE doctored ()")
        found = doctor(url)
        ps_lab.sql("DROP TABLE doctored")
    finally:
        ps_lab.set_replay_delay(0)
    assert found == (1, {"D053": ["replica"], **usual})


@pytest.mark.parametrize("host", ["x.private-pg.psdb.cloud", "main.gcp-us-central1-1.private-pg.psdb.cloud"])
def test_private_host(doctor: Any, host: str) -> None:
    """A private name with a public address ends there: nothing is sent."""
    found = doctor(f"postgresql://app.branch:secret@{host}/", "--resolve", f"{host}=203.0.113.7")
    assert found == (2, {"D011": ["primary", "direct"]})


def by_websocket(url: str) -> str:
    """Return the URL of the same, over the WebSocket."""
    return f"{url}&ps_transport=websocket"


@pytest.fixture
def by_https(usual: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return what is found on a healthy lab over the WebSocket: nothing is said of TLS on PostgreSQL's port."""
    return {name: paths for name, paths in usual.items() if name != "D028"}


def test_websocket(doctor: Any, url: str, by_https: dict[str, list[str]], ps_lab: Lab) -> None:
    """A healthy set-up over the WebSocket is healthy: TLS is asked for where it is, and the login goes by the bridge."""
    assert doctor(by_websocket(url)) == (0, by_https)
    assert doctor(f"{by_websocket(ps_lab.url)}&ps_bouncer=write-pool&ps_direct_replica=true") == (0, by_https)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (r"sslrootcert=[^&]*", "sslrootcert=system", "D023"),
        (r"sslrootcert=[^&]*", "sslrootcert=/nowhere/ca.pem", "D029"),
        (r"sslmode=verify-full", "sslmode=require", "D001"),
        (r"pscale_pw_", "pscale_pw_x", "D030"),
        (r"app\.", "app", "D031"),
        (r"/postgres\?", "/elsewhere?", "D033"),
        (r"ps_https_port=\d+", "ps_https_port=1", "D012"),
        (r"ps_https_port=\d+", "ps_https_port={pooled}", "D014"),
    ],
)
def test_websocket_refused(doctor: Any, url: str, old: str, new: str, expected: str, ps_lab: Lab) -> None:
    """What each path refuses alike over the WebSocket is one finding, and the only one."""
    asked = by_websocket(re.sub(old, new.format(**ps_lab.edge.ports), url))
    assert doctor(asked) == (2, {expected: [] if expected == "D001" else ["primary", "replica", "direct"]})


def test_websocket_to_another_name(doctor: Any, url: str) -> None:
    """A certificate for another name is found by asking the WebSocket's server, at the address that was given."""
    elsewhere = by_websocket(url.replace("@localhost", "@db.test"))
    assert doctor(elsewhere, "--resolve", "db.test=127.0.0.1") == (2, {"D024": ["primary", "replica", "direct"]})


def test_no_websocket(doctor: Any, url: str, ps_lab: Lab) -> None:
    """A server that answers with a status in place of a WebSocket is found on the path that it refuses."""
    unknown = url.replace(str(ps_lab.edge.ports["pooled"]), "1")
    status, found = doctor(by_websocket(unknown))
    assert (status, found) == (2, {"D014": ["primary", "replica"], "D064": []})


def test_websocket_silent(doctor: Any, url: str, ps_lab: Lab) -> None:
    """No step waits forever for an HTTPS port that is silent, at once or after TLS."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        at = f"ps_https_port={silent.getsockname()[1]}"
        found = doctor(by_websocket(re.sub(r"ps_https_port=\d+", at, url)))
    assert found == (2, {"D026": ["primary", "replica", "direct"]})
    with ps_lab.edge.hang():
        assert doctor(by_websocket(url)) == (2, {"D014": ["primary", "replica", "direct"]})


def test_only_https(doctor: Any, url: str) -> None:
    """Where PostgreSQL's ports cannot be reached, and `/v2` opens a WebSocket, it is said what to write."""
    status, found = doctor(f"{url}&hostaddr=127.0.0.2")
    assert (status, found.keys(), found["D015"]) == (2, {"D012", "D015"}, ["primary", "replica", "direct"])
    status, found = doctor(re.sub(r"ps_https_port=\d+", "ps_https_port=1", f"{url}&hostaddr=127.0.0.2"))
    assert (status, found.keys()) == (2, {"D012"})


@pytest.fixture
def through(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[int, list[str]]:
    """A proxy that the environment names, with a password, and a bridge that was started with it."""
    found: tuple[int, list[str]] = request.getfixturevalue("proxy")
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HTTPS_PROXY", f"http://user:hidden@127.0.0.1:{found[0]}")
    monkeypatch.setenv("COLUMNS", "150")
    request.getfixturevalue("bridge")
    return found


def test_proxy(through: tuple[int, list[str]], url: str, ps_lab: Lab, capfd: pytest.CaptureFixture[str]) -> None:
    """The way leads through the proxy that the bridge takes, which is shown without its password."""
    port, asked = through
    assert main(["doctor", by_websocket(url)]) == 0
    printed, _ = capfd.readouterr()
    assert (
        f"through the proxy http://127.0.0.1:{port}, port {ps_lab.edge.ports['https']}, open, TLSv1.3, /v2 opens a WebSocket"
        in printed
    )
    assert "hidden" not in printed
    assert set(asked) == {f"CONNECT localhost:{ps_lab.edge.ports['https']} HTTP/1.1"}
    assert len(asked) > 3  # the logins, too


@pytest.mark.usefixtures("through")
def test_proxy_refuses(doctor: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """A proxy that refuses, or is not there, is found; the host's name is the proxy's to look for."""
    beyond = by_websocket("postgresql://app.branch:secret@refused.example/?ps_connect_timeout=2s")
    assert doctor(beyond) == (2, {"D013": ["primary", "direct"]})
    for none in ("http://127.0.0.1:1", "127.0.0.1:3128", "http://user:hidden@127.0.0.1:hidden", "ftp://p.example", "http://:80"):
        monkeypatch.setenv("HTTPS_PROXY", none)
        assert doctor(beyond) == (2, {"D013": ["primary", "direct"]})
    assert main(["doctor", beyond, "--probe-443"]) == 2
    assert "it is no URL such as http://HOST:PORT" in capfd.readouterr()[1]


@pytest.mark.fast
@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"HTTPS_PROXY": "http://p.example:3128"},
        {"https_proxy": "https://u:p@p.example"},
        {"HTTPS_PROXY": "http://p.example", "NO_PROXY": "x.test,.psdb.cloud"},
        {"HTTPS_PROXY": "http://p.example", "NO_PROXY": "psdb.example"},
        {"HTTPS_PROXY": "http://p.example", "SOCKS_PROXY": "http://s.example:1080"},
        {"HTTPS_PROXY": "http://p.example", "WSS_PROXY": "http://w.example"},
        {"HTTP_PROXY": "http://p.example"},
        {"ALL_PROXY": "http://p.example"},
    ],
)
def test_same_proxy(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy is the one that the library takes with which the bridge connects."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = _proxy_of("h.psdb.cloud", 443)
    assert (found and found.geturl()) == get_proxy(parse_uri("wss://h.psdb.cloud/v2"))


WITHOUT = """
import sys
from importlib import metadata

def version(name, known=metadata.version):
    if name == "websockets":
        raise metadata.PackageNotFoundError(name)
    return known(name)

metadata.version = version
from ps_cli.main import main

sys.exit(main(sys.argv[1:]))
"""


def test_without_websockets() -> None:
    """Where the extra is not installed, it is said how to install it."""
    url = by_websocket("postgresql://app.branch:secret@h.psdb.cloud/?")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, "doctor", url, "--json"], capture_output=True, text=True, check=False, timeout=60
    )
    (one,) = json.loads(done.stdout)["findings"]
    assert (done.returncode, one["id"]) == (2, "D001")
    assert 'pip install "ps-postgres[websocket]"' in one["cause"]


# A bouncer's connection has the application_name of its last client that sent one.
WHO = r'HTTP status 200 \[\["app", null, "{}", "[^"]*", "\d+"\]\] \('
ERROR = r'HTTP status 400 {{"message": "{}"'
SCRAM = "it asks for SASL SCRAM-SHA-256; pong after "
ANSWERS = [
    ("/sql", WHO.format("f")),
    ("/sql, again: is the process the same?", WHO.format("f")),
    ("/sql as app.B|write-pool, port pooled", WHO.format("f")),
    ("/sql as app.B|read-pool, port pooled", WHO.format("t")),
    ("/sql as app.B, port direct", WHO.format("f")),
    ("/sql as app.B|replica, port not written", WHO.format("t")),
    ("/sql, an error of the server's", ERROR.format("division by zero") + ', "code": "22012"'),
    ("/sql, a wrong password", ERROR.format(r'password authentication failed for user \\"app\\"')),
    ("/sql, no such branch", ERROR.format("branch nosuchbranch does not exist")),
    ("/sql, no such database", ERROR.format(r'database \\"ps_doctor_nowhere\\" does not exist')),
    ("/sql, an answer of 11000000 bytes", 'HTTP status 507 {"message": "response is too large'),
    ("/sql, a body of 11000000 bytes", 'HTTP status 413 {"message": "request is too large'),
    ("/sql, Accept-Encoding: gzip", r"HTTP status 200, \d+ bytes \("),
    ("/sql, hanging up on pg_sleep(30)", r"it is ended within [01]\.\d s"),
    ("/sql, an INSERT in a read-only batch (25006 is right)", ERROR.format("cannot execute INSERT in .*") + ', "code": "25006"'),
    ("/sql, ?options=-c statement_timeout=1s", r'HTTP status 200 \[\["1s"\]\]'),
    ("/v2, a login begun, and a ping", SCRAM),
    ("/v2?address=localhost:pooled, a login begun, and a ping", SCRAM),
    ("/v2?address=localhost:direct, a login begun, and a ping", SCRAM),
    ("/v2?address=localhost:pooled, a whole login as app.B|write-pool", r'\["app", null, false, "[^"]*", \d+\]'),
    ("/v2?address=localhost:pooled, a whole login as app.B|read-pool", r'\["app", null, true, "[^"]*", \d+\]'),
    ("/v2?address=localhost:direct, a whole login as app.B", r'\["app", null, false, "ps-postgres", \d+\]'),
]


@pytest.fixture
def probe(capfd: pytest.CaptureFixture[str], ps_lab: Lab) -> Any:
    """Return a function that runs the probe, and returns its status and what it printed, without a password."""

    def run(*arguments: str) -> tuple[int, str]:
        status = main(["doctor", *arguments, "--probe-443"])
        printed, errors = capfd.readouterr()
        assert not [password for password in ps_lab._passwords.values() if password in printed + errors]
        assert "postgresql://app" not in printed + errors
        return status, printed + errors

    return run


def test_probe(probe: Any, url: str, ps_lab: Lab) -> None:
    """What is going to be sent is said first; then each question is asked, and its answer printed. Nothing is left running."""
    status, printed = probe(url)
    before, _, after = printed.partition("\n 1. ")
    assert status == 0
    assert "What will be sent there, as app." in before
    assert "one that sleeps 30 s" in before
    found = re.findall(r"^ ?\d+\. (.*)\n    (.*) \(\d+\.\d\d s\)$", f" 1. {after}", re.MULTILINE)
    ports = {str(number): name for name, number in ps_lab.edge.ports.items()}
    asked = [re.sub(r"\d{4,5}\b", lambda port: ports.get(port[0], port[0]), question) for question, _ in found]
    assert asked == [question.replace("app.B", f"app.{ps_lab.branch}") for question, _ in ANSWERS]
    for (question, answer), (_, wanted) in zip(found, ANSWERS, strict=True):
        assert re.match(wanted, f"{answer} ("), (question, answer)


def test_probe_by_proxy(through: tuple[int, list[str]], probe: Any, url: str, ps_lab: Lab) -> None:
    """All of it goes through the proxy that the environment names."""
    status, printed = probe(url)
    assert (status, printed.count("HTTP status 200"), printed.count("SCRAM-SHA-256")) == (0, 8, 3)
    assert len(through[1]) > len(ANSWERS)
    assert "hidden" not in printed


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (r"ps_https_port=\d+", "ps_https_port=1", "Connection refused"),
        (r"sslrootcert=[^&]*", "sslrootcert=system", "unable to get local issuer certificate"),
        (r"sslrootcert=[^&]*", "sslrootcert=/nowhere", "there is no file /nowhere"),
    ],
)
def test_probe_in_vain(probe: Any, url: str, old: str, new: str, said: str) -> None:
    """A server that cannot be reached, or is not to be trusted, is sent nothing."""
    status, printed = probe(re.sub(old, new, url))
    assert status == 2
    assert said in printed
    assert printed.endswith("Nothing was asked: what stands above is in the way.\n")


def test_probe_of_nothing(probe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A set-up that cannot work is reported as one."""
    monkeypatch.delenv("PS_URL", raising=False)
    monkeypatch.delenv("DATABASE_URL", raising=False)
    assert probe("--env") == (2, "The set-up cannot work: set PS_URL or DATABASE_URL to postgresql://USER:PASSWORD@HOST/DBNAME\n")


@pytest.mark.fast
@pytest.mark.parametrize(
    ("status", "headers", "body", "told"),
    [
        (200, {}, b'{"rows": [["1"]], "rowCount": 1}', 'HTTP status 200 [["1"]]'),
        (200, {"content-encoding": "br"}, b"\x00" * 5, "HTTP status 200, 5 bytes, Content-Encoding: br"),
        (200, {}, b'{"rows": "' + b"x" * 3000, "HTTP status 200, 3010 bytes"),
        (200, {}, b'{"results": []}', 'HTTP status 200 {"results": []}'),
        (400, {}, b'{"message": "m", "code": null}', 'HTTP status 400 {"message": "m"}'),
        (404, {}, b"<html>\xff", "HTTP status 404 <html>\ufffd"),
        (204, {}, b"", "HTTP status 204"),
    ],
)
def test_said_by_sql(status: int, headers: dict[str, str], body: bytes, told: str) -> None:
    """An answer in HTTP is shown as its rows, or as what an error says; an answer that is no JSON, as its text."""
    assert said_by_sql(status, headers, body) == told


@pytest.mark.fast
@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"R\0\0\0\x17\0\0\0\x0aSCRAM-SHA-256\0\0", "it asks for SASL SCRAM-SHA-256"),
        (b"R\0\0\0\x08\0\0\0\x03", "it asks for cleartext password"),
        (b"R\0\0\0\x08\0\0\0\x63", "it asks for authentication 99"),
        (b"E\0\0\0\x1aSFATAL\0C28000\0Mno\0\0", "it says FATAL 28000: no"),
        (b"v\0\0\0\x04", "it sends a message b'v'"),
    ],
)
def test_message(data: bytes, told: str) -> None:
    """A server's first message is shown as what it asks for, or says."""
    assert message_of(data) == told


def test_no_such_host(doctor: Any) -> None:
    """A name that the resolver refuses, without asking any network, is an error of the name."""
    assert doctor("postgresql://app.branch:secret@a..b/") == (2, {"D010": ["primary", "direct"]})


def test_too_many(doctor: Any, url: str, usual: dict[str, list[str]]) -> None:
    """A pool that is larger than the cap is an error; a cap that was raised is none."""
    sizes = ("--workers", "20", "--pool-size", "15")
    assert doctor(url, *sizes) == (2, {"D080": ["primary", "replica"], **usual})
    raised = doctor(url, *sizes, "--max-client-conn", "600")
    assert raised == (0, usual | {"D084": ["primary", "replica"]})


def test_environment(doctor: Any, url: str, usual: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """`--env` reads PS_URL and the settings beside it."""
    monkeypatch.setenv("PS_URL", url)
    assert doctor("--env") == (0, usual)


def run_in(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, where the application's modules are."""
    return subprocess.run(
        [sys.executable, "-m", "ps_cli", "doctor", *arguments],
        cwd=folder,
        env={**os.environ, "COLUMNS": "120", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


SETTINGS = """
import os
from ps_django import databases
DATABASES = databases(os.environ["LAB"])
MIDDLEWARE = ["ps_django.middleware.ConsistencyMiddleware"]
"""


@pytest.mark.parametrize(
    ("key", "status", "expected"), [("", 2, ["D090"]), ("django-insecure-1", 1, ["D091"]), ("x" * 50, 0, [])]
)
def test_django(key: str, status: int, expected: list[str], tmp_path: Path, url: str, usual: dict[str, list[str]]) -> None:
    """`--django` takes DATABASES, and looks for the key that signs tokens."""
    (tmp_path / "conf.py").write_text(f"{SETTINGS}\nSECRET_KEY = {key!r}\n")
    done = run_in(tmp_path, "--django", "conf", "--json", LAB=url)
    answer = json.loads(done.stdout)
    assert [one["name"] for one in answer["paths"]] == ["default", "replica", "direct"]
    assert ([one["id"] for one in answer["findings"]], done.returncode) == ([*expected, *usual], status)


DERIVED = """
from django.contrib.contenttypes.models import ContentType  # django-tenants' imports it, too
from ps_django.backend import base

class DatabaseWrapper(base.DatabaseWrapper):
    pass
"""


@pytest.mark.parametrize("role", [{}, {"ps_role": "primary"}])
@pytest.mark.parametrize(
    ("engine", "status", "found"),
    [
        ("mine", 0, []),
        ("django.db.backends.postgresql", 2, ["D001", "D002"]),
        ("no_such_backend", 2, ["D001", "D002"]),
    ],
)
def test_django_of_another_engine(
    engine: str, status: int, found: list[str], role: dict[str, str], tmp_path: Path, url: str, usual: dict[str, list[str]]
) -> None:
    """A derived backend is known by its class, whatever options it has; of another one, options of ours are an error."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "base.py").write_text(DERIVED)
    change = f"""
default = DATABASES.pop("default")
default["OPTIONS"] = {{name: value for name, value in default["OPTIONS"].items() if name != "ps_role"}} | {role!r}
DATABASES = {{"default": default | {{"ENGINE": {engine!r}}}}}
INSTALLED_APPS = ["django.contrib.contenttypes"]
SECRET_KEY = "x" * 50
"""
    (tmp_path / "conf.py").write_text(SETTINGS + change)
    done = run_in(tmp_path, "--django", "conf", "--json", LAB=url)
    answer = json.loads(done.stdout)
    ids = [one["id"] for one in answer["findings"]]
    assert (ids, done.returncode) == (found[not role :][:1] or [*usual], status)
    if ids == ["D001"]:
        assert f"its ENGINE '{engine}' is not derived from 'ps_django.backend'. Write ORIGINAL_BACKEND" in done.stdout


def test_django_without_tokens(tmp_path: Path, url: str, usual: dict[str, list[str]]) -> None:
    """Where the level of consistency gives no tokens, no key signs any."""
    (tmp_path / "conf.py").write_text(f"{SETTINGS}\nSECRET_KEY = ''\n")
    done = run_in(tmp_path, "--django", "conf", "--json", LAB=f"{url}&ps_consistency=none")
    assert ([one["id"] for one in json.loads(done.stdout)["findings"]], done.returncode) == ([*usual], 0)


def test_engine(tmp_path: Path, url: str, usual: dict[str, list[str]]) -> None:
    """`--engine` takes a SQLAlchemy engine, the size of its pool included."""
    code = 'import os\nfrom ps_sqlalchemy import create_engine\nengine = create_engine(os.environ["LAB"], pool_size=9)\n'
    (tmp_path / "db.py").write_text(code)
    done = run_in(tmp_path, "--engine", "db:engine", "--json", "--workers", "2", LAB=url)
    answer = json.loads(done.stdout)
    assert answer["caps"][0][0]["value"] == 2 * (9 + 10)
    assert ([one["id"] for one in answer["findings"]], done.returncode) == ([*usual, "D084"], 0)


def test_stock_engine(tmp_path: Path, url: str) -> None:
    """An engine of another project is checked by its URL."""
    code = 'import os\nfrom sqlalchemy import create_engine\nengine = create_engine(os.environ["LAB"])\n'
    (tmp_path / "db.py").write_text(code)
    done = run_in(tmp_path, "--engine", "db", "--json", LAB=url.replace("postgresql:", "postgresql+psycopg:"))
    assert [one["name"] for one in json.loads(done.stdout)["paths"]] == ["primary", "replica", "direct"]
    assert done.returncode == 0


@pytest.mark.parametrize("option", ["--django", "--engine"])
def test_application_that_fails(option: str, tmp_path: Path) -> None:
    """What an application raises is said by its place only: its text may hold a password."""
    (tmp_path / "conf.py").write_text("\nraise ValueError('postgresql://app:secret@host/')\n")
    done = run_in(tmp_path, option, "conf")
    assert done.returncode == 2
    assert "D002" in done.stdout
    assert "ValueError in " in done.stdout
    assert "secret" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["postgresql://app:secret@h@h/"],
        ["postgresql://app:secret@h:secret/"],
        ["postgresql://app:secret@h/?secret=secret&x=@"],
        ["postgresql://app:sec ret@h:x/"],
        ["mysql://app:secret@h/"],
        ["host=h password=secret port=secret"],
        ["host=h password='secret"],
        ["app:secret@h"],
        ["postgresql://app:secret@h/", "postgresql://app:secret@h/"],
        ["postgresql://app:secret@h/", "--unknown=postgresql://app:secret@h/"],
        ["--json=postgresql://app:secret@h/"],
        ["--workers", "postgresql://app:secret@h/", "postgresql://app:secret@h/"],
        ["postgresql://app:secret@h/", "--resolve", "postgresql://app:secret@h/"],
        ["postgresql://app:secret@h/", "--direct-url", "postgresql://app:secret@h:x/"],
        ["--env", "postgresql://app:secret@h/"],
        ["postgresql://app.b:secret@a..b/?ps_direct_url=postgresql://app.b:secret@a..b/"],
    ],
)
def test_no_password(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    """Whatever cannot be read or reached, no password is printed."""
    try:
        status = main(["doctor", *arguments])
    except SystemExit as exc:
        status = int(str(exc.code))
    printed, errors = capfd.readouterr()
    assert status == 2
    assert "secret" not in printed + errors
    assert printed + errors


def test_for_people(url: str, ps_lab: Lab, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """To people each path is shown with its steps, then the findings; the same goes into a picture."""
    assert main(["doctor", url, "--workers", "20", "--pool-size", "15", "--svg", str(tmp_path / "x.svg")]) == 2
    printed, _ = capfd.readouterr()
    assert re.search(rf"^primary  app\.{ps_lab.branch}\|write-pool@localhost:\d+/postgres$", printed, re.MULTILINE)
    assert re.search(r"server PostgreSQL \d+\.\d+, replica, read-only, through a pooler", printed)
    assert "ours: statement 2 s, transaction 3 s, idle in transaction 30 s; the role's: none" in printed
    assert "error D080  primary, replica\n" in printed
    assert f"{DOCUMENTATION}doctor.html#d080" in printed
    https = f"HTTPS  localhost: 127.0.0.1 (loopback), port {ps_lab.edge.ports['https']}, open, TLSv1.3, /v2 opens a WebSocket\n"
    assert printed.count(https) == 1
    assert "300 (given) -> max_client_conn 100 (assumed)" in printed
    picture = (tmp_path / "x.svg").read_text()
    assert "D080" in picture
    for text in (printed, picture):
        assert not [password for password in ps_lab._passwords.values() if password in text]
