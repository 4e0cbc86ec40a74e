"""The soak's report: Markdown, JSON and plots."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ps_demo.figures import FAILED, REPLICA, WRITE, count
from ps_demo.picture import READS, WRITES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from rich.console import Console

    from tests.soak.checks import Histogram, History, Usage

__all__ = ["Done", "report"]

KINDS: Final = {"read": READS, "write": WRITES, "transfer": "#4a8f4a"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A soak that is over. Moments are of `time.monotonic()`."""

    seed: int
    seconds: float
    start: float
    faults: Sequence[tuple[str, float, float]]
    """What, from when until when it was undone."""
    histories: Mapping[str, History]
    before: Mapping[str, Usage]
    after: Mapping[str, Usage]
    foreign: int
    """How often foreign clients looked at their settings."""
    violations: Mapping[str, Sequence[str]]


def report(console: Console, folder: Path, done: Done) -> int:
    """Write report.md, report.json, latency.png and throughput.png; return the exit status."""
    facts = _facts(done)
    (folder / "report.json").write_text(json.dumps(facts, indent=1) + "\n")
    text = _markdown(facts)
    (folder / "report.md").write_text(text)
    _draw(folder / "latency.png", done, latency=True)
    _draw(folder / "throughput.png", done, latency=False)
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    console.print(f"Report: {folder.resolve()}", soft_wrap=True, highlight=False)
    return 1 if done.violations else 0


def _facts(done: Done) -> dict[str, Any]:
    return {
        "seed": done.seed,
        "seconds": done.seconds,
        "passed": not done.violations,
        "violations": {name: list(texts) for name, texts in done.violations.items()},
        "foreign_looks": done.foreign,
        "faults": [
            {"fault": name, "start": round(start - done.start, 2), "end": round(end - done.start, 2)}
            for name, start, end in done.faults
        ],
        "applications": {name: _application(done, name, history) for name, history in done.histories.items()},
    }


def _application(done: Done, name: str, history: History) -> dict[str, Any]:
    ledgers = history.ledgers.values()
    return {
        "reads": count(history.tally, WRITE | FAILED, 0),
        "reads_failed": count(history.tally, WRITE | FAILED, FAILED),
        "reads_by_replicas": count(history.tally, WRITE | FAILED | REPLICA, REPLICA),
        "writes": count(history.tally, WRITE | FAILED, WRITE),
        "writes_raised": count(history.tally, WRITE | FAILED, WRITE | FAILED),
        "transfers_acknowledged": sum(ledger.acknowledged for ledger in ledgers),
        "transfers_unknown": sum(len(ledger.unknown) for ledger in ledgers),
        "transfers_not_committed": sum(len(ledger.refused) for ledger in ledgers),
        "latency_ms": {kind: _latency(history.latencies(kind)) for kind in KINDS},
        "raised": dict(history.raised.most_common()),
        "before": asdict(done.before[name]),
        "after": asdict(done.after[name]),
    }


def _latency(histogram: Histogram) -> dict[str, float] | None:
    if not histogram.total:
        return None
    seconds = {"p50": histogram.percentile(50), "p99": histogram.percentile(99), "max": histogram.longest}
    return {name: round(value * 1000, 1) for name, value in seconds.items()}


def _markdown(facts: dict[str, Any]) -> str:
    names = list(facts["applications"])
    every = facts["applications"].values()
    lines = [
        f"# Soak: {'passed' if facts['passed'] else 'FAILED'}",
        "",
        f"Seed {facts['seed']}, {facts['seconds'] / 60:g} minutes, {len(facts['faults'])} faults,"
        f" {facts['foreign_looks']:,} looks of foreign clients at their settings.",
        "",
        "## Violations",
        "",
        *([f"- {name}: {text}" for name, texts in facts["violations"].items() for text in texts] or ["None."]),
        "",
        "## Work",
        "",
        _row("", *names),
        _row("---", *["---:"] * len(names)),
    ]
    first = next(iter(every))
    lines += [
        _row(what.replace("_", " "), *(f"{application[what]:,}" for application in every))
        for what, value in first.items()
        if isinstance(value, int)
    ]
    for kind in KINDS:
        lines += [
            _row(f"{kind}, {figure}, ms", *(f"{(one['latency_ms'][kind] or {}).get(figure, '-')}" for one in every))
            for figure in ("p50", "p99", "max")
        ]
    for what, unit in (("threads", 1), ("descriptors", 1), ("memory", 2**20)):
        lines.append(
            _row(
                f"{what}{', MiB' if unit > 1 else ''}, after the warm-up, at the end",
                *(f"{one['before'][what] // unit}, {one['after'][what] // unit}" for one in every),
            )
        )
    lines += ["", "## What raised", ""]
    lines += [
        f"- {name}: {number} x {text}" for name, one in facts["applications"].items() for text, number in one["raised"].items()
    ] or ["Nothing."]
    lines += ["", "## Faults", "", _row("fault", "count", "longest, s"), _row("---", "---:", "---:")]
    counted = Counter(fault["fault"] for fault in facts["faults"])
    longest: dict[str, float] = {}
    for fault in facts["faults"]:
        longest[fault["fault"]] = max(longest.get(fault["fault"], 0.0), fault["end"] - fault["start"])
    lines += [_row(name, str(number), f"{longest[name]:.1f}") for name, number in sorted(counted.items())]
    lines += ["", "![Latency](latency.png)", "", "![Throughput](throughput.png)", ""]
    return "\n".join(lines)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _draw(path: Path, done: Done, *, latency: bool) -> None:
    figure = Figure(figsize=(15, 3.5 * len(done.histories) + 0.8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(done.histories), sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, (name, history) in zip(panels, done.histories.items(), strict=True):
        axes.set_title(name, loc="left", fontweight="bold")
        axes.grid(axis="y", alpha=0.3)
        for _, start, end in done.faults:
            axes.axvspan(start - done.start, end - done.start, color="0.88", zorder=0)
            axes.axvline(start - done.start, color="0.7", linewidth=0.6, zorder=0)
        if latency:
            axes.set_yscale("log")
            axes.set_ylabel("seconds")
        else:
            axes.set_ylabel("operations per second")
        for kind, colour in KINDS.items():
            windows = sorted(history.windows.get(kind, {}).items())
            moments = [(window + 0.5) * history.width - done.start for window, _ in windows]
            if latency:
                axes.plot(moments, [one.percentile(50) for _, one in windows], color=colour, label=f"{kind}, median")
                axes.plot(moments, [one.longest for _, one in windows], ".", markersize=3, color=colour, label=f"{kind}, longest")
            else:
                by_window = {window: one.total for window, one in windows}
                first, last = (int(done.start / history.width), int((done.start + done.seconds) / history.width))
                axes.plot(
                    [(window + 0.5) * history.width - done.start for window in range(first, last)],
                    [by_window.get(window, 0) / history.width for window in range(first, last)],
                    color=colour,
                    label=kind,
                )
    panels[-1].set_xlabel("seconds (grey: a fault, until it was undone)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    figure.savefig(path, dpi=110)
