"""The units of work whose round trips and calls are counted, done in each of the ways that are compared.

They run in a process of their own (`worker`): Django can be configured there, and the lab's edge, which is Python too, does not
take turns with what is timed.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from enum import StrEnum
from functools import cache
from multiprocessing import get_context
from typing import Any, Final

import django
import psycopg
import sqlalchemy as sa
from django.conf import settings
from django.db import connections, transaction
from sqlalchemy import orm, select, text

import ps_core
import ps_django
import ps_sqlalchemy
from ps_core._registry import replicas_of, states_of
from ps_core.consistency import parse_lsn
from ps_core.timeouts import Timeouts
from ps_core.topology import Endpoint
from ps_lab import Lab
from ps_lab.routes import Path
from tests.stock import django_alias, libpq

READS: Final = "psycopg: reads in autocommit"
READ: Final = "SELECT 1"
WRITE: Final = "UPDATE benchmark SET n = n + 1 WHERE id = 1"
TIMEOUTS: Final = ("SET LOCAL statement_timeout=2000", "SET LOCAL transaction_timeout=3000")
LIMITS: Final = Timeouts(statement=2, transaction=3, lock=5)
ENDPOINTS: Final = ("primary", "replica", "direct")


class Way(StrEnum):
    """A way to do a unit of work."""

    STOCK = "stock"
    TESTED = "stock, tested on borrow"
    """SQLAlchemy's `pool_pre_ping`, Django's `CONN_HEALTH_CHECKS`."""
    SEPARATE = "stock, separate SET LOCALs"
    OURS = "ours"
    TOKENS = "ours with tokens"
    """Reads on a replica carry the guard; all bring back the position."""


Work = Callable[[], object]
Unit = Callable[[str, Way, int], Work]
"""Given the endpoint, the way, and how many statements, returns what does the work."""


@contextmanager
def worker(lab: Lab) -> Iterator[ProcessPoolExecutor]:
    """Make the table, and a process that does units of work: `submit(run, ...)`, `submit(calls, ...)`."""
    options: dict[str, Any] = dict(ps_core.conninfo(lab.topology.direct))
    with psycopg.connect(**options) as conn:
        conn.execute("DROP TABLE IF EXISTS benchmark")
        conn.execute("CREATE TABLE benchmark (id int PRIMARY KEY, n int NOT NULL)")
        conn.execute("INSERT INTO benchmark VALUES (1, 0)")
    lab.wait_replicas_caught_up()
    position = lab.sql("SELECT pg_current_wal_flush_lsn()::text")[0][0]
    processes = get_context("forkserver")  # which imports all this once
    processes.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(1, processes, _set_up, (lab.url, parse_lsn(position))) as pool:
        yield pool
    lab.sql("DROP TABLE benchmark")


def run(unit: str, endpoint: str, way: Way, n: int) -> bool:
    """Do a unit of work once, and return whether a position came back."""
    with _seen(way) as tracker:
        before = tracker.token
        _work(unit, endpoint, way, n)()
        return tracker.token is not None and tracker.token is not before


# --- in the worker ---

_topology: ps_core.Topology
_token: ps_core.Token


def _set_up(url: str, position: int) -> None:
    global _topology, _token  # noqa: PLW0603 - the state of this process
    _topology = ps_core.Topology.from_url(url, bouncer="write-pool", replica_bouncer="read-pool")
    _topology = replace(_topology, direct=replace(_topology.direct, timeouts=LIMITS))
    _token = ps_core.Token(identity=states_of(_topology)[0].identity, position=position, at=time.time())
    settings.configure(DATABASES=_databases(url), USE_TZ=True)
    django.setup()


def _seen(way: Way) -> Any:
    """A context in which this caller has seen the database as it was at the start."""
    return ps_core.use_token(replace(_token, at=time.time()) if way is Way.TOKENS else None)


@cache
def _work(unit: str, endpoint: str, way: Way, n: int) -> Work:
    work = UNITS[unit](endpoint, way, n)
    # The first time makes the connection; on a direct one, psycopg prepares a statement that it has seen five times.
    for _ in range(6 if endpoint == "direct" else 1):
        with _seen(way):
            work()
    return work


def _endpoint(name: str) -> Endpoint:
    return {"primary": _topology.primary, "replica": _topology.replicas[0], "direct": _topology.direct}[name]


# --- psycopg ---


def _connect(endpoint: Path, way: Way) -> psycopg.Connection[Any]:
    if way is Way.OURS:
        return ps_core.connect(_endpoint(endpoint))
    if way is Way.TOKENS:
        return ps_core.connect(_topology, to=endpoint)
    return psycopg.connect(**libpq(_endpoint(endpoint)))


_psycopg = cache(_connect)


def _psycopg_autocommit(statement: str) -> Unit:
    def unit(endpoint: str, way: Way, n: int) -> Work:
        conn = _psycopg(endpoint, way)
        if way is Way.SEPARATE:  # SET LOCAL holds in a transaction only
            return _psycopg_transaction(statement)(endpoint, way, n)

        def work() -> None:
            conn.autocommit = True
            for _ in range(n):
                _fetch(conn.execute(statement))

        return work

    return unit


def _psycopg_transaction(statement: str, *others: str) -> Unit:
    def unit(endpoint: str, way: Way, n: int) -> Work:
        conn = _psycopg(endpoint, way)
        statements = [statement, *others] if others else [statement] * n

        def work() -> None:
            conn.autocommit = False
            if way is Way.SEPARATE:
                for setting in TIMEOUTS:
                    conn.execute(setting)
            for one in statements:
                _fetch(conn.execute(one))
            conn.commit()

        return work

    return unit


def _psycopg_block(endpoint: str, way: Way, n: int) -> Work:
    conn = _psycopg(endpoint, way)

    def work() -> None:
        with conn.transaction():
            if way is Way.SEPARATE:
                for setting in TIMEOUTS:
                    conn.execute(setting)
            for _ in range(n):
                _fetch(conn.execute(READ))

    return work


def _fetch(cursor: psycopg.Cursor[Any]) -> None:
    if cursor.description:
        cursor.fetchall()


# --- SQLAlchemy ---


@cache
def _engine(endpoint: str, way: Way) -> sa.Engine:
    if way in (Way.OURS, Way.TOKENS):
        # Endpoints of its own have states of their own, which this way may change.
        own = 2.0 if way is Way.TOKENS else 3.0
        topology = replace(
            _topology,
            primary=replace(_topology.primary, weight=own),
            direct=replace(_topology.direct, weight=own),
            replicas=tuple(replace(replica, weight=own) for replica in _topology.replicas),
        )
        whole = ps_sqlalchemy.create_engine(topology)
        replicas = replicas_of(topology)
        assert replicas is not None
        primary, _, direct = states_of(topology)
        for state in (primary, direct, *replicas.states):
            state.tracks = way is Way.TOKENS
        # A read that nobody routes goes to a replica by itself: the whole engine is what an application has.
        return whole.direct if endpoint == "direct" else whole
    options = libpq(_endpoint(endpoint))
    engine = sa.create_engine("postgresql+psycopg://", connect_args=options, pool_pre_ping=way is Way.TESTED)
    if way is Way.SEPARATE:

        @sa.event.listens_for(engine, "begin")
        def set_timeouts(conn: sa.Connection) -> None:
            for setting in TIMEOUTS:
                conn.exec_driver_sql(setting)

    return engine


def _session(endpoint: str, way: Way) -> Callable[[], orm.Session]:
    engine = _engine(endpoint, way)
    cls = ps_sqlalchemy.Session if way in (Way.OURS, Way.TOKENS) else orm.Session
    return lambda: cls(engine)


def _sqlalchemy_reads(endpoint: str, way: Way, n: int) -> Work:
    make = _session(endpoint, way)

    def work() -> None:
        with ps_core.using_primary() if endpoint == "primary" else nullcontext(), make() as session:
            for _ in range(n):
                session.scalar(select(1))

    return work


def _sqlalchemy_repeatable_read(endpoint: str, way: Way, n: int) -> Work:
    engine = _engine(endpoint, way)
    if endpoint == "replica" and isinstance(engine, ps_sqlalchemy.Engine):
        assert engine.replica is not None
        engine = engine.replica
    isolated = engine.execution_options(isolation_level="REPEATABLE READ")

    def work() -> None:
        with orm.Session(isolated) as session:
            for _ in range(n):
                session.scalar(select(1))

    return work


def _sqlalchemy_transaction(*statements: str) -> Unit:
    def unit(endpoint: str, way: Way, n: int) -> Work:
        make = _session(endpoint, way)
        clauses = [text(statement) for statement in statements * n]

        def work() -> None:
            with make() as session, session.begin():
                for clause in clauses:
                    session.execute(clause)

        return work

    return unit


def _sqlalchemy_check_out(endpoint: str, way: Way, n: int) -> Work:
    engine = _engine(endpoint, way)
    if endpoint == "replica" and isinstance(engine, ps_sqlalchemy.Engine):
        assert engine.replica is not None
        engine = engine.replica

    def work() -> None:
        with engine.connect():
            pass

    return work


# --- Django ---


def _databases(url: str) -> dict[str, dict[str, Any]]:
    entries: dict[str, dict[str, Any]] = {"default": {}}
    ours = ps_django.databases(url, bouncer="write-pool", replica_bouncer="read-pool")
    for name, alias in zip(ENDPOINTS, ("default", "replica", "direct"), strict=True):
        stock = django_alias(_endpoint(name))
        options = ours[alias]["OPTIONS"] | {"ps_statement_timeout": 2, "ps_transaction_timeout": 3}
        for way in Way:
            of_way = {key: _alias(key[3:], way) for key in ("ps_primary", "ps_direct") if key in options}
            entry = ours[alias] | {"OPTIONS": options | of_way} if way in (Way.OURS, Way.TOKENS) else stock
            entries[_alias(name, way)] = {**entry, "CONN_MAX_AGE": None, "CONN_HEALTH_CHECKS": way is Way.TESTED}
    return entries


def _alias(endpoint: str, way: Way) -> str:
    return f"{endpoint}, {way}"


@cache
def _django(endpoint: str, way: Way) -> Any:
    connection: Any = connections[_alias(endpoint, way)]
    if way in (Way.OURS, Way.TOKENS):
        connection.ps_state.tracks = way is Way.TOKENS
        connection.ps_state.identity = _token.identity
    return connection


def _django_autocommit(statement: str) -> Unit:
    def unit(endpoint: str, way: Way, n: int) -> Work:
        if way is Way.SEPARATE:
            return _django_atomic(statement)(endpoint, way, n)
        connection = _django(endpoint, way)

        def work() -> None:
            if way is Way.TESTED:
                connection.close_if_unusable_or_obsolete()  # as each request begins
            _django_run(connection, [statement] * n)

        return work

    return unit


def _django_atomic(*statements: str) -> Unit:
    def unit(endpoint: str, way: Way, n: int) -> Work:
        connection = _django(endpoint, way)
        all_statements = [*(TIMEOUTS if way is Way.SEPARATE else ()), *statements * n]

        def work() -> None:
            if way is Way.TESTED:
                connection.close_if_unusable_or_obsolete()
            with transaction.atomic(using=connection.alias):
                _django_run(connection, all_statements)

        return work

    return unit


def _django_run(connection: Any, statements: Sequence[str]) -> None:
    for statement in statements:
        with connection.cursor() as cursor:
            cursor.execute(statement)
            if cursor.description:
                cursor.fetchall()


UNITS: Final[dict[str, Unit]] = {
    READS: _psycopg_autocommit(READ),
    "psycopg: writes in autocommit": _psycopg_autocommit(WRITE),
    "psycopg: transaction of reads": _psycopg_transaction(READ),
    "psycopg: transaction of writes": _psycopg_transaction(WRITE),
    "psycopg: conn.transaction()": _psycopg_block,
    "SQLAlchemy: session": _sqlalchemy_reads,
    "SQLAlchemy: session, REPEATABLE READ": _sqlalchemy_repeatable_read,
    "SQLAlchemy: transaction of reads": _sqlalchemy_transaction(READ),
    "SQLAlchemy: transaction of writes": _sqlalchemy_transaction(WRITE),
    "SQLAlchemy: transaction of a write and a read": _sqlalchemy_transaction(WRITE, READ),
    "SQLAlchemy: check-out": _sqlalchemy_check_out,
    "Django: reads": _django_autocommit(READ),
    "Django: writes": _django_autocommit(WRITE),
    "Django: atomic of reads": _django_atomic(READ),
    "Django: atomic of writes": _django_atomic(WRITE),
    "Django: atomic of a write and a read": _django_atomic(WRITE, READ),
}
