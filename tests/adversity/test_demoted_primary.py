"""25006: a write where only reads are possible."""

from dataclasses import replace

import pytest

from ps_core.context import deadline
from ps_core.errors import DeadlineExceeded
from ps_core.failures import classify
from ps_lab import Lab
from tests.adversity.applications import at_hand
from tests.adversity.harness import QUICK, Paths, prepare, raised
from tests.adversity.matrix import Matrix

EVENT = "A write where only reads are possible (25006)"


def test_write_on_a_replica(ps_lab: Lab, paths: Paths, matrix: Matrix) -> None:
    """On a replica it is the statement's own fault: raised, and the connection lives."""
    prepare(ps_lab)
    for autocommit in (True, False):
        for conn in (paths.stock("replica", autocommit=autocommit), paths.ours("replica", autocommit=autocommit)):
            error = raised(conn.execute, "INSERT INTO ledger VALUES (1)")
            assert not conn.closed
            conn.rollback()
            conn.execute("SELECT 1")
            matrix.add(
                EVENT,
                "replica",
                "autocommit write under way" if autocommit else "first statement of a transaction under way",
                classify(error),
                "read_only_transaction",
                ours="raised",
                outcome="rolled back",
            )


def test_demoted_primary(ps_lab: Lab, paths: Paths, matrix: Matrix) -> None:
    """A connection that should be to the primary, and is to a server that was demoted, is not kept."""
    prepare(ps_lab)
    # What a stale route amounts to: the primary's endpoint leads to a server in recovery.
    endpoint = replace(paths.endpoint("replica"), role="primary", name="primary")
    error = raised(paths.stock(endpoint).execute, "INSERT INTO ledger VALUES (1)")
    conn = paths.ours(paths.state(endpoint, QUICK), autocommit=False)
    ours = raised(conn.execute, "INSERT INTO ledger VALUES (1)")
    assert classify(ours).rule == "demoted"
    assert classify(ours).transient
    assert conn.closed
    matrix.met.add("demoted")
    matrix.add(
        EVENT,
        "primary, demoted",
        "first statement of a transaction under way",
        classify(error),
        "read_only_transaction",
        ours="raised, and the connection is dropped",
        outcome="rolled back",
    )


def test_retired_connection_keeps_its_time_zone(ps_lab: Lab, paths: Paths) -> None:
    """Other connections to a server that was demoted are replaced before their next use, and their caller does not notice."""
    prepare(ps_lab)
    state = paths.state(replace(paths.endpoint("replica"), role="primary", name="primary"), QUICK)
    state.tracks = False  # else a read finds out by itself, and this route never leads to a primary
    idle, writer = paths.ours(state), paths.ours(state)
    idle.execute("SELECT set_config('TimeZone', 'Asia/Tokyo', false)")
    before = idle.pgconn
    raised(writer.execute, "INSERT INTO ledger VALUES (1)")
    with ps_lab.round_trips() as counter:
        assert idle.execute("SHOW TimeZone").fetchone() == ("Asia/Tokyo",)
    assert idle.pgconn is not before
    assert counter.startups == 1


def test_read_only_by_default(ps_lab: Lab, paths: Paths) -> None:
    """default_transaction_read_only on a true primary is no demotion: raised as it came, the connection stays."""
    prepare(ps_lab)
    ps_lab.sql("ALTER ROLE app SET default_transaction_read_only = on")
    try:
        conn = paths.ours("direct", autocommit=False)
        error = raised(conn.execute, "INSERT INTO ledger VALUES (1)")
        assert classify(error).rule == "read_only_transaction"
        assert not conn.closed
    finally:
        ps_lab.sql("ALTER ROLE app RESET default_transaction_read_only")


def test_applications(ps_lab: Lab, matrix: Matrix, site: None) -> None:
    """Work for a primary waits for one, and is nowhere: given up by the deadline."""
    prepare(ps_lab)
    # What a stale route amounts to: the primary's endpoint leads to servers in recovery.
    with at_hand(ps_lab.url, bouncer="read-pool", replica_bouncer="write-pool") as applications:
        for application in applications:
            with deadline("500ms"), pytest.raises(DeadlineExceeded):
                application.execute("INSERT INTO ledger VALUES (1)", "primary")
            with deadline("500ms"), pytest.raises(DeadlineExceeded):
                application.execute("SELECT count(*) FROM ledger", "primary")
    assert ps_lab.sql("SELECT count(*) FROM ledger") == [(0,)]
    matrix.sees(
        "A demoted primary still takes connections",
        "what was for a primary waits for the new one, until the deadline (30 s without one)",
    )
