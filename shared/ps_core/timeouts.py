"""Timeouts: what bounds a connection, a statement and a transaction, and how PostgreSQL is told.

Behind a transaction pooler they travel as `SET LOCAL` in the opening of each transaction (`Timeouts.settings`); on a
direct connection they may be startup options (`Timeouts.startup_options`).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ps_core._plain_errors import ConfigurationError

__all__ = ["DIRECT", "POOLED", "SETTINGS", "Duration", "Timeouts", "format_ms", "parse_bound", "parse_duration"]

Duration = str | float
"""A string with a unit ("2s", "500ms") or a number of seconds."""

_MILLISECONDS: Final = {"ms": 1, "s": 1_000, "min": 60_000, "h": 3_600_000}
_DURATION: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(ms|s|min|h)")
_LONGEST: Final = 24 * 3600.0


def parse_duration(value: Duration | None, *, name: str) -> float | None:
    """Return `value` in seconds, rounded to the milliseconds that PostgreSQL counts in; None means off.

    `value` is a string with one of PostgreSQL's units ("500ms", "2s", "1.5min", "2h"), a number of seconds, or None,
    which strings spell "off".

    Raises:
        ConfigurationError: `value` is none of these, not above zero, or above 24 hours. The message begins with `name`.
    """
    if value is None or value == "off":
        return None
    return _seconds(value, name, '; None ("off" in a URL or the environment) turns it off')


def parse_bound(value: Duration | None, *, name: str, otherwise: str = "") -> float:
    """Return `value` in seconds, as `parse_duration` does, for what cannot be off.

    Raises:
        ConfigurationError: as there, or `value` is None or "off". The message ends with `otherwise`.
    """
    if value is None or value == "off":
        raise ConfigurationError(f'{name}: it cannot be off: write a duration, as in "5s"{otherwise}')
    return _seconds(value, name, otherwise)


def _seconds(value: Duration, name: str, otherwise: str) -> float:
    seconds: float | None = None
    if isinstance(value, str):
        if found := _DURATION.fullmatch(value.strip()):
            seconds = float(found[1]) * _MILLISECONDS[found[2]] / 1000
    elif type(value) in (int, float):  # a bool is an int, too
        seconds = value
    # Also false for NaN.
    if seconds is None or not 0 < seconds <= _LONGEST:
        raise ConfigurationError(
            f"{name}: {value!r} is not a duration above zero and up to 24h: write it with a unit (ms, s, min, h), "
            f'as in "2s" or "500ms", or as a number of seconds{otherwise}'
        )
    return format_ms(seconds) / 1000


def format_ms(seconds: float) -> int:
    """Return `seconds` in whole milliseconds, at least 1: to PostgreSQL, 0 means no timeout."""
    return max(1, round(seconds * 1000))


SETTINGS: Final = {
    "statement": "statement_timeout",
    "transaction": "transaction_timeout",
    "idle_in_transaction": "idle_in_transaction_session_timeout",
    "lock": "lock_timeout",
}
"""PostgreSQL's settings for the fields of `Timeouts`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """The timeouts of an endpoint, in seconds; None means that this library sets none.

    Each may be given as a string with a unit ("2s"), see `parse_duration`.

    Raises:
        ConfigurationError: a value is no duration, `connect` is None, or `statement` is not below `transaction`.
    """

    statement: float | None = None
    """`statement_timeout`: one statement (ERROR 57014). Time in a pooler's queue does not count."""
    transaction: float | None = None
    """`transaction_timeout`, PostgreSQL 17 and later: the whole transaction (FATAL 25P04, the connection is lost)."""
    idle_in_transaction: float | None = None
    """`idle_in_transaction_session_timeout`: between two statements of a transaction (FATAL 25P03)."""
    lock: float | None = None
    """`lock_timeout`: waiting for one lock (ERROR 55P03)."""
    connect: float = 5.0
    """For making a connection, per host address tried; libpq counts it in whole seconds, at least 2."""

    if TYPE_CHECKING:  # what is accepted is wider than what is stored

        def __init__(
            self,
            *,
            statement: Duration | None = None,
            transaction: Duration | None = None,
            idle_in_transaction: Duration | None = None,
            lock: Duration | None = None,
            connect: Duration = 5.0,
        ) -> None: ...

    def __post_init__(self) -> None:
        for field in SETTINGS:
            object.__setattr__(self, field, parse_duration(getattr(self, field), name=f"{field}_timeout"))
        object.__setattr__(self, "connect", parse_bound(self.connect, name="connect_timeout"))
        if self.statement is not None and self.transaction is not None and self.statement >= self.transaction:
            # The server would disable the statement timeout: FATAL 25P04 in place of ERROR 57014.
            raise ConfigurationError(
                f"statement_timeout ({self.statement:g}s) must be below transaction_timeout ({self.transaction:g}s), "
                f"or PostgreSQL disables it: write a longer transaction_timeout or a shorter statement_timeout"
            )

    def limited(self, limits: Mapping[str, float | None], remaining: float | None = None) -> "Timeouts":
        """Return these timeouts with `limits` in their place (by field name) and no statement above `remaining` seconds.

        A transaction timeout that nobody gave yields to a statement timeout that it would disable.
        """
        values = {name: getattr(self, name) for name in SETTINGS} | dict(limits)
        statement = values["statement"]
        if remaining is not None:
            statement = values["statement"] = remaining if statement is None else min(statement, remaining)
        if statement is not None and values["transaction"] is not None and statement >= values["transaction"]:
            values["transaction"] = None
        return Timeouts(**values, connect=self.connect)

    def settings(self, *, server_version: int) -> dict[str, int]:
        """Return PostgreSQL's settings, name to milliseconds, for a server of `server_version` (as in 180004).

        `transaction_timeout` is left out where the server does not know it (before 17), and the idle timeout where a
        `transaction_timeout` fires no later.
        """
        transaction = self.transaction if server_version >= 170000 else None
        idle = self.idle_in_transaction
        if idle is not None and transaction is not None and idle >= transaction:
            idle = None
        values = {"statement": self.statement, "transaction": transaction, "idle_in_transaction": idle, "lock": self.lock}
        return {SETTINGS[name]: format_ms(seconds) for name, seconds in values.items() if seconds is not None}

    def startup_options(self) -> str:
        """Return what libpq's `options` takes, "" when there is nothing to set: for direct connections only.

        Without `transaction_timeout`: a server before 17 would refuse the connection.
        """
        return " ".join(f"-c {name}={ms}" for name, ms in self.settings(server_version=0).items())


POOLED: Final = Timeouts(statement=2.0, transaction=3.0, idle_in_transaction=30.0, connect=5.0)
"""PlanetScale's recommendation for application roles: https://planetscale.com/docs/postgres/connection-resilience."""

DIRECT: Final = Timeouts(lock=5.0, connect=5.0)
"""Migrations, index builds and dumps may take their time, but not queue for a lock and hold up all that comes after."""
