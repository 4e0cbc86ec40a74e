"""The page of the documentation is what the tests met, and every rule is accounted for.

Stands in a folder that comes after the tests, in the order of names. What only a part has met is refused.
"""

import os
from pathlib import Path

import pytest

from ps_lab import Lab
from tests.adversity.matrix import PAGE, Matrix
from tests.adversity.verdicts import NOT_REPRODUCED, VERDICTS

ADVERSITY = Path(__file__).parents[1]
FILES = {path.name for path in ADVERSITY.glob("test_*.py")}
NO_FAULT = {"test_stress.py"}
"""It meets no fault of its own."""
RACES = {"pipeline_wedged", "pooler_varset_failed"}
"""What a run meets or does not: it depends on what comes first, words of the server, a pooler's SET, or the connection's end."""


@pytest.fixture(autouse=True)
def everything(request: pytest.FixtureRequest, ps_lab: Lab, matrix: Matrix) -> None:
    """Refuse what only a part of the folder has met: it fails where a page is to be written, else it is skipped."""
    session, config = request.session, request.config
    items = [item for item in session.items if item.path.parent == ADVERSITY]
    chosen = (
        config.getoption("keyword")
        or config.getoption("markexpr") not in ("", "not tools")
        or any("::" in word for word in config.args)
    )
    why = None
    if chosen or FILES - {item.path.name for item in items} - NO_FAULT:
        why = "only a part of tests/adversity runs"
    elif os.environ.get("PS_LAB_TRANSPORT") == "websocket":
        why = "the page is that of TCP"
    elif ps_lab.bouncers["local"].version != (1, 18):
        why = "the page is that of PgBouncer 1.18; later ones pass on more"
    elif session.testsfailed:
        why = "what failed is missing in the matrix"
    if why and os.environ.get("PS_WRITE_DOCS"):
        pytest.fail(f"the page is not written: {why}")
    if why:
        pytest.skip(why)
    if late := {item.nodeid for item in items} - matrix.ran:
        pytest.fail(f"the page is not written: what follows has not run yet, in this process: {sorted(late)}")


def test_every_rule(matrix: Matrix) -> None:
    """Every rule was met by some test, or the table says why not; none is both."""
    assert matrix.met | NOT_REPRODUCED.keys() | RACES == VERDICTS.keys()
    assert not matrix.met & NOT_REPRODUCED.keys()


def test_applications(matrix: Matrix) -> None:
    """Every file says what the user of a framework sees of its fault."""
    assert matrix.files == FILES - NO_FAULT


def test_page(matrix: Matrix) -> None:
    """The page that is committed is the one that these tests write (with PS_WRITE_DOCS=1 in the environment)."""
    page = matrix.page()
    if os.environ.get("PS_WRITE_DOCS"):
        PAGE.parent.mkdir(parents=True, exist_ok=True)
        PAGE.write_text(page)
    assert PAGE.read_text() == page
