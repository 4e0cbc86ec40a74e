"""One PgBouncer of the lab."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
import select
import shutil
import signal
import unicodedata
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

from ps_core.pgbouncer import Load, application_urls, pgbouncer_ini, userlist
from ps_lab.processes import wait_until

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

    from ps_core.topology import Topology
    from ps_lab.processes import Guard

__all__ = ["AppSideBouncer", "PgBouncer", "find_pgbouncer", "installed_pgbouncer", "release_of", "scram_secret"]

ADMIN = "ps_lab_admin"
_ITERATIONS = 4096


@cache
def scram_secret(password: str) -> str:
    """Return what server and poolers know of a password: its SCRAM secret (RFC 5802), the same for both.

    A pooler that has the password itself computes 4,096 hashes with each login, one client after the other.
    """
    salt = secrets.token_bytes(16)
    salted = hashlib.pbkdf2_hmac("sha256", unicodedata.normalize("NFKC", password).encode(), salt, _ITERATIONS)
    client, server = (hmac.digest(salted, text, "sha256") for text in (b"Client Key", b"Server Key"))
    encoded = (base64.b64encode(part).decode() for part in (salt, hashlib.sha256(client).digest(), server))
    return "SCRAM-SHA-256${}:{}${}:{}".format(_ITERATIONS, *encoded)


def installed_pgbouncer() -> str | None:
    """Return the path of the system's PgBouncer, or None."""
    # Debian has it in /usr/sbin, which is not on an ordinary user's PATH.
    return shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


def release_of(printed: str) -> tuple[int, int]:
    """Return the release, as in (1, 24), of what `pgbouncer --version` prints."""
    major, minor = printed.split()[1].split(".")[:2]
    return int(major), int(minor)


def find_pgbouncer(guard: Guard, path: str | Path | None = None) -> str:
    """Return a PgBouncer that the lab's account can run: `path`, PS_LAB_PGBOUNCER, or the system's.

    One in a folder that the account may not enter, such as /root, is copied.

    Raises:
        RuntimeError: there is none.
    """
    found = path or os.environ.get("PS_LAB_PGBOUNCER") or installed_pgbouncer()
    if found is None:
        raise RuntimeError("no PgBouncer: apt-get install pgbouncer (or brew, dnf), or name one in PS_LAB_PGBOUNCER")
    if not Path(found).is_file():
        raise RuntimeError(f"there is no PgBouncer at {found}")
    try:
        guard.run([found, "--version"])
    except PermissionError:
        return str(shutil.copy2(found, guard.folder / "pgbouncer"))
    return str(found)


class PgBouncer:
    """A PgBouncer in transaction mode, with the settings that PlanetScale documents. It listens on a Unix socket only."""

    def __init__(
        self, name: str, guard: Guard, binary: str, *, target: str, passwords: dict[str, str], **settings: object
    ) -> None:
        self.name = name
        self._guard = guard
        self._binary = binary
        self._target = target
        self._passwords = passwords
        self._settings = {
            "pool_mode": "transaction",
            "auth_type": "scram-sha-256",
            "default_pool_size": 20,
            "min_pool_size": 0,
            "max_client_conn": 100,
            "server_lifetime": 3600,
            "server_idle_timeout": 600,
            "query_wait_timeout": 120,
            "client_login_timeout": 60,
            "server_check_query": "select 1",
            "server_check_delay": 30,
            "ignore_startup_parameters": "extra_float_digits",
            # Upstream's default of 15 s turns each restart of a second into 15 s of errors; one test has it.
            "server_login_retry": 1,
        } | settings
        if self.version >= (1, 21):
            self._settings |= {"max_prepared_statements": 200, "track_extra_parameters": "IntervalStyle"}
        self.socket_folder = guard.folder / f"{name}.b"
        self.log = guard.folder / f"{name}.log"
        self.socket_folder.mkdir(mode=0o755)
        guard.account.own(self.socket_folder)
        self._process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return f"<PgBouncer {self.name} {'up' if self.running else 'down'}>"

    @cached_property
    def version(self) -> tuple[int, int]:
        """The release, as in (1, 24)."""
        return release_of(self._guard.run([self._binary, "--version"]))

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    @property
    def socket(self) -> str:
        """The path of the Unix socket."""
        return str(self.socket_folder / ".s.PGSQL.6432")

    def start(self) -> None:
        """Start it and wait until its console answers."""
        self._configure()
        for left in (self.socket, self.socket + ".lock"):
            Path(left).unlink(missing_ok=True)
        self._process = self._guard.start([self._binary, self._file("ini")], self.log, signal.SIGKILL)
        wait_until(self._answers, f"start of {self.name}")

    def stop(self, how: signal.Signals = signal.SIGKILL) -> None:
        """End it: SIGKILL is a crash; what SIGTERM, SIGINT and SIGQUIT mean differs between releases."""
        if self._process is not None:
            self._guard.end(self._process, how)
            self._process = None

    def signal(self, how: signal.Signals) -> None:
        """Send a signal and do not wait."""
        if self._process is not None:
            self._process.send_signal(how)

    def admin(self, command: str) -> list[tuple[Any, ...]]:
        """Run a command of the console (RESUME, SHOW POOLS, ...). `pause` is bounded in time; PAUSE is not."""
        with self.connect(ADMIN, "pgbouncer") as conn:
            cursor = conn.execute(command)
            return cursor.fetchall() if cursor.description else []

    def pause(self, timeout: float) -> bool:
        """Let transactions that run end, and new ones wait until RESUME.

        Returns whether they have ended within `timeout` seconds. New ones wait all the same.
        """
        conn = self.connect(ADMIN, "pgbouncer")
        try:
            conn.pgconn.send_query(b"PAUSE")
            if not select.select([conn], [], [], timeout)[0]:
                return False
            result = conn.pgconn.get_result()
            if result is not None and result.status == psycopg.pq.ExecStatus.FATAL_ERROR:
                raise psycopg.errors.error_from_result(result)
        finally:
            conn.close()
        return True

    def connect(self, role: str, dbname: str) -> psycopg.Connection[tuple[Any, ...]]:
        """Connect past the edge."""
        return psycopg.connect(
            host=str(self.socket_folder),
            port=6432,
            user=role,
            password=self._passwords[role],
            dbname=dbname,
            autocommit=True,
            cursor_factory=psycopg.ClientCursor,
            connect_timeout=5,
        )

    def reload(self, **settings: object) -> None:
        """Change settings; users and passwords are read anew, too."""
        self._settings |= settings
        self._configure()
        if self.running:
            self.admin("RELOAD")

    def _answers(self) -> bool:
        if not self.running:
            raise RuntimeError(f"{self.name} exited: {self.log.read_text()[-2000:]}")
        try:
            self.admin("SHOW VERSION")
        except psycopg.OperationalError:
            return False
        return True

    def _secrets(self) -> Iterator[tuple[str, str]]:
        # 1.25 with a secret: if the first login after it read the file fails, no later one teaches it the keys for the server
        # (upstream's pull request 1504 mends that). With the password it computes the hashes once, and keeps them.
        plain = self.version == (1, 25)
        for role, password in self._passwords.items():
            yield role, password if plain else scram_secret(password)

    def _users(self) -> str:
        return "".join('"{}" "{}"\n'.format(*(text.replace('"', '""') for text in pair)) for pair in self._secrets())

    def _ini(self) -> str:
        settings = self._settings | {
            "listen_port": 6432,
            "unix_socket_dir": self.socket_folder,
            "auth_file": self._file("users"),
        }
        return f"[databases]\n* = {self._target}\n[pgbouncer]\n" + "".join(f"{name} = {settings[name]}\n" for name in settings)

    def _configure(self) -> None:
        console = f"admin_users = {ADMIN}\nstats_period = 3600\n"
        for kind, text in (("users", self._users()), ("ini", self._ini() + console)):
            path = self._file(kind)
            if not path.exists():
                path.touch(mode=0o600)
            later = int(path.stat().st_mtime) + 1
            path.write_text(text)
            # RELOAD reads the users only where the time of their file, in whole seconds, has changed.
            os.utime(path, (later, later))
            self._guard.account.own(path)

    def _file(self, kind: str) -> Path:
        return self._guard.folder / f"{self.name}.{kind}"


class AppSideBouncer(PgBouncer):
    """One on the application's side, with the ini that `ps-postgres pgbouncer` writes for `topology`."""

    def __init__(self, guard: Guard, binary: str, topology: Topology, *, admin_password: str) -> None:
        super().__init__("app-side", guard, binary, target="", passwords={ADMIN: admin_password})
        self.topology = topology
        """What it leads to; `reload` makes a change of it hold."""

    @property
    def url(self) -> str:
        """What the application connects to then."""
        urls = application_urls(self.topology, listen=str(self.socket_folder))
        ps = ((name, ",".join(url.render(hide_password=False) for url in urls[name])) for name in ("direct_url", "replica_urls"))
        return replace(urls["url"][0], ps=tuple(ps)).render(hide_password=False)

    def _users(self) -> str:
        return super()._users() + userlist(self.topology)

    def _ini(self) -> str:
        return pgbouncer_ini(
            self.topology,
            Load(workers=4, pool_size=10),
            auth_file=str(self._file("users")),
            listen=str(self.socket_folder),
            version=self.version,
        )
