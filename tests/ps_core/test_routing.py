"""Where work goes: the order of precedence, as a table. No server."""

from typing import Any

import pytest

from ps_core.routing import Decision, Route, Situation, decide

pytestmark = pytest.mark.fast

PRIMARY, REPLICA = Route.PRIMARY, Route.REPLICA


def yes() -> bool:
    """It is so."""
    return True


def no() -> bool:
    """It is not."""
    return False


def never() -> bool:
    """Fail: what is decided already should not be asked."""
    raise AssertionError("asked")


ROWS: list[tuple[str, dict[str, Any], Route, str]] = [
    ("A plain read goes to a replica.", {}, REPLICA, "read"),
    ("What is not known to be a read goes to the primary.", {"reads": False}, PRIMARY, "not known to be a read"),
    # what was asked for
    ("A block that asks for the primary gets it.", {"block": PRIMARY}, PRIMARY, "asked for the primary"),
    ("An option beats the block: the primary.", {"option": PRIMARY, "block": REPLICA}, PRIMARY, "asked for the primary"),
    ("An option beats the block: a replica.", {"option": REPLICA, "block": PRIMARY}, REPLICA, "asked for a replica"),
    (
        "Asking for the primary beats every other reason to go there, so that the log says what was asked.",
        {
            "block": PRIMARY,
            "on_primary": True,
            "flushing": True,
            "serializable": True,
            "reads": False,
            "pinned": never,
            "away": never,
        },
        PRIMARY,
        "asked for the primary",
    ),
    ("Asking for the primary holds in a read-only session, too.", {"block": PRIMARY, "read_only": True}, PRIMARY, "asked for"),
    # an open transaction on the primary
    ("A read in a transaction that wrote stays with it.", {"on_primary": True}, PRIMARY, "the transaction is on the primary"),
    (
        "A block that asks for a replica does not take a read away from a transaction that wrote.",
        {"on_primary": True, "block": REPLICA},
        PRIMARY,
        "the transaction is on the primary",
    ),
    (
        "An option that asks for a replica does: it is for that statement alone, whatever the transaction did before.",
        {"on_primary": True, "option": REPLICA},
        REPLICA,
        "asked for a replica",
    ),
    (
        "The transaction comes before the flush in it.",
        {"on_primary": True, "flushing": True},
        PRIMARY,
        "the transaction is on the primary",
    ),
    # a flush
    ("A flush goes to the primary.", {"flushing": True, "reads": False}, PRIMARY, "flush"),
    ("A flush goes to the primary in a block for replicas.", {"flushing": True, "block": REPLICA}, PRIMARY, "flush"),
    ("A flush before a statement with an option for replicas goes to the primary.", {"flushing": True, "option": REPLICA},
     PRIMARY, "flush"),
    ("A flush comes before the isolation level.", {"flushing": True, "serializable": True}, PRIMARY, "flush"),
    # the isolation level
    ("No standby has SERIALIZABLE transactions.", {"serializable": True}, PRIMARY, "SERIALIZABLE"),
    ("Not where a replica was asked for, either.", {"serializable": True, "option": REPLICA}, PRIMARY, "SERIALIZABLE"),
    ("Nor for a read-only session.", {"serializable": True, "read_only": True}, PRIMARY, "SERIALIZABLE"),
    ("The level comes before what the statement is.", {"serializable": True, "reads": False}, PRIMARY, "SERIALIZABLE"),
    # known to write
    ("A write in a block for replicas goes to the primary.", {"reads": False, "block": REPLICA}, PRIMARY, "not known to be"),
    ("A write with an option for replicas goes to the primary.", {"reads": False, "option": REPLICA}, PRIMARY, "not known to"),
    ("A write comes before the declared transaction.", {"reads": False, "declared": True}, PRIMARY, "not known to be a read"),
    ("A write comes before the token.", {"reads": False, "pinned": yes}, PRIMARY, "not known to be a read"),
    (
        "In a read-only session a write goes to a replica, which refuses it: such a session has no way to write.",
        {"reads": False, "read_only": True},
        REPLICA,
        "read-only session",
    ),
    # a declared transaction
    ("A transaction that was begun explicitly is for writing.", {"declared": True}, PRIMARY, "declared transaction"),
    ("A context that does not expect reads is, too.", {"reading": False}, PRIMARY, "declared transaction"),
    ("A block for replicas says otherwise.", {"declared": True, "block": REPLICA}, REPLICA, "asked for a replica"),
    ("So does an option.", {"reading": False, "option": REPLICA}, REPLICA, "asked for a replica"),
    ("So does a read-only session.", {"declared": True, "read_only": True}, REPLICA, "read-only session"),
    ("The declaration comes before the token.", {"declared": True, "pinned": yes}, PRIMARY, "declared transaction"),
    # the token
    ("What only the primary has seen is read there.", {"pinned": yes}, PRIMARY, "position not known"),
    ("Also where a block asked for a replica.", {"pinned": yes, "block": REPLICA}, PRIMARY, "position not known"),
    ("Also where an option did.", {"pinned": yes, "option": REPLICA}, PRIMARY, "position not known"),
    ("Also in a read-only session.", {"pinned": yes, "read_only": True}, PRIMARY, "position not known"),
    ("The token comes before the share, which is not drawn.", {"pinned": yes, "in_share": never}, PRIMARY, "position not"),
    # the operators' share
    ("A read that is not of the share goes to the primary.", {"in_share": no}, PRIMARY, "the operators"),
    ("One that is goes to a replica.", {"in_share": yes}, REPLICA, "read"),
    ("A block for replicas is not held back, and draws nothing.", {"in_share": never, "block": REPLICA}, REPLICA, "asked for"),
    ("Nor is an option.", {"in_share": never, "option": REPLICA}, REPLICA, "asked for a replica"),
    ("Nor is a read-only session.", {"in_share": never, "read_only": True}, REPLICA, "read-only session"),
    ("The share comes before the endpoints' state.", {"in_share": no, "away": yes}, PRIMARY, "the operators"),
    ("A write draws nothing.", {"in_share": never, "reads": False}, PRIMARY, "not known to be a read"),
    ("A transaction on the primary draws nothing.", {"in_share": never, "on_primary": True}, PRIMARY, "the transaction is on"),
    ("A declared transaction draws nothing.", {"in_share": never, "declared": True}, PRIMARY, "declared transaction"),
    # the endpoints' state
    ("Where no replica is left, the primary is asked at once.", {"away": yes}, PRIMARY, "no replica left"),
    ("Also by a block for replicas.", {"away": yes, "block": REPLICA}, PRIMARY, "no replica left"),
    ("Also by a read-only session.", {"away": yes, "read_only": True}, PRIMARY, "no replica left"),
]  # fmt: skip


@pytest.mark.parametrize(("facts", "route", "reason"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_decide(facts: dict[str, Any], route: Route, reason: str) -> None:
    """Each row says what is right, and where it comes in the order."""
    decision = decide(Situation(**{"reads": True, **facts}))
    assert decision.route is route
    assert decision.reason.startswith(reason)


def test_decision_is_a_value() -> None:
    """Decisions compare by what they say."""
    assert decide(Situation(reads=True)) == Decision(REPLICA, "read")
