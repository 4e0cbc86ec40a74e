"""This project with SQLAlchemy: docs/sqlalchemy.md."""

from collections.abc import Callable

from sqlalchemy.orm import Session

from ps_sqlalchemy import create_engine, run_transaction, sessionmaker
from tests.compare.bank_sqlalchemy import Bank

NAME = "ps_sqlalchemy"
DISTRIBUTIONS = ("ps-postgres", "SQLAlchemy")
REMARK = "reads on replicas that have replayed what this user saw; sent again by the package, transactions by `run_transaction`"


class OurBank(Bank):
    """Transactions run again where that is safe."""

    def transact(self, work: Callable[[Session], None]) -> None:
        """Do the work in a transaction of its own."""
        run_transaction(self.sessions, work)


def make(url: str, clients: int) -> Bank:
    """Set it up."""
    return OurBank(sessionmaker(create_engine(url, bouncer="write-pool", replica_bouncer="read-pool", pool_size=clients)))
