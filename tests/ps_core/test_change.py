"""What a text does to a session that the pooler does not keep, decided without a server: each row is a sentence."""

import pytest

from ps_core._message.change import Change, NotHeld, modes_named, read_change, read_savepoints

pytestmark = pytest.mark.fast

SETS: list[tuple[str, str, str, tuple[str, ...]]] = [
    ("SET becomes SET LOCAL", "SET work_mem = '8MB'", "SET LOCAL work_mem = '8MB'", ("work_mem",)),
    ("TO is the same", "set work_mem to '8MB'", "set LOCAL work_mem to '8MB'", ("work_mem",)),
    ("SESSION is replaced, and positions stay", "SET SESSION work_mem = 8", "SET LOCAL   work_mem = 8", ("work_mem",)),
    (
        "comments stay where they are",
        "/* a */ SET/* b */work_mem=8 -- c",
        "/* a */ SET LOCAL/* b */work_mem=8 -- c",
        ("work_mem",),
    ),
    ("a semicolon behind it is no second statement", "SET work_mem = 8 ;", "SET LOCAL work_mem = 8 ;", ("work_mem",)),
    ("names have two parts, or more", "SET app.a.tenant = 1", "SET LOCAL app.a.tenant = 1", ("app.a.tenant",)),
    ("whatever case they are in", 'SET App."Te""n" = 1', 'SET LOCAL App."Te""n" = 1', ('app.te"n',)),
    ("old names are those of today", "SET sort_mem = 8", "SET LOCAL sort_mem = 8", ("work_mem",)),
    ("both", "SET vacuum_mem = 8", "SET LOCAL vacuum_mem = 8", ("maintenance_work_mem",)),
    ("a keyword may begin a name", "SET session.tenant = 1", "SET LOCAL session.tenant = 1", ("session.tenant",)),
    ("any", "SET local . tenant = 1", "SET LOCAL local . tenant = 1", ("local.tenant",)),
    ("of them", "SET SESSION role.a = default, 1", "SET LOCAL   role.a = default, 1", ("role.a",)),
    ("TIME alone is one", "SET time.zone = 1", "SET LOCAL time.zone = 1", ("time.zone",)),
    ("an unfinished name is the server's to refuse", "SET app. = 1", "SET LOCAL app. = 1", ("app",)),
    ("SCHEMA is the search_path", "SET SCHEMA 'a'", "SET LOCAL SCHEMA 'a'", ("search_path",)),
    ("unless it is a name", "SET schema = 'a'", "SET LOCAL schema = 'a'", ("schema",)),
    ("XML OPTION has a name of its own", "SET XML OPTION DOCUMENT", "SET LOCAL XML OPTION DOCUMENT", ("xmloption",)),
    ("a role is asked for", "SET ROLE clerk", "SET LOCAL ROLE clerk", ("role",)),
    ("as a setting, too", "SET role = clerk", "SET LOCAL role = clerk", ("role",)),
    ("and with TO", "SET role TO clerk", "SET LOCAL role TO clerk", ("role",)),
    ("NONE is a role", "SET SESSION ROLE NONE", "SET LOCAL   ROLE NONE", ("role",)),
    (
        "CHARACTERISTICS are the defaults that it names",
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
        "SET LOCAL SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
        ("default_transaction_read_only",),
    ),
    (
        "all of them",
        "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY, DEFERRABLE",
        "SET LOCAL SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY, DEFERRABLE",
        ("default_transaction_isolation", "default_transaction_read_only", "default_transaction_deferrable"),
    ),
    ("DEFAULT in a list is a value", "SET search_path = default, a", "SET LOCAL search_path = default, a", ("search_path",)),
    (
        "intervals in the driver's style",
        "SET IntervalStyle TO 'Postgres'",
        "SET LOCAL IntervalStyle TO 'Postgres'",
        ("intervalstyle",),
    ),
    (
        "set_config for the session is one for the transaction",
        "select set_config('app.a', 'x', false)",
        "select set_config('app.a', 'x', true )",
        ("app.a",),
    ),
    (
        "in PostgreSQL's schema, as a quoted name, with casts and parentheses",
        "select pg_catalog.\"set_config\"(('App.A'::text), ('x'::text), ('f'::bool))",
        "select pg_catalog.\"set_config\"(('App.A'::text), ('x'::text), ('t'::bool))",
        ("app.a",),
    ),
    ("NULL is false", "select set_config('a.b', f(1, (2)), NULL)", "select set_config('a.b', f(1, (2)), true)", ("a.b",)),
    ("so is a string", "select set_config('a.b', 'x', 'false')", "select set_config('a.b', 'x', 't'    )", ("a.b",)),
    (
        "each of several, wherever they are",
        "with a as (select set_config('a.b', 'true', false)) insert into t select set_config('work_mem', array['8'][1], 'no')",
        "with a as (select set_config('a.b', 'true', true )) insert into t select set_config('work_mem', array['8'][1], 't' )",
        ("a.b", "work_mem"),
    ),
    (
        "but for those of the transaction",
        "select set_config('a.b', 'x', true), set_config('a.c', 'x', false), set_config('a.d', 'x', 'on')",
        "select set_config('a.b', 'x', true), set_config('a.c', 'x', true ), set_config('a.d', 'x', 'on')",
        ("a.c",),
    ),
    (
        "and what the pooler keeps",
        "select set_config('TimeZone', 'UTC', false), set_config('a.c', 'x', false)",
        "select set_config('TimeZone', 'UTC', false), set_config('a.c', 'x', true )",
        ("a.c",),
    ),
    (
        "a string with escapes goes on in the next line",
        "select E'a'\n'it\\'s', set_config('a.b', 'x', false)",
        "select E'a'\n'it\\'s', set_config('a.b', 'x', true )",
        ("a.b",),
    ),
    (
        "so is a view that is filled",
        "create materialized view v as select set_config('a.b', 'x', false)",
        "create materialized view v as select set_config('a.b', 'x', true )",
        ("a.b",),
    ),
    (
        "and a table of one's own",
        "create local temporary table t as select set_config('a.b', 'x', false)",
        "create local temporary table t as select set_config('a.b', 'x', true )",
        ("a.b",),
    ),
    (
        "what is explained by doing it is done",
        "explain (analyze) select set_config('a.b', 'x', false)",
        "explain (analyze) select set_config('a.b', 'x', true )",
        ("a.b",),
    ),
    ("a semicolon in a string is none", "select set_config('a.b', ';', false)", "select set_config('a.b', ';', true )", ("a.b",)),
    ("nor in a dollar quote", "select set_config('a.b', $a$;$a$, false)", "select set_config('a.b', $a$;$a$, true )", ("a.b",)),
    ("nor with an escape", r"select set_config('a.b', E'\';', false)", r"select set_config('a.b', E'\';', true )", ("a.b",)),
    (
        "a function's call in a table that is made",
        "create table t as select set_config('a.b', 'x', false)",
        "create table t as select set_config('a.b', 'x', true )",
        ("a.b",),
    ),
    (
        "what has another number of arguments is none",
        "select set_config('a.b', false), set_config('a.b', 'x', false)",
        "select set_config('a.b', false), set_config('a.b', 'x', true )",
        ("a.b",),
    ),
    (
        "a cast may be to a quoted name",
        "select set_config('a.b'::\"text\", 'x', false)",
        "select set_config('a.b'::\"text\", 'x', true )",
        ("a.b",),
    ),
    (
        "a table may be called function",
        "create table function as select set_config('a.b', 'x', false)",
        "create table function as select set_config('a.b', 'x', true )",
        ("a.b",),
    ),
    (
        "intervals by the function",
        "select set_config('intervalstyle', 'postgres', false)",
        "select set_config('intervalstyle', 'postgres', true )",
        ("intervalstyle",),
    ),
]

DROPS: list[tuple[str, str, Change]] = [
    ("RESET lets go", "RESET work_mem", Change("RESET work_mem", drops=("work_mem",), is_way_out=True)),
    ("of what was SET by an old name, too", "reset sort_mem", Change("reset sort_mem", drops=("work_mem",), is_way_out=True)),
    ("so does DEFAULT", "SET app.a TO DEFAULT", Change("SET app.a TO DEFAULT", drops=("app.a",), is_way_out=True)),
    ("RESET ALL of all settings", "RESET ALL", Change("RESET ALL", drops_all=True, is_way_out=True)),
    ("but a name of two parts is one", 'RESET "all".a', Change('RESET "all".a', drops=("all.a",), is_way_out=True)),
    ("a keyword may begin a name", "RESET session.a", Change("RESET session.a", drops=("session.a",), is_way_out=True)),
    ("RESET ROLE of the role", "reset role", Change("reset role", drops_role=True, is_way_out=True)),
    ("as DEFAULT", "SET role = DEFAULT", Change("SET role = DEFAULT", drops_role=True, is_way_out=True)),
    ("DISCARD ALL of both", "DISCARD ALL", Change("DISCARD ALL", drops_all=True, drops_role=True, is_way_out=True)),
    (
        "IntervalStyle may always be reset",
        "SET IntervalStyle = DEFAULT",
        Change("SET IntervalStyle = DEFAULT", drops=("intervalstyle",), is_way_out=True),
    ),
]

NOTHING = [
    "SET LOCAL work_mem = '8MB'",
    "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
    "SET CONSTRAINTS ALL DEFERRED",
    "SET TIME ZONE 'UTC'",
    "SET SESSION TIME ZONE LOCAL",
    "SET timezone = 'UTC'",
    "SET SESSION DateStyle = 'ISO'",
    "SET NAMES 'utf8'",
    "SET client_encoding = 'utf8'",
    "SET standard_conforming_strings = off",
    "SET transaction_read_only = on",
    "SET transaction_isolation = serializable",
    "SET transaction_deferrable TO DEFAULT",
    "SET",
    "RESET",
    "RESET TIME ZONE",
    "RESET timezone",
    "RESET transaction_isolation",
    "RESET SESSION AUTHORIZATION",
    "RESET TRANSACTION ISOLATION LEVEL",
    "DISCARD PLANS",
    "DISCARD",
    "",
    "select 1",
    "select 'set_config(''a.b'', ''x'', false)'",
    "select 1 -- set_config('a.b', 'x', false)",
    "select 1 /* set_config('a.b', /* */ 'x', false) */",
    "select set_config from t",
    "select set_config('a.b', 'x')",
    "select mine.set_config('a.b', 'x', false)",
    "select set_config('TimeZone', 'UTC', false)",
    "select set_config('transaction_isolation', 'serializable', false)",
    "select set_config(a, b, true) from t",
    "select set_config(a, b, 't'::bool) from t",
    "select f('a.b', 'x', false)",
    "update t set setting = (select setting from pg_settings limit 1)",
    "update t set a = 1 from only pg_settings",
    "create view v as select set_config('a.b', 'x', false)",
    "create or replace view v as select set_config('a.b', 'x', false)",
    "create rule r as on update to t do also select set_config('a.b', 'x', false)",
    "update t set a = pg_settings",
    "create table t (a text default set_config('a.b', 'x', false))",
    "explain select set_config('a.b', 'x', false)",
    "declare c cursor for select set_config('a.b', 'x', true)",
    "select E'a'\n'\\', set_config(''a.b'',''v'',false)'",
    "select E'a' -- c'\n -- d\n'\\', set_config(''a.b'',''v'',false)'",
    "select set_config('a.b', $a$;, false)",
    "create function f() returns text begin atomic select set_config('a.b', 'x', false); end",
    "create or replace function table() returns text begin atomic select set_config('a.b', 'x', false) as a; end",
    "create or replace procedure p() begin atomic select set_config('a.b', 'x', false); end",
    "alter function f() set search_path = a",
    "update t set a = 1",
    "select 1; select 2",
    "select 1; set local work_mem = 8; set timezone = 'UTC'",
]

FUNCTIONS = [
    (
        "NULL lets go",
        "select set_config('work_mem', NULL, false)",
        Change("select set_config('work_mem', NULL, false)", drops=("work_mem",)),
    ),
    (
        "of a role",
        "select set_config('role', null, false)",
        Change("select set_config('role', null, false)", drops_role=True, is_way_out=True),
    ),
    (
        "of one, while another is set",
        "select set_config('a.a', NULL::text, false), set_config('a.b', 'x', false)",
        Change("select set_config('a.a', NULL::text, false), set_config('a.b', 'x', true )", ("a.b",), ("a.a",)),
    ),
    (
        "a role by the function is a way out, too",
        "select set_config('role', 'none', false)",
        Change("select set_config('role', 'none', true )", ("role",), is_way_out=True),
    ),
    ("NULL of the transaction's is nothing", "select set_config('a.a', NULL, true)", None),
]

REFUSED: list[tuple[str, str]] = [
    ("SET SESSION AUTHORIZATION", "SET SESSION AUTHORIZATION a"),
    ("SET SESSION AUTHORIZATION", "SET SESSION SESSION AUTHORIZATION a"),
    ("SET SESSION AUTHORIZATION", "SET session_authorization = a"),
    ("SET SESSION AUTHORIZATION", "select set_config('session_authorization', 'a', false)"),
    ("SET seed", "SET seed = 0.5"),
    ("SET idle_session_timeout", "SET SESSION idle_session_timeout = 5"),
    ("SET IntervalStyle", "SET IntervalStyle = iso_8601"),
    ("SET IntervalStyle", "SET IntervalStyle = postgres, a"),
    ("SET IntervalStyle", "select set_config('IntervalStyle', f(), false)"),
    ("SET IntervalStyle", "select set_config('IntervalStyle', 'iso_8601', false)"),
    ("a text of several", "SET work_mem = 8; select 1"),
    ("a text of several", "select 1; RESET ALL"),
    ("a text of several", "begin; select set_config('a.b', 'x', false); commit"),
    ("a text of several", "select 1; SET seed = 1"),
    ("set_config() for", "select set_config(a, 'x', false) from t"),
    ("set_config() for", "select set_config(E'a.b', 'x', false)"),
    ("set_config() for", "select set_config('a' || '.b', 'x', false)"),
    ("set_config() for", "select set_config(a.b, 'x', false) from a"),
    ("set_config() for", "select set_config('a.b', 'x', a) from t"),
    ("set_config() for", "select set_config('a.b', 'x', not true)"),
    ("set_config() for", "select set_config('a.b', 'x', $1)"),
    ("set_config() for", "select set_config('a.b', 'x', is_local => false)"),
    ("an UPDATE", "UPDATE pg_settings SET setting = '8MB' WHERE name = 'work_mem'"),
    ("an UPDATE", 'with a as (update only pg_catalog."pg_settings" set setting = 1 returning 1) select 1 from a'),
    ("set_config() of one", "select set_config('a.b', 'x', true), set_config('a.b', 'y', false)"),
    ("set_config() of one", "select set_config('a.b', 'x', true), set_config('a.b', NULL, false)"),
    ("a cursor", "declare c cursor for select set_config('a.b', 'x', false)"),
    ("set_config() for", "select set_config('a\\b', 'x', false)"),
    ("set_config() for", "select set_config(NULL, 'x', false)"),
    ("set_config() for", "select set_config('a.b', 'x', )"),
    ("set_config() for", "select set_config($$a.b$$, 'x', false)"),
    ("set_config() for", "select set_config(\"a.b\", 'x', false)"),
    ("set_config() for", "select set_config('a.b', 'x', \"false\")"),
]


@pytest.mark.parametrize(("text", "sent", "asks"), [row[1:] for row in SETS], ids=[row[0] for row in SETS])
def test_sets(text: str, sent: str, asks: tuple[str, ...]) -> None:
    """What is held: how it is sent, and the values that are asked for."""
    change = read_change(text)
    assert isinstance(change, Change)
    assert (change.sent, change.asks) == (sent, asks)
    assert (change.drops, change.drops_all, change.drops_role) == ((), False, False)
    assert change.is_way_out == (asks == ("role",))
    assert change.by_set == text.lower().lstrip("/*ab ").startswith("set")
    # Where the text was made longer, and by how much.
    assert change.at == 0 or change.longer
    assert len(sent) - len(text) == change.longer
    assert sent[: change.at] + sent[change.at + change.longer :] == (text if change.longer else sent)


@pytest.mark.parametrize(("text", "change"), [row[1:] for row in DROPS], ids=[row[0] for row in DROPS])
def test_drops(text: str, change: Change) -> None:
    """What lets go of what is held: it is sent as it is, without that."""
    assert read_change(text) == change


@pytest.mark.parametrize(("text", "change"), [row[1:] for row in FUNCTIONS], ids=[row[0] for row in FUNCTIONS])
def test_functions(text: str, change: Change | None) -> None:
    """What `set_config` lets go of."""
    assert read_change(text) == change


@pytest.mark.parametrize("text", NOTHING)
def test_nothing_to_hold(text: str) -> None:
    """What is the transaction's, what the pooler keeps, and what sets nothing."""
    assert read_change(text) is None


@pytest.mark.parametrize(("why", "text"), REFUSED)
def test_refused(why: str, text: str) -> None:
    """What cannot be held, and what is not shown by the text."""
    refused = read_change(text)
    assert isinstance(refused, NotHeld)
    assert refused.why.startswith(why)


def test_questions() -> None:
    """Each value is asked for by its quoted name."""
    assert Change("", ("work_mem", 'app.te"n'), by_set=True).questions() == (b'SHOW "work_mem"', b'SHOW "app"."te""n"')
    by_function = b"SELECT pg_catalog.current_setting('app.a',true)"
    assert Change("", ("app.a",)).questions() == (by_function,)
    assert Change("").questions() == ()


@pytest.mark.parametrize(
    ("text", "done"),
    [
        ("SAVEPOINT a", [("savepoint", "a")]),
        ('savepoint "A b"', [("savepoint", "A b")]),
        ('savepoint "a""b"', [("savepoint", 'a"b')]),
        ("SAVEPOINT A", [("savepoint", "a")]),
        ("RELEASE a", [("release", "a")]),
        ("RELEASE SAVEPOINT a", [("release", "a")]),
        ("release savepoint savepoint", [("release", "savepoint")]),
        ("ROLLBACK TO a", [("rollback", "a")]),
        ("ROLLBACK WORK TO SAVEPOINT a", [("rollback", "a")]),
        ("ROLLBACK TRANSACTION TO a;", [("rollback", "a")]),
        ("ROLLBACK TO a; RELEASE a -- b", [("rollback", "a"), ("release", "a")]),
        (f"SAVEPOINT {'a' * 70}", [("savepoint", "a" * 63)]),
        (f"SAVEPOINT {'ä' * 70}", [("savepoint", "ä" * 31)]),
        ("select 1; SAVEPOINT a", [("savepoint", "a")]),
        ("ROLLBACK", []),
        ("ROLLBACK AND NO CHAIN", []),
        ("COMMIT", []),
        ("SAVEPOINT", []),
        ("RELEASE", []),
        ("select 1", []),
        ("", []),
    ],
)
def test_savepoints(text: str, done: list[tuple[str, str]]) -> None:
    """What a text does to savepoints, in order."""
    assert read_savepoints(text) == done


@pytest.mark.parametrize(
    ("text", "modes"),
    [
        ("BEGIN", ()),
        ("begin isolation level serializable", ("transaction_isolation",)),
        ("START TRANSACTION READ ONLY", ("transaction_read_only",)),
        ("BEGIN NOT DEFERRABLE, READ WRITE", ("transaction_read_only", "transaction_deferrable")),
        ("BEGIN -- isolation level", ()),
    ],
)
def test_modes(text: str, modes: tuple[str, ...]) -> None:
    """The modes that a BEGIN names."""
    assert modes_named(text) == modes


ESCAPES = "select 'x\\' , ' || set_config('a.b', 'v', false) -- '"


def test_escapes_in_every_string() -> None:
    """Where `standard_conforming_strings` is off, a string ends elsewhere."""
    assert read_change(ESCAPES) is None
    change = read_change(ESCAPES, escapes=True)
    assert isinstance(change, Change)
    assert change.asks == ("a.b",)
    text = "select 'it\\'s; SET work_mem = 1'"
    assert isinstance(read_change(text), NotHeld)
    assert read_change(text, escapes=True) is None
