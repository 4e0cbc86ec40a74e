"""What each rule of `ps_core.failures` has to say, written down a second time; and which rules nothing here can provoke."""

import ast
from pathlib import Path

from ps_core import errors, failures
from ps_core.failures import Kind, Ran

Verdict = tuple[Kind, Ran, bool]
"""Kind, whether the statement ran, whether the connection is usable."""

_NOTHING_RAN: Verdict = (Kind.TRANSIENT, Ran.NO, False)
_LOST: Verdict = (Kind.TRANSIENT, Ran.UNKNOWN, False)
_ROLLED_BACK: Verdict = (Kind.TRANSIENT, Ran.ROLLED_BACK, False)
_FULL: Verdict = (Kind.OVERLOAD, Ran.NO, False)
_WRONG_SETTINGS: Verdict = (Kind.CONFIGURATION, Ran.NO, False)
_LIMIT: Verdict = (Kind.TIMEOUT, Ran.ROLLED_BACK, False)

VERDICTS: dict[str, set[Verdict]] = {
    "demoted": {_NOTHING_RAN},
    "lost_at_commit": {_ROLLED_BACK},
    "commit_outcome_unknown": {_LOST},
    "edge_no_member": {_NOTHING_RAN},
    "edge_retry_timeout": {_NOTHING_RAN},
    "edge_upstream": {_NOTHING_RAN},
    "edge_refused": {_WRONG_SETTINGS},
    "authentication": {_WRONG_SETTINGS},
    "startup_parameter": {_WRONG_SETTINGS},
    "pooler_query_wait_timeout": {_NOTHING_RAN},
    "pooler_login_retry": {_NOTHING_RAN},
    "pooler_login_timeout": {_NOTHING_RAN},
    "pooler_full": {_FULL},
    "pooler_server_crashed": {_LOST},
    "pooler_shutdown": {_NOTHING_RAN},
    "pooler_varset_failed": {_NOTHING_RAN},
    "pooler_no_server": {_NOTHING_RAN},
    "pooler_admin": {_LOST},
    "pooler_disabled": {_LOST},
    "pooler_timeout": {_LIMIT},
    "admin_shutdown": {_ROLLED_BACK, _NOTHING_RAN},
    "crash_shutdown": {_ROLLED_BACK, _NOTHING_RAN},
    "cannot_connect_now": {_NOTHING_RAN},
    "database_dropped": {(Kind.CONFIGURATION, Ran.ROLLED_BACK, False)},
    "idle_session_timeout": {_NOTHING_RAN},
    "idle_in_transaction_timeout": {_LIMIT},
    "transaction_timeout": {_LIMIT},
    "query_canceled": {(Kind.TIMEOUT, Ran.ROLLED_BACK, True)},
    "lock_not_available": {(Kind.TIMEOUT, Ran.ROLLED_BACK, True)},
    "serialization_failure": {(Kind.CONFLICT, Ran.ROLLED_BACK, True)},
    "recovery_conflict": {(Kind.RECOVERY_CONFLICT, Ran.ROLLED_BACK, True)},
    "recovery_conflict_fatal": {(Kind.RECOVERY_CONFLICT, Ran.ROLLED_BACK, False)},
    "deadlock": {(Kind.CONFLICT, Ran.ROLLED_BACK, True)},
    "read_only_transaction": {(Kind.NOT_PRIMARY, Ran.ROLLED_BACK, True)},
    "replica_behind": {(Kind.BEHIND, Ran.ROLLED_BACK, True)},
    # The second ones: said to a connection that is being made.
    "traffic_control": {(Kind.OVERLOAD, Ran.ROLLED_BACK, True), _FULL},
    "cluster_read_only": {(Kind.PERMANENT, Ran.ROLLED_BACK, True), (Kind.PERMANENT, Ran.NO, False)},
    "too_many_connections": {_FULL},
    "insufficient_resources": {(Kind.OVERLOAD, Ran.ROLLED_BACK, True)},
    "disk_full": {(Kind.PERMANENT, Ran.ROLLED_BACK, True)},
    "out_of_memory": {(Kind.PERMANENT, Ran.ROLLED_BACK, True)},
    "invalid_authorization": {_WRONG_SETTINGS},
    "invalid_password": {_WRONG_SETTINGS},
    "unknown_database": {_WRONG_SETTINGS},
    "connection_exception": {_LOST},
    "connection_failure": {_LOST},
    "connection_does_not_exist": {_LOST},
    "cannot_connect": {_NOTHING_RAN},
    "connection_rejected": {_NOTHING_RAN},
    "prepared_statement_unknown": {(Kind.CONFIGURATION, Ran.ROLLED_BACK, True)},
    "prepared_statement_exists": {(Kind.CONFIGURATION, Ran.ROLLED_BACK, True)},
    "client_tls_or_option": {_WRONG_SETTINGS},
    "server_not_ready": {_NOTHING_RAN},
    "server_full": {_FULL},
    "dns": {_NOTHING_RAN},
    "wrong_session_attrs": {_NOTHING_RAN},
    "connect_timeout": {_NOTHING_RAN},
    "connect_failed": {_NOTHING_RAN},
    "connection_closed": {_NOTHING_RAN},
    "results_hidden_by_driver": {_LOST},
    "pipeline_wedged": {_LOST},
    "connection_lost": {_LOST},
    "session_setting_refused": {(Kind.PERMANENT, Ran.ROLLED_BACK, True)},
    "statement_error": {(Kind.PERMANENT, Ran.ROLLED_BACK, True)},
}

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


def rules() -> set[str]:
    """Return the names of the rules, as the module's source has them, and of those that our own errors carry."""
    tree = ast.parse(Path(failures.__file__).read_text())
    own = {failure.rule for name in errors.__all__ if (failure := getattr(getattr(errors, name), "failure", None)) is not None}
    return own | {
        node.args[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("_lost", "_alive")
        and node.args
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, str)
    }
