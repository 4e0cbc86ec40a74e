"""How often and how long a lost connection or a refused connect is tried again: the bounds of tenacity's loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import tenacity

from ps_core.errors import ConfigurationError
from ps_core.timeouts import parse_bound

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ONCE", "USUAL", "RetryPolicy", "checked_policy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """When to stop trying again. Whichever bound is reached first ends it, the caller's deadline included."""

    attempts: int | None = None
    """Tries after the first failure; None: as many as fit into `max_elapsed`; 0: never try again."""
    max_elapsed: float | str = 30.0
    """Seconds (or "30s") after the first failure. PlanetScale: a planned promotion takes under 5 s, an unplanned one typically
    under 10 s, and a pooler's `server_login_retry` may add 15 s."""
    first_wait: float | str = 0.1
    """Upper bound of the first wait; it doubles with every try and is drawn with full jitter."""
    max_wait: float | str = 1.0

    def __post_init__(self) -> None:
        if self.attempts is not None and (type(self.attempts) is not int or not 0 <= self.attempts <= 1000):
            raise ConfigurationError(
                f"attempts: write a number from 0 to 1000, or None for no limit but max_elapsed, not {self.attempts!r}"
            )
        for name in ("max_elapsed", "first_wait", "max_wait"):
            seconds = parse_bound(getattr(self, name), name=name, otherwise="; attempts=0 means no retries")
            object.__setattr__(self, name, seconds)
        if float(self.first_wait) > float(self.max_wait):
            raise ConfigurationError("first_wait: write a duration that is not above max_wait")

    def loop_options(
        self, *, retry: Callable[[BaseException], bool], remaining: float | None, failed: bool = False
    ) -> dict[str, Any]:
        """Return the arguments for `tenacity.Retrying` or `AsyncRetrying`.

        `remaining` is the caller's deadline in seconds, `failed` says that the first failure was before the loop.
        """
        bound = float(self.max_elapsed) if remaining is None else min(float(self.max_elapsed), remaining)
        stop: Any = tenacity.stop_before_delay(bound)
        if self.attempts is not None:
            stop = stop | tenacity.stop_after_attempt(max(1, self.attempts + (not failed)))
        return {
            "stop": stop,
            "wait": tenacity.wait_random_exponential(multiplier=float(self.first_wait), max=float(self.max_wait)),
            "retry": tenacity.retry_if_exception(retry),
            "reraise": True,
        }


def checked_policy(retry: RetryPolicy) -> RetryPolicy:
    """Return `retry`; what is no policy would be noticed when a connection is lost.

    Raises:
        ConfigurationError: it is none.
    """
    if not isinstance(retry, RetryPolicy):
        raise ConfigurationError(f"retry: write a policy, as in RetryPolicy(attempts=3), not {retry!r}")
    return retry


USUAL: Final = RetryPolicy()
ONCE: Final = RetryPolicy(attempts=0)
