"""The server refuses the pooler's own login, in the name of clients that are connected: the pooler passes on what it was told.

From 1.20 on it does so with the server's SQLSTATE; before, its clients wait, and then hear that the login is failing.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial

import pytest

from ps_core.context import deadline
from ps_core.errors import DeadlineExceeded
from ps_core.failures import classify
from ps_core.topology import Topology
from ps_lab import Lab
from tests.adversity.applications import Application, at_hand, renewing
from tests.adversity.harness import QUICK, Doing, Paths, raised
from tests.adversity.matrix import Matrix

LEARNT_LATE = ("pooler_query_wait_timeout", "pooler_login_retry")
CHANGES = {
    "the role may not log in": ("ALTER ROLE barred NOLOGIN", "ALTER ROLE barred LOGIN", "authentication"),
    "the role has all its connections": (
        "ALTER ROLE barred CONNECTION LIMIT 0",
        "ALTER ROLE barred CONNECTION LIMIT -1",
        "too_many_connections",
    ),
    "there is no such database": (
        "ALTER DATABASE moved RENAME TO elsewhere",
        "ALTER DATABASE elsewhere RENAME TO moved",
        "authentication",
    ),
}


@pytest.fixture
def barred(ps_lab: Lab) -> Iterator[str]:
    """A role of its own and a database `moved`; the local bouncer lets nobody wait for long."""
    url = ps_lab.create_role("barred")
    ps_lab.sql("CREATE DATABASE moved")
    ps_lab.bouncers["local"].reload(query_wait_timeout=1)
    yield url
    ps_lab.bouncers["local"].reload(query_wait_timeout=120)
    ps_lab.bouncers["local"].admin("RECONNECT")
    ps_lab.sql("DROP DATABASE moved WITH (FORCE)")
    ps_lab.drop_role("barred")


@pytest.mark.parametrize("change", CHANGES)
def test_refused_login(ps_lab: Lab, paths: Paths, matrix: Matrix, barred: str, change: str) -> None:
    """What is configuration is raised at once; a role that has all its connections is waited for."""
    endpoint = Topology.from_url(barred.replace("/postgres?", "/moved?")).primary
    state = paths.state(endpoint, QUICK)
    stock, ours = paths.stock(endpoint), paths.ours(state)
    for conn in (stock, ours):
        conn.execute("SELECT 1")
    ps_lab.sql("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = 'barred'")
    refuse, allow, rule = CHANGES[change]
    ps_lab.sql(refuse)
    try:
        error, again = raised(stock.execute, "SELECT 1"), raised(ours.execute, "SELECT 1")
    finally:
        ps_lab.sql(allow)
    knows = ps_lab.bouncers["local"].version >= (1, 20)
    assert bool(getattr(again, "__notes__", [])) == classify(again).transient
    matrix.add(
        f"The server refuses the pooler's login: {change}",
        "primary",
        "idle, then an autocommit read",
        classify(error),
        rule if knows else LEARNT_LATE,
        ours="raised after its time" if classify(again).transient else "raised",
        outcome="no answer",
    )


def test_applications(ps_lab: Lab, matrix: Matrix, site: None, barred: str) -> None:
    """Configuration is an error at once where the pooler passes on what it was told; before 1.20, a wait until the deadline."""
    knows = ps_lab.bouncers["local"].version >= (1, 20)

    def ask(application: Application) -> None:
        with nullcontext() if knows else deadline("300ms"):
            application.execute("SELECT 1", "primary")

    with at_hand(barred) as applications:
        for application in applications:
            application.execute("SELECT 1", "primary")
            application.renew()
        ps_lab.sql("ALTER ROLE barred NOLOGIN")
        ps_lab.sql("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = 'barred'")
        try:
            for application, work in [(one, Doing(renewing, one, partial(ask, one))) for one in applications]:
                with pytest.raises(application.error if knows else DeadlineExceeded) as caught:
                    work.end()
                assert not knows or "not permitted to log in" in str(caught.value), application.name
        finally:
            ps_lab.sql("ALTER ROLE barred LOGIN")
    matrix.sees(
        "The server refuses the pooler's login",
        "from PgBouncer 1.20 on its error at once; before, a wait until the deadline (30 s without one)",
    )
