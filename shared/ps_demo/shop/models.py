"""What the shop sells and has sold."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.db import models

if TYPE_CHECKING:
    from datetime import datetime
    from decimal import Decimal

__all__ = ["Order", "Product"]


class Product(models.Model):
    """Something to buy."""

    name: models.CharField[str, str] = models.CharField(max_length=100)
    price: models.DecimalField[Decimal, Decimal] = models.DecimalField(max_digits=10, decimal_places=2)
    stock: models.IntegerField[int, int] = models.IntegerField()

    def __str__(self) -> str:
        return self.name


class Order(models.Model):
    """A product bought. `reference` is the client's own name for the order."""

    # Not unique: an order that was made twice has to show as two rows, not as an error.
    reference: models.BigIntegerField[int, int] = models.BigIntegerField()
    product: models.ForeignKey[Product, Product] = models.ForeignKey(Product, on_delete=models.PROTECT, related_name="orders")
    quantity: models.PositiveIntegerField[int, int] = models.PositiveIntegerField()
    created: models.DateTimeField[datetime, datetime] = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return f"{self.quantity} x {self.product}"
