"""A bank in SQLAlchemy: accounts, and transfers between them.

Stock SQLAlchemy: the comparison runs it on other packages, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import BigInteger, Identity, func, select, update
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.schema import CreateTable

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Update
    from sqlalchemy.orm import Session

__all__ = ["Account", "Bank", "Base", "Transfer", "ddl", "moves"]


class Base(DeclarativeBase):
    """The bank's tables."""


class Account(Base):
    """An account."""

    __tablename__ = "bank_account"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    balance: Mapped[int] = mapped_column(BigInteger)


class Transfer(Base):
    """One movement of money. `reference` is the client's own name for it."""

    __tablename__ = "bank_transfer"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    # Not unique: a transfer that was made twice has to show as two rows, not as an error.
    reference: Mapped[int] = mapped_column(BigInteger)
    source: Mapped[int]
    target: Mapped[int]
    amount: Mapped[int]


def moves(source: int, target: int, amount: int) -> list[Update]:
    """Return the statements that move money from one account to another."""
    return [
        update(Account).where(Account.id == account).values(balance=Account.balance + change)
        for account, change in ((source, -amount), (target, amount))
    ]


def ddl() -> str:
    """Return the SQL that creates the two tables where they are missing."""
    dialect: Any = postgresql.dialect()  # type: ignore[no-untyped-call]
    tables = [Base.metadata.tables[model.__tablename__] for model in (Account, Transfer)]
    return ";".join(str(CreateTable(table, if_not_exists=True).compile(dialect=dialect)) for table in tables)


class Bank:
    """The requests, given what makes sessions."""

    def __init__(self, sessions: Callable[[], Session]) -> None:
        self.sessions = sessions

    def transact(self, work: Callable[[Session], None]) -> None:
        """Do the work in a transaction of its own."""
        with self.sessions() as session, session.begin():
            work(session)

    def read(self, account: int) -> bool:
        """Read a balance; return whether a replica answered."""
        with self.sessions() as session:
            row = session.execute(select(Account.balance, func.pg_is_in_recovery()).where(Account.id == account)).one()
        return bool(row[1])

    def transfer(self, reference: int, source: int, target: int, amount: int) -> None:
        """Move money between two accounts, and note it."""

        def work(session: Session) -> None:
            for statement in moves(source, target, amount):
                session.execute(statement)
            session.add(Transfer(reference=reference, source=source, target=target, amount=amount))

        self.transact(work)
