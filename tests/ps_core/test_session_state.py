"""What a session would keep, behind a transaction pooler: refused in every way of sending, or let through if asked to."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import psycopg
import pytest
from psycopg import sql

import ps_core
from ps_core import AsyncConnection, Connection, Topology
from ps_core._connection.cursors import AsyncServerBindingCursor, ServerBindingCursor
from ps_core._documentation import DOCUMENTATION
from ps_core._endpoint import EndpointState
from ps_core.errors import MayWrite
from ps_core.topology import Endpoint
from ps_lab import Lab
from tests.ps_core.every_way.driven import Driven
from tests.ps_core.wire import sending

# Each leaves nothing where it is sent all the same: server connections are shared with other tests.
LOCK = "SELECT pg_advisory_lock(1017), pg_advisory_unlock(1017)"
CHANNEL = "LISTEN told; UNLISTEN told"
TEMPORARY = "CREATE TEMP TABLE kept (a int); DROP TABLE kept"
HELD_CURSOR = "DECLARE held CURSOR WITH HOLD FOR SELECT 1; CLOSE held"
PREPARED = "PREPARE one AS SELECT 1; EXECUTE one; DEALLOCATE one"
LIBRARY = "LOAD 'auto_explain'"

STATEMENTS = {
    LOCK: (
        "a session advisory lock",
        "take pg_advisory_xact_lock() or pg_try_advisory_xact_lock(), which the end of the transaction releases",
    ),
    CHANNEL: ("what LISTEN asks for", "ask for news in a query"),
    TEMPORARY: ("a temporary object", "write CREATE TEMP TABLE ... ON COMMIT DROP in the transaction that uses it"),
    HELD_CURSOR: ("a cursor WITH HOLD", "read it without WITH HOLD in one transaction"),
    PREPARED: ("a prepared statement", "send the statement itself each time"),
    LIBRARY: ("a library", "write ALTER ROLE ... SET session_preload_libraries"),
}


def _named(conn: Any, query: Any) -> None:
    with conn.cursor("named") as cursor:
        cursor.execute(query)


WAYS: dict[str, Callable[[Any, Any], Any]] = {
    "execute": lambda conn, query: conn.execute(query),
    "executemany": lambda conn, query: conn.cursor().executemany(query, [(), ()]),
    "stream": lambda conn, query: list(conn.cursor().stream(query)),
    "copy": lambda conn, query: conn.cursor().copy(query).__enter__(),
    "named cursor": _named,
}
FORMS: dict[str, Callable[[str], Any]] = {"str": str, "bytes": str.encode, "Composable": sql.SQL}


def message(text: str, endpoint: str = "primary") -> str:
    """Return what a statement is refused with."""
    what, instead = STATEMENTS[text]
    return (
        f"{endpoint!r} is behind a transaction pooler, where {what} would stay with a server connection that other clients get:"
        f' {instead}, or use the direct endpoint (to="direct", engine.direct, Django\'s alias "direct"); where there is no such'
        ' pooler, write pooled=False; session_state="allow" sends it all the same'
    )


@contextmanager
def connected(place: Endpoint, *, asynchronous: bool, autocommit: bool, server: bool = False) -> Iterator[Any]:
    """Yield a connection, of which an asyncio one is driven."""
    state = EndpointState(endpoint=place)
    with ExitStack() as stack:
        options: dict[str, Any] = {"autocommit": autocommit}
        if asynchronous:
            runner = stack.enter_context(asyncio.Runner())
            if server:
                options["cursor_factory"] = AsyncServerBindingCursor
            conn: Any = Driven(runner, runner.run(AsyncConnection.open(state, **options)))
        else:
            if server:
                options["cursor_factory"] = ServerBindingCursor
            conn = Connection.open(state, **options)
        stack.callback(conn.close)
        yield conn


def refused(run: Callable[[], Any]) -> str:
    """Return with what something is refused."""
    with pytest.raises(psycopg.NotSupportedError) as caught:
        run()
    assert type(caught.value) is psycopg.NotSupportedError
    return str(caught.value)


def statements(messages: list[str]) -> list[str]:
    """Return them without what psycopg asks as it closes a named cursor: whether there is one."""
    return [text for text in messages if "pg_cursors" not in text]


asynchronously = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "asyncio"])


@asynchronously
@pytest.mark.parametrize("server", [False, True], ids=["client", "server"])
@pytest.mark.parametrize("state", ["autocommit", "transaction", "later"])
def test_refused(ps_lab: Lab, state: str, server: bool, asynchronous: bool) -> None:
    """In every way and form, wherever it comes in a transaction; nothing is sent, and what follows works."""
    with connected(ps_lab.topology.primary, asynchronous=asynchronous, autocommit=state == "autocommit", server=server) as conn:
        if state == "later":
            conn.execute("SELECT 1")
        with sending(conn) as sent:
            for text in STATEMENTS:
                for form in FORMS.values():
                    for name, way in WAYS.items():
                        if name != "named cursor" or state != "autocommit":  # which the server refuses there, whatever it reads
                            assert refused(partial(way, conn, form(text))) == message(text)
        assert statements(sent.messages) == []
        assert conn.execute("SELECT 1").fetchone() == (1,)


@asynchronously
@pytest.mark.parametrize("autocommit", [False, True])
def test_refused_in_a_pipeline(ps_lab: Lab, autocommit: bool, asynchronous: bool) -> None:
    """In a pipeline, too: as its first command and behind others."""
    with connected(ps_lab.topology.primary, asynchronous=asynchronous, autocommit=autocommit) as conn:
        with sending(conn) as sent, conn.pipeline():
            for text in STATEMENTS:
                assert refused(partial(conn.execute, text)) == message(text)
            found = conn.execute("SELECT 1")
            for text in STATEMENTS:
                assert refused(partial(conn.execute, text)) == message(text)
            assert found.fetchone() == (1,)
        assert not any(text in one for text in STATEMENTS for one in sent.messages)


@asynchronously
@pytest.mark.parametrize("autocommit", [False, True])
def test_with_hold(ps_lab: Lab, autocommit: bool, asynchronous: bool) -> None:
    """A named cursor that psycopg declares WITH HOLD is refused; one that ends with its transaction is not."""
    with connected(ps_lab.topology.primary, asynchronous=asynchronous, autocommit=autocommit) as conn:
        with sending(conn) as sent:
            with conn.cursor("held", withhold=True) as cursor:
                assert refused(lambda: cursor.execute("SELECT 1")) == message(HELD_CURSOR)
        assert statements(sent.messages) == []
        with conn.transaction():
            with conn.cursor("held", withhold=True) as cursor:
                assert refused(lambda: cursor.execute("SELECT 1")) == message(HELD_CURSOR)
            with conn.cursor("named") as cursor:
                cursor.execute("SELECT 1")
                assert cursor.fetchall() == [(1,)]
    with connected(ps_lab.topology.direct, asynchronous=asynchronous, autocommit=False) as conn:
        with conn.cursor("held", withhold=True) as cursor:
            cursor.execute("SELECT 1")
            conn.commit()
            assert cursor.fetchall() == [(1,)]


@asynchronously
def test_temporary_tables(ps_lab: Lab, asynchronous: bool) -> None:
    """One that its transaction takes along is made in a transaction, in a text of several, and in a pipeline; not alone."""
    make = "CREATE TEMP TABLE taken_along (a) ON COMMIT DROP AS SELECT 7"
    with connected(ps_lab.topology.primary, asynchronous=asynchronous, autocommit=True) as conn:
        assert refused(lambda: conn.execute(make)) == message(TEMPORARY)
        with conn.transaction():
            conn.execute(make)
            assert conn.execute("SELECT a FROM taken_along").fetchone() == (7,)
        conn.execute("BEGIN")
        conn.execute(make)
        conn.execute("COMMIT")
        conn.execute(f"{make}; INSERT INTO taken_along VALUES (8)")
        with conn.pipeline():
            conn.execute(make)
            assert conn.execute("SELECT a FROM taken_along").fetchone() == (7,)
        found = "SELECT count(*) FROM pg_catalog.pg_class WHERE relname = 'taken_along'"
        assert conn.execute(found).fetchone() == (0,)
    with connected(ps_lab.topology.primary, asynchronous=asynchronous, autocommit=False) as conn:
        conn.execute(make)
        assert conn.execute("SELECT a FROM taken_along").fetchone() == (7,)


def test_nothing_reached_a_server(ps_lab: Lab) -> None:
    """What was refused is nowhere: not on the server connections that the pooler lends, nor in the locks of the server."""
    with connected(ps_lab.topology.primary, asynchronous=False, autocommit=True) as conn:
        for text in (
            *("SELECT pg_advisory_lock(1018)", "LISTEN told", "CREATE TEMP TABLE kept (a int)", "PREPARE one AS SELECT 1"),
            "DECLARE held CURSOR WITH HOLD FOR SELECT 1",
        ):
            refused(partial(conn.execute, text))
        for _ in range(20):
            assert conn.execute(
                "SELECT (SELECT count(*) FROM pg_listening_channels() c WHERE c = 'told'),"
                " (SELECT count(*) FROM pg_prepared_statements WHERE name = 'one'),"
                " (SELECT count(*) FROM pg_cursors WHERE name = 'held'), to_regclass('pg_temp.kept')"
            ).fetchone() == (0, 0, 0, None)
    assert ps_lab.sql("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 1018") == [(0,)]
    assert ps_lab.sql("SELECT count(*) FROM pg_class WHERE relname = 'kept'") == [(0,)]


@pytest.mark.parametrize("where", ["direct", "pooled=False", "allow"])
@asynchronously
def test_sent(ps_lab: Lab, where: str, asynchronous: bool) -> None:
    """Where there is a session they work, whatever the setting says; and where they are let through."""
    topology = ps_lab.topology
    place = {
        "direct": topology.direct,
        "pooled=False": Topology.from_url(ps_lab.url, pooled=False).primary,
        "allow": replace(topology.primary, session_state="allow"),
    }[where]
    with connected(place, asynchronous=asynchronous, autocommit=True) as conn:
        for text in (LOCK, CHANNEL, TEMPORARY, HELD_CURSOR, PREPARED):
            conn.execute(text)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):  # the server's own word
            conn.execute(LIBRARY)


def test_on_replicas(ps_lab: Lab) -> None:
    """On an endpoint for reads, a lock means nothing at all, as before; the rest is refused as on the primary."""
    with connected(ps_lab.topology.replicas[0], asynchronous=False, autocommit=True) as conn:
        with pytest.raises(MayWrite, match="cannot execute this in a read-only transaction"):
            conn.execute(LOCK)
        with pytest.raises(MayWrite, match="cannot execute this in a read-only transaction"):
            conn.execute('SELECT "pg_advisory_lock"(1017)')
        for text in (CHANNEL, TEMPORARY, HELD_CURSOR, PREPARED, LIBRARY):
            assert refused(partial(conn.execute, text)) == message(text, "replica")


def test_forms_of_the_setting(ps_lab: Lab) -> None:
    """`ps_core.connect(session_state=...)`, and the URL."""
    forms: tuple[tuple[str, dict[str, Any]], ...] = (
        (ps_lab.url, {"session_state": "allow"}),
        (f"{ps_lab.url}&ps_session_state=allow", {}),
    )
    for url, settings in forms:
        with ps_core.connect(url, bouncer="write-pool", autocommit=True, **settings) as conn:
            conn.execute(CHANNEL)
    with ps_core.connect(f"{ps_lab.url}&ps_pooled=false", autocommit=True) as conn:
        conn.execute(CHANNEL)
    with pytest.raises(ps_core.ConfigurationError, match=r"(?m)^session_state of primary: write 'refuse' or 'allow', not 'no'$"):
        replace(ps_lab.topology.primary, session_state="no")  # type: ignore[arg-type]


@pytest.mark.fast
def test_warning(caplog: pytest.LogCaptureFixture) -> None:
    """Each branch is warned of once that lets them through; where there are sessions, nobody is."""
    url = "postgresql://app.warned{}:s3cret@x.horizon.psdb.cloud"
    with caplog.at_level(logging.WARNING, "ps_core"):
        for number in range(2):
            topology = Topology.from_url(url.format(number), session_state="allow", replica_bouncer="read-pool")
            for endpoint in (topology.direct, topology.primary, *topology.replicas, topology.primary):
                EndpointState(endpoint=endpoint, identity=topology.identity)
        plain = Topology.from_url("postgresql://app:s3cret@warned.internal/d", session_state="allow").primary
        for endpoint in (plain, plain, replace(plain, pooled=False, host="other"), replace(plain, session_state="refuse")):
            EndpointState(endpoint=endpoint)
    text = (
        "endpoint 'primary': session_state=\"allow\" behind a transaction pooler: session advisory locks, LISTEN, temporary"
        " tables, cursors WITH HOLD, PREPARE and LOAD act on server connections that other clients get: use the direct endpoint"
        ' for them, and session_state="refuse": see'
        f" {DOCUMENTATION}explanation/limits.html#what-only-a-session-could-keep"
    )
    assert [(record.name, record.levelname, record.getMessage()) for record in caplog.records] == [
        ("ps_core", "WARNING", text)
    ] * 3
