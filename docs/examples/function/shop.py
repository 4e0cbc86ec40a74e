"""What both handlers have in common: the event, and what becomes of errors.

An order has an id that its caller chose. So whoever got no answer, or a 503, sends the same again, and nothing is sold twice.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ps_core import deadline

if TYPE_CHECKING:
    from collections.abc import Callable

    Response = dict[str, Any]

TABLES = (
    "CREATE TABLE product (id int PRIMARY KEY, name text NOT NULL, stock int NOT NULL CHECK (stock >= 0))",
    "CREATE TABLE purchase (id uuid PRIMARY KEY, product_id int NOT NULL REFERENCES product, quantity int NOT NULL)",
)
ADD = "INSERT INTO purchase VALUES (%s, %s, %s)"
TAKE = "UPDATE product SET stock = stock - %s WHERE id = %s RETURNING stock"
FIND = "SELECT name, stock FROM product WHERE id = %s"
OUTCOMES = {"23505": (200, "placed before"), "23503": (404, "no such product"), "23514": (409, "not so many left")}
"""By SQLSTATE: unique, foreign key and check violation."""
TO_ANSWER = 0.2
"""Seconds that are left to the answer when the deadline of the database is over."""


def answer(
    event: dict[str, Any], context: Any, find: Callable[[int], tuple[Any, ...] | None], buy: Callable[[str, int, int], int]
) -> Response:
    """Serve `GET /products/ID` and `POST /orders`. The database gets the time that the platform leaves."""
    try:
        with deadline(max(0.001, context.get_remaining_time_in_millis() / 1000 - TO_ANSWER)):
            if event["requestContext"]["http"]["method"] == "POST":
                order = json.loads(event["body"])
                return _response(201, left=buy(order["id"], order["product"], order["quantity"]))
            found = find(int(event["rawPath"].rpartition("/")[2]))
            return _response(404, detail="no such product") if found is None else _response(200, name=found[0], stock=found[1])
    except Exception as exc:
        from ps_core import CommitOutcomeUnknown, DeadlineExceeded  # not before it is needed: this imports psycopg

        if isinstance(exc, DeadlineExceeded | CommitOutcomeUnknown):
            return _response(503, detail="send it again")
        if (outcome := OUTCOMES.get(getattr(exc, "sqlstate", None) or "")) is None:
            raise
        return _response(outcome[0], detail=outcome[1])


def _response(status: int, **body: Any) -> Response:
    return {"statusCode": status, "headers": {"Content-Type": "application/json"}, "body": json.dumps(body)}
