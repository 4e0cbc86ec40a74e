"""The application in SQLAlchemy."""

from sqlalchemy import select

from ps_demo import bank_sqlalchemy
from ps_demo.bank_sqlalchemy import Transfer


class Bank(bank_sqlalchemy.Bank):
    """The demo's, and one more request."""

    def read_own(self, reference: int) -> bool:
        """Look for a transfer; return whether it was found."""
        with self.sessions() as session:
            return session.scalar(select(Transfer.id).where(Transfer.reference == reference)) is not None
