"""Statements and batches on the lab: what they return, how many round trips they take, what is refused."""

from __future__ import annotations

import enum
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg.types.enum import EnumInfo, register_enum

import ps_core
import ps_http
from ps_core import ConfigurationError, Topology, classify
from ps_core.failures import Kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from ps_lab import Lab
    from tests.ps_http.conftest import Driven

COLD = """
import os, sys, time
from ps_http import Client
with Client(os.environ["PS_URL"]) as client:
    row = client.execute("select %s, %s, %s, %s, %s", [1, "a", None, True, 2.5]).one()
    assert row == (1, "a", None, True, 2.5), row
    with client.batch() as batch:
        one = batch.execute("select 1::numeric, now(), '{}'::jsonb, gen_random_uuid()")
    assert len(one.result.one()) == 4
print(*sorted(name for name in ("psycopg", "asyncio", "tenacity", "httpx2", "psycopg_binary") if name in sys.modules))
"""


def test_cold_start(ps_lab: Lab) -> None:
    """A fresh process that asks with plain values, and gets usual ones, imports no psycopg, which takes longer than the rest."""
    command = [sys.executable, "-W", "error", "-c", COLD]
    ran = subprocess.run(command, env={**os.environ, "PS_URL": ps_lab.url}, capture_output=True, text=True, check=False)
    assert (ran.stdout, ran.stderr, ran.returncode) == ("\n", "", 0)


TRAP = """
import os
from ps_http import Client, dbapi
with Client(os.environ["PS_URL"]) as client:
    values = [b"\\x00\\xff\\\\a", bytearray(b"\\\\"), dbapi.Binary(b"\\\\"), [b"\\\\", None]]
    lengths = client.execute("select length(%s), length(%s), length(%s), length((%s)[1]), interval '1 day -1 second'", values)
    print(*lengths.one())
"""


def test_bytes_without_libpq(ps_lab: Lab) -> None:
    """In a process that never connected by libpq, psycopg's own dumper of bytes would double each backslash."""
    command = [sys.executable, "-W", "error", "-c", TRAP]
    ran = subprocess.run(command, env={**os.environ, "PS_URL": ps_lab.url}, capture_output=True, text=True, check=False)
    assert (ran.stdout, ran.stderr, ran.returncode) == ("4 1 1 1 23:59:59\n", "", 0)


def test_results(client: Driven) -> None:
    """Rows are tuples, with what the server told of them; columns of the same name are kept apart."""
    result = client.execute("select %s as a, %s::text as a, null as b", [1, "é"])
    assert list(result) == [(1, "é", None)] == [result.one()]
    assert [column.name for column in result.columns] == ["a", "a", "b"]
    assert [column.type_code for column in result.columns] == [21, 25, 25]
    assert (result.rowcount, result.statusmessage, result.scalar()) == (1, "SELECT 1", 1)
    with pytest.raises(ValueError, match="the same name"):
        result.dicts()
    assert client.execute("select 1 as a, 2 as b").dicts() == [{"a": 1, "b": 2}]
    assert client.execute("select 1 where false").scalar() is None
    with pytest.raises(ValueError, match="0 rows"):
        client.execute("select 1 where false").one()


def test_rows_that_python_cannot_hold(ps_lab: Lab, client: Driven, table: str) -> None:
    """A write whose rows cannot be read is done, and does not look undone: the rows raise, as psycopg's cursors do."""
    text = f"insert into {table} values (%s) returning 'infinity'::date"
    with client.batch() as batch:
        pending = batch.execute(text, [1])
        behind = batch.execute("select 7")
    assert behind.result.scalar() == 7
    for result in (client.execute(text, [2]), pending.result):
        assert (result.rowcount, repr(result)) == (1, "<Result INSERT 0 1, unreadable rows>")
        for read in (list, len, type(result).one, type(result).scalar, type(result).dicts):
            with pytest.raises(psycopg.DataError, match="infinity"):
                read(result)
    assert ps_lab.sql(f"select n from {table} order by n") == [(1,), (2,)]


def test_bodies_with_semicolons(client: Driven, table: str) -> None:
    """Semicolons of a function's body or a rule's are no others' statements; more than one statement the server refuses."""
    body = "begin atomic select 1; select case when true then 2 end; end"
    with client.batch() as batch:
        batch.execute(f"create function {table}_body() returns int {body}")
        found = batch.execute(f"select {table}_body()")
        batch.execute(f"create rule http_rule as on delete to {table} do also (select 1; select 2)")
        batch.execute(f"drop function {table}_body()")
    assert found.result.scalar() == 2
    with pytest.raises(psycopg.NotSupportedError, match="go on in autocommit"):
        client.execute(f"create rule http_rule as on update to {table} do also nothing; commit")
    with pytest.raises(psycopg.errors.SyntaxError, match="multiple commands"):
        client.execute(f"create rule http_rule as on update to {table} do also nothing; delete from {table}")


def test_many_parameters(ps_lab: Lab, client: Driven) -> None:
    """The largest number that the protocol can count works; with one more nothing is sent."""
    most = 65_535
    assert client.execute(f"select 0 in ({','.join(['%s'] * most)})", [1] * most).scalar() is False
    with ps_lab.round_trips() as counted, pytest.raises(psycopg.NotSupportedError, match=r"65,536 parameters.*array"):
        client.execute(f"select 0 in ({','.join(['%s'] * (most + 1))})", [1] * (most + 1))
    assert counted.count == 0


def test_commands(client: Driven, table: str) -> None:
    """Writes are committed, and say what they changed; so do those that cannot run in a transaction."""
    inserted = client.execute(f"insert into {table} values (%s, %s), (2, 'b') returning n", [1, "a"])
    assert (list(inserted), inserted.rowcount, inserted.statusmessage) == ([(1,), (2,)], 2, "INSERT 0 2")
    assert client.execute(f"update {table} set t = %(t)s where n = %(n)s", {"n": 1, "t": "x"}).statusmessage == "UPDATE 1"
    assert client.execute(f"vacuum {table}").statusmessage == "VACUUM"
    assert client.execute(f"create index concurrently on {table} (t)").rowcount == -1
    assert client.execute(f"delete from {table}").rowcount == 2


def test_round_trips(ps_lab: Lab, client: Driven, table: str) -> None:
    """A statement is one round trip, whatever travels with it; a batch is, too."""
    client.execute("select 1")
    for work in (
        lambda: client.execute("select 1"),
        lambda: client.execute(f"insert into {table} values (1)"),
        lambda: client.executemany(f"insert into {table} values (%s)", [[2], [3]]),
    ):
        with ps_lab.round_trips() as counted:
            work()
        assert (counted.count, counted.startups) == (1, 0)
    with ps_lab.round_trips() as counted, client.batch(isolation="serializable") as batch:
        batch.execute(f"insert into {table} values (4)")
        batch.execute("select 1")
    assert counted.count == 1


def test_errors(client: Driven, table: str) -> None:
    """They are psycopg's, with what the server told of them."""
    client.execute(f"insert into {table} values (1)")
    with pytest.raises(psycopg.errors.UniqueViolation, match="DETAIL:  Key") as caught:
        client.execute(f"insert into {table} values (1)")
    diag = caught.value.diag
    assert (diag.sqlstate, diag.table_name, diag.constraint_name, diag.severity_nonlocalized) == (
        *("23505", table, f"{table}_pkey"),
        "ERROR",
    )
    assert classify(caught.value).kind is Kind.PERMANENT
    with pytest.raises(psycopg.errors.DivisionByZero):
        client.execute("select 1/%s", [0])
    with pytest.raises(psycopg.errors.UndefinedTable):
        client.execute("select * from nowhere")
    with pytest.raises(psycopg.ProgrammingError, match="placeholders"):
        client.execute("select %s", [])


def test_batch(ps_lab: Lab, client: Driven, table: str) -> None:
    """All of a batch takes effect, in one transaction of its modes; results are there at its end."""
    with client.batch(isolation="repeatable read") as batch:
        batch.execute("set local work_mem = '7MB'")
        first = batch.execute(f"insert into {table} values (%s, %s)", [1, "a"])
        second = batch.execute(f"select n, current_setting('work_mem'), current_setting('transaction_isolation') from {table}")
        with pytest.raises(RuntimeError, match="when the block"):
            _ = first.result
    assert first.result.rowcount == 1
    assert list(second.result) == [(1, "7MB", "repeatable read")]
    with client.batch():
        pass
    with pytest.raises(psycopg.NotSupportedError, match="is over"):
        batch.execute("select 1")
    with client.batch(read_only=True, isolation="serializable", deferrable=True) as batch:
        modes = batch.execute("select current_setting('transaction_read_only'), current_setting('transaction_deferrable')")
    assert modes.result.one() == ("on", "on")
    assert ps_lab.sql(f"select n from {table}") == [(1,)]


def test_batch_of_several_is_whole(ps_lab: Lab, client: Driven, table: str) -> None:
    """Several parameters of which one is refused leave none of them in the batch, where its caller goes on."""
    with client.batch() as batch:
        first = batch.execute("select 1")
        with pytest.raises(psycopg.ProgrammingError):
            batch.executemany(f"insert into {table} values (%s)", [[1], [object()]])
        last = batch.execute(f"select count(*) from {table}")
    assert (first.result.scalar(), last.result.scalar()) == (1, 0)
    assert ps_lab.sql(f"select n from {table}") == []


def test_batch_is_sent_once(ps_lab: Lab, client: Driven, table: str) -> None:
    """A second block of the same batch is refused: its statements would be done twice."""

    def begin_again(batch: ps_http.Batch | ps_http.AsyncBatch) -> None:
        client._run(batch.__enter__() if isinstance(batch, ps_http.Batch) else batch.__aenter__())

    with client.batch() as batch:
        batch.execute(f"insert into {table} values (1)")
    with pytest.raises(psycopg.NotSupportedError, match="begun before"):
        begin_again(batch)
    with pytest.raises(psycopg.NotSupportedError, match="begun before"), client.batch() as batch:
        batch.execute(f"insert into {table} values (2)")
        begin_again(batch)
    assert ps_lab.sql(f"select n from {table}") == [(1,)]


def test_batch_that_fails(ps_lab: Lab, client: Driven, table: str) -> None:
    """Nothing of a batch is left where a statement fails, at its COMMIT too, or the caller's block does."""
    with pytest.raises(psycopg.errors.UniqueViolation), client.batch() as batch:
        pending = batch.execute(f"insert into {table} values (1)")
        batch.execute(f"insert into {table} values (1)")
    with pytest.raises(RuntimeError, match="did not fail"):
        _ = pending.result
    client.execute(f"alter table {table} add unique (t) deferrable initially deferred")
    with pytest.raises(psycopg.errors.UniqueViolation), client.batch() as batch:
        batch.executemany(f"insert into {table} values (%s, 'same')", [[1], [2]])
    with ps_lab.round_trips() as counted, pytest.raises(LookupError), client.batch() as batch:
        batch.execute(f"insert into {table} values (1)")
        raise LookupError
    assert counted.count == 0
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction), client.batch(read_only=True) as batch:
        batch.execute(f"insert into {table} values (1)")
    assert ps_lab.sql(f"select n from {table}") == []


@pytest.mark.parametrize(
    "text",
    [
        "begin",
        "start transaction",
        "commit",
        "end",
        "rollback",
        "abort",
        "savepoint a",
        "rollback to a",
        "release a",
        "prepare transaction 'x'",
        "commit prepared 'x'",
        "/* */ COMMIT",
        "select 1; select 2",
        "select 1; commit",
        "copy http_numbers from stdin",
        "copy http_numbers to stdout",
        "listen x",
        "select pg_advisory_lock(1)",
        "create temporary table x (n int)",
        "declare x cursor with hold for select 1",
        "prepare x as select 1",
        "set work_mem = '8MB'",
        "reset work_mem",
        "select set_config('work_mem', '8MB', false)",
        "discard all",
    ],
)
def test_refused(ps_lab: Lab, client: Driven, table: str, text: str) -> None:
    """What needs a session, or a transaction that stays open, is refused before anything is sent, in a batch, too."""
    with ps_lab.round_trips() as counted:
        with pytest.raises(psycopg.NotSupportedError):
            client.execute(text)
        with pytest.raises(psycopg.NotSupportedError), client.batch() as batch:
            batch.execute(f"insert into {table} values (1)")
            batch.execute(text)
    assert counted.count == 0


def test_interactive_transaction(client: Driven) -> None:
    """What was meant is told the way to it."""
    with pytest.raises(psycopg.NotSupportedError, match=r'transport="websocket"'):
        client.client.transaction()
    with pytest.raises(psycopg.NotSupportedError, match=r'transport="websocket"'):
        client.execute("begin")
    with pytest.raises(ConfigurationError, match="isolation"):
        client.client.batch(isolation="chaos")


def test_a_read_that_writes(ps_lab: Lab, client: Driven, table: str) -> None:
    """What looks like a read is sent READ ONLY; one that the server refuses so is sent again, and from then on as a write."""
    adds = f"http_add_{type(client.client).__name__}()".lower()
    body = f"insert into {table} values (1) returning n"
    ps_lab.sql(f"create or replace function {adds} returns int language sql volatile as '{body}'")
    try:
        with ps_lab.round_trips() as counted:
            assert client.execute(f"select {adds}").scalar() == 1
        assert counted.count == 2
        client.execute(f"delete from {table}")
        with ps_lab.round_trips() as counted:
            client.execute(f"select {adds}")
        assert counted.count == 1
    finally:
        ps_lab.sql(f"drop function {adds}")


def test_a_procedure_that_commits(ps_lab: Lab, client: Driven, table: str) -> None:
    """What cannot run in a transaction, and does not look so, is sent alone when the server has said so."""
    ps_lab.sql(
        f"create or replace procedure http_commits() language plpgsql as 'begin insert into {table} values (1); commit; end'"
    )
    try:
        client.execute("call http_commits()")
    finally:
        ps_lab.sql("drop procedure http_commits()")
    assert ps_lab.sql(f"select n from {table}") == [(1,)]


class Mood(enum.Enum):
    sad = "sad"
    ok = "ok"


URL = "postgresql://app.br4nch:s3cret@db.example/postgres"


@pytest.mark.fast
@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("postgresql://app:s3cret@10.0.0.1/postgres", "is an address"),
        ("postgresql://app:s3cret@[::1]/postgres", "is an address"),
        ("postgresql://app:s3cret@/postgres?host=/run/pg", "Unix socket"),
        ("postgresql://app:s3cret@a,b/postgres", "one host"),
        ("postgresql://app:s3cret@/postgres", "the name of a host"),
        ("postgresql://app@db.example/postgres", "needs a password"),
        ("postgresql://db.example/postgres?password=s3cret", "needs a user"),
        ("postgresql://app:s3cret@db.example", "needs a dbname"),
        ("postgresql://app:s3cret@a%0Ab/postgres", "no host's name"),
        ("postgresql://app:s3cret@m\u00fcnchen.example/postgres", "no host's name"),
        (URL + "?sslmode=require", "verify-full"),
        (URL + "?sslmode=disable", "verify-full"),
        (URL + "?sslcert=c.pem", "client certificate"),
        (URL + "?channel_binding=require", "no channel"),
        (URL + "?hostaddr=10.0.0.1", "hostaddr"),
        (URL + "?sslmode=verify-full&sslrootcert=/nowhere/ca.pem", "cannot be read"),
    ],
)
def test_bad_settings(url: str, text: str) -> None:
    """What cannot work is refused when the client is made, with what to write instead, and without the password."""
    with pytest.raises(ConfigurationError, match=text) as caught:
        ps_http.Client(url)
    assert "s3cret" not in str(caught.value)


@pytest.mark.fast
def test_what_it_is_made_of() -> None:
    """A URL, a topology or an endpoint; the others have their settings."""
    topology = Topology.from_url(URL)
    assert "s3cret" not in repr(ps_http.Client(URL)) + repr(ps_http.Client(topology)) + repr(ps_http.Client(topology.direct))
    with pytest.raises(ConfigurationError, match=r"(?m)^a Topology is complete: give bouncer to Topology\.from_url instead$"):
        ps_http.Client(topology, bouncer="x")
    for target, message in ((None, "is None: write"), (5, "is of type int")):
        wrong: Any = target
        with pytest.raises(ConfigurationError, match=f"^the connection string {message}"):
            ps_http.Client(wrong)
    with pytest.raises(ConfigurationError, match=r"^to='direct': 'primary' is one endpoint: leave it out"):
        ps_http.Client(topology.primary, to="direct")
    with pytest.raises(ConfigurationError, match="did you mean"):
        ps_http.Client(URL, bouncr="x")  # type: ignore[call-arg]
    with pytest.raises(ConfigurationError, match="'direct'"):
        ps_http.Client(URL, to="replica")


def test_suffixes(ps_lab: Lab, drive: Callable[..., Driven]) -> None:
    """User names with a suffix, and passwords of any kind, arrive as they are."""
    url = ps_lab.create_role("http_suffix")
    ps_lab.set_password("http_suffix", "p/w @:%7C|é?#")
    try:
        url = ps_lab.url_of("http_suffix")
        asked = "select pg_is_in_recovery(), current_user"
        assert drive(url, bouncer="write-pool").execute(asked).one() == (False, "http_suffix")
        assert drive(url).execute(asked).one() == (False, "http_suffix")
        assert drive(Topology.from_url(url, direct_replica=True)).execute("select pg_is_in_recovery()").scalar() is True
        assert drive(url, to="direct").execute("select pg_is_in_recovery()").scalar() is False
    finally:
        ps_lab.drop_role("http_suffix")


def test_registered_types(ps_lab: Lab, client: Driven) -> None:
    """Types are registered on a client as on a connection of psycopg's."""

    ps_lab.sql("create type http_mood as enum ('sad', 'ok')")
    try:
        with psycopg.connect(**ps_core.conninfo(ps_lab.topology.direct)) as conn:
            info = EnumInfo.fetch(conn, "http_mood")
        assert info is not None
        register_enum(info, client.client, Mood)
        assert client.execute("select %s, %s", [Mood.ok, [Mood.sad]]).one() == (Mood.ok, [Mood.sad])
    finally:
        ps_lab.sql("drop type http_mood")
