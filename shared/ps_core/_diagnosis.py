"""What `ps-postgres doctor` and Django's system checks ask a server, and how its answer is judged. Each has its own words for it.

Pure: a client sends `QUESTION`, in one round trip, and gives the row to `Answer.of`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from ps_core.topology import Endpoint

__all__ = ["PROCESS", "QUESTION", "Answer", "Fault", "faults", "share_a_server"]

PROCESS: Final = "SELECT pg_catalog.pg_backend_pid()"
"""Asks for the server's process that answers. Behind a pooler, a client's own connection has another number."""

QUESTION: Final = (
    "SELECT pg_catalog.pg_backend_pid(),"
    " CAST(pg_catalog.current_setting('server_version_num') AS int),"
    " current_user,"
    " pg_catalog.pg_is_in_recovery(),"
    # Not transaction_read_only, which a client of ours sets for a read.
    " pg_catalog.current_setting('default_transaction_read_only') OPERATOR(pg_catalog.=) 'on',"
    " pg_catalog.current_schema(),"
    " COALESCE(pg_catalog.has_schema_privilege(pg_catalog.current_schema(), 'CREATE'), false),"
    " CAST(pg_catalog.current_setting('max_connections') AS int)"
    " OPERATOR(pg_catalog.-) CAST(pg_catalog.current_setting('superuser_reserved_connections') AS int)"
    " OPERATOR(pg_catalog.-) COALESCE(CAST(pg_catalog.current_setting('reserved_connections', true) AS int), 0),"
    # What came as a startup option ("client") is ours, not the role's.
    " (SELECT pg_catalog.string_agg(name OPERATOR(pg_catalog.||) '=' OPERATOR(pg_catalog.||)"
    " CASE WHEN source OPERATOR(pg_catalog.=) 'client' THEN '0' ELSE reset_val END, ' ')"
    " FROM pg_catalog.pg_settings WHERE name OPERATOR(pg_catalog.=)"
    " ANY (ARRAY['statement_timeout', 'transaction_timeout', 'idle_in_transaction_session_timeout']))"
)
"""Asks for all that `Answer` has."""

Fault = Literal["old", "no pooler", "pooler", "only pooled", "by session", "primary", "replica", "read-only"]
"""What is wrong with a path: an old server (without `transaction_timeout`), no pooler or one that should not be there, no path
without one, a pooler that pools by session, the wrong kind of server, or a primary that refuses writes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a server says of itself, and of the role that asks."""

    version: int
    """The number that the server reports, such as 180004."""
    role: str
    in_recovery: bool
    read_only: bool
    """What a transaction is by default here."""
    behind_pooler: bool
    timeouts: Mapping[str, int]
    """The role's own, in milliseconds; 0 is off. What the server does not know is not in it."""
    schema: str | None
    may_create: bool
    """In `schema`."""
    max_connections: int
    """Those that are left to ordinary roles."""

    @classmethod
    def of(cls, row: Sequence[Any], *, pid: int, **more: Any) -> Self:
        """Return what the row says to a client whose connection has `pid` for the server's; `more` is a subclass's."""
        process, version, role, in_recovery, read_only, schema, may_create, max_connections, timeouts = row
        return cls(
            version=version,
            role=role,
            in_recovery=in_recovery,
            read_only=in_recovery or read_only,
            behind_pooler=process != pid,
            timeouts={name: int(value) for name, _, value in (pair.partition("=") for pair in timeouts.split())},
            schema=schema,
            may_create=may_create,
            max_connections=max_connections,
            **more,
        )


def share_a_server(first: Callable[[], int], second: Callable[[], int]) -> bool:
    """Return whether two clients were seen on one server connection, one after the other.

    Each call asks `PROCESS` as one of them, five times at most, since another client may come in between.
    """
    return any(first() == second() for _ in range(5))


def faults(endpoint: Endpoint, answer: Answer, *, shared: bool | None = None) -> Iterator[Fault]:
    """Yield what is wrong with a path. `shared` is what `share_a_server` returned; None: unknown."""
    if answer.version < 170000:
        yield "old"
    if endpoint.pooled and not answer.behind_pooler:
        yield "no pooler"
    elif endpoint.pooled and endpoint.role == "direct":
        yield "only pooled"
    elif answer.behind_pooler and not endpoint.pooled:
        yield "pooler"
    if shared is False:
        yield "by session"
    if endpoint.read_only and not answer.in_recovery:
        yield "primary"
    elif answer.in_recovery and not endpoint.read_only:
        yield "replica"
    elif answer.read_only and not answer.in_recovery:
        yield "read-only"
