"""When a lost connection is tried again, where and how long, decided without a server: each row is a sentence."""

from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from ps_core import RetryPolicy, Topology, deadline
from ps_core._endpoint import EndpointState
from ps_core._retry.attempts import Attempts, StillRunning, _told, is_transient
from ps_core._retry.deadline import CONNECT_WHILE_ANOTHER_CAN, connecting_until
from ps_core.errors import DeadlineExceeded, OutageTimeout
from ps_core.events import Event, Name, subscribe
from ps_core.replicas import RETRY_REPLICAS_FOR, Replicas

pytestmark = pytest.mark.fast

REFUSED = psycopg.OperationalError("connection failed: Connection refused")
SYNTAX = psycopg.errors.SyntaxError("syntax error")
NOW = [1000.0]
POLICY = [RetryPolicy()]


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that stands still until it is moved."""
    NOW[0] = 1000.0
    for module in ("ps_core._retry.attempts", "ps_core.context"):
        monkeypatch.setattr(f"{module}.time", SimpleNamespace(monotonic=lambda: NOW[0], time=lambda: NOW[0]))


def states(count: int = 2, **policy: Any) -> tuple[EndpointState, ...]:
    """The primary, and so many replica endpoints."""
    POLICY[0] = RetryPolicy(**policy)
    names = [f"bouncer-{number}" for number in range(count)]
    topology = Topology.from_url("postgresql://app.branch:pw@host/db", replica_bouncer=names)
    return tuple(EndpointState(endpoint=endpoint) for endpoint in (topology.primary, *topology.replicas))


def tries(state: EndpointState, **given: Any) -> Attempts:
    """The tries of one healing, by the policy of the endpoints that were made last."""
    return Attempts(state, policy=POLICY[0], **given)


def replicas(count: int = 2, *, falls_back: bool = True, **policy: Any) -> Replicas:
    """So many replica endpoints, and the primary behind them."""
    primary, *others = states(count, **policy)
    return Replicas(others, fallback=primary if falls_back else None, clock=lambda: NOW[0])


def test_time_that_is_left() -> None:
    """The policy's time or the caller's deadline, whichever is over first."""
    (state,) = states(0, max_elapsed=30)
    attempts = tries(state)
    assert attempts.until == NOW[0] + 30
    NOW[0] += 10
    assert attempts.remaining() == 20
    with deadline(5):
        assert tries(state).remaining() == 5
    with deadline(60):
        assert tries(state).remaining() == 30


def test_patience_with_replicas() -> None:
    """Behind a gate a read hears after a second that it has to go elsewhere; of little time, after half of it; never at once."""
    group = replicas()
    attempts = tries(group.states[0], replicas=group)
    assert attempts.remaining() == RETRY_REPLICAS_FOR
    NOW[0] += 0.4
    assert attempts.remaining() == pytest.approx(RETRY_REPLICAS_FOR - 0.4)
    NOW[0] += 10
    assert attempts.remaining() == 0.1
    with deadline(0.8):
        assert tries(group.states[0], replicas=group).remaining() == pytest.approx(0.4)
    assert group.fallback is not None
    assert tries(group.fallback, replicas=group, home=group.fallback).state in group.states
    NOW[0] += 60
    late = tries(group.states[0], replicas=group)
    NOW[0] += 29.95
    assert late.remaining() == pytest.approx(0.05)


def test_no_patience_with_what_is_out() -> None:
    """With an endpoint that is left out already nobody is patient."""
    group = replicas()
    group.report_failure(group.states[0])
    assert tries(group.states[0], replicas=group).remaining() == 0.1


def test_on_the_fallback_all_the_time_is_its_own() -> None:
    """The primary is the last resort: it is waited for as long as the policy says."""
    group = replicas(1)
    attempts = tries(group.states[0], replicas=group)
    NOW[0] += 2
    attempts._failed = True
    assert attempts.next_state() is group.fallback
    assert attempts.remaining() == 28


def test_next_endpoint() -> None:
    """A try that failed goes on with another endpoint, patient ones with a replica; one that did not stays."""
    group = replicas(2)
    first, second = group.states
    attempts = tries(first, replicas=group)
    assert attempts.next_state() is first
    attempts._record_and_decide(REFUSED)
    assert attempts.next_state() is second
    assert attempts.next_state() is second
    attempts._record_and_decide(REFUSED)
    assert attempts.next_state() is second, "all were tried, and it is still patient"
    NOW[0] += RETRY_REPLICAS_FOR
    attempts._record_and_decide(REFUSED)
    assert attempts.next_state() is group.fallback
    third = replicas(3)
    once = tries(third.states[0], replicas=third)
    once._record_and_decide(REFUSED)
    moved = once.next_state()
    assert once.next_state() is moved, "nothing has failed since"
    (alone,) = states(0)
    single = tries(alone)
    single._record_and_decide(REFUSED)
    assert single.next_state() is alone


WAITS = [
    ("a wait is as the policy drew it", 0.0, 0.3, False, False, 0.3),
    ("not beyond the patience", 0.9, 0.3, False, False, 0.1),
    ("when that is over, the next endpoint is asked at once", 1.0, 0.3, False, False, 0.0),
    ("also when it has been for long", 5.0, 0.3, False, False, 0.0),
    ("once: then the policy's waits are waited", 5.0, 0.3, True, False, 0.3),
    ("also in the moment in which it is over", 1.0, 0.3, True, False, 0.3),
    ("on the primary they always are", 0.9, 0.3, False, True, 0.3),
]


@pytest.mark.parametrize("row", WAITS, ids=[row[0] for row in WAITS])
def test_waits(row: tuple[str, float, float, bool, bool, float]) -> None:
    """How long the loop waits before the next try, where a read could go to the primary."""
    _, later, drawn, hurried, on_primary, waits = row
    group = replicas(1)
    attempts = tries(group.states[0], replicas=group)
    wait: Any = attempts.options["wait"]
    assert wait.func == attempts._wait
    assert group.fallback is not None
    if on_primary:
        attempts.state = group.fallback
    NOW[0] += later
    if hurried:
        attempts._wait(lambda _: drawn, group.fallback, None)
    assert attempts._wait(lambda _: drawn, group.fallback, None) == pytest.approx(waits)


def test_a_wait_before_hurries_nobody() -> None:
    """A wait within the patience is none after it: the next endpoint is still asked at once."""
    group = replicas(1)
    attempts = tries(group.states[0], replicas=group)
    assert group.fallback is not None
    NOW[0] += 0.5
    assert attempts._wait(lambda _: 0.1, group.fallback, None) == 0.1
    NOW[0] += 0.5
    assert attempts._wait(lambda _: 0.3, group.fallback, None) == 0


def test_wait_of_the_loop() -> None:
    """The loop's own wait heeds the patience; where there is no primary behind the replicas, it is the policy's."""
    group = replicas(1, first_wait=20, max_wait=20, max_elapsed=60)
    attempts = tries(group.states[0], replicas=group)
    state: Any = SimpleNamespace(attempt_number=9)
    assert max(attempts.options["wait"](state) for _ in range(50)) <= RETRY_REPLICAS_FOR
    bare = replicas(1, falls_back=False, first_wait=20, max_wait=20, max_elapsed=60)
    waits = tries(bare.states[0], replicas=bare).options["wait"]
    assert max(waits(state) for _ in range(50)) > RETRY_REPLICAS_FOR


def may(answer: bool) -> Any:
    """Return a rule about statements that always answers this."""
    return lambda _: answer


AGAIN: list[tuple[str, BaseException, Any, bool, float, bool]] = [
    ("a refused connect is tried again", REFUSED, None, True, 0, True),
    ("a wrong statement is not", SYNTAX, None, True, 0, False),
    ("while connecting, the rule about statements is not asked", REFUSED, may(False), True, 0, True),
    ("once connected it is", REFUSED, may(False), False, 0, False),
    ("and decides", SYNTAX, may(True), False, 0, True),
    ("without one, what is transient is tried again", REFUSED, None, False, 0, True),
    ("a transaction that is still running is asked for again", StillRunning("running"), may(False), False, 0, True),
    ("a wait for a turn that was in vain is, where other endpoints are", TimeoutError(), None, True, 0, True),
    ("until the time is over", TimeoutError(), None, True, 30, False),
    ("a deadline that passed is not", DeadlineExceeded("over"), None, True, 0, False),
]


@pytest.mark.parametrize("row", AGAIN, ids=[row[0] for row in AGAIN])
def test_again(row: tuple[str, BaseException, Any, bool, float, bool]) -> None:
    """What is tried again."""
    _, exc, rule, connecting, later, again = row
    group = replicas(1)
    attempts = tries(group.states[0], replicas=group, may_replay=rule)
    assert attempts.connecting
    attempts.connecting = connecting
    NOW[0] += later
    assert attempts._record_and_decide(exc) is again


def test_a_single_endpoint_is_not_waited_for_twice() -> None:
    """Where there is no other endpoint, a wait for a turn that was in vain ends it."""
    (state,) = states(0)
    assert not tries(state)._record_and_decide(TimeoutError())


CONNECTS: list[tuple[str, int, bool, float, bool, float | None]] = [
    ("where another can answer, half of what a connect may take", 2, False, 30, False, CONNECT_WHILE_ANOTHER_CAN),
    ("or half of the time that is left", 2, False, 4, False, 2.0),
    ("but not nothing", 2, False, 0.1, False, 0.1),
    ("the primary can answer in place of a single replica", 1, True, 30, False, CONNECT_WHILE_ANOTHER_CAN),
    ("nothing can in place of a lone one", 1, False, 30, False, None),
    ("nor in place of the primary", 1, True, 30, True, None),
]


@pytest.mark.parametrize("row", CONNECTS, ids=[row[0] for row in CONNECTS])
def test_time_of_a_connect(row: tuple[str, int, bool, float, bool, float | None]) -> None:
    """How long one try to connect may take."""
    _, count, falls_back, elapsed, on_primary, bound = row
    group = replicas(count, falls_back=falls_back, max_elapsed=elapsed)
    attempts = tries(group.states[0], replicas=group)
    if on_primary:
        assert group.fallback is not None
        attempts.state = group.fallback
    with attempts.bounded_connect():
        until = connecting_until.get()
        assert until == (None if bound is None else pytest.approx(NOW[0] + bound))
    assert connecting_until.get() is None


def test_time_of_a_connect_alone() -> None:
    """A connection that has no replicas is not bounded, and a bound ends with a failure as well."""
    (state,) = states(0)
    with tries(state).bounded_connect():
        assert connecting_until.get() is None
    group = replicas(2)
    with pytest.raises(psycopg.OperationalError), tries(group.states[0], replicas=group).bounded_connect():
        raise REFUSED
    assert connecting_until.get() is None


def test_what_is_told() -> None:
    """Each retry is an event, and the error that ends it lists all of them, and how long it took."""
    (state,) = states(0)
    heard: list[Event] = []
    unsubscribe = subscribe(heard.append)
    try:
        attempts = tries(state, first=psycopg.errors.AdminShutdown("terminating connection"))
        assert state.gate.closed
        error = psycopg.OperationalError("connection failed: Connection refused")
        with pytest.raises(psycopg.OperationalError) as raised, attempts.explaining():
            NOW[0] += 1.5
            for _ in range(2):
                assert attempts._record_and_decide(error)
            assert not attempts._record_and_decide(SYNTAX)
            raise error
    finally:
        unsubscribe()
    assert raised.value is error
    assert [(event.name, event.attempt, event.endpoint) for event in heard] == [
        (Name.RETRY, number, "primary") for number in (1, 2, 3)
    ]
    first, second = (event.reason for event in heard[:2])
    assert error.__notes__ == [
        f"ps-postgres: tried the endpoint 'primary' again for 1.5 s\n  'primary': {first}\n  'primary': {second}, 2 times"
    ]


def test_how_often() -> None:
    """A failure before the loop is the first of those that the policy counts."""
    (state,) = states(0, attempts=1)
    tried_once: Any = SimpleNamespace(attempt_number=1, seconds_since_start=0.0, upcoming_sleep=0.0)
    assert tries(state, first=REFUSED).options["stop"](tried_once)
    assert not tries(state).options["stop"](tried_once)


def test_told_in_order() -> None:
    """Repetitions are counted, and what came back later stands again."""
    assert _told([]) == ""
    assert _told(["a"]) == "\n  a"
    assert _told(["a", "a", "b", "a"]) == "\n  a, 2 times\n  b\n  a"


def test_the_gate_hears_of_a_loss_only() -> None:
    """A connection that is opened has lost none, and tells nothing."""
    (state,) = states(0)
    attempts = tries(state)
    assert not state.gate.closed
    assert attempts._history == []


def raised_by(attempts: Attempts, error: BaseException) -> BaseException:
    """Return what is raised in place of `error`."""
    with pytest.raises(BaseException) as raised, attempts.explaining():
        raise error
    return raised.value


def test_errors_that_end_it() -> None:
    """An error of the database is raised as it is; a wait in vain raises what began it all; a deadline is a deadline."""
    (state,) = states(0)
    first = psycopg.errors.AdminShutdown("terminating connection")
    assert raised_by(tries(state), SYNTAX) is SYNTAX
    assert not hasattr(SYNTAX, "__notes__")
    waited = TimeoutError("primary did not come back in time")
    error = raised_by(tries(state, first=first), waited)
    assert error is first
    assert error.__cause__ is waited
    alone = raised_by(tries(state), waited)
    assert isinstance(alone, OutageTimeout)
    with deadline(5):
        assert isinstance(raised_by(tries(state), waited), DeadlineExceeded)  # it left no more time
    assert str(alone) == str(waited)
    assert alone.__cause__ is waited
    passed = DeadlineExceeded("over")
    assert raised_by(tries(state, first=first), passed) is passed
    other = ValueError("a caller's own")
    assert raised_by(tries(state), other) is other


def test_a_deadline_that_left_no_time() -> None:
    """Where the caller's deadline ended the tries, that is the error; where the policy did, it is the database's."""
    (state,) = states(0, max_elapsed=30)
    with deadline(5):
        error = raised_by(tries(state), psycopg.OperationalError("connection failed: Connection refused"))
    assert isinstance(error, DeadlineExceeded)
    assert isinstance(error.__cause__, psycopg.OperationalError)
    for seconds in (30, 60):
        with deadline(seconds):
            attempts = tries(state)
        refused = psycopg.OperationalError("connection failed: Connection refused")
        assert raised_by(attempts, refused) is refused
    with deadline(5):
        assert raised_by(tries(state), SYNTAX) is SYNTAX


def test_reconnects_to_where_it_belongs() -> None:
    """A connection whose own endpoint is back goes there; without a home it stays where it is."""
    group = replicas(2)
    first, second = group.states
    assert tries(second, replicas=group, home=first).state is first
    assert tries(second, replicas=group).state is second
    assert tries(second, home=first).state is second


def test_transient() -> None:
    """What is no error of the connection is none that passes."""
    assert is_transient(REFUSED)
    assert not is_transient(psycopg.errors.InvalidPassword("password authentication failed"))
    assert not is_transient(SYNTAX)
    assert not is_transient(ValueError())
