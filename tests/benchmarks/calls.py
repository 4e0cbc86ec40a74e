"""Counts the calls of functions of ours that a unit of work takes, in the process that does the units."""

from __future__ import annotations

import sys
from collections import Counter
from inspect import CO_ASYNC_GENERATOR, CO_COROUTINE, CO_GENERATOR
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import ps_core
import ps_django
import ps_sqlalchemy
from tests.benchmarks.units import Way, _seen, _work

if TYPE_CHECKING:
    from types import CodeType, FrameType

__all__ = ["calls", "most_called"]

OURS: Final = tuple(str(Path(str(package.__file__)).parent) for package in (ps_core, ps_sqlalchemy, ps_django))
_SUSPENDS: Final = CO_GENERATOR | CO_COROUTINE | CO_ASYNC_GENERATOR
_WARM_UP: Final = 5


def calls(unit: str, endpoint: str, way: Way) -> int:
    """Return how many calls of ours a unit of one statement takes, on a connection that has done it before."""
    return sum(most_called(unit, endpoint, way).values())


def most_called(unit: str, endpoint: str, way: Way) -> dict[str, int]:
    """Return the same by function, the most called first.

    It is the least of several times: once a minute one asks for the names of functions as well.
    """
    work = _work(unit, endpoint, way, 1)
    counts = []
    for time in range(2 * _WARM_UP):
        with _seen(way):
            # So that what is counted is not the first statement of this context, nor the first behind the position that it saw.
            work()
            work()
            counted = _count(work)
        if time >= _WARM_UP:
            counts.append(counted)
    least = min(counts, key=lambda counted: counted.total())
    return dict(least.most_common())


def _count(work: Any) -> Counter[str]:
    starts: Counter[tuple[CodeType, int]] = Counter()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(OURS):
            starts[frame.f_code, frame.f_lasti if frame.f_code.co_flags & _SUSPENDS else 0] += 1

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    # A generator counts once, however often it had to wait: where it goes on is behind where it began.
    first: dict[CodeType, int] = {}
    for code, at in starts:
        first[code] = min(at, first.get(code, at))
    counted: Counter[str] = Counter()
    for (code, at), times in starts.items():
        if at == first[code]:
            counted[f"{Path(code.co_filename).stem}.{code.co_qualname}"] += times
    return counted
