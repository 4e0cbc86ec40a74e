"""What the demo shows at its end: tables, and what must not have happened."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from ps_demo.figures import FAILED, REPLICA, RETRIED, WRITE, by_phase, count, measure, phases, problems

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

    from ps_demo.figures import Event, Outcome

__all__ = ["conclude"]


def conclude(console: Console, outcomes: Mapping[str, Outcome], events: Sequence[Event]) -> int:
    """Print the figures, and return the exit status: 1 if a read failed, or an acknowledged write is missing or doubled."""
    console.print(_work(outcomes), _latencies(outcomes, events))
    for name, outcome in outcomes.items():
        for (write, message), number in outcome.recording.errors.most_common():
            console.print(
                f"{name}: a {'write' if write else 'read'} raised, {number} x: {message}",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
    found = problems(outcomes)
    for problem in found:
        console.print(problem, style="bold red", markup=False)
    return 1 if found else 0


def _work(outcomes: Mapping[str, Outcome]) -> Table:
    table = Table("", *outcomes, title="What was done", title_justify="left")
    rows: dict[str, list[str]] = {}
    for outcome in outcomes.values():
        tally = outcome.recording.tally
        reads = count(tally, WRITE | FAILED, 0)
        by_replica = count(tally, WRITE | FAILED | REPLICA, REPLICA)
        for what, figure in (
            ("reads done", f"{reads:,}"),
            ("reads that failed", f"{count(tally, WRITE | FAILED, FAILED):,}"),
            ("reads retried", f"{count(tally, WRITE | RETRIED, RETRIED):,}"),
            ("reads served by replicas", f"{by_replica / reads:.2%}" if reads else "-"),
            ("writes done", f"{len(outcome.recording.acknowledged):,}"),
            ("writes that raised", f"{count(tally, WRITE | FAILED, WRITE | FAILED):,}"),
            ("writes retried", f"{count(tally, WRITE | RETRIED, WRITE | RETRIED):,}"),
            ("acknowledged writes lost", f"{len(outcome.verdict.lost):,}"),
            ("writes doubled", f"{len(outcome.verdict.doubled):,}"),
        ):
            rows.setdefault(what, []).append(figure)
    for what, figures in rows.items():
        table.add_row(what, *figures)
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def _latencies(outcomes: Mapping[str, Outcome], events: Sequence[Event]) -> Table:
    table = Table("", title="Latency of what succeeded, in milliseconds", title_justify="left")
    for kind in ("reads", "writes"):
        for figure in ("p50", "p99", "max"):
            table.add_column(f"{kind if figure == 'p99' else ''}\n{figure}", justify="right")
    parts = phases(events)
    for name, outcome in outcomes.items():
        table.add_section()
        table.add_row(f"[bold]{name}")
        measured = [by_phase(outcome.recording.succeeded(kind), parts) for kind in (0, WRITE)]
        for number, part in enumerate(parts):
            cells: list[str] = []
            for latencies in (kind[number] for kind in measured):
                latency = measure(latencies)
                cells += ["-"] * 3 if latency is None else [_ms(latency.p50), _ms(latency.p99), _ms(latency.max)]
            table.add_row(part.name if part.event is None else f"{part.name} ({part.event.duration:.1f} s)", *cells)
    return table


def _ms(seconds: float) -> str:
    milliseconds = seconds * 1000
    return f"{milliseconds:.1f}" if milliseconds < 100 else f"{milliseconds:,.0f}"
