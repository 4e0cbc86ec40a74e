"""`run_transaction`: a whole transaction, again where that is safe."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any, Final, TypeVar, overload

import tenacity
from django.db import DatabaseError, transaction

from ps_core.context import commit_check, remaining
from ps_core.errors import CommitOutcomeUnknown
from ps_core.failures import RUN_AGAIN, classify
from ps_core.retry import RetryPolicy

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["run_transaction"]

T = TypeVar("T")

_POLICY: Final = RetryPolicy()


@overload
def run_transaction(
    fn: Callable[[], T],
    *,
    using: str | None = None,
    retry: RetryPolicy = _POLICY,
    verify: str | None = None,
    marker: bool = False,
) -> T: ...


@overload
def run_transaction(
    fn: None = None, *, using: str | None = None, retry: RetryPolicy = _POLICY, verify: str | None = None, marker: bool = False
) -> Callable[[Callable[..., T]], Callable[..., T]]: ...


def run_transaction(
    fn: Callable[[], Any] | None = None,
    *,
    using: str | None = None,
    retry: RetryPolicy = _POLICY,
    verify: str | None = None,
    marker: bool = False,
) -> Any:
    """Run `fn` in `transaction.atomic()`; run all of it again after a lost connection, 40001 or 40P01.

    Without `fn` it is a decorator: `@run_transaction(using="default")`. `fn` must do nothing that cannot be done twice; its
    `on_commit` hooks run once, and what they raise is raised. A COMMIT whose outcome nobody can tell is never run again: `verify`
    and `marker` are `ps_core.context.commit_check`'s.

    Raises:
        RuntimeError: an atomic block is open already.
    """
    if fn is None:

        def decorate(function: Callable[..., T]) -> Callable[..., T]:
            @wraps(function)
            def run(*args: Any, **kwargs: Any) -> T:
                result: T = run_transaction(
                    lambda: function(*args, **kwargs), using=using, retry=retry, verify=verify, marker=marker
                )
                return result

            return run

        return decorate
    if transaction.get_connection(using).in_atomic_block:
        raise RuntimeError(
            "run_transaction inside atomic(): the outer block cannot be run again from here; call the function instead"
        )
    committed: list[bool] = []

    def may_run_again(exc: BaseException) -> bool:
        # Hooks run within `atomic`: what one of them met says nothing about the transaction, which is committed by then.
        if committed or not isinstance(exc, DatabaseError) or isinstance(exc.__cause__, CommitOutcomeUnknown):
            return False
        return classify(exc).kind in RUN_AGAIN

    for attempt in tenacity.Retrying(**retry.loop_options(retry=may_run_again, remaining=remaining())):
        with attempt, commit_check(verify=verify, marker=marker), transaction.atomic(using=using):
            transaction.on_commit(lambda: committed.append(True), using=using)  # the first hook
            result = fn()
    return result
