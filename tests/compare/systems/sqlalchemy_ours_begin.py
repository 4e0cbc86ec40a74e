"""This project with SQLAlchemy, and transactions as they are in stock SQLAlchemy: `with session.begin()`."""

from ps_sqlalchemy import create_engine, sessionmaker
from tests.compare.bank_sqlalchemy import Bank

NAME = "ps_sqlalchemy without `run_transaction`"
DISTRIBUTIONS = ("ps-postgres", "SQLAlchemy")
REMARK = "the same, but of a transaction only what opens it is sent again"


def make(url: str, clients: int) -> Bank:
    """Set it up."""
    return Bank(sessionmaker(create_engine(url, bouncer="write-pool", replica_bouncer="read-pool", pool_size=clients)))
