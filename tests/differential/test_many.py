"""Every value by `executemany`, by COPY in both directions and by `stream`: each on stock and on ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import sql

import ps_core
from ps_core import Connection
from ps_core._connection.cursors import Cursor, ServerBindingCursor
from ps_core._endpoint import EndpointState
from tests.differential.clients import NO_PREPARED
from tests.differential.outcome import of_error, shown
from tests.differential.values import VALUES

if TYPE_CHECKING:
    from collections.abc import Callable

    from ps_lab import Lab
    from tests.differential.page import Totals
    from tests.differential.values import Registered


def executemany(cursor: Any, value: Any) -> Any:
    cursor.executemany("select %s as x, pg_typeof(%s::text)", [(value, value), (value, value)], returning=True)
    found = []
    more: Any = True
    while more:
        found += [shown(cursor.fetchall()), cursor.description[0][:2]]
        more = cursor.nextset()
    return found


def executemany_stored(cursor: Any, value: Any) -> Any:
    cursor.executemany("insert into differential.stored (float8, numeric) values (%s, %s)", [(value, value)])
    cursor.execute("select float8::text, numeric::text from differential.stored order by ctid desc limit 1")
    return cursor.fetchall()


def copy_out(cursor: Any, value: Any) -> Any:
    """psycopg merges the parameters of COPY as its client-side cursor does: bare literals, on both."""
    with cursor.copy("copy (select %s, pg_typeof(%s)) to stdout", [value, value]) as copy:
        return [bytes(data) for data in copy]


def copy_in(cursor: Any, value: Any) -> Any:
    with cursor.copy("copy differential.stored (text) from stdin") as copy:
        copy.write_row([value])
    cursor.execute("select text from differential.stored order by ctid desc limit 1")
    return cursor.fetchall()


def sql_literal(cursor: Any, value: Any) -> Any:
    """`sql.Literal` is sql_literal as it is, beside a parameter."""
    cursor.execute(
        sql.SQL("select {} as x, pg_typeof({}) as y, %s::text as z").format(sql.Literal(value), sql.Literal(value)), [value]
    )
    return [shown(row) for row in cursor.fetchall()]


def stream(cursor: Any, value: Any) -> Any:
    return [shown(row) for row in cursor.stream("select n, %s as x from differential.numbers where n < 3 order by n", [value])]


@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
@pytest.mark.parametrize("factory", [Cursor, ServerBindingCursor])
@pytest.mark.parametrize("run", [executemany, executemany_stored, copy_out, copy_in, sql_literal, stream])
def test_many(
    run: Callable[[Any, Any], Any],
    factory: Any,
    first: bool,
    ps_lab: Lab,
    registered: Registered,
    everything: bool,
    totals: Totals,
) -> None:
    """The first statement of a transaction and a later one return and store the same."""
    place = ps_lab.topology.primary
    link = EndpointState(endpoint=place, identity=ps_lab.branch)
    with (
        psycopg.connect(**ps_core.conninfo(place), **NO_PREPARED) as stock,
        Connection.open(link, cursor_factory=factory) as ours,
    ):
        registered.on(stock)
        registered.on(ours)
        different = []
        for name, value in list(VALUES.items())[:: 1 if everything else 4]:
            found: list[Any] = []
            for conn in (stock, ours):
                if not first:
                    conn.execute("select 1")
                try:
                    found.append(run(conn.cursor(), value))
                except Exception as exc:  # noqa: BLE001 - whatever it is, it is compared
                    error = of_error(exc)
                    found.append((error["error"], error.get("sqlstate"), (error.get("diag") or {}).get("message_primary")))
                conn.rollback()
            totals.pairs[f"psycopg, {run.__name__.replace('_', ' ')}"] += 1
            if found[0] != found[1]:
                different.append((name, *found))
    assert not different
