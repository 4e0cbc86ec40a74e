"""django-oscar, as its documentation makes a shop: customers browse, fill baskets and order, while replicas are late and the
primary changes. Beside it, the same shop on Django's own backend with a plain router for its replica.
"""

import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from os import environ
from pathlib import Path
from urllib.error import HTTPError

import pytest

from docs.examples.django_shop import run
from ps_lab import Lab
from ps_lab.processes import wait_until
from tests.ps_django.projects import write

pytestmark = pytest.mark.timeout(300)

CUSTOMERS = 3
LATE = 0.5
SETTINGS = """
import os
from pathlib import Path
from oscar.defaults import *
from oscar import INSTALLED_APPS
import ps_django

if "STOCK" in os.environ:  # what people write today
    DATABASES = ps_django.databases()
    DATABASES = {alias: {
        "ENGINE": "django.db.backends.postgresql", **{key: entry[key] for key in ("HOST", "PORT", "USER", "PASSWORD", "NAME")},
        "OPTIONS": {name: entry["OPTIONS"][name] for name in ("sslmode", "sslrootcert")},
        "DISABLE_SERVER_SIDE_CURSORS": True, "CONN_HEALTH_CHECKS": True,
    } for alias, entry in DATABASES.items()}
    DATABASE_ROUTERS = ["routers.Replicas"]
else:
    DATABASES = ps_django.databases()
    DATABASE_ROUTERS = ["ps_django.routers.ReplicaRouter"]
for entry in DATABASES.values():
    entry["CONN_MAX_AGE"] = 3600
DATABASES["default"]["ATOMIC_REQUESTS"] = True

INSTALLED_APPS = [*INSTALLED_APPS, "sorl.thumbnail"]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "oscar.apps.basket.middleware.BasketMiddleware",
    "django.contrib.flatpages.middleware.FlatpageFallbackMiddleware",
]
if "STOCK" not in os.environ:
    MIDDLEWARE.insert(0, "ps_django.middleware.ConsistencyMiddleware")
TEMPLATES = [{
    "BACKEND": "django.template.backends.django.DjangoTemplates",
    "APP_DIRS": True,
    "OPTIONS": {"context_processors": [
        "django.template.context_processors.request",
        "django.contrib.auth.context_processors.auth",
        "django.contrib.messages.context_processors.messages",
        "oscar.apps.search.context_processors.search_form",
        "oscar.apps.checkout.context_processors.checkout",
        "oscar.apps.communication.notifications.context_processors.notifications",
        "oscar.core.context_processors.metadata",
    ]},
}]
AUTHENTICATION_BACKENDS = ["oscar.apps.customer.auth_backends.EmailBackend", "django.contrib.auth.backends.ModelBackend"]
HAYSTACK_CONNECTIONS = {"default": {"ENGINE": "haystack.backends.simple_backend.SimpleEngine"}}
SITE_ID = 1
ROOT_URLCONF = "urls"
SECRET_KEY = "tests"
ALLOWED_HOSTS = ["127.0.0.1"]
STATIC_URL = "static/"
MEDIA_ROOT = Path(__file__).with_name("media")
USE_TZ = True
EMAIL_BACKEND = "django.core.mail.backends.dummy.EmailBackend"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
"""

URLS = """
from django.apps import apps
from django.urls import include, path

urlpatterns = [path("i18n/", include("django.conf.urls.i18n")), path("", include(apps.get_app_config("oscar").urls[0]))]
"""

ROUTERS = """
class Replicas:
    def db_for_read(self, model, **hints):
        return "replica"

    def db_for_write(self, model, **hints):
        return "default"

    def allow_relation(self, one, other, **hints):
        return True
"""

STOCKED = """
import os
os.environ["DJANGO_SETTINGS_MODULE"] = "project"
import django
django.setup()
from decimal import Decimal
from oscar.apps.address.models import Country
from oscar.test.factories import create_product
Country.objects.create(iso_3166_1_a2="GB", printable_name="United Kingdom", is_shipping_country=True)
create_product(title="Teapot", price=Decimal("9.50"), num_in_stock=100_000)
"""
ADDRESS = {"first_name": "A", "last_name": "B", "line1": "1 High Street", "line4": "London", "postcode": "N1 9RT"}


@contextmanager
def shop(lab: Lab, folder: Path, **stock: str) -> Iterator[str]:
    """Serve a new shop with one product."""
    write(folder, {"project.py": SETTINGS, "urls.py": URLS, "routers.py": ROUTERS, "stocked.py": STOCKED})
    with run.database(lab, "oscar") as urls:
        env = {**environ, **urls, **stock, "DJANGO_SETTINGS_MODULE": "project"}
        for command in ("manage.py migrate --verbosity 0", "stocked.py"):
            subprocess.run([sys.executable, *command.split()], check=True, env=environ | urls, cwd=folder)
        lab.wait_replicas_caught_up()
        server = "gunicorn django.core.wsgi:get_wsgi_application() --workers 2 --threads 3 --log-level warning --bind fd://{fd}"
        with run.serve(server, env, folder) as base:
            yield base


class Stale(Exception):
    """A page does not show what its customer has done."""


def expect(text: str, page: tuple[str, str]) -> str:
    """Return a page that has to have a text."""
    if text not in page[1]:
        raise Stale(f"{page[0]} is without {text!r}")
    return page[1]


def buy(browser: run.Browser, which: str) -> str:
    """Register, look around, fill the basket, check out, and look at the order; return its number."""
    password = "a teapot for two"
    account = {"email": f"{which}@example.org", "password1": password, "password2": password, "redirect_url": ""}
    browser.submit(
        "/accounts/login/", registration_submit="1", **{f"registration-{name}": text for name, text in account.items()}
    )
    expect(account["email"], browser.get("/accounts/profile/"))
    browser.get("/catalogue/")  # lists what a search engine knows; the product is linked from elsewhere
    page = expect("9.50", browser.get("/catalogue/teapot_1/"))
    browser.post("/basket/add/1/", page, quantity="2")
    expect("19.00", browser.get("/basket/"))
    browser.submit("/checkout/shipping-address/", **ADDRESS)
    expect("High Street", browser.get("/checkout/preview/"))
    ended, page = browser.submit("/checkout/preview/", action="place_order")
    if not ended.endswith("/thank-you/"):
        raise Stale(f"an order led to {ended}")
    (number,) = set(re.findall(r"/accounts/orders/(\d+)/|<strong>(\d{6,})</strong>", page))
    order = "".join(number)
    expect(order, browser.get("/accounts/orders/"))
    expect("High Street", browser.get(f"/accounts/orders/{order}/"))
    if "Teapot" in browser.get("/basket/")[1]:
        raise Stale("the basket is not empty after the order")
    return order


@dataclass(frozen=True, slots=True, kw_only=True)
class Sold:
    """What came of the customers' days."""

    orders: list[str]
    """Orders that were confirmed to the customers."""
    kept: list[str]
    """Orders that exist in the database."""
    wrong: Counter[str]
    """Errors and stale pages, until the crash."""
    lost: Counter[str]
    """The same, from the crash on."""


def sold(lab: Lab, base: str) -> Sold:
    """Let customers buy, over a switchover and then a crash."""
    # Oscar counts who looks. Several who are the first at once end its transaction: it makes the row without a savepoint.
    run.Browser(base).get("/catalogue/teapot_1/")
    over, done, orders = threading.Event(), [0] * CUSTOMERS, list[str]()
    wrong, lost = Counter[str](), Counter[str]()
    counted = wrong

    def customer(which: int) -> None:
        while not over.is_set():
            try:
                orders.append(buy(run.Browser(base), f"{which}-{done[which]}"))
            except HTTPError as error:
                counted[f"{error.code} {error.url.removeprefix(base)}"] += 1
            except Stale as error:
                counted[f"stale: {error}"] += 1
            finally:
                done[which] += 1

    def rounds(number: int) -> None:
        wanted = [before + number for before in done]
        wait_until(lambda: all(now >= then for now, then in zip(done, wanted, strict=True)), "customers", timeout=60)

    with ThreadPoolExecutor(CUSTOMERS) as pool:
        buying = [pool.submit(customer, which) for which in range(CUSTOMERS)]
        lab.set_replay_delay(LATE)
        try:
            rounds(2)
            lab.switchover()
            rounds(2)
            counted = lost
            lab.crash_primary()
            rounds(2)
        finally:
            over.set()
            lab.set_replay_delay(0)
        for one in buying:
            one.result()
    kept = [number for (number,) in lab.sql("SELECT number FROM order_order ORDER BY number", dbname="oscar")]
    return Sold(orders=sorted(orders), kept=kept, wrong=wrong, lost=lost)


def test_checkout(ps_lab: Lab, tmp_path: Path) -> None:
    """No page is an error or stale over the switchover; each order that a customer was told of is there, and no other one.

    A crash takes transactions that were under way with it: at most one form of each customer has to be sent again.
    """
    with shop(ps_lab, tmp_path) as base:
        found = sold(ps_lab, base)
    assert found.wrong == {}
    assert found.lost.total() <= CUSTOMERS
    assert not [what for what in found.lost if not what.startswith("500 ")]
    assert found.orders == found.kept
    assert len(found.orders) > CUSTOMERS


def test_stock_differs(ps_lab: Lab, tmp_path: Path) -> None:
    """What the figures above are to be compared with: with a plain router, customers do not see what they did."""
    with shop(ps_lab, tmp_path, STOCK="1") as base:
        found = sold(ps_lab, base)
    assert found.wrong.total() > CUSTOMERS
