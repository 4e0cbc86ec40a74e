"""Transactions: run again as a whole, past a deadline, without autocommit, and in a project's tests."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.db import OperationalError, connections, transaction

from ps_core import use_token
from ps_django.transaction import run_transaction
from ps_lab import Lab


@pytest.fixture
def products() -> Iterator[Any]:
    """The shop's products: none yet."""
    from ps_cli.shop.models import Product

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
