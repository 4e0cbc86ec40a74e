"""The rules of `ps_core.failures`, read from it, and which of them nothing here can provoke.

What each rule has to say is written in tests/ps_core/test_failures.py; here it is compared with what happened to the statement.
"""

import ast
import inspect
from collections.abc import Iterator

from ps_core import errors, failures
from ps_core.failures import Failure

_CONNECTING = "psycopg tells no SQLSTATE of a connection that fails; PgBouncer from 1.20 on passes on the one of its own login"
_FATAL_08 = "PostgreSQL and PgBouncer send it on no connection that is up; while connecting, psycopg tells no SQLSTATE"
NOT_REPRODUCED: dict[str, str] = {
    "cannot_connect": _FATAL_08,
    "cannot_connect_now": _CONNECTING,
    "connection_does_not_exist": _FATAL_08,
    "connection_exception": _FATAL_08,
    "connection_failure": _FATAL_08,
    "connection_rejected": _FATAL_08,
    "crash_shutdown": "PostgreSQL sends it as a warning; the error that follows is `connection_lost`",
    "invalid_authorization": _CONNECTING,
    "invalid_password": _CONNECTING,
    "not_on_replica": "no fault, but what the session has SET: tests/ps_core/test_kept_session.py",
    "pooler_admin": "needs PgBouncer's console, or one that is out of memory",
    "pooler_shutdown": "said by PgBouncer from 1.23 on; these rows are those of 1.18",
    "too_many_connections": _CONNECTING,
    "unknown_database": _CONNECTING,
}


def verdicts() -> dict[str, list[Failure]]:
    """Return the verdicts of each rule, as the module's source has them, and of those that our own errors carry."""
    found: dict[str, list[Failure]] = {}
    for failure in (*_of_errors(), *_of_source()):
        found.setdefault(failure.rule, []).append(failure)
    return found


def _of_errors() -> Iterator[Failure]:
    for name in errors.__all__:
        failure = getattr(getattr(errors, name), "failure", None)
        if failure is not None:
            yield failure


def _of_source() -> Iterator[Failure]:
    for node in ast.walk(ast.parse(inspect.getsource(failures))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("_lost", "_alive"):
            failure = eval(compile(ast.Expression(node), "failures", "eval"), vars(failures))
            assert isinstance(failure, Failure)
            yield failure


VERDICTS = verdicts()
