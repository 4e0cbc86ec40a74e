"""A system in a process of its own, with its clients, and the handle that the comparison has of it."""

import logging
import multiprocessing
import threading
import time
from importlib.metadata import version
from multiprocessing.connection import Connection
from random import Random
from typing import Any, Final, Literal, Self

from ps_demo.clients import Client, Retries
from ps_demo.figures import Recording
from tests.compare.system import ACCOUNTS, Module, System, load

Unit = Literal["read", "transfer"]
RETRY_REPLICAS_FOR: Final = 15.0
"""Seconds after the end of an event's time until a client that still waits is given up."""
ANSWER: Final = 60.0
"""Seconds that anything else may take."""


class Worker:
    """The handle. Leaving the block ends the process, whatever it is doing."""

    def __init__(self, name: str, url: str, clients: int) -> None:
        self.name = name
        spawn = multiprocessing.get_context("spawn")
        self._pipe, other = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(name, url, clients, other), name=f"compare-{name}", daemon=True)
        self._process.start()
        other.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def call(self, what: str, *args: object) -> Any:
        """Let the process do something; return what it returns.

        Raises:
            RuntimeError: it raised, or did not answer in time.
        """
        self._pipe.send((what, args))
        if not self._pipe.poll(ANSWER):
            raise RuntimeError(f"{self.name}: {what} took more than {ANSWER:.0f} s")
        result, error = self._pipe.recv()
        if error is not None:
            raise RuntimeError(f"{self.name}: {what}: {error}")
        return result


def _serve(name: str, url: str, clients: int, pipe: Connection) -> None:
    logging.getLogger().addHandler(logging.NullHandler())  # what a system logs as a warning is not for the terminal
    jobs = _Jobs(load(name), url, clients)
    while True:
        try:
            what, args = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((getattr(jobs, what)(*args), None))
        except Exception as exc:  # noqa: BLE001 - for the other process to raise
            pipe.send((None, f"{type(exc).__name__}: {exc}"))


class _Workload:
    """What the demo's clients do on this system."""

    def __init__(self, system: System) -> None:
        self._system = system

    def prepare(self) -> None:
        """There is nothing to prepare."""

    def read(self, random: Random) -> bool:
        """Read any balance."""
        return self._system.read(random.randint(1, ACCOUNTS))

    def write(self, random: Random, reference: int) -> None:
        """Transfer something."""
        _transfer(self._system, random, reference)


def _transfer(system: System, random: Random, reference: int) -> None:
    # In the order of their keys, as it has to be: two transfers must not wait for each other.
    source, target = sorted(random.sample(range(1, ACCOUNTS + 1), 2))
    system.transfer(reference, source, target, random.randint(1, 100))


class _Jobs:
    """What the process can be asked for. Answers are plain data."""

    def __init__(self, module: Module, url: str, clients: int) -> None:
        self._module = module
        self._url = url
        self._system = module.make(url, clients)
        self._random = Random(module.NAME)
        self._reference = 0
        self._clients: list[Client] = []

    def describe(self) -> tuple[str, str, dict[str, str]]:
        """Return the name, the remark and the versions."""
        return self._module.NAME, self._module.REMARK, {name: version(name) for name in self._module.DISTRIBUTIONS}

    def attempts(self) -> list[tuple[str, str]]:
        """Return what a system's other configurations came to."""
        return list(self._module.attempts(self._url)) if hasattr(self._module, "attempts") else []

    def repeat(self, unit: Unit, times: int) -> None:
        """Do a unit of work in this thread, one after another."""
        for _ in range(times):
            self._do(unit, self._random)

    def pairs(self, times: int) -> list[tuple[int, bool]]:
        """Write, then look for what was written; return the references, and whether each was found."""
        found = []
        for _ in range(times):
            self._do("transfer", self._random)
            found.append((self._reference, self._system.read_own(self._reference)))
        return found

    def begin(self, clients: int, seed: int, number: int) -> None:
        """Start clients, whose references are this number's; they work when all have connected."""
        workload = _Workload(self._system)
        self._clients = [Client(workload, 100 * number + n, seed, Retries()) for n in range(1, clients + 1)]
        for client in self._clients:
            client.start()
        for client in self._clients:
            client.connected.wait(ANSWER)
        for client in self._clients:
            client.starting.set()

    def end(self) -> tuple[Recording, int]:
        """Stop the clients; return what they recorded, and how many still wait for an answer."""
        for client in self._clients:
            client.stopping.set()
        until = time.monotonic() + RETRY_REPLICAS_FOR
        whole, stuck = Recording(), 0
        for client in self._clients:
            client.join(max(0.0, until - time.monotonic()))
            stuck += client.is_alive()
            whole.extend(client.recording)
        return whole, stuck

    def throughput(self, unit: Unit, clients: int, seconds: float) -> float:
        """Return the units of work by second that so many threads do, each as fast as it can."""
        together = threading.Barrier(clients + 1)
        counts = [0] * clients

        def work(number: int) -> None:
            random = Random(number)
            self._do(unit, random)
            together.wait()
            until = time.perf_counter() + seconds
            while time.perf_counter() < until:
                self._do(unit, random)
                counts[number] += 1

        threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(clients)]
        for thread in threads:
            thread.start()
        together.wait(ANSWER)
        begin = time.perf_counter()
        for thread in threads:
            thread.join()
        return sum(counts) / (time.perf_counter() - begin)

    def _do(self, unit: Unit, random: Random) -> None:
        if unit == "read":
            self._system.read(random.randint(1, ACCOUNTS))
        else:
            self._reference += 1
            _transfer(self._system, random, self._reference)
