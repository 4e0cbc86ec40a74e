"""Connections of the site."""

import pytest


@pytest.fixture(autouse=True)
def _open_connections(site: None) -> None:
    """Tests share the thread's connections, which are open and warm."""
    from django.db import connections

    for alias in ("default", "replica"):
        connections[alias].ensure_connection()
