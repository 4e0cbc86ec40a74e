"""The schema that both sides work on, and what is counted for the page."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psycopg
import pytest

import ps_core
from ps_core import use_token
from tests.differential.forms import STORED
from tests.differential.page import Totals
from tests.differential.values import SCHEMA, Registered

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ps_lab import Lab


@pytest.fixture(autouse=True)
def nothing_seen() -> Iterator[None]:
    """Let every test begin as a caller who has seen nothing: stock asks no replica whether it is behind."""
    with use_token(None):
        yield


@pytest.fixture(scope="session")
def everything() -> bool:
    """Whether each pair is run in each way: `make differential`."""
    return os.environ.get("PS_DIFFERENTIAL") == "everything"


@contextmanager
def schema_of(lab: Lab) -> Iterator[Registered]:
    """The schema, and its types."""
    with psycopg.connect(**ps_core.conninfo(lab.topology.direct), autocommit=True) as conn:
        conn.execute("drop schema if exists differential cascade")
        conn.execute(SCHEMA)
        conn.execute(STORED)
        conn.execute("reset search_path")  # else the types would be known by names that hold there alone
        yield Registered(conn)
        conn.execute("drop schema differential cascade")


@pytest.fixture(scope="package")  # not longer: later tests change the primary under its connection
def registered(ps_lab: Lab) -> Iterator[Registered]:
    """The schema, and its types."""
    with schema_of(ps_lab) as registered:
        yield registered


@pytest.fixture(scope="session")
def totals(everything: bool) -> Iterator[Totals]:
    """What was compared; `make differential` writes it down."""
    totals = Totals()
    yield totals
    if everything:
        totals.write()
