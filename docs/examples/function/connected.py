"""By a connection, which a warm instance keeps: over TCP, or with PS_TRANSPORT=websocket over port 443."""

import atexit
from functools import cache
from typing import Any

import ps_core
from ps_core import Topology

from .shop import ADD, FIND, TAKE, answer


@cache
def connection() -> ps_core.Connection[tuple[Any, ...]]:
    """Connect with the first event, so that its deadline bounds it. A connection that was lost in a freeze heals by itself."""
    made = ps_core.connect(Topology.from_env(), autocommit=True)
    atexit.register(made.close)
    return made


def find(product: int) -> tuple[Any, ...] | None:
    return connection().execute(FIND, [product]).fetchone()


def buy(order: str, product: int, quantity: int) -> int:
    # The transaction is open between the statements: one could look at what another returned.
    with connection().transaction():
        connection().execute(ADD, [order, product, quantity])
        found = connection().execute(TAKE, [quantity, product]).fetchone()
    assert found is not None  # the foreign key
    return int(found[0])


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    return answer(event, context, find, buy)
