"""By requests to port 443: one for a product, and one for an order, whose statements are one transaction."""

from typing import Any

from ps_core import Topology
from ps_http import Client

from .shop import ADD, FIND, TAKE, answer

client = Client(Topology.from_env())


def find(product: int) -> tuple[Any, ...] | None:
    return next(iter(client.execute(FIND, [product])), None)


def buy(order: str, product: int, quantity: int) -> int:
    with client.batch() as batch:
        batch.execute(ADD, [order, product, quantity])
        left = batch.execute(TAKE, [quantity, product])
    return int(left.result.scalar())


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    return answer(event, context, find, buy)
