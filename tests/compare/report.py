"""What was found, and the page that shows it. Pure."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final

from ps_demo.figures import FAILED, REPLICA, SETTLING, WRITE, Event, Recording, Verdict, by_phase, count, judge, measure, phases


def stale(pairs: Iterable[tuple[int, bool]]) -> int:
    """Return how many did not find what they had written."""
    return sum(not found for _, found in pairs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The time around an event, each time that it was made."""

    name: str
    events: Sequence[Event]
    recording: Recording
    stuck: int
    """Users who still waited for an answer long after the end."""
    present: Sequence[int]
    """The references that are in the table afterwards."""

    @property
    def verdict(self) -> Verdict:
        """What became of the writes."""
        return judge(self.recording.acknowledged, self.present)

    def failed(self, kind: int) -> int:
        """Return how many reads (0) or writes (`WRITE`) raised."""
        return count(self.recording.tally, WRITE | FAILED, kind | FAILED)

    def latencies(self, kind: int) -> list[str]:
        """Return p50, p99 and maximum of what succeeded, in milliseconds, from the event's start until it had settled."""
        during = by_phase(self.recording.succeeded(kind), phases(self.events))[1::2]
        found = measure(sorted(chain.from_iterable(during)))
        return ["-"] * 3 if found is None else [_ms(found.p50), _ms(found.p99), _ms(found.max)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """About one system."""

    module: str
    name: str
    remark: str
    versions: dict[str, str]
    round_trips: dict[str, float]
    pairs: list[tuple[int, bool]]
    windows: list[Window]
    throughput: dict[tuple[float, str, int], float]
    """Units by second, by the round trip's added milliseconds, unit and clients."""
    attempts: list[tuple[str, str]]


def render(introduction: str, systems: Sequence[Findings]) -> Iterator[str]:
    """Yield the lines of the page."""
    yield introduction
    yield from ("## Systems", "", *_table(["system", "versions", "", "configuration"], map(_described, systems)), "")
    yield from ("## In short", "", *_table(SUMMARY, map(_summary, systems)), "", SUMMARY_NOTES, "")
    for number, window in enumerate(systems[0].windows):
        yield from (f"## {window.name[0].upper()}{window.name[1:]}", "")
        yield from _table(AROUND, (_around(system, system.windows[number]) for system in systems))
        yield ""
    units = list(systems[0].round_trips)
    rows = ([system.name, *(f"{system.round_trips[unit]:g}" for unit in units)] for system in systems)
    yield from ("## Round trips", "", ROUND_TRIPS, "", *_table(["system", *units], rows), "")
    yield from ("## Throughput", "", THROUGHPUT, "", *_throughput(systems), "")
    yield from ("## What was raised", "", RAISED, "", *_errors(systems))
    for system in systems:
        if system.attempts:
            rows = ([f"`{what}`", _printable(outcome)] for what, outcome in system.attempts)
            yield from ("", f"## What was tried: {system.name}", "", TRIED, "", *_table(["configuration", "result"], rows))


def _described(system: Findings) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in system.versions.items())
    return [system.name, versions, system.remark, f"`tests/compare/systems/{system.module}.py`"]


SUMMARY: Final = (
    "system",
    "reads failed",
    "of",
    "writes failed",
    "of",
    "acknowledged writes lost",
    "writes doubled",
    "own writes not seen",
    "of",
    "reads by replicas",
)


def _summary(system: Findings) -> list[str]:
    total = Recording()
    for window in system.windows:
        total.extend(window.recording)
    done = [count(total.tally, WRITE, kind) for kind in (0, WRITE)]
    served, by_replicas = count(total.tally, WRITE | FAILED, 0), count(total.tally, WRITE | FAILED | REPLICA, REPLICA)
    verdicts = [window.verdict for window in system.windows]
    return [
        system.name,
        f"{sum(window.failed(0) for window in system.windows):,}",
        f"{done[0]:,}",
        f"{sum(window.failed(WRITE) for window in system.windows):,}",
        f"{done[1]:,}",
        f"{sum(len(verdict.lost) for verdict in verdicts):,}",
        f"{sum(len(verdict.doubled) for verdict in verdicts):,}",
        f"{stale(system.pairs):,}",
        f"{len(system.pairs):,}",
        f"{by_replicas / served:.0%}" if served else "-",
    ]


AROUND: Final = (
    "system",
    "reads failed",
    "p50",
    "p99",
    "max",
    "writes failed",
    "p50",
    "p99",
    "max",
    "event took, s",
)


def _around(system: Findings, window: Window) -> list[str]:
    stuck = f" (and {window.stuck} unanswered)" if window.stuck else ""
    return [
        system.name,
        f"{window.failed(0):,}{stuck}",
        *window.latencies(0),
        f"{window.failed(WRITE):,}",
        *window.latencies(WRITE),
        ", ".join(f"{event.duration:.1f}" for event in window.events),
    ]


def _throughput(systems: Sequence[Findings]) -> Iterator[str]:
    cells = list(systems[0].throughput)
    head = [f"{unit}s, {clients} client{'s' * (clients > 1)}, +{delay:g} ms" for delay, unit, clients in cells]
    yield from _table(["system", *head], ([s.name, *(f"{s.throughput[cell]:,.0f}" for cell in cells)] for s in systems))


def _errors(systems: Sequence[Findings]) -> Iterator[str]:
    rows = []
    for system in systems:
        for window in system.windows:
            for (write, message), number in window.recording.errors.most_common(2):
                rows.append([system.name, window.name, "write" if write else "read", f"{number}", _printable(message)])
    yield from _table(["system", "event", "", "times", "message"], rows)


def _printable(message: str) -> str:
    """Return a message for a table, without what is another one in each run."""
    message = re.sub(r'user "[^"]*"|port \d+|localhost:\d+', lambda found: re.sub(r'"[^"]*"|\d+', "...", found[0]), message)
    return message.replace("|", "\\|")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|---|{'---|' * (len(head) - 1)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _ms(seconds: float) -> str:
    milliseconds = seconds * 1000
    return f"{milliseconds:.1f}" if milliseconds < 100 else f"{milliseconds:,.0f}"


INTRODUCTION: Final = """\
# Comparison

One application, connected in several ways, meets the same faults. `make compare` runs all of it and writes this page.

On a local PlanetScale (`ps-postgres lab`: a primary, two replicas, PgBouncers, an edge with TLS) the systems run one after
another, each in a process of its own with {clients} users. A user is a thread that reads balances by key; every other user
also transfers money, every fourth time, in a transaction of two UPDATEs and an INSERT. Between two requests a user pauses
for 20 ms on average; what they ask for follows from a seed ({seed}). In the SQLAlchemy systems a request is a session. The
Django systems answer whole requests, with middleware and cookies, through `WSGIHandler`.

Each rival is set up as its own documentation says. The file is named below; corrections are welcome.

What is unfair:

- The authors of this project wrote the page, the lab and the faults, and those are the faults that the project is made for.
- SQLAlchemy, Django and the routers do not promise to hide a failure. An application that tries failed reads again by itself
  gets most of the difference back; for writes it has to know which ones may run again. Here an application tries again only
  where its system's documentation shows how: this project's `run_transaction` (one row is without it), the AWS wrapper's
  `FailoverSuccessError`.
- The AWS wrapper is made for Aurora and RDS, where it asks the servers for the topology. Here it cannot.
- Statement timeouts: this project's hold in all its figures. The others have none: a transaction pooler refuses them as
  start-up parameters, and `SET` does not hold behind it. They could be set for the role. The time to connect and TCP
  keepalives are the same for all.
- django-multidb-router is right as long as the replicas are less late than it pins (15 s). Here they are 200 ms late.
- The bouncers try a failed server again after 1 s (`server_login_retry`); PgBouncer's default is 15 s.
- Clients, bouncers and servers share one machine with whatever else runs on it. Compare within a column, and only the counts
  across runs.

{machine}, load average before: {load:.1f}; Python {python}, psycopg {psycopg}, PostgreSQL {postgresql}, {bouncer}.
"""
SUMMARY_NOTES: Final = f"""\
- Failed, lost, doubled and "reads by replicas" are of all events below together; "of" is how many were made.
- Failed: the application got an exception. A write that failed may be there or not; so it is with this project's
  `CommitOutcomeUnknown`, which counts as failed. Lost: its COMMIT was answered, and it is not there. Doubled: it is there more
  than once, whatever was answered.
- Own writes not seen: a user makes a transfer, and looks for it in the next request, while the replicas replay each commit
  200 ms late.
- In the tables by event, times are milliseconds of what succeeded, from the event's start until {SETTLING:g} s after its
  end; both times that it was made. What failed has no time: a system that fails at once has short ones. Where no replica has
  replayed what its user saw, a read of this project waits for the primary; the other routers answer at once, with what was
  before."""
ROUND_TRIPS: Final = (
    "Messages that wait for an answer, as the edge of the lab counts them, on connections that are there already."
    " This project's include statement and transaction timeouts."
)
THROUGHPUT: Final = (
    "Units of work by second, each client as fast as it can, with so many milliseconds added to each round trip."
    " The systems take turns; the figure is the median of the turns. Without an added round trip it is mostly the price in CPU"
    " of clients and servers together."
)
RAISED: Final = "The two most frequent messages by event."
TRIED: Final = "The socket is shut down between two transactions on a connection; or as the result says."
