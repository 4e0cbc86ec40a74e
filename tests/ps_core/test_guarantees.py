"""The levels of `consistency`: what each sends, and what its reads promise, on a primary and on replicas."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, get_args

import psycopg
import pytest
from psycopg import sql

import ps_core
from ps_core import Connection, RetryPolicy, commit_check, use_token
from ps_core._connection.base import SET_STATEMENT_TIMEOUT
from ps_core._connection.cursors import ServerBindingCursor
from ps_core._message.commit import Answers, ending
from ps_core._message.functions import Functions
from ps_core._message.plan import After, Before, Facts, Plan, Way, make_plan
from ps_core._message.statement import analyse
from ps_core._registry import replicas_of, states_of
from ps_core.consistency import REPLICA_POSITION_SQL, guard_setting, guard_sql
from ps_core.context import Tracker, current_token
from ps_core.errors import ConfigurationError, ReplicaBehind
from ps_core.topology import Consistency, Topology
from ps_lab import Lab
from ps_lab.routes import Path
from tests.ps_core.wire import sending

URL = "postgresql://app.br4nch:s3cret@x.horizon.psdb.cloud"
MONOTONIC, OWN, NONE = LEVELS = get_args(Consistency)


# --- what is decided, without a server ---


@pytest.mark.fast
@pytest.mark.parametrize("level", LEVELS)
def test_states(level: Consistency) -> None:
    """Every endpoint of a topology keeps its level, the fallback to the primary, too; without replicas nothing is asked for."""
    topology = Topology.from_url(URL, replica_bouncer="read-pool", consistency=level)
    replicas = replicas_of(topology)
    assert replicas is not None
    assert replicas.fallback is not None
    primary, (replica,), direct = states_of(topology)
    assert replica is replicas.states[0]
    for state in (primary, replica, direct, replicas.fallback):
        assert (state.tracks, state.tracks and state.tracks_reads) == (level != NONE, level == MONOTONIC)
    assert not states_of(Topology.from_url(URL, consistency=level))[0].tracks


@pytest.mark.fast
@pytest.mark.parametrize("value", ["read-your-writes", "Monotonic", "", None, False, True, 0, ["none"]])
def test_refused(value: Any) -> None:
    """An unknown level is refused with a list of the levels, wherever it stands; None is not taken for "none"."""
    with pytest.raises(ConfigurationError, match=r"^consistency: write 'monotonic', 'read_your_writes' or 'none', not "):
        Topology.from_url(URL, consistency=value)
    topology = Topology.from_url(URL)
    with pytest.raises(ConfigurationError, match=r"^consistency: write 'monotonic'"):
        Topology(primary=topology.primary, direct=topology.direct, identity="b", consistency=value)
    if isinstance(value, str):
        with pytest.raises(ConfigurationError, match=r"^ps_consistency: write 'monotonic'"):
            Topology.from_url(f"{URL}?ps_consistency={value}")


@pytest.mark.fast
def test_refused_in_the_environment() -> None:
    """The message names the variable."""
    with pytest.raises(ConfigurationError, match=r"^PS_consistency: write 'monotonic'"):
        Topology.from_env({"PS_URL": URL, "PS_CONSISTENCY": "strong"})


READ, SETS, COPIES = "select 1", "select set_config('a.b', 'c', false)", "copy t to stdout"
REPLICA, AUTO = {"endpoint_reads": True}, {"autocommit": True}

PLANS: dict[str, tuple[str, dict[str, Any], tuple[Before, After], tuple[Before, After]]] = {
    "a read": (READ, AUTO, (Before.READ, After.POSITION), (Before.READ, After.NOTHING)),
    "a read on a replica": (READ, AUTO | REPLICA, (Before.READ, After.POSITION), (Before.READ, After.NOTHING)),
    "no read, on a replica": ("call p()", AUTO | REPLICA, (Before.READ, After.POSITION), (Before.READ, After.NOTHING)),
    "the first read of a transaction": (READ, {}, (Before.TRANSACTION, After.PLACE), (Before.TRANSACTION, After.NOTHING)),
    "a setting": (SETS, AUTO, (Before.BEGIN, After.COMMIT), (Before.SETTINGS, After.NOTHING)),
    "rows": (READ, AUTO | {"way": Way.ROWS}, (Before.SNAPSHOT, After.NOTHING), (Before.SETTINGS, After.NOTHING)),
    "rows of a replica": (
        READ,
        AUTO | REPLICA | {"way": Way.ROWS},
        (Before.SNAPSHOT, After.NOTHING),
        (Before.SETTINGS_GUARDED, After.NOTHING),
    ),
    "the end of a replica's transaction": (
        "commit",
        REPLICA | {"within": True},
        (Before.NOTHING, After.POSITION),
        (Before.NOTHING, After.NOTHING),
    ),
    "a replica's transaction in one text": (
        "begin; select 1; commit",
        REPLICA,
        (Before.TRANSACTION, After.POSITION),
        (Before.TRANSACTION, After.NOTHING),
    ),
    "COPY TO": (COPIES, AUTO | {"way": Way.COPY}, (Before.SNAPSHOT, After.NOTHING), (Before.SETTINGS, After.NOTHING)),
    "COPY TO of a replica": (
        COPIES,
        AUTO | REPLICA | {"way": Way.COPY},
        (Before.SNAPSHOT, After.NOTHING),
        (Before.SETTINGS_GUARDED, After.NOTHING),
    ),
}
"""A text and its facts; what goes before and after it where reads bring positions, and where only writes do."""

SAME: dict[str, tuple[str, dict[str, Any]]] = {
    "a write": ("insert into t values (1)", AUTO),
    "code": ("call p()", AUTO),
    "a read that may write": (READ, AUTO | {"may_write": True}),
    "a setting that may write": (SETS, AUTO | {"may_write": True}),
    "a first write": ("insert into t values (1)", {}),
    "COPY FROM": ("copy t from stdin", AUTO | {"way": Way.COPY}),
    "a later read on a replica": (READ, AUTO | REPLICA | {"within": True}),
}
"""What does not differ between these two."""


def planned(text: str, facts: dict[str, Any], **more: Any) -> tuple[Before, After]:
    """Return what goes before and after a text."""
    plan = make_plan(analyse(text), Facts(**facts, **more))
    assert isinstance(plan, Plan)
    return plan.before, plan.after


@pytest.mark.fast
@pytest.mark.parametrize("name", PLANS)
def test_plans_of_reads(name: str) -> None:
    """Where only writes bring positions, nothing is asked for a read, and a replica's guard stays."""
    text, facts, monotonic, own = PLANS[name]
    assert planned(text, facts, tracks=True) == monotonic
    assert planned(text, facts, tracks=True, tracks_reads=False) == own
    assert planned(text, facts, tracks=False) == own


@pytest.mark.fast
@pytest.mark.parametrize("name", SAME)
def test_plans_of_writes(name: str) -> None:
    """What may have written is asked for its position at both levels."""
    text, facts = SAME[name]
    assert planned(text, facts, tracks=True) == planned(text, facts, tracks=True, tracks_reads=False)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("command", "facts", "asks"),
    [
        (b"COMMIT", {}, Answers.COMMITTED_POSITION),
        (b"COMMIT", {"read_only": True}, None),
        (b"COMMIT", {"on_replica": True}, None),
        (b"COMMIT", {"failed": True}, None),
        (b"ROLLBACK", {}, None),
        (b"ROLLBACK", {"on_replica": True}, None),
    ],
)
def test_ends(command: bytes, facts: dict[str, Any], asks: Answers | None) -> None:
    """Where only writes bring positions, a transaction that wrote nothing, or was rolled back, is not asked for one."""
    own = ending(command, tracks=True, tracks_reads=False, **facts)
    asked = [what for what, _ in own.parts if what in (Answers.POSITION, Answers.COMMITTED_POSITION)]
    assert asked == ([] if asks is None else [asks])
    monotonic = ending(command, tracks=True, **facts)
    assert [part for part in monotonic.parts if part[0] is not Answers.POSITION] == [*own.parts]


# --- what is sent ---


@pytest.fixture
def opened(ps_lab: Lab, table: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Connection[Any]]]:
    """Return a function that opens a connection of a level, in autocommit, once its caller has seen a write."""
    monkeypatch.setattr(Functions, "is_due", lambda *_: False)  # once a minute, a message asks for more
    with ExitStack() as stack:

        def open_connection(level: Consistency, to: Path = "primary", *, autocommit: bool = True) -> Connection[Any]:
            made: Any = ps_core.connect(
                ps_lab.url,
                to=to,
                bouncer="write-pool",
                replica_bouncer="read-pool",
                consistency=level,
                retry=RetryPolicy(attempts=0),
                autocommit=autocommit,
            )
            return stack.enter_context(made)

        yield open_connection


def read(conn: Connection[Any]) -> None:
    """In autocommit."""
    conn.execute("SELECT 5")


def several_reads(conn: Connection[Any]) -> None:
    """Read several times in a transaction."""
    with conn.transaction():
        conn.execute("SELECT 5")
        conn.execute("SELECT 6")


def stream(conn: Connection[Any]) -> None:
    """Rows while they come."""
    assert [*conn.cursor().stream("SELECT 5")] == [(5,)]


def copy_to(conn: Connection[Any]) -> None:
    """Data while it comes."""
    with conn.cursor().copy("COPY (SELECT 5) TO STDOUT") as copy:
        assert [*copy.rows()] == [("5",)]


def pipeline(conn: Connection[Any]) -> None:
    """Two reads that share an implicit transaction."""
    with conn.pipeline():
        conn.execute("SELECT 5")
        conn.execute("SELECT 6")


def bound_by_server(conn: Connection[Any]) -> None:
    """In a transaction of ours."""
    ServerBindingCursor(conn).execute("SELECT %s", (5,))


def rolled_back(conn: Connection[Any]) -> None:
    """A transaction that only read."""
    with conn.transaction(force_rollback=True):
        conn.execute("SELECT 5")


def declared(conn: Connection[Any]) -> None:
    """A transaction that was declared READ ONLY."""
    conn.read_only = True
    several_reads(conn)
    conn.read_only = None


def by_text(conn: Connection[Any]) -> None:
    """A transaction of the caller's own."""
    conn.execute("BEGIN")
    conn.execute("SELECT 5")
    conn.execute("COMMIT")


def sets(conn: Connection[Any]) -> None:
    """Do what Django does with each new connection."""
    conn.execute("SELECT set_config('a.b', 'c', false)")


def write(conn: Connection[Any]) -> None:
    """In autocommit."""
    conn.execute("INSERT INTO item VALUES (1)")


def writes(conn: Connection[Any]) -> None:
    """In a transaction."""
    with conn.transaction():
        conn.execute("INSERT INTO item VALUES (1)")


P, G, B = "; position", "guard; ", "BEGIN; guard; COMMIT; "
ON_PRIMARY: dict[Callable[[Connection[Any]], None], tuple[list[str], ...]] = {
    read: ([f"settings; read only; SELECT 5{P}"], ["settings; read only; SELECT 5"], ["settings; read only; SELECT 5"]),
    several_reads: (
        *2 * (["BEGIN; settings", "SELECT 5", "SELECT 6", "id; COMMIT; committed position"],),
        ["BEGIN; settings", "SELECT 5", "SELECT 6", "COMMIT"],
    ),
    stream: (["settings; snapshot; position; SELECT 5"], ["settings; SELECT 5"], ["settings; SELECT 5"]),
    copy_to: (
        ["settings; snapshot; position; COPY (SELECT 5) TO STDOUT"],
        ["settings; COPY (SELECT 5) TO STDOUT"],
        ["settings; COPY (SELECT 5) TO STDOUT"],
    ),
    pipeline: (["settings", "SELECT 5", "SELECT 6", "position"], *2 * (["settings", "SELECT 5", "SELECT 6"],)),
    bound_by_server: (
        ["BEGIN READ ONLY; settings", "SELECT $1", "COMMIT; position"],
        *2 * (["BEGIN READ ONLY; settings", "SELECT $1", "COMMIT"],),
    ),
    rolled_back: (["BEGIN; settings", "SELECT 5", "ROLLBACK; position"], *2 * (["BEGIN; settings", "SELECT 5", "ROLLBACK"],)),
    declared: (
        ["BEGIN READ ONLY; settings", "SELECT 5", "SELECT 6", "COMMIT; position"],
        *2 * (["BEGIN READ ONLY; settings", "SELECT 5", "SELECT 6", "COMMIT"],),
    ),
    sets: (*3 * (["settings; SELECT set_config('a.b', 'c', true ); SELECT pg_catalog.current_setting('a.b',true)"],),),
    write: (
        *2 * (["BEGIN; settings; INSERT INTO item VALUES (1); COMMIT; written position"],),
        ["settings; INSERT INTO item VALUES (1)"],
    ),
    writes: (
        *2 * (["BEGIN; settings", "INSERT INTO item VALUES (1); id", "synchronous_commit; COMMIT; committed position"],),
        ["BEGIN; settings", "INSERT INTO item VALUES (1); id", "COMMIT"],
    ),
}
"""What each way sends to the primary, at each level."""

ON_REPLICA: dict[Callable[[Connection[Any]], None], tuple[list[str], ...]] = {
    read: (
        [f"settings; {G}read only; SELECT 5{P}"],
        [f"settings; {G}read only; SELECT 5"],
        ["settings; read only; SELECT 5"],
    ),
    several_reads: (
        [f"{B}BEGIN READ ONLY; settings", "SELECT 5", "SELECT 6", "COMMIT; position"],
        [f"{B}BEGIN READ ONLY; settings", "SELECT 5", "SELECT 6", "COMMIT"],
        ["BEGIN READ ONLY; settings", "SELECT 5", "SELECT 6", "COMMIT"],
    ),
    stream: (
        [f"{B}settings; snapshot; read only; position; SELECT 5"],
        [f"{B}settings; read only; SELECT 5"],
        ["settings; read only; SELECT 5"],
    ),
    copy_to: (
        [f"{B}settings; snapshot; read only; position; COPY (SELECT 5) TO STDOUT"],
        [f"{B}settings; read only; COPY (SELECT 5) TO STDOUT"],
        ["settings; read only; COPY (SELECT 5) TO STDOUT"],
    ),
    pipeline: (
        ["guard", "settings", "SELECT 5", "SELECT 6", "position"],
        ["guard", "settings", "SELECT 5", "SELECT 6"],
        ["settings", "SELECT 5", "SELECT 6"],
    ),
    bound_by_server: (
        ["BEGIN READ ONLY; settings; guard", "SELECT $1", "COMMIT; position"],
        ["BEGIN READ ONLY; settings; guard", "SELECT $1", "COMMIT"],
        ["BEGIN READ ONLY; settings", "SELECT $1", "COMMIT"],
    ),
    by_text: (
        [f"{B}BEGIN; settings; read only", "SELECT 5", "COMMIT; position"],
        [f"{B}BEGIN; settings; read only", "SELECT 5", "COMMIT"],
        ["BEGIN; settings; read only", "SELECT 5", "COMMIT"],
    ),
    rolled_back: (
        ["BEGIN; guard; COMMIT; BEGIN READ ONLY; settings", "SELECT 5", "ROLLBACK; position"],
        ["BEGIN; guard; COMMIT; BEGIN READ ONLY; settings", "SELECT 5", "ROLLBACK"],
        ["BEGIN READ ONLY; settings", "SELECT 5", "ROLLBACK"],
    ),
}
"""The same of a replica, where the caller has written."""


def seen(tracker: Tracker) -> Any:
    """Return what a request or a job would hand on."""
    return None if tracker.token is None else tracker.token.position


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("way", ON_PRIMARY, ids=lambda way: way.__name__)
def test_on_primary(
    ps_lab: Lab, opened: Callable[..., Connection[Any]], way: Callable[[Connection[Any]], None], level: Consistency
) -> None:
    """The messages of each way, as many round trips at every level; where only writes bring positions, a read leaves none."""
    conn = opened(level)
    with use_token(None) as tracker:
        with sending(conn) as sent:
            way(conn)
        assert sent.messages == ON_PRIMARY[way][LEVELS.index(level)]
        assert tracker.unknown_positions == 0
        wrote = way in (write, writes)
        # What sets something for the session reads nothing, and writes nothing.
        brings = (level == MONOTONIC and way is not sets) or (level == OWN and wrote)
        assert (seen(tracker) is not None) is brings
        assert tracker.has_news is (wrote and level != NONE)
    with ps_lab.round_trips() as counter:
        way(conn)
    assert counter.count == TRIPS[way]


TRIPS: dict[Callable[[Connection[Any]], None], int] = {
    **dict.fromkeys((read, stream, copy_to, pipeline, sets, write), 1),
    **dict.fromkeys((bound_by_server, by_text, rolled_back, writes), 3),
    **dict.fromkeys((several_reads, declared), 4),
}
"""Round trips, the same at every level and on both endpoints."""


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("way", ON_REPLICA, ids=lambda way: way.__name__)
def test_on_replica(
    ps_lab: Lab, opened: Callable[..., Connection[Any]], way: Callable[[Connection[Any]], None], level: Consistency
) -> None:
    """The messages of each way where the caller has written: the guard at two levels, the position at one."""
    primary, conn = opened(level), opened(level, "replica")
    with use_token(None) as tracker:
        write(primary)
        ps_lab.wait_replicas_caught_up()
        wrote = seen(tracker)
        with sending(conn) as sent:
            way(conn)
        assert sent.messages == ON_REPLICA[way][LEVELS.index(level)]
        if level == MONOTONIC:
            assert seen(tracker) >= wrote
        else:
            assert seen(tracker) == wrote
            assert (wrote is None) is (level == NONE)
    with ps_lab.round_trips() as counter:
        way(conn)
    assert counter.count == TRIPS[way]


def test_bytes(ps_lab: Lab, opened: Callable[..., Connection[Any]]) -> None:
    """A read on a replica differs between levels by the position, and by the guard of those who have written."""
    sizes = []
    for level in LEVELS:
        conn = opened(level, "replica")
        with use_token(None):
            write(opened(level))
            token = current_token()
            ps_lab.wait_replicas_caught_up()
            with sending(conn) as sent:
                read(conn)
        guard = 0
        if token is not None and token.position is not None:  # it sets the timeout, too, in the place of a command
            timeout = b"'2000'"
            guard = len(guard_setting(guard_sql(token.position), timeout)) - len(SET_STATEMENT_TIMEOUT + timeout)
        position = len(b"\n;" + REPLICA_POSITION_SQL) if level == MONOTONIC else 0
        sizes.append(sent.bytes - guard - position)
    assert len(set(sizes)) == 1


# --- what is promised ---


@pytest.mark.parametrize("level", LEVELS)
def test_own_writes(ps_lab: Lab, opened: Callable[..., Connection[Any]], level: Consistency) -> None:
    """A replica that has not replayed the caller's write refuses its reads; at "none" it serves what it has."""
    primary, replica = opened(level), opened(level, "replica")
    ps_lab.set_replay_delay(60)
    try:
        with use_token(None) as tracker:
            primary.execute("INSERT INTO item VALUES (1)")
            if level == NONE:
                assert replica.execute("SELECT id FROM item").fetchall() == []
                assert tracker.token is None
                return
            for way in (read, several_reads, stream, copy_to, pipeline, bound_by_server):
                with pytest.raises(ReplicaBehind):
                    way(replica)
                replica.rollback()
    finally:
        ps_lab.set_replay_delay(0)
        ps_lab.wait_replicas_caught_up()
    assert replica.execute("SELECT id FROM item").fetchall() == [(1,)]


READS = [read, several_reads, stream, copy_to, pipeline, bound_by_server, rolled_back, declared]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("way", READS, ids=lambda way: way.__name__)
def test_backward(
    ps_lab: Lab, opened: Callable[..., Connection[Any]], way: Callable[[Connection[Any]], None], level: Consistency
) -> None:
    """A replica refuses a caller who has read newer writes of others, at "monotonic", in whatever way they were read."""
    primary, replica = opened(level), opened(level, "replica")
    ps_lab.set_replay_delay(60)
    try:
        ps_lab.sql("INSERT INTO item VALUES (1)")
        with use_token(None):
            way(primary)
            if level == MONOTONIC:
                with pytest.raises(ReplicaBehind):
                    replica.execute("SELECT id FROM item")
            else:
                assert replica.execute("SELECT id FROM item").fetchall() == []
    finally:
        ps_lab.set_replay_delay(0)
        ps_lab.wait_replicas_caught_up()


def test_unknown_position(ps_lab: Lab, opened: Callable[..., Connection[Any]]) -> None:
    """Where a write brought no position, at "read_your_writes" only another write does; at "monotonic" a read on the primary."""
    for level in (MONOTONIC, OWN):
        primary, replica = opened(level), opened(level, "replica")
        with use_token(None) as tracker:
            with primary.cursor().copy("COPY item FROM STDIN") as copy:
                copy.write_row((1, "a"))
            with pytest.raises(ReplicaBehind):
                read(replica)
            read(primary)
            assert (seen(tracker) is None) is (level == OWN)
            write(primary)
            assert seen(tracker) is not None
            ps_lab.wait_replicas_caught_up()
            read(replica)


def test_a_token_that_is_none_of_ours(ps_lab: Lab, opened: Callable[..., Connection[Any]]) -> None:
    """At "none", a token that a request brings along from another process is not heeded, and not changed."""
    writer, replica = opened(OWN), opened(NONE, "replica")
    ps_lab.set_replay_delay(60)
    try:
        with use_token(None):
            writer.execute("INSERT INTO item VALUES (1)")
            token = str(current_token())
        with use_token(token, identity=ps_lab.branch) as tracker:
            assert replica.execute("SELECT id FROM item").fetchall() == []
            write(opened(NONE))
            assert str(tracker.token) == token
            assert not tracker.has_news
    finally:
        ps_lab.set_replay_delay(0)
        ps_lab.wait_replicas_caught_up()


@pytest.mark.parametrize("level", LEVELS)
async def test_asyncio(ps_lab: Lab, table: str, level: Consistency) -> None:
    """The asyncio connection keeps the same levels."""
    with use_token(None) as tracker:
        async with await ps_core.connect_async(
            ps_lab.url, bouncer="write-pool", replica_bouncer="read-pool", consistency=level, autocommit=True
        ) as conn:
            await conn.execute(sql.SQL("SELECT 5"))
            assert (tracker.token is not None) is (level == MONOTONIC)
            await conn.execute("INSERT INTO item VALUES (1)")
            assert (tracker.token is not None) is (level != NONE)


def test_marker_with_a_read_that_the_server_binds(ps_lab: Lab, opened: Callable[..., Connection[Any]]) -> None:
    """A read in a READ ONLY transaction of ours leaves no marker, which would be a write."""
    with commit_check(marker=True):
        bound_by_server(opened(MONOTONIC))


@pytest.mark.parametrize("how", ["rolled back by text", "lost"])
def test_what_was_seen_without_an_end(ps_lab: Lab, how: str) -> None:
    """A transaction on the primary whose end brings no position leaves its reader to the primary: a replica may be behind it."""
    topology = Topology.from_url(ps_lab.url, bouncer="write-pool", replica_bouncer="read-pool")
    with ps_core.use_token(None) as tracker, ps_core.connect(topology) as conn:
        conn.execute("SELECT 1")
        assert tracker.token is None
        if how == "lost":
            ps_lab.edge.cut("primary")
            with pytest.raises(psycopg.OperationalError):
                conn.execute("SELECT 1")
        else:
            conn.execute("ROLLBACK")
        assert tracker.token is not None
        assert tracker.token.position is None
        conn.rollback()
        conn.execute("SELECT 1")
        conn.commit()
        assert tracker.token.position is not None  # what the primary says then covers it
