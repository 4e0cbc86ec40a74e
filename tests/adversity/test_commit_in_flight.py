"""The answer to COMMIT does not come. Each outcome is forced, and what the caller is told is compared with what is true."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import psycopg
import pytest
from psycopg import waiting

from ps_core import AsyncConnection, RetryPolicy, commit_check, deadline, limits, local_settings, marker_table_sql, subscribe
from ps_core._message.commit import Outcome, lookup_of, lookup_of_marker
from ps_core.errors import CommitOutcomeUnknown
from ps_core.events import Event, Name
from ps_core.failures import Kind, Ran, classify
from ps_lab import Lab
from ps_lab.processes import wait_until
from tests.adversity.applications import NUMBERS, Application, renewing
from tests.adversity.harness import Doing, Path, Paths, prepare, raised
from tests.adversity.matrix import Matrix

WAITS = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
PHASE = "COMMIT under way"


@contextmanager
def replicas_cut_off(lab: Lab) -> Iterator[Callable[[int], None]]:
    """Let COMMITs wait for their synchronous replica. Yields what waits until so many of them do."""
    primary = lab.primary
    for replica in lab.replicas:
        replica.sql("ALTER SYSTEM SET primary_conninfo = ''")
        replica.sql("SELECT pg_reload_conf()")
    wait_until(lambda: primary.sql("SELECT count(*) FROM pg_stat_replication") == [(0,)], "replicas that are cut off")
    try:
        yield lambda number: wait_until(lambda: primary.sql(WAITS) == [(number,)], "COMMITs that wait")
    finally:
        if lab.primary is primary:
            for replica in lab.replicas:
                replica.follow(primary)
            following = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"
            wait_until(lambda: primary.sql(following) == [(len(lab.replicas),)], "replicas that follow")


def insert(conn: psycopg.Connection[Any], number: int) -> Doing:
    """Write a row, and begin to commit it."""
    conn.execute(f"INSERT INTO ledger VALUES ({number})")
    return Doing(conn.commit)


def ledger(lab: Lab) -> list[int]:
    """Return what was committed."""
    return [number for (number,) in lab.sql("SELECT id FROM ledger ORDER BY id")]


@pytest.mark.parametrize("path", ["primary", "direct"])
def test_lost_after_its_record(ps_lab: Lab, paths: Paths, matrix: Matrix, path: Path) -> None:
    """The connection breaks when the server has committed: stock psycopg raises, ours looks it up, and returns."""
    prepare(ps_lab)
    stock, ours = paths.stock(path, autocommit=False), paths.ours(path, autocommit=False)
    with replicas_cut_off(ps_lab) as waiting:
        commits = [insert(stock, 1), insert(ours, 2)]
        waiting(2)
        ps_lab.edge.cut(path)
    error = raised(commits[0].end)
    commits[1].end()
    assert ledger(ps_lab) == [1, 2]
    matrix.add(
        "COMMIT waits for its replica, the edge cuts",
        path,
        PHASE,
        classify(error),
        "connection_lost",
        ours="looked up",
        outcome="committed, once",
    )


def test_goes_on_after_the_lookup(ps_lab: Lab, paths: Paths) -> None:
    """A COMMIT that returned is the end of its transaction: the next statement makes a new connection."""
    prepare(ps_lab)
    ours = paths.ours(autocommit=False)
    with replicas_cut_off(ps_lab) as waiting:
        commit = insert(ours, 1)
        waiting(1)
        ps_lab.edge.cut("primary")
    commit.end()
    assert ours.execute("SELECT 1").fetchone() == (1,)


def test_lost_after_its_record_asyncio(ps_lab: Lab, paths: Paths) -> None:
    """The same with asyncio; and a task that is cancelled while COMMIT is under way still commits, and is cancelled then."""
    prepare(ps_lab)
    state = paths.state()

    async def work() -> None:
        lost, cancelled = await AsyncConnection.open(state), await AsyncConnection.open(state)
        await lost.execute("INSERT INTO ledger VALUES (1)")
        await cancelled.execute("INSERT INTO ledger VALUES (2)")
        with ExitStack() as stack:
            waiting = stack.enter_context(replicas_cut_off(ps_lab))
            task = asyncio.create_task(cancelled.commit())
            while ps_lab.sql(WAITS) != [(1,)]:
                await asyncio.sleep(0.01)
            task.cancel()
            commit = asyncio.create_task(lost.commit())
            while ps_lab.sql(WAITS) != [(2,)]:
                await asyncio.sleep(0.01)
            waiting(2)
            assert not task.done()
            await asyncio.to_thread(stack.close)
        with pytest.raises(asyncio.CancelledError):
            await task
        await commit
        with replicas_cut_off(ps_lab):
            await lost.execute("INSERT INTO ledger VALUES (3)")
            commit = asyncio.create_task(lost.commit())
            while ps_lab.sql(WAITS) != [(1,)]:
                await asyncio.sleep(0.01)
            ps_lab.edge.cut("primary")
        await commit
        await lost.close()
        await cancelled.close()

    asyncio.run(work())
    assert ledger(ps_lab) == [1, 2, 3]


@pytest.mark.parametrize("path", ["primary", "direct"])
def test_lost_with_the_primary(ps_lab: Lab, paths: Paths, matrix: Matrix, path: Path) -> None:
    """The primary dies before a replica has the COMMIT: after the promotion it is not there, and nobody is told that it is."""
    prepare(ps_lab)
    stock, ours = paths.stock(path, autocommit=False), paths.ours(path, autocommit=False)
    with replicas_cut_off(ps_lab) as waiting:
        commits = [insert(stock, 1), insert(ours, 2)]
        waiting(2)
        ps_lab.crash_primary(detection=0.1)
    errors = [raised(commit.end) for commit in commits]
    assert ledger(ps_lab) == []
    assert classify(errors[1]).rule in ("lost_at_commit", "commit_outcome_unknown")
    matrix.met.add(classify(errors[1]).rule)
    ours.rollback()
    assert ours.execute("SELECT 1").fetchone() == (1,)
    matrix.add(
        "COMMIT waits for its replica, the primary crashes",
        path,
        PHASE,
        classify(errors[0]),
        ("results_hidden_by_driver", "pooler_server_crashed", "connection_lost"),
        ours="looked up",
        outcome="raised: rolled back, or nobody can tell",
    )


def test_id_is_used_again(ps_lab: Lab, paths: Paths, matrix: Matrix) -> None:
    """On the new timeline another transaction has the id and is committed: ours is not reported as committed."""
    prepare(ps_lab)
    ours = paths.ours("direct", autocommit=False)
    with replicas_cut_off(ps_lab) as waiting:
        commit = insert(ours, 1)
        waiting(1)
        xid = int(ps_lab.sql("SELECT backend_xid::text FROM pg_stat_activity WHERE wait_event = 'SyncRep'")[0][0] or 0)
        waiting(1)
        # The client does not hear of its loss until the id has been given away.
        with ps_lab.edge.hang("direct"):
            ps_lab.crash_primary(detection=0.1)
            wait_until(lambda: other_transaction(ps_lab) > max(xid, 0) + 50, "the id to be given to somebody else")
    error = raised(commit.end)
    assert isinstance(error, CommitOutcomeUnknown)
    assert ledger(ps_lab) == []
    failure = classify(error)
    assert (failure.kind, failure.ran) == (Kind.TRANSIENT, Ran.UNKNOWN)
    matrix.add(
        "COMMIT is lost with the primary, and its id used again",
        "direct",
        PHASE,
        failure,
        "commit_outcome_unknown",
        ours="looked up",
        outcome="the caller is told that nobody can tell",
    )


def other_transaction(lab: Lab) -> int:
    """Commit something, and return its id."""
    return int(lab.sql("SELECT pg_current_xact_id()::text")[0][0])


def end_the_wait(lab: Lab, how: str) -> None:
    """End the wait of the COMMITs that wait for their replica."""
    lab.sql(f"SELECT {how}(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")


@pytest.mark.parametrize("path", ["primary", "direct"])
def test_cancelled_wait(ps_lab: Lab, paths: Paths, matrix: Matrix, path: Path) -> None:
    """A COMMIT whose wait for its replica is cancelled says that it succeeded, and may be gone after a promotion: unknown."""
    prepare(ps_lab)
    ours, stock = paths.ours(path, autocommit=False), paths.stock(path, autocommit=False)
    with replicas_cut_off(ps_lab) as waiting:
        commits = [insert(ours, 1), insert(stock, 2)]
        waiting(2)
        end_the_wait(ps_lab, "pg_cancel_backend")
        commits[1].end()  # stock psycopg says that all is well
        error = raised(commits[0].end)
    assert isinstance(error, CommitOutcomeUnknown)
    matrix.add(
        "COMMIT's wait for its replica is cancelled",
        path,
        PHASE,
        classify(error),
        "commit_outcome_unknown",
        ours="raised",
        outcome="the caller is told that nobody can tell",
    )
    assert ledger(ps_lab) == [1, 2]


@pytest.mark.parametrize(("path", "how"), [("direct", "patience"), ("primary", "patience"), ("primary", "deadline")])
def test_terminated_wait(ps_lab: Lab, paths: Paths, path: Path, how: str) -> None:
    """A backend is terminated while its COMMIT waits for its replica: what only the old primary has is not called committed.

    No server ends the wait of the barrier behind the lookup: the patience does, or the caller's deadline.
    """
    prepare(ps_lab)
    state = paths.state(path, RetryPolicy(max_elapsed=0.7) if how == "patience" else None)
    ours = paths.ours(state, autocommit=False)

    def commit() -> None:
        with deadline(1.5) if how == "deadline" else nullcontext():
            ours.commit()

    ours.execute("INSERT INTO ledger VALUES (1)")
    with replicas_cut_off(ps_lab) as waits:
        committing = Doing(commit)
        waits(1)
        end_the_wait(ps_lab, "pg_terminate_backend")
        error = raised(committing.end, 15)
        assert isinstance(error, CommitOutcomeUnknown)
        assert ledger(ps_lab) == [1]
        for replica in ps_lab.replicas:
            assert replica.sql("SELECT id FROM ledger") == []
        if (path, how) == ("direct", "patience"):  # once: it takes seconds until all servers are back
            ps_lab.crash_primary(detection=0.1)
            assert ledger(ps_lab) == []


@pytest.mark.parametrize("asynchronous", [False, True])
def test_terminated_wait_that_is_confirmed(ps_lab: Lab, paths: Paths, asynchronous: bool) -> None:
    """The same, and the replicas return while the barrier is waited for: committed, and they have it."""
    prepare(ps_lab)
    state = paths.state("direct")

    def commit() -> None:
        conn = paths.ours(state, autocommit=False)
        conn.execute("INSERT INTO ledger VALUES (1)")
        conn.commit()

    async def acommit() -> None:
        conn = await AsyncConnection.open(state)
        await conn.execute("INSERT INTO ledger VALUES (1)")
        await conn.commit()
        await conn.close()

    with replicas_cut_off(ps_lab) as waits:
        committing = Doing((lambda: asyncio.run(acommit())) if asynchronous else commit)
        waits(1)
        (pid,) = ps_lab.sql("SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'")[0]
        end_the_wait(ps_lab, "pg_terminate_backend")
        barrier = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND pid <> %s"
        wait_until(lambda: ps_lab.sql(barrier, pid), "the barrier")
        assert not committing.done
    committing.end()
    assert ledger(ps_lab) == [1]
    ps_lab.wait_replicas_caught_up()
    for replica in ps_lab.replicas:
        assert replica.sql("SELECT id FROM ledger") == [(1,)]


@pytest.mark.parametrize("setting", ["local", "off"])
def test_commit_that_waits_for_nobody(ps_lab: Lab, paths: Paths, setting: str) -> None:
    """A transaction that waits for no replica has a barrier that waits for none: its lookup is answered while all are gone."""
    prepare(ps_lab)
    state = paths.state("direct", RetryPolicy(max_elapsed=10))
    ours = paths.ours(state, autocommit=False)
    ours.execute("SET LOCAL synchronous_commit = " + setting)
    ours.execute("INSERT INTO ledger VALUES (1)")
    transaction = ours._transaction
    assert transaction is not None
    assert transaction.synchronous_commit == setting
    ours.commit()
    with replicas_cut_off(ps_lab):
        donor = paths.stock("direct")
        assert waiting.wait(ours._look_up_gen(donor, lookup_of(transaction), time.monotonic() + 10), donor.fileno()) is (
            Outcome.COMMITTED
        )


def test_lookup_on_a_standby(ps_lab: Lab, paths: Paths) -> None:
    """The lookup meets a standby that has not replayed the COMMIT, whose "in the future" proves nothing: it is asked again."""
    prepare(ps_lab)
    ours = paths.ours("direct", autocommit=False)
    asked: list[Event] = []
    unsubscribe = subscribe(lambda event: asked.append(event) if event.name is Name.RETRY else None)
    real = ps_lab.primary
    try:
        with replicas_cut_off(ps_lab) as waits:
            commit = insert(ours, 1)
            waits(1)
            ps_lab.primary = ps_lab.replicas[0]
            ps_lab._tell_edge()
            ps_lab.primary = real
            ps_lab.edge.cut("direct")
            wait_until(lambda: commit.done or len(asked) > 2, "answers of the standby")
            assert not commit.done
            ps_lab._tell_edge()
        commit.end()
    finally:
        unsubscribe()
        ps_lab.primary = real
        ps_lab._tell_edge()
    assert ledger(ps_lab) == [1]


def test_verify_under_row_level_security(ps_lab: Lab, paths: Paths) -> None:
    """`verify` is asked with the local settings, limits and role of the lost transaction, which it sees the same rows with."""
    prepare(ps_lab)
    for query in (
        "ALTER TABLE ledger OWNER TO postgres",
        "CREATE ROLE seer NOLOGIN",
        "GRANT seer TO app",
        "GRANT ALL ON ledger TO seer",
        "ALTER TABLE ledger ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY own ON ledger TO seer USING (id = nullif(current_setting('app.tenant', true), '')::int)",
    ):
        ps_lab.sql(query)
    ours = paths.ours(paths.state(replace(paths.endpoint("primary"), assumed_role="seer")), autocommit=False)
    verify = "SELECT count(*) FROM ledger WHERE id = 42 AND current_setting('lock_timeout') = '3s' -- of one tenant;"

    def work() -> None:
        with local_settings({"app.tenant": "42"}), limits(lock="3s"), commit_check(verify=verify):
            ours.execute("INSERT INTO ledger VALUES (42); SELECT 2")  # a text of several: its id is not known
            ours.commit()

    try:
        with ExitStack() as refused:
            with replicas_cut_off(ps_lab) as waits:
                commit = Doing(work)
                waits(1)
                refused.enter_context(ps_lab.edge.refuse("57P03", "the database system is starting up"))
                ps_lab.edge.cut("primary")
            wait_until(lambda: ledger(ps_lab) == [42], "the COMMIT")
        commit.end()
    finally:
        ps_lab.sql("DROP TABLE ledger")
        ps_lab.sql("DROP ROLE seer")


def test_fence_is_asked_again(ps_lab: Lab, paths: Paths) -> None:
    """A fence whose answer was lost is met by the next lookup, and is not taken for the transaction's marker."""
    ps_lab.sql(marker_table_sql())
    ps_lab.sql("GRANT ALL ON ps_commit_marker TO app")
    try:
        ours = paths.ours("direct")
        lookup = lookup_of_marker("5f1f1c0e-0000-4000-8000-000000000000", "public", "on")
        for _ in range(2):
            donor = paths.stock("direct")
            answer = waiting.wait(ours._look_up_gen(donor, lookup, time.monotonic() + 10), donor.fileno())
            assert answer is Outcome.ROLLED_BACK
    finally:
        ps_lab.sql("DROP TABLE ps_commit_marker")


@pytest.mark.parametrize("setting", ["statement_timeout", "transaction_timeout"])
def test_no_timeout_ends_the_wait(ps_lab: Lab, paths: Paths, setting: str) -> None:
    """A COMMIT needs no timeout lifted: the server ends its wait for a replica by none."""
    prepare(ps_lab)
    stock = paths.stock("direct", autocommit=False)
    stock.execute(f"SET LOCAL {setting} = '300ms'")
    with replicas_cut_off(ps_lab) as waits:
        commit = insert(stock, 1)
        waits(1)
        began = ps_lab.sql("SELECT clock_timestamp()")[0][0]
        wait_until(lambda: ps_lab.sql("SELECT clock_timestamp() > %s::timestamptz + '600ms'", began)[0][0], "twice its time")
        assert not commit.done
    commit.end()


def test_verdict_of_the_outcome_unknown() -> None:
    """An outcome that is unknown is never taken for "rolled back"."""
    failure = classify(CommitOutcomeUnknown("nobody can tell"))
    assert failure.ran is Ran.UNKNOWN


def test_applications_of_a_lost_answer(ps_lab: Lab, matrix: Matrix, applications: list[Application]) -> None:
    """The server has committed: nobody is told of an error, and nobody writes again."""
    numbers = [next(NUMBERS) for _ in applications]
    with replicas_cut_off(ps_lab) as waiting:
        works = added(applications, numbers)
        waiting(len(works))
        ps_lab.edge.cut("primary")
    for application, work, number in zip(applications, works, numbers, strict=True):
        work.end()
        assert application.look(number, "primary") == [False], application.name
    matrix.sees("The answer to COMMIT is lost", "nothing: what became of it is looked up; run_transaction is committed once")


def test_applications_of_a_lost_primary(ps_lab: Lab, matrix: Matrix, applications: list[Application]) -> None:
    """The COMMIT is gone with the primary: it is run again where that is known, and nobody is told that it succeeded."""
    numbers = [next(NUMBERS) for _ in applications]
    with replicas_cut_off(ps_lab) as waiting:
        works = added(applications, numbers)
        waiting(len(works))
        ps_lab.crash_primary(detection=0.1)
    for application, work, number in zip(applications, works, numbers, strict=True):
        try:
            work.end()
            told = [False]
        except application.error as exc:
            told = []
            assert application.is_unknown(exc), application.name  # noqa: PT017 - it may end well, too
        assert application.look(number, "primary") == told, application.name
    matrix.sees("COMMIT is lost with the primary", "CommitOutcomeUnknown, or nothing: run_transaction runs again if it is known")


def added(applications: list[Application], numbers: list[int]) -> list[Doing]:
    """Let each application add a row."""
    return [
        Doing(renewing, application, partial(application.add, number))
        for application, number in zip(applications, numbers, strict=True)
    ]
