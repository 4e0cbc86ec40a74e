"""`run_transaction` and `arun_transaction`: a whole transaction, again where that is safe."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from inspect import isasyncgenfunction, isawaitable, iscoroutine, isgeneratorfunction
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, overload

import sqlalchemy as sa
import tenacity
from sqlalchemy import orm
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker

import ps_core
from ps_core import RetryPolicy
from ps_core._retry.policy import USUAL, checked_policy
from ps_core.context import commit_check, remaining
from ps_core.errors import CommitOutcomeUnknown
from ps_core.failures import RUN_AGAIN, classify

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from contextlib import AbstractAsyncContextManager, AbstractContextManager

__all__ = ["arun_transaction", "note_commit", "run_transaction"]

T = TypeVar("T")
W = TypeVar("W")
Work_co = TypeVar("Work_co", covariant=True)
X = TypeVar("X", bound=orm.Session | sa.Connection)
Y = TypeVar("Y", bound=AsyncSession | AsyncConnection)


class Begins(Protocol[Work_co]):
    """What begins transactions, as a `sessionmaker` and an `Engine` do."""

    def begin(self) -> AbstractContextManager[Work_co]:
        """Return a block that is a transaction; in it is what works in it."""
        ...


class BeginsAsync(Protocol[Work_co]):
    """The same for asyncio."""

    def begin(self) -> AbstractAsyncContextManager[Work_co]:
        """Return a block that is a transaction; in it is what works in it."""
        ...


class _Run:
    """A `run_transaction` that is under way."""

    done = False
    """The function has returned: the next COMMIT is its transaction's."""
    committed = False

    def may_run_again(self, exc: BaseException) -> bool:
        if self.committed or not isinstance(exc, sa.exc.DBAPIError) or isinstance(exc.orig, CommitOutcomeUnknown):
            return False
        return classify(exc).kind in RUN_AGAIN


_running: Final[ContextVar[_Run | None]] = ContextVar("ps_sqlalchemy_run_transaction", default=None)


_ITSELF: Final = (orm.Session, sa.Connection, AsyncSession, AsyncConnection)
"""What is given to the function itself: what its `begin()` returns is the transaction."""
_SYNC: Final = (orm.Session, orm.sessionmaker, sa.Connection, sa.Engine)
_ASYNC: Final = (AsyncSession, async_sessionmaker, AsyncConnection, AsyncEngine)


@overload
def run_transaction(
    begin: X, fn: Callable[[X], T], *, retry: RetryPolicy = ..., verify: str | None = ..., marker: bool = ...
) -> T: ...


@overload
def run_transaction(
    begin: Begins[W], fn: Callable[[W], T], *, retry: RetryPolicy = ..., verify: str | None = ..., marker: bool = ...
) -> T: ...


def run_transaction(
    begin: Any,
    fn: Callable[[Any], T],
    *,
    retry: RetryPolicy = USUAL,
    verify: str | None = None,
    marker: bool = False,
) -> T:
    """Run `fn` in a transaction of its own and commit; run all of it again after a lost connection, 40001 or 40P01.

    `begin` is a `sessionmaker` (or anything that has its `begin()`), or an `Engine`; `fn` gets a fresh Session, or a Connection,
    each time, and must do nothing that cannot be done twice. A Session or Connection that is in no transaction will do, too; `fn`
    then gets that one. A COMMIT whose outcome is unknown is never run again:
    `verify` and `marker` are `ps_core.context.commit_check`'s. Nor is one that succeeded: what an `after_commit` listener raises
    is raised.

    Raises:
        RuntimeError: it is called inside another one, or `begin` is a session that is in a transaction already, or is in
            AUTOCOMMIT, where there is no transaction that could run again.
        TypeError: `fn` is an async function or a generator function, whose body would run after the COMMIT; or it is no function,
            or `begin` does not begin transactions.
        ConfigurationError: `retry` is no policy, or `verify` no text.
        CommitOutcomeUnknown: as SQLAlchemy wraps it (`exc.orig`).
    """
    _check(begin, fn, _ASYNC, "run_transaction", "`await arun_transaction(...)`")
    with _alone(begin) as run:
        for attempt in tenacity.Retrying(**checked_policy(retry).loop_options(retry=run.may_run_again, remaining=remaining())):
            with attempt, commit_check(verify=verify, marker=marker), begin.begin() as work, _in_transactions(begin, work):
                run.done = False
                result = fn(begin if isinstance(begin, _ITSELF) else work)
                if isawaitable(result):
                    raise _async_error(fn, result)
                run.done = True
    return result


@overload
async def arun_transaction(
    begin: Y,
    fn: Callable[[Y], Awaitable[T]],
    *,
    retry: RetryPolicy = ...,
    verify: str | None = ...,
    marker: bool = ...,
) -> T: ...


@overload
async def arun_transaction(
    begin: BeginsAsync[W],
    fn: Callable[[W], Awaitable[T]],
    *,
    retry: RetryPolicy = ...,
    verify: str | None = ...,
    marker: bool = ...,
) -> T: ...


async def arun_transaction(
    begin: Any,
    fn: Callable[[Any], Awaitable[T]],
    *,
    retry: RetryPolicy = USUAL,
    verify: str | None = None,
    marker: bool = False,
) -> T:
    """Like `run_transaction`, with an `async_sessionmaker` or an `AsyncEngine`."""
    _check(begin, fn, _SYNC, "arun_transaction", "`run_transaction(...)`")
    with _alone(begin) as run:
        async for attempt in tenacity.AsyncRetrying(
            **checked_policy(retry).loop_options(retry=run.may_run_again, remaining=remaining())
        ):
            with attempt, commit_check(verify=verify, marker=marker):
                async with begin.begin() as work:
                    with _in_transactions(begin, work):
                        run.done = False
                        result = await fn(begin if isinstance(begin, _ITSELF) else work)
                        run.done = True
    return result


def _async_error(fn: Any, result: Any) -> TypeError:
    if iscoroutine(result):
        result.close()  # Python would warn that nobody awaited it
    return TypeError(f"{fn!r} is async: write `await arun_transaction(...)`, with an async_sessionmaker or an AsyncEngine")


def note_commit() -> None:
    """Take note of a COMMIT that has returned."""
    run = _running.get()
    if run is not None and run.done:
        run.committed = True


def _check(begin: Any, fn: Any, wrong: tuple[type, ...], caller: str, instead: str) -> None:
    """Refuse what cannot run before anything is sent. `wrong` is what `instead` takes."""
    if not callable(fn):
        raise TypeError(f"{caller}: write a function of the session or connection, not {fn!r}")
    if isgeneratorfunction(fn) or isasyncgenfunction(fn):
        raise TypeError(f"{fn!r} is a generator function, whose body runs when the transaction is over: write one that returns")
    if isinstance(begin, wrong):
        raise TypeError(f"{caller}: {type(begin).__name__} is for {instead}: write that, or give this one the other kind")
    if isinstance(begin, type) or not callable(getattr(begin, "begin", None)):
        raise TypeError(f"{caller}: write what begins transactions, as in {caller}(sessionmaker(engine), fn), not {begin!r}")


@contextmanager
def _alone(begin: Any) -> Iterator[_Run]:
    if _running.get() is not None:
        raise RuntimeError(
            "run_transaction inside run_transaction: the outer one may run all of it again; call the function instead"
        )
    if getattr(begin, "in_transaction", None) is not None and begin.in_transaction():
        raise RuntimeError(
            "run_transaction on a session or connection that is in a transaction: give it the sessionmaker or the engine"
        )
    for engine in _engines_of(begin):
        if engine.get_execution_options().get("isolation_level", engine.dialect._on_connect_isolation_level) == "AUTOCOMMIT":
            raise RuntimeError(_AUTOCOMMIT)
    token = _running.set(run := _Run())
    try:
        yield run
    finally:
        _running.reset(token)


_AUTOCOMMIT: Final = (
    "run_transaction in AUTOCOMMIT, where each statement is committed by itself: what came before a lost connection would be done"
    " twice. Write run_transaction(engine.execution_options(isolation_level='READ COMMITTED'), ...), or a sessionmaker of such an"
    " engine, or run the statements one by one without run_transaction"
)


def _engines_of(begin: Any) -> list[sa.Engine | sa.Connection]:
    """Return the engines and connections that `begin` is known to begin transactions on."""
    if isinstance(begin, orm.sessionmaker | async_sessionmaker):
        binds = [begin.kw.get("bind"), *(begin.kw.get("binds") or {}).values()]
    elif isinstance(begin, orm.Session | AsyncSession):
        binds = [begin.bind]
    else:
        binds = [begin]
    return [one for one in map(_sync, binds) if isinstance(one, sa.Engine | sa.Connection)]


def _sync(one: Any) -> Any:
    """Return what is inside of one of SQLAlchemy's objects for asyncio; anything else as it is."""
    if isinstance(one, AsyncEngine):
        return one.sync_engine
    if isinstance(one, AsyncConnection):
        return one.sync_connection
    return one.sync_session if isinstance(one, AsyncSession) else one


@contextmanager
def _in_transactions(begin: Any, work: Any) -> Iterator[None]:
    """Refuse, before it is sent anything, each connection of this run that turns out to be in AUTOCOMMIT."""
    work = _sync(begin if isinstance(begin, _ITSELF) else work)
    if isinstance(work, sa.Connection):
        _check_transaction(None, None, work)
    if not isinstance(work, orm.Session):
        yield
        return
    sa.event.listen(work, "after_begin", _check_transaction)
    try:
        yield
    finally:
        sa.event.remove(work, "after_begin", _check_transaction)


def _check_transaction(_session: Any, _transaction: Any, connection: sa.Connection) -> None:
    driver = connection.connection.driver_connection
    reads = isinstance(driver, ps_core.Connection | ps_core.AsyncConnection) and driver.state.endpoint.read_only
    if getattr(driver, "autocommit", False) and not reads:  # what a replica reads can be read twice
        raise RuntimeError(_AUTOCOMMIT)
