"""What holds for the work of one task, request or block: one frozen record in one ContextVar.

Blocks nest and restore what was there, also on exceptions. Threads and asyncio tasks have their own; one that is started with a
copied context (`asyncio.create_task`, `asyncio.to_thread`) inherits it.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import wraps
from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar, cast

from ps_core._message.change import ROLE, SEARCH_PATH
from ps_core._message.session import split_list
from ps_core._plain_errors import ConfigurationError
from ps_core.consistency import CLOCK_SKEW, MAX_AGE, InvalidToken, Token, merge, parts_of
from ps_core.events import deadline_exceeded
from ps_core.routing import Route
from ps_core.timeouts import Duration, parse_bound, parse_duration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from contextvars import Token as ContextToken

    from ps_core._propagation import Answer, Propagator

__all__ = [
    "Context",
    "Limits",
    "Tracker",
    "commit_check",
    "current",
    "current_token",
    "current_tracker",
    "deadline",
    "ensure_tracker",
    "forget_token",
    "from_request",
    "has_to_ask_primary",
    "leave_blocks_in_pool_worker",
    "limits",
    "local_settings",
    "reading",
    "record_seen",
    "remaining",
    "unknown_positions",
    "use_token",
    "using_primary",
    "using_replica",
    "without_sticky_writes",
]

F = TypeVar("F", bound="Callable[..., Any]")

Tag: TypeAlias = "str | Callable[[], str | None]"

_log = logging.getLogger("ps_core")

# PostgreSQL's rule for the names of settings that it does not know: at least two identifiers with a dot between them.
_IGNORED: Final = "ignored a consistency token: %s: see %s"
_SETTING: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_$]*(\.[A-Za-z_][A-Za-z0-9_$]*)+")


@dataclass(frozen=True, slots=True)
class Limits:
    """Timeouts in seconds that replace the endpoint's; None means no timeout, a name that is absent leaves the endpoint's."""

    values: tuple[tuple[str, float | None], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """The settings of the innermost blocks."""

    route: Route | None = None
    reading: bool = False
    """Reads may go to a replica also where they would not by themselves: a request that only reads."""
    sticky: bool = True
    """Whether a write sends what follows it to the primary."""
    deadline: float | None = None
    """On `time.monotonic`'s clock."""
    deadline_seconds: float | None = None
    """Those that it was given."""
    limits: Limits | None = None
    local_settings: tuple[tuple[str, str], ...] = ()
    verify: str | None = None
    marker: bool = False
    tags: tuple[tuple[str, Tag], ...] = ()
    """What the comments of statements tell: see `ps_core.tags`."""
    opening: bool = field(init=False)
    """Whether the opening of a transaction differs from what its endpoint says by itself."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "opening", self.deadline is not None or self.limits is not None or bool(self.local_settings))


class Tracker:
    """The token of one context, shared by the tasks and threads that were started in it."""

    __slots__ = ("_first", "_lock", "token", "unknown_positions", "wrote")

    def __init__(self, token: Token | None = None) -> None:
        self._lock = threading.Lock()
        self.token = self._first = token
        """What was seen so far, and what was at first."""
        self.wrote = False
        """Whether something was written."""
        self.unknown_positions = 0
        """How often something was seen whose position could not be learned."""

    @property
    def has_news(self) -> bool:
        """Whether the next request has to know: this one wrote, or its user, who has a token, saw more than that says.

        A user who never wrote anything needs no token, and their answers stay cacheable. A write is news also where its position
        is below what was seen: a primary that crashed took that with it.
        """
        if self.wrote or self.token is None or self._first is None:
            return self.wrote
        return _positions(self.token) != _positions(self._first)

    def record_seen(self, token: Token, *, wrote: bool = False, unknown_positions: int | None = None) -> Token | None:
        """Merge what was seen, and whether it was seen by writing. Return what is known now.

        `unknown_positions` says that the primary returned the position, and how many unknown ones there were when it was asked:
        it covers those.
        """
        with self._lock:
            known = self.token
            if token.position is None:
                self.unknown_positions += 1
            elif known is not None and unknown_positions == self.unknown_positions:
                known = known.without_pin(token.identity)
            if known is not None and known.at > token.at + CLOCK_SKEW:
                known = known.taken_by(token.at)  # this machine's clock was set back
            self.token = merge(known, token)
            self.wrote = self.wrote or wrote
            return self.token


def _positions(token: Token) -> dict[str, int | None]:
    return {one.identity: one.position for one in parts_of(token)}


_tracker: Final[ContextVar[Tracker | None]] = ContextVar("ps_core_tracker", default=None)

# As `current` below: each statement asks.
current_tracker: Final = _tracker.get
"""Return what notes how far the work of this context has seen the database; None: nothing does yet."""


def current_token() -> Token | None:
    """Return how far the work of this context has seen the database; None: nothing yet, or what it saw has expired."""
    tracker = _tracker.get()
    token = None if tracker is None else tracker.token
    if token is None or not (token.others or time.time() - token.at > MAX_AGE):
        return token
    return token.unexpired(time.time())


def has_to_ask_primary(identity: str) -> bool:
    """Return whether this context has seen of a branch what only its primary certainly has: the position is not known."""
    tracker = _tracker.get()
    known = None if tracker is None else tracker.token
    if known is None or (known.position is not None and not known.others):
        return False
    token = None if (seen := current_token()) is None else seen.of(identity)
    return token is not None and token.position is None


def unknown_positions() -> int:
    """Return how often this context has seen something whose position could not be learned."""
    tracker = _tracker.get()
    return 0 if tracker is None else tracker.unknown_positions


def record_seen(token: Token, *, wrote: bool = False, unknown_positions: int | None = None) -> Token | None:
    """Merge a position that was seen into this context's token, and return that; `wrote`: by a transaction that wrote."""
    tracker = _tracker.get()
    if tracker is None:
        tracker = Tracker()
        _tracker.set(tracker)
    return tracker.record_seen(token, wrote=wrote, unknown_positions=unknown_positions)


def ensure_tracker() -> None:
    """Make sure that this context has a tracker, so that what a child task records is visible here."""
    if _tracker.get() is None:
        _tracker.set(Tracker())


def forget_token() -> None:
    """Go on as if nothing had been seen, until the end of the innermost `use_token`."""
    _tracker.set(Tracker())


@contextmanager
def use_token(token: Token | str | None, *, identity: str | None = None) -> Iterator[Tracker]:
    """Begin the block with `token` (of an earlier request, of the task's sender) and nothing else: what leaked in does not count.

    A string is parsed; one that does not count here (malformed, expired, of another branch) is ignored with a logged warning.
    What the block sees stays in the block; the tracker that is yielded tells it.
    """
    if isinstance(token, str):
        try:
            token = Token.parse(token, identity=identity, now=time.time())
        except InvalidToken as exc:
            _log.warning(_IGNORED, exc, exc.url)
            token = None
    tracker = Tracker(token)
    reset = _tracker.set(tracker)
    try:
        yield tracker
    finally:
        _tracker.reset(reset)


@contextmanager
def from_request(
    propagator: Propagator, cookies: Iterable[tuple[str, str]], header: str | None
) -> Iterator[Callable[[], Answer | None]]:
    """Begin the block with what a request carries. It yields what to call when the answer begins.

    That returns what the answer is to tell, or None where there is nothing new, so that the answer stays cacheable.
    """
    carried = propagator.extract(cookies, header, now=time.time())
    for reason in carried.ignored:
        _log.warning(_IGNORED, reason, InvalidToken.url)
    with use_token(carried.token) as tracker:

        def inject() -> Answer | None:
            if tracker.token is None or not tracker.has_news:
                return None
            import secrets  # here: what carries no tokens starts faster without it

            return propagator.inject(tracker.token, carried, wrote=tracker.wrote, unique=secrets.token_hex(4))

        yield inject


_current: Final[ContextVar[Context]] = ContextVar("ps_core", default=Context())  # noqa: B039 - frozen


# The variable's own method: each statement asks several times.
current: Final = _current.get
"""Return what holds here."""


def leave_blocks_in_pool_worker() -> None:
    """Where a worker of psycopg_pool runs this, let what it does from now on be in no block, and have seen nothing.

    A pool's workers are tasks (and in some Pythons threads) that copy the context in which the pool was opened: that block's
    deadline and local settings are the opener's, and end with it. What a worker does is for whoever is next.
    """
    frame = sys._getframe(1)
    while (above := frame.f_back) is not None:
        if above.f_code.co_name == "worker" and str(above.f_globals.get("__name__")).startswith("psycopg_pool."):
            _current.set(Context())
            _tracker.set(None)
            return
        frame = above


class Block(AbstractContextManager[None]):
    """A `with` block that changes fields of the context, and a decorator of functions, async ones too."""

    def __init__(self, changes: Callable[[Context], dict[str, Any]]) -> None:
        self._changes = changes
        self._resets: list[ContextToken[Context]] = []

    def __enter__(self) -> None:
        outer = _current.get()
        self._resets.append(_current.set(replace(outer, **self._changes(outer))))

    def __exit__(self, *_: object) -> None:
        _current.reset(self._resets.pop())

    def __call__(self, func: F) -> F:
        if isgeneratorfunction(func) or isasyncgenfunction(func):
            raise TypeError(
                f"{func!r} is a generator function, whose body would run when the block is over: write the block as `with` in it"
            )
        # A call may be under way in several threads and tasks at once: each has a block of its own.
        if iscoroutinefunction(func):

            @wraps(func)
            async def within(*args: Any, **kwargs: Any) -> Any:
                with Block(self._changes):
                    return await func(*args, **kwargs)

        else:

            @wraps(func)
            def within(*args: Any, **kwargs: Any) -> Any:
                with Block(self._changes):
                    return func(*args, **kwargs)

        return cast("F", within)


def block(**changes: Any) -> Block:
    """Return a block that changes fields of the context."""
    return Block(lambda _: changes)


def using_primary() -> Block:
    """Return a block in which everything goes to the primary."""
    return block(route=Route.PRIMARY)


def using_replica() -> Block:
    """Return a block whose reads go to a replica, also where they would not otherwise (a declared transaction)."""
    return block(route=Route.REPLICA)


def reading() -> Block:
    """Return a block whose reads may go to a replica, like those of a request that only reads.

    Unlike `using_replica()` it leaves the last word to the operators' share (`ps_core.set_replica_share`).
    """
    return block(reading=True)


def without_sticky_writes() -> Block:
    """Return a block whose writes do not send the reads that follow to the primary, as for the row of an audit log.

    What is open on the primary stays there: a transaction has one endpoint. The token is not touched either: reads still see what
    was written.
    """
    return block(sticky=False)


def deadline(seconds: Duration) -> Block:
    """Bound everything in the block: connecting, waiting, trying again, and each statement.

    Work that begins after the time is over raises `DeadlineExceeded` before anything is sent; a statement that is under way is
    cancelled by the server (its timeout is what is left). An inner deadline can only be earlier than the outer one. COMMIT is
    never cancelled.

    Raises:
        ConfigurationError: `seconds` is not a duration ("1.5s", 1.5).
    """
    duration = parse_bound(seconds, name="deadline", otherwise="; where there is none, leave the block out")

    def changes(outer: Context) -> dict[str, Any]:
        until = time.monotonic() + duration
        if outer.deadline is not None and outer.deadline <= until:
            return {}
        return {"deadline": until, "deadline_seconds": duration}

    return Block(changes)


def remaining() -> float | None:
    """Return the seconds until the deadline, None where there is none.

    Raises:
        DeadlineExceeded: they are over.
    """
    until = _current.get().deadline
    if until is None:
        return None
    left = until - time.monotonic()
    if left <= 0:
        raise deadline_exceeded(f"the deadline passed {-left:.3f} s ago", seconds=_current.get().deadline_seconds)
    return left


class _NotGiven:
    """What an argument has that is not given, where None means something."""

    def __repr__(self) -> str:
        return "<not given>"


_NOT_GIVEN: Final[Any] = _NotGiven()


def limits(
    *,
    statement: Duration | None = _NOT_GIVEN,
    transaction: Duration | None = _NOT_GIVEN,
    idle_in_transaction: Duration | None = _NOT_GIVEN,
    lock: Duration | None = _NOT_GIVEN,
) -> Block:
    """Replace timeouts of the endpoint in the block, as for reports, jobs and commands.

    `with limits(statement="60s"): ...`

    "off" (or None) sets none; a name that is not given stays as it is. Where a statement timeout is given that is not below the
    transaction timeout, the latter is off unless it is given, too (PostgreSQL would disable the statement timeout). A lower limit
    that the role has by itself stays in force. A deadline bounds these as well.

    Raises:
        ConfigurationError: a value is not a duration above zero, or `statement` is not below `transaction`.
    """
    given = {"statement": statement, "transaction": transaction, "idle_in_transaction": idle_in_transaction, "lock": lock}
    values = {name: parse_duration(value, name=f"limits: {name}") for name, value in given.items() if value is not _NOT_GIVEN}
    bound, whole = values.get("statement"), values.get("transaction")
    if bound is not None and whole is not None and bound >= whole:
        raise ConfigurationError(
            f"limits: statement ({bound:g}s) must be below transaction ({whole:g}s), or PostgreSQL disables it: "
            "write a longer transaction limit or a shorter statement limit"
        )

    def changes(outer: Context) -> dict[str, Any]:
        return {"limits": Limits(tuple({**dict(outer.limits.values if outer.limits else ()), **values}.items()))}

    return Block(changes)


def commit_check(*, verify: str | None = None, marker: bool = False) -> Block:
    """Return a block in which the outcome of a COMMIT whose answer is lost can always be told, also across a promotion.

    `marker` writes a row into the table `ps_commit_marker` (`ps_core.marker_table_sql()`) with each COMMIT, in the same message;
    its presence is exact. `verify` is a query whose first column is true where the transaction took effect. It is asked where the
    transaction's id does not settle it, in a transaction with the local settings, limits and role that the lost one had. A false
    answer counts as a rollback only where the id says that the transaction is over, which may otherwise still commit:
    `CommitOutcomeUnknown`, else.

    Raises:
        ConfigurationError: `verify` is no text: it would be noticed when a COMMIT's answer is lost.
    """
    if not isinstance(verify, str | None):
        raise ConfigurationError(f"verify: write a query as a string, not {verify!r}")
    return block(verify=verify, marker=marker)


def local_settings(settings: Mapping[str, str | Sequence[str]]) -> Block:
    """Set the application's own settings, the search_path or the role in every transaction of the block.

    `with local_settings({"app.tenant": "42", "search_path": ["tenant_42", "public"], "role": "tenant_42"}): ...`

    They travel with the opening of the transaction, at no round trip, on primary and replicas alike, and are gone with it: what
    row-level security needs behind a pooler. They hold in the place of what was SET for the session.

    Args:
        settings: Values by name: those of the application's own (`prefix.name`), `role`, and `search_path`, which is a list of
            schemas or a text as SET takes it (`'"Tenant", public'`).

    Raises:
        ConfigurationError: no mapping; another name; a `search_path` that is no list; a value that is no string, or holds a NUL.
    """
    if not isinstance(settings, Mapping):
        raise ConfigurationError(f"local_settings: write a mapping, as in {{'app.tenant': '42'}}, not {settings!r}")
    given: dict[str, str] = {}
    for name, value in settings.items():
        if not isinstance(name, str):
            raise ConfigurationError(f"local_settings: write a name as a string, not {name!r}")
        key = name.lower() if name.lower() in (ROLE, SEARCH_PATH) else name
        if not (key in (ROLE, SEARCH_PATH) or _SETTING.fullmatch(name)):
            raise ConfigurationError(
                f"local_settings: {name!r} is none of the application's own settings ('prefix.name'), search_path or role: write"
                f" `SET LOCAL {name} = ...` in a transaction, or `SET {name} = ...` on the connection; for timeouts, limits()"
            )
        if key == SEARCH_PATH and not isinstance(value, str):
            value = ", ".join('"{}"'.format(schema.replace('"', '""')) for schema in value)  # noqa: PLW2901 - the same, as a text
        if not isinstance(value, str) or "\x00" in value:
            raise ConfigurationError(f"local_settings: {name}: write a string without NUL")
        if key == SEARCH_PATH and split_list(value) is None:
            raise ConfigurationError(
                f"local_settings: search_path: {value!r} is no list of schemas: write them as a list, or as SET takes them,"
                " 'tenant, public'"
            )
        given[key] = value
    return Block(lambda outer: {"local_settings": tuple({**dict(outer.local_settings), **given}.items())})
