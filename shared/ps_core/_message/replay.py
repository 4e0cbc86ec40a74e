"""What may run again, and how a statement goes on that the server refused before anything ran. Pure.

A statement may be sent again because of one of four facts: it was never sent; nothing of an explicit transaction is durable
before its COMMIT; what was sent READ ONLY changed nothing; the failure itself says that the statement never reached a server.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from ps_core.errors import NotSent
from ps_core.failures import Kind, Ran

if TYPE_CHECKING:
    from ps_core._message.plan import Plan
    from ps_core.failures import Failure

__all__ = ["Next", "Refusal", "after_refusal", "may_replay"]


def may_replay(plan: Plan, failure: Failure) -> bool:
    """Return whether the first statement of its transaction, which failed, may be sent again on a new connection.

    `plan` is how it travelled, `failure` what it met.
    """
    if failure.usable or not failure.transient:
        return False
    if failure == NotSent.failure:
        return True
    statement = plan.statement
    if not statement.count:
        return True  # a ping
    if not statement.one:
        return False
    if failure.ran is Ran.NO or statement.only_sets:
        return True
    return plan.outlives_loss


class Next(Enum):
    """What becomes of a statement that the server refused."""

    RAISE = "the refusal is the caller's"
    AGAIN = "it is sent as it was: what a replica replayed in its favour goes on, and may be through"
    ASK_WHETHER_DEMOTED = "the server refused a write: it is asked whether it is still the primary"
    APART = "its transaction is opened in a message of its own: the caller expects a failed transaction, and gets one"
    AS_WRITE = "it wrote: it is not sent READ ONLY any more"
    ALONE = "it cannot share its message: it is sent alone"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """What is known of a refusal."""

    plan: Plan
    sqlstate: str | None
    kind: Kind
    endpoint_reads: bool = False
    """The endpoint is one for reads."""
    session_reads: bool = False
    """The caller set the session to READ ONLY."""
    in_failed_transaction: bool = False
    still_primary: bool = False
    """The server was asked, and is the primary."""


def after_refusal(refusal: Refusal) -> Next:
    """Decide how a statement goes on that the server refused, and of which nothing is left.

    Where the answer is not RAISE, a transaction that failed is rolled back first: nothing but this statement was in it.
    """
    plan = refusal.plan
    read_only = plan.read_only
    if read_only and not plan.again and refusal.endpoint_reads and refusal.kind is Kind.RECOVERY_CONFLICT:
        return Next.AGAIN
    asks = refusal.sqlstate == "25006" and not (read_only or refusal.session_reads or refusal.endpoint_reads)
    if asks and not refusal.still_primary:
        return Next.ASK_WHETHER_DEMOTED
    if refusal.in_failed_transaction and not (asks or plan.own_begin):
        return Next.RAISE
    if plan.begin and not plan.apart:
        # BEGIN did not run, since the message did not parse; or it was rolled back.
        return Next.APART
    if refusal.sqlstate == "25006" and read_only:
        return Next.RAISE if refusal.endpoint_reads else Next.AS_WRITE
    if refusal.sqlstate in ("25001", "2D000") and plan.is_accompanied and not plan.begin:
        # VACUUM and its like, or a procedure that commits: refused, or undone, because it shared its message.
        return Next.ALONE
    return Next.RAISE
