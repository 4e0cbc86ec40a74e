"""The names of functions that may write, as endpoints report them, without a server."""

import pytest

from ps_core._message.functions import FUNCTIONS_SQL, REFRESH_EVERY, Functions
from ps_core._message.statement import analyse

pytestmark = pytest.mark.fast


def test_asked_once_a_minute() -> None:
    """One caller asks, the others go on; after a minute one asks again; endpoints are asked each for itself."""
    functions = Functions()
    assert functions.is_due("primary", 1000.0)
    assert not functions.is_due("primary", 1000.0)
    assert functions.is_due("replica", 1000.0)
    assert not functions.is_due("primary", 1000.0 + REFRESH_EVERY - 0.1)
    assert functions.is_due("primary", 1000.0 + REFRESH_EVERY)
    functions.take("primary", [], 1100.0)
    assert not functions.is_due("primary", 1100.0 + REFRESH_EVERY - 0.1)
    assert functions.is_due("primary", 1100.0 + REFRESH_EVERY)
    assert REFRESH_EVERY == 60
    assert Functions().is_due("primary", 0.0), "also on a machine that has just started"


def test_taken() -> None:
    """What one endpoint reports adds to what others did, and replaces what it reported itself."""
    functions = Functions()
    functions.take("primary", [("ping", False), ("shell", True)], 0.0)
    assert functions.may_write == {"ping", "shell"}
    assert functions.beside == {"shell"}
    functions.take("replica", [("old", False), ("shell", False)], 0.0)
    assert functions.may_write == {"ping", "shell", "old"}
    assert functions.beside == {"shell"}
    functions.take("primary", [("pong", False)], 1.0)
    assert functions.may_write == {"pong", "shell", "old"}
    assert functions.beside == frozenset()
    functions.take("primary", [("pong", False)], REFRESH_EVERY)
    assert functions.may_write == {"pong"}, "what the replica said is as old as it may be"
    functions.take("replica", [("old", False)], 1000.0)
    functions.take("primary", [("pong", False)], 1000.0 + REFRESH_EVERY - 1)
    assert functions.may_write == {"pong", "old"}


NAMES = [
    ("an identifier is sought as it is", "ping", "select ping()", "select pong()"),
    ("of several words the longest is", "weird name", 'select "weird name"(1)', "select name"),
    ("a name without an identifier is sought by its quote", "1 2", 'select "1 2"()', "select 1"),
    ("a quote in it is no identifier", 'a"b"longest', 'select "a""b""longest"()', "select a"),
]


@pytest.mark.parametrize(("name", "calls", "other"), [row[1:] for row in NAMES], ids=[row[0] for row in NAMES])
def test_names(name: str, calls: str, other: str) -> None:
    """A text that calls a function is found by what is sought of its name."""
    functions = Functions()
    functions.take("primary", [(name, False)], 0.0)
    assert analyse(calls).calls_any(functions.may_write)
    assert not analyse(other).calls_any(functions.may_write)


def test_question() -> None:
    """The question is text without a placeholder, and leaves out what is harmless by the names of extensions."""
    assert b"'{pageinspect,pg_buffercache,pg_stat_statements,pgcrypto,pgrowlocks,pgstattuple,sslinfo,tablefunc,uuid-ossp}'" in (
        FUNCTIONS_SQL
    )
    assert b"'%reset%'" in FUNCTIONS_SQL
    assert b"'postgis' AND f.prolang OPERATOR(pg_catalog.=) 13" in FUNCTIONS_SQL, "C"
