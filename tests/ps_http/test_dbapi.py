"""DB-API 2.0: what PEP 249 asks for, and that nothing is committed which its caller believes to be in a transaction."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg.adapt import AdaptersMap
from psycopg.pq import Format
from psycopg.types.numeric import FloatLoader
from psycopg.types.string import TextLoader

import ps_core
from ps_http import dbapi

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ps_lab import Lab


class Runs:
    """A connection, sync or async, as if it were sync."""

    def __init__(self, runner: asyncio.Runner | None) -> None:
        self.runner = runner

    def __call__(self, made: Any) -> Any:
        return made if self.runner is None else self.runner.run(made)

    def connect(self, *args: Any, **options: Any) -> Any:
        return dbapi.connect(*args, **options) if self.runner is None else self(dbapi.connect_async(*args, **options))


@pytest.fixture(params=["sync", "asyncio"])
def run(request: pytest.FixtureRequest) -> Iterator[Runs]:
    runner = asyncio.Runner() if request.param == "asyncio" else None
    yield Runs(runner)
    if runner is not None:
        runner.close()


@pytest.fixture
def conn(run: Runs, ps_lab: Lab) -> Iterator[Any]:
    """A connection that only reads."""
    conn = run.connect(ps_lab.url, bouncer="write-pool")
    yield conn
    run(conn.close())
    run(conn.client.close())


@pytest.mark.fast
def test_module() -> None:
    """Its globals are PEP 249's, its exceptions psycopg's."""
    assert (dbapi.apilevel, dbapi.threadsafety, dbapi.paramstyle) == ("2.0", 2, "pyformat")
    for name in dbapi.__all__:
        assert getattr(dbapi, name) is not None
    assert dbapi.Error is psycopg.Error
    assert dbapi.IntegrityError is psycopg.IntegrityError
    assert not hasattr(dbapi, "nothing")


def test_fetching(run: Runs, conn: Any) -> None:
    """Rows are handed out one by one, some, or all; what is at their end is told."""
    cursor = conn.cursor()
    assert cursor.description is None
    assert cursor.rowcount == -1
    with pytest.raises(psycopg.ProgrammingError, match="didn't produce"):
        run(cursor.fetchone())
    assert run(cursor.execute("select n, n::text as t from generate_series(1, %s) n order by 1", [6])) is cursor
    description: Any = cursor.description
    assert [column[:2] for column in description] == [("n", 23), ("t", 25)]
    assert all(len(column) == 7 for column in description)
    assert (cursor.rowcount, cursor.rownumber) == (6, 0)
    assert run(cursor.fetchone()) == (1, "1")
    assert run(cursor.fetchmany()) == [(2, "2")]
    assert run(cursor.fetchmany(2)) == [(3, "3"), (4, "4")]
    assert cursor.rownumber == 4
    assert run(cursor.fetchall()) == [(5, "5"), (6, "6")]
    assert run(cursor.fetchone()) is None
    assert run(cursor.fetchall()) == []
    cursor.setinputsizes([])
    cursor.setoutputsize(1)
    run(cursor.close())
    with pytest.raises(psycopg.InterfaceError, match="cursor is closed"):
        run(cursor.execute("select 1"))


def test_iterating(ps_lab: Lab) -> None:
    """A cursor is iterated over."""
    with dbapi.connect(ps_lab.url, bouncer="write-pool") as conn, conn.cursor() as cursor:
        cursor.execute("select generate_series(1, 3)")
        assert list(cursor) == [(1,), (2,), (3,)]
        conn.client.close()

    async def iterate() -> list[Any]:
        async with await dbapi.connect_async(ps_lab.url, bouncer="write-pool") as conn, conn.cursor() as cursor:
            await cursor.execute("select generate_series(1, 3)")
            rows = [row async for row in cursor]
            await conn.client.close()
        return rows

    assert asyncio.run(iterate()) == [(1,), (2,), (3,)]


@pytest.mark.parametrize(
    "text",
    [
        "insert into http_numbers values (1)",
        "with x as (insert into http_numbers values (1) returning n) select * from x",
        "update http_numbers set n = 1",
        "create table http_other (n int)",
        "vacuum http_numbers",
        "select * from http_numbers for update",
        "select nextval('http_sequence')",
        "begin",
    ],
)
def test_without_autocommit(run: Runs, conn: Any, ps_lab: Lab, table: str, text: str) -> None:
    """What may write is refused before anything is sent: its caller would believe it to be in a transaction."""
    with ps_lab.round_trips() as counted, pytest.raises(psycopg.NotSupportedError, match="websocket"):
        run(conn.execute(text))
    assert counted.count == 0
    run(conn.commit())
    run(conn.rollback())
    assert ps_lab.sql(f"select * from {table}") == []


def test_reads_that_write(run: Runs, conn: Any, ps_lab: Lab, table: str) -> None:
    """What looks like a read and writes is refused by the server; nothing sends it again as a write."""
    ps_lab.sql(f"create function http_sly() returns int language sql as 'insert into {table} values (1) returning n'")
    try:
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            run(conn.execute("select http_sly()"))
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            run(conn.cursor().executemany("select http_sly() where %s", [[True]]))
    finally:
        ps_lab.sql("drop function http_sly()")
    assert ps_lab.sql(f"select * from {table}") == []


def test_isolation(run: Runs, conn: Any) -> None:
    """Without autocommit no snapshot could be shared, so that levels which promise one are refused."""
    conn.isolation_level = "Read Committed"
    run(conn.execute("select 1"))
    conn.isolation_level = "repeatable read"
    with pytest.raises(psycopg.NotSupportedError, match="snapshot"):
        run(conn.execute("select 1"))
    with pytest.raises(ValueError, match="isolation_level"):
        conn.isolation_level = "chaos"
    conn.autocommit = True
    cursor = run(conn.execute("select current_setting('transaction_isolation')"))
    assert run(cursor.fetchone()) == ("repeatable read",)


def test_transactions_are_refused(conn: Any) -> None:
    """There is none that stays open."""
    with pytest.raises(psycopg.NotSupportedError, match="websocket"):
        conn.transaction()


def test_autocommit(run: Runs, ps_lab: Lab, table: str) -> None:
    """Each statement is committed by itself; several parameters are one transaction; a batch is one, too."""
    conn = run.connect(ps_lab.url, bouncer="write-pool", autocommit=True)
    cursor = conn.cursor()
    run(cursor.execute(f"insert into {table} values (%(n)s, 'a')", {"n": 1}))
    assert (cursor.rowcount, cursor.statusmessage, cursor.description) == (1, "INSERT 0 1", None)
    with ps_lab.round_trips() as counted:
        run(cursor.executemany(f"insert into {table} values (%s)", ([n] for n in (2, 3))))
    assert (counted.count, cursor.rowcount) == (1, 2)
    with pytest.raises(psycopg.errors.UniqueViolation):
        run(cursor.executemany(f"insert into {table} values (%s)", [[4], [4]]))
    run(cursor.executemany(f"insert into {table} values (%s)", []))
    assert ps_lab.sql(f"select n from {table} order by n") == [(1,), (2,), (3,)]
    conn.read_only = True
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        run(conn.execute(f"delete from {table}"))
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        run(cursor.executemany(f"delete from {table} where n = %s", [[1]]))
    with pytest.raises(psycopg.NotSupportedError, match="READ ONLY"):
        run(conn.execute(f"vacuum {table}"))
    run(conn.commit())
    run(conn.rollback())
    run(conn.close())
    for use in (conn.cursor, conn.batch, conn.commit, conn.rollback):
        with pytest.raises(psycopg.InterfaceError, match="connection is closed"):
            run(use())
    run(conn.client.close())


def test_batches(run: Runs, conn: Any, ps_lab: Lab, table: str) -> None:
    """A batch is a transaction that is written as one, and is committed at its end, also without autocommit."""
    if run.runner is None:
        with conn.batch() as batch:
            pending = batch.execute(f"insert into {table} values (1)")
    else:

        async def within() -> Any:
            async with conn.batch() as batch:
                return batch.execute(f"insert into {table} values (1)")

        pending = run(within())
    assert pending.result.rowcount == 1
    assert ps_lab.sql(f"select n from {table}") == [(1,)]


def test_context(run: Runs, ps_lab: Lab) -> None:
    """Adapters of a context's are used, and registering on a connection leaves them as they are."""
    adapters = AdaptersMap(psycopg.adapters)
    adapters.register_loader("int4", TextLoader)
    conn = run.connect(ps_lab.url, bouncer="write-pool", context=_Context(adapters))
    assert run(run(conn.execute("select 5, 'x'::text")).fetchone()) == ("5", "x")
    conn.adapters.register_loader("text", FloatLoader)
    assert run(run(conn.execute("select 5, '2.5'::text")).fetchone()) == ("5", 2.5)
    assert adapters.get_loader(psycopg.postgres.types["text"].oid, Format.TEXT) is not FloatLoader
    run(conn.client.close())


class _Context:
    connection = None

    def __init__(self, adapters: AdaptersMap) -> None:
        self.adapters = adapters


SCENARIO = (
    ("select %s::int4 as n, %s::numeric(6,2) as d, %s::varchar(5) as v", (5, 2, "abc")),
    ("select '2026-01-02'::timestamp(3), '1 day'::interval, null, array[1, 2]", ()),
    ("select 1 where false", ()),
)


def test_descriptions(run: Runs, conn: Any, ps_lab: Lab) -> None:
    """Columns are described as by psycopg."""
    with psycopg.connect(**ps_core.conninfo(ps_lab.topology.direct)) as stock:
        for text, params in SCENARIO:
            theirs, ours = stock.execute(text, params), run(conn.execute(text, params))
            assert [tuple(column) for column in ours.description] == [tuple(column) for column in theirs.description or ()]
            assert [column.type_display for column in ours.description] == [
                column.type_display for column in theirs.description or ()
            ]
