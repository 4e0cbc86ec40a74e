"""The server's instructions are counted, and the page has a line for each part."""

import shutil
from pathlib import Path

import pytest

from ps_lab.processes import Account, Guard
from tests.benchmarks.server_cost import PARTS, Server

PAGE = Path(__file__).parents[2] / "docs" / "generated" / "server-cost.md"


@pytest.mark.fast
def test_page() -> None:
    """Each part is there."""
    page = PAGE.read_text()
    assert [what for what in PARTS if f"| {what} |" not in page] == []


@pytest.mark.tools
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="there is no valgrind")
def test_instructions() -> None:
    """Nearly the same number each time; a SET costs less than the guard, which plans a query."""
    guard = Guard(Account())
    try:
        server = Server(guard)
        setting, again, guarding = (server.instructions(PARTS[part]) for part in _CHEAP_AND_DEAR)
        assert setting == pytest.approx(again, rel=0.1)
        assert guarding > 2 * setting
    finally:
        guard.close()


_CHEAP_AND_DEAR = ("READ ONLY", "READ ONLY", "the guard of a replica, which sets `statement_timeout`")
