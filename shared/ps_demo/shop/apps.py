"""The site's only application of its own."""

from django.apps import AppConfig

__all__ = ["ShopConfig"]


class ShopConfig(AppConfig):
    """Products and orders."""

    name = "ps_demo.shop"
    label = "shop"
