"""What begins anew in a forked process: locks that a thread of the parent held, queues of threads that are not there."""

from __future__ import annotations

import os
from typing import Final, Protocol
from weakref import WeakSet

__all__ = ["renew_after_fork"]


class _Renewed(Protocol):
    def forget_threads(self) -> None: ...


_renewed: Final[WeakSet[_Renewed]] = WeakSet()


def renew_after_fork(one: _Renewed) -> None:
    """Call `one.forget_threads()` in each process that is forked from this one, as long as `one` is used."""
    _renewed.add(one)


def _forget_threads() -> None:
    for one in list(_renewed):
        one.forget_threads()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)
