"""An application of the soak: its clients, and its process, in step with the soak's."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Final, Protocol

from ps_core.context import current_token, use_token
from ps_core.errors import CommitOutcomeUnknown
from ps_demo.clients import set_up_django
from ps_demo.figures import FAILED, REPLICA, WRITE, add_up
from tests.soak.checks import Answer, History, Ledger, Read, Register, Transfer, Usage, Write, judge_settings

if TYPE_CHECKING:
    from collections.abc import Iterator, MutableSequence
    from multiprocessing.connection import Connection

__all__ = ["ACCOUNTS", "NAMES", "Client", "serve"]

NAMES: Final = ("SQLAlchemy", "SQLAlchemy asyncio", "Django")
TIMEOUTS: Final = ("20s", "30s")
"""statement_timeout and transaction_timeout: longer than any fault lasts: what ends by them was forgotten."""
SETTINGS: Final[dict[str, Any]] = {
    "bouncer": "write-pool",
    "replica_bouncer": "read-pool",
    "statement_timeout": TIMEOUTS[0],
    "transaction_timeout": TIMEOUTS[1],
}
ACCOUNTS: Final = 200

PAUSE: Final = 0.02
"""Seconds between two operations of a client, on average, as in the demo."""
STOPPING: Final = 100.0
"""Seconds in which a client has to end its operation: what is under way may be tried again for 30 s, after 30 s of its own."""


class Client:
    """What one client does and knows, threads and asyncio alike. It keeps the token of what it saw, as a cookie would."""

    def __init__(self, number: int, seed: int) -> None:
        self.number = number
        self.ledger = Ledger()
        self.register = Register()
        self.history = History(1.0)
        self._random = Random(f"{seed}/{number}")
        self._token: str | None = None
        self._wrote = False

    def pause(self) -> float:
        """Return the seconds until the next operation."""
        return self._random.expovariate(1 / PAUSE)

    def choose(self) -> Read | Write | Transfer:
        """Return what to do now. What follows a write of the register is a read."""
        wrote, self._wrote = self._wrote, False
        draw = self._random.random()
        if wrote or draw < 0.7:
            return Read(self.number, read_only=self._random.random() < 0.5)
        if draw < 0.85:
            self._wrote = True
            return Write(self.number, self.register.next())
        self.ledger.begun += 1
        source, target = self._random.sample(range(1, ACCOUNTS + 1), 2)
        return Transfer(self.number, self.ledger.begun, source, target, self._random.randint(1, 100))

    @contextmanager
    def request(self) -> Iterator[None]:
        """Begin with what the client has seen, and keep what it sees now."""
        with use_token(self._token):
            try:
                yield
            finally:
                self._token = str(current_token() or "") or None

    def done(self, work: Read | Write | Transfer, answer: Answer, start: float, end: float) -> None:
        """Note what succeeded."""
        kind = type(work).__name__.lower()
        who = f"a {kind} of client {self.number}"
        self.history.add(kind, start, end, (REPLICA if answer.replica else 0) if isinstance(work, Read) else WRITE)
        self.history.violate(judge_settings(who, TIMEOUTS, (answer.statement_timeout, answer.transaction_timeout)))
        if isinstance(work, Write):
            self.register.acknowledged = work.version
        if isinstance(work, (Read, Write)) and (wrong := self.register.judge(answer.version)):
            self.history.violate(f"client {self.number}: {wrong}{', from a replica' if answer.replica else ''}")

    def failed(self, work: Read | Write | Transfer, exc: BaseException) -> None:
        """Note what raised. Whatever is not said to be unknown is said not to be committed."""
        kind = type(work).__name__.lower()
        message = f"{type(exc).__qualname__}: {exc}".partition("\n")[0]
        self.history.add_error(kind, FAILED if isinstance(work, Read) else FAILED | WRITE, message)
        unknown = any(isinstance(one, CommitOutcomeUnknown) for one in (exc, exc.__cause__, getattr(exc, "orig", None)))
        match work:
            case Read():
                self.history.violate(f"a read of client {self.number} failed: {message}")
            case Transfer():
                (self.ledger.unknown if unknown else self.ledger.refused).add(work.number)
            case Write() if not unknown:
                self.register.refused.add(work.version)


class _Application(Protocol):
    def work(self, clients: list[Client], stopping: threading.Event) -> None:
        """Let the clients work until told to stop; then leave nothing open."""


class _Threads:
    """Clients in threads."""

    def __init__(self, workload: Any) -> None:
        self.workload = workload

    def work(self, clients: list[Client], stopping: threading.Event) -> None:
        threads = [threading.Thread(target=self._run, args=(client, stopping), daemon=True) for client in clients]
        for thread in threads:
            thread.start()
        stopping.wait()
        until = time.monotonic() + STOPPING
        for thread, client in zip(threads, clients, strict=True):
            thread.join(max(0.0, until - time.monotonic()))
            if thread.is_alive():
                client.history.violate(f"client {client.number} hangs")
        self.workload.dispose()

    def _run(self, client: Client, stopping: threading.Event) -> None:
        try:
            while not stopping.wait(client.pause()):
                work, start = client.choose(), time.monotonic()
                try:
                    with client.request():
                        answer = self.workload.read(work) if isinstance(work, Read) else self.workload.write(work)
                except Exception as exc:  # noqa: BLE001 - whatever an operation raises is what the soak is about
                    client.failed(work, exc)
                else:
                    client.done(work, answer, start, time.monotonic())
        finally:
            self.workload.end_thread()


class _Tasks:
    """Clients in tasks of one loop, which stays the same."""

    def __init__(self, workload: Any) -> None:
        self.workload = workload
        self._loop = asyncio.new_event_loop()

    def work(self, clients: list[Client], stopping: threading.Event) -> None:
        # An executor of this stretch's own: how many threads it has depends on how many names are looked up at once.
        with ThreadPoolExecutor() as executor:
            self._loop.set_default_executor(executor)
            self._loop.run_until_complete(self._work(clients, stopping))

    async def _work(self, clients: list[Client], stopping: threading.Event) -> None:
        tasks = {asyncio.create_task(self._run(client, stopping)): client for client in clients}
        await asyncio.to_thread(stopping.wait)
        done, pending = await asyncio.wait(tasks, timeout=STOPPING)
        for task in pending:
            tasks[task].history.violate(f"client {tasks[task].number} hangs")
            task.cancel()
        for task in done:
            task.result()
        await self.workload.dispose()

    async def _run(self, client: Client, stopping: threading.Event) -> None:
        while not stopping.is_set():
            await asyncio.sleep(client.pause())
            work, start = client.choose(), time.monotonic()
            try:
                with client.request():
                    answer = await (self.workload.read(work) if isinstance(work, Read) else self.workload.write(work))
            except Exception as exc:  # noqa: BLE001 - as in the threads
                client.failed(work, exc)
            else:
                client.done(work, answer, start, time.monotonic())


def _make(name: str, url: str, clients: int) -> _Application:
    if name == "Django":
        set_up_django(url, SETTINGS)
        from tests.soak.work_django import Site

        return _Threads(Site())
    from tests.soak.work_sqlalchemy import AsyncBank, Bank

    return _Threads(Bank(url, clients, SETTINGS)) if name == "SQLAlchemy" else _Tasks(AsyncBank(url, clients, SETTINGS))


def serve(name: str, url: str, clients: int, seed: int, soak: Connection, progress: MutableSequence[int]) -> None:
    """Be the application's process. Each stretch of work begins with a message (the windows' width) and ends with the next one.

    Answers, after each stretch, with its `History` and the `Usage` at rest.
    """
    application = _make(name, url, clients)
    first = NAMES.index(name) * clients + 1
    all_clients = [Client(number, seed) for number in range(first, first + clients)]
    with suppress(EOFError):
        soak.send(None)
        while (width := soak.recv()) is not None:
            for client in all_clients:
                client.history = History(width)
            soak.send(_stretch(application, all_clients, soak, progress))


def _stretch(
    application: _Application, all_clients: list[Client], soak: Connection, progress: MutableSequence[int]
) -> tuple[History, Usage]:
    stopping = threading.Event()

    def watch() -> None:
        while not soak.poll(0.25):
            progress[:] = add_up([client.history.tally for client in all_clients])
        with suppress(EOFError):
            soak.recv()
        stopping.set()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    application.work(all_clients, stopping)
    watcher.join()
    whole = History(all_clients[0].history.width)
    for client in all_clients:
        whole.extend(client.history)
        whole.ledgers[client.number] = client.ledger
    return whole, usage()


def usage() -> Usage:
    """Return what this process has now."""
    gc.collect()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return Usage(
        threads=int(status["Threads"]),
        descriptors=len(list(Path("/proc/self/fd").iterdir())),
        memory=int(status["VmRSS"].split()[0]) * 1024,
    )
