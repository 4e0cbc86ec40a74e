"""Transactions on a replica's alias: the primary stands in for what the replica cannot answer, as outside of one."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import pytest
from django.db import DataError, InternalError, OperationalError, connections, transaction
from django.db.models.expressions import RawSQL
from django.http import HttpRequest, HttpResponse
from django.test import Client, override_settings
from django.urls import path

import ps_django
from ps_core import Token, use_token
from ps_django.test import databases_at
from ps_django.transaction import blocks_of_request, expect_blocks
from ps_lab import Lab

WHERE = "SELECT pg_is_in_recovery()"


def products(request: HttpRequest) -> HttpResponse:
    """POST makes a product; GET tells the names, and who answered."""
    from django_shop.shop.models import Product

    if request.method == "POST":
        Product.objects.create(name=request.POST["name"], price=1, stock=1)
        return HttpResponse()
    assert connections["replica"].in_atomic_block
    return HttpResponse(f"{[one.name for one in Product.objects.all()]} {answers()}")


def write(request: HttpRequest) -> HttpResponse:
    """Write on the replica's alias, and fail where that is asked for."""
    from django_shop.shop.models import Product

    Product.objects.using("replica").get_or_create(name="pan", defaults={"price": 1, "stock": 1})
    with transaction.atomic():
        Product.objects.using("replica").update(stock=7)
    ask(query="SELECT dj_double('pan')")
    assert not request.POST.get("fails")
    return HttpResponse()


def answers() -> str:
    """Tell who answers a read."""
    from django_shop.shop.models import Product
    from ps_demo.bank_django import InRecovery

    return "replica" if Product.objects.values_list(InRecovery(), flat=True).first() else "primary"


@transaction.non_atomic_requests
@transaction.non_atomic_requests(using="replica")
def own(request: HttpRequest) -> HttpResponse:
    """Read and write in blocks of its own."""
    from django_shop.shop.models import Product

    with transaction.atomic():
        where = Product.objects.all().db
        with pytest.raises(InternalError, match="only reads"), transaction.atomic(using="replica"):
            Product.objects.using("replica").create(name="own", price=1, stock=1)
    return HttpResponse(where)


def undo(request: HttpRequest) -> HttpResponse:
    """Undo what was written on the replica's alias, in the two ways in which Django does that by hand."""
    from django_shop.shop.models import Product

    if request.POST["by"] == "savepoint":
        connections["replica"].savepoint()
    Product.objects.using("replica").create(name="undone", price=1, stock=1)
    transaction.set_rollback(True, using="replica")
    return HttpResponse()


urlpatterns = [path("products", products), path("write", write), path("own", own), path("undo", undo)]


@pytest.fixture
def late(ps_lab: Lab) -> Iterator[None]:
    """Replicas that are late: they have a product, and nothing that follows."""
    from django_shop.shop.models import Product

    Product.objects.all().delete()
    Product.objects.create(name="cup", price=1, stock=1)
    ps_lab.wait_replicas_caught_up()
    ps_lab.set_replay_delay(60)
    with use_token(None):
        yield
    ps_lab.set_replay_delay(0)
    Product.objects.all().delete()


@contextmanager
def atomic_requests(*aliases: str) -> Iterator[None]:
    """Let requests be transactions of these aliases."""
    for alias in aliases:
        connections[alias].settings_dict["ATOMIC_REQUESTS"] = True
    try:
        yield
    finally:
        for alias in aliases:
            connections[alias].settings_dict["ATOMIC_REQUESTS"] = False


def ahead(lab: Lab, position: int | None = 1 << 62) -> Token:
    """What a caller has seen that no replica has."""
    return Token(identity=lab.branch, position=position, at=time.time())


def ask(alias: str = "replica", query: str = WHERE) -> Any:
    """The first value of an answer on an alias."""
    with connections[alias].cursor() as cursor:
        cursor.execute(query)
        row = cursor.fetchone()
    assert row is not None
    return row[0]


@override_settings(ROOT_URLCONF=__name__)
@pytest.mark.parametrize("aliases", [("default", "replica"), ("replica",)])
def test_atomic_requests(ps_lab: Lab, late: None, aliases: tuple[str, ...]) -> None:
    """With ATOMIC_REQUESTS on a replica's alias, a GET after its user's write is the primary's; others are the replicas'."""
    user, other = Client(), Client()
    with atomic_requests(*aliases):
        assert user.post("/products", {"name": "pot"}).status_code == 200
        for _ in range(2):
            assert user.get("/products").content == b"['cup', 'pot'] primary"
            assert other.get("/products").content == b"['cup'] replica"
    assert not connections["replica"].in_atomic_block


@override_settings(ROOT_URLCONF=__name__)
def test_writes_of_a_request(ps_lab: Lab, late: None) -> None:
    """What a request writes on the replica's alias is in its transaction on the primary, where both are the request's."""
    stocks = "SELECT array_agg(stock ORDER BY id) FROM shop_product"
    ps_lab.sql(
        "CREATE OR REPLACE FUNCTION dj_double(product text) RETURNS int LANGUAGE sql AS"
        " $$UPDATE shop_product SET stock = stock * 2 WHERE name = product RETURNING stock$$"
    )
    ps_lab.set_replay_delay(0)
    ps_lab.wait_replicas_caught_up()
    with atomic_requests("default", "replica"):
        with pytest.raises(AssertionError):
            Client().post("/write", {"fails": "yes"})
        assert ps_lab.sql(stocks) == [([1],)]
        Client().post("/write")
        assert ps_lab.sql(stocks) == [([7, 14],)]
    with atomic_requests("replica"), pytest.raises(InternalError, match="only reads"):
        Client().post("/write")


@override_settings(ROOT_URLCONF=__name__)
def test_blocks_of_its_own(ps_lab: Lab, late: None) -> None:
    """What a view, a task or a test opens itself is no request's block: it reads on the primary, and rolls back what it says."""
    from django_shop.shop.models import Product

    with atomic_requests("default", "replica"):
        assert Client().get("/own").content == b"default"
        with ps_django.reading(), transaction.atomic():
            assert Product.objects.all().db == "default"
            with pytest.raises(InternalError, match="only reads"), transaction.atomic(using="replica"):
                Product.objects.using("replica").create(name="own", price=1, stock=1)


@override_settings(ROOT_URLCONF=__name__)
def test_what_a_request_undoes(ps_lab: Lab, late: None) -> None:
    """A savepoint on the replica's alias undoes nothing on the primary's, so what would write behind it is refused."""
    from django_shop.shop.models import Product

    with atomic_requests("default", "replica"):
        assert Client().post("/undo", {"by": "block"}).status_code == 200
        with pytest.raises(InternalError, match="only reads"):
            Client().post("/undo", {"by": "savepoint"})
    assert not Product.objects.filter(name="undone").exists()


@pytest.mark.parametrize("position", [1 << 62, None])
@pytest.mark.parametrize("before", [0, 2])
def test_stands_in(ps_lab: Lab, position: int | None, before: int) -> None:
    """From what the replica refuses to the end of the block, the primary answers, READ ONLY; then the replica again."""
    with use_token(None), transaction.atomic(using="replica"):
        assert [ask() for _ in range(before)] == [True] * before
        with use_token(ahead(ps_lab, position)):
            assert ask() is False
        assert ask() is False
        with transaction.atomic(using="replica"):
            assert ask() is False
        with pytest.raises(InternalError, match="read-only"), transaction.atomic(using="replica"):
            ask(query="CREATE TABLE never (id int)")
        assert ask() is False
    with use_token(None):
        assert ask() is True


def test_first_is_a_savepoint(ps_lab: Lab) -> None:
    """A block within the block begins where the first one is."""
    with use_token(ahead(ps_lab)), transaction.atomic(using="replica"):
        with transaction.atomic(using="replica"):
            assert ask() is False
        assert ask() is False
    with use_token(None):
        assert ask() is True


def test_what_was_set_on_the_primary(ps_lab: Lab, late: None) -> None:
    """What a middleware SETs on the primary's alias holds for the reads of a request, also in its block on the replica."""
    from django_shop.shop.models import Product

    tenant = RawSQL("nullif(current_setting('app.tenant', true), '')", ())
    for alias in ("default", "replica"):
        connections[alias].ensure_connection()
    ask("default", "SELECT set_config('app.tenant', '7', false)")
    try:
        with atomic_requests("default", "replica"), ps_django.reading(), use_token(None), blocks_of_request():
            expect_blocks(None)
            with transaction.atomic(using="default"), transaction.atomic(using="replica"):
                assert Product.objects.all().db == "replica"
                assert Product.objects.values_list(tenant, flat=True).first() == "7"
    finally:
        connections["default"].close()


def test_autocommit_off(ps_lab: Lab) -> None:
    """The same in a transaction that is begun by hand, until its end."""
    transaction.set_autocommit(False, using="replica")
    try:
        for end in (transaction.commit, transaction.rollback):
            with use_token(ahead(ps_lab)):
                assert ask() is False
            with use_token(None):
                assert ask() is False
                end(using="replica")
                assert ask() is True
                end(using="replica")
    finally:
        transaction.set_autocommit(True, using="replica")


def test_after_an_error(ps_lab: Lab) -> None:
    """A block that ends with an error ends at the replica, too."""
    with pytest.raises(ZeroDivisionError), use_token(ahead(ps_lab)), transaction.atomic(using="replica"):
        assert ask() is False
        raise ZeroDivisionError
    with use_token(None):
        assert ask() is True


def test_cancelled_by_replay(ps_lab: Lab) -> None:
    """A read that replay cancels twice is the primary's, with what follows; one of a transaction with a snapshot is an error."""
    ps_lab.sql(
        "CREATE OR REPLACE FUNCTION dj_conflict() RETURNS int LANGUAGE plpgsql STABLE AS $$ BEGIN IF pg_is_in_recovery() THEN"
        " RAISE EXCEPTION 'canceling statement due to conflict with recovery' USING ERRCODE = '40001'; END IF; RETURN 1; END $$"
    )
    ps_lab.wait_replicas_caught_up()
    with use_token(None):
        assert ask(query="SELECT dj_conflict()") == 1
        with transaction.atomic(using="replica"):
            assert ask() is True
            assert ask(query="SELECT dj_conflict()") == 1
            assert ask() is False
        with pytest.raises(OperationalError, match="conflict"), transaction.atomic(using="replica"):
            with transaction.atomic(using="replica"):
                assert ask() is True
            ask(query="SELECT dj_conflict()")
        assert ask() is True
    ps_lab.sql("DROP FUNCTION dj_conflict()")


def test_forbidden(ps_lab: Lab) -> None:
    """`replica_fallback="none"` forbids it: then the error says so."""
    with databases_at(ps_lab.url, bouncer="write-pool", replica_bouncer="read-pool", replica_fallback="none"):
        with use_token(ahead(ps_lab)), transaction.atomic(using="replica"), pytest.raises(DataError, match="replica_fallback"):
            ask()


@pytest.fixture
def endpoint(ps_lab: Lab) -> Iterator[str]:
    """The alias of a replica without a pooler, where cursors can live on the server."""
    entries = ps_django.databases(ps_lab.url, bouncer="write-pool", replica_bouncer="read-pool", direct_replica=True)
    connections.settings["replica-2"] = connections.configure_settings(entries)["replica-2"]
    yield "replica-2"
    connections["replica-2"].close()
    del connections["replica-2"], connections.settings["replica-2"]


@pytest.mark.parametrize("block", [nullcontext, partial(transaction.atomic, using="replica-2")], ids=["autocommit", "atomic"])
def test_iterator(ps_lab: Lab, late: None, endpoint: str, block: Any) -> None:
    """`iterator()` reads in chunks where a cursor can carry what holds, and from the primary what the replica has not."""
    from django_shop.shop.models import Product

    Product.objects.create(name="pot", price=1, stock=1)

    def names() -> list[str]:
        return [product.name for product in Product.objects.using(endpoint).iterator(chunk_size=1)]

    with block():
        assert names() == ["cup", "pot"]
    with use_token(None), block(), ps_django.limits(statement="60s"):
        assert names() == ["cup"]


def test_iterator_with_limits(ps_lab: Lab) -> None:
    """On the direct path, what a server-side cursor would not carry outside of a transaction is asked without one."""
    from django_shop.shop.models import Product

    Product.objects.create(name="cup", price=1, stock=1)
    products = Product.objects.using("direct").filter(name="cup")
    with ps_django.limits(statement="60s"):
        assert {product.name for product in products.iterator(chunk_size=1)} == {"cup"}
    with ps_django.local_settings({"app.tenant": "42"}):
        assert {product.name for product in products.iterator(chunk_size=1)} == {"cup"}
    products.delete()
