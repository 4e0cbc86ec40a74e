"""Clients that are caught by a fault in every phase of their work, on every endpoint, and what becomes of them.

A crowd is one client for each phase, endpoint and driver: stock psycopg, and the connection of `ps_core`, sync and async.
Statements that are to be under way wait for an advisory lock that the crowd holds on every server, so that nothing depends on
how fast anything is. All of the crowd meet the same fault at once; afterwards a table of theirs tells what was committed.
"""

from __future__ import annotations

import asyncio
import inspect
import select
import threading
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from itertools import count
from typing import TYPE_CHECKING, Any, Literal, get_args

import psycopg
import pytest

import ps_core
from ps_core import AsyncConnection, Connection, RetryPolicy
from ps_core._endpoint import EndpointState
from ps_core.errors import CommitOutcomeUnknown
from ps_core.events import Event, Name, subscribe
from ps_core.failures import Failure, Ran, classify
from ps_core.topology import Endpoint, Topology
from ps_lab.processes import wait_until
from tests.adversity.applications import ApplicationClients

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from ps_lab import Lab

Path = Literal["primary", "replica", "direct"]
PATHS: tuple[Path, ...] = get_args(Path)
_KEYS = {path: 7000 + number for number, path in enumerate(PATHS)}
_IDS = count(1)


class Phase(Enum):
    """What a client is doing when the fault comes."""

    CONNECT = "connecting"
    IDLE_READ = "idle, then an autocommit read"
    IDLE_WRITE = "idle, then an autocommit write"
    IDLE_OPENING = "idle, then a transaction"
    READ = "autocommit read under way"
    WRITE = "autocommit write under way"
    OPENING = "first statement of a transaction under way"
    IN_TRANSACTION = "idle in a transaction, then a statement"
    LATER = "later statement of a transaction under way"
    COMMIT = "COMMIT under way"


AFTER_THE_FAULT = {Phase.CONNECT, Phase.IDLE_READ, Phase.IDLE_WRITE, Phase.IDLE_OPENING, Phase.IN_TRANSACTION}
"""Phases in which the client goes on when the fault is there; in the others its statement is under way before."""
AUTOCOMMIT = {Phase.CONNECT, Phase.IDLE_READ, Phase.IDLE_WRITE, Phase.READ, Phase.WRITE}
WRITES = set(Phase) - {Phase.CONNECT, Phase.IDLE_READ, Phase.READ}
READ_ONLY = (Phase.CONNECT, Phase.IDLE_READ, Phase.IDLE_OPENING, Phase.READ, Phase.OPENING, Phase.IN_TRANSACTION, Phase.LATER)

PHASES: dict[Path, Sequence[Phase]] = {"primary": tuple(Phase), "replica": READ_ONLY, "direct": tuple(Phase)}


class Ours(Enum):
    """What the caller of `ps_core`'s connection sees."""

    UNNOTICED = "goes on"
    AGAIN = "sent again"
    RAISED = "raised"
    UNKNOWN = "outcome unknown"


@dataclass(frozen=True, slots=True)
class Steps:
    """The work of a client: what comes before, what meets the fault, what comes after."""

    before: tuple[str, ...]
    at: str
    after: tuple[str, ...]


def steps(phase: Phase, path: Path, number: int) -> Steps:
    """Return what a client does; statements of writing phases put `number` into the ledger, once."""
    hold = f"hold({_KEYS[path]})"
    insert, insert_held = f"INSERT INTO ledger VALUES ({number})", f"INSERT INTO ledger SELECT {number} FROM {hold}"
    touch = f"UPDATE ledger SET id = id WHERE id = {number}"
    if path == "replica":
        insert, insert_held, touch = "SELECT 1", f"SELECT {hold}", "SELECT 2"
    match phase:
        case Phase.CONNECT:
            return Steps((), "SELECT 1", ())
        case Phase.IDLE_READ:
            return Steps(("SELECT 1",), "SELECT 2", ())
        case Phase.IDLE_WRITE:
            return Steps(("SELECT 1",), insert, ())
        case Phase.IDLE_OPENING:
            return Steps(("SELECT 1", "COMMIT"), insert, ("COMMIT",))
        case Phase.READ:
            return Steps((), f"SELECT {hold}", ())
        case Phase.WRITE:
            return Steps((), insert_held, ())
        case Phase.OPENING:
            return Steps((), insert_held, ("COMMIT",))
        case Phase.IN_TRANSACTION:
            return Steps((insert,), touch, ("COMMIT",))
        case Phase.LATER:
            return Steps((insert,), f"SELECT {hold}", ("COMMIT",))
        case Phase.COMMIT:
            return Steps((f"INSERT INTO ledger VALUES ({number}, {_KEYS[path]})",), "COMMIT", ())


class DriverClient:
    """One client, in a thread of its own. It has an event loop, whichever driver it uses, so that its work is written once."""

    def __init__(self, driver: str, phase: Phase, path: Path, endpoint: Endpoint, identity: str) -> None:
        self.driver, self.phase, self.path = driver, phase, path
        self.number = next(_IDS)
        self.rows = 0
        self.error: psycopg.Error | None = None
        self.broken: Exception | None = None
        """What should not have happened: an error before the fault, or one that is no driver's."""
        self.usable: bool | None = None
        """Whether the connection worked after the error (of `ps_core`), or was still open (of psycopg)."""
        self.moved = False
        self._socket = -1
        self.ready, self.start = threading.Event(), threading.Event()
        self._endpoint = endpoint
        # Positions and their guards are another matter (test_behind.py).
        self.state = EndpointState(endpoint=endpoint, identity=identity, tracks=path != "replica")
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._run()), name=f"{driver} {path} {phase.name}", daemon=True
        )

    def begin(self) -> None:
        """Connect, and do what comes before the fault."""
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return not self._thread.is_alive()

    @property
    def waits(self) -> bool:
        """Whether it has ended, or has met the outage and tries again."""
        return self.done or self.state.gate.closed

    @property
    def hears(self) -> bool:
        """Whether the end of its connection has come through."""
        return is_over(self._socket)

    def join(self) -> None:
        """Wait for its end."""
        self._thread.join(60)
        assert self.done, f"{self._thread.name} hangs"

    @property
    def ours(self) -> Ours:
        """What became of a client of `ps_core`'s."""
        if isinstance(self.error, CommitOutcomeUnknown):
            return Ours.UNKNOWN
        if self.error is not None:
            return Ours.RAISED
        return Ours.AGAIN if self.moved else Ours.UNNOTICED

    @property
    def failure(self) -> Failure | None:
        """What its error was."""
        return None if self.error is None else classify(self.error)

    async def _run(self) -> None:
        work = steps(self.phase, self.path, self.number)
        conn = None
        try:
            if self.phase is Phase.CONNECT:
                self._record_and_decide()
            try:
                conn = await _settled(self._open())
                for step in work.before:
                    await self._do(conn, step)
                first, self._socket = conn.pgconn, conn.pgconn.socket
                if self.phase is not Phase.CONNECT:
                    self._record_and_decide()
                for step in (work.at, *work.after):
                    await self._do(conn, step)
                self.moved = conn.pgconn is not first
            except psycopg.Error as exc:
                self.error = exc
                if not self.ready.is_set():
                    raise
                if conn is not None:
                    self.usable = not conn.closed if self.driver == "psycopg" else await self._works(conn)
        except Exception as exc:  # noqa: BLE001 - reported by the crowd
            self.broken = exc
        finally:
            self.ready.set()
            if conn is not None:
                await _settled(conn.close())

    def _record_and_decide(self) -> None:
        self.ready.set()
        assert self.start.wait(60)

    def _open(self) -> Any:
        autocommit = self.phase in AUTOCOMMIT
        if self.driver == "psycopg":
            return stock(self._endpoint, autocommit=autocommit)
        return (AsyncConnection if self.driver == "async" else Connection).open(self.state, autocommit=autocommit)

    @staticmethod
    async def _do(conn: Any, step: str) -> None:
        await _settled(conn.commit() if step == "COMMIT" else conn.execute(step))

    @staticmethod
    async def _works(conn: Any) -> bool:
        with suppress(psycopg.Error):
            await _settled(conn.rollback())
            await _settled(conn.execute("SELECT 1"))
            return True
        return False


def is_over(socket: int) -> bool:
    """Return whether the end of a connection has come through."""
    poll = select.poll()
    poll.register(socket, getattr(select, "POLLRDHUP", select.POLLIN))  # macOS has no word for the end alone
    return bool(poll.poll(0))


def wait_until_over(*conns: psycopg.Connection[Any]) -> None:
    """Return when the end of idle connections, and the last words before it, have come through edge and poolers."""
    wait_until(lambda: all(is_over(conn.fileno()) for conn in conns), "the end of the connections")


async def _settled(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


def stock(endpoint: Endpoint, **options: Any) -> psycopg.Connection[Any]:
    """Return stock psycopg's connection, which binds on the client's side as ours does."""
    options = {"cursor_factory": psycopg.ClientCursor, "prepare_threshold": None, **ps_core.conninfo(endpoint), **options}
    return psycopg.connect(**options)


@dataclass(slots=True)
class Met:
    """How the clients of a crowd fared."""

    event: str
    applications: ApplicationClients
    """Applications that were at work meanwhile."""
    clients: dict[tuple[str, Path, Phase], DriverClient] = field(default_factory=dict)

    def check(self, path: Path, phase: Phase, stock_rules: Sequence[str | None], ours: Sequence[Ours]) -> None:
        """Compare with what is expected: the rule of psycopg's error (None: no error), and what `ps_core` makes of it."""
        plain = self.clients["psycopg", path, phase]
        assert (plain.failure.rule if plain.failure else None) in stock_rules, repr(plain.error)
        writes = path != "replica" and phase in WRITES
        if plain.failure is None:
            assert plain.rows == writes
        else:
            assert plain.usable in (None, plain.failure.usable)
            if plain.failure.ran in (Ran.NO, Ran.ROLLED_BACK):
                assert plain.rows == 0
        for driver in ("ps_core", "async"):
            client = self.clients[driver, path, phase]
            if phase is Phase.CONNECT and Ours.AGAIN in ours and client.error is None:
                continue  # whether it tried more than once shows in psycopg's failure only
            assert client.ours in ours, f"{driver}: {client.ours} {client.error!r}"
            if client.error is None:
                assert client.rows == writes, driver
            else:
                assert client.usable is not False, f"{driver}: does not work after {client.error!r}"
                failure = classify(client.error)
                assert client.rows <= (failure.ran not in (Ran.NO, Ran.ROLLED_BACK)), driver


class Crowd:
    """Clients in all phases, and the locks that hold their statements."""

    def __init__(
        self,
        lab: Lab,
        phases: dict[Path, Sequence[Phase]] | None = None,
        drivers: Iterable[str] = ("psycopg", "ps_core", "async"),
        patience: float = 5,
    ) -> None:
        self.lab = lab
        self.patience = patience
        """Seconds after which clients that neither end nor meet an error are taken to be waiting in a pooler: little where some
        do that, which then take all of it; enough for a slow machine where none does."""
        topology = long_limits(lab)
        endpoints: dict[Path, Endpoint] = {
            "primary": topology.primary,
            "replica": topology.replicas[0],
            "direct": topology.direct,
        }
        self.clients = [
            DriverClient(driver, phase, path, endpoints[path], lab.branch)
            for path, group in (phases or PHASES).items()
            for phase in group
            for driver in drivers
        ]
        self._holders: dict[Path, ExitStack] = {path: ExitStack() for path in PATHS}

    def run(self, event: str, fault: Callable[[Crowd], AbstractContextManager[object]]) -> Met:
        """Let all of them meet `fault`: a block in which the fault stands. Return how they fared."""
        late = [client for client in self.clients if client.phase in AFTER_THE_FAULT]
        busy = [client for client in self.clients if client not in late]
        prepare(self.lab)
        # Its table is replayed before statements are held, whose snapshots may keep a replica from replaying.
        applications = ApplicationClients(self.lab)
        with ExitStack() as stack:
            stack.callback(self.release)
            self._hold()
            for client in self.clients:
                client.begin()
            for client in self.clients:
                stack.callback(client.start.set)
            for client in self.clients:
                assert client.ready.wait(30)
            if broken := [client.broken for client in self.clients if client.broken is not None]:
                raise broken[0]
            for client in busy:
                client.start.set()
            wait_until(lambda: self._held() == len(busy), "statements under way")
            stack.enter_context(applications)
            with fault(self):
                for client in late:
                    client.start.set()
                applications.meet()
                with suppress(TimeoutError):
                    wait_until(lambda: all(client.waits for client in late), "", timeout=self.patience)
        for client in self.clients:
            client.join()
        if broken := [client.broken for client in self.clients if client.broken is not None]:
            raise broken[0]
        # What was sent by those who lost their connection may be at its end only now.
        under_way = "SELECT 1 FROM pg_stat_activity WHERE usename = 'app' AND state = 'active'"
        wait_until(lambda: not self.lab.sql(under_way), "the end of all statements")
        counted = dict(self.lab.sql("SELECT id, count(*) FROM ledger GROUP BY id"))
        for client in self.clients:
            client.rows = counted.get(client.number, 0)
        return Met(event, applications, {(client.driver, client.path, client.phase): client for client in self.clients})

    def wait_until_closed(self, *paths: Path) -> None:
        """Return when the end of the idle connections on these paths has come through to their clients."""
        idle = [client for client in self.clients if client.path in paths and client.phase in IDLE]
        wait_until(lambda: all(client.hears for client in idle), "the end of the idle connections")

    def release(self, *paths: Path) -> None:
        """Let the statements that are under way on these paths (all, where none is named) go on."""
        for path in paths or PATHS:
            self._holders[path].close()

    def _hold(self) -> None:
        for path in PATHS:
            for server in self.lab.servers:
                conn = self._holders[path].enter_context(_ending(psycopg.connect(server.dsn("adversity"), autocommit=True)))
                conn.execute("SELECT pg_advisory_lock(%s)", (_KEYS[path],))

    def _held(self) -> int:
        asked = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        return sum(self.lab.sql(asked, server=server.name)[0][0] for server in self.lab.servers)


@contextmanager
def _ending(conn: psycopg.Connection[Any]) -> Iterator[psycopg.Connection[Any]]:
    try:
        yield conn
    finally:
        conn.close()


def long_limits(lab: Lab, **settings: Any) -> Topology:
    """Return the lab's topology with limits that no test reaches by itself."""
    limits = {
        "statement_timeout": "40s",
        "transaction_timeout": "50s",
        "lock_timeout": "40s",
        "connect_timeout": "30s",
        **settings,
    }
    return Topology.from_url(lab.url, bouncer="write-pool", replica_bouncer="read-pool", **limits)


def prepare(lab: Lab) -> None:
    """Make the ledger, empty, and the function that waits."""
    with psycopg.connect(lab.primary.dsn(), autocommit=True) as conn:
        conn.execute(
            "DROP TABLE IF EXISTS ledger; CREATE TABLE ledger (id int, held int);"
            " CREATE OR REPLACE FUNCTION hold(key int) RETURNS int LANGUAGE plpgsql STABLE AS"
            " 'BEGIN PERFORM pg_advisory_xact_lock_shared(key); RETURN 1; END';"
            " CREATE OR REPLACE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS"
            " 'BEGIN PERFORM hold(NEW.held); RETURN NULL; END';"
            " CREATE CONSTRAINT TRIGGER hold AFTER INSERT ON ledger DEFERRABLE INITIALLY DEFERRED FOR EACH ROW"
            " WHEN (NEW.held IS NOT NULL) EXECUTE FUNCTION hold()"
        )
    lab.wait_replicas_caught_up()


Rules = str | None | tuple[str | None, ...]
Verdict = Ours | tuple[Ours, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """What is expected of one phase: the rule of stock psycopg's error, and what our connection does."""

    path: Path
    phase: Phase
    rules: tuple[str | None, ...]
    ours: tuple[Ours, ...]


def table(path: Path, expected: Mapping[Phase, tuple[Rules, Verdict]]) -> list[Any]:
    """Return pytest's parameters for the phases of one path."""
    return [
        pytest.param(
            Row(path, phase, rules if isinstance(rules, tuple) else (rules,), ours if isinstance(ours, tuple) else (ours,)),
            id=f"{path}-{phase.name.lower()}",
        )
        for phase, (rules, ours) in expected.items()
    ]


IDLE = (Phase.IDLE_READ, Phase.IDLE_WRITE, Phase.IDLE_OPENING)
_AGAIN = (*IDLE, Phase.READ, Phase.OPENING)
_RAISED = (Phase.WRITE, Phase.IN_TRANSACTION, Phase.LATER)


def broken(rules: Rules, *, connect: tuple[Rules, Verdict], commit: Verdict) -> dict[Phase, tuple[Rules, Verdict]]:
    """Return what is expected where all connections break, with errors of `rules`: what is safe to send again is."""
    return {
        Phase.CONNECT: connect,
        **dict.fromkeys(_AGAIN, (rules, Ours.AGAIN)),
        **dict.fromkeys(_RAISED, (rules, Ours.RAISED)),
        Phase.COMMIT: (rules, commit),
    }


def of_replica(expected: Mapping[Phase, tuple[Rules, Verdict]]) -> dict[Phase, tuple[Rules, Verdict]]:
    """Return the same for a replica, where what a transaction at READ COMMITTED reads is safe to send again, too."""
    later = {phase: (expected[phase][0], Ours.AGAIN) for phase in (Phase.IN_TRANSACTION, Phase.LATER)}
    return {phase: expected[phase] for phase in READ_ONLY} | later


QUICK = RetryPolicy(max_elapsed=0.5)
"""For what must be given up."""


class Paths:
    """Links and connections for tests that need no crowd; all are closed after the test."""

    def __init__(self, lab: Lab, stack: ExitStack) -> None:
        self.lab = lab
        self._stack = stack
        self._policies: dict[EndpointState, RetryPolicy] = {}

    def endpoint(self, path: Path = "primary", **settings: Any) -> Endpoint:
        """Return an endpoint; `settings` are the topology's."""
        topology = Topology.from_url(self.lab.url, bouncer="write-pool", replica_bouncer="read-pool", **settings)
        return {"primary": topology.primary, "replica": topology.replicas[0], "direct": topology.direct}[path]

    def state(self, path: Path | Endpoint = "primary", policy: RetryPolicy | None = None, **settings: Any) -> EndpointState:
        """Return a state of its own, with its own gate."""
        endpoint = self.endpoint(path, **settings) if isinstance(path, str) else path
        state = EndpointState(endpoint=endpoint, identity=self.lab.branch, tracks=True)
        self._policies[state] = policy or RetryPolicy()
        return state

    def stock(self, path: Path | Endpoint = "primary", **options: Any) -> psycopg.Connection[Any]:
        """Return a connection of stock psycopg, in autocommit unless told otherwise."""
        endpoint = self.endpoint(path) if isinstance(path, str) else path
        conn = stock(endpoint, **{"autocommit": True, **options})
        self._stack.callback(conn.close)
        return conn

    def ours(self, state: Path | EndpointState = "primary", **options: Any) -> Connection[Any]:
        """Return a connection of `ps_core`, in autocommit unless told otherwise."""
        state = self.state(state) if isinstance(state, str) else state
        policy = self._policies.get(state, RetryPolicy())
        conn: Connection[Any] = Connection.open(state, **{"policy": policy, "autocommit": True, **options})
        self._stack.callback(conn.close)
        return conn


def raised(work: Callable[..., object], *args: object) -> psycopg.Error:
    """Return the driver's error that `work` raises."""
    with pytest.raises(psycopg.Error) as caught:
        work(*args)
    return caught.value


def raised_once(lab: Lab, work: Callable[..., object], *args: object, startups: int = 0) -> psycopg.Error:
    """Return the driver's error that `work` raises without another try, with so many connections past the edge."""
    tries: list[Event] = []
    unsubscribe = subscribe(lambda event: tries.append(event) if event.name is Name.RETRY else None)
    try:
        with lab.round_trips() as trips:
            error = raised(work, *args)
    finally:
        unsubscribe()
    assert (tries, trips.startups) == ([], startups)
    assert not [note for note in getattr(error, "__notes__", []) if "tried" in note]
    return error


class Doing:
    """Work in a thread, with its result or error."""

    def __init__(self, work: Callable[..., Any], *args: Any) -> None:
        self.result: Any = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(work, args), daemon=True)
        self._thread.start()

    def _run(self, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
        try:
            self.result = work(*args)
        except BaseException as exc:  # noqa: BLE001 - the test looks at it
            self.error = exc

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return not self._thread.is_alive()

    def end(self, timeout: float = 40) -> Any:
        """Wait for the end; return the result, or raise the error."""
        self._thread.join(timeout)
        assert not self._thread.is_alive()
        if self.error is not None:
            raise self.error
        return self.result


def refuses(endpoint: Endpoint) -> bool:
    """Return whether the pooler says at once that its logins fail. Clients that were queued before are not told."""

    def ask() -> None:
        with stock(endpoint, autocommit=True) as conn:
            conn.execute("SELECT 1")

    asked = [Doing(ask) for _ in range(2)]  # the second is told where the first is queued

    def told() -> bool:
        return any("server_login_retry" in str(one.error) for one in asked)

    with suppress(TimeoutError):
        wait_until(lambda: told() or all(one.done for one in asked), "an answer", timeout=1)
    return told()


def running(lab: Lab, text: str) -> bool:
    """Return whether a statement that contains `text` is under way somewhere."""
    asked = "SELECT 1 FROM pg_stat_activity WHERE query LIKE %s AND state = 'active' AND usename <> 'postgres'"
    return any(lab.sql(asked, f"%{text}%", server=server.name) for server in lab.servers if server.running)
