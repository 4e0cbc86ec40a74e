"""`Lab`: a local PlanetScale. One primary, replicas, three PgBouncers and the edge, on loopback, gone when the block ends."""

from __future__ import annotations

import secrets
import signal
import threading
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import quote

import psycopg
import trustme

from ps_core.topology import Topology
from ps_lab.edge import Edge, EdgeError, Port, Route
from ps_lab.pgbouncer import ADMIN, PgBouncer, find_pgbouncer
from ps_lab.postgres import Binaries, Postgres
from ps_lab.processes import Account, Guard, free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ps_lab.edge import RoundTrips

__all__ = ["Lab"]

_ALPHABET: Final = "abcdefghijklmnopqrstuvwxyz0123456789"
LOCAL, WRITE_POOL, READ_POOL = "local", "write-pool", "read-pool"


class Lab:
    """A local PlanetScale.

    `with Lab() as lab:` starts it; `lab.url` is a role's URL as PlanetScale shows it (with the ports, which are not the usual
    ones), `lab.topology` what the packages make of it with both dedicated bouncers. `pgbouncer_settings` go into the ini of all
    bouncers, as in `server_login_retry=15`. The environment may name the programs: PS_LAB_POSTGRES (a bin folder) and
    PS_LAB_PGBOUNCER.
    """

    def __init__(self, replicas: int = 2, **pgbouncer_settings: object) -> None:
        if not 1 <= replicas <= 8:
            raise ValueError("replicas: write a number from 1 to 8: COMMIT waits for one of them")
        self.branch = "".join(secrets.choice(_ALPHABET) for _ in range(12))
        self.password = f"pscale_pw_{secrets.token_urlsafe(24)}"
        self._replica_count = replicas
        self._pgbouncer_settings = pgbouncer_settings
        self.servers: list[Postgres] = []
        self.bouncers: dict[str, PgBouncer] = {}
        self.primary: Postgres
        self._no_primary = False
        self._rejoining: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._guard = Guard(Account())
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Lab {self.branch}>"

    # --- what it is ---

    @property
    def url(self) -> str:
        """The application role's URL."""
        return self.url_of("app", self.password)

    def url_of(self, role: str, password: str) -> str:
        """Return the URL of a role."""
        ports = self.edge.ports
        return (
            f"postgresql://{role}.{self.branch}:{quote(password, safe='')}@localhost:{ports['direct']}/postgres"
            f"?sslmode=verify-full&sslrootcert={quote(str(self._ca), safe='/')}"
            f"&ps_direct_port={ports['direct']}&ps_pooled_port={ports['pooled']}"
        )

    @property
    def topology(self) -> Topology:
        """The primary through `write-pool`, the replicas through `read-pool`, and the direct path."""
        return Topology.from_url(self.url, bouncer=WRITE_POOL, replica_bouncer=READ_POOL)

    @property
    def replicas(self) -> list[Postgres]:
        """The servers that are not the primary, running or not."""
        return [server for server in self.servers if server is not self.primary]

    def sql(self, query: str, *params: object, server: str | None = None, dbname: str = "postgres") -> list[tuple[Any, ...]]:
        """Run one statement as the superuser, past edge and bouncers, on the primary or a server by name."""
        return self._server(server).sql(query, *params, dbname=dbname)

    @contextmanager
    def round_trips(self) -> Iterator[RoundTrips]:
        """Count the round trips of all clients within the block."""
        with self.edge.round_trips() as counter:
            yield counter

    def log_tail(self, name: str, size: int = 4000) -> str:
        """Return the end of the log of a server or bouncer."""
        log = self._guard.folder / f"{name}.log"
        return log.read_text(errors="replace")[-size:]

    def pids(self) -> list[int]:
        """Return the processes of the servers and bouncers."""
        return list(self._guard.pids())

    # --- what happens to it ---

    def switchover(self) -> Postgres:
        """Change the primary as in planned maintenance, and return the new one.

        Transactions through the bouncers wait, and no connection to them breaks; direct connections do.
        """
        self._settle()
        local = self.bouncers[LOCAL]
        local.admin("PAUSE")
        try:
            self._no_primary = True
            old = self.primary
            old.stop(signal.SIGINT)
            new = self._promote()
            old.follow(new)
            old.start()
            self._point()
        finally:
            self._no_primary = False
            local.admin("RESUME")
        return new

    def crash_primary(self, detection: float = 2.0) -> Postgres:
        """Kill the primary; after `detection` seconds promote the replica that received most WAL, and return it.

        The old one rejoins in the background.
        """
        self._settle()
        old = self.primary
        self._no_primary = True
        try:
            old.stop(signal.SIGKILL)
            time.sleep(detection)
            new = self._promote()
            self._point()
        finally:
            self._no_primary = False
        self._rejoining = threading.Thread(target=self._rejoin, args=(old,), name="ps-lab-rejoin", daemon=True)
        self._rejoining.start()
        return new

    def crash_replica(self, index: int = 0) -> Postgres:
        """Kill a replica and leave it down; `restart_replica` brings it back. The replica bouncer goes on with the others."""
        self._settle()
        replica = self.replicas[index]
        replica.stop(signal.SIGKILL)
        self._point()
        return replica

    def restart_replica(self, index: int = 0) -> None:
        """Bring a crashed replica back."""
        replica = self.replicas[index]
        if not replica.running:
            replica.start()
            self._point()

    def restart_bouncer(self, name: str) -> None:
        """Kill a bouncer ("local", "write-pool", "read-pool") and start it again."""
        self.bouncers[name].stop()
        self.bouncers[name].start()

    def pause(self) -> None:
        """PAUSE the local bouncer: transactions wait."""
        self.bouncers[LOCAL].admin("PAUSE")

    def resume(self) -> None:
        """RESUME the local bouncer."""
        self.bouncers[LOCAL].admin("RESUME")

    def set_replay_delay(self, seconds: float) -> None:
        """Let the replicas replay each commit this many seconds after it was made; 0 ends that at once."""
        for replica in self.replicas:
            if replica.running:
                replica.sql(f"ALTER SYSTEM SET recovery_min_apply_delay = {int(seconds * 1000)}")
                replica.sql("SELECT pg_reload_conf()")
        if not seconds:
            self.wait_replicas_caught_up()

    def wait_replicas_caught_up(self) -> None:
        """Return when all running replicas have replayed what the primary has written."""
        position = self.sql("SELECT pg_current_wal_flush_lsn()::text")[0][0]
        for replica in self.replicas:
            if replica.running:
                wait_until(
                    lambda replica=replica: replica.sql(f"SELECT pg_last_wal_replay_lsn() >= '{position}'")[0][0],  # type: ignore[misc]
                    f"replay on {replica.name}",
                )

    def close(self) -> None:
        """End everything."""
        if self._rejoining is not None:
            self._rejoining.join(60)
        if hasattr(self, "edge"):
            self.edge.close()
        self._guard.close()

    # --- how it is made ---

    def _start(self) -> None:
        account, folder = self._guard.account, self._guard.folder
        self._ca = folder / "ca.pem"
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(self._ca))
        certificate = folder / "edge.pem"
        certificate.touch(mode=0o600)
        authority.issue_cert("localhost", "127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(certificate))

        binaries = Binaries(account, folder)
        self.servers = [Postgres(f"pg-{number}", self._guard, binaries) for number in range(1, self._replica_count + 2)]
        self.primary = self.servers[0]
        self.primary.init()
        self.primary.start()
        self._make_roles()
        for replica in self.replicas:
            replica.clone(self.primary)
            replica.start()
        self._start_bouncers()
        self.edge = Edge(self._route, certificate, {"direct": free_port(), "pooled": free_port()})
        self.edge.start()

    def _make_roles(self) -> None:
        # No replica is there yet that could confirm a commit.
        for statement in (
            "SET synchronous_commit = local",
            f"CREATE ROLE app LOGIN PASSWORD '{self.password}'",
            "GRANT pg_read_all_data, pg_write_all_data TO app",
            "GRANT CREATE ON SCHEMA public TO app",
            "GRANT CREATE ON DATABASE postgres TO app",
        ):
            self.primary.sql(f"SET synchronous_commit = local; {statement}")

    def _start_bouncers(self) -> None:
        folder = self._guard.folder
        binary = find_pgbouncer(self._guard.account, folder)
        passwords = {"app": self.password, ADMIN: secrets.token_urlsafe(24)}
        self._point(tell=False)
        replicas = ",".join(str(folder / f"replica-{number}") for number in range(1, self._replica_count + 1))
        targets = {
            LOCAL: (f"host={folder / 'primary'} port=5432", {}),
            WRITE_POOL: (f"host={folder / f'{LOCAL}.b'} port=6432", {}),
            # Server connections for every replica, of which each transaction takes the next.
            READ_POOL: (f"host={replicas} port=5432", {"server_round_robin": 1, "min_pool_size": 2 * self._replica_count}),
        }
        for name, (target, own) in targets.items():
            settings = {**own, **self._pgbouncer_settings}
            self.bouncers[name] = PgBouncer(name, self._guard, binary, target=target, passwords=passwords, **settings)
            self.bouncers[name].start()
        self._spread()

    def _spread(self) -> None:
        """Let the replica bouncer connect to all replicas now: it makes a server connection only when none is idle."""
        bouncer = self.bouncers[READ_POOL]
        with ExitStack() as stack:
            for _ in range(2 * self._replica_count):
                conn = psycopg.connect(
                    host=str(bouncer.socket_folder), port=6432, user="app", password=self.password, dbname="postgres"
                )
                stack.enter_context(conn)
                conn.execute("SELECT")

    # --- how it changes ---

    def _server(self, name: str | None) -> Postgres:
        if name is None or name == "primary":
            return self.primary
        return next(server for server in self.servers if server.name == name)

    def _settle(self) -> None:
        """Wait until the server that crashed last is back."""
        if self._rejoining is not None:
            self._rejoining.join()
            self._rejoining = None
        wait_until(lambda: any(replica.running for replica in self.replicas), "a running replica")

    def _promote(self) -> Postgres:
        """Promote the replica that has received most WAL, or commits that were acknowledged would be lost."""
        running = [replica for replica in self.replicas if replica.running]
        new = max(running, key=Postgres.received)
        new.promote()
        self.primary = new
        for replica in running:
            if replica is not new:
                replica.follow(new)
        return new

    def _rejoin(self, old: Postgres) -> None:
        old.rewind(self.primary)
        old.start()
        self._point()

    def _point(self, *, tell: bool = True) -> None:
        """Let the bouncers' targets, which are symbolic links, lead to the servers as they are now."""
        running = [replica for replica in self.replicas if replica.running] or self.replicas
        links = {f"replica-{number}": running[(number - 1) % len(running)] for number in range(1, self._replica_count + 1)}
        for name, server in {"primary": self.primary, **links}.items():
            link = self._guard.folder / name
            temporary = link.with_suffix(".new")
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(server.socket_folder)
            temporary.rename(link)
        if tell:
            # A connection to a replica that was promoted stays open, and would serve as a replica from then on.
            for name in (LOCAL, READ_POOL):
                if self.bouncers[name].running:
                    self.bouncers[name].admin("RECONNECT")

    def _route(self, port: Port, user: str) -> Route:
        name, _, suffix = user.partition("|")
        role, dot, branch = name.rpartition(".")
        if not dot:
            raise EdgeError("28000", "invalid user format: username must include branch (e.g., user.branch)")
        if branch != self.branch:
            raise EdgeError("28000", f"branch {branch} does not exist")
        if port == "pooled":
            if suffix == "replica":
                raise EdgeError("28000", f"pooler only supports primary destinations for branch {branch}")
            bouncer = self.bouncers.get(suffix or LOCAL)
            if bouncer is None or (suffix == LOCAL):
                raise EdgeError("28000", f"member {suffix} not found in branch {branch}")
            return Route("replica" if bouncer.name == READ_POOL else "primary", bouncer.socket, role)
        if suffix == "replica":
            running = [replica for replica in self.replicas if replica.running]
            if not running:
                raise EdgeError("08006", f"no replica available for branch {branch}")
            return Route("replica", secrets.choice(running).socket, role)
        if suffix:
            raise EdgeError("28000", f"member {suffix} not found in branch {branch}")
        if self._no_primary:
            raise EdgeError("08006", f"no primary available for branch {branch}")
        return Route("direct", self.primary.socket, role)
