"""Whatever fails in whichever way of asking raises Django's errors; where stock lets the driver's out, they are those, too."""

import asyncio
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from asgiref.sync import sync_to_async
from django.db import DataError, Error, connections, transaction
from django.db import utils as django_errors

import ps_django
from ps_lab import Lab

Way = Callable[[Any, Lab], None]
HALFWAY = "SELECT 1 / (3 - n) FROM generate_series(1, 5) AS n"
TWICE = "CREATE TEMPORARY TABLE twice (id int UNIQUE DEFERRABLE INITIALLY DEFERRED) ON COMMIT DROP"


def _execute(connection: Any, lab: Lab) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1 / 0")


def _executemany(connection: Any, lab: Lab) -> None:
    with connection.cursor() as cursor:
        cursor.executemany("SELECT 1 / %s", [(1,), (0,)])


def _callproc(connection: Any, lab: Lab) -> None:
    with connection.cursor() as cursor:
        cursor.callproc("nowhere", [1])


def _copy(connection: Any, lab: Lab) -> None:
    with connection.cursor() as cursor, cursor.copy("COPY nowhere TO STDOUT") as copy:
        list(copy)


def _copy_out(connection: Any, lab: Lab) -> None:
    with connection.cursor() as cursor, cursor.copy(f"COPY ({HALFWAY}) TO STDOUT") as copy:
        list(copy)


def _copy_in(connection: Any, lab: Lab) -> None:
    with connection.cursor() as cursor, cursor.copy("COPY shop_product FROM STDIN") as copy:
        copy.write("no product")


def _stream(connection: Any, lab: Lab) -> None:
    with transaction.atomic(using=connection.alias), connection.cursor() as cursor:
        list(cursor.stream("SELECT * FROM nowhere"))


def _stream_halfway(connection: Any, lab: Lab) -> None:
    with transaction.atomic(using=connection.alias), connection.cursor() as cursor:
        list(cursor.stream(HALFWAY))


def _named(connection: Any, lab: Lab) -> None:
    with transaction.atomic(using=connection.alias), connection.chunked_cursor() as cursor:
        cursor.execute("SELECT * FROM nowhere")


def _named_halfway(connection: Any, lab: Lab) -> None:
    with transaction.atomic(using=connection.alias), connection.chunked_cursor() as cursor:
        cursor.execute(HALFWAY)
        while cursor.fetchmany(1):
            pass


def _iterator_halfway(connection: Any, lab: Lab) -> None:
    from django.db.models import F, Value

    from django_shop.shop.models import Product

    with transaction.atomic(using=connection.alias):
        products = Product.objects.using(connection.alias)
        products.all().delete()
        products.bulk_create(Product(name=f"cup {number}", price=1, stock=number) for number in range(3))
        list(products.annotate(share=Value(1) / (F("stock") - 1)).order_by("stock").iterator(chunk_size=1))


def _fetch(method: str) -> Way:
    def fetch(connection: Any, lab: Lab) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL work_mem = '5MB'")
            getattr(cursor, method)()

    return fetch


def _iterate(connection: Any, lab: Lab) -> None:
    with connection.cursor() as cursor:
        list(cursor)


def _scroll(connection: Any, lab: Lab) -> None:
    with connection.cursor() as cursor:
        cursor.scroll(1)


def _closed(connection: Any, lab: Lab) -> None:
    cursor = connection.cursor()
    cursor.close()
    cursor.execute("SELECT 1")


def _commit(connection: Any, lab: Lab) -> None:
    with transaction.atomic(using=connection.alias), connection.cursor() as cursor:
        cursor.execute(TWICE)
        cursor.execute("INSERT INTO twice VALUES (1), (1)")


def _savepoint(connection: Any, lab: Lab) -> None:
    with transaction.atomic(using=connection.alias):
        connection.cursor().execute("SELECT 1")
        connection._savepoint("Nobody's\" name")


def _savepoint_commit(connection: Any, lab: Lab) -> None:
    with transaction.atomic(using=connection.alias):
        connection._savepoint_commit("nobody")


def _savepoint_rollback(connection: Any, lab: Lab) -> None:
    with transaction.atomic(using=connection.alias):
        connection._savepoint_rollback("nobody")


def _connect(connection: Any, lab: Lab) -> None:
    other = type(connection)({**connection.settings_dict, "PASSWORD": "wrong"}, connection.alias)
    other.cursor()


def _after_cut(work: Callable[[Any, Any], None]) -> Way:
    """In a transaction whose connection is lost."""

    def way(connection: Any, lab: Lab) -> None:
        with transaction.atomic(using=connection.alias), connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            lab.edge.cut()
            work(connection, cursor)

    return way


def _named_after_cut(work: Callable[[Any], object]) -> Way:
    def way(connection: Any, lab: Lab) -> None:
        with transaction.atomic(using=connection.alias), connection.chunked_cursor() as cursor:
            cursor.execute("SELECT * FROM generate_series(1, 5)")
            cursor.fetchmany(1)
            lab.edge.cut()
            work(cursor)

    return way


def _cut_halfway(read: Callable[[Any], Iterator[Any]]) -> Way:
    def way(connection: Any, lab: Lab) -> None:
        with transaction.atomic(using=connection.alias), connection.cursor() as cursor:
            rows = read(cursor)
            next(rows)
            lab.edge.cut()
            list(rows)

    return way


MANY = "SELECT repeat('x', 1000) FROM generate_series(1, 100000)"


def _copied(cursor: Any) -> Iterator[Any]:
    with cursor.copy(f"COPY ({MANY}) TO STDOUT") as copy:
        yield from copy


def _copy_after_cut(connection: Any, cursor: Any) -> None:
    with cursor.copy("COPY (SELECT 1) TO STDOUT"):
        pass


def _nothing(connection: Any, cursor: Any) -> None:
    pass


OPERATIONAL = "OperationalError"
WAYS: dict[str, tuple[Way, str, str]] = {
    "execute": (_execute, "DataError", ""),
    "executemany": (_executemany, "DataError", ""),
    "callproc": (_callproc, "ProgrammingError", ""),
    "copy": (_copy, "ProgrammingError", "UndefinedTable"),
    "copy: a row": (_copy_out, "DataError", "DivisionByZero"),
    "copy: what is written": (_copy_in, "DataError", "InvalidTextRepresentation"),
    "stream": (_stream, "ProgrammingError", "UndefinedTable"),
    "stream: a row": (_stream_halfway, "DataError", "DivisionByZero"),
    "server-side cursor": (_named, "ProgrammingError", ""),
    "server-side cursor: a chunk": (_named_halfway, "DataError", ""),
    "iterator(): a chunk": (_iterator_halfway, "DataError", ""),
    "fetchone": (_fetch("fetchone"), "ProgrammingError", ""),
    "fetchmany": (_fetch("fetchmany"), "ProgrammingError", ""),
    "fetchall": (_fetch("fetchall"), "ProgrammingError", ""),
    "iteration": (_iterate, "ProgrammingError", ""),
    "scroll": (_scroll, "ProgrammingError", "ProgrammingError"),
    "a closed cursor": (_closed, "InterfaceError", ""),
    "commit": (_commit, "IntegrityError", ""),
    "savepoint": (_savepoint, "ProgrammingError", ""),
    "savepoint: release": (_savepoint_commit, OPERATIONAL, ""),
    "savepoint: rollback": (_savepoint_rollback, OPERATIONAL, ""),
    "connect": (_connect, OPERATIONAL, ""),
    "lost: execute": (_after_cut(lambda _, cursor: cursor.execute("SELECT 1")), OPERATIONAL, ""),
    "lost: executemany": (_after_cut(lambda _, cursor: cursor.executemany("SELECT %s", [(1,), (2,)])), OPERATIONAL, ""),
    "lost: callproc": (_after_cut(lambda _, cursor: cursor.callproc("now")), OPERATIONAL, ""),
    "lost: copy": (_after_cut(_copy_after_cut), OPERATIONAL, OPERATIONAL),
    "lost: copy, its rows": (_cut_halfway(_copied), OPERATIONAL, OPERATIONAL),
    "lost: stream, its rows": (_cut_halfway(lambda cursor: cursor.stream(MANY)), OPERATIONAL, OPERATIONAL),
    "lost: server-side cursor, fetchmany": (_named_after_cut(lambda cursor: cursor.fetchmany(1)), OPERATIONAL, ""),
    "lost: server-side cursor, iteration": (_named_after_cut(list), OPERATIONAL, ""),
    "lost: server-side cursor, close": (_named_after_cut(lambda cursor: cursor.close()), OPERATIONAL, OPERATIONAL),
    "lost: savepoint": (_after_cut(lambda connection, _: connection._savepoint("x")), OPERATIONAL, ""),
    "lost: commit": (_after_cut(_nothing), OPERATIONAL, ""),
    "lost: check_constraints": (_after_cut(lambda connection, _: connection.check_constraints()), OPERATIONAL, ""),
}
"""What fails, Django's error, and the driver's that stock lets out in its place."""


def failure(way: Way, alias: str, lab: Lab) -> BaseException:
    """Return what it raises, in a thread's own connection."""
    connections[alias].close()
    try:
        way(connections[alias], lab)
    except (Error, psycopg.Error) as exc:
        return exc
    finally:
        connections[alias].close()
    raise AssertionError("it did not fail")


@pytest.mark.parametrize("threaded", [False, True], ids=["sync", "sync_to_async"])
@pytest.mark.parametrize("name", WAYS)
def test_errors(ps_lab: Lab, stock: str, name: str, threaded: bool) -> None:
    """The error is Django's, with the driver's as its cause; where it is the driver's on stock, it is that as well."""
    way, of_django, of_driver = WAYS[name]
    run: Callable[..., BaseException] = failure
    if threaded:
        run = lambda *given: asyncio.run(sync_to_async(failure)(*given))  # noqa: E731
    kind = getattr(django_errors, of_django)
    driver = getattr(psycopg.errors, of_driver, getattr(psycopg, of_driver, Error)) if of_driver else None
    usual = run(way, stock, ps_lab)
    assert type(usual) is (driver or kind), usual
    for alias in ("default", "direct"):
        error = run(way, alias, ps_lab)
        assert isinstance(error, kind), error
        assert isinstance(error.__cause__, psycopg.Error)
        assert type(error) is kind if driver is None else isinstance(error, driver)
        if driver is not None:
            assert getattr(error, "sqlstate", None) == getattr(usual, "sqlstate", None)
            again = pickle.loads(pickle.dumps(error))
            assert (type(again), again.args, again.diag.message_primary) == (
                type(error),
                error.args,
                error.diag.message_primary,
            )


def test_session_that_the_direct_path_refuses(ps_lab: Lab, site: None) -> None:
    """What holds behind the pooler and can be set no longer on the direct path is an error of Django's."""
    ps_lab.sql("CREATE ROLE err_role NOLOGIN")
    ps_lab.sql("GRANT err_role TO app")
    with connections["default"].cursor() as cursor:
        cursor.execute("SET ROLE err_role")
    ps_lab.sql("DROP ROLE err_role")
    with ps_django.on_direct_path(), pytest.raises(DataError, match="err_role"):
        connections["default"].cursor()
    connections["default"].close()
