"""SQLAlchemy's queue pools, whose wait for a connection is bounded by the caller's deadline."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import exc, pool

from ps_core.context import current, remaining
from ps_core.errors import ConfigurationError

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.pool import ConnectionPoolEntry

__all__ = ["AsyncAdaptedQueuePool", "QueuePool", "max_fallback_of"]


_checking_out: Final[ContextVar[bool]] = ContextVar("ps_sqlalchemy_checking_out", default=False)


class QueuePool(pool.QueuePool):
    """`sqlalchemy.pool.QueuePool`, bounded by the deadline."""

    _sqla_logger_namespace = "sqlalchemy.pool.impl.QueuePool"  # as stock's
    _ps_timeout: float

    @property
    def _timeout(self) -> float:
        # `recreate()` hands it to the next pool, for good.
        left = remaining() if _checking_out.get() else None
        return self._ps_timeout if left is None else min(left, self._ps_timeout)

    @_timeout.setter
    def _timeout(self, value: float) -> None:
        self._ps_timeout = value

    def timeout(self) -> float:
        """Return the seconds that a check-out waits at most, deadlines apart."""
        return self._ps_timeout

    def _do_get(self) -> ConnectionPoolEntry:
        if current().deadline is None:
            return super()._do_get()
        waits = _checking_out.set(True)
        try:
            return super()._do_get()
        except exc.TimeoutError:
            remaining()  # where the deadline was first, this says so
            raise
        finally:
            _checking_out.reset(waits)

    def _invalidate(self, connection: Any, exception: BaseException | None = None, _checkin: bool = True) -> None:
        # One lost connection says nothing about the others: each heals by itself, a demotion drops their generation. Where the
        # application has called a sound one lost (`is_disconnect` in `handle_error`), it means all of them.
        if not getattr(connection.driver_connection, "broken", False):
            super()._invalidate(connection, exception, _checkin)
        elif _checkin and getattr(connection, "is_valid", False):
            connection.invalidate(exception)


class AsyncAdaptedQueuePool(QueuePool, pool.AsyncAdaptedQueuePool):
    """The same for asyncio."""

    _sqla_logger_namespace = "sqlalchemy.pool.impl.AsyncAdaptedQueuePool"


def max_fallback_of(share: float, engine: Engine) -> int | None:
    """Return how many connections to the primary may serve reads while there is no replica; None: any number.

    Raises:
        ConfigurationError: `share` is one of a pool without a size.
    """
    if share in (0, 1):
        return None
    if not isinstance(engine.pool, pool.QueuePool) or engine.pool._max_overflow < 0:
        raise ConfigurationError(
            f"replica_fallback={share:g} is a share of the primary's pool, which has no size here: write 'primary' or 'none'"
        )
    return max(1, int(share * (engine.pool.size() + engine.pool._max_overflow)))
