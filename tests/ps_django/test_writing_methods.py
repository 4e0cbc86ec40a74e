"""Every method that writes, called for a replica's alias: all of it is the primary's, what it reads before it writes, too."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from django.db import InternalError, connections, models, transaction
from django.db.models.deletion import Collector
from django.utils.connection import ConnectionDoesNotExist

from ps_core import use_token
from tests.ps_django.projects import result, start, write
from tests.ps_django.test_projects import SETTINGS

if TYPE_CHECKING:
    from pathlib import Path

    from ps_lab import Lab


@pytest.fixture(scope="module")
def tables(ps_lab: Lab, site: None) -> Iterator[SimpleNamespace]:
    """Models of the shop for this file: one with a child that has a table of its own, related in all ways."""
    from django.apps import apps

    meta = type("Meta", (), {"app_label": "shop"})

    class Vessel(models.Model):
        Meta = meta
        name: models.CharField[str, str] = models.CharField(max_length=20, unique=True)
        size: models.IntegerField[int, int] = models.IntegerField(default=1)

    class Cup(Vessel):
        Meta = meta
        handles: models.IntegerField[int, int] = models.IntegerField(default=1)

    class Sip(models.Model):
        Meta = meta
        vessel: models.ForeignKey[Any, Any] = models.ForeignKey(Vessel, models.CASCADE, related_name="sips", null=True)

    class Owner(models.Model):
        Meta = meta
        vessels = models.ManyToManyField(Vessel, related_name="owners")

    kinds: list[type[models.Model]] = [Vessel, Cup, Sip, Owner]
    with connections["default"].schema_editor() as editor:
        for kind in kinds:
            editor.create_model(kind)
    yield SimpleNamespace(Vessel=Vessel, Cup=Cup, Sip=Sip, Owner=Owner)
    with connections["default"].schema_editor() as editor:
        for kind in reversed(kinds):
            editor.delete_model(kind)
    for name in ("vessel", "cup", "sip", "owner", "owner_vessels"):
        del apps.all_models["shop"][name]
    apps.clear_cache()


def _collect(vessel: models.Model) -> object:
    collector = Collector(using="replica")
    collector.collect([vessel])
    return collector.delete()


@pytest.fixture
def m(ps_lab: Lab, tables: SimpleNamespace) -> Iterator[SimpleNamespace]:
    """The models; the replica has a vessel with its sip and its owner, and instances that were loaded from it."""
    for kind in (tables.Owner, tables.Sip, tables.Cup, tables.Vessel):
        kind.objects.all().delete()
    vessel = tables.Vessel.objects.create(name="bowl")
    sip, owner = tables.Sip.objects.create(vessel=vessel), tables.Owner.objects.create()
    owner.vessels.add(vessel)
    cup = tables.Cup.objects.create(name="mug")
    ps_lab.wait_replicas_caught_up()
    with use_token(None):
        loaded = {
            name: type(one).objects.using("replica").get(pk=one.pk)
            for name, one in {"vessel": vessel, "sip": sip, "owner": owner, "cup": cup}.items()
        }
        yield SimpleNamespace(
            **vars(tables), **loaded, vessels=tables.Vessel.objects.using("replica"), cups=tables.Cup.objects.using("replica")
        )


def _run(coroutine: Any) -> Any:
    return asyncio.run(coroutine)


Work = Callable[[SimpleNamespace], Any]
DEFAULTS = {"defaults": {"size": 2}}
METHODS: dict[str, Work] = {
    "QuerySet.create": lambda m: m.vessels.create(name="a"),
    "QuerySet.create, of a child": lambda m: m.cups.create(name="a"),
    "QuerySet.get_or_create, new": lambda m: m.vessels.get_or_create(name="a", **DEFAULTS),
    "QuerySet.get_or_create, there": lambda m: m.vessels.get_or_create(name="bowl", **DEFAULTS),
    "QuerySet.get_or_create, of a child": lambda m: m.cups.get_or_create(name="a", **DEFAULTS),
    "QuerySet.update_or_create, new": lambda m: m.vessels.update_or_create(name="a", **DEFAULTS),
    "QuerySet.update_or_create, there": lambda m: m.vessels.update_or_create(name="bowl", **DEFAULTS),
    "QuerySet.update_or_create, of a child": lambda m: m.cups.update_or_create(name="mug", **DEFAULTS),
    "QuerySet.bulk_create": lambda m: m.vessels.bulk_create([m.Vessel(name="a"), m.Vessel(name="b")]),
    "QuerySet.bulk_create, ignore_conflicts": lambda m: m.vessels.bulk_create([m.Vessel(name="bowl")], ignore_conflicts=True),
    "QuerySet.bulk_create, update_conflicts": lambda m: m.vessels.bulk_create(
        [m.Vessel(name="bowl", size=3)], update_conflicts=True, unique_fields=["name"], update_fields=["size"]
    ),
    "QuerySet.bulk_update": lambda m: m.vessels.bulk_update([m.vessel], ["size"]),
    "QuerySet.update": lambda m: m.vessels.update(size=2),
    "QuerySet.update, of a child": lambda m: m.cups.update(size=2, handles=2),
    "QuerySet.delete": lambda m: m.vessels.delete(),
    "QuerySet.delete, of a child": lambda m: m.cups.delete(),
    "QuerySet.delete, what was filtered": lambda m: m.vessels.filter(name__startswith="bow").delete(),
    "QuerySet.update, by a subquery": lambda m: m.vessels.filter(pk__in=m.vessels.filter(name="bowl")).update(size=2),
    "QuerySet.update, but a subquery": lambda m: m.vessels.exclude(pk__in=m.cups.values("pk")).update(size=2),
    "QuerySet.update, by a union": lambda m: m.vessels.filter(pk__in=m.vessels.values("pk").union(m.cups.values("pk"))).update(
        size=2
    ),
    "QuerySet.delete, by a subquery": lambda m: (
        m.Sip.objects.using("replica").filter(vessel__in=m.vessels.filter(pk__in=m.vessels)).delete()
    ),
    "QuerySet.get_or_create, by a subquery": lambda m: m.vessels.filter(pk__in=m.vessels).get_or_create(name="a"),
    "QuerySet.acreate": lambda m: _run(m.vessels.acreate(name="a")),
    "QuerySet.aget_or_create": lambda m: _run(m.vessels.aget_or_create(name="a", **DEFAULTS)),
    "QuerySet.aupdate_or_create": lambda m: _run(m.vessels.aupdate_or_create(name="bowl", **DEFAULTS)),
    "QuerySet.abulk_create": lambda m: _run(m.vessels.abulk_create([m.Vessel(name="a")])),
    "QuerySet.abulk_update": lambda m: _run(m.vessels.abulk_update([m.vessel], ["size"])),
    "QuerySet.aupdate": lambda m: _run(m.vessels.aupdate(size=2)),
    "QuerySet.adelete": lambda m: _run(m.vessels.adelete()),
    "Manager.db_manager().create": lambda m: m.Vessel.objects.db_manager("replica").create(name="a"),
    "Manager.db_manager().get_or_create": lambda m: m.Vessel.objects.db_manager("replica").get_or_create(name="a"),
    "Model.save, new": lambda m: m.Vessel(name="a").save(using="replica"),
    "Model.save, there": lambda m: m.vessel.save(using="replica"),
    "Model.save, update_fields": lambda m: m.vessel.save(using="replica", update_fields=["size"]),
    "Model.save, of a child, new": lambda m: m.Cup(name="a").save(using="replica"),
    "Model.save, of a child, there": lambda m: m.cup.save(using="replica"),
    "Model.save_base": lambda m: m.vessel.save_base(using="replica", raw=True),
    "Model.delete": lambda m: m.vessel.delete(using="replica"),
    "Model.delete, of a child": lambda m: m.cup.delete(using="replica"),
    "Model.asave": lambda m: _run(m.Cup(name="a").asave(using="replica")),
    "Model.adelete": lambda m: _run(m.vessel.adelete(using="replica")),
    "Collector": lambda m: _collect(m.vessel),
    "related: create": lambda m: m.vessel.sips.create(),
    "related: get_or_create": lambda m: m.vessel.sips.get_or_create(pk=77),
    "related: update_or_create": lambda m: m.vessel.sips.update_or_create(pk=77),
    "related: add": lambda m: m.vessel.sips.add(m.Sip.objects.create()),
    "related: add, bulk=False": lambda m: m.vessel.sips.add(m.Sip(), bulk=False),
    "related: set": lambda m: m.vessel.sips.set([m.sip]),
    "related: set, empty": lambda m: m.vessel.sips.set([]),
    "related: remove": lambda m: m.vessel.sips.remove(m.sip),
    "related: clear": lambda m: m.vessel.sips.clear(),
    "many to many: create": lambda m: m.owner.vessels.create(name="a"),
    "many to many: get_or_create": lambda m: m.owner.vessels.get_or_create(name="a"),
    "many to many: add": lambda m: m.owner.vessels.add(m.cup),
    "many to many: set": lambda m: m.owner.vessels.set([m.cup]),
    "many to many: remove": lambda m: m.owner.vessels.remove(m.vessel),
    "many to many: clear": lambda m: m.owner.vessels.clear(),
    "many to many: aset": lambda m: _run(m.owner.vessels.aset([m.cup])),
    "many to many, reverse: add": lambda m: m.cup.owners.add(m.owner),
    "many to many, using: create": lambda m: m.owner.vessels.using("replica").create(name="a"),
}
LOCKS: dict[str, Work] = {
    "select_for_update": lambda m: list(m.vessels.select_for_update()),
    "select_for_update, then update": lambda m: m.vessels.select_for_update().update(size=2),
}
SYNC = [name for name, work in METHODS.items() if "_run" not in work.__code__.co_names]
"""Those that are in the caller's thread, and on its connections."""
NAMED = [name for name in SYNC if not name.startswith(("related", "many")) and name != "QuerySet.get_or_create, there"]
"""Those of them that write and name the replica's alias; the others ask the router, or only read."""


def trips(lab: Lab, work: Callable[[], Any]) -> set[str]:
    """Return the paths that a work took, in whichever thread."""
    with lab.round_trips() as trips:
        work()
    return set(trips.by_path)


@pytest.mark.parametrize("name", METHODS)
def test_outside_of_a_block(ps_lab: Lab, m: SimpleNamespace, name: str) -> None:
    """Each goes to the primary, whole, without a detour; what it wrote is there, and is the primary's."""
    assert trips(ps_lab, lambda: METHODS[name](m)) == {"primary"}


@pytest.mark.parametrize("name", SYNC)
def test_in_a_block_on_the_primary(ps_lab: Lab, m: SimpleNamespace, name: str) -> None:
    """Each is in the transaction that is open on the primary, and is rolled back with it."""
    before = contents(ps_lab)
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        METHODS[name](m)
        raise ZeroDivisionError
    assert contents(ps_lab) == before


def contents(lab: Lab) -> list[Any]:
    """What the tables have."""
    return [lab.sql(f"SELECT * FROM shop_{name} ORDER BY 1") for name in ("vessel", "cup", "sip", "owner", "owner_vessels")]


@pytest.mark.parametrize("name", NAMED)
def test_in_a_block_on_the_replica(ps_lab: Lab, m: SimpleNamespace, name: str) -> None:
    """Such a block only reads: what would write is refused, since the primary's alias would not roll it back."""
    before = contents(ps_lab)
    with pytest.raises(InternalError, match="only reads"), transaction.atomic(using="replica"):
        METHODS[name](m)
    assert contents(ps_lab) == before


@pytest.mark.parametrize("name", LOCKS)
def test_locks(ps_lab: Lab, m: SimpleNamespace, name: str) -> None:
    """Rows are locked on the primary, in its transaction; outside of one that is refused as on stock; a replica has no locks."""
    with transaction.atomic():
        assert trips(ps_lab, lambda: LOCKS[name](m)) == {"primary"}
    if name == "select_for_update":
        with pytest.raises(transaction.TransactionManagementError):
            LOCKS[name](m)
        with pytest.raises(InternalError, match="only reads"), transaction.atomic(using="replica"):
            LOCKS[name](m)


def test_subquery_of_another_database(m: SimpleNamespace) -> None:
    """A subquery that names any other alias is refused, as on stock."""
    with pytest.raises(ValueError, match="different databases"):
        m.vessels.filter(pk__in=m.Vessel.objects.using("direct")).update(size=2)


FIRST = """
import sys, django
django.setup()
from django_shop.shop.models import Product
Product.objects.using("replica").update_or_create(name="first", defaults={"price": 1, "stock": 1})
print(Product.objects.using("direct").get(name="first").stock)
"""


def test_first_of_all(ps_lab: Lab, site: None, tmp_path: Path) -> None:
    """It is so from the first method that a process calls, before anything has asked the router."""
    settings = SETTINGS.format(url=ps_lab.url, limits="")
    process = start(write(tmp_path, {"project.py": settings, "first.py": FIRST}), "first.py", TEST_NAME="unused")
    assert result(process)[0] == "1\n"


def test_alias_of_the_instance(ps_lab: Lab, m: SimpleNamespace) -> None:
    """What was written is the primary's; what is read next is read where the caller says."""
    created = m.vessels.all().create(name="a")
    got, _ = m.vessels.all().get_or_create(name="bowl")
    m.vessel.save(using="replica", update_fields=["size"])
    assert {one._state.db for one in (created, got, m.vessel)} == {"default"}
    ps_lab.wait_replicas_caught_up()
    assert trips(ps_lab, lambda: list(m.vessels.all())) == {"replica"}
    assert trips(ps_lab, lambda: m.vessel.refresh_from_db(using="replica")) == {"replica"}


def test_no_such_alias(m: SimpleNamespace) -> None:
    """An unknown alias is an error, as on stock."""
    ways: tuple[Callable[[], object], ...] = (
        lambda: m.Vessel.objects.using("nowhere").create(name="a"),
        lambda: m.vessel.delete(using="nowhere"),
    )
    for work in ways:
        with pytest.raises(ConnectionDoesNotExist, match="nowhere"):
            work()
