"""The application in SQLAlchemy."""

from collections.abc import Callable

from sqlalchemy import BigInteger, Identity, func, select, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column


class Base(DeclarativeBase):
    """The bank's tables."""


class Account(Base):
    """An account."""

    __tablename__ = "compare_account"

    id: Mapped[int] = mapped_column(primary_key=True)
    balance: Mapped[int] = mapped_column(BigInteger)


class Transfer(Base):
    """One movement of money. `reference` is the client's own name for it."""

    __tablename__ = "compare_transfer"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    reference: Mapped[int] = mapped_column(BigInteger)
    source: Mapped[int]
    target: Mapped[int]
    amount: Mapped[int]


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

    def read_own(self, reference: int) -> bool:
        """Look for a transfer; return whether it was found."""
        with self.sessions() as session:
            return session.scalar(select(Transfer.id).where(Transfer.reference == reference)) is not None

    def transfer(self, reference: int, source: int, target: int, amount: int) -> None:
        """Move money between two accounts, and note it."""

        def work(session: Session) -> None:
            for account, change in ((source, -amount), (target, amount)):
                session.execute(update(Account).where(Account.id == account).values(balance=Account.balance + change))
            session.add(Transfer(reference=reference, source=source, target=target, amount=amount))

        self.transact(work)
