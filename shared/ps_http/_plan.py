"""What travels with the statements of one request: the settings and the guard before them, the position behind them. Pure.

All of it is in one batch, which is a transaction of the server's: one POST. Only what must stand alone travels alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from ps_core._message.change import read_change
from ps_core._message.statement import Leaves, analyse
from ps_core.consistency import REPLICA_POSITION_SQL, guard_sql
from ps_http._request import Modes
from ps_http._values import Query

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ps_core._message.statement import Statement
    from ps_core.topology import Endpoint

__all__ = ["Refused", "Sent", "Work", "compose", "make_work"]

_SERVER_VERSION: Final = 170000
"""The version whose settings are sent: a server that does not know one is not asked to set it."""
# A limit that the role has by itself, and is lower, stays. A timer that already runs is re-armed only by way of zero.
_LIMIT: Final = (
    "CASE WHEN pg_catalog.current_setting({0},true) IS NULL THEN NULL"
    " WHEN pg_catalog.current_setting({0},true)::pg_catalog.interval OPERATOR(pg_catalog.>) '0'::pg_catalog.interval"
    " AND pg_catalog.current_setting({0},true)::pg_catalog.interval OPERATOR(pg_catalog.<)"
    " {1}::pg_catalog.text::pg_catalog.interval"
    " THEN NULL ELSE pg_catalog.set_config({0}"
    ",CASE WHEN pg_catalog.set_config({0},'0',true) IS NULL THEN NULL ELSE {1}::pg_catalog.text END,true) END"
)
_SET: Final = "pg_catalog.set_config({0},{1},true)"
_MOST_PARAMS: Final = 65_535
"""The protocol counts them in 16 bits."""
_SESSION_VERBS: Final = frozenset(
    {"SET", "RESET", "LISTEN", "UNLISTEN", "PREPARE", "DEALLOCATE", "DISCARD", "LOAD", "FETCH", "MOVE", "CLOSE", "DECLARE"}
)
_WEBSOCKET: Final = 'connect with ps_core.connect(..., transport="websocket"), which is PostgreSQL itself over the same port'


class Refused(Exception):
    """A statement that cannot do over HTTPS what it is written for. It was not sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The statements of one request, and what is known of them."""

    queries: tuple[Query, ...]
    modes: Modes = field(default_factory=Modes)
    """Those of the caller."""
    alone: bool = False
    """The one statement travels without a transaction around it."""
    reads: bool = False
    """It looks like a plain read: it is sent READ ONLY, and a refusal (25006) is ours to handle."""
    is_batch: bool = False
    """The caller has put it together."""
    memory: str = ""
    """The template by which a refusal is remembered; empty: none is."""

    @property
    def read_only(self) -> bool:
        """Whether nothing can be changed: it may be sent again, whatever became of it."""
        return self.reads or self.modes.read_only

    def as_write(self) -> Work:
        """Return the same, which turned out to write."""
        return replace(self, reads=False)

    def with_modes(self, modes: Modes) -> Work:
        """Return the same in a transaction of these modes. By itself it has none.

        Raises:
            Refused: by itself it could not be kept from writing.
        """
        if not self.alone:
            return replace(self, modes=modes)
        if modes.read_only:
            raise Refused("read_only: the statement cannot run in a transaction, and without one nothing makes it READ ONLY")
        return self

    def by_itself(self) -> Work:
        """Return the same without a transaction around it."""
        return replace(self, reads=False, alone=True)


@dataclass(frozen=True, slots=True)
class Sent:
    """How work travels to one endpoint."""

    queries: tuple[Query, ...]
    modes: Modes | None
    """None: the one statement by itself."""
    before: int
    """How many results come before those of the work."""
    has_position: bool


def make_work(
    queries: Sequence[Query],
    *,
    is_batch: bool = False,
    modes: Modes | None = None,
    known_to_write: bool = False,
    memory: str = "",
) -> Work:
    """Return statements as work.

    Raises:
        Refused: one of them needs a session, or a transaction that stays open, or is several, or has too many parameters.
    """
    statements = [analyse(query.text) for query in queries]
    for query, statement in zip(queries, statements, strict=True):
        _check(query.text, statement, is_batch=is_batch)
        if len(query.params) > _MOST_PARAMS:
            raise Refused(
                f"{len(query.params):,} parameters: PostgreSQL takes {_MOST_PARAMS:,} with a statement: write an array for many"
                " values (= ANY(%s), unnest(%s)), or several statements in `client.batch()`"
            )
    reads = bool(statements) and all(one.reads and not one.primary_only for one in statements) and not known_to_write
    alone = not is_batch and len(statements) == 1 and statements[0].must_stand_alone
    return Work(
        queries=tuple(queries),
        modes=modes or Modes(),
        alone=alone,
        reads=reads and not alone,
        is_batch=is_batch,
        memory=memory,
    )


def _check(text: str, statement: Statement, *, is_batch: bool) -> None:
    if statement.controls:
        where = "a batch is one transaction, which begins and ends with it" if is_batch else "each request is a transaction"
        raise Refused(
            f"{statement.verb}: {where}: the server would go on in autocommit behind it. Put the statements of a transaction into"
            f" `with client.batch() as batch:`; where a later one depends on what an earlier one returned, {_WEBSOCKET}"
        )
    # Bodies of functions (BEGIN ATOMIC) and rules have semicolons of their own. More than that the server refuses.
    has_body = statement.verb == "CREATE" and not {"atomic", "rule"}.isdisjoint(statement.names)
    if statement.count > 1 and not has_body:
        raise Refused("several statements in one text: execute each by itself, in `client.batch()` where they belong together")
    if statement.verb == "COPY":
        raise Refused(f"COPY: no data can be streamed over HTTPS: write INSERT or SELECT, or {_WEBSOCKET}")
    local = statement.verb in ("SET", "DECLARE", "FETCH", "MOVE", "CLOSE") and is_batch
    leaves = statement.leaves if statement.leaves is not Leaves.TEMPORARY_UNTIL_COMMIT or not is_batch else None
    if (
        leaves is not None
        or (statement.verb in _SESSION_VERBS and not local)
        or (statement.touches_session and read_change(text) is not None)
    ):
        raise Refused(
            f"{statement.verb}: there is no session that would keep it: each request may meet another connection of the"
            " server's. For settings, write ps_core.limits() or ps_core.local_settings(), or SET LOCAL in `client.batch()`; else"
            f" {_WEBSOCKET}"
        )


def compose(
    work: Work,
    endpoint: Endpoint,
    *,
    limits: Mapping[str, float | None] | None = None,
    remaining: float | None = None,
    local_settings: Sequence[tuple[str, str]] = (),
    guard: int | None = None,
    wants_position: bool = False,
) -> Sent:
    """Return how work travels to `endpoint`.

    `guard`: the position that a replica has to have replayed. `limits`, `remaining` and `local_settings` are the caller's.

    Raises:
        Refused: it must stand alone, and the caller's settings decide what it may do.
    """
    identity = [("role", endpoint.assumed_role)] if endpoint.assumed_role is not None else []
    settings = [(_SET, pair) for pair in (*identity, *local_settings)]
    if work.alone:
        if settings:
            raise Refused(
                "the statement cannot run in a transaction, and without one nothing can carry local_settings() or the assumed"
                f" role: run it outside of the block, or {_WEBSOCKET}"
            )
        return Sent(work.queries, None, 0, has_position=False)
    timeouts = endpoint.timeouts.limited(dict(limits or {}), remaining)
    wanted = timeouts.settings(server_version=_SERVER_VERSION)
    wanted.pop("idle_in_transaction_session_timeout", None)  # no client is between the statements
    read_only = work.read_only or endpoint.read_only
    # What the headers ask for is said once more, so that a server which does not heed them is found out: it fails then.
    modes = [("transaction_read_only", "on")] if read_only else []
    if work.modes.isolation is not None:
        modes.append(("transaction_isolation", work.modes.isolation))
    limited = ((_LIMIT, (name, f"{ms}ms")) for name, ms in wanted.items())
    before = _opening([*((_SET, pair) for pair in modes), *limited, *settings], guard)
    has_position = wants_position and work.read_only
    behind = (Query(REPLICA_POSITION_SQL.decode()),) if has_position else ()
    return Sent((*before, *work.queries, *behind), replace(work.modes, read_only=read_only), len(before), has_position)


def _opening(settings: Sequence[tuple[str, tuple[str, str]]], guard: int | None) -> tuple[Query, ...]:
    """Return one SELECT that sets, in this order, and then asks whether the server has replayed far enough."""
    columns, params = [], []
    for expression, (name, value) in settings:
        params += [name, value]
        columns.append(expression.format(f"${len(params) - 1}", f"${len(params)}"))
    if guard is not None:
        columns.append(guard_sql(guard).decode().removeprefix("SELECT "))
    return (Query("SELECT " + ",".join(columns), tuple(params)),) if columns else ()
