"""advanced-alchemy's read/write routing.

https://docs.advanced-alchemy.litestar.dev/latest/usage/routing.html, with its default: sticky after a write, until the commit.
"""

from typing import Any

from advanced_alchemy.config import EngineConfig, SQLAlchemySyncConfig
from advanced_alchemy.config.routing import RoutingConfig
from advanced_alchemy.routing.context import reset_routing_context
from sqlalchemy import URL
from sqlalchemy.orm import Session

from tests.compare.bank_sqlalchemy import Bank
from tests.compare.system import bouncer
from tests.stock import libpq

NAME = "advanced-alchemy, routing"
DISTRIBUTIONS = ("advanced-alchemy", "SQLAlchemy")
REMARK = "reads on replicas, but after a write in the same transaction; a connection is tested when it is borrowed"


def make(url: str, clients: int) -> Bank:
    """Set it up."""
    config = SQLAlchemySyncConfig(
        routing_config=RoutingConfig(
            primary_connection_string=_url(libpq(bouncer(url, "primary"))),
            read_replicas=[_url(libpq(bouncer(url, "replica")))],
        ),
        engine_config=EngineConfig(pool_pre_ping=True, pool_size=clients, connect_args={"prepare_threshold": None}),
    )
    sessions = config.create_session_maker()

    def session_of_request() -> Session:
        # As its extensions for web frameworks do: `with session.begin()` alone would leave the thread on the primary.
        reset_routing_context()
        session: Session = sessions()
        return session

    return Bank(session_of_request)


def _url(params: dict[str, Any]) -> str:
    """Return the URL: the two differ in user and port, and the engines share all other options."""
    address = {"username": "user", "password": "password", "host": "host", "port": "port", "database": "dbname"}
    options = {name: str(value) for name, value in params.items() if name not in {*address.values(), "prepare_threshold"}}
    whole = URL.create("postgresql+psycopg", **{name: params[key] for name, key in address.items()}, query=options)
    return whole.render_as_string(hide_password=False)
