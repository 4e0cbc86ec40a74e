"""How a transaction ends, as tables: what its last message holds, what the answers mean, and what a lookup proves."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from ps_core._message.commit import (
    FUTURE_ROUTINE,
    Answers,
    Ended,
    Ending,
    Lookup,
    Outcome,
    Raises,
    Reply,
    TransactionId,
    ending,
    judge,
    lookup_of,
    lookup_of_marker,
    lookup_of_verify,
    lookups_of,
    marker_sql,
    marker_table_sql,
    read_ending,
    settling,
)

pytestmark = pytest.mark.fast

KNOWN = TransactionId("756", "00000001", "1764367164.5", "on", "none")
ASYNCHRONOUS = TransactionId("756", "00000001", "1764367164.5", "off", "none")
ROW = ("756", "00000001", "1764367164.5", "on", "none")
MARK = b"INSERT ..."

T, S, M, E, P, C = (
    Answers.TRANSACTION,
    Answers.SYNCHRONOUS_COMMIT,
    Answers.MARKER,
    Answers.END,
    Answers.POSITION,
    Answers.COMMITTED_POSITION,
)

ENDINGS: list[tuple[str, bytes, dict[str, Any], list[Answers]]] = [
    ("a COMMIT where nobody wants positions is COMMIT alone", b"COMMIT", {}, [E]),
    ("so is one whose id is known", b"COMMIT", {"known": KNOWN}, [E]),
    ("a ROLLBACK where nobody wants positions is ROLLBACK alone", b"ROLLBACK", {}, [E]),
    ("a COMMIT of which no write was noticed asks for the id before it", b"COMMIT", {"tracks": True}, [T, E, C]),
    ("one whose id is known asks what it waits for", b"COMMIT", {"tracks": True, "known": KNOWN}, [S, E, C]),
    ("a marker goes before COMMIT", b"COMMIT", {"marker": MARK}, [M, E]),
    ("the id is asked before the marker, which is a write", b"COMMIT", {"tracks": True, "marker": MARK}, [T, M, E, C]),
    ("so is the setting", b"COMMIT", {"tracks": True, "known": KNOWN, "marker": MARK}, [S, M, E, C]),
    (
        "a READ ONLY transaction marks nothing and has no id",
        b"COMMIT",
        {"tracks": True, "read_only": True, "marker": MARK},
        [E, P],
    ),
    ("nor has one on a replica", b"COMMIT", {"tracks": True, "on_replica": True, "marker": MARK}, [E, P]),
    ("a COMMIT of a failed transaction is a rollback", b"COMMIT", {"tracks": True, "failed": True, "marker": MARK}, [E, P]),
    ("a ROLLBACK tells what was seen", b"ROLLBACK", {"tracks": True, "known": KNOWN, "marker": MARK}, [E, P]),
    ("on a replica of which nobody wants positions neither", b"COMMIT", {"on_replica": True}, [E]),
    ("also on a replica", b"ROLLBACK", {"tracks": True, "on_replica": True}, [E, P]),
]


@pytest.mark.parametrize(("_sentence", "command", "facts", "parts"), ENDINGS, ids=[row[0] for row in ENDINGS])
def test_ending(_sentence: str, command: bytes, facts: dict[str, Any], parts: list[Answers]) -> None:
    """The last message has these parts in this order, and commits only where it can."""
    end = ending(command, **facts)
    assert [what for what, _ in end.parts] == parts
    assert end.commits is (command == b"COMMIT" and not facts.get("failed"))
    assert end.known is facts.get("known")
    assert end.message == b";".join(sql for _, sql in end.parts)
    assert dict(end.parts)[E] == command
    assert (b"pg_last_wal_replay_lsn" in end.message) is (P in parts)
    assert (b"current_setting('synchronous_commit') OPERATOR" in end.message) is (P in parts and not facts.get("on_replica"))


DONE = Reply(tag="COMMIT")
UNDONE = Reply(tag="ROLLBACK")
TOLD, WROTE_NOTHING = Reply("SELECT 1", ROW), Reply("SELECT 1", (None, "00000001", "1764367164.5", "on", "none"))
MARKED = Reply("INSERT 0 1")
ON, OFF = Reply("SELECT 1", ("on",)), Reply("SELECT 1", ("off",))
PLACE, OF_STANDBY = Reply("SELECT 1", ("0/10", "0/20")), Reply(error="55000")
SEEN = Reply("SELECT 1", ("0/5", "f"))
ERROR, OF_POOLER = Reply(error="23503"), Reply(error="08P01", by_server=False)
LOST: dict[str, Any] = {"lost": True}
CANCELLED: dict[str, Any] = {"wait_cancelled": True}

FRESH = ending(b"COMMIT", tracks=True)
AFTER = ending(b"COMMIT", tracks=True, known=KNOWN)
AFTER_ASYNCHRONOUS = ending(b"COMMIT", tracks=True, known=ASYNCHRONOUS)
ALONE = ending(b"COMMIT", known=KNOWN)
MARKING = ending(b"COMMIT", tracks=True, known=KNOWN, marker=MARK)
READING = ending(b"COMMIT", tracks=True, read_only=True)
BACK = ending(b"ROLLBACK", tracks=True, known=KNOWN)


def committed(position: str | None = None, **told: Any) -> Ended:
    return Ended(outcome=Outcome.COMMITTED, position=position, **told)


def rolled_back(raises: Raises = Raises.NOTHING, **told: Any) -> Ended:
    return Ended(outcome=Outcome.ROLLED_BACK, raises=raises, **told)


def unknown(raises: Raises = Raises.UNSETTLED, **told: Any) -> Ended:
    return Ended(outcome=Outcome.UNKNOWN, raises=raises, **told)


BY_ID: dict[str, Any] = {"transaction": KNOWN, "synchronous_commit": "on"}
BY_ID_OFF: dict[str, Any] = {"transaction": KNOWN, "synchronous_commit": "off"}

ANSWERS: list[tuple[str, Ending, list[Reply], dict[str, Any], Ended]] = [
    ("a commit that waits is as far as WAL is flushed", AFTER, [ON, DONE, PLACE], {}, committed("0/10", **BY_ID)),
    ("one that does not is as far as WAL is inserted", AFTER, [OFF, DONE, PLACE], {}, committed("0/20", **BY_ID_OFF)),
    ("what the first write told of it may be over", AFTER_ASYNCHRONOUS, [ON, DONE, PLACE], {}, committed(
        "0/10", transaction=ASYNCHRONOUS, synchronous_commit="on")),
    ("an id that comes with the COMMIT is its transaction's", FRESH, [TOLD, DONE, PLACE], {}, committed("0/10", **BY_ID)),
    ("without one it wrote nothing", FRESH, [WROTE_NOTHING, DONE, PLACE], {}, committed("0/10", synchronous_commit="on")),
    ("a commit of reads is where it says", READING, [DONE, SEEN], {}, committed("0/5")),
    ("where nobody asks there is no position", ALONE, [DONE], {}, committed(**BY_ID)),
    ("the tag is final: what is lost behind it is a position", AFTER, [ON, DONE], LOST, committed(**BY_ID)),
    ("so is an error behind it", AFTER, [ON, DONE, ERROR], {}, committed(**BY_ID)),
    ("the position of a standby counts nothing", AFTER, [ON, DONE, OF_STANDBY], {}, committed(is_demoted=True, **BY_ID)),
    ("also where only reads are committed", READING, [DONE, Reply("SELECT 1", ("0/5", "t"))], {}, committed(is_demoted=True)),
    ("a success whose wait was ended is none", AFTER, [ON, DONE, PLACE], CANCELLED, unknown(Raises.NOT_CONFIRMED, **BY_ID)),
    ("an error in the tag's place: it did not commit", AFTER, [ON, ERROR], {}, rolled_back(Raises.ERROR)),
    ("an error of the marker's: the same", MARKING, [ON, ERROR], {}, rolled_back(Raises.ERROR)),
    ("also if the connection goes with it", AFTER, [ON, ERROR], LOST, rolled_back(Raises.ERROR)),
    ("an error of the pooler's says nothing", AFTER, [OF_POOLER], LOST, unknown(**BY_ID)),
    ("nor does one behind what was asked", AFTER, [OFF, OF_POOLER], LOST, unknown(**BY_ID_OFF)),
    ("nor does silence", AFTER, [], LOST, unknown(**BY_ID)),
    ("silence behind the marker neither", MARKING, [ON, MARKED], LOST, unknown(**BY_ID)),
    ("silence of which nothing is known", FRESH, [], LOST, unknown()),
    ("silence behind the id", FRESH, [TOLD], LOST, unknown(**BY_ID)),
    ("silence and a wait that was ended: it is looked up", AFTER, [], {**LOST, **CANCELLED}, unknown(**BY_ID)),
    ("a COMMIT that is answered by ROLLBACK", AFTER, [ON, UNDONE, PLACE], {}, rolled_back(position="0/10")),
    ("the same on a standby", AFTER, [ON, UNDONE, OF_STANDBY], {}, rolled_back()),
    ("the same, and then lost", AFTER, [ON, UNDONE], LOST, rolled_back(Raises.LOST)),
    ("a ROLLBACK is where it says", BACK, [UNDONE, SEEN], {}, rolled_back(position="0/5")),
    ("one whose position cannot be told is one", BACK, [UNDONE, ERROR], {}, rolled_back()),
    ("a ROLLBACK that fails", BACK, [ERROR], {}, rolled_back(Raises.ERROR)),
    ("a ROLLBACK that is lost", BACK, [], LOST, rolled_back(Raises.LOST)),
]  # fmt: skip


@pytest.mark.parametrize(("_sentence", "end", "replies", "how", "expected"), ANSWERS, ids=[row[0] for row in ANSWERS])
def test_read_ending(_sentence: str, end: Ending, replies: list[Reply], how: dict[str, Any], expected: Ended) -> None:
    """These answers mean this."""
    ended = read_ending(end, replies, **how)
    assert ended == expected
    assert ended.wrote is (expected.transaction is not None)


def test_transaction_id() -> None:
    """A row without an id, or of another shape, is no transaction; one that an older message asked for has no settings."""
    assert TransactionId.of(ROW) == KNOWN
    assert TransactionId.of(ROW[:3]) == TransactionId(*ROW[:3])
    for row in ((), (None, *ROW[1:]), ("756", None, "1"), ("756", "00000001", None)):
        assert TransactionId.of(row) is None


STATUS: list[tuple[str, str | None, str, bool, Outcome]] = [
    ("aborted is aborted", "aborted", "00000001", False, Outcome.ROLLED_BACK),
    ("on any timeline", "aborted", "00000002", True, Outcome.ROLLED_BACK),
    ("committed on the same timeline", "committed", "00000001", False, Outcome.COMMITTED),
    ("another's, perhaps, on another timeline", "committed", "00000002", False, Outcome.OVER),
    ("or after a restart", "committed", "00000001", True, Outcome.OVER),
    ("in progress", "in progress", "00000001", False, Outcome.IN_PROGRESS),
    ("another's is in progress", "in progress", "00000002", False, Outcome.OVER),
    ("an id too old to be known is over", None, "00000001", False, Outcome.OVER),
]


@pytest.mark.parametrize(("_sentence", "status", "timeline", "restarted", "expected"), STATUS, ids=[row[0] for row in STATUS])
def test_judge(_sentence: str, status: str | None, timeline: str, restarted: bool, expected: Outcome) -> None:
    """What the primary says of an id proves this."""
    assert judge(KNOWN, status=status, timeline=timeline, restarted=restarted) is expected


BEGUN, SET, YES, NO = Reply("BEGIN"), Reply("SET"), Reply("SELECT 1", ("t", "0/1")), Reply("SELECT 1", ("f", None))
PRIMARY, STANDBY = Reply("SELECT 1", ("f",)), Reply("SELECT 1", ("t",))
FENCED, THERE = Reply("INSERT 0 1"), Reply("INSERT 0 0")
FUTURE = Reply(error="22023", routine=FUTURE_ROUTINE)
VALID = Reply(error="22023", routine="parse_and_validate_value")


def said(standby: str, *rest: str | None) -> Reply:
    return Reply("SELECT 1", (standby, *rest))


COMMITTED_ROW = said("f", "committed", "00000001", "f", "0/1")
ABORTED_ROW = said("f", "aborted", "00000001", "f", None)


def ID() -> Lookup:  # noqa: N802 - made when it is asked, so that a changed function is noticed
    return lookup_of(KNOWN)


def MARKER() -> Lookup:  # noqa: N802
    return lookup_of_marker("m", "public", "on")


def VERIFY() -> Lookup:  # noqa: N802
    return lookup_of_verify("SELECT true", ("SET LOCAL role='a'",), "on")


LOOKUPS: list[tuple[str, Callable[[], Lookup], list[Reply], bool, Outcome]] = [
    ("committed, behind its barrier", ID, [BEGUN, SET, COMMITTED_ROW, DONE], False, Outcome.COMMITTED),
    ("a barrier without its tag proves nothing", ID, [BEGUN, SET, COMMITTED_ROW], False, Outcome.UNCONFIRMED),
    ("nor one whose wait was ended", ID, [BEGUN, SET, COMMITTED_ROW, DONE], True, Outcome.UNCONFIRMED),
    ("nor one that is rolled back", ID, [BEGUN, SET, COMMITTED_ROW, UNDONE], False, Outcome.UNCONFIRMED),
    ("aborted needs none", ID, [BEGUN, SET, ABORTED_ROW], False, Outcome.ROLLED_BACK),
    ("a standby's answer is no answer", ID, [BEGUN, SET, said("t", None, None, "f", None), DONE], False, Outcome.STANDBY),
    ("the id is in a primary's future", ID, [BEGUN, SET, FUTURE], False, Outcome.ROLLED_BACK),
    ("another error of that class", ID, [BEGUN, SET, VALID], False, Outcome.UNKNOWN),
    ("in progress", ID, [BEGUN, SET, said("f", "in progress", "00000001", "f", None), DONE], False, Outcome.IN_PROGRESS),
    ("another timeline", ID, [BEGUN, SET, said("f", "committed", "00000002", "f", "0/1"), DONE], False, Outcome.OVER),
    ("a restart", ID, [BEGUN, SET, said("f", "committed", "00000001", "t", "0/1"), DONE], False, Outcome.OVER),
    ("silence", ID, [], False, Outcome.UNKNOWN),
    ("silence behind the settings", ID, [BEGUN, SET], False, Outcome.UNKNOWN),
    ("of a marker, too", MARKER, [BEGUN, SET], False, Outcome.UNKNOWN),
    ("silence behind the fence", MARKER, [BEGUN, SET, PRIMARY, FENCED], False, Outcome.UNKNOWN),
    ("of verify, too", VERIFY, [BEGUN, SET, SET], False, Outcome.UNKNOWN),
    ("the marker is there", MARKER, [BEGUN, SET, PRIMARY, THERE, YES, DONE], False, Outcome.COMMITTED),
    ("the marker is there, unconfirmed", MARKER, [BEGUN, SET, PRIMARY, THERE, YES], False, Outcome.UNCONFIRMED),
    ("the fence has its place", MARKER, [BEGUN, SET, PRIMARY, FENCED, NO, DONE], False, Outcome.ROLLED_BACK),
    ("an earlier fence has", MARKER, [BEGUN, SET, PRIMARY, THERE, NO, DONE], False, Outcome.ROLLED_BACK),
    ("a fence that is not committed is none", MARKER, [BEGUN, SET, PRIMARY, FENCED, NO], False, Outcome.UNKNOWN),
    ("nor is one that is rolled back", MARKER, [BEGUN, SET, PRIMARY, FENCED, NO, UNDONE], False, Outcome.UNKNOWN),
    ("a standby takes no fence", MARKER, [BEGUN, SET, STANDBY, Reply(error="25006")], False, Outcome.STANDBY),
    ("there is no table", MARKER, [BEGUN, SET, PRIMARY, Reply(error="42P01")], False, Outcome.UNKNOWN),
    ("the row is gone meanwhile", MARKER, [BEGUN, SET, PRIMARY, THERE, Reply("SELECT 0"), DONE], False, Outcome.UNKNOWN),
    ("silence of a marker", MARKER, [], False, Outcome.UNKNOWN),
    ("verify is true", VERIFY, [BEGUN, SET, SET, PRIMARY, YES, YES, DONE], False, Outcome.COMMITTED),
    ("verify counts", VERIFY, [BEGUN, SET, SET, PRIMARY, Reply("", ("2",)), YES, DONE], False, Outcome.COMMITTED),
    ("verify, its barrier's wait was ended", VERIFY, [BEGUN, SET, SET, PRIMARY, YES, YES, DONE], True, Outcome.UNCONFIRMED),
    ("verify is false", VERIFY, [BEGUN, SET, SET, PRIMARY, NO, YES, DONE], False, Outcome.NO_TRACE),
    ("verify counts none", VERIFY, [BEGUN, SET, SET, PRIMARY, Reply("", ("0",)), YES, DONE], False, Outcome.NO_TRACE),
    ("verify finds no row", VERIFY, [BEGUN, SET, SET, PRIMARY, Reply("SELECT 0"), YES, DONE], False, Outcome.NO_TRACE),
    ("verify finds NULL", VERIFY, [BEGUN, SET, SET, PRIMARY, Reply("", (None,)), YES, DONE], False, Outcome.NO_TRACE),
    ("its first column counts", VERIFY, [BEGUN, SET, SET, PRIMARY, Reply("", ("t", "f")), YES, DONE], False, Outcome.COMMITTED),
    ("verify on a standby", VERIFY, [BEGUN, SET, SET, STANDBY, NO, Reply(error="25006")], False, Outcome.STANDBY),
    ("a setting cannot be set", VERIFY, [BEGUN, Reply(error="42501")], False, Outcome.UNKNOWN),
    ("verify fails", VERIFY, [BEGUN, SET, SET, PRIMARY, Reply(error="42P01")], False, Outcome.UNKNOWN),
    ("verify is several statements", VERIFY, [BEGUN, SET, SET, PRIMARY, NO, NO, YES, DONE], False, Outcome.UNKNOWN),
]  # fmt: skip


@pytest.mark.parametrize(("_sentence", "lookup", "replies", "ended", "expected"), LOOKUPS, ids=[row[0] for row in LOOKUPS])
def test_lookups(_sentence: str, lookup: Callable[[], Lookup], replies: list[Reply], ended: bool, expected: Outcome) -> None:
    """These answers to a lookup prove this."""
    assert lookup().read(replies, wait_cancelled=ended) is expected
    if not ended:
        assert lookup().read(replies) is expected


def test_an_id_that_is_cut_off_is_none() -> None:
    """Only a whole answer names a transaction."""
    assert (
        TransactionId.of(())
        is TransactionId.of(("756", "00000001"))
        is TransactionId.of((None, "00000001", "1764367164.5"))
        is None
    )
    assert TransactionId.of(("756", "00000001", "1764367164.5")) == TransactionId("756", "00000001", "1764367164.5")


BARRIERS: list[tuple[str, str | None, str]] = [
    ("the barrier waits as the transaction did", "on", "on"),
    ("for replay", "remote_apply", "remote_apply"),
    ("for the write", "remote_write", "remote_write"),
    ("for nobody, where it waited for nobody", "local", "local"),
    ("not even for its own disk", "off", "off"),
    ("as the strictest, where nobody can tell", None, "remote_apply"),
    ("or where it is no setting", "on'; DROP TABLE a; --", "remote_apply"),
]


@pytest.mark.parametrize(("_sentence", "setting", "expected"), BARRIERS, ids=[row[0] for row in BARRIERS])
def test_barriers(_sentence: str, setting: str | None, expected: str) -> None:
    """Each lookup is one transaction that commits under the lost one's `synchronous_commit`."""
    lost = TransactionId("756", "00000001", "1764367164.5", setting, "none")
    for lookup in (lookup_of(lost), lookup_of_marker("m", "own", setting), lookup_of_verify("SELECT 1", (), setting)):
        assert lookup.parts[:2] == ("BEGIN ISOLATION LEVEL READ COMMITTED", f"SET LOCAL synchronous_commit='{expected}'")
        assert lookup.parts[-1] == "COMMIT"
        assert sum("pg_logical_emit_message(true" in part for part in lookup.parts) == 1
        assert lookup.message() == "\n;".join(lookup.parts)


def test_no_barrier_that_proves_nothing() -> None:
    """A server of another timeline, or one that was restarted, is not waited for: its "committed" would not be believed."""
    assert "'committed' AND timeline OPERATOR(pg_catalog.=) '0000001A' AND NOT restarted THEN pg_catalog.pg_logical" in (
        lookup_of(TransactionId("756", "0000001A", "1764367164.5")).message()
    )


def test_which_lookups() -> None:
    """A marker alone decides; else the id, and behind it what the caller verifies, under its settings and the role it had."""
    lost = Ended(outcome=Outcome.UNKNOWN, transaction=KNOWN, synchronous_commit="local")
    nothing = Ended(outcome=Outcome.UNKNOWN)
    in_role = Ended(outcome=Outcome.UNKNOWN, transaction=TransactionId(*ROW[:4], role="o'\\x"))

    def parts(ended: Ended, **how: Any) -> list[tuple[str, ...]]:
        return [lookup.parts for lookup in lookups_of(ended, **how)]

    verify: dict[str, Any] = {"verify": "SELECT 1 -- a;", "settings": ("SET LOCAL a.b='1'",)}
    by_id, by_query = lookup_of(KNOWN).parts, lookup_of_verify("SELECT 1 -- a;", ("SET LOCAL a.b='1'",), "local").parts
    assert parts(nothing) == []
    assert parts(lost) == [by_id]
    assert parts(lost, **verify) == [by_id, by_query]
    assert len(parts(nothing, **verify)) == 1
    assert parts(lost, marker="m", schema='o"n', **verify) == [lookup_of_marker("m", 'o"n', "local").parts]
    assert by_query[1:5] == (
        "SET LOCAL a.b='1'",
        "SET LOCAL synchronous_commit='local'",
        "SELECT pg_catalog.pg_is_in_recovery()",
        "SELECT 1 -- a;",
    )
    assert parts(in_role, **verify)[1][1:3] == ("SET LOCAL a.b='1'", "SET LOCAL role= E'o''\\\\x'")
    assert (
        parts(Ended(outcome=Outcome.UNKNOWN, transaction=TransactionId(*ROW[:4], role="o'x")), **verify)[1][2]
        == "SET LOCAL role='o''x'"
    )


SETTLED: list[tuple[str, list[Outcome], int, Outcome]] = [
    ("nothing to look up", [], 0, Outcome.UNKNOWN),
    ("the first that knows decides", [Outcome.COMMITTED, Outcome.ROLLED_BACK], 1, Outcome.COMMITTED),
    ("also that it was rolled back", [Outcome.ROLLED_BACK, Outcome.COMMITTED], 1, Outcome.ROLLED_BACK),
    ("else the next is asked", [Outcome.UNKNOWN, Outcome.COMMITTED], 2, Outcome.COMMITTED),
    ("also where the transaction is over", [Outcome.OVER, Outcome.COMMITTED], 2, Outcome.COMMITTED),
    ("no trace of one that is over: rolled back", [Outcome.OVER, Outcome.NO_TRACE], 2, Outcome.ROLLED_BACK),
    ("no trace of one that may be under way", [Outcome.UNKNOWN, Outcome.NO_TRACE], 2, Outcome.UNKNOWN),
    ("no trace alone", [Outcome.NO_TRACE], 1, Outcome.UNKNOWN),
]


@pytest.mark.parametrize(("_sentence", "outcomes", "asked", "expected"), SETTLED, ids=[row[0] for row in SETTLED])
def test_settling(_sentence: str, outcomes: Sequence[Outcome], asked: int, expected: Outcome) -> None:
    """The lookups are asked in their order, as far as they are needed."""
    lookup = lookup_of_marker("m", "public", "on")
    generator, found = settling([lookup] * len(outcomes)), 0
    answer: Any = None
    with pytest.raises(StopIteration) as done:
        while True:
            generator.send(answer)
            answer, found = outcomes[found], found + 1
    assert (found, done.value.value) == (asked, expected)


def test_marker_table() -> None:
    """The table is named with its schema everywhere, quoted."""
    for sql in (marker_table_sql('o"n'), marker_sql("m", 'o"n'), *lookup_of_marker("m", 'o"n', "on").parts[3:5]):
        assert '"o""n".ps_commit_marker' in sql
    assert '"public".ps_commit_marker' in marker_table_sql()
    assert marker_sql("m", "public") == """INSERT INTO "public".ps_commit_marker (id) VALUES ('m')"""
