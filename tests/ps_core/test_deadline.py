"""How long psycopg's generators are driven, decided without a server: each row is a sentence."""

from collections.abc import Generator
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from ps_core import deadline
from ps_core._retry.deadline import CONNECT_WHILE_ANOTHER_CAN, GRACE, bounded, bounded_until, connecting_until, deadline_unwrapped
from ps_core.errors import DeadlineExceeded

pytestmark = pytest.mark.fast

NOW = [1000.0]


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that stands still until it is moved."""
    NOW[0] = 1000.0
    for module in ("ps_core._retry.deadline", "ps_core.context"):
        monkeypatch.setattr(f"{module}.time", SimpleNamespace(monotonic=lambda: NOW[0], time=lambda: NOW[0]))


def waiting(log: list[Any]) -> Generator[str, Any, str]:
    """What psycopg's generators are: they yield what they wait for, and are sent whether it is there."""
    try:
        log.append((yield "first"))
        log.append((yield "second"))
    except (DeadlineExceeded, psycopg.errors.ConnectionTimeout):
        log.append("told")
        raise
    return "answer"


ENDS: list[tuple[str, float | None, float | None, float, type[Exception] | None]] = [
    ("without a deadline nothing ends it", None, None, 1e6, None),
    ("before the deadline nothing does", 5.0, None, 4.9, None),
    ("after it the server's own answer is awaited", 5.0, None, 5.0 + GRACE, None),
    ("then no longer", 5.0, None, 5.1 + GRACE, DeadlineExceeded),
    ("a try to connect ends when it may take no longer", None, 2.0, 2.1, psycopg.errors.ConnectionTimeout),
    ("and not before", None, 2.0, 2.0, None),
    ("it ends the earlier one", 5.0, 2.0, 2.1, psycopg.errors.ConnectionTimeout),
    ("the grace is the deadline's", 5.0, 5.2, 5.3, psycopg.errors.ConnectionTimeout),
    ("an earlier deadline ends a try to connect", 1.0, 9.0, 1.1 + GRACE, DeadlineExceeded),
    ("both at once are the deadline's", 1.0, 1.0 + GRACE, 1.1 + GRACE, DeadlineExceeded),
]


@pytest.mark.parametrize("row", ENDS, ids=[row[0] for row in ENDS])
def test_ends(row: tuple[str, float | None, float | None, float, type[Exception] | None]) -> None:
    """When a wait in which nothing comes is given up, and with which error."""
    _, seconds, connecting, later, error = row
    log: list[Any] = []
    driven = waiting(log)
    reset = connecting_until.set(None if connecting is None else NOW[0] + connecting)
    try:
        if seconds is None:
            gen = bounded(driven)
        else:
            with deadline(seconds):
                gen = bounded(driven)
    finally:
        connecting_until.reset(reset)
    assert next(gen) == "first"
    NOW[0] += later
    if error is None:
        assert gen.send(0) == "second"
        with pytest.raises(StopIteration) as done:
            gen.send(1)
        assert done.value.value == "answer"
        assert log == [0, 1]
    else:
        with pytest.raises(error, match=r"timeout expired|did not answer before the deadline"):
            gen.send(0)
        assert log == ["told"]


class Line:
    """What a wait is for."""

    def __init__(self, in_flight: bool, goes_on: bool = False) -> None:
        self.in_flight, self.goes_on, self.given_up = in_flight, goes_on, False

    def _goes_on(self) -> bool:
        return self.goes_on

    def _is_in_flight(self) -> bool:
        return self.in_flight

    def _give_up(self) -> None:
        self.given_up = True


@pytest.mark.parametrize(
    ("in_flight", "later", "ready", "ends", "given_up"),
    [
        (True, 5.0 + GRACE, 0, False, False),
        (True, 5.1 + GRACE, 0, True, True),
        (True, 5.1 + GRACE, 1, False, False),
        (False, 5.0, 0, False, False),
        (False, 5.1, 0, True, False),
        (False, 5.1, 1, True, False),
    ],
    ids=["awaited", "given up", "answered", "nothing yet", "nothing owed", "more and more notifications"],
)
def test_line(in_flight: bool, later: float, ready: int, ends: bool, given_up: bool) -> None:
    """A connection is given up where an answer is owed; where none is, there is no grace, and the connection is kept."""
    line, log = Line(in_flight), list[Any]()
    with deadline(5):
        gen = bounded(waiting(log), line)
    assert next(gen) == "first"
    NOW[0] += later
    if ends:
        with pytest.raises(DeadlineExceeded):
            gen.send(ready)
        assert log[-1] == "told"
    else:
        assert gen.send(ready) == "second"
    assert line.given_up is given_up


def test_nothing_is_waited_for_after_the_deadline() -> None:
    """A wait for notifications that begins too late ends at once."""
    line = Line(in_flight=False)
    with deadline(5):
        NOW[0] += 6
        gen = bounded(waiting([]), line)
    with pytest.raises(DeadlineExceeded):
        next(gen)
    assert not line.given_up


def test_rows_that_keep_coming() -> None:
    """More of what was under way before is awaited until the grace is over, and not from when the wait began."""
    line = Line(in_flight=True, goes_on=True)
    with deadline(5):
        gen = bounded(waiting([]), line)
        assert next(gen) == "first"
        NOW[0] += 5 + GRACE
        assert gen.send(1) == "second"
        NOW[0] += 0.1
        gen = bounded(waiting([]), line)
    next(gen)
    with pytest.raises(DeadlineExceeded):
        gen.send(1)
    assert line.given_up


def test_who_is_told_may_say_more() -> None:
    """What the generator makes of the error is what is raised, or returned."""

    def settling() -> Generator[str, Any, str]:
        try:
            yield "first"
        except DeadlineExceeded:
            return "unknown"
        return "answer"

    with deadline(5):
        gen = bounded(settling(), Line(in_flight=True))
    next(gen)
    NOW[0] += 6
    with pytest.raises(StopIteration) as done:
        gen.send(0)
    assert done.value.value == "unknown"


@pytest.mark.parametrize("in_flight", [True, False])
def test_who_is_told_may_go_on(in_flight: bool) -> None:
    """What the generator sends after it was told is awaited, too."""

    def undoing() -> Generator[str, Any, Any]:
        yield "first"
        try:
            yield "second"
        except DeadlineExceeded:
            return (yield "undo")

    line = Line(in_flight)
    with deadline(5):
        gen = bounded(undoing(), line)
    next(gen)
    NOW[0] += 5.1
    if in_flight:
        assert gen.send(0) == "second"
        NOW[0] += GRACE
        assert gen.send(0) == "undo"
    else:
        with pytest.raises(DeadlineExceeded):
            gen.send(0)


def test_answer_that_is_there_is_taken() -> None:
    """However late: what the server said is worth more than when."""
    log: list[Any] = []
    with deadline(5):
        gen = bounded(waiting(log))
    next(gen)
    NOW[0] += 100
    assert gen.send(1) == "second"
    assert log == [1]


def test_what_is_sent_after_the_deadline_has_its_time() -> None:
    """A ROLLBACK that follows a deadline that passed is awaited for the grace from when it is sent."""
    with deadline(5):
        NOW[0] += 60
        gen = bounded(waiting([]))
    next(gen)
    NOW[0] += GRACE
    assert gen.send(0) == "second"
    NOW[0] += 0.1
    with pytest.raises(DeadlineExceeded):
        gen.send(0)


def test_nothing_is_wrapped_without_need() -> None:
    """Where nothing bounds it, psycopg's own generator is driven."""
    gen = waiting([])
    assert bounded(gen) is gen


def test_unwrapped() -> None:
    """A DeadlineExceeded that psycopg took for a closed socket is raised as it is; another error as psycopg made it."""
    passed = DeadlineExceeded("the deadline passed")
    for place in ("__cause__", "__context__"):
        with pytest.raises(DeadlineExceeded) as raised, deadline_unwrapped():
            wrapped = psycopg.OperationalError("the connection is closed")
            setattr(wrapped, place, passed)
            raise wrapped
        assert raised.value is passed
        assert raised.value.__suppress_context__
    other = psycopg.OperationalError("the connection is closed")
    other.__cause__ = OSError("reset")
    with pytest.raises(psycopg.OperationalError) as closed, deadline_unwrapped():
        raise other
    assert closed.value is other


def test_bounds() -> None:
    """The grace is shorter than anybody's patience, and a try to connect takes half of what a connect may."""
    assert (GRACE, CONNECT_WHILE_ANOTHER_CAN, connecting_until.get()) == (0.5, 2.5, None)


def test_a_time_of_its_own() -> None:
    """A wait of a time of its own ends then, and what comes before is its answer."""
    log: list[Any] = []
    driven = bounded_until(NOW[0] + 2, waiting(log))
    assert next(driven) == "first"
    assert driven.send(None) == "second"
    NOW[0] += 2.1
    with pytest.raises(psycopg.errors.ConnectionTimeout):
        driven.send(None)
    driven = bounded_until(NOW[0] + 2, waiting(log))
    next(driven)
    NOW[0] += 2.1
    assert driven.send("ready") == "second"
    with pytest.raises(StopIteration, match="answer"):
        driven.send("ready")
