"""Connections of the site."""

from collections.abc import Iterator

import pytest

from ps_core import use_token
from ps_lab import Lab
from ps_lab.processes import wait_until


@pytest.fixture(autouse=True)
def _open_connections(ps_lab: Lab, site: None) -> None:
    """Tests share the thread's connections, which are open and warm, and where they belong: replicas that have all there is.

    An earlier test may have left a write that only one of them has by now, a connection that is lost, or the fallback to the
    primary, which then ends.
    """
    from django.db import connections

    def is_replica(alias: str) -> bool:
        with use_token(None), connections[alias].cursor() as cursor:
            cursor.execute("SELECT pg_is_in_recovery()")
            return bool(cursor.fetchone()[0])

    assert not is_replica("default")
    wait_until(lambda: is_replica("replica"), "reads on replicas")
    ps_lab.wait_replicas_caught_up()


@pytest.fixture(scope="module")
def stock(ps_lab: Lab, site: None) -> Iterator[str]:
    """An alias of Django's own backend, on the way of `default`."""
    from django.db import connections

    ours = connections["default"].settings_dict
    entry = {
        **ours,
        "ENGINE": "django.db.backends.postgresql",
        "OPTIONS": {name: value for name, value in ours["OPTIONS"].items() if not name.startswith("ps_")},
        "DISABLE_SERVER_SIDE_CURSORS": True,
        "CONN_MAX_AGE": None,
    }
    connections.settings["stock"] = entry
    connections["stock"].ensure_connection()
    yield "stock"
    connections["stock"].close()
    del connections.settings["stock"]
    del connections["stock"]
