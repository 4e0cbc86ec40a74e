"""The accounts and the transfers between them. Stock SQLAlchemy: the comparison runs them on other packages, too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import BigInteger, Identity, update
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.schema import CreateTable

if TYPE_CHECKING:
    from sqlalchemy import Update

__all__ = ["Account", "Base", "Transfer", "ddl", "moves"]


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
    """Return the SQL that creates the two tables."""
    dialect: Any = postgresql.dialect()  # type: ignore[no-untyped-call]
    tables = [Base.metadata.tables[model.__tablename__] for model in (Account, Transfer)]
    return ";".join(str(CreateTable(table).compile(dialect=dialect)) for table in tables)
