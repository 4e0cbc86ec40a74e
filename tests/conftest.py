"""Fixtures live in plugins, one resource each; what holds for every test is here."""

from __future__ import annotations

import gc
import os
import sys
from typing import TYPE_CHECKING

import pytest

from ps_core.context import use_token
from ps_lab import pgbouncer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from xdist.remote import Producer
    from xdist.scheduler import LoadFileScheduling
    from xdist.workermanage import WorkerController

    from ps_lab import Lab

LONGEST = (
    "tests/adversity",
    "tests/ps_core/test_kept_session.py",
    "tests/ps_core/test_every_way.py",
    "tests/ps_core/test_bridge.py",
    "docs/examples/function/test_function.py",
    "docs/examples/django_shop/test_shop.py",
    "tests/ps_django/test_routing.py",
    "tests/ps_django/test_projects.py",
    "tests/ps_django/test_migrations.py",
    "tests/ps_django/test_user_tests.py",
    "tests/ps_http/test_differential.py",
    "tests/ps_lab/test_events.py",
    "tests/ps_lab/test_app_side_bouncer.py",
    "tests/ps_django/test_commands.py",
    "tests/ps_sqlalchemy/test_replicas_away.py",
    "tests/ps_core/test_replica_endpoints.py",
    "tests/ps_core/test_outage.py",
    "tests/ps_sqlalchemy/test_typing.py",
)
"""What takes more time than its number of tests says: workers begin with these, so that none of them is the last."""

pytest_plugins = ("tests.as_found", "tests.django_site")

# Where the environment forbids bytecode, each worker, and each process that a test starts, would compile packages and tests anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# A login hashes as often as its role's secret says: with PostgreSQL's 4,096 times it takes twice as long, and tests log in some
# ten thousand times.
pgbouncer._ITERATIONS = 64


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `-m fast`, import only the files that have such tests: what the others import takes a third of the time."""
    others = config.getoption("markexpr") == "fast" and collection_path.match("test_*.py")
    return True if others and "pytest.mark.fast" not in collection_path.read_text() else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is of TCP itself where the lab's connections go over the WebSocket."""
    if os.environ.get("PS_LAB_TRANSPORT") == "websocket":
        of_tcp = [item for item in items if item.get_closest_marker("tcp")]
        config.hook.pytest_deselected(items=of_tcp)
        items[:] = [item for item in items if item not in of_tcp]


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over what was imported and collected: it lives as long as the process."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling | None:
    """With `-n 2 --dist loadfile`, give whole files to workers, each with a lab. tests/adversity fills one page: it is one."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Files(LoadFileScheduling):
        def _assign_work_unit(self, node: WorkerController) -> None:
            for unit in reversed(LONGEST):
                if unit in self.workqueue:
                    self.workqueue.move_to_end(unit, last=False)
            super()._assign_work_unit(node)

        def _split_scope(self, nodeid: str) -> str:
            scope: str = super()._split_scope(nodeid)
            return "tests/adversity" if scope.startswith("tests/adversity/") else scope

    return Files(config, log)


@pytest.fixture(autouse=True)
def nothing_seen() -> Iterator[None]:
    """Begin each test without a token: what another has written is nothing that this one has seen."""
    with use_token(None):
        yield


@pytest.fixture(autouse=True)
def rejoined(request: pytest.FixtureRequest) -> Iterator[None]:
    """End each test with all servers: one that crashed rejoins in the background, and the next test would meet what that does."""
    lab: Lab | None = request.getfixturevalue("ps_lab") if "ps_lab" in request.fixturenames else None
    yield
    if lab is not None and lab._rejoining is not None:
        lab.wait_replicas_caught_up()
