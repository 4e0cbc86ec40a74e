"""The errors of this project's own. Everything else keeps the driver's or the framework's class, raised as it came.

Those that a statement can raise are the driver's classes, since that is what code around statements catches, and carry their
`failure`, which is what `classify` returns. Each has a section in docs/reference/errors.md, to which its note leads.

- `ValueError` > `ConfigurationError`: a setting that cannot work; the message says what to write instead
- `ConfigurationError`, `TypeError` > `UnknownSetting`: there is no setting of that name
- `TimeoutError` > `DeadlineExceeded`: the caller's own deadline
- `psycopg.OperationalError` > `CommitOutcomeUnknown`: a COMMIT whose answer did not come, and nothing settles what became of it
- `psycopg.OperationalError` > `LostAtCommit`: the connection was lost at COMMIT, and the transaction was certainly rolled back
- `psycopg.OperationalError` > `Demoted`: the server was the primary, and is no longer
- `psycopg.errors.ConnectionTimeout` > `OutageTimeout`: an endpoint that is down did not come back in time
- `psycopg.OperationalError` > `NotSent`: the connection was lost before anything was sent
- `psycopg.errors.InvalidParameterValue` > `ReplicaBehind`: a replica has not replayed what the caller has seen
- `psycopg.errors.ReadOnlySqlTransaction` > `MayWrite`: a statement that may write was given to an endpoint for reads
- `psycopg.errors.FeatureNotSupported` > `NotOnReplica`: what no replica has (SERIALIZABLE) was asked of an endpoint for reads
- `psycopg.ProgrammingError` > `SessionSettingRefused`: the server takes no longer what was SET for the session
"""

from __future__ import annotations

from typing import Any, ClassVar, Final

import psycopg

from ps_core._documentation import Documented, see
from ps_core._plain_errors import ConfigurationError, DeadlineExceeded, UnknownSetting
from ps_core.failures import Failure, Kind, Ran

__all__ = [
    "RETRYABLE",
    "CommitOutcomeUnknown",
    "ConfigurationError",
    "DeadlineExceeded",
    "Demoted",
    "LostAtCommit",
    "MayWrite",
    "NotOnReplica",
    "NotSent",
    "OutageTimeout",
    "ReplicaBehind",
    "SessionSettingRefused",
    "UnknownSetting",
]

RETRYABLE: Final = (psycopg.OperationalError, psycopg.InternalError)
"""What a lost connection may be raised as. An InternalError is what psycopg makes of two errors in one answer."""


class CommitOutcomeUnknown(Documented, psycopg.OperationalError):
    """A COMMIT was sent, its answer did not come, and what the primary says now does not settle whether it took effect.

    Never retried by this library. `__cause__` is what was met at COMMIT.
    """

    failure: ClassVar[Failure] = Failure(kind=Kind.TRANSIENT, ran=Ran.UNKNOWN, usable=False, rule="commit_outcome_unknown")

    def __init__(self, message: str, *, transaction: str | None = None, timeline: str | None = None) -> None:
        super().__init__(message)
        self.transaction = transaction
        """The transaction's id (xid8) where one was assigned and seen, for `pg_xact_status`."""
        self.timeline = timeline
        """The timeline that the id belongs to, eight hexadecimal digits."""


class LostAtCommit(Documented, psycopg.OperationalError):
    """The connection was lost at COMMIT, and a lookup has shown that the transaction was rolled back."""

    failure: ClassVar[Failure] = Failure(kind=Kind.TRANSIENT, ran=Ran.ROLLED_BACK, usable=False, rule="lost_at_commit")


class Demoted(Documented, psycopg.OperationalError):
    """The server refused a write, or answered a read, and is a standby now: its connections are replaced."""

    failure: ClassVar[Failure] = Failure(kind=Kind.TRANSIENT, ran=Ran.NO, usable=False, rule="demoted")


class NotSent(Documented, psycopg.OperationalError):
    """The connection was found lost before anything of the statement was sent: it may be sent on a new one, whatever it is."""

    failure: ClassVar[Failure] = Failure(kind=Kind.TRANSIENT, ran=Ran.NO, usable=False, rule="connection_closed")

    def __init__(self) -> None:
        super().__init__("the connection is closed")


class OutageTimeout(Documented, psycopg.errors.ConnectionTimeout):
    """The endpoint is down, and the caller that probes it for all did not reach it within the time for trying again."""

    failure: ClassVar[Failure] = Failure(kind=Kind.TRANSIENT, ran=Ran.NO, usable=False, rule="connect_timeout")


class ReplicaBehind(Documented, psycopg.errors.InvalidParameterValue):
    """A replica has not replayed what the caller has seen, and did not answer. The primary can."""

    failure: ClassVar[Failure] = Failure(kind=Kind.BEHIND, ran=Ran.ROLLED_BACK, usable=True, rule="replica_behind")


class MayWrite(Documented, psycopg.errors.ReadOnlySqlTransaction):
    """A statement that is known to write, or may, was given to an endpoint for reads, and was not sent there."""

    failure: ClassVar[Failure] = Failure(kind=Kind.NOT_PRIMARY, ran=Ran.ROLLED_BACK, usable=True, rule="read_only_transaction")


class NotOnReplica(Documented, psycopg.errors.FeatureNotSupported):
    """The session's transactions are SERIALIZABLE by its own SET, which a hot standby has not. The primary can."""

    failure: ClassVar[Failure] = Failure(kind=Kind.BEHIND, ran=Ran.ROLLED_BACK, usable=True, rule="not_on_replica")


class SessionSettingRefused(Documented, psycopg.ProgrammingError):
    """The server refuses what was SET for the session before, such as a role that was dropped since. The statement did not run.

    Behind a transaction pooler the session's settings travel with every transaction. PostgreSQL's own session would go on. RESET,
    SET ROLE and DISCARD ALL travel without them. `sqlstate` and `diag` are those of the server's error.
    """

    failure: ClassVar[Failure] = Failure(kind=Kind.PERMANENT, ran=Ran.ROLLED_BACK, usable=True, rule="session_setting_refused")

    def __init__(self, message: str, *, setting: str, **kwargs: Any) -> None:
        super().__init__(message, **kwargs)
        self.setting = setting
        """Its name; "role" for the role itself."""


def not_supported(message: str) -> psycopg.NotSupportedError:
    """Return the error for what is not sent, since a promise of ours could not hold for it."""
    return see(psycopg.NotSupportedError(message), "NotSupportedError")
