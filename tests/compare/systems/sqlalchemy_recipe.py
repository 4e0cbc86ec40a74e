"""Stock SQLAlchemy with the `RoutingSession` of its documentation.

https://docs.sqlalchemy.org/en/20/orm/persistence_techniques.html#custom-vertical-partitioning
The two followers of the recipe are one engine here: the replicas are behind one bouncer, which spreads.
"""

from typing import Any

from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.sql import Delete, Update

from tests.compare.bank_sqlalchemy import Bank
from tests.compare.system import Side, bouncer
from tests.stock import libpq

NAME = "SQLAlchemy, routing recipe"
DISTRIBUTIONS = ("SQLAlchemy",)
REMARK = "reads on replicas outside flushes; a connection is tested when it is borrowed"


class RoutingSession(Session):
    """SQLAlchemy's recipe: flushes, updates and deletes go to the leader, everything else to a follower."""

    engines: dict[str, Engine]

    def get_bind(self, mapper: Any = None, *, clause: Any = None, **_: Any) -> Engine:
        """Choose the engine."""
        if self._flushing or isinstance(clause, (Update, Delete)):
            return self.engines["leader"]
        return self.engines["follower"]


def make(url: str, clients: int) -> Bank:
    """Set it up."""

    def engine(side: Side) -> Engine:
        params = libpq(bouncer(url, side))
        return create_engine("postgresql+psycopg://", connect_args=params, pool_pre_ping=True, pool_size=clients)

    RoutingSession.engines = {"leader": engine("primary"), "follower": engine("replica")}
    return Bank(sessionmaker(class_=RoutingSession))
