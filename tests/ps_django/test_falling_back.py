"""In every way of asking a replica's alias: what the replica refuses is answered by the primary."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connections, transaction
from django.db.utils import DataError, InternalError
from django.test.utils import CaptureQueriesContext

import ps_django
from ps_core import Token, use_token
from ps_lab import Lab

COPY = "COPY shop_product (name, price, stock) FROM STDIN"
INSERT = "INSERT INTO shop_product (name, price, stock) VALUES (%s, 1, 1)"
WHERE = "SELECT pg_is_in_recovery()"


@pytest.fixture
def shop(ps_lab: Lab) -> Iterator[Any]:
    """The products, of which there is none."""
    from django_shop.shop.models import Product

    ps_lab.sql(
        "CREATE OR REPLACE FUNCTION dj_product(named text) RETURNS text LANGUAGE sql AS"
        " $$INSERT INTO shop_product (name, price, stock) VALUES (named, 1, 1) RETURNING name$$"
    )
    Product.objects.all().delete()
    ps_lab.wait_replicas_caught_up()
    with use_token(None):
        yield Product
    Product.objects.all().delete()


def copy_in(cursor: Any) -> None:
    """Do what django-pgbulk does."""
    with cursor.copy(COPY) as copy:
        copy.write_row(("copy", 1, 1))


def copy_out(cursor: Any) -> Any:
    with cursor.copy(f"COPY ({WHERE}) TO STDOUT") as copy:
        return [row == ("t",) for row in copy.rows()]


WRITES: dict[str, Callable[[Any], Any]] = {
    "execute": lambda cursor: cursor.execute(INSERT, ["execute"]),
    "executemany": lambda cursor: cursor.executemany(INSERT, ((name,) for name in ["executemany"])),
    "callproc": lambda cursor: cursor.callproc("dj_product", ["callproc"]),
    "copy": copy_in,
    "stream": lambda cursor: list(cursor.stream(f"{INSERT} RETURNING id", ["stream"])),
}
READS: dict[str, Callable[[Any], Any]] = {
    "execute": lambda cursor: cursor.execute(WHERE).fetchall(),
    "executemany": lambda cursor: (cursor.executemany("SELECT %s", iter([(1,), (2,)])), [])[1],
    "callproc": lambda cursor: (cursor.callproc("pg_is_in_recovery"), cursor.fetchall())[1],
    "copy": copy_out,
    "stream": lambda cursor: list(cursor.stream(WHERE)),
}


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("way", WRITES)
def test_writes(ps_lab: Lab, shop: Any, way: str, debug: bool) -> None:
    """What writes is refused by the replica once, and is done by the primary, once."""
    connections["replica"].force_debug_cursor = debug
    try:
        with connections["replica"].cursor() as cursor:
            WRITES[way](cursor)
    finally:
        connections["replica"].force_debug_cursor = False
    assert ps_lab.sql("SELECT name FROM shop_product") == [(way,)]


@pytest.mark.parametrize("way", WRITES)
def test_writes_in_a_block(ps_lab: Lab, shop: Any, way: str) -> None:
    """A transaction on the replica only reads."""
    with pytest.raises(InternalError, match="only reads"), transaction.atomic(using="replica"):
        with connections["replica"].cursor() as cursor:
            WRITES[way](cursor)
    assert ps_lab.sql("SELECT name FROM shop_product") == []


@pytest.mark.parametrize("block", [False, True])
@pytest.mark.parametrize("way", READS)
def test_behind(ps_lab: Lab, shop: Any, way: str, block: bool) -> None:
    """What the replica has not replayed is read from the primary; what follows the transaction, from the replica."""
    ahead = Token(identity=ps_lab.branch, position=1 << 62, at=time.time())
    with use_token(ahead), ps_lab.round_trips() as trips:
        if block:
            with transaction.atomic(using="replica"), connections["replica"].cursor() as cursor:
                assert not any(row[0] if isinstance(row, tuple) else row for row in READS[way](cursor))
        else:
            with connections["replica"].cursor() as cursor:
                assert not any(row[0] if isinstance(row, tuple) else row for row in READS[way](cursor))
    assert trips.by_path["primary"]
    with use_token(None), ps_lab.round_trips() as trips, connections["replica"].cursor() as cursor:
        READS[way](cursor)
    assert set(trips.by_path) == {"replica"}


def test_logged(ps_lab: Lab, shop: Any) -> None:
    """A COPY is logged as by Django, with who answered."""
    with CaptureQueriesContext(connections["replica"]) as queries, connections["replica"].cursor() as cursor:
        copy_in(cursor)
    assert [(query["sql"], query["endpoint"]) for query in queries] == [(COPY, "default")]


def test_copy_of_a_queryset(ps_lab: Lab, shop: Any) -> None:
    """A package that copies into the database of a queryset may do so where reads go to replicas."""
    with ps_django.reading(), connections[shop.objects.all().db].cursor() as cursor:
        assert cursor.db.alias == "replica"
        copy_in(cursor)
        assert shop.objects.get().name == "copy"


def test_error_of_what_is_copied(ps_lab: Lab, shop: Any) -> None:
    """What fails later than at its beginning is an error, and is not done twice."""
    with pytest.raises(DataError), connections["replica"].cursor() as cursor, cursor.copy(COPY) as copy:
        copy.write("no product")
    assert ps_lab.sql("SELECT name FROM shop_product") == []
