"""What is SET on a pooled connection, beside the same on a session of PostgreSQL's own: the same answers.

`test_session.py` holds the decisions as tables. This file asks stock psycopg on a direct connection what is right.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

import ps_core
from ps_core import AsyncConnection, Connection, deadline, limits, local_settings
from ps_core._message.session import Session
from ps_core._registry import replicas_of
from ps_core._retry.policy import RetryPolicy
from ps_core.errors import CommitOutcomeUnknown, ConfigurationError, NotOnReplica, SessionSettingRefused
from tests.ps_core.conftest import tracking
from tests.ps_core.every_way.driven import Driven

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ps_core._endpoint import EndpointState
    from ps_lab import Lab
    from tests.ps_core.conftest import Connect

ROLES = ("kept_clerk", "kept_admin")
SHOWN = [
    "search_path",
    "work_mem",
    "application_name",
    "TimeZone",
    "DateStyle",
    "client_encoding",
    "standard_conforming_strings",
    "IntervalStyle",
    "xmloption",
    "default_transaction_isolation",
    "default_transaction_read_only",
    "default_transaction_deferrable",
    "transaction_isolation",
    "role",
    "log_min_duration_statement",
    "temp_tablespaces",
    "extra_float_digits",
    "synchronous_commit",
]
PROBE = (
    "SELECT "
    + ", ".join(f"current_setting('{name}')" for name in SHOWN)
    # Who never set it may read an empty string: it was set on this server connection before.
    + ", nullif(current_setting('app.tenant', true), ''), nullif(current_setting('App.Other', true), ''),"
    " nullif(current_setting('session.tenant', true), ''), nullif(current_setting('local.tenant', true), ''), current_user"
)

MODE = "SELECT set_config('app.probe', '', true), current_setting('transaction_read_only')"
"""No plain read, which would be sent READ ONLY."""

FORMS: dict[str, Sequence[Any]] = {
    "SET": ["SET search_path = tenant, public"],
    "SET SESSION": ["SET SESSION work_mem TO '8MB'"],
    "SET of names in quotes": ['SET search_path = "Odd ""name""", "$user", \'a b\', tenant'],
    "SET of an empty list": ["SET search_path = ''"],
    "SET of a list of another kind": ["SET temp_tablespaces = ''"],
    "SET of the application's own": ["SET app.tenant = '42'", "SET \"App\".\"Other\" = 'a''b\\c'"],
    "SET of names that begin with a keyword": ["SET session.tenant = '1'", "SET local.tenant = '2'", "SET role.a = '3'"],
    "SET LOCAL of one": ["SET LOCAL session.tenant = '1'", "SET SESSION local.tenant = '2'"],
    "SET of a number": ["SET extra_float_digits = 2", "SET work_mem = 12345"],
    "SET TO DEFAULT": ["SET work_mem = '8MB'", "SET work_mem TO DEFAULT"],
    "SET FROM CURRENT": ["SET work_mem FROM CURRENT"],
    "SET with comments": ["/* a */ SET -- b\n search_path /* c */ TO tenant -- d"],
    "SET SCHEMA": ["SET SCHEMA 'tenant'"],
    "SET XML OPTION": ["SET XML OPTION DOCUMENT"],
    "SET by the name of a value": ["SET application_name = report"],
    "SET twice": ["SET work_mem = '8MB'", "SET search_path = tenant", "SET work_mem = '9MB'"],
    "set_config": ["SELECT set_config('app.tenant', '42', false)"],
    "set_config with parameters": [("SELECT set_config(%s, %s, %s)", ("app.tenant", "4'2", False))],
    "set_config of several": ["SELECT set_config('app.tenant', '42', false), pg_catalog.set_config('work_mem', '8MB', false)"],
    "set_config of the transaction's": ["SELECT set_config('app.tenant', '42', true)"],
    "set_config of an expression": ["SELECT set_config('app.tenant', 'x' || 'y', false) AS value"],
    "set_config with the names of a list as they come": ["SELECT set_config('search_path', 'tenant,public', false)"],
    "set_config of no list": ["SELECT set_config('search_path', '', false)"],
    "set_config of a role": ["SELECT set_config('role', 'kept_clerk', false)"],
    "SET ROLE": ["SET ROLE kept_clerk"],
    "SET SESSION ROLE": ["SET SESSION ROLE 'kept_clerk'"],
    "SET role =": ["SET role = kept_clerk"],
    "SET ROLE NONE": ["SET ROLE kept_clerk", "SET ROLE NONE"],
    "RESET ROLE": ["SET ROLE kept_clerk", "RESET ROLE"],
    "a setting under a role": [
        "SET ROLE kept_admin",
        "SET log_min_duration_statement = 100000",
        "SET ROLE kept_clerk",
        "SET app.tenant = '1'",
    ],
    "a setting under a role that is left": ["SET ROLE kept_admin", "SET log_min_duration_statement = 100000", "RESET ROLE"],
    "RESET": ["SET work_mem = '8MB'", "SET app.tenant = '1'", "RESET work_mem"],
    "RESET of the application's own": ["SET app.tenant = '1'", "RESET app.tenant"],
    "RESET ALL": ["SET work_mem = '8MB'", "SET ROLE kept_clerk", "SET search_path = tenant", "RESET ALL"],
    "RESET of what is not set": ["RESET work_mem"],
    "DISCARD PLANS": ["SET work_mem = '8MB'", "DISCARD PLANS"],
    "DISCARD ALL": ["SET work_mem = '8MB'", "SET ROLE kept_clerk", "DISCARD ALL"],
    "SESSION CHARACTERISTICS": ["SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"],
    "default_transaction_isolation": ["SET default_transaction_isolation = 'repeatable read'"],
    "default_transaction_read_only": ["SET default_transaction_read_only = on", "SET default_transaction_deferrable = on"],
    "default_transaction by set_config": ["SELECT set_config('default_transaction_isolation', 'repeatable read', false)"],
    "SET TRANSACTION": ["SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"],
    "SET, then SET TRANSACTION": ["SET search_path = tenant", "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"],
    "SET LOCAL": ["SET LOCAL work_mem = '8MB'"],
    "SET, then SET LOCAL": ["SET work_mem = '8MB'", "SET LOCAL work_mem = '9MB'"],
    "SET LOCAL, then SET": ["SET LOCAL work_mem = '9MB'", "SET work_mem = '8MB'"],
    "SET of what the pooler keeps": [
        "SET TIME ZONE 'Asia/Tokyo'",
        "SET DateStyle = 'SQL, DMY'",
        "SET client_encoding = 'LATIN1'",
    ],
    "SET of strings": ["SET standard_conforming_strings = off"],
    "IntervalStyle as it is": ["SET IntervalStyle = postgres"],
    "a call that is not reached": [
        "SELECT CASE WHEN false THEN set_config('app.tenant', '1', false) END",
        "SELECT set_config('app.tenant', '1', false) WHERE false",
        "EXPLAIN (COSTS off) SELECT set_config('work_mem', '8MB', false)",
    ],
    "a string that goes on in the next line": ["SELECT E'a'\n'it\\'s', set_config('app.tenant', '1', false)"],
    "a string in which there is a call": ["SELECT E'a' -- '\n'\\', set_config(''app.tenant'',''1'',false)'"],
    "backslashes in strings": [
        "SET standard_conforming_strings = off",
        "SELECT 'x\\' , ' || set_config('app.tenant', '1', false) -- '",
        "SELECT 'it\\'s; SET work_mem = 1'",
    ],
    "an unknown name": ["SET nonsense = 1"],
    "an invalid value": ["SET work_mem = 'much'"],
    "a parameter of the server's start": ["SET shared_buffers = '1GB'"],
    "a setting without the right to it": ["SET log_min_duration_statement = 5"],
    "a role that is not there": ["SET ROLE nobody_has_it"],
    "a role that is not granted": ["SET ROLE postgres"],
    "a syntax error": ["SET work_mem 5 6", "SET SESSION work_mem 5 6", "SET x.y.z"],
}
"""What is sent. An error ends a form, in the transaction that it is in."""

CANNOT_RUN_IN_A_TRANSACTION = {"DISCARD ALL"}


@pytest.fixture(scope="module")
def roles(ps_lab: Lab) -> Iterator[None]:
    """Roles that the application's is a member of; one may set what it may not."""
    app = "app"
    for role in ROLES:
        ps_lab.sql(f"DROP ROLE IF EXISTS {role}")
        ps_lab.sql(f"CREATE ROLE {role}")
        ps_lab.sql(f"GRANT {role} TO {app}")
    ps_lab.sql("GRANT SET ON PARAMETER log_min_duration_statement TO kept_admin")
    ps_lab.wait_replicas_caught_up()
    yield
    for role in ROLES:
        ps_lab.sql(f"DROP OWNED BY {role}")
        ps_lab.sql(f"DROP ROLE {role}")


@pytest.fixture(scope="module", autouse=True)
def new_servers(ps_lab: Lab) -> None:
    """Begin with server connections that no client has named: a pooler leaves a name to the next client, if that has none."""
    for bouncer in ps_lab.bouncers.values():
        bouncer.admin("RECONNECT")


@pytest.fixture
def foreign(ps_lab: Lab) -> Iterator[Callable[[], None]]:
    """Foreign clients of the poolers, who look all the time, and when they are called, whether they have what another has set."""
    sees = f"{PROBE}, current_setting('statement_timeout')"
    met: list[Any] = []
    over = threading.Event()
    turn = threading.Lock()
    with ExitStack() as stack:

        def connect(endpoint: ps_core.Endpoint) -> psycopg.Connection[Any]:
            return stack.enter_context(psycopg.connect(**ps_core.conninfo(endpoint), autocommit=True, prepare_threshold=None))

        clients: list[list[Any]] = [
            [end, conn := connect(end), conn.execute(sees).fetchall()]
            for end in (ps_lab.topology.primary, ps_lab.topology.replicas[0])
        ]

        def look() -> None:
            with turn:
                for client in clients:
                    endpoint, conn, own = client
                    with suppress(psycopg.OperationalError):  # its server was lost, as a test wants it
                        if conn.closed:
                            conn = client[1] = connect(endpoint)
                        if (rows := conn.execute(sees).fetchall()) != own:
                            met.append(rows)

        def watch() -> None:
            while not over.wait(0.02):  # no more often: it takes the time of the servers from the tests
                look()

        def meet() -> None:
            look()
            assert not met, f"a foreign client has {met[:3]}"

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield meet
        finally:
            over.set()
            watcher.join()


def run(conn: Any, statements: Sequence[Any]) -> str | None:
    """Send them; return what the server said of the first that failed."""
    for statement in statements:
        try:
            conn.execute(*statement) if isinstance(statement, tuple) else conn.execute(statement)
        except psycopg.Error as exc:
            lines = str(exc).splitlines()
            # Where nothing follows in its message, a statement ends at its end.
            return f"{type(exc).__name__} {lines[0]} {exc.diag.statement_position} {lines[1:]}"
    return None


def probe(conn: Any) -> Any:
    """Return all that is in force."""
    try:
        return [conn.execute(PROBE).fetchone() + conn.execute(MODE).fetchone()]
    except psycopg.Error as exc:
        return type(exc).__name__


def in_autocommit(conn: Any, form: Sequence[Any]) -> Iterator[Any]:
    """By itself, with what follows."""
    yield run(conn, form)
    yield probe(conn)
    with conn.transaction():
        yield probe(conn)
    conn.execute("BEGIN ISOLATION LEVEL SERIALIZABLE READ WRITE")
    yield probe(conn)
    conn.execute("ROLLBACK")
    conn.execute("BEGIN")
    yield probe(conn)
    conn.execute("COMMIT")
    yield probe(conn)


def in_block(conn: Any, form: Sequence[Any], *, undone: bool) -> Iterator[Any]:
    """In a block that is committed, or undone."""
    with suppress(psycopg.Error), conn.transaction(force_rollback=undone):
        yield run(conn, form)
        yield probe(conn)
    yield probe(conn)


def committed(conn: Any, form: Sequence[Any]) -> Iterator[Any]:
    yield from in_block(conn, form, undone=False)


def rolled_back(conn: Any, form: Sequence[Any]) -> Iterator[Any]:
    yield from in_block(conn, form, undone=True)


def by_text(conn: Any, form: Sequence[Any], *, end: str) -> Iterator[Any]:
    """In a transaction by text, behind another statement, with savepoints on both sides."""
    conn.execute("BEGIN")
    conn.execute("SELECT 1")
    conn.execute("SET app.tenant = 'before'")
    conn.execute("SAVEPOINT a")
    yield run(conn, form)
    yield probe(conn)
    if conn.info.transaction_status == psycopg.pq.TransactionStatus.INERROR:
        conn.execute("ROLLBACK TO SAVEPOINT a")
    conn.execute('SAVEPOINT "B"')
    yield run(conn, ["SET work_mem = '7MB'", "SET LOCAL app.tenant = 'local'"])
    yield probe(conn)
    conn.execute(end)
    yield probe(conn)
    conn.execute("COMMIT")
    yield probe(conn)
    conn.execute("RESET ALL")
    yield probe(conn)


def back_to_the_first(conn: Any, form: Sequence[Any]) -> Iterator[Any]:
    yield from by_text(conn, form, end="ROLLBACK WORK TO a")


def back_to_the_second(conn: Any, form: Sequence[Any]) -> Iterator[Any]:
    yield from by_text(conn, form, end='ROLLBACK TO "B"; RELEASE SAVEPOINT "B"')


def released(conn: Any, form: Sequence[Any]) -> Iterator[Any]:
    yield from by_text(conn, form, end="RELEASE a")


def chained(conn: Any, form: Sequence[Any]) -> Iterator[Any]:
    """In transactions that begin as others end, by ROLLBACK, by COMMIT, and by a COMMIT that is a rollback."""
    for end in ("ROLLBACK AND CHAIN", "COMMIT AND CHAIN"):
        conn.execute("BEGIN")
        run(conn, ["SET app.tenant = 'before'", "SET ROLE kept_clerk"])
        yield run(conn, form)
        if conn.info.transaction_status == psycopg.pq.TransactionStatus.INERROR:
            end = "COMMIT AND CHAIN"  # noqa: PLW2901 - which rolls back
        conn.execute(end)
        yield probe(conn)
        conn.execute("COMMIT")
        yield probe(conn)
        run(conn, ["RESET ALL", "RESET ROLE"])


def ended_by_text(conn: Any, form: Sequence[Any]) -> Iterator[Any]:
    """In a transaction whose end is the last of several statements."""
    conn.execute("BEGIN")
    yield run(conn, form)
    if conn.info.transaction_status == psycopg.pq.TransactionStatus.INERROR:
        conn.execute("ROLLBACK")
    else:
        conn.execute("SELECT 1; COMMIT")
    yield probe(conn)
    conn.execute("BEGIN")
    run(conn, ["SET ROLE kept_clerk", "SET LOCAL ROLE NONE", "RESET ALL"])
    yield probe(conn)
    conn.execute("SAVEPOINT " + "s" * 70)
    run(conn, ["SET app.tenant = 'undone'"])
    conn.execute("ROLLBACK TO " + "s" * 65)
    yield probe(conn)
    conn.execute("COMMIT")
    yield probe(conn)


def in_failed_transaction(conn: Any, form: Sequence[Any]) -> Iterator[Any]:
    """In a transaction that has failed, and whose COMMIT is a rollback."""
    conn.execute("BEGIN")
    run(conn, ["SET work_mem = '7MB'", "SELECT 1/0"])
    yield run(conn, form)
    conn.execute("COMMIT")
    yield probe(conn)


STATES = (
    in_autocommit,
    committed,
    rolled_back,
    back_to_the_first,
    back_to_the_second,
    released,
    chained,
    ended_by_text,
    in_failed_transaction,
)


def by_methods(conn: Any, form: Sequence[Any]) -> Iterator[Any]:
    """Without autocommit: the first statement of a transaction, undone, and again, committed."""
    yield run(conn, form)
    yield probe(conn)
    conn.rollback()
    yield probe(conn)
    conn.rollback()
    yield run(conn, form)
    yield probe(conn)
    conn.commit()
    yield probe(conn)
    conn.execute("ROLLBACK AND CHAIN")
    yield probe(conn)
    conn.rollback()
    yield run(conn, ["SET work_mem = '7MB'"])
    with conn.transaction(force_rollback=True):
        yield run(conn, ["SET work_mem = '6MB'"])
    yield probe(conn)
    conn.commit()
    yield probe(conn)
    conn.rollback()


@pytest.fixture(scope="module")
def right(ps_lab: Lab, roles: None) -> dict[tuple[str, str], list[Any]]:
    """What a session of PostgreSQL's own answers, for each form in each state."""
    found = {}
    # Past the edge: some hundred connections, each a new session.
    password = ps_core.conninfo(ps_lab.topology.direct)["password"]
    there: dict[str, Any] = {
        "host": str(ps_lab.primary.socket_folder),
        "port": 5432,
        "user": "app",
        "password": password,
        "dbname": "postgres",
    }
    for states, autocommit in ((STATES, True), ((by_methods,), False)):
        for state in states:
            for name, form in FORMS.items():
                with psycopg.connect(
                    **there,
                    application_name="",
                    autocommit=autocommit,
                    cursor_factory=psycopg.ClientCursor,
                ) as conn:
                    found[state.__name__, name] = list(state(conn, form))
                    conn.rollback()
    return found


def differing(met: Any, wanted: Any) -> Any:
    """Return what differs, for whoever reads the failure."""
    if not (isinstance(met, list) and isinstance(wanted, list)):
        return None if met == wanted else (met, wanted)
    names = (
        *SHOWN,
        "app.tenant",
        "App.Other",
        "session.tenant",
        "local.tenant",
        "current_user",
        "app.probe",
        "transaction_read_only",
    )
    return {name: pair for name, *pair in zip(names, met[0], wanted[0], strict=True) if pair[0] != pair[1]}


def opened(state: EndpointState, stack: ExitStack, *, asynchronous: bool, **options: Any) -> Any:
    """Return a connection, which is closed with `stack`."""
    if asynchronous:
        runner = stack.enter_context(asyncio.Runner())
        conn: Any = Driven(runner, runner.run(AsyncConnection.open(state, **options)))
    else:
        conn = Connection.open(state, **options)
    stack.callback(conn.close)
    return conn


both = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "asyncio"])


CASES = [(state, False) for state in (*STATES, by_methods)]
CASES += [(state, True) for state in (in_autocommit, back_to_the_second, by_methods)]


@pytest.mark.parametrize(("state", "asynchronous"), CASES)
def test_as_a_session(
    ps_lab: Lab,
    right: dict[tuple[str, str], list[Any]],
    foreign: Callable[[], None],
    state: Callable[..., Iterator[Any]],
    asynchronous: bool,
) -> None:
    """Every form answers as in a session of PostgreSQL's own, and no foreign client sees anything of it."""
    primary = tracking(ps_lab, "primary")
    primary.endpoint = replace(primary.endpoint, binding="server" if asynchronous else "client")
    different = {}
    for name, form in FORMS.items():
        with ExitStack() as stack:
            conn = opened(primary, stack, asynchronous=asynchronous, autocommit=state is not by_methods)
            met = list(state(conn, form))
            if met != (wanted := right[state.__name__, name]):
                different[name] = [*map(differing, met, wanted)]
        foreign()
    assert not different, "\n".join(f"{name}: {what}" for name, what in different.items())


@both
def test_replica(ps_lab: Lab, right: dict[tuple[str, str], list[Any]], foreign: Callable[[], None], asynchronous: bool) -> None:
    """The same on a replica, which is READ ONLY whatever is set."""
    different = {}
    for state in (committed, rolled_back):
        for name, form in FORMS.items():
            with ExitStack() as stack:
                conn = opened(tracking(ps_lab, "replica"), stack, asynchronous=asynchronous, autocommit=True)
                pairs = [
                    [rows[0][:-1] if isinstance(rows, list) else rows for rows in pair]
                    for pair in zip(state(conn, form), right[state.__name__, name], strict=True)
                ]
            if any(met != wanted for met, wanted in pairs):
                different[state.__name__, name] = [pair for pair in pairs if pair[0] != pair[1]]
            foreign()
    assert not different, "\n".join(f"{name}: {what}" for name, what in different.items())


@both
def test_healing(ps_lab: Lab, roles: None, foreign: Callable[[], None], asynchronous: bool) -> None:
    """A connection that takes the place of a lost one holds the same, and gives the server what the pooler keeps."""
    with ExitStack() as stack:
        conn = opened(tracking(ps_lab, "primary"), stack, asynchronous=asynchronous, autocommit=True)
        everything = [
            "SET search_path = tenant",
            "SET ROLE kept_clerk",
            "SET app.tenant = '42'",
            "SET TIME ZONE 'Asia/Tokyo'",
            "SET DateStyle = 'SQL, DMY'",
            "SET client_encoding = 'LATIN1'",
            "SET standard_conforming_strings = off",
        ]
        assert run(conn, everything) is None
        before = probe(conn)
        assert [before[0][at] for at in (0, 3, 4, 5, 6)] == ["tenant", "Asia/Tokyo", "SQL, DMY", "LATIN1", "off"]
        ps_lab.edge.cut()
        assert probe(conn) == before
        conn.execute("BEGIN")
        assert run(conn, ["SET search_path = lost", "SET ROLE kept_admin"]) is None
        ps_lab.edge.cut()
        with pytest.raises(psycopg.OperationalError):
            conn.execute("SELECT 1")
        conn.rollback()
        assert probe(conn) == before
        for undone in ("SET TIME ZONE 'Europe/Rome'", "SET LOCAL DateStyle = 'German'", "SET client_encoding = 'UTF8'"):
            conn.execute("BEGIN")
            conn.execute(undone)
            ps_lab.edge.cut()
            conn.rollback()
            assert probe(conn) == before
    foreign()


@both
def test_other_side(ps_lab: Lab, roles: None, asynchronous: bool) -> None:
    """A connection that goes to the replicas for some time, as those of an engine made from a URL, holds the same there."""
    replicas = replicas_of(ps_lab.topology)
    with ExitStack() as stack:
        conn = opened(tracking(ps_lab, "primary"), stack, asynchronous=asynchronous, autocommit=True)
        assert run(conn, ["SET search_path = tenant", "SET app.tenant = '1'", "SET TIME ZONE 'Asia/Tokyo'"]) is None
        primary = probe(conn)
        conn.go_to(replicas)
        assert conn.execute("SELECT pg_is_in_recovery()").fetchone() == (True,)
        assert probe(conn)[0][:-1] == primary[0][:-1]
        assert run(conn, ["SET app.tenant = '2'", "SET DateStyle = 'SQL, DMY'", "SET client_encoding = 'LATIN1'"]) is None
        there = probe(conn)
        conn.go_to(None)
        assert conn.execute("SELECT pg_is_in_recovery()").fetchone() == (False,)
        assert probe(conn)[0][:-1] == there[0][:-1]


LIMITS = "SELECT current_setting('statement_timeout'), current_setting('transaction_timeout')"


@both
def test_timeouts(ps_lab: Lab, foreign: Callable[[], None], asynchronous: bool) -> None:
    """A timeout that is SET is in the place of the endpoint's; limits() and a deadline still hold."""
    with ExitStack() as stack:
        conn = opened(tracking(ps_lab, "primary"), stack, asynchronous=asynchronous, autocommit=True)
        assert conn.execute(LIMITS).fetchone() == ("2s", "3s")
        conn.execute("SET statement_timeout = '1min'")
        # As with limits(): what nobody gave does not disable what was given.
        assert conn.execute(LIMITS).fetchone() == ("1min", "0")
        conn.execute("SET transaction_timeout = 90500")
        assert conn.execute(LIMITS).fetchone() == ("1min", "90500ms")
        with limits(statement=1):
            assert conn.execute(LIMITS).fetchone() == ("1s", "90500ms")
        with deadline(20):
            assert conn.execute("SELECT current_setting('statement_timeout')::interval <= '20 s'").fetchone() == (True,)
        # PostgreSQL heeds no statement timeout that is not below the transaction's.
        conn.execute("SET transaction_timeout = '200ms'")
        assert conn.execute(LIMITS).fetchone() == ("1min", "200ms")
        with limits(statement=1):
            assert conn.execute(LIMITS).fetchone() == ("1s", "0")
        conn.execute("SET transaction_timeout = 90500")
        conn.execute("SET statement_timeout = 0")
        assert conn.execute(LIMITS).fetchone() == ("0", "90500ms")
        conn.execute("RESET transaction_timeout")
        assert conn.execute(LIMITS).fetchone() == ("0", "3s")
        conn.execute("RESET ALL")
        assert conn.execute(LIMITS).fetchone() == ("2s", "3s")
        for end, left in (("COMMIT", ("70s", "0")), ("ROLLBACK", ("2s", "3s"))):
            conn.execute("BEGIN")
            conn.execute("SET statement_timeout = '70s'")
            assert conn.execute(LIMITS).fetchone() == ("70s", "0")
            conn.execute("SET LOCAL statement_timeout = '5s'")
            assert conn.execute(LIMITS).fetchone() == ("5s", "0")
            conn.execute(end)
            assert conn.execute(LIMITS).fetchone() == left
            conn.execute("RESET ALL")
        with limits(statement=1, transaction=2), conn.transaction():
            conn.execute("SET statement_timeout = '70s'")
            assert conn.execute(LIMITS).fetchone() == ("1s", "2s")
            conn.execute("SAVEPOINT a")
            conn.execute("RESET ALL")
            assert conn.execute(LIMITS).fetchone() == ("1s", "2s")
            conn.execute("ROLLBACK TO a")
            assert conn.execute(LIMITS).fetchone() == ("1s", "2s")
        assert conn.execute(LIMITS).fetchone() == ("70s", "0")
    foreign()


@pytest.mark.parametrize("autocommit", [True, False])
def test_assumed_role(ps_lab: Lab, roles: None, connect: Connect, autocommit: bool) -> None:
    """Where a role is assumed by configuration, nothing leads back to the role that logged in."""
    conn = connect(tracking(ps_lab, "primary", assumed_role="kept_clerk"), autocommit=autocommit)
    ways = [
        "RESET ROLE",
        "SET ROLE NONE",
        "SET SESSION ROLE none",
        "SET role = DEFAULT",
        "RESET role",
        "RESET ALL",
        "DISCARD ALL",
    ]
    for way in (*ways, "SELECT set_config('role', 'none', false)"):
        for first in ("SET ROLE kept_admin", "SELECT 1"):
            conn.execute(first)
            assert conn.execute("SELECT current_user").fetchone() == ("kept_admin" if "SET" in first else "kept_clerk",)
            if way == "DISCARD ALL" and not autocommit:
                conn.rollback()  # it cannot run there
                continue
            conn.execute(way)
            kept = way == "RESET ALL" and "SET" in first
            assert conn.execute("SELECT current_user").fetchone() == ("kept_admin" if kept else "kept_clerk",)
            conn.commit()
            assert conn.execute("SELECT current_user").fetchone() == ("kept_admin" if kept else "kept_clerk",)
            conn.execute("SET ROLE NONE")
            conn.commit()
    with conn.transaction():
        conn.execute("SAVEPOINT a")
        conn.execute("RESET ROLE")
        assert conn.execute("SELECT current_user").fetchone() == ("kept_clerk",)
        conn.execute("ROLLBACK TO a")
        assert conn.execute("SELECT current_user").fetchone() == ("kept_clerk",)


@both
@pytest.mark.parametrize("autocommit", [True, False])
def test_role_that_is_dropped(ps_lab: Lab, asynchronous: bool, autocommit: bool) -> None:
    """The error names what is held, and how to let go of it; that works."""
    ways_out = {
        "RESET ROLE": "app",
        "SET ROLE NONE": "app",
        "SET ROLE kept_other": "kept_other",
        "SELECT set_config('role', 'none', false)": "app",
    } | ({"DISCARD ALL": "app"} if autocommit else {})
    for way, user in ways_out.items():
        for name in ("kept_gone", "kept_other"):
            ps_lab.sql(f"DROP ROLE IF EXISTS {name}")
            ps_lab.sql(f"CREATE ROLE {name}")
            ps_lab.sql(f"GRANT {name} TO app")
        with ExitStack() as stack:
            conn = opened(tracking(ps_lab, "primary"), stack, asynchronous=asynchronous, autocommit=autocommit)
            conn.execute("SET ROLE kept_gone")
            conn.commit()
            ps_lab.sql("DROP ROLE kept_gone")
            for _ in range(2):
                with pytest.raises(SessionSettingRefused) as raised:
                    conn.execute("SELECT 1")
                assert str(raised.value) == (
                    "'role' was SET for the session, and the server refuses it now: role \"kept_gone\" does not exist. The"
                    " statement did not run. SET ROLE NONE, or SET ROLE to another one, lets go of it; so does DISCARD ALL"
                )
                assert (raised.value.setting, raised.value.sqlstate) == ("role", "22023")
                conn.rollback()
            conn.execute(way)
            conn.commit()
            assert conn.execute("SELECT current_user").fetchone() == (user,)
    ps_lab.sql("DROP ROLE kept_other")


@both
@pytest.mark.parametrize("autocommit", [True, False])
def test_change_that_is_lost(ps_lab: Lab, asynchronous: bool, autocommit: bool) -> None:
    """Where a SET fails with its connection, that is used no more: whoever passes over the error has not what was held before."""
    once = {"policy": RetryPolicy(attempts=0)}
    for lost in ("SET app.tenant = '2'", "RESET app.tenant", "SELECT set_config('app.tenant', '2', false)"):
        with ExitStack() as stack:
            conn = opened(tracking(ps_lab, "primary"), stack, asynchronous=asynchronous, autocommit=autocommit, **once)
            conn.execute("SET app.tenant = '1'")
            conn.commit()
            ps_lab.edge.cut()
            with pytest.raises(psycopg.OperationalError):
                conn.execute(lost)
            with pytest.raises(psycopg.OperationalError, match="the connection is closed"):
                conn.execute("SELECT current_setting('app.tenant')")
    with ExitStack() as stack:
        conn = opened(tracking(ps_lab, "primary"), stack, asynchronous=asynchronous, autocommit=autocommit)
        conn.execute("SET app.tenant = '1'")
        conn.commit()
        with ps_lab.edge.cut_answers("primary", containing="app.tenant = '2'"):
            conn.execute("SET app.tenant = '2'")  # is sent again, as it sets the same
        assert conn.execute("SELECT current_setting('app.tenant')").fetchone() == ("2",)


@pytest.mark.parametrize("settled", [True, False])
def test_commit_that_is_lost(ps_lab: Lab, connect: Connect, table: str, settled: bool) -> None:
    """What a COMMIT without an answer leaves of the session is what the lookup says; if nobody knows, it is used no more."""
    conn = connect(tracking(ps_lab, "primary"))
    conn.execute("SET app.tenant = '1'")
    conn.commit()
    conn.execute("SET app.tenant = '2'")
    conn.execute(f"INSERT INTO {table} VALUES (1)")
    if settled:
        with ps_lab.edge.cut_answers("primary", containing="COMMIT"):
            conn.commit()
        assert conn.execute("SELECT current_setting('app.tenant')").fetchone() == ("2",)
        return
    with ps_lab.edge.hang("primary"), deadline(0.1), pytest.raises(CommitOutcomeUnknown):
        conn.commit()
    with pytest.raises(psycopg.OperationalError, match="the connection is closed"):
        conn.execute("SELECT 1")


def test_verify(ps_lab: Lab, connect: Connect, table: str) -> None:
    """What looks up a lost COMMIT has the settings that its transaction had."""
    conn = connect(tracking(ps_lab, "primary"))
    conn.execute("SET app.tenant = '1'")
    conn.commit()
    conn.execute("SET app.tenant = '2'")
    conn.execute(f"INSERT INTO {table} VALUES (1); SELECT 2")  # of which no id comes back
    verify = "SELECT current_setting('app.tenant') = '2'"
    with ps_lab.edge.cut_answers("primary", containing="COMMIT"), ps_core.commit_check(verify=verify):
        conn.commit()
    assert conn.execute("SELECT current_setting('app.tenant')").fetchone() == ("2",)


def test_every_form_outlives_its_connection(ps_lab: Lab, roles: None) -> None:
    """What each form has set holds on the connection that takes the place of a lost one."""
    for form in FORMS.values():
        with ExitStack() as stack:
            conn = opened(tracking(ps_lab, "primary"), stack, asynchronous=False, autocommit=True)
            run(conn, form)
            before = probe(conn)
            ps_lab.edge.cut()
            assert probe(conn) == before, form


def test_role_that_is_dropped_and_not_in_force(ps_lab: Lab, connect: Connect) -> None:
    """What was set under a role is set under it again: where that is gone, the advice is to let go of what was set."""
    ps_lab.sql("CREATE ROLE kept_gone")
    ps_lab.sql("GRANT kept_gone TO app")
    conn = connect(tracking(ps_lab, "primary"), autocommit=True)
    assert run(conn, ["SET ROLE kept_gone", "SET work_mem = '9MB'", "RESET ROLE"]) is None
    ps_lab.sql("DROP ROLE kept_gone")
    with pytest.raises(SessionSettingRefused, match=r"(?m)RESET ALL lets go of it; so does DISCARD ALL$"):
        conn.execute("SELECT 1")
    assert run(conn, ["RESET ALL", "SELECT 1"]) is None


def test_value_that_the_encoding_does_not_have(ps_lab: Lab, connect: Connect) -> None:
    """A value that cannot be sent is an error of its own, which names it and says how to get out."""
    conn = connect(tracking(ps_lab, "primary"), autocommit=True)
    assert run(conn, ["SET app.tenant = '€'", "SET client_encoding = 'LATIN1'"]) is None
    with pytest.raises(SessionSettingRefused) as raised:
        conn.execute("SELECT 1")
    assert str(raised.value) == (
        "'app.tenant' was SET for the session, and client_encoding iso8859-1 has not all of its characters. The statement did not"
        " run. RESET app.tenant lets go of it"
    )
    assert run(conn, ["RESET app.tenant", "SELECT 1"]) is None


def test_setting_that_is_refused_later(ps_lab: Lab, roles: None, connect: Connect) -> None:
    """So it is with a setting whose role has lost the right to it; RESET lets go of it."""
    conn = connect(tracking(ps_lab, "primary"), autocommit=True)
    assert run(conn, ["SET ROLE kept_admin", "SET log_min_duration_statement = 100000", "RESET ROLE", "SELECT 1"]) is None
    ps_lab.sql("REVOKE SET ON PARAMETER log_min_duration_statement FROM kept_admin")
    try:
        for work in (
            lambda: conn.execute("SELECT 1"),
            lambda: conn.execute("BEGIN"),
            lambda: list(conn.cursor().stream("SELECT 1")),
        ):
            with pytest.raises(
                SessionSettingRefused, match=r"^'log_min_duration_statement' was SET .*: permission denied to set"
            ):
                work()
            conn.rollback()
        with pytest.raises(SessionSettingRefused, match=r"(?m)RESET ALL lets go of it; so does DISCARD ALL$"):
            conn.execute("INSERT INTO nowhere VALUES (1)")
        assert run(conn, ["RESET ALL", "SELECT 1"]) is None
    finally:
        ps_lab.sql("GRANT SET ON PARAMETER log_min_duration_statement TO kept_admin")


AUTHORIZATION = (
    "SET SESSION AUTHORIZATION: behind a transaction pooler the next client would have it: write SET ROLE, or use a direct"
    " connection"
)
STYLE = (
    "SET IntervalStyle: the driver reads intervals in the style 'postgres' alone: write to_char(...), or SET LOCAL IntervalStyle"
    " in a transaction that turns intervals into text, or use a direct connection"
)
REFUSED = {
    "SET SESSION AUTHORIZATION app": AUTHORIZATION,
    "SELECT set_config('session_authorization', 'app', false)": AUTHORIZATION,
    "SET IntervalStyle = iso_8601": STYLE,
    "SELECT set_config('IntervalStyle', 'iso_8601', false)": STYLE,
    "SET seed = 0.5": (
        "SET seed: behind a transaction pooler the next client's random() would repeat: call setseed() in the transaction that"
        " uses random(), or use a direct connection"
    ),
    "SET idle_session_timeout = 5000": (
        "SET idle_session_timeout: behind a transaction pooler it would end the server connection of others: let the pooler end"
        " idle clients (client_idle_timeout), or use a direct connection"
    ),
    "UPDATE pg_settings SET setting = '8MB' WHERE name = 'work_mem'": (
        "an UPDATE of pg_settings sets for the session what the text does not name, and behind a transaction pooler nobody could"
        " hold it: write SET, or set_config('name', value, false)"
    ),
    "DECLARE c CURSOR FOR SELECT set_config('app.tenant', '1', false)": (
        "a cursor sets something for the session when it is fetched, where nobody could take it: write set_config(..., true), or"
        " a statement of its own"
    ),
    "SELECT set_config('app.tenant', '1', true), set_config('app.tenant', '2', false)": (
        "set_config() of one setting for the session and for the transaction in one statement: write two statements"
    ),
    "SELECT 1; SET work_mem = '8MB'": (
        "a text of several statements sets something for the session, which a transaction pooler does not keep: send each"
        " statement by itself, or write SET LOCAL"
    ),
    "SELECT set_config(name, '1', false) FROM pg_settings": (
        "set_config() for the session, of which the text does not show the setting's name or the third argument: behind a"
        " transaction pooler nobody could hold it: write set_config('name', value, false) with both as literals, or true for the"
        " transaction alone"
    ),
}
ONLY_EXECUTE = (
    "it sets something for the session, which a transaction pooler does not keep, and only execute() outside of pipelines can"
    " take it: use that, or SET LOCAL"
)


@pytest.mark.parametrize("endpoint", ["primary", "replica"])
@pytest.mark.parametrize("autocommit", [True, False])
def test_refused(ps_lab: Lab, connect: Connect, foreign: Callable[[], None], endpoint: str, autocommit: bool) -> None:
    """What cannot be held is refused, with what to write instead; so is a way of sending that cannot take it."""
    conn = connect(tracking(ps_lab, endpoint), autocommit=autocommit)
    for statement, message in REFUSED.items():
        with pytest.raises(psycopg.NotSupportedError) as raised:
            conn.execute(statement)
        assert str(raised.value) == message
        conn.rollback()
    sets = "SELECT set_config('app.tenant', '1', false)"

    def in_pipeline() -> None:
        with conn.pipeline():
            conn.execute(sets)

    def in_named_cursor() -> None:
        with conn.transaction(), conn.cursor("named") as cursor:
            cursor.execute(sets)

    for way in (
        in_pipeline,
        lambda: list(conn.cursor().stream(sets)),
        lambda: conn.cursor().executemany("SET work_mem = %s", [(8000,)]),
        lambda: conn.cursor().copy(f"COPY ({sets}) TO STDOUT").__enter__(),
        in_named_cursor,
    ):
        with pytest.raises(psycopg.NotSupportedError) as raised:
            way()
        assert str(raised.value) == ONLY_EXECUTE
        conn.rollback()
    foreign()


@pytest.mark.parametrize(
    "sets", ["SET search_path = tenant", "SET app.tenant = '1'", "SET ROLE kept_clerk", "SET work_mem = '8MB'"]
)
def test_what_cannot_carry_it_is_refused(ps_lab: Lab, roles: None, connect: Connect, table: str, sets: str) -> None:
    """VACUUM and its like would run without what is held: only timeouts may be missing."""
    conn = connect(tracking(ps_lab, "primary"), autocommit=True)
    assert run(conn, ["SET statement_timeout = '1min'", "SET application_name = 'report'", f"VACUUM {table}", sets]) is None
    for statement in (f"VACUUM {table}", f"CREATE INDEX CONCURRENTLY ON {table} (id)"):
        with pytest.raises(psycopg.NotSupportedError, match="this statement must stand alone, and would run without the local"):
            conn.execute(statement)
    assert run(conn, ["DISCARD ALL", f"VACUUM {table}"]) is None


def test_nothing_is_prepared_under_a_search_path(ps_lab: Lab, connect: Connect) -> None:
    """A prepared statement means the tables of the search_path under which it was planned."""
    with psycopg.connect(**ps_core.conninfo(ps_lab.topology.direct), autocommit=True) as stock:
        for schema in ("kept_a", "kept_b"):
            stock.execute(f"CREATE SCHEMA {schema}")
            stock.execute(f"CREATE TABLE {schema}.item AS SELECT '{schema}' AS name")
        stock.execute("ALTER TABLE kept_b.item ADD COLUMN more int")
    try:
        state = tracking(ps_lab, "primary")
        state.endpoint = replace(state.endpoint, binding="server")
        conn = connect(state, autocommit=True, prepare_threshold=1)
        for _ in range(4):
            for schema in ("kept_a", "kept_b"):
                conn.execute(f"SET search_path = {schema}")
                row = conn.execute("SELECT * FROM item WHERE name = %s", (schema,)).fetchone()
                assert row is not None
                assert row[0] == schema
        assert not conn._prepared._names
    finally:
        ps_lab.sql("DROP SCHEMA kept_a CASCADE")
        ps_lab.sql("DROP SCHEMA kept_b CASCADE")


@both
def test_local_settings(ps_lab: Lab, roles: None, foreign: Callable[[], None], asynchronous: bool) -> None:
    """A block's search_path and role are quoted right, and hold in the place of what was SET."""
    sees = "SELECT current_schemas(false), current_setting('search_path'), current_user"
    for name in ('kept "a', "kept,b"):
        ps_lab.sql('CREATE SCHEMA "{}"'.format(name.replace('"', '""')))
        ps_lab.sql('GRANT ALL ON SCHEMA "{}" TO PUBLIC'.format(name.replace('"', '""')))
    ps_lab.wait_replicas_caught_up()
    given = {"search_path": ['kept "a', "kept,b"], "role": "kept_clerk"}
    text = {"search_path": '"kept ""a", "kept,b"', "role": "kept_clerk"}
    try:
        for endpoint in ("primary", "replica"):
            with ExitStack() as stack:
                conn = opened(tracking(ps_lab, endpoint), stack, asynchronous=asynchronous, autocommit=True)
                conn.execute("SET search_path = public")
                conn.execute("SET ROLE kept_admin")
                for settings in (given, text):
                    with local_settings(settings):
                        wanted = (['kept "a', "kept,b"], '"kept ""a", "kept,b"', "kept_clerk")
                        assert conn.execute(sees).fetchone() == wanted
                        with conn.transaction():
                            assert conn.execute(sees).fetchone() == wanted
                        with conn.pipeline():
                            cursor = conn.execute(sees)
                        assert cursor.fetchone() == wanted
                assert conn.execute(sees).fetchone() == (["public"], "public", "kept_admin")
        foreign()
    finally:
        for name in ('kept "a', "kept,b"):
            ps_lab.sql('DROP SCHEMA "{}"'.format(name.replace('"', '""')))


def test_local_settings_refuse() -> None:
    """What local_settings() refuses, it refuses with advice that works."""
    with pytest.raises(ConfigurationError) as raised:
        local_settings({"work_mem": "8MB"})
    assert str(raised.value) == (
        "local_settings: 'work_mem' is none of the application's own settings ('prefix.name'), search_path or role: write"
        " `SET LOCAL work_mem = ...` in a transaction, or `SET work_mem = ...` on the connection; for timeouts, limits()"
    )
    with pytest.raises(
        ConfigurationError, match="search_path: 'a,' is no list of schemas: write them as a list, or as SET takes"
    ):
        local_settings({"search_path": "a,"})


def test_serializable_is_the_primarys(ps_lab: Lab, connect: Connect) -> None:
    """A replica has no SERIALIZABLE: what reads there is refused in a way that lets the primary answer."""
    conn = connect(tracking(ps_lab, "replica"), autocommit=True)
    conn.execute("SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE")
    with pytest.raises(NotOnReplica, match="cannot use serializable mode on 'replica', an endpoint for reads"):
        conn.execute("SELECT 1")
    conn.execute("RESET default_transaction_isolation")
    conn.execute("SELECT 1")


def test_round_trips(ps_lab: Lab, connect: Connect) -> None:
    """A SET costs no round trip more than stock's, and what follows none."""
    for autocommit in (True, False):
        conn = connect(tracking(ps_lab, "primary"), autocommit=autocommit)
        conn.execute("SELECT 1")
        conn.commit()
        with ps_lab.round_trips() as counted:
            for statement in (
                "SET search_path = tenant",
                "SET statement_timeout = '1min'",
                "RESET work_mem",
                "SELECT 1",
                "SELECT 2",
            ):
                conn.execute(statement)
            conn.commit()
        assert counted.count == (5 if autocommit else 6)


def test_pipeline_at_a_held_level(ps_lab: Lab, connect: Connect) -> None:
    """A pipeline's transactions have the session's level, too, and its settings again behind each Sync."""
    conn = connect(tracking(ps_lab, "primary"), autocommit=True)
    conn.execute("SET default_transaction_isolation = 'repeatable read'")
    conn.execute("SET app.tenant = '42'")
    sees = "SELECT current_setting('transaction_isolation'), current_setting('app.tenant')"
    with conn.pipeline() as pipeline:
        first = conn.execute(sees)
        pipeline.sync()
        second = conn.execute(sees)
    assert first.fetchone() == second.fetchone() == ("repeatable read", "42")
    with conn.transaction():
        conn.execute("SET app.tenant = '43'")
        with conn.pipeline() as pipeline:
            conn.execute("SELECT 1")
            pipeline.sync()
            third = conn.execute(sees)
            with pytest.raises(psycopg.NotSupportedError, match="does not say whether that holds"):
                conn.execute("COMMIT")
    assert third.fetchone() == ("repeatable read", "43")
    conn.autocommit = False
    for end, left in ((conn.rollback, "43"), (conn.commit, "44")):
        conn.execute("SET app.tenant = '44'")
        with conn.pipeline():
            conn.execute("SELECT 1")
            end()
        row = conn.execute(sees).fetchone()
        assert row is not None
        assert row[1] == left
        conn.rollback()


def test_real_sessions_are_left_alone(ps_lab: Lab, connect: Connect) -> None:
    """On the direct endpoint, and where the pooler keeps sessions, SET is the server's."""
    real = ps_core.connect(ps_lab.url, pooled=False, autocommit=True)
    for conn in (connect(tracking(ps_lab, "direct"), autocommit=True), real):
        assert run(conn, ["SET work_mem = '8MB'; SET app.tenant = '1'", "SET SESSION AUTHORIZATION DEFAULT"]) is None
        assert conn.execute("SHOW work_mem").fetchone() == ("8MB",)
        assert conn._session == Session()
    real.close()
