"""The server does not accept connections yet, or no longer: 57P03, of which drivers hide the SQLSTATE."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from ps_core.context import deadline
from ps_core.failures import classify
from ps_core.topology import Topology
from ps_lab import Lab
from ps_lab.processes import wait_until
from tests.adversity.applications import Application, ApplicationClients, wait_for_replicas
from tests.adversity.harness import Doing, Paths, raised, refuses
from tests.adversity.matrix import Matrix


@contextmanager
def starting(lab: Lab) -> Iterator[None]:
    """Restart the replicas, which accept connections only behind the block."""
    starts = []
    for replica in lab.replicas:
        # It fetches its next segment by a command that takes its time; meanwhile nobody can connect.
        replica.sql("ALTER SYSTEM SET restore_command = 'while [ -e %p.wait ]; do sleep 0.05; done; false'")
        replica.stop(signal.SIGKILL)
    try:
        for replica in lab.replicas:
            for name in ("RECOVERYXLOG", "RECOVERYHISTORY"):
                (replica.folder / "pg_wal" / f"{name}.wait").touch()
            starts.append(threading.Thread(target=replica.start))
            starts[-1].start()
        wait_until(lambda: all(replica.running and "starting up" in refusal(replica.dsn()) for replica in lab.replicas), "start")
        yield
    finally:
        for replica in lab.replicas:
            for waiting in (replica.folder / "pg_wal").glob("*.wait"):
                waiting.unlink()
        for start in starts:
            start.join()
        for replica in lab.replicas:
            replica.sql("ALTER SYSTEM RESET restore_command")
            replica.sql("SELECT pg_reload_conf()")


def test_starting_up(ps_lab: Lab, paths: Paths, matrix: Matrix) -> None:
    """Replicas that are starting up are waited for, direct and behind the pooler."""
    endpoint = Topology.from_url(ps_lab.url, direct_replica=True).replicas[0]
    state = paths.state(endpoint)
    conn = paths.ours(state)
    conn.execute("SELECT 1")
    with starting(ps_lab):
        error = raised(paths.stock, endpoint)
        read = Doing(lambda: conn.execute("SELECT 2").fetchone())
        wait_until(lambda: state.gate.closed, "the outage to be met")
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


def postmaster(lab: Lab) -> int:
    """Return the primary's first process."""
    return int((lab.primary.folder / "postmaster.pid").read_text().split()[0])


def refusal(dsn: str) -> str:
    """Return what a server answers to somebody who connects."""
    try:
        psycopg.connect(dsn).close()
    except psycopg.OperationalError as exc:
        return str(exc)
    return ""


def test_shutting_down(ps_lab: Lab, paths: Paths, matrix: Matrix) -> None:
    """A server that waits for its last session to end is taken to be away until it is back."""
    state = paths.state("direct")
    last = paths.stock("direct")
    os.kill(postmaster(ps_lab), signal.SIGTERM)  # it ends with its last session
    try:
        wait_until(lambda: "shutting down" in refusal(ps_lab.primary.dsn()), "shutdown")
        error = raised(paths.stock, "direct")
        opening = Doing(lambda: paths.ours(state).execute("SELECT 2").fetchone())
        wait_until(lambda: state.gate.closed, "the outage to be met")
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


def test_applications(ps_lab: Lab, paths: Paths, matrix: Matrix, applications: list[Application]) -> None:
    """Reads are answered by the primary while the replicas start; while that one is away, everything waits for it."""
    with ApplicationClients(ps_lab) as clients:
        with starting(ps_lab):
            clients.meet()
        os.kill(postmaster(ps_lab), signal.SIGTERM)  # it ends with its last session
        clients.meet()
        ps_lab.primary.stop(signal.SIGINT)
        clients.meet()
        ps_lab.primary.start()
    wait_for_replicas(applications)
    with starting(ps_lab):
        wait_until(lambda: refuses(paths.endpoint("replica")), "the pooler to notice")
        for application in applications:
            with deadline("10s"):
                assert application.look(0) == [False], application.name
    wait_for_replicas(applications)
    matrix.sees("A server is starting up, or shutting down (57P03)", f"a wait, for reads none; {clients.saw(unknown=True)}")
