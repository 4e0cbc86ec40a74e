"""One piece of work, from the first try to the result: where it goes, and what follows a failure. Written once, for threads and
asyncio: a generator that says what to do next, and is told what came of it.
"""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakValueDictionary

from ps_core._endpoint import StatementMemory
from ps_core._fork import renew_after_fork
from ps_core._retry.gate import OutageGate
from ps_core.consistency import Token, identity_of, parse_lsn
from ps_core.context import current, current_token, has_to_ask_primary, record_seen, remaining, unknown_positions
from ps_core.events import Event, Name, deadline_exceeded, emit, emit_fallback, emit_route
from ps_core.failures import FOR_PRIMARY, Ran, classify
from ps_core.routing import Route, Situation, decide
from ps_core.share import shares
from ps_core.topology import Endpoint, Topology
from ps_http._answer import Problem, read_answer
from ps_http._plan import Refused, compose
from ps_http._request import Modes, make_request, target_for
from ps_http._transport import Lost, Transport

if TYPE_CHECKING:
    from collections.abc import Generator

    from ps_core._plain_errors import DeadlineExceeded
    from ps_core._websocket import Target
    from ps_http._answer import Raw
    from ps_http._plan import Sent, Work
    from ps_http._request import Request
    from ps_http._transport import Answer

__all__ = ["GRACE", "Place", "Send", "Site", "Wait", "perform"]

GRACE: Final = 0.5
"""Seconds after the deadline in which the server's own answer is still awaited, as in `ps_core`: its timeout speaks first."""
_PATIENCE: Final = 15.0
"""Seconds beyond the statement's own limit for which an answer is awaited: what Neon's proxy gives a request."""
_COMMIT_CHECK: Final = (
    "commit_check(): over HTTPS nothing looks up what became of a request whose answer was lost: run it outside of the block, and"
    ' read what it was to change where CommitOutcomeUnknown is raised; or use ps_core.connect(..., transport="websocket")'
)
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 1.0
"""Bounds of the wait before a try, drawn between nothing and it; it doubles, as `ps_core._retry.policy` has it."""


class Place:
    """One endpoint in this process: where it is, its connections, its outage gate, and what its server taught us."""

    def __init__(self, endpoint: Endpoint, target: Target) -> None:
        self.endpoint = endpoint
        self.gate = OutageGate(endpoint.name)
        self.refused_read_only = StatementMemory()
        self.transport = Transport(target)
        self.aio: Any = None
        """The same for asyncio (`ps_http._aio.AsyncTransport`), made when it is first asked for."""
        renew_after_fork(self)

    def forget_threads(self) -> None:
        """See `ps_core._endpoint.EndpointState.forget_threads`. The other one's event loop is the parent's, too."""
        self.refused_read_only.forget_threads()
        self.aio = None

    @classmethod
    def of(cls, endpoint: Endpoint) -> Place:
        """Return the place of an endpoint: the same one for all clients, as long as one of them is used.

        Raises:
            ConfigurationError: the endpoint cannot be reached over HTTPS.
        """
        target = target_for(endpoint)
        key = endpoint, target
        with _lock:
            place = _places.get(key)
            if place is None:
                place = _places[key] = cls(endpoint, target)
            return place

    def __repr__(self) -> str:
        return f"<Place {self.endpoint!r}>"


_places: Final[WeakValueDictionary[Any, Place]] = WeakValueDictionary()
_lock: Final = threading.RLock()


class Site:
    """The places of one database."""

    def __init__(self, target: Topology | Endpoint, to: str) -> None:
        self.identity = ""
        self.replicas: tuple[Place, ...] = ()
        self.consistency = "none"
        self.fallback = True
        self.retry_for = 30.0
        if isinstance(target, Topology):
            self.identity = identity_of(target.identity)
            self.retry_for = target.retry_timeout
            self.primary = Place.of(target.direct if to == "direct" else target.primary)
            if to == "primary" and target.replicas:
                self.replicas = tuple(map(Place.of, target.replicas))
                self.consistency = target.consistency
                self.fallback = target.replica_fallback > 0
        else:
            self.primary = Place.of(target)

    @property
    def tracks(self) -> bool:
        """Whether positions are asked for and heeded."""
        return self.consistency != "none"

    def first(self, work: Work) -> Place:
        """Return where work goes first."""
        if not self.replicas:
            return self.primary
        context = current()
        decision = decide(
            Situation(
                reads=work.reads and not work.alone,
                block=context.route,
                read_only=work.modes.read_only and (work.is_batch or not work.reads),
                # With one snapshot for all, it would be older than what the guard asks for.
                serializable=work.modes.isolation in ("serializable", "repeatable read"),
                declared=work.is_batch,
                pinned=lambda: self.tracks and has_to_ask_primary(self.identity),
                in_share=shares,
            )
        )
        emit_route(decision)
        return self.other(()) if decision.route is Route.REPLICA else self.primary

    def other(self, tried: tuple[Place, ...]) -> Place:
        """Return a replica that was not tried; the primary where there is none."""
        left = [place for place in self.replicas if place not in tried and place.endpoint.weight > 0]
        open_ones = [place for place in left if not place.gate.closed] or left
        if open_ones:
            return random.choices(open_ones, [place.endpoint.weight for place in open_ones])[0]  # noqa: S311 - shares of a load
        return self.primary


@dataclass(frozen=True, slots=True)
class Send:
    """Send this, in turn with others where the endpoint is down."""

    place: Place
    request: Request
    until: float | None
    """On `time.monotonic`'s clock."""
    patience: float
    """Seconds for which to wait for the endpoint to come back."""
    alone: bool
    count: int
    writes: bool
    remaining: float | None
    """Seconds that were left of the deadline."""

    @property
    def connect(self) -> float:
        """Seconds in which a connection has to be made."""
        return self.place.endpoint.timeouts.connect

    def read(self, answer: Answer) -> tuple[Raw, ...]:
        """Return the results that an answer holds.

        Raises:
            psycopg.Error: it holds none.
        """
        found = read_answer(answer.status, answer.body, alone=self.alone, count=self.count)
        if not isinstance(found, Problem):
            return found
        from ps_http.errors import of_problem

        raise of_problem(found, writes=self.writes, endpoint=self.place.endpoint.name, request_id=answer.request_id)

    def fail(self, lost: Lost) -> Exception:
        """Return what to raise where no answer came."""
        from ps_http.errors import of_lost

        passed = self._passed("the deadline passed before the answer came") if lost.timed_out else None
        return of_lost(lost, writes=self.writes, deadline=passed)

    def waited_in_vain(self) -> Exception:
        """Return what to raise where the endpoint did not come back in time."""
        from ps_core.errors import OutageTimeout

        name = self.place.endpoint.name
        return self._passed("the deadline left no time to wait for the endpoint") or OutageTimeout(
            f"the endpoint {name!r} did not come back in time"
        )

    def _passed(self, message: str) -> DeadlineExceeded | None:
        context = current()
        if context.deadline is None or time.monotonic() < context.deadline:
            return None
        return deadline_exceeded(message, self.place.endpoint.name, seconds=context.deadline_seconds)


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait, in seconds."""

    seconds: float


def perform(site: Site, work: Work) -> Generator[Send | Wait, Any, tuple[Raw, ...]]:
    """Do it, and return the results of its statements.

    Raises:
        psycopg.Error: as the server says; `CommitOutcomeUnknown` where it may have been committed.
        DeadlineExceeded: the caller's deadline is over.
    """
    place = site.first(work)
    tried: tuple[Place, ...] = ()
    until = time.monotonic() + site.retry_for
    bound, attempt = _FIRST_WAIT, 0
    while True:
        covers = unknown_positions()
        step, sent = _send(site, place, work, until)
        try:
            answers: tuple[Raw, ...] = yield step
        except Exception as exc:
            failure = classify(exc)
            _explain(exc, step, work)
            if failure.rule == "commit_outcome_unknown":
                emit(Event(name=Name.COMMIT_OUTCOME, endpoint=place.endpoint.name, reason="unknown"))
                if site.tracks:  # what may have been written may be seen
                    record_seen(Token(identity=site.identity, position=None, at=time.time()), wrote=True)
            state = getattr(exc, "sqlstate", None)
            is_replica = place is not site.primary
            if state == "25006" and work.modes.read_only:
                raise
            if state == "25006" and work.reads:
                if work.memory:
                    site.primary.refused_read_only.add(work.memory)
                work = work.as_write()
                if is_replica:
                    emit_fallback(place.endpoint.name, failure)
                    place = site.primary
                continue
            if state in ("25001", "2D000") and not (work.alone or work.is_batch or work.modes != Modes()):
                work = work.by_itself()
                place = site.primary
                continue
            if is_replica and failure.kind in FOR_PRIMARY and site.fallback:
                emit_fallback(place.endpoint.name, failure)
                place = site.primary
                continue
            if not (failure.transient and (failure.ran is Ran.NO or work.read_only)):
                raise
            attempt += 1
            wait = random.uniform(0, bound)  # noqa: S311 - jitter
            if is_replica:
                tried = (*tried, place)
                other = site.other(tried)
                if other is not site.primary or site.fallback:
                    emit(Event(name=Name.RETRY, endpoint=place.endpoint.name, reason=failure.rule, attempt=attempt))
                    if other is site.primary:
                        emit_fallback(place.endpoint.name, failure)
                    place = other
                    continue
            if time.monotonic() + wait >= _end(until):
                raise
            emit(Event(name=Name.RETRY, endpoint=place.endpoint.name, reason=failure.rule, attempt=attempt))
            bound = min(2 * bound, _LONGEST_WAIT)
            yield Wait(wait)
        else:
            _record(site, place, work, sent.has_position, answers, covers)
            return answers[sent.before : sent.before + len(work.queries)]


def _explain(error: Exception, step: Send, work: Work) -> None:
    """Note on an error that a limit of ours caused which one it was, and how to raise it."""
    import psycopg

    from ps_core._notes import InForce, limit_note, limit_of

    name = limit_of(error) if isinstance(error, psycopg.Error) and not work.alone else None
    if name is None:
        return
    context, endpoint = current(), step.place.endpoint
    held = InForce(
        endpoint=endpoint.name,
        timeouts=endpoint.timeouts,
        limits=dict(context.limits.values) if context.limits else {},
        deadline=context.deadline_seconds,
        remaining=step.remaining,
        text=" ".join(query.text for query in work.queries),
    )
    if note := limit_note(name, held):
        error.add_note(note)


def _end(until: float) -> float:
    deadline = current().deadline
    return until if deadline is None else min(until, deadline)


def _send(site: Site, place: Place, work: Work, until: float) -> tuple[Send, Sent]:
    context, left = current(), remaining()
    if (context.marker or context.verify) and not work.read_only:
        raise refused(Refused(_COMMIT_CHECK))
    limits = dict(context.limits.values) if context.limits else {}
    token = current_token() if site.tracks else None
    seen = None if token is None else token.of(site.identity)
    endpoint = place.endpoint
    try:
        sent = compose(
            work,
            endpoint,
            limits=limits,
            remaining=left,
            local_settings=context.local_settings,
            guard=seen.position if seen is not None and place is not site.primary else None,
            wants_position=site.consistency == "monotonic",
        )
    except Refused as exc:
        raise refused(exc) from None
    now = time.monotonic()
    bound = endpoint.timeouts.limited(limits)
    whole = None if work.alone or bound.statement is None else bound.statement * len(work.queries)
    if whole is not None and work.is_batch and bound.transaction is not None:
        whole = min(whole, bound.transaction)
    ends = []
    if whole is not None:
        ends.append(now + whole + _PATIENCE)
    if left is not None:
        ends.append(now + left + GRACE)
    step = Send(
        place=place,
        request=make_request(endpoint, sent.queries, sent.modes),
        until=min(ends, default=None),
        # With no retries, a caller still waits as long as one connect may take.
        patience=min(max(until - now, endpoint.timeouts.connect), float("inf") if left is None else left),
        alone=work.alone,
        count=len(sent.queries),
        writes=not (sent.modes is not None and sent.modes.read_only),
        remaining=left,
    )
    return step, sent


def refused(exc: Refused) -> Exception:
    """Return a refusal as the driver's error."""
    from ps_core.errors import not_supported

    return not_supported(str(exc))


def _record(site: Site, place: Place, work: Work, has_position: bool, answers: tuple[Raw, ...], covers: int) -> None:
    """Merge what was seen. A commit's position is not known before it ends: the next read, on the primary, brings it."""
    if not site.tracks:
        return
    if not work.read_only:
        record_seen(Token(identity=site.identity, position=None, at=time.time()), wrote=True)
    elif has_position:
        text = answers[-1].rows[0][0]
        position = None if text is None else parse_lsn(text, reached=True)
        at_primary = place is site.primary
        token = Token(identity=site.identity, position=position, at=time.time())
        record_seen(token, unknown_positions=covers if at_primary else None)
