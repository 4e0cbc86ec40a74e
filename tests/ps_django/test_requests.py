"""Round trips by type of request, counted at the edge: ours beside Django's own backend on the same path.

With PS_WRITE_DOCS=1 in the environment, what was counted is written to docs/generated/django-requests.md.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.db import connections, transaction
from django.http import HttpRequest, HttpResponse
from django.test import Client, override_settings
from django.urls import path

from ps_core import use_token
from ps_lab import Lab

DOCUMENT = Path(__file__).parents[2] / "docs" / "generated" / "django-requests.md"
N = 3


def using() -> str | None:
    """The alias of the ways that have no router: None is ours."""
    return None if _stock is None else _stock


_stock: str | None = None


def products() -> Any:
    """The manager, on the alias that is compared."""
    from django_shop.shop.models import Product

    return Product.objects.using(using()) if using() else Product.objects


def reads(request: HttpRequest) -> HttpResponse:
    """Read N times."""
    return HttpResponse(str([products().count() for _ in range(N)]))


def write(request: HttpRequest) -> HttpResponse:
    """Write once."""
    return HttpResponse(str(products().create(name="web", price=1, stock=1).pk))


def atomic(request: HttpRequest) -> HttpResponse:
    """N statements in atomic()."""
    with transaction.atomic(using=using()):
        for _ in range(N - 1):
            products().count()
        return write(request)


def statements(request: HttpRequest) -> HttpResponse:
    """N statements, the last of which writes."""
    for _ in range(N - 1):
        products().count()
    return write(request)


def nothing(request: HttpRequest) -> HttpResponse:
    """Ask nothing."""
    return HttpResponse()


urlpatterns = [path(view.__name__, view) for view in (reads, write, atomic, statements, nothing)]

REQUESTS: dict[str, tuple[str, str, bool, str, str]] = {
    "GET, n reads": ("get", "reads", False, "n", "n, replica"),
    "GET, n reads, ATOMIC_REQUESTS": ("get", "reads", True, "n+2", "n, replica"),
    "GET, nothing asked, ATOMIC_REQUESTS": ("get", "nothing", True, "0", "0"),
    "POST, n reads": ("post", "reads", False, "n", "n, primary"),
    "POST, one write": ("post", "write", False, "1", "1, primary"),
    "POST, atomic of n statements": ("post", "atomic", False, "n+2", "n+1, primary"),
    "POST, n statements, ATOMIC_REQUESTS": ("post", "statements", True, "n+2", "n+1, primary"),
}
LATER = "GET, n reads, of a user whose write the replicas do not have yet"


@pytest.fixture(autouse=True)
def _urls() -> Iterator[None]:
    with override_settings(ROOT_URLCONF=__name__), use_token(None):
        yield


@contextmanager
def way(alias: str | None, atomic_requests: bool) -> Iterator[None]:
    """Let the views use an alias."""
    global _stock  # noqa: PLW0603 - the views are called by Django
    _stock = alias
    entry = connections[alias or "default"].settings_dict
    entry["ATOMIC_REQUESTS"] = atomic_requests
    try:
        yield
    finally:
        _stock, entry["ATOMIC_REQUESTS"] = None, False


def count(lab: Lab, method: str, url: str) -> tuple[int, set[str]]:
    """Return the round trips of a request, and the paths."""
    client = Client()
    with lab.round_trips() as trips:
        assert getattr(client, method)(f"/{url}").status_code == 200
    return trips.count, set(trips.by_path)


def shown(trips: int) -> str:
    """Return a count in terms of n."""
    return {N: "n", N + 1: "n+1", N + 2: "n+2", 2 * N: "2n"}.get(trips, str(trips))


@pytest.mark.parametrize("name", REQUESTS)
def test_request(ps_lab: Lab, stock: str, name: str) -> None:
    """A request costs exactly what the table says, on both backends."""
    method, url, atomic_requests, of_stock, of_ours = REQUESTS[name]
    middleware = settings.MIDDLEWARE
    with way(stock, atomic_requests), override_settings(MIDDLEWARE=[]):
        assert shown(count(ps_lab, method, url)[0]) == of_stock
    with way(None, atomic_requests), override_settings(MIDDLEWARE=middleware):
        trips, paths = count(ps_lab, method, url)
    assert ", ".join([shown(trips), *paths]) == of_ours


def test_behind(ps_lab: Lab, stock: str) -> None:
    """Where the replicas lag behind a user's write, a read is refused there and goes to the primary: one round trip more."""
    client = Client()
    ps_lab.set_replay_delay(30)
    try:
        client.post("/write")
        with ps_lab.round_trips() as trips:
            client.get("/reads")
        assert trips.by_path == {"replica": N, "primary": N}
    finally:
        ps_lab.set_replay_delay(0)
        ps_lab.wait_replicas_caught_up()


def test_document() -> None:
    """The table that is committed is the one that is asserted."""
    rows = "".join(f"| {name} | {row[3]} | {row[4]} |\n" for name, row in REQUESTS.items())
    page = (
        "# Round trips by request\n\n"
        "<!-- Written by tests/ps_django/test_requests.py with PS_WRITE_DOCS=1; not by hand. -->\n\n"
        "Counted at the edge, on persistent connections. Ours has timeouts, tokens and consistency in them, Django's own backend"
        f" has none.\n\n| request | stock | ours |\n|---|---|---|\n{rows}| {LATER} | | 2n, replica and primary |\n"
    )
    if os.environ.get("PS_WRITE_DOCS"):
        DOCUMENT.write_text(page)
    assert DOCUMENT.read_text() == page, "write it anew: PS_WRITE_DOCS=1 pytest tests/ps_django/test_requests.py"
