"""No connection is left: of the pooler's, of the server's, of the role's."""

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

import psycopg
import pytest

from ps_lab import Lab
from tests.adversity.harness import Crowd, Met, Ours, Phase, Row, table
from tests.adversity.matrix import Matrix

CONNECT = (Phase.CONNECT,)


@contextmanager
def pooler_full(crowd: Crowd) -> Iterator[None]:
    bouncers = [crowd.lab.bouncers[name] for name in ("write-pool", "read-pool")]
    for bouncer in bouncers:
        bouncer.reload(max_client_conn=0)
    yield
    for bouncer in bouncers:
        bouncer.reload(max_client_conn=100)


@contextmanager
def server_full(crowd: Crowd) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            while True:
                stack.enter_context(closing(psycopg.connect(crowd.lab.primary.dsn())))
        except psycopg.OperationalError:
            pass
        yield


@contextmanager
def role_full(crowd: Crowd) -> Iterator[None]:
    crowd.lab.sql("ALTER ROLE app CONNECTION LIMIT 0")
    yield
    crowd.lab.sql("ALTER ROLE app CONNECTION LIMIT -1")


@pytest.fixture(scope="module")
def pooler(ps_lab: Lab) -> Met:
    return Crowd(ps_lab, {"primary": CONNECT, "replica": CONNECT}).run("max_client_conn is reached", pooler_full)


@pytest.fixture(scope="module", params=[server_full, role_full], ids=["max_connections", "role's limit"])
def server(ps_lab: Lab, request: pytest.FixtureRequest) -> Met:
    name = {server_full: "max_connections is reached", role_full: "The role's connection limit is reached"}[request.param]
    return Crowd(ps_lab, {"direct": CONNECT}).run(name, request.param)


@pytest.mark.parametrize(
    "row",
    table("primary", dict.fromkeys(CONNECT, ("pooler_full", Ours.AGAIN)))
    + table("replica", dict.fromkeys(CONNECT, ("pooler_full", Ours.AGAIN))),
)
def test_max_client_conn(pooler: Met, matrix: Matrix, row: Row) -> None:
    """A pooler that is full is waited for."""
    matrix.crowd(pooler, row)


@pytest.mark.parametrize("row", table("direct", dict.fromkeys(CONNECT, ("server_full", Ours.AGAIN))))
def test_server_full(server: Met, matrix: Matrix, row: Row) -> None:
    """So is a server that is full, or a role that has all it may have."""
    matrix.crowd(server, row)


def test_applications_of_a_full_pooler(pooler: Met, matrix: Matrix) -> None:
    """Connected clients are served; new ones wait."""
    matrix.sees(pooler.event, f"a wait, for those who connect; {pooler.applications.saw()}")


def test_applications_of_a_full_server(server: Met, matrix: Matrix) -> None:
    """Poolers have their connections already; whoever needs another one waits."""
    matrix.sees(server.event, f"a wait, for those who need another connection; {server.applications.saw()}")
