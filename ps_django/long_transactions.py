"""Where in the application's code something happened, and the transactions of commands that took long."""

from __future__ import annotations

import contextlib
import logging
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import django

import ps_django
from ps_core._documentation import link
from ps_core.timeouts import POOLED

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["LongTransactions", "calling_line"]

LONG: Final = POOLED.transaction or 3.0
"""Seconds: what a request may take. A planned change of the primary waits for what takes longer."""

_LIBRARIES: Final = (
    *(str(Path(package.__file__).parent) for package in (django, ps_django) if package.__file__),
    contextlib.__file__,  # `atomic` as a decorator
)
_log = logging.getLogger("ps_django")
_told: Final[set[str]] = set()


def calling_line() -> str:
    """Return where the application is now: file and line."""
    for frame, line in traceback.walk_stack(None):
        if not frame.f_code.co_filename.startswith(_LIBRARIES):
            return f"{frame.f_code.co_filename}:{line}"
    return "an unknown place"


class LongTransactions:
    """Log each place, once, where a transaction of a command through a pooler took more than `LONG` seconds.

    It takes part in the queries of one wrapper, which was connected in a command: requests have nothing of it.
    """

    def __init__(self, wrapper: Any) -> None:
        self._began: float | None = None
        wrapper.execute_wrappers.insert(0, self._note_begin)
        for name in ("_commit", "_rollback"):
            setattr(wrapper, name, self._noting_end(wrapper, getattr(wrapper, name)))

    def _note_begin(self, execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: dict[str, Any]) -> Any:
        wrapper = context["connection"]
        if self._began is None and (wrapper.in_atomic_block or not wrapper.autocommit):
            self._began = time.monotonic()
        return execute(sql, params, many, context)

    def _noting_end(self, wrapper: Any, method: Callable[[], None]) -> Callable[[], None]:
        def end() -> None:
            began, self._began = self._began, None
            try:
                method()
            finally:
                took = 0.0 if began is None else time.monotonic() - began
                if took > LONG and wrapper.ps_state.endpoint.pooled and (where := calling_line()) not in _told:
                    _told.add(where)
                    _log.warning(
                        "a transaction of %.1f s through the pooler of %r, which ends at %s: a planned change of the primary"
                        " waits for it; write shorter ones, or with ps_django.on_direct_path(): see %s",
                        took,
                        wrapper.alias,
                        where,
                        link("django", "commands"),
                        extra={"ps_event": "long_transaction"},
                    )

        return end
