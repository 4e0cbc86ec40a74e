"""What a session decides before a connection is checked out: who is asked, who is not, and what the log says."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import select, text

from ps_core import Event, Token, subscribe, use_token
from ps_core._registry import replicas_of
from ps_core.events import Name
from ps_core.replicas import Replicas
from ps_lab import Lab
from ps_sqlalchemy import Engine, Session, using_primary
from tests.ps_sqlalchemy.conftest import SERVED_BY_REPLICA, Item


@pytest.fixture(autouse=True)
def nothing_seen() -> Iterator[None]:
    """Begin with no token."""
    with use_token(None):
        yield


@contextmanager
def checkouts(engine: Engine) -> Iterator[list[str]]:
    """Collect the sides of which connections are checked out."""
    found: list[str] = []
    assert engine.replica is not None
    # What the replicas' pool does, the primary's listeners hear, too.
    whole = lambda *_: found.append("any")  # noqa: E731
    replica = lambda *_: found.append("replica")  # noqa: E731
    sa.event.listen(engine.pool, "checkout", whole)
    sa.event.listen(engine.replica.pool, "checkout", replica)
    try:
        yield found
    finally:
        sa.event.remove(engine.pool, "checkout", whole)
        sa.event.remove(engine.replica.pool, "checkout", replica)


@contextmanager
def reasons() -> Iterator[list[str]]:
    """Collect the decisions, in the words of the log."""
    heard: list[str] = []

    def hear(event: Event) -> None:
        if event.name is Name.ROUTE:
            heard.append(event.reason)

    unsubscribe = subscribe(hear)
    try:
        yield heard
    finally:
        unsubscribe()


def test_what_only_the_primary_has_seen(ps_lab: Lab, engine: Engine) -> None:
    """With a token without a position, a read goes to the primary, and no connection of a replica is checked out."""
    pinned = Token(identity=ps_lab.branch, position=None, at=time.time())
    with use_token(pinned), checkouts(engine) as found, reasons() as heard, Session(engine) as session:
        assert session.scalar(SERVED_BY_REPLICA) is False
    assert (found, heard) == (["any"], ["position not known"])
    elsewhere = Token(identity="another", position=None, at=time.time())
    expired = Token(identity=ps_lab.branch, position=None, at=time.time() - 301)
    for token in (elsewhere, expired):
        with use_token(token), Session(engine) as session:
            assert session.scalar(SERVED_BY_REPLICA) is True, token


def test_what_only_the_primary_has_seen_in_a_read_only_session(ps_lab: Lab, engine: Engine) -> None:
    """The same, READ ONLY."""
    pinned = Token(identity=ps_lab.branch, position=None, at=time.time())
    shown = text("SELECT pg_is_in_recovery(), current_setting('transaction_read_only')")
    with use_token(pinned), checkouts(engine) as found, Session(engine, read_only=True) as session:
        assert session.execute(shown).one() == (False, "on")
    assert found == ["any"]


def test_a_text_that_was_refused(ps_lab: Lab, engine: Engine, items: type[Item]) -> None:
    """A text that a replica has refused since it writes goes to the primary from then on: no replica is asked again."""
    ps_lab.sql(
        "CREATE OR REPLACE FUNCTION sa_decided(n int) RETURNS int LANGUAGE sql AS"
        " 'INSERT INTO sa_item VALUES (n, ''f'') RETURNING id'"
    )
    ps_lab.wait_replicas_caught_up()
    query, seen = text("SELECT sa_decided(:n)"), []
    for number in (1, 2):
        with use_token(None), checkouts(engine) as found, reasons() as heard, Session(engine) as session:
            assert session.scalar(query, {"n": number}) == number
            session.commit()
        seen.append((found.count("replica"), heard))
    assert seen == [(1, ["read", "asked for the primary"]), (0, ["not known to be a read"])]
    ps_lab.sql("DROP FUNCTION sa_decided(int)")


def _update_in_block(session: Session) -> None:
    with using_primary():
        session.execute(sa.update(Item).values(note="new"))


def _update_with_option(session: Session) -> None:
    session.execute(sa.update(Item).values(note="new").execution_options(ps_route="primary"))


def _flush_in_block(session: Session) -> None:
    with using_primary():
        session.get_one(Item, 1).note = "new"
        session.flush()


def _flush_before_option(session: Session) -> None:
    session.get_one(Item, 1).note = "new"
    session.execute(text("SELECT 1"), execution_options={"ps_route": "primary"})


@pytest.mark.parametrize("write", [_update_in_block, _update_with_option, _flush_in_block, _flush_before_option])
def test_own_write_is_read_whatever_asked_for_the_primary(
    ps_lab: Lab, engine: Engine, items: type[Item], write: Callable[[Session], None]
) -> None:
    """A transaction that wrote is on the primary, also where a block or an option had sent it there: it sees what it wrote."""
    ps_lab.sql("INSERT INTO sa_item VALUES (1, 'old')")
    ps_lab.wait_replicas_caught_up()
    with Session(engine) as session:
        write(session)
        assert session.scalar(select(Item.note)) == "new"
        session.rollback()


def test_block_in_a_read_only_session(engine: Engine) -> None:
    """`using_primary()` holds in a read-only session, too."""
    with using_primary(), Session(engine, read_only=True) as session, reasons() as heard:
        assert session.scalar(SERVED_BY_REPLICA) is False
    assert heard == ["asked for the primary"]
    with Session(engine, read_only=True) as session, session.begin(), reasons() as heard:
        assert session.scalar(SERVED_BY_REPLICA) is True
    assert heard == ["read-only session"]


@pytest.fixture
def away(engine: Engine) -> Iterator[Replicas]:
    """The replicas, all left out, none to be probed yet."""
    replicas = replicas_of(engine.topology)
    assert replicas is not None
    for state in replicas.states:
        replicas._left_out.due[state] = (float("inf"), replicas.PROBE_INTERVAL)
    yield replicas
    replicas._left_out.due.clear()


@pytest.mark.parametrize("options", [{}, {"read_only": True}], ids=["a session", "a read-only session"])
def test_no_replica_left(engine: Engine, away: Replicas, options: dict[str, Any]) -> None:
    """Where all replicas are left out, reads go to the primary at once; where one is to be probed, one goes there."""
    with checkouts(engine) as found, reasons() as heard, Session(engine, **options) as session:
        assert session.scalar(SERVED_BY_REPLICA) is False
    assert (found, heard) == (["any"], ["no replica left"])
    away._left_out.due[away.states[0]] = (0.0, 1.0)
    with Session(engine, **options) as session:
        assert session.scalar(SERVED_BY_REPLICA) is True
