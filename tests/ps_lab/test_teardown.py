"""Nothing of a lab outlives the process that made it, however that ends."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ps_lab.processes import wait_until

pytestmark = pytest.mark.tools

SCRIPT = """
import sys
import psycopg
from ps_lab import Lab

with Lab(replicas=1) as lab:
    busy = psycopg.connect(**lab.topology.direct.conninfo(), autocommit=True)
    busy.pgconn.send_query(b"SELECT count(*) FROM generate_series(1, 1000000000000)")
    print("up", flush=True)
    sys.stdin.readline()
    {ending}
"""


def processes() -> dict[int, tuple[int, str]]:
    """Return all processes that are more than a zombie: parent and command line by process id."""
    listed = subprocess.run(
        ["ps", "-A", "-ww", "-o", "pid=,ppid=,stat=,args="], check=True, capture_output=True, text=True
    ).stdout
    rows = (line.split(None, 3) for line in listed.splitlines())
    return {int(pid): (int(parent), " ".join(rest)) for pid, parent, state, *rest in rows if not state.startswith("Z")}


def below(top: int) -> dict[int, str]:
    """Return a process's descendants and their command lines."""
    table, found = processes(), {top: ""}
    while more := {pid: args for pid, (parent, args) in table.items() if parent in found and pid not in found}:
        found |= more
    del found[top]
    return found


def folder_in(lines: dict[int, str]) -> Path | None:
    """Return the lab's directory, which its processes have in their command lines."""
    match = re.search(r"\S*/pslab-\w+", " ".join(lines.values()))
    return Path(match[0]) if match else None


def shared_memory(pids: set[int], since: float) -> list[str]:
    """Return the System V segments that these processes have made, where the system tells. Process ids are used again."""
    table = Path("/proc/sysvipc/shm")
    lines = table.read_text().splitlines()[1:] if table.exists() else []
    return [line for line in lines if int(line.split()[4]) in pids and int(line.split()[13]) >= int(since)]


@contextmanager
def running(ending: str) -> Iterator[subprocess.Popen[str]]:
    """Run the script; in the end it is gone, with all that it started and all that it made."""
    script = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(ending=ending)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield script
    finally:
        script.kill()
        script.communicate()


@pytest.mark.parametrize(
    ("ending", "how", "status", "error"),
    [
        ("pass", None, 0, ""),
        ("raise RuntimeError('mine')", None, 1, "RuntimeError: mine"),
        ("", signal.SIGINT, -signal.SIGINT, "KeyboardInterrupt"),
        ("", signal.SIGTERM, -signal.SIGTERM, ""),
        ("", signal.SIGKILL, -signal.SIGKILL, ""),
    ],
    ids=["normal", "exception", "SIGINT", "SIGTERM", "SIGKILL"],
)
def test_nothing_is_left(ending: str, how: signal.Signals | None, status: int, error: str) -> None:
    """After a normal end, an exception, Ctrl-C, SIGTERM and SIGKILL no process, no directory and no shared memory is left."""
    began = time.time()
    with running(ending) as script:
        assert script.stdout is not None
        assert script.stdout.readline() == "up\n"
        started = below(script.pid)
        folder = folder_in(started)
        assert folder is not None
        assert folder.is_dir()
        assert len(started) > 10
        if how is None:
            _, printed = script.communicate("go on\n", timeout=60)
        else:
            os.kill(script.pid, how)
            _, printed = script.communicate(timeout=60)
        assert script.returncode == status
        assert printed.strip().splitlines()[-1:] == ([error] if error else [])
    wait_until(lambda: not processes().keys() & started.keys(), "the end of all processes")
    wait_until(lambda: not folder.exists(), "the end of the directory")
    assert shared_memory(set(started), began) == []


def test_killed_while_it_starts() -> None:
    """Killed in the middle of its start, it leaves as little."""
    with running("") as script:
        wait_until(lambda: any("initdb" in args for args in below(script.pid).values()), "initdb")
        folder = folder_in(below(script.pid))
        script.kill()
    assert folder is not None
    wait_until(lambda: not any(str(folder) in args for _, args in processes().values()), "the end of all processes")
    wait_until(lambda: not folder.exists(), "the end of the directory")


FORK = """
import os
import psycopg
from ps_lab import Lab

with Lab(replicas=1) as lab:
    child = os.fork()
    if child == 0:
        raise SystemExit
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    psycopg.connect(**lab.topology.primary.conninfo()).close()
    sleeper = os.fork()
    if sleeper == 0:
        os.execvp("sleep", ["sleep", "60"])
print("over")
os.kill(sleeper, 9)
"""


def test_forked_children() -> None:
    """A forked child that leaves the block leaves the lab alone, and one that stays does not keep the lab up."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK], capture_output=True, text=True, timeout=100, check=False
    )
    assert (done.stdout, done.stderr, done.returncode) == ("over\n", "", 0)
