"""SQLAlchemy's queue pools, whose wait for a connection is bounded by the caller's deadline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import exc, pool

from ps_core.context import remaining

if TYPE_CHECKING:
    from sqlalchemy.pool import ConnectionPoolEntry

__all__ = ["AsyncAdaptedQueuePool", "QueuePool"]


class QueuePool(pool.QueuePool):
    """`sqlalchemy.pool.QueuePool`, bounded by the deadline."""

    _ps_timeout: float

    @property
    def _timeout(self) -> float:
        left = remaining()
        return self._ps_timeout if left is None else min(left, self._ps_timeout)

    @_timeout.setter
    def _timeout(self, value: float) -> None:
        self._ps_timeout = value

    def timeout(self) -> float:
        """Return the seconds that a check-out waits at most, deadlines apart."""
        return self._ps_timeout

    def _do_get(self) -> ConnectionPoolEntry:
        try:
            return super()._do_get()
        except exc.TimeoutError:
            remaining()  # where the deadline was first, this says so
            raise

    def _invalidate(self, connection: Any, exception: BaseException | None = None, _checkin: bool = True) -> None:
        # One lost connection says nothing about the others: each heals by itself, and a demotion drops their generation.
        if _checkin and getattr(connection, "is_valid", False):
            connection.invalidate(exception)


class AsyncAdaptedQueuePool(QueuePool, pool.AsyncAdaptedQueuePool):
    """The same for asyncio."""
