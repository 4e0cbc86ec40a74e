"""What a statement's text says about it: how many statements it is, and whether it is known to be a plain read.

A text is only ever a hint. Whatever looks like a read is *sent* READ ONLY, so the server has the last word (25006); whatever
is not known to be a read is treated as a write. Nothing here decides that a statement may run twice.

>>> analyse("select 1").reads, analyse("with x as (delete from t returning *) select * from x").reads
(True, False)
>>> analyse("update t set a = 1; commit").single, analyse("update t set a = 1; commit").controls
(False, True)
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

__all__ = ["Statement", "analyse"]

_READ_VERBS = frozenset({"SELECT", "TABLE", "VALUES", "WITH", "SHOW", "EXPLAIN"})
_CONTROL = re.compile(
    r"[\s(]*(?:(?:BEGIN|START|COMMIT|END|ROLLBACK|ABORT|SAVEPOINT|RELEASE)\b|PREPARE\s+TRANSACTION\b)", re.IGNORECASE
)
# Refused inside a transaction block (25001, "cannot run inside a transaction block"), or meant for the session.
# A form that is missing here costs one round trip, once: the server refuses it before anything ran, and it is sent bare.
_BARE = re.compile(
    r"(VACUUM|CLUSTER|REINDEX|CHECKPOINT|DISCARD|LOAD|COPY|SET|RESET|LISTEN|UNLISTEN|PREPARE|EXECUTE|DEALLOCATE|DECLARE|FETCH|MOVE|CLOSE"
    r"|ALTER\s+SYSTEM|ALTER\s+DATABASE|ALTER\s+TYPE|(CREATE|DROP)\s+(DATABASE|TABLESPACE|SUBSCRIPTION)|ALTER\s+SUBSCRIPTION"
    r"|(CREATE|DROP)\s+(UNIQUE\s+)?INDEX\s+CONCURRENTLY|COMMIT\s+PREPARED|ROLLBACK\s+PREPARED)\b",
    re.IGNORECASE,
)

_DML = re.compile(r"\b(INSERT|UPDATE|DELETE|MERGE)\b", re.IGNORECASE)
_LOCKS = re.compile(r"\bFOR\s+(?:NO\s+KEY\s+)?(?:UPDATE|(?:KEY\s+)?SHARE)\b|\bINTO\b", re.IGNORECASE)
# Functions that a standby executes without complaint although they mean nothing there or bind the session, and some that it
# always refuses (asking it would cost a round trip).
_PRIMARY_FUNCTIONS = re.compile(
    r"\b(?:pg_(?:try_)?advisory_\w+|pg_notify|set_config|setval|nextval|currval|lastval|pg_export_snapshot|pg_current_wal_\w+"
    r"|pg_walfile_name|pg_current_xact_id|txid_current|lo_\w+|dblink\w*|pg_cancel_backend|pg_terminate_backend)\s*\(",
    re.IGNORECASE,
)
# What a standby would grant: a lock that only its own clients see. What asks for more than READ ONLY, before the transaction's
# first query has settled that: a standby that was promoted would grant it.
_PRIMARY_ONLY = re.compile(
    r"\bpg_(?:try_)?advisory_\w+\s*\(|\bREAD\s+WRITE\b|^\s*SET\b.*\btransaction_read_only\b", re.IGNORECASE | re.DOTALL
)
# What a session may keep from it when the transaction is over: such a connection is never replaced silently.
_SESSION_STATE = re.compile(
    r"^(?:SET\s+(?!LOCAL\b|TRANSACTION\b|CONSTRAINTS\b)|LISTEN\b|LOAD\b|PREPARE\b|CREATE\s+(?:(?:GLOBAL|LOCAL)\s+)?TEMP|DECLARE\b.*\bWITH\s+HOLD\b)"
    r"|\b(?:set_config|pg_(?:try_)?advisory_lock\w*)\s*\(|\bINTO\s+TEMP",
    re.IGNORECASE | re.DOTALL,
)
# A setting and nothing else: Django sends this one with every new connection.
_LONE_SETTING = re.compile(r"(?:SELECT\s+set_config\s*\([^()]*\)|(?:SET|RESET)\s[^()]*)\s*", re.IGNORECASE)
# Of these, what a connection that takes the place of a lost one is given again: the server tells their values.
_REPORTED = re.compile(
    r"\bset_config\s*\(\s*'(?:TimeZone|DateStyle)'|^\s*SET\s+(?:SESSION\s+)?(?:TIME\s+ZONE|TimeZone|DateStyle)\b", re.IGNORECASE
)
# The parts of a text in which a semicolon or a keyword means nothing. Block comments nest, so they have a loop of their own.
_OPAQUE = re.compile(
    r"""(?:\b[eE])'(?:[^'\\]|''|\\.)*'|'(?:[^']|'')*'|"(?:[^"]|"")*"|(?<![\w$])\$(?P<tag>(?:[^\W\d]\w*)?)\$.*?\$(?P=tag)\$|--[^\n]*|/\*""",
    re.DOTALL,
)
_COMMENT_EDGE = re.compile(r"/\*|\*/")
_HARMLESS = frozenset(
    {
        "",
        "COMMIT",
        "END",
        "ROLLBACK",
        "ABORT",
        "SAVEPOINT",
        "RELEASE",
        "SET",
        "RESET",
        "DISCARD",
        "DEALLOCATE",
        "PREPARE",
        "LISTEN",
    }
    | {"UNLISTEN", "LOAD", "FETCH", "MOVE", "CLOSE", "DECLARE"}
)
_CHANGING = frozenset({"EXECUTE", "COPY", "ALTER", "COMMIT"})
"""What changes something for readers, of what cannot share a message. The others are maintenance, or a session's."""
_VERB = re.compile(r"[A-Za-z]+")
# Texts longer than this are analysed each time: they are generated, and would push the others out of the cache.
_CACHED_LENGTH = 16_384


@dataclass(frozen=True, slots=True)
class Statement:
    """What is known of one text."""

    verb: str
    """First keyword in upper case; "" where there is none."""
    count: int
    """How many statements the text holds."""
    controls: bool
    """Some statement of the text begins, ends or divides a transaction."""
    reads: bool
    """Known to be a plain read: replica work, sent READ ONLY."""
    must_stand_alone: bool
    """Must not share a message with others in autocommit."""
    keeps_state: bool
    """The session may hold something after it (SET, LISTEN, a temporary table, an advisory lock)."""

    primary_only: bool = False
    """A replica would do it, and it would mean nothing there (advisory locks), or let a write through (READ WRITE)."""

    only_sets: bool = False
    """Sets a session's setting and nothing else: done twice, or on a new connection, it is the same."""

    @property
    def single(self) -> bool:
        """Exactly one statement, and not one of transaction control: the only kind that may ever be sent again."""
        return self.count == 1 and not self.controls

    @property
    def is_harmless(self) -> bool:
        """Whether it changes no data wherever it runs, although it cannot share a message with what makes it READ ONLY."""
        return self.count <= 1 and self.verb in _HARMLESS

    @property
    def may_change(self) -> bool:
        """Whether a reader may see something else after it."""
        if self.count == 1 and self.must_stand_alone:
            return self.verb in _CHANGING
        return not (self.reads or self.begins or self.only_sets or self.is_harmless)

    @property
    def begins(self) -> bool:
        """Nothing but BEGIN or START TRANSACTION."""
        return self.count == 1 and self.verb in ("BEGIN", "START")


def analyse(text: str) -> Statement:
    """Return what `text` (placeholders included) tells. The result is remembered for texts up to 16 KiB (1,024 of them)."""
    return _analyse(text) if len(text) > _CACHED_LENGTH else _remembered(text)


def _analyse(text: str) -> Statement:
    statements = [part for part in _without_opaque_parts(text).split(";") if part.strip()]
    head = statements[0].lstrip("( \t\r\n") if statements else ""
    match = _VERB.match(head)
    verb = match[0].upper() if match else ""
    controls = any(_CONTROL.match(part) for part in statements)
    reads = (
        len(statements) == 1
        and verb in _READ_VERBS
        and not _LOCKS.search(head)
        and not _PRIMARY_FUNCTIONS.search(head)
        and not (verb in ("WITH", "EXPLAIN") and _DML.search(head))
    )
    only_sets = len(statements) == 1 and _LONE_SETTING.fullmatch(head) is not None
    return Statement(
        verb=verb,
        count=len(statements),
        controls=controls,
        reads=reads,
        must_stand_alone=any(_BARE.match(part.lstrip()) for part in statements),
        keeps_state=any(_SESSION_STATE.search(part.lstrip()) for part in statements)
        and not (only_sets and _REPORTED.search(text)),
        only_sets=only_sets,
        primary_only=any(_PRIMARY_ONLY.search(part) for part in statements),
    )


_remembered = lru_cache(maxsize=1024)(_analyse)


def _without_opaque_parts(text: str) -> str:
    """Return `text` with strings, quoted names, dollar-quoted bodies and comments replaced by a blank."""
    parts: list[str] = []
    at = 0
    while match := _OPAQUE.search(text, at):
        parts += (text[at : match.start()], " ")
        at = _end_of_comment(text, match.end()) if match[0] == "/*" else match.end()
    parts.append(text[at:])
    return "".join(parts)


def _end_of_comment(text: str, at: int) -> int:
    """Return where the block comment ends whose body starts at `at`. PostgreSQL's comments nest."""
    depth = 1
    while depth:
        edge = _COMMENT_EDGE.search(text, at)
        if edge is None:
            return len(text)
        depth += 1 if edge[0] == "/*" else -1
        at = edge.end()
    return at
