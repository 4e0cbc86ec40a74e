"""Each package does its work with Django's own backend and with ours, and the same comes of it.

With PS_WRITE_DOCS=1 in the environment, what was met is written to docs/generated/ecosystem.md.
"""

import pytest

from ps_lab import Lab
from tests.ecosystem.harness import check_row, found, row
from tests.ecosystem.packages import PACKAGES

# Two sites are started and migrated, and work over a switchover each, on machines that have other work.
pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.ci] if of.ci else []) for name, of in PACKAGES.items()])
def test_package(ps_lab: Lab, name: str) -> None:
    """Calm, on late replicas and over a switchover, each run has stock's outcome, and none an error; replicas are read."""
    package = PACKAGES[name]
    stock, ours = found(ps_lab, name, stock=True), found(ps_lab, name, stock=False)
    assert stock.calm == stock.late
    wanted = stock.calm["outcome"] | package.differs
    assert ours.calm == {"outcome": wanted}
    assert ours.late == {"outcome": wanted | package.late}
    assert len(ours.changing) > 1
    for one in ours.changing:
        assert one.get("outcome", one) | dict.fromkeys(package.late) == wanted | dict.fromkeys(package.late)
    assert (ours.on_replicas > 0) is package.replicas
    check_row(name, row(package, stock))
