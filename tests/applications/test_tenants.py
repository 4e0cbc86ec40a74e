"""django-tenants behind the bouncers, with replicas: schemas are made and migrated, and no read sees another tenant's."""

import json
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

import ps_core
from docs.examples.django_shop import run
from ps_core.topology import Topology
from ps_lab import Lab
from tests.applications import tenancy
from tests.ps_django.projects import result, start, write

DATABASE = "tenants"
TENANTS = [f"tenant{number}" for number in range(6)]

READS = """
from tools import *
READS, THREADS = 2_000, 6
tenants = list(Customer.objects.exclude(schema_name="public").order_by("schema_name"))
replicas = "replica" in connections.settings

def read(tenant, way):
    with tenant_context(tenant):
        if way == 0:  # autocommit, where the router says
            return texts()
        if way == 1:  # in a transaction on the primary
            with transaction.atomic():
                return texts()
        if not replicas:
            return [note.text for note in Note.objects.iterator()]
        with transaction.atomic(using="replica"):
            return texts(Note.objects.using("replica"))

def reads(which):
    found = {"wrong": 0, "failed": 0, "on replicas": 0}
    for number in range(which, READS, THREADS):
        tenant, way = tenants[(which + number // THREADS) % len(tenants)], number // THREADS % 3
        try:
            found["wrong"] += read(tenant, way) != [tenant.schema_name]
        except django.db.Error:
            found["failed"] += 1
            connection.close()
        found["on replicas"] += replicas and way == 0 and Note.objects.db == "replica"
    connections.close_all()
    return found

with ThreadPoolExecutor(THREADS) as pool:
    found = list(pool.map(reads, range(THREADS)))
tell(**{name: sum(one[name] for one in found) for name in found[0]})
"""


@pytest.fixture(scope="module")
def project(ps_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str]]]:
    """The project, its shared applications migrated, with six tenants that have one note each, their schema's name."""
    folder = write(tmp_path_factory.mktemp("tenancy"), tenancy.files())
    with run.database(ps_lab, DATABASE) as urls:
        env = dict(urls)
        result(start(folder, "manage.py", "migrate_schemas", "--shared", "--verbosity", "0", **env))
        make = f"""
        from tools import *
        for name in {TENANTS}:
            tenant = Customer(schema_name=name, name=name)
            tenant.save(verbosity=0)
            tenant.domains.create(domain=name + ".example.org")
            with tenant_context(tenant):
                Note.objects.create(text=name)
        """
        result(start(folder, "-c", textwrap.dedent(make), **env))
        ps_lab.wait_replicas_caught_up()
        yield folder, env


def ran(project: tuple[Path, dict[str, str]], script: str, **environment: str) -> Any:
    """Return what a script told in the project."""
    folder, env = project
    return tenancy.told(result(start(folder, "-c", textwrap.dedent(script), **env, **environment))[0])


def tables(lab: Lab, name: str) -> list[str]:
    """Return the schemas that have a table of that name."""
    query = "SELECT schemaname FROM pg_catalog.pg_tables WHERE tablename = %s ORDER BY 1"
    return [schema for (schema,) in lab.sql(query, name, dbname=DATABASE)]


def strangers(lab: Lab) -> list[tuple[str, str]]:
    """Return the search path and the role of twenty new clients of both bouncers that set nothing."""
    topology = Topology.from_url(lab.url, bouncer="write-pool", replica_bouncer="read-pool")
    found = []
    for endpoint in (topology.primary, *topology.replicas):
        for _ in range(10):
            with psycopg.connect(**{**ps_core.conninfo(endpoint), "dbname": DATABASE}, autocommit=True) as client:
                found += client.execute("SELECT current_setting('search_path'), current_user::text").fetchall()
    return found


def test_schemas(ps_lab: Lab, project: tuple[Path, dict[str, str]]) -> None:
    """Each tenant has its tables, `public` those of the shared applications; a migration that comes later is in each schema."""
    folder, env = project
    assert tables(ps_lab, "notes_note") == TENANTS
    assert tables(ps_lab, "customers_customer") == ["public"]
    assert tables(ps_lab, "django_migrations") == ["public", *TENANTS]
    result(start(folder, "manage.py", "migrate_schemas", "--verbosity", "0", SECOND="1", **env))
    indexes = ps_lab.sql("SELECT schemaname FROM pg_indexes WHERE indexname = 'note_text' ORDER BY 1", dbname=DATABASE)
    assert [schema for (schema,) in indexes] == TENANTS
    for name in TENANTS:  # RunPython wrote into each schema once
        ((texts,),) = ps_lab.sql(f"DELETE FROM {name}.notes_note WHERE id > 1 RETURNING text", dbname=DATABASE)
        assert texts == name
    ps_lab.wait_replicas_caught_up()
    assert set(strangers(ps_lab)) == {('"$user", public', "app")}


@pytest.mark.parametrize("limit", [{}, {"LIMIT": "1"}], ids=["each-cursor", "once"])
def test_reads(ps_lab: Lab, project: tuple[Path, dict[str, str]], limit: dict[str, str]) -> None:
    """2,000 reads by six threads, autocommit and atomic, on the primary and on replicas: none is another tenant's."""
    found = ran(project, READS, **limit)
    assert found.pop("on replicas") > 600
    assert found == {"wrong": 0, "failed": 0}
    assert set(strangers(ps_lab)) == {('"$user", public', "app")}


@pytest.mark.parametrize("limit", [{}, {"LIMIT": "1"}], ids=["each-cursor", "once"])
def test_replica_follows(project: tuple[Path, dict[str, str]], limit: dict[str, str]) -> None:
    """A replica's alias is in its primary's tenant, whatever the primary's was before, and wherever it is asked."""
    script = """
    from tools import *
    found = {"first": where()}
    with schema_context("tenant1"):
        found["tenant"] = where(), connections["replica"].schema_name, texts(), Note.objects.db
        with schema_context("tenant2"):
            found["inner"] = where()[0], texts(Note.objects.using("replica"))
        found["after"] = where()[0]
        with schema_context("tenant2"):
            where("default")  # where the primary's connection is now, and not the replica's
        found["apart"] = where()[0]
        connections["default"].set_schema("tenant1", include_public=False)
        found["alone"] = where()[0]
    with Customer.objects.get(schema_name="tenant3"):
        with transaction.atomic(using="replica"):
            found["atomic"] = texts(Note.objects.using("replica"))
        found["iterator"] = [note.text for note in Note.objects.iterator(chunk_size=1)]
    found["last"] = where()[0]
    tell(**found)
    """
    assert ran(project, script, **limit) == {
        "first": ["public", True],
        "tenant": [["tenant1, public", True], "tenant1", ["tenant1"], "replica"],
        "inner": ["tenant2, public", ["tenant2"]],
        "after": "tenant1, public",
        "apart": "tenant1, public",
        "alone": "tenant1",
        "atomic": ["tenant3"],
        "iterator": ["tenant3"],
        "last": "public",
    }


def test_tenant_of_the_replica_alone(project: tuple[Path, dict[str, str]]) -> None:
    """A tenant that the replica's alias was given by itself is refused: a read could be meant for either."""
    script = """
    from tools import *
    found = {}
    def refused(name):
        try:
            where()
        except django.db.NotSupportedError as exc:
            found[name] = str(exc)
        else:
            found[name] = ""
    with schema_context("tenant1"):
        with schema_context("public", database="replica"):  # before anything was read there
            refused("public")
        refused("out of it")
        with schema_context("tenant2", database="replica"):
            refused("another")
        with schema_context("tenant1", database="replica"):
            refused("the same")
    connections["replica"].set_schema("tenant1", include_public=False)
    with schema_context("tenant1"):
        refused("without public")
        connections["replica"].set_tenant(connection.tenant)
        refused("the same tenant")
    refused("last")
    tell(**found)
    """
    message = (
        "'replica' was put into the schema {!r} by itself, and 'default' is in 'tenant1': a replica's alias is always in the"
        " tenant of its primary. Set the tenant of 'default' alone, as in tenant_context(tenant) without database="
    )
    assert ran(project, script) == {
        "public": message.format("public"),
        "out of it": "",
        "another": message.format("tenant2"),
        "the same": "",
        "without public": message.format("tenant1"),
        "the same tenant": "",
        "last": "",
    }


@pytest.mark.parametrize("limit", [{}, {"LIMIT": "1"}], ids=["each-cursor", "once"])
def test_other_connections(project: tuple[Path, dict[str, str]], limit: dict[str, str]) -> None:
    """On the direct path, back from it, after a rollback, a new connection and a fork, and where the primary stands in."""
    script = """
    import os
    from tools import *
    import ps_django
    found = {}
    with schema_context("tenant1"):
        found["own"] = where("default")[0]
        with ps_django.on_direct_path():
            found["direct"] = where("default")[0]
            with schema_context("tenant2"):
                found["another"] = where("default")[0]
        found["back"] = where("default")[0]
        with schema_context("tenant3"), ps_django.on_direct_path():
            found["third"] = where("default")[0]
        found["editor"] = []
        with connection.schema_editor() as editor:
            found["editor"].append(where("default")[0])
        found["editor"].append(where("default")[0])
        try:
            with transaction.atomic():
                with schema_context("tenant4"):
                    found["inside"] = texts(Note.objects.using("default"))
                    raise RuntimeError
        except RuntimeError:
            pass
        found["rolled back"] = where("default")[0]
        connection.close()
        found["anew"] = where("default")[0]
        texts(Note.objects.using("replica"))
        child = os.fork()
        if not child:
            os._exit([where("default")[0], where()[0]] != ["tenant1, public"] * 2)
        found["forked"] = os.waitpid(child, 0)[1]
    # What a replica refuses, the primary does, in the tenant's schema, in which its connection was not yet.
    connections["default"].cursor().execute("SELECT 1")
    with schema_context("tenant5"), connections["replica"].cursor() as cursor:
        cursor.execute("INSERT INTO notes_note (text) VALUES ('stood in') RETURNING text")
        cursor.execute("DELETE FROM notes_note WHERE text = 'stood in' RETURNING current_setting('search_path')")
        found["stood in"] = cursor.fetchall()
    tell(**found)
    """
    assert ran(project, script, **limit) == {
        "own": "tenant1, public",
        "direct": "tenant1, public",
        "another": "tenant2, public",
        "back": "tenant1, public",
        "third": "tenant3, public",
        "editor": ["tenant1, public"] * 2,
        "inside": ["tenant4"],
        "rolled back": "tenant1, public",
        "anew": "tenant1, public",
        "forked": 0,
        "stood in": [["tenant5, public"]],
    }


def test_failed_switch(ps_lab: Lab, project: tuple[Path, dict[str, str]]) -> None:
    """A SET search_path that is lost, which django-tenants swallows, leaves no connection that is in the tenant before."""
    folder, env = project
    script = """
    from tools import *
    with schema_context("tenant1"):
        found = [texts(Note.objects.using("default"))]
    print("read", flush=True), sys.stdin.readline()
    with schema_context("tenant2"):
        cursor = connection.cursor()  # sets the search path; its errors are not raised
        print("set", flush=True), sys.stdin.readline()
        try:
            cursor.execute("SELECT text FROM notes_note")
        except django.db.Error as exc:
            found.append(type(exc).__name__)
        else:
            found.append(cursor.fetchall())
        connection.close()
        found.append(texts(Note.objects.using("default")))
    tell(found=found)
    """
    with start(folder, "-c", textwrap.dedent(script), stdin=subprocess.PIPE, PS_RETRY_TIMEOUT="0", **env) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "read\n"
        with ps_lab.edge.refuse("57P03", "the database system is starting up"):
            ps_lab.edge.cut()
            print(file=process.stdin, flush=True)
            assert process.stdout.readline() == "set\n"
        out, err = process.communicate("\n", timeout=60)
    assert process.returncode == 0, err
    assert tenancy.told(out)["found"] == [["tenant1"], "OperationalError", ["tenant2"]]


def test_requests(ps_lab: Lab, project: tuple[Path, dict[str, str]]) -> None:
    """The middleware chooses the tenant by the host's name, and the page reads from the replica in its schema."""
    script = f"""
    from tools import *
    from django.test import Client
    tell(pages=[Client().get("/", headers={{"host": name + ".example.org"}}).json() for name in {TENANTS} * 3])
    """
    assert ran(project, script)["pages"] == [{"texts": [name], "from": "replica"} for name in TENANTS] * 3


def test_created_and_dropped(ps_lab: Lab, project: tuple[Path, dict[str, str]]) -> None:
    """A tenant of the running application: made in `public`, renamed schema and all, and dropped with its schema."""
    script = """
    from tools import *
    from django_tenants.utils import schema_exists, schema_rename
    tenant = Customer(schema_name="later", name="later")
    tenant.save(verbosity=0)
    with tenant_context(tenant):
        Note.objects.create(text="later")
    schema_rename(tenant, "renamed")
    with tenant_context(tenant):
        found = texts(Note.objects.using("default"))
    tenant.delete()
    tell(found=found, exists=schema_exists("renamed"), schema=connection.schema_name)
    """
    assert ran(project, script) == {"found": ["later"], "exists": False, "schema": "public"}
    assert tables(ps_lab, "notes_note") == TENANTS


def test_checks(project: tuple[Path, dict[str, str]]) -> None:
    """`check` knows the derived backend, misses ORIGINAL_BACKEND, and a replica that has another backend."""
    folder, env = project

    def found(**environment: str) -> str:
        return start(folder, "manage.py", "check", **env, **environment).communicate(timeout=60)[1]

    assert "ps_django" not in found()
    other = found(ORIGINAL_BACKEND="django.db.backends.postgresql")
    message = (
        "{!r} has options of ps_django, and its ENGINE 'django_tenants.postgresql_backend' is not derived from"
        " 'ps_django.backend'."
    )
    for alias in ("default", "replica", "direct"):
        assert f"{alias}: (ps_django.E016) {message.format(alias)}" in other
    assert "HINT: Write ORIGINAL_BACKEND = 'ps_django.backend' for django_tenants.postgresql_backend," in other
    # The router says it first, to whatever asks it.
    assert found(ENGINE_OF_REPLICA="ps_django.backend").endswith(
        "ps_core.errors.ConfigurationError: DATABASES['replica']: ENGINE='ps_django.backend', and that of its primary"
        " 'default' is 'django_tenants.postgresql_backend': write the same, or reads on the replica are without what"
        " the primary's backend does\n"
    )


def stock(lab: Lab) -> str:
    """Return the entry of DATABASES with which stock Django is behind the same bouncer."""
    conninfo = dict(ps_core.conninfo(Topology.from_url(lab.url, bouncer="write-pool").primary))
    keys = {"host": "HOST", "port": "PORT", "user": "USER", "password": "PASSWORD"}
    entry = {new: conninfo[old] for old, new in keys.items()}
    options = {name: conninfo[name] for name in ("sslmode", "sslrootcert")}
    return json.dumps({**entry, "NAME": DATABASE, "OPTIONS": options, "DISABLE_SERVER_SIDE_CURSORS": True})


def test_stock_differs(ps_lab: Lab, project: tuple[Path, dict[str, str]]) -> None:
    """What the figure above is to be compared with: stock behind the same bouncer reads other tenants' notes."""
    found = ran(project, READS, STOCK=stock(ps_lab))
    assert found["wrong"] > 0
