"""The state of each endpoint in this process, and the sets of replicas: one each, the same object for all connections.

Each is kept for as long as anybody uses it, however many there are, and the last ones a while longer. What makes two endpoints
the same server path, behind one outage gate, is where they lead to (`_path`): host, port, user and database. Passwords, limits,
weights and retry policies may differ.
"""

from __future__ import annotations

import inspect
import threading
from collections import deque
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Final, Generic, NamedTuple, TypeVar
from weakref import WeakValueDictionary

import psycopg
from psycopg import pq
from psycopg.conninfo import make_conninfo

from ps_core._endpoint import EndpointState
from ps_core._fork import renew_after_fork
from ps_core._names import given_to_complete, no_such
from ps_core._retry.gate import OutageGate
from ps_core._retry.policy import USUAL, RetryPolicy, checked_policy
from ps_core.consistency import identity_of
from ps_core.errors import ConfigurationError
from ps_core.replicas import Replicas
from ps_core.timeouts import POOLED
from ps_core.topology import Endpoint, Topology, TopologySettings, check_side, parse_retry_timeout

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable
    from typing import Any

    from ps_core.timeouts import Duration
    from ps_core.topology import Consistency

__all__ = ["Target", "policy_for", "replicas_at", "replicas_of", "state_of", "states_of", "target_of"]

Key = TypeVar("Key", bound="Hashable")
Value = TypeVar("Value")


class _OneEach(Generic[Key, Value]):
    """One value for each key, for as long as anybody uses it."""

    KEPT: Final = 64
    """How many are kept besides: a pool that closes its last connection and opens another should find what it knew."""

    def __init__(self) -> None:
        self._values: WeakValueDictionary[Key, Value] = WeakValueDictionary()
        self._latest: deque[Value] = deque(maxlen=self.KEPT)
        self.forget_threads()
        renew_after_fork(self)

    def forget_threads(self) -> None:
        """See `EndpointState.forget_threads`."""
        self._lock = threading.RLock()

    def get(self, key: Key, make: Callable[[], Value]) -> Value:
        """Return the value of `key`, made when nobody has one."""
        with self._lock:
            value = self._values.get(key)
            if value is None:
                value = self._values[key] = make()
            if value not in self._latest:
                self._latest.append(value)
            return value

    def __len__(self) -> int:
        return len(self._values)


_gates: Final[_OneEach[Hashable, OutageGate]] = _OneEach()
_states: Final[_OneEach[Hashable, EndpointState]] = _OneEach()
_sets: Final[_OneEach[Hashable, Replicas]] = _OneEach()

_SETTINGS: Final = frozenset(TopologySettings.__annotations__)
_WHERE: Final = ("host", "hostaddr", "port", "user", "password", "dbname", "service")
"""The keywords that stand for a connection string, as psycopg's `connect` takes them."""
_LEADS_ELSEWHERE: Final = frozenset({"hostaddr", "load_balance_hosts", "service", "servicefile", "target_session_attrs"})
"""The libpq parameters that say where to connect."""


def _path(endpoint: Endpoint) -> Hashable:
    """Return what makes a server path: the user, too, since poolers have their pools, and their failures to log in, by user."""
    params = tuple(pair for pair in endpoint.params if pair[0] in _LEADS_ELSEWHERE)
    return endpoint.host, endpoint.port, endpoint.user, endpoint.dbname, params


def _gate_of(endpoint: Endpoint) -> OutageGate:
    return _gates.get(_path(endpoint), lambda: OutageGate(endpoint.name))


def policy_for(retry_timeout: Duration) -> RetryPolicy:
    """Return the policy that this setting (of `TopologySettings`) stands for."""
    seconds = parse_retry_timeout(retry_timeout, name="retry_timeout")
    # With no retries, a caller still waits for the gate: as long as one connect may take.
    return RetryPolicy(max_elapsed=seconds) if seconds else RetryPolicy(attempts=0, max_elapsed=POOLED.connect)


def state_of(
    endpoint: Endpoint, *, identity: str = "", consistency: Consistency = "none", on_primary: bool = False
) -> EndpointState:
    """Return the state of `endpoint` in this process: the same one for everybody who has the same endpoint."""
    return _states.get(
        (endpoint, identity, consistency, on_primary),
        lambda: EndpointState(
            endpoint=endpoint,
            identity=identity,
            tracks=consistency != "none",
            tracks_reads=consistency == "monotonic",
            on_primary=on_primary,
            gate=_gate_of(endpoint),
        ),
    )


def states_of(topology: Topology) -> tuple[EndpointState, tuple[EndpointState, ...], EndpointState]:
    """Return the states of a topology's primary, its replicas and its direct endpoint."""
    identity = identity_of(topology.identity)
    consistency: Consistency = topology.consistency if topology.replicas else "none"
    primary, direct, *replicas = (
        state_of(endpoint, identity=identity, consistency=consistency)
        for endpoint in (topology.primary, topology.direct, *topology.replicas)
    )
    return primary, tuple(replicas), direct


def replicas_of(topology: Topology) -> Replicas | None:
    """Return the replicas of a topology, the same object for everybody in this process; None where it has none."""
    if not topology.replicas:
        return None
    primary = topology.primary if topology.replica_fallback else None
    return replicas_at(topology.replicas, primary, identity=identity_of(topology.identity), consistency=topology.consistency)


def replicas_at(
    endpoints: tuple[Endpoint, ...], primary: Endpoint | None, *, identity: str, consistency: Consistency
) -> Replicas:
    """Return the set of these endpoints, the same for everybody; it falls back to `primary`, if that is given."""

    def make() -> Replicas:
        states = [state_of(endpoint, identity=identity, consistency=consistency) for endpoint in endpoints]
        if primary is None:
            return Replicas(states)
        gate = _gate_of(primary)  # the same server path, named as the primary's
        # With the role of a replica: what is sent there is READ ONLY.
        place = replace(primary, name="fallback", role="replica")
        fallback = state_of(place, identity=identity, consistency=consistency, on_primary=True)
        assert fallback.gate is gate
        return Replicas(states, fallback=fallback)

    return _sets.get((endpoints, primary, identity, consistency), make)


class Target(NamedTuple):
    """Where a connection goes, and when it is tried again."""

    state: EndpointState
    replicas: Replicas | None
    policy: RetryPolicy


def target_of(target: str | Topology | Endpoint, to: str, retry: RetryPolicy | None, options: dict[str, Any]) -> Target:
    """Return where `ps_core.connect` goes with these arguments. It takes the topology's settings out of `options`.

    Raises:
        ConfigurationError: these settings cannot work, or an option is unknown.
    """
    _check_options(target, options)
    if retry is not None:
        checked_policy(retry)
    if isinstance(target, Endpoint):
        check_side(target, to)
        return Target(state_of(target), None, retry or USUAL)
    if not isinstance(target, Topology):
        if target == "":
            target = make_conninfo("", **{name: options.pop(name) for name in _WHERE if name in options})
        target = Topology.from_url(target, **{name: options.pop(name) for name in list(options) if name in _SETTINGS})
    policy = retry or policy_for(target.retry_timeout)
    if to == "replica":
        replicas = replicas_of(target)
        if replicas is None:
            raise ConfigurationError("to='replica': there is none: write replica_bouncer=... or direct_replica=True")
        if target.replica_fallback not in (0, 1):
            raise ConfigurationError(
                f"replica_fallback={target.replica_fallback:g} is a share of an engine's pool: write 'primary' or 'none'"
            )
        return Target(replicas.first(), replicas, policy)
    primary, _, direct = states_of(target)
    if to not in ("primary", "direct"):
        raise ConfigurationError(f"to: write 'primary', 'replica' or 'direct', not {to!r}")
    return Target({"primary": primary, "direct": direct}[to], None, policy)


@cache
def _options_of_psycopg() -> frozenset[str]:
    """Return the keywords of psycopg's `connect`, those of the installed libpq included."""
    named = inspect.signature(psycopg.Connection.connect).parameters.values()
    of_libpq = (option.keyword.decode() for option in pq.Conninfo.get_defaults())
    return frozenset({*(one.name for one in named if one.kind is inspect.Parameter.KEYWORD_ONLY), *of_libpq})


def _check_options(target: str | Topology | Endpoint, options: Iterable[str]) -> None:
    """Refuse what is neither psycopg's nor a setting, before psycopg does, which names no other one."""
    unknown = [name for name in options if name not in _options_of_psycopg()]
    if isinstance(target, Topology | Endpoint):
        if settings := [name for name in unknown if name in _SETTINGS]:
            raise given_to_complete(target, settings)
    else:
        unknown = [name for name in unknown if name not in _SETTINGS]
    if unknown:
        raise no_such(
            "option",
            unknown[0],
            sorted({"to", "binding", "retry", *_SETTINGS, *_options_of_psycopg()}),
            otherwise="write a setting of ps_core.topology.TopologySettings, or a keyword of psycopg.connect",
        )
