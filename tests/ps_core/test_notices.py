"""Notices that somebody should see: which ones they are, and that both connections tell them."""

import asyncio
import logging
import threading
from typing import Any

import pytest
from psycopg.rows import dict_row

from ps_core import Connection, Event, connect, connect_async, subscribe
from ps_core.events import Name
from ps_core.notices import kind_of
from ps_lab import Lab
from ps_lab.pgbouncer import ADMIN
from ps_lab.processes import wait_until

WARNING = "[PGINSIGHTS] Traffic Control: budget br_1: 80 of 100"
SAYS = f"DO $$ BEGIN RAISE WARNING '{WARNING}'; RAISE NOTICE 'the password is s3cret'; END $$"


@pytest.mark.fast
@pytest.mark.parametrize(
    ("message", "found"),
    [
        (WARNING, ("traffic_control", WARNING)),
        (f"{WARNING}\nmore\x0b{'x' * 400}", ("traffic_control", f"{WARNING} more {'x' * 400}"[:300])),
        ("run __neki.wait_for_ddl(12,'a') before you go on", ("ddl_barrier", "__neki.wait_for_ddl(12,'a')")),
        (
            "No server connection available in postgres backend, client being queued",
            ("waits_for_connection", "No server connection available in postgres backend, client being queued"),
        ),
        ("role password will expire soon", ("password_expires", "password will expire")),
        ("your password expires in 3 days", ("password_expires", "password expires")),
        ("setting an MD5-encrypted password", ("password_md5", "MD5-encrypted password")),
        ('relation "a" already exists, skipping', None),
        ("the password is s3cret", None),
        ("Traffic Control: yes", None),
        ("", None),
    ],
)
def test_kinds(message: str, found: tuple[str, str] | None) -> None:
    """Each kind is found, with its words on one line; an application's own notices are not told at all."""
    assert kind_of(message) == found


@pytest.mark.parametrize("way", ["sync", "async"])
@pytest.mark.parametrize("bouncer", [None, "write-pool"])
def test_told(ps_lab: Lab, way: str, bouncer: str | None, caplog: pytest.LogCaptureFixture) -> None:
    """A warning reaches the log and the hook, through a pooler too, and nothing else that the statement said."""
    events: list[Event] = []
    unsubscribe = subscribe(events.append)
    try:
        if way == "sync":
            with connect(ps_lab.url, bouncer=bouncer, autocommit=True) as conn:
                conn.execute(SAYS)
        else:

            async def work() -> None:
                async with await connect_async(ps_lab.url, bouncer=bouncer, autocommit=True) as conn:
                    await conn.execute(SAYS)

            asyncio.run(work())
    finally:
        unsubscribe()
    assert [(event.endpoint, event.reason, event.text) for event in events if event.name is Name.NOTICE] == [
        ("primary", "traffic_control", WARNING)
    ]
    told = [record for record in caplog.records if record.name == "ps_core.events.notice"]
    assert [record.levelno for record in told] == [logging.WARNING]
    assert told[0].getMessage() == f"endpoint 'primary': a notice, traffic_control: {WARNING}"
    assert "s3cret" not in caplog.text


def test_wait_for_a_connection(ps_lab: Lab) -> None:
    """PgBouncer says from 1.25 on that a client has waited for a while, here because of PAUSE; it says so after RESUME."""
    local = ps_lab.bouncers["local"]
    if local.version < (1, 25):
        pytest.skip(f"PgBouncer {local.version[0]}.{local.version[1]} does not say it")

    def has_waited() -> bool:
        with local.connect(ADMIN, "pgbouncer") as console:
            console.row_factory = dict_row  # type: ignore[assignment]
            pools: list[Any] = console.execute("SHOW POOLS").fetchall()
        return any(pool["maxwait"] >= 2 for pool in pools)

    events: list[Event] = []
    local.reload(query_wait_notify=1)
    unsubscribe = subscribe(events.append)
    try:
        with connect(ps_lab.url, autocommit=True, statement_timeout="20s", transaction_timeout="30s") as conn:
            conn.execute("SELECT 1")
            ps_lab.pause()
            reader = threading.Thread(target=Connection.execute, args=(conn, "SELECT 1"))
            reader.start()
            try:
                wait_until(has_waited, "a client that waits")
            finally:
                ps_lab.resume()
                reader.join(20)
            assert not reader.is_alive()
    finally:
        unsubscribe()
        local.reload(query_wait_notify=5)
    assert [event.reason for event in events if event.name is Name.NOTICE] == ["waits_for_connection"]
