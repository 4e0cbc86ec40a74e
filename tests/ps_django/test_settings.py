"""What Django has settings for, on our backend: pools, persistent connections, binding, roles, isolation, time zones, cursors."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import psycopg
import pytest
from django.db import DatabaseError, InternalError, NotSupportedError, OperationalError, connections, transaction
from django.db.backends.postgresql import base as stock
from django.db.models import Func, Value
from django.test.utils import CaptureQueriesContext

import ps_django
from ps_core import Connection, use_token
from ps_core.errors import ConfigurationError, DeadlineExceeded
from ps_django.config import policy_of, replicas_of_alias, state_of_alias
from ps_django.transaction import run_transaction
from ps_lab import Lab


@contextmanager
def another(alias: str, **changes: Any) -> Iterator[Any]:
    """A connection like the alias's, with other settings."""
    connection: Any = connections[alias].copy(alias)
    options = {**connection.settings_dict["OPTIONS"], **changes.pop("OPTIONS", {})}
    connection.settings_dict = {**connection.settings_dict, **changes, "OPTIONS": options}
    try:
        yield connection
    finally:
        connection.close()


def ask(connection: Any, query: str, params: Any = None) -> Any:
    """Return the first row."""
    with connection.cursor() as cursor:
        cursor.execute(query, params)
        return cursor.fetchone()


@pytest.mark.parametrize("alias", ["default", "replica"])
def test_pool(ps_lab: Lab, alias: str) -> None:
    """`OPTIONS["pool"]` is Django's pool (psycopg_pool) of our connections: timeouts hold, losses are healed, it is closed."""
    pytest.importorskip("psycopg_pool")
    with another(alias, CONN_MAX_AGE=0, OPTIONS={"pool": {"min_size": 1, "max_size": 1}}) as connection:
        pools: dict[str, Any] = {}
        connection._connection_pools = pools
        try:
            assert ask(connection, "SELECT current_setting('statement_timeout'), pg_is_in_recovery()") == (
                "2s",
                alias == "replica",
            )
            assert isinstance(connection.connection, Connection)
            first = connection.connection
            connection.close()
            assert connection.connection is None
            ps_lab.edge.cut()
            assert ask(connection, "SELECT current_setting('statement_timeout')") == ("2s",)
            assert connection.connection is first  # it healed in the pool
        finally:
            connection.close()
            for pool in pools.values():
                pool.close()


def test_pool_and_deadline(ps_lab: Lab) -> None:
    """The wait for a connection of the pool ends with the deadline, or, where that is first, with the pool's own timeout."""
    pytest.importorskip("psycopg_pool")
    pool = {"min_size": 1, "max_size": 1, "timeout": 60}
    with another("default", OPTIONS={"pool": pool}) as holder, another("default", OPTIONS={"pool": pool}) as other:
        pools: dict[str, Any] = {}
        holder._connection_pools = other._connection_pools = pools
        try:
            assert ask(holder, "SELECT 1") == (1,)
            with pytest.raises(DeadlineExceeded), ps_django.deadline(0.3):
                ask(other, "SELECT 1")
            pools["default"].timeout = 0.3
            with pytest.raises(OperationalError, match="get a connection"), ps_django.deadline(60):
                ask(other, "SELECT 1")
            holder.close()
            with ps_django.deadline(60):
                assert ask(other, "SELECT 1") == (1,)
        finally:
            holder.close()
            other.close()
            for one in pools.values():
                one.close()


def test_fork_with_a_pool(ps_lab: Lab) -> None:
    """A forked child has a pool of its own, and leaves its parent's connections alone."""
    pytest.importorskip("psycopg_pool")
    original: Any = connections["default"]
    with another("default", OPTIONS={"pool": {"min_size": 1, "max_size": 1}}, CONN_MAX_AGE=0) as connection:
        connections["default"] = connection
        try:
            assert ask(connection, "SELECT 1") == (1,)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # threads that hold no lock of ours
                child = os.fork()
            if child == 0:  # pragma: no cover - in the child
                status = 1
                try:
                    inherited = connection.connection
                    (held,) = ask(connection, "SELECT current_setting('statement_timeout')")
                    status = 0 if inherited is None and held == "2s" else 2
                    connection.close()
                finally:
                    os._exit(status)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            assert ask(connection, "SELECT 1") == (1,)
        finally:
            connections["default"] = original
            connection.close_pool()


@pytest.mark.parametrize("age", [0, 60, None])
def test_persistent_connections(ps_lab: Lab, age: int | None) -> None:
    """CONN_MAX_AGE and CONN_HEALTH_CHECKS do what they do; a healthy connection is not dropped after an aborted transaction."""
    with another("default", CONN_MAX_AGE=age, CONN_HEALTH_CHECKS=True) as connection:
        ask(connection, "SELECT 1")
        first = connection.connection
        with pytest.raises(DatabaseError):
            ask(connection, "SELECT nothing")
        connection.close_if_unusable_or_obsolete()
        assert (connection.connection is None) is (age == 0)
        if age != 0:
            with ps_lab.round_trips() as trips:
                assert ask(connection, "SELECT 1") == (1,)
            assert connection.connection is first
            assert trips.count <= 2  # the health check is a query of Django's own
            ps_lab.edge.cut("primary")
            assert ask(connection, "SELECT 2") == (2,)


@pytest.mark.parametrize("alias", ["default", "replica", "direct"])
def test_lost_connection_heals(ps_lab: Lab, alias: str) -> None:
    """What a lost connection was set to by Django holds on the next one, on the direct path, too."""
    with another(alias, TIME_ZONE="Asia/Kathmandu") as connection:
        for _ in range(2):
            assert ask(connection, "SELECT current_setting('TimeZone')") == ("Asia/Kathmandu",)
            ps_lab.edge.cut()


def test_server_side_binding(ps_lab: Lab) -> None:
    """With server_side_binding the server binds the parameters, and the timeouts hold all the same."""
    with another("default", OPTIONS={"server_side_binding": True}) as connection:
        assert ask(connection, "SELECT current_setting('statement_timeout'), %s::int", [7]) == ("2s", 7)
        with transaction_on(connection):
            assert ask(connection, "SELECT current_setting('transaction_timeout'), %s::int", [8]) == ("3s", 8)
        with connection.cursor() as cursor:
            assert isinstance(cursor.cursor, psycopg.Cursor)
            assert not isinstance(cursor.cursor, psycopg.ClientCursor)


@pytest.mark.parametrize("kind", [stock.Cursor, stock.ServerBindingCursor])
def test_cursor_factory(ps_lab: Lab, kind: Any) -> None:
    """A cursor class of the project's own, derived from Django's, carries what ours does: timeouts, and another try."""
    executed: list[str] = []

    class Own(kind):  # type: ignore[misc]
        def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
            executed.append(query)
            return super().execute(query, *args, **kwargs)

    with another("default", TIME_ZONE="Asia/Tokyo", OPTIONS={"cursor_factory": Own}) as connection:
        for _ in range(2):
            assert ask(connection, "SELECT current_setting('statement_timeout'), %s::int", [7]) == ("2s", 7)
            ps_lab.edge.cut("primary")
        assert connection.connection.cursor_factory is Own
        with connection.cursor() as cursor:
            assert isinstance(cursor.cursor, Own)
    assert executed[-1].startswith("SELECT current_setting")


@contextmanager
def transaction_on(connection: Any) -> Iterator[None]:
    """An explicit transaction on a connection that has no alias of its own."""
    connection.ensure_connection()
    connection.set_autocommit(False)
    try:
        yield
        connection.commit()
    finally:
        connection.rollback()
        connection.set_autocommit(True)


def test_isolation_level() -> None:
    """OPTIONS["isolation_level"] holds in transactions, through the pooler."""
    with another("default", OPTIONS={"isolation_level": psycopg.IsolationLevel.SERIALIZABLE}) as connection:
        with transaction_on(connection):
            assert ask(connection, "SHOW transaction_isolation") == ("serializable",)


def test_assume_role(ps_lab: Lab) -> None:
    """OPTIONS["assume_role"] holds in each transaction, on both endpoints, and stays on no connection of the pooler's."""
    ps_lab.sql("CREATE ROLE assumed; GRANT assumed TO app")
    ps_lab.wait_replicas_caught_up()
    try:
        for alias in ("default", "replica", "direct"):
            with another(alias, OPTIONS={"assume_role": "assumed"}) as connection, another(alias) as stranger:
                for _ in range(3):
                    assert ask(connection, "SELECT current_user") == ("assumed",)
                    assert ask(stranger, "SELECT current_user") == ("app",)
    finally:
        ps_lab.sql("DROP ROLE assumed")


def test_time_zone(ps_lab: Lab) -> None:
    """TIME_ZONE holds on a connection, and on the one that replaces it."""
    with another("default", TIME_ZONE="Asia/Tokyo") as connection:
        for _ in range(2):
            assert ask(connection, "SHOW TimeZone") == ("Asia/Tokyo",)
            ps_lab.edge.cut("primary")


@pytest.mark.parametrize(("alias", "named"), [("default", False), ("replica", False), ("direct", True)])
def test_iterator(ps_lab: Lab, alias: str, named: bool) -> None:
    """QuerySet.iterator() works on pooled endpoints, where it has no server-side cursor, and on the direct one, where it has."""
    from django_shop.shop.models import Product

    Product.objects.bulk_create([Product(name=f"n{n}", price=1, stock=1) for n in range(30)])
    ps_lab.wait_replicas_caught_up()
    with use_token(None), CaptureQueriesContext(connections[alias]):
        assert sum(1 for _ in Product.objects.using(alias).filter(name__startswith="n").iterator(chunk_size=7)) == 30
        with connections[alias].chunked_cursor() as cursor:
            assert bool(getattr(cursor.cursor, "name", None)) is named
    Product.objects.all().delete()


def test_callproc(ps_lab: Lab) -> None:
    """`callproc` calls a function."""
    with connections["default"].cursor() as cursor:
        cursor.callproc("upper", ["a"])
        assert cursor.fetchone() == ("A",)


def test_only_the_users_statements_are_counted(ps_lab: Lab) -> None:
    """CaptureQueriesContext counts what the application asked, not what travels with it; wrappers see a fallback once."""
    from django_shop.shop.models import Product

    ps_lab.sql(
        "CREATE OR REPLACE FUNCTION counted() RETURNS int LANGUAGE sql AS 'DELETE FROM shop_product WHERE id < 0; SELECT 1'"
    )
    ps_lab.wait_replicas_caught_up()
    seen = []

    def wrapper(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        seen.append(sql)
        return execute(sql, params, many, context)

    with CaptureQueriesContext(connections["default"]) as queries:
        Product.objects.create(name="a", price=1, stock=1)
        Product.objects.count()
    assert len(queries) == 2
    with CaptureQueriesContext(connections["replica"]) as queries, connections["replica"].execute_wrapper(wrapper):
        assert ask(connections["replica"], "SELECT counted()") == (1,)
    assert (len(queries), seen) == (1, ["SELECT counted()"])
    assert queries.captured_queries[0]["endpoint"] == "default"
    Product.objects.all().delete()
    ps_lab.sql("DROP FUNCTION counted()")


def test_queries_of_a_lone_entry(ps_lab: Lab) -> None:
    """Where no other endpoint could answer, `connection.queries` has the two keys that Django documents."""
    with another("default") as connection, CaptureQueriesContext(connection) as queries:
        del connection.settings_dict["OPTIONS"]["ps_direct"]
        assert ask(connection, "SELECT 1") == (1,)
    assert list(queries.captured_queries[0]) == ["sql", "time"]


def test_transactions_behave(ps_lab: Lab) -> None:
    """Savepoints, durable blocks, on_commit and set_autocommit do what Django's documentation says."""
    from django_shop.shop.models import Product

    done = []
    with transaction.atomic():
        Product.objects.create(name="kept", price=1, stock=1)
        transaction.on_commit(lambda: done.append("commit"))
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            Product.objects.create(name="lost", price=1, stock=1)
            raise ZeroDivisionError
        with pytest.raises(RuntimeError, match="durable"), transaction.atomic(durable=True):
            pass
        assert done == []
    assert done == ["commit"]
    transaction.set_autocommit(False)
    try:
        Product.objects.create(name="lost", price=1, stock=1)
        transaction.rollback()
    finally:
        transaction.set_autocommit(True)
    assert [product.name for product in Product.objects.all()] == ["kept"]
    Product.objects.all().delete()


def test_lost_inside_atomic(ps_lab: Lab) -> None:
    """A connection that is lost inside atomic() is an error there, and nothing goes on silently; after the block all is well."""
    from django_shop.shop.models import Product

    with pytest.raises((OperationalError, InternalError)), transaction.atomic():
        Product.objects.create(name="one", price=1, stock=1)
        ps_lab.edge.cut("primary")
        Product.objects.create(name="two", price=1, stock=1)
    assert Product.objects.count() == 0
    with transaction.atomic():
        Product.objects.create(name="three", price=1, stock=1)
    assert Product.objects.count() == 1
    Product.objects.all().delete()


def test_run_transaction_as_a_decorator(ps_lab: Lab) -> None:
    """The decorator runs the whole function again, and its on_commit hooks once; inside atomic it refuses."""
    from django_shop.shop.models import Product

    calls, hooks = [], []

    @run_transaction(using="default")
    def work(name: str) -> int:
        calls.append(1)
        product = Product.objects.create(name=name, price=1, stock=1)
        transaction.on_commit(lambda: hooks.append(1))
        if len(calls) == 1:
            ps_lab.edge.cut("primary")
        Product.objects.count()
        return int(product.pk)

    assert Product.objects.get(pk=work("cup")).name == "cup"
    assert (len(calls), len(hooks), Product.objects.count()) == (2, 1, 1)
    with transaction.atomic(), pytest.raises(RuntimeError, match="inside atomic"):
        work("pot")
    Product.objects.all().delete()


def test_limits_and_local_settings() -> None:
    """`limits()` for commands and tasks, `local_settings()` for tenants."""
    query = "SELECT current_setting('statement_timeout'), current_setting('app.tenant', true)"
    for alias in ("default", "replica"):
        with ps_django.limits(statement="60s"), ps_django.local_settings({"app.tenant": "7"}):
            assert ask(connections[alias], query) == ("1min", "7")
        assert ask(connections[alias], query) in (("2s", ""), ("2s", None))


def test_marker_schema() -> None:
    """`databases(marker_schema=...)`, and `ps_marker_schema` in an entry's OPTIONS, name the schema of the marker's table."""
    url = "postgresql://app.br4nch:secret@x.psdb.cloud/shop"
    plain = ps_django.databases(url)
    assert "ps_marker_schema" not in plain["default"]["OPTIONS"]
    assert state_of_alias("default", plain["default"], plain).endpoint.marker_schema == "public"
    for entries in (ps_django.databases(url, marker_schema="own"), ps_django.databases(url + "?ps_marker_schema=own")):
        assert {state_of_alias(alias, entry, entries).endpoint.marker_schema for alias, entry in entries.items()} == {"own"}
    entries["default"]["OPTIONS"]["ps_marker_schema"] = ""
    with pytest.raises(ConfigurationError, match="no schema's name"):
        state_of_alias("default", entries["default"], entries)


def test_what_a_session_would_keep() -> None:
    """It is refused as Django's NotSupportedError, also in a query; the direct alias has sessions, and it can be allowed."""
    from django_shop.shop.models import Product

    lock = "SELECT pg_advisory_lock(1020), pg_advisory_unlock(1020)"
    dropped = "CREATE TEMP TABLE taken_along ON COMMIT DROP AS SELECT 7 AS a"
    locked = Product.objects.annotate(locked=Func(Value(1020), function="pg_advisory_lock")).values_list("locked")
    refused = "^'{}' is behind a transaction pooler, where {} would stay with a server connection that other clients get: "
    for query, what in (
        (lock, "a session advisory lock"),
        ("LISTEN told", "what LISTEN asks for"),
        ("CREATE TEMP TABLE kept (a int)", "a temporary object"),
        ("PREPARE one AS SELECT 1", "a prepared statement"),
    ):
        for run in (transaction.atomic, nullcontext):
            with pytest.raises(NotSupportedError, match=refused.format("default", what)), run():
                ask(connections["default"], query)
    with pytest.raises(NotSupportedError, match=refused.format("default", "a session advisory lock")) as caught:
        list(locked.using("default"))
    assert type(caught.value.__cause__) is psycopg.NotSupportedError
    assert 'use the direct endpoint (to="direct", engine.direct, Django\'s alias "direct")' in str(caught.value)
    with transaction.atomic():
        connections["default"].cursor().execute(dropped)
        assert ask(connections["default"], "SELECT a FROM taken_along") == (7,)
    assert ask(connections["direct"], lock)[1] is True
    with another("default", OPTIONS={"ps_session_state": "allow"}) as connection:
        assert ask(connection, lock)[1] is True
    with ps_django.on_direct_path():
        assert ask(connections["default"], lock)[1] is True


def test_retry_timeout() -> None:
    """`databases(retry_timeout=...)`, and `ps_retry_timeout` in an entry's OPTIONS, bound the retries of its connections."""
    url = "postgresql://app.br4nch:secret@x.psdb.cloud/shop"
    assert "ps_retry_timeout" not in ps_django.databases(url)["default"]["OPTIONS"]
    entries = ps_django.databases(url, replica_bouncer="read-pool", retry_timeout="5s")
    states = {alias: state_of_alias(alias, entry, entries) for alias, entry in entries.items()}
    policies = {alias: policy_of(alias, entry, entries).max_elapsed for alias, entry in entries.items()}
    assert policies == {"default": 5, "replica": 5, "direct": 5}
    replicas = replicas_of_alias("default", entries)
    assert replicas is not None
    assert replicas.states == (states["replica"],)
    entries["default"]["OPTIONS"]["ps_retry_timeout"] = "700ms"
    assert policy_of("replica", entries["replica"], entries).max_elapsed == 0.7


def test_misspelled_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """`databases()` refuses a misspelled keyword, and a misspelled variable of the mapping or the process's environment."""
    url = "postgresql://app.branch:secret@host.psdb.cloud"
    settings: Any = {"replica_bouncers": "read-pool"}
    variables = {"PS_URL": url, "PS_REPLICA_BOUNCERS": "read-pool"}
    with pytest.raises(ConfigurationError, match=r"(?m)^there is no setting replica_bouncers: did you mean replica_bouncer\?$"):
        ps_django.databases(url, **settings)
    with pytest.raises(
        ConfigurationError, match=r"(?m)^there is no variable PS_REPLICA_BOUNCERS: did you mean PS_REPLICA_BOUNCER\?$"
    ):
        ps_django.databases(variables)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=r"(?m)did you mean PS_REPLICA_BOUNCER\?$"):
        ps_django.databases()
