"""`ps-postgres pgbouncer`: what it writes, what it prints, its exit status, and that PgBouncer takes the ini."""

from __future__ import annotations

import signal
import socket
import stat
from functools import partial
from typing import TYPE_CHECKING

import psycopg
import pytest

from ps_cli.main import main
from ps_lab.processes import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from ps_lab import Lab

URL = "postgresql://app.br4nch:s3cret@x.horizon.psdb.cloud/postgres?ps_bouncer=write-pool&ps_replica_bouncer=read-pool"
SIZES = ["--workers", "4", "--pool-size", "10"]


def test_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two files that only their owner can read; the password is in the userlist alone, and is printed nowhere."""
    assert main(["pgbouncer", URL, *SIZES, "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert {path.name for path in tmp_path.iterdir()} == {"pgbouncer.ini", "userlist.txt"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}
    assert "s3cret" not in (tmp_path / "pgbouncer.ini").read_text() + printed.out + printed.err
    assert (tmp_path / "userlist.txt").read_text().count("s3cret") == 3
    assert printed.out.splitlines()[-3:] == [
        "PS_URL=postgresql://app.br4nch:***@127.0.0.1:6432/postgres",
        "PS_REPLICA_URLS=postgresql://app.br4nch:***@127.0.0.1:6432/postgres_replica",
        "PS_DIRECT_URL=postgresql://app.br4nch:***@x.horizon.psdb.cloud:5432/postgres?sslmode=verify-full&sslrootcert=system",
    ]


def test_for_the_one_that_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The ini is for the PgBouncer of this machine, in a folder that is made; --pgbouncer-version names another one."""
    program = tmp_path / "bin" / "pgbouncer"
    program.parent.mkdir()
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    for release, option, prepares in (
        ("1.18.0", [], False),
        ("1.25.2", [], True),
        ("1.25.2", ["--pgbouncer-version", "1.20"], False),
    ):
        program.write_text(f"#!/bin/sh\necho PgBouncer {release}\n")
        program.chmod(0o755)
        folder = tmp_path / "etc" / "pgbouncer" / release / "".join(option)
        assert main(["pgbouncer", URL, *SIZES, "--output", str(folder), *option]) == 0
        assert ("max_prepared_statements" in (folder / "pgbouncer.ini").read_text()) == prepares
        stated = "1.20" if option else f"{release[:4]}, which is {program}"
        assert f"The ini is for PgBouncer {stated}\n" in capsys.readouterr().out


def test_writes_over_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that is there stays as it is, unless --force replaces it; then it is private, whatever it was before."""
    there = tmp_path / "userlist.txt"
    there.write_text("mine")
    there.chmod(0o644)
    command = ["pgbouncer", URL, *SIZES, "--output", str(tmp_path)]
    assert main(command) == 2
    assert "userlist.txt" in capsys.readouterr().err
    assert there.read_text() == "mine"
    assert not (tmp_path / "pgbouncer.ini").exists()
    assert main([*command, "--force"]) == 0
    assert stat.S_IMODE(there.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("find", "change", "status", "lines"),
    [
        ("", "", 0, []),
        ("server_login_retry = 1", "server_login_retry = 15", 1, ["warning: server_login_retry = 15"]),
        (
            "max_client_conn = 130",
            "max_client_conn = 50",
            2,
            ["error: max_client_conn = 50: the application may open 130 connections: write max_client_conn = 130"],
        ),
    ],
)
def test_check(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    find: str,
    change: str,
    status: int,
    lines: list[str],
) -> None:
    """One line for each finding, and the worst one's exit status; nothing is written. The URL may be the environment's."""
    monkeypatch.setenv("PS_URL", URL)
    assert main(["pgbouncer", "--env", *SIZES, "--output", str(tmp_path)]) == 0
    capsys.readouterr()
    ini = tmp_path / "pgbouncer.ini"
    ini.write_text(ini.read_text().replace(find, change))
    before = ini.read_text()
    assert main(["pgbouncer", "--env", *SIZES, "--check", str(ini)]) == status
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == len(lines)
    assert all(line.startswith(start) for line, start in zip(printed, lines, strict=True))
    assert ini.read_text() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["postgresql://app:s3cret@h", *SIZES], "names no database"),
        ([URL.replace("x.horizon", "a@b"), *SIZES], "an '@' too many"),
        ([URL, "--workers", "0", "--pool-size", "1"], "workers: write a whole number"),
        ([URL, *SIZES, "--check", "/nowhere.ini"], "/nowhere.ini"),
    ],
)
def test_refusals(arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What cannot work is said in one line, without the password, and nothing is written."""
    assert main(["pgbouncer", *arguments, "--output", str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert "s3cret" not in printed.out + printed.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("listen", ["0.0.0.0:6432", "127.0.0.1", "::1:70000"])
def test_listens_on_this_machine_only(listen: str, capsys: pytest.CaptureFixture[str]) -> None:
    """There is no TLS between the application and this PgBouncer, so other addresses are refused."""
    with pytest.raises(SystemExit):
        main(["pgbouncer", URL, *SIZES, "--listen", listen])
    assert "127.0.0.1:PORT" in capsys.readouterr().err


def test_pgbouncer_takes_it(ps_lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    """PgBouncer starts with what was written, and serves a database, a user and a password that have to be quoted."""
    ps_lab.create_role("quoted")
    url = ps_lab.set_password("quoted", "a\"b'c%d; e")
    ps_lab.sql('CREATE DATABASE "te st"')
    ps_lab.wait_replicas_caught_up()
    guard = ps_lab._guard
    folder = guard.folder / "app-side"
    folder.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    bouncer = ps_lab.bouncers["local"]._binary
    version = guard.run([bouncer, "--version"]).split()[1]
    command = [
        "pgbouncer",
        url.replace("/postgres?", "/te%20st?") + "&ps_bouncer=write-pool&ps_replica_bouncer=read-pool",
        *SIZES,
    ]
    command += ["--output", str(folder), "--listen", f"127.0.0.1:{port}", "--pgbouncer-version", version]
    assert main(command) == 0
    assert "a%22b" not in capsys.readouterr().out
    for path in (folder, *folder.iterdir()):
        guard.account.own(path)
    process = guard.start([bouncer, folder / "pgbouncer.ini"], folder / "log", signal.SIGKILL)
    try:
        for dbname, replica in (("te_st", False), ("te_st_replica", True)):
            params = {"user": f"quoted.{ps_lab.branch}", "password": "a\"b'c%d; e", "dbname": dbname, "port": port}
            wait_until(partial(_accepts, port), "start of the PgBouncer")
            with psycopg.connect(host="127.0.0.1", **params) as conn:
                row = conn.execute("SELECT current_user, current_database(), pg_is_in_recovery()").fetchone()
                assert row == ("quoted", "te st", replica)
    finally:
        guard.end(process, signal.SIGKILL)
        ps_lab.sql('DROP DATABASE "te st" WITH (FORCE)')
        ps_lab.drop_role("quoted")


def _accepts(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
