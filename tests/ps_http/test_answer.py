"""What a status and a body mean. A table: the same is asserted on the lab in `test_faults`, as far as it can be had there."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest

import ps_http
from ps_core import CommitOutcomeUnknown, classify
from ps_core.errors import ReplicaBehind
from ps_core.failures import Kind, Ran
from ps_http._answer import Column, Problem, Raw, read_answer
from ps_http.errors import of_problem

pytestmark = pytest.mark.fast

RESULT = {
    "fields": [{"name": "x", "dataTypeID": 23, "tableID": 0, "columnID": 0, "dataTypeSize": 4, "dataTypeModifier": -1}],
    "rows": [["1"], [None]],
    "command": "SELECT",
    "rowCount": 2,
    "rowAsArray": True,
}  # fmt: skip
RAW = Raw((Column("x", 23, 4, -1),), [["1"], [None]], "SELECT", 2)
UNKNOWN, NO = Ran.UNKNOWN, Ran.NO


def problem(status: int, body: Any, *, alone: bool = False) -> Problem:
    found = read_answer(status, body if isinstance(body, bytes) else json.dumps(body).encode(), alone=alone, count=1)
    assert isinstance(found, Problem)
    return found


def test_results() -> None:
    """Exactly the protocol's form is an answer."""
    assert read_answer(200, json.dumps(RESULT).encode(), alone=True, count=1) == (RAW,)
    assert read_answer(200, json.dumps({"results": [RESULT, RESULT]}).encode(), alone=False, count=2) == (RAW, RAW)


@pytest.mark.parametrize(
    "body",
    [
        b"<html><body>Welcome to the hotel's network</body></html>",
        b"",
        b"\xff\xfe",
        [],
        {},
        "text",
        {"results": []},
        {"results": [RESULT, RESULT]},
        {"results": RESULT},
        RESULT,
        {"results": [{**RESULT, "rows": [{"x": "1"}]}]},
        {"results": [{**RESULT, "rows": [["1", "2"]]}]},
        {"results": [{**RESULT, "rows": [[1]]}]},
        {"results": [{**RESULT, "rows": [[]]}]},
        {"results": [{**RESULT, "rows": None}]},
        {"results": [{**RESULT, "fields": None}]},
        {"results": [{**RESULT, "fields": [{"name": "x"}]}]},
        {"results": [{**RESULT, "fields": [{"name": None, "dataTypeID": 23}]}]},
        {"results": [{**RESULT, "rowCount": "2"}]},
        {"results": [{key: value for key, value in RESULT.items() if key != "command"}]},
    ],
)
def test_no_answer(body: Any) -> None:
    """What is 200 and no answer is never rows: a write has an unknown outcome, and a read is an error that nobody retries."""
    found = problem(200, body)
    assert found.failure.ran is UNKNOWN
    assert isinstance(of_problem(found, writes=True, endpoint="primary", request_id=None), CommitOutcomeUnknown)
    error = of_problem(found, writes=False, endpoint="primary", request_id=None)
    assert isinstance(error, ps_http.HttpError)
    assert not classify(error).transient
    assert "hotel" not in str(error)


HTML = b"<html>503 upstream connect error or disconnect/reset before headers</html>"


@pytest.mark.parametrize(
    ("status", "body", "ran", "kind"),
    [
        # Neon's proxy, or the server of it.
        (400, {"message": "password authentication failed for user 'a'", "code": None}, NO, Kind.CONFIGURATION),
        (400, {"message": "invalid connection string: missing password", "code": None}, NO, Kind.CONFIGURATION),
        (400, {"message": "could not parse the HTTP request body: ...", "code": None}, NO, Kind.CONFIGURATION),
        (400, "query is not supported", UNKNOWN, Kind.TRANSIENT),
        (400, {"message": "connection closed", "code": None}, UNKNOWN, Kind.TRANSIENT),
        (408, {"msg": "connecting to the database timed out"}, NO, Kind.TRANSIENT),
        (413, {"message": "request is too large (max is 1000 bytes)"}, NO, Kind.PERMANENT),
        (429, {"msg": "too many requests"}, NO, Kind.OVERLOAD),
        (500, {"message": "failed to connect to upstream"}, NO, Kind.TRANSIENT),
        (500, {"message": "Query cancelled, connection was terminated"}, UNKNOWN, Kind.TIMEOUT),
        (500, {"msg": "internal error"}, UNKNOWN, Kind.TRANSIENT),
        (503, {"msg": "no primary available for branch x"}, NO, Kind.TRANSIENT),
        (507, {"message": "response is too large (max is 100 bytes)"}, Ran.ROLLED_BACK, Kind.PERMANENT),
        # Anybody on the way.
        (301, b"", NO, Kind.CONFIGURATION),
        (307, HTML, NO, Kind.CONFIGURATION),
        (400, HTML, UNKNOWN, Kind.TRANSIENT),
        (401, HTML, NO, Kind.CONFIGURATION),
        (403, HTML, NO, Kind.CONFIGURATION),
        (404, HTML, NO, Kind.CONFIGURATION),
        (408, HTML, UNKNOWN, Kind.TRANSIENT),
        (413, HTML, NO, Kind.PERMANENT),
        (429, HTML, NO, Kind.OVERLOAD),
        (500, HTML, UNKNOWN, Kind.TRANSIENT),
        (502, HTML, UNKNOWN, Kind.TRANSIENT),
        (503, HTML, UNKNOWN, Kind.TRANSIENT),
        (504, HTML, UNKNOWN, Kind.TRANSIENT),
        (507, HTML, UNKNOWN, Kind.TRANSIENT),
        (204, b"", UNKNOWN, Kind.TRANSIENT),
    ],
)
def test_statuses(status: int, body: Any, ran: Ran, kind: Kind) -> None:
    """Whether it ran, and whether to try again; a write of unknown outcome says so, and its cause is what came."""
    found = problem(status, body)
    assert (found.failure.ran, found.failure.kind) == (ran, kind)
    error = of_problem(found, writes=True, endpoint="primary", request_id="7")
    if ran is UNKNOWN:
        assert isinstance(error, CommitOutcomeUnknown)
        error = error.__cause__  # type: ignore[assignment]
    assert isinstance(error, ps_http.HttpError)
    assert (error.status, error.request_id) == (status, "7")
    assert classify(error) == found.failure
    assert isinstance(of_problem(found, writes=False, endpoint="primary", request_id=None), ps_http.HttpError)


def test_too_large_by_itself() -> None:
    """A single statement has been committed whether or not its rows are passed on."""
    found = problem(507, {"message": "response is too large (max is 100 bytes)"}, alone=True)
    assert found.failure.ran is UNKNOWN
    assert isinstance(of_problem(found, writes=True, endpoint="primary", request_id=None), CommitOutcomeUnknown)


def test_error_of_postgres() -> None:
    """It is psycopg's own exception, with everything that the server told."""
    fields = {
        "message": 'duplicate key value violates unique constraint "t_pkey"',
        "code": "23505",
        "severity": "ERROR",
        "detail": "Key (n)=(1) already exists.",
        "schema": "public",
        "table": "t",
        "constraint": "t_pkey",
        "position": "15",
        "hint": None,
        "line": "666",
        "file": "nbtinsert.c",
        "routine": "_bt_check_unique",
    }
    error = of_problem(problem(400, fields), writes=True, endpoint="primary", request_id=None)
    assert isinstance(error, psycopg.errors.UniqueViolation)
    assert str(error) == 'duplicate key value violates unique constraint "t_pkey"\nDETAIL:  Key (n)=(1) already exists.'
    diag = error.diag
    assert (diag.sqlstate, diag.constraint_name, diag.table_name, diag.schema_name) == ("23505", "t_pkey", "t", "public")
    assert (diag.message_detail, diag.statement_position, diag.severity) == (fields["detail"], "15", "ERROR")
    assert (diag.source_file, diag.source_line, diag.source_function) == ("nbtinsert.c", "666", "_bt_check_unique")
    assert diag.message_hint is None
    assert classify(error).kind is Kind.PERMANENT


@pytest.mark.parametrize(
    ("code", "severity", "cls"),
    [
        ("57P01", "FATAL", CommitOutcomeUnknown),  # it may have ended while the COMMIT waited for a standby
        ("08006", "ERROR", CommitOutcomeUnknown),
        ("57014", "ERROR", psycopg.errors.QueryCanceled),
        ("40001", "ERROR", psycopg.errors.SerializationFailure),
        ("ZZ123", "ERROR", psycopg.DatabaseError),
    ],
)
def test_errors_that_end_a_server(code: str, severity: str, cls: type[Exception]) -> None:
    """An error of a server that ends does not say what became of a write."""
    found = problem(400, {"message": "...", "code": code, "severity": severity, "file": "x.c"})
    assert type(of_problem(found, writes=True, endpoint="primary", request_id=None)) is cls
    read = of_problem(found, writes=False, endpoint="primary", request_id=None)
    assert isinstance(read, psycopg.Error)
    assert read.sqlstate == code


def test_replica_behind() -> None:
    """The guard's refusal is what it is on other connections."""
    text = 'invalid value for parameter "statement_timeout": "replica_behind"'
    error = of_problem(problem(400, {"message": text, "code": "22023"}), writes=False, endpoint="replica", request_id=None)
    assert isinstance(error, ReplicaBehind)
    assert classify(error).kind is Kind.BEHIND
    assert "'replica'" in str(error)
