"""How a statement travels, decided without a server: each row is a sentence."""

from typing import Any

import pytest

from ps_core._message.plan import After, Before, Facts, Plan, Refused, make_plan
from ps_core._message.statement import analyse

pytestmark = pytest.mark.fast

READ, WRITE = "select a from t where b = %s", "insert into t values (%s)"
REPLICA = {"endpoint_reads": True, "tracks": True}
AUTOCOMMIT = {"autocommit": True}

ROWS: list[tuple[str, str, dict[str, Any], Before, After]] = [
    # in autocommit
    ("a read is sent READ ONLY, and brings its position back", READ, AUTOCOMMIT | {"tracks": True}, Before.READ, After.POSITION),
    ("where no positions are asked for, it brings none", READ, AUTOCOMMIT, Before.READ, After.NOTHING),
    ("a read on a replica is the same", READ, AUTOCOMMIT | REPLICA, Before.READ, After.POSITION),
    ("a write brings its position back with its own COMMIT", WRITE, AUTOCOMMIT | {"tracks": True}, Before.BEGIN, After.COMMIT),
    ("where no positions are asked for, its message is its transaction", WRITE, AUTOCOMMIT, Before.SETTINGS, After.NOTHING),
    ("what may write is a write", READ, AUTOCOMMIT | {"tracks": True, "may_write": True}, Before.BEGIN, After.COMMIT),
    ("what must stand alone does", "vacuum t", AUTOCOMMIT | {"tracks": True}, Before.NOTHING, After.NOTHING),
    (
        "so does what the server refused in a message with others",
        WRITE,
        AUTOCOMMIT | {"refused_in_batch": True},
        Before.NOTHING,
        After.NOTHING,
    ),
    ("so does a ping", "", AUTOCOMMIT | {"tracks": True}, Before.NOTHING, After.NOTHING),
    ("so does what ends a transaction", "commit", AUTOCOMMIT, Before.NOTHING, After.NOTHING),
    ("a BEGIN of the caller's is followed by the settings", "begin", AUTOCOMMIT, Before.NOTHING, After.SETTINGS),
    (
        "several statements share the settings",
        "select 1; select 2",
        AUTOCOMMIT | {"tracks": True},
        Before.SETTINGS,
        After.NOTHING,
    ),
    (
        "what is not known to read is READ ONLY on a replica",
        "call p()",
        AUTOCOMMIT | REPLICA,
        Before.SETTINGS_READ_ONLY,
        After.NOTHING,
    ),
    # first in an explicit transaction
    ("the first write brings the transaction's id", WRITE, {"tracks": True}, Before.TRANSACTION, After.TRANSACTION_ID),
    ("also where nothing is tracked: a COMMIT can be looked up", WRITE, {}, Before.TRANSACTION, After.TRANSACTION_ID),
    ("a read before it brings its position", READ, {"tracks": True}, Before.TRANSACTION, After.POSITION),
    ("a read where nothing is tracked brings nothing", READ, {}, Before.TRANSACTION, After.NOTHING),
    ("a read that may write brings the id", READ, {"tracks": True, "may_write": True}, Before.TRANSACTION, After.TRANSACTION_ID),
    ("several statements bring nothing", "select 1; select 2", {"tracks": True}, Before.TRANSACTION, After.NOTHING),
    ("a read on a replica travels by itself", READ, REPLICA, Before.READ, After.POSITION),
    ("but not with one snapshot for all", READ, REPLICA | {"snapshot_each": False}, Before.TRANSACTION, After.NOTHING),
    ("what is not a read opens the transaction on a replica", "call p()", REPLICA, Before.TRANSACTION, After.NOTHING),
    # bound by the server
    (
        "bound by the server, a read is in a READ ONLY of ours",
        READ,
        AUTOCOMMIT | {"by_server": True},
        Before.BEGIN_READ_ONLY,
        After.NOTHING,
    ),
    ("a write is in a transaction of ours", WRITE, AUTOCOMMIT | {"by_server": True}, Before.BEGIN, After.NOTHING),
    (
        "everything is READ ONLY on a replica",
        "call p()",
        AUTOCOMMIT | REPLICA | {"by_server": True},
        Before.BEGIN_READ_ONLY,
        After.NOTHING,
    ),
    (
        "without settings, it is alone",
        READ,
        AUTOCOMMIT | {"by_server": True, "has_settings": False},
        Before.NOTHING,
        After.NOTHING,
    ),
    (
        "but not on a replica",
        READ,
        AUTOCOMMIT | REPLICA | {"by_server": True, "has_settings": False},
        Before.BEGIN_READ_ONLY,
        After.NOTHING,
    ),
    ("what must stand alone does", "vacuum t", AUTOCOMMIT | {"by_server": True}, Before.NOTHING, After.NOTHING),
    ("first in a transaction, it follows the opening", WRITE, {"by_server": True}, Before.TRANSACTION, After.NOTHING),
    ("a read on a replica as well", READ, REPLICA | {"by_server": True}, Before.TRANSACTION, After.NOTHING),
    ("a BEGIN of the caller's is alone", "begin", AUTOCOMMIT | {"by_server": True}, Before.NOTHING, After.NOTHING),
]


@pytest.mark.parametrize(("text", "facts", "before", "after"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_ways(text: str, facts: dict[str, Any], before: Before, after: After) -> None:
    """What goes before and after each kind of statement."""
    plan = make_plan(analyse(text), Facts(**facts))
    assert isinstance(plan, Plan)
    assert (plan.before, plan.after) == (before, after)
    assert plan.by_server is facts.get("by_server", False)
    assert plan.may_write is facts.get("may_write", False)
    assert (plan.first, plan.again) == (True, False)


APART = [
    ("several statements follow their transaction's opening", "select 1; select 2", {}, True),
    ("one statement shares its message", WRITE, {}, False),
    ("several in autocommit share theirs", "select 1; select 2", AUTOCOMMIT, False),
    ("what the server binds shares nothing", READ, AUTOCOMMIT | {"by_server": True}, True),
]


@pytest.mark.parametrize(("text", "facts", "apart"), [row[1:] for row in APART], ids=[row[0] for row in APART])
def test_apart(text: str, facts: dict[str, Any], apart: bool) -> None:
    """What travels in messages of its own."""
    plan = make_plan(analyse(text), Facts(**facts))
    assert isinstance(plan, Plan)
    assert plan.apart is apart


REFUSED = [
    ("an advisory lock means nothing on a replica", "select pg_advisory_xact_lock(1)", REPLICA, Refused.MAY_WRITE),
    ("what may write has no place on a replica", READ, REPLICA | {"may_write": True}, Refused.MAY_WRITE),
    ("nor in autocommit", READ, AUTOCOMMIT | REPLICA | {"may_write": True}, Refused.MAY_WRITE),
    ("what cannot be sent READ ONLY is not sent there", "vacuum t", AUTOCOMMIT | REPLICA, Refused.MAY_WRITE),
    ("what changes nothing is", "reset search_path", AUTOCOMMIT | REPLICA, None),
    ("a BEGIN is, and is READ ONLY behind it", "begin", AUTOCOMMIT | REPLICA, None),
    (
        "several statements, one of which is alone, would lose the role",
        "set local work_mem = 1; select 1",
        AUTOCOMMIT | {"has_identity": True},
        Refused.NO_ROLE,
    ),
    ("so would a transaction in one text", "begin; select 1; commit", AUTOCOMMIT | {"has_identity": True}, Refused.NO_ROLE),
    ("so would a BEGIN that the server binds", "begin", AUTOCOMMIT | {"has_identity": True, "by_server": True}, Refused.NO_ROLE),
    ("a BEGIN of the caller's carries it", "begin", AUTOCOMMIT | {"has_identity": True}, None),
    ("several statements that share a message carry it", "select 1; select 2", AUTOCOMMIT | {"has_identity": True}, None),
    ("several of a transaction carry it", "set local work_mem = 1; select 1", {"has_identity": True}, None),
    ("a single statement that must stand alone is sent", "vacuum t", AUTOCOMMIT | {"has_identity": True}, None),
    ("without a role, nothing is lost", "set local work_mem = 1; select 1", AUTOCOMMIT, None),
]


@pytest.mark.parametrize(("text", "facts", "refused"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_refused(text: str, facts: dict[str, Any], refused: Refused | None) -> None:
    """What is not sent, and why."""
    plan = make_plan(analyse(text), Facts(**facts))
    assert (plan if isinstance(plan, Refused) else None) is refused


OUTLIVES = [
    ("an opening may be sent again", WRITE, {}, True),
    ("a read READ ONLY, too", READ, AUTOCOMMIT, True),
    ("bound by the server, too", READ, AUTOCOMMIT | {"by_server": True}, True),
    ("a write in autocommit may not", WRITE, AUTOCOMMIT, False),
    ("nor with its own COMMIT", WRITE, AUTOCOMMIT | {"tracks": True}, False),
    ("nor what may write", READ, AUTOCOMMIT | {"may_write": True}, False),
    ("nor what may write and is bound by the server", READ, AUTOCOMMIT | {"by_server": True, "may_write": True}, False),
    ("nor several statements, in no transaction", "select 1; select 2", {}, False),
    ("nor what seems to be one and may be several", "select ';'", {}, False),
    ("nor what a rollback does not undo", "copy t to program 'x'", {}, False),
    ("nor what a function does beside the transaction", READ, {"beside": True}, False),
    ("nor what goes alone", "vacuum t", AUTOCOMMIT, False),
    ("nor what is not known to read, on a replica", "call p()", AUTOCOMMIT | REPLICA, False),
]


@pytest.mark.parametrize(("text", "facts", "outlives"), [row[1:] for row in OUTLIVES], ids=[row[0] for row in OUTLIVES])
def test_outlives_loss(text: str, facts: dict[str, Any], outlives: bool) -> None:
    """What may be sent again where nothing tells whether it ran."""
    plan = make_plan(analyse(text), Facts(**facts))
    assert isinstance(plan, Plan)
    assert plan.outlives_loss is outlives


def test_what_a_plan_says() -> None:
    """Each way of opening is the caller's transaction, one of ours, or none."""
    statement = analyse(READ)
    said = {
        before: (plan.begin, plan.own_begin, plan.read_only, plan.is_accompanied)
        for before in Before
        if (plan := Plan(statement, before))
    }
    assert said == {
        Before.NOTHING: (False, False, False, False),
        Before.TRANSACTION: (True, False, False, True),
        Before.SETTINGS: (False, False, False, True),
        Before.READ: (False, False, True, True),
        Before.SETTINGS_READ_ONLY: (False, False, False, True),
        Before.BEGIN: (False, True, False, True),
        Before.BEGIN_READ_ONLY: (False, True, True, True),
    }
    assert not Plan(statement, Before.BEGIN_READ_ONLY, may_write=True).read_only
    assert not Plan(statement).by_server
    assert not Plan(analyse(WRITE), Before.BEGIN_READ_ONLY).read_only


ROOM = [
    ("behind a read in autocommit is room", "select 1", AUTOCOMMIT, True),
    ("behind a write in autocommit, too", WRITE, AUTOCOMMIT | {"tracks": True}, True),
    ("not in the caller's transaction, which its error would fail", "select 1", {}, False),
    ("nor where nothing goes along", "vacuum t", AUTOCOMMIT, False),
    ("nor behind what may be several: its results would be mixed up", "select ';'", AUTOCOMMIT, False),
    ("nor where the server binds", "select 1", AUTOCOMMIT | {"by_server": True}, False),
]


@pytest.mark.parametrize(("text", "facts", "room"), [row[1:] for row in ROOM], ids=[row[0] for row in ROOM])
def test_has_room(text: str, facts: dict[str, Any], room: bool) -> None:
    """Where the question for the names of functions may travel."""
    plan = make_plan(analyse(text), Facts(**facts))
    assert isinstance(plan, Plan)
    assert plan.has_room is room
    assert not Plan(plan.statement, plan.before, first=False).has_room
