"""Sessions while no replica can be reached: the primary answers meanwhile."""

import asyncio
from typing import Any

import pytest
import sqlalchemy as sa

import ps_sqlalchemy
from ps_core import deadline, use_token
from ps_lab import Lab
from ps_lab.processes import wait_until
from ps_sqlalchemy import AsyncSession, Session
from tests.ps_sqlalchemy.conftest import SERVED_BY_REPLICA

SIDES: dict[str, Any] = {"bouncer": "write-pool", "replica_bouncer": "read-pool"}


@pytest.mark.parametrize("read_only", [False, True], ids=["routed", "read-only"])
@pytest.mark.parametrize("connected", [False, True], ids=["new", "connected"])
def test_session(ps_lab: Lab, *, connected: bool, read_only: bool) -> None:
    """A read is answered by the primary within a short deadline, and by a replica again when one is back.

    The one that met the loss is sent READ ONLY, as to a replica; the next are decided to be the primary's.
    """
    engine = ps_sqlalchemy.create_engine(ps_lab.url, **SIDES)
    shown = sa.select(sa.func.pg_is_in_recovery(), sa.func.current_setting("transaction_read_only"))

    def read() -> tuple[bool, str]:
        with use_token(None), deadline("5s"), Session(engine, read_only=read_only) as session:
            return tuple(session.execute(shown).one())

    try:
        if connected:
            assert read() == (True, "on")
        ps_lab.bouncers["read-pool"].stop()
        try:
            assert read() == (False, "on")
            assert read() in {(False, "on"), (False, "on" if read_only else "off")}  # it may be the probe
        finally:
            ps_lab.restart_bouncer("read-pool")
        wait_until(lambda: read() == (True, "on"), "reads on replicas")
    finally:
        engine.dispose()


@pytest.mark.parametrize("read_only", [False, True], ids=["routed", "read-only"])
async def test_async_session(ps_lab: Lab, *, read_only: bool) -> None:
    """The same for asyncio."""
    engine = ps_sqlalchemy.create_async_engine(ps_lab.url, **SIDES)

    async def is_by_replica() -> bool:
        with use_token(None), deadline("5s"):
            async with AsyncSession(engine, read_only=read_only) as session:
                return bool(await session.scalar(SERVED_BY_REPLICA))

    try:
        assert await is_by_replica()
        ps_lab.bouncers["read-pool"].stop()
        try:
            for _ in range(2):
                assert not await is_by_replica()
        finally:
            ps_lab.restart_bouncer("read-pool")
        async with asyncio.timeout(30):
            while not await is_by_replica():
                pass
    finally:
        await engine.dispose()
