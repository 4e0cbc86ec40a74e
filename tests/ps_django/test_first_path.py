"""The main job: a site that reads from replicas and writes to the primary, bounded."""

import threading
from typing import Any

import psycopg
import pytest
from django.core.management import call_command
from django.db import OperationalError, connection, connections, transaction

import ps_django
from ps_core.context import limits
from ps_core.errors import ConfigurationError
from ps_lab import Lab
from ps_lab.processes import wait_until

pytestmark = pytest.mark.fast


def one(query: str, alias: str = "default") -> Any:
    """Return the single value of a query."""
    with connections[alias].cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchone()[0]


def test_databases(ps_lab: Lab) -> None:
    """One URL gives the three entries; what cannot work is refused when settings are loaded."""
    entries = ps_django.databases(ps_lab.url, bouncer="write-pool", replica_bouncer="read-pool")
    assert list(entries) == ["default", "replica", "direct"]
    assert {entry["ENGINE"] for entry in entries.values()} == {"ps_django.backend"}
    assert entries["default"]["USER"].endswith("|write-pool")
    with pytest.raises(ConfigurationError, match="reserved"):
        ps_django.databases(ps_lab.url, replica_bouncer="replica")


def test_unknown_option_is_refused() -> None:
    """An unknown option is refused with a list of the options."""
    from ps_django.config import endpoint_of

    with pytest.raises(ConfigurationError, match="ps_statement_timeout"):
        endpoint_of("default", {"HOST": "h", "OPTIONS": {"ps_statement": "2s"}})


@pytest.mark.parametrize("alias", ["default", "replica"])
def test_timeouts_hold(alias: str) -> None:
    """Both timeouts hold in autocommit and in atomic through both bouncers, and a statement that takes too long is cancelled."""
    for _ in range(2):
        assert one("SHOW statement_timeout", alias) == "2s"
        assert one("SHOW transaction_timeout", alias) == "3s"
        with transaction.atomic(using=alias):
            assert one("SHOW statement_timeout", alias) == "2s"
            assert one("SHOW transaction_timeout", alias) == "3s"
    with limits(statement="300ms"), pytest.raises(OperationalError) as failure:
        one("SELECT pg_sleep(20)", alias)
    assert isinstance(failure.value.__cause__, psycopg.errors.QueryCanceled)
    assert one("SELECT 1", alias) == 1


def test_routing(ps_lab: Lab) -> None:
    """Reads go to a replica where the context says so; writes, and everything in atomic, to the primary."""
    from django_shop.shop.models import Product

    made = Product.objects.create(name="one", price=1, stock=1)
    assert made._state.db == "default"
    ps_lab.wait_replicas_caught_up()
    assert Product.objects.get(pk=made.pk)._state.db == "default"
    with ps_django.reading():
        assert Product.objects.get(pk=made.pk)._state.db == "replica"
        with ps_django.using_primary():
            assert Product.objects.get(pk=made.pk)._state.db == "default"
        with transaction.atomic():
            assert Product.objects.get(pk=made.pk)._state.db == "default"
        assert Product.objects.create(name="two", price=1, stock=1)._state.db == "default"
        assert [product.name for product in Product.objects.filter(pk=made.pk).iterator()] == ["one"]
    assert Product.objects.get(pk=made.pk)._state.db == "default"


def test_round_trips(ps_lab: Lab) -> None:
    """A read or a single write outside atomic costs one round trip, an atomic block of n statements n + 1."""
    from django_shop.shop.models import Product

    with ps_lab.round_trips() as counter:
        Product.objects.filter(name="nobody").first()
    assert counter.count == 1
    ps_lab.wait_replicas_caught_up()
    with ps_lab.round_trips() as counter, ps_django.reading():
        list(Product.objects.filter(name="nobody"))
        list(Product.objects.filter(name="nobody"))
    assert (counter.count, counter.by_path["replica"]) == (2, 2)
    with ps_lab.round_trips() as counter:
        Product.objects.filter(name="nobody").update(stock=2)
    assert counter.count == 1
    with ps_lab.round_trips() as counter, transaction.atomic():
        Product.objects.filter(name="nobody").update(stock=2)
        Product.objects.filter(name="nobody").delete()
    assert counter.count == 3
    with ps_lab.round_trips() as counter, transaction.atomic():
        pass
    assert counter.count == 0


def test_ddl_takes_the_direct_path(ps_lab: Lab) -> None:
    """What a schema editor does arrives on the direct port, and the application's connection is back afterwards."""
    from django.db import models

    class Gadget(models.Model):
        """A model that only this test knows."""

        class Meta:
            app_label = "shop"

    before = connection.connection
    with ps_lab.round_trips() as counter, connection.schema_editor() as editor:
        editor.create_model(Gadget)
    assert counter.by_path["primary"] == 0
    assert counter.by_path["direct"] >= 2
    assert connection.connection is before
    with connection.schema_editor() as editor:
        editor.delete_model(Gadget)
    call_command("migrate", "--check", verbosity=0)


def test_connection_closed_loop_is_gone(ps_lab: Lab) -> None:
    """After a write that was lost under way, the next query works without anybody closing the connection (ticket 24810)."""
    from django_shop.shop.models import Product

    waiting = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND objid = 80 AND NOT granted"

    with psycopg.connect(ps_lab.primary.dsn()) as holder:
        holder.execute("SELECT pg_advisory_xact_lock(80)")

        def cut() -> None:
            try:
                wait_until(lambda: ps_lab.sql(waiting), "the statement to run")
                ps_lab.edge.cut("primary")
            finally:
                holder.rollback()

        cutter = threading.Thread(target=cut)
        cutter.start()
        with connection.cursor() as cursor, pytest.raises(OperationalError):
            cursor.execute("INSERT INTO shop_product (name, price, stock) SELECT 'x', 1, 1 FROM pg_advisory_xact_lock_shared(80)")
        cutter.join()
    assert one("SELECT 1") == 1
    with pytest.raises(OperationalError), transaction.atomic():
        one("SELECT 1")
        ps_lab.edge.cut("primary")
        one("SELECT 2")
    assert one("SELECT 1") == 1
    for name in ("after", "and after"):
        with transaction.atomic():
            Product.objects.create(name=name, price=1, stock=1)
    assert connection.get_autocommit()
    assert ps_lab.sql("SELECT count(*) FROM shop_product WHERE name IN ('after', 'and after')") == [(2,)]
