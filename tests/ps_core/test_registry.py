"""The endpoints' states and their outage gates: one each in a process, for as long as anybody uses it."""

import gc
import os
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from ps_core import RetryPolicy, Timeouts, Topology
from ps_core._registry import _OneEach, replicas_of, state_of, states_of, target_of

pytestmark = pytest.mark.fast

URL = "postgresql://app.branch:pw@host/db"
TOPOLOGY = Topology.from_url(URL, bouncer="write-pool", replica_bouncer=["one", "two"])
PRIMARY = TOPOLOGY.primary


def test_more_than_were_ever_kept() -> None:
    """However many endpoints a process has, each has one state and one gate for as long as it is used."""
    endpoints = [replace(PRIMARY, host=f"host-{number}") for number in range(300)]
    states = [state_of(endpoint) for endpoint in endpoints]
    assert [state_of(endpoint) for endpoint in endpoints] == states
    assert len({state.gate for state in states}) == 300


@pytest.mark.parametrize(
    ("same", "other"),
    [
        pytest.param(True, {"password": "changed"}, id="a password that was changed"),
        pytest.param(True, {"timeouts": Timeouts(statement=9, transaction=10)}, id="other limits"),
        pytest.param(True, {"application_name": "jobs"}, id="another name of the application"),
        pytest.param(True, {"name": "default"}, id="another name, as Django's alias"),
        pytest.param(True, {"role": "replica", "name": "fallback"}, id="the primary as it stands in for replicas"),
        pytest.param(True, {"params": (("sslmode", "require"),)}, id="a libpq parameter that leads to the same place"),
        pytest.param(False, {"host": "other"}, id="another host"),
        pytest.param(False, {"port": 5432}, id="another port"),
        pytest.param(False, {"user": "app.branch|read-pool"}, id="another bouncer"),
        pytest.param(False, {"user": "jobs.branch|write-pool"}, id="another role, for which a pooler has a pool of its own"),
        pytest.param(False, {"dbname": "other"}, id="another database"),
        pytest.param(False, {"params": (("hostaddr", "10.0.0.1"),)}, id="a libpq parameter that leads elsewhere"),
    ],
)
def test_server_path(same: bool, other: dict[str, Any]) -> None:
    """What leads to the same server path waits at the same gate."""
    first, second = state_of(PRIMARY), state_of(replace(PRIMARY, **other))
    assert first is not second
    assert (first.gate is second.gate) is same


def test_two_policies() -> None:
    """Whatever the retry policy of two connections, they wait at the same gate, and leave out the same replicas."""
    for to in ("primary", "replica", "direct"):
        quick, slow = (target_of(TOPOLOGY, to, RetryPolicy(max_elapsed=seconds), {}) for seconds in (1, 30))
        assert (quick.policy.max_elapsed, slow.policy.max_elapsed) == (1, 30)
        assert quick.replicas is slow.replicas
        assert {quick.state.gate, slow.state.gate} <= {state.gate for state in all_states()}


def all_states() -> list[Any]:
    """Return the states of the topology."""
    primary, replicas, direct = states_of(TOPOLOGY)
    return [primary, *replicas, direct]


def test_users_of_a_set() -> None:
    """Two users of a set know of the same failures, and each has its own bound of connections on the primary."""
    shared = replicas_of(TOPOLOGY)
    assert shared is not None
    one, two = shared.limited_to(1), shared.limited_to(2)
    one.report_failure(shared.states[0])
    assert two.out == shared.out == (shared.states[0],)
    assert (one.max_fallback, two.max_fallback, shared.max_fallback) == (1, 2, None)


@pytest.mark.parametrize("make", [lambda topology: states_of(topology)[0], replicas_of], ids=["a state", "a set of replicas"])
def test_collected(make: Callable[[Topology], Any]) -> None:
    """What nobody uses is collected, once so many others were used that it is not among the last."""
    own = Topology.from_url("postgresql://app.own:pw@host/db", replica_bouncer="one")
    unused = weakref.ref(make(own))
    assert unused() is make(own)
    others = [
        make(Topology.from_url(f"postgresql://app.branch{number}:pw@host/db", replica_bouncer="one"))
        for number in range(_OneEach.KEPT)
    ]
    gc.collect()
    assert unused() is None
    assert len(set(others)) == _OneEach.KEPT


def test_fork() -> None:
    """A process that was forked while a thread held the locks goes on, with the same gate for the same path."""
    state = state_of(PRIMARY)
    replicas = replicas_of(TOPOLOGY)
    assert replicas is not None
    locks = (state.gate._lock, replicas._left_out.lock)
    for lock in locks:
        lock.acquire()
    child = os.fork()
    if child == 0:
        try:
            with state.gate.turn(1) as turn:
                turn.connected()
            replicas.report_failure(replicas.states[0])
            os._exit(0 if state_of(replace(PRIMARY, password="changed")).gate is state.gate else 1)
        except BaseException:  # noqa: BLE001 - the child's verdict is its exit code
            os._exit(2)
    for lock in locks:
        lock.release()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
