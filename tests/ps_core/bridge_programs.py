"""Programs of test_bridge.py, each run in a process of its own: `python bridge_programs.py NAME URL ...`."""

import faulthandler
import os
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import psycopg
from psycopg import pq
from psycopg.conninfo import make_conninfo

import ps_core
from ps_core._bridge import start
from ps_core.topology import Topology

CHUNK = b"y" * 1023 + b"\n"
MEGABYTES = 20


def blocking(topology: Topology) -> None:
    """Print each of libpq's blocking calls when it has returned."""
    params: Any = ps_core.conninfo(topology.direct)
    conn = psycopg.connect(**params, autocommit=True)
    pgconn = conn.pgconn
    for name, cancel in (("cancel", conn.cancel), ("cancel_safe", conn.cancel_safe)):
        pgconn.nonblocking = 0
        pgconn.send_query(b"SELECT pg_sleep(60)")
        cancel()
        result = pgconn.get_result()
        assert result is not None
        assert result.error_field(pq.DiagnosticField.SQLSTATE) == b"57014"
        assert pgconn.get_result() is None
        print(name)
    assert pgconn.exec_(b"SELECT 1").get_value(0, 0) == b"1"
    print("exec_")
    assert pgconn.exec_params(b"SELECT $1::int", [b"2"]).get_value(0, 0) == b"2"
    print("exec_params")
    assert pgconn.prepare(b"three", b"SELECT $1::int").status == pq.ExecStatus.COMMAND_OK
    print("prepare")
    assert pgconn.exec_prepared(b"three", [b"3"]).get_value(0, 0) == b"3"
    print("exec_prepared")
    assert pgconn.describe_prepared(b"three").nparams == 1
    print("describe_prepared")
    assert pgconn.encrypt_password(b"secret", b"app").startswith(b"SCRAM-SHA-256$")
    print("encrypt_password")
    conninfo = make_conninfo(**params).encode()
    other = pq.PGconn.connect(conninfo)
    assert other.status == pq.ConnStatus.OK
    print("PQconnectdb")
    assert pq.PGconn.ping(conninfo) == pq.Ping.OK
    print("PQping")
    other.reset()
    assert other.status == pq.ConnStatus.OK
    other.finish()
    print("reset")
    pgconn.nonblocking = 1
    with conn.cursor().copy(f"COPY (SELECT repeat('x', 1023) FROM generate_series(1, {MEGABYTES * 1024})) TO STDOUT") as copy:
        assert sum(len(data) for data in copy) == MEGABYTES * 1024**2
    print("copy out")
    conn.execute("CREATE TEMPORARY TABLE filled (line text)")
    with conn.cursor().copy("COPY filled FROM STDIN") as copy:
        for _ in range(MEGABYTES * 16):
            copy.write(CHUNK * 64)
    assert conn.execute("SELECT count(*) FROM filled").fetchone() == (MEGABYTES * 1024,)
    print("copy in")
    conn.close()


def thousand(topology: Topology) -> None:
    """Print what there is beside one connection, and again when 1,000 more have come and gone and there is no more than that."""
    params: Any = ps_core.conninfo(topology.primary)

    def seen() -> str:
        folder, pid = start._bridge._folder, start._bridge._pid
        assert folder is not None
        mine, its = (len(list(Path(f"/proc/{one}/fd").iterdir())) for one in ("self", pid))
        return f"{threading.active_count()} {mine} {its} {len(list(Path(folder).iterdir()))} {folder}"

    with psycopg.connect(**params):  # with this one alone
        first = seen()
        print(first, flush=True)
        for _ in range(1000):
            psycopg.connect(**params).close()
        while seen() != first:  # until the last goodbyes are said; what is left for good would end this by the watchdog
            start.settle()
        print(first, flush=True)
        sys.stdin.read()


def hold(topology: Topology, name: str) -> None:
    """Hold a connection until this is killed."""
    params: Any = ps_core.conninfo(topology.direct) | {"application_name": name}
    conn = psycopg.connect(**params)
    print(conn.info.host, flush=True)
    sys.stdin.read()


def fork(topology: Topology) -> None:
    """Use a connection before, in and after a child."""
    with ps_core.connect(topology, autocommit=True) as conn:
        conn.execute("SELECT 1")
        print("parent", flush=True)
        pid = start._bridge._pid
        reads, writes = os.pipe()
        child = os.fork()
        if child == 0:
            with ps_core.connect(topology) as other:
                other.execute("SELECT 2")
                assert start._bridge._pid not in (0, pid)
                os.write(writes, b"%d %s" % (start._bridge._pid, other.info.host.encode()))
            print("child", flush=True)
            os._exit(0)
        os.close(writes)
        bridge, _, folder = os.read(reads, 1000).partition(b" ")
        assert os.waitpid(child, 0)[1] == 0
        while Path(folder.decode()).exists() or Path(f"/proc/{int(bridge)}/cmdline").exists():
            os.sched_yield()
        print("ended", flush=True)
        assert start._bridge._pid == pid
        conn.execute("SELECT 3")
        print("parent", flush=True)


def daemon(topology: Topology) -> None:
    """Connect, close all descriptors as a daemon does, have their numbers taken, and connect again."""
    params: Any = ps_core.conninfo(topology.direct)
    psycopg.connect(**params).close()
    os.closerange(3, 100)
    mine, other = socket.socketpair()
    taken = [mine.fileno(), other.fileno()] + [os.dup(mine.fileno()) for _ in range(20)]
    assert start._bridge._control is not None
    assert start._bridge._control.fileno() in taken
    other.send(b"untouched")
    again: Any = ps_core.conninfo(topology.direct)
    with psycopg.connect(**again) as conn:
        conn.execute("SELECT 1")
    for descriptor in taken:
        os.fstat(descriptor)
    print(mine.recv(100).decode())


if __name__ == "__main__":
    what, url, *arguments = sys.argv[1:]
    if what != "fork":  # of which Python warns where there is another thread
        # Not a thread of Python's: it would wait for the lock that it is to watch.
        faulthandler.dump_traceback_later(90, exit=True)
    globals()[what](Topology.from_url(url), *arguments)
