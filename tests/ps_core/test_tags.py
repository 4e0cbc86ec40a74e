"""Query tags: what the comment holds, where it stands, and which statements carry it."""

from typing import Any, Literal

import psycopg
import pytest

import ps_core
from ps_core import ConfigurationError, connect, connect_async, tags
from ps_core.tags import check_tags, comment, with_comment
from ps_lab import Lab

NOW = "SELECT current_query()"
COMMENT = "/*application='shop',route='%2Forders%2F%3Apk'*/"


@pytest.mark.fast
@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("shop", "shop"),
        ("/orders/<int:pk>/", "%2Forders%2F%3Apk%2F"),
        ("/orders/{pk:int}", "%2Forders%2F%3Apk"),
        (r"^orders/(?P<pk>\d+)/(?P<name>[a-z]+(x))$", "orders%2F%3Apk%2F%3Aname"),
        ("it's */ ; DROP TABLE x --", "it_s_%2F_DROP_TABLE_x_--"),
        ("né 100%", "n_100_"),
        ("x" * 2000, "x" * 1024),
    ],
)
def test_values(value: str, written: str) -> None:
    """Routes keep their parameters' names; what would be dropped, or could end the comment, is replaced."""
    assert comment({"route": value}) == f"/*route='{written}'*/".encode()


@pytest.mark.fast
def test_names() -> None:
    """Names are in order; one that would be dropped is refused; nothing to tell is no comment."""
    assert comment({"b": "2", "a": "1"}) == b"/*a='1',b='2'*/"
    assert comment({}) == comment({"a": ""}) == b""
    for name in ("a b", "x" * 66, "a'", ""):
        with pytest.raises(ConfigurationError, match="letters, digits"):
            tags(**{name: "1"})


@pytest.mark.fast
@pytest.mark.parametrize("given", ["shop", ["shop"], {"a b": "shop"}, {1: "shop"}, {"shop": 1}, {"shop": ["a"]}], ids=repr)
def test_refused(given: Any) -> None:
    """What is no mapping of names to strings or functions is refused where it is set, and not with each statement."""
    with pytest.raises(ConfigurationError, match=r"^tags: "):
        check_tags(given)


@pytest.mark.parametrize(
    ("query", "tagged"),
    [
        ("SELECT 1", "SELECT 1/*c*/"),
        ("SELECT 1 ; \n", "SELECT 1 /*c*/;"),
        ("SELECT 1 -- one", "SELECT 1 -- one\n/*c*/"),
        ("SELECT 1 -- one\n;", "SELECT 1 -- one\n/*c*/;"),
    ],
)
def test_place(query: str, tagged: str) -> None:
    """The comment stands before the semicolon, and not within another comment."""
    assert with_comment(query.encode(), b"/*c*/").decode() == tagged


@pytest.mark.parametrize("autocommit", [True, False])
@pytest.mark.parametrize("to", ["primary", "replica", "direct"])
def test_statements(ps_lab: Lab, autocommit: bool, to: Literal["primary", "replica", "direct"]) -> None:
    """First and later statements carry the tags, in as many round trips as without; outside the block none does."""
    with connect(ps_lab.topology, to=to, autocommit=autocommit) as conn:
        conn.execute(NOW)
        conn.rollback()
        with tags(route="/orders/<int:pk>"), tags(application="shop"), ps_lab.round_trips() as trips:
            for _ in range(2):
                ((text,),) = conn.execute(NOW)
                assert COMMENT in text
            ((text,),) = conn.execute(NOW + " -- who")
            assert f"-- who\n{COMMENT}" in text
            ((text,),) = conn.execute(NOW + " WHERE %s = '5%%';", ["5%"])
            assert f"'5%'{COMMENT};" in text
        assert trips.count == 4
        ((text,),) = conn.execute(NOW)
        assert "/*" not in text


async def test_async_and_functions(ps_lab: Lab) -> None:
    """A value may be a function, asked with each statement; decorators of coroutine functions work."""
    values = iter(("one", None, "two"))

    @tags(job=lambda: next(values))
    async def work(conn: ps_core.AsyncConnection) -> list[str]:
        found = []
        for _ in range(3):
            cursor = await conn.execute(NOW)
            found += [row[0] for row in await cursor.fetchall()]
        return found

    async with await connect_async(ps_lab.url, autocommit=True) as conn:
        first, second, third = await work(conn)
    assert "/*job='one'*/" in first
    assert "/*" not in second
    assert "/*job='two'*/" in third


def test_what_the_server_taught_is_found_again(ps_lab: Lab) -> None:
    """Tags that differ do not make a statement another one: a hidden write is remembered by the text without them."""
    ps_lab.sql("CREATE TABLE tagged (id int); GRANT ALL ON tagged TO app")
    ps_lab.sql(
        "CREATE FUNCTION tagging() RETURNS int LANGUAGE sql AS 'INSERT INTO tagged VALUES (1) RETURNING 1'",
    )
    try:
        with connect(ps_lab.url, autocommit=True) as conn:
            with tags(job="one"):
                conn.execute(psycopg.sql.SQL("SELECT tagging()"))
            with tags(job="two"), ps_lab.round_trips() as trips:
                conn.execute(psycopg.sql.SQL("SELECT tagging()"))
            assert trips.count == 1
    finally:
        ps_lab.sql("DROP FUNCTION tagging(); DROP TABLE tagged")


def test_prepared_statements_carry_none(ps_lab: Lab) -> None:
    """Where the server binds the parameters, a text that differs each time would be prepared anew each time."""
    with connect(ps_lab.url, autocommit=True, binding="server") as conn, tags(application="shop"):
        ((text,),) = conn.execute(NOW)
        assert "/*" not in text
