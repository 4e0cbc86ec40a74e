"""How one statement travels that arrives while the connection is idle: what goes before and after it in its message. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ps_core._message.statement import Statement

__all__ = ["After", "Before", "Facts", "Plan", "Refused", "make_plan"]


class Before(Enum):
    """What precedes a statement."""

    NOTHING = "the statement alone"
    TRANSACTION = "BEGIN with the caller's modes, the settings, the guard of a replica"
    SETTINGS = "the settings: in autocommit, a message is one transaction"
    READ = "the settings, the guard of a replica, READ ONLY"
    SETTINGS_READ_ONLY = "the settings, READ ONLY: what is not known to read, on an endpoint for reads"
    BEGIN = "a BEGIN of ours and the settings, around one statement in autocommit"
    BEGIN_READ_ONLY = "a BEGIN READ ONLY of ours, the settings and the guard of a replica"


class After(Enum):
    """What follows a statement in its message, and asks for something."""

    NOTHING = "nothing"
    SETTINGS = "the settings: of a transaction that the statement itself begins"
    POSITION = "how far the server is: of a read"
    COMMIT = "the COMMIT of our BEGIN, and how far the server is"
    TRANSACTION_ID = "the id of the transaction: behind its first write"


class Refused(Enum):
    """Why a statement is not sent."""

    MAY_WRITE = "an endpoint for reads would have to run it, and it may write, or cannot be sent READ ONLY"
    NO_ROLE = "it cannot carry the caller's settings or assumed role: it would run with other rights"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known when a statement arrives."""

    autocommit: bool = False
    by_server: bool = False
    """The server binds its parameters: nothing can share its message."""
    endpoint_reads: bool = False
    """The endpoint is one for reads."""
    tracks: bool = False
    """Positions are asked for and heeded."""
    may_write: bool = False
    """It may write although it looks like a read: it was refused READ ONLY before, or names a function that may."""
    beside: bool = False
    """It names a function that may do what a rollback does not undo."""
    refused_in_batch: bool = False
    """The server refused to run it in one message with others before."""
    has_settings: bool = True
    """Something has to be set for a transaction: timeouts, at least."""
    has_identity: bool = False
    """What is set decides what the statement may see: local settings or an assumed role."""
    snapshot_each: bool = True
    """Each statement of the transaction has a snapshot of its own (READ COMMITTED), and no block asks for a real one."""


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

    @property
    def has_room(self) -> bool:
        """Whether the question for the names of functions may travel behind it: its message is a transaction of its own."""
        return self.first and not self.apart and self.statement.one and self.before not in (Before.NOTHING, Before.TRANSACTION)

    @property
    def is_accompanied(self) -> bool:
        """Whether anything goes before it."""
        return self.before is not Before.NOTHING

    @property
    def begin(self) -> bool:
        """Whether an explicit transaction of the caller's is opened."""
        return self.before is Before.TRANSACTION

    @property
    def own_begin(self) -> bool:
        """Whether a transaction of ours is around the statement, which ends with it."""
        return self.before in (Before.BEGIN, Before.BEGIN_READ_ONLY)

    @property
    def read_only(self) -> bool:
        """Whether it is sent READ ONLY since it looks like a read: a refusal (25006) is ours to handle."""
        return self.before is Before.READ or (
            self.before is Before.BEGIN_READ_ONLY and self.statement.reads and not self.may_write
        )

    @property
    def outlives_loss(self) -> bool:
        """Whether it may be sent again where its connection is lost under way, and nothing says that it never ran."""
        return self.statement.one and not self.beside and (self.before is Before.TRANSACTION or self.read_only)


def make_plan(statement: Statement, facts: Facts) -> Plan | Refused:
    """Decide how a statement travels that arrives while the connection is idle.

    In this order: what an endpoint for reads must not get; a transaction that is to be opened; what must stand alone; a read; a
    write that brings its position back; the rest.
    """
    if facts.endpoint_reads and (statement.primary_only or facts.may_write):
        return Refused.MAY_WRITE
    before, after = _way(statement, facts)
    if before is Before.NOTHING and after is After.NOTHING:
        # Nothing can travel with it: neither READ ONLY, and an endpoint for reads may be a primary by now, nor rights.
        if facts.endpoint_reads and not statement.is_harmless:
            return Refused.MAY_WRITE
        if facts.has_identity and (statement.count > 1 or statement.begins):
            return Refused.NO_ROLE
    return Plan(
        statement,
        before,
        after,
        apart=facts.by_server or (before is Before.TRANSACTION and not statement.single),
        by_server=facts.by_server,
        may_write=facts.may_write,
        beside=statement.beside or facts.beside,
    )


def _way(statement: Statement, facts: Facts) -> tuple[Before, After]:
    reads, by_server, for_reads = statement.reads and not facts.may_write, facts.by_server, facts.endpoint_reads
    if not facts.autocommit and not (reads and for_reads and facts.snapshot_each and not by_server):
        if by_server or for_reads or not statement.single:
            return Before.TRANSACTION, After.NOTHING
        # The first write of a transaction brings the transaction's id back, a read before it the position where it was made.
        if not reads:
            return Before.TRANSACTION, After.TRANSACTION_ID
        return Before.TRANSACTION, After.POSITION if facts.tracks else After.NOTHING
    if statement.begins and not by_server:
        return Before.NOTHING, After.SETTINGS
    if statement.must_stand_alone or statement.controls or not statement.count or facts.refused_in_batch:
        return Before.NOTHING, After.NOTHING
    if by_server:
        if not (facts.has_settings or for_reads):
            return Before.NOTHING, After.NOTHING
        return Before.BEGIN_READ_ONLY if reads or for_reads else Before.BEGIN, After.NOTHING
    if reads:
        return Before.READ, After.POSITION if facts.tracks else After.NOTHING
    if facts.tracks and statement.single and not for_reads:
        return Before.BEGIN, After.COMMIT
    return Before.SETTINGS_READ_ONLY if for_reads else Before.SETTINGS, After.NOTHING
