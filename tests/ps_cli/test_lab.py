"""`ps-postgres lab`, as two terminals use it."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

import ps_core
from ps_core.topology import Topology
from ps_lab.processes import wait_until

Command = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Command]:
    """Return a function that starts `ps-postgres lab`; what still runs after the test is killed."""
    started: list[subprocess.Popen[str]] = []
    tmp_path.chmod(0o700)

    def start(*words: str, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "ps_cli", "lab", *words],
            env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path), "COLUMNS": "120", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def result(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Return the exit status and all that was printed."""
    out, err = process.communicate(timeout=60)
    return process.returncode, out + err


def up(command: Command) -> tuple[subprocess.Popen[str], list[str]]:
    """Start a lab, and return it with what it printed until it was up."""
    process = command("up", "--replicas", "1")
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line.rstrip("\n"))
        if line.startswith("Up after"):
            return process, lines
    raise AssertionError(process.communicate())


@pytest.mark.tools
def test_two_terminals(command: Command) -> None:
    """`up` shows parts, and lines to paste that work; the other verbs act on it; a second `up` is refused; `down` ends it."""
    lab, lines = up(command)
    shown = "\n".join(lines)
    for part in ("edge", "local", "write-pool", "read-pool", "pg-1", "pg-2", "primary", "replica"):
        assert part in shown
    exports = [shlex.split(line)[1].partition("=") for line in lines if line.startswith("export ")]
    topology = Topology.from_env({name: value for name, _, value in exports})
    asked = {"primary": topology.primary, "replica": topology.replicas[0], "direct": topology.direct}
    for name, endpoint in asked.items():
        with psycopg.connect(**ps_core.conninfo(endpoint)) as conn:
            assert conn.execute("SELECT pg_is_in_recovery()").fetchone() == (name == "replica",)
    (psql,) = (shlex.split(line) for line in lines if line.startswith("psql "))
    with psycopg.connect(psql[1]) as conn:
        assert conn.execute("SELECT 1").fetchone() == (1,)

    status, text = result(command("env"))
    assert (status, text.splitlines()[:-1]) == (0, [line for line in lines if line.startswith("export ")])
    evaluated = subprocess.run(
        ["sh", "-c", f'eval {shlex.quote(text)}; printf %s "$DATABASE_URL"'], capture_output=True, text=True, check=True
    )
    assert evaluated.stdout == {name: value for name, _, value in exports}["PS_URL"]
    with psycopg.connect(**ps_core.conninfo(topology.direct), autocommit=True) as conn:
        conn.execute("CREATE DATABASE of_tests")
        conn.execute("DROP DATABASE of_tests")

    assert result(command("up")) == (
        1,
        "a lab is up already: `ps-postgres lab status` shows it, `ps-postgres lab down` ends it\n",
    )
    status, text = result(command("switchover"))
    assert (status, "the primary was pg-1 and is pg-2" in text) == (0, True)
    status, text = result(command("crash", "--detection", "0.1"))
    assert (status, "the primary was pg-2 and is pg-1" in text) == (0, True)
    status, text = result(command("status"))
    assert status == 0
    assert next(line for line in text.splitlines() if "pg-1" in line).split("│")[2].strip() == "primary"
    assert [line for line in lines if line.startswith(("export ", "psql "))] == [
        line for line in text.splitlines() if line.startswith(("export ", "psql "))
    ]
    status, text = result(command("down"))
    assert (status, text.startswith("The lab is down")) == (0, True)
    status, text = result(lab)
    assert (status, "The lab is down" in text, "Traceback" in text) == (0, True, False), text
    for verb in ("switchover", "crash", "status", "env", "down"):
        assert result(command(verb)) == (1, "no lab is up: start one with `ps-postgres lab up` in another terminal\n")


@pytest.mark.tools
def test_killed_and_started_again(command: Command, tmp_path: Path) -> None:
    """What a killed lab leaves in the state folder does not stop the next one; Ctrl-C ends that without a traceback."""
    lab, _ = up(command)
    lab.kill()
    lab.communicate()
    assert (tmp_path / "ps-postgres" / "lab.sock").exists()
    assert result(command("status"))[0] == 1
    lab, _ = up(command)
    lab.send_signal(signal.SIGINT)
    assert result(lab) == (0, "The lab is down.\n")
    assert not (tmp_path / "ps-postgres" / "lab.sock").exists()


@pytest.mark.tools
@pytest.mark.parametrize("first", ["SIGTERM", "SIGINT", "down"])
def test_told_again_while_it_ends(command: Command, first: str) -> None:
    """Signals that come while the lab shuts down, for whatever reason, change nothing about its end."""
    lab, lines = up(command)
    (port,) = set(re.findall(r"ps_pooled_port=(\d+)", "\n".join(lines)))
    if first == "down":
        command("down")
        wait_until(lambda: not listens(int(port)), "the beginning of the end")
    else:
        lab.send_signal(signal.Signals[first])
    while lab.poll() is None:
        lab.send_signal(signal.SIGTERM)
    status, text = result(lab)
    assert (status, "The lab is down" in text, "Traceback" in text) == (0, True, False), text
    assert not listens(int(port))


def listens(port: int) -> bool:
    """Whether somebody listens on a port of this machine."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def test_terminated_while_it_starts(command: Command, tmp_path: Path) -> None:
    """SIGTERM in the middle of the start is an orderly end, too; whoever asked something meanwhile is told."""
    lab = command("up", "--replicas", "1")
    wait_until((tmp_path / "ps-postgres" / "lab.sock").exists, "the control socket")
    asked = command("status")
    lab.send_signal(signal.SIGTERM)
    status, text = result(lab)
    assert (status, text.endswith("The lab is down.\n"), "Traceback" in text) == (0, True, False)
    status, text = result(asked)
    assert (status, "the lab ended meanwhile" in text or "no lab is up" in text) == (1, True)


@pytest.mark.parametrize("xdg", [True, False])
def test_state_folder_of_others(command: Command, tmp_path: Path, xdg: bool) -> None:
    """A state folder that others may enter is refused, wherever it is."""
    name = "ps-postgres" if xdg else f"ps-postgres-{os.getuid()}"
    (tmp_path / name).mkdir(mode=0o755)
    environment = {} if xdg else {"XDG_RUNTIME_DIR": "", "TMPDIR": str(tmp_path)}
    for verb in ("up", "status"):
        status, text = result(command(verb, **environment))
        assert (status, "must be a folder of yours that nobody else may enter" in text) == (1, True)


def test_no_program(command: Command) -> None:
    """A program that is missing is one line, not a traceback."""
    assert result(command("up", PS_LAB_PGBOUNCER="/nowhere/pgbouncer")) == (1, "there is no PgBouncer at /nowhere/pgbouncer\n")


@pytest.mark.parametrize("seconds", ["-1", "601", "nan", "soon"])
def test_detection(command: Command, seconds: str) -> None:
    """A detection time that makes no sense is refused, with what to write."""
    status, text = result(command("crash", f"--detection={seconds}"))
    assert (status, "write seconds from 0 to 600" in text) == (2, True)
