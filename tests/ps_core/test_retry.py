"""The retry policy's bounds, and the outage gate."""

import asyncio
import threading
from typing import Any

import psycopg
import pytest

from ps_core import RetryPolicy
from ps_core._retry.gate import OutageGate, _Admission
from ps_core.errors import ConfigurationError
from ps_core.events import Name, subscribe

pytestmark = pytest.mark.fast

DOWN = psycopg.OperationalError("connection failed: Connection refused")


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"attempts": -1}, "attempts"),
        ({"attempts": True}, "attempts"),
        ({"max_elapsed": None}, "max_elapsed"),
        ({"max_elapsed": 0}, "max_elapsed"),
        ({"max_elapsed": "soon"}, "max_elapsed"),
        ({"max_elapsed": float("inf")}, "max_elapsed"),
        ({"first_wait": "2s", "max_wait": "1s"}, "first_wait"),
    ],
)
def test_refused(settings: dict[str, Any], word: str) -> None:
    """A policy that cannot end, or is no policy, is refused with the name of the setting."""
    with pytest.raises(ConfigurationError, match=word):
        RetryPolicy(**settings)


def test_units() -> None:
    """Durations may be strings."""
    assert RetryPolicy(max_elapsed="1.5s").max_elapsed == 1.5


def test_open_gate_lets_everybody_pass() -> None:
    """Nothing waits while nothing was lost; a transient failure closes the gate, another one does not."""
    gate = OutageGate("primary")
    with gate.turn(0.001):
        pass
    with pytest.raises(ValueError, match="mine"), gate.turn(0.001):
        raise ValueError("mine")
    assert not gate.closed
    with pytest.raises(psycopg.OperationalError), gate.turn(0.001):
        raise DOWN
    assert gate.closed


def test_one_probes_and_the_others_wait() -> None:
    """One of many callers tries at a time while the endpoint is down, and all pass when it is up."""
    gate = OutageGate("primary")
    gate.report_loss()
    up = threading.Event()
    trying, most, passed = 0, 0, 0
    lock = threading.Lock()
    first = threading.Event()

    def caller() -> None:
        nonlocal trying, most, passed
        while True:
            try:
                with gate.turn(10):
                    with lock:
                        trying += 1
                        most = max(most, trying) if not up.is_set() else most
                    first.set()
                    try:
                        if not up.wait(0.05):
                            raise DOWN
                    finally:
                        with lock:
                            trying -= 1
            except psycopg.OperationalError:
                continue
            with lock:
                passed += 1
            return

    threads = [threading.Thread(target=caller) for _ in range(20)]
    for thread in threads:
        thread.start()
    assert first.wait(5)
    up.set()
    for thread in threads:
        thread.join(10)
    assert (most, passed) == (1, 20)
    assert not gate.closed


def test_probes_are_spaced() -> None:
    """After a failed probe the next one waits for the interval; after a good one nobody does."""
    now = [100.0]
    gate = OutageGate("primary", clock=lambda: now[0])
    gate.report_loss()
    ticket = gate._enter()  # the first probe goes at once
    assert ticket.delay == 0
    gate._leave_probe(ticket.answer, "connection_lost")
    ticket = gate._enter()
    assert ticket.delay == pytest.approx(OutageGate.MIN_INTERVAL)
    gate._leave_probe(ticket.answer, None)
    now[0] += 10
    gate.report_loss()
    assert gate._enter().delay == 0


def test_comes_back_gradually() -> None:
    """After a probe that succeeded a few log in at a time, more with each that succeeds; when nobody waits, as many as come."""
    gate = OutageGate("primary")
    gate.report_loss()
    with gate.turn(1):
        pass
    first, second, *others = (gate._enter() for _ in range(40))
    assert (first.way, second.way) == (_Admission.GO, _Admission.GO)
    assert {ticket.way for ticket in others} == {_Admission.QUEUE}
    assert others[0].answer.cancel()  # one gives up
    let_in = []
    for _ in range(39):
        gate._leave_place(None)
        let_in.append(sum(ticket.answer.done() and not ticket.answer.cancelled() for ticket in others))
    assert let_in[:4] == [2, 4, 6, 8]
    assert let_in[-1] == len(others) - 1
    assert max(done - out for out, done in enumerate(let_in, start=1)) + 2 <= OutageGate.MOST_PLACES + 1
    tickets = [gate._enter() for _ in range(100)]
    assert {ticket.way for ticket in tickets} == {_Admission.GO}


def test_place_is_not_lost() -> None:
    """A caller that gives up as it is given a place leaves it to the next one; a new loss sends the queue to the probe."""
    gate = OutageGate("primary")
    gate.report_loss()
    with gate.turn(1):
        pass
    tickets = [gate._enter() for _ in range(OutageGate.FIRST_PLACES)]
    late, next_one = gate._enter(), gate._enter()
    gate._leave_place("connection_lost")
    assert late.answer.result(0) is True
    gate._give_up(late)
    assert next_one.answer.result(0) is True
    last = gate._enter()
    assert last.way is _Admission.QUEUE
    gate.report_loss()
    assert last.answer.result(0) is False
    assert tickets


def test_waiter_gives_up() -> None:
    """A caller that waits longer than it may gets a TimeoutError, and the probe goes on."""
    gate = OutageGate("primary")
    gate.report_loss()
    with gate.turn(1), pytest.raises(TimeoutError, match="primary"):
        with gate.turn(0.01):
            pytest.fail("there is a probe already")


async def test_async_waiters() -> None:
    """Tasks wait as threads do, and a cancelled waiter does not disturb the probe."""
    gate = OutageGate("primary")
    gate.report_loss()
    release = asyncio.Event()
    order: list[str] = []

    async def probe() -> None:
        async with gate.aturn(5):
            await release.wait()
            order.append("probe")

    async def waiter(name: str) -> None:
        async with gate.aturn(5):
            order.append(name)

    probing = asyncio.create_task(probe())
    while gate._probe is None:
        await asyncio.sleep(0)
    cancelled, waiting = asyncio.create_task(waiter("cancelled")), asyncio.create_task(waiter("waiter"))
    await asyncio.sleep(0)
    cancelled.cancel()
    release.set()
    await asyncio.gather(probing, waiting)
    assert order == ["probe", "waiter"]
    assert cancelled.cancelled()
    with pytest.raises(TimeoutError):
        gate.report_loss()
        async with gate.aturn(5):
            async with gate.aturn(0.01):
                pytest.fail("there is a probe already")


def test_an_outage_is_told_under_the_name_of_its_first_probe() -> None:
    """Endpoints of one path share a gate: the log says the name that the first prober knows, from the opening to the closing."""
    gate = OutageGate("fallback")
    gate.MIN_INTERVAL = 0.0
    told: list[tuple[Name, str]] = []
    unsubscribe = subscribe(lambda event: told.append((event.name, event.endpoint)))
    try:
        gate.report_loss()
        with pytest.raises(psycopg.OperationalError), gate.turn(1, "primary"):
            raise psycopg.OperationalError("connection failed: Connection refused")
        with gate.turn(1, "default"):
            pass
    finally:
        unsubscribe()
    assert told == [(Name.OUTAGE_OPENED, "primary"), (Name.OUTAGE_CLOSED, "primary")]
