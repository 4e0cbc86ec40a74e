"""The server does not accept connections yet, or no longer: 57P03, of which drivers hide the SQLSTATE."""

import os
import signal
import threading

import psycopg

from ps_core.failures import classify
from ps_core.topology import Topology
from ps_lab import Lab
from ps_lab.processes import wait_until
from tests.adversity.harness import Doing, Paths, raised
from tests.adversity.matrix import Matrix


def test_starting_up(ps_lab: Lab, paths: Paths, matrix: Matrix) -> None:
    """Replicas that are starting up are waited for, direct and behind the pooler."""
    endpoint = Topology.from_url(ps_lab.url, direct_replica=True).replicas[0]
    link = paths.link(endpoint)
    conn = paths.ours(link)
    conn.execute("SELECT 1")
    starts = []
    for replica in ps_lab.replicas:
        # It fetches its next segment by a command that takes its time; meanwhile nobody can connect.
        replica.sql("ALTER SYSTEM SET restore_command = 'while [ -e %p.wait ]; do sleep 0.05; done; false'")
        replica.stop(signal.SIGKILL)
    try:
        for replica in ps_lab.replicas:
            for name in ("RECOVERYXLOG", "RECOVERYHISTORY"):
                (replica.folder / "pg_wal" / f"{name}.wait").touch()
            starts.append(threading.Thread(target=replica.start))
            starts[-1].start()
        wait_until(
            lambda: all(replica.running and "starting up" in refusal(replica.dsn()) for replica in ps_lab.replicas), "start"
        )
        error = raised(paths.stock, endpoint)
        read = Doing(lambda: conn.execute("SELECT 2").fetchone())
        wait_until(lambda: link.gate.closed, "the outage to be met")
    finally:
        for replica in ps_lab.replicas:
            for waiting in (replica.folder / "pg_wal").glob("*.wait"):
                waiting.unlink()
        for start in starts:
            start.join()
        for replica in ps_lab.replicas:
            replica.sql("ALTER SYSTEM RESET restore_command")
            replica.sql("SELECT pg_reload_conf()")
    assert read.end() == (2,)
    matrix.add(
        "A replica is starting up (57P03)",
        "direct replica",
        "connecting",
        classify(error),
        "server_not_ready",
        ours="sent again",
        outcome="answered",
    )


def refusal(dsn: str) -> str:
    """Return what a server answers to somebody who connects."""
    try:
        psycopg.connect(dsn).close()
    except psycopg.OperationalError as exc:
        return str(exc)
    return ""


def test_shutting_down(ps_lab: Lab, paths: Paths, matrix: Matrix) -> None:
    """A server that waits for its last session to end is taken to be away until it is back."""
    link = paths.link("direct")
    last = paths.stock("direct")
    postmaster = int((ps_lab.primary.folder / "postmaster.pid").read_text().split()[0])
    os.kill(postmaster, signal.SIGTERM)  # it ends with its last session
    try:
        wait_until(lambda: "shutting down" in refusal(ps_lab.primary.dsn()), "shutdown")
        error = raised(paths.stock, "direct")
        opening = Doing(lambda: paths.ours(link).execute("SELECT 2").fetchone())
        wait_until(lambda: link.gate.closed, "the outage to be met")
    finally:
        last.close()
        ps_lab.primary.stop(signal.SIGINT)
        ps_lab.primary.start()
    assert opening.end() == (2,)
    matrix.add(
        "The server is shutting down (57P03)",
        "direct",
        "connecting",
        classify(error),
        "server_not_ready",
        ours="sent again",
        outcome="answered",
    )
