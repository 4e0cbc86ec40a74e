"""`/sql` of the edge: statements by HTTPS, with the ways, the counts and the faults of the other ports."""

import contextlib
import json
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote, urlsplit

import httpx2
import pytest

from ps_lab import Lab
from ps_lab.processes import wait_until
from tests.ps_lab.test_edge import asleep
from tests.ps_lab.tunnel import context

RAW = {"Neon-Raw-Text-Output": "true", "Neon-Array-Mode": "true"}
UPGRADE = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
KEY = "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
KEYS = {
    *("message", "code", "detail", "hint", "position", "internalPosition", "internalQuery", "severity", "where"),
    *("table", "column", "schema", "dataType", "constraint", "file", "line", "routine"),
}


def connection_string(lab: Lab, suffix: str = "", port: Any = None, **changes: str) -> str:
    """Return what a driver sends of the lab's URL."""
    url = urlsplit(lab.url_of("app"))
    assert url.username is not None
    user = changes.get("user", url.username + (f"|{suffix}" if suffix else ""))
    password = changes.get("password", url.password)
    at = f":{lab.edge.ports[port]}" if port else ""
    return f"postgresql://{quote(user)}:{password}@localhost{at}/{changes.get('database', 'postgres')}"


class Driver:
    """A client with one connection."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.url = f"https://localhost:{lab.edge.ports['https']}/sql"
        self.client = httpx2.Client(verify=context(lab), trust_env=False, timeout=20)

    def post(self, body: Any, *, way: str | None = None, **headers: str) -> httpx2.Response:
        """Send a body."""
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        named = {"Neon-Connection-String": way or connection_string(self.lab), **names}
        return self.client.post(self.url, content=content, headers=named)

    def query(self, query: str, *params: Any, way: str | None = None, **headers: str) -> httpx2.Response:
        """Send a statement."""
        return self.post({"query": query, "params": params}, way=way, **headers)

    def batch(self, *queries: str, way: str | None = None, **headers: str) -> httpx2.Response:
        """Send statements."""
        return self.post({"queries": [{"query": query} for query in queries]}, way=way, **headers)

    def value(self, query: str, *params: Any, way: str | None = None) -> Any:
        """Return the only value of a statement's only row."""
        response = self.query(query, *params, way=way, **RAW)
        assert response.status_code == 200, response.text
        ((value,),) = response.json()["rows"]
        return value


@pytest.fixture
def driver(ps_lab: Lab) -> Iterator[Driver]:
    """A client, closed after the test."""
    driver = Driver(ps_lab)
    with driver.client:
        yield driver
    ps_lab.edge.resume()


@pytest.fixture
def table(ps_lab: Lab) -> Iterator[str]:
    """An empty table of the application's."""
    ps_lab.sql("CREATE TABLE http_numbers (n int PRIMARY KEY, CHECK (n < 1000))")
    ps_lab.sql("ALTER TABLE http_numbers OWNER TO app")
    yield "http_numbers"
    ps_lab.sql("DROP TABLE http_numbers")


def failure(response: httpx2.Response) -> tuple[int, str, str | None]:
    """Return status, message and SQLSTATE of an answer that is an error."""
    body = response.json()
    assert set(body) == KEYS
    assert response.headers["Access-Control-Allow-Origin"] == "*"
    return response.status_code, body["message"], body["code"]


def in_background(work: Callable[[], object]) -> threading.Thread:
    """Do something in a thread, whatever comes of it."""

    def run() -> None:
        with contextlib.suppress(httpx2.HTTPError):
            work()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


# --- requests ---


def test_what_is_no_query(driver: Driver, ps_lab: Lab) -> None:
    """Browsers may ask what is allowed; every other path or method is no query, and the connection stays."""
    with ps_lab.round_trips() as counter:
        assert driver.value("SELECT 1") == "1"
        response = driver.client.options(driver.url)
        assert (response.status_code, response.headers["Access-Control-Allow-Origin"]) == (200, "*")
        assert "Neon-Connection-String" in response.headers["Access-Control-Allow-Headers"]
        for method, path in (("GET", "/sql"), ("POST", "/"), ("POST", "/sql/x"), ("PUT", "/sql"), ("POST", "/v2")):
            response = driver.client.request(method, driver.url.removesuffix("/sql") + path)
            assert (response.status_code, response.json()) == (400, "query is not supported")
            assert response.headers["Content-Type"] == "application/json"
        assert driver.client.head(driver.url).status_code == 400
        assert driver.value("SELECT 2") == "2"
    assert (dict(counter.by_path), counter.startups) == ({"direct": 2}, 1)


def test_as_the_driver_sends_it(driver: Driver, ps_lab: Lab) -> None:
    """What driver 1.2.0 was seen to send is understood, and answered with raw text in arrays."""
    body = (
        r'{"query":"SELECT $1::int, $2, $3, $4, $5, $6, $7","params":["1","é","\\x00ff","1970-01-01T00:00:00.000+00:00",'
        r'"{\"1\",{\"2\",NULL},\"a\\\"b\"}","{\"a\":1}",null]}'
    )
    name = "pkg%3Anpm%2F%2540neondatabase%2Fserverless%401.2.0"
    headers = {**RAW, "content-type": "text/plain;charset=UTF-8"}
    way = f"{connection_string(ps_lab)}?sslmode=verify-full&application_name={name}"
    answer = driver.post(body.encode(), way=way, **headers).json()
    assert list(answer) == ["fields", "rows", "command", "rowCount", "rowAsArray"]
    assert answer["rows"] == [["1", "é", r"\x00ff", "1970-01-01T00:00:00.000+00:00", r'{"1",{"2",NULL},"a\"b"}', '{"a":1}', None]]
    assert (answer["command"], answer["rowCount"], answer["rowAsArray"]) == ("SELECT", 1, True)
    assert driver.value("SHOW application_name", way=way) == "pkg:npm/%40neondatabase/serverless@1.2.0"


def answers_of(sock: socket.socket, count: int) -> list[bytes]:
    """Read this many answers with bodies of JSON."""
    read = b""
    while len(found := re.findall(rb"HTTP/1.1 (\d+) (?:(?!HTTP/1.1).)*\r\n\r\n[{\"]", read, re.DOTALL)) < count:
        part = sock.recv(65536)
        assert part
        read += part
    return found


def test_connections(ps_lab: Lab) -> None:
    """A body may come in chunks, after a "100 Continue"; requests may come at once; an upgrade may be the last one."""
    head = ("{} HTTP/1.1\r\nHost: x\r\nNeon-Connection-String: " + connection_string(ps_lab) + "\r\n{}\r\n").format
    body = b'{"query": "SELECT 1"}'
    with socket.create_connection(("localhost", ps_lab.edge.ports["https"]), timeout=5) as plain:
        with context(ps_lab).wrap_socket(plain, server_hostname="localhost") as sock:
            sock.sendall(head("POST /sql", "Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n").encode())
            assert sock.recv(100) == b"HTTP/1.1 100 \r\n\r\n"
            for byte in body:
                sock.sendall(b"1\r\n%c\r\n" % byte)
            sock.sendall(b"0\r\n\r\n")
            assert answers_of(sock, 1) == [b"200"]
            request = head("POST /sql", f"Content-Length: {len(body)}\r\n").encode() + body
            sock.sendall(request + head("GET /sql", "").encode() + request)
            assert answers_of(sock, 3) == [b"200", b"400", b"200"]
            sock.sendall(head("GET /v2", UPGRADE + KEY).encode())
            assert sock.recv(65536).startswith(b"HTTP/1.1 101 ")


def test_fields(driver: Driver, table: str, ps_lab: Lab) -> None:
    """A column is described as in the wire protocol."""
    driver.query(f"INSERT INTO {table} VALUES ($1)", 1)
    answer = driver.query(f"SELECT n, 'x'::varchar(5) AS v FROM {table}").json()
    ((oid,),) = ps_lab.sql("SELECT %s::regclass::oid", table)
    assert answer["fields"] == [
        {
            "name": "n",
            "dataTypeID": 23,
            "tableID": oid,
            "columnID": 1,
            "dataTypeSize": 4,
            "dataTypeModifier": -1,
            "format": "text",
        },
        {
            "name": "v",
            "dataTypeID": 1043,
            "tableID": 0,
            "columnID": 0,
            "dataTypeSize": -1,
            "dataTypeModifier": 9,
            "format": "text",
        },
    ]


def test_forms_of_rows(driver: Driver) -> None:
    """Rows are objects or arrays, converted or text, by header; a query's own word on arrays counts for more."""
    query = "SELECT 1 AS a, 2 AS a, true AS b, NULL AS c, 3::bigint AS d, '{\"k\": [1]}'::jsonb AS e, ARRAY[1, NULL] AS f"
    answer = driver.query(query).json()
    assert answer["rows"] == [{"a": 2, "b": True, "c": None, "d": "3", "e": {"k": [1]}, "f": [1, None]}]
    assert answer["rowAsArray"] is False
    answer = driver.query(query, Neon_Array_Mode="true").json()
    assert answer["rows"] == [[1, 2, True, None, "3", {"k": [1]}, [1, None]]]
    text = ["1", "2", "t", None, "3", '{"k": [1]}', "{1,NULL}"]
    assert driver.query(query, **RAW).json()["rows"] == [text]
    assert driver.query(query, NEON_RAW_TEXT_OUTPUT="true").json()["rows"] == [dict(zip("aabcdef", text, strict=True))]
    answer = driver.post({"query": query, "arrayMode": False}, **RAW).json()
    assert answer["rows"] == [dict(zip("aabcdef", text, strict=True))]
    assert answer["rowAsArray"] is False


@pytest.mark.parametrize(
    ("query", "command", "count"),
    [
        ("SELECT generate_series(1, 3)", "SELECT", 3),
        ("SELECT generate_series(1, 250)", "SELECT", 250),
        ("SELECT generate_series(1, 200)", "SELECT", 200),
        ("SELECT 1 WHERE false", "SELECT", 0),
        ("INSERT INTO {table} SELECT generate_series(1, 2)", "INSERT", 2),
        ("INSERT INTO {table} VALUES (7) RETURNING n", "INSERT", 1),
        ("UPDATE {table} SET n = 1", "UPDATE", 0),
        ("CREATE TEMPORARY TABLE x ()", "CREATE", None),
        ("SET search_path = public", "SET", None),
        ("", "", None),
        ("-- nothing", "", None),
    ],
)
def test_commands(driver: Driver, table: str, query: str, command: str, count: int | None) -> None:
    """The answer names the command, and how many rows it was about."""
    answer = driver.query(query.format(table=table)).json()
    assert (answer["command"], answer["rowCount"]) == (command, count)
    if answer["fields"]:
        assert len(answer["rows"]) == count


# --- errors ---


def test_errors_of_statements(driver: Driver, table: str) -> None:
    """They are 400, with all that the server says of them."""
    assert failure(driver.query("SELECT 1 / 0")) == (400, "division by zero", "22012")
    assert failure(driver.query("SELECT 1; SELECT 2"))[2] == "42601"
    assert failure(driver.query("SELECT $1", "a\0b"))[2] == "22021"
    body = driver.query("SELEC 1").json()
    assert (body["code"], body["position"], body["severity"]) == ("42601", "1", "ERROR")
    driver.query(f"INSERT INTO {table} VALUES (1)")
    body = driver.query(f"INSERT INTO {table} VALUES (1)").json()
    assert (body["code"], body["schema"], body["table"], body["constraint"]) == ("23505", "public", table, "http_numbers_pkey")
    assert body["detail"] == "Key (n)=(1) already exists."
    assert body["routine"]
    assert body["line"].isdecimal()
    body = driver.query("DO $$ BEGIN EXECUTE 'SELECT nothing'; END $$").json()
    assert (body["internalQuery"], body["internalPosition"], body["position"]) == ("SELECT nothing", "8", None)
    assert "PL/pgSQL function" in body["where"]


def test_copy_is_not_spoken(driver: Driver, table: str) -> None:
    """A COPY is an error, and what comes next meets another backend."""
    for direction in ("TO STDOUT", "FROM STDIN"):
        assert failure(driver.query(f"COPY {table} {direction}")) == (400, "unexpected message from server", None)
    assert driver.value("SELECT 1") == "1"


@pytest.mark.parametrize(
    ("changes", "port", "status", "text"),
    [
        ({"password": "wrong"}, None, 400, 'password authentication failed for user "app"'),
        ({"password": "wrong"}, "pooled", 400, "SASL authentication failed"),
        ({"database": "nowhere"}, None, 400, 'database "nowhere" does not exist'),
        ({"user": "app"}, None, 400, "invalid user format: username must include branch (e.g., user.branch)"),
        ({"user": "app.nowhere"}, None, 400, "branch nowhere does not exist"),
    ],
)
def test_errors_of_connecting(driver: Driver, ps_lab: Lab, changes: dict[str, str], port: Any, status: int, text: str) -> None:
    """What is the client's fault is 400, and has no SQLSTATE."""
    answer = driver.query("SELECT 1", way=connection_string(ps_lab, port=port, **changes))
    assert failure(answer) == (status, text, None)


def test_bouncer_down(driver: Driver, ps_lab: Lab) -> None:
    """What is not the client's fault is 500, also where a backend was warm."""
    way = connection_string(ps_lab, "read-pool", "pooled")
    assert driver.value("SELECT 1", way=way) == "1"
    ps_lab.bouncers["read-pool"].stop()
    try:
        assert failure(driver.query("SELECT 1", way=way)) == (500, "failed to connect to upstream", None)
    finally:
        ps_lab.restart_bouncer("read-pool")
    assert driver.value("SELECT 1", way=way) == "1"


def test_startup_parameters(driver: Driver, ps_lab: Lab) -> None:
    """Parameters of the connection string, and its options, are set when the connection starts."""
    way = connection_string(ps_lab) + "?options=-c%20statement_timeout%3D5s&search_path=a,+b&sslmode=require"
    assert driver.value("SHOW statement_timeout", way=way) == "5s"
    assert driver.value("SHOW search_path", way=way) == "a, b"
    way = connection_string(ps_lab) + "?nothing=1"
    assert failure(driver.query("SELECT 1", way=way)) == (400, 'unrecognized configuration parameter "nothing"', None)


def test_addresses(driver: Driver, ps_lab: Lab) -> None:
    """A port at which nothing listens is refused."""
    way = connection_string(ps_lab).replace("@localhost", "@localhost:1")
    assert failure(driver.query("SELECT 1", way=way)) == (400, "address localhost:1 is not allowed", None)


# --- batches ---

MODES = (
    "SELECT current_setting('transaction_isolation') || current_setting('transaction_read_only')"
    " || current_setting('transaction_deferrable')"
)


def test_batch(driver: Driver, table: str) -> None:
    """A batch is one transaction, with the modes that are asked for and repeated in the answer."""
    response = driver.batch(f"INSERT INTO {table} VALUES (1), (2)", "SELECT pg_current_xact_id()", "SELECT pg_current_xact_id()")
    results = response.json()["results"]
    assert [result["command"] for result in results] == ["INSERT", "SELECT", "SELECT"]
    assert results[1]["rows"] == results[2]["rows"]
    assert driver.batch(MODES, **RAW).json()["results"][0]["rows"] == [["read committedoffoff"]]
    echoed = {"Neon-Batch-Isolation-Level": "Serializable", "Neon-Batch-Read-Only": "true", "Neon-Batch-Deferrable": "true"}
    response = driver.batch(MODES, **RAW, **echoed)
    assert response.json()["results"][0]["rows"] == [["serializableonon"]]
    assert {name: response.headers[name] for name in echoed} == echoed
    assert "Neon-Batch-Read-Only" not in driver.query("SELECT 1", **echoed).headers
    assert driver.batch().json() == {"results": []}
    assert failure(driver.batch(MODES, Neon_Batch_Isolation_Level="x")) == (400, "invalid isolation level", None)


def test_batch_that_fails(driver: Driver, ps_lab: Lab, table: str) -> None:
    """The first error ends a batch, and nothing of it stays: of a statement, of READ ONLY, of a constraint at COMMIT."""
    assert failure(driver.batch(f"INSERT INTO {table} VALUES (1)", "SELECT 1 / 0", "SELECT 2"))[2] == "22012"
    assert failure(driver.batch(f"INSERT INTO {table} VALUES (1)", Neon_Batch_Read_Only="true"))[2] == "25006"
    ps_lab.sql(f"ALTER TABLE {table} ADD UNIQUE (n) DEFERRABLE INITIALLY DEFERRED, DROP CONSTRAINT http_numbers_pkey")
    assert failure(driver.batch(f"INSERT INTO {table} VALUES (1)", f"INSERT INTO {table} VALUES (1)"))[2] == "23505"
    assert driver.value(f"SELECT count(*) FROM {table}") == "0"


def test_batch_that_commits_itself(driver: Driver, table: str) -> None:
    """Nobody sees to it that the transaction stays open: as at Neon's proxy, what follows a COMMIT is on its own."""
    driver.batch(f"INSERT INTO {table} VALUES (1)", "COMMIT", f"INSERT INTO {table} VALUES (2)", "SELECT 1 / 0")
    assert driver.value(f"SELECT count(*) FROM {table}") == "2"


# --- ways ---


@pytest.mark.parametrize(
    ("port", "suffix", "path", "is_replica"),
    [
        (None, "", "direct", "f"),
        ("direct", "replica", "replica", "t"),
        ("pooled", "", "primary", "f"),
        ("pooled", "write-pool", "primary", "f"),
        ("pooled", "read-pool", "replica", "t"),
    ],
)
def test_ways(driver: Driver, ps_lab: Lab, port: Any, suffix: str, path: str, is_replica: str) -> None:
    """Port and suffix of the connection string are routed as elsewhere. A request is a round trip, a connection a start."""
    way = connection_string(ps_lab, suffix, port)
    with ps_lab.round_trips() as counter:
        assert driver.value("SELECT pg_is_in_recovery()", way=way) == is_replica
        assert driver.batch("SELECT 1", "SELECT 2", way=way).status_code == 200
    assert (dict(counter.by_path), counter.startups) == ({path: 2}, 1)


def test_backends_are_kept(driver: Driver, ps_lab: Lab) -> None:
    """A backend is used again by who has the same connection string, unless it was left in a transaction, or has ended."""
    query = "SELECT pg_backend_pid()"
    pid = driver.value(query)
    assert driver.value(query) == pid
    assert driver.value(query, way=connection_string(ps_lab) + "?application_name=other") != pid
    driver.query("BEGIN")
    other = driver.value(query)
    assert other != pid
    assert driver.batch(query, **RAW).json()["results"][0]["rows"] == [[other]]
    ps_lab.sql("SELECT pg_terminate_backend(%s)", int(other))
    wait_until(lambda: not ps_lab.sql("SELECT 1 FROM pg_stat_activity WHERE pid = %s", int(other)), "its end")
    assert driver.value(query) not in (pid, other)


def test_switchover(ps_lab: Lab, driver: Driver) -> None:
    """After a switchover requests find the new primary, and after a change of the password the old one is refused."""
    before = driver.value("SHOW cluster_name")
    ps_lab.switchover()
    assert driver.value("SHOW cluster_name") == ps_lab.primary.name != before
    assert driver.value("SELECT pg_is_in_recovery()", way=connection_string(ps_lab, "replica")) == "t"
    ps_lab.create_role("postman")
    url = urlsplit(ps_lab.url_of("postman"))
    way = f"postgresql://{url.username}:{url.password}@localhost/postgres"
    assert driver.value("SELECT current_user", way=way) == "postman"
    ps_lab.set_password("postman")
    assert failure(driver.query("SELECT 1", way=way))[0] == 400
    ps_lab.drop_role("postman")


def test_a_backend_that_is_lost(driver: Driver, ps_lab: Lab) -> None:
    """Where the server ends the session of a statement that runs, the client is told so."""
    answers: list[httpx2.Response] = []
    thread = in_background(lambda: answers.append(driver.query("SELECT pg_sleep(20)")))
    wait_until(lambda: asleep(ps_lab), "the statement runs")
    ps_lab.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'")
    thread.join()
    assert failure(answers[0]) == (400, "terminating connection due to administrator command", "57P01")
    assert driver.value("SELECT 1") == "1"


# --- limits ---


def test_limit_of_requests(driver: Driver, ps_lab: Lab) -> None:
    """A body over the limit is 413."""
    with ps_lab.edge.limit_sql(request_bytes=1000):
        assert failure(driver.query("SELECT $1", "x" * 1000)) == (413, "request is too large (max is 1000 bytes)", None)
        assert driver.value("SELECT $1", "x" * 900) == "x" * 900
    assert driver.value("SELECT length($1)", "x" * 10_000_000) == "10000000"
    assert driver.query("SELECT length($1)", "x" * 11_000_000).status_code == 413


def test_limit_of_answers(driver: Driver, ps_lab: Lab, table: str) -> None:
    """An answer over the limit is 507. A single statement has been committed all the same; a batch has not."""
    too_large = (507, "response is too large (max is 10485760 bytes)", None)
    returning = f"INSERT INTO {table} SELECT n FROM generate_series(%d, %d) n RETURNING n, repeat('x', 100000)"
    assert failure(driver.query(returning % (1, 110))) == too_large
    assert driver.value(f"SELECT count(*) FROM {table}") == "110"
    assert failure(driver.batch(f"INSERT INTO {table} VALUES (500)", returning % (201, 250), returning % (301, 360))) == too_large
    assert driver.value(f"SELECT count(*) FROM {table}") == "110"
    with ps_lab.edge.limit_sql(response_bytes=100):
        assert failure(driver.query("SELECT repeat('x', 100)")) == (507, "response is too large (max is 100 bytes)", None)
        assert driver.value("SELECT repeat('x', 80)") == "x" * 80
    assert len(driver.value("SELECT repeat('x', 10000000)")) == 10_000_000


def test_limit_of_time(driver: Driver, ps_lab: Lab) -> None:
    """A statement that takes too long is cancelled: 500; also one of a batch, and one whose answer was too large already."""
    cancelled = (500, "Query cancelled, connection was terminated", None)
    with ps_lab.edge.limit_sql(seconds=0.5, response_bytes=1000):
        assert failure(driver.query("SELECT pg_sleep(20)")) == cancelled
        assert failure(driver.batch("SELECT 1", "SELECT pg_sleep(20)")) == cancelled
        assert failure(driver.query("SELECT repeat('x', 100), pg_sleep(0.001) FROM generate_series(1, 20000)"))[0] == 507
    wait_until(lambda: not asleep(ps_lab), "the statements have ended")
    assert driver.value("SELECT 1") == "1"


def test_limit_of_time_to_connect(driver: Driver, ps_lab: Lab) -> None:
    """A bouncer that does not answer is 408, in the other form."""
    bouncer = ps_lab.bouncers["read-pool"]
    bouncer.signal(signal.SIGSTOP)
    try:
        with ps_lab.edge.limit_sql(seconds=0.5):
            way = connection_string(ps_lab, "read-pool", "pooled") + "?application_name=nobody-is-warm"
            response = driver.query("SELECT 1", way=way)
    finally:
        bouncer.signal(signal.SIGCONT)
    assert (response.status_code, response.json()) == (408, {"msg": "connecting to the database timed out"})


def test_limit_of_rate(driver: Driver, ps_lab: Lab) -> None:
    """More requests a second than are allowed are 429, until that second is over."""
    with ps_lab.edge.limit_sql(per_second=3):
        wait_until(lambda: driver.query("SELECT 1").status_code == 429, "too many requests", interval=0)
        assert driver.query("SELECT 1").json() == {"msg": "too many requests"}
        wait_until(lambda: driver.query("SELECT 1").status_code == 200, "the next second")
    with pytest.raises(RuntimeError, match="the edge could not limit_sql"):
        ps_lab.edge.limit_sql(nothing=1)


# --- faults ---


def test_hanging_up_cancels(driver: Driver, ps_lab: Lab) -> None:
    """A client that goes away ends its statement."""
    with pytest.raises(httpx2.ReadTimeout):
        driver.client.post(
            driver.url,
            json={"query": "SELECT pg_sleep(20)"},
            headers={"Neon-Connection-String": connection_string(ps_lab)},
            timeout=0.5,
        )
    wait_until(lambda: not asleep(ps_lab), "the statement has ended", timeout=5)


def test_cut(driver: Driver, ps_lab: Lab) -> None:
    """`cut` breaks the connections whose last request took the path, idle or not, and what was warm is made anew."""
    way = connection_string(ps_lab, "write-pool", "pooled")
    pid = driver.value("SELECT pg_backend_pid()")
    ps_lab.edge.cut("primary")
    assert driver.value("SELECT pg_backend_pid()") == pid
    driver.value("SELECT 1", way=way)
    thread = in_background(lambda: driver.query("SELECT pg_sleep(20)", way=way))
    wait_until(lambda: asleep(ps_lab), "the statement runs")
    with ps_lab.round_trips() as counter:
        ps_lab.edge.cut("primary")
        thread.join(10)
        assert not thread.is_alive()
        driver.value("SELECT 1", way=way)
    assert counter.startups == 1
    ps_lab.edge.cut("direct")
    assert driver.value("SELECT pg_backend_pid()") != pid
    wait_until(lambda: not asleep(ps_lab), "the statement has ended", timeout=5)


def test_hang(driver: Driver, ps_lab: Lab) -> None:
    """On a path that hangs a request is not answered until `resume`; others are, also on the same connection."""
    way = connection_string(ps_lab, "write-pool", "pooled")
    driver.value("SELECT 1", way=way)
    answers: list[Any] = []
    with ps_lab.edge.hang("primary"):
        assert driver.value("SELECT 1") == "1"
        thread = in_background(lambda: answers.append(driver.value("SELECT 42", way=way)))
        thread.join(0.3)
        assert thread.is_alive()
    thread.join()
    assert answers == ["42"]
    thread = in_background(lambda: answers.append(driver.value("SELECT 43 FROM pg_sleep(1)", way=way)))
    wait_until(lambda: asleep(ps_lab), "the statement runs")
    with ps_lab.edge.hang("primary"):
        wait_until(lambda: not asleep(ps_lab), "the statement has run")
        thread.join(0.3)
        assert thread.is_alive()
    thread.join()
    assert answers == ["42", "43"]


def test_hang_of_everything(driver: Driver, ps_lab: Lab) -> None:
    """Where all hangs, nothing is answered, not even what is no query."""
    driver.value("SELECT 1")
    with ps_lab.edge.hang():
        with pytest.raises(httpx2.ReadTimeout):
            driver.client.get(driver.url, timeout=0.3)
        with pytest.raises(httpx2.ReadTimeout):
            driver.client.get(driver.url, timeout=0.3)
    assert driver.value("SELECT 1") == "1"


def test_delay(driver: Driver, ps_lab: Lab) -> None:
    """A request is late by the delay, and its answer, too."""
    driver.value("SELECT 1")
    with ps_lab.edge.delay(0.1):
        began = time.monotonic()
        driver.value("SELECT 1")
        assert time.monotonic() - began >= 0.2


def test_cut_answers(driver: Driver, ps_lab: Lab, table: str) -> None:
    """The statement ran, and nobody is told; of a batch, all did."""
    with ps_lab.edge.cut_answers("direct", containing='INSERT INTO "http'):
        driver.value("SELECT 1")
        with pytest.raises(httpx2.TransportError):
            driver.query('INSERT INTO "http_numbers" VALUES (1)')
        assert ps_lab.edge.status()["answer_cuts"] == 0
    with ps_lab.edge.cut_answers(containing="SELECT 7"), pytest.raises(httpx2.TransportError):
        driver.batch(f"INSERT INTO {table} VALUES (2)", "SELECT 7")
    with ps_lab.edge.cut_answers(containing="1 / 0"), pytest.raises(httpx2.TransportError):
        driver.query("SELECT 1 / 0")
    assert driver.value(f"SELECT count(*) FROM {table}") == "2"


def test_refuse(driver: Driver, ps_lab: Lab) -> None:
    """`refuse` refuses every request, by a status that its SQLSTATE stands for."""
    driver.value("SELECT 1")
    with ps_lab.edge.refuse("08006", "branch x unavailable"):
        assert failure(driver.query("SELECT 1")) == (500, "branch x unavailable", None)
    with ps_lab.edge.refuse("57P03", "not now"):
        response = driver.query("SELECT 1")
        assert (response.status_code, response.json()) == (503, {"msg": "not now"})
    assert driver.value("SELECT 1") == "1"


def test_ids_of_requests(driver: Driver) -> None:
    """Every answer has an id of its own."""
    ids = [
        driver.query("SELECT 1").headers["Neon-Request-Id"],
        driver.query("SELECT 1 / 0").headers["Neon-Request-Id"],
        driver.client.get(driver.url).headers["Neon-Request-Id"],
    ]
    assert len(set(ids)) == 3
    assert all(re.fullmatch("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", one) for one in ids)
