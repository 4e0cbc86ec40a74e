"""Every type of value in every form of statement, on stock and on ours: what differs is explained in `remaining`, or a defect."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from tests.differential.clients import WAYS
from tests.differential.forms import FORMS
from tests.differential.outcome import differing
from tests.differential.page import PAGE
from tests.differential.remaining import REMAINING, explain
from tests.differential.values import VALUES

if TYPE_CHECKING:
    from ps_lab import Lab
    from tests.differential.page import Totals
    from tests.differential.values import Registered

pytestmark = pytest.mark.timeout(600)


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("name", WAYS)
def test_values(name: str, ps_lab: Lab, registered: Registered, everything: bool, totals: Totals) -> None:
    """Stock and ours let their caller see the same."""
    way = WAYS[name]
    pairs = itertools.islice(itertools.product(FORMS.items(), VALUES.items()), 0, None, 1 if everything else way.step)
    unexplained = []
    with way.open(ps_lab, registered) as (stock, ours):
        for (form, text), (value, given) in pairs:
            if "SQLAlchemy" in name and ("%t" in text or "%b" in text):
                continue  # its own placeholders
            totals.pairs[name] += 1
            theirs, mine = stock(text, given), ours(text, given)
            fields = differing(theirs, mine)
            if not fields:
                continue
            kind = None if way.same else explain(text, theirs, mine, fields)
            if kind is None:
                totals.unexplained[name] += 1
                unexplained.append((form, value, {field: (theirs.seen.get(field), mine.seen.get(field)) for field in fields}))
            else:
                totals.kinds[name, kind.kind] += 1
    assert not unexplained, f"{len(unexplained)} differ, the first: {unexplained[:3]}"


def test_every_kind_is_met(everything: bool, totals: Totals) -> None:
    """What is no longer different leaves the table, and the page shows the table as it is."""
    if everything:
        assert {kind for _, kind in totals.kinds} == {kind.kind for kind in REMAINING}
    else:
        page = PAGE.read_text()
        assert next(line for line in page.splitlines() if line.startswith("| in all |")).endswith("| 0 |")
        for kind in REMAINING:
            assert f"| {kind.kind.replace('|', chr(92) + '|')} |" in page


def test_steps_reach_everything() -> None:
    """The cheap form has every value and every form in each way."""
    for way in WAYS.values():
        pairs = list(itertools.islice(itertools.product(FORMS, VALUES), 0, None, way.step))
        assert {value for _, value in pairs} == set(VALUES)
        assert {form for form, _ in pairs} == set(FORMS)
