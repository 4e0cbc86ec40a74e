"""What people found who tried to break the promises with the documentation alone, each by name, and as stock does it."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import IsolationLevel
from psycopg.pq import TransactionStatus

from ps_core import AsyncConnection, deadline, limits, local_settings, use_token
from ps_core._connection.cursors import ServerBindingCursor
from ps_core.consistency import Token
from ps_core.errors import DeadlineExceeded, MayWrite, ReplicaBehind
from tests.ps_core.conftest import tracking

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ps_lab import Lab
    from tests.ps_core.conftest import Connect

INSERT = "INSERT INTO strange (id) VALUES (%s)"
SEEN = "concat_ws(' ', current_setting('statement_timeout'), current_setting('app.t', true))"


@pytest.fixture(autouse=True)
def strange(ps_lab: Lab) -> Iterator[None]:
    """A table that writes down under which settings it was written."""
    ps_lab.sql(f"CREATE TABLE IF NOT EXISTS strange (id int, seen text DEFAULT {SEEN}); GRANT ALL ON strange TO PUBLIC")
    ps_lab.sql("CREATE TABLE IF NOT EXISTS locked (id int); GRANT ALL ON locked TO PUBLIC; TRUNCATE strange")
    ps_lab.wait_replicas_caught_up()
    yield
    ps_lab.sql("DROP TABLE strange, locked")


def rows(lab: Lab) -> list[tuple[int, str]]:
    """Return what is there, and under which settings it was written."""
    return lab.sql("SELECT id, seen FROM strange ORDER BY id")


def is_usable(conn: Any, lab: Lab) -> None:
    """Check that an autocommit connection is idle, and keeps what is written next."""
    assert conn.info.transaction_status is TransactionStatus.IDLE
    conn.execute(INSERT, (77,))
    assert rows(lab)[-1][0] == 77


def until_over() -> None:
    """Wait until the deadline has passed."""
    ends = time.monotonic() + 0.06
    while time.monotonic() < ends:
        pass


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("pipeline", [False, True])
def test_block_that_ends_after_the_deadline(ps_lab: Lab, connect: Connect, nested: bool, pipeline: bool) -> None:
    """It is rolled back: its COMMIT is refused, and nobody else would end it."""
    conn = connect(tracking(ps_lab, "primary"), autocommit=True)

    def work() -> None:
        with deadline(0.05), conn.transaction():
            if nested:
                with conn.transaction():
                    conn.execute(INSERT, (1,))
            conn.execute(INSERT, (2,))
            until_over()

    with pytest.raises(DeadlineExceeded):
        if pipeline:
            with conn.pipeline():
                work()
        else:
            work()
    assert rows(ps_lab) == []
    is_usable(conn, ps_lab)


async def test_block_that_ends_after_the_deadline_async(ps_lab: Lab) -> None:
    """The same with asyncio."""
    async with await AsyncConnection.open(tracking(ps_lab, "primary"), autocommit=True) as conn:
        with pytest.raises(DeadlineExceeded), deadline(0.05):
            async with conn.transaction(), conn.transaction():
                await conn.execute(INSERT, (1,))
                await asyncio.sleep(0.06)
        assert conn.info.transaction_status is TransactionStatus.IDLE
        await conn.execute(INSERT, (77,))
    assert [row[0] for row in rows(ps_lab)] == [77]


def raising() -> Iterator[tuple[int]]:
    """Parameters that end with an error."""
    yield (1,)
    raise ZeroDivisionError


@pytest.mark.parametrize("parameters", [[(1,), ("a", "b")], [(1,), (object(),)], [(1,), ()], raising])
def test_executemany_that_the_client_refuses(ps_lab: Lab, connect: Connect, parameters: Any) -> None:
    """Nothing is written, and the connection is idle, as on stock."""
    conn = connect(tracking(ps_lab, "primary"), autocommit=True)
    with pytest.raises((psycopg.Error, ZeroDivisionError)):
        conn.cursor().executemany(INSERT, parameters() if callable(parameters) else parameters)
    assert rows(ps_lab) == []
    is_usable(conn, ps_lab)


def test_executemany_past_its_deadline(ps_lab: Lab, connect: Connect) -> None:
    """Its COMMIT is refused like any other."""
    conn = connect(tracking(ps_lab, "primary"), autocommit=True)

    def slow() -> Iterator[tuple[int]]:
        yield (1,)
        until_over()

    with pytest.raises(DeadlineExceeded), deadline(0.05):
        conn.cursor().executemany(INSERT, slow())
    assert rows(ps_lab) == []
    is_usable(conn, ps_lab)


def in_pipeline(run: Callable[[Any], Any]) -> Callable[[Any], None]:
    """Return what does it in a pipeline."""

    def work(conn: Any) -> None:
        with conn.pipeline():
            run(conn)

    return work


def copying(conn: Any) -> None:
    """COPY by a cursor of psycopg's own."""
    with psycopg.Cursor(conn).copy("COPY strange (id) FROM STDIN") as copy:
        copy.write_row((1,))


FOREIGN: dict[str, Callable[[Any], Any]] = {
    "execute": lambda conn: psycopg.Cursor(conn).execute(INSERT, (1,)),
    "client side": lambda conn: psycopg.ClientCursor(conn).execute(INSERT, (1,)),
    "executemany": lambda conn: psycopg.Cursor(conn).executemany(INSERT, [(1,)]),
    "stream": lambda conn: list(psycopg.Cursor(conn).stream(INSERT + " RETURNING id", (1,))),
    "copy": copying,
    "pipeline": in_pipeline(lambda conn: psycopg.Cursor(conn).execute(INSERT, (1,))),
    "executemany in a pipeline": in_pipeline(lambda conn: psycopg.Cursor(conn).executemany(INSERT, [(1,)])),
}


@pytest.mark.parametrize("way", FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("endpoint", ["primary", "stand-in", "direct"])
@pytest.mark.parametrize("autocommit", [True, False])
def test_cursors_of_other_classes(ps_lab: Lab, connect: Connect, way: Any, endpoint: str, autocommit: bool) -> None:
    """They carry everything, or are refused; on an endpoint for reads they write nothing; what they wrote pins."""
    conn = connect(tracking(ps_lab, endpoint), autocommit=autocommit)
    with limits(statement=7), local_settings({"app.t": "42"}), use_token(None) as tracker:
        try:
            way(conn)
            conn.commit()
        except (psycopg.NotSupportedError, psycopg.errors.ReadOnlySqlTransaction):
            conn.rollback()
        assert rows(ps_lab) in ([], [(1, "7s 42")])
        assert rows(ps_lab) == [] or endpoint != "stand-in"
        assert not rows(ps_lab) or tracker.token is not None
        assert rows(ps_lab) != [] or autocommit or endpoint == "stand-in"
    conn.rollback()


def test_cursors_of_other_classes_are_guarded(ps_lab: Lab, connect: Connect) -> None:
    """On a replica that is behind, none of them reads."""
    with use_token(Token(identity=ps_lab.branch, position=1 << 62, at=time.time())):
        for autocommit in (True, False):
            conn = connect(tracking(ps_lab, "replica"), autocommit=autocommit)
            with pytest.raises((ReplicaBehind, psycopg.NotSupportedError)):
                psycopg.Cursor(conn).execute("SELECT 1")
            conn.rollback()
            with pytest.raises(ReplicaBehind), conn.pipeline():
                psycopg.Cursor(conn).execute("SELECT 1")
            conn.rollback()


def test_cursors_of_other_classes_in_a_transaction(ps_lab: Lab, connect: Connect) -> None:
    """Within a transaction of ours they carry everything; without settings to carry, they work on the direct endpoint, too."""
    conn = connect(tracking(ps_lab, "primary"), autocommit=True)
    with limits(statement=7), local_settings({"app.t": "42"}), conn.transaction():
        psycopg.Cursor(conn).execute(INSERT, (1,))
    assert rows(ps_lab) == [(1, "7s 42")]
    direct = connect(tracking(ps_lab, "direct"), autocommit=True)
    with use_token(None) as tracker:
        psycopg.Cursor(direct).execute(INSERT, (2,))
        assert tracker.token is not None
        assert tracker.token.position is None


TEXTS = [
    (False, [INSERT % 1, "COMMIT", INSERT % 2]),
    (False, [INSERT % 1, "ROLLBACK", INSERT % 2]),
    (False, ["COMMIT", INSERT % 2]),
    (True, ["COMMIT", INSERT % 2]),
    (True, ["SELECT 1", "COMMIT", "COMMIT", INSERT % 2]),
    (True, ["BEGIN", "SAVEPOINT a", "COMMIT", INSERT % 2]),
    (True, ["BEGIN", INSERT % 1, "COMMIT", INSERT % 2]),
]


@pytest.mark.parametrize(("autocommit", "texts"), TEXTS)
@pytest.mark.parametrize("endpoint", ["primary", "stand-in"])
def test_commit_by_text_in_a_pipeline(ps_lab: Lab, connect: Connect, autocommit: bool, texts: list[str], endpoint: str) -> None:
    """What follows it carries everything, or is refused; and it pins."""
    conn = connect(tracking(ps_lab, endpoint), autocommit=autocommit)
    with limits(statement=7), local_settings({"app.t": "42"}), use_token(None) as tracker:
        try:
            with conn.pipeline():
                for text in texts:
                    conn.execute(text)
            conn.commit()
        except (psycopg.NotSupportedError, psycopg.errors.ReadOnlySqlTransaction, MayWrite):
            conn.rollback()
        written = rows(ps_lab)
        assert all(seen == "7s 42" for _, seen in written)
        assert not written or endpoint == "primary"
        assert not written or tracker.token is not None


ENDS: dict[str, Callable[[Any], Any]] = {
    "pipeline": in_pipeline(lambda conn: conn.execute("COMMIT")),
    "executemany": lambda conn: conn.cursor().executemany("COMMIT", [()]),
    "stream": lambda conn: list(conn.cursor().stream("COMMIT")),
    "another class": lambda conn: psycopg.Cursor(conn).execute("COMMIT"),
    "several, another class": lambda conn: psycopg.ClientCursor(conn).execute("SELECT 1; COMMIT"),
    "text": lambda conn: conn.execute("COMMIT"),
}


@pytest.mark.parametrize("way", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("autocommit", [True, False])
def test_commit_in_every_way_pins(ps_lab: Lab, connect: Connect, way: Any, autocommit: bool) -> None:
    """However a transaction ended, its caller's next read is not served by a replica that may lack it."""
    conn = connect(tracking(ps_lab, "primary"), autocommit=autocommit)
    with use_token(None) as tracker:
        if autocommit:
            conn.execute("BEGIN")
        conn.execute(INSERT, (1,))
        with suppress(psycopg.ProgrammingError):  # no rows to stream
            way(conn)
        assert rows(ps_lab) != []
        assert tracker.token is not None
        assert tracker.token.position is None


@pytest.mark.parametrize("way", ["executemany", "stream", "execute", "pipeline"])
def test_chains_in_every_way(ps_lab: Lab, connect: Connect, way: str) -> None:
    """What AND CHAIN begins carries everything, or AND CHAIN is refused."""
    conn = connect(tracking(ps_lab, "primary"))
    with limits(statement=7), local_settings({"app.t": "42"}):
        conn.execute("SELECT 1")
        try:
            if way == "executemany":
                conn.cursor().executemany("COMMIT AND CHAIN", [()])
            elif way == "stream":
                list(conn.cursor().stream("COMMIT AND CHAIN"))
            elif way == "pipeline":
                with conn.pipeline():
                    conn.execute("COMMIT AND CHAIN")
            else:
                conn.execute("COMMIT AND CHAIN")
        except psycopg.ProgrammingError:
            assert way == "stream"
        else:
            conn.execute(INSERT, (1,))
            conn.commit()
            assert rows(ps_lab) == [(1, "7s 42")]
        conn.rollback()


HIDDEN = [
    "CREATE OR REPLACE PROCEDURE strange_p() LANGUAGE sql BEGIN ATOMIC END; COMMIT; INSERT INTO strange (id) VALUES (1)",
    "WITH begin AS (SELECT 1) SELECT * FROM begin atomic; COMMIT; INSERT INTO strange (id) VALUES (1)",
]


@pytest.mark.parametrize("text", HIDDEN)
def test_several_transactions_that_are_well_hidden(ps_lab: Lab, connect: Connect, text: str) -> None:
    """They are refused: what follows the first would carry nothing."""
    for autocommit in (True, False):
        conn = connect(tracking(ps_lab, "primary"), autocommit=autocommit)
        with pytest.raises(psycopg.NotSupportedError, match="several transactions"):
            conn.execute(text)
        conn.rollback()
    assert rows(ps_lab) == []


QUOTED = [
    'SET LOCAL "transaction_read_only" = off',
    'SET "transaction_read_only" TO off',
    'RESET "transaction_read_only"',
    'SET LOCAL U&"transaction\\005fread_only" = off',
]


@pytest.mark.parametrize("text", QUOTED)
@pytest.mark.parametrize("autocommit", [True, False])
def test_read_only_cannot_be_switched_off(ps_lab: Lab, connect: Connect, text: str, autocommit: bool) -> None:
    """On an endpoint for reads nothing writes, whichever way the setting's name is written."""
    conn = connect(tracking(ps_lab, "stand-in"), autocommit=autocommit)
    if autocommit:
        conn.execute("BEGIN")
    with pytest.raises(psycopg.Error):
        conn.execute(text)
    conn.rollback()
    for statement in (["BEGIN"] if autocommit else []) + [INSERT % 1]:
        try:
            conn.execute(statement)
        except (psycopg.errors.ReadOnlySqlTransaction, MayWrite):
            break
    else:
        raise AssertionError("it wrote")
    conn.rollback()


@pytest.mark.parametrize("first", ["LOCK TABLE locked", "SET LOCAL work_mem = '5MB'", "SET CONSTRAINTS ALL DEFERRED", "NOTIFY a"])
@pytest.mark.parametrize("server", [False, True])
def test_no_snapshot_too_early(ps_lab: Lab, connect: Connect, first: str, server: bool) -> None:
    """Lock, then read: at REPEATABLE READ the snapshot is taken with the first query, as with stock."""
    conn = connect(tracking(ps_lab, "primary"))
    conn.isolation_level = IsolationLevel.REPEATABLE_READ
    cursor: Any = ServerBindingCursor(conn) if server else conn.cursor()
    cursor.execute(first)
    ps_lab.sql("INSERT INTO strange (id) VALUES (1)")
    cursor.execute("LOCK TABLE strange IN SHARE MODE")
    assert cursor.execute("SELECT count(*) FROM strange").fetchone() == (1,)
    conn.rollback()


@pytest.mark.parametrize("endpoint", ["primary", "replica", "stand-in", "direct"])
def test_modes_can_be_set_at_first(ps_lab: Lab, connect: Connect, endpoint: str) -> None:
    """SET TRANSACTION is a transaction's first statement, and its second, also with a token."""
    with use_token(Token(identity=ps_lab.branch, position=1, at=time.time())):
        conn = connect(tracking(ps_lab, endpoint))
        conn.execute("SET TRANSACTION READ ONLY")
        conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        assert conn.execute("SHOW transaction_isolation").fetchone() == ("repeatable read",)
        conn.rollback()
        with conn.transaction():
            conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            assert conn.execute("SHOW transaction_isolation").fetchone() == ("repeatable read",)


@pytest.mark.parametrize("endpoint", ["primary", "replica", "direct"])
@pytest.mark.parametrize("autocommit", [True, False])
def test_error_in_a_setting_is_its_own(ps_lab: Lab, connect: Connect, endpoint: str, autocommit: bool) -> None:
    """A role that is not there is no replica that is behind, although the SQLSTATE (22023) is the same."""
    conn = connect(tracking(ps_lab, endpoint, assumed_role="nobody_has_it"), autocommit=autocommit)
    for run in (lambda conn: conn.execute("SELECT 1"), in_pipeline(lambda conn: conn.execute("SELECT 1"))):
        with pytest.raises(psycopg.errors.InvalidParameterValue, match="nobody_has_it") as raised:
            run(conn)
        assert not isinstance(raised.value, ReplicaBehind)
        conn.rollback()


def test_savepoint_undone_past_the_deadline(ps_lab: Lab, connect: Connect) -> None:
    """In a pipeline, too, what undoes something is sent."""
    conn = connect(tracking(ps_lab, "primary"))
    conn.execute("SELECT 1")
    with conn.pipeline(), deadline(0.05):
        conn.execute("SAVEPOINT a")
        until_over()
        conn.execute("ROLLBACK TO SAVEPOINT a")
        with pytest.raises(DeadlineExceeded):
            conn.execute("SELECT 1")
    conn.rollback()
