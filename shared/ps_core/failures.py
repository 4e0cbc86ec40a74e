"""What a failure was, whether the statement ran, and what may be done about it. Tables and lookups; no I/O.

psycopg hides the SQLSTATE of everything that fails while connecting, PgBouncer answers nearly everything with 08P01, and an edge
proxy may say something else again. So three tables are asked in order: the texts of the pooler and of the edge, the SQLSTATE,
and the texts of libpq. Each row names what it was read from; `tests/adversity/` reproduces the rows against real servers.

>>> import psycopg
>>> classify(psycopg.errors.QueryCanceled("canceling statement due to statement timeout")).kind
<Kind.TIMEOUT: 'timeout'>
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import psycopg

__all__ = [
    "FOR_PRIMARY",
    "READ_FOR_PRIMARY",
    "RUN_AGAIN",
    "TRAFFIC_CONTROL",
    "Failure",
    "Kind",
    "Ran",
    "classify",
    "is_made_by_pooler",
]


class Kind(Enum):
    """What kind of failure it was."""

    TRANSIENT = "transient"
    """A failover, restart or lost connection: the same work succeeds on a new connection, soon."""
    TIMEOUT = "timeout"
    """A limit was reached (statement, transaction, lock, idle): not a failover, never retried by itself."""
    CONFLICT = "conflict"
    """Serialization failure, deadlock: the whole transaction may run again."""
    RECOVERY_CONFLICT = "recovery_conflict"
    """A replica ended it in favour of what it replays: it may run again, there or on the primary."""
    NOT_PRIMARY = "not_primary"
    """A write where only reads are possible (25006)."""
    BEHIND = "behind"
    """The replica has not replayed what the caller has seen."""
    OVERLOAD = "overload"
    """Too many connections, or a traffic rule: retried like a transient failure, it did not run."""
    CONFIGURATION = "configuration"
    """Authentication, certificate, unknown database, startup parameter: never retried."""
    PERMANENT = "permanent"
    """Everything else: the statement itself is wrong."""


READ_FOR_PRIMARY: Final = (Kind.BEHIND, Kind.RECOVERY_CONFLICT)
"""Why a replica does not answer a read that the primary can answer: it lags behind what the caller has seen, or replays what
conflicts with it."""
FOR_PRIMARY: Final = (*READ_FOR_PRIMARY, Kind.NOT_PRIMARY)
"""The same of any statement: it may turn out to write."""
RUN_AGAIN: Final = (Kind.TRANSIENT, Kind.OVERLOAD, Kind.CONFLICT, Kind.RECOVERY_CONFLICT)
"""Why a whole transaction may run again, unless the outcome of its COMMIT is unknown."""


class Ran(Enum):
    """Whether the failed statement took effect."""

    NO = "no"
    """It never reached a server that would have run it."""
    ROLLED_BACK = "rolled back"
    """It may have started; nothing of it is left."""
    COMMITTED = "committed"
    UNKNOWN = "unknown"
    """The connection went away while it ran; in a transaction that was not yet committed this means rolled back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """The verdict over one exception."""

    kind: Kind
    ran: Ran
    usable: bool
    """Whether the connection can still be used (after a rollback where one is needed)."""
    rule: str
    """The name of the table row that decided."""

    @property
    def transient(self) -> bool:
        """Whether the same work is likely to succeed on a new connection."""
        return self.kind in (Kind.TRANSIENT, Kind.OVERLOAD)


def _lost(rule: str, *, kind: Kind = Kind.TRANSIENT, ran: Ran = Ran.UNKNOWN) -> Failure:
    return Failure(kind=kind, ran=ran, usable=False, rule=rule)


def _alive(rule: str, kind: Kind) -> Failure:
    return Failure(kind=kind, ran=Ran.ROLLED_BACK, usable=True, rule=rule)


# --- PgBouncer (objects.c, janitor.c, client.c of 1.18 to 1.25) and PlanetScale's edge (its error reference) ---
# First match wins. Texts are sought inside the message: a connect error wraps them ("connection failed: ... FATAL:  text").

_IDLE_IN_TRANSACTION_TIMEOUT: Final = _lost("idle_in_transaction_timeout", kind=Kind.TIMEOUT, ran=Ran.ROLLED_BACK)
_TRANSACTION_TIMEOUT: Final = _lost("transaction_timeout", kind=Kind.TIMEOUT, ran=Ran.ROLLED_BACK)

_MIDDLE_TEXTS: Final[tuple[tuple[str, Failure], ...]] = (
    # The server's words, where an older libpq lost their SQLSTATE to the pooler's that followed.
    (r"terminating connection due to transaction timeout", _TRANSACTION_TIMEOUT),
    (r"terminating connection due to idle-in-transaction timeout", _IDLE_IN_TRANSACTION_TIMEOUT),
    # Edge. Sent while connecting, so nothing ran.
    (r"no (primary|replica|running members) available for branch", _lost("edge_no_member", ran=Ran.NO)),
    (r"connection retry timeout - branch", _lost("edge_retry_timeout", ran=Ran.NO)),
    (r"failed to (connect to upstream|send startup message|setup backend)", _lost("edge_upstream", ran=Ran.NO)),
    (
        r"SSL connection is required|invalid user format: username must include branch|branch \S+ does not exist"
        r"|member \S+ not found in branch|pooler only supports primary destinations"
        r"|is no PostgreSQL WebSocket: HTTP status|proxy on the way to \S+ refused",  # ps_core._bridge.process
        _lost("edge_refused", kind=Kind.CONFIGURATION, ran=Ran.NO),
    ),
    # PgBouncer, permanent ones first: a cached error of the server's may be inside the transient text.
    (
        r"password authentication failed|SASL authentication failed|\"trust\" authentication failed|no such user|no such database"
        r"|login rejected|certificate authentication failed|no authentication method is found|wrong password type"
        r"|invalid server signature|none of the server's SASL|role \"[^\"]*\" (does not exist|is not permitted to log in)"
        r"|database \"[^\"]*\" does not exist|no pg_hba.conf entry",
        _lost("authentication", kind=Kind.CONFIGURATION, ran=Ran.NO),
    ),
    (r"unsupported (options )?startup parameter", _lost("startup_parameter", kind=Kind.CONFIGURATION, ran=Ran.NO)),
    (r"query_wait_timeout", _lost("pooler_query_wait_timeout", ran=Ran.NO)),
    (r"server_login_retry", _lost("pooler_login_retry", ran=Ran.NO)),
    (r"client_login_timeout", _lost("pooler_login_timeout", ran=Ran.NO)),
    (
        r"no more connections allowed \(max_client_conn\)|client connections exceeded \(max_(db|user)_client_connections\)",
        _lost("pooler_full", kind=Kind.OVERLOAD, ran=Ran.NO),
    ),
    (r"server conn crashed\?|server connection closed", _lost("pooler_server_crashed")),
    (r"(^|\s)(server shutting down|pooler is shutting down)", _lost("pooler_shutdown", ran=Ran.NO)),
    # The pooler's own SET, before the client's statement, met a server that was going away.
    (r"invalid server parameter", _lost("pooler_varset_failed", ran=Ran.NO)),
    (r"server DNS lookup failed|server lifetime over|client_idle_timeout", _lost("pooler_no_server", ran=Ran.NO)),
    (
        r"admin forced disconnect|suspend_timeout|pause failed|bouncer resources exhaustion|no memory for pool",
        _lost("pooler_admin"),
    ),
    (r"database \"[^\"]*\" is disabled|database removed", _lost("pooler_disabled")),
    (
        r"query_timeout|query timeout|idle transaction timeout|transaction timeout$",
        _lost("pooler_timeout", kind=Kind.TIMEOUT, ran=Ran.ROLLED_BACK),
    ),
)
_MIDDLE: Final = tuple((re.compile(pattern), failure) for pattern, failure in _MIDDLE_TEXTS)
TRAFFIC_CONTROL: Final = "[PGINSIGHTS] Traffic Control:"
_READ_ONLY_CLUSTER: Final = "invalid statement because cluster is read-only"
_RECOVERY: Final = "due to conflict with recovery"
"""PostgreSQL, tcop/postgres.c and ipc/standby.c."""

# --- SQLSTATEs (PostgreSQL, appendix A; "reproduced" in the adversity tests) ---

_SQLSTATES: Final[dict[str, Failure]] = {
    "57P01": _lost("admin_shutdown", ran=Ran.ROLLED_BACK),
    "57P02": _lost("crash_shutdown", ran=Ran.ROLLED_BACK),
    "57P03": _lost("cannot_connect_now", ran=Ran.NO),
    "57P04": _lost("database_dropped", kind=Kind.CONFIGURATION, ran=Ran.ROLLED_BACK),
    "57P05": _lost("idle_session_timeout", ran=Ran.NO),
    "25P03": _IDLE_IN_TRANSACTION_TIMEOUT,
    "25P04": _TRANSACTION_TIMEOUT,
    "57014": _alive("query_canceled", Kind.TIMEOUT),
    "55P03": _alive("lock_not_available", Kind.TIMEOUT),
    "40001": _alive("serialization_failure", Kind.CONFLICT),
    "40P01": _alive("deadlock", Kind.CONFLICT),
    "25006": _alive("read_only_transaction", Kind.NOT_PRIMARY),
    "53300": _lost("too_many_connections", kind=Kind.OVERLOAD, ran=Ran.NO),
    "53000": _alive("insufficient_resources", Kind.OVERLOAD),
    "53100": _alive("disk_full", Kind.PERMANENT),
    "53200": _alive("out_of_memory", Kind.PERMANENT),
    "28000": _lost("invalid_authorization", kind=Kind.CONFIGURATION, ran=Ran.NO),
    "28P01": _lost("invalid_password", kind=Kind.CONFIGURATION, ran=Ran.NO),
    "3D000": _lost("unknown_database", kind=Kind.CONFIGURATION, ran=Ran.NO),
    "26000": _alive("prepared_statement_unknown", Kind.CONFIGURATION),
    "42P05": _alive("prepared_statement_exists", Kind.CONFIGURATION),
    "08006": _lost("connection_failure"),
    "08003": _lost("connection_does_not_exist"),
    "08001": _lost("cannot_connect", ran=Ran.NO),
    "08004": _lost("connection_rejected", ran=Ran.NO),
}

# --- libpq and psycopg, which give no SQLSTATE ---

_CLIENT_TEXTS: Final[tuple[tuple[str, Failure], ...]] = (
    (
        r"certificate|does not support SSL|sslmode value|weak sslmode|invalid connection option|root certificate file"
        r"|unrecognized SSL error|private key|invalid (integer )?value .* for connection option|channel binding",
        _lost("client_tls_or_option", kind=Kind.CONFIGURATION, ran=Ran.NO),
    ),
    (
        r"the database system is (starting up|shutting down|in recovery mode|not (yet )?accepting connections)",
        _lost("server_not_ready", ran=Ran.NO),
    ),
    (
        r"sorry, too many clients already|remaining connection slots are reserved|too many connections for",
        _lost("server_full", kind=Kind.OVERLOAD, ran=Ran.NO),
    ),
    (r"failed to resolve host|could not translate host name|Name or service not known", _lost("dns", ran=Ran.NO)),
    (r"session is (not )?read-only|server is (not )?in hot standby mode", _lost("wrong_session_attrs", ran=Ran.NO)),
    (r"connection timeout expired", _lost("connect_timeout", ran=Ran.NO)),
    # The socket may have died while the statement ran: only the caller knows whether that matters.
    (r"^(connection failed|connection is bad)", _lost("connect_failed", ran=Ran.NO)),
    (r"the connection is (closed|lost)", _lost("connection_closed", ran=Ran.NO)),
    (r"received \d+ results from command", _lost("results_hidden_by_driver")),
    (r"cannot exit pipeline mode while busy", _lost("pipeline_wedged")),
    (
        r"server closed the connection|consuming input failed|sending query failed|could not (receive|send) data"
        r"|Connection (reset|timed out)|Broken pipe|SSL (SYSCALL )?error"
        r"|EOF detected|connection socket closed|no connection to the server|flushing failed|got no result",
        _lost("connection_lost"),
    ),
)
_CLIENT: Final = tuple((re.compile(pattern), failure) for pattern, failure in _CLIENT_TEXTS)

_PERMANENT: Final = _alive("statement_error", Kind.PERMANENT)


def classify(exc: BaseException) -> Failure:
    """Return what `exc` was. Accepts psycopg's exceptions, and SQLAlchemy's and Django's that carry one (`orig`, `__cause__`).

    An error of ours carries its `failure`; an exception that holds no driver error is PERMANENT.
    """
    error = _driver_error(exc)
    if error is None:
        return _PERMANENT
    import psycopg

    own = getattr(error, "failure", None)
    if isinstance(own, Failure):
        return own  # an error of ours
    message = str(error)
    state = error.sqlstate
    if state is None and not isinstance(error, (psycopg.OperationalError, psycopg.InternalError)):
        return _PERMANENT  # misuse that psycopg found itself: its text may quote the caller's names
    if state is not None and state[:2] == "08" and error.diag.severity_nonlocalized == "ERROR":
        return _PERMANENT  # a server that told of a connection of its own (postgres_fdw, dblink), or of a protocol fault
    if state is None or state == "08P01" or state[:2] == "08" or is_made_by_pooler(error):
        for pattern, failure in _MIDDLE:
            if pattern.search(message):
                return failure
    if state is None:
        # Said to a new connection: libpq hides the SQLSTATE of what fails while connecting.
        if TRAFFIC_CONTROL in message:
            return _lost("traffic_control", kind=Kind.OVERLOAD, ran=Ran.NO)
        if _READ_ONLY_CLUSTER in message:
            return _lost("cluster_read_only", kind=Kind.PERMANENT, ran=Ran.NO)
        for pattern, failure in _CLIENT:
            if pattern.search(message):
                return failure
        return _PERMANENT
    return _by_sqlstate(error, state, message)


def _by_sqlstate(error: psycopg.Error, state: str, message: str) -> Failure:
    if TRAFFIC_CONTROL in message:
        return _alive("traffic_control", Kind.OVERLOAD)
    if _READ_ONLY_CLUSTER in message:
        return _alive("cluster_read_only", Kind.PERMANENT)
    fatal = error.diag.severity_nonlocalized in ("FATAL", "PANIC") or (
        error.diag.severity_nonlocalized is None and error.diag.severity in ("FATAL", "PANIC")
    )
    failure = _SQLSTATES.get(state)
    if failure is None:
        if state[:2] == "08" and state != "08P01":
            return _lost("connection_exception")
        return replace(_PERMANENT, usable=not fatal)
    if state in ("40001", "40P01") and _RECOVERY in message:
        if fatal:
            return _lost("recovery_conflict_fatal", kind=Kind.RECOVERY_CONFLICT, ran=Ran.ROLLED_BACK)
        return _alive("recovery_conflict", Kind.RECOVERY_CONFLICT)
    if is_made_by_pooler(error):
        # PgBouncer >= 1.20 passes on why the server refused the pooler's own login: the statement never left the pooler.
        return replace(failure, usable=False, ran=Ran.NO)
    return failure


def is_made_by_pooler(error: psycopg.Error) -> bool:
    """Return whether a pooler or proxy composed `error`: PostgreSQL always sends the fields V and F, PgBouncer never does."""
    diag = error.diag
    return diag.sqlstate is not None and diag.severity_nonlocalized is None and diag.source_file is None


def _driver_error(exc: BaseException) -> psycopg.Error | None:
    """Return the driver's error inside `exc`, looking through what frameworks wrap around it."""
    import psycopg  # here: what only names failures does without it

    seen: BaseException | None = exc
    for _ in range(5):
        if seen is None or isinstance(seen, psycopg.Error):
            return seen
        orig = getattr(seen, "orig", None)
        seen = orig if isinstance(orig, BaseException) else seen.__cause__
    return None
