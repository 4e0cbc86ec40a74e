"""The edge: the stand-in for PlanetScale's router in front of everything, as the lab and its tests see it."""

from __future__ import annotations

import json
import math
import re
import signal
import socket
import sys
import threading
from collections import Counter
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import cached_property
from typing import TYPE_CHECKING, Any, get_args

from ps_lab.routes import Path

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path as File

    from ps_lab.processes import Guard
    from ps_lab.routes import Listener, Routes

__all__ = ["Edge", "RoundTrips", "checked_seconds"]


def checked_seconds(seconds: float) -> float:
    """Return a time.

    Raises:
        ValueError: it is no number from 0 on.
    """
    if type(seconds) not in (int, float) or not 0 <= seconds < math.inf:
        raise ValueError(f"write seconds as a number from 0 on, not {seconds!r}")
    return seconds


def _checked_path(path: Path | None) -> Path | None:
    if path is not None and path not in get_args(Path):
        raise ValueError(f"write a path, {', '.join(map(repr, get_args(Path)))}, or none for all of them, not {path!r}")
    return path


class RoundTrips:
    """What was counted since the block began: client messages that were sent after an answer of the server's, start-up apart."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        self._began = edge.counted()
        self._ended: tuple[Counter[str], int] | None = None

    def __repr__(self) -> str:
        return f"<RoundTrips {dict(self.by_path)}>"

    @property
    def by_path(self) -> Counter[str]:
        """Those of each path: "primary", "replica", "direct"."""
        return self._now[0] - self._began[0]

    @property
    def count(self) -> int:
        """All of them."""
        return self.by_path.total()

    @property
    def startups(self) -> int:
        """How many connections were made."""
        return self._now[1] - self._began[1]

    def stop(self) -> None:
        """Count no more."""
        self._ended = self._edge.counted()

    @property
    def _now(self) -> tuple[Counter[str], int]:
        return self._ended or self._edge.counted()


class Edge:
    """What may be asked of the relay, from any thread. A fault lasts until `resume`, or until the end of a `with` block.

    Raises:
        ValueError: a fault is none: it names no path, no time or no SQLSTATE, and a test would pass without it.
    """

    def __init__(self, guard: Guard, certificate: File) -> None:
        self.log = guard.folder / "edge.log"
        self._lock = threading.Lock()
        self._control, theirs = socket.socketpair()
        self._control.settimeout(10)
        self._answers = self._control.makefile("rb")
        with theirs:
            command: list[str | File] = [sys.executable, "-P", "-m", "ps_lab.relay", certificate]
            guard.start(command, self.log, signal.SIGKILL, control=theirs)

    @cached_property
    def ports(self) -> dict[Listener, int]:
        """The ports of its listeners, "direct", "pooled" and "https"."""
        ports: dict[Listener, int] = self._ask("listen")
        return ports

    def close(self) -> None:
        """Let the relay end itself."""
        self._answers.close()
        self._control.close()

    def route(self, routes: Routes) -> None:
        """Send new connections these ways."""
        self._ask("route", asdict(routes))

    def status(self) -> dict[str, Any]:
        """Return the number of clients, the paths that hang, the delay, and the refusal."""
        status: dict[str, Any] = self._ask("status")
        return status

    # --- counting ---

    @contextmanager
    def round_trips(self) -> Iterator[RoundTrips]:
        """Count within the block."""
        counter = RoundTrips(self)
        try:
            yield counter
        finally:
            counter.stop()

    def counted(self) -> tuple[Counter[str], int]:
        """Return the round trips by path, and the starts of connections, since the edge began."""
        by_path, startups = self._ask("count")
        return Counter(by_path), startups

    # --- faults ---

    def cut(self, path: Path | None = None) -> None:
        """Break the connections of a path ("primary", "replica", "direct"), all where none is named."""
        self._ask("cut", _checked_path(path))

    def cut_answers(self, path: Path | None = None, *, containing: str = "", times: int = 1) -> ExitStack:
        """Break a connection when the server has answered the next message that holds this text: the answer does not arrive.

        What the message was about has happened, then. `status()["answer_cuts"]` says how many of the `times` are left.
        """
        return self._fault("cut_answers", _checked_path(path), containing, times)

    def hang(self, path: Path | None = None) -> ExitStack:
        """Stop forwarding on a path, or on all; new connections hang, too."""
        return self._fault("hang", _checked_path(path))

    def delay(self, seconds: float) -> ExitStack:
        """Delay what is forwarded, each way."""
        return self._fault("delay", checked_seconds(seconds))

    def refuse(self, sqlstate: str, message: str) -> ExitStack:
        """Answer new connections with this error, and all requests of `POST /sql` with what comes of it.

        That is status 400 for a class 28, 503 for 57P03, 429 for class 53, and else 500.
        """
        if not re.fullmatch("[0-9A-Z]{5}", sqlstate):
            raise ValueError(f"sqlstate: write five digits and upper-case letters, as in '08006', not {sqlstate!r}")
        return self._fault("refuse", sqlstate, message)

    def limit_sql(self, **limits: float | None) -> ExitStack:
        """Set limits of `POST /sql`: `request_bytes`, `response_bytes`, `seconds`, and requests `per_second`.

        By default they are those of Neon's proxy: 10 MiB, 10 MiB, 15 s, any number.

        Raises:
            RuntimeError: there is no limit of that name.
        """
        return self._fault("limit_sql", limits)

    def resume(self) -> None:
        """End `cut_answers`, `hang`, `delay`, `refuse` and `limit_sql`."""
        self._ask("resume")

    def _fault(self, *words: object) -> ExitStack:
        self._ask(*words)
        stack = ExitStack()
        stack.callback(self.resume)
        return stack

    def _ask(self, *words: object) -> Any:
        with self._lock:
            self._control.sendall(json.dumps(words).encode() + b"\n")
            line = self._answers.readline()
        if not line:
            raise RuntimeError(f"the edge has ended: {self.log.read_text()[-2000:]}")
        answer, error = json.loads(line)
        if error is not None:
            raise RuntimeError(f"the edge could not {words[0]}: {error}")
        return answer
