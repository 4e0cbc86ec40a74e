"""The README: its code runs on a lab, its commands are there, its links lead somewhere."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from ps_lab import Lab
from ps_sqlalchemy import Engine, Session
from tests.docs.pages import DOCS, Block, blocks_of

ROOT = DOCS.parent
README = ROOT / "README.md"
URL = "postgresql://app.br4nch:secret@aws-eu-west-1.pg.psdb.cloud:6432/postgres"


def block(language: str, word: str) -> Block:
    """Return the one block of a language that holds a word."""
    (found,) = (block for block in blocks_of(README) if block.language == language and word in block.text)
    return found


@pytest.fixture
def orders(ps_lab: Lab) -> Iterator[None]:
    """The table that the README names, with an order that is not paid."""
    for query in (
        "CREATE TABLE orders (id int PRIMARY KEY, paid bool)",
        "GRANT ALL ON orders TO app",
        "INSERT INTO orders VALUES (1)",
    ):
        ps_lab.sql(query)
    ps_lab.wait_replicas_caught_up()
    yield
    ps_lab.sql("DROP TABLE orders")


@pytest.mark.usefixtures("orders")
def test_sqlalchemy(ps_lab: Lab) -> None:
    """The SQLAlchemy code reads from a replica, and writes to the primary."""
    code = block("python", "create_engine(").text
    assert URL in code
    namespace: dict[str, object] = {}
    exec(compile(code.replace(URL, ps_lab.url), "README.md", "exec"), namespace)
    assert namespace["paid"] == 0
    assert ps_lab.sql("SELECT paid FROM orders") == [(True,)]
    engine = namespace["engine"]
    assert isinstance(engine, Engine)
    ps_lab.wait_replicas_caught_up()
    with ps_lab.round_trips() as counter, Session(engine) as session:
        assert session.scalar(text("SELECT count(*) FROM orders WHERE paid")) == 1
    assert counter.by_path == {"replica": 1}
    engine.dispose()


DJANGO = """
import django
from django.core.management import call_command
from django.db import connections
from django.test import RequestFactory

django.setup()
call_command("check", database=["default"])

from ps_django.middleware import ConsistencyMiddleware
from django.contrib.contenttypes.models import ContentType
from django.db import router

print(ConsistencyMiddleware(lambda request: router.db_for_read(ContentType))(RequestFactory().get("/")))
with connections["replica"].cursor() as cursor:
    cursor.execute("SELECT pg_is_in_recovery()")
    print(cursor.fetchone())
"""


def test_django(ps_lab: Lab, tmp_path: Path) -> None:
    """The Django settings pass every check, and a GET request reads from a replica."""
    settings = 'SECRET_KEY = "x"\nINSTALLED_APPS = ["django.contrib.contenttypes"]\n' + block("python", "DATABASES").text
    (tmp_path / "settings.py").write_text(settings)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", DJANGO],
        cwd=tmp_path,
        env={**os.environ, "DATABASE_URL": ps_lab.url, "DJANGO_SETTINGS_MODULE": "settings"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "System check identified no issues (0 silenced).\nreplica\n(True,)\n", done.stderr


def test_commands() -> None:
    """The commands of the README are targets of the Makefile."""
    for command in block("sh", "make").text.splitlines():
        subprocess.run([*command.split(), "--dry-run"], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("page", [README, ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))], ids=lambda page: page.name)
def test_links(page: Path) -> None:
    """Each link to a file of the repository leads to one."""
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text())
    assert not [link for link in links if not (page.parent / link).exists()]
