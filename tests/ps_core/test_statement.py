"""What a text tells."""

import pytest

from ps_core._message.statement import analyse

pytestmark = pytest.mark.fast

READS = [
    "select 1",
    "SELECT 'a;b', \"c;d\", $$e;f$$, $tag$ $$;$$ $tag$ -- g;h\n",
    "/* a; /* nested */ b; */ (select 1)",
    "select E'\\';' from t;",
    "with x as (select 1) select * from x",
    "values (1), (2)",
    "table t",
    "show statement_timeout",
    "explain select 1",
    "select 'update', \"delete\" from t",
    "with x as (select 'delete') select * from x",
]
WRITES = [
    "insert into t values (';')",
    "update t set a = 1",
    "with gone as (delete from t returning *) select * from gone",
    "select * from t for update",
    "select * from t for no key update skip locked",
    "select * from t for key share",
    "select * into copy from t",
    "select nextval('s')",
    "select pg_advisory_xact_lock(1)",
    "select pg_notify('a', 'b')",
    "select set_config('a.b', 'c', true)",
    "explain analyze delete from t",
    "create table t (a int)",
    "do $$ begin perform 1; end $$",
]
SEVERAL = ["select 1; select 2", "update t set a = 1; commit", "begin; select 1", "select $$;$$; select 2"]
CONTROL = [
    "begin",
    "START TRANSACTION READ ONLY",
    "commit",
    "END;",
    "rollback to savepoint a",
    "savepoint a",
    "release a",
    "prepare transaction 'x'",
]
BARE = [
    "vacuum t",
    "create index concurrently i on t (a)",
    "CREATE UNIQUE INDEX CONCURRENTLY i ON t (a)",
    "drop index concurrently i",
    "create database d",
    "alter system set a = 1",
    "reindex table t",
    "set search_path = a",
    "listen a",
]
KEEPING = [
    "set search_path = a",
    "SET SESSION a = 1",
    "listen a",
    "prepare p as select 1",
    "create temp table t (a int)",
    "create temporary table t (a int)",
    "select set_config('a.b', 'c', false)",
    "select pg_advisory_lock(1)",
    "select pg_try_advisory_lock_shared(1)",
    "declare c cursor with hold for select 1",
]
NOT_KEEPING = [
    "SELECT set_config('TimeZone', %s, false)",
    "set time zone 'UTC'",
    "SET DateStyle = 'ISO'",
    "set local a = 1",
    "set transaction read only",
    "select 1",
    "insert into t values (1)",
    "select pg_advisory_xact_lock(1)",
    "create table t (a int)",
]


FOR_PRIMARY = [
    "select pg_advisory_xact_lock(1)",
    "select pg_try_advisory_lock(1)",
    "begin read write",
    "start transaction isolation level serializable,\n read  write",
    "set transaction read write",
    "set local transaction_read_only = off",
    "set session characteristics as transaction read write",
]
NOT_FOR_PRIMARY = ["show transaction_read_only", "select 'read write'", "begin read only", "set a = 1", "select readwrite"]


@pytest.mark.parametrize("text", FOR_PRIMARY + NOT_FOR_PRIMARY)
def test_primary_only(text: str) -> None:
    """What a standby would grant and must not is told from its text; strings and settings that are shown are not."""
    assert analyse(text).primary_only is (text in FOR_PRIMARY)


REPEATABLE = ["SELECT set_config('TimeZone', %s, false)", "set work_mem = '8MB'", "SET TIME ZONE 'UTC';", "reset all"]
NOT_REPEATABLE = [
    "select set_config('a.b', f(), false)",
    "select set_config('a.b', 'c', false), transfer()",
    "select set_config('a.b', c, false) from t",
    "set a = 1; insert into t values (1)",
    "settle",
]


@pytest.mark.parametrize("text", REPEATABLE + NOT_REPEATABLE)
def test_repeatable(text: str) -> None:
    """A lone setting may be made again; what may do anything else may not."""
    assert analyse(text).only_sets is (text in REPEATABLE)


@pytest.mark.parametrize("text", READS)
def test_reads(text: str) -> None:
    """A plain read is one statement and known as a read."""
    statement = analyse(text)
    assert (statement.single, statement.reads) == (True, True)


@pytest.mark.parametrize("text", WRITES)
def test_writes(text: str) -> None:
    """What writes, locks or means nothing on a standby is one statement and not known as a read."""
    statement = analyse(text)
    assert (statement.single, statement.reads) == (True, False)


@pytest.mark.parametrize("text", SEVERAL)
def test_several(text: str) -> None:
    """Several statements are never single, and never a read."""
    statement = analyse(text)
    assert statement.count == 2
    assert not statement.single
    assert not statement.reads


@pytest.mark.parametrize("text", CONTROL)
def test_control(text: str) -> None:
    """Transaction control is never single."""
    statement = analyse(text)
    assert statement.controls
    assert not statement.single


@pytest.mark.parametrize("text", BARE)
def test_bare(text: str) -> None:
    """What PostgreSQL refuses inside a transaction block is known by its text."""
    assert analyse(text).must_stand_alone


@pytest.mark.parametrize("text", KEEPING)
def test_keeps_state(text: str) -> None:
    """What leaves something in the session is known by its text."""
    assert analyse(text).keeps_state


@pytest.mark.parametrize("text", NOT_KEEPING)
def test_keeps_no_state(text: str) -> None:
    """What is gone with the transaction is not taken for session state."""
    assert not analyse(text).keeps_state


@pytest.mark.parametrize("text", ["", "  ;;  ", "-- nothing\n", "/* nothing */"])
def test_nothing(text: str) -> None:
    """A text without a statement is none."""
    statement = analyse(text)
    assert (statement.verb, statement.count, statement.single) == ("", 0, False)


def test_unterminated() -> None:
    """A text that the server will refuse is still analysed in one pass."""
    assert analyse("select 'a; commit").controls
    assert analyse("select 1 /* a; commit").single


def test_long_text_is_not_kept() -> None:
    """A text over 16 KiB gives the same answer as a short one."""
    assert analyse("select " + "1," * 20_000 + "1").reads
