"""The soak: each of its checks by a history that violates it, and a short soak on real servers."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from itertools import islice
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from ps_core.errors import CommitOutcomeUnknown
from tests.soak.__main__ import arguments
from tests.soak.checks import (
    MORE_DESCRIPTORS,
    MORE_MEMORY,
    POOL_SIZE,
    Answer,
    Connections,
    Histogram,
    History,
    Ledger,
    Read,
    Register,
    Transfer,
    Usage,
    Write,
    judge_balances,
    judge_connections,
    judge_ledger,
    judge_settings,
    judge_usage,
)
from tests.soak.clients import TIMEOUTS, Client
from tests.soak.faults import APART, KINDS, plan
from tests.soak.report import Done, report

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.fast
@pytest.mark.parametrize(
    ("rows", "wrong"),
    [
        ([(1, 1, 1), (1, 2, 1)], []),
        ([(1, 1, 1), (1, 2, 1), (1, 3, 1)], []),  # 3 is unknown: there once, or not
        ([(1, 1, 1)], ["transfer 2 of client 1 was acknowledged, and is lost"]),
        ([(1, 1, 1), (1, 2, 2)], ["transfer 2 of client 1 is doubled: there 2 times"]),
        ([(1, 1, 1), (1, 2, 1), (1, 3, 2)], ["transfer 3 of client 1 is doubled: there 2 times"]),
        ([(1, 1, 1), (1, 2, 1), (1, 4, 1)], ["transfer 4 of client 1 was said not to be committed, and is there"]),
        ([(1, 1, 1), (1, 2, 1), (1, 5, 1)], ["transfer 5 of client 1 was never made, and is there"]),
        ([(1, 1, 1), (1, 2, 1), (2, 1, 1)], ["transfer 1 of client 2 was never made, and is there"]),
    ],
)
def test_ledger(rows: list[tuple[int, int, int]], wrong: list[str]) -> None:
    """Acknowledged transfers are there once, unknown ones at most once, those said not to be committed never."""
    ledger = Ledger(begun=4, unknown={3}, refused={4})
    assert ledger.acknowledged == 2
    assert judge_ledger({1: ledger}, rows) == wrong


@pytest.mark.fast
@pytest.mark.parametrize(
    ("found", "wrong"),
    [
        ({1: 90, 2: 110}, 0),
        ({1: 90, 2: 100}, 2),  # half a transfer: the account, and the sum
        ({1: 80, 2: 120}, 2),  # twice, though the sum is right
        ({1: 90}, 2),
    ],
)
def test_balances(found: dict[int, int], wrong: int) -> None:
    """Each account has what its transfers make of it, and the sum stays."""
    assert len(judge_balances({1: 90, 2: 110}, found)) == wrong


@pytest.mark.fast
@pytest.mark.parametrize(
    ("reads", "wrong"),
    [
        ([2, 2], None),
        ([3, 3], None),  # 3 is unknown, and was committed
        ([1], "stale read: version 1 after 2 was acknowledged"),
        ([3, 2], "backward read: version 2 after 3 was read"),
        ([4], "read version 4, which was said not to be committed"),
        ([5], "read version 5, which was never written"),
    ],
)
def test_register(reads: list[int], wrong: str | None) -> None:
    """A read is never older than the last acknowledged write, nor than what was read before, nor of what was not committed."""
    register = Register(attempted=4, acknowledged=2, refused={4})
    assert [register.judge(version) for version in reads][-1] == wrong


@pytest.mark.fast
@pytest.mark.parametrize(("found", "right"), [(("0", "0"), True), (("20s", "0"), False), (("0", "30s"), False)])
def test_settings(found: tuple[str, str], right: bool) -> None:
    """A statement under somebody else's timeout is told."""
    assert (judge_settings("a foreign client", ("0", "0"), found) is None) == right


@pytest.mark.fast
@pytest.mark.parametrize(
    ("after", "leaks"),
    [
        (Usage(3, 20, 2**26), []),
        (Usage(2, 20 + MORE_DESCRIPTORS, 2**26 + MORE_MEMORY), []),
        (Usage(4, 20, 2**26), ["threads:"]),
        (Usage(3, 21 + MORE_DESCRIPTORS, 2**26), ["file"]),
        (Usage(3, 20, 2**26 + MORE_MEMORY + 1), ["memory:"]),
    ],
)
def test_usage(after: Usage, leaks: list[str]) -> None:
    """A process that has more at the end than after the warm-up is told."""
    assert [text.split()[2] for text in judge_usage("Django", Usage(3, 20, 2**26), after)] == leaks


@pytest.mark.fast
@pytest.mark.parametrize(
    ("found", "wrong"),
    [
        (Connections(0, {"write-pool": 0}, {"pg-1": ["idle"] * POOL_SIZE}), 0),
        (Connections(1, {"write-pool": 0}, {"pg-1": []}), 1),
        (Connections(0, {"write-pool": 1}, {"pg-1": []}), 1),
        (Connections(0, {"write-pool": 0}, {"pg-1": ["idle", "idle in transaction"]}), 1),
        (Connections(0, {"write-pool": 0}, {"pg-1": ["idle"] * (POOL_SIZE + 1)}), 1),
    ],
)
def test_connections(found: Connections, wrong: int) -> None:
    """A connection that is left at the edge, at a bouncer or in a transaction is told."""
    assert len(judge_connections(found)) == wrong


def seen(client: Client) -> list[str]:
    """Return what a client noted as violations."""
    assert client.history.violated == len(client.history.violations)
    return client.history.violations


@pytest.mark.fast
def test_client_notes_what_it_reads() -> None:
    """A client compares what it is told with its own timeouts and its register."""
    client = Client(7, seed=1)
    client.done(Write(7, client.register.next()), Answer(*TIMEOUTS, 1), 0.0, 0.1)
    client.done(Read(7, read_only=False), Answer(*TIMEOUTS, 1, replica=True), 0.1, 0.2)
    assert not seen(client)
    client.done(Read(7, read_only=False), Answer(*TIMEOUTS, 0, replica=True), 0.2, 0.3)
    client.done(Read(7, read_only=False), Answer("0", "0", 1), 0.3, 0.4)
    stale, foreign = seen(client)
    assert stale == "client 7: stale read: version 0 after 1 was acknowledged, from a replica"
    assert "('0', '0')" in foreign


@pytest.mark.fast
def test_client_notes_what_raises() -> None:
    """A read that raises is a violation; a write is unknown where that was said, however it is wrapped, else not committed."""
    client = Client(7, seed=1)
    client.failed(Read(7, read_only=False), LookupError("gone"))
    assert seen(client) == ["a read of client 7 failed: LookupError: gone"]
    wrapped = RuntimeError("wrapped")
    wrapped.__cause__ = CommitOutcomeUnknown("lost")
    client.failed(Transfer(7, 1, 1, 2, 10), wrapped)
    client.failed(Transfer(7, 2, 1, 2, 10), LookupError("refused"))
    client.failed(Write(7, 1), wrapped)
    client.failed(Write(7, 2), LookupError("refused"))
    assert (client.ledger.unknown, client.ledger.refused, client.register.refused) == ({1}, {2}, {2})
    assert len(seen(client)) == 1


@pytest.mark.fast
def test_plan() -> None:
    """The faults follow from the seed; every kind comes, in bounds."""
    faults = list(islice(plan(1), 400))
    assert faults == list(islice(plan(1), 400))
    assert faults != list(islice(plan(2), 400))
    assert {fault.kind for fault in faults} == set(KINDS)
    for fault in faults:
        _, least, most, targets = KINDS[fault.kind]
        assert APART[0] <= fault.pause <= APART[1]
        assert least <= fault.lasts <= most
        assert fault.what in targets


@pytest.mark.fast
def test_histogram() -> None:
    """A percentile is at most a bucket too high, and the longest is exact."""
    histogram = Histogram()
    for number in range(1, 1001):
        histogram.add(number / 1000)
    for percent in (1, 50, 99, 100):
        assert percent / 100 <= histogram.percentile(percent) <= percent / 100 * 2**0.25
    assert (histogram.total, histogram.longest) == (1000, 1.0)
    histogram.add(1e6)
    histogram.add(0.0)
    assert histogram.percentile(100) == 1e6


@pytest.mark.fast
def test_history_is_bounded() -> None:
    """What a history keeps does not grow with the operations; what it counts does."""
    history = History(1.0)
    for number in range(1000):
        history.add("read", number / 1000, number / 1000 + 0.01, 0)
        history.add_error("write", 3, f"error {number}")
        history.violate(f"violation {number}")
    whole = History(1.0)
    whole.extend(history)
    whole.extend(history)
    assert {kind: len(windows) for kind, windows in whole.windows.items()} == {"read": 1}
    assert whole.latencies("read").total == 2000
    assert (whole.raised.total(), whole.violated) == (2000, 2000)
    assert len(whole.raised) < 100
    assert len(whole.violations) < 100


@pytest.mark.fast
def test_report_of_a_violation(tmp_path: Path) -> None:
    """After any violation the exit status is 1, and the report says which."""
    history = History(1.0)
    history.add("read", 100.5, 100.6, 0)
    usage = Usage(1, 10, 2**26)
    done = Done(
        seed=1,
        seconds=6.0,
        start=100.0,
        faults=[("edge cut (all paths)", 101.0, 101.5)],
        histories={"Django": history},
        before={"Django": usage},
        after={"Django": usage},
        foreign=5,
        violations={"ledger": ["transfer 1 of client 1 was acknowledged, and is lost"]},
    )
    assert report(Console(file=io.StringIO()), tmp_path, done) == 1
    assert "- ledger: transfer 1 of client 1 was acknowledged, and is lost" in (tmp_path / "report.md").read_text()
    assert json.loads((tmp_path / "report.json").read_text())["passed"] is False


@pytest.mark.fast
@pytest.mark.parametrize("minutes", ["0", "0.05", "1441", "nan", "long"])
def test_refused_minutes(minutes: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What is no length of a soak is refused with the range that is."""
    with pytest.raises(SystemExit):
        arguments().parse_args(["--minutes", minutes])
    assert "write a number of minutes from 0.1 to 1440" in capsys.readouterr().err


@pytest.mark.tools
def test_soak(tmp_path: Path) -> None:
    """A short soak finds no violation, and its report tells of faults and of each application's work."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.soak", "--minutes", "0.2", "--clients", "3", "--seed", "1", "--output", str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr
    facts = json.loads((tmp_path / "report.json").read_text())
    assert facts["passed"]
    assert facts["faults"]
    assert facts["foreign_looks"] > 0
    assert set(facts["applications"]) == {"SQLAlchemy", "SQLAlchemy asyncio", "Django"}
    for application in facts["applications"].values():
        assert application["reads"] > 0
        assert application["reads_failed"] == 0
        assert application["transfers_acknowledged"] > 0
    assert (tmp_path / "report.md").read_text().startswith("# Soak: passed")
    for picture in ("latency.png", "throughput.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG\r\n")
