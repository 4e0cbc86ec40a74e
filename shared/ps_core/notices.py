"""Notices of servers and poolers that somebody should see: which ones, and what of their text is told.

A notice is no error: the statement succeeds, and drivers and frameworks drop it. The others are left alone, as they may be an
application's own, with anything in them.

>>> kind_of("[PGINSIGHTS] Traffic Control: budget 3 is nearly used up")
('traffic_control', '[PGINSIGHTS] Traffic Control: budget 3 is nearly used up')
>>> kind_of("relation exists, skipping")
"""

from __future__ import annotations

import re
from typing import Final

from ps_core.failures import TRAFFIC_CONTROL

__all__ = ["kind_of"]

_LONGEST: Final = 300
_KINDS: Final = tuple(
    (kind, re.compile(pattern))
    for kind, pattern in (
        # PlanetScale, Traffic Control in the mode "warn": the budget and its limit follow.
        ("traffic_control", re.escape(TRAFFIC_CONTROL) + ".*"),
        # PlanetScale's Neki: what the client has to run before it sees what its DDL made.
        ("ddl_barrier", r"__neki\.wait_for_ddl\([^()]*\)"),
        # PgBouncer 1.25, after query_wait_notify (5 s by default).
        ("waits_for_connection", r"No server connection available in postgres backend, client being queued"),
        # PostgreSQL 19 with a role's password, PostgreSQL 18 with MD5.
        ("password_expires", r"password .*\bexpires?\b"),
        ("password_md5", r"MD5-encrypted password"),
    )
)


def kind_of(message: str) -> tuple[str, str] | None:
    """Return a notice's kind and what is told of it, on one line of 300 characters at most; None: it is not told."""
    text = " ".join(message.split())
    for kind, pattern in _KINDS:
        if found := pattern.search(text):
            return kind, found[0][:_LONGEST]
    return None
