"""Session guarantees by WAL position: tokens, and the guard that a read carries. Pure: the time is passed in.

A token says "this caller has seen the database up to here". A read on a replica runs only where the replica has replayed that
far; its own position comes back behind it and is merged into the token, so that reads never go backwards. Positions compare
across a promotion: a server on the new timeline that has replayed past a position holds all of the old history up to it that
survived. What must not be compared are positions of different branches, so a token carries the branch, and an end; one of an
application with several databases has a position of each.

>>> seen = Token(identity="br1", position=parse_lsn("0/3000060"), at=1000.0)
>>> str(seen)
'1.br1.0-3000060.1000'
>>> Token.parse(str(seen), identity="br1", now=1010.0) == seen
True
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Self, cast

from ps_core._documentation import Documented

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["InvalidToken", "Token", "format_lsn", "guard_sql", "joined", "merge", "parse_lsn", "parts_of"]

MAX_AGE: Final = 300.0
"""Seconds after which a token no longer counts: far beyond any replay delay that one would still read from, and an end to what a
restore or a new branch could otherwise pin to the primary for ever."""
CLOCK_SKEW: Final = 60.0
"""Seconds by which the clock of another machine may be ahead of this one."""

_LSN: Final = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})")
_PAGE: Final = 8192
"""Bytes of a WAL page (XLOG_BLCKSZ)."""
_HEADERS: Final = (24, 40)
"""Bytes of its header (SizeOfXLogShortPHD, SizeOfXLogLongPHD)."""
MAX_BRANCHES: Final = 8
"""At most this many branches (databases) in one token, those that were seen last, so that it fits into a cookie."""

_MAX_IDENTITY: Final = 16
_TOKEN: Final = re.compile(r"1\.([A-Za-z0-9_-]{1,16})\.([0-9A-Fa-f]{1,8}-[0-9A-Fa-f]{1,8})\.([0-9]{1,12})")
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_-]")


class InvalidToken(Documented, ValueError):
    """A token that does not count here. It is ignored and logged by whoever was handed it."""


def parse_lsn(text: str, *, reached: bool = False) -> int:
    """Return PostgreSQL's pg_lsn as a number.

    `reached`: as a replica reports it that has all before it. The server reports where the next record will begin, which at the
    start of a page is behind its header (24 bytes, 40 in a segment's first page). A replica gets there only with that record;
    until then it is at the page's start.

    Raises:
        ValueError: `text` is no pg_lsn.
    """
    match = _LSN.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a WAL position")
    position = int(match[1], 16) << 32 | int(match[2], 16)
    return position - position % _PAGE if reached and position % _PAGE in _HEADERS else position


def format_lsn(position: int) -> str:
    """Return a number as PostgreSQL's pg_lsn."""
    return f"{position >> 32:X}/{position & 0xFFFFFFFF:X}"


def identity_of(text: str) -> str:
    """Return a branch's (or host's) name as tokens hold it: a short one as it is, such as PlanetScale's ids, a longer one hashed.

    16 characters at most, so that a token fits into a small cookie, which names no host.
    """
    if len(text) > _MAX_IDENTITY:
        from base64 import urlsafe_b64encode  # here: the ids of branches are short
        from hashlib import sha256

        return urlsafe_b64encode(sha256(text.encode()).digest()[:12]).decode()
    return _UNSAFE.sub("_", text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """How far a caller has seen. `str()` gives the form for cookies, headers and task arguments; it is not signed."""

    identity: str
    """The branch."""
    position: int | None
    """The WAL position; None: it could not be learned, so that only the primary will do."""
    at: float
    """When it was taken, in seconds since the epoch."""
    others: tuple[Token, ...] = ()
    """How far the caller has seen other branches."""

    def __str__(self) -> str:
        position = "0-0" if self.position is None else format_lsn(self.position).replace("/", "-")
        return "~".join((f"1.{self.identity}.{position}.{int(self.at)}", *map(str, self.others)))

    def of(self, identity: str) -> Token | None:
        """Return how far the caller has seen the branch `identity`."""
        if self.identity == identity:
            return self
        return next((token for token in self.others if token.identity == identity), None)

    def expired(self, now: float) -> bool:
        """Return whether it is too old to count."""
        return now - self.at > MAX_AGE

    def unexpired(self, now: float) -> Token | None:
        """Return what of it still counts."""
        if not self.others:
            return None if now - self.at > MAX_AGE else self
        return joined(token for token in parts_of(self) if not token.expired(now))

    def without_pin(self, identity: str) -> Token | None:
        """Return the same without a branch of which the position could not be learned."""
        token = self.of(identity)
        if token is None or token.position is not None:
            return self
        return joined(other for other in parts_of(self) if other.identity != identity)

    def taken_by(self, now: float) -> Token:
        """Return the same as of `now` at the latest: what a process has seen stays seen when its clock is set back."""
        taken = joined(replace(token, at=min(token.at, now)) for token in parts_of(self))
        return self if taken is None else taken

    @classmethod
    def parse(cls, text: str, *, identity: str | None, now: float, skew: float = CLOCK_SKEW) -> Self:
        """Return the token that `text` holds. `identity` is the branch that it has to be of; None leaves that to its use.

        `skew`: seconds by which its maker's clock may be ahead.

        Raises:
            InvalidToken: nothing in it counts: it is malformed, of another branch, expired, or from the future.
        """
        found, error = [], InvalidToken("malformed")
        for part in text.split("~", MAX_BRANCHES):
            try:
                found.append(cls._parse_one(part, identity, now, skew))
            except InvalidToken as exc:
                error = exc
        if not found:
            raise error
        return cast("Self", joined(found))

    @classmethod
    def _parse_one(cls, text: str, identity: str | None, now: float, skew: float) -> Self:
        match = _TOKEN.fullmatch(text)
        if match is None:
            raise InvalidToken("malformed")
        if identity is not None and match[1] != identity_of(identity):
            raise InvalidToken("of another branch")
        position = parse_lsn(match[2].replace("-", "/")) or None
        token = cls(identity=match[1], position=position, at=float(match[3]))
        if token.expired(now):
            raise InvalidToken("expired")
        if token.at > now + skew:
            raise InvalidToken("from the future")
        return token


def merge(first: Token | None, second: Token | None) -> Token | None:
    """Return the token that demands as much as both, of each branch."""
    if first is None or second is None:
        return second if first is None else first
    if first.identity == second.identity and not (first.others or second.others):
        return _merge_one(first, second)
    tokens: dict[str, Token] = {}
    for token in (*parts_of(first), *parts_of(second)):
        tokens[token.identity] = _merge_one(known, token) if (known := tokens.get(token.identity)) else token
    return joined(tokens.values())


def parts_of(token: Token) -> tuple[Token, ...]:
    """Return the token of each branch alone."""
    return (replace(token, others=()), *token.others)


def joined(tokens: Iterable[Token]) -> Token | None:
    """Return one token of tokens of different branches: of those that were seen last, where there are more than it can hold."""
    latest = sorted(tokens, key=lambda token: (-token.at, token.identity))[:MAX_BRANCHES]
    return replace(latest[0], others=tuple(latest[1:])) if latest else None


def _merge_one(first: Token, second: Token) -> Token:
    if first.position is None or second.position is None:
        # A pin lasts from when the position was not to be had; what is seen later does not prolong it.
        at = max(token.at for token in (first, second) if token.position is None)
        return Token(identity=first.identity, position=None, at=at)
    return Token(identity=first.identity, position=max(first.position, second.position), at=max(first.at, second.at))


BEYOND_ALL: Final = 2**64 - 1
"""A position that no replica ever reaches: with it, the guard lets only a primary pass."""


@lru_cache(maxsize=256)  # many reads are made between two writes
def guard_sql(position: int) -> bytes:
    """Return a SELECT that does nothing, and fails with 22023 "replica_behind" on a replica that has not replayed `position`.

    A statement of its own before the read: within the read, nothing would say that it is evaluated first. A server that is no
    replica has all there is; it is asked last whether it is one, since mostly there is no need to.
    """
    return (
        b"SELECT pg_catalog.set_config('statement_timeout',CASE WHEN"
        b" pg_catalog.pg_last_wal_replay_lsn() OPERATOR(pg_catalog.<) %s AND pg_catalog.pg_is_in_recovery()"
        b" THEN 'replica_behind' ELSE %s END,true)"
    ) % (quoted_lsn(position), _AS_IT_IS)


def quoted_lsn(position: int) -> bytes:
    """Return a position as the guard names it: nothing else in a guard looks like that."""
    return b"'%X/%X'" % (position >> 32, position & 0xFFFFFFFF)


_AS_IT_IS: Final = b"pg_catalog.current_setting('statement_timeout')"


def guard_setting(guard: bytes, timeout: bytes) -> bytes:
    """Return the guard that sets the statement timeout, a literal such as `'2000'`, where it else leaves what is set.

    That saves a command before it, and the server 3 µs of CPU.
    """
    return guard.replace(_AS_IT_IS, timeout)


POSITION_SQL: Final = (
    b"SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn()"
    b" WHEN pg_catalog.current_setting('synchronous_commit') OPERATOR(pg_catalog.=) 'off'"
    b" THEN pg_catalog.pg_current_wal_insert_lsn() ELSE pg_catalog.pg_current_wal_flush_lsn() END"
    b",pg_catalog.pg_is_in_recovery()"
)
"""Where the server is, asked behind a statement: before it, the position would be older than the statement's snapshot. And
whether it is a standby."""
COMMITTED_POSITION_SQL: Final = b"SELECT pg_catalog.pg_current_wal_flush_lsn(),pg_catalog.pg_current_wal_insert_lsn()"
"""The same behind a COMMIT whose `synchronous_commit` was asked before it: how far WAL is flushed, and how far it is inserted.

A standby refuses it, with `IN_RECOVERY`. Nothing but this question is lost by that, and asking first would cost the server twice
as much (15 µs of its CPU, not 6)."""
WRITTEN_POSITION_SQL: Final = COMMITTED_POSITION_SQL + b",pg_catalog.current_setting('synchronous_commit')"
"""The same behind a COMMIT that cannot have been told how to commit: it did as the session does now."""
IN_RECOVERY: Final = "55000"
"""The SQLSTATE (object_not_in_prerequisite_state) by which a standby refuses to tell where a primary's WAL ends."""
REPLICA_POSITION_SQL: Final = (
    b"SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn()"
    b" ELSE pg_catalog.pg_current_wal_insert_lsn() END"
)
"""The same of an endpoint for reads, at less cost: every read carries it. Where a primary answers in their place, what is
seen may not be flushed yet."""


def place_sql(server_version: int) -> bytes:
    """Return what asks whether the server is a standby: "on" or "t" where it is one.

    `server_version`: as in 180004. PostgreSQL 14 brought the setting, which costs the server a quarter of a query (2 µs of CPU).
    """
    return b"SHOW in_hot_standby" if server_version >= _SHOWS_PLACE else b"SELECT pg_catalog.pg_is_in_recovery()"


_SHOWS_PLACE: Final = 140000
