"""The soak's work in SQLAlchemy, with threads and with asyncio."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Select, func, select, update
from sqlalchemy.orm import Mapped, mapped_column

from ps_demo import bank_sqlalchemy
from ps_sqlalchemy import (
    AsyncSession,
    Session,
    arun_transaction,
    async_sessionmaker,
    create_async_engine,
    create_engine,
    run_transaction,
    sessionmaker,
)
from tests.soak.checks import Answer, Write

if TYPE_CHECKING:
    from tests.soak.checks import Read, Transfer

__all__ = ["AsyncBank", "Bank"]


class Row(bank_sqlalchemy.Base):
    """A client's register."""

    __tablename__ = "soak_register"

    client: Mapped[int] = mapped_column(primary_key=True)
    version: Mapped[int]


def _look(client: int) -> Select[Any]:
    return select(
        func.current_setting("statement_timeout"),
        func.current_setting("transaction_timeout"),
        Row.version,
        func.pg_is_in_recovery(),
    ).where(Row.client == client)


def _changes(work: Transfer | Write) -> list[Any]:
    if isinstance(work, Write):
        return [update(Row).where(Row.client == work.client).values(version=work.version)]
    return bank_sqlalchemy.moves(work.source, work.target, work.amount)


def _record(work: Transfer) -> bank_sqlalchemy.Transfer:
    return bank_sqlalchemy.Transfer(reference=work.reference, source=work.source, target=work.target, amount=work.amount)


class Bank:
    """With threads."""

    def __init__(self, url: str, clients: int, settings: dict[str, Any]) -> None:
        self.engine = create_engine(url, **settings, pool_size=clients)
        self.sessions = sessionmaker(self.engine)

    def read(self, work: Read) -> Answer:
        """Read the client's register."""
        with Session(self.engine, read_only=work.read_only) as session:
            return Answer(*session.execute(_look(work.client)).one())

    def write(self, work: Transfer | Write) -> Answer:
        """Transfer, or write the register, in a transaction that may be run again."""

        def change(session: Session) -> Answer:
            for statement in _changes(work):
                session.execute(statement)
            if not isinstance(work, Write):
                session.add(_record(work))
            return Answer(*session.execute(_look(work.client)).one())

        return run_transaction(self.sessions, change)

    def end_thread(self) -> None:
        """Nothing belongs to a thread."""

    def dispose(self) -> None:
        """Close all connections."""
        self.engine.dispose()


class AsyncBank:
    """With asyncio."""

    def __init__(self, url: str, clients: int, settings: dict[str, Any]) -> None:
        self.engine = create_async_engine(url, **settings, pool_size=clients)
        self.sessions = async_sessionmaker(self.engine)

    async def read(self, work: Read) -> Answer:
        """Read the client's register."""
        async with AsyncSession(self.engine, read_only=work.read_only) as session:
            return Answer(*(await session.execute(_look(work.client))).one())

    async def write(self, work: Transfer | Write) -> Answer:
        """Transfer, or write the register, in a transaction that may be run again."""

        async def change(session: AsyncSession) -> Answer:
            for statement in _changes(work):
                await session.execute(statement)
            if not isinstance(work, Write):
                session.add(_record(work))
            return Answer(*(await session.execute(_look(work.client))).one())

        return await arun_transaction(self.sessions, change)

    async def dispose(self) -> None:
        """Close all connections."""
        await self.engine.dispose()
