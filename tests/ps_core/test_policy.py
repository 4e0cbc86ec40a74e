"""When the loop that reconnects stops, and how long it waits, decided without a server: each row is a sentence."""

from types import SimpleNamespace
from typing import Any

import pytest

from ps_core import RetryPolicy, connect
from ps_core._retry.policy import checked_policy
from ps_core.errors import ConfigurationError

pytestmark = pytest.mark.fast

# The policy; the caller's deadline; whether the first failure was before the loop; tries, their seconds, the next wait; stops?
STOPS: list[tuple[str, dict[str, Any], float | None, bool, int, float, float, bool]] = [
    ("it goes on for as long as the policy says", {"max_elapsed": 10}, None, False, 50, 8.9, 1.0, False),
    ("a wait that would end after that is not begun", {"max_elapsed": 10}, None, False, 2, 9.1, 1.0, True),
    ("a deadline that is earlier ends it earlier", {"max_elapsed": 10}, 5.0, False, 2, 4.5, 1.0, True),
    ("and not before", {"max_elapsed": 10}, 5.0, False, 2, 3.5, 1.0, False),
    ("a deadline that is later does not", {"max_elapsed": 10}, 60.0, False, 2, 9.5, 1.0, True),
    ("no attempts: the first is the only one", {"attempts": 0}, None, False, 1, 0.0, 0.0, True),
    ("also where the first failure was before", {"attempts": 0}, None, True, 1, 0.0, 0.0, True),
    ("one attempt after the first failure: two tries", {"attempts": 1}, None, False, 1, 0.0, 0.0, False),
    ("and no third", {"attempts": 1}, None, False, 2, 0.0, 0.0, True),
    ("where the failure was before, it is one try", {"attempts": 1}, None, True, 1, 0.0, 0.0, True),
    ("three attempts are three tries then", {"attempts": 3}, None, True, 2, 0.0, 0.0, False),
    ("and no fourth", {"attempts": 3}, None, True, 3, 0.0, 0.0, True),
    ("whichever bound is first ends it", {"attempts": 5, "max_elapsed": 10}, None, False, 2, 9.5, 1.0, True),
]


@pytest.mark.parametrize("row", STOPS, ids=[row[0] for row in STOPS])
def test_stops(row: tuple[str, dict[str, Any], float | None, bool, int, float, float, bool]) -> None:
    """When no further try is made."""
    _, policy, remaining, failed, tries, seconds, wait, stops = row
    options = RetryPolicy(**policy).loop_options(retry=lambda _: True, remaining=remaining, failed=failed)
    state: Any = SimpleNamespace(attempt_number=tries, seconds_since_start=seconds, upcoming_sleep=wait)
    assert bool(options["stop"](state)) is stops


def test_loop() -> None:
    """The loop asks the rule that it is given, draws its waits up to the policy's bounds, and raises what ended it."""
    asked: list[BaseException] = []

    def rule(exc: BaseException) -> bool:
        asked.append(exc)
        return exc.args == ("again",)

    options = RetryPolicy(first_wait=0.5, max_wait=2).loop_options(retry=rule, remaining=None)
    assert options["reraise"] is True
    stop = RetryPolicy(attempts=1).loop_options(retry=rule, remaining=None)["stop"]
    first: Any = SimpleNamespace(attempt_number=1, seconds_since_start=0.0, upcoming_sleep=0.0)
    assert not stop(first), "the first failure is the loop's own, where nothing else is said"
    assert (options["wait"].multiplier, options["wait"].max) == (0.5, 2)
    for text, again in (("again", True), ("never", False)):
        outcome = SimpleNamespace(failed=True, exception=lambda text=text: OSError(text))
        assert options["retry"](SimpleNamespace(outcome=outcome)) is again
    assert len(asked) == 2


ATTEMPTS = [
    ("none is a number", 0, True),
    ("1000 is the most", 1000, True),
    ("more would never end", 1001, False),
    ("fewer than none are none", -1, False),
    ("no bound but the time", None, True),
    ("True is no number", True, False),
    ("nor is False", False, False),
    ("nor is a text", "3", False),
    ("half a try is none", 1.5, False),
]


@pytest.mark.parametrize(("attempts", "accepted"), [row[1:] for row in ATTEMPTS], ids=[row[0] for row in ATTEMPTS])
def test_attempts(attempts: Any, accepted: bool) -> None:
    """How many attempts a policy may have."""
    if accepted:
        assert RetryPolicy(attempts=attempts).attempts is attempts
    else:
        with pytest.raises(ConfigurationError, match="attempts: write a number from 0 to 1000"):
            RetryPolicy(attempts=attempts)


def test_durations() -> None:
    """Durations are kept in seconds, have to end, and the first wait may be the longest, not longer."""
    policy = RetryPolicy(max_elapsed="1min", first_wait="200ms", max_wait="200ms")
    assert (policy.max_elapsed, policy.first_wait, policy.max_wait) == (60.0, 0.2, 0.2)
    assert (RetryPolicy().attempts, RetryPolicy().max_elapsed, RetryPolicy().first_wait, RetryPolicy().max_wait) == (
        None,
        30,
        0.1,
        1,
    )
    with pytest.raises(ConfigurationError, match="first_wait"):
        RetryPolicy(first_wait=0.3, max_wait=0.2)
    for name in ("max_elapsed", "first_wait", "max_wait"):
        with pytest.raises(ConfigurationError, match=name):
            RetryPolicy(**{name: "off"})  # type: ignore[arg-type]


@pytest.mark.parametrize("retry", [0, 3, "30s", False, RetryPolicy])
def test_what_is_no_policy(retry: Any) -> None:
    """It is refused before anything is sent, and not when a connection is lost."""
    with pytest.raises(ConfigurationError, match=r"^retry: write a policy, as in RetryPolicy\(attempts=3\), not "):
        checked_policy(retry)
    with pytest.raises(ConfigurationError, match=r"^retry: write a policy"):
        connect("postgresql://nowhere.invalid/d", retry=retry)
