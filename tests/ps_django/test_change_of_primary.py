"""A site at work while the primary changes."""

import threading

import pytest
from django.db import OperationalError, connections, transaction

import ps_django
from ps_lab import Lab
from ps_lab.processes import wait_until


@pytest.mark.parametrize("event", ["switchover", "crash_primary"])
def test_requests_go_through_a_change_of_the_primary(ps_lab: Lab, event: str) -> None:
    """Reads on both aliases see no error while the primary changes; acknowledged orders are there exactly once."""
    from django_shop.shop.models import Order, Product

    product = Product.objects.create(name="event", price=1, stock=1000)
    ps_lab.wait_replicas_caught_up()
    stop, errors = threading.Event(), []
    acknowledged: list[int] = []
    reads = [0, 0]

    def read(replica: int) -> None:
        try:
            while not stop.is_set():
                if replica:
                    with ps_django.reading():
                        Product.objects.get(pk=product.pk)
                else:
                    Product.objects.get(pk=product.pk)
                reads[replica] += 1
        except Exception as exc:  # noqa: BLE001
            errors.append(exc)
        finally:
            connections.close_all()

    def write() -> None:
        number = 0
        try:
            while not stop.is_set():
                number += 1
                try:
                    with transaction.atomic():
                        Order.objects.create(product=product, quantity=number)  # by which it is found again
                except OperationalError:
                    continue  # unknown: it may be there or not
                acknowledged.append(number)
        except Exception as exc:  # noqa: BLE001
            errors.append(exc)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=read, args=(replica,)) for replica in (0, 0, 1, 1)] + [threading.Thread(target=write)]
    for thread in threads:
        thread.start()
    try:
        getattr(ps_lab, event)()
        before = (*reads, len(acknowledged))
        wait_until(
            lambda: errors or all(now > then + 20 for now, then in zip((*reads, len(acknowledged)), before, strict=True)),
            "work after the event",
            timeout=40,
        )
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    for error in errors:
        raise error
    present = [row[0] for row in ps_lab.sql("SELECT quantity FROM shop_order WHERE product_id = %s", product.pk)]
    assert len(present) == len(set(present))
    assert set(acknowledged) <= set(present)
