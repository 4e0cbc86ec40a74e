"""The lab is one with PostGIS here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.postgis_lab import postgis_lab

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ps_lab import Lab


@pytest.fixture(scope="session")
def ps_lab() -> Iterator[Lab]:
    """The lab."""
    with postgis_lab() as lab:
        yield lab
