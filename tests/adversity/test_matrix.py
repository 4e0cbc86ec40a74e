"""The page of the documentation is what the tests met, and every rule is accounted for. Runs last, and only where all ran."""

import os
from pathlib import Path

import pytest

from tests.adversity.matrix import PAGE, Matrix
from tests.adversity.verdicts import NOT_REPRODUCED, VERDICTS, rules

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def everything(request: pytest.FixtureRequest) -> None:
    """Skip where only a part of the folder runs."""
    session, config = request.session, request.config
    files = {item.path for item in session.items if item.path.parent == HERE}
    chosen = config.getoption("keyword") or config.getoption("markexpr") or any("::" in word for word in config.args)
    if chosen or files != set(HERE.glob("test_*.py")):
        pytest.skip("only a part of tests/adversity runs")
    if session.testsfailed:
        pytest.skip("what failed is missing in the matrix")


def test_every_rule(matrix: Matrix) -> None:
    """Every rule was met by some test, or the table says why not; none is both."""
    assert matrix.met | NOT_REPRODUCED.keys() == rules()
    assert not matrix.met & NOT_REPRODUCED.keys()
    assert VERDICTS.keys() >= matrix.met


def test_page(matrix: Matrix) -> None:
    """The page that is committed is the one that these tests write (with PS_WRITE_DOCS=1 in the environment)."""
    page = matrix.page()
    if os.environ.get("PS_WRITE_DOCS"):
        PAGE.parent.mkdir(parents=True, exist_ok=True)
        PAGE.write_text(page)
    assert PAGE.read_text() == page
