"""The process that carries the connections: how it is started, and what it is told.

There is one for each process that connects by WebSockets, from the first connection on. It ends with it, whatever ends that.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import tempfile
import threading
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psycopg

from ps_core._fork import renew_after_fork
from ps_core._websocket import local_parameters, target_of
from ps_core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ps_core._websocket import Target
    from ps_core.topology import Endpoint

__all__ = ["conninfo", "settle", "through_bridge"]

_LONGEST_PATH: Final = 103
"""Bytes of a Unix socket's path that every system takes: macOS 103, Linux 107."""
_SETTLING: Final = 0.2
"""Seconds for `settle`: a process that does not answer by then has other worries."""
_QUEUE: Final = 512
"""Connections that may wait until the process takes them; the system may allow fewer."""


def conninfo(endpoint: Endpoint) -> dict[str, Any]:
    """Return all keyword arguments that `psycopg.connect` needs to reach an endpoint, the password included.

    They are `endpoint.parameters()`; with `transport="websocket"` they lead to the process that carries the connection (it is
    started where it does not run), as long as this process lives.

    Raises:
        ConfigurationError: that process cannot be started here.
        psycopg.OperationalError: it cannot be started now.
    """
    params = endpoint.parameters()
    return through_bridge(params, endpoint.https_port) if endpoint.transport == "websocket" else params


def through_bridge(params: Mapping[str, Any], https_port: int) -> dict[str, Any]:
    """Return what libpq is given for a connection with these parameters that a WebSocket carries.

    Starts the process that does it where none runs.

    Raises:
        ConfigurationError: a parameter asks for what a WebSocket cannot have, or the process cannot be started here.
        psycopg.OperationalError: it cannot be started now: the system has no process, descriptor or memory left.
    """
    target = target_of(params, https_port, os.environ)
    try:
        way = _bridge.reach(target)
    except OSError as exc:
        raise psycopg.OperationalError(f"connection failed: the process that carries it cannot be started: {exc}") from exc
    return local_parameters(params, **way, user=_user())


def settle() -> None:
    """Return when all that the servers have told the process until now has reached the Unix sockets here.

    After a process thaws, it and the one that carries its connections wake at once, and a connection that was closed meanwhile
    would look open.
    """
    _bridge.settle()


class _Bridge:
    """The process that carries this one's connections."""

    def __init__(self) -> None:
        self._owner = 0
        self._pid = 0
        self._folder: str | None = None
        self._control: socket.socket | None = None
        """Open on the other side as long as the process lives; it ends when this side is closed."""
        self._inode = 0
        """Identifies `_control`: a daemon closes all descriptors, and the number may be another file's."""
        self._numbers: dict[Target, int] = {}
        self.forget_threads()
        renew_after_fork(self)

    def forget_threads(self) -> None:
        """Begin anew in a forked process: it has a bridge of its own."""
        self._lock = threading.Lock()
        self._close_control()
        self._pid, self._folder, self._numbers = 0, None, {}

    def reach(self, target: Target) -> dict[str, Any]:
        """Return the folder, and the number in it, of the Unix socket that leads to `target`."""
        with self._lock:
            if not self._lives():
                self._start()
            number = self._numbers.setdefault(target, len(self._numbers) + 1)
            for one, to in ((0, None), (number, target)):
                if not Path(self._path(one)).exists():  # a new one, or whoever cleans the temporary folder has removed it
                    self._listen(one, to)
            return {"folder": self._folder, "number": number}

    def settle(self) -> None:
        """Return when the process has passed on all that it was told."""
        with socket.socket(socket.AF_UNIX) as asking, suppress(OSError):
            asking.settimeout(_SETTLING)
            asking.connect(self._path(0))
            asking.recv(1)

    def _lives(self) -> bool:
        # A process that has changed its user, as gunicorn's workers do, cannot enter the first user's folder.
        if self._control is None or self._owner != os.geteuid() or not self._is_open(self._control):
            return False
        try:
            self._control.recv(1)
        except BlockingIOError:
            return self._has_folder()
        except OSError:
            pass
        return False  # it never writes: what can be read is its end

    def _is_open(self, control: socket.socket) -> bool:
        try:
            return os.fstat(control.fileno()).st_ino == self._inode
        except OSError:
            return False

    def _has_folder(self) -> bool:
        """Return whether the folder is there and ours; where somebody who cleans up has removed it, it is made again."""
        assert self._folder is not None
        with suppress(OSError):
            with suppress(FileExistsError):
                Path(self._folder).mkdir(mode=0o700)
            return Path(self._folder).lstat().st_uid == self._owner
        return False

    def _path(self, number: int) -> str:
        return f"{self._folder}/.s.PGSQL.{number}"

    def _start(self) -> None:
        self._clear()
        python = _python()
        self._folder = _private_folder()
        self._owner = os.geteuid()
        self._control, theirs = socket.socketpair()
        self._control.setblocking(False)  # by a flag of one call, gevent's and eventlet's would wait all the same
        self._inode = os.fstat(self._control.fileno()).st_ino
        # It finds modules where we do, however that came about: by PYTHONPATH, or a layer of a cloud function. Python's own come
        # first: it needs some that an application may have a namesake of, and never missed.
        here = str(Path(__file__).parent)
        given: list[object] = [*sys.path]  # an application may have put a Path there, which Python itself passes over
        path = [here, *(entry for entry in given if isinstance(entry, str))]
        program = f"import sys; sys.path += {path!r}; from process import run; sys.path.remove({here!r}); run({self._folder!r})"
        command = [python, "-I", "-S", "-c", program]
        with theirs:
            try:
                self._pid = os.posix_spawn(
                    command[0],
                    command,
                    os.environ,
                    file_actions=[
                        (os.POSIX_SPAWN_DUP2, theirs.fileno(), 0),
                        (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                    ],
                    setpgroup=0,  # a terminal's Ctrl-C is for this process, whose last words are still to be carried
                )
            except (PermissionError, FileNotFoundError) as exc:
                raise ConfigurationError(
                    f'transport="websocket" starts a Python process, and {python} is not allowed here: {exc.strerror}'
                ) from exc

    def _clear(self) -> None:
        """Remove what is left of one that has ended."""
        self._close_control()
        if self._pid:
            with suppress(ChildProcessError):
                os.waitpid(self._pid, os.WNOHANG)
            self._pid = 0
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
        self._numbers.clear()

    def _close_control(self) -> None:
        if self._control is not None:
            if self._is_open(self._control):
                self._control.close()
            else:
                self._control.detach()
            self._control = None

    def _listen(self, number: int, target: Target | None) -> None:
        """Hand the process a listening socket for what goes to `target`; None: for `settle`."""
        assert self._control is not None
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self._path(number))
            listener.listen(_QUEUE)
            # Who connects before the process is ready waits in the queue.
            line = json.dumps(target and {**asdict(target), "url": target.url}).encode() + b"\n"
            with suppress(BrokenPipeError, ConnectionResetError):  # it has just ended: who connects is refused, and tries again
                socket.send_fds(self._control, [line], [listener.fileno()])


def _private_folder() -> str:
    why = "its path is too long for a Unix socket"
    for find in (tempfile.gettempdir, lambda: "/tmp"):  # noqa: S108 - a private folder is made in it
        try:
            parent = find()
            if len(os.fsencode(parent)) + len("/ps-xxxxxxxx/.s.PGSQL.65535") <= _LONGEST_PATH:
                return tempfile.mkdtemp(prefix="ps-", dir=parent)  # mode 0700
        except OSError as exc:
            why = str(exc)
    raise ConfigurationError(f'transport="websocket" needs a temporary folder that can be written to: {why}: set TMPDIR')


def _python() -> str:
    """Return the interpreter, also where Python is inside of another program, such as uWSGI."""
    if not (hasattr(socket, "AF_UNIX") and hasattr(os, "posix_spawn")) or sys.platform in ("emscripten", "wasi"):
        raise ConfigurationError(f'transport="websocket" needs Unix sockets and processes, and {sys.platform} has none')
    if not getattr(sys, "frozen", False):
        for path in (Path(sys.executable or ""), Path(sys.prefix) / "bin" / "python3"):
            if path.name.startswith("python") and path.is_file():
                return str(path)
    raise ConfigurationError('transport="websocket" starts a Python process, and no interpreter is found in sys.prefix: use TCP')


def _user() -> str | None:
    """Return the name of the user who runs this, for libpq to compare; None where the system has no name for the number."""
    import pwd  # not everywhere, and not needed for TCP

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return None


_bridge: Final = _Bridge()
