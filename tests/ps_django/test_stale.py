"""Instances that a replica's alias loaded are known, whatever was done with a part of them, and wherever they went."""

import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.db import transaction
from django.test import override_settings

import ps_django
from ps_core import use_token
from ps_django.stale import StaleWriteError
from ps_lab import Lab

DEFAULT, REPLICA = "default", "replica"


@pytest.fixture
def product(ps_lab: Lab) -> Iterator[Any]:
    """A product that a replica gave."""
    from django_shop.shop.models import Product

    with use_token(None):
        made = Product.objects.create(name="cup", price=1, stock=1)
    ps_lab.wait_replicas_caught_up()
    with use_token(None):
        with ps_django.reading():
            product = Product.objects.get(pk=made.pk)
        assert product._state.db == REPLICA
        yield product
    made.delete()


def save_some(product: Any) -> Any:
    product.save(update_fields=["stock"])
    return product


def refresh_some(product: Any) -> Any:
    product.refresh_from_db(using=DEFAULT, fields=["stock"])
    return product


def refresh_some_on_replica(product: Any) -> Any:
    product = ps_django.fresh(product)
    product.refresh_from_db(using=REPLICA, fields=["stock"])
    return product


def load_deferred(product: Any) -> Any:
    with ps_django.reading():
        product = type(product).objects.defer("stock").get(pk=product.pk)
    with transaction.atomic():
        assert product.stock == 1
    return product


def hand_over(product: Any) -> Any:
    return pickle.loads(pickle.dumps(product))


def hand_over_some(product: Any) -> Any:
    return hand_over(refresh_some(hand_over(save_some(product))))


def refresh_all(product: Any) -> Any:
    save_some(product).refresh_from_db(using=DEFAULT)
    return product


def arefresh_all(product: Any) -> Any:
    async_to_sync(save_some(product).arefresh_from_db)(using=DEFAULT)
    return product


def save_all(product: Any) -> Any:
    with override_settings(PS_DJANGO={"STALE_WRITES": "allow"}):
        save_some(product).save()
    return product


STAYS = (hand_over, save_some, refresh_some, refresh_some_on_replica, load_deferred, hand_over_some)
ENDS = (refresh_all, arefresh_all, save_all)


@pytest.mark.parametrize("way", [*STAYS, *ENDS], ids=lambda way: way.__name__)
def test_stale_write_after(product: Any, way: Callable[[Any], Any]) -> None:
    """What was loaded from a replica stays so until all of it is read from the primary, or written."""
    product = way(product)
    with override_settings(PS_DJANGO={"STALE_WRITES": "refuse"}):
        if way in STAYS:
            with pytest.raises(StaleWriteError, match="was loaded from 'replica'"):
                product.save()
        product.save(update_fields=["stock"])
        if way in ENDS:
            product.save()


def test_refresh_is_djangos(product: Any) -> None:
    """`refresh_from_db` takes what Django's takes, and `_state.db` is what Django makes it."""
    product.refresh_from_db(DEFAULT, ["stock"], type(product).objects.filter(stock=1))
    assert product._state.db == DEFAULT
    with pytest.raises(type(product).DoesNotExist):
        product.refresh_from_db(DEFAULT, None, type(product).objects.filter(stock=2))
    with override_settings(PS_DJANGO={"STALE_WRITES": "refuse"}), pytest.raises(StaleWriteError):
        product.save()
