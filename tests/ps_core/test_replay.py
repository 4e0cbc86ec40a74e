"""What may run again, and how a refused statement goes on, decided without a server: each row is a sentence."""

from dataclasses import replace
from typing import Any

import pytest

from ps_core._message.plan import Before, Plan
from ps_core._message.replay import Next, Refusal, after_refusal, may_replay
from ps_core._message.statement import analyse
from ps_core.errors import CommitOutcomeUnknown, Demoted, LostAtCommit, NotSent, ReplicaBehind
from ps_core.failures import Failure, Kind, Ran

pytestmark = pytest.mark.fast

LOST = Failure(kind=Kind.TRANSIENT, ran=Ran.UNKNOWN, usable=False, rule="connection_lost")
NEVER_RAN = Failure(kind=Kind.TRANSIENT, ran=Ran.NO, usable=False, rule="pooler_query_wait_timeout")
FULL = Failure(kind=Kind.OVERLOAD, ran=Ran.NO, usable=False, rule="pooler_full")
TIMEOUT = Failure(kind=Kind.TIMEOUT, ran=Ran.ROLLED_BACK, usable=False, rule="transaction_timeout")
ALIVE = Failure(kind=Kind.TRANSIENT, ran=Ran.NO, usable=True, rule="made up")

READ, WRITE, SEVERAL = "select a from t", "insert into t values (1)", "insert into t values (1); insert into t values (2)"
SEEMS_ONE = "select ';'"


def plan(text: str, before: Before = Before.NOTHING, **more: Any) -> Plan:
    """Return how a text travelled."""
    return Plan(analyse(text), before, **more)


REPLAYS = [
    ("an opening that was lost is sent again", plan(WRITE, Before.TRANSACTION), LOST, True),
    ("a read that was sent READ ONLY, too", plan(READ, Before.READ), LOST, True),
    ("a write in autocommit is not", plan(WRITE, Before.SETTINGS), LOST, False),
    ("nor with a COMMIT in its message", plan(WRITE, Before.BEGIN), LOST, False),
    ("it is where the failure says that it never ran", plan(WRITE, Before.BEGIN), NEVER_RAN, True),
    ("and where there was no place for it", plan(WRITE, Before.SETTINGS), FULL, True),
    ("and where it was never sent", plan(WRITE, Before.SETTINGS), NotSent.failure, True),
    ("several statements are sent on a new connection if they never were", plan(SEVERAL, Before.SETTINGS), NotSent.failure, True),
    ("but not again, whatever the failure says", plan(SEVERAL, Before.SETTINGS), NEVER_RAN, False),
    ("nor as the opening of a transaction, which they may have ended", plan(SEVERAL, Before.TRANSACTION), LOST, False),
    ("nor what may be several", plan(SEEMS_ONE, Before.READ), LOST, False),
    ("nor a COMMIT", plan("commit"), LOST, False),
    ("a ping is", plan(""), LOST, True),
    ("so is what only sets something for the session", plan("set application_name = 'x'"), LOST, True),
    ("what goes alone is not", plan("vacuum t"), LOST, False),
    ("what a rollback does not undo is not", plan("copy t to program 'x'", Before.TRANSACTION, beside=True), LOST, False),
    ("but where it never ran", plan("copy t to program 'x'", Before.TRANSACTION, beside=True), NEVER_RAN, True),
    ("nor what a function does beside the transaction", plan(READ, Before.TRANSACTION, beside=True), LOST, False),
    ("a timeout is no failover", plan(READ, Before.READ), TIMEOUT, False),
    ("nor is an error on a connection that can be used", plan(READ, Before.READ), ALIVE, False),
    ("what a replica is behind of is the primary's", plan(READ, Before.READ), ReplicaBehind.failure, False),
    ("a read that a demoted server answered is sent to the new primary", plan(READ, Before.READ), Demoted.failure, True),
    ("a write that it refused, too", plan(WRITE, Before.BEGIN), Demoted.failure, True),
]


@pytest.mark.parametrize(("sent", "failure", "again"), [row[1:] for row in REPLAYS], ids=[row[0] for row in REPLAYS])
def test_may_replay(sent: Plan, failure: Failure, again: bool) -> None:
    """Whether a statement that failed is sent again on a new connection."""
    assert may_replay(sent, failure) is again


def test_failures_of_ours() -> None:
    """What a COMMIT's outcome means for a statement is decided elsewhere: these failures are the caller's."""
    assert not may_replay(plan(WRITE, Before.BEGIN), CommitOutcomeUnknown.failure)
    assert not may_replay(plan(WRITE, Before.BEGIN), LostAtCommit.failure)


def refusal(sent: Plan, sqlstate: str | None, **more: Any) -> Refusal:
    """Return a refusal with this SQLSTATE."""
    return Refusal(plan=sent, sqlstate=sqlstate, **{"kind": Kind.PERMANENT, **more})


CANCELLED = {"kind": Kind.RECOVERY_CONFLICT, "endpoint_reads": True}
FAILED = {"in_failed_transaction": True}
REFUSALS = [
    ("a read that replay cancelled is sent again", refusal(plan(READ, Before.READ), "40001", **CANCELLED), Next.AGAIN),
    ("once", refusal(plan(READ, Before.READ, again=True), "40001", **CANCELLED), Next.RAISE),
    (
        "not as a transaction, whose snapshot is gone",
        refusal(plan(READ, Before.TRANSACTION), "40001", **CANCELLED, **FAILED),
        Next.RAISE,
    ),
    (
        "nor on the primary, where it is a conflict of writes",
        refusal(plan(READ, Before.READ), "40001", kind=Kind.RECOVERY_CONFLICT),
        Next.RAISE,
    ),
    (
        "a write that is refused asks whether the server is demoted",
        refusal(plan(WRITE, Before.BEGIN), "25006", **FAILED),
        Next.ASK_WHETHER_DEMOTED,
    ),
    ("an opening, too", refusal(plan(WRITE, Before.TRANSACTION), "25006", **FAILED), Next.ASK_WHETHER_DEMOTED),
    (
        "not where the caller asked for READ ONLY",
        refusal(plan(WRITE, Before.TRANSACTION), "25006", session_reads=True, **FAILED),
        Next.RAISE,
    ),
    (
        "nor on an endpoint for reads",
        refusal(plan(WRITE, Before.TRANSACTION), "25006", endpoint_reads=True, **FAILED),
        Next.RAISE,
    ),
    (
        "by a primary, the refusal is the caller's",
        refusal(plan(WRITE, Before.BEGIN), "25006", still_primary=True, **FAILED),
        Next.RAISE,
    ),
    (
        "who gets a failed transaction",
        refusal(plan(WRITE, Before.TRANSACTION), "25006", still_primary=True, **FAILED),
        Next.APART,
    ),
    (
        "a message that does not parse opens no transaction: it is opened by itself",
        refusal(plan(WRITE, Before.TRANSACTION), "42601"),
        Next.APART,
    ),
    ("once", refusal(plan(WRITE, Before.TRANSACTION, apart=True), "42601"), Next.RAISE),
    ("an error in an opened transaction is raised", refusal(plan(WRITE, Before.TRANSACTION), "23505", **FAILED), Next.RAISE),
    ("an error in a transaction of ours, too", refusal(plan(WRITE, Before.BEGIN), "23505", **FAILED), Next.RAISE),
    ("what looked like a read and wrote is sent as a write", refusal(plan(READ, Before.READ), "25006"), Next.AS_WRITE),
    ("bound by the server, too", refusal(plan(READ, Before.BEGIN_READ_ONLY, by_server=True), "25006", **FAILED), Next.AS_WRITE),
    ("not on an endpoint for reads", refusal(plan(READ, Before.READ), "25006", endpoint_reads=True), Next.RAISE),
    ("what cannot share a message is sent alone", refusal(plan(WRITE, Before.SETTINGS), "25001"), Next.ALONE),
    ("so is a procedure that commits", refusal(plan("call p()", Before.BEGIN), "2D000", **FAILED), Next.ALONE),
    ("what was alone is refused", refusal(plan(WRITE), "25001"), Next.RAISE),
    (
        "what is refused in a transaction of the caller's is",
        refusal(plan(WRITE, Before.TRANSACTION, apart=True), "25001"),
        Next.RAISE,
    ),
    ("an ordinary error is the caller's", refusal(plan(READ, Before.READ), "42P01"), Next.RAISE),
    ("an error without a SQLSTATE, too", refusal(plan(READ, Before.READ), None), Next.RAISE),
]


@pytest.mark.parametrize(("met", "then"), [row[1:] for row in REFUSALS], ids=[f"{n} {row[0]}" for n, row in enumerate(REFUSALS)])
def test_after_refusal(met: Refusal, then: Next) -> None:
    """How a statement goes on that the server refused."""
    assert after_refusal(met) is then


def test_a_refusal_ends() -> None:
    """No refusal is answered by the same question twice."""
    for _, met, then in REFUSALS:
        if then is Next.ASK_WHETHER_DEMOTED:
            assert after_refusal(replace(met, still_primary=True)) is not Next.ASK_WHETHER_DEMOTED
