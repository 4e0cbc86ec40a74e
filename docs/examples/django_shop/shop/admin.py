"""Products and orders in Django's admin."""

from django.contrib import admin

from django_shop.shop.models import Order, Product

admin.site.register(Product, list_display=("name", "price", "stock"), search_fields=("name",), ordering=("-id",))
admin.site.register(Order, list_display=("id", "product", "quantity", "created"), list_select_related=("product",))
