"""The system checks: each is found where it should be, with its id, and not where all is well."""

import re
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.core.checks import run_checks
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.db import connections
from django.test import override_settings
from django.test.utils import CaptureQueriesContext

import ps_django
from ps_core import Token, use_token
from ps_core._diagnosis import QUESTION
from ps_core._documentation import link
from ps_core.consistency import MAX_BRANCHES
from ps_core.share import _of_environment
from ps_django.checks import check_databases, check_settings
from ps_django.config import endpoint_of
from ps_django.settings import Settings
from ps_django.test import databases_at
from ps_lab import Lab
from ps_lab.processes import wait_until
from tests.ps_django.projects import result, start, write

URL = "postgresql://app.branch:pw@x.horizon.psdb.cloud/db"
DOCUMENT = Path(__file__).parents[2] / "docs" / "django-checks.md"


@pytest.fixture
def patch() -> Iterator[pytest.MonkeyPatch]:
    """A way to change settings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "MIDDLEWARE", ["ps_django.middleware.ConsistencyMiddleware"])
        patch.setattr(settings, "DATABASES", ps_django.databases(URL, bouncer="write-pool", replica_bouncer="read-pool"))
        yield patch


def linked(message: Any) -> str:
    """Return what a hint ends with."""
    return f" {link('django-checks', message.id)}"


def ids(found: list[Any]) -> set[str]:
    """Return the ids; each finding has a hint."""
    assert all(message.hint for message in found)
    return {str(message.id).removeprefix("ps_django.") for message in found}


def change(patch: pytest.MonkeyPatch, alias: str, **changes: Any) -> None:
    """Change an entry of DATABASES; `OPTIONS` are added to."""
    entries = {name: {**entry, "OPTIONS": dict(entry["OPTIONS"])} for name, entry in settings.DATABASES.items()}
    entries[alias]["OPTIONS"] |= changes.pop("OPTIONS", {})
    entries[alias] |= changes
    patch.setattr(settings, "DATABASES", entries)


def test_all_is_well(patch: pytest.MonkeyPatch) -> None:
    """What `databases()` makes has no findings; nor has what Django has for the primary's alias."""
    assert check_settings() == []
    change(patch, "default", ATOMIC_REQUESTS=True, CONN_MAX_AGE=3600)
    assert check_settings() == []


def test_nothing_to_check(patch: pytest.MonkeyPatch) -> None:
    """Databases of other backends are none of ours."""
    patch.setattr(settings, "DATABASES", {"default": {"ENGINE": "django.db.backends.sqlite3"}})
    assert check_settings() == []


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("PS_DJANGO", {"READ": 1}, "E002"),
        ("DATABASE_ROUTERS", [], "W003"),
        ("DATABASE_ROUTERS", ["shop.Router", "ps_django.routers.ReplicaRouter"], "E003"),
        ("MIDDLEWARE", [], "W004"),
        (
            "MIDDLEWARE",
            ["django.contrib.sessions.middleware.SessionMiddleware", "ps_django.middleware.ConsistencyMiddleware"],
            "E004",
        ),
        ("MIDDLEWARE", ["django.middleware.cache.UpdateCacheMiddleware", "ps_django.middleware.ConsistencyMiddleware"], "E004"),
    ],
)
def test_project(patch: pytest.MonkeyPatch, name: str, value: Any, found: str) -> None:
    """Settings of the project."""
    patch.setattr(settings, name, value, raising=False)
    assert ids(check_settings()) == {found}


def test_share_of_the_environment(patch: pytest.MonkeyPatch) -> None:
    """A wrong PS_REPLICA_SHARE is found before the first read."""
    patch.setenv("PS_REPLICA_SHARE", "50%")
    _of_environment.cache_clear()
    try:
        assert ids(check_settings()) == {"E002"}
    finally:
        _of_environment.cache_clear()


@pytest.mark.parametrize(("count", "found"), [(MAX_BRANCHES, set()), (MAX_BRANCHES + 1, {"W018"})])
def test_databases_of_a_token(patch: pytest.MonkeyPatch, count: int, found: set[str]) -> None:
    """More databases than a user's token can name."""
    more = {}
    for number in range(1, count):
        for alias in ("default", "replica"):
            entry = settings.DATABASES[alias]
            options = {**entry["OPTIONS"], "ps_primary": f"default{number}"}
            more[f"{alias}{number}"] = {**entry, "OPTIONS": options if alias == "replica" else dict(entry["OPTIONS"])}
    patch.setattr(settings, "DATABASES", {**settings.DATABASES, **more})
    assert ids(check_settings()) == found


@pytest.mark.parametrize(
    ("alias", "changes", "found"),
    [
        ("default", {"OPTIONS": {"ps_statement_timeout": "5s"}}, "E001"),
        ("default", {"OPTIONS": {"ps_statement_timeouts": "5s"}}, "E001"),
        ("replica", {"USER": "app.branch"}, "E005"),
        ("replica", {"ATOMIC_REQUESTS": True}, "W017"),
        ("direct", {"ATOMIC_REQUESTS": True}, "W017"),
        ("default", {"OPTIONS": {"ps_statement_timeout": None}}, "W006"),
        ("default", {"CONN_MAX_AGE": None}, "W007"),
        ("replica", {"CONN_MAX_AGE": 100_000}, "W007"),
        ("default", {"OPTIONS": {"sslmode": "require", "sslrootcert": ""}}, "W008"),
        ("default", {"OPTIONS": {"ps_transport": "websocket", "sslmode": "require", "sslrootcert": ""}}, "E001"),
    ],
)
def test_entries(patch: pytest.MonkeyPatch, alias: str, changes: dict[str, Any], found: str) -> None:
    """Entries of DATABASES."""
    change(patch, alias, **changes)
    assert ids(check_settings()) == {found}


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({}, {"W008"}),
        ({"sslmode": "require"}, {"W008"}),
        ({"sslmode": "verify-ca"}, {"W008"}),
        ({"sslmode": "verify-full"}, set()),
        ({"sslrootcert": "system"}, set()),
        ({"ps_transport": "websocket"}, set()),
    ],
)
def test_tls(patch: pytest.MonkeyPatch, options: dict[str, str], found: set[str]) -> None:
    """With the system's roots libpq verifies fully, also where no mode is written; the bridge always does."""
    patch.setattr(
        settings, "DATABASES", {"default": {"ENGINE": "ps_django.backend", "HOST": "db.example.com", "OPTIONS": options}}
    )
    patch.delenv("PGSSLMODE", raising=False)
    assert ids(check_settings()) - {"W014"} == found
    patch.setenv("PGSSLMODE", "verify-full")
    assert bool(ids(check_settings()) - {"W014"}) is ("sslmode" in options and bool(found))


def of_sources(patch: pytest.MonkeyPatch, *folders: Path) -> list[tuple[str, str]]:
    """Return the findings in applications with these folders: where, and the hint."""
    from django.apps import AppConfig, apps

    def config(folder: Path) -> AppConfig:
        kind: type[AppConfig] = type("Config", (AppConfig,), {"name": "application", "path": str(folder)})
        return kind("application", pytest)

    patch.setattr(apps, "get_app_configs", lambda: [config(folder) for folder in folders])
    found = check_settings()
    assert ids(found) <= {"W014"}
    assert all(str(message.hint).endswith(linked(message)) for message in found)
    told = [message.msg.partition(" uses ") for message in found]
    assert {what for _, _, what in told} <= {
        "what needs a session, and 'default' is pooled by transaction: a session advisory lock and LISTEN are refused there."
    }
    return [(place, str(message.hint).removesuffix(linked(message))) for (place, _, _), message in zip(told, found, strict=True)]


OURS = "Use connections['direct'] there, or pg_advisory_xact_lock() in atomic()."
THEIRS = "Let it use the alias 'direct', or locks of a transaction, if it can; else it does not work here."


@pytest.mark.parametrize(
    "text",
    [
        "cursor.execute('SELECT pg_advisory_lock(1)')",
        "cursor.execute('SELECT pg_try_advisory_lock(1, 2)')",
        "cursor.execute(f'select pg_advisory_lock({key})')",
        "cursor.execute(f\"SELECT pg_advisory_lock{'_shared' if shared else ''}(1)\")",
        "cursor.execute('SELECT ' + 'pg_catalog.pg_advisory_unlock(%s)', [1])",
        "name = f'pg_advisory_unlock{kind}'",
        "function = 'pg_try_advisory_lock'",
        "cursor.execute('LISTEN orders')",
        "cursor.execute(f'LISTEN {channel};')",
        "cursor.execute('LISTEN ' + channel)",
        "cursor.execute(sql.SQL('LISTEN {}').format(channel))",
    ],
)
def test_sources(patch: pytest.MonkeyPatch, tmp_path: Path, text: str) -> None:
    """What needs a session, in the sources of the project's applications, is found with its line; not in migrations and tests."""
    source = tmp_path / "tasks.py"
    text = f"import x\n\n\ndef lock(cursor):\n    {text}\n"
    source.write_text(text)
    assert of_sources(patch, tmp_path) == [(f"{source}:5", OURS)]
    source.unlink()
    for elsewhere in ("migrations/0001_lock.py", "tests.py", "tests/test_lock.py", "node_modules/gyp/x.py"):
        (tmp_path / elsewhere).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / elsewhere).write_text(text)
    assert of_sources(patch, tmp_path) == []


@pytest.mark.parametrize(
    "text",
    [
        '"""SELECT pg_advisory_lock(1)"""',
        "# cursor.execute('SELECT pg_advisory_lock(1)')",
        "cursor.execute('SELECT pg_advisory_xact_lock(1)')",
        "cursor.execute('SELECT 1 AS \"LISTEN x\"')",
        "raise ValueError('pg_advisory_lock() is not for you', 'use pg_advisory_lock(1)', 'Listen to', 'LISTEN to me')",
        "words = {b'LISTEN x', 'LISTEN', 7}",
        "{{ template }}: cursor.execute('LISTEN orders')",
        "pattern = '\\d'  # pg_advisory_lock(1)",
    ],
)
def test_sources_without(patch: pytest.MonkeyPatch, tmp_path: Path, text: str) -> None:
    """Comments, docstrings, locks of a transaction and prose are no finding; nor is what is no Python, or cannot be read."""
    (tmp_path / "tasks.py").write_text(f"{text}\n")
    (tmp_path / ".#tasks.py").symlink_to("nobody@nowhere")
    assert of_sources(patch, tmp_path) == []


def test_sources_of_packages(patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An installed package is reported once, with what can be done about it; the project's own files, each once."""
    package, project = tmp_path / "lib" / "site-packages" / "locks", tmp_path / "shop"
    for folder in (package, package / "inner", project):
        folder.mkdir(parents=True)
        for name in ("a.py", "b.py"):
            (folder / name).write_text("LOCK = 'SELECT pg_advisory_lock(1)'\n")
    found = of_sources(patch, package, project, project)
    assert found == [(f"{package / 'a.py'}:1", THEIRS), (f"{project / 'a.py'}:1", OURS), (f"{project / 'b.py'}:1", OURS)]


def test_derived_backends(patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A backend that derives from ours is checked as ours; one that does not, or does not exist, is left alone."""
    engine = tmp_path / "derived_backend"
    engine.mkdir()
    (engine / "__init__.py").touch()
    (engine / "base.py").write_text(
        "from ps_django.backend import base\n\n\nclass DatabaseWrapper(base.DatabaseWrapper):\n    pass\n"
    )
    (tmp_path / "tasks.py").write_text("LOCK = 'LISTEN orders'\n")
    patch.syspath_prepend(str(tmp_path))
    patch.setattr(settings, "DATABASES", ps_django.databases(URL))
    for name, found in (
        ("derived_backend", [(f"{tmp_path / 'tasks.py'}:1", OURS)]),
        ("django.db.backends.postgresql", []),
        ("no_such_backend", []),
    ):
        change(patch, "default", ENGINE=name)
        if name == "derived_backend":
            assert of_sources(patch, tmp_path) == found
        else:  # what else is said of it, `test_derived_backends.py` has
            assert "W014" not in {message.id for message in check_settings()}, name


def test_session_state(patch: pytest.MonkeyPatch) -> None:
    """`session_state` is an option of each alias that is pooled; what is none is found."""
    entries = ps_django.databases(URL, replica_bouncer="read-pool", session_state="allow")
    allowed = {alias: entry["OPTIONS"].get("ps_session_state") for alias, entry in entries.items()}
    assert allowed == {"default": "allow", "replica": "allow", "direct": None}
    assert {alias: endpoint_of(alias, entry).refuses_session for alias, entry in entries.items()} == dict.fromkeys(entries, False)
    assert entries == ps_django.databases(f"{URL}?ps_session_state=allow", replica_bouncer="read-pool")
    plain = ps_django.databases(URL, replica_bouncer="read-pool", session_state="refuse")
    assert plain == ps_django.databases(URL, replica_bouncer="read-pool")
    refuses = {alias: endpoint_of(alias, entry).refuses_session for alias, entry in plain.items()}
    assert refuses == {"default": True, "replica": True, "direct": False}
    change(patch, "default", OPTIONS={"ps_session_state": "keep"})
    (message,) = check_settings()
    assert message.msg == "DATABASES['default']: ps_session_state: write 'refuse' or 'allow', not 'keep'"


def test_servers(ps_lab: Lab) -> None:
    """The lab has nothing to complain of, asked as `check --database` asks."""
    assert [message for message in run_checks(databases=list(connections)) if str(message.id).startswith("ps_django")] == []


def test_round_trips(ps_lab: Lab) -> None:
    """Each server is asked one question, whatever is judged by its answer."""
    with CaptureQueriesContext(connections["default"]) as primary, CaptureQueriesContext(connections["direct"]) as direct:
        assert check_databases(databases=["default"]) == []
    assert [len(primary), len(direct)] == [1, 1]


@pytest.mark.parametrize(("version", "expected"), [(160_004, {"W010"}), (170_000, set())])
def test_old_server(ps_lab: Lab, monkeypatch: pytest.MonkeyPatch, version: int, expected: set[str]) -> None:
    """A server without `transaction_timeout` is found, by its version number."""
    asked = QUESTION.replace("pg_catalog.current_setting('server_version_num')", f"{version}")
    monkeypatch.setattr("ps_django.checks.QUESTION", asked)
    assert ids(check_databases(databases=["direct"])) == expected


def test_servers_over_websocket(ps_lab: Lab) -> None:
    """Nor has it over the WebSocket, where libpq knows of no TLS."""
    with databases_at(ps_lab.url, transport="websocket", bouncer="write-pool", replica_bouncer="read-pool"):
        assert check_databases(databases=["default", "replica", "direct"]) == []


def test_command(ps_lab: Lab) -> None:
    """`manage.py check` runs those of the settings, and with `--database` also those of the servers."""
    with override_settings(PS_DJANGO={"READ": 1}), pytest.raises(SystemCheckError, match=r"ps_django\.E002"):
        call_command("check", tags=["ps_django"])
    ps_lab.sql("REVOKE CREATE ON SCHEMA public FROM app")
    try:
        call_command("check", tags=["ps_django"])
        with pytest.raises(SystemCheckError, match=r"ps_django\.E012"):
            call_command("check", tags=["database"], databases=["default"])
    finally:
        ps_lab.sql("GRANT CREATE ON SCHEMA public TO app")


def test_not_pooled(ps_lab: Lab) -> None:
    """A server that answers where a pooler is meant to be is found."""
    connection: Any = connections["default"].copy("default")
    connection.settings_dict = connection.settings_dict | {
        "PORT": connections["direct"].settings_dict["PORT"],
        "USER": connections["direct"].settings_dict["USER"],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ps_django.checks.connections", {"default": connection})
        found = ids(check_databases(databases=["default"]))
        connection.close()
    assert found == {"W011"}


def test_pooled_by_session(ps_lab: Lab) -> None:
    """A pooler that gives each client a server connection of its own is found."""
    bouncers = [ps_lab.bouncers[name] for name in ("write-pool", "local")]  # one behind the other
    connections["default"].close()
    for bouncer in bouncers:
        bouncer.reload(pool_mode="session")
    try:
        assert ids(check_databases(databases=["default"])) == {"W015"}
    finally:
        connections["default"].close()
        for bouncer in bouncers:
            bouncer.reload(pool_mode="transaction")
    assert ids(check_databases(databases=["default"])) == set()


def test_no_rights_and_no_answer(ps_lab: Lab) -> None:
    """A migration role that may not create tables, and a server that does not answer, are errors."""
    ps_lab.sql("REVOKE CREATE ON SCHEMA public FROM app")
    try:
        assert ids(check_databases(databases=["default"])) == {"E012"}
    finally:
        ps_lab.sql("GRANT CREATE ON SCHEMA public TO app")
    connection: Any = connections["default"].copy("default")
    connection.settings_dict = connection.settings_dict | {"PASSWORD": "wrong"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ps_django.checks.connections", {"default": connection})
        (message,) = check_databases(databases=["default"])
    assert message.id == "ps_django.E009"
    assert "wrong" not in message.msg


def test_primary_behind_a_replicas_alias(ps_lab: Lab) -> None:
    """A replica's alias that leads to the primary is found."""
    connection: Any = connections["replica"].copy("replica")
    connection.settings_dict = connection.settings_dict | {"USER": connections["default"].settings_dict["USER"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ps_django.checks.connections", {"replica": connection})
        found = ids(check_databases(databases=["replica"]))
        connection.close()
    assert found == {"W013"}


MODELS = """
from django.db import models
from django.db.models.functions import Upper


class Item(models.Model):
    name = models.CharField(max_length=20)
    upper = models.GeneratedField(expression=Upper("name"), output_field=models.CharField(max_length=20), db_persist=True)
"""
PROJECT = """
import ps_django
DATABASES = ps_django.databases({url!r}, bouncer="write-pool", replica_urls={away!r}, replica_fallback="none", retry_timeout="1s")
DATABASE_ROUTERS = {routers}
MIDDLEWARE = ["ps_django.middleware.ConsistencyMiddleware"]
INSTALLED_APPS = ["items"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
"""


@pytest.mark.tcp
@pytest.mark.parametrize("primary", ["up", "away"])
@pytest.mark.parametrize("routers", [["ps_django.routers.ReplicaRouter"], []])
def test_without_servers(ps_lab: Lab, tmp_path: Path, routers: list[str], primary: str) -> None:
    """`manage.py check` needs no replica; and the primary only for models for which stock asks its server's version."""
    away = "postgresql://app:x@127.0.0.1:1/postgres?sslmode=disable"
    project = PROJECT.format(url=ps_lab.url if primary == "up" else away, away=away, routers=routers)
    models = MODELS if primary == "up" else MODELS[: MODELS.index("    upper")]
    folder = write(tmp_path, {"project.py": project, "items/models.py": models})
    assert "identified no issues" in result(start(folder, "manage.py", "check"))[0] or not routers


def standing_in() -> bool:
    """Return whether the primary answers on the replica's alias, to whom nothing was told."""
    with use_token(None), connections["replica"].cursor() as cursor:
        cursor.execute("SELECT pg_is_in_recovery()")
        row = cursor.fetchone()
    assert row is not None
    return not row[0]


def test_after_a_crash(ps_lab: Lab) -> None:
    """After a crash of the primary, each server is what its alias says, whatever the process has seen before it."""
    with use_token(Token(identity=ps_lab.branch, position=None, at=time.time())):
        ps_lab.crash_primary(detection=0.1)
        ps_lab.wait_replicas_caught_up()
        assert ids(check_databases(databases=["default", "replica"])) == set()


def test_replicas_that_lag(ps_lab: Lab) -> None:
    """What only the primary has by now says nothing of the replica's alias."""
    ps_lab.set_replay_delay(60)
    try:
        ps_lab.sql("UPDATE shop_product SET stock = 1")
        ps_lab.sql("INSERT INTO shop_product (name, price, stock) VALUES ('cup', 1, 1)")
        assert ids(check_databases(databases=["default", "replica"])) == set()
    finally:
        ps_lab.set_replay_delay(0)


def test_replicas_away(ps_lab: Lab) -> None:
    """While they are away, the primary stands in, and that is said; not of the first moments in which they are back."""
    ps_lab.bouncers["read-pool"].stop()
    try:
        assert standing_in()
        assert ids(check_databases(databases=["replica"])) == {"W013"}
    finally:
        ps_lab.restart_bouncer("read-pool")
    assert ids(check_databases(databases=["replica"])) == set()
    wait_until(lambda: not standing_in(), "the reads' return")


def test_settings_that_cannot_work(site: None) -> None:
    """Where the settings cannot work, the servers are not asked: what to write is said in place of a traceback."""
    connections["default"].close()
    with override_settings(PS_DJANGO={"COMMAND_LIMITS": "long"}):
        (message,) = check_databases(databases=["default"])
    assert "PS_DJANGO['COMMAND_LIMITS']: write \"off\"" in message.msg
    assert ids([message]) == {"E001"}


def test_document() -> None:
    """Each id has an entry in the documentation, and the other way round; each key of PS_DJANGO is named."""
    from ps_django import checks

    for page, line in ((DOCUMENT, "`{}`"), (DOCUMENT.parent / "django.md", "| `{}` |")):
        text = page.read_text()
        assert [field.name for field in fields(Settings) if line.format(field.name.upper()) not in text] == []
    source = Path(checks.__file__).read_text()
    wanted = set(re.findall(r'"ps_django\.([EW]\d{3})"', source))
    assert set(re.findall(r"^## ps_django\.([EW]\d{3})", DOCUMENT.read_text(), re.MULTILINE)) == wanted
