"""The guard: a process that ends the lab's servers when the lab's own process is gone, however it went.

    python _guard.py PARENT FOLDER

From its standard input it learns the processes to watch, as lines "PID SIGNAL", where SIGNAL ends one quickly and 0 means that
it has ended. When PARENT is gone, it ends what is left and removes FOLDER. It is run as a script, without site-packages, and so
imports nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

__all__ = ["GRACE", "kill_tree", "remove"]

GRACE = 6.0
"""Seconds that a process has to end by its signal: PostgreSQL kills its children after five."""
_PROC = Path("/proc/self/stat").exists()


def kill_tree(pid: int) -> None:
    """Kill a process and its descendants.

    PostgreSQL's are in sessions of their own, and one that computes does not notice that its parent is gone.
    """
    try:
        os.kill(pid, signal.SIGSTOP)  # or it would start more of them meanwhile
    except ProcessLookupError:
        return
    for child in _children(pid):
        kill_tree(child)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _stat(pid: int) -> list[str]:
    """Return what Linux tells of a process, from its state on: what is before that is its name, with any characters."""
    return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()


def _children(pid: int) -> list[int]:
    children = []
    if _PROC:
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if _stat(int(folder.name))[1] == str(pid):
                    children.append(int(folder.name))
    else:
        listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], stdout=subprocess.PIPE, text=True, check=True).stdout
        pairs = (map(int, line.split()) for line in listed.splitlines())
        children += [child for child, parent in pairs if parent == pid]
    return children


def remove(folder: str | Path) -> None:
    """Remove a folder that processes which were just killed may still be leaving."""
    for _ in range(100):
        shutil.rmtree(folder, ignore_errors=True)
        if not Path(folder).exists():
            return
        time.sleep(0.05)


def main(parent: int, folder: str) -> None:
    """Watch, then clean up."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    watched: dict[int, int] = {}
    unread = b""
    # A fork of the parent's keeps the pipe open: end-of-file alone would not tell.
    while os.getppid() == parent:
        if not select.select([0], [], [], 0.5)[0]:
            continue
        data = os.read(0, 65536)
        if not data:
            break
        *lines, unread = (unread + data).split(b"\n")
        for line in lines:
            pid, how = map(int, line.split())
            watched[pid] = how
    running = {pid for pid, how in watched.items() if how and _signal(pid, how)}
    until = time.monotonic() + GRACE
    while running and time.monotonic() < until:
        time.sleep(0.02)
        running = {pid for pid in running if _signal(pid, 0)}
    for pid in running:
        kill_tree(pid)
    remove(folder)


def _signal(pid: int, how: int) -> bool:
    """Return whether the process is there. A zombie is not: they are not ours to wait for."""
    try:
        os.kill(pid, how)
        return _stat(pid)[0] != "Z" if _PROC else True
    except (ProcessLookupError, FileNotFoundError):
        return False


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
