"""Views that write, read, and tell which server answered."""

from typing import Any

from django.db import connections
from django.http import HttpRequest, JsonResponse
from django.urls import path


def shown(found: list[Any]) -> JsonResponse:
    """Tell the names, and whether replicas answered."""
    return JsonResponse({"names": [product.name for product in found], "by_replica": [product.by_replica for product in found]})


def products(request: HttpRequest) -> JsonResponse:
    """POST makes a product; GET lists their names, and whether a replica answered."""
    from django_shop.shop.models import Product
    from ps_demo.bank_django import InRecovery

    if request.method == "POST":
        product = Product.objects.create(name=request.POST["name"], price=1, stock=1)
        return JsonResponse({"pk": product.pk})
    found = list(Product.objects.annotate(by_replica=InRecovery()).filter(name__startswith="web "))
    return shown(found)


async def aproducts(request: HttpRequest) -> JsonResponse:
    """The same for ASGI."""
    from django_shop.shop.models import Product
    from ps_demo.bank_django import InRecovery

    found = [product async for product in Product.objects.annotate(by_replica=InRecovery()).filter(name__startswith="web ")]
    return shown(found)


def timeout(request: HttpRequest) -> JsonResponse:
    """Tell the statement timeout of this request."""
    with connections["default"].cursor() as cursor:
        cursor.execute("SELECT setting::int FROM pg_settings WHERE name = 'statement_timeout'")
        row: Any = cursor.fetchone()
    return JsonResponse({"milliseconds": row[0]})


urlpatterns = [path("products", products), path("aproducts", aproducts), path("timeout", timeout)]
