"""What the outage gate tells each caller, with a clock given and no waiting: each test is a sentence or two."""

import asyncio
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from ps_core._retry.gate import OutageGate, Turn, _Admission, _rule, _Ticket
from ps_core.events import Event, Name, subscribe

pytestmark = pytest.mark.fast

DOWN = psycopg.OperationalError("connection failed: Connection refused")
SYNTAX = psycopg.errors.SyntaxError("syntax error")
GO, PROBE, WAIT, QUEUE = _Admission.GO, _Admission.PROBE, _Admission.WAIT, _Admission.QUEUE


class Clock:
    """A clock that stands still until it is moved."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def gate_at(clock: Clock | None = None) -> OutageGate:
    """Return a gate with this clock."""
    return OutageGate("primary", clock=clock or Clock())


def recovering(gate: OutageGate) -> OutageGate:
    """Bring a gate to where its first probe has succeeded."""
    gate.report_loss()
    gate._leave_probe(gate._enter().answer, None)
    return gate


def test_open() -> None:
    """Without an outage everybody passes at once, in any number."""
    gate = gate_at()
    assert not gate.closed
    tickets = [gate._enter() for _ in range(20)]
    assert {(ticket.way, ticket.delay) for ticket in tickets} == {(GO, 0.0)}
    assert _Ticket(GO, tickets[0].answer).delay == 0.0


def test_closed() -> None:
    """One probes, the others wait for the same answer; when it came, the next one probes."""
    gate = gate_at()
    gate.report_loss()
    assert gate.closed
    probe, *others = (gate._enter() for _ in range(4))
    assert (probe.way, [ticket.way for ticket in others]) == (PROBE, [WAIT] * 3)
    assert all(ticket.answer is probe.answer for ticket in others)
    gate._leave_probe(probe.answer, "connection_lost")
    assert (gate.closed, probe.answer.result(0)) == (True, False)
    second = gate._enter()
    assert second.way is PROBE
    gate._leave_probe(second.answer, None)
    assert (gate.closed, second.answer.result(0)) == (False, True)


SPACING = [
    ("at once the next probe waits", 0.0, 0.4),
    ("later, as long as is left", 0.3, 0.1),
    ("in the end not at all", 0.4, 0.0),
]


@pytest.mark.parametrize(("later", "delay"), [row[1:] for row in SPACING], ids=[row[0] for row in SPACING])
def test_spacing(later: float, delay: float) -> None:
    """How long a probe waits after one that failed."""
    clock = Clock()
    gate = gate_at(clock)
    gate.report_loss()
    gate._leave_probe(gate._enter().answer, "connection_lost")
    clock.now += later
    assert gate._enter().delay == pytest.approx(delay)
    assert OutageGate.MIN_INTERVAL == 0.4


def test_no_spacing_after_a_probe_that_succeeded() -> None:
    """A new outage right after an old one is probed at once."""
    gate = gate_at()
    gate.report_loss()
    gate._leave_probe(gate._enter().answer, "connection_lost")
    gate._leave_probe(gate._enter().answer, None)
    gate.report_loss()
    assert gate._enter().delay == 0


def test_outage_is_told_once() -> None:
    """It begins with the first probe that fails, ends with the first that does not, and took what was between them."""
    clock, heard = Clock(), list[Event]()
    gate = gate_at(clock)
    unsubscribe = subscribe(heard.append)
    try:
        for failure in ("connection_lost", "connection_lost", None, None):
            clock.now += 2
            gate.report_loss()
            gate._leave_probe(gate._enter().answer, failure)
            assert heard, "it is told with the first failure"
    finally:
        unsubscribe()
    assert [(event.name, event.endpoint, event.reason, event.seconds) for event in heard] == [
        (Name.OUTAGE_OPENED, "primary", "connection_lost", None),
        (Name.OUTAGE_CLOSED, "primary", "", 4.0),
    ]


def test_places() -> None:
    """After an outage two log in at the same time; each that succeeds lets in one more, up to eight; failures let in none."""
    gate = recovering(gate_at())
    ways = [gate._enter().way for _ in range(40)]
    assert ways == [GO, GO] + [QUEUE] * 38
    assert (gate._taken, gate._places) == (2, 2)
    gate._leave_place("connection_lost")
    assert (gate._taken, gate._places) == (2, 2)
    for expected in (3, 4, 5, 6, 7, 8, 8, 8):
        gate._leave_place(None)
        assert (gate._taken, gate._places) == (expected, expected)
    assert (OutageGate.FIRST_PLACES, OutageGate.MOST_PLACES) == (2, 8)


def test_recovery_ends_when_nobody_is_in() -> None:
    """Then everybody passes again."""
    gate = recovering(gate_at())
    assert [gate._enter().way for _ in range(2)] == [GO, GO]
    gate._leave_place(None)
    assert gate._places == 3
    gate._leave_place("connection_lost")
    left: tuple[int, int | None] = (gate._taken, gate._places)
    assert left == (0, None)
    assert {gate._enter().way for _ in range(10)} == {GO}
    gate._leave_place(None)
    assert gate._places is None, "there is no outage to recover from"


def test_queue_is_served_in_order() -> None:
    """A place goes to who waits longest; who has given up is passed over."""
    gate = recovering(gate_at())
    gate._enter()
    gate._enter()
    first, second, third = (gate._enter() for _ in range(3))
    gate._give_up(first)
    assert first.answer.cancelled()
    gate._leave_place("connection_lost")
    assert (second.answer.result(0), third.answer.done()) == (True, False)


def test_loss_empties_the_queue() -> None:
    """A caller that waits for a place is told to ask again; one that has given up is told nothing."""
    gate = recovering(gate_at())
    tickets = [gate._enter() for _ in range(4)]
    gate._give_up(tickets[2])
    gate.report_loss()
    assert tickets[3].answer.result(0) is False
    gate._give_up(tickets[3])
    assert gate._taken == 2, "no place was given, so that none is given back"
    assert not gate._queue


def test_who_waits_for_a_probe_gives_nothing_back() -> None:
    """Giving up a wait for another's probe changes nothing."""
    gate = gate_at()
    gate.report_loss()
    gate._enter()
    waiting = gate._enter()
    gate._give_up(waiting)
    assert not waiting.answer.done()
    assert gate._taken == 0


def test_turn_ends_once() -> None:
    """What comes after `connected()` does not end it again."""
    ended: list[str | None] = []
    turn = Turn(ended.append, is_probe=True)
    assert (turn.over, turn.is_probe) == (False, True)
    turn.connected()
    turn.leave("connection_lost")
    assert (turn.over, ended) == (True, [None])


ENDS: list[tuple[str, bool, bool, BaseException | None, bool]] = [
    ("a turn that connects leaves it open", False, False, None, False),
    ("one that cannot closes it", False, False, DOWN, True),
    ("one whose statement is wrong does not: somebody answered", False, False, SYNTAX, False),
    ("one that is interrupted does not: it says nothing of the endpoint", False, False, KeyboardInterrupt(), False),
    ("a probe that connects opens it", True, False, None, False),
    ("one that cannot leaves it closed", True, False, DOWN, True),
    ("one whose statement is wrong opens it", True, False, SYNTAX, False),
    ("one that is interrupted leaves it closed", True, False, KeyboardInterrupt(), True),
    ("a probe that is lost after it had connected closes it again", True, True, DOWN, True),
    ("but not if it is interrupted then", True, True, KeyboardInterrupt(), False),
]


@pytest.mark.parametrize("row", ENDS, ids=[row[0] for row in ENDS])
def test_ends(row: tuple[str, bool, bool, BaseException | None, bool]) -> None:
    """What a turn's end says of the endpoint."""
    _, probes, connects, raised, closed = row
    gate = gate_at()
    if probes:
        gate.report_loss()
    end: Any = None
    try:
        with gate.turn(1) as turn:
            assert turn.is_probe is probes
            if connects:
                turn.connected()
            if raised is not None:
                raise raised
    except BaseException as exc:  # noqa: BLE001 - it is looked at
        end = exc
    assert end is raised
    assert turn.over
    assert gate.closed is closed
    assert gate._probe is None
    assert gate._taken == 0


def test_rules() -> None:
    """Why an endpoint is taken to be down."""
    assert _rule(KeyboardInterrupt()) == "interrupted"
    assert _rule(SYNTAX) is None
    rule = _rule(DOWN)
    assert rule not in {None, "interrupted"}


class Answer(Future[bool]):
    """The answer of a probe that never comes: says how long it was waited for."""

    def __init__(self, seen: list[float | None], error: BaseException) -> None:
        super().__init__()
        self.seen, self.error = seen, error

    def result(self, timeout: float | None = None) -> bool:
        """Raise what ends the wait."""
        self.seen.append(timeout)
        raise self.error


@pytest.mark.parametrize("error", [TimeoutError(), KeyboardInterrupt()])
def test_waits_as_long_as_it_may(error: BaseException) -> None:
    """And no longer. What interrupts the wait is raised."""
    seen: list[float | None] = []
    gate = gate_at()
    gate.report_loss()
    gate._probe = Answer(seen, error)
    with pytest.raises(type(error)) as raised:
        with gate.turn(0.25):
            pytest.fail("there is a probe already")
    assert seen == [0.25]
    assert str(raised.value) == ("primary did not come back in time" if isinstance(error, TimeoutError) else "")


async def test_waits_as_long_as_it_may_in_asyncio(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same in asyncio."""
    seen: list[float | None] = []
    usual = asyncio.timeout

    def at_once(delay: float | None) -> asyncio.Timeout:
        seen.append(delay)
        return usual(0)

    monkeypatch.setattr("asyncio.timeout", at_once)
    gate = gate_at()
    gate.report_loss()
    gate._enter()
    with pytest.raises(TimeoutError, match="primary did not come back in time"):
        async with gate.aturn(0.25):
            pytest.fail("there is a probe already")
    assert seen == [0.25]


async def test_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe that has to wait sleeps for as long as it is told; one that has not does not."""
    slept: list[float] = []

    async def asleep(delay: float) -> None:
        slept.append(delay)

    monkeypatch.setattr("ps_core._retry.gate.time", SimpleNamespace(sleep=slept.append, monotonic=Clock()))
    monkeypatch.setattr("asyncio.sleep", asleep)
    for in_asyncio in (False, True):
        slept.clear()
        gate = gate_at()
        gate.report_loss()
        for _ in range(3):
            with pytest.raises(psycopg.OperationalError):
                if in_asyncio:
                    async with gate.aturn(1):
                        raise DOWN
                with gate.turn(1):
                    raise DOWN
        assert slept == pytest.approx([OutageGate.MIN_INTERVAL] * 2)


QUEUED: list[tuple[str, str, bool]] = [
    ("a place that is given is taken", "place", False),
    ("where the endpoint was lost again, it asks again, and probes", "loss", True),
]


@pytest.mark.parametrize("in_asyncio", [False, True], ids=["sync", "asyncio"])
@pytest.mark.parametrize(("event", "probes"), [row[1:] for row in QUEUED], ids=[row[0] for row in QUEUED])
async def test_queue(event: str, probes: bool, in_asyncio: bool) -> None:
    """What becomes of who waits for a place."""
    asked = 0

    def clock() -> float:
        nonlocal asked
        asked += 1
        if asked == 2:  # just before it waits
            if event == "place":
                gate._leave_place("connection_lost")
            else:
                gate.report_loss()
        return 100.0

    gate = recovering(gate_at())
    assert [gate._enter().way for _ in range(2)] == [GO, GO]
    gate._clock = clock
    if in_asyncio:
        async with gate.aturn(0.5) as turn:
            assert (turn.is_probe, gate._taken) == (probes, 2)
    else:
        with gate.turn(0.5) as turn:
            assert (turn.is_probe, gate._taken) == (probes, 2)
    assert gate._taken == (2 if probes else 1)


@pytest.mark.parametrize("in_asyncio", [False, True], ids=["sync", "asyncio"])
async def test_leaves_the_queue(in_asyncio: bool) -> None:
    """A caller that waits no longer for a place is passed over."""
    gate = recovering(gate_at())
    assert [gate._enter().way for _ in range(2)] == [GO, GO]
    with pytest.raises(TimeoutError):
        if in_asyncio:
            async with gate.aturn(0):
                pytest.fail("there is no place")
        with gate.turn(0):
            pytest.fail("there is no place")
    assert [answer.cancelled() for answer in gate._queue] == [True]
