"""A client that may not connect gets the error at once, and nothing is retried for it."""

import re
from dataclasses import replace
from functools import partial

import pytest

from ps_core.failures import classify
from ps_core.topology import Topology
from ps_lab import Lab
from tests.adversity.applications import Where, at_hand, refused
from tests.adversity.harness import PATHS, Path, Paths, raised
from tests.adversity.matrix import Matrix


@pytest.mark.parametrize("path", PATHS)
def test_wrong_password(ps_lab: Lab, paths: Paths, matrix: Matrix, path: Path) -> None:
    """A wrong password is one attempt, on every endpoint, and is nowhere in the error."""
    endpoint = replace(paths.endpoint(path), password="pscale_pw_not_this_one")
    error = raised(paths.stock, endpoint)
    state = paths.state(endpoint)
    with ps_lab.round_trips() as counter:
        ours = raised(paths.ours, state)
    assert counter.startups == 1
    assert "pscale_pw_not_this_one" not in repr(ours) + "".join(getattr(ours, "__notes__", []))
    assert not state.gate.closed
    matrix.add("Wrong password", path, "connecting", classify(error), "authentication", ours="raised", outcome="no connection")


@pytest.mark.parametrize("path", PATHS)
def test_rotated_password(ps_lab: Lab, paths: Paths, path: Path) -> None:
    """A connection whose password was changed meanwhile works until it is lost; then the refusal is raised, once and at once."""
    url = ps_lab.create_role("rotated")
    try:
        topology = Topology.from_url(url, bouncer="write-pool", replica_bouncer="read-pool")
        endpoint = {"primary": topology.primary, "replica": topology.replicas[0], "direct": topology.direct}[path]
        conn = paths.ours(paths.state(endpoint))
        ps_lab.set_password("rotated")
        assert conn.execute("SELECT 1").fetchone() == (1,)
        # Restarted, for PgBouncer does not read its file again when that was written twice within a second.
        for bouncer in ("write-pool", "read-pool"):
            ps_lab.restart_bouncer(bouncer)
        ps_lab.edge.cut(path)
        with ps_lab.round_trips() as counter:
            error = raised(conn.execute, "SELECT 1")
        assert classify(error).rule == "authentication"
        assert counter.startups == 1
    finally:
        ps_lab.drop_role("rotated")


@pytest.mark.parametrize(
    ("change", "name"),
    [("ALTER ROLE barred NOLOGIN", "The role may no longer log in"), ("", "There is no such database")],
    ids=["nologin", "no database"],
)
def test_refused_by_the_server(ps_lab: Lab, paths: Paths, matrix: Matrix, change: str, name: str) -> None:
    """What the server itself refuses is configuration, too."""
    endpoint = Topology.from_url(ps_lab.create_role("barred"), bouncer="write-pool").direct
    if not change:
        endpoint = replace(endpoint, dbname="nosuchdatabase")
    try:
        if change:
            ps_lab.sql(change)
        error = raised(paths.stock, endpoint)
        with ps_lab.round_trips() as counter:
            raised(paths.ours, paths.state(endpoint))
        assert counter.startups == 1
    finally:
        ps_lab.drop_role("barred")
    matrix.add(name, "direct", "connecting", classify(error), "authentication", ours="raised", outcome="no connection")


@pytest.mark.parametrize("where", ["primary", "routed", "direct"])
def test_applications(ps_lab: Lab, matrix: Matrix, site: None, where: Where) -> None:
    """One attempt, and the framework's error, which says what was refused and holds no password."""
    with at_hand(re.sub("pscale_pw_[^@]*", "pscale_pw_not_this_one", ps_lab.url)) as applications:
        for application in applications:
            with ps_lab.round_trips() as counter:
                error = refused(application, partial(application.execute, "SELECT 1", where))
            assert counter.startups == 1, application.name
            assert "authentication failed" in str(error), application.name
            assert "pscale_pw" not in repr(error) + "".join(getattr(error, "__notes__", []))
    matrix.sees("Wrong password", "an error at once, after one attempt, that says what was refused")
