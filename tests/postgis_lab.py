"""A lab whose servers have PostGIS: the system's, however old it is."""

from __future__ import annotations

from contextlib import contextmanager
from ctypes.util import find_library
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ps_lab import Lab

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["postgis_lab"]

SERVERS, EXTENSION = Path("/usr/lib/postgresql"), "/usr/share/postgresql/{}/extension/postgis.control"


@contextmanager
def postgis_lab() -> Iterator[Lab]:
    """Start it, or skip the test. Databases that are made in it have the extension, which an application's role may not make."""
    found = [folder for folder in SERVERS.glob("*/bin") if Path(EXTENSION.format(folder.parent.name)).exists()]
    missing = [name for name in ("gdal", "geos_c") if find_library(name) is None]
    if not found or missing:
        pytest.skip(f"no {'PostgreSQL with PostGIS' if not found else ' and '.join(missing)} from the system's packages")
    with Lab(postgres=max(found, key=lambda folder: int(folder.parent.name))) as lab:
        lab.sql("CREATE EXTENSION postgis", dbname="template1")
        yield lab
