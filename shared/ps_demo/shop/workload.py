"""What the shop's clients do, as views would do it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from django.core.management import call_command
from django.db import close_old_connections, transaction
from django.db.models import F

import ps_django
from ps_demo.shop.functions import InRecovery
from ps_demo.shop.models import Order, Product

if TYPE_CHECKING:
    from collections.abc import Iterator
    from random import Random

__all__ = ["Shop"]

PRODUCTS: Final = 200


@contextmanager
def request() -> Iterator[None]:
    """Do what Django does before and after each request."""
    close_old_connections()
    try:
        yield
    finally:
        close_old_connections()


class Shop:
    """The shop's workload."""

    def prepare(self) -> None:
        """Migrate, and fill the shop."""
        call_command("migrate", verbosity=0)
        products = Product.objects.bulk_create(
            [Product(name=f"Product {number}", price=number, stock=1_000_000) for number in range(1, PRODUCTS + 1)]
        )
        Order.objects.bulk_create([Order(reference=product.pk, product=product, quantity=1) for product in products])
        self.products = [product.pk for product in products]

    def read(self, random: Random) -> bool:
        """Look at a product or at its latest orders. Return whether a replica answered."""
        wanted = random.choice(self.products)
        row: Any  # the stubs do not know of annotations
        with request(), ps_django.reading():
            if random.random() < 0.5:
                row = Product.objects.annotate(by_replica=InRecovery()).get(pk=wanted)
            else:
                row, *_ = Order.objects.annotate(by_replica=InRecovery()).filter(product=wanted).order_by("-id")[:10]
        return bool(row.by_replica)

    def write(self, random: Random, reference: int) -> None:
        """Order a product."""
        wanted = random.choice(self.products)
        with request(), transaction.atomic():
            Product.objects.filter(pk=wanted).update(stock=F("stock") - 1)
            Order.objects.create(reference=reference, product_id=wanted, quantity=1)
