"""The state of each endpoint in this process, and the sets of replicas: one each, the same object for all connections."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from ps_core._endpoint import EndpointState
from ps_core._retry.policy import RetryPolicy
from ps_core.consistency import identity_of
from ps_core.replicas import Replicas
from ps_core.timeouts import POOLED
from ps_core.topology import parse_retry_timeout

if TYPE_CHECKING:
    from ps_core.timeouts import Duration
    from ps_core.topology import Endpoint, Topology

__all__ = ["policy_for", "replicas_at", "replicas_of", "state_of", "states_of"]

_POLICY: Final = RetryPolicy()


def policy_for(retry_timeout: Duration) -> RetryPolicy:
    """Return the policy that this setting (of `TopologySettings`) stands for."""
    seconds = parse_retry_timeout(retry_timeout, name="retry_timeout")
    # Who never tries again waits for the caller that probes the endpoint, or for a turn, as long as a connect may take.
    return RetryPolicy(max_elapsed=seconds) if seconds else RetryPolicy(attempts=0, max_elapsed=POOLED.connect)


def state_of(endpoint: Endpoint, *, identity: str = "", tracks: bool = False, policy: RetryPolicy = _POLICY) -> EndpointState:
    """Return the state of `endpoint` in this process: the same one for everybody, so that all wait at the same gate."""
    return _state_of(endpoint, identity, tracks, policy)


@lru_cache(maxsize=256)
def _state_of(endpoint: Endpoint, identity: str, tracks: bool, policy: RetryPolicy) -> EndpointState:
    return EndpointState(endpoint=endpoint, identity=identity, tracks=tracks, policy=policy)


def states_of(
    topology: Topology, *, policy: RetryPolicy | None = None
) -> tuple[EndpointState, tuple[EndpointState, ...], EndpointState]:
    """Return the states of a topology's primary, its replicas and its direct endpoint; a `policy` wins over `retry_timeout`."""
    policy = policy or policy_for(topology.retry_timeout)
    identity, tracks = identity_of(topology.identity), bool(topology.replicas)
    primary, direct, *replicas = (
        state_of(endpoint, identity=identity, tracks=tracks, policy=policy)
        for endpoint in (topology.primary, topology.direct, *topology.replicas)
    )
    return primary, tuple(replicas), direct


def replicas_of(topology: Topology, *, policy: RetryPolicy | None = None) -> Replicas | None:
    """Return the replicas of a topology, the same object for everybody in this process; None where it has none."""
    if not topology.replicas:
        return None
    policy = policy or policy_for(topology.retry_timeout)
    primary = topology.primary if topology.replica_fallback else None
    return replicas_at(topology.replicas, primary, identity=identity_of(topology.identity), policy=policy)


def replicas_at(
    endpoints: tuple[Endpoint, ...],
    primary: Endpoint | None,
    *,
    identity: str,
    tracks: bool = True,
    policy: RetryPolicy = _POLICY,
) -> Replicas:
    """Return the set of these endpoints, the same for everybody; it falls back to `primary`, if that is given."""
    return _replicas_at(endpoints, primary, identity, tracks, policy)


@lru_cache(maxsize=256)
def _replicas_at(
    endpoints: tuple[Endpoint, ...], primary: Endpoint | None, identity: str, tracks: bool, policy: RetryPolicy
) -> Replicas:
    def state(endpoint: Endpoint) -> EndpointState:
        return state_of(endpoint, identity=identity, tracks=tracks, policy=policy)

    # With the role of a replica: what is sent there is READ ONLY.
    fallback = None if primary is None else state(replace(primary, name="fallback", role="replica"))
    return Replicas(map(state, endpoints), fallback=fallback)
