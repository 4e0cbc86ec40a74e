"""The machine's clock jumps: deadlines, gates, retries and probes go by the monotonic one; only tokens have a time of day.

What jumps is the clock as Python reads it. (libfaketime is of no use here: under it, `time.sleep` fails with EINVAL.)
"""

import time
from collections.abc import Callable

import pytest

from ps_core.context import deadline, use_token
from ps_core.errors import DeadlineExceeded
from ps_core.events import Event, Name, subscribe
from ps_core.failures import Kind, classify
from ps_lab import Lab
from ps_lab.processes import wait_until
from tests.adversity.applications import Application
from tests.adversity.harness import Doing, prepare
from tests.adversity.matrix import Matrix

LOOK = "SELECT count(*) FROM ledger"
WRITE = "INSERT INTO ledger VALUES (1)"
HOUR = 3600.0

Jump = Callable[[float], None]


@pytest.fixture
def jump(monkeypatch: pytest.MonkeyPatch) -> Jump:
    """What sets the clock this many seconds ahead of the true time."""
    real = time.time

    def jump(seconds: float) -> None:
        monkeypatch.setattr(time, "time", lambda: real() + seconds)

    return jump


def look_once(application: Application) -> list[int]:
    """Read in a thread, and leave no connection there."""
    try:
        return application.execute(LOOK)
    finally:
        application.renew()


@pytest.mark.parametrize("seconds", [HOUR, -HOUR])
def test_outage(
    request: pytest.FixtureRequest, ps_lab: Lab, matrix: Matrix, applications: list[Application], jump: Jump, seconds: float
) -> None:
    """A jump while the endpoints are away neither ends the tries nor makes them rarer: all go on with the end of the outage."""
    prepare(ps_lab)
    for application in applications:
        application.renew()
    tries: list[Event] = []
    request.addfinalizer(subscribe(lambda event: tries.append(event) if event.name is Name.RETRY else None))
    with ps_lab.edge.refuse("08006", "failed to connect to upstream"):
        works = [Doing(look_once, application) for application in applications]
        for ahead in (seconds, 0):
            seen = len(tries)
            wait_until(lambda: len(tries) >= seen + len(works), "tries", timeout=10)  # noqa: B023 - awaited here
            jump(ahead)
        assert not any(work.done for work in works)
    assert [work.end(10) for work in works] == [[0]] * len(works)
    matrix.sees(
        "The clock jumps by an hour",
        "nothing, but that a token of before the jump may count for nothing: what was written then may be read late",
    )


@pytest.mark.parametrize("seconds", [HOUR, -HOUR])
def test_deadline(applications: list[Application], jump: Jump, seconds: float) -> None:
    """A deadline that was set before the jump is as long as it was, for the server and for what is sent after it."""
    for application in applications:
        with deadline("20s"):
            jump(seconds)
            assert application.execute("SELECT 1", "primary") == [1]
        with deadline("400ms"):
            jump(0)
            with pytest.raises((application.error, DeadlineExceeded)) as caught:
                application.execute("SELECT pg_sleep(5)", "primary")
            assert isinstance(caught.value, DeadlineExceeded) or classify(caught.value).kind is Kind.TIMEOUT
            wait_until(lambda: is_over(application), "the end of the deadline", timeout=2)  # noqa: B023 - awaited here


def is_over(application: Application) -> bool:
    """Return whether nothing more is sent."""
    try:
        application.execute("SELECT 1", "primary")
    except DeadlineExceeded:
        return True
    return False


@pytest.mark.parametrize("jumps", [(HOUR,), (-HOUR,), (HOUR, 0)], ids=["ahead", "back", "ahead and back"])
def test_own_writes(ps_lab: Lab, applications: list[Application], jump: Jump, jumps: tuple[float, ...]) -> None:
    """A context that goes on, such as a worker's, sees after the jump what it writes after the jump."""
    prepare(ps_lab)
    ps_lab.set_replay_delay(60)
    try:
        for number, application in enumerate(applications):
            with use_token(None):
                jump(0)
                application.execute(WRITE, "primary")
                for seconds in jumps:
                    jump(seconds)
                    application.execute(WRITE, "primary")
                assert application.execute(LOOK) == [(number + 1) * (1 + len(jumps))], application.name
    finally:
        ps_lab.set_replay_delay(0)
