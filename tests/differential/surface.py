"""What psycopg's connections and cursors offer, as scenarios: each returns what its caller sees.

Written once, for asyncio; `sync` makes the sync form of the same text, as psycopg itself makes its own.
"""

from __future__ import annotations

import inspect
import re
import threading
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import psycopg
from psycopg import pq, sql
from psycopg.adapt import Dumper, Loader
from psycopg.rows import args_row, class_row, dict_row, kwargs_row, namedtuple_row, scalar_row, tuple_row
from psycopg.types.numeric import FloatLoader

from tests.differential.outcome import of_error, shown

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["SCENARIOS", "sync"]

NUMBERS: Final = "select n, f, d, t from differential.numbers order by n"


class Tag(str):
    __slots__ = ()


class TagDumper(Dumper):
    oid = 25

    def dump(self, obj: Any) -> bytes:
        return b"<%s>" % obj.encode()


class Shout(str):
    """psycopg itself is told how to dump it."""

    __slots__ = ()


psycopg.adapters.register_dumper(Shout, TagDumper)


class Money(Loader):
    def load(self, data: Any) -> str:
        return "numeric " + bytes(data).decode()


class Number(NamedTuple):
    n: int
    f: float


def state(conn: Any) -> Any:
    return conn.info.status.name, conn.info.transaction_status.name, conn.info.pipeline_status.name


def told(exc: BaseException) -> dict[str, Any]:
    found = of_error(exc)
    found.pop("position", None)
    return found


def seen(cursor: Any) -> dict[str, Any]:
    columns = cursor.description
    return {
        "columns": columns
        and [(c.name, c.type_code, c.display_size, c.internal_size, c.precision, c.scale, c.null_ok) for c in columns],
        "rowcount": cursor.rowcount,
        "rownumber": cursor.rownumber,
        "status": cursor.statusmessage,
        "closed": cursor.closed,
    }


async def executes(conn: Any) -> Any:
    cursor = conn.cursor()
    found = [seen(cursor)]
    await cursor.execute(NUMBERS)
    found += [
        seen(cursor),
        await cursor.fetchone(),
        seen(cursor),
        await cursor.fetchmany(2),
        await cursor.fetchmany(),
        await cursor.fetchall(),
    ]
    await cursor.execute("update differential.numbers set t = t where n < %s", [3])
    found += [seen(cursor), state(conn)]
    try:
        await cursor.fetchone()
    except psycopg.Error as exc:
        found.append(told(exc))
    await cursor.close()
    found.append(seen(cursor))
    try:
        await cursor.execute("select 1")
    except psycopg.Error as exc:
        found.append(told(exc))
    return found


async def iterates(conn: Any) -> Any:
    cursor = await conn.execute(NUMBERS)
    return [shown(row) async for row in cursor] + [cursor.rownumber]


async def scrolls(conn: Any) -> Any:
    cursor = await conn.execute(NUMBERS)
    found: list[Any] = []
    for value, mode in ((2, "relative"), (-1, "relative"), (0, "absolute"), (4, "absolute"), (9, "absolute"), (-9, "relative")):
        try:
            await cursor.scroll(value, mode)
            found.append((cursor.rownumber, await cursor.fetchone()))
        except (IndexError, ValueError, psycopg.Error) as exc:
            found.append((cursor.rownumber, type(exc).__name__, str(exc)))
    return found


async def next_sets(conn: Any) -> Any:
    cursor = await conn.execute(
        "select 1 as a; select 2 as b, 3; update differential.numbers set t = t; select n from differential.numbers"
    )
    found = []
    more: Any = True
    while more:
        found.append((seen(cursor), await cursor.fetchall() if cursor.description else None))
        more = cursor.nextset()
    return [*found, more]


async def row_factories(conn: Any) -> Any:
    found: list[Any] = []
    factories: tuple[Any, ...] = (
        *(tuple_row, dict_row, namedtuple_row, scalar_row),
        *(class_row(Number), args_row(Number), kwargs_row(dict)),
    )
    for factory in factories:
        cursor = conn.cursor(row_factory=factory)
        await cursor.execute("select n, f from differential.numbers order by n limit 2")
        found.append([repr(row) for row in await cursor.fetchall()])
    conn.row_factory = dict_row
    cursor = await conn.execute("select %s as x", [1])
    found.append(await cursor.fetchone())
    conn.row_factory = tuple_row
    cursor.row_factory = scalar_row
    await cursor.execute("select 7")
    found.append(await cursor.fetchone())
    return found


async def adapters(conn: Any) -> Any:
    """What one cursor, one connection and psycopg itself offer."""
    found = []
    cursor = conn.cursor()
    cursor.adapters.register_loader("numeric", Money)
    cursor.adapters.register_dumper(Tag, TagDumper)
    await cursor.execute("select 1.5, %s, pg_typeof(%s)::text", [Tag("a"), Tag("a")])
    found.append(await cursor.fetchone())
    cursor = await conn.execute("select 1.5, %s::text", [Tag("a")])
    found.append(await cursor.fetchone())
    conn.adapters.register_loader("numeric", FloatLoader)
    conn.adapters.register_dumper(Decimal, psycopg.types.numeric.DecimalDumper)
    conn.adapters.register_dumper(str, psycopg.types.string.StrDumper)
    cursor = await conn.execute("select 1.5, %s + 1, pg_typeof(%s)::text", [Decimal(2), "a"])
    found.append(shown(await cursor.fetchone()))
    cursor = await conn.execute("select %s, pg_typeof(%s)::text", [Shout("b"), Shout("b")])
    found.append(await cursor.fetchone())
    return found


async def executemany(conn: Any) -> Any:
    found: list[Any] = []
    cursor = conn.cursor()
    await cursor.executemany(
        "insert into differential.stored (int4, float8, numeric) values (%s, %s, %s)", [(7, 2.5, 2.5), (8, 1.0, Decimal(1))]
    )
    found.append(seen(cursor))
    await cursor.executemany(
        "insert into differential.stored (int4, float8) values (%(a)s, %(a)s / 2) returning int4, float8",
        [{"a": 9}, {"a": 10}, {"a": 11}],
        returning=True,
    )
    more: Any = True
    while more:
        found.append((await cursor.fetchall(), seen(cursor)))
        more = cursor.nextset()
    await cursor.executemany("select 1 where %s", [])
    found.append(seen(cursor))
    try:
        await cursor.executemany("insert into differential.stored (int4) values (7 / %s)", [(1,), (0,), (2,)])
    except psycopg.Error as exc:
        found.append(told(exc))
    await conn.rollback()
    cursor = await conn.execute(
        "select int4, float8::text, numeric::text from differential.stored where int4 > 6 order by 1, 2, 3"
    )
    found.append(await cursor.fetchall())
    await conn.execute("delete from differential.stored where int4 > 6")
    await conn.commit()
    return found


async def transactions(conn: Any) -> Any:
    found: list[Any] = [state(conn)]
    async with conn.transaction() as outer:
        found += [state(conn), repr(outer).partition(" at ")[0], outer.savepoint_name]
        await conn.execute("insert into differential.stored (int4) values (70)")
        try:
            async with conn.transaction("inner") as inner:
                found += [inner.savepoint_name, state(conn)]
                await conn.execute("select 1 / 0")
        except psycopg.Error as exc:
            found += [told(exc), state(conn)]
        async with conn.transaction() as inner:
            await conn.execute("insert into differential.stored (int4) values (71)")
            raise psycopg.Rollback(inner)
        found.append(inner.savepoint_name)
        try:
            await conn.commit()
        except psycopg.Error as exc:
            found.append(told(exc))
    found.append(state(conn))
    async with conn.transaction(force_rollback=True):
        await conn.execute("delete from differential.stored where int4 = 70")
    cursor = await conn.execute("select int4 from differential.stored where int4 >= 70")
    found.append(await cursor.fetchall())
    async with conn.transaction():
        await conn.execute("delete from differential.stored where int4 >= 70")
    await conn.commit()
    return [*found, state(conn)]


async def characteristics(conn: Any) -> Any:
    found: list[Any] = [conn.autocommit, conn.isolation_level, conn.read_only, conn.deferrable]
    await conn.execute("select 1")
    for setter, value in (
        ("set_isolation_level", 4),
        ("set_read_only", True),
        ("set_deferrable", True),
        ("set_autocommit", True),
    ):
        try:
            await getattr(conn, setter)(value)
        except psycopg.Error as exc:
            found.append(told(exc))
    await conn.rollback()
    await conn.set_autocommit(False)
    await conn.set_isolation_level(psycopg.IsolationLevel.SERIALIZABLE)
    await conn.set_read_only(True)
    await conn.set_deferrable(True)
    for name in ("transaction_isolation", "transaction_read_only", "transaction_deferrable"):
        cursor = await conn.execute(f"show {name}")
        found.append(await cursor.fetchone())
    try:
        await conn.execute("delete from differential.stored")
    except psycopg.Error as exc:
        found += [told(exc), state(conn)]
    await conn.rollback()
    await conn.set_isolation_level(None)
    await conn.set_read_only(None)
    await conn.set_deferrable(None)
    return [*found, state(conn)]


async def pipelines(conn: Any) -> Any:
    found: list[Any] = []
    async with conn.pipeline() as pipeline:
        first = await conn.execute("select %s / 2 as x", [5.0])
        second = await conn.execute("select %s::text as y", ["a"])
        found.append(state(conn)[2])
        await pipeline.sync()
        found += [await first.fetchall(), seen(first), await second.fetchone()]
        many = conn.cursor()
        await many.executemany("select %s + 1", [(1,), (2,)], returning=True)
        found.append(await many.fetchall())
    found.append(state(conn))
    await conn.rollback()
    try:
        async with conn.pipeline() as pipeline:
            failing = await conn.execute("select 1 / %s", [0])
            await failing.fetchall()
    except psycopg.Error as exc:
        found.append(told(exc))
    found.append(state(conn)[0::2])
    await conn.rollback()
    cursor = await conn.execute("select 1")
    return [*found, await cursor.fetchone()]


async def copies(conn: Any) -> Any:
    found: list[Any] = []
    cursor = conn.cursor()
    async with cursor.copy("copy differential.stored (int4, float8, numeric, text) from stdin") as copy:
        await copy.write_row((81, 2.5, Decimal("1.50"), "a\tb\\"))
        await copy.write_row((82, float("nan"), None, ""))
        await copy.write("83\t1\t1\t\\N\n")
        await copy.write(b"84\t-0\t1\t\\N\n")
    found.append(seen(cursor))
    async with cursor.copy("copy differential.stored (int4, int8, date) from stdin (format binary)") as copy:
        copy.set_types(["int4", "int8", "date"])
        await copy.write_row((85, 1 << 40, None))
    found.append(seen(cursor))
    async with cursor.copy(
        "copy (select int4, float8, numeric, text from differential.stored where int4 > %s order by 1) to stdout", [80]
    ) as copy:
        copy.set_types(["int4", "float8", "numeric", "text"])
        found.append([shown(row) async for row in copy.rows()])
    found.append(seen(cursor))
    async with cursor.copy("copy (select %s::float8 / 3, %s) to stdout", [2.5, "x"]) as copy:
        found.append(bytes(await copy.read()))
        found.append(bytes(await copy.read()))
    async with cursor.copy("copy (select n from differential.numbers order by 1) to stdout") as copy:
        found += [await copy.read_row(), [bytes(part) async for part in copy]]
    try:
        async with cursor.copy("copy differential.stored (int4) from stdin") as copy:
            await copy.write("x\n")
    except psycopg.Error as exc:
        found += [told(exc), state(conn)]
    await conn.rollback()
    try:
        async with cursor.copy("copy differential.stored (int4) from stdin") as copy:
            raise LookupError("mine")
    except LookupError as exc:
        found += [str(exc), state(conn)]
    await conn.rollback()
    try:
        async with cursor.copy("select 1"):
            pass
    except psycopg.Error as exc:
        found.append(told(exc))
    await conn.rollback()
    await conn.execute("delete from differential.stored where int4 > 6")
    await conn.commit()
    return [*found, state(conn)]


async def streams(conn: Any) -> Any:
    found: list[Any] = []
    for size in (1, 3):
        cursor = conn.cursor()
        found.append(
            [shown(row) async for row in cursor.stream("select generate_series(1, %s::int), %s / 4", [5, 1.0], size=size)]
        )
        found += [cursor.statusmessage, cursor.rowcount]
    try:
        found.extend([row async for row in cursor.stream("select 6 / (3 - i) from generate_series(1, %s::int) i", [5])])
    except psycopg.Error as exc:
        found += [told(exc), state(conn)]
    await conn.rollback()
    rows = cursor.stream("select generate_series(1, 9)")
    async for row in rows:
        found.append(row)
        break
    await rows.aclose()
    await conn.rollback()
    cursor = await conn.execute("select 1")
    return [*found, await cursor.fetchone()]


async def named_cursors(conn: Any) -> Any:
    found: list[Any] = []
    async with conn.transaction():
        async with conn.cursor("numbers", scrollable=True) as cursor:
            await cursor.execute("select n, %s / 3 as x from differential.numbers order by n", [10])
            found += [seen(cursor), await cursor.fetchone(), await cursor.fetchmany(2), cursor.rownumber]
            await cursor.scroll(-2)
            found.append(await cursor.fetchone())
            await cursor.scroll(1, "absolute")
            found += [await cursor.fetchall(), cursor.name, cursor.scrollable, cursor.withhold]
        cursor = conn.cursor("more")
        cursor.itersize = 2
        await cursor.execute("select n from differential.numbers order by n")
        found.append([row async for row in cursor])
        await cursor.close()
    cursor = conn.cursor("none")
    try:
        await cursor.execute("select 1 / 0")
        await cursor.fetchone()
    except psycopg.Error as exc:
        found.append(told(exc))
    await cursor.close()
    await conn.rollback()
    return [*found, state(conn)]


async def notices(conn: Any) -> Any:
    found: list[Any] = []
    heard = lambda diag: found.append((diag.severity, diag.sqlstate, diag.message_primary))  # noqa: E731
    conn.add_notice_handler(heard)
    await conn.execute("do $$begin raise notice 'one'; raise warning 'two %', 2; end$$")
    conn.remove_notice_handler(heard)
    await conn.execute("do $$begin raise notice 'three'; end$$")
    return found


async def information(conn: Any) -> Any:
    info = conn.info
    await conn.execute("select 1")
    found = [
        getattr(info, name)
        for name in ("dbname", "user", "host", "port", "options", "encoding", "server_version", "vendor", "timezone")
    ]
    found += [info.parameter_status(name) for name in ("DateStyle", "TimeZone", "integer_datetimes", "no_such")]
    found += [type(info.backend_pid), info.error_message, info.dsn, info.get_parameters(), info.password]
    found += [conn.closed, conn.broken, type(conn.fileno()), state(conn)]
    await conn.rollback()
    return found


async def cancels(conn: Any) -> Any:
    """A statement under way is cancelled by another thread; a cancel with nothing under way does nothing."""
    found: list[Any] = []
    await conn.cancel_safe()
    conn.cancel()
    over = threading.Event()

    def cancel() -> None:
        while not over.wait(0.01):
            if conn.pgconn.transaction_status == pq.TransactionStatus.ACTIVE:
                conn.cancel()

    thread = threading.Thread(target=cancel)
    thread.start()
    try:
        await conn.execute("select pg_sleep(1)")
    except psycopg.Error as exc:
        found += [type(exc).__name__, exc.sqlstate, str(exc), state(conn)]
    finally:
        over.set()
        thread.join()
    await conn.rollback()
    cursor = await conn.execute("select 1")
    return [*found, await cursor.fetchone()]


async def two_phases(conn: Any) -> Any:
    xid = conn.xid(1, "gtrid", "bqual")
    found: list[Any] = [str(xid)]
    try:
        await conn.tpc_begin(xid)
        await conn.execute("select 1")
        await conn.tpc_prepare()
    except psycopg.Error as exc:
        found.append(told(exc))
    try:
        await conn.tpc_rollback()
    except psycopg.Error as exc:
        found.append(told(exc))
    found.append(state(conn))
    await conn.close()
    return found


async def mistakes(conn: Any) -> Any:
    """What psycopg itself refuses."""
    found: list[Any] = []
    for query, params in (
        ("select %s", []),
        ("select %s, %s", [1]),
        ("select %(a)s", {}),
        ("select %(a)s", [1]),
        ("select %s, %(a)s", [1]),
        ("select %x", [1]),
        ("select % ", [1]),
        ("select %s", 1),
        ("select %s", "a"),
        ("select %s", [object()]),
        ("select 1", [1]),
        ("", None),
        (";", None),
        ("-- nothing", None),
        (b"select 1", None),
        (
            sql.SQL("select {}, {}, %s as x").format(sql.Literal(5), sql.Identifier("n"))
            + sql.SQL(" from differential.numbers limit 1"),
            [2],
        ),
        ("select\n  1 / 0", None),
        ("select nowhere", None),
        ("select \ud800", None),
        ("select %s", ["\x00"]),
        ("select %s", ["\ud800"]),
        ("bad", None),
    ):
        try:
            cursor = await conn.execute(query, params)
            found.append((seen(cursor), await cursor.fetchall() if cursor.description else None))
        except Exception as exc:  # noqa: BLE001 - whatever it is, it is compared
            found.append((told(exc), str(exc) if "$1" not in str(exc) and "LINE" not in str(exc) else ""))
        await conn.rollback()
    return found


async def positions(conn: Any) -> Any:
    """Where no parameter is before it, an error's place is the same, also in a text of several lines."""
    found = []
    for query in ("select nowhere", "select 1,\n  nowhere,\n  2", "selec 1", "select 1;\nselect nowhere"):
        try:
            await conn.execute(query)
        except psycopg.Error as exc:
            found.append((str(exc), exc.diag.statement_position))
        await conn.rollback()
    return found


async def closes(conn: Any) -> Any:
    """The last: the connection as its own context, and what a closed one says."""
    found: list[Any] = []
    async with conn:
        await conn.execute("select 1")
    found += [conn.closed, conn.broken, state(conn)]
    for name in ("commit", "rollback"):
        try:
            await getattr(conn, name)()
        except psycopg.Error as exc:
            found.append(told(exc))
    try:
        await conn.execute("select 1")
    except psycopg.Error as exc:
        found.append(told(exc))
    try:
        conn.cursor()
    except psycopg.Error as exc:
        found.append(told(exc))
    await conn.close()
    return found


async def notifications(conn: Any) -> Any:
    """On the direct path."""
    found: list[Any] = []
    heard = lambda notify: found.append(("handler", notify.channel, notify.payload))  # noqa: E731
    await conn.set_autocommit(True)
    await conn.execute("listen differential")
    await conn.execute("notify differential, 'one'")
    found.extend([(notify.channel, notify.payload) async for notify in conn.notifies(timeout=5, stop_after=1)])
    conn.add_notify_handler(heard)
    await conn.execute("select pg_notify('differential', %s)", ["two"])
    await conn.execute("select 1")
    await conn.execute("unlisten *")
    conn.remove_notify_handler(heard)
    await conn.set_autocommit(False)
    return found


async def prepared(conn: Any) -> Any:
    """On the direct path, where the server binds."""
    conn.prepare_threshold = 1
    found: list[Any] = []
    for value in (1, 2, 2.5, None):
        cursor = await conn.execute("select %s + 1 as x", [value])
        found.append((shown(await cursor.fetchone()), seen(cursor)))
    cursor = await conn.execute("select %s", ["now"], prepare=True)
    found.append(await cursor.fetchone())
    cursor = await conn.execute("select statement, parameter_types::text from pg_prepared_statements order by 1", prepare=False)
    found.append(sorted(await cursor.fetchall()))
    await conn.rollback()
    return found


async def binary_results(conn: Any) -> Any:
    found = []
    for cursor in (conn.cursor(binary=True), conn.cursor()):
        await cursor.execute("select n, f, d, t, %s::float8 from differential.numbers order by n limit 2", [2.5], binary=True)
        found += [shown(await cursor.fetchall()), cursor.format, seen(cursor)]
    return found


class Scenario(NamedTuple):
    """One of them, and where it is run."""

    run: Callable[[Any], Any]
    endpoint: str = "primary"
    binding: str = "client"


SCENARIOS: Final = {
    scenario.run.__name__ + ("" if scenario.binding == "client" else ", " + scenario.binding): scenario
    for scenario in (
        *(
            Scenario(run)
            for run in (
                executes, iterates, scrolls, next_sets, row_factories, adapters, executemany, transactions, characteristics,
                pipelines, copies, streams, named_cursors, notices, information, cancels, two_phases, mistakes, positions,
            )
        ),
        *(Scenario(run, binding="server") for run in (executes, executemany, transactions, pipelines, binary_results)),
        Scenario(notifications, endpoint="direct"),
        Scenario(prepared, endpoint="direct", binding="server"),
        Scenario(closes),
    )
}  # fmt: skip


def sync(run: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return the sync form of a scenario."""
    text = re.sub(r"\b(?:async|await) ", "", inspect.getsource(run)).replace("aclose", "close")
    names: dict[str, Any] = {}
    exec(text, globals(), names)  # the text is this module's
    form: Callable[[Any], Any] = names[run.__name__]
    return form
