"""`ENGINE = "ps_django.postgis"` in a project, as docs/howto/postgis.md has it: the table of backends on servers with PostGIS."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.backends import WORK, Site, site_of
from tests.docs.pages import DOCS, blocks_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ps_lab import Lab

SETTINGS = next(block.text for block in blocks_of(DOCS / "howto" / "postgis.md") if block.caption == "settings.py")


@pytest.fixture(scope="module")
def site(ps_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The project."""
    with site_of(ps_lab, tmp_path_factory.mktemp("postgis"), "places", SETTINGS, gis=True) as site:
        yield site


@pytest.mark.parametrize("work", WORK)
def test_work(site: Site, work: str) -> None:
    """Each column of the table."""
    WORK[work](site)
