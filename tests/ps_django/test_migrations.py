"""The page on migrations: its settings, its SQL and its migrations, run by `manage.py migrate`."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

import ps_core
from ps_core.topology import Topology
from ps_lab import Lab
from tests.docs.pages import DOCS, blocks_of

SETTINGS, INDEX, DATA = (block.text for block in blocks_of(DOCS / "django-migrations.md") if block.language == "python")
RIGHTS, OWNER, DROP = (block.text for block in blocks_of(DOCS / "django-migrations.md") if block.language == "sql")
MANAGE = """
import os, sys
import ps_django
from django.conf import settings
from django.core.management import execute_from_command_line
{settings}
settings.configure(DATABASES=DATABASES, INSTALLED_APPS=["shop"], DATABASE_ROUTERS=["ps_django.routers.ReplicaRouter"],
    MIDDLEWARE=["ps_django.middleware.ConsistencyMiddleware"], DEFAULT_AUTO_FIELD="django.db.models.BigAutoField")
execute_from_command_line(sys.argv)
"""
INITIAL = """
from django.db import migrations, models

class Migration(migrations.Migration):
    operations = [
        migrations.CreateModel("Product", [
            ("id", models.BigAutoField(primary_key=True)), ("name", models.TextField()), ("slug", models.TextField(default="")),
        ]),
    ]
"""
LOST = """
from pathlib import Path
from django.db import connection, migrations, models

def lose(apps, schema_editor):
    apps.get_model("shop", "Order").objects.create()
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_user, current_setting('statement_timeout'), current_setting('lock_timeout')")
        assert cursor.fetchone() == ("migrator", "0", "5s")
        if not Path("lost").exists():
            Path("lost").touch()
            cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")

class Migration(migrations.Migration):
    dependencies = [("shop", "0003_data")]
    operations = [
        migrations.CreateModel("Order", [("id", models.BigAutoField(primary_key=True))]),
        migrations.RunPython(lose),
    ]
"""
NAME = "migrations_page"


@pytest.fixture
def url(ps_lab: Lab) -> Iterator[str]:
    """A database of its own, as the application's role knows it."""
    ps_lab.sql(f"CREATE DATABASE {NAME}")
    ps_lab.sql("GRANT CREATE ON SCHEMA public TO app", dbname=NAME)
    yield ps_lab.url.replace("/postgres?", f"/{NAME}?")
    ps_lab.sql(f"DROP DATABASE {NAME} WITH (FORCE)")


@pytest.fixture
def migrator(ps_lab: Lab, url: str) -> Iterator[str]:
    """The role that migrates."""
    name = "migrator"
    yield ps_lab.create_role(name).replace("/postgres?", f"/{NAME}?").partition("&ps_")[0]  # its port is the direct one
    ps_lab.sql(f"DROP OWNED BY {name}", dbname=NAME)
    ps_lab.drop_role(name)


def test_page(ps_lab: Lab, tmp_path: Path, url: str, migrator: str) -> None:
    """Tables change hands; an index waits for its time; a migration that is lost leaves nothing, and is run again."""
    migrations = tmp_path / "shop" / "migrations"
    migrations.mkdir(parents=True)
    for package in (migrations, migrations.parent):
        (package / "__init__.py").touch()
    (tmp_path / "manage.py").write_text(MANAGE.format(settings=SETTINGS))
    for name, text in {"0001_initial": INITIAL, "0002_index": INDEX, "0003_data": DATA, "0004_lost": LOST}.items():
        (migrations / f"{name}.py").write_text(text)

    def migrate(*arguments: str, **environment: str) -> str:
        paths = os.pathsep.join(path for path in sys.path if path)
        done = subprocess.run(
            [sys.executable, "manage.py", "migrate", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": paths, "DATABASE_URL": url, **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        return "" if done.returncode == 0 else done.stderr

    def sql(query: str) -> list[tuple[object, ...]]:
        return ps_lab.sql(query, dbname=NAME)

    assert migrate("shop", "0001") == ""
    sql("INSERT INTO shop_product (name, slug) VALUES ('Cup', '')")
    for block in (RIGHTS, OWNER):
        for statement in block.splitlines():
            sql(statement)

    topology = Topology.from_url(url, bouncer="write-pool")
    with closing(psycopg.connect(**ps_core.conninfo(topology.direct))) as report:
        report.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ  # has a snapshot for as long as it lasts
        report.execute("SELECT count(*) FROM shop_product")
        assert "lock timeout" in migrate(MIGRATIONS_URL=migrator, LOCK_TIMEOUT="200ms")
    invalid = "SELECT count(*) FROM pg_index WHERE indexrelid = 'product_name'::regclass AND NOT indisvalid"
    assert sql(invalid) == [(1,)]
    assert "already exists" in migrate(MIGRATIONS_URL=migrator)
    sql(DROP)

    assert "OperationalError" in migrate(MIGRATIONS_URL=migrator)
    assert sql(invalid) == [(0,)]
    assert sql("SELECT slug, to_regclass('shop_order') FROM shop_product") == [("cup", None)]
    with ps_lab.round_trips() as trips:
        assert migrate(MIGRATIONS_URL=migrator) == ""
    assert set(trips.by_path) == {"direct"}
    assert sql("SELECT count(*) FROM shop_order") == [(1,)]
    assert sql("SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'") == [("migrator",)]
    with closing(psycopg.connect(**ps_core.conninfo(topology.primary), autocommit=True)) as application:
        application.execute("INSERT INTO shop_product (name, slug) VALUES ('Pot', 'pot')")
        application.execute("INSERT INTO shop_order DEFAULT VALUES")
