"""What the shop sells."""

from django.db import models

__all__ = ["Product"]


class Product(models.Model):
    """Something to buy."""

    name = models.CharField(max_length=100)
    price = models.DecimalField(max_digits=10, decimal_places=2)

    def __str__(self) -> str:
        return self.name
