"""Endpoints and topologies, by tables: what each URL leads to, the three forms of a setting, and what is refused."""

import pickle
import re
from contextlib import nullcontext
from dataclasses import replace
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from ps_core import RetryPolicy
from ps_core._registry import policy_for, target_of
from ps_core.errors import ConfigurationError
from ps_core.timeouts import DIRECT, POOLED, Timeouts
from ps_core.topology import _PARSERS, RETRY_TIMEOUT, Endpoint, Topology, TopologySettings

pytestmark = pytest.mark.fast

PLANETSCALE = "postgresql://app.br4nch:s3cret@x.horizon.psdb.cloud"
LAB = "postgresql://app.br4nch:s3cret@localhost:7001/postgres?ps_direct_port=7001&ps_pooled_port=7002"
PLAIN = "postgresql://app:s3cret@db.internal"
OTHER = "postgresql://app.r3plica%7Creplica:0ther@y.horizon.psdb.cloud/postgres"


def paths(topology: Topology) -> list[str]:
    """The endpoints as `user@host:port`, a `*` before those that are pooled."""
    return [
        f"{'*' if endpoint.pooled else ''}{endpoint.user}@{endpoint.host.partition('.')[0]}:{endpoint.port}"
        for endpoint in (topology.primary, *topology.replicas, topology.direct)
    ]


@pytest.mark.parametrize(
    ("url", "settings", "expected"),
    [
        # PlanetScale: both ports are known from either.
        (PLANETSCALE, {}, ["*app.br4nch@x:6432", "app.br4nch@x:5432"]),
        (PLANETSCALE + ":5432", {}, ["*app.br4nch@x:6432", "app.br4nch@x:5432"]),
        (PLANETSCALE + ":6432", {}, ["*app.br4nch@x:6432", "app.br4nch@x:5432"]),
        (PLANETSCALE, {"pooled": False}, ["app.br4nch@x:5432", "app.br4nch@x:5432"]),
        (
            PLANETSCALE,
            {"bouncer": "write-pool", "replica_bouncer": "read-pool"},
            ["*app.br4nch|write-pool@x:6432", "*app.br4nch|read-pool@x:6432", "app.br4nch@x:5432"],
        ),
        (
            PLANETSCALE,
            {"replica_bouncer": ["a", "b"], "direct_replica": True, "replica_urls": [OTHER]},
            [
                "*app.br4nch@x:6432",
                "*app.br4nch|a@x:6432",
                "*app.br4nch|b@x:6432",
                "app.br4nch|replica@x:5432",
                "app.r3plica|replica@y:5432",
                "app.br4nch@x:5432",
            ],
        ),
        ("postgresql://a.b%7Cpool@x.psdb.cloud:6432", {}, ["*a.b|pool@x:6432", "a.b@x:5432"]),
        ("postgresql://a.b%7Cpool@x.psdb.cloud", {}, ["*a.b|pool@x:6432", "a.b@x:5432"]),
        ("postgresql://a.b%7Cpool@x.psdb.cloud", {"bouncer": "other"}, ["*a.b|other@x:6432", "a.b@x:5432"]),
        ("postgresql://a.b%7Cpool@x.psdb.cloud", {"bouncer": None}, ["*a.b@x:6432", "a.b@x:5432"]),
        (PLANETSCALE, {"direct_url": "postgresql://m.br4nch@x.psdb.cloud"}, ["*app.br4nch@x:6432", "m.br4nch@x:5432"]),
        # Its user names under another host name.
        (PLAIN, {"bouncer": "b"}, ["*app|b@db:6432", "app@db:5432"]),
        (PLAIN + ":5432", {"direct_replica": True}, ["*app@db:6432", "app|replica@db:5432", "app@db:5432"]),
        # Other ports, said to be which.
        (LAB, {}, ["*app.br4nch@localhost:7002", "app.br4nch@localhost:7001"]),
        (LAB.replace(":7001/", ":7002/"), {}, ["*app.br4nch@localhost:7002", "app.br4nch@localhost:7001"]),
        (LAB.replace(":7001/", "/"), {}, ["*app.br4nch@localhost:7002", "app.br4nch@localhost:7001"]),
        (
            LAB,
            {"direct_replica": "yes", "replica_urls": LAB.partition("?")[0].replace(":s3", "|replica:s3")},
            ["*app.br4nch@localhost:7002"] + ["app.br4nch|replica@localhost:7001"] * 2 + ["app.br4nch@localhost:7001"],
        ),
        (PLAIN + ":7002", {"direct_port": 7001}, ["*app@db:7002", "app@db:7001"]),
        (PLAIN + ":7001", {"pooled_port": 7002}, ["*app@db:7002", "app@db:7001"]),
        (PLAIN + ":7001", {"direct_port": 7001}, ["app@db:7001", "app@db:7001"]),
        (PLAIN + ":7002", {"pooled_port": 7002}, ["*app@db:7002", "*app@db:7002"]),
        (PLANETSCALE + ":6432", {"direct_port": 7001}, ["*app.br4nch@x:6432", "app.br4nch@x:7001"]),
        # A tunnel may well end at a port that elsewhere means the other kind.
        (PLAIN + ":5432", {"pooled_port": 5432, "bouncer": "b"}, ["*app|b@db:5432", "*app@db:5432"]),
        # One port of unknown kind serves all.
        (PLAIN, {}, ["*app@db:5432", "*app@db:5432"]),
        (PLAIN + ":6543", {}, ["*app@db:6543", "*app@db:6543"]),
        (PLAIN + ":6543", {"pooled": False}, ["app@db:6543", "app@db:6543"]),
        (PLAIN + ":7002", {"bouncer": "b"}, ["*app|b@db:7002", "*app@db:7002"]),
        (
            PLAIN,
            {"replica_urls": "postgresql://r@h1,h2/d, postgresql://r@h3:7/d", "direct_url": PLAIN + ":7001"},
            ["*app@db:5432", "*r@h1,h2:5432", "*r@h3:7", "app@db:7001"],
        ),
        ("postgresql://u@%2Frun%2Fpg:7/d", {}, ["*u@/run/pg:7", "*u@/run/pg:7"]),
    ],
)
def test_paths(url: str, settings: dict[str, Any], expected: list[str]) -> None:
    """Each URL, with its settings, leads to these endpoints."""
    assert paths(Topology.from_url(url, **settings)) == expected


def test_endpoints_know_their_work() -> None:
    """Names, roles and timeouts follow from the path."""
    topology = Topology.from_url(
        PLANETSCALE, replica_bouncer="read-pool", direct_replica=True, statement_timeout="1s", lock_timeout=7, connect_timeout=9
    )
    bounded = replace(POOLED, statement=1.0, connect=9.0)
    assert [(end.name, end.role, end.read_only) for end in (topology.primary, *topology.replicas, topology.direct)] == [
        ("primary", "primary", False),
        ("replica", "replica", True),
        ("replica-2", "replica", True),
        ("direct", "direct", False),
    ]
    assert [end.timeouts for end in (topology.primary, *topology.replicas)] == [bounded] * 3
    assert topology.direct.timeouts == replace(DIRECT, lock=7.0, connect=9.0)


@pytest.mark.parametrize(
    ("url", "identity"),
    [(PLANETSCALE, "br4nch"), (LAB, "br4nch"), (PLAIN + "/shop", "db.internal/shop"), ("postgresql:///d", "/d")],
)
def test_identity(url: str, identity: str) -> None:
    """A topology is known by its branch, else by host and database."""
    assert Topology.from_url(url).identity == identity


FORMS = {
    "bouncer": ("write-pool", "write-pool"),
    "replica_bouncer": (["read-pool", "read-2"], "read-pool,read-2"),
    "replica_urls": ([OTHER, PLAIN], f"{OTHER},{PLAIN}"),
    "replica_weights": ([2.5], "2.5"),
    "replica_fallback": (0.25, "0.25"),
    "direct_replica": (True, "true"),
    "direct_url": (PLAIN, PLAIN),
    "direct_port": (7001, "7001"),
    "pooled_port": (7002, "7002"),
    "pooled": (True, "1"),
    "binding": ("server", "server"),
    "session_state": ("allow", "allow"),
    "statement_timeout": (1.5, "1500ms"),
    "transaction_timeout": (None, "off"),
    "idle_in_transaction_timeout": (60, "1min"),
    "lock_timeout": ("2s", "2s"),
    "connect_timeout": (3, "3s"),
    "retry_timeout": (0, "0"),
    "consistency": ("none", "none"),
    "application_name": ("shop & co", "shop & co"),
    "marker_schema": ("own", "own"),
    "transport": ("websocket", "websocket"),
    "https_port": (7003, "7003"),
}


def test_every_setting_has_three_forms() -> None:
    """The table of parsers, the keywords' types and this test know the same settings."""
    assert set(FORMS) == set(_PARSERS) == set(TopologySettings.__annotations__)


@pytest.mark.parametrize("name", FORMS)
def test_three_forms(name: str) -> None:
    """Keyword, URL parameter and environment variable give equal topologies."""
    value, text = FORMS[name]
    base = PLANETSCALE + ":7001" if name in ("direct_port", "pooled_port") else PLANETSCALE
    if name == "replica_weights":
        base += "?ps_direct_replica=true"
    parameter = f"ps_{name}={text.translate({ord(c): f'%{ord(c):02X}' for c in '%&, '})}"
    settings: dict[str, Any] = {name: value}
    keyword = Topology.from_url(base, **settings)
    assert Topology.from_url(f"{base}{'&' if '?' in base else '?'}{parameter}") == keyword
    assert Topology.from_env({"PS_URL": base, f"PS_{name.upper()}": text}) == keyword
    keywords = "host=x.horizon.psdb.cloud user=app.br4nch password=s3cret" + (" port=7001" if ":7001" in base else "")
    if name == "replica_weights":
        keywords += " ps_direct_replica=true"
    assert Topology.from_url(f"{keywords} ps_{name}='{text}'") == keyword
    if name != "pooled":
        assert keyword != Topology.from_url(base)


def test_retry_timeout() -> None:
    """It is the length of the policy, which is the default one where nothing is set; a policy that is given wins."""
    assert policy_for(RETRY_TIMEOUT) == RetryPolicy()
    assert policy_for("5s") == RetryPolicy(max_elapsed="5s")
    for never in (0, "0", "0s"):
        assert policy_for(never).attempts == 0
    cases: tuple[tuple[dict[str, Any], RetryPolicy | None, float], ...] = (
        ({}, None, 30),
        ({"retry_timeout": "5s"}, None, 5),
        ({"retry_timeout": "5s"}, RetryPolicy(max_elapsed=7), 7),
    )
    for settings, given, wanted in cases:
        topology = Topology.from_url(PLANETSCALE, replica_bouncer="read-pool", **settings)
        for to in ("primary", "replica", "direct"):
            assert target_of(topology, to, given, {}).policy.max_elapsed == wanted


def test_precedence() -> None:
    """A keyword beats the URL, and the URL, in any of its spellings, beats the environment."""
    env = {"PS_URL": PLANETSCALE, "PS_BOUNCER": "env", "PS_CONNECT_TIMEOUT": "7s", "PS_APPLICATION_NAME": "env", "PS_POOLED": ""}

    def seen(topology: Topology) -> tuple[str, float | None, str | None]:
        return topology.primary.user, topology.primary.timeouts.connect, topology.primary.application_name

    url = PLANETSCALE + "?ps_bouncer=url&connect_timeout=8&application_name=libpq"
    assert seen(Topology.from_env(env)) == ("app.br4nch|env", 7.0, "env")
    assert seen(Topology.from_env({**env, "PS_URL": url})) == ("app.br4nch|url", 8.0, "libpq")
    assert seen(Topology.from_env({**env, "PS_URL": url + "&ps_application_name=url"}))[2] == "url"
    assert seen(Topology.from_env({**env, "PS_URL": "postgresql://a.b%7Csuffix@x.psdb.cloud"}))[0] == "a.b|suffix"
    assert seen(Topology.from_env({**env, "PS_URL": url}, bouncer="keyword", connect_timeout="9s", application_name=None)) == (
        "app.br4nch|keyword",
        9.0,
        None,
    )


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process's environment is the default, PS_URL goes before DATABASE_URL, and other PS_ variables are left alone."""
    monkeypatch.delenv("PS_URL", raising=False)
    monkeypatch.setenv("DATABASE_URL", PLANETSCALE)
    monkeypatch.setenv("PS_LAB_POSTGRES", "/usr")
    assert Topology.from_env() == Topology.from_url(PLANETSCALE)
    monkeypatch.setenv("PS_URL", PLAIN)
    assert Topology.from_env() == Topology.from_url(PLAIN)
    with pytest.raises(ConfigurationError, match="set PS_URL or DATABASE_URL to postgresql://"):
        Topology.from_env({"PS_URL": ""})


COMMON = {
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10000,
}


@pytest.mark.parametrize(
    ("url", "settings", "primary", "direct"),
    [
        (
            PLANETSCALE,
            {"application_name": "shop"},
            {
                "host": "x.horizon.psdb.cloud", "port": 6432, "user": "app.br4nch", "password": "s3cret", "dbname": "postgres",
                "application_name": "shop", "connect_timeout": 5, "sslmode": "verify-full", "sslrootcert": "system",
            },
            {"port": 5432, "options": "-c lock_timeout=5000"},
        ),
        (
            PLAIN,
            {"connect_timeout": "1s"},
            {"host": "db.internal", "user": "app", "password": "s3cret", "connect_timeout": 2},
            {},
        ),
        (
            "postgresql:///d?keepalives=0&connect_timeout=3",
            {"pooled": False, "lock_timeout": None},
            {
                "dbname": "d", "connect_timeout": 3, "keepalives": "0",
                "options": "-c statement_timeout=2000 -c idle_in_transaction_session_timeout=30000",
            },
            {"options": None},
        ),
        (
            "postgresql:///d?options=-c%20lock_timeout%3D9",
            {"pooled": False, "statement_timeout": None, "idle_in_transaction_timeout": None},
            {"dbname": "d", "connect_timeout": 5, "options": "-c lock_timeout=9"},
            {"options": "-c lock_timeout=5000 -c lock_timeout=9"},
        ),
    ],
)  # fmt: skip
def test_conninfo(url: str, settings: dict[str, Any], primary: dict[str, Any], direct: dict[str, Any]) -> None:
    """psycopg gets every parameter, libpq reads them back, and only endpoints without a pooler have startup options."""
    topology = Topology.from_url(url, **settings)
    expected = {**COMMON, **primary}
    for endpoint, conninfo in ((topology.primary, expected), (topology.direct, {**expected, **direct})):
        found: dict[str, Any] = endpoint.conninfo()
        assert found.pop("fallback_application_name", None) == (None if endpoint.pooled else "ps-postgres")
        assert found == {name: value for name, value in conninfo.items() if value is not None}
        assert conninfo_to_dict(make_conninfo(**found)) == {name: str(value) for name, value in found.items()}


@pytest.mark.parametrize(
    ("url", "tls"),
    [
        (PLANETSCALE, {"sslmode": "verify-full", "sslrootcert": "system"}),
        (PLANETSCALE.upper().replace("POSTGRESQL:", "postgresql:"), {"sslmode": "verify-full", "sslrootcert": "system"}),
        (PLANETSCALE + "?sslrootcert=/ca.pem", {"sslmode": "verify-full", "sslrootcert": "/ca.pem"}),
        (PLANETSCALE + "?sslmode=verify-full", {"sslmode": "verify-full", "sslrootcert": "system"}),
        (PLANETSCALE + "?sslmode=require", {"sslmode": "require"}),
        (PLAIN, {}),
        (PLAIN + "?sslmode=verify-full", {"sslmode": "verify-full"}),
        (PLAIN + "?sslrootcert=system", {"sslrootcert": "system"}),
    ],
)
def test_tls_defaults(url: str, tls: dict[str, str]) -> None:
    """psdb.cloud is verified against the system's roots unless the URL says otherwise; elsewhere libpq's defaults hold."""
    topology = Topology.from_url(url, replica_urls=[url])
    for endpoint in (topology.primary, *topology.replicas, topology.direct):
        assert {name: value for name, value in endpoint.conninfo().items() if name.startswith("ssl")} == tls


@pytest.mark.skipif(pq.version() < 170000, reason="libpq has sslnegotiation from 17 on")
@pytest.mark.parametrize(
    ("url", "refused"),
    [
        (PLAIN + "?sslnegotiation=direct", "sslmode=prefer"),
        (PLAIN + "?sslnegotiation=direct&sslmode=allow", "sslmode=allow"),
        (PLAIN + "?sslnegotiation=direct&sslmode=require", None),
        (PLAIN + "?sslnegotiation=direct&sslrootcert=system", None),
        (PLANETSCALE + "?sslnegotiation=direct", None),
    ],
)
def test_direct_negotiation(url: str, refused: str | None) -> None:
    """TLS without asking first needs a mode that insists on TLS."""
    if refused:
        with pytest.raises(ConfigurationError, match=f"sslnegotiation=direct with {refused}: write sslmode=verify-full"):
            Topology.from_url(url)
    else:
        assert Topology.from_url(url).primary.conninfo()["sslnegotiation"] == "direct"


def test_target_session_attrs_stay_with_the_primary() -> None:
    """What the URL demands of the primary's session is not demanded of a replica's."""
    topology = Topology.from_url(PLANETSCALE + "?target_session_attrs=read-write", replica_bouncer="a", direct_replica=True)
    found = [
        endpoint.conninfo().get("target_session_attrs") for endpoint in (topology.primary, *topology.replicas, topology.direct)
    ]
    assert found == ["read-write", None, None, "read-write"]


@pytest.mark.parametrize(
    ("url", "settings", "message"),
    [
        ("postgresql://a.b%7Creplica:s3cret@x.psdb.cloud:6432", {}, "write it without, and .*ps_replica_bouncer=NAME"),
        ("postgresql://a.b|replica:s3cret@x.psdb.cloud:5432", {}, "ps_direct_replica=true"),
        ("postgresql://a.b|pool:s3cret@x.psdb.cloud:5432", {}, "'pool' cannot be reached on port 5432.*write port 6432"),
        ("postgresql://a.b|pool:s3cret@h:5432", {}, "'pool' cannot be reached on port 5432.*write port 6432"),
        ("postgresql://a.b|pool:s3cret@h:7001?ps_direct_port=7001&ps_pooled_port=7002", {}, "cannot be reached on port 7001"),
        (PLANETSCALE, {"replica_urls": [OTHER.replace("cloud/", "cloud:6432/")]}, "replica cannot be reached on port 6432"),
        (PLANETSCALE, {"replica_urls": "postgresql://a.b|pool@y.psdb.cloud:5432"}, "cannot be reached on port 5432"),
        (LAB, {"replica_urls": "postgresql://a.b|replica@localhost:7002"}, "replica cannot be reached on port 7002"),
        (PLANETSCALE, {"bouncer": "primary"}, "bouncer: 'primary' is reserved"),
        (PLANETSCALE + "?ps_replica_bouncer=replica", {}, "ps_replica_bouncer: 'replica' is reserved.*ps_direct_replica=true"),
        (PLANETSCALE, {"bouncer": "thirteen-char"}, "at most 12 of"),
        (PLANETSCALE, {"bouncer": "app.br4nch|x"}, "write its name alone"),
        ("postgresql://a.b|thirteen-char@x.psdb.cloud:6432", {}, "at most 12 of"),
        (PLANETSCALE, {"bouncer": "a", "replica_bouncer": "a"}, "one target"),
        (PLANETSCALE, {"replica_bouncer": ["a", "a"]}, "^bouncers a, a: a bouncer has one target"),
        (PLANETSCALE, {"bouncer": 5}, "^bouncer: write a string, not 5"),
        (PLANETSCALE, {"bouncer": ["a"]}, "^bouncer: write a string"),
        (PLANETSCALE, {"bouncer": b"a"}, "^bouncer: write a string"),
        (PLANETSCALE, {"replica_bouncer": 5}, "^replica_bouncer: write a list, or one string with commas"),
        (PLANETSCALE, {"replica_bouncer": {"a"}}, "^replica_bouncer: write a list"),
        (PLANETSCALE, {"replica_bouncer": [5]}, "^replica_bouncer: write a string"),
        (PLANETSCALE, {"replica_urls": {PLANETSCALE: 1}}, "(?m)^replica_urls: write a list, .* not a value of type dict$"),
        (PLANETSCALE, {"replica_urls": "s3cret"}, "^replica_urls: libpq cannot read the connection string"),
        (PLANETSCALE, {"direct_url": "mysql://h"}, "^direct_url: the URL is of another database"),
        (PLANETSCALE + "?ps_direct_url=x", {}, "^ps_direct_url: libpq cannot read"),
        (PLANETSCALE, {"replica_bouncer": "a", "replica_weights": 1}, "^replica_weights: write a list"),
        (PLANETSCALE, {"replica_bouncer": "a", "replica_weights": [True]}, "^replica_weights: write a number from 0 on, not"),
        (PLANETSCALE, {"replica_bouncer": "a", "replica_weights": "nan"}, "^replica_weights: write a number"),
        (PLANETSCALE, {"replica_fallback": True}, "^replica_fallback: write 'primary', 'none', or a share"),
        (PLANETSCALE, {"marker_schema": 5}, "^marker_schema: 5 is no schema's name"),
        (PLANETSCALE, {"application_name": 5}, "^application_name: write a string"),
        (PLANETSCALE, {"direct_port": 6432}, "at PlanetScale 5432 is direct and 6432 the bouncers'"),
        (PLANETSCALE + ":6432", {"pooled_port": 5432}, "at PlanetScale 5432 is direct and 6432 the bouncers'"),
        ("postgresql://x.psdb.cloud", {"bouncer": "a"}, "needs a user name"),
        (PLANETSCALE + "?sslrootcert=system&sslmode=require", {}, "sslrootcert=system with sslmode=require: write"),
        (PLAIN + "?sslmode=full", {}, "write one of disable, allow"),
        ("postgresql://a:s3cret@planetscale.com/d", {}, "write the host that"),
        ("postgresql://a:s3cret@APP.planetscale.com/d", {}, "write the host that"),
        (PLANETSCALE, {"statement_timeout": "3s"}, "must be below transaction_timeout"),
        (PLANETSCALE + "?ps_statement_timeout=2", {}, "ps_statement_timeout: '2' is not a duration"),
        (PLANETSCALE, {"connect_timeout": None}, "cannot be off"),
        (PLANETSCALE, {"retry_timeout": None}, "(?m)retry_timeout: it cannot be off.*, or 0 for no retries$"),
        (PLANETSCALE + "?ps_retry_timeout=off", {}, "(?m)or 0 for no retries$"),
        (PLANETSCALE, {"retry_timeout": "-1"}, "(?m)as a number of seconds, or 0 for no retries$"),
        (PLANETSCALE, {"connect_timeout": 0}, "(?m)as a number of seconds$"),
        (PLANETSCALE, {"retry_timeout": False}, "retry_timeout: False is not a duration"),
        (PLANETSCALE, {"session_state": "keep"}, "(?m)^session_state: write 'refuse' or 'allow', not 'keep'$"),
        (PLANETSCALE + "?ps_session_state=Allow", {}, "(?m)^ps_session_state: write 'refuse' or 'allow', not 'Allow'$"),
        (PLANETSCALE, {"marker_schema": ""}, "marker_schema: '' is no schema's name: write 1 to 63 bytes"),
        (PLANETSCALE + "?ps_marker_schema=" + "x" * 64, {}, "ps_marker_schema: 'x"),
        (PLANETSCALE, {"marker_schema": "a\0"}, "is no schema's name"),
        (PLANETSCALE + "?connect_timeout=0", {}, "'0s' is not a duration above zero"),
        (PLANETSCALE + "?ps_bounser=a", {}, "no setting ps_bounser: did you mean ps_bouncer"),
        (PLANETSCALE, {"replica_bouncers": "a"}, "no setting replica_bouncers: did you mean replica_bouncer"),
        (PLANETSCALE, {"direct_url": "postgresql://u@h?ps_bouncer=a"}, "direct_url: ps_bouncer has no meaning"),
        (PLANETSCALE, {"direct_url": "postgresql://u@x.psdb.cloud:6432"}, "write the port without a pooler"),
        (PLANETSCALE, {"direct_url": OTHER}, r"user name without \|suffix"),
        (PLANETSCALE, {"direct_port": "5432x"}, "write a number from 1 to 65535"),
        (PLANETSCALE, {"pooled_port": 0}, "write a number from 1 to 65535"),
        (PLANETSCALE, {"pooled": "maybe"}, "write true or false"),
        (LAB.replace(":7001/", ":7003/"), {}, "port 7003 is neither ps_direct_port"),
        (PLAIN, {"direct_port": 7, "pooled_port": 7}, "both direct and pooled"),
        (PLAIN + ":7", {"direct_port": 7, "pooled_port": 7}, "both direct and pooled"),
        (PLAIN + ":7001", {"direct_port": 7001, "pooled": True}, "pooled=true.*add ps_pooled_port=PORT"),
        (PLAIN + ":7001", {"pooled_port": 7001, "pooled": False}, "pooled=false.*add ps_direct_port=PORT"),
        (PLAIN + ":7001", {"direct_port": 7001, "replica_bouncer": "a"}, "add ps_pooled_port=PORT"),
        (PLAIN + ":7002", {"direct_replica": True}, "add ps_direct_port=PORT"),
        (PLANETSCALE, {"bouncer": "a", "pooled": False}, "'a' cannot be reached on port 5432"),
        (PLANETSCALE + "?options=-c%20search_path%3Da", {}, "options cannot pass a transaction pooler.*direct_connect_args"),
    ],
)  # fmt: skip
def test_refusals(url: str, settings: dict[str, Any], message: str) -> None:
    """What cannot work is refused at start-up with what to write instead, and without the password."""
    with pytest.raises(ConfigurationError, match=message) as caught:
        Topology.from_url(url, **settings)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("options", ["-c=", "-c =x", "--=x", "-c a=1 -c=2", "-c a=1  --=", "-c", r"-c \=x", "-c a=1\t-c\t=b"])
def test_no_setting_without_a_name(options: str) -> None:
    """Such options are refused wherever they come from: some PgBouncers spin on them (CVE-2026-107349)."""
    ways: tuple[dict[str, str], ...] = (
        {"ps_pooled": "false", "options": options},
        {"ps_direct_url": f"postgresql://d/?options={quote(options)}"},
    )
    for given in ways:
        with pytest.raises(ConfigurationError, match="write -c NAME=VALUE"):
            Topology.from_url(f"postgresql://h/d?{urlencode(given, quote_via=quote)}")


@pytest.mark.parametrize("options", ["", "-c a=", "-ca=1", "--a=-c", r"-c a=b\ -c=", "-c a=x-c="])
def test_settings_with_names(options: str) -> None:
    """What has a name is taken, whatever its value."""
    found = Topology.from_url(f"postgresql://h/d?options={quote(options)}", pooled=False).primary.conninfo()
    assert str(found["options"]).endswith(options)


@pytest.mark.parametrize("settings", [{"lock_timeout": None}, {"statement_timeout": None, "idle_in_transaction_timeout": None}])
def test_our_own_options_have_names(settings: dict[str, Any]) -> None:
    """No setting, or none of them, becomes an option without a name."""
    topology = Topology.from_url("postgresql://h/d", pooled=False, **settings)
    for endpoint in (topology.primary, topology.direct):
        for option in str(endpoint.conninfo().get("options", "")).split("-c ")[1:]:
            assert re.fullmatch(r"[a-z_]+=\w+ ?", option)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf"), True, "many"])
def test_weight(weight: Any) -> None:
    """A weight that is no share is refused."""
    with pytest.raises(ConfigurationError, match="weight of primary"):
        replace(Topology.from_url(PLANETSCALE).primary, weight=weight)


def test_topologies_are_values() -> None:
    """Equal, hashable, the same after pickling, and written without secrets."""
    topology = Topology.from_url(PLANETSCALE + "?sslpassword=s3cret", replica_urls=[OTHER])
    again = pickle.loads(pickle.dumps(topology))
    assert again == topology
    assert len({again, topology}) == 1
    assert topology != Topology.from_url(PLANETSCALE.replace("s3cret", "other") + "?sslpassword=s3cret", replica_urls=[OTHER])
    assert repr(topology.primary) == "<Endpoint primary app.br4nch@x.horizon.psdb.cloud:6432/postgres>"
    for text in (repr(topology), topology.primary.render(), *(end.render() for end in topology.replicas)):
        assert "s3cret" not in text
        assert "0ther" not in text
    assert topology.primary.render().startswith("postgresql://app.br4nch:***@x.horizon.psdb.cloud:6432/postgres?")


def test_parameters_of_an_endpoint_have_no_order() -> None:
    """Endpoints with the same parameters are equal in whatever order they were written."""
    given: tuple[Any, ...] = (
        (("sslmode", "require"), ("gssencmode", "disable")),
        {"gssencmode": "disable", "sslmode": "require"},
    )
    common: dict[str, Any] = {
        "name": "primary",
        "role": "primary",
        "host": "h",
        "port": 1,
        "user": "u",
        "password": "",
        "dbname": "d",
    }
    one, two = (Endpoint(**common, pooled=True, timeouts=Timeouts(), params=params) for params in given)
    assert one == two


@pytest.mark.parametrize("environment", [{}, {"PGSSLMODE": "verify-ca"}, {"PGSSLROOTCERT": "system"}])
@pytest.mark.parametrize("mode", [None, "disable", "require", "verify-full"])
@pytest.mark.parametrize("root", [None, "/ca.pem", "system"])
def test_sslmode(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], mode: str | None, root: str | None) -> None:
    """The mode that an endpoint names is the one that libpq takes."""
    for name in ("PGSSLMODE", "PGSSLROOTCERT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    params = {name: value for name, value in {"sslmode": mode, "sslrootcert": root}.items() if value is not None}
    asked = "host=127.0.0.1 port=1 " + " ".join(f"{name}={value}" for name, value in params.items())
    connecting = pq.PGconn.connect_start(asked.encode())
    taken = {option.keyword: option.val for option in connecting.info}[b"sslmode"]
    connecting.finish()
    assert taken is not None
    refused = root == "system" and taken != b"verify-full"
    with pytest.raises(ConfigurationError, match=f"sslmode={taken.decode()}:") if refused else nullcontext():
        assert replace(Topology.from_url(PLAIN).primary, params=tuple(params.items())).sslmode == taken.decode()
