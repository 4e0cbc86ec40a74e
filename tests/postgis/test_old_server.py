"""A server without `transaction_timeout`, where the system's is older than PostgreSQL 17: nothing has to be set for it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import psycopg
import pytest

from ps_core import connect, limits
from ps_core.failures import Kind, classify

if TYPE_CHECKING:
    from ps_lab import Lab

SETTINGS = (
    "SELECT current_setting('statement_timeout'), current_setting('idle_in_transaction_session_timeout'),"
    " current_setting('transaction_timeout', true)"
)


@pytest.fixture(autouse=True)
def _is_old(ps_lab: Lab) -> None:
    if ps_lab.sql("SHOW server_version_num") >= [("170000",)]:
        pytest.skip("the system's server has transaction_timeout")


def test_limits(ps_lab: Lab) -> None:
    """The other limits hold, on each path; one of transactions is left out, also where it is asked for."""
    topology = ps_lab.topology
    for endpoint in (topology.primary, *topology.replicas):
        with connect(endpoint) as connection:
            assert connection.execute(SETTINGS).fetchall() == [("2s", "30s", None)]
        with limits(statement="5s", transaction="10s"), connect(endpoint) as connection:
            assert connection.execute(SETTINGS).fetchall() == [("5s", "30s", None)]
        with limits(statement="50ms", transaction="10s"), connect(endpoint) as connection:
            with pytest.raises(psycopg.errors.QueryCanceled) as caught:
                connection.execute("SELECT pg_sleep(1)")
            assert classify(caught.value).kind is Kind.TIMEOUT
    with connect(topology.direct) as connection:
        assert connection.execute(SETTINGS).fetchall() == [("0", "0", None)]


@pytest.mark.parametrize("autocommit", [True, False])
def test_another_primary(ps_lab: Lab, autocommit: bool) -> None:
    """A planned change of the primary and a crash are as they are elsewhere."""
    with connect(ps_lab.topology.primary, autocommit=autocommit) as connection:
        for change in (ps_lab.switchover, partial(ps_lab.crash_primary, detection=0.1)):
            connection.execute("SELECT 1")
            connection.commit()
            change()
            assert connection.execute("SELECT pg_is_in_recovery()").fetchall() == [(False,)]
            connection.commit()
