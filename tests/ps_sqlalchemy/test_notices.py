"""Notices that somebody should see reach a hook from engines, too."""

from sqlalchemy import Engine, text

from ps_core import Event, subscribe
from ps_lab import Lab
from ps_sqlalchemy import create_async_engine

WARNING = "[PGINSIGHTS] Traffic Control: budget br_1: 80 of 100"
SAYS = text(f"DO $$ BEGIN RAISE WARNING '{WARNING}'; END $$")


def test_engine(engine: Engine) -> None:
    """A warning of Traffic Control in a transaction is an event."""
    events: list[Event] = []
    unsubscribe = subscribe(events.append)
    try:
        with engine.begin() as conn:
            conn.execute(SAYS)
    finally:
        unsubscribe()
    assert [(event.reason, event.text) for event in events if event.name == "notice"] == [("traffic_control", WARNING)]


async def test_async_engine(ps_lab: Lab) -> None:
    """The same with asyncio."""
    events: list[Event] = []
    engine = create_async_engine(ps_lab.url, bouncer="write-pool")
    unsubscribe = subscribe(events.append)
    try:
        async with engine.begin() as conn:
            await conn.execute(SAYS)
    finally:
        unsubscribe()
        await engine.dispose()
    assert [(event.reason, event.text) for event in events if event.name == "notice"] == [("traffic_control", WARNING)]
