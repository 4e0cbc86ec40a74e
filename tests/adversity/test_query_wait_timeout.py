"""The pooler has no server connection to give for longer than query_wait_timeout; or it has one again in time."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ps_lab import Lab
from tests.adversity.harness import Crowd, Met, Ours, Phase, Row, Rules, Verdict, table
from tests.adversity.matrix import Matrix

IDLE = (Phase.CONNECT, Phase.IDLE_READ, Phase.IDLE_WRITE, Phase.IDLE_OPENING)
# psycopg's own BEGIN may meet two errors, and report neither; the pooler may be about to SET something on the server.
GIVEN_UP: dict[Phase, tuple[Rules, Verdict]] = dict.fromkeys(
    IDLE, (("pooler_query_wait_timeout", "pooler_varset_failed"), Ours.AGAIN)
) | {Phase.IDLE_OPENING: (("pooler_query_wait_timeout", "pooler_varset_failed", "results_hidden_by_driver"), Ours.AGAIN)}


@contextmanager
def long_pause(crowd: Crowd) -> Iterator[None]:
    local = crowd.lab.bouncers["local"]
    local.reload(query_wait_timeout=1)
    crowd.lab.pause()
    yield
    local.reload(query_wait_timeout=120)
    crowd.lab.resume()


@contextmanager
def short_pause(crowd: Crowd) -> Iterator[None]:
    crowd.lab.pause()
    yield
    crowd.lab.resume()


@pytest.fixture(scope="module")
def given_up(ps_lab: Lab) -> Met:
    return Crowd(ps_lab, {"primary": IDLE}, patience=10).run("PAUSE for longer than query_wait_timeout", long_pause)


@pytest.fixture(scope="module")
def waited(ps_lab: Lab) -> Met:
    return Crowd(ps_lab, {"primary": IDLE}, patience=0.3).run("PAUSE and RESUME", short_pause)


@pytest.mark.parametrize("row", table("primary", GIVEN_UP))
def test_query_wait_timeout(given_up: Met, matrix: Matrix, row: Row) -> None:
    """What never left the pooler is sent again, autocommit writes included."""
    matrix.crowd(given_up, row)


@pytest.mark.parametrize("row", table("primary", dict.fromkeys(IDLE, (None, Ours.UNNOTICED))))
def test_pause(waited: Met, matrix: Matrix, row: Row) -> None:
    """A pause that ends in time is a wait."""
    matrix.crowd(waited, row)


def test_applications_who_are_sent_away(given_up: Met, matrix: Matrix) -> None:
    """Applications wait for longer than the pooler lets them."""
    matrix.sees(given_up.event, f"a wait until RESUME; {given_up.applications.saw()}")


def test_applications_who_wait(waited: Met, matrix: Matrix) -> None:
    """Applications wait."""
    matrix.sees(waited.event, f"a wait until RESUME; {waited.applications.saw()}")
