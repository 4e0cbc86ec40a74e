"""The edge takes connections and says nothing more."""

from contextlib import ExitStack
from dataclasses import replace

import pytest
from django.db import connection, transaction
from sqlalchemy import text

import ps_sqlalchemy
from ps_core.context import deadline
from ps_core.errors import DeadlineExceeded
from ps_core.failures import classify
from ps_lab import Lab
from ps_lab.processes import wait_until
from tests.adversity.applications import Application, ApplicationClients
from tests.adversity.harness import PATHS, Doing, Path, Paths, raised
from tests.adversity.matrix import Matrix


@pytest.mark.parametrize("path", PATHS)
def test_connect_timeout(ps_lab: Lab, paths: Paths, matrix: Matrix, path: Path) -> None:
    """A connect that is not answered within its timeout is tried again."""
    limits = paths.endpoint(path).timeouts
    endpoint = replace(paths.endpoint(path), timeouts=replace(limits, connect=2.0))
    state = paths.state(endpoint)
    with ps_lab.edge.hang():
        works = [Doing(raised, paths.stock, endpoint), Doing(lambda: paths.ours(state).execute("SELECT 1").fetchone())]
        wait_until(lambda: state.gate.closed, "the outage to be met")
        error = works[0].end()
    assert works[1].end() == (1,)
    matrix.add("The edge hangs", path, "connecting", classify(error), "connect_timeout", ours="sent again", outcome="answered")


def test_applications(ps_lab: Lab, matrix: Matrix, applications: list[Application]) -> None:
    """While nothing comes, a deadline is kept; those who have none go on when something comes again."""
    for application in applications:
        application.look(0)
    with ps_lab.edge.hang():
        for application in applications:
            with deadline("100ms"), pytest.raises(DeadlineExceeded):
                application.look(0)
    with ApplicationClients(ps_lab) as clients:
        with ps_lab.edge.hang():
            clients.meet()
    matrix.sees("The edge hangs", f"a wait, no longer than the deadline; {clients.saw()}")


def test_second_statement(ps_lab: Lab) -> None:
    """In a transaction that is open, too: its deadline's error comes out of SQLAlchemy, and the engine goes on."""
    engine = ps_sqlalchemy.create_engine(ps_lab.url, bouncer="write-pool", pool_size=1, max_overflow=0)
    try:
        with pytest.raises(DeadlineExceeded), ExitStack() as stack, engine.begin() as conn:
            conn.execute(text("SELECT 1"))
            stack.enter_context(ps_lab.edge.hang())
            stack.enter_context(deadline("100ms"))
            conn.execute(text("SELECT 2"))
        with engine.begin() as conn:
            assert conn.scalar(text("SELECT 3")) == 3
    finally:
        engine.dispose()


async def test_second_statement_async(ps_lab: Lab) -> None:
    """The same for asyncio."""
    engine = ps_sqlalchemy.create_async_engine(ps_lab.url, bouncer="write-pool", pool_size=1, max_overflow=0)
    try:
        with ExitStack() as stack, pytest.raises(DeadlineExceeded):
            async with engine.begin() as conn:
                await conn.execute(text("SELECT 1"))
                stack.enter_context(ps_lab.edge.hang())
                stack.enter_context(deadline("100ms"))
                await conn.execute(text("SELECT 2"))
        async with engine.begin() as conn:
            assert await conn.scalar(text("SELECT 3")) == 3
    finally:
        await engine.dispose()


def test_second_statement_django(ps_lab: Lab, site: None) -> None:
    """The same in Django's `atomic()`."""
    with pytest.raises(DeadlineExceeded), ExitStack() as stack, transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            stack.enter_context(ps_lab.edge.hang())
            stack.enter_context(deadline("100ms"))
            cursor.execute("SELECT 2")
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SELECT 3")
        assert cursor.fetchone() == (3,)
    connection.close()
