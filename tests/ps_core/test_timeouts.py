"""Durations and timeouts, by tables."""

import math
import pickle
from datetime import timedelta
from typing import Any

import pytest

from ps_core.errors import ConfigurationError
from ps_core.timeouts import DIRECT, POOLED, Timeouts, format_ms, parse_duration

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("2s", 2.0),
        ("500ms", 0.5),
        ("1.5s", 1.5),
        ("1.005s", 1.005),
        (" 2 s ", 2.0),
        ("1min", 60.0),
        ("2h", 7200.0),
        ("24h", 86400.0),
        (2, 2.0),
        (0.25, 0.25),
        (0.0001, 0.001),
        ("0.2ms", 0.001),
        ("off", None),
        (None, None),
    ],
)
def test_duration(value: Any, seconds: float | None) -> None:
    """A duration is read in seconds, to whole milliseconds; None and "off" are none."""
    assert parse_duration(value, name="x") == seconds


@pytest.mark.parametrize(
    "value",
    [
        *("2", "", "s", "2S", "2 seconds", "2m", "-2s", "0s", "1e3s", "nan", "infs", "25h", "٢s", "9" * 400 + "s"),
        *(0, -1, 86400.1, math.nan, math.inf, 10**400, True, timedelta(seconds=2), b"2s"),
    ],
)
def test_no_duration(value: Any) -> None:
    """What is no duration is refused by the setting's name, with what to write."""
    with pytest.raises(ConfigurationError, match=r'^lock_timeout: .*is not a duration.*"2s" or "500ms"'):
        parse_duration(value, name="lock_timeout")


@pytest.mark.parametrize(("seconds", "ms"), [(2.0, 2000), (2.3, 2300), (0.0015, 2), (0.0001, 1), (0.0, 1)])
def test_format_ms(seconds: float, ms: int) -> None:
    """Milliseconds are whole and never the zero that would turn the timeout off."""
    assert format_ms(seconds) == ms


@pytest.mark.parametrize(
    ("timeouts", "version", "settings"),
    [
        (POOLED, 180004, {"statement_timeout": 2000, "transaction_timeout": 3000}),
        (POOLED, 170000, {"statement_timeout": 2000, "transaction_timeout": 3000}),
        (POOLED, 160011, {"statement_timeout": 2000, "idle_in_transaction_session_timeout": 30000}),
        (DIRECT, 180004, {"lock_timeout": 5000}),
        (Timeouts(), 180004, {}),
        (
            Timeouts(transaction="3s", idle_in_transaction="2s"),
            180004,
            {"transaction_timeout": 3000, "idle_in_transaction_session_timeout": 2000},
        ),
        (Timeouts(transaction="3s", idle_in_transaction="3s"), 180004, {"transaction_timeout": 3000}),
        (Timeouts(idle_in_transaction="1min"), 180004, {"idle_in_transaction_session_timeout": 60000}),
    ],
)
def test_settings(timeouts: Timeouts, version: int, settings: dict[str, int]) -> None:
    """The server gets what it knows and what can fire, in a fixed order."""
    assert list(timeouts.settings(server_version=version).items()) == list(settings.items())


@pytest.mark.parametrize(
    ("timeouts", "options"),
    [
        (DIRECT, "-c lock_timeout=5000"),
        (POOLED, "-c statement_timeout=2000 -c idle_in_transaction_session_timeout=30000"),
        (Timeouts(transaction=3), ""),
    ],
)
def test_startup_options(timeouts: Timeouts, options: str) -> None:
    """Startup options leave out transaction_timeout, which older servers refuse."""
    assert timeouts.startup_options() == options


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"statement": "3s", "transaction": "3s"}, r"statement_timeout \(3s\) must be below transaction_timeout \(3s\)"),
        ({"statement": 2.0001, "transaction": 2.0002}, "must be below transaction_timeout"),
        ({"connect": None}, "connect_timeout: it cannot be off"),
        ({"idle_in_transaction": "30"}, "idle_in_transaction_timeout: '30' is not a duration"),
    ],
)
def test_timeouts_that_cannot_work(arguments: dict[str, Any], message: str) -> None:
    """Values that the server would not honour are refused."""
    with pytest.raises(ConfigurationError, match=message):
        Timeouts(**arguments)


def test_timeouts_are_values() -> None:
    """Equal however written, hashable, and the same after pickling."""
    written = Timeouts(statement="2s", transaction="3000ms", idle_in_transaction="0.5min", connect=5)
    assert written == POOLED
    assert hash(written) == hash(POOLED)
    assert pickle.loads(pickle.dumps(written)) == POOLED
