"""The errors of `ps_core.errors` that are none of the driver's: here so that what raises them does not import it."""

from __future__ import annotations

from ps_core._documentation import Documented

__all__ = ["ConfigurationError", "DeadlineExceeded", "UnknownSetting"]


class ConfigurationError(Documented, ValueError):
    """A connection string, setting or combination of them that cannot work.

    The message says what to write instead, and never holds a password.
    """


class UnknownSetting(ConfigurationError, TypeError):
    """An unknown keyword, parameter of a URL or environment variable; the message names the one that is most like it.

    A TypeError, too: Python, and `sqlalchemy.create_engine`, raise that for an unknown keyword, and callers catch it.
    """


class DeadlineExceeded(Documented, TimeoutError):
    """The deadline of the block (`ps_core.context.deadline`) is over. No driver error: frameworks pass it on as it is."""


for _cls in (ConfigurationError, UnknownSetting, DeadlineExceeded):
    _cls.__module__ = "ps_core.errors"  # where they are public, and what a traceback says
