"""The database goes away: on a replica by replay (57P04), behind a pooler by refused logins."""

from dataclasses import replace
from functools import partial

from ps_core.failures import classify
from ps_core.topology import Topology
from ps_lab import Lab
from tests.adversity.applications import at_hand, refused
from tests.adversity.harness import Paths, raised, raised_once, wait_until_over
from tests.adversity.matrix import Matrix


def test_database_dropped(ps_lab: Lab, paths: Paths, matrix: Matrix) -> None:
    """A session on a replica ends with 57P04, and a new one is refused: reported, not waited for."""
    ps_lab.sql("CREATE DATABASE doomed")
    ps_lab.wait_replicas_caught_up()
    endpoint = replace(Topology.from_url(ps_lab.url, direct_replica=True).replicas[0], dbname="doomed")
    stock, ours = paths.stock(endpoint), paths.ours(paths.state(endpoint))
    for conn in (stock, ours):
        conn.execute("SELECT 1")
    ps_lab.sql("DROP DATABASE doomed")
    wait_until_over(stock, ours)
    error = raised(stock.execute, "SELECT 1")
    again = raised_once(ps_lab, ours.execute, "SELECT 1")
    assert classify(again).rule == "database_dropped"
    matrix.add(
        "The database is dropped (57P04)",
        "direct replica",
        "idle, then an autocommit read",
        classify(error),
        "database_dropped",
        ours="raised",
        outcome="no answer",
    )


def test_applications(ps_lab: Lab, matrix: Matrix, site: None) -> None:
    """Clients of the database get the error at once."""
    ps_lab.sql("CREATE DATABASE doomed")
    with at_hand(ps_lab.url.replace("/postgres?", "/doomed?")) as applications:
        for application in applications:
            application.execute("SELECT 1", "direct")
        ps_lab.sql("DROP DATABASE doomed WITH (FORCE)")
        for application in applications:
            ask = partial(application.execute, "SELECT 1", "direct")
            refused(application, ask)
            application.renew()
            error = refused(application, ask)
            assert 'database "doomed" does not exist' in str(error), application.name
    matrix.sees("The database is dropped", "an error at once; whoever connects is told that it does not exist")
