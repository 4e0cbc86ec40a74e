"""`run_transaction`: a whole transaction, again where that is safe."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction
from typing import TYPE_CHECKING, Any, Final, TypeVar, overload

import tenacity
from django.db import DatabaseError, connections, transaction

from ps_core._retry.policy import USUAL, checked_policy
from ps_core.context import commit_check, remaining
from ps_core.errors import CommitOutcomeUnknown
from ps_core.failures import RUN_AGAIN, classify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ps_core import RetryPolicy

__all__ = ["run_transaction"]

T = TypeVar("T")


@overload
def run_transaction(
    fn: Callable[[], T],
    *,
    using: str | None = None,
    retry: RetryPolicy = USUAL,
    verify: str | None = None,
    marker: bool = False,
) -> T: ...


@overload
def run_transaction(
    fn: None = None, *, using: str | None = None, retry: RetryPolicy = USUAL, verify: str | None = None, marker: bool = False
) -> Callable[[Callable[..., T]], Callable[..., T]]: ...


def run_transaction(
    fn: Callable[[], Any] | None = None,
    *,
    using: str | None = None,
    retry: RetryPolicy = USUAL,
    verify: str | None = None,
    marker: bool = False,
) -> Any:
    """Run `fn` in `transaction.atomic()`; run all of it again after a lost connection, 40001 or 40P01.

    Without `fn` it is a decorator: `@run_transaction(using="default")`. `fn` must do nothing that cannot be done twice; its
    `on_commit` hooks run once, and what they raise is raised. A COMMIT whose outcome is unknown is never run again: `verify`
    and `marker` are `ps_core.context.commit_check`'s. In a `TestCase`, whose transaction is around it, `fn` runs once.

    Raises:
        RuntimeError: a transaction is open already.
        TypeError: `fn` is async or a generator, which would run when the transaction is over; or it is no function.
        ConfigurationError: `retry` is no policy, or `verify` no text.
    """
    if fn is None:

        def decorate(function: Callable[..., T]) -> Callable[..., T]:
            _check_runs_when_called(function)

            @wraps(function)
            def run(*args: Any, **kwargs: Any) -> T:
                result: T = run_transaction(
                    lambda: function(*args, **kwargs), using=using, retry=retry, verify=verify, marker=marker
                )
                return result

            return run

        return decorate
    _check_runs_when_called(fn)
    connection = transaction.get_connection(using)
    if in_transaction(connection):
        raise RuntimeError(
            "run_transaction inside a transaction, which cannot be run again from here: inside atomic(), call the function"
            " instead; in a view under ATOMIC_REQUESTS, write @transaction.non_atomic_requests above the view; with autocommit"
            " off, set_autocommit(True) first"
        )
    if connection.in_atomic_block:  # a TestCase's
        with transaction.atomic(using=using):
            return fn()
    committed: list[bool] = []

    def may_run_again(exc: BaseException) -> bool:
        # Hooks run within `atomic`: what one of them met says nothing about the transaction, which is committed by then.
        if committed or not isinstance(exc, DatabaseError) or isinstance(exc.__cause__, CommitOutcomeUnknown):
            return False
        return classify(exc).kind in RUN_AGAIN

    for attempt in tenacity.Retrying(**checked_policy(retry).loop_options(retry=may_run_again, remaining=remaining())):
        with attempt, commit_check(verify=verify, marker=marker), transaction.atomic(using=using):
            transaction.on_commit(lambda: committed.append(True), using=using)  # the first hook
            result = fn()
    return result


def in_transaction(connection: Any) -> bool:
    """Return whether a transaction of the application's is open: what `TestCase` wraps around each test is none."""
    if connection.in_atomic_block:
        return bool(own_blocks(connection))
    autocommit = connection.settings_dict["AUTOCOMMIT"] if connection.connection is None else connection.autocommit
    return not autocommit


_of_request: Final[ContextVar[dict[str, Any] | None]] = ContextVar("ps_django_blocks_of_request", default=None)


@contextmanager
def blocks_of_request() -> Iterator[None]:
    """Begin a request: its view may be run in blocks of ATOMIC_REQUESTS (`expect_blocks`)."""
    reset = _of_request.set({})
    try:
        yield
    finally:
        _of_request.reset(reset)


def expect_blocks(view: Any) -> None:
    """Say that `view` is run now, in a block of each alias with ATOMIC_REQUESTS that it has not excepted."""
    blocks = _of_request.get()
    if blocks is not None:
        excepted = getattr(view, "_non_atomic_requests", ())
        blocks |= {
            alias: None for alias, entry in connections.settings.items() if entry["ATOMIC_REQUESTS"] and alias not in excepted
        }


def in_block_of_request(connection: Any) -> bool:
    """Return whether the transaction is the one that ATOMIC_REQUESTS opened, for whatever the request will do.

    Django does not mark it. It is the first one on that alias that is open while the view runs.
    """
    blocks, own = _of_request.get(), own_blocks(connection)
    if not blocks or len(own) != 1 or connection.alias not in blocks:
        return False
    if blocks[connection.alias] is None:
        blocks[connection.alias] = own[0]
    return blocks[connection.alias] is own[0]


def is_within_request(connection: Any) -> bool:
    """Return whether what is done now on this alias ends with the block that ATOMIC_REQUESTS opened, or one inside of it."""
    blocks = _of_request.get()
    return blocks is not None and connection.alias in blocks and in_transaction(connection)


def own_blocks(connection: Any) -> list[Any]:
    """Return the open `atomic` blocks, but for those of a `TestCase`."""
    return [block for block in connection.atomic_blocks if not block._from_testcase]


def _check_runs_when_called(function: Callable[..., Any]) -> None:
    if not callable(function):
        raise TypeError(f'run_transaction: write a function, not {function!r}; an alias is `using="..."`')
    if iscoroutinefunction(function) or isgeneratorfunction(function) or isasyncgenfunction(function):
        raise TypeError(
            f"run_transaction: {function!r} would run when the transaction is over: write a plain function that returns its"
            " result; from async code, await sync_to_async(run_transaction)(that function)"
        )
