"""`Lab`: a local PlanetScale. One primary, replicas, three PgBouncers and the edge, on loopback, gone when the block ends."""

from __future__ import annotations

import os
import re
import secrets
import select
import signal
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import quote

import psycopg
import trustme
from psycopg.sql import SQL, Identifier

from ps_core.topology import Topology, parse_transport
from ps_lab.edge import Edge, checked_seconds
from ps_lab.pgbouncer import ADMIN, AppSideBouncer, PgBouncer, find_pgbouncer, scram_secret
from ps_lab.postgres import SUPERUSER, Binaries, Postgres
from ps_lab.processes import Account, Guard, wait_until
from ps_lab.routes import Routes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ps_lab.edge import RoundTrips

__all__ = ["Lab"]

_ALPHABET: Final = "abcdefghijklmnopqrstuvwxyz0123456789"
_ROLE: Final = re.compile("[a-z_][a-z0-9_]{0,62}")
_CREATE_ROLE: Final = SQL(
    "SET LOCAL synchronous_commit = {synchronous_commit}; CREATE ROLE {role} LOGIN PASSWORD {password};"
    " GRANT pg_read_all_data, pg_write_all_data TO {role}; GRANT CREATE ON SCHEMA public TO {role};"
    " GRANT CREATE ON DATABASE postgres TO {role}"
)
_ALTER_ROLE: Final = SQL("ALTER ROLE {role} PASSWORD {password}")
_DROP_ROLE: Final = SQL("REASSIGN OWNED BY {role} TO {app}; DROP OWNED BY {role}; DROP ROLE {role}")
_IS_USED_BY = "SELECT count(*) FROM pg_stat_activity WHERE usename = %s"
# What was flushed until now may end within a record, of which the rest can take another 15 s in a server that is idle.
_FLUSH = "SELECT pg_logical_emit_message(true, 'ps_lab', '')::text, set_config('synchronous_commit', 'local', true)"
LOCAL, WRITE_POOL, READ_POOL = "local", "write-pool", "read-pool"
APP: Final = "app"


class Lab:
    """A local PlanetScale.

    `with Lab() as lab:` starts it; `lab.url` is a role's URL as PlanetScale shows it (with the ports, which are not the usual
    ones), `lab.topology` what the packages make of it with both dedicated bouncers. `postgres` is the bin folder of a server, and
    `pgbouncer` the path of the program; the environment may name them, too: PS_LAB_POSTGRES and PS_LAB_PGBOUNCER. A server that
    is named so may be older than PlanetScale's, from PostgreSQL 15 on: before 17 there is no `transaction_timeout`.
    `pgbouncer_settings` go into the ini of all bouncers, as in `server_login_retry=15`. With `app_side_bouncer`, `url` and
    `topology` lead to a PgBouncer on the application's side, in front of the dedicated ones (`ps_core.pgbouncer`).
    `transport="websocket"` (PS_LAB_TRANSPORT) lets both ask for connections over the WebSocket.

    Raises:
        ValueError: `replicas` is not from 1 to 8, or there is a bouncer on the application's side with `transport="websocket"`.
        RuntimeError: on entering, a program is missing, or does not start.
    """

    def __init__(
        self,
        replicas: int = 2,
        *,
        postgres: str | Path | None = None,
        pgbouncer: str | Path | None = None,
        app_side_bouncer: bool = False,
        transport: str | None = None,
        **pgbouncer_settings: object,
    ) -> None:
        if type(replicas) is not int or not 1 <= replicas <= 8:
            raise ValueError("replicas: write a number from 1 to 8: COMMIT waits for one of them")
        self.branch = "".join(secrets.choice(_ALPHABET) for _ in range(12))
        self._passwords = {APP: _new_password(), ADMIN: _new_password()}
        self._replica_count = replicas
        self._postgres = postgres
        self._pgbouncer = pgbouncer
        self._pgbouncer_settings = pgbouncer_settings
        self._has_app_side = app_side_bouncer
        if transport is None and not app_side_bouncer:
            transport = os.environ.get("PS_LAB_TRANSPORT")
        self._transport = parse_transport(transport, name="transport")
        if app_side_bouncer and self._transport != "tcp":
            raise ValueError('a bouncer on the application\'s side connects by TCP: write transport="tcp", or leave it out')
        self.app_side: AppSideBouncer | None = None
        self.servers: list[Postgres] = []
        self.bouncers: dict[str, PgBouncer] = {}
        self.primary: Postgres
        self._replay_delay = 0.0
        self._stale: set[Postgres] = set()
        """Those that were down while another one was promoted: they may have what it never had."""
        self._rejoining: Future[None] | None = None
        self._stack = ExitStack()
        self._owner: int | None = None

    def __enter__(self) -> Self:
        self._owner = os.getpid()
        with ExitStack() as stack:
            self._background = ThreadPoolExecutor(1, "ps-lab-rejoin")
            stack.callback(self._background.shutdown)
            self._guard = Guard(Account())
            stack.callback(self._guard.close)
            self._start(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Lab {self.branch}>"

    # --- what it is ---

    @property
    def url(self) -> str:
        """The application role's URL."""
        return self.app_side.url if self.app_side else self.url_of(APP)

    def url_of(self, role: str) -> str:
        """Return the URL of a role."""
        ports, password = self.edge.ports, quote(self._passwords[role], safe="")
        return (
            f"postgresql://{role}.{self.branch}:{password}@localhost:{ports['direct']}/postgres"
            f"?sslmode=verify-full&sslrootcert={quote(str(self._ca), safe='/')}"
            f"&ps_direct_port={ports['direct']}&ps_pooled_port={ports['pooled']}&ps_https_port={ports['https']}"
            + ("" if self._transport == "tcp" else f"&ps_transport={self._transport}")
        )

    @property
    def topology(self) -> Topology:
        """The primary through `write-pool`, the replicas through `read-pool`, and the direct path."""
        return Topology.from_url(self.url) if self.app_side else self._dedicated()

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
        """Return the processes that the lab has started: servers, bouncers, edge and their guard."""
        return self._guard.pids()

    # --- who may use it ---

    def create_role(self, name: str) -> str:
        """Make a role with the rights of `app`, known on every path, and return its URL.

        Raises:
            ValueError: there is such a role, or the name is none.
        """
        if not _ROLE.fullmatch(name) or name in self._passwords:
            raise ValueError(f"{name!r}: write a new name of lower-case letters, digits and underscores")
        self._passwords[name] = _new_password()
        self._make_role(name)
        self._tell_roles(name)
        return self.url_of(name)

    def set_password(self, name: str, password: str | None = None) -> str:
        """Give a role another password, a random one by default, and return its URL. What is connected stays connected."""
        self._passwords[self._role(name)] = password or _new_password()
        self.sql(_ALTER_ROLE.format(role=Identifier(name), password=scram_secret(self._passwords[name])).as_string(None))
        self._tell_roles(name)
        return self.url_of(name)

    def drop_role(self, name: str) -> None:
        """Remove a role, and break its connections. What it owns goes to `app`."""
        if self._role(name) == APP:
            raise ValueError("app stays: the lab uses it itself; write a role that create_role made")
        (identity,) = self.sql("SELECT oid FROM pg_roles WHERE rolname = %s", name)
        del self._passwords[name]
        self.sql(_DROP_ROLE.format(role=Identifier(name), app=Identifier(APP)).as_string(None))
        self._tell_roles()
        for server in self.servers:
            if server.running:
                server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usesysid = %s", *identity)

    # --- what happens to it ---

    def switchover(self, drain: float = 30.0) -> Postgres:
        """Change the primary as in planned maintenance, and return the new one.

        Transactions through the bouncers wait, and no connection to them breaks; direct connections do. Transactions that have
        not ended after `drain` seconds are broken, too (PlanetScale's limit is 30 s).

        Raises:
            RuntimeError: no replica runs.
        """
        self._candidates()
        wait_until(lambda: self.sql("SELECT 1 FROM pg_stat_replication WHERE state = 'streaming'"), "a replica that streams")
        local = self.bouncers[LOCAL]
        local.pause(drain)
        try:
            self._tell_edge(no_primary=True)
            old = self.primary
            old.stop(signal.SIGINT)
            new = self._promote()
            old.follow(new)
            old.start()
            self._point()
        finally:
            local.admin("RESUME")
        self._spread()
        return new

    def crash_primary(self, detection: float = 2.0) -> Postgres:
        """Kill the primary; after `detection` seconds promote the replica that received most WAL, and return it.

        The old one rejoins in the background; what is called next waits for that.

        Raises:
            RuntimeError: no replica runs.
        """
        self._candidates()
        old = self.primary
        self._tell_edge(no_primary=True)
        old.stop(signal.SIGKILL)
        time.sleep(detection)
        new = self._promote()
        self._point()
        self._rejoining = self._background.submit(self._rejoin, old)
        return new

    def crash_replica(self, index: int = 0) -> Postgres:
        """Kill `replicas[index]` and leave it down until `restart_replica`. The replica bouncer goes on with the others."""
        self._settle()
        replica = self._replica(index)
        replica.stop(signal.SIGKILL)
        self._point()
        return replica

    def restart_replica(self, index: int | None = None) -> None:
        """Bring back `replicas[index]`, or all that are down."""
        self._settle()
        for replica in self.replicas if index is None else [self._replica(index)]:
            if not replica.running:
                if replica in self._stale:
                    replica.clone(self.primary)
                    self._stale.discard(replica)
                replica.start()
                self._set_replay_delay(replica)
        self._point()
        self._spread()

    def restart_bouncer(self, name: str) -> None:
        """Kill a bouncer ("local", "write-pool", "read-pool") and start it again."""
        self._settle()
        if name not in self.bouncers:
            raise ValueError(f"write a bouncer's name, {', '.join(map(repr, self.bouncers))}, not {name!r}")
        self.bouncers[name].stop()
        self.bouncers[name].start()
        if name == READ_POOL:
            self._spread()

    def pause(self, drain: float = 30.0) -> None:
        """PAUSE the local bouncer: transactions wait until `resume`.

        Returns when those that run have ended, and after `drain` seconds at the latest.
        """
        self.bouncers[LOCAL].pause(drain)

    def resume(self) -> None:
        """RESUME the local bouncer."""
        self.bouncers[LOCAL].admin("RESUME")

    def set_replay_delay(self, seconds: float) -> None:
        """Let the replicas replay each commit this many seconds after it was made; 0 ends that at once."""
        self._settle()
        self._replay_delay = checked_seconds(seconds)
        for server in self.servers:  # the primary, too: it will be a replica
            if server.running:
                self._set_replay_delay(server)
        if not seconds:
            self.wait_replicas_caught_up()

    def wait_replicas_caught_up(self, timeout: float = 30.0) -> None:
        """Return when all running replicas have replayed what the primary has written by now.

        Raises:
            TimeoutError: they have not within `timeout` seconds, apart from the replay delay.
        """
        self._settle()
        position, _ = self.sql(_FLUSH)[0]
        for replica in self.replicas:
            if replica.running:
                replica.wait_replayed(position, timeout + self._replay_delay)

    def close(self) -> None:
        """End everything. In a forked child: nothing, for it is the parent's."""
        if os.getpid() == self._owner:
            self._stack.close()

    # --- how it is made ---

    def _start(self, stack: ExitStack) -> None:
        folder = self._guard.folder
        self._ca = folder / "ca.pem"
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(self._ca))
        certificate = folder / "edge.pem"
        certificate.touch(mode=0o600)
        authority.issue_cert("localhost", "127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(certificate))

        self.edge = Edge(self._guard, certificate)
        stack.callback(self.edge.close)

        binaries, pgbouncer = Binaries(self._guard, self._postgres), find_pgbouncer(self._guard, self._pgbouncer)
        self.servers = [Postgres(f"pg-{number}", self._guard, binaries) for number in range(1, self._replica_count + 2)]
        self.primary = self.servers[0]
        self.primary.init()
        self.primary.start()
        self._make_role(APP, synchronous_commit="local")  # no replica is there yet that could confirm a commit
        for replica in self.replicas:
            replica.clone(self.primary)
            replica.start()
        self._start_bouncers(pgbouncer)
        self._tell_edge()
        if self._has_app_side:
            app_side = AppSideBouncer(self._guard, pgbouncer, self._dedicated(), admin_password=self._passwords[ADMIN])
            app_side.start()
            self.app_side = app_side

    def _dedicated(self) -> Topology:
        """Return the topology of `app` without a bouncer on the application's side."""
        return Topology.from_url(self.url_of(APP), bouncer=WRITE_POOL, replica_bouncer=READ_POOL)

    def _start_bouncers(self, binary: str) -> None:
        folder = self._guard.folder
        self._point(tell=False)
        replicas = ",".join(str(folder / f"replica-{number}") for number in range(1, self._replica_count + 1))
        targets: dict[str, tuple[str, dict[str, object]]] = {
            LOCAL: (f"host={folder / 'primary'} port=5432", {}),
            WRITE_POOL: (f"host={folder / f'{LOCAL}.b'} port=6432", {}),
            # Server connections for every replica, of which each transaction takes the next.
            READ_POOL: (f"host={replicas} port=5432", {"server_round_robin": 1, "min_pool_size": 2 * self._replica_count}),
        }
        for name, (target, own) in targets.items():
            settings = {**own, **self._pgbouncer_settings}
            self.bouncers[name] = PgBouncer(name, self._guard, binary, target=target, passwords=self._passwords, **settings)
            self.bouncers[name].start()
        self._spread()

    def _spread(self) -> None:
        """Let the replica bouncer connect to all replicas now: it makes a server connection only when none is idle.

        What the bouncer's limits do not allow does not happen, and a pool that is short fills by `min_pool_size` in a second.
        """
        bouncer = self.bouncers[READ_POOL]
        if not bouncer.running or not any(replica.running for replica in self.replicas):
            return
        for role in self._passwords.keys() - {ADMIN}:
            # As many as the pool keeps; more and longer, where it has filled up with the other replicas.
            for more in range(1, 4):
                with ExitStack() as stack, suppress(psycopg.OperationalError):
                    number = 2 * more * self._replica_count
                    busy = [stack.enter_context(closing(bouncer.connect(role, "postgres"))) for _ in range(number)]
                    for conn in busy:
                        conn.pgconn.send_query(b"SELECT pg_sleep(%a)" % (0.02 * more**2))
                    for conn in busy:
                        select.select([conn], [], [], 2)
                if all(server.sql(_IS_USED_BY, role) != [(0,)] for server in self.replicas if server.running):
                    break

    def _make_role(self, name: str, synchronous_commit: str = "on") -> None:
        query = _CREATE_ROLE.format(
            synchronous_commit=Identifier(synchronous_commit), role=Identifier(name), password=scram_secret(self._passwords[name])
        )
        self.sql(query.as_string(None))

    def _role(self, name: str) -> str:
        if name == ADMIN or name not in self._passwords:
            raise ValueError(f"there is no role {name!r}")
        return name

    def _tell_roles(self, role: str | None = None) -> None:
        self.wait_replicas_caught_up()
        self._tell_edge()
        for bouncer in self.bouncers.values():
            bouncer.reload()
        if self.app_side:
            self.app_side.topology = self._dedicated()
            self.app_side.reload()
        if role:
            self._log_in_anew(role)
        self._spread()

    def _log_in_anew(self, role: str) -> None:
        """Let the bouncers learn the SCRAM keys of a new password, which they have from the login of a client only.

        One that leads to another bouncer keeps its connections open there, so that the other would never see a login.
        """
        bouncer = self.bouncers[WRITE_POOL]
        if bouncer.running:
            bouncer.admin("RECONNECT")
            with suppress(psycopg.OperationalError), closing(bouncer.connect(role, "postgres")) as conn:
                conn.pgconn.send_query(b"SELECT")
                select.select([conn], [], [], 2)

    # --- how it changes ---

    def _server(self, name: str | None) -> Postgres:
        if name is None or name == "primary":
            return self.primary
        for server in self.servers:
            if server.name == name:
                return server
        raise ValueError(f'{name!r}: write "primary" or one of {", ".join(server.name for server in self.servers)}')

    def _replica(self, index: int) -> Postgres:
        if index not in range(len(self.replicas)):
            raise ValueError(f"there are {len(self.replicas)} replicas: write the number of one, from 0 on, not {index!r}")
        return self.replicas[index]

    def _settle(self) -> None:
        """Wait until the server that crashed last is back."""
        if self._rejoining is not None:
            rejoining, self._rejoining = self._rejoining, None
            rejoining.result()

    def _candidates(self) -> list[Postgres]:
        """Return the replicas that could be promoted."""
        self._settle()
        running = [replica for replica in self.replicas if replica.running]
        if not running:
            raise RuntimeError("no replica runs that could be promoted: call restart_replica() first")
        return running

    def _promote(self) -> Postgres:
        """Promote the replica that has received most WAL, or commits that were acknowledged would be lost."""
        running = self._candidates()
        self._stale |= {replica for replica in self.replicas if not replica.running}
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
        self._spread()

    def _set_replay_delay(self, server: Postgres) -> None:
        milliseconds = int(self._replay_delay * 1000)
        asked = "SELECT setting FROM pg_settings WHERE name = 'recovery_min_apply_delay'"

        def is_set() -> bool:
            with suppress(psycopg.errors.SerializationFailure):  # replay may cancel what a replica is asked
                server.sql(f"ALTER SYSTEM SET recovery_min_apply_delay = {milliseconds}")
                server.sql("SELECT pg_reload_conf()")
                return server.sql(asked) == [(str(milliseconds),)]
            return False

        wait_until(is_set, f"replay delay of {server.name}")

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
            self._tell_edge()
            # A connection to a replica that was promoted stays open, and would serve as a replica from then on.
            for name in (LOCAL, READ_POOL):
                if self.bouncers[name].running:
                    self.bouncers[name].admin("RECONNECT")

    def _tell_edge(self, *, no_primary: bool = False) -> None:
        """Tell the edge where new connections go."""
        self.edge.route(
            Routes(
                branch=self.branch,
                local=self.bouncers[LOCAL].socket,
                bouncers={name: bouncer.socket for name, bouncer in self.bouncers.items() if name != LOCAL},
                replica_bouncers=[READ_POOL],
                primary=self.primary.socket if self.primary.running and not no_primary else None,
                replicas=[replica.socket for replica in self.replicas if replica.running],
                closed_roles=[SUPERUSER],
            )
        )


def _new_password() -> str:
    return f"pscale_pw_{secrets.token_urlsafe(24)}"
