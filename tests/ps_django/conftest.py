"""Connections of the site."""

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
