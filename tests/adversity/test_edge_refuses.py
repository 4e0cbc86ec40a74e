"""The edge refuses connections, in the words of PlanetScale's error reference."""

from functools import partial

import psycopg
import pytest

from ps_core.failures import classify
from ps_lab import Lab
from ps_lab.processes import wait_until
from tests.adversity.applications import ApplicationClients, at_hand, refused
from tests.adversity.harness import PATHS, Doing, Path, Paths, raised, raised_once
from tests.adversity.matrix import Matrix

TRANSIENT = {
    "no primary available for branch {branch}": "edge_no_member",
    "no replica available for branch {branch}": "edge_no_member",
    "no running members available for branch {branch}": "edge_no_member",
    "failed to connect to upstream": "edge_upstream",
    "failed to send startup message": "edge_upstream",
    "failed to setup backend": "edge_upstream",
    "connection retry timeout - branch {branch} unavailable after 10s": "edge_retry_timeout",
}
CLIENT_FAULTS = (
    "failed to read startup message",
    "startup message too short: 3 bytes",
    "incomplete startup message: expected 80 bytes, got 8",
    "failed to parse startup header",
)


@pytest.mark.parametrize("text", TRANSIENT)
@pytest.mark.parametrize("path", PATHS)
def test_outage(ps_lab: Lab, paths: Paths, matrix: Matrix, text: str, path: Path) -> None:
    """While the edge says that something is away, an idle connection that was cut waits, and then goes on."""
    message = text.format(branch=ps_lab.branch)
    state = paths.state(path)
    conn = paths.ours(state)
    conn.execute("SELECT 1")
    with ps_lab.edge.refuse("08006", message):
        error = raised(paths.stock, path)
        ps_lab.edge.cut(path)
        read = Doing(lambda: conn.execute("SELECT 2").fetchone())
        wait_until(lambda: state.gate.closed, "the outage to be met")
    assert read.end() == (2,)
    matrix.add(
        f"The edge answers 08006 `{text.format(branch='...')}`",
        path,
        "connecting",
        classify(error),
        TRANSIENT[text],
        ours="sent again",
        outcome="answered",
    )


@pytest.mark.parametrize("text", CLIENT_FAULTS)
def test_garbled_startup(ps_lab: Lab, paths: Paths, matrix: Matrix, text: str) -> None:
    """What the edge says of a startup message that came broken is a lost connection like others: PlanetScale says 08006."""
    state = paths.state()
    with ps_lab.edge.refuse("08006", text):
        error = raised(paths.stock)
        opening = Doing(lambda: paths.ours(state).execute("SELECT 2").fetchone())
        wait_until(lambda: state.gate.closed, "the outage to be met")
    assert opening.end() == (2,)
    matrix.add(
        f"The edge answers 08006 `{text}`",
        "primary",
        "connecting",
        classify(error),
        "connect_failed",
        ours="sent again",
        outcome="answered",
    )


@pytest.mark.parametrize(
    ("path", "changes"),
    [
        ("primary", {"user": "app"}),
        ("direct", {"user": "app.nosuchbranch"}),
        ("primary", {"user": "app.{branch}|nosuchpool"}),
        ("primary", {"user": "app.{branch}|replica"}),
        ("direct", {"user": "app.{branch}|write-pool"}),
        pytest.param("direct", {"sslmode": "disable"}, marks=pytest.mark.tcp),
    ],
    ids=["no branch", "other branch", "no such bouncer", "replica on the pooler", "bouncer on the direct port", "no TLS"],
)
def test_mistake(
    ps_lab: Lab, paths: Paths, matrix: Matrix, path: Path, changes: dict[str, str], request: pytest.FixtureRequest
) -> None:
    """A user name or TLS setting that cannot work is reported at once, and never tried again."""
    options = {name: value.format(branch=ps_lab.branch) for name, value in changes.items()}
    error = raised(lambda: paths.stock(path, **options))
    state = paths.state(path)
    ours = raised_once(ps_lab, lambda: paths.ours(state, **options))
    assert not state.gate.closed
    assert str(ours) == str(error)
    matrix.add(
        f"The edge refuses: {request.node.callspec.id}",
        path,
        "connecting",
        classify(error),
        "edge_refused",
        ours="raised",
        outcome="no connection",
    )


def test_what_the_edge_says_is_a_driver_error(ps_lab: Lab, paths: Paths) -> None:
    """An unknown text of the edge's while connecting is taken to be an outage."""
    with ps_lab.edge.refuse("08006", "something new"):
        error = raised(paths.stock)
    assert isinstance(error, psycopg.OperationalError)
    assert classify(error).transient


def test_applications(ps_lab: Lab, matrix: Matrix) -> None:
    """Whatever the edge says of an outage, applications wait for its end."""
    with ApplicationClients(ps_lab) as clients:
        for text in TRANSIENT:
            with ps_lab.edge.refuse("08006", text.format(branch=ps_lab.branch)):
                ps_lab.edge.cut()
                clients.meet()
    matrix.sees("The edge refuses for a while (08006)", f"a wait; {clients.saw()}", synthetic=True)


def test_applications_of_no_bouncer(ps_lab: Lab, matrix: Matrix) -> None:
    """A mistake in the user name is told at once, in the edge's words."""
    with at_hand(ps_lab.url, bouncer="nosuchpool") as applications:
        for application in applications:
            error = refused(application, partial(application.execute, "SELECT 1", "primary"))
            assert not getattr(error, "__notes__", []), application.name
            assert "nosuchpool" in str(error), application.name
    matrix.sees("The edge refuses for good (a wrong user name)", "an error at once, in the edge's words", synthetic=True)
