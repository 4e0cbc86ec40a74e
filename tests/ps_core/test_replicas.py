"""Which replica endpoint takes the next read."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import pytest

from ps_core import ConfigurationError, Topology, set_replica_share
from ps_core._endpoint import EndpointState
from ps_core._registry import states_of
from ps_core.replicas import Replicas
from ps_core.share import ENVIRONMENT, _of_environment, replica_share, shares

pytestmark = pytest.mark.fast


class Clock:
    """A clock that stands still until it is moved."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def states() -> tuple[EndpointState, ...]:
    """Three replica endpoints."""
    return states_of(Topology.from_url("postgresql://app.branch:pw@host/db", replica_bouncer=["one", "two", "three"]))[1]


@pytest.fixture(autouse=True)
def share() -> Iterator[None]:
    """Leave the operators' switch as it was."""
    _of_environment.cache_clear()
    yield
    set_replica_share(None)
    _of_environment.cache_clear()


def weighted(state: EndpointState, weight: float) -> EndpointState:
    """Return a state to the same endpoint with another weight."""
    return EndpointState(endpoint=replace(state.endpoint, weight=weight))


def test_weights(states: tuple[EndpointState, ...]) -> None:
    """Reads are spread by weight, and an endpoint of weight 0 takes none."""
    heavy, light, none = (weighted(state, weight) for state, weight in zip(states, (9, 1, 0), strict=True))
    replicas = Replicas([heavy, light, none])
    counts = Counter(replicas.choose() for _ in range(2000))
    assert counts[none] == 0
    assert 0 < counts[light] < 400 < counts[heavy]


def test_out_until_a_probe_succeeds(states: tuple[EndpointState, ...]) -> None:
    """An endpoint that failed takes no reads but one probe at a time, at growing intervals, until one succeeds."""
    clock = Clock()
    replicas = Replicas(states[:2], clock=clock)
    bad, good = states[:2]
    replicas.report_failure(bad)
    assert {replicas.choose() for _ in range(50)} == {good}
    for interval in (1, 2, 4, 8, 15, 15):
        clock.now += interval
        assert replicas.choose() is bad, interval
        replicas.report_failure(bad)
        assert {replicas.choose() for _ in range(20)} == {good}
    clock.now += 15
    assert replicas.choose() is bad
    replicas.report_connected(SimpleNamespace(state=bad))
    assert replicas.out == ()
    assert {replicas.choose() for _ in range(50)} == {bad, good}


def test_none_left(states: tuple[EndpointState, ...]) -> None:
    """Where every endpoint has failed or has been tried, there is none."""
    replicas = Replicas(states[:2], clock=Clock())
    assert replicas.choose(states[:2]) is None
    assert replicas.choose(states[:1]) is states[1]
    for state in states[:2]:
        replicas.report_failure(state)
    assert replicas.choose() is None
    assert Replicas([]).choose() is None


def test_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operators' switch holds back the given share of the reads; the environment says what holds without it."""
    set_replica_share(0)
    assert not any(shares() for _ in range(50))
    set_replica_share(0.5)
    assert 300 < sum(shares() for _ in range(1000)) < 700
    monkeypatch.setenv(ENVIRONMENT, "0.25")
    assert replica_share() == 0.5
    set_replica_share(None)
    assert replica_share() == 0.25


def test_home(states: tuple[EndpointState, ...]) -> None:
    """A connection that went elsewhere returns to the endpoint that it was opened for, as soon as that is due or back."""
    clock = Clock()
    home, other, fallback = states
    replicas = Replicas([home, other], fallback=fallback, clock=clock)
    replicas.report_failure(home)
    assert not replicas.should_return_home(other, home)
    assert replicas.reconnect_target(other, home) is other
    assert replicas.preferred() is other
    clock.now += 1
    assert replicas.should_return_home(other, home)
    assert replicas.reconnect_target(other, home) is home
    assert not replicas.should_return_home(other, home)
    replicas.report_connected(SimpleNamespace(state=home))
    assert replicas.should_return_home(other, home)
    assert fallback.generation == 1


@pytest.mark.parametrize("value", ["2", "-0.1", "half", "nan"])
def test_share_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no share is refused with the name of what said it."""
    monkeypatch.setenv(ENVIRONMENT, value)
    with pytest.raises(ConfigurationError, match=ENVIRONMENT):
        replica_share()
    with pytest.raises(ConfigurationError, match="set_replica_share"):
        set_replica_share(value)  # type: ignore[arg-type]
