"""The application in SQLAlchemy."""

from collections.abc import Callable

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ps_demo.bank.models import Account, Transfer, moves


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
            for statement in moves(source, target, amount):
                session.execute(statement)
            session.add(Transfer(reference=reference, source=source, target=target, amount=amount))

        self.transact(work)
