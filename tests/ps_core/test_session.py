"""What the client holds of a session, without a server: each row is a sentence."""

from dataclasses import replace

import pytest

from ps_core._message.change import Change, read_change
from ps_core._message.session import Assignment, Held, Session, Settings, split_list

pytestmark = pytest.mark.fast

TIMEOUTS = {"statement_timeout", "transaction_timeout", "idle_in_transaction_session_timeout", "lock_timeout"}


def change(text: str) -> Change:
    read = read_change(text)
    assert isinstance(read, Change)
    return read


def after(*texts: tuple[str, str] | str) -> Settings:
    """Return what is held after texts, each with the value that the server answers."""
    settings = Settings()
    for one in texts:
        text, values = (one, []) if isinstance(one, str) else (one[0], [one[1]])
        settings = settings.changed(change(text), values)
    return settings.paid()


HOLDS: list[tuple[str, list[tuple[str, str] | str], Settings]] = [
    ("a SET is held as the server shows it", [("SET work_mem = 8192", "8MB")], Settings((Held("work_mem", "8MB"),))),
    (
        "so is what the function sets",
        [("select set_config('a.b', 'x', false)", "x")],
        Settings((Held("a.b", "x", by_set=False),)),
    ),
    (
        "in the order of the last time",
        [("SET a.a = 1", "1"), ("SET a.b = 2", "2"), ("SET a.a = 3", "3")],
        Settings((Held("a.b", "2"), Held("a.a", "3"))),
    ),
    ("a role is apart", [("SET ROLE clerk", "clerk")], Settings(role="clerk")),
    ("NONE is none", [("SET ROLE clerk", "clerk"), ("SET ROLE NONE", "none")], Settings()),
    (
        "a setting remembers its role",
        [("SET ROLE clerk", "clerk"), ("SET a.a = 1", "1"), ("SET ROLE NONE", "none")],
        Settings((Held("a.a", "1", "clerk"),)),
    ),
    ("RESET lets go of one", [("SET a.a = 1", "1"), ("SET a.b = 2", "2"), "RESET a.a"], Settings((Held("a.b", "2"),))),
    ("RESET ALL of all but the role", [("SET ROLE clerk", "clerk"), ("SET a.a = 1", "1"), "RESET ALL"], Settings(role="clerk")),
    ("RESET ROLE of the role", [("SET ROLE clerk", "clerk"), "RESET ROLE"], Settings()),
    ("DISCARD ALL of both", [("SET ROLE clerk", "clerk"), ("SET a.a = 1", "1"), "DISCARD ALL"], Settings()),
]


@pytest.mark.parametrize(("steps", "wanted"), [row[1:] for row in HOLDS], ids=[row[0] for row in HOLDS])
def test_holds(steps: list[tuple[str, str] | str], wanted: Settings) -> None:
    """What is held after one change after another."""
    assert after(*steps) == wanted


def test_holds_of_one_statement() -> None:
    """What one statement sets is set in its order, and each has a value."""
    both = change("select set_config('a.a', '1', false), set_config('role', 'clerk', false), set_config('a.b', '2', false)")
    wanted = Settings((Held("a.a", "1", by_set=False), Held("a.b", "2", "clerk", by_set=False)), "clerk")
    assert Settings().changed(both, ["1", "clerk", "2"]) == wanted
    with pytest.raises(ValueError, match="zip"):
        Settings().changed(both, ["1"])


OWES: list[tuple[str, str, list[str], bool, frozenset[str]]] = [
    ("a SET takes nothing away", "SET work_mem = 8", ["8MB"], False, frozenset()),
    ("nor a role", "SET ROLE clerk", ["clerk"], False, frozenset()),
    ("but leaving one may be leaving ours", "SET ROLE NONE", ["none"], False, frozenset({"role"})),
    ("so does RESET", "RESET ROLE", [], False, frozenset({"role"})),
    ("a timeout has to be seen beside the others", "SET lock_timeout = 5", ["5ms"], False, frozenset(TIMEOUTS)),
    ("also when it is reset", "RESET lock_timeout", [], False, frozenset(TIMEOUTS)),
    ("RESET of something else takes nothing", "RESET work_mem", [], False, frozenset({"work_mem"}) - {"work_mem"}),
    ("RESET ALL takes everything but the role", "RESET ALL", [], False, frozenset({"*"})),
    ("what is first in its transaction and lets go went without all", "RESET work_mem", [], True, frozenset({"*", "role"})),
    ("as a role", "SET ROLE clerk", ["clerk"], True, frozenset({"*", "role"})),
    ("but not what sets", "SET work_mem = 8", ["8MB"], True, frozenset()),
]


@pytest.mark.parametrize(("text", "values", "begins", "owed"), [row[1:] for row in OWES], ids=[row[0] for row in OWES])
def test_owes(text: str, values: list[str], begins: bool, owed: frozenset[str]) -> None:
    """What an open transaction lacks after a change, which the next statement brings."""
    settings = Settings().changed(change(text), values, begins=begins)
    assert settings.owed == owed
    assert settings.owes is (owed != frozenset())
    assert not settings.paid().owes
    # What is owed already stays owed.
    assert replace(Settings(), owed=frozenset({"x"})).changed(change(text), values, begins=begins).owed == owed | {"x"}


@pytest.mark.parametrize(
    ("owed", "lacks"),
    [({"a"}, {"a"}), ({"*"}, {"a", "b"}), ({"role"}, {"role"}), ({"*", "role"}, {"a", "b", "role"}), (set(), set())],
)
def test_lacks_of_transaction(owed: set[str], lacks: set[str]) -> None:
    """What the open transaction lacks, by name."""
    settings = Settings(owed=frozenset(owed))
    assert {name for name in ("a", "b", "role") if settings.lacks_of_transaction(name)} == lacks


def test_what_was_not_reached() -> None:
    """A call that was not reached sets nothing, where its setting does not exist; what is set beside it is."""
    both = change("select set_config('a.a', '1', false), set_config('a.b', '2', false)")
    assert Settings().changed(both, [None, "2"]) == Settings((Held("a.b", "2", by_set=False),))


SENDS: list[tuple[str, Settings, str | None, list[Assignment]]] = [
    ("nothing", Settings(), "assumed", []),
    ("a setting", Settings((Held("a.a", "1"),)), None, [Assignment("a.a", "1")]),
    (
        "what comes behind a timeout is sent",
        Settings((Held("lock_timeout", "5ms"), Held("a.a", "1"))),
        None,
        [Assignment("a.a", "1")],
    ),
    ("but no timeout, which is ours to send", Settings((Held("lock_timeout", "5ms"),)), None, []),
    (
        "a list that SET wrote",
        Settings((Held("search_path", 'a, "B"'),)),
        None,
        [Assignment("search_path", 'a, "B"', ("a", "B"))],
    ),
    (
        "a list as the function wrote it",
        Settings((Held("search_path", "a,b", by_set=False),)),
        None,
        [Assignment("search_path", "a,b", by_function=True)],
    ),
    (
        "what is no list, although SET wrote it",
        Settings((Held("temp_tablespaces", "a,"),)),
        None,
        [Assignment("temp_tablespaces", "a,", by_function=True)],
    ),
    ("the role in force comes last", Settings((Held("a.a", "1"),), "r"), None, [Assignment("a.a", "1"), Assignment("role", "r")]),
    (
        "each under its role",
        Settings((Held("a.a", "1"), Held("a.b", "2", "r"), Held("a.c", "3", "r"), Held("a.d", "4", "s")), "r"),
        None,
        [
            Assignment("a.a", "1"),
            Assignment("role", "r"),
            Assignment("a.b", "2"),
            Assignment("a.c", "3"),
            Assignment("role", "s"),
            Assignment("a.d", "4"),
            Assignment("role", "r"),
        ],
    ),
    (
        "and back to nobody's",
        Settings((Held("a.a", "1", "r"), Held("a.b", "2"))),
        None,
        [Assignment("role", "r"), Assignment("a.a", "1"), Assignment("role", "none"), Assignment("a.b", "2")],
    ),
    (
        "or to ours",
        Settings((Held("a.a", "1", "r"),)),
        "assumed",
        [Assignment("role", "r"), Assignment("a.a", "1"), Assignment("role", "assumed")],
    ),
]


@pytest.mark.parametrize(("settings", "own", "wanted"), [row[1:] for row in SENDS], ids=[row[0] for row in SENDS])
def test_assignments(settings: Settings, own: str | None, wanted: list[Assignment]) -> None:
    """What travels with every transaction, in order."""
    assert list(settings.assignments(own)) == wanted


def test_what_it_says() -> None:
    """Whether anything is held, whether a statement may run without it, and what is ours to send in another form."""
    assert not Settings().any
    assert not Settings().decides
    assert Settings(role="r").any
    assert Settings(role="r").decides
    assert not Settings((Held("a.a", "1"),)).sets_role
    assert Settings(role="r").sets_role
    assert Settings((Held("a.a", "1"), Held("a.b", "1", "r"))).sets_role
    timeouts = Settings((Held("lock_timeout", "5ms"), Held("application_name", "a")))
    assert timeouts.any
    assert not timeouts.decides
    assert Settings((*timeouts.held, Held("a.a", "1"))).decides
    assert timeouts.value_of("application_name") == "a"
    assert timeouts.value_of("work_mem") is None
    modes = Settings((Held("default_transaction_isolation", "serializable"), Held("a.a", "1")))
    assert modes.modes() == {"transaction_isolation": "serializable"}


@pytest.mark.parametrize(
    ("shown", "seconds"),
    [("0", None), ("1ms", 0.001), ("1500ms", 1.5), ("2s", 2), ("3min", 180), ("4h", 14400), ("5d", 432000), ("7", 0.007)],
)
def test_timeouts(shown: str, seconds: float | None) -> None:
    """A timeout in seconds, from PostgreSQL's own spelling."""
    assert Settings((Held("statement_timeout", shown), Held("a.a", "1"))).timeouts() == {"statement": seconds}
    with pytest.raises(AssertionError):
        Settings((Held("statement_timeout", f"{shown} more"),)).timeouts()
    assert Assignment("statement_timeout", shown) in list(
        Settings((Held("statement_timeout", shown),)).assignments(None, timeouts=True)
    )


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("", ()),
        ("  ", ()),
        ("a", ("a",)),
        ('"$user", public', ("$user", "public")),
        (' A ,"B""c",d ', ("a", 'B"c', "d")),
        ('""', ("",)),
        ("a,", None),
        (",a", None),
        ("a b", None),
        ('"a', None),
    ],
)
def test_lists(value: str, names: tuple[str, ...] | None) -> None:
    """The names in a list; None is no list."""
    assert split_list(value) == names


A, B, C = (Settings((Held("a.a", value),)) for value in "abc")


def test_outside_of_a_transaction() -> None:
    """What is set holds, and nothing undoes it."""
    session = Session().changed(A, in_transaction=False)
    assert session == Session(A)
    assert session.ended(committed=False) == session
    owing = Session().changed(replace(A, owed=frozenset({"*"})), in_transaction=False)
    assert owing == Session(A)


def test_end_of_a_transaction() -> None:
    """COMMIT keeps what was set in it, everything else undoes it, however often it was set."""
    session = Session(A).changed(B, in_transaction=True).changed(replace(C, owed=frozenset({"*"})), in_transaction=True)
    assert session.now.held == C.held
    assert session.ended(committed=True) == Session(C)
    assert session.ended(committed=False) == Session(A)
    assert session.paid().now == C
    assert Session(A).ended(committed=False) == Session(A)


def test_savepoints() -> None:
    """ROLLBACK TO undoes what was set since, and RELEASE undoes nothing."""
    owing = replace(A, owed=frozenset({"*"}))
    session = Session(owing).followed("SAVEPOINT one").changed(B, in_transaction=True).followed('SAVEPOINT "Two"')
    session = session.changed(C, in_transaction=True)
    assert session.followed('ROLLBACK TO "Two"').now == B
    assert session.followed("ROLLBACK TO one").now == owing
    assert session.followed("ROLLBACK TO one").followed('ROLLBACK TO "Two"').now == owing  # which is gone with the first
    assert session.followed("ROLLBACK TO one").changed(C, in_transaction=True).followed("ROLLBACK TO one").now == owing
    assert session.followed('ROLLBACK TO "Two"; RELEASE "Two"').followed("ROLLBACK TO one").now == owing
    assert session.followed("RELEASE one").savepoints == ()
    assert session.followed('RELEASE "Two"').savepoints == (("one", owing),)
    assert session.followed("RELEASE nobody").followed("ROLLBACK TO two") == session
    again = session.followed("SAVEPOINT one")  # hides the first
    assert again.followed("ROLLBACK TO one").now == C
    assert again.followed("RELEASE one").followed("ROLLBACK TO one").now == owing
    assert session.followed("ROLLBACK TO one").ended(committed=False) == Session(A)
    assert session.ended(committed=True) == Session(C)


LATE, EARLY = Held("a.a", "x", at=5), Held("a.a", "y", at=3)
LACKS: list[tuple[str, Settings, Settings, bool]] = [
    ("nothing is lacking of nothing", Settings((EARLY,), "r"), Settings(), False),
    ("a setting is", Settings(), Settings((EARLY,)), True),
    ("not the same one", Settings((EARLY,)), Settings((Held("a.a", "y", "r", by_set=False, at=9),)), False),
    ("one that was set later is", Settings((EARLY,)), Settings((LATE,)), True),
    ("one that was replaced later is not", Settings((LATE,)), Settings((EARLY,)), False),
    ("at the same time, the other one counts", Settings((LATE._replace(value="z"),)), Settings((LATE,)), True),
    ("also behind one that is the same", Settings((EARLY,)), Settings((EARLY, Held("a.b", "1"))), True),
    ("a role is", Settings(), Settings(role="r"), True),
    ("not the same one, as it is in force", Settings(role="r"), Settings(role="r", role_at=4), False),
    ("not one that was replaced later", Settings(role="s", role_at=5), Settings(role="r", role_at=4), False),
    ("nor left later", Settings(role_at=5), Settings(role="r", role_at=4), False),
    ("a name is not", Settings(), Settings((Held("application_name", "a", at=1),)), False),
    ("nor what does not count", Settings(), Settings((Held("search_path", "a", at=1),)), False),
    ("but what is beside it", Settings(), Settings((Held("search_path", "a", at=1), EARLY)), True),
]


@pytest.mark.parametrize(("mine", "other", "lacks"), [row[1:] for row in LACKS], ids=[row[0] for row in LACKS])
def test_lacks(mine: Settings, other: Settings, lacks: bool) -> None:
    """Whether another connection holds what this one does not."""
    assert mine.lacks(other, but_for=("search_path",)) is lacks


def test_when() -> None:
    """What is set has a time; what came first has none."""
    settings = Settings().changed(change("SET a.a = 1"), ["1"], at=3).changed(change("SET ROLE r"), ["r"], at=4)
    assert settings == Settings((Held("a.a", "1", at=3),), "r", role_at=4)
    assert settings.changed(change("RESET ROLE"), [], at=5).role_at == 5
    assert settings.earliest() == Settings((Held("a.a", "1"),), "r")
