"""Sessions that read from the replicas and write to the primary.

A read of an undeclared transaction goes to a replica until the session writes; from then on, and inside `Session.begin()`,
everything is on the primary. The decision itself is `ps_core.routing`'s; here is only what a session knows.
"""

from __future__ import annotations

from contextlib import nullcontext
from copy import copy
from functools import partial
from inspect import isfunction
from typing import TYPE_CHECKING, Any, Final, TypeVar, overload
from weakref import ReferenceType, ref

import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.ext import asyncio as sa_asyncio
from sqlalchemy.orm.session import SessionTransactionOrigin

from ps_core._message.statement import analyse
from ps_core._names import no_such
from ps_core.context import current, limits
from ps_core.errors import ConfigurationError
from ps_core.events import Name, emit_fallback, emit_route, is_heard
from ps_core.failures import FOR_PRIMARY, READ_FOR_PRIMARY, Kind
from ps_core.routing import Route, Situation, decide
from ps_core.share import shares
from ps_sqlalchemy._falling_back import Refusals
from ps_sqlalchemy.engine import READ_ONLY_ON_PRIMARY, read_only
from ps_sqlalchemy.stale import READ, Read, carry, check_rows, drop, is_kept, note_written

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.orm import SessionTransaction

    from ps_core.replicas import Replicas

    TransactionRef = ReferenceType[SessionTransaction]
    _AsyncBind = sa_asyncio.AsyncEngine | sa_asyncio.AsyncConnection

__all__ = ["AsyncSession", "Session", "async_sessionmaker", "sessionmaker"]

ROUTE: Final = "ps_route"
LIMITS: Final = "ps_limits"
_OPTIONS: Final = frozenset({ROUTE, LIMITS, READ})


class Session(orm.Session):
    """SQLAlchemy's `Session`, routed. Its `bind` is an engine made by `ps_sqlalchemy.create_engine`.

    Execution options, of a statement or of `execute()`:

    - `ps_route`: "primary" or "replica" for this statement, whatever the session did before. On a replica it does not see what
      the session's own transaction has written.
    - `ps_limits`: `ps_core.limits`' arguments as a dict, as in `{"statement": "60s"}`, where the statement opens a transaction.

    Args:
        read_only: Everything goes to the replicas; to the primary, READ ONLY, what no replica has yet of that which the caller
            has seen. What would write is refused, a flush before anything is sent.
        stale_check: Before the UPDATE or DELETE of rows that were read from a replica, by this session or another one, lock them
            on the primary and compare them with what was read, in one statement for each mapper; one with `version_id_col` has
            that instead.

    Raises:
        ConfigurationError: `twophase=True`, which needs more than a transaction pooler gives, or an execution option `ps_*`
            that does not exist, or has another value.
        sqlalchemy.orm.exc.StaleDataError: a row was changed on the primary since it was read from a replica.
        sqlalchemy.exc.InvalidRequestError: a read-only session was to write.
    """

    _ps_on_primary: TransactionRef | None = None
    """The transaction that wrote, or had to read on the primary, and stays there."""
    _ps_drew: TransactionRef | None = None
    """The transaction for which the operators' share was drawn, and was for replicas."""
    _ps_replicas: Replicas | None = None
    """The endpoints that the last piece of work could have gone to."""
    _ps_asked: Route | None = None
    """What this statement's options say, or that it falls back."""
    _ps_statement: Any = None
    """What is being executed."""
    _ps_route: Route | None = None
    """Where the last piece of work went."""
    _ps_read: Read | None = None
    """The statement that is being executed: who answers it."""
    _ps_refusals: Refusals | None = None
    """What a replica refuses that the statement being executed is sent to."""
    _ps_flush: Any = None
    """SQLAlchemy's plan of a flush that has written nothing yet."""

    def __init__(self, bind: Any = None, *, read_only: bool = False, stale_check: bool = True, **kwargs: Any) -> None:
        if kwargs.get("twophase"):
            raise ConfigurationError(
                "twophase=True: a prepared transaction outlives the connection that a transaction pooler lends, and nobody here"
                " looks up its outcome: write twophase=False, or use SQLAlchemy's own Session with engine.direct"
            )
        super().__init__(bind=bind, **kwargs)
        self._ps_read_only = read_only
        self._ps_stale_check = stale_check

    # --- routing ---

    def _execute_internal(self, statement: Any, params: Any = None, **kwargs: Any) -> Any:
        given = kwargs.get("execution_options") or {}
        own = statement.get_execution_options() if isinstance(statement, sa.Executable) else {}
        if not (given or own) or self._ps_asked is not None:
            return self._ps_execute(statement, params, **kwargs)
        for name in (*given, *own):
            if str(name).startswith("ps_") and name not in _OPTIONS:  # some of SQLAlchemy's own are no strings
                raise no_such("execution option", name, (ROUTE, LIMITS))
        bounds, route = given.get(LIMITS, own.get(LIMITS)), given.get(ROUTE, own.get(ROUTE))
        if bounds is None and route is None:
            return self._ps_execute(statement, params, **kwargs)
        with nullcontext() if bounds is None else limits(**bounds):
            self._ps_asked = None if route is None else _parse_route(route)
            try:
                return self._ps_execute(statement, params, **kwargs)
            finally:
                self._ps_asked = None

    def _ps_execute(self, statement: Any, params: Any, **kwargs: Any) -> Any:
        """Run on the primary what the replica could not do (`FOR_PRIMARY`)."""
        self._ps_begin()
        self._ps_statement = statement
        of_outer, self._ps_read = self._ps_read, Read()
        kwargs["execution_options"] = {**(kwargs.get("execution_options") or {}), READ: self._ps_read}
        try:
            if self._ps_asked is Route.PRIMARY:
                return super()._execute_internal(statement, params, **kwargs)
            kinds = READ_FOR_PRIMARY if self._ps_read_only else FOR_PRIMARY
            self._ps_route = None
            try:
                with Refusals(kinds) as refusals:
                    outer_refusals, self._ps_refusals = self._ps_refusals, refusals
                    try:
                        return super()._execute_internal(statement, params, **kwargs)
                    finally:
                        self._ps_refusals = outer_refusals
            except sa.exc.DBAPIError as exc:
                if self._ps_route is not Route.REPLICA or refusals.failure is None or refusals.error is not exc.orig:
                    raise
                emit_fallback("replica", refusals.failure)
                writes = refusals.failure.kind is Kind.NOT_PRIMARY
                if writes and self._ps_replicas is not None:
                    _note_refused(statement, self._ps_replicas)
            outer, self._ps_asked = self._ps_asked, Route.PRIMARY
            try:
                return super()._execute_internal(statement, params, **kwargs)
            finally:
                self._ps_asked = outer
                if (
                    (outer is None or writes)
                    and not self._ps_read_only
                    and current().sticky
                    and (transaction := self.get_transaction()) is not None
                ):
                    self._ps_on_primary = ref(transaction)
        finally:
            self._ps_read = of_outer

    def connection(self, *args: Any, **kwargs: Any) -> sa.Connection:
        """Return the connection of the primary; of a replica in a read-only session."""
        self._ps_begin()
        self._ps_statement = None
        return super().connection(*args, **kwargs)

    def _ps_begin(self) -> None:
        # SQLAlchemy begins later, when the engine is chosen; what is chosen has to be remembered for the transaction.
        if self._transaction is None:
            self._autobegin_t()

    def get_bind(self, mapper: Any = None, *, clause: Any = None, bind: Any = None, **kwargs: Any) -> Any:
        """Return the engine of the endpoints that serve this piece of work."""
        engine = super().get_bind(mapper, clause=clause, bind=bind, **kwargs)
        if self._ps_read_only and (
            self._flushing or getattr(clause, "is_dml", False) or getattr(clause, "_for_update_arg", None) is not None
        ):
            raise sa.exc.InvalidRequestError(_READ_ONLY)
        replica: sa.Engine | None = getattr(engine, "replica", None)
        replicas: Replicas | None = getattr(replica, "ps_replicas", None)
        if clause is None and not self._flushing:  # of an ORM statement, SQLAlchemy does not always tell
            clause, self._ps_statement = self._ps_statement, None
        self._ps_route, self._ps_replicas = None, replicas
        if replica is not None and replicas is not None:
            self._ps_route = self._ps_decide(clause, replica, replicas)
            if self._ps_route is Route.REPLICA:
                engine = replica
                if self._ps_refusals is not None:
                    self._ps_refusals.handled = True
        if self._ps_read_only and isinstance(engine, sa.Engine) and engine is not replica:
            engine = read_only(engine)
        if self._ps_read is not None:
            self._ps_read.replica = engine is replica or (not hasattr(engine, "topology") and _is_of_replicas(engine))
        return engine

    def _ps_decide(self, clause: Any, replica: sa.Engine, replicas: Replicas) -> Route:
        transaction, context, flushing = self.get_transaction(), current(), bool(self._flushing)
        on_primary = self._ps_on_primary is not None and self._ps_on_primary() is transaction is not None
        if on_primary and self._ps_asked is None:  # it stays there, whatever the statement is
            if is_heard(Name.ROUTE):
                emit_route(decide(Situation(reads=False, block=context.route, on_primary=True)))
            return Route.PRIMARY
        reads, serializable = not flushing and _reads(clause, replicas), _is_serializable(replica, replicas)
        decision = decide(
            Situation(
                reads=reads,
                option=self._ps_asked,
                block=context.route,
                on_primary=on_primary,
                flushing=flushing,
                serializable=serializable,
                read_only=self._ps_read_only,
                declared=not context.reading and transaction is not None and transaction.origin is SessionTransactionOrigin.BEGIN,
                pinned=replicas.may_lack_what_was_seen,
                in_share=partial(self._ps_draw, transaction),
                away=replicas.are_away,
            )
        )
        emit_route(decision)
        if transaction is None or self._ps_read_only:
            return decision.route
        if (
            decision.route is Route.PRIMARY
            and context.sticky
            and (not reads or (self._ps_asked is None and context.route is None and not serializable))
        ):
            self._ps_on_primary = ref(transaction)
        return decision.route

    def _ps_draw(self, transaction: SessionTransaction | None) -> bool:
        """Return whether the operators' share lets this transaction read from replicas: one answer for all of it."""
        if self._ps_drew is not None and self._ps_drew() is transaction is not None:
            return True
        if not shares():
            return False
        self._ps_drew = None if transaction is None else ref(transaction)
        return True

    # --- read-only sessions ---

    def flush(self, objects: Any = None) -> None:
        """Flush; refused in a read-only session."""
        if self._ps_read_only and (self.new or self.deleted or any(map(self.is_modified, self.dirty))):
            raise sa.exc.InvalidRequestError(_READ_ONLY)
        super().flush(objects)

    # --- rows that a replica had ---

    def _merge(self, state: Any, *args: Any, **kwargs: Any) -> Any:
        merged = super()._merge(state, *args, **kwargs)
        carry(state, sa.inspect(merged))
        return merged

    def bulk_save_objects(self, objects: Any, *args: Any, **kwargs: Any) -> None:
        """Save the objects without the unit of work; those that were read from a replica are compared all the same."""
        objects = list(objects)
        states = [sa.inspect(obj) for obj in objects]
        if self._ps_stale_check:
            check_rows(self, states)
        super().bulk_save_objects(objects, *args, **kwargs)
        for state in states:
            note_written(state)

    def _ps_before_write(self, state: Any) -> None:
        flush, self._ps_flush = self._ps_flush, None
        if flush is not None:  # all that it will write is known, but for what a parent's key changes in its children
            check_rows(
                self,
                [
                    other
                    for other, (is_deleted, is_only_listed) in flush.states.items()
                    if is_kept(other) and not is_only_listed and (is_deleted or not other.modified or self._ps_may_update(other))
                ],
            )
        if is_kept(state) and self._ps_may_update(state):
            check_rows(self, [state])

    def _ps_may_update(self, state: Any) -> bool:
        if len(state.mapper.dispatch.before_update) > 1:  # listeners of the application's, which may change what did not change
            return True
        obj = state.obj()
        return obj is not None and self.is_modified(obj, include_collections=False)


_READ_ONLY: Final = "this session is read_only=True: write through another one, as in Session(engine)"


def _is_serializable(engine: sa.Engine, replicas: Replicas) -> bool:
    """Return whether transactions are SERIALIZABLE: by the engine's level, or where it has none, by the role's."""
    level = engine.get_execution_options().get("isolation_level", engine.dialect._on_connect_isolation_level)
    if level is None:
        return "serializable" in [state.default_isolation for state in replicas.states]
    return str(level).replace("_", " ").upper() == "SERIALIZABLE"


def _is_of_replicas(bind: Any) -> bool:
    """Return whether an engine or connection that a user chose is the replicas'."""
    if getattr(bind.engine, "ps_replicas", None) is not None:
        return True
    readonly = bind.get_execution_options().get("postgresql_readonly")
    return bool(readonly) and readonly != READ_ONLY_ON_PRIMARY and getattr(bind.dialect, "ps_goes_to", None) is not None


def _parse_route(value: Any) -> Route:
    try:
        return Route(value)
    except ValueError:
        raise ConfigurationError(f"{ROUTE}: write 'primary' or 'replica', not {value!r}") from None


def _reads(clause: Any, replicas: Replicas) -> bool:
    """Return whether a statement is known to be a plain read; None, which is all `Session.connection()` says, is not."""
    if isinstance(clause, sa.TextClause):
        return analyse(clause.text).reads and not replicas.have_refused(clause.text)
    return (
        clause is not None
        and bool(getattr(clause, "is_select", False))
        and getattr(clause, "_for_update_arg", None) is None
        and not getattr(clause, "is_dml", False)
        # Only where there is one: the key takes longer than all else here.
        and not (replicas.refused_constructs and _key_of(clause) in replicas.refused_constructs)
    )


def _note_refused(statement: Any, replicas: Replicas) -> None:
    """Remember that a statement, which looks like a read, writes."""
    if isinstance(statement, sa.TextClause):
        replicas.note_refused(statement.text)
    elif (key := _key_of(statement)) is not None:
        replicas.refused_constructs.add(key)


def _key_of(statement: Any) -> Any:
    """Return what is the same for all statements that compile to the same; None where SQLAlchemy has no such key."""
    key = statement._generate_cache_key()
    return None if key is None else key.key


@sa.event.listens_for(Session, "before_flush")
def _before_flush(session: Session, flush: Any, _: Any) -> None:
    if session._ps_stale_check:
        session._ps_flush = flush


@sa.event.listens_for(orm.Mapper, "before_insert", raw=True)
@sa.event.listens_for(orm.Mapper, "before_update", raw=True)
@sa.event.listens_for(orm.Mapper, "before_delete", raw=True)
def _before_write(_: Any, __: Any, state: Any) -> None:
    session = state.session
    if isinstance(session, Session) and session._ps_stale_check and (session._ps_flush is not None or is_kept(state)):
        session._ps_before_write(state)


@sa.event.listens_for(orm.Mapper, "after_insert", raw=True)
def _after_insert(_: Any, __: Any, state: Any) -> None:
    drop(state)


@sa.event.listens_for(orm.Mapper, "after_update", raw=True)
def _after_update(_: Any, __: Any, state: Any) -> None:
    note_written(state)


class AsyncSession(sa_asyncio.AsyncSession):
    """SQLAlchemy's `AsyncSession`, routed; it takes `Session`'s arguments.

    Its `sync_session_class` (an argument, also of a sessionmaker, or a subclass's attribute) may be another class of sessions,
    with none of the methods that `Session` overrides, or a `sqlalchemy.orm.sessionmaker`: these are routed, too.

    Raises:
        ConfigurationError: the sessions of `sync_session_class` cannot be routed.
    """

    sync_session_class: type[orm.Session] = Session

    def __init__(
        self, bind: _AsyncBind | None = None, *, sync_session_class: Callable[..., orm.Session] | None = None, **kwargs: Any
    ) -> None:
        given: Any = sync_session_class or self.sync_session_class
        super().__init__(bind, sync_session_class=_routed(given), **kwargs)
        if not isinstance(self.sync_session, Session):  # of a function
            kind = type(self.sync_session).__qualname__
            raise ConfigurationError(f"sync_session_class: {given!r} makes a {kind}: let it make a ps_sqlalchemy.Session")


def _routed(given: Any) -> Any:
    """Return what makes the same sessions as a `sync_session_class`, but routed. What a function makes is only known afterwards.

    Raises:
        ConfigurationError: they are of a class that cannot be routed.
    """
    if isinstance(given, orm.sessionmaker):
        if issubclass(given.class_, Session):
            return given
        maker = copy(given)  # with the same `kw`, which `configure()` changes
        maker.class_ = _routed_class(given.class_)
        return maker
    if isinstance(given, type) and issubclass(given, orm.Session) and not issubclass(given, Session):
        return _routed_class(given)
    return given


def _routed_class(plain: type[orm.Session]) -> type[Session]:
    """Return the class that `plain` would be if it were derived from `Session`: the same one each time."""
    if plain is orm.Session:
        return Session
    routed: type[Session] | None = vars(plain).get("_ps_routed")
    if routed is None:
        both = [name for name, own in vars(Session).items() if isfunction(own) and hasattr(orm.Session, name)]
        if overridden := [name for name in both if getattr(plain, name) is not getattr(orm.Session, name)]:
            raise ConfigurationError(
                f"sync_session_class: {plain.__qualname__} has {', '.join(overridden)} of its own, and so has what routes: write"
                f" class {plain.__name__}(ps_sqlalchemy.Session)"
            )
        routed = type(plain.__name__, (plain, Session), {"__module__": plain.__module__, "__doc__": plain.__doc__})
        # On the class, so that both are forgotten together: each sessionmaker makes one.
        plain._ps_routed = routed  # type: ignore[attr-defined]
    return routed


S = TypeVar("S", bound=orm.Session)
A = TypeVar("A", bound=sa_asyncio.AsyncSession)


class sessionmaker(orm.sessionmaker[S]):  # noqa: N801 - SQLAlchemy's name
    """SQLAlchemy's `sessionmaker`, by default for `Session`."""

    @overload
    def __init__(self, bind: sa.Engine | sa.Connection | None = None, *, class_: type[S], **kwargs: Any) -> None: ...

    @overload
    def __init__(self: sessionmaker[Session], bind: sa.Engine | sa.Connection | None = None, **kwargs: Any) -> None: ...

    def __init__(self, bind: Any = None, **kwargs: Any) -> None:
        super().__init__(bind, **{"class_": Session, **kwargs})


class async_sessionmaker(sa_asyncio.async_sessionmaker[A]):  # noqa: N801 - SQLAlchemy's name
    """SQLAlchemy's `async_sessionmaker`, by default for `AsyncSession`."""

    @overload
    def __init__(self, bind: _AsyncBind | None = None, *, class_: type[A], **kwargs: Any) -> None: ...

    @overload
    def __init__(self: async_sessionmaker[AsyncSession], bind: _AsyncBind | None = None, **kwargs: Any) -> None: ...

    def __init__(self, bind: Any = None, **kwargs: Any) -> None:
        super().__init__(bind, **{"class_": AsyncSession, **kwargs})
        class_: Any = self.class_
        if isinstance(class_, type) and issubclass(class_, AsyncSession):  # refuse here what its first session would
            _routed(kwargs.get("sync_session_class") or class_.sync_session_class)
