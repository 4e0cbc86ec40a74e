"""Sessions that read from the replicas and write to the primary.

A read of an undeclared transaction goes to a replica until the session writes; from then on, and inside `Session.begin()`,
everything is on the primary. The decision itself is `ps_core.routing`'s; here is only what a session knows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from weakref import ReferenceType, ref

import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.ext import asyncio as sa_asyncio
from sqlalchemy.orm.session import SessionTransactionOrigin

from ps_core.context import current
from ps_core.failures import Kind, classify
from ps_core.routing import Decision, Route, Situation, decide
from ps_core.statements import analyse

if TYPE_CHECKING:
    from sqlalchemy.orm import SessionTransaction

__all__ = ["AsyncSession", "Session", "async_sessionmaker", "sessionmaker"]


class Session(orm.Session):
    """SQLAlchemy's `Session`, routed. Its `bind` is an engine made by `ps_sqlalchemy.create_engine`."""

    _ps_wrote: ReferenceType[SessionTransaction] | None = None
    _ps_asked: Route | None = None
    _ps_route: Route | None = None
    """Where the last piece of work went."""

    def _execute_internal(self, statement: Any, params: Any = None, **kwargs: Any) -> Any:
        """Run on the primary what the replica could not do: it lags behind what the caller has seen, or the statement writes."""
        self._ps_route = None
        try:
            return super()._execute_internal(statement, params, **kwargs)
        except sa.exc.DBAPIError as exc:
            if self._ps_route is not Route.REPLICA or self._ps_asked is not None or classify(exc).kind not in _FOR_PRIMARY:
                raise
        self._ps_asked = Route.PRIMARY
        try:
            return super()._execute_internal(statement, params, **kwargs)
        finally:
            self._ps_asked = None

    def get_bind(self, mapper: Any = None, *, clause: Any = None, bind: Any = None, **kwargs: Any) -> Any:
        """Return the engine of the endpoint that serves this piece of work."""
        engine = super().get_bind(mapper, clause=clause, bind=bind, **kwargs)
        replica = getattr(engine, "replica", None)
        if replica is None:
            return engine
        self._ps_route = self._ps_decide(clause).route
        return replica if self._ps_route is Route.REPLICA else engine

    def _ps_decide(self, clause: Any) -> Decision:
        transaction = self._ps_root_transaction()
        wrote = transaction is not None and self._ps_wrote is not None and self._ps_wrote() is transaction
        asked = self._ps_asked or current().route
        decision = decide(
            Situation(
                reads=not self._flushing and _reads(clause),
                asked=asked,
                wrote=wrote,
                declared=transaction is not None and transaction.origin is SessionTransactionOrigin.BEGIN,
            )
        )
        if decision.route is Route.PRIMARY and asked is None and transaction is not None and not wrote:
            self._ps_wrote = ref(transaction)
        return decision

    def _ps_root_transaction(self) -> SessionTransaction | None:
        transaction = self.get_nested_transaction() or self.get_transaction()
        while transaction is not None and transaction.parent is not None:
            transaction = transaction.parent
        return transaction


_FOR_PRIMARY: Final = (Kind.BEHIND, Kind.NOT_PRIMARY)


def _reads(clause: Any) -> bool:
    """Return whether a statement is known to be a plain read; None, which is all `Session.connection()` says, is not."""
    if isinstance(clause, sa.TextClause):
        return analyse(clause.text).reads
    return (
        clause is not None
        and bool(getattr(clause, "is_select", False))
        and getattr(clause, "_for_update_arg", None) is None
        and not getattr(clause, "is_dml", False)
    )


class AsyncSession(sa_asyncio.AsyncSession):
    """SQLAlchemy's `AsyncSession`, routed."""

    sync_session_class: type[orm.Session] = Session


class sessionmaker(orm.sessionmaker[Session]):  # noqa: N801 - SQLAlchemy's name
    """SQLAlchemy's `sessionmaker` for `Session`."""

    def __init__(self, bind: Any = None, **kwargs: Any) -> None:
        super().__init__(bind, **{"class_": Session, **kwargs})


class async_sessionmaker(sa_asyncio.async_sessionmaker[AsyncSession]):  # noqa: N801 - SQLAlchemy's name
    """SQLAlchemy's `async_sessionmaker` for `AsyncSession`."""

    def __init__(self, bind: Any = None, **kwargs: Any) -> None:
        super().__init__(bind, **{"class_": AsyncSession, **kwargs})
