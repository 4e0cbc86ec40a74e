"""How a statement travels, decided without a server: each row is a sentence."""

from typing import Any

import pytest

from ps_core._message.plan import After, Before, Facts, Plan, Refused, Way, make_plan
from ps_core._message.statement import analyse

pytestmark = pytest.mark.fast

READ, WRITE = "select a from t where b = %s", "insert into t values (%s)"
DROPPED = "create temp table t (a int) on commit drop"
SET, CALLS = "set search_path = a", "select set_config('a.b', name, false) from t"
SETS = {"sets_session": True, "asks_session": True}
LEAVES = {"sets_session": True, "leaves_session": True}
SERIALIZABLE = {"serializable": True}
SET_CONFIG = "select set_config('a.b', '1', false)"
REPLICA = {"endpoint_reads": True, "tracks": True}
AUTOCOMMIT = {"autocommit": True}
WITHIN = {"within": True}
WRITES_ONLY = {"tracks": True, "tracks_reads": False}
POOLED = {"refuses_session": True}
BARE = AUTOCOMMIT | {"by_server": True, "has_settings": False}
ROWS_WAY, COPY, PIPELINE, CURSOR = ({"way": way} for way in (Way.ROWS, Way.COPY, Way.PIPELINE, Way.CURSOR))

ROWS: list[tuple[str, str, dict[str, Any], Before, After]] = [
    # in autocommit
    ("a read is sent READ ONLY, and brings its position back", READ, AUTOCOMMIT | {"tracks": True}, Before.READ, After.POSITION),
    ("where no positions are asked for, it brings none", READ, AUTOCOMMIT, Before.READ, After.NOTHING),
    ("a read on a replica is the same", READ, AUTOCOMMIT | REPLICA, Before.READ, After.POSITION),
    ("a write brings its position back with its own COMMIT", WRITE, AUTOCOMMIT | {"tracks": True}, Before.BEGIN, After.COMMIT),
    (
        "and how it is to commit, where the session says that",
        WRITE,
        AUTOCOMMIT | {"tracks": True, "sets_commit": True},
        Before.BEGIN,
        After.COMMIT_AS_SET,
    ),
    ("where no positions are asked for, its message is its transaction", WRITE, AUTOCOMMIT, Before.SETTINGS, After.NOTHING),
    (
        "what may write is a write, and may have set how it commits",
        READ,
        AUTOCOMMIT | {"tracks": True, "may_write": True},
        Before.BEGIN,
        After.COMMIT_AS_SET,
    ),
    ("so may a procedure", "call p()", AUTOCOMMIT | {"tracks": True}, Before.BEGIN, After.COMMIT_AS_SET),
    ("and a block", "do $$begin end$$", AUTOCOMMIT | {"tracks": True}, Before.BEGIN, After.COMMIT_AS_SET),
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
        "what is not known to read is as a read is on a replica",
        "call p()",
        AUTOCOMMIT | REPLICA,
        Before.READ,
        After.POSITION,
    ),
    ("but a setting touches no data", "set timezone = 'UTC'", AUTOCOMMIT | REPLICA, Before.NOTHING, After.NOTHING),
    ("nor by a function", "select set_config('a.b', '1', false)", AUTOCOMMIT | REPLICA, Before.SETTINGS, After.NOTHING),
    ("several statements as well", "select 1; select 2", AUTOCOMMIT | REPLICA, Before.READ, After.POSITION),
    (
        "a transaction in one text carries the settings in front, which are then its own",
        "begin; select 1; commit",
        AUTOCOMMIT | {"tracks": True},
        Before.SETTINGS,
        After.NOTHING,
    ),
    (
        "on a replica the guard is over before: a query in front would settle its modes",
        "begin; select 1; commit",
        AUTOCOMMIT | REPLICA,
        Before.SETTINGS_GUARDED,
        After.POSITION,
    ),
    (
        "a BEGIN on a replica comes behind the guard, and before the settings",
        "begin",
        AUTOCOMMIT | REPLICA,
        Before.GUARD_APART,
        After.SETTINGS,
    ),
    (
        "a text that begins another transaction at its end sets that one, too",
        "begin; select 1; commit and chain",
        AUTOCOMMIT | {"tracks": True},
        Before.SETTINGS,
        After.SETTINGS,
    ),
    ("a setting brings a position, too", SET_CONFIG, AUTOCOMMIT | {"tracks": True}, Before.BEGIN, After.COMMIT),
    ("where reads bring none, it does not", SET_CONFIG, AUTOCOMMIT | WRITES_ONLY, Before.SETTINGS, After.NOTHING),
    ("unless it may write", SET_CONFIG, AUTOCOMMIT | WRITES_ONLY | {"may_write": True}, Before.BEGIN, After.COMMIT_AS_SET),
    ("writes do", WRITE, AUTOCOMMIT | WRITES_ONLY, Before.BEGIN, After.COMMIT),
    # first in an explicit transaction
    ("the first write brings the transaction's id", WRITE, {"tracks": True}, Before.TRANSACTION, After.TRANSACTION_ID),
    ("also where nothing is tracked: a COMMIT can be looked up", WRITE, {}, Before.TRANSACTION, After.TRANSACTION_ID),
    ("a read before it asks whether this is the primary", READ, {"tracks": True}, Before.TRANSACTION, After.PLACE),
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
        "where its position counts, a transaction of ours tells it",
        READ,
        BARE | {"tracks": True},
        Before.BEGIN_READ_ONLY,
        After.NOTHING,
    ),
    ("not where that of reads does not", READ, BARE | WRITES_ONLY, Before.NOTHING, After.NOTHING),
    ("nor for a write, which pins", WRITE, BARE | {"tracks": True}, Before.NOTHING, After.NOTHING),
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
    (
        "a BEGIN of the caller's is followed by the settings",
        "begin",
        AUTOCOMMIT | {"by_server": True},
        Before.NOTHING,
        After.SETTINGS,
    ),
    # rows as they come, and COPY, in autocommit
    (
        "a stream is one snapshot, whose position is asked first",
        READ,
        AUTOCOMMIT | {"tracks": True} | ROWS_WAY,
        Before.SNAPSHOT,
        After.NOTHING,
    ),
    ("on a replica, too", READ, AUTOCOMMIT | REPLICA | ROWS_WAY, Before.SNAPSHOT, After.NOTHING),
    ("where nothing is tracked, it carries the settings", READ, AUTOCOMMIT | ROWS_WAY, Before.SETTINGS, After.NOTHING),
    (
        "a write that delivers rows carries the settings",
        WRITE,
        AUTOCOMMIT | {"tracks": True} | ROWS_WAY,
        Before.SETTINGS,
        After.NOTHING,
    ),
    ("what may write, too", READ, AUTOCOMMIT | {"tracks": True, "may_write": True} | ROWS_WAY, Before.SETTINGS, After.NOTHING),
    (
        "what is not known to read is one snapshot on a replica, too",
        "call p()",
        AUTOCOMMIT | REPLICA | ROWS_WAY,
        Before.SNAPSHOT,
        After.NOTHING,
    ),
    ("COPY TO is one snapshot", "copy t to stdout", AUTOCOMMIT | {"tracks": True} | COPY, Before.SNAPSHOT, After.NOTHING),
    ("of a query, too", "copy (select 1) to stdout", AUTOCOMMIT | REPLICA | COPY, Before.SNAPSHOT, After.NOTHING),
    (
        "of a query that writes, it carries the settings",
        "copy (insert into t values (1) returning *) to stdout",
        AUTOCOMMIT | {"tracks": True} | COPY,
        Before.SETTINGS,
        After.NOTHING,
    ),
    ("COPY FROM carries the settings", "copy t from stdin", AUTOCOMMIT | {"tracks": True} | COPY, Before.SETTINGS, After.NOTHING),
    ("first in a transaction, each opens it", "copy t from stdin", {"tracks": True} | COPY, Before.TRANSACTION, After.NOTHING),
    ("on a replica as well", READ, REPLICA | ROWS_WAY, Before.TRANSACTION, After.NOTHING),
    # in a pipeline
    ("the first command of a pipeline carries the settings", WRITE, AUTOCOMMIT | PIPELINE, Before.SETTINGS, After.NOTHING),
    ("and the guard on a replica", READ, AUTOCOMMIT | REPLICA | PIPELINE, Before.READ, After.NOTHING),
    ("a later one follows it", WRITE, AUTOCOMMIT | PIPELINE | WITHIN, Before.NOTHING, After.NOTHING),
    ("a BEGIN is followed by the settings", "begin", AUTOCOMMIT | PIPELINE, Before.NOTHING, After.SETTINGS),
    ("what must stand alone does", "vacuum t", AUTOCOMMIT | PIPELINE, Before.NOTHING, After.NOTHING),
    ("outside of autocommit it opens the transaction", WRITE, PIPELINE, Before.TRANSACTION, After.NOTHING),
    # named cursors
    ("a named cursor opens the transaction", READ, CURSOR | {"by_server": True}, Before.TRANSACTION, After.NOTHING),
    # later in a transaction
    ("the first write of a transaction brings its id", WRITE, {"tracks": True} | WITHIN, Before.NOTHING, After.TRANSACTION_ID),
    ("what takes no snapshot must not be given one", "lock table t", {"tracks": True} | WITHIN, Before.NOTHING, After.NOTHING),
    ("nor as the first one", "lock table t", {"tracks": True}, Before.TRANSACTION, After.NOTHING),
    ("nor does a setting", "set local work_mem = 1", {"tracks": True}, Before.TRANSACTION, After.NOTHING),
    ("the next need not", WRITE, {"tracks": True, "known": True} | WITHIN, Before.NOTHING, After.NOTHING),
    ("a read brings nothing", READ, {"tracks": True} | WITHIN, Before.NOTHING, After.NOTHING),
    ("nor do several statements", "select 1; " + WRITE, {"tracks": True} | WITHIN, Before.NOTHING, After.NOTHING),
    ("nor does what must stand alone", "vacuum t", {"tracks": True} | WITHIN, Before.NOTHING, After.NOTHING),
    ("nor what the server binds", WRITE, WITHIN | {"by_server": True}, Before.NOTHING, After.NOTHING),
    ("nor what is copied", "copy t from stdin", WITHIN | COPY, Before.NOTHING, After.NOTHING),
    ("on a replica it asks for what was seen since", READ, REPLICA | WITHIN, Before.GUARD, After.NOTHING),
    ("also where rows come one by one", READ, REPLICA | WITHIN | ROWS_WAY, Before.GUARD, After.NOTHING),
    ("a setting sees nothing", SET_CONFIG, REPLICA | WITHIN, Before.NOTHING, After.NOTHING),
    ("nor does what is a session's", "listen a", REPLICA | WITHIN, Before.NOTHING, After.NOTHING),
    ("nor a BEGIN too many", "begin", REPLICA | WITHIN, Before.NOTHING, After.NOTHING),
    ("not with one snapshot for all", READ, REPLICA | WITHIN | {"snapshot_each": False}, Before.NOTHING, After.NOTHING),
    ("its end tells how far it saw", "commit", REPLICA | WITHIN, Before.NOTHING, After.POSITION),
    ("so does a text that ends it", "select 1; commit", REPLICA | WITHIN, Before.GUARD, After.POSITION),
    ("also as the first of it", "select 1; commit", REPLICA, Before.TRANSACTION, After.POSITION),
    ("what another transaction follows sets that one", "commit and chain", WITHIN, Before.NOTHING, After.SETTINGS),
    # what is set for a session that no pooler keeps
    ("a SET carries the settings, and its value is asked for", SET, AUTOCOMMIT | SETS, Before.SETTINGS, After.SESSION),
    ("on a replica as well", SET, AUTOCOMMIT | SETS | REPLICA, Before.SETTINGS, After.SESSION),
    ("what else a function's caller does there is READ ONLY", CALLS, AUTOCOMMIT | SETS | REPLICA, Before.READ, After.SESSION),
    ("but not on the primary", CALLS, AUTOCOMMIT | SETS, Before.SETTINGS, After.SESSION),
    ("first in a transaction, it begins that", SET, SETS, Before.TRANSACTION, After.SESSION),
    ("within one it is accompanied by nothing", SET, WITHIN | SETS, Before.NOTHING, After.SESSION),
    ("but by the guard, where it reads", CALLS, WITHIN | SETS | REPLICA, Before.GUARD, After.SESSION),
    ("what lets go goes alone", "reset all", AUTOCOMMIT | LEAVES, Before.NOTHING, After.NOTHING),
    ("a role does, and is asked for", "set role r", AUTOCOMMIT | LEAVES | SETS, Before.NOTHING, After.SESSION),
    ("first in a transaction, it begins that, too", "reset all", LEAVES, Before.TRANSACTION, After.NOTHING),
    ("a function that lets go carries the settings", CALLS, AUTOCOMMIT | {"sets_session": True}, Before.SETTINGS, After.NOTHING),
    (
        "a chain that is first in a transaction begins one, and the next",
        "commit and chain",
        {},
        Before.TRANSACTION,
        After.SETTINGS,
    ),
    (
        "but not where the server binds",
        "commit and chain",
        {"by_server": True},
        Before.TRANSACTION,
        After.NOTHING,
    ),
]


@pytest.mark.parametrize(("text", "facts", "before", "after"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_ways(text: str, facts: dict[str, Any], before: Before, after: After) -> None:
    """What goes before and after each kind of statement."""
    plan = make_plan(analyse(text), Facts(**facts))
    assert isinstance(plan, Plan)
    assert (plan.before, plan.after) == (before, after)
    assert plan.by_server is facts.get("by_server", False)
    assert plan.may_write is facts.get("may_write", False)
    assert (plan.first, plan.again) == (not facts.get("within", False), False)


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
    ("a stream cannot take a SET", CALLS, WITHIN | SETS | ROWS_WAY, Refused.SESSION),
    ("nor can a pipeline", SET, WITHIN | SETS | PIPELINE, Refused.SESSION),
    ("a message can", SET, WITHIN | SETS, None),
    ("a pipeline can take what sets nothing", READ, WITHIN | PIPELINE, None),
    (
        "a session that is SERIALIZABLE does not read on a replica",
        READ,
        AUTOCOMMIT | REPLICA | SERIALIZABLE,
        Refused.SERIALIZABLE,
    ),
    ("but on the primary", READ, AUTOCOMMIT | SERIALIZABLE, None),
    ("and may set something there, to get out", SET, AUTOCOMMIT | REPLICA | SERIALIZABLE | SETS, None),
    ("and what changes nothing", "rollback", AUTOCOMMIT | REPLICA | SERIALIZABLE, None),
    ("an advisory lock means nothing on a replica", "select pg_advisory_xact_lock(1)", REPLICA, Refused.MAY_WRITE),
    ("what may write has no place on a replica", READ, REPLICA | {"may_write": True}, Refused.MAY_WRITE),
    ("nor in autocommit", READ, AUTOCOMMIT | REPLICA | {"may_write": True}, Refused.MAY_WRITE),
    ("what cannot be sent READ ONLY is not sent there", "vacuum t", AUTOCOMMIT | REPLICA, Refused.MAY_WRITE),
    ("what changes nothing is", "reset search_path", AUTOCOMMIT | REPLICA, None),
    ("a chain would begin without the guard there", "commit and chain", REPLICA | WITHIN, Refused.UNGUARDED),
    ("and a BEGIN in a pipeline", "begin", AUTOCOMMIT | REPLICA | PIPELINE, Refused.UNGUARDED),
    ("a BEGIN is, and is READ ONLY behind it", "begin", AUTOCOMMIT | REPLICA, None),
    (
        "a setting in front of a query carries the role",
        "set local work_mem = 1; select 1",
        AUTOCOMMIT | {"has_identity": True},
        None,
    ),
    ("so does a transaction in one text", "begin; select 1; commit", AUTOCOMMIT | {"has_identity": True}, None),
    (
        "several transactions in one text would lose it",
        "begin; commit; select 1",
        AUTOCOMMIT | {"has_identity": True},
        Refused.SEVERAL_TRANSACTIONS,
    ),
    ("also where the first is open already", "commit; select 1", WITHIN, Refused.SEVERAL_TRANSACTIONS),
    (
        "where the session holds all there is, it loses nothing",
        "begin; commit; select 1",
        AUTOCOMMIT | {"held_by_session": True},
        None,
    ),
    ("a BEGIN of the caller's carries it", "begin", AUTOCOMMIT | {"has_identity": True}, None),
    ("also bound by the server", "begin", AUTOCOMMIT | {"has_identity": True, "by_server": True}, None),
    (
        "a REINDEX that must be alone, after the server's word, would lose it",
        "reindex database d",
        AUTOCOMMIT | {"has_identity": True, "refused_in_batch": True},
        Refused.NO_ROLE,
    ),
    ("rows that come one by one are those of one statement", "select 1; select 2", AUTOCOMMIT | ROWS_WAY, Refused.SEVERAL),
    ("a chain in a stream would carry nothing", "commit and chain", WITHIN | ROWS_WAY, Refused.SEVERAL),
    ("so is what is copied", "select 1; copy t from stdin", WITHIN | COPY, Refused.SEVERAL),
    (
        "nobody could end a transaction around a stream that the server binds",
        READ,
        AUTOCOMMIT | ROWS_WAY | {"by_server": True},
        Refused.OPEN_ENDED,
    ),
    ("nor around a cursor WITH HOLD", READ, AUTOCOMMIT | CURSOR | {"by_server": True}, Refused.OPEN_ENDED),
    ("where nothing is to be set, none is needed", READ, AUTOCOMMIT | CURSOR | {"by_server": True, "has_settings": False}, None),
    ("several statements that share a message carry it", "select 1; select 2", AUTOCOMMIT | {"has_identity": True}, None),
    ("several of a transaction carry it", "set local work_mem = 1; select 1", {"has_identity": True}, None),
    ("what must stand alone would lose it", "vacuum t", AUTOCOMMIT | {"has_identity": True}, Refused.NO_ROLE),
    ("but for what touches no data", "listen a", AUTOCOMMIT | {"has_identity": True}, None),
    ("without a role, nothing is lost", "set local work_mem = 1; select 1", AUTOCOMMIT, None),
    # what a session would keep, behind a transaction pooler
    ("a session lock would be nobody's", "select pg_advisory_lock(1)", AUTOCOMMIT | POOLED, Refused.LOCK),
    ("in a transaction, too", "select pg_advisory_lock(1)", POOLED | WITHIN, Refused.LOCK),
    ("and as the first of one", "select pg_advisory_lock(1)", POOLED, Refused.LOCK),
    ("and its release", "select pg_advisory_unlock(1)", POOLED, Refused.LOCK),
    ("in whatever way", "select pg_advisory_lock(1)", AUTOCOMMIT | POOLED | PIPELINE | WITHIN, Refused.LOCK),
    ("also among others", "select 1; select pg_advisory_lock(1)", AUTOCOMMIT | POOLED, Refused.LOCK),
    ("one of a transaction is that's", "select pg_advisory_xact_lock(1)", POOLED, None),
    ("where there is a session, it has a place", "select pg_advisory_lock(1)", AUTOCOMMIT, None),
    ("on a replica it means nothing at all", "select pg_advisory_lock(1)", REPLICA | POOLED, Refused.MAY_WRITE),
    ("news would come to somebody else", "listen a", AUTOCOMMIT | POOLED, Refused.CHANNEL),
    ("also on a replica", "listen a", AUTOCOMMIT | REPLICA | POOLED, Refused.CHANNEL),
    ("a temporary table would stay", "create temp table t (a int)", AUTOCOMMIT | POOLED, Refused.TEMPORARY),
    ("also behind its transaction", "create temp table t (a int)", POOLED | WITHIN, Refused.TEMPORARY),
    ("ON COMMIT DROP nobody could use it alone", DROPPED, AUTOCOMMIT | POOLED, Refused.TEMPORARY),
    ("nor by a stream", DROPPED, AUTOCOMMIT | POOLED | ROWS_WAY, Refused.TEMPORARY),
    ("in a transaction one can", DROPPED, POOLED | WITHIN, None),
    ("also in one of the caller's own in autocommit", DROPPED, AUTOCOMMIT | POOLED | WITHIN, None),
    ("and as the first of one", DROPPED, POOLED, None),
    ("what is sent in one text is one", f"{DROPPED}; table t", AUTOCOMMIT | POOLED, None),
    ("so is a pipeline", DROPPED, AUTOCOMMIT | POOLED | PIPELINE, None),
    ("a cursor WITH HOLD would stay", "declare c cursor with hold for select 1", POOLED | WITHIN, Refused.HELD_CURSOR),
    ("also one of psycopg's", READ, POOLED | CURSOR | WITHIN | {"with_hold": True}, Refused.HELD_CURSOR),
    ("in autocommit as well", READ, AUTOCOMMIT | POOLED | CURSOR | {"with_hold": True, "by_server": True}, Refused.HELD_CURSOR),
    ("whatever it is made of", DROPPED, AUTOCOMMIT | CURSOR | POOLED | {"with_hold": True}, Refused.HELD_CURSOR),
    ("one that ends with its transaction does not", READ, POOLED | CURSOR | WITHIN, None),
    ("where there is a session, it is held", READ, CURSOR | WITHIN | {"with_hold": True}, None),
    ("a prepared statement is a server connection's", "prepare p as select 1", POOLED, Refused.PREPARED),
    ("so may be what is executed", "execute p", POOLED | WITHIN, Refused.PREPARED),
    ("so is a library", "load 'auto_explain'", AUTOCOMMIT | POOLED, Refused.LIBRARY),
    ("what leaves nothing is sent", READ, POOLED, None),
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
        plan.before: (plan.begin, plan.own_begin, plan.own_guard, plan.read_only, plan.is_accompanied)
        for plan in (Plan(statement, before) for before in Before)
    }
    assert said == {
        Before.NOTHING: (False, False, False, False, False),
        Before.TRANSACTION: (True, False, False, False, True),
        Before.SETTINGS: (False, False, False, False, True),
        Before.READ: (False, False, False, True, True),
        Before.SNAPSHOT: (False, False, True, False, True),
        Before.GUARD: (False, False, False, False, True),
        Before.GUARD_APART: (False, False, True, False, True),
        Before.SETTINGS_GUARDED: (False, False, True, False, True),
        Before.BEGIN: (False, True, False, False, True),
        Before.BEGIN_READ_ONLY: (False, True, False, True, True),
    }
    assert not Plan(statement, Before.BEGIN_READ_ONLY, may_write=True).read_only
    assert Plan(statement).first
    assert (Plan(statement).reads, Plan(statement, may_write=True).reads, Plan(analyse(WRITE)).reads) == (True, False, False)
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
