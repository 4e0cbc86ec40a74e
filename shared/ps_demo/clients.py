"""An application of the demo: a process of its own with its clients, and the handle that the demo has of it."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
from contextlib import suppress
from random import Random
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

from ps_core.events import Event
from ps_demo.figures import FAILED, KINDS, REPLICA, RETRIED, WRITE, Recording, add_up

if TYPE_CHECKING:
    from collections.abc import Callable, MutableSequence
    from multiprocessing.connection import Connection

__all__ = ["LEDGERS", "Application", "ApplicationError", "Client", "Retries", "Workload", "set_up_django"]

SETTINGS: Final[dict[str, Any]] = {
    "bouncer": "write-pool",
    "replica_bouncer": "read-pool",
    "statement_timeout": "2s",
    "transaction_timeout": "3s",
}
LEDGERS: Final = {"SQLAlchemy": "bank_transfer", "Django": "shop_order"}
"""The applications, and the table in which each one's writes leave their references."""

SHARE_OF_WRITES: Final = 0.25
"""The share of writes in the operations of every other client. The rest only read,
and so show what readers notice while writers wait."""
PAUSE: Final = 0.02
"""Seconds between two operations of a client, on average. Applications, servers and poolers share one machine: without it, the
figures would tell of the queue for its processors."""
PREPARING: Final = 120.0
"""Seconds that an application may take to create and load its tables, and to connect."""
ENDING: Final = 60.0
"""Seconds that it may take to end: what is under way may be tried again for 30 s."""


class Workload(Protocol):
    """What the clients of an application do, each in a thread of its own."""

    def prepare(self) -> None:
        """Create and load the tables."""

    def read(self, random: Random) -> bool:
        """Read something; return whether a replica answered."""

    def write(self, random: Random, reference: int) -> None:
        """Write something, and `reference` with it, in one transaction."""


def _sqlalchemy(url: str, clients: int) -> Workload:
    from ps_demo.bank.workload import Bank
    from ps_sqlalchemy import create_engine

    return Bank(create_engine(url, **SETTINGS, pool_size=clients))


def _django(url: str, clients: int) -> Workload:
    set_up_django(url, SETTINGS)
    from ps_demo.shop.workload import Shop

    return Shop()


def set_up_django(url: str, settings: dict[str, Any]) -> None:
    """Make this process one of the shop's site."""
    # The environment is this process's own: what it says of another database must not get in.
    for name in [name for name in os.environ if name.startswith("PS_")]:
        del os.environ[name]
    os.environ |= {f"PS_{name.upper()}": value for name, value in {"url": url, **settings}.items()}
    os.environ["DJANGO_SETTINGS_MODULE"] = "ps_demo.shop.settings"

    import django

    django.setup()


_MAKE: Final[dict[str, Callable[[str, int], Workload]]] = {"SQLAlchemy": _sqlalchemy, "Django": _django}


class Retries(logging.Handler):
    """Learns from the packages' log, within its block, which operations they tried again."""

    def __init__(self) -> None:
        super().__init__()
        self.noted = threading.local()
        self._log = logging.getLogger("ps_core")

    def __enter__(self) -> Self:
        self._level = self._log.level
        self._log.setLevel(logging.INFO)
        self._log.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._log.removeHandler(self)
        self._log.setLevel(self._level)

    def emit(self, record: logging.LogRecord) -> None:
        # Called in the thread of the client whose statement it is.
        event = getattr(record, "ps_event", None)
        if isinstance(event, Event) and event.name == "retry":
            self.noted.retried = True


class Client(threading.Thread):
    """One client: reads, and every other client also writes, until told to stop."""

    def __init__(self, workload: Workload, number: int, seed: int, retries: Retries) -> None:
        super().__init__(name=f"client-{number}", daemon=True)
        self.connected = threading.Event()
        self.starting = threading.Event()
        self.stopping = threading.Event()
        self.recording = Recording()
        self._workload = workload
        self._random = Random(f"{seed}/{number}")  # noqa: S311 - chooses rows, guards nothing
        self._share_of_writes = SHARE_OF_WRITES if number % 2 else 0.0
        self._reference = number << 32
        self._retries = retries

    def run(self) -> None:
        """Connect, wait for the start, and work until told to stop."""
        self.operate(write=False)
        if self._share_of_writes:
            self.operate(write=True)
        self.recording = Recording()
        self.connected.set()
        self.starting.wait()
        while not self.stopping.wait(self._random.expovariate(1 / PAUSE)):
            self.operate(write=self._random.random() < self._share_of_writes)

    def operate(self, *, write: bool) -> None:
        """Read or write once, and record it."""
        recording = self.recording
        flags = WRITE if write else 0
        noted = self._retries.noted
        noted.retried = False
        start = time.monotonic()
        try:
            if write:
                self._reference += 1
                self._workload.write(self._random, self._reference)
                recording.acknowledged.append(self._reference)
            elif self._workload.read(self._random):
                flags |= REPLICA
        except Exception as exc:  # noqa: BLE001 - whatever an operation raises is what the demo is about
            flags |= FAILED
            recording.add_error(write=write, message=f"{type(exc).__qualname__}: {exc}".partition("\n")[0])
        if noted.retried:
            flags |= RETRIED
        recording.add(start, time.monotonic(), flags)


def _serve(name: str, url: str, clients: int, seed: int, demo: Connection, progress: MutableSequence[int]) -> None:
    """Be the application's process, in step with the demo's. Ends when that one says so, or is gone."""
    workload = _MAKE[name](url, clients)
    workload.prepare()
    with Retries() as retries, suppress(EOFError):
        _meet(demo)
        threads = [Client(workload, number, seed, retries) for number in range(1, clients + 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.connected.wait()
        _meet(demo)
        for thread in threads:
            thread.starting.set()
        while not demo.poll(0.25):
            progress[:] = add_up([thread.recording.tally for thread in threads])
        demo.recv()
        for thread in threads:
            thread.stopping.set()
        whole = Recording()
        for thread in threads:
            thread.join()
            whole.extend(thread.recording)
        demo.send(whole)


def _meet(demo: Connection) -> None:
    demo.send(None)
    demo.recv()


class ApplicationError(Exception):
    """An application of the demo did not do its part; it has said itself why, on standard error."""


class Application:
    """The handle of an application's process. Leaving the block ends it, whatever it is doing."""

    def __init__(self, name: str, url: str, *, clients: int, seed: int, serve: Callable[..., None] | None = None) -> None:
        self.name = name
        spawn = multiprocessing.get_context("spawn")
        self._pipe, other = spawn.Pipe()
        self._progress = spawn.RawArray("q", KINDS)
        self._process = spawn.Process(
            target=serve or _serve, args=(name, url, clients, seed, other, self._progress), name=f"demo-{name}", daemon=True
        )
        # Ctrl-C goes to all processes of a terminal; how the applications end is for this one to say. It is inherited.
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            self._process.start()
        finally:
            signal.signal(signal.SIGINT, handler)
            other.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()
        self._process.close()
        self._pipe.close()

    @property
    def tally(self) -> list[int]:
        """How many operations have which flags so far."""
        return list(self._progress)

    def wait(self) -> Any:
        """Wait until the application has taken its next step, and return its report: nothing, in the demo."""
        return self._receive(PREPARING)

    def go_on(self, message: object = None) -> None:
        """Let it take the next step: connect; work; end."""
        with suppress(BrokenPipeError):  # it has ended; the next `check` or wait says so
            self._pipe.send(message)

    def check(self) -> None:
        """Raise `ApplicationError` if the process has ended by itself."""
        if not self._process.is_alive():
            raise ApplicationError(f"the {self.name} application ended, exit status {self._process.exitcode}")

    def result(self, timeout: float) -> Any:
        """Return what it has to tell at the end of a step that may take `timeout` seconds."""
        return self._receive(timeout)

    def recording(self) -> Recording:
        """Return what the clients recorded, after the last step."""
        recording = self._receive(ENDING)
        assert isinstance(recording, Recording)
        return recording

    def _receive(self, timeout: float) -> Any:
        if not self._pipe.poll(timeout):
            raise ApplicationError(f"the {self.name} application did not answer within {timeout:.0f} s")
        try:
            return self._pipe.recv()
        except EOFError:
            self._process.join(timeout)
            raise ApplicationError(f"the {self.name} application ended, exit status {self._process.exitcode}") from None
