"""What each backend that is ours or derived from ours has to do, in a project of its own: the columns of a table of backends."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from docs.examples.django_shop import run
from tests.ps_django.projects import result, start, write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ps_lab import Lab

__all__ = ["WORK", "Site", "site_of"]

SETTINGS = """
INSTALLED_APPS = ["django.contrib.contenttypes", "places"]
MIDDLEWARE = ["ps_django.middleware.ConsistencyMiddleware"]
SECRET_KEY = "k" * 50
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
"""

WRONG = """
if "PS_WRONG" in os.environ:
    DATABASES["default"]["OPTIONS"]["ps_statement_timeout"] = None
"""

MODELS = """
from {models} import models

class Place(models.Model):
    name = models.CharField(max_length=50)
    at = {at}
"""

PLAIN, GEO = "models.FloatField(null=True)", "models.PointField(geography=True, null=True)"

FIRST = """
from django.db import migrations, models

class Migration(migrations.Migration):
    initial = True
    operations = [
        migrations.CreateModel("Place", [
            ("id", models.BigAutoField(primary_key=True, serialize=False)),
            ("name", models.CharField(max_length=50)),
        ]),
    ]
"""

SECOND = """
from django.db import migrations
from {models} import models

class Migration(migrations.Migration):
    dependencies = [("places", "0001_initial")]
    operations = [migrations.AddField("place", "at", {at})]
"""

THIRD = """
from django.db import migrations
from places.tools import at

def fill(apps, schema_editor):
    objects = apps.get_model("places", "Place").objects
    objects.create(name="Berlin", at=at(13.4, 52.5))
    place = objects.get(name="Berlin", at__isnull=False)
    objects.create(name="Potsdam", at=at(13.06, 52.4))
    place.save()

class Migration(migrations.Migration):
    dependencies = [("places", "0002_at")]
    operations = [migrations.RunPython(fill)]
"""

TOOLS = """
def at(longitude, latitude):
    return longitude
"""

GEO_TOOLS = """
from django.contrib.gis.geos import Point

def at(longitude, latitude):
    return Point(longitude, latitude, srid=4326)
"""

SCRIPT = """
import json, sys
import django
django.setup()
from django.db import connections, transaction
from django.db.models import BooleanField, Func
import ps_django
from places.models import Place
from places.tools import at

def by_replica(places):
    class InRecovery(Func):
        function, template, output_field = "pg_is_in_recovery", "pg_is_in_recovery()", BooleanField()
    return list(places.annotate(by_replica=InRecovery()).values_list("name", "by_replica"))

def near():
    return {near}
"""

NEAR = "by_replica(Place.objects.filter(at__lt=13.2))"
GEO_NEAR = (
    'by_replica(Place.objects.annotate(far=Distance("at", at(13.4, 52.5))).filter(at__dwithin=(at(13.0, 52.4), 10_000),'
    " far__gt=20_000))"
)

TESTS = """
from django.test import TestCase, TransactionTestCase
import ps_django
from ps_django.test import lagging_replica
from places.models import Place
from places.tools import at

class Places(TestCase):
    databases = {"default", "replica"}

    def test_places(self):
        Place.objects.create(name="Bonn", at=at(7.1, 50.7))
        with ps_django.reading():
            place = Place.objects.get(name="Bonn")
        assert place._state.db == "replica"
        assert Place.objects.get(at=place.at) == place
        assert Place.objects.count() == 3

class Late(TransactionTestCase):
    databases = {"default", "replica"}

    def test_late(self):
        Place.objects.create(name="Bonn", at=at(7.1, 50.7))
        with lagging_replica() as replica:
            Place.objects.create(name="Ulm", at=at(10.0, 48.4))
            replicas = Place.objects.using("replica")
            with ps_django.use_token(None):
                assert replicas.filter(at=at(7.1, 50.7)).exists() and not replicas.filter(at=at(10.0, 48.4)).exists()
            assert Place.objects.using("replica").filter(at=at(10.0, 48.4)).exists()
            replica.catch_up()
            with ps_django.use_token(None):
                assert replicas.filter(at=at(10.0, 48.4)).exists()
"""


@dataclass(slots=True, kw_only=True)
class Site:
    """A project with one backend, migrated."""

    lab: Lab
    name: str
    folder: Path
    environment: dict[str, str]
    gis: bool
    inspected: str
    """What `inspectdb` makes of the column."""
    migrated_by: set[str] = field(default_factory=set)
    """The paths that `migrate` took."""

    def manage(self, *command: str, **environment: str) -> tuple[str, str]:
        """Run a management command; return what it printed, and its errors."""
        return result(start(self.folder, "manage.py", *command, **self.environment, **environment))

    def start(self, script: str) -> subprocess.Popen[str]:
        """Start a script, to talk to."""
        tools = SCRIPT.format(near=GEO_NEAR if self.gis else NEAR)
        if self.gis:
            tools += "from django.contrib.gis.db.models.functions import Distance\n"
        script = tools + textwrap.dedent(script)
        return start(self.folder, "-c", script, stdin=subprocess.PIPE, **self.environment)

    def told(self, script: str) -> Any:
        """Run a script; return what it told last."""
        return json.loads(result(self.start(script))[0].splitlines()[-1])

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Ask the site's database."""
        return self.lab.sql(query, dbname=self.name)


@contextmanager
def site_of(
    lab: Lab, folder: Path, name: str, settings: str, *, files: dict[str, str] | None = None, gis: bool = False
) -> Iterator[Site]:
    """Make a project with these settings, and a database for it in which the role may do what its tests need; migrate it."""
    of_kind = {"models": "django.contrib.gis.db", "at": GEO} if gis else {"models": "django.db", "at": PLAIN}
    own = {
        "project.py": SETTINGS + settings + WRONG,
        "places/models.py": MODELS.format(**of_kind),
        "places/tools.py": GEO_TOOLS if gis else TOOLS,
        "places/tests.py": TESTS,
        "places/migrations/0001_initial.py": FIRST,
        "places/migrations/0002_at.py": SECOND.format(**of_kind),
        "places/migrations/0003_fill.py": THIRD,
    }
    write(folder, own | (files or {}))
    inspected = "PointField(geography=True, blank=True, null=True)" if gis else "FloatField(blank=True, null=True)"
    lab.sql("ALTER ROLE app CREATEDB")
    try:
        with run.database(lab, name) as urls:
            environment = {"DATABASE_URL": urls["PS_URL"]}
            site = Site(lab=lab, name=name, folder=folder, environment=environment, gis=gis, inspected=inspected)
            with lab.round_trips() as trips:
                site.manage("migrate", "--verbosity", "0")
            site.migrated_by = set(trips.by_path)
            lab.wait_replicas_caught_up()
            yield site
    finally:
        lab.sql("ALTER ROLE app NOCREATEDB")


def migrate(site: Site) -> None:
    """Tables, columns and data are made on the direct path."""
    assert site.migrated_by == {"direct"}, site.migrated_by
    assert site.rows("SELECT name, at IS NOT NULL FROM places_place ORDER BY id") == [("Berlin", True), ("Potsdam", True)]


def read(site: Site) -> None:
    """A read is a replica's, and finds what it looks for; inside of `atomic` it is the primary's."""
    script = """
    with ps_django.reading():
        found = near(), Place.objects.get(name="Potsdam").at == at(13.06, 52.4)
    with transaction.atomic():
        print(json.dumps([*found, near()]))
    """
    assert site.told(script) == [[["Potsdam", True]], True, [["Potsdam", False]]]


def save(site: Site) -> None:
    """What is written is the primary's, and read back at once, whatever the replicas have replayed."""
    script = """
    with ps_django.reading():
        place = Place.objects.get(name="Berlin")
        near()
        Place(name="Bonn", at=at(7.1, 50.7)).save()
        Place.objects.filter(name="Bonn").update(at=place.at)
        Place.objects.bulk_create([Place(name="Kiel", at=at(10.1, 54.3)), Place(name="Ulm")])
        names = [place.name for place in Place.objects.order_by("id")]
        print(json.dumps([names, Place.objects.get(name="Bonn").at == place.at, Place.objects.filter(id__gt=2).delete()[0]]))
    """
    site.lab.set_replay_delay(60)
    try:
        assert site.told(script) == [["Berlin", "Potsdam", "Bonn", "Kiel", "Ulm"], True, 3]
    finally:
        site.lab.set_replay_delay(0)


def heal(site: Site) -> None:
    """Connections that were cut are made anew: for a read, for a write, and for a block that begins."""
    script = """
    def work():
        with ps_django.reading():
            found = near()
        with transaction.atomic():
            place = Place.objects.get(name="Berlin")
            place.at = at(13.4, 52.5)
            place.save()
        Place.objects.filter(name="Berlin").update(at=at(13.4, 52.5))
        return found, place.at == Place.objects.get(name="Berlin").at
    found = [work()]
    print("connected", flush=True), sys.stdin.readline()
    print(json.dumps([*found, work()]))
    """
    with site.start(script) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        site.lab.edge.cut()
        out, err = process.communicate("\n", timeout=60)
    assert (line, process.returncode) == ("connected\n", 0), err
    assert json.loads(out.splitlines()[-1]) == [[[["Potsdam", True]], True]] * 2


def make_test_database(site: Site) -> None:
    """The project's tests have a database of their own, on the direct path, where a replica's alias is the primary's."""
    with site.lab.round_trips() as trips:
        assert "\nOK\n" in site.manage("test", "--verbosity", "1")[1]
    assert set(trips.by_path) == {"direct"}


def inspectdb(site: Site) -> None:
    """The models are made of the tables, on the direct path."""
    with site.lab.round_trips() as trips:
        printed = site.manage("inspectdb", "places_place")[0]
    assert set(trips.by_path) == {"direct"}
    assert "name = models.CharField(max_length=50)" in printed
    assert f"at = models.{site.inspected}" in printed


def check(site: Site) -> None:
    """The entries are known for ours: nothing is wrong with them, and what is wrong is found."""
    aliases = [option for alias in ("default", "replica", "direct") for option in ("--database", alias)]
    printed = "".join(site.manage("check", *aliases))
    old = site.lab.sql("SHOW server_version_num") < [("170000",)]
    assert set(re.findall(r"ps_django\.[EW]\d+", printed)) == ({"ps_django.W010"} if old else set()), printed
    wrong = start(site.folder, "manage.py", "check", PS_WRONG="1", **site.environment).communicate(timeout=60)[1]
    assert "default: (ps_django.W006) 'default' has no statement timeout" in wrong


def doctor(site: Site) -> None:
    """The doctor finds the three paths, and what is the lab's and not PlanetScale's."""
    done = subprocess.run(
        [sys.executable, "-m", "ps_cli", "doctor", "--django", "project", "--json"],
        cwd=site.folder,
        env={**os.environ, **site.environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    answer = json.loads(done.stdout)
    assert [path["name"] for path in answer["paths"]] == ["default", "replica", "direct"]
    assert {finding["severity"] for finding in answer["findings"]} <= {"warning", "note"}, done.stdout


WORK: Final[dict[str, Callable[[Site], None]]] = {
    "migrate": migrate,
    "read on a replica": read,
    "write": save,
    "healing": heal,
    "test database": make_test_database,
    "inspectdb": inspectdb,
    "check": check,
    "doctor": doctor,
}
"""The columns, in the order in which they are tried."""
