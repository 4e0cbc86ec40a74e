"""Clients of both kinds by one form, on the lab."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

import pytest

import ps_http

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ps_core import Topology
    from ps_lab import Lab

__all__ = ["Driven"]


class Driven:
    """A client, sync or async, which is used as if it were sync."""

    def __init__(self, client: Any, runner: asyncio.Runner | None) -> None:
        self.client = client
        self._runner = runner

    def _run(self, made: Any) -> Any:
        return made if self._runner is None else self._runner.run(made, context=copy_context())

    def execute(self, *args: Any) -> ps_http.Result:
        found: ps_http.Result = self._run(self.client.execute(*args))
        return found

    def executemany(self, *args: Any) -> list[ps_http.Result]:
        found: list[ps_http.Result] = self._run(self.client.executemany(*args))
        return found

    @contextmanager
    def batch(self, **modes: Any) -> Iterator[Any]:
        batch = self.client.batch(**modes)
        if self._runner is None:
            with batch:
                yield batch
            return
        self._run(batch.__aenter__())
        try:
            yield batch
        except BaseException as exc:
            self._run(batch.__aexit__(type(exc), exc, exc.__traceback__))
            raise
        self._run(batch.__aexit__(None, None, None))


@pytest.fixture(params=["sync", "asyncio"])
def drive(request: pytest.FixtureRequest) -> Iterator[Callable[..., Driven]]:
    """Return what makes a client of one kind; all are closed after the test."""
    made: list[Driven] = []
    runner = asyncio.Runner() if request.param == "asyncio" else None

    def make(target: str | Topology | Any, **settings: Any) -> Driven:
        driven = Driven((ps_http.Client if runner is None else ps_http.AsyncClient)(target, **settings), runner)
        made.append(driven)
        return driven

    yield make
    for driven in made:
        driven._run(driven.client.close())
    if runner is not None:
        runner.close()


@pytest.fixture
def client(drive: Callable[..., Driven], ps_lab: Lab) -> Driven:
    """A client of the primary alone."""
    return drive(ps_lab.url, bouncer="write-pool")


@pytest.fixture
def table(ps_lab: Lab) -> Iterator[str]:
    """An empty table, by name, with a unique number."""
    ps_lab.sql("DROP TABLE IF EXISTS http_numbers")
    ps_lab.sql("CREATE TABLE http_numbers (n int PRIMARY KEY, t text)")
    ps_lab.sql("ALTER TABLE http_numbers OWNER TO app")
    ps_lab.wait_replicas_caught_up()
    yield "http_numbers"
    ps_lab.sql("DROP TABLE http_numbers")
