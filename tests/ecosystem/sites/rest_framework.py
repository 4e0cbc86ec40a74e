"""Django REST framework with django-filter."""

from typing import Any
from uuid import uuid4

import django_filters.rest_framework
from django.db import models
from rest_framework import filters, pagination, routers, serializers, viewsets

from tests.ecosystem.site import Visitor


class Product(models.Model):
    """What the API is about."""

    run = models.CharField(max_length=32)
    name = models.CharField(max_length=50)
    price = models.DecimalField(max_digits=8, decimal_places=2)


class ProductSerializer(serializers.ModelSerializer[Product]):
    """A product."""

    class Meta:
        model = Product
        fields = ("id", "run", "name", "price")


class Pages(pagination.PageNumberPagination):
    """Two products each."""

    page_size = 2


class Products(viewsets.ModelViewSet[Product]):
    """Copied from the documentation of both."""

    queryset = Product.objects.all()
    serializer_class = ProductSerializer
    pagination_class = Pages
    filter_backends = (django_filters.rest_framework.DjangoFilterBackend, filters.SearchFilter, filters.OrderingFilter)
    filterset_fields = {"run": ["exact"], "price": ["lt", "gte"]}  # noqa: RUF012
    search_fields = ("name",)


router = routers.DefaultRouter()
router.register("products", Products)
urlpatterns = router.urls


def work(visitor: Visitor) -> dict[str, Any]:
    """Make products, change one, delete one, and look at them after each step."""
    run = uuid4().hex
    made = [
        visitor.ask("POST", "/products/", 201, json={"run": run, "name": name, "price": price}).json()
        for name, price in (("teapot", "9.50"), ("cup", "2"), ("tea cosy", "12"), ("spoon", "1.25"))
    ]
    pages = [visitor.ask("GET", "/products/", params={"run": run, "ordering": "-price", "page": page}).json() for page in (1, 2)]
    visitor.ask("PATCH", f"/products/{made[1]['id']}/", json={"price": "2.75"})
    changed = visitor.ask("GET", f"/products/{made[1]['id']}/").json()["price"]
    visitor.ask("DELETE", f"/products/{made[3]['id']}/", 204)
    visitor.ask("GET", f"/products/{made[3]['id']}/", 404)
    found = visitor.ask("GET", "/products/", params={"run": run, "search": "tea", "price__lt": 10}).json()
    left = visitor.ask("GET", "/products/", params={"run": run}).json()["count"]
    return {
        "pages": [[one["name"] for one in page["results"]] for page in pages],
        "count": pages[0]["count"],
        "changed": changed,
        "found": [one["name"] for one in found["results"]],
        "left": left,
    }
