"""For the tests of a project: which endpoint answered, and a replica that lags behind.

Under Django's test runner and pytest-django, replica aliases are mirrors of their primary (`TEST: MIRROR`, which `databases()`
sets): what is asked of them is answered by the primary's connection, so that a `TestCase` sees its own writes through them. Where
a test does not name them in its `databases`, reads are the primary alias's, and count there (`assertNumQueries`).
`lagging_replica()` makes one of them a replica as they are in production, which has not replayed the last writes. Real servers
with a real replay delay are `ps_lab`'s (`Lab.set_replay_delay`), to which `databases_at()` leads the aliases.
"""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack

import psycopg
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS, connections, router
from django.db.backends.postgresql import base

from ps_core.consistency import parse_lsn
from ps_core.context import current_token
from ps_core.errors import ReplicaBehind
from ps_django.config import ENGINE, databases
from ps_django.engines import is_ours
from ps_django.path import MARK

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ps_core.topology import TopologySettings

__all__ = ["LaggingReplica", "assert_routes", "databases_at", "lagging_replica"]

_LEADS_THERE = {"ENGINE", "NAME", "USER", "PASSWORD", "HOST", "PORT", "OPTIONS", "TEST"}


@contextmanager
def assert_routes(*wanted: str | int) -> Iterator[None]:
    """Assert how many statements each alias is given in the block.

    `with assert_routes("default", 2, "replica", 5): ...`

    Aliases that are not named must be given none. BEGIN and COMMIT do not count.

    Raises:
        AssertionError: it was otherwise; the statements are in the message.
    """
    expected = {str(alias): int(count) for alias, count in zip(wanted[::2], wanted[1::2], strict=True)}
    given: list[tuple[str, str]] = []

    def note(alias: str, execute: Any, sql: Any, params: Any, many: Any, context: Any) -> Any:
        given.append((alias, str(sql)))
        return execute(sql, params, many, context)

    with ExitStack() as stack:
        for alias in connections:
            stack.enter_context(connections[alias].execute_wrapper(partial(note, alias)))
        yield
    counts = Counter(alias for alias, _ in given)
    if dict(counts) != {alias: count for alias, count in expected.items() if count}:
        statements = "\n".join(f"  {alias}: {sql}" for alias, sql in given)
        raise AssertionError(f"expected {expected}, but it was {dict(counts)}:\n{statements}")


class _Snapshot(base.DatabaseWrapper):
    """Stock's wrapper, whose connection knows the types that the primary's was taught: PostGIS's, and what receivers register."""

    context: Any = None

    def get_connection_params(self) -> dict[str, Any]:
        """Return stock's, with what the primary's connection knows."""
        return {**super().get_connection_params(), "context": self.context}


class LaggingReplica:
    """What `lagging_replica()` gives: a replica that has replayed what was committed until the block began, and no more."""

    def __init__(self, alias: str) -> None:
        connection: Any = connections[alias]
        primary: Any = connection.ps_mirrors and connections[connection.ps_mirrors]
        if not primary:
            raise ImproperlyConfigured(
                f'lagging_replica({alias!r}): only for replica aliases under a test runner: write "TEST": {{"MIRROR": "default"}}'
            )
        if connection.ps_forbidden:
            raise ImproperlyConfigured(
                f'lagging_replica({alias!r}): the test does not use this alias: write databases = {{"default", {alias!r}}}'
            )
        if primary.in_atomic_block:
            raise ImproperlyConfigured(
                "lagging_replica() in a transaction: no replica sees what is not committed; write TransactionTestCase"
                " (pytest.mark.django_db(transaction=True))"
            )
        # One transaction for the whole block, on the direct path if there is one: without the limits that a pooled one has.
        settings = (primary.direct_settings() or primary.settings_dict) | {"NAME": primary.settings_dict["NAME"]}
        options = {name: value for name, value in settings["OPTIONS"].items() if not name.startswith("ps_") and name != "pool"}
        primary.ensure_connection()
        self._wrapper = _Snapshot({**settings, "OPTIONS": options}, alias)
        self._wrapper.context = primary.connection
        self._wrapper.ensure_connection()
        self._wrapper.connection.cursor_factory = _LaggingCursor
        self._wrapper.connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        self._wrapper.connection.read_only = True
        self._wrapper.connection.ps_identity = primary.ps_state.identity
        self._wrapper.connection.ps_guards = primary.ps_state.tracks
        self.catch_up()

    def catch_up(self) -> None:
        """Replay what was committed until now."""
        connection = self._wrapper.connection
        connection.rollback()
        connection.autocommit = True
        ((position,),) = psycopg.Cursor(connection).execute(
            "SELECT CAST(pg_catalog.pg_current_wal_insert_lsn() AS pg_catalog.text)"
        )
        connection.autocommit = False
        connection.ps_replayed = parse_lsn(position)
        psycopg.Cursor(connection).execute("SELECT 1")  # takes the snapshot


class _LaggingCursor(base.CursorMixin, psycopg.ClientCursor[Any]):
    """Refuses, as a replica's guard does, whoever has seen more; an error leaves the snapshot alone."""

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        seen, replayed = current_token(), self.connection.ps_replayed  # type: ignore[attr-defined]
        token = None if seen is None else seen.of(self.connection.ps_identity)  # type: ignore[attr-defined]
        guards = self.connection.ps_guards  # type: ignore[attr-defined]
        if guards and token is not None and (token.position is None or token.position > replayed):
            raise ReplicaBehind("replica_behind: lagging_replica()")
        psycopg.Cursor(self.connection).execute("SAVEPOINT lagging_replica")
        try:
            return super().execute(*args, **kwargs)
        except psycopg.Error:
            psycopg.Cursor(self.connection).execute("ROLLBACK TO lagging_replica")
            raise


@contextmanager
def lagging_replica(alias: str = "replica") -> Iterator[LaggingReplica]:
    """Let `alias` be a replica that has not replayed what is committed in the block, until its `catch_up()`.

    `with lagging_replica() as replica: ...`, in a `TransactionTestCase`, for this thread. A request whose user's token asks for
    more is answered by the primary, as in production; one that forgot the token, or names the alias, reads what was.

    Raises:
        ImproperlyConfigured: the alias is no mirror, the test's `databases` is without it, or a transaction is open (`TestCase`).
    """
    connection: Any = connections[alias]
    replica = LaggingReplica(alias)
    connection.ps_lagging = replica._wrapper
    try:
        yield replica
    finally:
        connection.ps_lagging = None
        replica._wrapper.close()


@contextmanager
def databases_at(url: str, *, engine: str | None = None, **topology: Unpack[TopologySettings]) -> Iterator[None]:
    """Let the project's aliases lead somewhere else in the block, as to a `ps_lab.Lab`: to real replicas, not to mirrors.

    `with databases_at(ps_lab.url, bouncer="write-pool", replica_bouncer="read-pool"): ...`

    `engine` and `topology` are what `ps_django.databases()` takes; without `engine` it is the project's own. What a project has
    in its entries besides (ATOMIC_REQUESTS, CONN_MAX_AGE, TIME_ZONE, ...) stays. Path and limits are those of production, which
    tests are else without. Nothing is made or removed there: `call_command("migrate")` comes first. For all threads that first
    use a connection in the block; not in a `TestCase`, whose transactions are on the connections outside.

    Raises:
        ConfigurationError: these settings cannot work together, or one of them cannot work at all.
    """
    usual, usual_settings = settings.DATABASES, connections.settings
    own = usual.get(DEFAULT_DB_ALIAS, {}).get("ENGINE")
    entries = databases(url, engine=engine or (own if is_ours(own) else ENGINE), **topology)
    for alias, entry in entries.items():
        entry |= {name: value for name, value in usual.get(alias, {}).items() if name not in _LEADS_THERE}
        entry["TEST"] = {**entry.get("TEST", {}), MARK: "own"}
    outside = {alias: connections[alias] for alias in connections}
    _close_pools()
    try:
        _lead_to(entries, connections.configure_settings(entries))
        yield
    finally:
        connections.close_all()
        _close_pools()
        _lead_to(usual, usual_settings)
        for alias, connection in outside.items():
            connections[alias] = connection


def _lead_to(entries: dict[str, dict[str, Any]], configured: dict[str, dict[str, Any]]) -> None:
    for alias in connections:
        with suppress(AttributeError):
            del connections[alias]
    settings.DATABASES = entries
    connections.settings = configured
    router.__dict__.pop("routers", None)  # they are made of the settings, and will be again


def _close_pools() -> None:
    """Close them: Django keeps them by alias, wherever that leads."""
    for alias in connections:
        connection: Any = connections[alias]
        if alias in getattr(connection, "_connection_pools", ()):
            connection.close()
            connection.close_pool()
