"""How one statement travels, whichever way it is sent: what goes before and after it. Pure.

There is one decision for every way of sending, and every promise is kept there, or the statement is refused there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from ps_core._message.script import Script
from ps_core._message.statement import Leaves
from ps_core.consistency import quoted_lsn

if TYPE_CHECKING:
    from ps_core._message.statement import Statement

__all__ = ["After", "Before", "Facts", "Message", "Plan", "Refused", "Way", "make_plan"]


class Way(Enum):
    """How a statement is sent."""

    MESSAGE = "in a simple-query message, whose results are taken when all are there: execute()"
    ROWS = "in such a message, whose rows are taken while they come: stream()"
    COPY = "in such a message, whose data is taken or given while it runs: copy()"
    PIPELINE = "as a command of a pipeline: executemany(), and all that is sent in a pipeline of the caller's"
    CURSOR = "as a DECLARE: a named cursor"


class Before(Enum):
    """What precedes a statement."""

    NOTHING = "the statement alone"
    TRANSACTION = "BEGIN with the caller's modes, the settings, the guard of a replica"
    SETTINGS = "the settings: in autocommit, a message is one transaction"
    READ = "the settings, the guard of a replica, READ ONLY"
    SNAPSHOT = "the guard of a replica, in a transaction of its own; the settings; one snapshot, and how far the server is"
    GUARD = "the guard of a replica: what the caller has seen may have grown since the transaction began"
    GUARD_APART = "the guard of a replica, in a transaction of its own: a query in front would settle the modes of a BEGIN"
    SETTINGS_GUARDED = "the guard of a replica, in a transaction of its own; the settings, READ ONLY"
    BEGIN = "a BEGIN of ours and the settings, around one statement in autocommit"
    BEGIN_READ_ONLY = "a BEGIN READ ONLY of ours, the settings and the guard of a replica"


class After(Enum):
    """What follows a statement in its message, and asks for something."""

    NOTHING = "nothing"
    SETTINGS = "the settings: of a transaction that the statement itself begins"
    POSITION = "how far the server is: of a read"
    PLACE = "whether it is the primary: of a read that opens a transaction, whose end brings the position"
    COMMIT = "the COMMIT of our BEGIN, and how far the server is"
    COMMIT_AS_SET = "how it is to commit, the COMMIT of our BEGIN, and how far the server is: the statement may have set it"
    TRANSACTION_ID = "the id of the transaction: behind its first write"
    SESSION = "the values of what it has set for the session"


class Refused(Enum):
    """Why a statement is not sent."""

    MAY_WRITE = "an endpoint for reads would have to run it, and it may write, or cannot be sent READ ONLY"
    NO_ROLE = "it cannot carry the caller's settings or assumed role: it would run with other rights"
    SEVERAL_TRANSACTIONS = "a part of it would run in a transaction that carries nothing"
    SEVERAL = "it is several statements, and this way of sending takes one"
    UNGUARDED = "it begins a transaction on an endpoint for reads, and cannot carry the guard"
    SERIALIZABLE = "the session's transactions are SERIALIZABLE, which no replica has: the primary's"
    SESSION = "it sets something for the session, and this way of sending cannot take it"
    OPEN_ENDED = "it cannot carry settings, and nobody could end a transaction of ours around it"
    LOCK = "behind a transaction pooler, it takes or releases a session advisory lock"
    CHANNEL = "there, it listens to a channel, or no longer"
    TEMPORARY = "there, it makes a temporary object that outlives its transaction, or that nobody could use"
    HELD_CURSOR = "there, it declares a cursor WITH HOLD"
    PREPARED = "there, it prepares a statement, or executes one"
    LIBRARY = "there, it loads a library"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known when a statement arrives."""

    way: Way = Way.MESSAGE
    within: bool = False
    """A transaction is open, and has its settings; or a pipeline is, in which settings were sent since its last Sync."""
    autocommit: bool = False
    by_server: bool = False
    """The server binds its parameters: nothing can share its message."""
    with_hold: bool = False
    """It is declared WITH HOLD, which its text does not say."""
    endpoint_reads: bool = False
    """The endpoint is one for reads."""
    refuses_session: bool = False
    """What a session would keep has no place there: a transaction pooler is in between."""
    tracks: bool = False
    """Positions are asked for and heeded."""
    tracks_reads: bool = True
    """A read brings its position, too, where any are asked for."""
    may_write: bool = False
    """It may write although it looks like a read: it was refused READ ONLY before, or names a function that may."""
    beside: bool = False
    """It names a function that may do what a rollback does not undo."""
    refused_in_batch: bool = False
    """The server refused to run it in one message with others before."""
    has_settings: bool = True
    """Something has to be set for a transaction: timeouts, at least."""
    held_by_session: bool = False
    """The session has the timeouts by itself (but transaction_timeout), and the caller asks for nothing else."""
    has_identity: bool = False
    """What is set decides what the statement may see: local settings or an assumed role."""
    snapshot_each: bool = True
    """Each statement of the transaction has a snapshot of its own (READ COMMITTED), and no block asks for a real one."""
    known: bool = False
    """The transaction's id is known."""
    sets_session: bool = False
    """It sets something for a session that no pooler keeps, and that has to be taken from it."""
    asks_session: bool = False
    """Values of what it sets are asked for."""
    serializable: bool = False
    """The session holds that level for its transactions."""
    sets_commit: bool = False
    """The session holds `synchronous_commit`, which is set for its transaction, and is over behind that."""
    leaves_session: bool = False
    """It is how to get out where what is held has become invalid: it travels without."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How one statement travels."""

    statement: Statement
    before: Before = Before.NOTHING
    after: After = After.NOTHING
    apart: bool = False
    """What goes before it travels in a message of its own, and what goes after it as well."""
    by_server: bool = False
    """The server binds its parameters."""
    first: bool = True
    """Nothing precedes it in its transaction."""
    again: bool = False
    """It was sent before, and a replica cancelled it."""
    may_write: bool = False
    """It may write although it looks like a read."""
    beside: bool = False
    """It may do what a rollback does not undo."""

    # What follows from these is told once: a plan is made for a text, and serves each statement that has it.
    has_room: bool = field(init=False, repr=False, compare=False)
    """Whether the question for the names of functions may travel behind it: its message is a transaction of its own."""
    is_accompanied: bool = field(init=False, repr=False, compare=False)
    """Whether anything goes before it."""
    begin: bool = field(init=False, repr=False, compare=False)
    """Whether an explicit transaction of the caller's is opened."""
    own_begin: bool = field(init=False, repr=False, compare=False)
    """Whether a transaction of ours is around the statement, which ends with it."""
    own_guard: bool = field(init=False, repr=False, compare=False)
    """Whether a transaction of ours is around the guard."""
    reads: bool = field(init=False, repr=False, compare=False)
    """Whether it is known to read only."""
    read_only: bool = field(init=False, repr=False, compare=False)
    """Whether it is sent READ ONLY since it looks like a read: a refusal (25006) is ours to handle."""
    commits: bool = field(init=False, repr=False, compare=False)
    """Whether the COMMIT of a transaction of ours follows it in its message."""
    asks: bool = field(init=False, repr=False, compare=False)
    """Whether what follows it asks for something that is ours alone."""
    asks_place: bool = field(init=False, repr=False, compare=False)
    """Whether it asks for the server's position, or whether the server is a standby."""
    outlives_loss: bool = field(init=False, repr=False, compare=False)
    """Whether it may be sent again where its connection is lost under way, and nothing says that it never ran."""

    def __post_init__(self) -> None:
        statement, before = self.statement, self.before
        begin, reads = before is Before.TRANSACTION, statement.reads and not self.may_write
        read_only = reads and before in _READING
        for name, value in (
            ("has_room", self.first and not self.apart and statement.one and before is not Before.NOTHING and not begin),
            ("is_accompanied", before is not Before.NOTHING),
            ("begin", begin),
            ("own_begin", before in _BEGINNING),
            ("own_guard", before in _GUARDING),
            ("reads", reads),
            ("read_only", read_only),
            ("commits", self.after in _COMMITTING),
            ("asks", self.after not in _ASKING_NOTHING),
            ("asks_place", self.after in _ASKING_PLACE),
            ("outlives_loss", statement.one and not self.beside and (begin or read_only)),
        ):
            object.__setattr__(self, name, value)


class Message(NamedTuple):
    """A plan and what it comes to, where neither a session nor a block has a say: the same for each statement of its text."""

    plan: Plan
    before: Script
    after: Script
    position: int = 0
    """What the guard in it asks for; 0: there is none."""

    def guarding(self, position: int) -> Message:
        """Return the same with a guard that asks for another position: between two writes of others, each caller has its own."""
        at, before = self.before.guard, self.before
        if at is None:
            return self._replace(position=position)
        guard = before.parts[at].replace(quoted_lsn(self.position), quoted_lsn(position))
        return self._replace(before=Script(*before.parts[:at], guard, *before.parts[at + 1 :], guard=at), position=position)


_READING = (Before.READ, Before.BEGIN_READ_ONLY)
_BEGINNING = (Before.BEGIN, Before.BEGIN_READ_ONLY)
_GUARDING = (Before.GUARD_APART, Before.SETTINGS_GUARDED, Before.SNAPSHOT)
_COMMITTING = (After.COMMIT, After.COMMIT_AS_SET)
_ASKING_NOTHING = (After.NOTHING, After.SETTINGS, After.SESSION)
_ASKING_PLACE = (After.POSITION, After.PLACE)
_NOTHING = Before.NOTHING, After.NOTHING


def make_plan(statement: Statement, facts: Facts) -> Plan | Refused:
    """Decide how a statement travels.

    In this order: what an endpoint for reads must not get; what would leave something in a session that others get; what would
    run in a transaction that carries nothing; a transaction that is open, or to be opened; what must stand alone; a read; a write
    that brings its position back; the rest.
    """
    if facts.endpoint_reads and (statement.primary_only or facts.may_write):
        return Refused.MAY_WRITE
    if facts.refuses_session and (statement.leaves is not None or facts.with_hold):
        refused = _leaving(statement, facts)
        if refused is not None:
            return refused
    if facts.endpoint_reads and (statement.chains or (statement.begins and facts.way is Way.PIPELINE)):
        return Refused.UNGUARDED
    if statement.parted and not facts.held_by_session:
        return Refused.SEVERAL_TRANSACTIONS
    if facts.way in (Way.ROWS, Way.COPY) and (statement.count > 1 or statement.chains):
        return Refused.SEVERAL
    if facts.endpoint_reads and facts.serializable and not (facts.sets_session or statement.is_harmless):
        return Refused.SERIALIZABLE
    if facts.sets_session and facts.way is not Way.MESSAGE:
        return Refused.SESSION
    before, after = _within(statement, facts) if facts.within else _way(statement, facts)
    if facts.sets_session:
        before, after = _session(statement, facts, before)
    if before is Before.NOTHING and after is After.NOTHING and not facts.within:
        if facts.way in (Way.ROWS, Way.CURSOR) and facts.has_settings:
            return Refused.OPEN_ENDED
        # Nothing can travel with it: neither READ ONLY, and an endpoint for reads may be a primary by now, nor rights.
        if facts.endpoint_reads and not statement.is_harmless:
            return Refused.MAY_WRITE
        if facts.has_identity and not statement.is_harmless:
            return Refused.NO_ROLE
    return Plan(
        statement,
        before,
        after,
        apart=(facts.by_server and not statement.controls) or (before is Before.TRANSACTION and not statement.single),
        by_server=facts.by_server,
        first=not facts.within,
        may_write=facts.may_write,
        beside=statement.beside or facts.beside,
    )


_LEAVING = {
    Leaves.LOCK: Refused.LOCK,
    Leaves.CHANNEL: Refused.CHANNEL,
    Leaves.TEMPORARY: Refused.TEMPORARY,
    Leaves.CURSOR: Refused.HELD_CURSOR,
    Leaves.PREPARED: Refused.PREPARED,
    Leaves.LIBRARY: Refused.LIBRARY,
}


def _leaving(statement: Statement, facts: Facts) -> Refused | None:
    """Return why a statement is refused that leaves something in the session; None if its transaction takes that along."""
    if facts.with_hold:
        return Refused.HELD_CURSOR
    if statement.leaves is Leaves.TEMPORARY_UNTIL_COMMIT:
        # The statements of one message, and those of a pipeline, are one transaction.
        alone = facts.autocommit and not facts.within and facts.way is not Way.PIPELINE and statement.count == 1
        return Refused.TEMPORARY if alone else None
    assert statement.leaves is not None
    return _LEAVING[statement.leaves]


def _within(statement: Statement, facts: Facts) -> tuple[Before, After]:
    """Return what accompanies a statement of a transaction, or a pipeline, that is open."""
    if statement.chains:
        return Before.NOTHING, After.SETTINGS
    if facts.endpoint_reads:
        # With one snapshot for all, what came later is not to be seen, as it is not on a primary.
        sees = not (statement.only_sets or statement.is_harmless or (statement.controls and statement.count == 1))
        before = Before.GUARD if facts.tracks and facts.snapshot_each and sees else Before.NOTHING
        brings = facts.tracks and facts.tracks_reads and statement.ends and facts.way is Way.MESSAGE
        return before, After.POSITION if brings else After.NOTHING
    can_tell = facts.way is Way.MESSAGE and not (facts.known or facts.by_server)
    if not (can_tell and statement.single and statement.takes_snapshot) or statement.must_stand_alone:
        return _NOTHING
    return Before.NOTHING, After.NOTHING if statement.reads and not facts.may_write else After.TRANSACTION_ID


def _session(statement: Statement, facts: Facts, before: Before) -> tuple[Before, After]:
    """Return what accompanies what the session has to take; `before`: what it would be, did it set nothing."""
    after = After.SESSION if facts.asks_session else After.NOTHING
    if facts.within:
        return before, after
    if not facts.autocommit:
        return Before.TRANSACTION, after
    if facts.leaves_session:
        return Before.NOTHING, after
    return Before.READ if facts.endpoint_reads and not statement.only_sets else Before.SETTINGS, after


def _way(statement: Statement, facts: Facts) -> tuple[Before, After]:
    """Return what accompanies a statement that arrives while the connection is idle."""
    if facts.way is not Way.MESSAGE:
        return _other_way(statement, facts)
    reads, by_server, for_reads = statement.reads and not facts.may_write, facts.by_server, facts.endpoint_reads
    position = After.POSITION if facts.tracks and facts.tracks_reads else After.NOTHING
    if not facts.autocommit and statement.chains and not by_server:
        return Before.TRANSACTION, After.SETTINGS
    if not facts.autocommit and not (reads and for_reads and facts.snapshot_each and not by_server):
        if by_server or for_reads or not statement.single:
            ends = for_reads and statement.ends and not by_server
            return Before.TRANSACTION, position if ends else After.NOTHING
        if not statement.takes_snapshot:
            return Before.TRANSACTION, After.NOTHING
        # The first write of a transaction brings the transaction's id back; a read before it asks whether the answer counts.
        if not reads:
            return Before.TRANSACTION, After.TRANSACTION_ID
        return Before.TRANSACTION, After.NOTHING if position is After.NOTHING else After.PLACE
    if statement.begins:
        return Before.GUARD_APART if for_reads else Before.NOTHING, After.SETTINGS
    if (
        statement.must_stand_alone
        or (statement.controls and statement.count == 1)
        or not statement.count
        or facts.refused_in_batch
    ):
        return _NOTHING
    if by_server and not statement.controls:
        # Without settings, only a transaction's end could tell the position.
        if not (facts.has_settings or for_reads or (reads and facts.tracks and facts.tracks_reads)):
            return _NOTHING
        return Before.BEGIN_READ_ONLY if reads or (for_reads and not statement.only_sets) else Before.BEGIN, After.NOTHING
    if reads:
        return Before.READ, position
    if for_reads:
        if statement.only_sets:  # what touches no data needs no guard: frameworks send it with each new connection
            return Before.SETTINGS, After.NOTHING
        return Before.SETTINGS_GUARDED if statement.controls else Before.READ, position
    if statement.chains:
        return Before.SETTINGS, After.SETTINGS
    # What only sets something wrote nothing: it brings a position where reads do.
    if facts.tracks and statement.single and (facts.tracks_reads or facts.may_write or not statement.only_sets):
        is_set = facts.sets_commit or facts.may_write or statement.runs_code
        return Before.BEGIN, After.COMMIT_AS_SET if is_set else After.COMMIT
    return Before.SETTINGS, After.NOTHING


def _other_way(statement: Statement, facts: Facts) -> tuple[Before, After]:
    """Return what accompanies a statement whose results come while it runs, or as those of one command among others."""
    if not facts.autocommit:
        return Before.TRANSACTION, After.NOTHING
    if facts.way is Way.PIPELINE:
        if statement.begins:
            return Before.NOTHING, After.SETTINGS
        if statement.must_stand_alone:
            return _NOTHING
        return Before.READ if facts.endpoint_reads else Before.SETTINGS, After.NOTHING
    if facts.way is Way.CURSOR or (facts.by_server and facts.way is Way.ROWS):
        return _NOTHING
    reads = facts.endpoint_reads or ((statement.reads or statement.copies_out) and not facts.may_write)
    if facts.tracks and facts.tracks_reads and reads:
        return Before.SNAPSHOT, After.NOTHING
    return Before.SETTINGS_GUARDED if facts.endpoint_reads else Before.SETTINGS, After.NOTHING
