"""What `POST /sql` is told, and says: what needs no server. The cases of conversions are those of Neon's own tests, and more."""

import json
from typing import Any

import pytest

from ps_lab.routes import Refusal
from ps_lab.sql_over_http import Batch, Login, Modes, Problem, command_and_count, json_of

pytestmark = pytest.mark.fast

URL = "postgresql://app.br123%7Creplica:pw%2Fx@host.pg.psdb.cloud/postgres"


def login(url: str, **headers: str) -> Login:
    """Parse a connection string."""
    return Login.parse({"neon-connection-string": url, **headers})


@pytest.mark.parametrize(
    ("url", "user", "password", "database", "address", "application_name", "options"),
    [
        # As the driver sends it.
        (
            URL + "?sslmode=verify-full&application_name=pkg%3Anpm%2F%2540neondatabase%2Fserverless%401.2.0",
            *("app.br123|replica", "pw/x", "postgres", None, "pkg:npm/%40neondatabase/serverless@1.2.0", ""),
        ),
        ("postgres://u|x:p@h:6432/d/e", "u|x", "p", "d", "h:6432", "", ""),
        ("postgresql://%C3%A9:%3A%40@h/%64", "é", ":@", "d", None, "", ""),
        ("postgresql://u:p@h/d?options=-c%20a%3D1&search_path=x", "u", "p", "d", None, "", "-c a=1 -c search_path=x"),
        ("postgresql://u:p@h/d?=1&search_path=x", "u", "p", "d", None, "", "-c search_path=x"),  # never an empty -c=
        ("postgresql://u:p@h/d?x=a+b%5C&connect_timeout=5&channel_binding=require", "u", "p", "d", None, "", r"-c x=a\ b\\"),
    ],
)
def test_connection_strings(
    url: str, user: str, password: str, database: str, address: str | None, application_name: str, options: str
) -> None:
    """All is percent-decoded; what is not for libpq itself becomes a startup parameter. No password is shown."""
    found = login(url)
    assert found == Login(user, password, database, address, application_name, options)
    assert repr(found) == f"<Login {user}>"


@pytest.mark.parametrize(
    ("url", "headers", "text"),
    [
        ("mysql://u:p@h/d", {}, "the protocol must be postgres or postgresql"),
        ("postgresql://h/d", {}, "missing username"),
        ("postgresql://u@h/d", {}, "missing password"),
        ("postgresql://u:p@h", {}, "missing database name"),
        ("postgresql://u:p@h/", {}, "missing database name"),
        ("postgresql://u:p@/d", {}, "the host must be a name"),
        ("postgresql://u:p@127.0.0.1/d", {}, "the host must be a name"),
        ("postgresql://u:p@[::1]/d", {}, "the host must be a name"),
        ("postgresql://u:p@[::1/d", {}, "could not be parsed"),
        ("postgresql://u:p@h:x/d", {}, "could not be parsed"),
        ("postgresql://u:%ff@h/d", {}, "could not be parsed"),
        ("postgresql://u:p@h/d", {"authorization": "Bearer x"}, "both a password and an Authorization header"),
        ("postgresql://u@h/d", {"authorization": "Bearer x"}, "JWT authentication is not set up"),
    ],
)
def test_bad_connection_strings(url: str, headers: dict[str, str], text: str) -> None:
    """They are the client's fault: 400, with a message and no code."""
    with pytest.raises(Problem, match=text) as problem:
        login(url, **headers)
    assert (problem.value.status, problem.value.body["message"], problem.value.body["code"]) == (400, str(problem.value), None)


def test_no_connection_string() -> None:
    """The header is required."""
    with pytest.raises(Problem, match="missing header: Neon-Connection-String"):
        Login.parse({})


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, Modes(raw=False, array=False, begin=b"BEGIN", echoed={})),
        (
            {"neon-raw-text-output": "true", "neon-array-mode": "true"},
            Modes(raw=True, array=True, begin=b"BEGIN", echoed={}),
        ),
        (
            {"neon-raw-text-output": "True", "neon-array-mode": "1", "neon-batch-read-only": "TRUE"},
            Modes(raw=False, array=False, begin=b"BEGIN", echoed={}),
        ),
        (
            {"neon-batch-isolation-level": "Serializable", "neon-batch-read-only": "true", "neon-batch-deferrable": "true"},
            Modes(
                raw=False,
                array=False,
                begin=b"BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY DEFERRABLE",
                echoed={
                    "Neon-Batch-Isolation-Level": "Serializable",
                    "Neon-Batch-Read-Only": "true",
                    "Neon-Batch-Deferrable": "true",
                },
            ),
        ),
    ],
)
def test_modes(headers: dict[str, str], expected: Modes) -> None:
    """A boolean header counts only as exactly "true"."""
    assert Modes.parse(headers) == expected


@pytest.mark.parametrize("level", ["serializable", "SERIALIZABLE", "READ COMMITTED", "Snapshot"])
def test_bad_isolation_level(level: str) -> None:
    """An isolation level is one of four words."""
    with pytest.raises(Problem, match="invalid isolation level"):
        Modes.parse({"neon-batch-isolation-level": level})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, None),
        (True, "true"),
        (False, "false"),
        (42, "42"),
        (1.5, "1.5"),
        ('foo"', 'foo"'),
        ("", ""),
        ("é", "é"),
        ({"a": [1, None]}, '{"a":[1,null]}'),
        ([], "{}"),
        ([True, False, None, "NULL", 42, "foo", 'bar"-\\'], r'{true,false,NULL,"NULL",42,"foo","bar\"-\\"}'),
        ([[True, False], [None, 42], ["foo", 'bar"-\\']], r'{{true,false},{NULL,42},{"foo","bar\"-\\"}}'),
        ([{"foo": 1}, {"bar": 2}], r'{"{\"foo\":1}","{\"bar\":2}"}'),
        # What the driver makes of values itself: only strings.
        (r"\x00ff", r"\x00ff"),
        ('{"1",{"2",NULL},"a\\"b"}', '{"1",{"2",NULL},"a\\"b"}'),
    ],
)
def test_parameters(value: Any, text: str | None) -> None:
    """The JSON of a parameter becomes text, or NULL."""
    batch = Batch.parse(json.dumps({"query": "SELECT $1", "params": [value]}).encode())
    assert batch.alone
    assert batch.queries[0].params == [text if text is None else text.encode()]


@pytest.mark.parametrize(
    ("body", "alone", "queries"),
    [
        ({"query": "SELECT 1"}, True, [(b"SELECT 1", [], None)]),
        ({"query": "SELECT $1", "params": ["x"], "arrayMode": True}, True, [(b"SELECT $1", [b"x"], True)]),
        ({"queries": []}, False, []),
        (
            {"queries": [{"query": "SELECT $1", "params": ["1"]}, {"query": "SELECT 2", "params": [], "arrayMode": False}]},
            False,
            [(b"SELECT $1", [b"1"], None), (b"SELECT 2", [], False)],
        ),
    ],
)
def test_bodies(body: Any, alone: bool, queries: list[tuple[bytes, list[bytes | None], bool | None]]) -> None:
    """A body is one query or a batch."""
    batch = Batch.parse(json.dumps(body).encode())
    assert (batch.alone, [(query.text, query.params, query.array) for query in batch.queries]) == (alone, queries)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"1",
        b"\xff",
        b"{}",
        b'{"query": 1}',
        b'{"query": "SELECT 1", "params": {}}',
        b'{"query": "SELECT $1", "params": [NaN]}',
        b'{"query": "SELECT $1", "params": ["\\ud800"]}',
        b'{"query": "SELECT 1", "arrayMode": 1}',
        b'{"queries": {}, "x": 1}',
        b'{"queries": ["SELECT 1"]}',
        b'{"queries": [{"params": []}]}',
    ],
)
def test_bad_bodies(body: bytes) -> None:
    """Anything else is refused."""
    with pytest.raises(Problem, match="could not parse the HTTP request body"):
        Batch.parse(body)


BOOL, BYTEA, INT8, INT2, INT4, TEXT, JSON, FLOAT4, FLOAT8, NUMERIC, JSONB = 16, 17, 20, 21, 23, 25, 114, 700, 701, 1700, 3802
BOOLS, INT4S, TEXTS, JSONBS, FLOAT8S, BIGINTS = 1000, 1007, 1009, 3807, 1022, 1016


@pytest.mark.parametrize(
    ("text", "oid", "value"),
    [
        ("foo", TEXT, "foo"),
        ("é\n", TEXT, "é\n"),
        ("t", BOOL, True),
        ("f", BOOL, False),
        ("42", INT4, 42),
        ("-42", INT2, -42),
        ("42", INT8, "42"),
        ("42.42", NUMERIC, "42.42"),
        ("42.42", FLOAT8, 42.42),
        ("1e-05", FLOAT4, 1e-05),
        ("NaN", FLOAT4, "NaN"),
        ("Infinity", FLOAT8, "Infinity"),
        ("-Infinity", FLOAT8, "-Infinity"),
        (r"\x00ff", BYTEA, r"\x00ff"),
        ('{"s":"str","n":42,"a":[null,3,"a"]}', JSONB, {"s": "str", "n": 42, "a": [None, 3, "a"]}),
        ("null", JSON, None),
        ("{}", INT4S, []),
        ("{1,NULL,3}", INT4S, [1, None, 3]),
        ("{{1,2},{3,4}}", INT4S, [[1, 2], [3, 4]]),
        ("[1:1][-2:-1][3:5]={{{1,2,3},{4,5,6}}}", INT4S, [[[1, 2, 3], [4, 5, 6]]]),
        ("{t,f,NULL}", BOOLS, [True, False, None]),
        ("{1.5,NaN}", FLOAT8S, [1.5, "NaN"]),
        ("{1,2}", BIGINTS, ["1", "2"]),
        (r'{foo,"",NULL,"NULL","a,b","{}","q\"-\\"}', TEXTS, ["foo", "", None, "NULL", "a,b", "{}", 'q"-\\']),
        (r'{"{\"a\": 1}",NULL}', JSONBS, [{"a": 1}, None]),
        ("{1,2}", 0, "{1,2}"),  # raw
        ("{1,2}", 99999, "{1,2}"),  # of a type that is not built in
    ],
)
def test_values(text: str, oid: int, value: Any) -> None:
    """Types of JSON's become JSON, arrays lists, and all else stays text."""
    assert json.loads(json_of(text, oid)) == value


@pytest.mark.parametrize(("text", "oid"), [("x", INT4), ("x", FLOAT8), ("{1,x}", INT4S), ('{"', TEXTS), ("{1", INT4S)])
def test_values_that_are_none(text: str, oid: int) -> None:
    """What is no text of its type is the proxy's fault: 500."""
    with pytest.raises(Problem, match="could not parse postgres response") as problem:
        json_of(text, oid)
    assert problem.value.status == 500


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        ("SELECT 3", ("SELECT", 3)),
        ("INSERT 0 1", ("INSERT", 1)),
        ("CREATE TABLE", ("CREATE", None)),
        ("SET", ("SET", None)),
        ("", ("", None)),
    ],
)
def test_commands(tag: str, expected: tuple[str, int | None]) -> None:
    """The command is the first word of its tag, and its count the number, where there is one."""
    assert command_and_count(tag) == expected


@pytest.mark.parametrize(
    ("sqlstate", "status", "key"),
    [("28000", 400, "message"), ("08006", 500, "message"), ("57P03", 503, "msg"), ("53300", 429, "msg")],
)
def test_refusals(sqlstate: str, status: int, key: str) -> None:
    """What the edge refuses becomes a status; two of them are said in the other form."""
    problem = Problem.of_refusal(Refusal(sqlstate, "no"))
    assert (problem.status, problem.body[key], len(problem.body)) == (status, "no", 1 if key == "msg" else 17)
