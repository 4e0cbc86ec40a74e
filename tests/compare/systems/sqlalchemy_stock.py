"""Stock SQLAlchemy: one engine on the primary's bouncer, with `pool_pre_ping`.

https://docs.sqlalchemy.org/en/20/core/pooling.html#disconnect-handling-pessimistic
"""

from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker

from tests.compare.bank_sqlalchemy import Bank
from tests.compare.system import bouncer
from tests.stock import libpq

NAME = "SQLAlchemy, `pool_pre_ping`"
DISTRIBUTIONS = ("SQLAlchemy",)
REMARK = "reads on the primary; a connection is tested when it is borrowed"


def make(url: str, clients: int) -> Bank:
    """Set it up."""
    params = libpq(bouncer(url, "primary"))
    return Bank(sessionmaker(create_engine("postgresql+psycopg://", connect_args=params, pool_pre_ping=True, pool_size=clients)))
