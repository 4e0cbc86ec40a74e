"""All SQL of ours means the same whatever a caller has set: names and operators are qualified, and dates travel as numbers."""

import ast
import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from psycopg import waiting

import ps_core
import ps_http
from ps_core import Connection
from ps_core._endpoint import EndpointState
from ps_core._message import commit
from ps_core._message.commit import Outcome, marker_table_sql
from ps_core._message.script import Script, Setting
from ps_core.consistency import guard_sql
from ps_core.failures import Kind, classify
from ps_core.topology import Endpoint, Topology
from ps_lab import Lab
from tests.ps_core.test_healing import commit_waits

PACKAGES = ("ps_core", "ps_http", "ps_sqlalchemy", "ps_django")
_IS_SQL: Final = re.compile(r"(SELECT|INSERT INTO|CREATE|UPDATE|DELETE|WITH|VALUES|CASE WHEN)\s.*|pg_catalog\..*", re.DOTALL)
_KEYWORDS: Final = {
    *(
        "ALL",
        "AND",
        "ANY",
        "ARRAY",
        "AS",
        "CASE",
        "CAST",
        "COALESCE",
        "EXISTS",
        "EXTRACT",
        "FROM",
        "GREATEST",
        "NOT",
        "ON",
        "OPERATOR",
        "VALUES",
    ),
    "ps_commit_marker",  # the columns of a table
}
_FORBIDDEN: Final = re.compile(r"\b(IN|LIKE|ILIKE|BETWEEN|NULLIF|SIMILAR|DISTINCT|now|timestamptz)\b")
"""What finds an operator by search_path without naming it, and dates as text."""


def texts() -> Iterator[tuple[str, str]]:
    """Yield every SQL text in the sources of the three packages, with where it stands; what a format fills in is 0."""
    for package in PACKAGES:
        spec = find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        for file in sorted(Path(spec.origin).parent.rglob("*.py")):
            tree = ast.parse(file.read_text())
            # Docstrings, and what is a part of an f-string.
            parts = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
            parts |= {id(value) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for value in node.values}
            for node in ast.walk(tree):
                text = text_of(node)
                if id(node) not in parts and text is not None and _IS_SQL.fullmatch(text) and "\\" not in text:
                    yield f"{package}/{file.name}:{node.lineno}", text  # type: ignore[attr-defined]


def text_of(node: ast.AST) -> str | None:
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.Constant(value=bytes(raw)):
            return raw.decode()
        case ast.JoinedStr(values=values):
            return "".join("0" if isinstance(value, ast.FormattedValue) else text_of(value) or "" for value in values)
    return None


def unqualified(text: str) -> list[str]:
    """Return what in a text is found by search_path, or depends on a setting."""
    bare = re.sub(r"'(?:[^']|'')*'", "''", text)
    found = [match[0] for match in _FORBIDDEN.finditer(bare) if f"pg_catalog.{match[0]}" not in bare]
    found += [
        match[0]
        for match in re.finditer(r"(?:(\w+)\.|(?<![\w.\"]))(\w+)\s*\(", bare)
        if match[1] != "pg_catalog" and (match[1] or match[2] not in _KEYWORDS)
    ]
    found += [match[0] for match in re.finditer(r"::(?!pg_catalog\.)\w+", bare)]
    found += [match[0] for match in re.finditer(r"\bAS (?!int\b|pg_catalog\.)\w+\)(?! AS)", bare) if "CAST(" in bare]
    found += [
        match[0]
        for match in re.finditer(r"\b(?:FROM|INTO|JOIN)\s+(?!pg_catalog\.|\"|\(|GREATEST\(|CURRENT_TIMESTAMP\b)\S+", bare)
    ]
    rest = re.sub(r"OPERATOR\(pg_catalog\.[^)]+\)|::|%[sd]|\(\*\)", " ", bare)
    return found + re.findall(r"[<>=+*/~!@#&|^-]+", rest)


@pytest.mark.fast
@pytest.mark.parametrize(("where", "text"), list(texts()))
def test_all_names_are_qualified(where: str, text: str) -> None:
    """Every SQL text in the sources names the schema of each function, operator, type and table."""
    assert not unqualified(text), where


@pytest.mark.fast
def test_all_texts_are_found() -> None:
    """The list holds what is known to be sent, and what is not qualified is found."""
    found = "\n".join(text for _, text in texts())
    for part in ("set_config('statement_timeout',CASE", "pg_settings", "pg_logical_emit_message", "to_regtype", "pg_backend_pid"):
        assert part in found
    assert '"%s".ps_commit_marker' in found
    for wrong in (
        "SELECT now()",
        "SELECT pg_catalog.left(x(),8)",
        "SELECT 1=1",
        "SELECT a.b('')",
        "SELECT 1 FROM pg_settings",
        "SELECT ''::text",
        "SELECT CAST(1 AS text)",
        "SELECT name IN ('a')",
        "INSERT INTO ps_commit_marker VALUES ('')",
    ):
        assert unqualified(wrong), wrong


ROLE = "hijacked"
SETTINGS = {
    "search_path": "hijack, pg_catalog, public",
    "DateStyle": "German, DMY",
    "TimeZone": "Asia/Kolkata",
    "IntervalStyle": "sql_standard",
    "statement_timeout": "1234ms",
}


def hijack(lab: Lab) -> None:
    """Put a function, an operator, a type and a table that fail in front of each that our SQL names."""
    sent = "\n".join(
        [*(text for _, text in texts()), guard_sql(1).decode(), Script.set_config([Setting(b"a.b", b"'c'")]).decode()]
    )
    names = sorted({*re.findall(r"pg_catalog\.(\w+)\(", sent), "now", "extract", "date_part"})
    lab.sql("CREATE SCHEMA hijack")
    lab.sql(
        "CREATE FUNCTION hijack.fail(name text) RETURNS int LANGUAGE plpgsql STABLE AS"
        " $$ BEGIN RAISE EXCEPTION 'hijacked: %', name; END $$"
    )
    functions = lab.sql(
        "SELECT proname, ARRAY(SELECT format_type(a, NULL) FROM unnest(proargtypes) a), format_type(prorettype, NULL)"
        " FROM pg_proc"
        " WHERE pronamespace = 'pg_catalog'::regnamespace AND proname = ANY(%s::text[]) AND prokind = 'f' AND NOT proretset"
        " AND NOT EXISTS (SELECT 1 FROM unnest(proargtypes) a WHERE a::regtype::text LIKE 'any%%')",
        names,
    )
    assert {name for name, _, _ in functions} >= {"pg_is_in_recovery", "set_config", "current_setting", "left", "pg_xact_status"}
    for name, arguments, result in functions:
        lab.sql(
            f'CREATE FUNCTION hijack."{name}"({", ".join(arguments)}) RETURNS {result} LANGUAGE plpgsql STABLE AS'
            f" $$ BEGIN PERFORM hijack.fail('{name}'); RETURN NULL; END $$"
        )
    for operator in sorted(set(re.findall(r"OPERATOR\(pg_catalog\.([^)]+)\)", sent))):
        for types in ("text", "pg_lsn", "oid", "name", "numeric", "uuid"):
            function = f"hijack.{types}_{'_'.join(str(ord(character)) for character in operator)}"
            lab.sql(
                f"CREATE FUNCTION {function}({types}, {types}) RETURNS bool LANGUAGE plpgsql STABLE AS"
                f" $$ BEGIN PERFORM hijack.fail('{operator}'); RETURN NULL; END $$"
            )
            lab.sql(f"CREATE OPERATOR hijack.{operator} (FUNCTION = {function}, LEFTARG = {types}, RIGHTARG = {types})")
    for table in sorted({*re.findall(r"FROM pg_catalog\.(\w+)", sent), "ps_commit_marker"}):
        lab.sql(f"CREATE TABLE hijack.{table} (name text)")
    for types in sorted({*re.findall(r"::pg_catalog\.(\w+)", sent), "pg_lsn"}):
        lab.sql(f"CREATE DOMAIN hijack.{types} AS pg_catalog.{types} CHECK (false)")


@pytest.fixture(scope="module")
def hijacked(ps_lab: Lab) -> Iterator[Topology]:
    """A role whose every session has another schema in front of pg_catalog, and other forms of dates."""
    url = ps_lab.create_role(ROLE)
    ps_lab.sql('CREATE SCHEMA "o""wn"')
    ps_lab.sql(marker_table_sql('o"wn'))
    hijack(ps_lab)
    ps_lab.sql("CREATE TABLE public.hijacked (id int)")
    for schema in ("hijack", '"o""wn"'):
        ps_lab.sql(f"GRANT ALL ON SCHEMA {schema} TO {ROLE}")
        ps_lab.sql(f"GRANT ALL ON ALL TABLES IN SCHEMA {schema} TO {ROLE}")
    ps_lab.sql(f"GRANT ALL ON public.hijacked TO {ROLE}")
    for name, value in SETTINGS.items():
        ps_lab.sql(f"ALTER ROLE {ROLE} SET {name} = {value if name == 'search_path' else repr(value)}")
    ps_lab.wait_replicas_caught_up()
    for server in ps_lab.servers:  # a pooler's connections have what their role had when they logged in
        server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", ROLE)
    yield Topology.from_url(url, bouncer="write-pool", replica_bouncer="read-pool", marker_schema='o"wn')
    ps_lab.sql("DROP TABLE public.hijacked")
    ps_lab.sql('DROP SCHEMA hijack, "o""wn" CASCADE')
    ps_lab.drop_role(ROLE)
    ps_lab.wait_replicas_caught_up()


def state_of(endpoint: Endpoint, lab: Lab) -> EndpointState:
    return EndpointState(endpoint=endpoint, identity=lab.branch, tracks=True)


def test_hijacked_for_sure(hijacked: Topology) -> None:
    """Unqualified, each of them fails: the schema in front is in force on every path."""
    for endpoint in (hijacked.primary, hijacked.direct, *hijacked.replicas):
        for query in ("SELECT pg_is_in_recovery()", "SELECT 'a'::text", "SELECT '1'::pg_catalog.oid = '1'::pg_catalog.oid"):
            with psycopg.connect(**ps_core.conninfo(endpoint), autocommit=True) as conn, pytest.raises(psycopg.Error):
                conn.execute(query)


@pytest.mark.parametrize(
    "text", [text for _, text in texts() if text.startswith("SELECT") and "%" not in text and text != "SELECT "]
)
def test_hijacked_texts(hijacked: Topology, text: str) -> None:
    """Each whole text without parameters is answered as it is to a role that has set nothing."""
    with psycopg.connect(**ps_core.conninfo(hijacked.direct), autocommit=True) as conn:
        assert conn.execute(text.encode()).fetchall()


def test_hijacked_reads_and_writes(ps_lab: Lab, hijacked: Topology) -> None:
    """Limits, positions, guard and role are read right: a late replica is found late, and nothing else is refused."""
    primary, replica = state_of(hijacked.primary, ps_lab), state_of(hijacked.replicas[0], ps_lab)
    with ExitStack() as stack:
        block = stack.enter_context(ps_core.use_token(None))
        writer = stack.enter_context(Connection.open(primary))
        reader = stack.enter_context(Connection.open(replica, autocommit=True))
        assert primary.role is not None
        assert primary.role["statement_timeout"] == 1234
        stack.callback(ps_lab.set_replay_delay, 0)
        ps_lab.set_replay_delay(20)
        writer.execute("INSERT INTO public.hijacked VALUES (1)")
        transaction = writer._transaction
        assert transaction is not None
        ((now,),) = ps_lab.sql("SELECT extract(epoch from now())")
        assert abs(float(transaction.at) - float(now)) < 30
        assert transaction.role == "none"
        writer.commit()
        assert block.token is not None
        assert block.token.position is not None
        with pytest.raises(psycopg.Error) as late:
            reader.execute("SELECT 1")
        assert classify(late.value).kind is Kind.BEHIND
        ps_lab.set_replay_delay(0)
        assert reader.execute("SELECT id FROM public.hijacked").fetchall() == [(1,)]
        with ps_core.local_settings({"app.tenant": "7"}):
            writer.autocommit = True
            with writer.pipeline():
                assert writer.execute("SELECT pg_catalog.current_setting('app.tenant')").fetchone() == ("7",)
    ps_lab.sql("TRUNCATE public.hijacked")


def test_hijacked_requests(ps_lab: Lab, hijacked: Topology) -> None:
    """Over HTTPS, too, limits, local settings and guard are read right."""
    asked = "SELECT pg_catalog.current_setting('statement_timeout'), pg_catalog.current_setting('app.tenant')"
    with (
        ps_http.Client(hijacked) as client,
        ps_core.use_token(None) as block,
        ps_core.local_settings({"app.tenant": "7"}),
        ps_core.limits(statement="1s"),
    ):
        client.execute("INSERT INTO public.hijacked VALUES (1)")
        assert client.execute(asked).one() == ("1s", "7")
        assert block.token is not None
        assert block.token.position is not None
        ps_lab.wait_replicas_caught_up()
        assert client.execute("SELECT id FROM public.hijacked").one() == (1,)
        with ps_core.limits(statement="60s"):
            assert client.execute(asked).one() == ("1234ms", "7")
    ps_lab.sql("TRUNCATE public.hijacked")


@pytest.mark.parametrize("check", ["id", "marker", "verify"])
def test_hijacked_lookups(ps_lab: Lab, hijacked: Topology, check: str) -> None:
    """What became of a COMMIT is found, by whichever lookup; the marker is where the setting says."""
    state = state_of(hijacked.primary, ps_lab)
    told: list[Any] = []
    verify = "SELECT true FROM public.hijacked" if check == "verify" else None
    text = "INSERT INTO public.hijacked VALUES (1)" + ("; SELECT 2" if check == "verify" else "")

    def work() -> None:
        with Connection.open(state) as conn, ps_core.commit_check(marker=check == "marker", verify=verify):
            conn.execute(text)
            try:
                conn.commit()
                told.append("committed")
            except psycopg.Error as exc:
                told.append(exc)

    with ExitStack() as refused:
        with commit_waits(ps_lab) as waits:
            thread = threading.Thread(target=work)
            thread.start()
            waits()
            refused.enter_context(ps_lab.edge.refuse("57P03", "the database system is starting up"))
            ps_lab.edge.cut("primary")
    thread.join(30)
    assert told == ["committed"]
    if check == "marker":
        assert ps_lab.sql('SELECT count(*), bool_and(committed) FROM "o""wn".ps_commit_marker') == [(1, True)]
        assert ps_lab.sql("SELECT count(*) FROM hijack.ps_commit_marker") == [(0,)]
        with Connection.open(state) as conn, psycopg.connect(**ps_core.conninfo(hijacked.direct), autocommit=True) as donor:
            lookup = commit.lookup_of_marker("5f1f1c0e-0000-4000-8000-000000000000", 'o"wn', "on")
            answer = waiting.wait(conn._look_up_gen(donor, lookup, float("inf")), donor.fileno())
            assert answer is Outcome.ROLLED_BACK
    ps_lab.sql("TRUNCATE public.hijacked")


class Instrumented(psycopg.Cursor[Any]):
    """What OpenTelemetry's instrumentation of psycopg makes of a cursor, with its SQLCommenter: it appends to a string."""

    def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        return super().execute(query + " /*traceparent='00'*/", *args, **kwargs)


def test_instrumented_psycopg(ps_lab: Lab, table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes over psycopg's own cursors is a string; a lookup is answered, and a lab answers."""
    monkeypatch.setattr("psycopg.connection.Cursor", Instrumented)
    assert ps_lab.sql("SELECT %s::int", 1) == [(1,)]
    assert ps_lab.bouncers["local"].admin("SHOW VERSION")
    state = state_of(ps_lab.topology.direct, ps_lab)
    told: list[str] = []

    def work() -> None:
        with Connection.open(state) as conn:
            conn.execute(f"INSERT INTO {table} VALUES (1)")
            conn.commit()
            told.append("committed")

    with commit_waits(ps_lab) as waits:
        thread = threading.Thread(target=work)
        thread.start()
        waits()
        ps_lab.edge.cut("direct")
    thread.join(30)
    assert told == ["committed"]
