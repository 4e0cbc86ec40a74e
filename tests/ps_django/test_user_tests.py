"""A project's own tests: under Django's runner, and what they can assert."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ps_lab import Lab

MANAGE = """
import os, sys
os.environ["DJANGO_SETTINGS_MODULE"] = "project"
from django.core.management import execute_from_command_line
execute_from_command_line(sys.argv)
"""
SETTINGS = """
import ps_django
DATABASES = ps_django.databases({url!r}, bouncer="write-pool", replica_bouncer="read-pool")
DATABASE_ROUTERS = ["ps_django.routers.ReplicaRouter"]
MIDDLEWARE = ["ps_django.middleware.ConsistencyMiddleware"]
ROOT_URLCONF = "tests.ps_django.urls"
STATIC_URL = "/static/"
INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth", "django_shop.shop"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
SECRET_KEY = "tests"
USE_TZ = True
"""
TESTS = """
import json
from time import time
from unittest.mock import patch
from urllib.request import urlopen
import pytest
from django.db import transaction
from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, connections
from django.test import LiveServerTestCase, SimpleTestCase, TestCase, TransactionTestCase
import ps_django
from django_shop.shop.models import Product
from ps_core import Token, use_token
from ps_django.test import assert_routes, lagging_replica
from ps_django.transaction import run_transaction

class WithoutDatabases(TestCase):
    def test_requests(self):
        self.client.post("/products", {"name": "web pot"})
        with self.assertNumQueries(1):
            assert self.client.get("/products").json()["names"] == ["web pot"]

    def test_blocks(self):
        Product.objects.create(name="cup", price=1, stock=1)
        with ps_django.using_replica(), assert_routes("default", 1):
            assert Product.objects.get().name == "cup"

    def test_no_lag(self):
        with self.assertRaisesRegex(ImproperlyConfigured, "databases ="):
            with lagging_replica():
                pass

    def test_nothing_is_allowed_besides(self):
        with self.assertRaisesRegex(AssertionError, "'replica' are not allowed"):
            Product.objects.using("replica").count()

class WithoutDatabasesAndTransaction(TransactionTestCase):
    def test_requests(self):
        self.client.post("/products", {"name": "web pot"})
        with self.assertNumQueries(1):
            assert self.client.get("/products").json()["names"] == ["web pot"]

class Live(LiveServerTestCase):
    def test_requests(self):
        Product.objects.create(name="web pot", price=1, stock=1)
        with urlopen(self.live_server_url + "/products") as answer:
            assert json.load(answer) == {"names": ["web pot"], "by_replica": [False]}

class WithoutAnyDatabase(SimpleTestCase):
    def test_reads_are_refused(self):
        with ps_django.reading(), self.assertRaisesRegex(AssertionError, "'default' are not allowed"):
            Product.objects.count()

class Shop(TestCase):
    databases = {"default", "replica"}

    def setUp(self):
        Product.objects.create(name="cup", price=1, stock=1)

    def test_own_writes_through_the_replica(self):
        with ps_django.reading(), assert_routes("replica", 2):
            assert Product.objects.get().name == "cup"
            assert Product.objects.using("replica").count() == 1

    def test_routes(self):
        with assert_routes("default", 2, "replica", 1):
            Product.objects.create(name="pot", price=1, stock=1)
            Product.objects.count()
            with ps_django.reading():
                Product.objects.count()

    def test_atomic_is_still_the_applications(self):
        with ps_django.reading(), transaction.atomic(), assert_routes("default", 1):
            Product.objects.count()

    def test_other_routes_are_an_error(self):
        with self.assertRaisesRegex(AssertionError, "(?s)expected .*replica.*default: SELECT"):
            with assert_routes("replica", 1):
                Product.objects.count()

    def test_inner_atomic_of_the_mirror(self):
        with transaction.atomic(using="replica"):
            assert Product.objects.using("replica").get().name == "cup"
            with transaction.atomic(using="replica"):
                assert Product.objects.using("replica").count() == 1
        assert Product.objects.get().name == "cup"

    def test_requests(self):
        Product.objects.all().delete()
        assert Product.objects.count() == 0

    def test_whole_transactions(self):
        hooks = []

        @run_transaction(using="default")
        def work():
            Product.objects.create(name="pot", price=1, stock=1)
            transaction.on_commit(lambda: hooks.append(1))
            return Product.objects.count()

        with self.captureOnCommitCallbacks() as callbacks:
            assert work() == 2
        assert (len(callbacks), hooks) == (1, [])
        with transaction.atomic(), self.assertRaisesRegex(RuntimeError, "non_atomic_requests"):
            work()
        with self.assertRaises(ZeroDivisionError):
            run_transaction(lambda: Product.objects.all().delete() and 1 / 0)
        assert Product.objects.count() == 2

    def test_no_lag_within_a_transaction(self):
        with self.assertRaisesRegex(ImproperlyConfigured, "TransactionTestCase"):
            with lagging_replica():
                pass

class Lagging(TransactionTestCase):
    databases = {"default", "replica"}

    def names(self):
        return sorted(Product.objects.using("replica").values_list("name", flat=True))

    def test_lag(self):
        with use_token(None):
            Product.objects.create(name="cup", price=1, stock=1)
        with lagging_replica() as replica, use_token(None):
            assert self.names() == ["cup"]
            with use_token(None) as tracker:
                Product.objects.create(name="pot", price=1, stock=1)
                token = str(tracker.token)
                with ps_django.reading(), assert_routes("replica", 1, "default", 0):
                    assert Product.objects.count() == 2  # refused there, and answered by the primary
            assert self.names() == ["cup"]
            with self.assertRaises(DatabaseError):
                Product.objects.using("replica").raw("SELECT 1/0 AS id")[0]
            assert self.names() == ["cup"]
            with ps_django.reading():
                assert Product.objects.count() == 1  # the next request, which forgot the token
            with use_token(token), ps_django.reading():
                assert Product.objects.count() == 2
            with assert_routes("replica", 1), ps_django.reading():
                assert not Product.objects.filter(name="pot").exists()
            replica.catch_up()
            assert self.names() == ["cup", "pot"]
        assert self.names() == ["cup", "pot"]

    def test_no_guard(self):
        options = connections["default"].settings_dict["OPTIONS"]
        with patch.dict(options, ps_consistency="none"), lagging_replica(), use_token(None):
            token = Token(identity=connections["default"].ps_state.identity, position=None, at=time())
            with use_token(token):
                assert self.names() == []  # a token is not heeded at this level

    def test_writes_are_for_the_primary(self):
        with lagging_replica(), use_token(None):
            Product.objects.using("replica").create(name="jug", price=1, stock=1)
            assert self.names() == ["jug"]  # who wrote it sees it
            with use_token(None):
                assert self.names() == []

    def test_block_on_the_replica(self):
        with lagging_replica(), use_token(None), transaction.atomic(using="replica"):
            assert self.names() == []
            with use_token(None):
                Product.objects.create(name="pot", price=1, stock=1)
                assert self.names() == ["pot"]  # in production the primary stands in for the rest of the block
            assert self.names() == []

    def test_no_other_alias(self):
        with self.assertRaisesRegex(ImproperlyConfigured, "MIRROR"):
            with lagging_replica("default"):
                pass
"""

PYTEST = """
import json
from urllib.request import urlopen
import pytest
import ps_django
from django_shop.shop.models import Product

pytestmark = pytest.mark.django_db

def test_requests(client, django_assert_num_queries):
    client.post("/products", {"name": "web pot"})
    with django_assert_num_queries(1):
        assert client.get("/products").json()["names"] == ["web pot"]

@pytest.mark.django_db(databases=["default", "replica"])
def test_replica():
    Product.objects.create(name="cup", price=1, stock=1)
    with ps_django.reading():
        assert Product.objects.get()._state.db == "replica"

def test_live_server(live_server):
    Product.objects.create(name="web pot", price=1, stock=1)
    with urlopen(live_server.url + "/products") as answer:
        assert json.load(answer) == {"names": ["web pot"], "by_replica": [False]}
"""


@pytest.fixture
def project(ps_lab: Lab, tmp_path: Path) -> Path:
    """A project with tests."""
    (tmp_path / "manage.py").write_text(MANAGE)
    (tmp_path / "project.py").write_text(SETTINGS.format(url=ps_lab.url))
    (tmp_path / "test_shop.py").write_text(TESTS)
    (tmp_path / "pytest_shop.py").write_text(PYTEST)
    return tmp_path


def run(project: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command there."""
    paths = os.pathsep.join([str(project), *(path for path in sys.path if path)])
    environment = {**os.environ, "PYTHONPATH": paths, "DJANGO_SETTINGS_MODULE": "project"}
    return subprocess.run(
        [sys.executable, *command], cwd=project, env=environment, capture_output=True, text=True, check=False, timeout=100
    )


def test_djangos_runner(ps_lab: Lab, project: Path) -> None:
    """`manage.py test`: the test database is made and dropped, and all tests pass."""
    ps_lab.sql("ALTER ROLE app CREATEDB")
    try:
        done = run(project, "manage.py", "test", "--noinput")
    finally:
        ps_lab.sql("ALTER ROLE app NOCREATEDB")
    assert done.returncode == 0, done.stderr
    assert "Ran 20 tests" in done.stderr
    assert "WARNING" not in done.stderr
    assert ps_lab.sql("SELECT datname FROM pg_database WHERE datname LIKE 'test%'") == []


def test_pytest_django(ps_lab: Lab, project: Path) -> None:
    """The same under pytest-django."""
    ps_lab.sql("ALTER ROLE app CREATEDB")
    try:
        done = run(project, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--ds=project", "test_shop.py", "pytest_shop.py")
    finally:
        ps_lab.sql("ALTER ROLE app NOCREATEDB")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "23 passed" in done.stdout
    assert "warning" not in done.stdout
    assert ps_lab.sql("SELECT datname FROM pg_database WHERE datname LIKE 'test%'") == []


def user_of(connection: Any) -> str:
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_user")
        (user,) = cursor.fetchone()
    return str(user)


def test_databases_elsewhere(ps_lab: Lab, site: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Aliases lead to another role in the block, in all threads, with the project's other settings; and back."""
    from django.conf import settings
    from django.db import connections, router

    from ps_django.test import databases_at

    def users() -> list[str]:
        return [
            connections[alias].cursor().execute("SELECT current_user").fetchone()[0] for alias in ("default", "replica", "direct")
        ]

    def users_of_thread() -> list[str]:
        try:
            return users()
        finally:
            connections.close_all()

    monkeypatch.setitem(settings.DATABASES["default"], "ATOMIC_REQUESTS", True)
    outside, routers, entries = connections["default"], router.routers, settings.DATABASES
    url = ps_lab.create_role("elsewhere")
    try:
        with databases_at(url, bouncer="write-pool", replica_bouncer="read-pool"), ThreadPoolExecutor() as pool:
            assert users() == pool.submit(users_of_thread).result() == ["elsewhere"] * 3
            assert connections["default"].settings_dict["ATOMIC_REQUESTS"]
            assert router.routers is not routers
        with ThreadPoolExecutor() as pool:
            assert users() == pool.submit(users_of_thread).result() == ["app"] * 3
        assert (connections["default"], settings.DATABASES) == (outside, entries)
    finally:
        ps_lab.drop_role("elsewhere")


def test_pools_elsewhere(ps_lab: Lab, site: None) -> None:
    """A pool that Django keeps by alias is not that of the other place."""
    from django.db import connections

    from ps_django.test import databases_at

    def user() -> str:
        return user_of(connections["default"])

    url = ps_lab.create_role("pooled")
    try:
        with databases_at(ps_lab.url):
            connections["default"].settings_dict["OPTIONS"]["pool"] = {"min_size": 1, "max_size": 1}
            assert user() == "app"
            with databases_at(url):
                connections["default"].settings_dict["OPTIONS"]["pool"] = {"min_size": 1, "max_size": 1}
                assert user() == "pooled"
            assert user() == "app"
    finally:
        ps_lab.drop_role("pooled")
