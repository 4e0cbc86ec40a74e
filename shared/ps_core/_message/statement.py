"""What a statement's text says about it: whether it is one statement for certain, and what it is likely to do.

Two questions decide whether a text may ever be sent again, and no lexer answers them:

- Is it one statement? Only if it has no semicolon but trailing ones (`Statement.one`), and the client can put no value inside
  of quotes (`binds_outside_quotes`).
- May it write? Any identifier in it that is the name of a function which may write means yes (`Statement.names`), wherever it
  stands, in a string or a comment, too.

Everything else is a hint that the server corrects: whatever looks like a read is *sent* READ ONLY, and whatever is not known to
be a read is treated as a write.

>>> analyse("select 1").reads, analyse("with x as (delete from t returning *) select * from x").reads
(True, False)
>>> analyse("update t set a = 1;").one, analyse("update t set a = 1; commit").one, analyse("select ';'").one
(True, False, False)
>>> binds_outside_quotes("select * from t where a = %s"), binds_outside_quotes("select interval '%s days'")
(True, False)
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from sys import intern

__all__ = [
    "ESCAPED",
    "LONGEST_NAME",
    "QUOTE",
    "Leaves",
    "Statement",
    "analyse",
    "binds_outside_quotes",
    "end_of_comment",
    "identifiers",
]

_READ_VERBS = frozenset({"SELECT", "TABLE", "VALUES", "WITH", "SHOW", "EXPLAIN"})
_CONTROL = re.compile(
    r"[\s(]*(?:(?:BEGIN|START|COMMIT|END|ROLLBACK|ABORT|SAVEPOINT|RELEASE)\b|PREPARE\s+TRANSACTION\b)", re.IGNORECASE
)
# What ends a transaction, so that whatever follows it in its text runs in another one.
_END = re.compile(
    r"[\s(]*(?:(?:COMMIT|END|ABORT)\b(?!\s+PREPARED\b)|PREPARE\s+TRANSACTION\b"
    r"|ROLLBACK\b(?!\s+(?:(?:WORK|TRANSACTION)\s+)?(?:TO|PREPARED)\b))",
    re.IGNORECASE,
)
_CHAIN = re.compile(r"\bAND\s+CHAIN\b", re.IGNORECASE)
# The body of a function, whose semicolons are not the text's: its END is no COMMIT.
_ATOMIC = re.compile(r"\s*CREATE\b.*\bBEGIN\s+ATOMIC\b(?!\s+END\b)", re.IGNORECASE | re.DOTALL)
_BODY_END = re.compile(r"\s*END\b", re.IGNORECASE)
# Refused inside a transaction block (25001, "cannot run inside a transaction block"), meant for the session, or taken by psycopg
# for an error (COPY by `execute`, which leaves nothing done).
# A form that is missing here costs one round trip, once: the server refuses it before anything ran, and it is sent bare.
_BARE = re.compile(
    r"(?:VACUUM|CHECKPOINT|DISCARD|LOAD|COPY\b.*\b(?:STDIN|STDOUT)|SET|RESET|LISTEN|UNLISTEN|PREPARE|DEALLOCATE|FETCH|MOVE|CLOSE"
    r"|ALTER\s+SYSTEM|(?:CREATE|DROP)\s+(?:DATABASE|TABLESPACE|SUBSCRIPTION)|ALTER\s+SUBSCRIPTION"
    r"|(?:(?:CREATE|DROP)\s+(?:UNIQUE\s+)?INDEX|REINDEX\b.*)\s+CONCURRENTLY|COMMIT\s+PREPARED|ROLLBACK\s+PREPARED)\b",
    re.IGNORECASE | re.DOTALL,
)

_DML = re.compile(r"\b(INSERT|UPDATE|DELETE|MERGE)\b", re.IGNORECASE)
_LOCKS = re.compile(r"\bFOR\s+(?:NO\s+KEY\s+)?(?:UPDATE|(?:KEY\s+)?SHARE)\b|\bINTO\b", re.IGNORECASE)
# Built-in functions that act although a READ ONLY transaction allows it, that act beside the transaction, that run SQL from a
# string, or that mean nothing on a standby. All are VOLATILE in pg_catalog (PostgreSQL 18) or take SQL as text; other names come
# from the endpoint (`FUNCTIONS_SQL`).
_ACTS = re.compile(
    r"(?:pg_(?:try_)?advisory_\w+|pg_notify|pg_logical_emit_message|set_config|setseed|setval|nextval|currval|lastval|set_limit"
    r"|lo_(?:close|creat|create|export|from_bytea|get|import|lseek|lseek64|open|put|tell|tell64|truncate|truncate64|unlink)|loread|lowrite"
    r"|pg_(?:cancel|terminate)_backend|pg_export_snapshot|pg_current_wal_\w+|pg_walfile_name\w*|pg_current_xact_id|txid_current"
    r"|pg_(?:copy|create|drop)_(?:logical_|physical_)?replication_slot|pg_replication_slot_advance|pg_sync_replication_slots"
    r"|pg_logical_slot_\w+|pg_replication_origin_\w+|pg_stat_reset\w*|pg_stat_clear_snapshot|pg_stat_force_next_flush"
    r"|pg_(?:clear|restore)_(?:attribute|relation)_stats|pg_switch_wal|pg_create_restore_point|pg_backup_st(?:art|op)|pg_promote"
    r"|pg_wal_replay_(?:pause|resume)|pg_reload_conf|pg_rotate_logfile|pg_log_backend_memory_contexts|pg_log_standby_snapshot"
    r"|pg_import_system_collations|pg_nextoid|pg_stop_making_pinned_objects|binary_upgrade_\w+|currtid2"
    r"|gin_clean_pending_list|brin_(?:de)?summarize_\w+|ts_stat|ts_rewrite|\w+_to_xml\w*|dblink\w*)"
)
# What a rollback does not undo.
_BESIDE = re.compile(r"dblink\w*|lo_export")
# PostgreSQL's identifiers: every character beyond ASCII is a letter. Written as what is none, which `re` compiles much faster.
_NO_WORD = r"\x00-/:-@\[-\^`{-\x7f"
_LETTER, _IN_NAME = rf"[^{_NO_WORD}0-9]", r"[^\x00-#%-/:-@\[-\^`{-\x7f]"
_IDENTIFIER = re.compile(f"{_LETTER}{_IN_NAME}*")
LONGEST_NAME = 63
"""Bytes that PostgreSQL keeps of an identifier (NAMEDATALEN - 1)."""
_UNICODE_NAME = re.compile(r'\bU&"', re.IGNORECASE)
_COPY_OUT = re.compile(r"\bTO\s+STDOUT\b", re.IGNORECASE)
_PROGRAM = re.compile(r"\bCOPY\b.*\bPROGRAM\b", re.IGNORECASE | re.DOTALL)
# A template in which it is plain what is a string, a quoted name or a comment, and in which no placeholder is in any of them.
# Strings and quoted names hold no backslash, comments neither that nor a quote, and nothing looks like a dollar quote; a percent
# sign in one of them is doubled. What it does not match may be harmless: it is bound by the server then.
_PLAIN = re.compile(
    rf"""(?:[^'"\\$/-]++|-(?!-)|/(?!\*)|\$(?![^{_NO_WORD}]*\$)"""
    r"""|'(?:[^'\\%]|%%)*'|"(?:[^"\\%]|%%)*"|--[^'"\\$%\r\n]*(?:[\r\n]|\Z)|/\*[^'"\\$%/*]*\*/)*+"""
)
# What a standby would grant: a lock that only its own clients see. What asks for more than READ ONLY, before the transaction's
# first query has settled that: a standby that was promoted would grant it.
_PRIMARY_ONLY = re.compile(r"\bpg_(?:try_)?advisory_\w+\s*\(|\bREAD\s+WRITE\b", re.IGNORECASE)
# So does what sets transaction_read_only, however that name is written.
_SETS = re.compile(r"\s*(?:SET|RESET)\b", re.IGNORECASE)
# What a session may keep from it when the transaction is over: such a connection is never replaced silently.
_SESSION_STATE = re.compile(
    r"^(?:SET\s+(?!LOCAL\b|TRANSACTION\b|CONSTRAINTS\b)|LISTEN\b|LOAD\b|PREPARE\b|CREATE\s+(?:(?:GLOBAL|LOCAL)\s+)?TEMP|DECLARE\b.*\bWITH\s+HOLD\b)"
    r"|\b(?:set_config|pg_(?:try_)?advisory_lock\w*)\s*\(|\bINTO\s+TEMP",
    re.IGNORECASE | re.DOTALL,
)
_FOR_SESSION = re.compile(r"\s*(?:SET\b(?!\s+(?:LOCAL|TRANSACTION|CONSTRAINTS)\b(?!\s*\.))|RESET\b|DISCARD\b)", re.IGNORECASE)
# The words without which a text leaves nothing that only a session of its own could hold (`Leaves`).
_LEAVING = frozenset(
    f"pg_{name}"
    for name in (
        *("advisory_lock", "advisory_lock_shared", "try_advisory_lock", "try_advisory_lock_shared"),
        *("advisory_unlock", "advisory_unlock_shared", "advisory_unlock_all", "temp"),
    )
) | {"listen", "unlisten", "temp", "temporary", "hold", "prepare", "execute", "load"}
_EXPLAIN = r"\s*(?:EXPLAIN\b(?:\s*\([^)]*\)|\s+(?:ANALYZE|VERBOSE)\b)*\s*)?"
# What only names a function, or keeps a call for later.
_NAMES_ONLY = r"\s*(?:ALTER|COMMENT|DROP|GRANT|REVOKE|CREATE\s+(?:OR\s+REPLACE\s+)?(?:FUNCTION|PROCEDURE|VIEW))\b"
_CALLS_LOCK = re.compile(
    rf"(?!{_NAMES_ONLY}).*?\bpg_(?:try_)?advisory_(?:un)?lock(?:_shared|_all)?\s*\(", re.IGNORECASE | re.DOTALL
)
_LISTENS = re.compile(r"\s*(?:UN)?LISTEN\b", re.IGNORECASE)
_MAKES_TEMPORARY = re.compile(
    rf"{_EXPLAIN}CREATE\s+(?:(?:OR\s+REPLACE\s+)?(?:(?:GLOBAL|LOCAL)\s+)?TEMP(?:ORARY)?\b"
    r"|(?:(?!(?:AS|OF|ON)\b)\w+\s+)*pg_temp\s*\.)",
    re.IGNORECASE,
)
# SELECT ... INTO makes a table; INSERT INTO, and MERGE INTO, may have one that is called "temp".
_INTO_TEMPORARY = re.compile(
    r"\b(?:INSERT|MERGE)\s+INTO\b|\bINTO\s+(?P<made>(?:(?:GLOBAL|LOCAL)\s+)?TEMP(?:ORARY)?\b|pg_temp\s*\.)", re.IGNORECASE
)
_ON_COMMIT_DROP = re.compile(r"\bON\s+COMMIT\s+DROP\b", re.IGNORECASE)
_DECLARES_HELD = re.compile(r"\s*DECLARE\b.*?\bCURSOR\s+WITH\s+HOLD\b", re.IGNORECASE | re.DOTALL)
_PREPARES = re.compile(rf"\s*PREPARE\b(?!\s+TRANSACTION\b)|{_EXPLAIN}EXECUTE\b", re.IGNORECASE)
_LOADS = re.compile(r"\s*LOAD\b", re.IGNORECASE)
# A setting and nothing else: Django sends this one with every new connection.
_LONE_SETTING = re.compile(r"(?:SELECT\s+set_config\s*\([^()]*\)|(?:SET|RESET)\s[^()]*)\s*", re.IGNORECASE)
# Of these, what a connection that takes the place of a lost one is given again: the server tells their values.
_REPORTED = re.compile(
    r"\bset_config\s*\(\s*'(?:TimeZone|DateStyle)'|^\s*SET\s+(?:SESSION\s+)?(?:TIME\s+ZONE|TimeZone|DateStyle)\b", re.IGNORECASE
)
# A string with escapes, and its continuations: behind a line's end, and comments, another one goes on with it.
ESCAPED = (
    r"""'(?:[^'\\]|''|\\.)*+(?:'|\Z)"""
    r"""(?:(?:[ \t\f\v]|--[^\r\n]*)*+[\r\n](?:\s|--[^\r\n]*[\r\n])*+'(?:[^'\\]|''|\\.)*+(?:'|\Z))*+"""
)
# The parts of a text in which a semicolon or a keyword means nothing. Block comments nest, and dollar quotes end with their tag:
# these have loops of their own. What is not ended goes on to the end of the text, so that no text is searched twice. The quoted
# names of what a session would keep stay, without their quotes.
_OPAQUE = re.compile(
    rf"""(?<!{_IN_NAME})[eE]{ESCAPED}"""
    r"""|'(?:[^']|'')*+(?:'|\Z)|"(?P<name>pg_(?:temp|(?:try_)?advisory_\w+))"(?!")|"(?:[^"]|"")*+(?:"|\Z)"""
    rf"""|(?<!{_IN_NAME})(?P<dollar>\$(?:[^\W\d]\w*)?\$)|--[^\r\n]*|/\*""",
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
_CHANGING = frozenset({"COPY", "ALTER", "COMMIT"})
"""What changes something for readers, of what cannot share a message. The others are maintenance, or a session's."""
# PlannedStmtRequiresSnapshot of PostgreSQL's pquery.c: for these it is false.
_WITHOUT_SNAPSHOT = frozenset(
    {"LOCK", "SET", "RESET", "SHOW", "FETCH", "MOVE", "LISTEN", "NOTIFY", "UNLISTEN", "CHECKPOINT", "BEGIN", "START", "SAVEPOINT"}
)
_RUNS_CODE = frozenset({"CALL", "DO", "EXECUTE"})
_MAKING = frozenset({"CREATE", "ALTER", "DROP"})
_MADE = frozenset({"function", "procedure", "routine", "aggregate", "extension", "schema"})
_VERB = re.compile(r"[A-Za-z]+")
QUOTE = '"'
_TRAILING = "; \t\r\n\f\v"
# Texts longer than this are analysed each time: they are generated, and would push the others out of the cache.
_CACHED_LENGTH = 16_384


class Leaves(Enum):
    """What a text leaves in the session that a transaction pooler gives to somebody else."""

    LOCK = "a session advisory lock, taken or released"
    CHANNEL = "a channel that is listened to, or no longer"
    TEMPORARY = "a temporary object that outlives its transaction"
    TEMPORARY_UNTIL_COMMIT = "a temporary table ON COMMIT DROP: outside of a transaction nobody could use it"
    CURSOR = "a cursor WITH HOLD"
    PREPARED = "a prepared statement, made or executed"
    LIBRARY = "a library"


@dataclass(frozen=True, slots=True)
class Statement:
    """What is known of one text."""

    verb: str
    """First keyword in upper case; "" where there is none."""
    count: int
    """How many statements the text seems to hold."""
    one: bool
    """Certainly one statement, and not one of transaction control: the only kind that may be sent again once it was sent."""
    single: bool
    """It seems to be one statement, and not one of transaction control: how its message is laid out goes by this."""
    controls: bool
    """Some statement of the text begins, ends or divides a transaction."""
    reads: bool
    """Known to be a plain read, but for functions of the database's own: replica work, sent READ ONLY."""
    must_stand_alone: bool
    """Must not share a message with others in autocommit. Of several statements none can: they share one already."""
    keeps_state: bool
    """The session may hold something after it (SET, LISTEN, a temporary table, an advisory lock)."""
    leaves: Leaves | None
    """What it leaves in the session that no client can hold instead."""

    touches_session: bool
    """It may set something for the session: `ps_core._message.session` says what."""

    primary_only: bool
    """A replica would do it, and it would mean nothing there (advisory locks), or let a write through (READ WRITE)."""

    only_sets: bool
    """Sets a session's setting and nothing else: done twice, or on a new connection, it is the same."""

    names: tuple[str, ...]
    """Every identifier in the text, in lower case, whatever it stands for; and a double quote, if there is one."""
    names_unknown: bool
    """Some identifier is written in a way that hides its name (`U&"..."`, longer than 63 bytes)."""
    makes_functions: bool
    """It may make, change or drop functions: their names have to be asked for again."""
    beside: bool
    """It does something that a rollback does not undo (COPY ... PROGRAM, dblink, lo_export)."""
    copies_out: bool
    """A COPY that hands out what it reads, and looks like doing nothing else."""
    takes_snapshot: bool
    """It takes a snapshot: behind what does not, a question of ours would, and settle the transaction's modes."""
    begins: bool
    """Nothing but BEGIN or START TRANSACTION."""
    ends: bool
    """It ends a transaction, or begins one and ends it."""
    parted: bool
    """Something in it follows the end of a transaction, and runs in another one."""
    chains: bool
    """It ends with COMMIT or ROLLBACK AND CHAIN, which begins another transaction."""

    def calls_any(self, functions: frozenset[str]) -> bool:
        """Return whether one of these functions (in lower case) may be called in it."""
        if not functions:
            return False
        return self.names_unknown or not functions.isdisjoint(self.names)

    @property
    def is_harmless(self) -> bool:
        """Whether it changes no data wherever it runs, although it cannot share a message with what makes it READ ONLY."""
        return self.count <= 1 and self.verb in _HARMLESS

    @property
    def may_change(self) -> bool:
        """Whether a reader may see something else after it."""
        if self.count == 1 and self.must_stand_alone:
            return self.verb in _CHANGING and not self.copies_out
        return not (self.reads or self.begins or self.only_sets or self.is_harmless)

    @property
    def runs_code(self) -> bool:
        """Whether it runs what its text does not show: a procedure, a block, a prepared statement."""
        return self.verb in _RUNS_CODE


def analyse(text: str) -> Statement:
    """Return what `text` (placeholders included) says. The result is remembered for texts up to 16 KiB (1,024 of them)."""
    return _analyse(text) if len(text) > _CACHED_LENGTH else _remembered(text)


def _analyse(text: str) -> Statement:
    statements = [part for part in _without_opaque_parts(text).split(";") if part.strip()]
    head = statements[0].lstrip("( \t\r\n") if statements else ""
    match = _VERB.match(head)
    verb = match[0].upper() if match else ""
    controls, ends, parted, chains = _transactions(statements)
    names = tuple(map(intern, identifiers(text)))  # most texts share their names
    acts = any(map(_ACTS.fullmatch, names))
    reads = (
        len(statements) == 1
        and verb in _READ_VERBS
        and not acts
        and not _LOCKS.search(head)
        and not (verb in ("WITH", "EXPLAIN") and _DML.search(head))
    )
    names_unknown = _UNICODE_NAME.search(text) is not None or any(len(name.encode()) > LONGEST_NAME for name in names)
    may_name_read_only = "transaction_read_only" in names or names_unknown
    only_sets = len(statements) == 1 and _LONE_SETTING.fullmatch(head) is not None
    return Statement(
        verb=verb,
        count=len(statements),
        one=len(statements) == 1 and not controls and ";" not in text.rstrip(_TRAILING),
        single=len(statements) == 1 and not controls,
        controls=controls,
        reads=reads,
        must_stand_alone=len(statements) == 1 and _BARE.match(head) is not None,
        keeps_state=any(_SESSION_STATE.search(part.lstrip()) for part in statements)
        and not (only_sets and _REPORTED.search(text)),
        leaves=None if _LEAVING.isdisjoint(names) else _leaves(statements),
        only_sets=only_sets,
        touches_session="set_config" in names
        or ("pg_settings" in names and "update" in names)
        or any(map(_FOR_SESSION.match, statements)),
        primary_only=any(map(_PRIMARY_ONLY.search, statements)) or (may_name_read_only and any(map(_SETS.match, statements))),
        names=names,
        names_unknown=names_unknown,
        makes_functions=verb in _MAKING and not _MADE.isdisjoint(names),
        beside=_PROGRAM.search(text) is not None or any(map(_BESIDE.fullmatch, names)),
        copies_out=len(statements) == 1
        and verb == "COPY"
        and not (acts or _LOCKS.search(head) or _DML.search(head))
        and _COPY_OUT.search(head) is not None,
        takes_snapshot=verb not in _WITHOUT_SNAPSHOT,
        begins=len(statements) == 1 and verb in ("BEGIN", "START"),
        ends=ends,
        parted=parted,
        chains=chains,
    )


def _transactions(statements: list[str]) -> tuple[bool, bool, bool, bool]:
    """Return `controls`, `ends`, `parted` and `chains` of a text's statements."""
    controls = parted = chains = ended = in_body = False
    for part in statements:
        parted = parted or ended
        if in_body:
            in_body = _BODY_END.match(part) is None
        elif _CONTROL.match(part):
            controls = True
            chains = _CHAIN.search(part) is not None
            ended = ended or chains or _END.match(part) is not None
        else:
            in_body, chains = _ATOMIC.match(part) is not None, False
    return controls, ended, parted, chains


_LEFT_BY = {
    Leaves.LOCK: _CALLS_LOCK,
    Leaves.CHANNEL: _LISTENS,
    Leaves.CURSOR: _DECLARES_HELD,
    Leaves.PREPARED: _PREPARES,
    Leaves.LIBRARY: _LOADS,
}


def _leaves(statements: list[str]) -> Leaves | None:
    """Return `leaves` of a text's statements. What would be allowed somewhere counts last."""
    found = None
    for part in statements:
        kind = _leaves_of(part)
        if kind is not None and kind is not Leaves.TEMPORARY_UNTIL_COMMIT:
            return kind
        found = found or kind
    return found


def _leaves_of(part: str) -> Leaves | None:
    for kind, pattern in _LEFT_BY.items():
        if pattern.match(part):
            return kind
    if _MAKES_TEMPORARY.match(part) or any(found["made"] for found in _INTO_TEMPORARY.finditer(part)):
        return Leaves.TEMPORARY_UNTIL_COMMIT if _ON_COMMIT_DROP.search(part) else Leaves.TEMPORARY
    return None


_remembered = lru_cache(maxsize=1024)(_analyse)


def identifiers(text: str) -> frozenset[str]:
    """Return every identifier of `text` in lower case; and a double quote, if there is one: names may be anything then."""
    names = map(str.lower, _IDENTIFIER.findall(text))
    return frozenset((*names, QUOTE) if QUOTE in text else names)


def binds_outside_quotes(template: str) -> bool:
    """Return whether every placeholder of `template` certainly stands outside of strings, quoted names and comments.

    Only there is a value that the client puts in its place a value: inside of quotes it would be a part of the text, and could
    end the string. False also means that this cannot be told: a backslash, a dollar quote, a quote in a comment.
    """
    return _is_plain(template) if len(template) > _CACHED_LENGTH else _known_to_be_plain(template)


def _is_plain(template: str) -> bool:
    return _PLAIN.fullmatch(template) is not None


_known_to_be_plain = lru_cache(maxsize=1024)(_is_plain)


def _without_opaque_parts(text: str) -> str:
    """Return `text` with strings, quoted names, dollar-quoted bodies and comments replaced by a blank."""
    parts: list[str] = []
    at = 0
    while match := _OPAQUE.search(text, at):
        parts += (text[at : match.start()], " ")
        if match[0] == "/*":
            at = end_of_comment(text, match.end())
        elif match["dollar"]:
            end = text.find(match["dollar"], match.end())
            at = len(text) if end < 0 else end + len(match["dollar"])
        else:
            if match["name"]:
                parts.append(match["name"])
            at = match.end()
    parts.append(text[at:])
    return "".join(parts)


def end_of_comment(text: str, at: int) -> int:
    """Return where the block comment ends whose body starts at `at`. PostgreSQL's comments nest."""
    depth = 1
    while depth:
        edge = _COMMENT_EDGE.search(text, at)
        if edge is None:
            return len(text)
        depth += 1 if edge[0] == "/*" else -1
        at = edge.end()
    return at
