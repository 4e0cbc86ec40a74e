"""All ways of sending and all promises, on real servers.

With PS_WRITE_DOCS=1 in the environment, what was met is written to docs/generated/every-way.md.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

import ps_core
from ps_core import AsyncConnection, Connection, deadline, limits, local_settings, use_token
from ps_core._retry import deadline as of_deadlines
from ps_core.consistency import Token, parse_lsn
from ps_core.errors import CommitOutcomeUnknown, DeadlineExceeded, MayWrite
from ps_lab.processes import wait_until
from tests.ps_core.conftest import tracking
from tests.ps_core.every_way.driven import Driven
from tests.ps_core.every_way.page import PAGE, Table
from tests.ps_core.every_way.ways import FORMS, ROLE, SCHEMA, SEEN, STAGES, WAYS, Place, Way

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ps_lab import Lab

STATES = ("autocommit", "first", "later")
FAR = 1 << 62
"""A position that no replica has."""
SETS = (
    f"SET ROLE {ROLE}",
    "SET statement_timeout = '7s'",
    "SET transaction_timeout = '9s'",
    "SET idle_in_transaction_session_timeout = '8s'",
    "SET lock_timeout = '6s'",
    "SELECT set_config('app.tenant', '42', false)",
)
"""The same as `promising()` and the configuration."""
TABLE = Table()
BEHIND = (
    "ReplicaBehind: replica_behind: the endpoint 'replica' did not answer: it has not replayed yet what this caller has seen; the"
    " primary has it"
)
READ_ONLY = "refused: READ ONLY"
PINNING = {"stream", "COPY FROM", "COPY (query) TO", "pipeline"}
"""Ways whose writes in autocommit have no room for a question."""
UNKNOWN = {"several statements", "BEGIN … COMMIT in one text", "COMMIT AND CHAIN"}
"""Ways of which it is not known what they do."""


@pytest.fixture(scope="module")
def places(ps_lab: Lab) -> Iterator[dict[str, Place]]:
    """Every endpoint, with an assumed role; the stand-in is the primary in a replica's place, as a promoted standby is."""
    ps_lab.sql(SCHEMA)
    ps_lab.wait_replicas_caught_up()
    found = {}
    for name in ("primary", "replica", "stand-in", "direct"):
        state = tracking(ps_lab, name, assumed_role=ROLE)
        Connection.open(state).close()
        found[name] = Place(name, state)
    yield found
    ps_lab.sql("DROP SCHEMA ways CASCADE")
    ps_lab.sql(f"DROP ROLE {ROLE}")


@pytest.fixture(scope="module")
def superuser(ps_lab: Lab, places: dict[str, Place]) -> Iterator[psycopg.Connection[Any]]:
    """A session on the primary, past edge and poolers, for thousands of questions: `Lab.sql` makes a new one for each."""
    with psycopg.connect(ps_lab.primary.dsn(), autocommit=True, prepare_threshold=None) as conn:
        yield conn


@pytest.fixture(scope="module")
def foreign(places: dict[str, Place]) -> Iterator[Callable[[], None]]:
    """Foreign clients of the poolers, who look on all the time, and when they are called."""
    with ExitStack() as stack:
        clients: list[tuple[psycopg.Connection[Any], psycopg.Connection[Any], list[Any]]] = []
        for name in ("primary", "replica"):
            conninfo = ps_core.conninfo(places[name].state.endpoint)
            pair = [stack.enter_context(psycopg.connect(**conninfo, autocommit=True, prepare_threshold=None)) for _ in range(2)]
            clients.append((pair[0], pair[1], pair[0].execute(SEEN).fetchall()))
        met: list[Any] = []
        over = threading.Event()

        def watch() -> None:
            while not over.wait(0.02):  # no more often: it takes the time of the servers from the tests
                for watching, _, own in clients:
                    with suppress(psycopg.OperationalError):  # its server was lost, as some tests want it
                        met.extend(row for row in watching.execute(SEEN).fetchall() if [row] != own)

        def look() -> None:
            for _, looking, own in clients:
                assert looking.execute(SEEN).fetchall() == own
            assert met == []

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield look
        finally:
            over.set()
            watcher.join()


@contextmanager
def opened(place: Place, *, asynchronous: bool, state: str) -> Iterator[Any]:
    """Return a connection, in the state in which the statement arrives."""
    with ExitStack() as stack:
        autocommit = state == "autocommit"
        if asynchronous:
            runner = stack.enter_context(asyncio.Runner())
            conn: Any = Driven(runner, runner.run(AsyncConnection.open(place.state, autocommit=autocommit)))
        else:
            conn = Connection.open(place.state, autocommit=autocommit)
        stack.callback(conn.close)
        yield conn


@contextmanager
def promising(place: Place) -> Iterator[None]:
    """Promise what `kept()` looks for."""
    settings = {"app.tenant": "42", "app.reads": "on" if place.reads else "off"}
    with limits(statement=7, transaction=9, idle_in_transaction=8, lock=6), local_settings(settings):
        yield


def begin(conn: Any, state: str) -> None:
    """Open the transaction by another statement, also on a replica, where plain reads open none."""
    if state == "later":
        conn.execute("DO 'BEGIN END'")


def outcome(run: Callable[[], object], conn: Any = None, state: str = "autocommit") -> str:
    """Return what became of a statement, and of the COMMIT behind it."""
    try:
        run()
        if state != "autocommit":
            conn.commit()
    except (MayWrite, psycopg.errors.ReadOnlySqlTransaction):
        return READ_ONLY
    except psycopg.Error as exc:
        return f"{type(exc).__name__}: {str(exc).splitlines()[0]}"
    return "kept"


def refused(way: Way, place: Place, state: str) -> str | None:
    """Return how a way is refused in a state and place."""
    if way.name == "named cursor" and state == "autocommit":
        return "NoActiveSqlTransaction: DECLARE CURSOR can only be used in transaction blocks"  # as with stock
    if way.name == "COMMIT AND CHAIN" and place.reads:
        return (
            f"NotSupportedError: AND CHAIN, and BEGIN in a pipeline, begin a transaction on {place.state.endpoint.name!r},"
            " an endpoint for reads, without asking whether it has what the caller has seen: use `with connection.transaction():`"
        )
    return None


def both(values: list[Any], names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(names, values, ids=[value.name for value in values])


def forms(asynchronous: bool) -> Iterable[Callable[[str], Any]]:
    """Return the forms of a text: all of them for the sync connection. Both read a text in one place."""
    return (str,) if asynchronous else FORMS.values()


asynchronously = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "asyncio"])


@asynchronously
@both(WAYS, "way")
def test_settings_and_tokens(
    superuser: psycopg.Connection[Any], places: dict[str, Place], foreign: Callable[[], None], way: Way, asynchronous: bool
) -> None:
    """Timeouts, limits(), local settings, assumed role and READ ONLY hold; a token comes back; nothing is left behind."""
    for place in places.values():
        for state in STATES:
            with opened(place, asynchronous=asynchronous, state=state) as conn:
                for job, text in way.jobs():
                    for form in forms(asynchronous):
                        ((flushed,),) = superuser.execute("SELECT pg_current_wal_flush_lsn()::text").fetchall()
                        before = parse_lsn(flushed, reached=True)
                        with promising(place), use_token(None) as tracker:
                            begin(conn, state)
                            met = outcome(partial(way.run, conn, form, text), conn, state)
                            conn.rollback()
                        written = superuser.execute("DELETE FROM ways.item").rowcount
                        forbidden = READ_ONLY if place.reads and job == "write" else "kept"
                        assert met == (refused(way, place, state) or forbidden)
                        TABLE.note("settings", way, state, place, f"{job}: {met}")
                        assert (written > 0) is (job == "write" and met == "kept")
                        if met == "kept":
                            token = tracker.token
                            assert token is not None
                            unknown = way.name in UNKNOWN or (job == "write" and state == "autocommit" and way.name in PINNING)
                            whole = way.name in ("BEGIN … COMMIT in one text", "COMMIT AND CHAIN") or state == "autocommit"
                            pinned = unknown and whole and not place.reads
                            assert (token.position is None) is pinned
                            assert token.position is None or token.position >= before or place.reads
                            TABLE.note(f"after a {job}", way, state, place, "pin" if pinned else "position")
                        foreign()


@asynchronously
@both(WAYS, "way")
def test_what_was_set(
    ps_lab: Lab,
    superuser: psycopg.Connection[Any],
    places: dict[str, Place],
    foreign: Callable[[], None],
    way: Way,
    asynchronous: bool,
) -> None:
    """What was SET for the session before holds in every way of sending, as what the blocks and the configuration say."""
    for name in ("primary", "replica", "stand-in"):
        place = Place(name, tracking(ps_lab, name))
        for state in STATES:
            with opened(place, asynchronous=asynchronous, state=state) as conn, use_token(None):
                for text in (*SETS, f"SET app.reads = {'on' if place.reads else 'off'}"):
                    conn.execute(text)
                    conn.commit()
                for job, text in way.jobs():
                    begin(conn, state)
                    met = outcome(partial(way.run, conn, str, text), conn, state)
                    conn.rollback()
                    written = superuser.execute("DELETE FROM ways.item").rowcount
                    assert met == (refused(way, place, state) or (READ_ONLY if place.reads and job == "write" else "kept"))
                    TABLE.note("what was SET", way, state, place, f"{job}: {met}")
                    assert (written > 0) is (job == "write" and met == "kept")
                    foreign()


@asynchronously
@both(WAYS, "way")
def test_guard(places: dict[str, Place], foreign: Callable[[], None], way: Way, asynchronous: bool) -> None:
    """A read on a replica that has not what its caller has seen is refused by the server, also within an open transaction."""
    place = places["replica"]
    for state in STATES:
        with opened(place, asynchronous=asynchronous, state=state) as conn:
            if way.read is None:
                continue
            for form in forms(asynchronous):
                with promising(place), use_token(None):
                    begin(conn, state)
                    with use_token(Token(identity=place.state.identity, position=FAR, at=time.time())):
                        met = outcome(partial(way.run, conn, form, way.read))
                    conn.rollback()
                assert met in (refused(way, place, state), BEHIND)
                TABLE.note("guard", way, state, place, met)
                foreign()
                with promising(place), use_token(None):
                    conn.execute("SELECT ways.kept()")  # it can still be used
                    conn.rollback()


@asynchronously
@both(WAYS, "way")
def test_deadline(
    ps_lab: Lab,
    superuser: psycopg.Connection[Any],
    places: dict[str, Place],
    way: Way,
    asynchronous: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where the answer is swallowed, the deadline ends the wait."""
    monkeypatch.setattr(of_deadlines, "GRACE", 0.02)
    place = places["primary"]
    for state in STATES:
        if refused(way, place, state):
            continue
        for _, text in [*way.jobs()][-1:]:
            clients = ps_lab.edge.status()["clients"]
            with opened(place, asynchronous=asynchronous, state=state) as conn, use_token(None):
                with promising(place):
                    conn.execute("SELECT 1")
                    begin(conn, state)
                    if state == "first":
                        conn.commit()
                began = time.monotonic()
                with (
                    ps_lab.edge.hang("primary"),
                    promising(place),
                    deadline(0.05),
                    pytest.raises((DeadlineExceeded, CommitOutcomeUnknown)),
                ):
                    way.run(conn, str, text)
                    conn.commit()
                assert time.monotonic() - began < 2
            # What was under way may still arrive, over the WebSocket, when the edge goes on: it is not for the next test.
            wait_until(lambda: ps_lab.edge.status()["clients"] <= clients, "the end of its connection")  # noqa: B023
            superuser.execute("DELETE FROM ways.item")
            TABLE.note("deadline", way, state, place, "kept")


@asynchronously
@both(WAYS, "way")
def test_lost_answer(
    ps_lab: Lab, superuser: psycopg.Connection[Any], places: dict[str, Place], way: Way, asynchronous: bool
) -> None:
    """Where the answer is lost with its connection, a statement is sent again only where nothing can be doubled."""
    place = places["primary"]
    again = {"execute", 'execute, `binding="server"`', "named cursor"}
    for state in STATES:
        if refused(way, place, state):
            continue
        for job, text in way.jobs():
            with opened(place, asynchronous=asynchronous, state=state) as conn, promising(place), use_token(None):
                conn.execute("SELECT 1")
                conn.commit()
                begin(conn, state)
                with ps_lab.edge.cut_answers("primary", containing="ways."):
                    met = outcome(partial(way.run, conn, str, text), conn, state)
                    assert ps_lab.edge.status()["answer_cuts"] == 0
                safe = way.name in again and (state == "first" or (state == "autocommit" and job == "read"))
                assert (met == "kept") is safe, met
                with suppress(psycopg.Error):
                    conn.rollback()
            written = superuser.execute("DELETE FROM ways.item").rowcount
            each = 2 if way.name.startswith("executemany") else 1
            assert written == each if safe and job == "write" else written <= each
            TABLE.note("lost answer", way, state, place, f"{job}: {'sent again' if safe else 'raised'}")


@asynchronously
@both(STAGES, "stage")
def test_errors_leave_nothing(places: dict[str, Place], foreign: Callable[[], None], stage: Way, asynchronous: bool) -> None:
    """After an error at any stage the next client of the pooler finds nothing of ours, and the connection can be used."""
    # A PgBouncer with several hosts for one database, as that of the replicas, hands a cancel request to any of them.
    cancels = "cancelled" in stage.name
    for place in (places["primary"], *([] if cancels else [places["replica"]])):
        for state in STATES:
            with opened(place, asynchronous=asynchronous, state=state) as conn, use_token(None):
                if refused(stage, place, state):
                    continue
                with promising(place):
                    begin(conn, state)
                    with suppress(psycopg.Error, ZeroDivisionError):
                        stage.run(conn, str, stage.wrong or "")
                        raise AssertionError("no error")
                    foreign()
                    conn.rollback()
                    foreign()
                    conn.execute("SELECT ways.kept()")
                    conn.rollback()


@asynchronously
@both([way for way in WAYS if way.wrong], "way")
def test_syntax_errors(places: dict[str, Place], foreign: Callable[[], None], way: Way, asynchronous: bool) -> None:
    """A statement that is wrong raises the server's own error, in every way, and leaves nothing behind."""
    for place in (places["primary"], places["replica"], places["direct"]):
        for state in STATES:
            with opened(place, asynchronous=asynchronous, state=state) as conn, use_token(None), promising(place):
                for form in forms(asynchronous):
                    begin(conn, state)
                    met = outcome(partial(way.run, conn, form, way.wrong or ""))
                    conn.rollback()
                    allowed = (refused(way, place, state), "SyntaxError")
                    assert met in allowed or met.startswith("SyntaxError: syntax error at "), met
                    foreign()
                    conn.execute("SELECT ways.kept()")
                    conn.rollback()
                TABLE.note("after an error", way, state, place, "kept")


def test_page() -> None:
    """The page is what was met, and no cell of it is unknown."""
    if not TABLE.is_whole(WAYS, STATES):
        pytest.skip("some ways did not run")
    text = TABLE.page(WAYS, STATES)
    if os.environ.get("PS_WRITE_DOCS"):
        PAGE.write_text(text)
    assert PAGE.read_text() == text, "write it anew: PS_WRITE_DOCS=1 pytest tests/ps_core/test_every_way.py"
