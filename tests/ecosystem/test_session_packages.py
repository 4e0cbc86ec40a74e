"""django-pgactivity's timeouts and django-pglock's locks, behind the bouncers and on the direct path."""

import textwrap
from pathlib import Path
from typing import Any

import pytest

from ps_lab import Lab
from tests.applications.tenancy import told
from tests.ps_django.projects import result, start, write
from tests.strangers import strangers

PROJECT = """
import ps_django
DATABASES = ps_django.databases(statement_timeout="2s", transaction_timeout="3s")
DATABASE_ROUTERS = ["ps_django.routers.ReplicaRouter"]
INSTALLED_APPS = ["django.contrib.contenttypes", "pgactivity", "pglock"]
"""

TOOLS = """
import json, threading
from concurrent.futures import ThreadPoolExecutor
import django
django.setup()
import pgactivity, pglock, psycopg
from django.db import connections, transaction

def ask(sql, alias="default"):
    with connections[alias].cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0]

def timeout(alias="default"):
    return ask("SELECT current_setting('statement_timeout')", alias)

def outcome(call, *arguments, **options):
    try:
        return call(*arguments, **options)
    except django.db.Error as exc:
        return [type(exc).__name__, getattr(exc.__cause__, "sqlstate", None), str(exc).splitlines()[0]]

def in_thread(call, *arguments, **options):
    def run():
        try:
            return call(*arguments, **options)
        finally:
            connections.close_all()
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run).result()

def tell(**found):
    print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with both packages, as their documentation has them."""
    return write(tmp_path_factory.mktemp("packages"), {"project.py": PROJECT, "tools.py": TOOLS})


def ran(lab: Lab, folder: Path, script: str) -> Any:
    """Return what a script told."""
    urls = {"PS_URL": lab.url, "PS_BOUNCER": "write-pool", "PS_REPLICA_BOUNCER": "read-pool"}
    return told(result(start(folder, "-c", "from tools import *\n" + textwrap.dedent(script), **urls))[0])


def test_timeout(ps_lab: Lab, folder: Path) -> None:
    """`pgactivity.timeout()` replaces our limit in its block, nested and in transactions, also on replicas; then ours is back."""
    script = """
    found = {"before": timeout()}
    with pgactivity.timeout(seconds=1):
        found["block"] = timeout(), timeout("replica")
        with pgactivity.timeout(milliseconds=50):
            found["nested"] = timeout()
            found["ended"] = outcome(ask, "SELECT pg_sleep(10)")
        found["after"] = timeout()
        with transaction.atomic():
            found["atomic"] = timeout()
        try:
            with transaction.atomic(), pgactivity.timeout(milliseconds=50):
                ask("SELECT pg_sleep(10)")
        except django.db.OperationalError:
            found["rolled back"] = timeout()
        with pgactivity.timeout(None):
            found["none"] = timeout()
    found["last"] = timeout(), timeout("replica")
    with pgactivity.timeout(seconds=1, using="replica"):
        found["replica alone"] = timeout(), timeout("replica")
    found["last of all"] = timeout(), timeout("replica")
    tell(**found)
    """
    with strangers(ps_lab, "statement_timeout"):
        assert ran(ps_lab, folder, script) == {
            "before": "2s",
            "block": ["1s", "1s"],
            "nested": "50ms",
            "ended": ["OperationalError", "57014", "canceling statement due to statement timeout"],
            "after": "1s",
            "atomic": "1s",
            "rolled back": "1s",
            "none": "0",
            "last": ["2s", "2s"],
            "replica alone": ["2s", "1s"],
            "last of all": ["2s", "2s"],
        }


def test_lock_timeout(ps_lab: Lab, folder: Path) -> None:
    """`pglock.timeout()`'s kin: the time that a lock is waited for."""
    script = """
    shown = "SELECT current_setting('lock_timeout')"
    found = {}
    with pglock.timeout(seconds=1):
        found["block"] = ask(shown)
    found["after"] = ask(shown)
    tell(**found)
    """
    with strangers(ps_lab, "lock_timeout"):
        assert ran(ps_lab, folder, script) == {"block": "1s", "after": "0"}


def test_lock_is_refused(ps_lab: Lab, folder: Path) -> None:
    """A session's lock would be held by a server connection of the bouncer's: it is refused, and nothing is locked."""
    script = """
    def lock(**options):
        with pglock.advisory("name", **options) as acquired:
            return acquired
    found = [outcome(lock), outcome(lock, timeout=0), outcome(lock, shared=True), outcome(lock, using="replica")]
    tell(found=found, locks=ask("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"))
    """
    told = ran(ps_lab, folder, script)
    assert told["locks"] == 0
    for (kind, _, message), alias in zip(told["found"], ("default", "default", "default", "replica"), strict=True):
        assert kind == "NotSupportedError"
        if alias == "default":
            assert message == (
                "'default' is behind a transaction pooler, where a session advisory lock would stay with a server connection that"
                " other clients get: take pg_advisory_xact_lock() or pg_try_advisory_xact_lock(), which the end of the"
                ' transaction releases, or use the direct endpoint (to="direct", engine.direct, Django\'s alias "direct"); where'
                ' there is no such pooler, write pooled=False; session_state="allow" sends it all the same'
            )


@pytest.mark.parametrize("way", ['using="direct"', "xact=True"])
def test_lock(ps_lab: Lab, folder: Path, way: str) -> None:
    """On the direct path, and for a transaction behind the bouncer, of six threads one at a time is in the block."""
    script = f"""
    inside, most, mutex = 0, 0, threading.Lock()
    def work():
        global inside, most
        for _ in range(20):
            with pglock.advisory("name", {way}):
                with mutex:
                    inside += 1
                    most = max(most, inside)
                ask("SELECT 1")
                with mutex:
                    inside -= 1
        connections.close_all()
    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    def attempt():
        with pglock.advisory("name", {way}, timeout=0) as acquired:
            return acquired
    with pglock.advisory("name", {way}) as acquired:
        held = acquired, in_thread(attempt)
    tell(most=most, held=held, after=in_thread(attempt))
    """
    assert ran(ps_lab, folder, script) == {"most": 1, "held": [True, False], "after": True}
