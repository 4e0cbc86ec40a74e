"""Transactions: run again as a whole, past a deadline, without autocommit, and in a project's tests."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from django.db import OperationalError, connections, router, transaction

import ps_django
from ps_core import ConfigurationError, use_token
from ps_core.context import remaining
from ps_core.errors import DeadlineExceeded
from ps_django.transaction import run_transaction
from ps_lab import Lab
from ps_lab.processes import wait_until


@pytest.fixture
def products() -> Iterator[Any]:
    """The shop's products: none yet."""
    from django_shop.shop.models import Product

    Product.objects.all().delete()
    with use_token(None):
        yield Product.objects
    Product.objects.all().delete()


def add(products: Any, name: str = "cup") -> None:
    """Make a product."""
    products.create(name=name, price=1, stock=1)


@pytest.mark.parametrize("robust", [False, True])
def test_hook_that_fails(ps_lab: Lab, products: Any, robust: bool) -> None:
    """A hook whose own transaction is lost does not run the committed one again; its error is raised, unless it is robust."""
    calls: list[str] = []

    def hook() -> None:
        calls.append("hook")
        with transaction.atomic():
            products.count()
            ps_lab.edge.cut("primary")
            products.count()

    def work() -> None:
        calls.append("work")
        add(products)
        transaction.on_commit(hook, robust=robust)
        transaction.on_commit(lambda: calls.append("next"))

    if robust:
        run_transaction(work)
    else:
        with pytest.raises(OperationalError):
            run_transaction(work)
    assert calls == ["work", "hook", *["next"] * robust]
    assert products.count() == 1
    assert connections["default"].run_on_commit == []


def test_past_the_deadline(products: Any) -> None:
    """A block that outlives the deadline is rolled back, its hooks with it, and the next block is a transaction of its own."""
    hooks: list[str] = []
    with pytest.raises(DeadlineExceeded), ps_django.deadline(0.2), transaction.atomic():
        add(products, "late")
        transaction.on_commit(lambda: hooks.append("late"))
        wait_until(_is_over, "the deadline")
    with transaction.atomic():
        add(products, "in time")
        transaction.on_commit(lambda: hooks.append("in time"))
    assert connections["default"].get_autocommit()
    assert [product.name for product in products.all()] == hooks == ["in time"]


def test_inner_block_past_the_deadline(products: Any) -> None:
    """What an inner block that failed at its deadline did is undone, and the outer one commits; what was done in time stays."""
    with transaction.atomic():
        add(products, "outer")
        with pytest.raises(DeadlineExceeded), ps_django.deadline(0.2), transaction.atomic():
            add(products, "late")
            wait_until(_is_over, "the deadline")
            products.count()
        with ps_django.deadline(1), transaction.atomic():
            add(products, "in time")
            wait_until(_is_over, "the deadline")
        add(products, "last")
    assert sorted(product.name for product in products.all()) == ["in time", "last", "outer"]


def test_what_cannot_run() -> None:
    """An alias without its keyword is no function, and what is needed only when something is lost is looked at before."""
    alias: Any = "default"
    with pytest.raises(TypeError, match=r'write a function, not \'default\'; an alias is `using="\.\.\."`'):
        run_transaction(alias)
    for given in ({"retry": 3}, {"verify": 5}):
        options: dict[str, Any] = given
        with pytest.raises(ConfigurationError, match=f"^{next(iter(given))}: write"):
            run_transaction(lambda: pytest.fail("it ran"), **options)


def test_functions_that_run_later() -> None:
    """What would run when the transaction is over is refused where it is decorated, or handed over."""

    async def work() -> None:
        pytest.fail("it ran")

    def works() -> Iterator[None]:
        yield pytest.fail("it ran")

    async def all_works() -> Any:
        yield pytest.fail("it ran")

    for function in (work, works, all_works):
        for give in (run_transaction, run_transaction(using="default"), partial(run_transaction, using="default")):
            with pytest.raises(TypeError, match="sync_to_async"):
                give(function)


@pytest.mark.parametrize("block", [ps_django.reading, ps_django.using_replica])
def test_reads_of_a_manual_transaction(products: Any, block: Any) -> None:
    """With autocommit off, reads are the transaction's, and see its writes; a whole transaction does not fit into it."""
    connection = connections["default"]
    transaction.set_autocommit(False)
    try:
        add(products)
        with block():
            assert products.count() == 1
        with pytest.raises(RuntimeError, match="autocommit"):
            run_transaction(products.count)
    finally:
        transaction.rollback()
        transaction.set_autocommit(True)
    with block():
        assert router.db_for_read(products.model) == "replica"
    connection.close()
    connection.settings_dict["AUTOCOMMIT"] = False
    try:
        with block():
            assert router.db_for_read(products.model) == "default"  # the connection is made by the first read
        with pytest.raises(RuntimeError, match="autocommit off"):
            run_transaction(products.count)
    finally:
        connection.settings_dict["AUTOCOMMIT"] = True


def _is_over() -> bool:
    try:
        remaining()
    except DeadlineExceeded:
        return True
    return False
