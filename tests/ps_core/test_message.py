"""What goes before and after the user's text does not depend on how that text ends: on real servers."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import psycopg
import pytest

import ps_core
from ps_core import AsyncConnection, Connection, use_token
from ps_core._connection.cursors import ServerBindingCursor
from ps_core._endpoint import EndpointState
from ps_core.errors import MayWrite, ReplicaBehind
from ps_lab import Lab
from tests.ps_core.conftest import Connect
from tests.ps_core.test_healing import count

ENDS = [" -- note", "; -- note", " -- note\n", " /* note */", ";", " ; ;\n"]
"""How a text may end. Behind the first and the second, what follows on the same line would be a comment."""


def tracking(state: EndpointState, tracks: bool) -> EndpointState:
    """Return a state of the same endpoint that asks for positions, or does not."""
    return replace_state(state, tracks=tracks)


def replace_state(state: EndpointState, **changes: Any) -> EndpointState:
    """Return a state of its own, whose role is known."""
    other = EndpointState(endpoint=replace(state.endpoint), identity=state.identity, **changes)
    other.role = state.role
    return other


def autocommit_write(conn: Connection[Any], end: str) -> None:
    """Its COMMIT follows it, where positions are asked for."""
    conn.autocommit = True
    conn.execute(f"INSERT INTO item VALUES (1){end}")


def autocommit_write_with_parameters(conn: Connection[Any], end: str) -> None:
    """The same with a value that the client puts in."""
    conn.autocommit = True
    conn.execute(f"INSERT INTO item VALUES (%s){end}", (1,))


def autocommit_write_bound_by_server(conn: Connection[Any], end: str) -> None:
    """Its COMMIT is a message of its own."""
    conn.autocommit = True
    ServerBindingCursor(conn).execute(f"INSERT INTO item VALUES (%s){end}", (1,))


def autocommit_returning(conn: Connection[Any], end: str) -> None:
    """A write with a result of its own."""
    conn.autocommit = True
    assert conn.execute(f"INSERT INTO item VALUES (1) RETURNING id{end}").fetchall() == [(1,)]


def autocommit_read(conn: Connection[Any], end: str) -> None:
    """The position follows it."""
    conn.autocommit = True
    assert conn.execute(f"SELECT 5{end}").fetchall() == [(5,)]
    conn.execute("INSERT INTO item VALUES (1)")


def first_write(conn: Connection[Any], end: str) -> None:
    """The id of the transaction follows it."""
    conn.execute(f"INSERT INTO item VALUES (1){end}")
    assert conn._transaction is not None or end.startswith("; --")
    conn.commit()


def write_after_a_read(conn: Connection[Any], end: str) -> None:
    """In a transaction that is open."""
    assert conn.execute(f"SELECT 5{end}").fetchall() == [(5,)]
    conn.execute(f"INSERT INTO item VALUES (1){end}")
    assert conn._transaction is not None or end.startswith("; --")
    conn.commit()


def callers_own_begin(conn: Connection[Any], end: str) -> None:
    """The settings follow it."""
    conn.autocommit = True
    conn.execute(f"BEGIN{end}")
    assert conn.execute("SHOW statement_timeout").fetchall() != [("0",)]
    conn.execute(f"INSERT INTO item VALUES (1){end}")
    conn.execute(f"COMMIT{end}")


def functions_are_asked_for(conn: Connection[Any], end: str) -> None:
    """Once a minute, the question for the names of functions follows it, too."""
    conn.autocommit = True
    conn.state.functions.due.clear()
    conn.execute(f"INSERT INTO item VALUES (1){end}")
    conn.state.functions.due.clear()
    assert conn.execute(f"SELECT 5{end}").fetchall() == [(5,)]


WAYS = [
    *(
        autocommit_write,
        autocommit_write_with_parameters,
        autocommit_write_bound_by_server,
        autocommit_returning,
        autocommit_read,
    ),
    *(first_write, write_after_a_read, callers_own_begin, functions_are_asked_for),
]


@pytest.mark.parametrize("tracks", [True, False], ids=["positions", "no positions"])
@pytest.mark.parametrize("way", WAYS)
def test_how_a_text_ends(
    ps_lab: Lab, primary: EndpointState, connect: Connect, table: str, way: Callable[[Connection[Any], str], None], tracks: bool
) -> None:
    """One row is written for each end of a text, as with stock psycopg, and a write in autocommit is committed."""
    conn = connect(tracking(primary, tracks))
    for rows, end in enumerate(ENDS, 1):
        way(conn, end)
        conn.rollback()
        assert count(ps_lab, table) == rows, end


@pytest.mark.parametrize("end", ENDS)
async def test_how_a_text_ends_in_asyncio(ps_lab: Lab, primary: EndpointState, table: str, end: str) -> None:
    """The same in asyncio, and the caller learns where the server was behind its own write."""
    with use_token(None) as tracker:
        async with await AsyncConnection.open(tracking(primary, tracks=True), autocommit=True) as conn:
            await conn.execute(f"INSERT INTO {table} VALUES (1){end}")
            assert (await (await conn.execute(f"SELECT count(*) FROM {table}{end}")).fetchall()) == [(1,)]
        assert tracker.token is not None
    assert count(ps_lab, table) == 1


def test_stock(ps_lab: Lab, table: str) -> None:
    """What these texts do with stock psycopg."""
    with psycopg.connect(**ps_core.conninfo(ps_lab.topology.primary), autocommit=True) as conn:
        for end in ENDS:
            conn.execute(f"INSERT INTO {table} VALUES (1){end}")
    assert count(ps_lab, table) == len(ENDS)


@pytest.mark.parametrize("teach", ["refused", "function"])
def test_what_is_learned_counts_for_what_was_usual(ps_lab: Lab, connect: Connect, teach: str) -> None:
    """A text that went to a replica, again and again, is refused there from when on it is known that it may write."""
    conn = connect(EndpointState(endpoint=ps_lab.topology.replicas[0]))
    conn.autocommit = True
    text = "SELECT 1 AS t_learned"
    for _ in range(3):
        assert conn.execute(text).fetchall() == [(1,)]
    if teach == "refused":
        conn.state.refused_read_only.add(text)
    else:
        conn.state.functions.take("another", [("t_learned", False)], 1e9)
    with pytest.raises(MayWrite):
        conn.execute(text)


def test_each_caller_has_a_guard_of_its_own(ps_lab: Lab) -> None:
    """The read that is kept holds no caller's position: one that has seen less is answered, one that has seen more is not."""
    topology = ps_core.Topology.from_url(ps_lab.url, bouncer="write-pool", replica_bouncer="read-pool")

    def written() -> ps_core.Token:
        with use_token(None) as tracker, ps_core.connect(topology, autocommit=True) as conn:
            conn.execute("SELECT pg_logical_emit_message(true, 'a', 'b')")
            assert tracker.token is not None
            return tracker.token

    early = written()
    ps_lab.wait_replicas_caught_up()
    ps_lab.set_replay_delay(60)
    try:
        late = written()
        with ps_core.connect(topology, to="replica", autocommit=True) as conn:
            for _ in range(3):
                with use_token(early):
                    conn.execute("SELECT 1")
                with use_token(late), pytest.raises(ReplicaBehind):
                    conn.execute("SELECT 1")
    finally:
        ps_lab.set_replay_delay(0)
