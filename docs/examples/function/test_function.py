"""The function, in a process of its own for each call, as on a cold start; and called again, warm."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ps_lab import Lab

from .shop import TABLES

FOLDER = Path(__file__).parents[1]
ORDER = "6f1c9f0e-2f4d-4f0a-9a53-0c6a7a4a8a01"
OTHER = "6f1c9f0e-2f4d-4f0a-9a53-0c6a7a4a8a02"
WAYS = {"tcp": ("connected", "tcp"), "websocket": ("connected", "websocket"), "https": ("single_requests", "tcp")}

Call = Callable[..., list[tuple[int, Any]]]


def get(product: int) -> dict[str, Any]:
    return {"requestContext": {"http": {"method": "GET"}}, "rawPath": f"/products/{product}"}


def post(order: str, product: int, quantity: int) -> dict[str, Any]:
    body = json.dumps({"id": order, "product": product, "quantity": quantity})
    return {"requestContext": {"http": {"method": "POST"}}, "rawPath": "/orders", "body": body}


@pytest.fixture
def shop(ps_lab: Lab) -> Iterator[Lab]:
    """Ten teapots."""
    for statement in (*TABLES, "INSERT INTO product VALUES (1, 'teapot', 10)", "GRANT ALL ON product, purchase TO app"):
        ps_lab.sql(statement)
    yield ps_lab
    ps_lab.sql("DROP TABLE purchase, product")


@pytest.fixture(params=WAYS)
def call(request: pytest.FixtureRequest, shop: Lab) -> Call:
    """Return what calls the function in a new process, once for each event: what it answered, as status and body."""
    module, transport = WAYS[request.param]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PS_")},
        "PYTHONPATH": str(FOLDER),
        "PS_URL": shop.url_of("app"),
        "PS_BOUNCER": "write-pool",
        "PS_TRANSPORT": transport,
    }

    def run(*events: dict[str, Any], seconds: float = 20) -> list[tuple[int, Any]]:
        ran = subprocess.run(
            [sys.executable, "-W", "error", "-m", "function.invoke", module, str(seconds)],
            input="".join(f"{json.dumps(event)}\n" for event in events),
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (ran.stderr, ran.returncode) == ("", 0)
        answers = [json.loads(line) for line in ran.stdout.splitlines()]
        return [(answer["statusCode"], json.loads(answer["body"])) for answer in answers]

    return run


def test_cold(shop: Lab, call: Call) -> None:
    """Each call in a process of its own: an order counts once, however often it is sent, and one that cannot be is undone."""
    assert call(post(ORDER, 1, 3)) == [(201, {"left": 7})]
    assert call(post(ORDER, 1, 3)) == [(200, {"detail": "placed before"})]
    assert call(post(OTHER, 1, 8)) == [(409, {"detail": "not so many left"})]
    assert call(post(OTHER, 2, 1)) == [(404, {"detail": "no such product"})]
    assert call(get(1)) == [(200, {"name": "teapot", "stock": 7})]
    assert call(get(2)) == [(404, {"detail": "no such product"})]
    assert shop.sql("SELECT id::text, quantity FROM purchase") == [(ORDER, 3)]


def test_warm(shop: Lab, call: Call) -> None:
    """An instance that is called again keeps what it has: one start of a session at most, and an error breaks nothing."""
    with shop.round_trips() as counter:
        answers = call(post(ORDER, 1, 3), post(OTHER, 1, 8), get(1))
    assert answers == [(201, {"left": 7}), (409, {"detail": "not so many left"}), (200, {"name": "teapot", "stock": 7})]
    assert counter.startups <= 1


def test_out_of_time(shop: Lab, call: Call) -> None:
    """Where the database does not answer, the function does, in its time; the same order may then be sent again."""
    with shop.edge.hang():
        assert call(get(1), seconds=1.5) == [(503, {"detail": "send it again"})]
        assert call(post(ORDER, 1, 3), seconds=1.5) == [(503, {"detail": "send it again"})]
    (first,) = call(post(ORDER, 1, 3))
    assert first in [(201, {"left": 7}), (200, {"detail": "placed before"})]
    assert call(get(1)) == [(200, {"name": "teapot", "stock": 7})]
