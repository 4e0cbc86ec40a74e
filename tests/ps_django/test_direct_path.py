"""The direct path: in blocks, schema editors and commands; and what libraries that connect by themselves are given."""

import asyncio
import io
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import psycopg
import pytest
from asgiref.sync import sync_to_async
from django.apps.registry import Apps
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.db import connections, models, transaction
from django.db.backends.postgresql import base as stock
from django.db.backends.signals import connection_created
from django.db.models.signals import pre_save

import ps_django
from ps_core import use_token
from ps_django import long_transactions
from ps_django.backend import base
from ps_django.config import endpoint_of
from ps_django.test import databases_at
from ps_lab import Lab


@pytest.fixture
def default(site: None) -> Any:
    """The alias, with an open connection on the pooled path."""
    connection: Any = connections["default"]
    assert path_of(connection) == "default"
    return connection


def path_of(connection: Any) -> str:
    """Return the name of the endpoint that answers."""
    connection.cursor().execute("SELECT 1")
    name: str = connection.connection.state.endpoint.name
    return name


def show(connection: Any, *names: str) -> tuple[str, ...]:
    """Return settings of the session."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT " + ", ".join(f"current_setting('{name}')" for name in names))
        found: tuple[str, ...] = cursor.fetchone()
    return found


def direct_connections(lab: Lab) -> int:
    """Return how many connections the direct endpoint has."""
    ((count,),) = lab.sql("SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND application_name = 'ps-postgres'")
    return int(count)


@cache
def table() -> type[models.Model]:
    """Return the model of a table that comes and goes."""
    options = type("Meta", (), {"app_label": "shop", "apps": Apps(), "db_table": "comes_and_goes"})
    return type("Table", (models.Model,), {"Meta": options, "__module__": __name__})


# --- blocks ---


def test_block(default: Any) -> None:
    """A session without a statement timeout in the block, and the same connection as before behind it; blocks nest."""
    before = default.connection
    with ps_django.on_direct_path():
        assert path_of(default) == "direct"
        assert show(default, "statement_timeout", "transaction_timeout", "lock_timeout") == ("0", "0", "5s")
        default.cursor().execute("CREATE TEMPORARY TABLE kept (n int)")
        with ps_django.on_direct_path(), transaction.atomic():
            default.cursor().execute("INSERT INTO kept VALUES (1)")
        default.cursor().execute("TABLE kept")
    assert default.connection is before
    assert path_of(default) == "default"
    assert show(default, "statement_timeout") == ("2s",)


def test_block_as_first_use(ps_lab: Lab, default: Any) -> None:
    """Where nothing was connected, the block connects to the direct endpoint alone; what follows it does so to the pooler."""
    default.close()
    with ps_lab.round_trips() as trips, ps_django.on_direct_path(), transaction.atomic():
        assert path_of(default) == "direct"
    assert set(trips.by_path) == {"direct"}
    assert path_of(default) == "default"


def test_block_reads_from_the_primary(default: Any) -> None:
    """What would be read from a replica is read on the direct path."""
    from django_shop.shop.models import Product
    from ps_demo.bank_django import InRecovery

    Product.objects.create(name="direct", price=1, stock=1)
    with ps_django.reading(), ps_django.on_direct_path(), use_token(None):
        found: Any = Product.objects.annotate(by_replica=InRecovery()).get(name="direct")
        assert (found._state.db, found.by_replica) == ("default", False)


def test_block_in_transaction(default: Any) -> None:
    """A transaction ends where it began: the block is refused in it, unless nothing was asked, and leaves its own one open."""
    with transaction.atomic():
        with ps_django.on_direct_path():
            assert path_of(default) == "direct"
            default.cursor().execute("SET LOCAL work_mem = '5MB'")
        assert path_of(default) == "direct"
        assert show(default, "work_mem") == ("5MB",)
        with ps_django.on_direct_path():
            assert path_of(default) == "direct"
    assert path_of(default) == "default"
    with transaction.atomic():
        default.cursor().execute("SELECT 1")
        with pytest.raises(RuntimeError, match=r"write on_direct_path\(\) around atomic\(\)"), ps_django.on_direct_path():
            pass
    assert path_of(default) == "default"


def test_block_is_of_its_thread(default: Any) -> None:
    """Other threads stay where they are; what an async block awaits is in it, and its connection goes back."""

    def elsewhere() -> str:
        try:
            return path_of(connections["default"])
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as pool, ps_django.on_direct_path():
        assert pool.submit(elsewhere).result() == "default"

    async def within() -> tuple[str, str]:
        ask = sync_to_async(lambda: path_of(connections["default"]))
        with ps_django.on_direct_path():
            inside = await ask()
        return inside, await ask()

    assert asyncio.run(within()) == ("direct", "default")


def test_block_ends_with_an_error(ps_lab: Lab, default: Any) -> None:
    """A connection that is lost in the block is the block's loss."""
    with pytest.raises(ZeroDivisionError), ps_django.on_direct_path():
        assert path_of(default) == "direct"
        raise ZeroDivisionError
    assert path_of(default) == "default"
    with ps_django.on_direct_path():
        assert path_of(default) == "direct"
        ps_lab.edge.cut("direct")
    assert path_of(default) == "default"


def test_block_with_autocommit_off(default: Any) -> None:
    """Autocommit is carried over, in both directions."""
    transaction.set_autocommit(False)
    try:
        with ps_django.on_direct_path():
            assert path_of(default) == "direct"
            assert default.connection.autocommit is False
            transaction.rollback()
        assert default.connection.autocommit is False
    finally:
        transaction.rollback()
        transaction.set_autocommit(True)
    assert path_of(default) == "default"
    assert default.connection.autocommit is True


# --- schema editors ---


@pytest.fixture
def pooled(ps_lab: Lab, site: None) -> Iterator[Any]:
    """The alias with a pool of two."""
    with databases_at(ps_lab.url, bouncer="write-pool", replica_bouncer="read-pool"):
        connection: Any = connections["default"]
        connection.settings_dict["OPTIONS"]["pool"] = {"min_size": 1, "max_size": 2, "timeout": 5}
        yield connection


def test_schema_editors_and_pool(ps_lab: Lab, pooled: Any) -> None:
    """Ten of them leave the pool as it was, and no connection of their own; the pool's come back as well."""
    with ps_lab.round_trips() as trips:
        for _ in range(10):
            with pooled.schema_editor() as editor:
                editor.create_model(table())
            with pooled.schema_editor() as editor:
                editor.delete_model(table())
            pooled.close()
    assert set(trips.by_path) == {"direct"}
    assert path_of(pooled) == "default"
    for _ in range(10):
        with pooled.schema_editor(), pooled.cursor() as cursor:
            cursor.execute("SELECT 1")
        assert path_of(pooled) == "default"
        pooled.close()
    stats = pooled.pool.get_stats()
    assert (stats["pool_size"], stats["pool_available"]) == (stats["pool_available"], stats["pool_size"])
    assert direct_connections(ps_lab) == 0


@pytest.mark.parametrize("is_open", [True, False])
@pytest.mark.parametrize("atomic", [True, False])
def test_schema_editor(ps_lab: Lab, default: Any, is_open: bool, atomic: bool) -> None:
    """DDL takes the direct path, also as the first use of a connection, in a transaction or not."""
    if not is_open:
        default.close()
    with ps_lab.round_trips() as trips:
        with default.schema_editor(atomic=atomic) as editor:
            editor.create_model(table())
            assert show(default, "statement_timeout") == ("0",)
        with default.schema_editor(atomic=atomic) as editor:
            editor.delete_model(table())
    assert set(trips.by_path) <= {"direct"} | ({"primary"} if is_open else set())
    assert path_of(default) == "default"


class Prepared(base.DatabaseWrapper):
    """A backend on top of ours, which prepares each of its connections, as PostGIS does."""

    def get_new_connection(self, conn_params: Any) -> Any:
        connection = super().get_new_connection(conn_params)
        connection.prepared = True
        return connection


def test_backends_on_top(default: Any) -> None:
    """They make the connections of the direct path, too, and those without a database; receivers are told of each."""
    told: list[tuple[type, str]] = []

    def note(sender: Any, connection: Any, **_: Any) -> None:
        told.append((sender, connection.alias))

    connection = Prepared(default.settings_dict, "default")
    connection_created.connect(note)
    try:
        assert path_of(connection) == "default"
        for block in (connection.schema_editor, connection._nodb_cursor):
            with block():
                pass
        with connection.schema_editor(), connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            assert connection.connection.prepared
            assert path_of(connection) == "direct"
        with connection._nodb_cursor() as cursor:
            assert cursor.connection.prepared
            assert cursor.connection.state.endpoint.name == "direct"
            assert type(cursor.db) is Prepared
    finally:
        connection_created.disconnect(note)
        connection.close()
    assert {sender for sender, _ in told} == {Prepared}
    assert {alias for _, alias in told} == {"default", "__no_db__"}


# --- commands that are called ---


def test_called_commands(ps_lab: Lab, default: Any, tmp_path: Path) -> None:
    """Each takes the direct path where it is called with an open connection; what follows is on the pooled one."""
    from django_shop.shop.models import Product

    Product.objects.create(name="dumped", price=1, stock=1)
    fixture = tmp_path / "shop.json"
    dumped = io.StringIO()
    for call in (
        lambda: call_command("dumpdata", "shop.product", stdout=dumped),
        lambda: fixture.write_text(dumped.getvalue()),
        lambda: call_command("loaddata", str(fixture), verbosity=0),
        lambda: call_command("migrate", verbosity=0),
        lambda: call_command("createcachetable", verbosity=0),
        lambda: call_command("inspectdb", "shop_product", stdout=io.StringIO()),
        lambda: call_command("sqlsequencereset", "shop", stdout=io.StringIO()),
        lambda: call_command("flush", verbosity=0, interactive=False),
    ):
        before = default.connection
        with ps_lab.round_trips() as trips:
            call()
        assert set(trips.by_path) <= {"direct"}
        assert path_of(default) == "default"
        assert default.connection is before or before.closed  # loaddata closes what it used
    assert "dumped" in {row["fields"]["name"] for row in json.loads(dumped.getvalue())}
    assert Product.objects.count() == 0
    ps_lab.wait_replicas_caught_up()


def test_called_in_a_transaction(default: Any) -> None:
    """A command that is called where something was asked in a transaction stays in it."""
    from django_shop.shop.models import Product

    with transaction.atomic():
        Product.objects.create(name="not committed", price=1, stock=1)
        dumped = io.StringIO()
        call_command("dumpdata", "shop.product", stdout=dumped)
        assert "not committed" in dumped.getvalue()
        assert path_of(default) == "default"
        transaction.set_rollback(True)


def test_long_transactions(default: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """In a command, each place of a long transaction is told once: what began when nothing was asked is not long."""
    monkeypatch.setattr(long_transactions, "LONG", 0.05)
    connection = base.DatabaseWrapper(default.settings_dict, "default")
    connection.connect()
    long_transactions.LongTransactions(connection)
    usual = connections["default"]
    connections["default"] = connection

    def sleep(seconds: float = 0.1) -> None:
        connection.cursor().execute("SELECT pg_sleep(%s)", [seconds])

    @transaction.atomic
    def decorated() -> None:
        sleep()

    try:
        sleep()
        with transaction.atomic():
            sleep(0)
        with transaction.atomic():
            usual.cursor().execute("SELECT pg_sleep(0.1)")
            sleep(0)
        assert caplog.messages == []
        for _ in range(2):
            with transaction.atomic():
                sleep()
        decorated()
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            sleep()
            raise ZeroDivisionError
        transaction.set_autocommit(False)
        sleep()
        transaction.commit()
        transaction.set_autocommit(True)
        with ps_django.on_direct_path(), transaction.atomic():
            sleep()
    finally:
        connections["default"] = usual
        connection.close()
    places = [message.partition(f"ends at {__file__}:")[2].partition(":")[0] for message in caplog.messages]
    lines = Path(__file__).read_text().splitlines()
    assert [lines[int(line) - 1].strip() for line in places] == [
        "with transaction.atomic():",
        "decorated()",
        "with pytest.raises(ZeroDivisionError), transaction.atomic():",
        "transaction.commit()",
    ]


# --- those who connect by themselves ---


@pytest.mark.parametrize(("alias", "in_recovery"), [("default", False), ("replica", True), ("direct", False)])
def test_connection_params(ps_lab: Lab, default: Any, monkeypatch: pytest.MonkeyPatch, alias: str, in_recovery: bool) -> None:
    """Stock psycopg reaches the alias's own server with them, with Django's own cursors, whatever libpq's environment says."""
    monkeypatch.setenv("PGHOST", "localhost")
    monkeypatch.setenv("PGPORT", "1")
    monkeypatch.setenv("PGUSER", "nobody")
    monkeypatch.setenv("PGDATABASE", "nothing")
    wrapper: Any = connections[alias]
    params = wrapper.get_connection_params()
    assert params["cursor_factory"] is stock.Cursor
    with psycopg.connect(**params) as conn:
        assert type(conn) is psycopg.Connection
        assert conn.execute("SELECT pg_is_in_recovery(), current_user, current_database()").fetchone() == (
            in_recovery,
            "app",
            "postgres",
        )
    with psycopg.connect(**ps_django.conninfo(alias)) as conn:
        assert conn.execute("SELECT pg_is_in_recovery(), current_user").fetchone() == (in_recovery, "app")
    psycopg.conninfo.make_conninfo(**ps_django.conninfo(alias))  # libpq knows each of them


def test_conninfo_of_others(site: None) -> None:
    """An alias of another backend is refused."""
    from django.conf import settings

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(settings.DATABASES, "other", {"ENGINE": "django.db.backends.postgresql", "NAME": "other"})
        connections.configure_settings(settings.DATABASES)
        with pytest.raises(ImproperlyConfigured, match=r"none of ps_django: write an alias of ps_django\.databases"):
            ps_django.conninfo("other")
        del connections["other"]


def test_changed_params(default: Any) -> None:
    """What a backend on top changes in the parameters counts, as for a password of the hour, on each path and in the pool."""
    password = default.settings_dict["PASSWORD"]

    class OfTheHour(base.DatabaseWrapper):
        def get_connection_params(self) -> dict[str, Any]:
            return {**super().get_connection_params(), "password": password}

    options = default.settings_dict["OPTIONS"]
    for pool in (False, {"min_size": 1, "max_size": 1, "timeout": 5}):
        settings = {**default.settings_dict, "PASSWORD": "old", "OPTIONS": {**options, "pool": pool, "ps_retry_timeout": 0}}
        connection = OfTheHour(settings, "of_the_hour")
        assert path_of(connection) == "of_the_hour"
        with ps_django.on_direct_path():
            connection.ps_take_path()
            assert path_of(connection) == "direct"
        connection.ps_take_path()
        assert path_of(connection) == "of_the_hour"
        connection.close()
        connection.close_pool()


@pytest.mark.parametrize("binding", [False, True])
def test_cursor_class(default: Any, binding: bool) -> None:
    """A connection says Django's own class, and its cursors are of that class and ours."""
    settings = {**default.settings_dict, "OPTIONS": {**default.settings_dict["OPTIONS"], "server_side_binding": binding}}
    connection = base.DatabaseWrapper(settings, "default")
    connection.connect()
    try:
        wanted = stock.ServerBindingCursor if binding else stock.Cursor
        assert connection.connection.cursor_factory is wanted
        ours = base.ServerBindingCursor if binding else base.Cursor
        assert type(connection.connection.cursor()) is ours
        assert type(connection.connection.cursor(row_factory=psycopg.rows.dict_row, binary=True)) is ours
        row = connection.connection.cursor(row_factory=psycopg.rows.dict_row).execute("SELECT 1 AS n").fetchone()
        assert row == {"n": 1}
    finally:
        connection.close()


@pytest.mark.parametrize("binding", [False, True])
@pytest.mark.parametrize("alias", ["default", "replica"])
def test_derived_cursor_class(ps_lab: Lab, site: None, binding: bool, alias: str) -> None:
    """A cursor that a package derives from Django's is asked, and carries what ours carries, in as many messages."""
    asked: list[Any] = []

    class OfAPackage(base.DatabaseWrapper):
        def get_connection_params(self) -> dict[str, Any]:
            params = super().get_connection_params()

            cursor: Any = params["cursor_factory"]

            class Watching(cursor):  # type: ignore[misc]
                def execute(self, query: Any, *args: Any) -> Any:
                    asked.append(query)
                    return super().execute(query, *args)

            return {**params, "cursor_factory": Watching}

    settings = connections[alias].settings_dict
    settings = {**settings, "OPTIONS": {**settings["OPTIONS"], "server_side_binding": binding}}
    messages = []
    for wrapper in (base.DatabaseWrapper, OfAPackage):
        connection = wrapper(settings, alias)
        connection.connect()
        try:
            asked.clear()
            with ps_lab.round_trips() as trips, connection.cursor() as cursor:
                cursor.execute("SHOW statement_timeout")
                assert cursor.fetchone() == ("2s",)
            messages.append(trips.count)
        finally:
            connection.close()
    assert asked == ["SHOW statement_timeout"]
    assert messages[0] == messages[1]


def test_no_host(ps_lab: Lab, default: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty HOST is libpq's own: a Unix socket, PGHOST, PGPORT."""
    monkeypatch.setenv("PGHOST", str(ps_lab.primary.socket_folder))
    connection = base.DatabaseWrapper(
        {**default.settings_dict, "HOST": "", "PORT": "", "USER": "postgres", "PASSWORD": "", "OPTIONS": {"ps_pooled": "false"}},
        "default",
    )
    with psycopg.connect(**connection.get_connection_params()) as conn:
        assert conn.execute("SELECT inet_server_addr()").fetchone() == (None,)
    with connection.cursor() as cursor:
        cursor.execute("SELECT inet_server_addr(), current_setting('statement_timeout')")
        assert cursor.fetchone() == (None, "2s")
    connection.close()
    assert endpoint_of("default", {"HOST": "", "OPTIONS": {}}).port == 5432
    monkeypatch.setenv("PGPORT", "5433")
    assert endpoint_of("default", {"HOST": "", "OPTIONS": {}}).port == 5433
    assert endpoint_of("default", {"HOST": "", "PORT": "6432"}).port == 6432


URL = (
    "postgres://app.branch:se%7Ccret@h.example:6432/shop?ps_pooled={flag}&ps_consistency={level}&ps_connect_timeout=7s"
    "&ps_statement_timeout=2&ps_weight=2&ps_retry_timeout=0&ps_role=primary&sslmode=require"
)


@pytest.mark.parametrize(
    ("flag", "meant"), [("false", False), ("False", False), ("0", False), ("off", False), ("true", True), ("1", True)]
)
@pytest.mark.parametrize("package", ["dj_database_url", "environ"])
def test_urls_of_packages(package: str, flag: str, meant: bool) -> None:
    """What dj-database-url and django-environ make of a URL means what the URL says."""
    import dj_database_url
    import environ

    from ps_django.config import policy_of, state_of_alias

    url = URL.format(flag=flag, level="monotonic" if meant else "none")
    entry: Any
    if package == "environ":
        entry = environ.Env.db_url_config(url, engine="ps_django.backend")
    else:
        entry = dj_database_url.parse(url, engine="ps_django.backend")
    endpoint, state = endpoint_of("default", entry), state_of_alias("default", entry, {"default": entry})
    assert (endpoint.pooled, state.tracks) == (meant, meant)
    assert (endpoint.user, endpoint.password, endpoint.port, endpoint.weight) == ("app.branch", "se|cret", 6432, 2.0)
    assert (endpoint.timeouts.connect, endpoint.timeouts.statement) == (7, 2)
    assert policy_of("default", entry, {"default": entry}).attempts == 0
    assert dict(endpoint.params) == {"sslmode": "require"}


def test_flags_that_are_none() -> None:
    """A word that is no yes or no is refused, with where it stands."""
    with pytest.raises(ps_django.ConfigurationError, match=r"DATABASES\['default'\]: ps_pooled: 'perhaps' is no yes or no"):
        endpoint_of("default", {"HOST": "h", "OPTIONS": {"ps_pooled": "perhaps"}})


def test_signals_of_packages(default: Any) -> None:
    """`pre_save` that a package sends by hand, without what it does not need, is no error."""
    from django_shop.shop.models import Product

    pre_save.send(sender=Product, instance=Product(name="cup"), using="default")
    pre_save.send(sender=Product, instance=Product(name="cup"))


def test_forked(default: Any) -> None:
    """A process that is forked in the block uses neither of the connections."""
    with ps_django.on_direct_path():
        assert path_of(default) == "direct"
        pid = os.fork()
        if pid == 0:
            os._exit(0 if default.connection is None and default._ps_kept is None else 1)
        assert os.waitpid(pid, 0)[1] == 0
    assert path_of(default) == "default"
