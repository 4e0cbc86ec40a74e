"""What the text of a statement shows."""

import re

import pytest

from ps_core._message import statement
from ps_core._message.statement import Leaves, analyse, binds_outside_quotes, identifiers

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
    "reindex table concurrently t",
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


LEAVES: dict[Leaves | None, list[str]] = {
    Leaves.LOCK: [
        "select pg_advisory_lock(1)",
        "SELECT PG_ADVISORY_LOCK_SHARED (%s, %s)",
        "select pg_try_advisory_lock(1), 2",
        "select a from t where pg_try_advisory_lock_shared(a) limit 1",
        "select pg_advisory_unlock(1)",
        "select pg_advisory_unlock_shared(1)",
        "select pg_advisory_unlock_all()",
        "select pg_catalog.pg_advisory_lock(1)",
        "select pg_catalog . pg_advisory_lock /* key */ -- here\n (1)",
        'select "pg_advisory_lock"(1)',
        'select "pg_catalog"."pg_try_advisory_lock"(1)',
        "select 1; select pg_advisory_lock(1)",
        "begin; select pg_advisory_lock(1); commit",
        "update t set a = 1 where pg_try_advisory_lock(a)",
        "copy (select pg_advisory_lock(1)) to stdout",
        "create table t as select pg_try_advisory_lock(1)",
        "create temp table t on commit drop as select pg_advisory_lock(1)",
        "select pg_advisory_xact_lock(1), pg_advisory_lock(2)",
    ],
    Leaves.CHANNEL: ["listen a", 'LISTEN "a"', "unlisten *", "/* a */ unlisten a;", "select 1; listen a"],
    Leaves.TEMPORARY: [
        "create temp table t (a int)",
        "CREATE TEMPORARY TABLE IF NOT EXISTS t (a int) ON COMMIT DELETE ROWS",
        "create local temp table t (a int) on commit preserve rows",
        "create global temporary table t (a int)",
        "create temp table t as select 1",
        "explain analyze create temp table t as select 1",
        "explain (analyze, costs off) create temp table t as select 1",
        "create temp view v as select 1",
        "create or replace temp view v as select 1",
        "create temp recursive view v (n) as select 1",
        "create temporary sequence s",
        "select a into temp t from x",
        "select a into temporary table t from x",
        'select a into local temp "t" from x',
        "with y as (insert into temp values (1) returning a) select a into temp t from y",
        "select a into pg_temp.t from x",
        "create table pg_temp.t (a int)",
        'create table if not exists "pg_temp"."t" (a int)',
        "create or replace function pg_temp.f() returns int language sql as 'select 1'",
        "create temp table t (a int) on commit drop; create temp table u (a int)",
        "create temp table t (a text default 'on commit drop')",
    ],
    Leaves.TEMPORARY_UNTIL_COMMIT: [
        "create temp table t (a int) on commit drop",
        "CREATE LOCAL TEMPORARY TABLE t ON  COMMIT\nDROP AS SELECT 1",
        "create table pg_temp.t (a int) on commit drop",
        "create temp table t (a int) on commit drop; insert into t values (1); select * from t",
    ],
    Leaves.CURSOR: ["declare c cursor with hold for select 1", 'DECLARE "c" INSENSITIVE NO SCROLL CURSOR WITH HOLD FOR SELECT 1'],
    Leaves.PREPARED: [
        "prepare p as select 1",
        "prepare p (int) as select $1",
        "execute p",
        "EXECUTE p(1);",
        "explain execute p",
        "explain (analyze) execute p(1)",
        "create temp table t (a int) on commit drop; execute p",
    ],
    Leaves.LIBRARY: ["load 'auto_explain'", "LOAD '$libdir/x';"],
    None: [
        "select pg_advisory_xact_lock(1)",
        "select pg_try_advisory_xact_lock_shared(1)",
        "select 'pg_advisory_lock(1)'",
        """select '"pg_advisory_lock"(1)'""",
        "select 1 -- pg_advisory_lock(1)",
        "select $$pg_advisory_lock(1)$$",
        "select pg_advisory_lock from t",
        'select "PG_ADVISORY_LOCK"(1)',
        'select "pg_advisory_lock""s"(1)',
        "select my_pg_advisory_lock(1)",
        "revoke execute on function pg_advisory_lock(bigint) from public",
        "comment on function pg_catalog.pg_advisory_lock(bigint) is 'mine'",
        "create or replace view v as select pg_advisory_lock(1)",
        "do $$begin perform pg_advisory_lock(1); end$$",
        "select proname from pg_proc where proname = 'pg_advisory_lock'",
        "notify a",
        "select listen from t",
        "select 'listen a'",
        "create table temp (a int)",
        "insert into temp values (1)",
        "insert into temp (a) select a from t",
        "merge into temp t using x on true when matched then delete",
        "insert into pg_temp.t values (1)",
        "create table t as select a from pg_temp.x",
        "create index i on pg_temp.t (a)",
        "create table t (temp int, temporary int)",
        "select temp from t",
        "drop table pg_temp.t",
        "declare c cursor for select 1",
        "declare c cursor without hold for select 1",
        "declare c cursor for with hold as (select 1) select * from hold",
        "prepare transaction 'x'",
        "commit prepared 'x'",
        "deallocate p",
        "deallocate all",
        "grant execute on function f to app",
        "create trigger x before insert on t execute function f()",
        "select load from t",
        "insert into t values (1)",
        "",
    ],
}


@pytest.mark.parametrize(("text", "leaves"), [(text, kind) for kind, texts in LEAVES.items() for text in texts])
def test_leaves(text: str, leaves: Leaves | None) -> None:
    """What a text leaves in the session that nobody can hold: not what a string, a comment or a name says."""
    assert analyse(text).leaves is leaves


def test_quoted_locks_are_for_the_primary() -> None:
    """A quoted name is a call as well."""
    assert analyse('select "pg_advisory_xact_lock"(1)').primary_only
    assert analyse('select "pg_advisory_lock"(1)').keeps_state


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


TRANSACTIONS = [
    # the text, whether it: controls a transaction; ends one; has something behind its end; begins another at its end
    ("select 1", (False, False, False, False)),
    ("begin", (True, False, False, False)),
    ("commit", (True, True, False, False)),
    ("commit; select 1", (True, True, True, False)),
    ("commit; savepoint a", (True, True, True, False)),
    ("begin; select 1; commit", (True, True, False, False)),
    ("begin; commit; begin; commit", (True, True, True, False)),
    ("commit and chain", (True, True, False, True)),
    ("rollback work and chain", (True, True, False, True)),
    ("commit and chain; select 1", (True, True, True, False)),
    ("rollback", (True, True, False, False)),
    ("rollback to a; select 1", (True, False, False, False)),
    ("rollback transaction to savepoint a; select 1", (True, False, False, False)),
    ("rollback prepared 'x'; select 1", (True, False, False, False)),
    ("commit prepared 'x'; select 1", (True, False, False, False)),
    ("prepare transaction 'x'; select 1", (True, True, True, False)),
    ("create procedure p() begin atomic end; commit; select 1", (True, True, True, False)),
    ("with begin as (select 1) select * from begin atomic; commit; select 1", (True, True, True, False)),
    ("create function f() returns int begin atomic select 1; end", (False, False, False, False)),
    ("create function f() returns int begin atomic select 1; select 2; end", (False, False, False, False)),
    ("create function f() returns int begin atomic select 1; end; commit; select 1", (True, True, True, False)),
]


@pytest.mark.parametrize(("text", "expected"), TRANSACTIONS)
def test_transactions(text: str, expected: tuple[bool, ...]) -> None:
    """What a text does to transactions is known by its text."""
    statement = analyse(text)
    assert (statement.controls, statement.ends, statement.parted, statement.chains) == expected


@pytest.mark.parametrize(
    "text", ["lock t", "set a = 1", "SHOW a", "notify a", "listen a", "fetch c", "checkpoint", "begin", "savepoint a"]
)
def test_takes_no_snapshot(text: str) -> None:
    """The statements that PostgreSQL's PlannedStmtRequiresSnapshot names."""
    assert not analyse(text).takes_snapshot
    assert analyse("select 1").takes_snapshot


@pytest.mark.parametrize(
    "text",
    [
        "set transaction_read_only = off",
        'set local "transaction_read_only" to off',
        'reset "transaction_read_only"',
        'set U&"transaction\\005fread_only" = off',
        'select 1; set "transaction_read_only" = off',
        "set transaction read write",
    ],
)
def test_asks_for_more_than_reads(text: str) -> None:
    """What would let a write through on a standby that was promoted."""
    assert analyse(text).primary_only
    assert not analyse('set "work_mem" = 1').primary_only
    assert not analyse('select "transaction_read_only" from t').primary_only


COPIES = [
    ("copy t to stdout", True),
    ("copy (select 1) to stdout (format csv)", True),
    ("copy (insert into t values (1) returning a) to stdout", False),
    ("copy (select nextval('s')) to stdout", False),
    ("copy (select * from t for update) to stdout", False),
    ("copy (select * from t for share) to stdout", False),
    ("copy (update t set a = 1 returning a) to stdout", False),
    ("copy t from stdin", False),
    ("copy t to stdout; select 1", False),
    ("select 1", False),
]


@pytest.mark.parametrize(("text", "copies_out"), COPIES)
def test_copies_out(text: str, copies_out: bool) -> None:
    """A COPY that only hands out what it reads is known by its text."""
    assert analyse(text).copies_out is copies_out


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
    """What is not ended goes on to the end of the text, as for PostgreSQL, which refuses it."""
    for text in ("select 'a; commit", "select 1 /* a; commit", "select $a$ 1; commit", 'select "a; commit', "select e'a; commit"):
        assert analyse(text).single
        assert not analyse(text).one


@pytest.mark.timeout(20)
@pytest.mark.parametrize("piece", ["$a{0}$ ", "'", "e'", "/*", '"', "e'\\''\n", "x'", "$$ $a$ ", "--", "U&'"])
def test_bounded(piece: str) -> None:
    """The time that a text takes grows with its length alone, whatever it is made of (it was 9 s for 8,000 dollar quotes)."""
    text = "".join(piece.format(number) for number in range(100_001))
    analyse(text)
    binds_outside_quotes(text)


ONE = ["select 1", "select 1;", "select 1 ; ;\n", "insert into t values (1)", "select 1 -- note", "select $$ a $$"]
NOT_ONE = [
    "select 1; select 2",
    "select ';'",
    "select 1; -- note",
    "-- a\rcommit; insert into t values (1)",
    "select E'a'\n'\\'; commit; insert into t values (1); --'",
    "select 1 as \U0001f600$x$ ; commit; insert into t values (1); select 1 as \U0001f600$x$",
    "select e'\\'; commit; select '",
    "commit",
    "",
]


@pytest.mark.parametrize(("text", "one"), [(text, True) for text in ONE] + [(text, False) for text in NOT_ONE])
def test_one(text: str, one: bool) -> None:
    """Certainly one statement is what has no semicolon but trailing ones; what a string or a comment holds is not looked at."""
    assert analyse(text).one is one


OUTSIDE = [
    "select %s",
    "select * from t where a = %(a)s and b = 'it''s' and c = %s",
    "select %s -- note\n, %s",
    "select 'a%%b', %s, \"a;b\"",
    "select /* note */ %s - -1 / 2",
    "select a from t where j @> '$.x' and b = %s and j @> '$.y'",
    "select 'semi;colon', %s",
    "select $1, %s",
]
MAYBE_INSIDE = [
    "select '%s'",
    "select interval '%s days'",
    'select "%s"',
    "select -- %s\n1",
    "select /* %s */ 1",
    "select $$ %s $$",
    "select $a$ %s $a$",
    "select '\\', %s",
    "select E'\\'', %s, '",
    "select -- it's\n %s",
    "select /* it's */ %s",
    "select /* /* */ %s */ 1",
    "select 'a' || %s || 'not ended",
    "select -- a\r'%s'",
]


@pytest.mark.parametrize(("template", "outside"), [(text, True) for text in OUTSIDE] + [(text, False) for text in MAYBE_INSIDE])
def test_binds_outside_quotes(template: str, outside: bool) -> None:
    """A value is put in the place of a placeholder only where that is certainly outside of strings, names and comments."""
    assert binds_outside_quotes(template) is outside


def test_names() -> None:
    """Any identifier counts, wherever it stands, with or without a parenthesis."""
    functions = frozenset({"ping", "weird name", "caf\u00e9"})
    for text in (
        "select ping()",
        "select PING /* x */ ()",
        "select s . ping (1)",
        "select i.ping from item i",
        'select "ping"(1)',
        "select 'ping'",
        "select 1 -- ping",
        'select U&"\\0070ing"(1)',
        "select Caf\u00e9()",
        f"select {'x' * 64}()",
    ):
        assert analyse(text).calls_any(functions), text
    for text in ("select pinged()", "select my_ping()", "select 1"):
        assert not analyse(text).calls_any(functions), text
    assert not analyse("select ping()").calls_any(frozenset())


@pytest.mark.parametrize(
    "name",
    [
        *("pg_notify", "pg_logical_emit_message", "pg_try_advisory_lock", "lo_export", "ts_stat", "query_to_xml", "setseed"),
        *("pg_create_logical_replication_slot", "pg_stat_reset_shared", "pg_switch_wal", "gin_clean_pending_list", "nextval"),
        *("brin_summarize_new_values", "pg_export_snapshot", "pg_reload_conf", "dblink_exec", "pg_terminate_backend"),
    ],
)
def test_built_in_functions_that_act(name: str) -> None:
    """A text with the name of a built-in function that acts is no read, nor is it one where the name is quoted."""
    assert not analyse(f"select {name}(1)").reads
    assert not analyse(f"select {name.upper()} (1)").reads
    assert not analyse(f'select "{name}"(1)').reads


def test_names_that_only_look_like_them() -> None:
    """A longer name is another one."""
    for name in ("pg_notify_log", "lo_exports", "setseeds", "pg_replication_slots", "pg_stat_activity", "random"):
        assert analyse(f"select {name} from t").reads, name


def test_what_a_rollback_does_not_undo() -> None:
    """Programs, other databases and files stay as they are."""
    for text in (
        "copy t to program 'x'",
        "COPY (select 1) TO PROGRAM 'x'",
        "select dblink('a', 'b')",
        "select lo_export(1, 'x')",
    ):
        assert analyse(text).beside, text
    for text in ("copy t to stdout", "select program from t", "select pg_notify('a', 'b')"):
        assert not analyse(text).beside, text


def test_makes_functions() -> None:
    """Behind what may make or change functions, their names are asked for again."""
    for text in ("create function f() returns int language sql as 'select 1'", "CREATE OR REPLACE PROCEDURE p() AS $$ $$"):
        assert analyse(text).makes_functions, text
    for text in ("drop function f", "alter function f stable", "create extension citext", "drop schema s cascade"):
        assert analyse(text).makes_functions, text
    for text in ("create table t (a int)", "select 'create function'", "call p()"):
        assert not analyse(text).makes_functions, text


def test_long_text_is_not_kept() -> None:
    """A text over 16 KiB gives the same answer as a short one."""
    assert analyse("select " + "1," * 20_000 + "1").reads


CHANGES = [
    ("a read changes nothing", "select 1", False),
    ("a write does", "insert into t values (1)", True),
    ("nor does what begins a transaction", "begin", False),
    ("nor what ends one: what it did was noted before", "commit", False),
    ("nor a ping", "", False),
    ("nor a session's setting", "set search_path = a", False),
    ("nor one that is made by a function", "select set_config('a.b', 'c', false)", False),
    ("nor maintenance", "vacuum t", False),
    ("COPY may", "copy t from stdin", True),
    ("so may what was prepared", "execute p", True),
    ("and what ends a prepared transaction", "commit prepared 'x'", True),
    ("several statements may, whatever the first is", "set a = 1; insert into t values (1)", True),
    ("also where all of them are settings: nobody looks at each", "set a = 1; set b = 2", True),
    ("what calls a function that acts does", "select nextval('s')", True),
]


@pytest.mark.parametrize(("text", "changes"), [row[1:] for row in CHANGES], ids=[row[0] for row in CHANGES])
def test_may_change(text: str, changes: bool) -> None:
    """After what a reader may see something else."""
    assert analyse(text).may_change is changes


def test_verb() -> None:
    """It is the first statement's."""
    assert analyse("set a = 1; select 1").verb == "SET"


def test_identifiers() -> None:
    """A double quote is told only where there is one: a name may be anything then. PostgreSQL keeps 63 bytes of a name."""
    assert identifiers('select "a b"') == {"select", "a", "b", '"'}
    assert identifiers("select A") == {"select", "a"}
    assert not analyse(f"select {'x' * 63}()").names_unknown
    assert analyse(f"select {'x' * 64}()").names_unknown
    assert not analyse('select U&"\\0070ing"(1)').calls_any(frozenset()), "where no function may write, none does"


TOUCHES = [
    "set a = 1",
    " /* a */ set a.b to 1",
    "set session a = 1",
    "set time zone 'UTC'",
    "set local.a = 1",
    "set transaction . a = 1",
    "reset a",
    "discard all",
    "select 1; set a = 1",
    "select set_config('a.b', '1', true)",
    "select \"set_config\"('a.b', '1', true)",
    "update pg_settings set setting = 1",
]
TOUCHES_NOTHING = [
    "set local a = 1",
    "set  transaction read only",
    "set constraints all deferred",
    "settle",
    "update t set a = 1",
    "select * from pg_settings",
    "select 'set a = 1'",
    "show a",
]


@pytest.mark.parametrize("text", TOUCHES + TOUCHES_NOTHING)
def test_touches_session(text: str) -> None:
    """What may set something for the session: `read_change` says what."""
    assert analyse(text).touches_session is (text in TOUCHES)


def test_identifiers_of_any_letters() -> None:
    """Every character beyond ASCII is a letter, as in PostgreSQL's scanner, and so is _; names go on with digits and $."""
    for code in (*range(0x3000), 0xFFFF, 0x10000, 0x10FFFF):
        character = chr(code)
        letter = character == "_" or code > 0x7F or character.isalpha()
        assert (re.fullmatch(statement._LETTER, character) is not None) is letter
        assert (re.fullmatch(statement._IN_NAME, character) is not None) is (letter or character in "0123456789$")
        assert (re.fullmatch(f"[^{statement._NO_WORD}]", character) is not None) is (letter or character in "0123456789")
