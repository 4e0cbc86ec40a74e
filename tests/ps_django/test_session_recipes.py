"""Recipes that set something for the session in Django, as they are found in the wild, while other clients look on.

Each gives what a session of its own gives: in autocommit, in transactions, after a rollback, on the replica.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from django.db import OperationalError, connection, connections, transaction
from django.db.backends.postgresql.base import DatabaseWrapper as Stock
from django.db.backends.signals import connection_created
from django.db.models.expressions import RawSQL
from django.db.utils import DataError, ProgrammingError
from django.test import override_settings

import ps_django
from ps_django.backend.base import DatabaseWrapper
from ps_lab import Lab
from tests.strangers import strangers

ALIASES = ("default", "replica")
SEEN = (
    "SELECT current_setting('search_path'), nullif(current_setting('app.tenant', true), ''), current_user::text,"
    " (SELECT count(*) FROM rls_order)"
)


@pytest.fixture(scope="module", autouse=True)
def orders(ps_lab: Lab, site: None) -> Iterator[None]:
    """A table of two tenants with row-level security, in two schemas, and roles that may read it."""
    for role in ("rls_reader", "authenticated"):
        ps_lab.sql(f"CREATE ROLE {role} NOLOGIN")
        ps_lab.sql(f"GRANT {role} TO app WITH INHERIT FALSE")  # else its policies would be app's
    ps_lab.sql("CREATE SCHEMA datamart")
    for schema in ("public", "datamart"):
        table = f"{schema}.rls_order"
        for sql in (
            f"CREATE TABLE {table} (id int PRIMARY KEY, tenant int, sub text)",
            f"INSERT INTO {table} VALUES (1, 7, 'ann'), (2, 7, 'ben'), (3, 8, 'cy')",
            f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY",
            f"CREATE POLICY own ON {table} TO app USING (tenant = nullif(current_setting('app.tenant', true), '')::int)",
            f"CREATE POLICY reader ON {table} TO rls_reader USING (true)",
            f"CREATE POLICY claims ON {table} TO authenticated USING"
            " (sub = nullif(current_setting('request.jwt.claims', true), '')::json->>'sub')",
            f"GRANT USAGE ON SCHEMA {schema} TO app, rls_reader, authenticated",
            f"GRANT SELECT ON {table} TO app, rls_reader, authenticated",
        ):
            ps_lab.sql(sql)
    ps_lab.wait_replicas_caught_up()
    yield
    for alias in ALIASES:
        connections[alias].close()
    ps_lab.sql("DROP TABLE public.rls_order")
    ps_lab.sql("DROP SCHEMA datamart CASCADE")
    ps_lab.sql("DROP OWNED BY rls_reader, authenticated")
    ps_lab.sql("DROP ROLE rls_reader, authenticated")


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Begin and end without connections, which keep what they were told."""
    for alias in ALIASES:
        connections[alias].close()
    yield
    for alias in ALIASES:
        connections[alias].close()


@contextmanager
def handler(receiver: Callable[..., Any]) -> Iterator[None]:
    """Let `connection_created` call this one."""
    connection_created.connect(receiver)
    try:
        yield
    finally:
        connection_created.disconnect(receiver)


def ask(alias: str, sql: str = SEEN, params: Any = None) -> tuple[Any, ...]:
    """Return the first row; nothing where there is none."""
    with connections[alias].cursor() as cursor:
        cursor.execute(sql, params)
        return tuple(cursor.fetchone() or ()) if cursor.description else ()


def observed(alias: str) -> list[tuple[Any, ...]]:
    """Return what statements see in autocommit, in a transaction and a nested one, after an error, and after a new connection."""
    found = [ask(alias), ask(alias)]
    with transaction.atomic(using=alias):
        found.append(ask(alias))
        with transaction.atomic(using=alias):
            found.append(ask(alias))
    with pytest.raises(DataError), transaction.atomic(using=alias):
        ask(alias, "SELECT 1/0")
    found.append(ask(alias))
    connections[alias].close()
    found.append(ask(alias))
    return found


def path_of_project(sender: Any, connection: Any, **kwargs: Any) -> None:
    """A handler as most are."""
    with connection.cursor() as cursor:
        cursor.execute("SET search_path TO datamart, public")


def path_with_semicolon(sender: Any, connection: Any, **kwargs: Any) -> None:
    """With a semicolon, and the cursor left open."""
    cursor = connection.cursor()
    cursor.execute("SET search_path TO datamart;")


def tenant_by_config(sender: Any, connection: Any, **kwargs: Any) -> None:
    """A setting of the application's own, with a parameter."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT set_config('app.tenant', %s, false)", ["7"])


def tenant_by_set(sender: Any, connection: Any, **kwargs: Any) -> None:
    """The same by SET, whose value Django writes into the text."""
    with connection.cursor() as cursor:
        cursor.execute("SET app.tenant = %s", ["8"])


def role(sender: Any, connection: Any, **kwargs: Any) -> None:
    """A role, as `assume_role` sets it on stock."""
    with connection.cursor() as cursor:
        cursor.execute("SET ROLE rls_reader")


def many(sender: Any, connection: Any, **kwargs: Any) -> None:
    """Several, in statements of their own."""
    with connection.cursor() as cursor:
        cursor.execute("SET SESSION search_path = datamart")
        cursor.execute("SET SESSION app.tenant = '7'")
        cursor.execute("SET lock_timeout TO '4s'")


@pytest.mark.parametrize("alias", ALIASES)
@pytest.mark.parametrize(
    ("receiver", "expected"),
    [
        (path_of_project, ("datamart, public", None, "app", 0)),
        (path_with_semicolon, ("datamart", None, "app", 0)),
        (tenant_by_config, ('"$user", public', "7", "app", 2)),
        (tenant_by_set, ('"$user", public', "8", "app", 1)),
        (role, ('"$user", public', None, "rls_reader", 3)),
        (many, ("datamart", "7", "app", 2)),
    ],
)
def test_connection_created(ps_lab: Lab, alias: str, receiver: Callable[..., Any], expected: tuple[Any, ...]) -> None:
    """What a handler sets holds for the connection that it was called for, on primary and replica."""
    with strangers(ps_lab, "app.tenant", "lock_timeout"), handler(receiver):
        assert observed(alias) == [expected] * 6


@pytest.mark.parametrize("alias", ALIASES)
def test_connection_made_anew(ps_lab: Lab, alias: str) -> None:
    """A lost connection that is made anew is the same for its handlers: what they did holds, and they are not called again."""
    called: list[str] = []

    class Shouting(psycopg.adapt.Loader):
        def load(self, data: Any) -> str:
            return bytes(data).decode().upper()

    def prepare(sender: Any, connection: Any, **kwargs: Any) -> None:
        called.append(connection.alias)
        connection.connection.adapters.register_loader("text", Shouting)
        ask(connection.alias, "SET app.tenant = '7'")

    with handler(prepare):
        for _ in range(2):
            assert ask(alias, "SELECT current_setting('app.tenant'), 'loud'::text") == ("7", "LOUD")
            ps_lab.edge.cut()
        ask(alias, "SET app.tenant = '8'")
        ps_lab.edge.cut()
        with transaction.atomic(using=alias):
            assert ask(alias, "SELECT current_setting('app.tenant'), 'loud'::text") == ("8", "LOUD")
        assert called == [alias]
        connections[alias].close()
        assert ask(alias, "SELECT current_setting('app.tenant')") == ("7",)
        assert called == [alias] * 2


def test_session_that_was_lost(ps_lab: Lab) -> None:
    """On the direct path a session that a handler has changed is lost with its connection, as on stock; the next has its own."""
    called: list[str] = []

    def prepare(sender: Any, connection: Any, **kwargs: Any) -> None:
        called.append(connection.alias)
        ask(connection.alias, "SET app.tenant = '7'")

    connections["direct"].close()  # another file's, which has no such handler
    with handler(prepare):
        assert ask("direct", "SELECT current_setting('app.tenant')") == ("7",)
        ps_lab.edge.cut()
        with pytest.raises(OperationalError):
            ask("direct", "SELECT 1")
        connections["direct"].close_if_unusable_or_obsolete()
        assert ask("direct", "SELECT current_setting('app.tenant')") == ("7",)
    assert called == ["direct"] * 2
    connections["direct"].close()


def test_direct_path(ps_lab: Lab) -> None:
    """The handler is called for the connection on the direct path, too; back from there, the pooled one has what it had."""
    with strangers(ps_lab, "app.tenant"), handler(many):
        assert ask("default") == ("datamart", "7", "app", 2)
        with ps_django.on_direct_path():
            assert ask("default") == ("datamart", "7", "app", 2)
        assert ask("default") == ("datamart", "7", "app", 2)


def test_set_before_the_direct_path(ps_lab: Lab) -> None:
    """What a connection was told holds on the direct path: a schema editor would work in another schema, as another role."""
    with strangers(ps_lab, "app.tenant"):
        for sql in ("SET search_path = datamart", "SET app.tenant = '7'", "SET ROLE rls_reader"):
            ask("default", sql)
        with ps_django.on_direct_path():
            assert ask("default") == ("datamart", "7", "rls_reader", 3)
        with connection.schema_editor():
            assert ask("default") == ("datamart", "7", "rls_reader", 3)
        assert ask("default") == ("datamart", "7", "rls_reader", 3)


def routed(primary: str = "default") -> tuple[bool, Any]:
    """Return whether a read of the ORM went to the replica, and the tenant that it saw there."""
    from django_shop.shop.models import Product

    read = Product.objects.annotate(
        replica=RawSQL("pg_is_in_recovery()", ()), tenant=RawSQL("nullif(current_setting('app.tenant', true), '')", ())
    )
    with ps_django.reading():
        found: tuple[bool, Any] | None = read.values_list("replica", "tenant").first()
    assert found is not None
    return found


@pytest.fixture
def product() -> Iterator[None]:
    """A row to read."""
    from django_shop.shop.models import Product

    one = Product.objects.create(name="recipe", price="1", stock=1)
    yield
    one.delete()


def test_middleware(ps_lab: Lab, product: None) -> None:
    """A middleware sets the tenant of each request on `connection`: reads for the replica are answered in it, on the primary."""
    ps_lab.wait_replicas_caught_up()
    with strangers(ps_lab, "app.tenant"):
        for tenant in ("7", "8", "7"):
            with connection.cursor() as cursor:
                cursor.execute("SELECT set_config('app.tenant', %s, false)", [tenant])
            assert routed() == (False, tenant)
            assert ask("default")[1] == tenant
        with connection.cursor() as cursor:
            cursor.execute("RESET app.tenant")
        assert routed() == (True, None)
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SET app.tenant = '9'")
            transaction.set_rollback(True)
        assert routed() == (True, None)


def test_both_aliases(ps_lab: Lab, product: None) -> None:
    """django-rls-tenants and its kin set all aliases, and a handler those that are made later."""
    ps_lab.wait_replicas_caught_up()
    now = "7"

    def on_new_connections(sender: Any, connection: Any, **kwargs: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT set_config('app.tenant', %s, false)", [now])

    with strangers(ps_lab, "app.tenant"), handler(on_new_connections):
        for alias in ALIASES:
            connections[alias].close()
        assert ask("default")[1] == "7"
        assert routed() == (True, "7")
        for now in ("8", "9"):
            for alias in ALIASES:
                ask(alias, "SELECT set_config('app.tenant', %s, false)", [now])
            assert routed() == (True, now)
            assert ask("default")[1] == now
        ask("default", "SET app.tenant = '10'")  # alone: what was asked of the primary is answered there
        assert routed() == (False, "10")
        connections["replica"].close()  # on the new one, the handler sets something else
        assert routed() == (False, "10")
        ask("replica", "SET app.tenant = '11' /* for this alias alone */")
        assert routed() == (True, "11")
        assert ask("default")[1] == "10"
        with connections["replica"].cursor() as cursor:  # one cursor finds its way to and fro
            sees = "SELECT pg_is_in_recovery(), current_setting('app.tenant')"
            for statement, found in (("RESET app.tenant", (False, "10")), ("SET app.tenant = '12'", (True, "12"))):
                cursor.execute(statement)
                cursor.execute(sees)
                assert cursor.fetchone() == found


@pytest.mark.parametrize("alias", ALIASES)
def test_supabase(ps_lab: Lab, alias: str) -> None:
    """Supabase's and PostgREST's way, by transaction: role and claims, in one statement or several, and nothing after it."""
    claims = {name: json.dumps({"sub": name, "role": "authenticated"}) for name in ("ann", "cy")}
    rows = "SELECT current_user::text, string_agg(sub, ',' ORDER BY sub) FROM rls_order"
    with strangers(ps_lab, "request.jwt.claims", "role"):
        for name, claim in claims.items():
            with transaction.atomic(using=alias):
                ask(alias, "SELECT set_config('request.jwt.claims', %s, true)", [claim])
                ask(alias, "SELECT set_config('role', 'authenticated', true)")
                assert ask(alias, rows) == ("authenticated", name)
            assert ask(alias, rows) == ("app", None)
            with transaction.atomic(using=alias):
                ask(
                    alias,
                    "select set_config('search_path', 'datamart, public', true), set_config('role', 'authenticated', true),"
                    " set_config('request.jwt.claims', %s, true), set_config('request.method', 'GET', true)",
                    [claim],
                )
                assert ask(alias, rows) == ("authenticated", name)
                assert ask(alias, "SELECT current_setting('search_path')") == ("datamart, public",)
            with transaction.atomic(using=alias), connections[alias].cursor() as cursor:
                cursor.execute("SELECT set_config('request.jwt.claims', %s, true)", [claim])
                cursor.execute("SET LOCAL ROLE authenticated")
                cursor.execute(rows)
                assert cursor.fetchone() == ("authenticated", name)
            assert ask(alias, rows) == ("app", None)
            # In autocommit it holds for its own statement, as everywhere.
            assert ask(alias, "SELECT set_config('role', 'authenticated', true)") == ("authenticated",)
            assert ask(alias, rows) == ("app", None)


def test_role_for_a_while(ps_lab: Lab) -> None:
    """A block that takes a role and gives it back, also where it failed within a transaction."""

    @contextmanager
    def as_role(name: str) -> Iterator[None]:
        with connection.cursor() as cursor:
            cursor.execute(f"SET ROLE {name}")
            try:
                yield
            finally:
                cursor.execute("RESET ROLE")

    with strangers(ps_lab, "role"):
        with as_role("rls_reader"):
            assert ask("default")[2:] == ("rls_reader", 3)
            with transaction.atomic():
                assert ask("default")[2:] == ("rls_reader", 3)
            with pytest.raises(ProgrammingError, match="permission denied"), transaction.atomic():
                ask("default", "DELETE FROM rls_order RETURNING id")
            assert ask("default")[2:] == ("rls_reader", 3)
        assert ask("default")[2:] == ("app", 0)


def test_timeout_of_a_report(ps_lab: Lab, product: None) -> None:
    """A session's own timeout replaces ours until it is reset, and `set_config(..., NULL, false)` is a reset."""
    shown = "SELECT current_setting('statement_timeout'), current_setting('transaction_timeout')"
    with strangers(ps_lab, "statement_timeout"):
        assert ask("default", shown) == ("2s", "3s")
        with connection.cursor() as cursor:
            cursor.execute("SET statement_timeout = '60s'")
        # Not below the transaction's, which would disable it: as with `limits(statement="60s")`.
        assert ask("default", shown) == ("1min", "0")
        assert ask("replica", shown) == ("1min", "0")  # the primary answers
        with ps_django.limits(statement="5s"):
            assert ask("default", shown) == ("5s", "0")
        ask("default", "SELECT set_config('statement_timeout', NULL, false)")
        assert ask("default", shown) == ask("replica", shown) == ("2s", "3s")


@pytest.mark.parametrize("use_tz", [True, False])
@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/New_York"])
def test_time_zones(ps_lab: Lab, use_tz: bool, zone: str) -> None:
    """Times are those of stock on the direct path: in autocommit, in transactions, on the replica, after a lost connection."""
    sees = "SELECT timestamptz '2026-07-01 12:00+00', timestamp '2026-07-01 12:00', current_setting('TimeZone')"

    def seen(wrapper: Any) -> list[Any]:
        found = []
        for lost in (False, True):
            if lost and not isinstance(wrapper, Stock):
                ps_lab.edge.cut()
            with wrapper.cursor() as cursor:
                cursor.execute(sees)
                found.append(cursor.fetchone())
            if lost:
                continue
            wrapper.set_autocommit(False)
            with wrapper.cursor() as cursor:
                cursor.execute("SET TIME ZONE 'Europe/Berlin'")
                cursor.execute(sees)
                found.append(cursor.fetchone())
            wrapper.rollback()
            wrapper.set_autocommit(True)
            with wrapper.cursor() as cursor:
                cursor.execute(sees)
                found.append(cursor.fetchone())
        wrapper.close()
        return found

    entries = ps_django.databases(ps_lab.url, bouncer="write-pool", replica_bouncer="read-pool")
    usual = connections["default"].settings_dict
    own = {"TIME_ZONE": zone if use_tz else None}
    with override_settings(USE_TZ=use_tz, TIME_ZONE=zone):
        direct = {name: value for name, value in entries["direct"]["OPTIONS"].items() if not name.startswith("ps_")}
        wanted = seen(Stock({**usual, **entries["direct"], **own, "OPTIONS": direct}, "stock"))
        for alias in ("default", "replica"):
            assert seen(DatabaseWrapper({**usual, **entries[alias], **own, "TEST": usual["TEST"]}, alias)) == wanted
    assert len({row[2] for row in wanted}) == 2
