"""What psycopg's connections and cursors offer, run on stock and on ours, sync and asyncio: the same is seen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import psycopg
import pytest

import ps_core
from ps_core import AsyncConnection, Connection
from ps_core._connection.cursors import AsyncServerBindingCursor, ServerBindingCursor
from ps_core._endpoint import EndpointState
from tests.differential.clients import NO_PREPARED
from tests.differential.surface import SCENARIOS, binary_results, sync

if TYPE_CHECKING:
    from ps_lab import Lab
    from tests.differential.page import Totals

pytestmark = pytest.mark.usefixtures("registered")

MODES: Final = pytest.mark.parametrize("autocommit", [False, True], ids=["transaction", "autocommit"])


@MODES
@pytest.mark.parametrize("name", SCENARIOS)
def test_sync(name: str, autocommit: bool, ps_lab: Lab, totals: Totals) -> None:
    """Sync."""
    scenario = SCENARIOS[name]
    run, place = sync(scenario.run), getattr(ps_lab.topology, scenario.endpoint)
    options: dict[str, Any] = {"cursor_factory": ServerBindingCursor} if scenario.binding == "server" else {}
    with psycopg.connect(**ps_core.conninfo(place), **NO_PREPARED, autocommit=autocommit) as stock:
        expected = run(stock)
    with Connection.open(EndpointState(endpoint=place, identity=ps_lab.branch), autocommit=autocommit, **options) as ours:
        assert run(ours) == expected
    totals.surface["sync"] += 1


@MODES
@pytest.mark.parametrize("name", SCENARIOS)
async def test_asyncio(name: str, autocommit: bool, ps_lab: Lab, totals: Totals) -> None:
    """Asyncio."""
    scenario = SCENARIOS[name]
    place = getattr(ps_lab.topology, scenario.endpoint)
    options: dict[str, Any] = {"cursor_factory": AsyncServerBindingCursor} if scenario.binding == "server" else {}
    async with await psycopg.AsyncConnection.connect(**ps_core.conninfo(place), **NO_PREPARED, autocommit=autocommit) as stock:
        expected = await scenario.run(stock)
    link = EndpointState(endpoint=place, identity=ps_lab.branch)
    async with await AsyncConnection.open(link, autocommit=autocommit, **options) as ours:
        assert await scenario.run(ours) == expected
    totals.surface["asyncio"] += 1


def test_binary_results_are_refused(ps_lab: Lab) -> None:
    """Where the client binds, results are text, as with psycopg's own client-side cursor."""
    with Connection.open(EndpointState(endpoint=ps_lab.topology.primary, identity=ps_lab.branch)) as ours:
        with pytest.raises(psycopg.NotSupportedError, match="don't support binary results"):
            sync(binary_results)(ours)
