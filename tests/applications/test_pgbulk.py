"""django-pgbulk's copy, upsert and update, where reads go to replicas: they ask the database of a queryset that reads."""

import pytest

import ps_django
from ps_core import use_token
from ps_lab import Lab

pgbulk = pytest.importorskip("pgbulk")


@pytest.mark.parametrize("binary", [False, True])
def test_pgbulk(ps_lab: Lab, site: None, binary: bool) -> None:
    """What it writes is the primary's, and is read back at once."""
    from django_shop.shop.models import Product

    Product.objects.all().delete()
    ps_lab.wait_replicas_caught_up()
    with use_token(None), ps_django.reading():
        assert Product.objects.all().db == "replica"
        copied = [Product(name=name, price=1, stock=1) for name in ("cup", "pot")]
        pgbulk.copy(Product, copied, exclude=["id"], binary=binary)
        assert {product.name for product in Product.objects.all()} == {"cup", "pot"}
        pgbulk.upsert(Product, [Product(id=7, name="pan", price=1, stock=1)], unique_fields=["id"])
        pgbulk.update(Product, [Product(id=7, name="jug", price=1, stock=1)], ["name"])
        assert Product.objects.get(id=7).name == "jug"
    Product.objects.all().delete()
