"""Faults that meet a crowd in every phase of its work, as a table: what happens, and what is expected on each path."""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest

from ps_lab import Lab
from ps_lab.processes import wait_until
from tests.adversity.harness import (
    IDLE,
    PATHS,
    READ_ONLY,
    Crowd,
    Met,
    Ours,
    Path,
    Phase,
    Row,
    Rules,
    Verdict,
    broken,
    long_limits,
    of_replica,
    refuses,
    table,
)
from tests.adversity.matrix import Matrix
from tests.as_found import bring_back

Expected = Mapping[Phase, tuple[Rules, Verdict]]


@dataclass(frozen=True, slots=True)
class Fault:
    """A row of the table."""

    event: str
    happens: Callable[[Crowd], AbstractContextManager[None]]
    """A block in which the fault stands."""
    expected: dict[Path, Expected]
    """For each path that meets it: the rule of stock psycopg's error, and what our connection does."""
    applications_see: str
    """What applications see before what all of them must not see."""
    unknown: bool = False
    """Nobody may be able to tell what became of a COMMIT."""
    patience: float = 5
    """The crowd's."""


# --- the edge resets every connection; servers and poolers go on, and may finish what was under way ---

# An autocommit write that the server goes on with may be committed, so it is not sent again. A COMMIT is looked up by its id.
CUT = broken("connection_lost", connect=(None, Ours.UNNOTICED), commit=Ours.UNNOTICED)


@contextmanager
def edge_cut(crowd: Crowd) -> Iterator[None]:
    crowd.lab.edge.cut()
    crowd.wait_until_closed(*PATHS)
    yield


# --- somebody terminates all sessions of the application: pg_terminate_backend, 57P01 ---

# Idle connections and opening statements are healed; a transaction is rolled back, and its caller told.
TERMINATED = broken("admin_shutdown", connect=(None, Ours.UNNOTICED), commit=Ours.RAISED)
# The poolers connect anew for idle clients.
TERMINATED_POOLED = (
    TERMINATED | dict.fromkeys(IDLE, (None, Ours.UNNOTICED)) | {Phase.COMMIT: ("results_hidden_by_driver", Ours.RAISED)}
)
# At READ COMMITTED, reads of a transaction on a replica travel one by one.
TERMINATED_REPLICA = of_replica(TERMINATED_POOLED) | {Phase.IN_TRANSACTION: ("admin_shutdown", Ours.UNNOTICED)}


@contextmanager
def backends_terminated(crowd: Crowd) -> Iterator[None]:
    for server in crowd.lab.servers:
        server.sql("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = 'app'")
    crowd.wait_until_closed("direct")
    yield


# --- a backend dies by SIGKILL (out of memory): the server throws everybody out and recovers by itself ---

# A pooled client meets the recovery (the pooler's login fails), what the pooler has heard of it already, or nothing any more.
MEETS_RECOVERY = ("pooler_login_retry", "pooler_server_crashed", "server_not_ready", None)
# psycopg's own BEGIN meets two errors, the server's and the pooler's, and reports neither.
HIDDEN = (*MEETS_RECOVERY, "results_hidden_by_driver")
CRASHED = ("pooler_server_crashed", "results_hidden_by_driver", "connection_lost")
RECOVERY: tuple[Rules, Verdict] = (MEETS_RECOVERY, (Ours.AGAIN, Ours.UNNOTICED))
# Unknown where the id was handed out again: the server forgets those whose WAL it had not written.
MAY_BE_UNKNOWN = (Ours.RAISED, Ours.UNKNOWN)
KILLED_POOLED = broken(
    CRASHED, connect=((*MEETS_RECOVERY, "pooler_login_timeout"), (Ours.AGAIN, Ours.UNNOTICED)), commit=MAY_BE_UNKNOWN
) | {
    Phase.IDLE_READ: RECOVERY,
    Phase.IDLE_WRITE: RECOVERY,
    Phase.IDLE_OPENING: (HIDDEN, (Ours.AGAIN, Ours.UNNOTICED)),
}
KILLED_DIRECT = broken(
    "connection_lost",
    connect=(("server_not_ready", "connect_failed", None), (Ours.AGAIN, Ours.UNNOTICED)),
    commit=MAY_BE_UNKNOWN,
)


@contextmanager
def backend_killed(crowd: Crowd) -> Iterator[None]:
    pids = [pid for (pid,) in crowd.lab.sql("SELECT pid FROM pg_stat_activity WHERE usename = 'app'")]
    os.kill(pids[0], signal.SIGKILL)
    wait_until(lambda: not any(alive(pid) for pid in pids), "end of the backends")
    crowd.wait_until_closed("direct")
    yield


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# --- the primary's machine dies; after a while a replica is promoted ---

# Reads, idle connections and opening statements wait for the new primary; what was open within a transaction is gone.
CRASH_LOGIN: Rules = ("pooler_login_retry", "pooler_server_crashed", "results_hidden_by_driver", None)
CRASH_POOLED = broken(CRASHED, connect=(CRASH_LOGIN, Ours.AGAIN), commit=MAY_BE_UNKNOWN) | dict.fromkeys(
    IDLE, (CRASH_LOGIN, Ours.AGAIN)
)
CRASH_DIRECT = broken("connection_lost", connect=("edge_no_member", Ours.AGAIN), commit=MAY_BE_UNKNOWN)
# The replica that is promoted may break its conflicts, and the pooler leaves it; the reads go on or go elsewhere.
PROMOTED: Expected = dict.fromkeys(READ_ONLY, (None, (Ours.UNNOTICED, Ours.AGAIN)))


@contextmanager
def crash(crowd: Crowd) -> Iterator[None]:
    old = crowd.lab.primary
    crashing = threading.Thread(target=crowd.lab.crash_primary, args=(0.8,))
    crashing.start()
    wait_until(lambda: not old.running, "end of the primary")
    crowd.wait_until_closed("direct")
    yield
    crashing.join()


# --- planned maintenance: the local bouncer pauses, the primary stops, a replica takes over ---

SWITCHED_POOLED: Expected = {
    # Those that come wait in the bouncer, those that are under way have time to end.
    **dict.fromkeys(Phase, (None, Ours.UNNOTICED)),
    # Left open for longer than the bouncer waits.
    Phase.IN_TRANSACTION: (("pooler_server_crashed", "admin_shutdown"), Ours.RAISED),
}
SWITCHED_DIRECT = broken(
    "admin_shutdown",
    connect=(("edge_no_member", "server_not_ready", None), (Ours.AGAIN, Ours.UNNOTICED)),
    commit=Ours.RAISED,
)


@contextmanager
def switchover(crowd: Crowd) -> Iterator[None]:
    old, before = crowd.lab.primary, pauses(crowd.lab)
    switching = threading.Thread(target=crowd.lab.switchover, args=(3.0,))
    switching.start()
    wait_until(lambda: pauses(crowd.lab) > before, "PAUSE")
    crowd.release("primary")
    wait_until(lambda: not old.running, "end of the old primary")
    crowd.wait_until_closed("direct")
    yield
    switching.join()


def pauses(lab: Lab) -> int:
    """Return how often the local bouncer was told to pause."""
    return lab.log_tail("local", 1_000_000).count("PAUSE command issued")


# --- PgBouncers die: those that clients connect to, or the local one behind the dedicated one ---

# What was under way goes on behind the bouncer's back: a read is sent again, a write is not.
DEDICATED = broken("connection_lost", connect=("edge_upstream", Ours.AGAIN), commit=Ours.UNNOTICED)
# The dedicated bouncer says what it knows, 08P01, which is nothing about the statement that was under way.
NO_LOGIN: tuple[Rules, Verdict] = ("pooler_login_retry", Ours.AGAIN)
LOCAL = broken("pooler_server_crashed", connect=NO_LOGIN, commit=Ours.UNNOTICED) | {
    **dict.fromkeys(IDLE, NO_LOGIN),
    Phase.IDLE_OPENING: (("pooler_login_retry", "results_hidden_by_driver"), Ours.AGAIN),
}
BOUNCERS: dict[Path, str] = {"primary": "write-pool", "replica": "read-pool"}


def bouncers_killed(*names: str) -> Callable[[Crowd], AbstractContextManager[None]]:
    """Return the fault: these bouncers are killed, and started again when everybody has met that."""

    @contextmanager
    def fault(crowd: Crowd) -> Iterator[None]:
        for name in names:
            crowd.lab.bouncers[name].stop()
        crowd.wait_until_closed(*(path for path, name in BOUNCERS.items() if name in names))
        if "local" in names:
            # The dedicated bouncer's server connections break. Who comes before its first login has failed is not told.
            wait_until(lambda: refuses(long_limits(crowd.lab).primary), "the dedicated bouncer to notice")
        yield
        for name in names:
            crowd.lab.bouncers[name].start()

    return fault


# --- PgBouncers are shut down gently, by SIGINT and SIGTERM, whose meaning differs between releases ---

DRAINED: Verdict = (Ours.AGAIN, Ours.UNNOTICED)
# Up to 1.22, SIGTERM is immediate; from 1.23 on, clients that are there go on being served. SIGINT lets running transactions
# end; idle clients then hang until the process is gone, or hear "server shutting down" from 1.23 on.
DRAINED_IDLE: Rules = ("connection_lost", "pooler_shutdown", "results_hidden_by_driver", None)
DRAINED_BUSY: Rules = ("connection_lost", None)
DRAINED_WRITABLE: Expected = {
    Phase.CONNECT: (("edge_upstream", "connection_lost", "connect_failed"), Ours.AGAIN),
    Phase.IDLE_READ: (DRAINED_IDLE, DRAINED),
    # One that was taken by a bouncer which then ends may have run, as far as anybody can tell.
    Phase.IDLE_WRITE: (DRAINED_IDLE, (Ours.AGAIN, Ours.UNNOTICED, Ours.RAISED)),
    Phase.IDLE_OPENING: (DRAINED_IDLE, DRAINED),
    Phase.READ: (DRAINED_BUSY, DRAINED),
    Phase.WRITE: (DRAINED_BUSY, (Ours.RAISED, Ours.UNNOTICED)),
    Phase.OPENING: (DRAINED_BUSY, DRAINED),
    Phase.IN_TRANSACTION: (DRAINED_BUSY, (Ours.RAISED, Ours.UNNOTICED)),
    Phase.LATER: (DRAINED_BUSY, (Ours.RAISED, Ours.UNNOTICED)),
    Phase.COMMIT: (DRAINED_BUSY, Ours.UNNOTICED),
}
DRAINED_REPLICA = {phase: DRAINED_WRITABLE[phase] for phase in READ_ONLY} | dict.fromkeys(
    (Phase.OPENING, Phase.IN_TRANSACTION, Phase.LATER), (DRAINED_IDLE, DRAINED)
)


def bouncers_told_to_end(how: signal.Signals) -> Callable[[Crowd], AbstractContextManager[None]]:
    """Return the fault: dedicated bouncers are told to end, and new ones are started when everybody has met that."""

    @contextmanager
    def fault(crowd: Crowd) -> Iterator[None]:
        bouncers = [crowd.lab.bouncers[name] for name in BOUNCERS.values()]
        for bouncer in bouncers:
            bouncer.signal(how)
        with suppress(TimeoutError):
            wait_until(lambda: not any(bouncer.running for bouncer in bouncers), "its end, where that is at once", timeout=0.5)
        crowd.release()
        yield
        for bouncer in bouncers:
            bouncer.stop()
            bouncer.start()

    return fault


def drained(how: signal.Signals) -> Fault:
    return Fault(
        f"Dedicated bouncers are told to end ({how.name})",
        bouncers_told_to_end(how),
        {"primary": DRAINED_WRITABLE, "replica": DRAINED_REPLICA},
        "a wait until the new one serves",
        patience=1.5,
    )


FAULTS: dict[str, Fault] = {
    "edge_cut": Fault(
        "The edge cuts connections", edge_cut, {"primary": CUT, "replica": of_replica(CUT), "direct": CUT}, "nothing"
    ),
    "backends_terminated": Fault(
        "Backends are terminated (57P01)",
        backends_terminated,
        {"primary": TERMINATED_POOLED, "replica": TERMINATED_REPLICA, "direct": TERMINATED},
        "nothing, but for a transaction of their own that was open",
        unknown=True,
    ),
    "backend_killed": Fault(
        "A backend is killed (57P02)",
        backend_killed,
        {"primary": KILLED_POOLED, "direct": KILLED_DIRECT},
        "a wait until the server has recovered",
        unknown=True,
    ),
    "crash": Fault(
        "The primary crashes",
        crash,
        {"primary": CRASH_POOLED, "replica": PROMOTED, "direct": CRASH_DIRECT},
        "a wait until a replica is promoted",
        unknown=True,
    ),
    "switchover": Fault(
        "Switchover",
        switchover,
        {"primary": SWITCHED_POOLED, "replica": PROMOTED, "direct": SWITCHED_DIRECT},
        "a wait of as long as it takes",
    ),
    "dedicated_bouncers_killed": Fault(
        "Dedicated bouncers are killed",
        bouncers_killed(*BOUNCERS.values()),
        {"primary": DEDICATED, "replica": of_replica(DEDICATED)},
        "a wait until it is back",
    ),
    "local_bouncer_killed": Fault(
        "The local bouncer is killed", bouncers_killed("local"), {"primary": LOCAL}, "a wait until it is back"
    ),
    "bouncers_told_to_end-SIGINT": drained(signal.SIGINT),
    "bouncers_told_to_end-SIGTERM": drained(signal.SIGTERM),
}


@pytest.fixture(scope="module")
def crowds(ps_lab: Lab) -> Callable[[str], tuple[Met, str | AssertionError]]:
    """Return what lets a crowd meet a fault, once, and makes the lab whole again: how it fared, and what applications saw.

    The fault is no parameter of the module's scope: pytest would sort all tests by it and by the rows, and each crowd would meet
    its fault again and again.
    """

    @cache
    def meet(name: str) -> tuple[Met, str | AssertionError]:
        fault = FAULTS[name]
        phases: dict[Path, Sequence[Phase]] = {path: tuple(expected) for path, expected in fault.expected.items()}
        try:
            met = Crowd(ps_lab, phases, patience=fault.patience).run(fault.event, fault.happens)
            try:
                return met, met.applications.saw(unknown=fault.unknown)
            except AssertionError as error:
                return met, error
        finally:
            left = bring_back(ps_lab)
            assert not left, f"{name} left the lab broken: {'; '.join(left)}"

    return meet


@pytest.fixture
def met(crowds: Any, request: pytest.FixtureRequest) -> Met:
    """How a crowd fared. Where a test runs once more (`--reruns`), its crowd meets the fault anew."""
    if getattr(request.node, "execution_count", 1) > 1:
        crowds.cache_clear()
    fared: Met = crowds(request.param)[0]
    return fared


def rows() -> Iterator[Any]:
    """Yield pytest's parameters: the fault, and what is expected of one phase."""
    for name, fault in FAULTS.items():
        for path, expected in fault.expected.items():
            for row in table(path, expected):
                yield pytest.param(name, *row.values, id=f"{name}-{row.id}")


@pytest.mark.parametrize(("met", "row"), [*rows()], indirect=["met"])
def test_phase(met: Met, matrix: Matrix, row: Row) -> None:
    """Each phase ends as the table says, for stock psycopg and for our connection."""
    matrix.crowd(met, row)


@pytest.mark.parametrize("name", FAULTS)
def test_applications(crowds: Callable[[str], tuple[Met, str | AssertionError]], matrix: Matrix, name: str) -> None:
    """Applications of both frameworks go on, and lose nothing that was acknowledged."""
    met, saw = crowds(name)
    if isinstance(saw, AssertionError):
        raise saw
    matrix.sees(met.event, f"{FAULTS[name].applications_see}; {saw}")


@pytest.mark.parametrize("met", ["edge_cut"], indirect=True)
def test_an_autocommit_write_was_committed_behind_the_error(met: Met) -> None:
    """The write that was not sent again had indeed been committed: sending it again would have doubled it."""
    assert [client.rows for client in met.clients.values() if client.phase is Phase.WRITE and client.path != "replica"] == [1] * 6
