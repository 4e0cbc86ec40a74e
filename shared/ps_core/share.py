"""The share of the reads that may go to replicas: an operator's switch for the process."""

from __future__ import annotations

import math
import os
import random
from functools import cache
from typing import Final

from ps_core._plain_errors import ConfigurationError

__all__ = ["replica_share", "set_replica_share", "shares"]

ENVIRONMENT: Final = "PS_REPLICA_SHARE"

_share: float | None = None


def set_replica_share(share: float | None) -> None:
    """Let `share` (0 to 1) of this process's replica reads go to replicas, the others to the primary; from now on.

    For a gradual roll-out, and for turning replicas off (0). None: as the environment variable PS_REPLICA_SHARE says, else 1.
    What was asked for by `using_replica()` or an option of its own is not touched.

    Raises:
        ConfigurationError: `share` is no number from 0 to 1.
    """
    global _share  # noqa: PLW0603 - an operator's switch holds for the process
    _share = None if share is None else _checked(share, "set_replica_share")


def replica_share() -> float:
    """Return the share of the reads that may go to replicas.

    Raises:
        ConfigurationError: PS_REPLICA_SHARE is no number from 0 to 1.
    """
    return _of_environment() if _share is None else _share


@cache
def _of_environment() -> float:
    value = os.environ.get(ENVIRONMENT)
    return _checked(value, ENVIRONMENT) if value else 1.0


def _checked(value: float | str, name: str) -> float:
    try:
        share = float(value)
    except (TypeError, ValueError):
        share = math.nan
    if not 0 <= share <= 1:
        raise ConfigurationError(f"{name}: write a number from 0 (no replicas) to 1 (all reads), not {value!r}")
    return share


def shares() -> bool:
    """Draw whether a read may go to a replica, by `replica_share()`."""
    share = _of_environment() if _share is None else _share
    return share >= 1 or random.random() < share  # noqa: S311
