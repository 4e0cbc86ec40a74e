"""The app-side PgBouncer's configuration, by tables: caps, users, URLs, and what `check` says of an ini that was changed."""

import re

import pytest

from ps_core.errors import ConfigurationError
from ps_core.pgbouncer import Load, application_urls, check, pgbouncer_ini, userlist
from ps_core.topology import Topology

pytestmark = pytest.mark.fast

URL = "postgresql://app.br4nch:s3cret@x.horizon.psdb.cloud/postgres?ps_bouncer=write-pool&ps_replica_bouncer=read-pool"
TOPOLOGY = Topology.from_url(URL)
OTHER = Topology.from_url(
    'postgresql://app:s3"cret@h1/my%20d-b?sslmode=require',
    replica_urls="postgresql://o%27neil:0ther@h2:6433/my%20d-b?sslmode=require",
    replica_fallback="none",
)
LOAD = Load(workers=4, pool_size=10)


def ini_of(topology: Topology = TOPOLOGY, load: Load = LOAD, version: tuple[int, int] = (1, 24)) -> str:
    return pgbouncer_ini(topology, load, auth_file="/etc/pgbouncer/userlist.txt", version=version)


def settings_of(ini: str) -> dict[str, str]:
    return dict(re.findall(r"^([^;\n=]+?) = (.*)$", ini, re.MULTILINE))


def test_databases() -> None:
    """Each endpoint has a database of its own, which names its user with the suffix, and no password."""
    ini = ini_of()
    settings = settings_of(ini)
    assert settings["postgres"] == (
        "host=x.horizon.psdb.cloud port=6432 dbname=postgres user='app.br4nch|write-pool' pool_size=20"
    )
    assert settings["postgres_replica"] == (
        "host=x.horizon.psdb.cloud port=6432 dbname=postgres user='app.br4nch|read-pool' pool_size=20"
    )
    assert settings["pool_mode"] == "transaction"
    assert settings["server_tls_sslmode"] == "verify-full"
    assert settings["server_tls_ca_file"] == "/etc/ssl/certs/ca-certificates.crt"
    assert "s3cret" not in ini


def test_names_that_need_quotes() -> None:
    """Values are quoted, in the ini and in the userlist; a key that PgBouncer would not read becomes one that it does."""
    settings = settings_of(ini_of(OTHER))
    assert settings["my_d-b"].startswith("host=h1 port=5432 dbname='my d-b' user=app ")
    assert settings["my_d-b_replica"].startswith("host=h2 port=6433 dbname='my d-b' user='o''neil' ")
    assert check(ini_of(OTHER), OTHER, LOAD) == []
    assert userlist(OTHER) == '"app" "s3""cret"\n"o\'neil" "0ther"\n'


@pytest.mark.parametrize(
    ("load", "sizes", "clients"),
    [
        # The least of: the clients, the database's default_pool_size, the machine's share of nine tenths of max_client_conn.
        (Load(workers=2, pool_size=3), ("12", "6"), "28"),
        (Load(workers=4, pool_size=10), ("20", "20"), "130"),
        (Load(workers=4, pool_size=10, machines=9), ("10", "10"), "130"),
        (Load(workers=4, pool_size=10, machines=90), ("1", "1"), "130"),
        (Load(workers=4, pool_size=10, default_pool_size=60, max_client_conn=300), ("60", "40"), "130"),
    ],
)
def test_caps(load: Load, sizes: tuple[str, str], clients: str) -> None:
    """The caps follow from the workers and from what the database's bouncers take; what is written passes its own check."""
    ini = ini_of(load=load)
    assert tuple(re.findall(r"pool_size=(\d+)", ini)) == sizes
    assert settings_of(ini)["max_client_conn"] == clients
    assert check(ini, TOPOLOGY, load) == []


@pytest.mark.parametrize(
    ("version", "missing"),
    [((1, 18), {"max_prepared_statements", "track_extra_parameters"}), ((1, 21), set())],
)
def test_versions(version: tuple[int, int], missing: set[str]) -> None:
    """A setting that an older PgBouncer would refuse to start with is left out for it."""
    assert settings_of(ini_of()).keys() - settings_of(ini_of(version=version)).keys() == missing


def test_what_the_application_connects_to() -> None:
    """The user names have no suffix and the databases' names say which is which; the direct path goes past the PgBouncer."""
    urls = application_urls(TOPOLOGY, listen="/run/pgbouncer")
    assert [url.render() for url in urls["url"] + urls["replica_urls"]] == [
        "postgresql://app.br4nch:***@%2Frun%2Fpgbouncer:6432/postgres",
        "postgresql://app.br4nch:***@%2Frun%2Fpgbouncer:6432/postgres_replica",
    ]
    settings = {name: ",".join(url.render(hide_password=False) for url in urls[name]) for name in ("replica_urls", "direct_url")}
    layered = Topology.from_url(urls["url"][0].render(hide_password=False), **settings)  # type: ignore[arg-type]
    assert layered.identity == TOPOLOGY.identity
    assert layered.direct == TOPOLOGY.direct
    assert [end.pooled for end in (layered.primary, *layered.replicas)] == [True, True]
    assert userlist(TOPOLOGY) == "".join(f'"app.br4nch{suffix}" "s3cret"\n' for suffix in ("", "|write-pool", "|read-pool"))


@pytest.mark.parametrize(
    ("find", "change", "level", "message"),
    [
        ("max_client_conn = 130", "max_client_conn = 100", "error", "max_client_conn = 100: .* may open 130 connections"),
        ("max_client_conn = 130\n", "", "error", "max_client_conn = 100: .* may open 130 connections"),
        ("pool_size=20\npostgres_", "pool_size=101\npostgres_", "error", "postgres: 101 server connections x 1 machine.*takes"),
        ("reserve_pool_size = 0", "reserve_pool_size = 81", "error", "postgres: 101 server connections"),
        ("pool_size=20\npostgres_", "pool_size=30\npostgres_", "warning", "30 server connections share 20 behind primary"),
        (" pool_size=20\npostgres_", "\npostgres_", None, ""),
        ("pool_size=20\npostgres_", "pool_size=500 max_db_connections=20\npostgres_", None, ""),
        ("pool_mode = transaction", "pool_mode = session", "error", "pool_mode = session: each client would keep"),
        ("pool_mode = transaction\n", "", "error", "pool_mode = session"),
        ("|write-pool'", "|other'", "error", "no database leads to primary.*user='app.br4nch|write-pool'"),
        ("port=6432 ", "port=5432 ", "error", "no database leads to primary"),
        (" user='app.br4nch|write-pool'", "", "warning", "without user= each role has a pool"),
        ("verify-full", "require", "error", "server_tls_sslmode = require: primary wants more.*verify-full"),
        ("server_tls_ca_file = /etc/ssl/certs/ca-certificates.crt\n", "", "warning", "no server_tls_ca_file"),
        ("server_login_retry = 1", "server_login_retry = 15", "warning", "15 s of errors"),
        ("pool_size=20\npostgres_", "pool_size=20 password=s3cret\npostgres_", "error", "postgres: it has a password"),
        ("[databases]\n", "%include other.ini\n[databases]\n", "error", "%include is not followed"),
        ("[databases]\n", "", "error", "line 8 cannot be read"),
        ("; As on", "# As on", None, ""),
    ],
)  # fmt: skip
def test_check(find: str, change: str, level: str | None, message: str) -> None:
    """What was changed in an ini for the worse is found, with what to write, and without what it may hold of a password."""
    ini = ini_of()
    assert find in ini
    remarks = check(ini.replace(find, change, 1), TOPOLOGY, LOAD)
    assert "s3cret" not in str(remarks)
    if level is None:
        assert remarks == []
    else:
        assert any(remark.level == level and re.search(message, remark.text) for remark in remarks), remarks


@pytest.mark.parametrize(
    ("url", "settings", "message"),
    [
        ("postgresql://app@h/d", {}, "password of primary: PgBouncer needs one"),
        ("postgresql://app:a%0Ab@h/d", {}, "primary: .* cannot hold control characters"),
        ("postgresql://app:a@h/d%0Aauth_type=any", {}, "primary: .* cannot hold control characters"),
        ("postgresql://app:a@h/d?sslmode=verify-ca", {}, "sslrootcert: PgBouncer has no default for it"),
        ("postgresql://app:a@h", {}, "names no database"),
        ("postgresql://app:a@h/pgbouncer", {}, "keeps 'pgbouncer' for itself"),
        ("postgresql://app:a@h/d", {"replica_urls": "postgresql://app:b@h2/d"}, "'app' has two passwords"),
        ("postgresql://app:a@h/d?sslrootcert=/a", {"replica_urls": "postgresql://app:a@h2/d"}, "sslrootcert: PgBouncer has one"),
    ],
)  # fmt: skip
def test_refusals(url: str, settings: dict[str, str], message: str) -> None:
    """What one PgBouncer cannot serve is refused with what to write instead."""
    topology = Topology.from_url(url, **settings)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=message):
        pgbouncer_ini(topology, LOAD, auth_file="a")
        userlist(topology)


def test_too_many_machines() -> None:
    """Where the caps leave no connection to each machine, that is said."""
    with pytest.raises(ConfigurationError, match="91 machines cannot share the 100 clients that primary takes"):
        ini_of(load=Load(workers=1, pool_size=1, machines=91))
    with pytest.raises(ConfigurationError, match="workers: write a whole number from 1 on, not 0"):
        Load(workers=0, pool_size=1)
