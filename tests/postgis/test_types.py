"""GeoDjango's types on ours as on stock, on whichever path, with the connections that a process happens to have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from django.db import connections, transaction
from django.db.models import F

import ps_core
import ps_django
from docs.examples.django_shop import run
from ps_core import current_token, use_token
from ps_core.topology import Topology
from ps_django.test import databases_at

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ps_lab import Lab

NAME = "shapes"


@pytest.fixture(scope="module")
def geo(ps_lab: Lab) -> Iterator[str]:
    """The URL of a database with a table, to which the aliases of this process lead; `stock` is Django's own backend on it."""
    import django
    from django.conf import settings

    with run.database(ps_lab, NAME) as urls:
        ps_lab.sql("CREATE EXTENSION postgis_raster", dbname=NAME)
        url = urls["PS_URL"]
        direct = dict(ps_core.conninfo(Topology.from_url(url).direct))
        keys = {"HOST": "host", "PORT": "port", "USER": "user", "PASSWORD": "password", "NAME": "dbname"}
        settings.configure(
            DATABASES={
                **ps_django.databases(url, bouncer="write-pool", replica_bouncer="read-pool", engine="ps_django.postgis"),
                "stock": {
                    "ENGINE": "django.contrib.gis.db.backends.postgis",
                    **{key: direct[name] for key, name in keys.items()},
                    "OPTIONS": {name: direct[name] for name in ("sslmode", "sslrootcert")},
                },
            },
            DATABASE_ROUTERS=["ps_django.routers.ReplicaRouter"],
            INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.gis", "tests.postgis"],
            DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
            SECRET_KEY="tests",
            USE_TZ=True,
        )
        django.setup()
        from tests.postgis.models import Shape

        with connections["default"].schema_editor() as editor:
            editor.create_model(Shape)
        ps_lab.wait_replicas_caught_up()
        yield url
        connections.close_all()


def make(alias: str) -> None:
    """Write each kind of value."""
    from django.contrib.gis.gdal import GDALRaster
    from django.contrib.gis.geos import LineString, MultiPoint, Point

    from tests.postgis.models import Shape

    raster = GDALRaster({"width": 2, "height": 2, "srid": 4326, "scale": (1, -1), "bands": [{"data": [1, 2, 3, 4]}]})
    shapes = Shape.objects.using(alias)
    shapes.create(name="all", point=Point(13, 52), flat=Point(0, 0, srid=25833), globe=Point(13, 52), raster=raster)
    shapes.bulk_create(
        [
            Shape(name="transformed", flat=Point(13, 52, srid=4326), point=Point(392_000, 5_800_000, srid=25833)),
            Shape(name="several", flat=MultiPoint(Point(0, 0), Point(1, 1), srid=25833), high=LineString((0, 0, 1), (1, 1, 2))),
            Shape(name="none"),
        ]
    )
    shapes.filter(name="none").update(point=Point(12, 51))


def questions() -> dict[str, Callable[[Any], Any]]:
    """Return what is asked of the table through an alias, by its name."""
    from django.contrib.gis.db.models import functions as f
    from django.contrib.gis.db.models.aggregates import Collect, Extent, MakeLine, Union
    from django.contrib.gis.geos import Point, Polygon
    from django.contrib.gis.measure import D

    here, box = Point(13.01, 52.01, srid=4326), Polygon.from_bbox((12, 51.5, 14, 53))
    box.srid = 4326
    return {
        "values": lambda all_: list(all_.values_list("name", "point", "flat", "high", "globe")),
        "raster": lambda all_: [(one.raster.width, one.raster.bands[0].data().tolist()) for one in all_ if one.raster],
        "raster lookup": lambda all_: list(all_.filter(raster__bbcontains=Point(0.5, -0.5, srid=4326)).values_list("name")),
        "distance": lambda all_: [
            d.m for d in all_.filter(globe__isnull=False).values_list(f.Distance("globe", here), flat=True)
        ],
        "within": lambda all_: list(all_.filter(globe__dwithin=(here, D(km=5))).values_list("name")),
        "spheroid": lambda all_: list(all_.filter(point__distance_lte=(here, D(km=5), "spheroid")).values_list("name")),
        "box": lambda all_: list(all_.filter(point__within=box, point__bboverlaps=box).values_list("name")),
        "column": lambda all_: list(all_.filter(point=F("point")).values_list("name")),
        "transform": lambda all_: list(all_.filter(flat__dwithin=(here, 9e6)).values_list(f.AsWKT(f.Transform("flat", 4326)))),
        "text": lambda all_: list(all_.values_list(f.AsGeoJSON("point"), f.GeoHash("point"), f.AsKML("point"))),
        "literal": lambda all_: list(all_.annotate(one=f.Azimuth("point", here)).values_list("one", flat=True)),
        "collect": lambda all_: all_.aggregate(Collect("point")),
        "extent": lambda all_: all_.aggregate(Extent("point")),
        "line": lambda all_: all_.filter(name__in=("all", "none")).aggregate(MakeLine("point")),
        "union": lambda all_: all_.aggregate(Union("flat")),
    }


@pytest.fixture(params=["client", "server", "pool"])
def entries(request: pytest.FixtureRequest, ps_lab: Lab, geo: str) -> Iterator[None]:
    """The aliases with binding on the client's side, on the server's, and with a pool."""
    topology: Any = {"bouncer": "write-pool", "replica_bouncer": "read-pool", "engine": "ps_django.postgis"}
    if request.param == "server":
        topology["binding"] = "server"
    stock = connections.settings["stock"]
    with databases_at(geo, **topology):
        connections.settings["stock"] = stock
        if request.param == "pool":
            for alias in ("default", "replica"):
                connections[alias].settings_dict["OPTIONS"]["pool"] = {"min_size": 1, "max_size": 2}
        yield


def test_as_stock(ps_lab: Lab, entries: None) -> None:
    """Each value that was written and each question, on the primary and on a replica, has the same answer as on stock."""
    from tests.postgis.models import Shape

    found: dict[str, dict[str, Any]] = {}
    for writer in ("stock", "default"):
        make(writer)
        ps_lab.wait_replicas_caught_up()
        for reader in ("stock", "default", "replica"):
            all_ = Shape.objects.using(reader).order_by("name")
            with use_token(None), ps_lab.round_trips() as trips:
                answers = found[f"{writer}, {reader}"] = {name: ask(all_) for name, ask in questions().items()}
            if reader == "replica":
                assert set(trips.by_path) == {"replica"}
            assert all(answers.values())
        with transaction.atomic("default"):
            Shape.objects.using("default").all().delete()
    wanted = found.pop("stock, stock")
    for who, answers in found.items():
        for name, answer in answers.items():
            assert answer == wanted[name], (who, name)


def found(alias: str) -> Any:
    """Ask with a geometry whose type the server has to be told."""
    from django.contrib.gis.geos import Point

    from tests.postgis.models import Shape

    return Shape.objects.using(alias).filter(point__dwithin=(Point(392_000, 5_800_000, srid=25833), 1)).count()


def forget() -> None:
    """Forget what this process has learned of the types."""
    from django.contrib.gis.db.backends.postgis.base import DatabaseWrapper

    connections.close_all()
    for known in DatabaseWrapper._type_infos.values():  # type: ignore[attr-defined] # private
        known.clear()


def test_first_read_of_a_replica_that_is_behind(ps_lab: Lab, geo: str) -> None:
    """A caller who has seen more than a replica has is answered by the primary, even in the first query of a process."""
    make("default")
    ps_lab.set_replay_delay(60)
    try:
        make("default")
        forget()
        assert current_token() is not None
        assert found("replica") == 4
    finally:
        ps_lab.set_replay_delay(0)
        connections["default"].cursor().execute("TRUNCATE postgis_shape")


@pytest.fixture
def later(ps_lab: Lab, geo: str) -> Iterator[None]:
    """A database without the extension, to which the aliases lead, and a role that may make it."""
    with run.database(ps_lab, "later") as urls:
        ps_lab.sql("DROP EXTENSION postgis", dbname="later")
        ps_lab.sql("ALTER ROLE app SUPERUSER")
        ps_lab.wait_replicas_caught_up()
        forget()
        try:
            with databases_at(urls["PS_URL"], bouncer="write-pool", replica_bouncer="read-pool", engine="ps_django.postgis"):
                yield
        finally:
            ps_lab.set_replay_delay(0)
            ps_lab.sql("ALTER ROLE app NOSUPERUSER")
            forget()


def fill(lab: Lab) -> None:
    """Make the table, with something in it."""
    from tests.postgis.models import Shape

    lab.sql("CREATE EXTENSION IF NOT EXISTS postgis CASCADE; CREATE EXTENSION postgis_raster", dbname="later")
    with connections["default"].schema_editor() as editor:
        editor.create_model(Shape)
    make("default")


@pytest.mark.parametrize("alias", ["default", "direct"])
def test_extension_made_later(ps_lab: Lab, later: None, alias: str) -> None:
    """The connections of a process that were open when it made the extension know the types, and so do those that come later."""
    from django.core.management import call_command

    before = [connections[name].cursor().connection for name in ("default", "replica")]
    call_command("migrate", database=alias, verbosity=0)
    fill(ps_lab)
    ps_lab.wait_replicas_caught_up()
    for name in ("default", "replica"):
        assert connections[name].connection in before
        for _ in range(2):
            assert found(name) == 2
            connections[name].close()


def test_replica_without_the_extension(ps_lab: Lab, later: None) -> None:
    """A process whose first connection is to a replica that has not replayed the extension knows the types when it has."""
    ps_lab.set_replay_delay(60)
    fill(ps_lab)
    forget()
    connections["replica"].ensure_connection()
    ps_lab.set_replay_delay(0)
    connections["replica"].close()
    with use_token(None), ps_lab.round_trips() as trips:
        assert found("replica") == 2
    assert set(trips.by_path) == {"replica"}
