"""Management commands of a project on a lab: which limits each one has, however it is started."""

import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ps_django.command_limits import SERVING
from ps_django.path import DIRECT
from ps_lab import Lab
from ps_lab.processes import wait_until
from tests.ps_django.projects import result, start, write

REQUEST = ["default", "2s", "3s"]
COMMAND = ["default", "5min", "10min"]
DIRECTLY = ["direct", "0", "0"]

SETTINGS = """
import os
import ps_django
DATABASES = ps_django.databases({url!r}, bouncer="write-pool", replica_bouncer="read-pool")
DATABASE_ROUTERS = ["ps_django.routers.ReplicaRouter"]
PS_DJANGO = {{"COMMAND_LIMITS": {{"transaction": "20min", "long": "off"}}}} if "LIMITS" in os.environ else {{}}
INSTALLED_APPS = ["orders", "django.contrib.contenttypes", "django.contrib.auth"]
ROOT_URLCONF = "orders.urls"
SECRET_KEY = "tests"
ALLOWED_HOSTS = ["*"]
USE_TZ = True
LOGGING = {{
    "version": 1, "disable_existing_loggers": False, "handlers": {{"console": {{"class": "logging.StreamHandler"}}}},
    "loggers": {{"ps_django": {{"handlers": ["console"]}}}},
}}
"""
SHOW = """
import json
from django.db import connections

def show(alias="default"):
    connection = connections[alias]
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('statement_timeout'), current_setting('transaction_timeout')")
        return [connection.connection.state.endpoint.name, *cursor.fetchone()]

def tell(what, found=None):
    print(json.dumps([what, found or show()]), flush=True)
"""
APP = """
import os
from django.apps import AppConfig

class Orders(AppConfig):
    name = "orders"

    def ready(self):
        if "READY" in os.environ:
            from orders.show import tell
            tell("ready()")
"""
COMMAND_FILE = """
import sys
from django.core.management.base import BaseCommand
from orders.show import tell

class Command(BaseCommand):
    requires_system_checks = []

    def handle(self, **options):
        tell(__name__.rpartition(".")[2])
"""
DERIVED = """
from django.core.management.commands.{of} import Command as Stock
from orders.show import tell

class Command(Stock):
    requires_system_checks = []
    requires_migrations_checks = False
    missing_args_message = None

    def add_arguments(self, parser):
        pass

    def handle(self, **options):
        tell({of!r})
"""
INSIDE = """
import asyncio, multiprocessing, threading
from concurrent.futures import ThreadPoolExecutor
from asgiref.sync import sync_to_async
from django.core.management import call_command
from django.core.management.base import BaseCommand
from django.db import connections
from orders.show import show, tell

def elsewhere():
    try:
        return show()
    finally:
        connections.close_all()

def report(queue):
    queue.put(elsewhere())

def process(method):
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    one = context.Process(target=report, args=(queue,))
    one.start()
    found = queue.get(timeout=60)
    one.join()
    return found

class Command(BaseCommand):
    def handle(self, **options):
        tell("command")
        call_command("called")
        with ThreadPoolExecutor(1) as pool:
            tell("thread", pool.submit(elsewhere).result())
            tell("thread's call_command", pool.submit(lambda: call_command("called")).result() or elsewhere())
        tell("async", asyncio.run(sync_to_async(elsewhere)()))
        tell("forked", process("fork"))
        tell("spawned", process("spawn"))
        tell("replica", show("replica"))
        tell("direct", show("direct"))
"""
LONG = """
import time
from django.core.management.base import BaseCommand
from django.db import connection, transaction

class Command(BaseCommand):
    def handle(self, **options):
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SELECT pg_sleep(2.2)")
            time.sleep(1.8)
            cursor.execute("SELECT 1")
        self.stdout.write("done")
"""
SCRIPT = """
import sys
import django
django.setup()
from django.core.management import call_command, execute_from_command_line
from django.db import connections
from orders.show import show, tell
tell("script")
looked = []
def look(frame, event, _):
    if frame.f_globals["__name__"] == "ps_django.path":
        looked.append(frame.f_code.co_name)

sys.setprofile(look)
show()
sys.setprofile(None)
tell("looks before a query", [*looked, "none"])
call_command("called")
call_command("loaddata")
tell("script, after loaddata")
connections.close_all()
execute_from_command_line(["manage.py", "called"])
tell("script, after a command")
"""
SERVERS = """
import sys
from django.core.management import execute_from_command_line
for name in sys.argv[1:]:
    execute_from_command_line(["manage.py", name])
execute_from_command_line(["manage.py", "shell", "--command", "from orders.show import tell; tell('shell')"])
"""
URLS = """
import json
from django.core.management import call_command
from django.http import HttpResponse
from django.urls import path
from orders.show import show

def view(request):
    call_command("called")
    return HttpResponse(json.dumps(show()))

urlpatterns = [path("limits", view)]
"""
DJANGOS = {"runserver", "testserver"} | DIRECT - {"dbshell"}
"""Commands of Django's own, whose modules the project derives its commands from; `dbshell` is a process of its own."""


@pytest.fixture(scope="module")
def project(ps_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project without models, whose commands tell their path and limits."""
    folder = "orders/management/commands"
    names = (SERVING | {"called", "import_orders"}) - DJANGOS
    of_applications = {"migrate_schemas", "remove_stale_contenttypes"}
    derived = {name: DERIVED.format(of=name) for name in DJANGOS - of_applications}
    derived |= dict.fromkeys(of_applications, COMMAND_FILE)
    return write(
        tmp_path_factory.mktemp("orders"),
        {
            "project.py": SETTINGS.format(url=ps_lab.url),
            "script.py": SCRIPT,
            "servers.py": SERVERS,
            "orders/show.py": SHOW,
            "orders/apps.py": APP,
            "orders/urls.py": URLS,
            **{f"{folder}/{name}.py": COMMAND_FILE for name in names},
            **{f"{folder}/{name}.py": text for name, text in derived.items()},
            f"{folder}/inside.py": INSIDE,
            f"{folder}/long.py": LONG,
        },
    )


def told(out: str) -> dict[str, Any]:
    """Return what was told, by what told it."""
    return dict(json.loads(line) for line in out.splitlines() if line.startswith("["))


def test_long_transaction(project: Path) -> None:
    """A command holds `atomic()` for 4 s, with a statement of over 2 s; that is logged once, with its place."""
    out, err = result(start(project, "manage.py", "long"))
    assert "done" in out
    assert len(re.findall(r"a transaction of 4\.\d s through the pooler of 'default'", err)) == 1, err
    line = LONG.splitlines().index("        with transaction.atomic(), connection.cursor() as cursor:") + 1
    assert f"orders/management/commands/long.py:{line}: " in err
    assert err.count("long.py:") == 1


def test_inside(project: Path) -> None:
    """What a command does in other ways has its limits; a process that is spawned is a script."""
    found = told(result(start(project, "manage.py", "inside"))[0])
    assert found == {
        "command": COMMAND,
        "called": COMMAND,
        "thread": COMMAND,
        "thread's call_command": COMMAND,
        "async": COMMAND,
        "forked": COMMAND,
        "spawned": REQUEST,
        "replica": ["replica", *COMMAND[1:]],
        "direct": DIRECTLY,
    }


def test_settings_of_limits(project: Path) -> None:
    """COMMAND_LIMITS of the project counts, also for a connection that is made while Django sets itself up for the command."""
    found = told(result(start(project, "manage.py", "called", LIMITS="1", READY="1"))[0])
    assert found == {"ready()": ["default", "5min", "20min"], "called": ["default", "5min", "20min"]}


def test_script(project: Path) -> None:
    """A script has the limits of requests, but in a command that it starts; `loaddata` takes the direct path while it lasts."""
    found = told(result(start(project, "script.py"))[0])
    assert found == {
        "script": REQUEST,
        "looks before a query": ["none"],
        "called": COMMAND,  # by `execute_from_command_line`
        "loaddata": DIRECTLY,
        "script, after loaddata": REQUEST,
        "script, after a command": REQUEST,
    }


def test_called_by_a_script(project: Path) -> None:
    """The first of the two, by itself."""
    script = "import django; django.setup(); from django.core.management import call_command; call_command('called')"
    assert told(result(start(project, "-c", script))[0]) == {"called": REQUEST}


def test_each_command(project: Path) -> None:
    """Those that serve have the limits of requests, those of the direct path none but its own, all others the long ones."""
    names = sorted((SERVING | DIRECT | {"import_orders"}) - {"dbshell"})
    found = told(result(start(project, "servers.py", *names))[0])
    assert found == {
        **dict.fromkeys(SERVING, REQUEST),
        **dict.fromkeys(DIRECT - {"dbshell"}, DIRECTLY),
        "import_orders": COMMAND,
        "shell": COMMAND,
    }


@pytest.fixture
def server(project: Path, tmp_path: Path) -> Iterator[str]:
    """Return the URL of `manage.py runserver`, Django's own."""
    orders = project / "orders/management/commands/runserver.py"
    hidden = orders.rename(tmp_path / "runserver.py")
    process = start(project, "manage.py", "runserver", "--noreload", "--skip-checks", "127.0.0.1:0", PYTHONUNBUFFERED="1")
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.search(r"http://127\.0\.0\.1:\d+/", line):
                yield found[0]
                break
    finally:
        process.terminate()
        process.communicate()
        hidden.rename(orders)


def test_server(server: str) -> None:
    """A request that calls a command keeps its limits."""
    answers: list[Any] = []

    def answer() -> bool:
        try:
            with urllib.request.urlopen(server + "limits", timeout=10) as response:
                answers.append(json.load(response))
        except OSError:
            return False
        return True

    wait_until(answer, "the server")
    assert answers == [REQUEST]
