"""The classification, row by row, on errors as psycopg makes them."""

import psycopg
import pytest
from psycopg.pq import DiagnosticField

from ps_core import errors
from ps_core.failures import Kind, Ran, classify, is_made_by_pooler
from tests.adversity.verdicts import VERDICTS

pytestmark = pytest.mark.fast


def server_error(state: str, text: str, severity: str = "ERROR") -> psycopg.Error:
    """Return an error as PostgreSQL sends it: with the fields V, F and R."""
    info: dict[int, bytes | None] = {
        DiagnosticField.SEVERITY: severity.encode(),
        DiagnosticField.SEVERITY_NONLOCALIZED: severity.encode(),
        DiagnosticField.SQLSTATE: state.encode(),
        DiagnosticField.MESSAGE_PRIMARY: text.encode(),
        DiagnosticField.SOURCE_FILE: b"postgres.c",
    }
    try:
        return psycopg.errors.lookup(state)(text, info=info)
    except KeyError:  # younger than this psycopg: it raises the class of the first two digits
        return psycopg.InternalError(text, info=info)


def pooler_error(text: str, state: str = "08P01") -> psycopg.Error:
    """Return an error as PgBouncer sends it: severity, SQLSTATE, message and nothing else."""
    info: dict[int, bytes | None] = {
        DiagnosticField.SEVERITY: b"FATAL",
        DiagnosticField.SQLSTATE: state.encode(),
        DiagnosticField.MESSAGE_PRIMARY: text.encode(),
    }
    return psycopg.errors.lookup(state)(text, info=info)


def connect_error(text: str) -> psycopg.Error:
    """Return an error as psycopg raises it while connecting: no SQLSTATE."""
    return psycopg.OperationalError(f'connection failed: connection to server at "127.0.0.1", port 6432 failed: FATAL:  {text}')


SERVER = [
    ("57P01", "terminating connection due to administrator command", "FATAL", Kind.TRANSIENT, Ran.ROLLED_BACK, False),
    (
        "57P02",
        "terminating connection because of crash of another server process",
        "FATAL",
        Kind.TRANSIENT,
        Ran.ROLLED_BACK,
        False,
    ),
    ("57P03", "the database system is starting up", "FATAL", Kind.TRANSIENT, Ran.NO, False),
    ("57P04", "terminating connection: its database was dropped", "FATAL", Kind.CONFIGURATION, Ran.ROLLED_BACK, False),
    ("57P05", "terminating connection due to idle-session timeout", "FATAL", Kind.TRANSIENT, Ran.NO, False),
    ("25P03", "terminating connection due to idle-in-transaction timeout", "FATAL", Kind.TIMEOUT, Ran.ROLLED_BACK, False),
    ("25P04", "terminating connection due to transaction timeout", "FATAL", Kind.TIMEOUT, Ran.ROLLED_BACK, False),
    ("57014", "canceling statement due to statement timeout", "ERROR", Kind.TIMEOUT, Ran.ROLLED_BACK, True),
    ("55P03", "canceling statement due to lock timeout", "ERROR", Kind.TIMEOUT, Ran.ROLLED_BACK, True),
    ("40001", "could not serialize access due to concurrent update", "ERROR", Kind.CONFLICT, Ran.ROLLED_BACK, True),
    ("40001", "canceling statement due to conflict with recovery", "ERROR", Kind.RECOVERY_CONFLICT, Ran.ROLLED_BACK, True),
    ("40001", "terminating connection due to conflict with recovery", "FATAL", Kind.RECOVERY_CONFLICT, Ran.ROLLED_BACK, False),
    ("40P01", "deadlock detected", "ERROR", Kind.CONFLICT, Ran.ROLLED_BACK, True),
    ("25006", "cannot execute INSERT in a read-only transaction", "ERROR", Kind.NOT_PRIMARY, Ran.ROLLED_BACK, True),
    ("22023", 'invalid value for parameter "a": "b"', "ERROR", Kind.PERMANENT, Ran.ROLLED_BACK, True),
    ("53300", "sorry, too many clients already", "FATAL", Kind.OVERLOAD, Ran.NO, False),
    ("53000", "[PGINSIGHTS] Traffic Control: query exceeded budget", "ERROR", Kind.OVERLOAD, Ran.ROLLED_BACK, True),
    ("53000", "out of something", "ERROR", Kind.OVERLOAD, Ran.ROLLED_BACK, True),
    ("53100", "could not extend file", "ERROR", Kind.PERMANENT, Ran.ROLLED_BACK, True),
    ("53200", "out of memory", "ERROR", Kind.PERMANENT, Ran.ROLLED_BACK, True),
    ("26000", 'prepared statement "a" does not exist', "ERROR", Kind.CONFIGURATION, Ran.ROLLED_BACK, True),
    ("42P05", 'prepared statement "a" already exists', "ERROR", Kind.CONFIGURATION, Ran.ROLLED_BACK, True),
    ("42601", "syntax error", "ERROR", Kind.PERMANENT, Ran.ROLLED_BACK, True),
    ("23505", "duplicate key", "ERROR", Kind.PERMANENT, Ran.ROLLED_BACK, True),
    ("08P01", "bind message supplies 1 parameters", "ERROR", Kind.PERMANENT, Ran.ROLLED_BACK, True),
    ("08001", 'could not connect to server "remote"', "ERROR", Kind.PERMANENT, Ran.ROLLED_BACK, True),
    ("08006", "terminating connection because protocol synchronization was lost", "FATAL", Kind.TRANSIENT, Ran.UNKNOWN, False),
    ("08000", "an exception", "FATAL", Kind.TRANSIENT, Ran.UNKNOWN, False),
    ("08001", "could not establish it", "FATAL", Kind.TRANSIENT, Ran.NO, False),
    ("08003", "does not exist", "FATAL", Kind.TRANSIENT, Ran.UNKNOWN, False),
    ("08004", "rejected", "FATAL", Kind.TRANSIENT, Ran.NO, False),
    ("28000", "no such role", "FATAL", Kind.CONFIGURATION, Ran.NO, False),
    ("3D000", "no such database", "FATAL", Kind.CONFIGURATION, Ran.NO, False),
    ("28P01", "password authentication failed", "FATAL", Kind.CONFIGURATION, Ran.NO, False),
    ("25006", "invalid statement because cluster is read-only", "ERROR", Kind.PERMANENT, Ran.ROLLED_BACK, True),
]

POOLER = [
    ("query_wait_timeout", Kind.TRANSIENT, Ran.NO),
    ("server login has been failing, try again later (server_login_retry)", Kind.TRANSIENT, Ran.NO),
    (
        "server login has been failing, cached error: the database system is shutting down (server_login_retry)",
        Kind.TRANSIENT,
        Ran.NO,
    ),
    (
        'server login has been failing, cached error: password authentication failed for user "app" (server_login_retry)',
        Kind.CONFIGURATION,
        Ran.NO,
    ),
    ("client_login_timeout (server down)", Kind.TRANSIENT, Ran.NO),
    ("server conn crashed?", Kind.TRANSIENT, Ran.UNKNOWN),
    ("server connection closed", Kind.TRANSIENT, Ran.UNKNOWN),
    ("server shutting down", Kind.TRANSIENT, Ran.NO),
    ("pooler is shutting down", Kind.TRANSIENT, Ran.NO),
    ("no more connections allowed (max_client_conn)", Kind.OVERLOAD, Ran.NO),
    ("client connections exceeded (max_db_client_connections)", Kind.OVERLOAD, Ran.NO),
    ("admin forced disconnect", Kind.TRANSIENT, Ran.UNKNOWN),
    ("invalid server parameter", Kind.TRANSIENT, Ran.NO),
    ("server DNS lookup failed", Kind.TRANSIENT, Ran.NO),
    ('database "x" is disabled', Kind.TRANSIENT, Ran.UNKNOWN),
    ("query_timeout", Kind.TIMEOUT, Ran.ROLLED_BACK),
    ("unsupported startup parameter: statement_timeout", Kind.CONFIGURATION, Ran.NO),
    ("unsupported startup parameter in options: statement_timeout", Kind.CONFIGURATION, Ran.NO),
    ("no such user", Kind.CONFIGURATION, Ran.NO),
    ("no such database: x", Kind.CONFIGURATION, Ran.NO),
]

EDGE = [
    ("no primary available for branch b", Kind.TRANSIENT),
    ("no replica available for branch b", Kind.TRANSIENT),
    ("no running members available for branch b", Kind.TRANSIENT),
    ("failed to connect to upstream", Kind.TRANSIENT),
    ("connection retry timeout - branch b unavailable after 5s", Kind.TRANSIENT),
    ("SSL connection is required", Kind.CONFIGURATION),
    ("branch b does not exist", Kind.CONFIGURATION),
    ("invalid user format: username must include branch (e.g., user.branch)", Kind.CONFIGURATION),
    ("pooler only supports primary destinations for branch b", Kind.CONFIGURATION),
    ("the database system is starting up", Kind.TRANSIENT),
    ("the database system is not yet accepting connections", Kind.TRANSIENT),
    ("sorry, too many clients already", Kind.OVERLOAD),
    ('password authentication failed for user "app"', Kind.CONFIGURATION),
    ('database "x" does not exist', Kind.CONFIGURATION),
]

CLIENT = [
    (
        psycopg.OperationalError(
            "consuming input failed: terminating connection due to transaction timeout\nFATAL:  server conn crashed?"
        ),
        Kind.TIMEOUT,
        Ran.ROLLED_BACK,
    ),
    (psycopg.OperationalError("consuming input failed: server closed the connection unexpectedly"), Kind.TRANSIENT, Ran.UNKNOWN),
    (psycopg.OperationalError("connection failed: Connection refused"), Kind.TRANSIENT, Ran.NO),
    (psycopg.OperationalError("connection failed: session is read-only"), Kind.TRANSIENT, Ran.NO),
    (psycopg.OperationalError("the connection is closed"), Kind.TRANSIENT, Ran.NO),
    (psycopg.OperationalError("sending query failed: SSL SYSCALL error: EOF detected"), Kind.TRANSIENT, Ran.UNKNOWN),
    (psycopg.OperationalError("connection socket closed"), Kind.TRANSIENT, Ran.UNKNOWN),
    (psycopg.errors.ConnectionTimeout("connection timeout expired"), Kind.TRANSIENT, Ran.NO),
    (psycopg.OperationalError("failed to resolve host 'nowhere': Name or service not known"), Kind.TRANSIENT, Ran.NO),
    (psycopg.InternalError("received 2 results from command 'COMMIT'"), Kind.TRANSIENT, Ran.UNKNOWN),
    (psycopg.OperationalError("cannot exit pipeline mode while busy"), Kind.TRANSIENT, Ran.UNKNOWN),
    (psycopg.OperationalError("connection failed: SSL error: certificate verify failed"), Kind.CONFIGURATION, Ran.NO),
    (
        psycopg.OperationalError("connection failed: server does not support SSL, but SSL was required"),
        Kind.CONFIGURATION,
        Ran.NO,
    ),
    (psycopg.ProgrammingError("query parameter missing: query_wait_timeout"), Kind.PERMANENT, Ran.ROLLED_BACK),
]


@pytest.mark.parametrize(("state", "text", "severity", "kind", "ran", "usable"), SERVER)
def test_server(state: str, text: str, severity: str, kind: Kind, ran: Ran, usable: bool) -> None:
    """A server's SQLSTATE decides, and its severity says whether the connection is left."""
    error = server_error(state, text, severity)
    failure = classify(error)
    assert (failure.kind, failure.ran, failure.usable) == (kind, ran, usable)
    assert not is_made_by_pooler(error)


@pytest.mark.parametrize(("text", "kind", "ran"), POOLER)
def test_pooler(text: str, kind: Kind, ran: Ran) -> None:
    """PgBouncer's text decides, since its SQLSTATE is always the same; the connection is lost."""
    for error in (pooler_error(text), connect_error(text)):
        failure = classify(error)
        assert (failure.kind, failure.ran, failure.usable) == (kind, ran, False)
    assert is_made_by_pooler(pooler_error(text))


def test_pooler_passes_on_a_server_state() -> None:
    """A server's refusal of the pooler's own login did not run the statement, whatever its SQLSTATE."""
    failure = classify(pooler_error("sorry, too many clients already", "53300"))
    assert (failure.kind, failure.ran, failure.usable) == (Kind.OVERLOAD, Ran.NO, False)


@pytest.mark.parametrize(("text", "kind"), EDGE)
def test_while_connecting(text: str, kind: Kind) -> None:
    """While connecting, only the text says what failed; nothing ran."""
    failure = classify(connect_error(text))
    assert (failure.kind, failure.ran, failure.usable) == (kind, Ran.NO, False)


@pytest.mark.parametrize(("error", "kind", "ran"), CLIENT)
def test_client(error: psycopg.Error, kind: Kind, ran: Ran) -> None:
    """libpq and psycopg give a text and no SQLSTATE."""
    failure = classify(error)
    assert (failure.kind, failure.ran) == (kind, ran)


OWN: list[tuple[psycopg.Error, Kind, Ran, bool]] = [
    (errors.CommitOutcomeUnknown("its text decides nothing"), Kind.TRANSIENT, Ran.UNKNOWN, False),
    (errors.LostAtCommit("its text decides nothing"), Kind.TRANSIENT, Ran.ROLLED_BACK, False),
    (errors.Demoted("its text decides nothing"), Kind.TRANSIENT, Ran.NO, False),
    (errors.NotSent(), Kind.TRANSIENT, Ran.NO, False),
    (errors.OutageTimeout("its text decides nothing"), Kind.TRANSIENT, Ran.NO, False),
    (errors.ReplicaBehind("its text decides nothing"), Kind.BEHIND, Ran.ROLLED_BACK, True),
    (errors.NotOnReplica("its text decides nothing"), Kind.BEHIND, Ran.ROLLED_BACK, True),
    (errors.MayWrite("its text decides nothing"), Kind.NOT_PRIMARY, Ran.ROLLED_BACK, True),
    (errors.SessionSettingRefused("its text decides nothing", setting="role"), Kind.PERMANENT, Ran.ROLLED_BACK, True),
]


@pytest.mark.parametrize(("error", "kind", "ran", "usable"), OWN, ids=[type(row[0]).__name__ for row in OWN])
def test_errors_of_our_own(error: psycopg.Error, kind: Kind, ran: Ran, usable: bool) -> None:
    """What this library raises is classified, too."""
    failure = classify(error)
    assert (failure.kind, failure.ran, failure.usable) == (kind, ran, usable)


def test_every_rule() -> None:
    """These tables have an error of each rule: they are the one place that says what a rule has to say."""
    made = [
        *(server_error(state, text, severity) for state, text, severity, *_ in SERVER),
        *(pooler_error(text) for text, *_ in POOLER),
        *(connect_error(text) for text, *_ in EDGE),
        *(row[0] for row in CLIENT),
        *(row[0] for row in OWN),
    ]
    assert {classify(error).rule for error in made} == VERDICTS.keys()


def test_looks_inside_frameworks_errors() -> None:
    """The driver's error is found behind `orig` and `__cause__`; an error without one is permanent."""
    inner = server_error("40P01", "deadlock detected")
    with_orig = RuntimeError("wrapped")
    with_orig.orig = inner  # type: ignore[attr-defined]
    with_cause = RuntimeError("wrapped")
    with_cause.__cause__ = with_orig
    assert classify(with_orig).kind is Kind.CONFLICT
    assert classify(with_cause).kind is Kind.CONFLICT
    assert classify(RuntimeError("server closed the connection")).kind is Kind.PERMANENT
