"""What happens to a lab: switchovers, crashes, restarts, pauses; and that no acknowledged write is lost by them."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from ps_lab import Lab
from ps_lab.processes import wait_until
from tests.ps_lab.conftest import Connect, meets, parameters, streaming, whereabouts


class Writer(threading.Thread):
    """Inserts one number after the other through the pooler, in autocommit, and never the same twice."""

    def __init__(self, lab: Lab) -> None:
        super().__init__()
        self.lab = lab
        self.acknowledged: list[int] = []
        self.failures: list[str] = []
        self.stopping = threading.Event()

    def run(self) -> None:
        conn: psycopg.Connection[tuple[int]] | None = None
        number = 0
        while not self.stopping.is_set():
            number += 1
            try:
                if conn is None:
                    conn = psycopg.connect(
                        **parameters(self.lab, "pooled", "write-pool"), autocommit=True, prepare_threshold=None
                    )
                conn.execute("INSERT INTO ledger VALUES (%s)", (number,))
            except psycopg.Error as failure:
                self.failures.append(f"{failure.sqlstate} {failure}")
                if conn is not None and conn.closed:
                    conn = None
            else:
                self.acknowledged.append(number)
        if conn is not None:
            conn.close()

    def go_on(self, number: int = 20) -> None:
        """Wait until some more writes were acknowledged."""
        until = len(self.acknowledged) + number
        wait_until(lambda: len(self.acknowledged) >= until, "writes go on")


@contextmanager
def ledger(lab: Lab) -> Iterator[Writer]:
    """Write in the background; at the end every acknowledged write is there exactly once, on the primary and on all replicas."""
    lab.sql("CREATE TABLE ledger (number int)")
    writer = Writer(lab)
    writer.start()
    try:
        writer.go_on()
        yield writer
        writer.go_on()
    finally:
        writer.stopping.set()
        writer.join()
    lab.wait_replicas_caught_up()
    for server in lab.servers:
        found = [number for (number,) in server.sql("SELECT number FROM ledger ORDER BY number")]
        assert len(found) == len(set(found))
        assert set(writer.acknowledged) <= set(found)
    lab.sql("DROP TABLE ledger")


@pytest.mark.tools
def test_ten_switchovers_in_a_row(
    ps_lab: Lab, record_property: Callable[[str, object], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Each changes the primary in under 3 s; through the bouncers no write fails and none is lost; direct connections break."""
    durations = []
    with ledger(ps_lab) as writer:
        for _ in range(10):
            before = ps_lab.primary
            with psycopg.connect(**parameters(ps_lab)) as direct:
                began = time.monotonic()
                assert ps_lab.switchover() is ps_lab.primary
                durations.append(time.monotonic() - began)
                with pytest.raises(psycopg.errors.AdminShutdown):
                    direct.execute("SELECT 1")
                direct.close()
            assert ps_lab.primary is not before
            with psycopg.connect(**parameters(ps_lab)) as direct:
                assert whereabouts(direct) == (ps_lab.primary.name, False)
    assert writer.failures == []
    record_property("switchover", durations)
    with capsys.disabled():
        print(f" {min(durations):.2f} to {max(durations):.2f} s ", end="")
    assert max(durations) < 3


def test_reads_go_on_after_a_switchover(ps_lab: Lab, connect: Connect) -> None:
    """The replica bouncer serves throughout, never from the primary; direct connections to the promoted replica are broken."""
    conn = connect("pooled", "read-pool")
    for _ in range(2):
        direct: dict[str, psycopg.Connection[Any]] = {}
        while len(direct) < 2:
            candidate = connect("direct", "replica")
            direct[whereabouts(candidate)[0]] = candidate
        new = ps_lab.switchover()
        with pytest.raises(psycopg.OperationalError):
            direct.pop(new.name).execute("SELECT 1")
        assert whereabouts(direct.popitem()[1])[1]
        meets(ps_lab, conn)


def test_switchover_ends_a_transaction_that_does_not_end(ps_lab: Lab, connect: Connect) -> None:
    """After the drain time an open transaction is broken, and the switchover goes on."""
    conn = connect("pooled", "write-pool", autocommit=False)
    conn.execute("SELECT 1")
    began = time.monotonic()
    ps_lab.switchover(drain=0.3)
    assert 0.3 < time.monotonic() - began < 30  # the usual drain time
    with pytest.raises(psycopg.OperationalError):
        conn.execute("SELECT 1")
    assert whereabouts(connect("pooled", "write-pool")) == (ps_lab.primary.name, False)


def test_crashes(ps_lab: Lab) -> None:
    """A killed primary is replaced after the detection time, one that computes, too; the old one rejoins; no write is lost."""
    with ledger(ps_lab) as writer:
        for detection in (2.0, 0.0, 0.0):
            busy = psycopg.connect(**parameters(ps_lab), autocommit=True)
            busy.pgconn.send_query(b"SELECT count(*) FROM generate_series(1, 1000000000000)")
            wait_until(lambda: streaming(ps_lab) == 2, "the one that crashed before follows")
            before = ps_lab.primary
            ps_lab.crash_primary(detection)
            assert ps_lab.primary is not before
            writer.go_on()
            busy.close()
    assert writer.failures  # a crash is felt
    wait_until(lambda: streaming(ps_lab) == 2, "the old primary follows")


@pytest.mark.tools
def test_crashes_in_time(ps_lab: Lab, record_property: Callable[[str, object], None], capsys: pytest.CaptureFixture[str]) -> None:
    """Once a crash is detected, another primary is there in under 2 s."""
    durations = []
    for _ in range(3):
        wait_until(lambda: streaming(ps_lab) == 2, "the one that crashed before follows")
        began = time.monotonic()
        ps_lab.crash_primary(detection=0)
        durations.append(time.monotonic() - began)
    record_property("crash", durations)
    with capsys.disabled():
        print(f" {min(durations):.2f} to {max(durations):.2f} s ", end="")
    assert max(durations) < 2


def test_no_primary(ps_lab: Lab, connect: Connect) -> None:
    """Until a crash is detected, direct connections are refused with PlanetScale's text, and replicas answer."""
    crash = threading.Thread(target=ps_lab.crash_primary, args=(4.0,))  # time for all that is asked meanwhile
    crash.start()
    wait_until(lambda: not ps_lab.primary.running, "the crash")
    with pytest.raises(psycopg.OperationalError, match=f"FATAL:  no primary available for branch {ps_lab.branch}"):
        connect()
    assert whereabouts(connect("direct", "replica"))[1]
    assert whereabouts(connect("pooled", "read-pool"))[1]
    crash.join()
    assert whereabouts(connect()) == (ps_lab.primary.name, False)


def test_crash_replica(ps_lab: Lab, connect: Connect) -> None:
    """Without one replica reads go on with the other, and writes are acknowledged; both serve again after its restart."""
    down = ps_lab.crash_replica(1)
    left = ps_lab.replicas[0]
    assert not down.running

    def serves() -> bool:
        try:
            conn = connect("pooled", "read-pool")
            return {whereabouts(conn) for _ in range(4)} == {(left.name, True)}
        except psycopg.OperationalError:
            return False

    wait_until(serves, "the other replica")
    assert {whereabouts(connect("direct", "replica"))[0] for _ in range(4)} == {left.name}
    ps_lab.sql("CREATE TABLE meanwhile (id int)")
    ps_lab.restart_replica(1)
    ps_lab.wait_replicas_caught_up()
    assert down.sql("SELECT * FROM meanwhile") == []
    conn = connect("pooled", "read-pool")
    meets(ps_lab, conn)
    ps_lab.sql("DROP TABLE meanwhile")


def test_crash_of_the_primary_while_a_replica_is_down(ps_lab: Lab) -> None:
    """The replica that is left takes over; the one that was down comes back as a replica of the new primary."""
    with ledger(ps_lab) as writer:
        down = ps_lab.crash_replica()
        new = ps_lab.crash_primary(detection=0.1)
        assert new is not down
        writer.go_on()  # the old primary has rejoined: somebody confirms
        ps_lab.restart_replica()
        wait_until(lambda: streaming(ps_lab) == 2, "both replicas follow")


def test_nothing_runs(ps_lab: Lab, connect: Connect) -> None:
    """With all servers down the edge says that no member runs."""
    for index in range(2):
        ps_lab.crash_replica(index)
    primary = ps_lab.primary
    primary.stop()
    with pytest.raises(psycopg.OperationalError, match="failed to connect to upstream"):
        connect()
    primary.start()
    ps_lab.restart_replica()
    assert connect().execute("SELECT 1").fetchone() == (1,)


@pytest.mark.parametrize("name", ["local", "write-pool", "read-pool"])
def test_restart_bouncer(ps_lab: Lab, connect: Connect, name: str) -> None:
    """A bouncer that is killed and started anew serves new connections at once."""
    ps_lab.restart_bouncer(name)
    for suffix in ("", "write-pool", "read-pool"):
        conn = connect("pooled", suffix)
        wait_until(lambda conn=conn: _works(conn), "the bouncers")  # type: ignore[misc]


def _works(conn: psycopg.Connection[tuple[int]]) -> bool:
    try:
        return conn.execute("SELECT 1").fetchone() == (1,)
    except psycopg.OperationalError:
        if conn.closed:
            raise
        return False


def test_pause(ps_lab: Lab, connect: Connect) -> None:
    """While paused, a transaction through the bouncers waits, direct ones and replicas do not; `resume` lets it go on."""
    conn, direct, read = connect("pooled", "write-pool"), connect(), connect("pooled", "read-pool")
    ps_lab.pause()
    try:
        conn.pgconn.send_query(b"SELECT 42")
        for _ in range(3):
            direct.execute("SELECT 1")
            read.execute("SELECT 1")
        conn.pgconn.consume_input()
        assert conn.pgconn.is_busy()
    finally:
        ps_lab.resume()
    result = conn.pgconn.get_result()
    assert result is not None
    assert result.get_value(0, 0) == b"42"


def test_pause_does_not_wait_for_ever(ps_lab: Lab, connect: Connect) -> None:
    """A transaction that stays open delays `pause` by the drain time only; pausing twice is refused by the bouncer."""
    conn = connect("pooled", "", autocommit=False)
    conn.execute("SELECT 1")
    began = time.monotonic()
    ps_lab.pause(drain=0.2)
    assert 0.2 <= time.monotonic() - began < 30  # the usual drain time
    with pytest.raises(psycopg.Error, match="already suspended/paused"):
        ps_lab.pause()
    conn.commit()
    ps_lab.resume()
    conn.execute("SELECT 1")
