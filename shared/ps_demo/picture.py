"""The demo's picture: every operation by time and latency, the events marked."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING, Final

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import Normal, Stroke
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ps_demo.figures import FAILED, WRITE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from ps_demo.figures import Event, Recording

__all__ = ["draw"]

BUCKET: Final = 0.5
"""Seconds for which a point of a median's line stands."""
WAITED: Final = 0.25
"""Seconds from which on an operation is drawn as a line from its start to its end."""
READS: Final = "#3b75af"
WRITES: Final = "#d9822b"
RAISED: Final = "#c0272d"
OUTLINE: Final = [Stroke(linewidth=4, foreground="white"), Normal()]


def draw(path: Path, recordings: Mapping[str, Recording], events: Sequence[Event], start: float) -> None:
    """Write the picture to `path` (PNG). `start` is when the run began."""
    figure = Figure(figsize=(13, 4 * len(recordings) + 0.8), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle("Latency of each operation while the primary changes (a bar: it lasted that long)")
    panels = figure.subplots(len(recordings), sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, (name, recording) in zip(panels, recordings.items(), strict=True):
        _panel(axes, name, recording, events, start)
    panels[-1].set_xlabel("seconds")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(path, dpi=120)


def _panel(axes: Axes, name: str, recording: Recording, events: Sequence[Event], start: float) -> None:
    axes.set_title(name, loc="left", fontweight="bold")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(base=10))
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda seconds, _: f"{seconds:g} s" if seconds >= 1 else f"{seconds * 1000:g} ms")
    )
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="y", alpha=0.3)
    axes.margins(x=0.01)
    for event in events:
        axes.axvspan(event.start - start, event.end - start, color="0.88", zorder=0)
        axes.text(
            (event.start + event.end) / 2 - start,
            1.01,
            f"{event.name} {event.duration:.1f} s",
            ha="center",
            va="bottom",
            transform=axes.get_xaxis_transform(),
        )
    for kind, label, colour, size in ((0, "read", READS, 6), (WRITE, "write", WRITES, 12)):
        operations = [(began - start, latency) for began, latency in recording.succeeded(kind)]
        axes.scatter(*_columns(operations), s=size, color=colour, alpha=0.35, linewidths=0)
        waited = [(began, latency) for began, latency in operations if latency > WAITED]
        axes.hlines(
            [latency for _, latency in waited],
            [began for began, _ in waited],
            [began + latency for began, latency in waited],
            color=colour,
            linewidth=1.2,
        )
        axes.plot(*_columns(_medians(operations)), color=colour, linewidth=2.2, path_effects=OUTLINE)
        axes.scatter([], [], s=40, color=colour, label=label)
        axes.plot([], [], color=colour, linewidth=2.2, label=f"median of the {label}s")
    raised = [
        (began - start, latency)
        for began, latency, flags in zip(recording.starts, recording.latencies, recording.flags, strict=True)
        if flags & FAILED
    ]
    axes.scatter(*_columns(raised), s=40, marker="x", color=RAISED, label="raised", zorder=3)


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _medians(operations: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the median by the time at which operations began; NaN, a gap in the line, where none did."""
    buckets: dict[int, list[float]] = {}
    for began, latency in operations:
        buckets.setdefault(int(began / BUCKET), []).append(latency)
    return [
        ((number + 0.5) * BUCKET, statistics.median(buckets[number]) if number in buckets else math.nan)
        for number in range(max(buckets, default=-1) + 1)
    ]
