"""The AWS Advanced Python Wrapper under SQLAlchemy, with what of it works away from Aurora.

Failover: https://github.com/aws/aws-advanced-python-wrapper/blob/main/docs/examples/PGSQLAlchemyFailover.py, but on the wrapper's
own dialect, and with the application's second try after `FailoverSuccessError`, as in
https://github.com/aws/aws-advanced-python-wrapper/blob/main/docs/using-the-python-wrapper/SqlAlchemySupport.md
Read/write splitting: SQLAlchemy's own, which that page recommends. What the plugins say here is in `attempts`; `srw` is not among
them, since it distinguishes endpoints by host and port, and here they differ in the user's name.
"""

import socket
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

from aws_advanced_python_wrapper.errors import FailoverSuccessError
from aws_advanced_python_wrapper.psycopg import connect
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import sessionmaker

from tests.compare.bank_sqlalchemy import Bank
from tests.compare.system import bouncer
from tests.compare.systems.sqlalchemy_recipe import RoutingSession
from tests.stock import libpq

NAME = "AWS wrapper, `failover`"
DISTRIBUTIONS = ("aws-advanced-python-wrapper", "SQLAlchemy")
REMARK = "reads on replicas outside flushes, by SQLAlchemy's recipe; the wrapper reconnects, and the application tries again"
PLUGINS = "failover,host_monitoring_v2"

T = TypeVar("T")


class WrappedBank(Bank):
    """Tries once more where the wrapper says that it has reconnected, and that nothing was under way."""

    def read(self, account: int) -> bool:
        """Read a balance; return whether a replica answered."""
        return _again(lambda: super(WrappedBank, self).read(account))

    def read_own(self, reference: int) -> bool:
        """Look for a transfer; return whether it was found."""
        return _again(lambda: super(WrappedBank, self).read_own(reference))

    def transfer(self, reference: int, source: int, target: int, amount: int) -> None:
        """Move money between two accounts, and note it."""
        _again(lambda: super(WrappedBank, self).transfer(reference, source, target, amount))


def _again(request: Callable[[], T]) -> T:
    try:
        return request()
    except DBAPIError as exc:
        if isinstance(exc.orig, FailoverSuccessError):
            return request()
        raise


def make(url: str, clients: int) -> Bank:
    """Set it up."""
    RoutingSession.engines = {
        "leader": _engine(libpq(bouncer(url, "primary")), plugins=PLUGINS, pool_size=clients),
        "follower": _engine(libpq(bouncer(url, "replica")), plugins=PLUGINS, pool_size=clients),
    }
    return WrappedBank(sessionmaker(class_=RoutingSession))


def _engine(
    params: dict[str, Any], *, pool_size: int = 1, dialect: str = "postgresql+aws_wrapper_psycopg", **wrapper: Any
) -> Engine:
    return create_engine(
        f"{dialect}://",
        creator=lambda: connect(**params, **wrapper),
        pool_pre_ping=True,
        pool_size=pool_size,
    )


EXAMPLE: Final = "postgresql+psycopg"
TRIED: Final[tuple[dict[str, Any], ...]] = (
    {"plugins": PLUGINS},
    {"plugins": PLUGINS, "dialect": EXAMPLE},
    {"plugins": "failover_v2,host_monitoring_v2"},
    {"plugins": "failover_v2,host_monitoring_v2", "wrapper_dialect": "aurora-pg"},
    {"plugins": "failover_v2,host_monitoring_v2", "wrapper_dialect": "multi-az-pg"},
    {"plugins": "read_write_splitting"},
)


def attempts(url: str) -> Iterator[tuple[str, str]]:
    """Try the plugins on a connection to the primary's bouncer: yield each configuration, and what came of it."""
    params = libpq(bouncer(url, "primary"))
    for wrapper in TRIED:
        engine = _engine(params, failover_timeout_sec=2, **wrapper)
        try:
            with engine.connect() as connection:
                if wrapper["plugins"] == "read_write_splitting":
                    connection.execution_options(postgresql_readonly=True)
                    replica = connection.scalar(text("SELECT pg_is_in_recovery()"))
                    outcome = f"with `postgresql_readonly=True`, {'a replica' if replica else 'the primary'} answered"
                else:
                    connection.scalar(text("SELECT 1"))
                    connection.commit()
                    _break(connection.connection.driver_connection)
                    connection.scalar(text("SELECT 1"))
                    outcome = "nothing was noticed"
        except (DBAPIError, TypeError) as exc:
            original = exc.orig if isinstance(exc, DBAPIError) else exc
            outcome = f"{type(original).__name__}: {original}".partition("\n")[0]
        finally:
            engine.dispose()
        yield ", ".join(f"{name}={value}" for name, value in wrapper.items()), outcome


def _break(wrapped: Any) -> None:
    """Break the connection underneath, as a network does."""
    with socket.socket(fileno=socket.dup(wrapped.target_connection.fileno())) as broken:
        broken.shutdown(socket.SHUT_RDWR)
