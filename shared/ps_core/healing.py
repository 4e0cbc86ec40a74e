"""Trying again: tenacity's loop, the outage gate and the deadline in one place, for every kind of try."""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import psycopg

from ps_core.commit import Outcome
from ps_core.failures import classify

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ps_core.link import Link
    from ps_core.protocol import Shared

__all__ = ["RETRYABLE", "Attempts", "StillRunning", "is_transient", "verdict_of_failure"]

_log = logging.getLogger("ps_core")

RETRYABLE: Final = (psycopg.OperationalError, psycopg.InternalError)
"""What a lost connection may be raised as. An InternalError is what psycopg makes of two errors in one answer."""


class StillRunning(psycopg.OperationalError):
    """The transaction that is looked up has not ended yet."""


class Attempts:
    """The tries of one healing: tenacity's loop and the gate, and the rule that says whether to go on."""

    def __init__(self, link: Link, *, connection: Shared[Any] | None = None, first: BaseException | None = None) -> None:
        self.link = link
        self.connecting = True
        self._connection = connection
        self._until = time.monotonic() + float(link.policy.max_elapsed)
        self._first = first
        self.options = link.policy.loop_options(retry=self._go_on, remaining=None)
        if first is not None:
            _log.info(
                "endpoint %r: connection lost (%s), trying again",
                link.endpoint.name,
                classify(first).rule,
                extra={"ps_event": "retry"},
            )
            link.gate.report_loss()

    def remaining(self) -> float:
        return self._until - time.monotonic()

    def _go_on(self, exc: BaseException) -> bool:
        if isinstance(exc, StillRunning):
            return True
        if self.connecting or self._connection is None:
            return is_transient(exc)
        return self._connection._may_replay(exc)

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Raise what ended the tries, with a note of how long they went on; a wait that timed out raises what began them."""
        began = time.monotonic()
        try:
            yield
        except (psycopg.Error, TimeoutError) as exc:
            error = self._first if isinstance(exc, TimeoutError) and self._first is not None else exc
            if isinstance(error, TimeoutError):
                error = psycopg.errors.ConnectionTimeout(str(error))
            if is_transient(error):
                tried = time.monotonic() - began
                error.add_note(f"ps-postgres: tried the endpoint {self.link.endpoint.name!r} again for {tried:.1f} s")
            raise error from (None if error is exc else exc)


def is_transient(exc: BaseException) -> bool:
    return isinstance(exc, RETRYABLE) and classify(exc).transient


def verdict_of_failure(exc: BaseException) -> Outcome:
    """Return what a failed lookup proves: an id that the server has not reached is of a transaction that it never saw."""
    if isinstance(exc, psycopg.errors.InvalidParameterValue) and "future" in str(exc):
        return Outcome.ROLLED_BACK
    return Outcome.UNKNOWN
