"""Every way of sending a statement, as what it does with a connection and one job: to read, or to write.

A job's statement checks by itself that what was promised holds where it runs: `kept()` raises if not (see `SCHEMA`). So no way
needs results to prove something: an executemany without rows, a COPY, a column's default do it as well.
"""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from psycopg import sql

from ps_core._connection.cursors import AsyncServerBindingCursor, ServerBindingCursor
from tests.ps_core.every_way.driven import Driven

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ps_core._endpoint import EndpointState

__all__ = ["FORMS", "ROLE", "SCHEMA", "SEEN", "STAGES", "WAYS", "Place", "Way"]

ROLE: Final = "assumed"
SCHEMA: Final = f"""
DROP ROLE IF EXISTS {ROLE};
CREATE ROLE {ROLE};
GRANT {ROLE} TO app;
CREATE SCHEMA ways;
GRANT USAGE ON SCHEMA ways TO PUBLIC;
CREATE FUNCTION ways.kept() RETURNS int LANGUAGE plpgsql STABLE AS $$
DECLARE seen text := concat_ws(' ', current_setting('statement_timeout'), current_setting('transaction_timeout'),
    current_setting('idle_in_transaction_session_timeout'), current_setting('lock_timeout'), current_setting('app.tenant', true),
    current_user);
BEGIN
    IF seen <> '7s 9s 8s 6s 42 {ROLE}' THEN RAISE EXCEPTION 'not kept: %', seen; END IF;
    IF current_setting('transaction_read_only') < current_setting('app.reads') THEN RAISE EXCEPTION 'not READ ONLY'; END IF;
    RETURN 1;
END $$;
CREATE TABLE ways.item (id int DEFAULT 1, kept int DEFAULT ways.kept());
CREATE FUNCTION ways.wrote() RETURNS int LANGUAGE sql AS 'INSERT INTO ways.item DEFAULT VALUES RETURNING kept';
CREATE TABLE ways.guarded (id int);
INSERT INTO ways.guarded VALUES (1);
ALTER TABLE ways.guarded ENABLE ROW LEVEL SECURITY;
CREATE POLICY kept ON ways.guarded USING (ways.kept() = id);
GRANT ALL ON ALL TABLES IN SCHEMA ways TO PUBLIC
"""
"""What the jobs need. A column's default and a policy are how COPY says what it saw."""
SEEN: Final = (
    "SELECT current_setting('statement_timeout'), current_setting('transaction_timeout'),"
    " current_setting('idle_in_transaction_session_timeout'), current_setting('lock_timeout'),"
    " coalesce(current_setting('app.tenant', true), ''), coalesce(current_setting('app.reads', true), ''),"
    " current_user::text, current_setting('transaction_isolation')"
)
"""What a foreign client of the pooler sees of all that we set."""

READ, WRITE = "SELECT ways.kept()", "INSERT INTO ways.item DEFAULT VALUES"

FORMS: Final[dict[str, Callable[[str], Any]]] = {
    "str": str,
    "bytes": str.encode,
    "Composable": lambda text: sql.SQL("{}").format(sql.SQL(text)),  # a test's own text
}
if sys.version_info >= (3, 14):
    FORMS["Template"] = lambda text: eval(f"t{text!r}")


@dataclass(frozen=True)
class Place:
    """An endpoint."""

    name: str
    state: EndpointState

    @property
    def reads(self) -> bool:
        """Whether it is one for reads."""
        return self.state.endpoint.read_only


@dataclass(frozen=True)
class Way:
    """A way of sending."""

    name: str
    run: Callable[[Any, Callable[[str], Any], str], Any]
    """Sends a statement in this way; given a connection, what makes a query of a text, and the text."""
    read: str | None = None
    write: str | None = None
    wrong: str | None = None
    """With a syntax error."""

    def jobs(self) -> Iterator[tuple[str, str]]:
        """Return what it can be used for: "read", "write", each with its text."""
        if self.read is not None:
            yield "read", self.read
        if self.write is not None:
            yield "write", self.write


def _server(conn: Any, form: Callable[[str], Any], text: str) -> Any:
    driven = isinstance(conn, Driven)
    cursor: Any = Driven(conn.runner, AsyncServerBindingCursor(conn.what)) if driven else ServerBindingCursor(conn)
    return cursor.execute(form(text), (1,))


def _stream(conn: Any, form: Callable[[str], Any], text: str) -> Any:
    return list(conn.cursor().stream(form(text)))


def _copy_in(conn: Any, form: Callable[[str], Any], text: str) -> None:
    with conn.cursor().copy(form(text)) as copy:
        copy.write_row((1,))


def _copy_out(conn: Any, form: Callable[[str], Any], text: str) -> None:
    with conn.cursor().copy(form(text)) as copy:
        assert len(list(copy)) == 1


def _named(conn: Any, form: Callable[[str], Any], text: str) -> None:
    cursor = conn.cursor("named")
    try:
        cursor.execute(form(text))
        assert cursor.fetchall() == [(1,)]
    finally:
        cursor.close()


def _pipeline(conn: Any, form: Callable[[str], Any], text: str) -> None:
    with conn.pipeline():
        conn.execute(form("SELECT 1"))
        conn.execute(form(text))


def _transaction(conn: Any, form: Callable[[str], Any], text: str) -> None:
    with conn.transaction():
        conn.execute(form(text))


def _chained(conn: Any, form: Callable[[str], Any], text: str) -> None:
    conn.execute(form("BEGIN"))
    conn.execute(form("COMMIT AND CHAIN"))
    conn.execute(form(text))
    conn.execute(form("COMMIT"))


def _execute(conn: Any, form: Callable[[str], Any], text: str) -> None:
    conn.execute(form(text))


def _many(conn: Any, form: Callable[[str], Any], text: str) -> None:
    conn.cursor().executemany(form(text), [(1,), (1,)])


def _many_returning(conn: Any, form: Callable[[str], Any], text: str) -> None:
    conn.cursor().executemany(form(text), [(1,), (1,)], returning=True)


INSERT: Final = "INSERT INTO ways.item (id) VALUES (%s)"
WAYS: Final = [
    Way("execute", _execute, READ, WRITE, "SELEC 1"),
    Way('execute, `binding="server"`', _server, f"{READ} WHERE 1 = %s", INSERT, "SELEC %s"),
    Way("executemany", _many, f"{READ} WHERE 1 = %s", INSERT, "SELEC %s"),
    Way("executemany, returning", _many_returning, f"{READ} WHERE 1 = %s", f"{INSERT} RETURNING id", "SELEC %s"),
    Way("stream", _stream, READ, f"{WRITE} RETURNING id", "SELEC 1"),
    Way("COPY FROM", _copy_in, None, "COPY ways.item (id) FROM STDIN", "COPY ways.item (id FROM STDIN"),
    Way("COPY TO", _copy_out, "COPY ways.guarded TO STDOUT", None, "COPY ways.guarded, TO STDOUT"),
    Way(
        "COPY (query) TO",
        _copy_out,
        f"COPY ({READ}) TO STDOUT",
        f"COPY ({WRITE} RETURNING id) TO STDOUT",
        "COPY (SELEC 1) TO STDOUT",
    ),
    Way("named cursor", _named, READ, "SELECT ways.wrote()", "SELECT 1 +"),
    Way("pipeline", _pipeline, READ, WRITE, "SELEC 1"),
    Way("`conn.transaction()`", _transaction, READ, WRITE, "SELEC 1"),
    Way("several statements", _execute, f"SELECT 1; {READ}", f"SELECT 1; {WRITE}", "SELECT 1; SELEC 1"),
    Way("BEGIN … COMMIT in one text", _execute, f"BEGIN; {READ}; COMMIT", f"BEGIN; {WRITE}; COMMIT", "BEGIN; SELEC 1; COMMIT"),
    Way("COMMIT AND CHAIN", _chained, READ, WRITE, "SELEC 1"),
]


def _cancelled(conn: Any, form: Callable[[str], Any], text: str) -> None:
    cancel = threading.Timer(0.05, partial(_cancel, conn))
    cancel.start()
    try:
        conn.execute(form(text))
    finally:
        cancel.join()


def _cancel(conn: Any) -> None:
    (conn.what if isinstance(conn, Driven) else conn).pgconn.get_cancel().cancel()


def _aborted_copy(conn: Any, form: Callable[[str], Any], text: str) -> None:
    with conn.cursor().copy(form(text)) as copy:
        copy.write_row((1,))
        raise ZeroDivisionError


def _half_read_copy(conn: Any, form: Callable[[str], Any], text: str) -> None:
    with conn.cursor().copy(form(text)) as copy:
        copy.read()
        raise ZeroDivisionError


def _abandoned_stream(conn: Any, form: Callable[[str], Any], text: str) -> None:
    rows = iter(conn.cursor().stream(form(text)))
    next(rows)
    rows.close()
    raise ZeroDivisionError


def _broken_stream(conn: Any, form: Callable[[str], Any], text: str) -> None:
    for _ in conn.cursor().stream(form(text)):
        pass


def _closed_early(conn: Any, form: Callable[[str], Any], text: str) -> None:
    cursor = conn.cursor("named")
    try:
        cursor.execute(form(text))
        cursor.fetchone()
    finally:
        cursor.close()
    raise ZeroDivisionError


def _aborted_pipeline(conn: Any, form: Callable[[str], Any], text: str) -> None:
    with conn.pipeline() as pipeline:
        conn.execute(form("SELECT 1"))
        conn.execute(form(text))
        conn.execute(form("SELECT 1"))
        pipeline.sync()


def _left_pipeline(conn: Any, form: Callable[[str], Any], text: str) -> None:
    with conn.pipeline():
        conn.execute(form(text))
        raise ZeroDivisionError


def _raised_within(conn: Any, form: Callable[[str], Any], text: str) -> None:
    with conn.transaction():
        conn.execute(form(text))
        raise ZeroDivisionError


MANY: Final = "SELECT generate_series(1, 100000)"
STAGES: Final = [
    Way("a statement that is cancelled", _cancelled, wrong="SELECT pg_sleep(20)"),
    Way("a statement that times out", _execute, wrong="SET LOCAL statement_timeout = 20; SELECT pg_sleep(20)"),
    Way("an error of the second of several statements", _execute, wrong="SELECT 1; SELECT 1 / 0; SELECT 2"),
    Way("a COPY FROM that the caller gives up", _aborted_copy, wrong="COPY ways.item (id) FROM STDIN"),
    Way("a COPY FROM with data that is refused", _copy_in, wrong="COPY ways.item (id, kept, nothing) FROM STDIN"),
    Way("a COPY TO that the caller gives up", _half_read_copy, wrong=f"COPY ({MANY}) TO STDOUT"),
    Way(
        "a COPY TO that fails under way", _copy_out, wrong="COPY (SELECT 1 / (500 - n) FROM generate_series(1, 1000) n) TO STDOUT"
    ),
    Way("a stream that is abandoned", _abandoned_stream, wrong=MANY),
    Way("a stream that fails under way", _broken_stream, wrong="SELECT 1 / (500 - n) FROM generate_series(1, 1000) n"),
    Way("a named cursor that is closed early", _closed_early, wrong=MANY),
    Way("a pipeline that is aborted", _aborted_pipeline, wrong="SELECT 1 / 0"),
    Way("a pipeline that the caller leaves", _left_pipeline, wrong="SELECT 1"),
    Way("a transaction that the caller leaves", _raised_within, wrong="SELECT 1"),
]
"""Errors at every stage, each of them raised."""
