"""The connection breaks when the server has answered: what ran must not run again, whatever form of statement it was."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path as File
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import sqlalchemy as sa
from django.db import NotSupportedError, connections
from psycopg import sql

import ps_django
import ps_sqlalchemy
from ps_core import AsyncConnection, Connection, local_settings
from ps_core._connection.cursors import ServerBindingCursor
from ps_core.context import use_token
from ps_core.failures import Kind, classify
from ps_lab import Lab
from ps_lab.processes import wait_until
from tests.adversity.applications import Application, Django
from tests.adversity.harness import Paths, raised
from tests.adversity.matrix import Matrix

if TYPE_CHECKING:
    from ps_core._endpoint import EndpointState

FUNCTIONS = """
CREATE OR REPLACE FUNCTION besteffort(n int) RETURNS int LANGUAGE plpgsql AS
  $$ BEGIN INSERT INTO cut VALUES (n); RETURN 1; EXCEPTION WHEN OTHERS THEN RETURN 0; END $$;
CREATE OR REPLACE FUNCTION ping() RETURNS int LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_notify('cut', 'ping'); RETURN 1; END $$;
CREATE OR REPLACE FUNCTION set_tenant(t text) RETURNS text LANGUAGE sql AS $$ SELECT set_config('app.tenant', t, true) $$;
CREATE OR REPLACE FUNCTION try_lock(n int) RETURNS bool LANGUAGE sql AS $$ SELECT pg_try_advisory_xact_lock(n) $$;
CREATE OR REPLACE FUNCTION "Weird Name"(n int) RETURNS int LANGUAGE plpgsql AS
  $$ BEGIN INSERT INTO cut VALUES (n); RETURN 1; EXCEPTION WHEN OTHERS THEN RETURN 0; END $$;
"""


@pytest.fixture(scope="module", autouse=True)
def table(ps_lab: Lab) -> Iterator[None]:
    """A table, and functions that write although their call looks like a read."""
    with psycopg.connect(ps_lab.primary.dsn(), autocommit=True) as conn:
        conn.execute("CREATE TABLE cut (n int); GRANT ALL ON cut TO PUBLIC")
        conn.execute(FUNCTIONS)
    ps_lab.wait_replicas_caught_up()
    yield
    ps_lab.sql("DROP TABLE cut")
    for name in ("besteffort(int)", "ping()", "set_tenant(text)", "try_lock(int)", '"Weird Name"(int)'):
        ps_lab.sql(f"DROP FUNCTION {name}")


@pytest.fixture(autouse=True)
def empty(ps_lab: Lab, table: None) -> None:
    """Nothing in the table."""
    ps_lab.sql("TRUNCATE cut")


def rows(lab: Lab) -> list[int]:
    """Return what was committed."""
    return [n for (n,) in lab.sql("SELECT n FROM cut ORDER BY n")]


HIDDEN = {
    "carriage return in a comment": "select 1 -- note\r; commit; insert into cut values (1)",
    "an E-string over a newline": "select e'a'\n'\\''; commit; insert into cut values (1); select ''",
    "an emoji before a dollar quote": "select 1 as \U0001f600$x$; commit; insert into cut values (1); select 1 as \U0001f600$x$",
    "a comment that is not nested as it looks": "select 1 /* '/* */ */; commit; insert into cut values (1) -- '",
}


@pytest.mark.parametrize("text", HIDDEN.values(), ids=HIDDEN)
@pytest.mark.parametrize("autocommit", [True, False])
@pytest.mark.parametrize("factory", [None, ServerBindingCursor])
def test_a_hidden_commit_is_not_run_twice(
    ps_lab: Lab, paths: Paths, text: str, autocommit: bool, factory: type[Any] | None
) -> None:
    """A text that only looks like one statement is sent, to the direct endpoint where it may be sent at all, and never again."""
    conn = paths.ours("direct", autocommit=autocommit)
    cursor = conn.cursor() if factory is None else factory(conn)
    with ps_lab.edge.cut_answers("direct", containing="insert into cut"):
        error = raised(cursor.execute, text)
        assert ps_lab.edge.status()["answer_cuts"] == 0
    assert classify(error).kind is Kind.TRANSIENT
    wait_until(lambda: rows(ps_lab), "the commit")  # the server's warning of COMMIT comes before it, and is cut
    assert rows(ps_lab) == [1]


def _stock(paths: Paths, **options: Any) -> psycopg.Connection[Any]:
    """Return psycopg's connection with its default cursor."""
    return paths.stock(cursor_factory=psycopg.Cursor, **options)


def test_a_value_is_never_statements(ps_lab: Lab, paths: Paths) -> None:
    """A placeholder inside of quotes is refused as stock refuses it: the value would be a part of the text."""
    value = " is null; commit; insert into cut values (1); select 3 where '"
    text = "insert into cut select 2 where '%s' is not null"
    errors = [raised(conn.execute, text, (value,)) for conn in (_stock(paths), paths.ours(), paths.ours("direct"))]
    assert {type(error) for error in errors} == {type(errors[0])}
    assert {error.sqlstate for error in errors} == {errors[0].sqlstate}
    cursor = paths.ours().cursor()
    assert raised(cursor.executemany, text, [(value,)]).sqlstate == errors[0].sqlstate
    assert raised(lambda: list(cursor.stream(text + " returning n", (value,)))).sqlstate in (errors[0].sqlstate, None)
    with (
        pytest.raises(psycopg.NotSupportedError, match="inside of quotes"),
        cursor.copy("copy (select '%s') to stdout", (value,)),
    ):
        pass
    assert rows(ps_lab) == []


COMMENTS = [
    "select -- it's\n %s::text",
    "select /* it's */ %s::text",
    "select '\\', %s::text",
    "select e'\\'', %s::text",
    "select $$'$$, %s::text",
]


@pytest.mark.parametrize("text", COMMENTS)
@pytest.mark.parametrize("autocommit", [True, False])
def test_what_cannot_be_told_is_bound_by_the_server(paths: Paths, text: str, autocommit: bool) -> None:
    """Where it is not plain that a placeholder stands outside of quotes, the server binds it, and the answer is stock's."""
    ours, stock = paths.ours(autocommit=autocommit), _stock(paths, autocommit=autocommit)
    for value in ("a", "' or 1=1 --", "\\"):
        assert ours.execute(text, (value,)).fetchall() == stock.execute(text, (value,)).fetchall()
    with ours.transaction(), ours.cursor() as cursor:
        cursor.execute("select 1")
        assert cursor.execute(text, ("b",)).fetchall() == stock.execute(text, ("b",)).fetchall()
    client: Any = ours.cursor()
    assert client.mogrify("select '%s'", (1,)).startswith("select '")


CALLS = [
    "select besteffort(1)",
    'select "besteffort" (1)',
    "select public . besteffort /* x */ (1)",
    'select U&"\\0062esteffort"(1)',
    'select "Weird Name"(1)',
    "with x as (select besteffort(1)) select * from x",
    "values (besteffort(1))",
]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("autocommit", [True, False])
@pytest.mark.parametrize("factory", [None, ServerBindingCursor])
def test_a_function_that_swallows_its_error_writes(
    ps_lab: Lab, paths: Paths, call: str, autocommit: bool, factory: type[Any] | None
) -> None:
    """`besteffort()` would succeed READ ONLY with nothing written: a name that may write means that the statement may."""
    conn = paths.ours(autocommit=autocommit)
    cursor = conn.cursor() if factory is None else factory(conn)
    assert cursor.execute(call).fetchone() == (1,)
    conn.commit()
    assert rows(ps_lab) == [1]


def test_values_in_quotes_in_django(ps_lab: Lab) -> None:
    """Django's own cursor puts values inside of quotes, and so does ours there; what they make of the text is not sent again."""
    with _django_at(ps_lab):
        with connections["default"].cursor() as cursor:
            cursor.execute("select interval '%s days'", (2,))
            assert cursor.fetchone()[0].days == 2
        value = " is null; commit; insert into cut values (1); select 3 where '"
        with ps_lab.edge.cut_answers("direct", containing="insert into cut"), connections["direct"].cursor() as cursor:
            with pytest.raises(Exception, match="connection"):
                cursor.execute("select 2 where '%s' is not null", (value,))
        assert rows(ps_lab) == [1]
        # Through a pooler, what follows the COMMIT would run without timeouts and rights.
        with (
            connections["default"].cursor() as cursor,
            pytest.raises(NotSupportedError, match="several transactions"),
        ):
            cursor.execute("select 2 where '%s' is not null", (value,))
        assert rows(ps_lab) == [1]


def test_frameworks_write_by_such_a_function(ps_lab: Lab) -> None:
    """Text and Core in a session that may read from replicas, and Django's cursor in a request that only reads."""
    engine = ps_sqlalchemy.create_engine(ps_lab.url, bouncer="write-pool", replica_bouncer="read-pool")
    with ps_sqlalchemy.Session(engine) as session:
        assert session.scalar(sa.text("select besteffort(1)")) == 1
        session.commit()
        assert session.scalar(sa.select(sa.func.besteffort(2))) == 1
        session.commit()
    engine.dispose()
    with _django_at(ps_lab), ps_django.reading():
        for alias in ("default", "replica"):
            with connections[alias].cursor() as cursor:
                cursor.execute("select besteffort(3)")
                assert cursor.fetchone() == (1,)
    assert rows(ps_lab) == [1, 2, 3, 3]


def _django_at(lab: Lab) -> Any:
    from ps_django.test import databases_at

    return databases_at(lab.url, bouncer="write-pool", replica_bouncer="read-pool")


@pytest.mark.parametrize("call", ["select ping()", "select pg_notify('cut', 'ping')", "select pg_notify('cut', 'ping'), ping()"])
def test_notifies_once(ps_lab: Lab, paths: Paths, call: str) -> None:
    """A notification is sent once, also where the answer to the statement that sent it was lost."""
    listener = paths.stock("direct")
    listener.execute("LISTEN cut")
    conn = paths.ours()
    with ps_lab.edge.cut_answers("primary", containing=call):
        raised(conn.execute, call)
    paths.stock("direct").execute("NOTIFY cut, 'end'")
    heard = []
    for note in listener.notifies(timeout=30):
        heard.append(note.payload)
        if note.payload == "end":
            break
    assert heard == ["ping", "end"]


@pytest.mark.parametrize("binding", ["client", "server"])
def test_emits_once(ps_lab: Lab, paths: Paths, binding: str) -> None:
    """A logical message outside of transactions is written once."""
    conn = paths.ours()
    cursor = conn.cursor() if binding == "client" else ServerBindingCursor(conn)
    begun, file = ps_lab.sql("SELECT lsn::text, pg_walfile_name(lsn) FROM pg_current_wal_insert_lsn() lsn")[0]
    timeline = str(int(file[:8], 16))
    with ps_lab.edge.cut_answers("primary", containing="emit_message"):
        raised(cursor.execute, "select pg_logical_emit_message(false, 'cut', 'once')")
    ended = ps_lab.sql("SELECT pg_switch_wal()::text")[0][0]
    wal = ps_lab.primary.folder / "pg_wal"
    found = ps_lab.primary.run("pg_waldump", "-p", wal, "-s", begun, "-e", ended, "-t", timeline, "-r", "LogicalMessage")
    assert found.count('prefix "cut"') == 1, found


@pytest.mark.parametrize("autocommit", [True, False])
def test_a_program_runs_once(ps_lab: Lab, paths: Paths, tmp_path: File, autocommit: bool) -> None:
    """COPY TO PROGRAM acts beside the transaction: it is not sent again, not even as the opening of one."""
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents:
        if parent.stat().st_mode & 0o005 == 0:
            parent.chmod(0o755)
    out = tmp_path / "out"
    ps_lab.sql("GRANT pg_execute_server_program TO app")
    try:
        conn = paths.ours(autocommit=autocommit)
        with ps_lab.edge.cut_answers("primary", containing="PROGRAM"):
            raised(conn.execute, f"COPY (SELECT 1) TO PROGRAM 'cat >> {out}'")
    finally:
        ps_lab.sql("REVOKE pg_execute_server_program FROM app")
    wait_until(out.exists, "the program")
    assert out.read_text() == "1\n"


@pytest.mark.parametrize(
    "query", [sql.SQL("insert into cut values (%s)"), b"insert into cut values (%s)", "insert into cut values (%s)"]
)
@pytest.mark.parametrize("factory", [None, ServerBindingCursor])
def test_every_kind_of_query_is_looked_at(ps_lab: Lab, paths: Paths, query: Any, factory: type[Any] | None) -> None:
    """A write that is given as SQL object or bytes is not doubled, has limits and settings, and leaves a token or a pin."""
    conn = paths.ours()
    cursor = conn.cursor() if factory is None else factory(conn)
    with ps_lab.edge.cut_answers("primary", containing="insert into cut"):
        error = raised(cursor.execute, query, (1,))
    assert classify(error).kind is Kind.TRANSIENT
    assert len(rows(ps_lab)) <= 1  # with the server binding, its COMMIT was not sent yet
    ps_lab.sql("TRUNCATE cut")
    shown = "select current_setting('statement_timeout'), current_setting('app.t', true)"
    kinds: dict[type, Any] = {str: shown, bytes: shown.encode(), sql.SQL: sql.SQL(shown)}
    with local_settings({"app.t": "42"}):
        assert cursor.execute(kinds[type(query)]).fetchone() == ("2s", "42")
    with use_token(None) as tracker:
        cursor.execute(query, (1,))
        assert tracker.has_news
    assert rows(ps_lab) == [1]


@pytest.mark.parametrize("query", [sql.SQL("select 1"), b"select 1"])
@pytest.mark.parametrize("factory", [None, ServerBindingCursor])
def test_every_kind_of_query_carries_the_guard(ps_lab: Lab, paths: Paths, query: Any, factory: type[Any] | None) -> None:
    """On a replica that is behind, what is given as SQL object or bytes is refused like a text."""
    conn = paths.ours("replica")
    cursor = conn.cursor() if factory is None else factory(conn)
    with use_token(f"1.{ps_lab.branch}.FFFFFFF-0.{int(time.time())}"):
        assert classify(raised(cursor.execute, query)).kind is Kind.BEHIND


SEVERAL = "insert into cut values (1); insert into cut values (2)"


@pytest.mark.parametrize("autocommit", [True, False])
def test_several_statements_after_an_idle_loss(ps_lab: Lab, paths: Paths, autocommit: bool) -> None:
    """What was never sent may always be sent: a text of two statements heals where its connection was lost before."""
    conn = paths.ours(autocommit=autocommit)
    conn.execute("select 1")
    conn.commit()
    ps_lab.edge.cut("primary")
    conn.execute(SEVERAL)
    conn.commit()
    assert rows(ps_lab) == [1, 2]


def test_several_statements_after_an_idle_loss_asyncio(ps_lab: Lab, paths: Paths) -> None:
    """The same with asyncio."""

    async def work() -> None:
        async with await AsyncConnection.open(paths.state(), autocommit=True) as conn:
            await conn.execute("select 1")
            await asyncio.to_thread(ps_lab.edge.cut, "primary")
            await conn.execute(SEVERAL)

    asyncio.run(work())
    assert rows(ps_lab) == [1, 2]


def test_several_statements_keep_the_role(ps_lab: Lab, paths: Paths) -> None:
    """A text carries the caller's settings, in autocommit, too; of several transactions it cannot, and is refused."""
    text = "set local work_mem = '8MB'; insert into cut select current_setting('app.t')::int"
    with local_settings({"app.t": "42"}):
        conn = paths.ours()
        conn.execute(text)
        conn.execute("begin; insert into cut select current_setting('app.t')::int; commit")
        with conn.transaction():
            conn.execute(text)
        assert rows(ps_lab) == [42, 42, 42]
        for endpoint in ("primary", "direct"):
            with pytest.raises(psycopg.NotSupportedError, match="several transactions"):
                paths.ours(endpoint).execute("begin; commit; insert into cut values (1)")
    paths.ours("direct").execute("begin; commit; insert into cut values (1)")
    assert rows(ps_lab) == [1, 42, 42, 42]


def test_state_that_a_function_sets(ps_lab: Lab) -> None:
    """What a function sets for the transaction holds in it: such a session is on the primary, in one real transaction."""
    engine = ps_sqlalchemy.create_engine(ps_lab.url, bouncer="write-pool", replica_bouncer="read-pool")
    with ps_sqlalchemy.Session(engine) as one, ps_sqlalchemy.Session(engine) as other:
        one.execute(sa.text("select set_tenant('42')"))
        assert one.scalar(sa.text("select current_setting('app.tenant', true)")) == "42"
        assert one.scalar(sa.text("select try_lock(7)")) is True
        assert other.scalar(sa.text("select try_lock(7)")) is False
    engine.dispose()


@pytest.mark.parametrize("way", ["create", "replace", "in a transaction"])
def test_functions_that_are_made_here_are_known(ps_lab: Lab, paths: Paths, way: str) -> None:
    """A connection that makes a function asks for the names behind it, so that the next statement knows what it calls."""
    state = paths.state()
    conn: Connection[Any] = paths.ours(state, autocommit=way != "in a transaction")
    verb = "create or replace" if way == "replace" else "create"
    body = "$$ begin insert into cut values (n); return 1; exception when others then return 0; end $$"
    try:
        conn.execute(f"{verb} function made_now(n int) returns int language plpgsql as {body}")
        conn.commit()
        assert "made_now" in state.functions.may_write
        assert conn.execute("select made_now(1)").fetchone() == (1,)
        conn.commit()
        assert rows(ps_lab) == [1]
    finally:
        ps_lab.sql("DROP FUNCTION made_now(int)")


@pytest.mark.parametrize("autocommit", [True, False])
def test_names_are_asked_for_once_a_minute(ps_lab: Lab, paths: Paths, monkeypatch: pytest.MonkeyPatch, autocommit: bool) -> None:
    """The question travels behind a message that is sent anyway: no round trip more, and no row of it reaches the caller."""
    state = paths.state()
    conn = paths.ours(state, autocommit=autocommit)
    ps_lab.sql("CREATE FUNCTION made_elsewhere() RETURNS int LANGUAGE sql AS 'INSERT INTO cut VALUES (9) RETURNING n'")
    try:
        assert "made_elsewhere" not in state.functions.may_write
        now = time.monotonic() + 61
        monkeypatch.setattr("ps_core._connection.base.time.monotonic", lambda: now)
        with ps_lab.round_trips() as trips:
            cursor = conn.execute("select 1")
            assert cursor.fetchall() == [(1,)]
            assert cursor.nextset() is None
            conn.commit()
        assert trips.count == (1 if autocommit else 2)
        assert "made_elsewhere" in state.functions.may_write
    finally:
        ps_lab.sql("DROP FUNCTION made_elsewhere()")


def test_a_mark_of_stable_makes_a_read(ps_lab: Lab, paths: Paths) -> None:
    """A function that is declared STABLE is a read, on replicas, too; a VOLATILE one is refused there, without a round trip."""
    ps_lab.sql("CREATE FUNCTION reads_only() RETURNS int STABLE LANGUAGE sql AS 'SELECT 1'")
    ps_lab.wait_replicas_caught_up()
    state: EndpointState = paths.state("replica")
    conn = paths.ours(state)
    try:
        assert conn.execute("select reads_only()").fetchone() == (1,)
        with ps_lab.round_trips() as trips:
            error = raised(conn.execute, "select besteffort(1)")
        assert (trips.count, error.sqlstate, classify(error).kind) == (0, "25006", Kind.NOT_PRIMARY)
    finally:
        ps_lab.sql("DROP FUNCTION reads_only()")


def test_applications(ps_lab: Lab, matrix: Matrix, applications: list[Application]) -> None:
    """A read is answered again. A function that writes is run again as the opening of a transaction, and raises in autocommit."""
    for number, application in enumerate(applications):
        application.execute("SELECT 1", "primary")
        with ps_lab.edge.cut_answers("primary", containing="answered"):
            assert application.execute(f"SELECT {number} AS answered", "primary") == [number]
            assert ps_lab.edge.status()["answer_cuts"] == 0
        with ps_lab.edge.cut_answers("primary", containing="besteffort"):
            if isinstance(application, Django):
                with pytest.raises(application.error):
                    application.execute(f"SELECT besteffort({number})", "primary")
            else:
                assert application.execute(f"SELECT besteffort({number})", "primary") == [1]
            assert ps_lab.edge.status()["answer_cuts"] == 0
    assert rows(ps_lab) == list(range(len(applications)))
    matrix.sees(
        "The connection breaks when the server has answered",
        "nothing; outside of `atomic()`, Django's call of a function that may write raises, and was done once",
    )
