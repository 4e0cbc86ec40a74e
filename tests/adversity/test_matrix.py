"""The page of the documentation is what the tests met, and every rule is accounted for. Runs last, and only where all ran."""

import os
from pathlib import Path

import pytest

from ps_lab import Lab
from tests.adversity.matrix import PAGE, Matrix
from tests.adversity.verdicts import NOT_REPRODUCED, VERDICTS, rules

HERE = Path(__file__).parent
NO_FAULT = {"test_matrix.py", "test_stress.py"}
"""They meet no fault of their own."""
RACES = {"pipeline_wedged", "pooler_varset_failed"}
"""What a run meets or does not: it depends on what comes first, words of the server, a pooler's SET, or the connection's end."""


@pytest.fixture(autouse=True)
def everything(request: pytest.FixtureRequest, ps_lab: Lab) -> None:
    """Skip where only a part of the folder runs."""
    session, config = request.session, request.config
    files = {item.path.name for item in session.items if item.path.parent == HERE}
    chosen = (
        config.getoption("keyword")
        or config.getoption("markexpr") not in ("", "not tools")
        or any("::" in word for word in config.args)
    )
    if chosen or {path.name for path in HERE.glob("test_*.py")} - files - NO_FAULT:
        pytest.skip("only a part of tests/adversity runs")
    if os.environ.get("PS_LAB_TRANSPORT") == "websocket":
        pytest.skip("the page is that of TCP")
    if ps_lab.bouncers["local"].version != (1, 18):
        pytest.skip("the page is that of PgBouncer 1.18; later ones pass on more")
    if session.testsfailed:
        pytest.skip("what failed is missing in the matrix")


def test_every_rule(matrix: Matrix) -> None:
    """Every rule was met by some test, or the table says why not; none is both."""
    assert matrix.met | NOT_REPRODUCED.keys() | RACES == rules()
    assert not matrix.met & NOT_REPRODUCED.keys()
    assert VERDICTS.keys() >= matrix.met


def test_users(matrix: Matrix) -> None:
    """Every file says what the user of a framework sees of its fault."""
    assert {path.name for path in HERE.glob("test_*.py")} - NO_FAULT == matrix.files


def test_page(matrix: Matrix) -> None:
    """The page that is committed is the one that these tests write (with PS_WRITE_DOCS=1 in the environment)."""
    page = matrix.page()
    if os.environ.get("PS_WRITE_DOCS"):
        PAGE.parent.mkdir(parents=True, exist_ok=True)
        PAGE.write_text(page)
    assert PAGE.read_text() == page
