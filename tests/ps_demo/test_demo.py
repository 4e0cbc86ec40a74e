"""`ps-postgres demo`: its figures by table, and the whole of it on real servers."""

from __future__ import annotations

import argparse
import io
import math
import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest
from rich.console import Console
from sqlalchemy import text

from ps_cli.main import main
from ps_demo import demo
from ps_demo.clients import Client, Retries
from ps_demo.demo import add_parser
from ps_demo.figures import (
    FAILED,
    REPLICA,
    RETRIED,
    WRITE,
    Event,
    Outcome,
    Recording,
    Verdict,
    by_phase,
    count,
    judge,
    measure,
    percentile,
    phases,
)
from ps_demo.report import conclude
from ps_lab.processes import wait_until
from ps_sqlalchemy import Session, create_engine

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from random import Random

    from ps_lab import Lab
    from ps_sqlalchemy import Engine

SWITCHOVER = Event("switchover", 10.0, 12.0)
CRASH = Event("crash", 20.0, 23.0)
NOTHING_AMISS = Verdict(lost=[], doubled=[])


@pytest.mark.fast
@pytest.mark.parametrize(
    ("ordered", "percent", "expected"),
    [
        ([1.0], 50, 1.0),
        ([1.0], 99, 1.0),
        ([1.0, 2.0], 50, 1.0),
        ([1.0, 2.0, 3.0], 50, 2.0),
        ([float(number) for number in range(1, 101)], 99, 99.0),
        ([float(number) for number in range(1, 102)], 99, 100.0),
        ([float(number) for number in range(1, 101)], 100, 100.0),
        ([3.0, 4.0], 0, 3.0),
    ],
)
def test_percentile(ordered: list[float], percent: float, expected: float) -> None:
    """A percentile is the smallest value that at least so many per cent do not exceed."""
    assert percentile(ordered, percent) == expected


@pytest.mark.fast
def test_no_operations() -> None:
    """No operations have no figures."""
    assert measure([]) is None


@pytest.mark.fast
@pytest.mark.parametrize(
    ("start", "latency", "expected"),
    [
        (0.0, 0.1, "before"),
        (9.8, 0.1, "before"),
        (9.8, 0.3, "during the switchover"),  # met by it under way
        (10.0, 0.1, "during the switchover"),
        (12.9, 0.05, "during the switchover"),  # a second is left for its effects
        (12.9, 5.0, "during the switchover"),
        (13.0, 0.1, "between"),
        (19.9, 0.05, "between"),
        (19.9, 9.0, "during the crash"),
        (9.8, 30.0, "during the switchover"),  # the first of two
        (24.0, 0.1, "after"),
        (1000.0, 0.1, "after"),
    ],
)
def test_phase(start: float, latency: float, expected: str) -> None:
    """An operation belongs to the event that it met, else to the phase in which it began."""
    parts = phases([SWITCHOVER, CRASH])
    found = by_phase([(start, latency)], parts)
    assert [(part.name, latencies) for part, latencies in zip(parts, found, strict=True) if latencies] == [(expected, [latency])]


@pytest.mark.fast
def test_figures_of_phases() -> None:
    """Each phase has the figures of its own operations."""
    operations = [(5.0 + number / 100, number / 1000) for number in range(100, 0, -1)] + [(11.0, 1.5), (14.0, 0.002)]
    before, during, after = (measure(latencies) for latencies in by_phase(operations, phases([SWITCHOVER])))
    assert before is not None
    assert (before.p50, before.p99, before.max) == (0.05, 0.099, 0.1)
    assert during is not None
    assert during.max == 1.5
    assert after is not None
    assert after.p50 == 0.002


@pytest.mark.fast
@pytest.mark.parametrize(
    ("acknowledged", "present", "lost", "doubled"),
    [
        ([], [], [], []),
        ([1, 2], [2, 1], [], []),
        ([1, 2], [1, 2, 3], [], []),  # 3 raised, and was made all the same
        ([1, 2], [1], [2], []),
        ([1, 2], [1, 2, 2], [], [2]),
        ([1], [1, 3, 3], [], [3]),  # 3 raised, and was made twice
        ([1, 2, 4], [2, 2, 2], [1, 4], [2]),
    ],
)
def test_verdict(acknowledged: list[int], present: list[int], lost: list[int], doubled: list[int]) -> None:
    """Acknowledged writes that are missing are found, and writes that are there twice, acknowledged or not."""
    assert judge(acknowledged, present) == Verdict(lost=lost, doubled=doubled)


def record(*operations: int) -> Recording:
    """Return a recording of operations with these flags; writes that did not fail are acknowledged, from 1 on."""
    recording = Recording()
    for number, flags in enumerate(operations, start=1):
        recording.add(float(number), number + 0.01, flags)
        if flags & (WRITE | FAILED) == WRITE:
            recording.acknowledged.append(number)
        if flags & FAILED:
            recording.add_error(write=bool(flags & WRITE), message="OperationalError: gone")
    return recording


@pytest.mark.fast
@pytest.mark.parametrize(
    ("recording", "verdict", "status", "said"),
    [
        (record(0, REPLICA, REPLICA, WRITE), NOTHING_AMISS, 0, "66.67%"),
        (record(REPLICA | RETRIED, WRITE, WRITE | FAILED), NOTHING_AMISS, 0, "a write raised, 1 x: OperationalError: gone"),
        (record(0, WRITE), judge([2], []), 1, "Shop: acknowledged writes are missing: 1"),
        (record(0, WRITE), judge([2], [2, 2]), 1, "Shop: writes are there more than once: 1"),
        (record(0, FAILED, FAILED, WRITE), NOTHING_AMISS, 1, "Shop: reads failed: 2"),
        (record(WRITE), NOTHING_AMISS, 1, "Shop: no read succeeded"),
        (record(0), NOTHING_AMISS, 1, "Shop: no write was acknowledged"),
    ],
)
def test_exit_status(recording: Recording, verdict: Verdict, status: int, said: str) -> None:
    """The exit status is 1, and the reason is printed, when something must not have happened."""
    console = Console(file=io.StringIO(), width=80)
    bank = Outcome(record(REPLICA, WRITE), NOTHING_AMISS)
    assert conclude(console, {"Bank": bank, "Shop": Outcome(recording, verdict)}, [SWITCHOVER, CRASH]) == status
    assert isinstance(console.file, io.StringIO)
    assert said in console.file.getvalue()


@pytest.mark.fast
def test_recordings_add_up() -> None:
    """A recording of several clients has the operations, acknowledgements and errors of each."""
    whole = Recording()
    whole.extend(record(0, WRITE, FAILED))
    whole.extend(record(REPLICA, WRITE, FAILED))
    assert (count(whole.tally, WRITE, 0), count(whole.tally, WRITE, WRITE), len(whole.starts)) == (4, 2, 6)
    assert list(whole.acknowledged) == [2, 2]
    assert whole.errors == {(False, "OperationalError: gone"): 2}
    assert math.isclose(max(latency for _, latency in whole.succeeded(WRITE)), 0.01, rel_tol=1e-3)


@pytest.mark.fast
def test_errors_are_bounded() -> None:
    """However many different messages there are, few are kept, and none goes uncounted."""
    recording = Recording()
    for number in range(1000):
        recording.add_error(write=True, message=f"error {number}")
    assert len(recording.errors) < 50
    assert recording.errors.total() == 1000


@pytest.mark.fast
@pytest.mark.parametrize("arguments", [["--seconds", "9"], ["--seconds", "601"], ["--clients", "1"], ["--clients", "many"]])
def test_refused_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """What cannot work is refused with the range that can."""
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(["demo", *arguments])
    assert caught.value.code == 2
    assert "write a whole number from" in capsys.readouterr().err


class Reader:
    """A workload whose reads ask which server answers, and whose every write raises."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def prepare(self) -> None:
        """Nothing is needed."""

    def read(self, random: Random) -> bool:
        """Ask the server what it is."""
        with Session(self.engine) as session:
            return bool(session.scalar(text("SELECT pg_is_in_recovery()")))

    def write(self, random: Random, reference: int) -> None:
        """Fail."""
        raise LookupError(f"no account\nfor {reference}")


@pytest.fixture
def engine(ps_lab: Lab) -> Iterator[Engine]:
    """An engine on the lab, as the demo's application has it."""
    engine = create_engine(ps_lab.url, bouncer="write-pool", replica_bouncer="read-pool")
    yield engine
    engine.dispose()


def test_what_a_client_records(ps_lab: Lab, engine: Engine) -> None:
    """A read is recorded with who answered and whether it was tried again, a write that raised with its message."""
    with Retries() as retries:
        client = Client(Reader(engine), number=1, seed=1, retries=retries)
        client.operate(write=False)
        ps_lab.edge.cut("replica")
        client.operate(write=False)
        client.operate(write=False)
        client.operate(write=True)
    assert list(client.recording.flags) == [REPLICA, REPLICA | RETRIED, REPLICA, WRITE | FAILED]
    assert client.recording.errors == {(True, "LookupError: no account"): 1}
    assert not client.recording.acknowledged


def test_shop_is_whole(ps_lab: Lab) -> None:
    """Django finds nothing wrong with the site, and its migrations make what its models say."""
    environ = {**os.environ, "PS_URL": ps_lab.url, "DJANGO_SETTINGS_MODULE": "ps_demo.shop.settings"}
    for command in (["check"], ["makemigrations", "--check", "--dry-run"]):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", "django", *command],
            env=environ,
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr


@pytest.mark.fast
def test_without_its_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Where something that the demo needs is not installed, it says what, and which extra has it."""
    monkeypatch.setattr(demo, "find_spec", lambda name: None if name == "matplotlib" else find_spec(name))
    assert main(["demo"]) == 2
    assert capsys.readouterr().err == "matplotlib: not installed; pip install 'ps-postgres[demo]'\n"


@pytest.mark.tools
def test_demo(tmp_path: Path) -> None:
    """The whole demo: no read fails, no acknowledged write is lost or doubled, and there is a picture."""
    done = subprocess.run(
        [sys.executable, "-m", "ps_cli", "demo", "--seconds", "12", "--output", str(tmp_path / "out")],
        check=False,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr
    assert (tmp_path / "out" / "demo-latency.png").read_bytes().startswith(b"\x89PNG\r\n")
    for event in ("switchover", "crash"):
        assert f"{event}, over after" in done.stdout


@pytest.mark.tools
def test_ctrl_c() -> None:
    """Ctrl-C ends the demo in the midst of its work, with the usual status and no process left."""
    with subprocess.Popen(
        [sys.executable, "-m", "ps_cli", "demo", "--no-plot"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as demo:
        assert demo.stdout is not None
        try:
            for line in demo.stdout:
                if line.startswith("Connecting"):
                    break
            os.killpg(demo.pid, signal.SIGINT)
            rest, _ = demo.communicate(timeout=60)
        finally:
            demo.kill()
    assert demo.returncode == 130, rest
    assert "Traceback" not in rest
    wait_until(lambda: not group_exists(demo.pid), "the end of the applications' processes")


def group_exists(number: int) -> bool:
    """Whether a process group has a process."""
    try:
        os.killpg(number, 0)
    except ProcessLookupError:
        return False
    return True
