"""The errors of this project's own. Everything else keeps the driver's or the framework's class, raised as it came.

ValueError
└─ ConfigurationError    a setting that cannot work; the message says what to write instead
TimeoutError
└─ DeadlineExceeded      the caller's own deadline
"""

__all__ = ["ConfigurationError", "DeadlineExceeded"]


class ConfigurationError(ValueError):
    """A connection string, setting or combination of them that cannot work.

    The message says what to write instead, and never holds a password.
    """


class DeadlineExceeded(TimeoutError):
    """The deadline of the block (`ps_core.context.deadline`) is over. No driver error: frameworks pass it on as it is."""
