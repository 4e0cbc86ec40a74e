"""pytest's plugin: `pytest --ps-lab` starts one lab for the whole run, for tests that ask for the fixture `ps_lab`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ps_lab.lab import Lab

__all__ = ["ps_lab"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--ps-lab`."""
    parser.getgroup("ps-postgres").addoption(
        "--ps-lab",
        action="store_true",
        help="start a local PlanetScale for tests that use the fixture ps_lab; else they are skipped",
    )


@pytest.fixture(scope="session")
def ps_lab(pytestconfig: pytest.Config) -> Iterator[Lab]:
    """A running `ps_lab.Lab`, the same for all tests of the run. Tests that break something bring it back.

    Its `url` is what an application is given. `switchover()`, `crash_primary()`, `set_replay_delay(seconds)`, `edge.cut()`,
    `edge.hang()`, `edge.delay(seconds)` and `restart_bouncer(name)` happen in the middle of a test; `round_trips()` counts.
    """
    if not pytestconfig.getoption("--ps-lab"):
        pytest.skip("needs a local PlanetScale: pytest --ps-lab")
    from ps_lab.lab import Lab

    with Lab() as lab:
        yield lab
