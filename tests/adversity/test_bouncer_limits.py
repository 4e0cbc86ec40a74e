"""Limits of the pooler's own, startup parameters that it refuses, and what its operator does at the console."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from ps_core.failures import classify
from ps_lab import Lab
from ps_lab.processes import wait_until
from tests.adversity.harness import (
    Crowd,
    Doing,
    Met,
    Ours,
    Paths,
    Phase,
    Row,
    Rules,
    Verdict,
    prepare,
    raised,
    raised_once,
    table,
    wait_until_over,
)
from tests.adversity.matrix import Matrix


@contextmanager
def setting(lab: Lab, bouncer: str, name: str, value: object, normal: object) -> Iterator[None]:
    """Change a setting of a bouncer within the block."""
    lab.bouncers[bouncer].reload(**{name: value})
    try:
        yield
    finally:
        lab.bouncers[bouncer].reload(**{name: normal})


@pytest.mark.parametrize("autocommit", [True, False])
def test_query_timeout(ps_lab: Lab, paths: Paths, matrix: Matrix, autocommit: bool) -> None:
    """A statement that the pooler ends is a limit, not a failover: raised, and not sent again."""
    state = paths.state(statement_timeout="20s", transaction_timeout="30s")
    stock, ours = paths.stock(autocommit=autocommit), paths.ours(state, autocommit=autocommit)
    with setting(ps_lab, "write-pool", "query_timeout", 1, 0):
        works = [Doing(raised_once, ps_lab, conn.execute, "SELECT pg_sleep(5)") for conn in (stock, ours)]
        errors = [work.end() for work in works]
    ours.rollback()
    ours.execute("SELECT 1")
    assert classify(errors[1]).rule == "pooler_timeout"
    matrix.add(
        "The pooler's query_timeout",
        "primary",
        "autocommit read under way" if autocommit else "first statement of a transaction under way",
        classify(errors[0]),
        ("pooler_timeout", "results_hidden_by_driver"),
        ours="raised",
        outcome="rolled back",
    )


def test_idle_transaction_timeout(ps_lab: Lab, paths: Paths, matrix: Matrix) -> None:
    """A transaction that the pooler ends is gone; its next statement is told, and not sent on another connection."""
    prepare(ps_lab)
    stock, ours = paths.stock(autocommit=False), paths.ours(autocommit=False)
    with setting(ps_lab, "write-pool", "idle_transaction_timeout", 1, 0):
        for number, conn in enumerate((stock, ours)):
            conn.execute(f"INSERT INTO ledger VALUES ({number})")
        wait_until_over(stock, ours)
        errors = [raised(conn.execute, "INSERT INTO ledger VALUES (9)") for conn in (stock, ours)]
    ours.rollback()
    ours.execute("SELECT 1")
    assert ps_lab.sql("SELECT count(*) FROM ledger") == [(0,)]
    for error in errors:
        matrix.add(
            "The pooler's idle_transaction_timeout",
            "primary",
            "idle in a transaction, then a statement",
            classify(error),
            "pooler_timeout",
            ours="raised",
            outcome="rolled back",
        )


@pytest.mark.parametrize("autocommit", [True, False])
def test_client_idle_timeout(ps_lab: Lab, paths: Paths, matrix: Matrix, autocommit: bool) -> None:
    """A client that the pooler closed for idleness is replaced, whatever comes next: it was not sent."""
    prepare(ps_lab)
    stock, ours = paths.stock(autocommit=autocommit), paths.ours(autocommit=autocommit)
    with setting(ps_lab, "write-pool", "client_idle_timeout", 1, 0):
        for conn in (stock, ours):
            conn.execute("SELECT 1")
            conn.rollback()
        wait_until_over(stock, ours)
    error = raised(stock.execute, "INSERT INTO ledger VALUES (1)")
    ours.execute("INSERT INTO ledger VALUES (2)")
    ours.commit()
    assert ps_lab.sql("SELECT id FROM ledger") == [(2,)]
    matrix.add(
        "The pooler's client_idle_timeout",
        "primary",
        "idle, then an autocommit write" if autocommit else "idle, then a transaction",
        classify(error),
        ("pooler_no_server", "results_hidden_by_driver"),
        ours="sent again",
        outcome="committed, once",
    )


def test_client_login_timeout(ps_lab: Lab, paths: Paths, matrix: Matrix) -> None:
    """A pooler that has never reached its server lets clients wait at login, and then says why: an outage."""
    endpoint = paths.endpoint(connect_timeout="30s")
    state = paths.state(endpoint)
    local = ps_lab.bouncers["local"]
    with setting(ps_lab, "local", "client_login_timeout", 1, 60), setting(ps_lab, "write-pool", "client_login_timeout", 2, 60):
        ps_lab.restart_bouncer("write-pool")
        local.stop()
        local.start()
        ps_lab.pause()
        try:
            error = raised(paths.stock, endpoint)
            opened = Doing(lambda: paths.ours(state).execute("SELECT 1").fetchone())
            wait_until(lambda: state.gate.closed, "the outage to be met")
        finally:
            ps_lab.resume()
        assert opened.end() == (1,)
    matrix.add(
        "A cold pooler cannot reach its server",
        "primary",
        "connecting",
        classify(error),
        ("pooler_login_timeout", "pooler_login_retry"),
        ours="sent again",
        outcome="answered",
    )


def test_startup_parameter(ps_lab: Lab, paths: Paths, matrix: Matrix, monkeypatch: pytest.MonkeyPatch) -> None:
    """Startup options through a pooler, here libpq's own from the environment, are a mistake: told at once, not tried again."""
    monkeypatch.setenv("PGOPTIONS", "-c statement_timeout=1000")
    error = raised(paths.stock)
    state = paths.state()
    ours = raised_once(ps_lab, lambda: paths.ours(state), startups=1)
    assert classify(ours).rule == "startup_parameter"
    assert not state.gate.closed
    matrix.add(
        "Startup options through the pooler",
        "primary",
        "connecting",
        classify(error),
        "startup_parameter",
        ours="raised",
        outcome="no connection",
    )


IDLE: dict[Phase, tuple[Rules, Verdict]] = {
    Phase.CONNECT: ("pooler_disabled", Ours.AGAIN),
    Phase.IDLE_READ: (("pooler_disabled", "connection_lost", None), (Ours.AGAIN, Ours.UNNOTICED)),
}
KILLED: dict[Phase, tuple[Rules, Verdict]] = {
    Phase.READ: (("pooler_disabled", "connection_lost", "pooler_server_crashed"), Ours.AGAIN),
    Phase.WRITE: (("pooler_disabled", "connection_lost", "pooler_server_crashed"), Ours.RAISED),
    Phase.OPENING: (("pooler_disabled", "connection_lost", "pooler_server_crashed"), Ours.AGAIN),
    Phase.LATER: (("pooler_disabled", "connection_lost", "pooler_server_crashed"), Ours.RAISED),
}


@contextmanager
def disabled(crowd: Crowd) -> Iterator[None]:
    console = crowd.lab.bouncers["write-pool"]
    console.admin("DISABLE postgres")
    yield
    console.admin("ENABLE postgres")


@contextmanager
def killed(crowd: Crowd) -> Iterator[None]:
    console = crowd.lab.bouncers["write-pool"]
    console.admin("KILL postgres")
    yield
    # 1.18 can crash of it (a segmentation fault), or answer nobody any more. What supervises a pooler starts it again.
    resumed = Doing(lambda: [console.admin(command) for command in ("RESUME postgres", "SHOW VERSION")])
    with suppress(TimeoutError):
        wait_until(lambda: resumed.done, "an answer", timeout=10)
    if not resumed.done or resumed.error is not None:
        console.stop()
        console.start()


@pytest.fixture(scope="module")
def after_disable(ps_lab: Lab) -> Met:
    return Crowd(ps_lab, {"primary": tuple(IDLE)}).run("DISABLE at the pooler's console", disabled)


@pytest.fixture(scope="module")
def after_kill(ps_lab: Lab) -> Met:
    return Crowd(ps_lab, {"primary": tuple(KILLED)}).run("KILL at the pooler's console", killed)


@pytest.mark.parametrize("row", table("primary", IDLE))
def test_disable(after_disable: Met, matrix: Matrix, row: Row) -> None:
    """A database that the operator has disabled is waited for."""
    matrix.crowd(after_disable, row)


@pytest.mark.parametrize("row", table("primary", KILLED))
def test_kill(after_kill: Met, matrix: Matrix, row: Row) -> None:
    """The pooler does not know whether what was under way ran: a read is sent again, an autocommit write is not."""
    matrix.crowd(after_kill, row)


def test_applications_of_a_disabled_database(after_disable: Met, matrix: Matrix) -> None:
    """Applications wait until the operator enables the database again."""
    matrix.sees(after_disable.event, f"a wait until ENABLE; {after_disable.applications.saw()}")


def test_applications_of_a_killed_database(after_kill: Met, matrix: Matrix) -> None:
    """Applications wait until the operator resumes the database."""
    matrix.sees(after_kill.event, f"a wait until RESUME; {after_kill.applications.saw()}")
