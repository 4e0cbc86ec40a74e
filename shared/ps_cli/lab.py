"""`ps-postgres lab`: a local PlanetScale in the foreground, and what happens to it, from a second terminal."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import math
import os
import shlex
import signal
import socket
import stat
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.table import Table

    from ps_lab import Lab

__all__ = ["add_parser", "run"]

NEEDED: Final = ("rich", "trustme")
SOCKET: Final = "lab.sock"
ENDINGS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ROWS = list[tuple[str, str, str]]


class _Problem(Exception):
    """What the user is told in place of a result."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-command."""
    parser = subparsers.add_parser(
        "lab",
        help="run a local PlanetScale",
        description="A local PlanetScale of real servers: a primary, replicas, PgBouncers and the edge. `up` keeps it in the"
        " foreground; the others act on it from a second terminal.",
    )
    verbs = parser.add_subparsers(metavar="VERB", dest="verb", required=True)
    up = verbs.add_parser("up", help="start one; Ctrl-C ends it")
    up.add_argument("--replicas", type=int, choices=range(1, 9), default=2, metavar="N", help="1 to 8, default 2")
    verbs.add_parser("switchover", help="change the primary, as in planned maintenance")
    crash = verbs.add_parser("crash", help="kill the primary; a replica takes over")
    crash.add_argument(
        "--detection", type=_seconds, default=2.0, metavar="SECONDS", help="how long nobody notices (0 to 600, default 2)"
    )
    verbs.add_parser("status", help="show its parts, and the lines to paste")
    verbs.add_parser("env", help='show the environment of an application on it, for `eval "$(ps-postgres lab env)"`')
    verbs.add_parser("down", help="end it")
    parser.set_defaults(run=run)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= 600:
        raise argparse.ArgumentTypeError(f"write seconds from 0 to 600, not {text!r}")
    return seconds


def run(args: argparse.Namespace) -> int:
    """Run the verb; return the exit status: 1 if it could not be done."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        print(f"{', '.join(missing)}: not installed; pip install 'ps-postgres[lab]'", file=sys.stderr)
        return 2
    try:
        if args.verb == "up":
            _up(args.replicas)
        else:
            _ask(args.verb, *([args.detection] if args.verb == "crash" else []))
    except (_Problem, OSError) as problem:
        print(problem, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _state_folder() -> Path:
    """Return the folder of the control socket: whoever could enter it could crash the lab."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    folder = Path(runtime, "ps-postgres") if runtime else Path(tempfile.gettempdir(), f"ps-postgres-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise _Problem(f"{folder} must be a folder of yours that nobody else may enter: remove it, or set XDG_RUNTIME_DIR")
    return folder


# --- the first terminal ---


def _up(replicas: int) -> None:
    from rich.console import Console

    from ps_lab import Lab

    for ending in ENDINGS:
        signal.signal(ending, _end)
    console = Console()
    asked: socket.socket | None = None
    with _only_one(_state_folder()) as listener:
        try:
            with contextlib.ExitStack() as stack:
                with console.status("Starting ..."):
                    began = time.monotonic()
                    lab = stack.enter_context(Lab(replicas))
                    lab.sql("ALTER ROLE app CREATEDB")  # for the databases of a project's tests
                console.print(_table(_parts(lab)))
                print(*_lines(lab), "", sep="\n")
                print(f"Up after {time.monotonic() - began:.1f} s. Ctrl-C ends it.", flush=True)
                asked = _serve(lab, listener)
                _ignore_endings()
                began = time.monotonic()
            answer = f"The lab is down ({time.monotonic() - began:.1f} s)."
            print(answer)
            _answer(asked, {"text": answer})
        except SystemExit:
            print("The lab is down.")
        except RuntimeError as failure:
            raise _Problem(str(failure)) from failure


def _end(*_: object) -> None:
    _ignore_endings()
    sys.exit()


def _ignore_endings() -> None:
    """Let what ends the lab be done once: another signal would interrupt that, and could not ask for more."""
    # Blocked for this thread, also while Python ends, when handlers are gone; and not SIG_IGN, for Python prints a traceback of a
    # signal that came just before.
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDINGS)
    for ending in ENDINGS:
        signal.signal(ending, lambda *_: None)


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[socket.socket]:
    """Listen on the control socket, unless another process does.

    The lock says so, and not the socket: the kernel takes it from a process that ends in whatever way.
    """
    with (folder / "lock").open("w") as lock, socket.socket(socket.AF_UNIX) as listener:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _Problem("a lab is up already: `ps-postgres lab status` shows it, `ps-postgres lab down` ends it") from None
        path = folder / SOCKET
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        listener.listen()
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)


def _serve(lab: Lab, listener: socket.socket) -> socket.socket:
    """Do what is asked, one after the other, until it is `down`; return the connection that asked for that."""
    import psycopg

    while True:
        client, _ = listener.accept()
        client.settimeout(5)
        try:
            verb, *arguments = json.loads(_read_line(client))
        except (OSError, ValueError):
            client.close()
            continue
        if verb == "down":
            return client
        try:
            answer = _act(lab, verb, *arguments)
        except (RuntimeError, OSError, psycopg.Error) as failure:
            answer = {"problem": str(failure)}
        if "text" in answer:
            print(answer["text"], flush=True)
        _answer(client, answer)


def _act(lab: Lab, verb: str, *arguments: Any) -> dict[str, Any]:
    if verb == "status":
        return {"rows": _parts(lab), "lines": _lines(lab)}
    if verb == "env":
        return {"environment": "\n".join(_exports(lab, DATABASE_URL=lab.url))}
    action = {"switchover": lab.switchover, "crash": lab.crash_primary}[verb]
    began = time.monotonic()
    old = lab.primary.name
    new = action(*arguments).name
    return {"text": f"{verb}: the primary was {old} and is {new}, after {time.monotonic() - began:.1f} s"}


def _answer(client: socket.socket, answer: dict[str, Any]) -> None:
    with client, contextlib.suppress(OSError):  # whoever asked may have gone
        client.sendall(json.dumps(answer).encode() + b"\n")


def _read_line(connection: socket.socket) -> bytes:
    with connection.makefile("rb") as lines:
        return lines.readline(65536)


def _parts(lab: Lab) -> ROWS:
    status, ports = lab.edge.status(), lab.edge.ports
    clients = f"{status['clients']} {'client' if status['clients'] == 1 else 'clients'}"
    rows: ROWS = [("edge", f"direct port {ports['direct']}, pooled port {ports['pooled']}", clients)]
    for bouncer, leads_to in zip(lab.bouncers.values(), ("the primary", "the primary, by local", "the replicas"), strict=True):
        release = "PgBouncer {}.{}".format(*bouncer.version)
        rows.append((bouncer.name, f"{release} to {leads_to}", "up" if bouncer.running else "down"))
    followers = {name for (name,) in lab.sql("SELECT application_name FROM pg_stat_replication WHERE state = 'streaming'")}
    for server in lab.servers:
        if server is lab.primary:
            state = "up"
        else:
            state = "follows" if server.name in followers else "up, does not follow yet" if server.running else "down"
        rows.append((server.name, "primary" if server is lab.primary else "replica", state))
    return rows


def _lines(lab: Lab) -> list[str]:
    """Return what to paste: the environment of an application, and psql's command."""
    plain = lab.url.partition("&ps_")[0]
    return [*_exports(lab), f"psql {shlex.quote(plain)}"]


def _exports(lab: Lab, **more: str) -> list[str]:
    """Return the environment of an application, for a shell. Its role may create databases."""
    environment = {"PS_URL": lab.url, "PS_BOUNCER": "write-pool", "PS_REPLICA_BOUNCER": "read-pool", **more}
    return [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]


# --- the second terminal ---


def _ask(*words: object) -> None:
    from rich.console import Console

    with socket.socket(socket.AF_UNIX) as control:
        try:
            control.connect(str(_state_folder() / SOCKET))
        except (FileNotFoundError, ConnectionRefusedError):
            raise _Problem("no lab is up: start one with `ps-postgres lab up` in another terminal") from None
        line = b""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            control.sendall(json.dumps(words).encode() + b"\n")
            line = _read_line(control)
    if not line:
        raise _Problem("the lab ended meanwhile")
    answer = json.loads(line)
    if "problem" in answer:
        raise _Problem(answer["problem"])
    if "rows" in answer:
        Console().print(_table(answer["rows"]))
        print(*answer["lines"], sep="\n")
    else:
        print(answer.get("environment") or answer["text"])


def _table(rows: Sequence[Sequence[str]]) -> Table:
    from rich.table import Table

    table = Table("part", "what it is", "state")
    for row in rows:
        table.add_row(*row)
    return table
