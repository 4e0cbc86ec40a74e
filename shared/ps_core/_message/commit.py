"""How a transaction ends: what its last message holds, what the answers mean, and what a lookup afterwards proves. Pure.

A COMMIT is never sent again. Where its answer did not come, the transaction's id is looked up on the primary. That is exact only
where the id cannot have been given to another transaction since: after a promotion, or a crash whose WAL had not been flushed,
a server hands out ids again that it has forgotten. So "committed" counts only on the same timeline of a server that was not
restarted since the first write; "aborted", or an id that the primary has not reached, prove that nothing was committed.

A standby's answer is no answer: it may not have replayed the transaction yet. Nor is what one primary alone has: a backend that
is terminated while its COMMIT waits for its synchronous standby leaves the transaction "committed", and a promotion undoes it.
So "committed" counts only behind a barrier: a later commit of ours, which returns once the standbys have it and all before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from enum import Enum, StrEnum, auto
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from ps_core.consistency import COMMITTED_POSITION_SQL, IN_RECOVERY, POSITION_SQL, REPLICA_POSITION_SQL

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from psycopg.pq.abc import PGresult

__all__ = [
    "ASK_AGAIN",
    "FUTURE_ROUTINE",
    "SYNC_REP_ROUTINE",
    "TRANSACTION_SQL",
    "Answers",
    "Ended",
    "Ending",
    "Lookup",
    "Outcome",
    "Raises",
    "Reply",
    "TransactionId",
    "ending",
    "judge",
    "lookup_of",
    "lookup_of_marker",
    "lookup_of_verify",
    "lookups_of",
    "marker_sql",
    "marker_table_sql",
    "outcome",
    "read_ending",
    "settling",
    "transaction_id",
]

SYNC_REP_ROUTINE: Final = "SyncRepWaitForLSN"
"""The routine (diagnostic field R) of the warning "canceling wait for synchronous replication", in every language."""
FUTURE_ROUTINE: Final = "TransactionIdInRecentPast"
"""The routine of the error "transaction ID ... is in the future", in every language."""

# --- what the server answers, as plain values ---


class Reply(NamedTuple):
    """One result of a message."""

    tag: str = ""
    """The completion tag, as in "COMMIT", of what returns no rows."""
    row: tuple[str | None, ...] = ()
    """The first row."""
    error: str | None = None
    """The SQLSTATE of an error; "" for one that has none."""
    routine: str = ""
    """The server's routine that raised the error."""
    by_server: bool = True
    """PostgreSQL composed it. Else a pooler did, or a proxy, or libpq: the server may have done anything."""


class TransactionId(NamedTuple):
    """A transaction that has written, as the server named it."""

    xid: str
    timeline: str
    """The first eight digits of the WAL file's name."""
    at: str
    """The server's clock when the transaction began, in seconds since the epoch."""
    synchronous_commit: str | None = None
    """The setting of the transaction, when it first wrote: what its COMMIT waits for."""
    role: str | None = None
    """The role that the transaction had assumed; "none" where it had not."""

    @classmethod
    def of(cls, row: Sequence[str | None]) -> Self | None:
        """Return what `TRANSACTION_SQL` was answered; None where the transaction has written nothing."""
        if len(row) < 3 or (xid := row[0]) is None or (timeline := row[1]) is None or (at := row[2]) is None:
            return None
        return cls(xid, timeline[:8], at, *row[3:])


# Rides behind the first write, or before the COMMIT where none was noticed. It assigns no id: a transaction that turns out not to
# write has none, and the answer is NULL. The setting and the role are asked here, since they are needed where COMMIT's answer is
# lost: the role for the caller's own question (`commit_check`), which may begin later.
TRANSACTION_SQL: Final = (
    b"SELECT pg_catalog.pg_current_xact_id_if_assigned()"
    b",pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn())"
    b",EXTRACT(epoch FROM CURRENT_TIMESTAMP)"
    b",pg_catalog.current_setting('synchronous_commit')"
    b",pg_catalog.current_setting('role')"
)
SYNCHRONOUS_COMMIT_SQL: Final = b"SHOW synchronous_commit"
"""At a third of what a query costs the server."""


def transaction_id(result: PGresult) -> TransactionId | None:
    """Return what `TRANSACTION_SQL` was answered."""
    values = [result.get_value(0, column) for column in range(result.nfields)]
    return TransactionId.of([None if value is None else bytes(value).decode() for value in values])


# --- the last message of a transaction ---


class Outcome(Enum):
    """What became of a transaction."""

    COMMITTED = "committed"
    ROLLED_BACK = "rolled back"
    IN_PROGRESS = "in progress"
    STANDBY = "not known to a standby"
    UNCONFIRMED = "committed, and not confirmed by a later commit"
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
ASK_AGAIN: Final = (Outcome.IN_PROGRESS, Outcome.STANDBY, Outcome.UNCONFIRMED)
"""Outcomes after which the same lookup is asked again."""


class Answers(StrEnum):  # strings, for which no Python code runs where they are looked up
    """What a part of the last message answers."""

    TRANSACTION = "`TransactionId.of`"
    SYNCHRONOUS_COMMIT = "the setting"
    MARKER = "nothing: it writes"
    END = "the completion tag"
    POSITION = "where the server is, as it said, and whether it is a standby"
    COMMITTED_POSITION = "`COMMITTED_POSITION_SQL`"


class Raises(Enum):
    """What the end of a transaction raises."""

    NOTHING = auto()
    ERROR = auto()
    """The first error that came."""
    LOST = auto()
    """What the connection was lost with."""
    NOT_CONFIRMED = auto()
    """`CommitOutcomeUnknown`: the server reported success for what no other server has."""
    UNSETTLED = auto()
    """`CommitOutcomeUnknown`, to be looked up."""


class Ending(NamedTuple):
    """The last message of a transaction."""

    commits: bool
    parts: tuple[tuple[Answers, bytes], ...]
    message: bytes
    known: TransactionId | None = None


class Ended(NamedTuple):
    """What the answers to the last message mean."""

    outcome: Outcome
    raises: Raises = Raises.NOTHING
    transaction: TransactionId | None = None
    synchronous_commit: str | None = None
    """The setting of the transaction; None: it is unknown."""
    position: str | None = None
    """The WAL position, as PostgreSQL writes it, that has all that this transaction saw and did."""
    is_demoted: bool = False
    """The server is a standby, and was to be the primary."""

    @property
    def wrote(self) -> bool:
        """Whether the transaction is known to have written."""
        return self.transaction is not None


def ending(
    command: bytes,
    *,
    failed: bool = False,
    known: TransactionId | None = None,
    marker: bytes | None = None,
    tracks: bool = False,
    tracks_reads: bool = True,
    read_only: bool = False,
    on_replica: bool = False,
) -> Ending:
    """Return the message that ends a transaction by `command` (COMMIT or ROLLBACK).

    `failed`: the server will roll back, whatever is said. `known`: the transaction's id, told behind its first write. `marker`:
    the statement that marks it. `tracks`: positions are wanted; `tracks_reads`: of what only read or was rolled back, too.
    `read_only`: it was declared READ ONLY. `on_replica`: the endpoint serves reads.

    The parts, in this order; each is there in the case that stands beside it:

        SELECT id, timeline, clock, synchronous_commit, role   COMMIT, and no write was noticed: it may have come by COPY, in a
                                                               pipeline, in a function. Before the marker, which is a write, too
        SELECT synchronous_commit                              COMMIT after a write that was noticed: it may have been set since
        INSERT ... ps_commit_marker                            COMMIT with commit_check(marker=True)
        COMMIT, or ROLLBACK                                    always
        SELECT position                                        where positions are wanted

    Both settings have to be asked before COMMIT: SET LOCAL is over behind it. The position has to be asked behind it. An error
    skips all that follows it.
    """
    commits = command == b"COMMIT" and not failed
    writes = commits and not (read_only or on_replica)
    parts, message = _parts(command, writes, known is not None, marker, tracks, tracks_reads, on_replica)
    return Ending(commits, parts, message, known)


@lru_cache(maxsize=64)
def _parts(
    command: bytes, writes: bool, is_known: bool, marker: bytes | None, tracks: bool, tracks_reads: bool, on_replica: bool
) -> tuple[tuple[tuple[Answers, bytes], ...], bytes]:
    """Return what `ending` says, and its text."""
    parts: list[tuple[Answers, bytes]] = []
    if writes and tracks:
        if is_known:
            parts.append((Answers.SYNCHRONOUS_COMMIT, SYNCHRONOUS_COMMIT_SQL))
        else:
            parts.append((Answers.TRANSACTION, TRANSACTION_SQL))
    if writes and marker is not None:
        parts.append((Answers.MARKER, marker))
    parts.append((Answers.END, command))
    if tracks and writes:
        parts.append((Answers.COMMITTED_POSITION, COMMITTED_POSITION_SQL))
    elif tracks and tracks_reads:
        parts.append((Answers.POSITION, REPLICA_POSITION_SQL if on_replica else POSITION_SQL))
    return tuple(parts), b";".join([sql for _, sql in parts])


def read_ending(end: Ending, replies: Sequence[Reply], *, lost: bool = False, wait_cancelled: bool = False) -> Ended:
    """Return what the answers to the last message mean, as far as they came.

    `lost`: the connection was lost before the end of the message. `wait_cancelled`: the server warned that its wait for the
    synchronous standby was ended.
    """
    told = {what: reply for (what, _), reply in zip(end.parts, replies, strict=False)}
    errors = [reply for reply in replies if reply.error is not None]
    answers = {what: reply for what, reply in told.items() if reply.error is None} if errors else told
    # Behind the tag, which is final, only the position is lost.
    fails = Raises.ERROR if errors and Answers.END not in answers else Raises.LOST if lost else Raises.NOTHING
    if not end.commits:
        if fails is not Raises.NOTHING:
            return Ended(outcome=Outcome.ROLLED_BACK, raises=fails)
        return Ended(outcome=Outcome.ROLLED_BACK, position=_position(answers))
    transaction = end.known
    synchronous_commit = None if transaction is None else transaction.synchronous_commit
    if (reply := answers.get(Answers.TRANSACTION)) is not None:
        transaction = TransactionId.of(reply.row)
        synchronous_commit = reply.row[3]
    if (reply := answers.get(Answers.SYNCHRONOUS_COMMIT)) is not None:
        synchronous_commit = reply.row[0]
    what = outcome(replies)
    if what is Outcome.ROLLED_BACK:
        return Ended(outcome=what, raises=fails, position=_position(answers))
    if what is Outcome.UNKNOWN or wait_cancelled:
        raises = Raises.UNSETTLED if what is Outcome.UNKNOWN else Raises.NOT_CONFIRMED
        return Ended(outcome=Outcome.UNKNOWN, raises=raises, transaction=transaction, synchronous_commit=synchronous_commit)
    is_demoted = (reply := answers.get(Answers.POSITION)) is not None and reply.row[1:2] == ("t",)
    if (reply := told.get(Answers.COMMITTED_POSITION)) is not None:
        is_demoted = reply.error == IN_RECOVERY
    return Ended(
        outcome=what,
        transaction=transaction,
        synchronous_commit=synchronous_commit,
        position=None if is_demoted else _position(answers, synchronous_commit),
        is_demoted=is_demoted,
    )


def _position(answers: dict[Answers, Reply], synchronous_commit: str | None = None) -> str | None:
    """Return the position: of a commit that did not wait for its flush, as far as WAL was inserted."""
    if (told := answers.get(Answers.COMMITTED_POSITION)) is not None:
        return told.row[1] if synchronous_commit == "off" else told.row[0]
    told = answers.get(Answers.POSITION)
    return None if told is None else told.row[0]


def outcome(replies: Sequence[Reply]) -> Outcome:
    """Return what the answer to a COMMIT says that may have broken off.

    A tag that arrived is final, whatever followed it. An error of the server's in its place means that it did not commit
    (tests/adversity/test_commit_in_flight.py: an error in the tag's place never came with a committed row). An error of the
    pooler's, or silence, means nothing.
    """
    for reply in replies:
        if reply.tag == "COMMIT":
            return Outcome.COMMITTED
        if reply.tag == "ROLLBACK":
            return Outcome.ROLLED_BACK
    error = next((reply for reply in replies if reply.error is not None), None)
    return Outcome.ROLLED_BACK if error is not None and error.by_server else Outcome.UNKNOWN


# --- looking up what became of it ---

BEGIN: Final = "BEGIN ISOLATION LEVEL READ COMMITTED"
STANDBY_SQL: Final = "SELECT pg_catalog.pg_is_in_recovery()"
BARRIER_SQL: Final = "pg_catalog.pg_logical_emit_message(true,'ps_postgres'::pg_catalog.text,''::pg_catalog.text)"
"""Assigns an id, so that its COMMIT is written and waited for, and leaves nothing behind. It works READ ONLY, too."""
_WAITS: Final = ("on", "remote_write", "remote_apply")
_WAITS_FOR_NOBODY: Final = ("off", "local")
_STRICTEST: Final = "remote_apply"


@dataclass(frozen=True, slots=True)
class Lookup:
    """A message to the primary, in a transaction of its own, and what its answers mean.

    No timeout of the server's ends the wait of its COMMIT. The sender bounds that, drops the connection then, and never
    cancels: that would let it succeed.
    """

    parts: tuple[str, ...]
    judge: Callable[[Sequence[Reply]], Outcome]
    """What the answers mean, whether or not its own COMMIT is among them."""

    def message(self) -> str:
        """Return the message's text. Each part has a line of its own: the caller's query may end in a comment."""
        return "\n;".join(self.parts)

    def read(self, replies: Sequence[Reply], *, wait_cancelled: bool = False) -> Outcome:
        """Return what the answers prove. `wait_cancelled`: the server warned that the wait of its COMMIT was ended."""
        what = self.judge([reply for reply in replies if reply.error is None or reply.routine == FUTURE_ROUTINE])
        confirmed = len(replies) == len(self.parts) and replies[-1].tag == "COMMIT" and not wait_cancelled
        return Outcome.UNCONFIRMED if what is Outcome.COMMITTED and not confirmed else what


def _transaction(synchronous_commit: str | None, *parts: str, settings: Sequence[str] = ()) -> tuple[str, ...]:
    """Return `parts` in a transaction that commits as `synchronous_commit` says; None: as the strictest does."""
    level = synchronous_commit if synchronous_commit in (*_WAITS, *_WAITS_FOR_NOBODY) else _STRICTEST
    return (BEGIN, *settings, f"SET LOCAL synchronous_commit='{level}'", *parts, "COMMIT")


# Whether it is a standby is asked in the statement that asks for the status, and before it: a subquery with a volatile function
# is evaluated by itself. There is no barrier where it would not be believed: nobody waits for it, then.
QUESTION_SQL: Final = (
    "SELECT standby,status,timeline,restarted"  # noqa: S608 - of constants
    ",CASE WHEN status OPERATOR(pg_catalog.=) 'committed' AND timeline OPERATOR(pg_catalog.=) '%s' AND NOT restarted"
    f" THEN {BARRIER_SQL} END"
    " FROM (SELECT standby"
    ",CASE WHEN NOT standby THEN pg_catalog.pg_xact_status('%d'::pg_catalog.xid8) END AS status"
    ",CASE WHEN NOT standby"
    " THEN pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()),8) END AS timeline"
    ",EXTRACT(epoch FROM GREATEST(pg_catalog.pg_postmaster_start_time(),(SELECT stats_reset FROM pg_catalog.pg_stat_wal)))"
    " OPERATOR(pg_catalog.>) '%s' AS restarted"
    " FROM (SELECT pg_catalog.pg_is_in_recovery() AS standby) AS place) AS answer"
)
MARK_SQL: Final = """INSERT INTO "%s".ps_commit_marker (id) VALUES ('%s')"""
FENCE_SQL: Final = """INSERT INTO "%s".ps_commit_marker (id,committed) VALUES ('%s',false) ON CONFLICT DO NOTHING"""
MARKED_SQL: Final = (
    f"SELECT committed,CASE WHEN committed THEN {BARRIER_SQL} END"  # noqa: S608 - of constants
    """ FROM "%s".ps_commit_marker WHERE id OPERATOR(pg_catalog.=) '%s'"""
)
MARKER_TABLE_SQL: Final = (
    """CREATE TABLE IF NOT EXISTS "%s".ps_commit_marker (id pg_catalog.uuid PRIMARY KEY,"""
    " at pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.now(), committed pg_catalog.bool NOT NULL DEFAULT true)"
)


def lookup_of(transaction: TransactionId) -> Lookup:
    """Return the question what became of a transaction. Crash recovery resets the statistics, which shows a restart."""
    question = QUESTION_SQL % (f"{int(transaction.timeline, 16):08X}", int(transaction.xid), Decimal(transaction.at))
    parts = _transaction(transaction.synchronous_commit, question)
    at = parts.index(question)

    def judge_replies(replies: Sequence[Reply]) -> Outcome:
        if len(replies) <= at:
            return Outcome.UNKNOWN
        if replies[at].error is not None:
            return Outcome.ROLLED_BACK  # a primary that has not reached the id: the transaction was never there
        standby, status, timeline, restarted = replies[at].row[:4]
        if standby == "t":
            return Outcome.STANDBY
        return judge(transaction, status=status, timeline=timeline, restarted=restarted == "t")

    return Lookup(parts, judge_replies)


def judge(transaction: TransactionId, *, status: str | None, timeline: str | None, restarted: bool) -> Outcome:
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


def _quoted(schema: str) -> str:
    return schema.replace('"', '""')


def marker_table_sql(schema: str = "public") -> str:
    """Return the CREATE TABLE of the table for `commit_check(marker=True)`, in the schema that the setting `marker_schema` names.

    Rows are of use for as long as a lookup may take; delete those older than a day. The role needs SELECT and INSERT.
    """
    return MARKER_TABLE_SQL % _quoted(schema)


def marker_sql(marker: str, schema: str) -> str:
    """Return the statement that marks a transaction, sent in one message with its COMMIT."""
    return MARK_SQL % (_quoted(schema), marker)


def lookup_of_marker(marker: str, schema: str, synchronous_commit: str | None) -> Lookup:
    """Return the question whether a marker is there, which also fences: it takes the marker's place if it is not.

    It waits for a transaction that is under way with this marker, and one that comes after it can no longer commit. So the
    answer is exact on any timeline. What takes the place says so: the answer to this may be lost, too, and it is asked again.
    """
    place = _quoted(schema), marker
    parts = _transaction(synchronous_commit, STANDBY_SQL, FENCE_SQL % place, MARKED_SQL % place)
    at = parts.index(STANDBY_SQL)

    def judge_replies(replies: Sequence[Reply]) -> Outcome:
        if len(replies) > at and replies[at].row[0] == "t":
            return Outcome.STANDBY
        if len(replies) <= at + 2 or not replies[at + 2].row:
            return Outcome.UNKNOWN
        if replies[at + 2].row[0] == "t":
            return Outcome.COMMITTED
        # The fence stands once it is committed.
        return Outcome.ROLLED_BACK if replies[-1].tag == "COMMIT" else Outcome.UNKNOWN

    return Lookup(parts, judge_replies)


def lookup_of_verify(query: str, settings: Sequence[str], synchronous_commit: str | None) -> Lookup:
    """Return the caller's own question: a query whose first column is true where the transaction took effect.

    It is asked under `settings`, commands that set what the lost transaction had: row-level security shows it the same rows.
    """
    parts = _transaction(synchronous_commit, STANDBY_SQL, query, f"SELECT {BARRIER_SQL}", settings=settings)
    at = parts.index(STANDBY_SQL)

    def judge_replies(replies: Sequence[Reply]) -> Outcome:
        if len(replies) > at and replies[at].row[0] == "t":
            return Outcome.STANDBY
        if len(replies) != len(parts):  # a setting that cannot be set, a query that fails or is several
            return Outcome.UNKNOWN
        row = replies[at + 1].row
        return Outcome.NO_TRACE if not row or row[0] in _FALSE else Outcome.COMMITTED

    return Lookup(parts, judge_replies)


_FALSE: Final = (None, "f", "0", "")


def _literal(text: str) -> str:
    """Return `text` as a literal that means the same whatever standard_conforming_strings says."""
    quoted = "'{}'".format(text.replace("'", "''"))
    return " E" + quoted.replace("\\", "\\\\") if "\\" in text else quoted


def lookups_of(
    ended: Ended, *, marker: str | None = None, schema: str = "public", verify: str | None = None, settings: Sequence[str] = ()
) -> tuple[Lookup, ...]:
    """Return how to look up what became of a COMMIT that was not answered; the first that knows decides."""
    if marker is not None:
        return (lookup_of_marker(marker, schema, ended.synchronous_commit),)
    found = () if ended.transaction is None else (lookup_of(ended.transaction),)
    if verify is None:
        return found
    role = None if ended.transaction is None else ended.transaction.role
    if role not in (None, "none"):
        settings = (*settings, f"SET LOCAL role={_literal(role)}")
    return (*found, lookup_of_verify(verify, settings, ended.synchronous_commit))


def settling(lookups: Sequence[Lookup]) -> Generator[Lookup, Outcome, Outcome]:
    """Yield the lookups that are needed, one by one; take what each proves, and return what all of them do."""
    verdict = Outcome.UNKNOWN
    for lookup in lookups:
        verdict = verdict.then((yield lookup))
        if verdict not in UNDECIDED:
            break
    return verdict
