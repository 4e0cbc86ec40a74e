"""Backends that are derived from ours: `databases(engine=...)`, what `check` says of them, and the tenant that some keep."""

import json
import textwrap
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.db import connections

import ps_django
from ps_core._documentation import link
from ps_core.errors import ConfigurationError
from ps_django.backend import base
from ps_django.checks import check_settings
from ps_django.config import families
from ps_lab import Lab
from tests.ps_django.projects import result, start, write

URL = "postgresql://app.branch:pw@x.horizon.psdb.cloud/db"

BACKEND = """
from ps_django.backend.base import DatabaseWrapper as Ours

class DatabaseWrapper(Ours):
    # As that of django-tenants is.
    include_public_schema = True

    def __init__(self, *args, **kwargs):
        self.search_path_set_schemas = self.tenant = None
        super().__init__(*args, **kwargs)
        self.set_tenant("public")
        self.asked = []

    def set_tenant(self, tenant, include_public=True):
        self.tenant = self.schema_name = tenant
        self.include_public_schema, self.search_path_set_schemas = include_public, None

    def _cursor(self, name=None):
        cursor = super()._cursor(name)
        if self.search_path_set_schemas is None:
            self.asked.append(self.schema_name)
            self.search_path_set_schemas = [self.schema_name]
        return cursor
"""

PROJECT = """
import ps_django
DATABASES = ps_django.databases(engine="backend")
DATABASE_ROUTERS = ["ps_django.routers.ReplicaRouter"]
PS_DJANGO = {"READS": "replica"}
"""

SCRIPT = """
import json
import django
django.setup()
from django.db import connections
import ps_django
default, replica = connections["default"], connections["replica"]
found = {"replica": [], "refused": []}

def ask(alias="replica", sql="SELECT 1"):
    with connections[alias].cursor() as cursor:
        cursor.execute(sql)

for tenant in ("a", "a", "b"):
    default.set_tenant(tenant)
    ask()
default.set_tenant("b", include_public=False)
ask()
found["replica"] = replica.asked[:], replica.include_public_schema
for tenant in ("c", "b"):
    replica.set_tenant(tenant, include_public=False)
    try:
        ask()
    except django.db.NotSupportedError as exc:
        found["refused"].append(str(exc))
ask("default")
default.asked.clear()
with ps_django.on_direct_path():
    ask("default")
ask("default")
default.close()
ask("default")
found["connections"] = default.asked[:], default.settings_dict["ENGINE"]
default.set_tenant("d")
default.asked.clear()
ask(sql="SELECT pg_current_xact_id()")  # what the replica refuses, the primary does
found["stand-in"] = default.asked
print(json.dumps(found))
"""


def test_tenant(ps_lab: Lab, tmp_path: Path) -> None:
    """A replica's wrapper is in its primary's tenant, and each connection that a wrapper comes to is brought into its tenant."""
    folder = write(tmp_path, {"backend/base.py": BACKEND, "project.py": PROJECT})
    urls = {"PS_URL": ps_lab.url, "PS_BOUNCER": "write-pool", "PS_REPLICA_BOUNCER": "read-pool"}
    assert json.loads(result(start(folder, "-c", textwrap.dedent(SCRIPT), **urls))[0]) == {
        "replica": [["a", "b", "b"], False],
        "refused": [
            "'replica' was put into the schema 'c' by itself, and 'default' is in 'b': a replica's alias is always in the tenant"
            " of its primary. Set the tenant of 'default' alone, as in tenant_context(tenant) without database="
        ],
        "connections": [["b"] * 3, "backend"],
        "stand-in": ["d"],
    }


class Counting(base.DatabaseWrapper):
    """A backend whose cursors count, by a class derived from Django's own, as that of django-prometheus is."""

    counted: list[str]

    def get_connection_params(self) -> dict[str, Any]:
        """Return ours, with such a class."""
        params, counted = super().get_connection_params(), self.counted

        base: Any = params["cursor_factory"]

        class Cursor(base):  # type: ignore[misc]
            def execute(self, query: str, *args: Any) -> Any:
                counted.append(query)
                return super().execute(query, *args)

        return {**params, "cursor_factory": Cursor}


@pytest.mark.parametrize("server", [False, True])
@pytest.mark.parametrize("alias", ["default", "replica", "direct"])
def test_cursors(site: None, alias: str, server: bool) -> None:
    """Cursors of a class derived from Django's own are ours all the same: limits and guard travel with each statement."""
    options: dict[str, Any] = {**connections[alias].settings_dict["OPTIONS"], "server_side_binding": server}
    wrapper = Counting({**connections[alias].settings_dict, "OPTIONS": options}, alias)
    wrapper.counted = []
    query = "SELECT current_setting('statement_timeout'), %s::int"
    try:
        with wrapper.cursor() as cursor, ps_django.limits(statement="1s"):
            cursor.execute(query, [7])
            assert cursor.fetchall() == [("1s", 7)]
            cursor.callproc("int4", [7])
            assert isinstance(cursor.cursor, base.ServerBindingCursor if server else base.Cursor)
        assert wrapper.counted[-2] == query  # the last is callproc's
    finally:
        wrapper.close()


def test_tests_on_a_lab(ps_lab: Lab, tmp_path: Path) -> None:
    """`databases_at()` keeps the project's backend."""
    folder = write(tmp_path, {"backend/base.py": BACKEND, "project.py": PROJECT})
    script = """
    import django, json, os
    django.setup()
    from django.db import connections
    from ps_django.test import databases_at
    with databases_at(os.environ["PS_URL"], replica_bouncer="read-pool"):
        print(json.dumps([type(connections[alias]).__module__ for alias in ("default", "replica", "direct")]))
    """
    urls = {"PS_URL": ps_lab.url, "PS_BOUNCER": "write-pool", "PS_REPLICA_BOUNCER": "read-pool"}
    assert json.loads(result(start(folder, "-c", textwrap.dedent(script), **urls))[0]) == ["backend.base"] * 3


def test_engine() -> None:
    """`engine` is the ENGINE of all entries."""
    entries = ps_django.databases(URL, replica_bouncer="read-pool", engine="django_tenants.postgresql_backend")
    assert {alias: entry["ENGINE"] for alias, entry in entries.items()} == dict.fromkeys(
        ("default", "replica", "direct"), "django_tenants.postgresql_backend"
    )
    assert {entry["ENGINE"] for entry in ps_django.databases(URL).values()} == {"ps_django.backend"}


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ("", "engine: write the dotted path of a backend, as in 'ps_django.backend', not ''"),
        ("a backend", "engine: write the dotted path of a backend, as in 'ps_django.backend', not 'a backend'"),
        (None, "engine: write the dotted path of a backend, as in 'ps_django.backend', not None"),
        (
            "django.db.backends.postgresql",
            "engine: 'django.db.backends.postgresql' is Django's own: write 'ps_django.backend', or a backend that is derived"
            " from it",
        ),
        (
            "django.contrib.gis.db.backends.postgis",
            "engine: 'django.contrib.gis.db.backends.postgis' is Django's own: write 'ps_django.postgis', or a backend that is"
            " derived from it",
        ),
    ],
)
def test_engines_that_cannot_work(engine: Any, message: str) -> None:
    """What is no path, and Django's own backends, which know none of our options."""
    with pytest.raises(ConfigurationError) as caught:
        ps_django.databases(URL, engine=engine)
    assert str(caught.value) == message


def test_checks(site: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that is not derived from ours, and a replica that has another one than its primary."""
    monkeypatch.setattr(settings, "MIDDLEWARE", ["ps_django.middleware.ConsistencyMiddleware"])
    entries = ps_django.databases(URL, replica_bouncer="read-pool")
    monkeypatch.setattr(settings, "DATABASES", entries)
    entries["direct"]["ENGINE"] = "django.db.backends.postgresql"
    (message,) = check_settings()
    assert (message.id, message.msg, message.hint) == (
        "ps_django.E016",
        "'direct' has options of ps_django, and its ENGINE 'django.db.backends.postgresql' is not derived from"
        " 'ps_django.backend'.",
        "Write ORIGINAL_BACKEND = 'ps_django.backend' for django_tenants.postgresql_backend, POSTGRES_EXTRA_DB_BACKEND_BASE ="
        " 'ps_django.backend' for psqlextra.backend; else ENGINE = 'ps_django.backend', or a backend that is derived from it. "
        + link("django-checks", "ps_django.E016"),
    )
    entries["direct"]["ENGINE"] = "django.contrib.gis.db.backends.postgis"
    (message,) = check_settings()
    assert "; else ENGINE = 'ps_django.postgis', or a backend that is derived from it. " in str(message.hint)
    entries["direct"]["ENGINE"] = "ps_django.backend"
    entries["replica"]["ENGINE"] = "tests.ps_django.derived"
    with pytest.raises(ConfigurationError) as caught:
        families(entries)
    assert str(caught.value) == (
        "DATABASES['replica']: ENGINE='tests.ps_django.derived', and that of its primary 'default' is 'ps_django.backend': write"
        " the same, or reads on the replica are without what the primary's backend does"
    )
    assert ("ps_django.E001", str(caught.value)) in [(found.id, found.msg) for found in check_settings()]
