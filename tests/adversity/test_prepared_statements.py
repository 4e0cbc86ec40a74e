"""Prepared statements behind a transaction pooler that does not know them: stock psycopg's default, not ours."""

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from ps_core.failures import classify
from ps_lab import Lab
from tests.adversity.applications import ApplicationClients
from tests.adversity.harness import Paths
from tests.adversity.matrix import Matrix


@pytest.fixture
def unaware(ps_lab: Lab) -> Iterator[Lab]:
    """Poolers that do not keep track of prepared statements, and give every transaction the next server connection."""
    bouncers = [ps_lab.bouncers[name] for name in ("local", "write-pool")]
    track: dict[str, object] = {"max_prepared_statements": 0} if bouncers[0].version >= (1, 21) else {}
    for bouncer in bouncers:
        bouncer.reload(server_round_robin=1, **track)
    yield ps_lab
    for bouncer in bouncers:
        bouncer.reload(server_round_robin=0, **({"max_prepared_statements": 200} if track else {}))
        bouncer.admin("RECONNECT")


def test_prepared_statements(unaware: Lab, paths: Paths, matrix: Matrix) -> None:
    """Stock psycopg meets 26000 and 42P05; our connection prepares nothing, and nothing happens to it."""
    options: dict[str, Any] = {"prepare_threshold": 0, "cursor_factory": psycopg.Cursor}
    one, other = paths.stock(autocommit=False, **options), paths.stock(autocommit=False, **options)
    ours = paths.ours()
    met: dict[str, psycopg.Error] = {}
    holder = paths.stock(autocommit=False)
    for number in range(200):
        if {"prepared_statement_unknown", "prepared_statement_exists"} <= met.keys():
            break
        if number % 10 == 0:  # new server connections know no statements, those that are busy keep theirs
            for name in ("write-pool", "local"):
                unaware.bouncers[name].admin("RECONNECT")
        for conn in (one, other):
            try:
                conn.execute("SELECT %s::int", (number,))
                # Takes the connection behind the pooler that is free, so that the next transaction gets another one.
                holder.execute("SELECT 1")
                conn.commit()
                holder.commit()
            except psycopg.Error as exc:
                met.setdefault(classify(exc).rule, exc)
                conn.rollback()
        for _ in range(number % 10):  # The poolers give server connections in turn: each round begins with another one.
            holder.execute("SELECT 1")
            holder.commit()
        assert ours.execute("SELECT %s::int", (number,)).fetchone() == (number,)
    assert {"prepared_statement_unknown", "prepared_statement_exists"} <= met.keys()
    for error in met.values():
        matrix.add(
            "Prepared statements behind a pooler (26000, 42P05)",
            "primary",
            "statement under way",
            classify(error),
            ("prepared_statement_unknown", "prepared_statement_exists", "statement_error"),
            ours="goes on",
            outcome="answered",
        )


def test_applications(unaware: Lab, matrix: Matrix) -> None:
    """Applications prepare nothing behind a pooler's back."""
    with ApplicationClients(unaware) as clients:
        clients.meet()
    matrix.sees("A pooler that knows no prepared statements", f"nothing; {clients.saw()}")
