"""What the shop sells and has sold."""

from django.db import models

__all__ = ["Order", "Product"]


class Product(models.Model):
    """Something to buy."""

    name = models.CharField(max_length=100)
    price = models.DecimalField(max_digits=10, decimal_places=2)
    stock = models.IntegerField()

    def __str__(self) -> str:
        return self.name


class Order(models.Model):
    """A product bought."""

    product = models.ForeignKey(Product, on_delete=models.PROTECT, related_name="orders")
    quantity = models.PositiveIntegerField()
    created = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return f"{self.quantity} x {self.product}"
