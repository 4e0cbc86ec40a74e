"""How a server's answer is judged, for doctor and for Django's checks, as tables. Their own tests ask the question itself."""

from dataclasses import dataclass, replace

import pytest

from ps_core._diagnosis import Answer, Fault, faults, share_a_server
from ps_core.topology import Endpoint, Topology

pytestmark = pytest.mark.fast

TOPOLOGY = Topology.from_url(
    "postgresql://app.branch:secret@h.horizon.psdb.cloud/postgres", bouncer="write-pool", replica_bouncer="read-pool"
)
PRIMARY = Answer(
    version=180004,
    role="app",
    in_recovery=False,
    read_only=False,
    behind_pooler=True,
    timeouts={"statement_timeout": 2000, "transaction_timeout": 0},
    schema="public",
    may_create=True,
    max_connections=97,
)
REPLICA = replace(PRIMARY, in_recovery=True, read_only=True)
ROW = (7, 180004, "app", False, False, "public", True, 97, "statement_timeout=2000 transaction_timeout=0")
POOLED, READS, DIRECT = TOPOLOGY.primary, TOPOLOGY.replicas[0], TOPOLOGY.direct


@dataclass(frozen=True, slots=True, kw_only=True)
class More(Answer):
    """An answer, and what was seen beside."""

    lag: float


@pytest.mark.parametrize(
    ("row", "pid", "expected"),
    [
        (ROW, 8, PRIMARY),
        (ROW, 7, replace(PRIMARY, behind_pooler=False)),
        ((*ROW[:3], True, False, *ROW[5:]), 8, REPLICA),
        ((*ROW[:3], False, True, *ROW[5:]), 8, replace(PRIMARY, read_only=True)),
        ((*ROW[:5], None, False, *ROW[7:]), 8, replace(PRIMARY, schema=None, may_create=False)),
        ((*ROW[:8], "statement_timeout=0"), 8, replace(PRIMARY, timeouts={"statement_timeout": 0})),
    ],
)
def test_answer(row: tuple[object, ...], pid: int, expected: Answer) -> None:
    """A row is read with what the client knows; a standby is read-only, whatever the default is."""
    assert Answer.of(row, pid=pid) == expected


def test_more_than_an_answer() -> None:
    """A subclass is made of the same row."""
    assert More.of(ROW, pid=8, lag=0.5).lag == 0.5


@pytest.mark.parametrize(
    ("endpoint", "answer", "shared", "expected"),
    [
        (POOLED, PRIMARY, True, []),
        (POOLED, PRIMARY, None, []),
        (READS, REPLICA, None, []),
        (DIRECT, replace(PRIMARY, behind_pooler=False), None, []),
        (POOLED, replace(PRIMARY, version=169999), None, ["old"]),
        (POOLED, replace(PRIMARY, version=170000), None, []),
        (POOLED, replace(PRIMARY, behind_pooler=False), None, ["no pooler"]),
        (DIRECT, PRIMARY, None, ["pooler"]),
        (replace(DIRECT, pooled=True), PRIMARY, True, ["only pooled"]),
        (replace(DIRECT, pooled=True), replace(PRIMARY, behind_pooler=False), None, ["no pooler"]),
        (POOLED, PRIMARY, False, ["by session"]),
        (READS, PRIMARY, None, ["primary"]),
        (READS, replace(PRIMARY, read_only=True), None, ["primary"]),
        (POOLED, REPLICA, None, ["replica"]),
        (DIRECT, replace(REPLICA, behind_pooler=False), None, ["replica"]),
        (POOLED, replace(PRIMARY, read_only=True), None, ["read-only"]),
        (READS, replace(PRIMARY, version=160004, behind_pooler=False), None, ["old", "no pooler", "primary"]),
    ],
)
def test_faults(endpoint: Endpoint, answer: Answer, shared: bool | None, expected: list[Fault]) -> None:
    """What is wrong with a path is judged by what it should be, and what the server says."""
    assert list(faults(endpoint, answer, shared=shared)) == expected


@pytest.mark.parametrize(
    ("first", "second", "shared", "asked"),
    [
        ([7], [7], True, 1),
        ([7, 8], [9, 8], True, 2),
        ([1, 2, 3, 4, 5], [2, 3, 4, 5, 5], True, 5),
        ([7, 7, 7, 7, 7, 8], [8, 8, 8, 8, 8, 8], False, 5),
    ],
)
def test_share_a_server(first: list[int], second: list[int], shared: bool, asked: int) -> None:
    """Two clients are compared until they meet, and no more than five times."""
    one, other = iter(first), iter(second)
    assert share_a_server(lambda: next(one), lambda: next(other)) is shared
    assert (len([*one]), len([*other])) == (len(first) - asked, len(second) - asked)
