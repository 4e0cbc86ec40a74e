"""Other providers, by tables: what the URLs that they show lead to, by host alone, and what an explicit setting does to that."""

import pytest

from ps_core.errors import ConfigurationError
from ps_core.topology import Topology

pytestmark = pytest.mark.fast

# The URLs as the providers' own pages show them: see the comments in ps_core.providers.
NEON = (
    "postgresql://alex:s3cret@ep-cool-darkness-a1b2c3d4-pooler.us-east-2.aws.neon.tech/db?sslmode=require&channel_binding=require"
)
NEON_DIRECT = NEON.replace("-pooler", "")
SUPAVISOR = "postgres://postgres.apbkobhfnmcqqzqeeqss:s3cret@aws-0-eu-west-1.pooler.supabase.com:6543/postgres"
SUPAVISOR_SESSION = SUPAVISOR.replace("6543", "5432")
SUPABASE = "postgresql://postgres:s3cret@db.apbkobhfnmcqqzqeeqss.supabase.co:5432/postgres"
AURORA = "postgresql://app:s3cret@shop.cluster-c7tj4example.us-east-1.rds.amazonaws.com:5432/shop"
AURORA_READER = AURORA.replace("cluster-", "cluster-ro-")
INSTANCE = "postgresql://app:s3cret@shop-1.c7tj4example.us-east-1.rds.amazonaws.com/shop"
PROXY = "postgresql://app:s3cret@shop.proxy-demo123.us-east-1.rds.amazonaws.com/shop"
PROXY_ENDPOINT = PROXY.replace("shop.proxy", "readers.endpoint.proxy")
CHINA = "postgresql://app:s3cret@shop-1.c7tj4example.rds.cn-north-1.amazonaws.com.cn/shop"
CLOUD_SQL = "postgresql://app:s3cret@103uufa2svq8u.2rb3qdj9tkf4d.global.sql-psa.goog./shop"
BRIDGE = "postgres://app:s3cret@p.43lmodgbqvdmlpbjirv22dfciu.db.postgresbridge.com:5432/mydb"
HYPERDRIVE = "postgresql://user:s3cret@0a1b2c3d.hyperdrive.local:5432/db"

HOST = {
    "ep-cool-darkness-a1b2c3d4-pooler": "neon-pooler",
    "ep-cool-darkness-a1b2c3d4": "neon",
    "aws-0-eu-west-1": "supavisor",
    "db": "supabase",
    "103uufa2svq8u": "cloudsql",
    "p": "bridge",
    "0a1b2c3d": "hyperdrive",
}


def paths(topology: Topology) -> list[str]:
    """The endpoints as `host:port`, a `*` before those that are pooled."""
    return [
        f"{'*' if end.pooled else ''}{HOST.get(name := end.host.partition('.')[0], name)}:{end.port}"
        for end in (topology.primary, *topology.replicas, topology.direct)
    ]


@pytest.mark.parametrize(
    ("url", "settings", "expected"),
    [
        (NEON, {}, ["*neon-pooler:5432", "neon:5432"]),
        (NEON_DIRECT, {}, ["neon:5432", "neon:5432"]),
        (NEON_DIRECT, {"pooled": True}, ["*neon-pooler:5432", "neon:5432"]),
        (NEON, {"pooled": False}, ["neon:5432", "neon:5432"]),
        (NEON, {"replica_urls": NEON_DIRECT}, ["*neon-pooler:5432", "neon:5432", "neon:5432"]),
        (NEON_DIRECT, {"replica_urls": NEON}, ["neon:5432", "*neon-pooler:5432", "neon:5432"]),
        (NEON, {"direct_url": NEON_DIRECT}, ["*neon-pooler:5432", "neon:5432"]),
        # Both modes are always there; session mode could not be bounded.
        (SUPAVISOR, {}, ["*supavisor:6543", "supavisor:5432"]),
        (SUPAVISOR_SESSION, {}, ["*supavisor:6543", "supavisor:5432"]),
        (SUPAVISOR_SESSION.replace(":5432", ""), {}, ["*supavisor:6543", "supavisor:5432"]),
        (SUPAVISOR, {"pooled": False}, ["supavisor:5432", "supavisor:5432"]),
        (SUPAVISOR, {"direct_url": SUPAVISOR_SESSION}, ["*supavisor:6543", "supavisor:5432"]),
        (SUPAVISOR, {"direct_url": SUPABASE}, ["*supavisor:6543", "supabase:5432"]),
        # Taken as a pooler, because it drops the startup options that would make its sessions read-only.
        (SUPABASE, {"replica_urls": SUPAVISOR_SESSION}, ["supabase:5432", "*supavisor:5432", "supabase:5432"]),
        (SUPABASE, {}, ["supabase:5432", "supabase:5432"]),
        (SUPABASE.replace("5432", "6543"), {}, ["*supabase:6543", "supabase:5432"]),
        (SUPABASE, {"pooled": True}, ["*supabase:6543", "supabase:5432"]),
        (AURORA, {}, ["shop:5432", "shop:5432"]),
        (AURORA, {"replica_urls": AURORA_READER}, ["shop:5432"] * 3),
        (AURORA, {"replica_urls": PROXY_ENDPOINT}, ["shop:5432", "*readers:5432", "shop:5432"]),
        (AURORA.replace("cluster-", "cluster-custom-"), {}, ["shop:5432", "shop:5432"]),
        (INSTANCE, {}, ["shop-1:5432", "shop-1:5432"]),
        (INSTANCE, {"pooled": True}, ["*shop-1:5432", "*shop-1:5432"]),
        (CHINA, {}, ["shop-1:5432", "shop-1:5432"]),
        (PROXY, {}, ["*shop:5432", "*shop:5432"]),
        (PROXY, {"direct_url": AURORA}, ["*shop:5432", "shop:5432"]),
        (PROXY, {"pooled": False}, ["shop:5432", "shop:5432"]),
        (CLOUD_SQL, {}, ["cloudsql:5432", "cloudsql:5432"]),
        (CLOUD_SQL.replace("/shop", ":6432/shop"), {}, ["*cloudsql:6432", "cloudsql:5432"]),
        (CLOUD_SQL, {"pooled": True}, ["*cloudsql:6432", "cloudsql:5432"]),
        (BRIDGE, {}, ["bridge:5432", "bridge:5432"]),
        (BRIDGE.replace("5432", "5431"), {}, ["*bridge:5431", "bridge:5432"]),
        # Without a preset: one port of unknown kind, and no suffix.
        (HYPERDRIVE, {}, ["*hyperdrive:5432", "*hyperdrive:5432"]),
        ("postgresql://u:s3cret@pgcat:6432/d", {}, ["*pgcat:6432", "*pgcat:6432"]),
        ("postgresql://u:s3cret@bouncer:6432/d?ps_direct_url=postgresql://m@pg/d", {}, ["*bouncer:6432", "pg:5432"]),
        ("postgresql://u:s3cret@10.1.2.3:6432/d?ps_direct_port=5432", {}, ["*10:6432", "10:5432"]),
        # A port that the page does not name, settings of one's own, and names that only look like it.
        (SUPABASE.replace("5432", "7000"), {}, ["*supabase:7000", "*supabase:7000"]),
        (BRIDGE.replace("5432", "7000"), {"direct_port": 7001}, ["*bridge:7000", "bridge:7001"]),
        (NEON_DIRECT, {"pooled_port": 5432}, ["*neon:5432", "*neon:5432"]),
        (AURORA, {"pooled_port": 6432}, ["*shop:6432", "shop:5432"]),
        (NEON.replace("neon.tech", "neon.tech.example.com"), {}, ["*neon-pooler:5432", "*neon-pooler:5432"]),
        (AURORA.replace("us-east-1.", ""), {}, ["*shop:5432", "*shop:5432"]),
    ],
)  # fmt: skip
def test_paths(url: str, settings: dict[str, object], expected: list[str]) -> None:
    """Each provider's URL leads to these endpoints, and an explicit setting wins."""
    assert paths(Topology.from_url(url, **settings)) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("url", [NEON, SUPAVISOR, SUPABASE, AURORA, PROXY, CLOUD_SQL, BRIDGE, HYPERDRIVE])
def test_the_rest_is_as_written(url: str) -> None:
    """User, password, database and libpq's parameters are the URL's own: no suffix, no TLS setting of PlanetScale's."""
    for endpoint in (Topology.from_url(url).primary, Topology.from_url(url).direct):
        assert endpoint.password == "s3cret"
        assert endpoint.user == url.partition("//")[2].partition(":")[0]
        assert f"/{endpoint.dbname}" in url
        assert dict(endpoint.params) == ({"sslmode": "require", "channel_binding": "require"} if "neon" in url else {})


@pytest.mark.parametrize(
    ("url", "identity"),
    [
        (NEON, "ep-cool-darkness-a1b2c3d4.us-east-2.aws.neon.tech/db"),
        (NEON_DIRECT.replace("alex", "alex.b"), "ep-cool-darkness-a1b2c3d4.us-east-2.aws.neon.tech/db"),
        (SUPAVISOR, "apbkobhfnmcqqzqeeqss"),
        (PROXY.replace("app", "app.prod"), "shop.proxy-demo123.us-east-1.rds.amazonaws.com/shop"),
    ],
)
def test_identity(url: str, identity: str) -> None:
    """A WAL position belongs to the server that both of Neon's hosts lead to; to the project, where many share a host."""
    assert Topology.from_url(url).identity == identity


@pytest.mark.parametrize(
    ("url", "settings", "message"),
    [
        (AURORA_READER, {}, "leads to replicas: write the primary's host in the URL, and this one in ps_replica_urls"),
        (AURORA, {"direct_url": AURORA_READER}, "direct_url: it leads to a pooler or a replica"),
        (NEON, {"direct_url": NEON}, "direct_url: it leads to a pooler or a replica"),
        (AURORA, {"direct_url": PROXY}, "direct_url: it leads to a pooler or a replica"),
        (NEON + "&options=-c%20search_path%3Da", {}, "options cannot pass a transaction pooler"),
    ],
)
def test_refusals(url: str, settings: dict[str, object], message: str) -> None:
    """What certainly leads elsewhere is refused, with what to write instead, and without the password."""
    with pytest.raises(ConfigurationError, match=message) as caught:
        Topology.from_url(url, **settings)  # type: ignore[arg-type]
    assert "s3cret" not in str(caught.value)
