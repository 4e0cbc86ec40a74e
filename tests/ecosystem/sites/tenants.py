"""django-tenants: each tenant has users of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.contrib.auth import get_user_model
from django.db import connection, models
from django.http import HttpRequest, JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from django_tenants.models import DomainMixin, TenantMixin

from tests.ecosystem.site import Visitor

TENANTS = ["green", "black"]


class Customer(TenantMixin):
    """A tenant."""

    name = models.CharField(max_length=50)


class Domain(DomainMixin):
    """Where a tenant is found."""


@contextmanager
def running() -> Iterator[None]:
    """Make the tenants, and with them their schemas."""
    for name in TENANTS:
        tenant = Customer(schema_name=name, name=name)
        tenant.save(verbosity=0)
        tenant.domains.create(domain=f"{name}.example.org")
    yield


@csrf_exempt
def users(request: HttpRequest) -> JsonResponse:
    """Make a user, delete all, or tell who there are."""
    everybody = get_user_model().objects.order_by("username")
    if request.method == "POST":
        get_user_model().objects.create_user(f"{request.tenant.name} tea")  # type: ignore[attr-defined]
    if request.method == "DELETE":
        everybody.delete()
    return JsonResponse({"names": [user.username for user in everybody], "schema": connection.schema_name})


urlpatterns = [path("", users)]


def work(visitor: Visitor) -> dict[str, Any]:
    """Make a user in each tenant, look at them, and delete them."""

    def ask(method: str) -> list[Any]:
        hosts = [{"Host": f"{name}.example.org"} for name in TENANTS]
        return [visitor.ask(method, "/", headers=host).json() for host in hosts]

    return {"steps": [ask(method) for method in ("GET", "POST", "GET", "GET", "DELETE", "GET")]}
