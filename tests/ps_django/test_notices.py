"""Notices that somebody should see reach a hook from Django's connections, too."""

import pytest
from asgiref.sync import sync_to_async
from django.db import connection, transaction

from ps_core import Event, subscribe

WARNING = "[PGINSIGHTS] Traffic Control: budget br_1: 80 of 100"


def say() -> None:
    """Do what the server warns of."""
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(f"DO $$ BEGIN RAISE WARNING '{WARNING}'; END $$")
    finally:
        connection.close()  # the thread's own


@pytest.mark.parametrize("way", ["sync", "async"])
async def test_atomic(way: str) -> None:
    """A warning of Traffic Control in an atomic block is an event, in a thread of an asynchronous view as well."""
    events: list[Event] = []
    unsubscribe = subscribe(events.append)
    try:
        await sync_to_async(say, thread_sensitive=way == "sync")()
    finally:
        unsubscribe()
    assert [(event.endpoint, event.reason, event.text) for event in events if event.name == "notice"] == [
        ("default", "traffic_control", WARNING)
    ]
