"""Where Django's work goes: by context, model, instance and transaction."""

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
from django.conf import settings
from django.db import connections, models, router, transaction
from django.db.utils import ConnectionHandler, ConnectionRouter
from django.test import override_settings
from django.test.utils import CaptureQueriesContext

import ps_django
from ps_core import ConfigurationError, Token, use_token
from ps_core.share import set_replica_share
from ps_django.config import check_direct, endpoint_of, families, replicas_of_alias
from ps_django.routers import ReplicaRouter
from ps_django.settings import Settings
from ps_django.stale import StaleWriteError
from ps_django.transaction import blocks_of_request, expect_blocks
from ps_lab import Lab
from ps_lab.processes import wait_until

DEFAULT, REPLICA = "default", "replica"


@pytest.fixture(autouse=True)
def nothing_seen() -> Iterator[None]:
    """Begin each test without a token."""
    with use_token(None):
        yield


@pytest.fixture
def shop(ps_lab: Lab) -> Iterator[Any]:
    """A product with two orders, on the replicas too."""
    from django.contrib.auth.models import Group, User

    from django_shop.shop.models import Order, Product

    product = Product.objects.create(name="cup", price=1, stock=1)
    for _ in range(2):
        Order.objects.create(product=product, quantity=1)
    user = User.objects.create(username="ann")
    user.groups.add(Group.objects.create(name="staff"))
    ps_lab.wait_replicas_caught_up()
    with use_token(None):
        yield product
    Order.objects.all().delete()
    Product.objects.all().delete()
    User.objects.all().delete()
    Group.objects.all().delete()


def type_asked_anew() -> Any:
    """Return a content type that is not in the cache."""
    from django.contrib.admin.models import LogEntry
    from django.contrib.contenttypes.models import ContentType

    ContentType.objects.clear_cache()
    return ContentType.objects.get_for_model(LogEntry)


def aliases(work: Callable[[], Any]) -> list[str]:
    """Return the endpoints that answered, in order."""
    with CaptureQueriesContext(connections[DEFAULT]) as one, CaptureQueriesContext(connections[REPLICA]) as two:
        work()
        return [query["endpoint"] for query in (*one.captured_queries, *two.captured_queries) if "endpoint" in query]


def ways() -> dict[str, tuple[str, Callable[[Any], Any]]]:
    """What is read in a reading context, and who answers."""
    from django.contrib.auth.models import Permission, User

    from django_shop.shop.models import Order, Product

    return {
        "all": (REPLICA, lambda _: list(Product.objects.all())),
        "get": (REPLICA, lambda p: Product.objects.get(pk=p.pk)),
        "count": (REPLICA, lambda _: Order.objects.count()),
        "aggregate, values, exists": (REPLICA, lambda _: Order.objects.filter(quantity=1).exists()),
        "iterator": (REPLICA, lambda _: list(Order.objects.iterator(chunk_size=1))),
        "raw": (REPLICA, lambda _: list(Product.objects.raw("SELECT * FROM shop_product"))),
        "related manager of an instance from the primary": (REPLICA, lambda p: list(p.orders.all())),
        "foreign key": (REPLICA, lambda _: Order.objects.all()[0].product),
        "select_related": (REPLICA, lambda _: list(Order.objects.select_related("product"))),
        "prefetch_related": (REPLICA, lambda _: list(Product.objects.prefetch_related("orders"))),
        "many to many": (REPLICA, lambda _: list(User.objects.all()[0].groups.all())),
        "deferred field": (REPLICA, lambda p: Product.objects.defer("price").get(pk=p.pk).price),
        "refresh_from_db of an instance from a replica": (REPLICA, lambda p: Product.objects.get(pk=p.pk).refresh_from_db()),
        "permissions": (REPLICA, lambda _: User.objects.all()[0].has_perm("shop.add_order")),
        "generic foreign key's type": (
            REPLICA,
            lambda _: type_asked_anew(),
        ),
        "permission's content type": (REPLICA, lambda _: Permission.objects.select_related("content_type").first()),
        "refresh_from_db of an instance from the primary": (REPLICA, lambda p: p.refresh_from_db()),
        "using()": (DEFAULT, lambda _: list(Product.objects.using(DEFAULT))),
        "create": (DEFAULT, lambda p: Order.objects.create(product=p, quantity=1)),
        "update": (DEFAULT, lambda _: Order.objects.update(quantity=1)),
        "delete": (DEFAULT, lambda _: Order.objects.filter(quantity=77).delete()),
        "bulk_create": (DEFAULT, lambda p: Order.objects.bulk_create([Order(product=p, quantity=1)])),
        "get_or_create": (DEFAULT, lambda p: Product.objects.get_or_create(name="cup", defaults={"price": 1, "stock": 1})),
        "update_or_create": (DEFAULT, lambda p: Product.objects.update_or_create(name="cup", defaults={"price": 1, "stock": 1})),
        "select_for_update": (DEFAULT, _locked),
        "a read in atomic": (DEFAULT, _atomic),
    }


MODES = [None, *(getattr(models, name) for name in ("FETCH_ONE", "FETCH_PEERS") if hasattr(models, name))]
"""None is the default, and all that Django had before 6.1."""
LATER: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "reading": ps_django.reading,
    "outside": nullcontext,
    "using_primary": ps_django.using_primary,
    "atomic": transaction.atomic,
}


@pytest.mark.parametrize("later", LATER)
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: type(mode).__name__)
def test_lazy_loads(shop: Any, mode: Any, later: str) -> None:
    """What is loaded when it is needed goes where reads go by then; deferred fields of peers, where the first came from."""
    from django.contrib.auth.models import Group, User

    from django_shop.shop.models import Order

    def with_mode(rows: Any) -> list[Any]:
        return list(rows if mode is None else rows.fetch_mode(mode))

    expected = REPLICA if later == "reading" else DEFAULT
    peers = mode is not None and mode.track_peers
    with ps_django.reading():
        orders, products = with_mode(Order.objects.order_by("pk")), with_mode(type(shop).objects.defer("stock"))
        deferred = with_mode(Order.objects.defer("quantity").order_by("pk"))
        (user,) = with_mode(User.objects.all())
    with LATER[later]():
        assert aliases(lambda: [order.product for order in orders]) == [expected] * (1 if peers else 2)
        assert aliases(lambda: [order.quantity for order in deferred]) == ([REPLICA] if peers else [expected] * 2)
        assert aliases(lambda: products[0].stock) == [expected]
        assert aliases(lambda: list(user.groups.all())) == [expected]
        assert {order.product._state.db for order in orders} == {expected}
    assert {one._state.db for one in (*orders, user)} == {REPLICA}
    assert [type(group) for group in user.groups.all()] == [Group]


@pytest.mark.skipif(not hasattr(models, "FETCH_RAISE"), reason="Django before 6.1 has no fetch modes")
def test_lazy_loads_that_are_blocked(shop: Any) -> None:
    """Where lazy loads are blocked, none of ours is made behind its back: an instance of a replica is written as it is."""
    from django.core.exceptions import FieldFetchBlocked

    with ps_django.reading():
        product, other = (type(shop).objects.defer("stock").fetch_mode(models.FETCH_RAISE).get(pk=shop.pk) for _ in range(2))
    with pytest.raises(FieldFetchBlocked):
        product.stock  # noqa: B018 - it loads
    assert aliases(lambda: product.save(update_fields=["name"])) == [DEFAULT]
    assert aliases(lambda: other.save(using=REPLICA)) == [DEFAULT]


def _locked(product: Any) -> Any:
    with transaction.atomic():
        return type(product).objects.select_for_update().get(pk=product.pk)


def _atomic(product: Any) -> Any:
    with transaction.atomic():
        return list(type(product).objects.all())


WAYS = (
    """
all|get|count|aggregate, values, exists|iterator|raw|related manager of an instance from the primary|foreign key|select_related
prefetch_related|many to many|deferred field|refresh_from_db of an instance from a replica|permissions
generic foreign key's type|permission's content type|refresh_from_db of an instance from the primary|using()|create|update
delete|bulk_create|get_or_create|update_or_create|select_for_update|a read in atomic
""".strip()
    .replace("\n", "|")
    .split("|")
)


@pytest.mark.parametrize("way", WAYS)
def test_in_a_reading_context(shop: Any, way: str) -> None:
    """In a reading context reads are answered by replicas, everything else by the primary."""
    assert list(ways()) == WAYS
    expected, work = ways()[way]
    with ps_django.reading():
        assert set(aliases(lambda: work(shop))) == {expected}


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (nullcontext, DEFAULT),
        (ps_django.reading, REPLICA),
        (ps_django.using_replica, REPLICA),
        (ps_django.using_primary, DEFAULT),
    ],
)
def test_blocks(shop: Any, block: Callable[[], AbstractContextManager[Any]], expected: str) -> None:
    """Blocks and decorators say where reads go; by default that is the primary."""
    with block():
        assert set(aliases(lambda: list(type(shop).objects.all()))) == {expected}


def test_blocks_nest(shop: Any) -> None:
    """Blocks nest and restore, as decorators and as context managers, also on exceptions (behaviour of multidb-router's pins)."""
    read = lambda: list(type(shop).objects.all())  # noqa: E731
    pinned = ps_django.using_primary()(read)
    with ps_django.reading():
        assert aliases(read) == [REPLICA]
        assert aliases(pinned) == [DEFAULT]
        with pytest.raises(ZeroDivisionError), ps_django.using_primary():
            assert aliases(read) == [DEFAULT]
            raise ZeroDivisionError
        assert aliases(read) == [REPLICA]


def test_everywhere(shop: Any) -> None:
    """`READS = "replica"` sends reads to replicas wherever nothing else is said."""
    read = lambda: list(type(shop).objects.all())  # noqa: E731
    with override_settings(PS_DJANGO={"READS": "replica"}):
        assert aliases(read) == [REPLICA]
        with ps_django.using_primary():
            assert aliases(read) == [DEFAULT]
    assert aliases(read) == [DEFAULT]


def test_share(shop: Any) -> None:
    """The operators' switch turns replicas off for what only may read from them."""
    read = lambda: list(type(shop).objects.all())  # noqa: E731
    set_replica_share(0)
    try:
        with ps_django.reading():
            assert aliases(read) == [DEFAULT]
        with ps_django.using_replica():
            assert aliases(read) == [REPLICA]
    finally:
        set_replica_share(None)


def test_threads(shop: Any) -> None:
    """What one thread's block says is not said to another (behaviour of multidb-router)."""
    barrier, found = threading.Barrier(2, timeout=20), dict[str, Any]()

    def work(name: str, block: Any) -> None:
        with block:
            for _ in range(3):
                barrier.wait()
                found.setdefault(name, set()).add(router.db_for_read(type(shop)))

    threads = [
        threading.Thread(target=work, args=pair) for pair in (("a", ps_django.reading()), ("b", ps_django.using_primary()))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == {"a": {REPLICA}, "b": {DEFAULT}}


def test_instance_of_a_replica_is_written_to_the_primary(shop: Any) -> None:
    """What was loaded from a replica is saved and deleted on the primary, without a detour."""
    with ps_django.reading():
        product = type(shop).objects.get(pk=shop.pk)
        order = product.orders.first()
    assert product._state.db == REPLICA
    product.stock = 2
    assert set(aliases(lambda: product.save(update_fields=["stock"]))) == {DEFAULT}
    assert set(aliases(order.delete)) == {DEFAULT}
    assert product._state.db == DEFAULT


def test_relations_across_the_endpoints(shop: Any) -> None:
    """Instances from the primary and from a replica are of one database."""
    with ps_django.reading():
        product = type(shop).objects.get(pk=shop.pk)
    order = shop.orders.model(quantity=1)
    order.product = product
    assert router.allow_relation(order, product)
    assert set(aliases(order.save)) == {DEFAULT}
    assert order.product == shop


def test_migrations_are_for_the_primary() -> None:
    """Replicas and the direct path are not migrated (behaviour of both routers)."""
    assert [router.allow_migrate(alias, "shop") for alias in (DEFAULT, REPLICA, "direct")] == [True, False, False]


def test_atomic_requests(shop: Any) -> None:
    """The block that ATOMIC_REQUESTS opens around a GET reads from replicas until something is asked of the primary in it."""
    read = lambda: list(type(shop).objects.all())  # noqa: E731
    connection = connections[DEFAULT]
    connection.settings_dict["ATOMIC_REQUESTS"] = True
    try:
        with ps_django.reading(), blocks_of_request():
            expect_blocks(None)
            with transaction.atomic():
                assert aliases(read) == [REPLICA]
                with transaction.atomic():
                    assert aliases(read) == [DEFAULT]
                assert aliases(read) == [DEFAULT]
            with transaction.atomic():
                assert aliases(read) == [DEFAULT]
        with ps_django.reading(), transaction.atomic():
            assert aliases(read) == [DEFAULT]
            with transaction.atomic():
                assert aliases(read) == [DEFAULT]
            assert aliases(read) == [DEFAULT]
        with transaction.atomic():
            assert aliases(read) == [DEFAULT]
    finally:
        connection.settings_dict["ATOMIC_REQUESTS"] = False


class Second:
    """A router of the project's own: orders live in another database."""

    def db_for_read(self, model: Any, **hints: Any) -> str | None:
        """Send orders to `other`."""
        return "other" if model.__name__ == "Order" else None

    db_for_write = db_for_read


def test_several_databases(ps_lab: Lab) -> None:
    """Routers behind ours choose the database, ours its endpoint."""
    from django_shop.shop.models import Order, Product

    entries = ps_django.databases(ps_lab.url, bouncer="write-pool", replica_bouncer="read-pool")
    other = ps_django.databases(ps_lab.url, bouncer="write-pool", replica_bouncer="read-pool")
    for alias, entry in other.items():
        name = {"default": "other"}.get(alias, f"other_{alias}")
        options = entry["OPTIONS"]
        options |= {key: "other" for key in ("ps_primary",) if key in options}
        options |= {key: "other_direct" for key in ("ps_direct",) if key in options}
        entries[name] = entry
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "DATABASES", entries)
        routers = ConnectionRouter([ReplicaRouter(), Second()])
        patch.setattr("ps_django.routers.router", routers)
        patch.setattr("ps_django.routers.connections", ConnectionHandler(entries))
        assert (routers.db_for_read(Order), routers.db_for_write(Order)) == ("other", "other")
        with ps_django.reading():
            assert (routers.db_for_read(Order), routers.db_for_read(Product)) == ("other_replica", "replica")
            assert (routers.db_for_write(Order), routers.db_for_write(Product)) == ("other", "default")


def test_lost_replicas_are_replaced_by_the_primary(ps_lab: Lab, shop: Any) -> None:
    """While the replica bouncer is away, reads are answered by the primary without an error; then by replicas again."""
    read = lambda: list(type(shop).objects.all())  # noqa: E731
    with ps_django.reading():
        assert aliases(read) == [REPLICA]
        ps_lab.bouncers["read-pool"].stop()
        try:
            assert aliases(read) == ["fallback"]
            assert aliases(read) in (["fallback"], [DEFAULT])
        finally:
            ps_lab.restart_bouncer("read-pool")
        wait_until(lambda: aliases(read) == [REPLICA], "the reads' return")


def test_no_fallback(ps_lab: Lab) -> None:
    """`replica_fallback="none"` leaves the primary out of it; a share is refused, since there is no pool."""
    entries = ps_django.databases(ps_lab.url, bouncer="write-pool", replica_bouncer="read-pool", replica_fallback="none")
    replicas = replicas_of_alias(DEFAULT, entries)
    assert replicas is not None
    assert replicas.fallback is None
    with pytest.raises(ConfigurationError, match="replica_fallback"):
        ps_django.databases(ps_lab.url, replica_bouncer="read-pool", replica_fallback=0.5)


def test_weights(ps_lab: Lab) -> None:
    """Weights come from the URL's settings to the entries, and from there to the routes."""
    entries = ps_django.databases(
        ps_lab.url, bouncer="write-pool", replica_bouncer="read-pool", direct_replica=True, replica_weights="0,1"
    )
    from django_shop.shop.models import Product

    with pytest.MonkeyPatch.context() as patch, ps_django.reading():
        patch.setattr(settings, "DATABASES", entries)
        patch.setattr("ps_django.routers.connections", ConnectionHandler(entries))
        assert {ReplicaRouter().db_for_read(Product) for _ in range(30)} == {"replica-2"}


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"READ": "replica"}, "^PS_DJANGO: there is no key READ: did you mean READS"),
        ({"READS": "replicas"}, "write one of"),
        ({"STALE_WRITES": "no"}, "write one of"),
        ({"DEADLINE": "soon"}, "DEADLINE"),
        ({"LOCAL_SETTINGS": "nowhere.function"}, "dotted path"),
        ({"LOCAL_SETTINGS": {"app.tenant": "42"}}, "dotted path"),
        ({"LOCAL_SETTINGS": "django.conf.settings"}, "leads to .*: write a function's"),
        ({"COOKIE": True}, "cookie: True"),
        ({"HEADER": 5}, "header: 5"),
        ({"TAGS": ["shop"]}, "tags: write a mapping"),
        (["READS"], "^PS_DJANGO: write a mapping"),
        (None, "^PS_DJANGO: write a mapping"),
    ],
)
def test_settings_are_validated(given: Any, word: str) -> None:
    """An unknown setting or an invalid value is refused with what to write."""
    with pytest.raises(ConfigurationError, match=word):
        Settings.parse(given)


def test_unknown_primary_is_refused() -> None:
    """An entry that names a primary which is not there is refused."""
    with pytest.raises(ConfigurationError, match="ps_primary"):
        families({"replica": {"OPTIONS": {"ps_primary": "main"}}})


ENTRIES: dict[str, dict[str, Any]] = {
    "default": {"OPTIONS": {"ps_direct": "direct", "ps_identity": "b"}},
    "replica": {"OPTIONS": {"ps_role": "replica", "ps_primary": "default"}},
    "direct": {"OPTIONS": {"ps_role": "direct", "ps_primary": "default"}},
}


@pytest.mark.parametrize(
    ("alias", "option", "value", "message"),
    [
        ("default", "ps_direct", "dirct", r"(?m)ps_direct='dirct': write one of direct, or leave it out$"),
        ("default", "ps_direct", "replica", "ps_direct='replica': write one of direct, or"),
        ("default", "ps_primary", "replica", "ps_primary='replica'"),
        ("replica", "ps_primary", "replica", "ps_primary='replica': write one of default, or"),
        ("replica", "ps_primary", "direct", "ps_primary='direct': write one of default, or"),
        ("replica", "ps_retry_timeout", "1s", r"^DATABASES\['replica'\]: ps_retry_timeout holds for all aliases of a primary"),
        ("replica", "ps_replica_fallback", "none", "ps_replica_fallback holds for all"),
        ("direct", "ps_identity", "c", r"(?m)ps_identity holds for all .* in the OPTIONS of DATABASES\['default'\]$"),
        ("replica", "ps_identity", "b", None),
    ],
)
def test_entries_of_one_family(alias: str, option: str, value: str, message: str | None) -> None:
    """What an entry says of the others, or should leave to its primary's, is refused where it would be without effect."""
    entries = {name: {"OPTIONS": {**entry["OPTIONS"]}} for name, entry in ENTRIES.items()}
    entries[alias]["OPTIONS"][option] = value
    with nullcontext() if message is None else pytest.raises(ConfigurationError, match=message):
        assert families(entries) == {"replica": "default", "direct": "default"}
        check_direct(entries)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("ps_weight", "many"),
        ("ps_weight", -1),
        ("ps_statement_timeout", "2"),
        ("ps_connect_timeout", "off"),
        ("ps_marker_schema", 5),
        ("ps_replica_fallback", "primry"),
        ("ps_replica_fallback", 0.25),
        ("ps_retry_timeout", None),
        ("ps_identity", 5),
        ("ps_role", "master"),
        ("ps_pooled", "maybe"),
        ("ps_session_state", "keep"),
        ("ps_transport", "udp"),
        ("ps_https_port", 0),
        ("ps_rol", "replica"),
        ("options", "-c search_path=a"),
    ],
)
def test_options_of_an_entry_are_validated(option: str, value: Any) -> None:
    """A wrong value is refused with the entry where it stands."""
    with pytest.raises(ConfigurationError, match=rf"^DATABASES\['main'\]: .*{option.removeprefix('ps_').partition('_')[0]}"):
        endpoint_of("main", {"OPTIONS": {option: value}})


def test_decided_before_a_connection(ps_lab: Lab, shop: Any) -> None:
    """What only the primary has seen, or no replica could answer, is asked of the primary: the replica's alias is left alone."""
    replicas = replicas_of_alias(DEFAULT, settings.DATABASES)
    assert replicas is not None
    pinned = Token(identity=ps_lab.branch, position=None, at=time.time())
    with ps_django.reading():
        assert router.db_for_read(type(shop)) == REPLICA
        with use_token(pinned):
            assert router.db_for_read(type(shop)) == DEFAULT
            with ps_django.using_replica():
                assert aliases(type(shop).objects.count) == [DEFAULT]
        replicas._left_out.due[replicas.states[0]] = (float("inf"), 1.0)
        try:
            assert aliases(type(shop).objects.count) == [DEFAULT]
        finally:
            replicas._left_out.due.clear()
        assert aliases(type(shop).objects.count) == [REPLICA]


class Growing(dict[str, Any]):
    """An entry during whose reading another thread adds an alias, as sites with a database for each tenant do."""

    def get(self, key: str, default: Any = None) -> Any:
        """Add an alias, then look."""
        self["entries"].setdefault(f"tenant_{len(self['entries'])}", {})
        return super().get(key, default)


def test_aliases_added_meanwhile(ps_lab: Lab) -> None:
    """A connection that is made, and the router, stand it that an alias is added to the settings at that moment."""
    entries: dict[str, Any] = ps_django.databases(ps_lab.url, bouncer="write-pool", replica_bouncer="read-pool")
    usual = replicas_of_alias(DEFAULT, entries)
    entries[DEFAULT] = Growing(entries[DEFAULT], entries=entries)
    assert families(entries) == {REPLICA: DEFAULT, "direct": DEFAULT}
    assert replicas_of_alias(DEFAULT, entries) is usual


# --- stale writes ---


def test_stale_write_warns_with_the_place(shop: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Saving all fields of an instance from a replica logs a warning that names the line; update_fields and new ones do not."""
    with ps_django.reading():
        products = [type(shop).objects.get(pk=shop.pk) for _ in range(2)]
    with caplog.at_level(logging.WARNING, "ps_django"):
        products[0].save(update_fields=["stock"])
        type(shop).objects.create(name="new", price=1, stock=1)
        ps_django.fresh(products[1]).save()
        assert caplog.records == []
        products[1].save()
    (record,) = caplog.records
    assert "was loaded from 'replica'" in record.getMessage()
    assert f"{__file__}:" in record.getMessage()


def test_stale_write_refused(ps_lab: Lab, shop: Any) -> None:
    """`STALE_WRITES = "refuse"` raises before anything is sent."""
    with ps_django.reading():
        product = type(shop).objects.get(pk=shop.pk)
    with ps_lab.round_trips() as trips, override_settings(PS_DJANGO={"STALE_WRITES": "refuse"}):
        with pytest.raises(StaleWriteError, match="update_fields"):
            product.save()
    assert trips.count == 0
    with override_settings(PS_DJANGO={"STALE_WRITES": "allow"}):
        product.save()


def test_fresh(ps_lab: Lab, shop: Any) -> None:
    """`fresh` reads the primary's row, locked if asked."""
    with ps_django.reading():
        product = type(shop).objects.get(pk=shop.pk)
        ps_lab.sql("UPDATE shop_product SET stock = 99")
        assert ps_django.fresh(product).stock == 99
        with transaction.atomic():
            assert ps_django.fresh(product, lock=True).stock == 99
            assert ps_lab.sql(
                "SELECT count(*) FROM pg_locks WHERE mode = 'RowShareLock' AND relation = 'shop_product'::regclass"
            )[0][0]


# --- commands ---


COMMANDS: dict[str, list[str]] = {
    "loaddata": ["empty.json"],
    "inspectdb": ["shop_product"],
    "flush": ["--no-input"],
    "sqlmigrate": ["contenttypes", "0001"],
    "dbshell": ["--", "SHOW is_superuser"],
}
PSQL = """#!{python}
# The server's own psql is built without TLS: what Django gives it, libpq reads here.
import argparse, psycopg
parser = argparse.ArgumentParser(add_help=False)
for option in "-U", "-h", "-p":
    parser.add_argument(option)
parser.add_argument("query")
parser.add_argument("dbname")
args = parser.parse_args()
with psycopg.connect(host=args.h, port=args.p, user=args.U, dbname=args.dbname) as connection:
    print(connection.execute(args.query).fetchone())
"""


@pytest.mark.parametrize(
    ("command", "transport"), [*((command, "tcp") for command in COMMANDS), ("dbshell", "websocket"), ("flush", "websocket")]
)
def test_commands_take_the_direct_path(ps_lab: Lab, command: str, transport: str, tmp_path: Any) -> None:
    """Commands that may take long go to the direct port by themselves; `dbshell` over the WebSocket, too, where that is asked."""
    applications = "'django.contrib.contenttypes'" if command == "sqlmigrate" else ""
    (tmp_path / "manage.py").write_text(
        "import sys, ps_django\nfrom django.conf import settings\nfrom django.core.management import execute_from_command_line\n"
        f"settings.configure(DATABASES=ps_django.databases({ps_lab.url!r}, bouncer='write-pool', replica_bouncer='read-pool',\n"
        f"    transport={transport!r}), INSTALLED_APPS=[{applications}], DATABASE_ROUTERS=['ps_django.routers.ReplicaRouter'])\n"
        "execute_from_command_line(sys.argv)\n"
    )
    (tmp_path / "empty.json").write_text("[]")
    (tmp_path / "psql").write_text(PSQL.format(python=sys.executable))
    (tmp_path / "psql").chmod(0o755)
    with ps_lab.round_trips() as trips:
        done = subprocess.run(
            [sys.executable, str(tmp_path / "manage.py"), command, *COMMANDS[command]],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                "PATH": os.pathsep.join((str(tmp_path), os.environ["PATH"])),
            },
        )
    assert done.returncode == 0, done.stderr
    assert command != "dbshell" or "('off',)" in done.stdout
    assert set(trips.by_path) == {"direct"}


# --- more of Django ---


def test_many_to_many_and_generic_relations(ps_lab: Lab, shop: Any) -> None:
    """Managers of instances from a replica write to the primary and read from replicas; generic relations find their object."""
    from django.contrib.admin.models import ADDITION, LogEntry
    from django.contrib.auth.models import Group, User
    from django.contrib.contenttypes.models import ContentType

    with ps_django.reading():
        user = User.objects.get(username="ann")
        assert user._state.db == REPLICA
        extra = Group.objects.using(DEFAULT).create(name="extra")
        assert set(aliases(lambda: user.groups.remove(extra))) <= {DEFAULT}
        ps_lab.wait_replicas_caught_up()
        assert set(aliases(lambda: list(user.groups.all()))) == {REPLICA}
    entry = LogEntry.objects.create(
        user=user,
        content_type=ContentType.objects.get_for_model(shop),
        object_id=shop.pk,
        object_repr="cup",
        action_flag=ADDITION,
    )
    ps_lab.wait_replicas_caught_up()
    with ps_django.reading():
        assert LogEntry.objects.get(pk=entry.pk).get_edited_object() == shop
    entry.delete()
    extra.delete()


def test_assert_num_queries(shop: Any) -> None:
    """`assertNumQueries` counts the application's statements."""
    from django.test import TestCase

    with TestCase().assertNumQueries(2):
        list(type(shop).objects.all())
        shop.save(update_fields=["stock"])


@pytest.mark.parametrize("block", [nullcontext, ps_django.without_sticky_writes])
def test_without_sticky_writes(ps_lab: Lab, shop: Any, block: Callable[[], AbstractContextManager[Any]]) -> None:
    """With the block and without, a write keeps the reads that follow from the replicas for as long as these do not have it."""
    with ps_django.reading():
        ps_lab.set_replay_delay(60)
        try:
            with block():
                shop.save(update_fields=["stock"])
            assert aliases(type(shop).objects.count) == [DEFAULT]
        finally:
            ps_lab.set_replay_delay(0)
        assert aliases(type(shop).objects.count) == [REPLICA]
