"""What failed, as psycopg's own exceptions. What imports this imports psycopg: it is left until something fails."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import psycopg
from psycopg.pq import DiagnosticField

from ps_core._documentation import Documented
from ps_core.errors import CommitOutcomeUnknown, DeadlineExceeded, ReplicaBehind
from ps_core.failures import Failure, Ran

if TYPE_CHECKING:
    from ps_http._answer import Problem
    from ps_http._transport import Lost

__all__ = ["HttpError", "of_lost", "of_problem"]

_FIELDS: Final = {
    "severity": DiagnosticField.SEVERITY,
    "code": DiagnosticField.SQLSTATE,
    "message": DiagnosticField.MESSAGE_PRIMARY,
    "detail": DiagnosticField.MESSAGE_DETAIL,
    "hint": DiagnosticField.MESSAGE_HINT,
    "position": DiagnosticField.STATEMENT_POSITION,
    "internalPosition": DiagnosticField.INTERNAL_POSITION,
    "internalQuery": DiagnosticField.INTERNAL_QUERY,
    "where": DiagnosticField.CONTEXT,
    "schema": DiagnosticField.SCHEMA_NAME,
    "table": DiagnosticField.TABLE_NAME,
    "column": DiagnosticField.COLUMN_NAME,
    "dataType": DiagnosticField.DATATYPE_NAME,
    "constraint": DiagnosticField.CONSTRAINT_NAME,
    "file": DiagnosticField.SOURCE_FILE,
    "line": DiagnosticField.SOURCE_LINE,
    "routine": DiagnosticField.SOURCE_FUNCTION,
}
"""The protocol's names of what PostgreSQL tells of an error."""
_PARTS: Final = {"detail": "DETAIL", "hint": "HINT", "internalQuery": "QUERY", "where": "CONTEXT"}
"""What libpq puts behind the message, in its order."""
_ENDS_SERVER: Final = ("FATAL", "PANIC")


class HttpError(Documented, psycopg.OperationalError):
    """No answer came, or one that PostgreSQL did not give.

    Nothing ran that could have changed anything: where that is not known, `CommitOutcomeUnknown` is raised, and this is its
    `__cause__`. `ps_core.classify` tells whether trying again is of use.
    """

    def __init__(self, message: str, *, failure: Failure, status: int | None = None, request_id: str | None = None) -> None:
        super().__init__(message)
        self.failure = failure
        self.status = status
        """The HTTP status; None: there was no answer."""
        self.request_id = request_id
        """The `Neon-Request-Id` of the answer, by which the server's operators find it."""


def of_problem(problem: Problem, *, writes: bool, endpoint: str, request_id: str | None) -> Exception:
    """Return what to raise in the place of results. `writes`: something may have been changed."""
    if problem.fields is not None:
        error = _of_postgres(problem, endpoint)
        # A server that ends may end behind the COMMIT, and one that loses a connection of its own may have lost its answer.
        ends = problem.fields["severity"] in _ENDS_SERVER or (problem.fields["code"] or "").startswith("08")
        return _unknown(error) if writes and ends else error
    lost = HttpError(problem.message, failure=problem.failure, status=problem.status, request_id=request_id)
    return _unknown(lost) if writes and problem.failure.ran is Ran.UNKNOWN else lost


def of_lost(lost: Lost, *, writes: bool, deadline: DeadlineExceeded | None) -> Exception:
    """Return what to raise where no answer came. `deadline`: the caller's is over, which ended the wait."""
    error: Exception = HttpError(str(lost), failure=lost.failure) if deadline is None else deadline
    return _unknown(error) if writes and lost.failure.ran is Ran.UNKNOWN else error


def _unknown(cause: Exception) -> CommitOutcomeUnknown:
    error = CommitOutcomeUnknown(
        "the request was sent, and no answer tells what became of it: it may have been committed. Read what it was to change"
        f" before you send it again. ({str(cause).splitlines()[0]})"
    )
    error.__cause__ = cause
    return error


def _of_postgres(problem: Problem, endpoint: str) -> psycopg.Error:
    fields = problem.fields or {}
    code = fields["code"] or ""
    info: dict[int, bytes | None] = {
        field: None if (text := fields.get(name)) is None else text.encode() for name, field in _FIELDS.items()
    }
    # Of the severity, the protocol has one form.
    info[DiagnosticField.SEVERITY_NONLOCALIZED] = info[DiagnosticField.SEVERITY]
    if code == "22023" and "replica_behind" in problem.message:
        text = f"replica_behind: the endpoint {endpoint!r} did not answer: it has not replayed yet what this caller has seen"
        return ReplicaBehind(text, info=info, encoding="utf-8")
    try:
        cls = psycopg.errors.lookup(code)
    except KeyError:
        cls = psycopg.errors.get_base_exception(code)
    text = problem.message + "".join(f"\n{word}:  {part}" for name, word in _PARTS.items() if (part := fields.get(name)))
    return cls(text, info=info, encoding="utf-8")
