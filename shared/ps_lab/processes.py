"""Starting, watching and ending the lab's server processes."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ps_lab import _guard

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

__all__ = ["Account", "Guard", "wait_until"]


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


class Account:
    """The account that servers run as: PostgreSQL refuses to run as root."""

    def __init__(self) -> None:
        self._entry: pwd.struct_passwd | None = None
        if os.geteuid() == 0:
            for name in ("postgres", "nobody"):
                with contextlib.suppress(KeyError):
                    self._entry = pwd.getpwnam(name)
                    break

    def own(self, path: Path) -> None:
        """Give `path` to the account."""
        if self._entry is not None:
            os.chown(path, self._entry.pw_uid, self._entry.pw_gid)

    def options(self) -> dict[str, Any]:
        """Return the arguments of `subprocess.Popen` that run a program as this account."""
        if self._entry is None:
            return {}
        return {"user": self._entry.pw_uid, "group": self._entry.pw_gid, "extra_groups": []}


class Guard:
    """Starts processes, and sees to it that none of them outlives this one.

    `ps_lab._guard` does that where `close` cannot: after SIGKILL, SIGTERM, a second Ctrl-C.
    """

    def __init__(self, account: Account) -> None:
        self.account = account
        # Not the default temporary directory: the path of a Unix socket must be short, and macOS has a long one.
        self.folder = Path(os.path.realpath("/tmp")) / f"pslab-{secrets.token_hex(6)}"  # noqa: S108
        self._processes: dict[subprocess.Popen[bytes], signal.Signals] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", _guard.__file__, str(os.getpid()), str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )
        self.folder.mkdir(mode=0o700)
        account.own(self.folder)

    def start(
        self, command: Sequence[str | Path], log: Path, ending: signal.Signals, *, control: socket.socket | None = None
    ) -> subprocess.Popen[bytes]:
        """Start `command` as the account, its output appended to `log`. `ending` is the signal that ends it at once, and cleanly.

        With `control`, which becomes its standard input, it is a Python of ours and runs as we do: the account may not be able
        to reach it.

        Raises:
            RuntimeError: the lab is closing.
        """
        with log.open("ab") as output:
            if control is None:
                return self._start(command, ending, stdout=output, **self.account.options())
            return self._start(command, ending, stdout=output, stdin=control)

    def run(self, command: Sequence[str | Path]) -> str:
        """Run `command` as the account to its end, and return what it printed.

        Raises:
            RuntimeError: it failed (the message has the end of what it printed), or the lab is closing.
        """
        process = self._start(command, signal.SIGTERM, stdout=subprocess.PIPE, **self.account.options())
        try:
            printed = process.communicate()[0].decode(errors="replace")
        finally:
            self.end(process, signal.SIGKILL)
            if process.stdout is not None:
                process.stdout.close()
        if process.returncode:
            raise RuntimeError(f"{Path(command[0]).name} failed with status {process.returncode}: {printed[-2000:]}")
        return printed

    def end(self, process: subprocess.Popen[bytes], how: signal.Signals, *, timeout: float = 30.0) -> None:
        """Send `how` to a process (SIGKILL: to all of its descendants, too) and wait until it is gone."""
        if process.poll() is None:
            if how == signal.SIGKILL:
                _guard.kill_tree(process.pid)
            else:
                process.send_signal(how)
        process.wait(timeout)
        if self._processes.pop(process, None) is not None:
            self._tell(process.pid, 0)

    def close(self) -> None:
        """End what still runs, and remove the directory."""
        with self._lock:
            self._closed = True
        for process, ending in list(self._processes.items()):
            process.send_signal(ending)
        for process in list(self._processes):
            try:
                process.wait(_guard.GRACE)
            except subprocess.TimeoutExpired:
                _guard.kill_tree(process.pid)
            self.end(process, signal.SIGKILL)
        _guard.remove(self.folder)
        if self._guard.stdin is not None:
            self._guard.stdin.close()
        self._guard.kill()
        self._guard.wait()

    def pids(self) -> list[int]:
        """Return the processes that were started and not ended, the guard included."""
        return [self._guard.pid, *(process.pid for process in list(self._processes))]

    def _start(self, command: Sequence[str | Path], ending: signal.Signals, **options: Any) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._closed:
                raise RuntimeError(f"{Path(command[0]).name} is not started: the lab is closing")
            process: subprocess.Popen[bytes] = subprocess.Popen(
                [str(word) for word in command],
                # A session of its own: a terminal's Ctrl-C does not reach it.
                **{"stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT, "start_new_session": True, "cwd": "/", **options},
            )
            self._processes[process] = ending
            self._tell(process.pid, ending)
            return process

    def _tell(self, pid: int, how: int) -> None:
        if self._guard.stdin is not None and not self._guard.stdin.closed:
            self._guard.stdin.write(f"{pid} {int(how)}\n".encode())
            self._guard.stdin.flush()
