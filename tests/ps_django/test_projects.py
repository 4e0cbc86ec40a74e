"""The tests of projects, under each runner: a `TestCase` that takes longer than a transaction may, and no pooler anywhere."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest
from django.db import connections

from ps_django.test import databases_at
from ps_lab import Lab
from tests.ps_django.projects import result, start, write

SETTINGS = """
import os
import ps_django
DATABASES = ps_django.databases({url!r}, bouncer="write-pool", replica_bouncer="read-pool", {limits})
DATABASES["default"]["TEST"] = {{"NAME": os.environ["TEST_NAME"]}}
DATABASE_ROUTERS = ["ps_django.routers.ReplicaRouter"]
MIDDLEWARE = ["ps_django.middleware.ConsistencyMiddleware"]
ROOT_URLCONF = "tests.ps_django.urls"
INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth", "django_shop.shop"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
SECRET_KEY = "tests"
STATIC_URL = "/static/"
USE_TZ = True
"""
SHORT = 'statement_timeout="200ms", transaction_timeout="300ms"'
"""Limits with which a `TestCase` is too long after 0.3 s."""
TESTS = """
import asyncio, json, multiprocessing, os, time
from concurrent.futures import ThreadPoolExecutor
from urllib.request import urlopen
from django.core.management import call_command
from django.db import IntegrityError, connection, connections, transaction
from django.test import LiveServerTestCase, TestCase, TransactionTestCase
import ps_django
from django_shop.shop.models import Product
from ps_core import use_token
from ps_django.test import databases_at

LASTS = float(os.environ.get("LASTS", "0.6"))
FREE = ["direct", "0", "0"]

def where(alias="default"):
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT current_setting('statement_timeout'), current_setting('transaction_timeout')")
        return [cursor.connection.state.endpoint.name, *cursor.fetchone()]

def elsewhere():
    try:
        return where()
    finally:
        connections.close_all()

def report(queue):
    queue.put(elsewhere())

class Long(TestCase):
    databases = {"default", "replica"}

    @classmethod
    def setUpTestData(cls):
        Product.objects.create(name="web cup", price=1, stock=1)

    def test_1_long(self):
        began = time.monotonic()
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_sleep(%s)", [LASTS / 2])
        time.sleep(LASTS / 2)
        assert Product.objects.get().name == "web cup"
        assert time.monotonic() - began >= LASTS

    def test_2_behind_it(self):
        assert Product.objects.get().name == "web cup"
        assert where() == FREE

    def test_mirror(self):
        with ps_django.reading():
            assert Product.objects.get()._state.db == "replica"

    def test_failed(self):
        cup = Product.objects.get()
        with self.assertRaises(IntegrityError):
            Product.objects.create(pk=cup.pk, name="web pan", price=1, stock=1)

    async def test_async(self):
        await asyncio.sleep(0.01)
        assert await Product.objects.acount() == 1
        assert (await self.async_client.get("/products")).json()["names"] == ["web cup"]

    def test_block(self):
        with ps_django.on_direct_path(), transaction.atomic():
            assert Product.objects.count() == 1

class Others(TransactionTestCase):
    databases = {"default", "replica"}

    def test_threads(self):
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(elsewhere).result() == FREE

    def test_forks(self):
        if multiprocessing.current_process().daemon:
            return
        context = multiprocessing.get_context("fork")
        queue = context.SimpleQueue()
        process = context.Process(target=report, args=(queue,))
        process.start()
        process.join()
        assert process.exitcode == 0
        assert queue.get() == FREE

    def test_limits_and_poolers_on_request(self):
        with databases_at(os.environ["LAB_URL"], bouncer="write-pool", replica_bouncer="read-pool"):
            assert where() == ["default", "2s", "3s"]
            with use_token(None):  # a caller who has seen nothing: a replica that is behind would leave the answer to the primary
                assert where("replica") == ["replica", "2s", "3s"]
            with connection.schema_editor():
                assert where() == ["direct", "0", "0"]
        assert where() == FREE

class Live(LiveServerTestCase):
    def test_requests(self):
        Product.objects.create(name="web pot", price=1, stock=1)
        with urlopen(self.live_server_url + "/products") as answer:
            assert json.load(answer)["names"] == ["web pot"]
"""
COUNT = len(re.findall(r"def test_", TESTS))
PYTEST = """
import time
import pytest
from django.db import connection
from test_shop import FREE, where
from django_shop.shop.models import Product

@pytest.mark.django_db
def test_long():
    connection.cursor().execute("SELECT 1")
    time.sleep(0.6)
    assert where() == FREE

@pytest.mark.django_db(transaction=True)
async def test_async():
    assert await Product.objects.acount() == 0
    from asgiref.sync import sync_to_async
    assert await sync_to_async(where)() == FREE
"""
CONFTEST = """
import os
import pytest
from django.core.management import call_command
from django.db import connections

if "OWN_SETUP" in os.environ:

    @pytest.fixture(scope="session")
    def django_db_setup(django_db_blocker):
        connections["default"].settings_dict["NAME"] = os.environ["TEST_NAME"]
        with django_db_blocker.unblock():
            call_command("migrate", verbosity=0)
        yield
        with django_db_blocker.unblock():
            connections.close_all()
"""
INI = """
[pytest]
addopts = --ds=project -q -p no:cacheprovider -p no:randomly
asyncio_mode = auto
asyncio_default_fixture_loop_scope = function
filterwarnings = error
"""

UNITTEST = ("manage.py", "test", "--noinput")
PYTEST_COMMAND = ("-m", "pytest")
WAYS: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "pytest": ((*PYTEST_COMMAND, "test_shop.py", "pytest_shop.py"), {"LASTS": "5"}),
    "unittest": (UNITTEST, {}),
    "own_setup": ((*PYTEST_COMMAND, "test_shop.py", "pytest_shop.py"), {"OWN_SETUP": "1"}),
    "parallel_fork": ((*UNITTEST, "--parallel=2"), {"START": "fork"}),
    "parallel_spawn": ((*UNITTEST, "--parallel=2"), {"START": "spawn"}),
    "xdist": ((*PYTEST_COMMAND, "-n2", "test_shop.py", "pytest_shop.py"), {}),
}
"""Commands and their environment; the first with a `TestCase` of 5 s and the limits that everybody has."""
KEEPS: dict[str, tuple[str, ...]] = {
    "reuse_db": (*PYTEST_COMMAND, "--reuse-db", "test_shop.py"),
    "xdist_reuse_db": (*PYTEST_COMMAND, "-n2", "--reuse-db", "test_shop.py"),
    "keepdb": (*UNITTEST, "--keepdb"),
    "parallel_keepdb": (*UNITTEST, "--keepdb", "--parallel=2"),
}


@pytest.fixture(scope="module")
def url(ps_lab: Lab) -> Iterator[str]:
    """A role that may create databases, by a URL whose pooled port leads nowhere."""
    ps_lab.sql("ALTER ROLE app CREATEDB")
    yield re.sub(r"ps_pooled_port=\d+", urlencode({"ps_pooled_port": 1, "ps_retry_timeout": 0}), ps_lab.url)
    for (name,) in ps_lab.sql("SELECT datname FROM pg_database WHERE datname LIKE 'way_%'"):
        ps_lab.sql(f'DROP DATABASE "{name}" WITH (FORCE)')
    ps_lab.sql("ALTER ROLE app NOCREATEDB")


def project(folder: Path, url: str, limits: str = SHORT) -> Path:
    """Write a project with tests."""
    files = {"test_shop.py": TESTS, "pytest_shop.py": PYTEST, "conftest.py": CONFTEST, "pytest.ini": INI}
    return write(folder, {"project.py": SETTINGS.format(url=url, limits=limits), **files})


def check(out: str, err: str, way: str) -> None:
    """Check that all tests passed, without a warning."""
    if "pytest" in out or "passed" in out:
        assert re.search(rf"^{COUNT + ('reuse' not in way) * 2} passed in", out, re.MULTILINE), out
    else:
        assert f"Ran {COUNT} tests" in err
        assert "\nOK" in err
    assert "arning" not in out + err


@pytest.mark.parametrize(
    "ways",
    [
        ("pytest", "unittest", "own_setup"),
        pytest.param(("parallel_fork", "parallel_spawn", "xdist"), marks=pytest.mark.tools),
    ],
)
def test_runners(ps_lab: Lab, url: str, tmp_path: Path, ways: tuple[str, ...]) -> None:
    """All of them pass with each runner, without a pooler, and leave nothing; some at once, which saves time."""
    ps_lab.sql("CREATE DATABASE way_own_setup OWNER app")

    def run(way: str) -> None:
        command, environment = WAYS[way]
        # The first is on a server alone, by its socket: what has bouncers in its settings needs none.
        plain = f"postgresql://postgres:any@{quote(str(ps_lab.primary.socket_folder), safe='')}:5432/postgres"
        folder = project(tmp_path / way, *((plain, "") if way == "pytest" else (url, SHORT)))
        check(*result(start(folder, *command, TEST_NAME=f"way_{way}", LAB_URL=ps_lab.url, **environment)), way)

    try:
        with ThreadPoolExecutor() as pool:
            ended = {way: pool.submit(run, way) for way in ways}
        assert {way: error for way, one in ended.items() if (error := one.exception())} == {}
        assert ps_lab.sql("SELECT datname FROM pg_database WHERE datname LIKE 'way_%'") == [("way_own_setup",)]
    finally:
        ps_lab.sql("DROP DATABASE way_own_setup WITH (FORCE)")


@pytest.mark.tools
@pytest.mark.parametrize("way", KEEPS)
def test_kept_databases(ps_lab: Lab, url: str, tmp_path: Path, way: str) -> None:
    """A second run uses the databases of the first."""
    folder = project(tmp_path, url)
    environment = {"TEST_NAME": f"way_{way}", "LAB_URL": ps_lab.url}
    check(*result(start(folder, *KEEPS[way], **environment)), way)
    made = ps_lab.sql("SELECT datname, oid FROM pg_database WHERE datname LIKE %s ORDER BY 1", f"way_{way}%")
    assert made
    check(*result(start(folder, *KEEPS[way], **environment)), way)
    assert ps_lab.sql("SELECT datname, oid FROM pg_database WHERE datname LIKE %s ORDER BY 1", f"way_{way}%") == made


def test_mark(ps_lab: Lab, site: None) -> None:
    """The direct path without limits, from the making of the database to its end; a clone needs that no pooler is on it."""

    def limits() -> list[str]:
        with connection.cursor() as cursor:
            cursor.execute("SELECT current_setting('transaction_timeout')")
            return [connection.connection.state.endpoint.name, *cursor.fetchone()]

    ps_lab.sql("ALTER ROLE app CREATEDB")
    try:
        with databases_at(ps_lab.url, bouncer="write-pool", replica_bouncer="read-pool"):
            connection = connections["default"]
            assert limits() == ["default", "3s"]
            made = connection.creation.create_test_db(verbosity=0, autoclobber=True)
            assert limits() == ["direct", "0"]
            connection.creation.clone_test_db("1", verbosity=0, autoclobber=True)
            connection.creation.destroy_test_db(verbosity=0, suffix="1")
            assert limits() == ["direct", "0"]
            connection.creation.destroy_test_db("postgres", verbosity=0)
            assert limits() == ["default", "3s"]
            assert ps_lab.sql("SELECT datname FROM pg_database WHERE datname LIKE %s", f"{made}%") == []
    finally:
        ps_lab.sql("ALTER ROLE app NOCREATEDB")
