"""Products in Django's admin."""

from django.contrib import admin

from django_shop.shop.models import Product

admin.site.register(Product, list_display=("name", "price"), search_fields=("name",), ordering=("-id",))
