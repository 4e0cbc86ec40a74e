"""Django backends on top of ours: the recipes of docs/howto/derived-backends.md, run, and what each of them is there for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.applications import tenancy
from tests.backends import WORK, Site, site_of
from tests.docs.pages import DOCS, blocks_of
from tests.postgis_lab import postgis_lab

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ps_lab import Lab

PAGE = DOCS / "howto" / "derived-backends.md"
HEADINGS = {number: line[3:] for number, line in enumerate(PAGE.read_text().splitlines(), 1) if line.startswith("## ")}
RECIPES = list(HEADINGS.values())

TENANTS = """
SHARED_APPS = ["django_tenants", "customers", "places", "django.contrib.contenttypes"]
TENANT_APPS = ["places", "django.contrib.contenttypes"]
INSTALLED_APPS = list(dict.fromkeys([*SHARED_APPS, *TENANT_APPS]))
TENANT_MODEL, TENANT_DOMAIN_MODEL = "customers.Customer", "customers.Domain"
"""


def files_of(recipe: str) -> dict[str, str]:
    """Return the files of a recipe, after what all settings begin with."""
    files: dict[str, str] = {}
    for block in blocks_of(PAGE):
        under = [heading for line, heading in HEADINGS.items() if line < block.line]
        if not under or under[-1] == recipe or block.caption == "mysite/prometheus/base.py":
            files[block.caption] = files.get(block.caption, "") + block.text
    return files


@pytest.fixture(scope="session")
def geo_lab() -> Iterator[Lab]:
    """A lab with PostGIS."""
    with postgis_lab() as lab:
        yield lab


@pytest.fixture(scope="module", params=["ps_django.backend", "ps_django.postgis"])
def below(request: pytest.FixtureRequest) -> str:
    """The backend of ours that is below."""
    name: str = request.param
    return name


@pytest.fixture(scope="module", params=RECIPES)
def recipe(request: pytest.FixtureRequest) -> str:
    """Each recipe."""
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def site(below: str, recipe: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A project with a recipe; for GeoDjango, with other names in the places of ours and Django's."""
    gis = below == "ps_django.postgis"
    lab = request.getfixturevalue("geo_lab" if gis else "ps_lab")
    files = files_of(recipe)
    if gis:
        names = {"ps_django.backend": below, "django_prometheus.db.backends.postgresql": "django_prometheus.db.backends.postgis"}
        for ours, other in names.items():
            files = {name: text.replace(ours, other) for name, text in files.items()}
    settings = files.pop("settings.py")
    if recipe == "django-tenants":
        settings += TENANTS
        files |= {name: text for name, text in tenancy.files().items() if name.startswith("customers/")}
    if gis:
        settings += 'INSTALLED_APPS = [*INSTALLED_APPS, "django.contrib.gis"]\n'
    with site_of(lab, tmp_path_factory.mktemp("site"), "derived", settings, files=files, gis=gis) as site:
        if gis and recipe == "django-tenants":  # its introspection is derived from Django's own, whatever is below
            site.inspected = "TextField(blank=True, null=True)  # This field type is a guess."
        yield site


@pytest.mark.parametrize("work", WORK)
def test_work(site: Site, work: str) -> None:
    """Each column of the table of backends."""
    WORK[work](site)


COUNTED = """
from prometheus_client import REGISTRY

def counted(name, alias):
    return REGISTRY.get_sample_value(f"django_db_{name}_total", {"alias": alias, "vendor": "postgresql"}) or 0

def show(alias):
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT current_setting('statement_timeout')")
        return cursor.fetchone()[0]

for alias in ("default", "replica"):
    connections[alias].ensure_connection()  # Django sets the time zone by a cursor
before = {alias: counted("execute", alias) for alias in ("default", "replica")}
shown = [show(alias) for alias in before for _ in range(2)]
counts = {alias: counted("execute", alias) - before[alias] for alias in before}
with connections["replica"].cursor() as cursor:
    cursor.execute("SELECT pg_current_xact_id()")  # what the replica refuses
many = counted("execute_many", "default")
with connections["default"].cursor() as cursor:
    cursor.executemany("INSERT INTO places_place (name) VALUES (%s)", [["Bonn"], ["Ulm"]])
Place.objects.filter(id__gt=2).delete()
with transaction.atomic():
    names = [place.name for place in Place.objects.order_by("id").iterator(chunk_size=1)]
print(json.dumps([shown, counts, counted("execute_many", "default") - many, names, counted("new_connections", "default") > 0]))
"""
COUNTS = [["2s"] * 4, {"default": 2, "replica": 2}, 2, ["Berlin", "Potsdam"], True]

UPSERTED = """
from django.db import models
from psqlextra.manager import PostgresManager

class Placed(models.Model):
    name = models.CharField(max_length=50)
    objects = PostgresManager()
    class Meta:
        app_label, db_table, managed = "places", "places_place", False

with ps_django.reading():
    ids = Placed.objects.upsert(conflict_target=["id"], fields={"id": 1, "name": "Berlin-Mitte"})
    names = [place.name for place in Placed.objects.order_by("id")]
    Placed.objects.upsert(conflict_target=["id"], fields={"id": 1, "name": "Berlin"})
    print(json.dumps([ids, names, [place.name for place in Placed.objects.order_by("id")]]))
"""
UPSERTS = [1, ["Berlin-Mitte", "Potsdam"], ["Berlin", "Potsdam"]]


LOCKED = """
from django.db import models
from django_zero_downtime_migrations.backends.postgres.schema import UnsafeOperationException

default, sent = connections["default"], []

def note(execute, sql, *rest):
    sent.append((str(sql), default.connection.state.endpoint.name))
    return execute(sql, *rest)

extra = models.IntegerField(null=True)
extra.set_attributes_from_name("extra")
extra.model = Place
with default.execute_wrapper(note), default.schema_editor() as editor:
    editor.add_field(Place, extra)
    editor.remove_field(Place, extra)
    try:
        editor.alter_db_table(Place, "places_place", "places_other")
        refused = False
    except UnsafeOperationException:
        refused = True
wanted = ["SET lock_timeout TO '2s'", "SET lock_timeout TO '5000ms'"]
print(json.dumps([[sql in [one for one, _ in sent] for sql in wanted], list({path for _, path in sent}), refused]))
"""
LOCKS = [[True, True], ["direct"], True]

WITH = "for alias in ('default', 'replica'): connections[alias].settings_dict['OPTIONS'][{}] = {}\n"
COUNTING = [
    (COUNTED, COUNTS),
    (WITH.format("'pool'", "{'min_size': 1, 'max_size': 1}") + COUNTED, COUNTS),
    (WITH.format("'server_side_binding'", True) + COUNTED, COUNTS),
]
OWN = {
    "django-prometheus": COUNTING,
    "django-postgres-extra": [(UPSERTED, UPSERTS)],
    "django-pg-zero-downtime-migrations": [(LOCKED, LOCKS)],
    "django-tenants": [],  # test_tenants.py
    "Several classes": [*COUNTING, (LOCKED, LOCKS)],
    "A class below a setting": [*COUNTING, (UPSERTED, UPSERTS)],
}


def test_own(site: Site, recipe: str) -> None:
    """What a package is there for: counts, upserts, migrations that do not lock for long; with cursors that keep our promises."""
    for script, answer in OWN[recipe]:
        assert site.told(script) == answer
