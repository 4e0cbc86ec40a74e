"""Starting, watching and ending the lab's server processes.

Each server runs in a session of its own. A guard process holds the list of them: when the lab's own process is gone, however it
went, the guard reads end-of-file from its pipe, kills what is left and removes the lab's directory.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["Account", "Guard", "free_port", "wait_until"]

_GUARD = """
import os, shutil, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
groups = set()
for line in sys.stdin:
    verb, pid = line.split()
    (groups.add if verb == "+" else groups.discard)(int(pid))
for group in groups:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass
shutil.rmtree(sys.argv[1], ignore_errors=True)
"""


def wait_until(condition: Callable[[], object], what: str, *, timeout: float = 30.0, interval: float = 0.02) -> None:
    """Return as soon as `condition()` is true.

    Raises:
        TimeoutError: it is not within `timeout` seconds.
    """
    until = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(f"{what}: not within {timeout:g} s")
        time.sleep(interval)


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Account:
    """The account that servers run as: PostgreSQL refuses to run as root."""

    def __init__(self) -> None:
        self.name: str | None = None
        if os.geteuid() == 0:
            for name in ("postgres", "nobody"):
                with contextlib.suppress(KeyError):
                    pwd.getpwnam(name)
                    self.name = name
                    break

    def own(self, path: Path) -> None:
        """Give `path` to the account."""
        if self.name is not None:
            entry = pwd.getpwnam(self.name)
            os.chown(path, entry.pw_uid, entry.pw_gid)

    def options(self) -> dict[str, object]:
        """Return the arguments for `subprocess` that run a program as this account."""
        if self.name is None:
            return {}
        entry = pwd.getpwnam(self.name)
        return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}

    def can_run(self, program: Path | str) -> bool:
        """Return whether the account may reach and run `program`: it may not below another's home, such as /root."""
        try:
            self.run([program, "--version"])
        except (PermissionError, FileNotFoundError):
            return False
        return True

    def run(self, command: Sequence[str | Path], **kwargs: object) -> str:
        """Run `command` to its end and return what it printed.

        Raises:
            RuntimeError: it failed; the message has the end of what it printed.
        """
        done = subprocess.run(  # type: ignore[call-overload]
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            cwd="/",
            **self.options(),
            **kwargs,
        )
        if done.returncode:
            raise RuntimeError(f"{Path(str(command[0])).name} failed with status {done.returncode}: {done.stdout[-2000:]}")
        printed: str = done.stdout
        return printed


class Guard:
    """Starts processes, and sees to it that none of them outlives this one."""

    def __init__(self, account: Account) -> None:
        self.account = account
        # Not the default temporary directory: the path of a Unix socket must be short, and macOS has a long one.
        self.folder = Path(os.path.realpath("/tmp")) / f"pslab-{secrets.token_hex(6)}"  # noqa: S108
        self.folder.mkdir(mode=0o755)
        account.own(self.folder)
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _GUARD, str(self.folder)], stdin=subprocess.PIPE, start_new_session=True, cwd="/"
        )

    def start(self, command: Sequence[str | Path], log: Path) -> subprocess.Popen[bytes]:
        """Start `command` as the account, in a session of its own, its output appended to `log`."""
        with log.open("ab") as output:
            process: subprocess.Popen[bytes] = subprocess.Popen(  # type: ignore[call-overload]
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                cwd="/",
                **self.account.options(),
            )
        self._processes[process.pid] = process
        self._tell("+", process.pid)
        return process

    def end(self, process: subprocess.Popen[bytes], how: signal.Signals, *, timeout: float = 30.0) -> None:
        """Send `how` to a process (SIGKILL: to all of its session) and wait until it is gone."""
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if how == signal.SIGKILL else os.kill)(process.pid, how)
        process.wait(timeout)
        self._processes.pop(process.pid, None)
        self._tell("-", process.pid)

    def close(self) -> None:
        """Kill what still runs, and remove the directory."""
        for process in list(self._processes.values()):
            self.end(process, signal.SIGKILL)
        if self._guard.stdin is not None:
            self._guard.stdin.close()
        self._guard.wait(30)
        shutil.rmtree(self.folder, ignore_errors=True)

    def pids(self) -> Iterator[int]:
        """Yield the processes that were started and not ended."""
        yield from list(self._processes)

    def _tell(self, verb: str, pid: int) -> None:
        if self._guard.stdin is not None and not self._guard.stdin.closed:
            self._guard.stdin.write(f"{verb} {pid}\n".encode())
            self._guard.stdin.flush()
