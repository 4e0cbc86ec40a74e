"""What became of a COMMIT: what its message holds, how its answer is read, and what a lookup afterwards proves. Pure.

A COMMIT is never sent again. Where its answer did not come, the transaction's id is looked up on the primary. That is exact only
where the id cannot have been given to another transaction since: after a promotion, or a crash whose WAL had not been flushed,
a server hands out ids again that it has forgotten. So "committed" counts only on the same timeline of a server that was not
restarted since the first write; "aborted", or an id that the server has not reached, prove everywhere that nothing was committed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from psycopg import pq

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from psycopg.pq.abc import PGresult

__all__ = [
    "MARKER_TABLE_SQL",
    "SYNC_REP_ROUTINE",
    "TRANSACTION_SQL",
    "UNBOUNDED",
    "UNDECIDED",
    "Lookup",
    "Outcome",
    "TransactionId",
    "judge",
    "lookup_of",
    "lookup_of_marker",
    "lookup_of_verify",
    "marker_sql",
    "outcome",
    "transaction_id",
]


class Outcome(Enum):
    """What became of a transaction."""

    COMMITTED = "committed"
    ROLLED_BACK = "rolled back"
    IN_PROGRESS = "in progress"
    OVER = "committed or rolled back"
    NO_TRACE = "of no effect until now"
    UNKNOWN = "unknown"

    def then(self, later: Outcome) -> Outcome:
        """Return what the next lookup's answer adds: a transaction without a trace may still commit, unless it is over."""
        if later is Outcome.NO_TRACE:
            return Outcome.ROLLED_BACK if self is Outcome.OVER else Outcome.UNKNOWN
        return later


UNDECIDED: Final = (Outcome.UNKNOWN, Outcome.OVER)
"""Outcomes after which the next lookup is asked, if there is one."""


@dataclass(frozen=True, slots=True)
class TransactionId:
    """A transaction that has written, as the server named it."""

    xid: str
    timeline: str
    """The first eight digits of the WAL file's name."""
    at: str
    """The server's clock when the transaction began."""


# Rides behind the first write, or before the COMMIT where none was noticed. It assigns no id: a transaction that turns out not to
# write has none, and the answer is NULL.
TRANSACTION_SQL: Final = b"SELECT pg_current_xact_id_if_assigned(),left(pg_walfile_name(pg_current_wal_insert_lsn()),8),now()"
# Without this a statement timeout could end COMMIT's wait for the synchronous replica: the server then reports success, and the
# transaction may be gone after a promotion.
UNBOUNDED: Final = b"SET LOCAL statement_timeout=0"
SYNC_REP_ROUTINE: Final = "SyncRepWaitForLSN"
"""The routine (diagnostic field R) of the warning "canceling wait for synchronous replication", in every language."""


def transaction_id(result: PGresult) -> TransactionId | None:
    """Return what `TRANSACTION_SQL` answered."""
    xid, timeline, at = (result.get_value(0, column) for column in range(3))
    if xid is None or timeline is None or at is None:
        return None
    return TransactionId(bytes(xid).decode(), bytes(timeline).decode(), bytes(at).decode())


def outcome(results: Sequence[PGresult], *, made_by_server: bool) -> Outcome:
    """Return what the answer to a COMMIT says that may have broken off.

    `results` are those that arrived, `made_by_server` whether the last of them is an error that PostgreSQL itself composed.
    A tag that arrived is final, whatever followed it; an error of the server's in its place means that it did not commit
    (measured: 27 of 27); an error of the pooler's, or silence, means nothing.
    """
    for result in results:
        if result.command_status == b"COMMIT":
            return Outcome.COMMITTED
        if result.command_status == b"ROLLBACK":
            return Outcome.ROLLED_BACK
    if results and results[-1].status == pq.ExecStatus.FATAL_ERROR and made_by_server:
        return Outcome.ROLLED_BACK
    return Outcome.UNKNOWN


@dataclass(frozen=True, slots=True)
class Lookup:
    """A question to the primary, and what its answer means."""

    query: str
    params: tuple[str, ...]
    judge: Callable[[tuple[Any, ...] | None], Outcome]


def lookup_of(transaction: TransactionId) -> Lookup:
    """Return the question what became of a transaction. Crash recovery resets the statistics, which tells of a restart."""
    return Lookup(
        "SELECT pg_xact_status(%s::text::xid8), left(pg_walfile_name(pg_current_wal_insert_lsn()), 8),"
        " greatest(pg_postmaster_start_time(), (SELECT stats_reset FROM pg_stat_wal)) > %s::timestamptz",
        (transaction.xid, transaction.at),
        lambda row: judge(transaction, status=row[0], timeline=row[1], restarted=row[2]) if row else Outcome.UNKNOWN,
    )


MARKER_TABLE_SQL: Final = """\
CREATE TABLE IF NOT EXISTS ps_commit_marker (id uuid PRIMARY KEY, at timestamptz NOT NULL DEFAULT now())"""
"""The table for `commit_check(marker=True)`. Rows are of use for as long as a lookup may take; delete those older than a day."""


def marker_sql(marker: str) -> bytes:
    """Return the statement that marks a transaction, sent in one message with its COMMIT."""
    return f"INSERT INTO ps_commit_marker (id) VALUES ('{marker}')".encode()  # noqa: S608 - a UUID of our own


def lookup_of_marker(marker: str) -> Lookup:
    """Return the question whether a marker is there, which also fences: it takes the marker's place if it is not.

    It waits for a transaction that is under way with this marker, and one that comes after it can no longer commit. So the
    answer is exact on any timeline.
    """
    return Lookup(
        "INSERT INTO ps_commit_marker (id) VALUES (%s) ON CONFLICT DO NOTHING RETURNING 1",
        (marker,),
        lambda row: Outcome.COMMITTED if row is None else Outcome.ROLLED_BACK,
    )


def lookup_of_verify(query: str) -> Lookup:
    """Return the caller's own question: a query whose first column is true where the transaction took effect."""
    return Lookup(query, (), lambda row: Outcome.COMMITTED if row and row[0] else Outcome.NO_TRACE)


def judge(transaction: TransactionId, *, status: str | None, timeline: str, restarted: bool | None) -> Outcome:
    """Return what the primary's answer proves. `status` None: the id is too old to be known.

    An id of another timeline, or from before a restart, may be another transaction's by now; the one that is asked for is over.
    """
    if status == "aborted":
        return Outcome.ROLLED_BACK
    same = timeline == transaction.timeline and not restarted
    if status == "in progress":
        return Outcome.IN_PROGRESS if same else Outcome.OVER
    if status == "committed" and same:
        return Outcome.COMMITTED
    return Outcome.OVER
