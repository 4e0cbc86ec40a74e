"""The shop on replicas that replay late."""

from collections.abc import Callable, Iterator
from itertools import count

import httpx2
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from ps_core import DeadlineExceeded, deadline
from ps_core.context import remaining
from ps_lab import Lab
from ps_sqlalchemy import Topology, create_engine

from . import app, sync_app
from .models import Base


@pytest.fixture(params=[app, sync_app], ids=["async", "sync"])
def make_app(request: pytest.FixtureRequest, ps_lab: Lab) -> Iterator[Callable[[Topology, list[str]], FastAPI]]:
    """Each of the two applications, on empty tables, with late replicas."""
    engine = create_engine(ps_lab.topology)
    Base.metadata.create_all(engine.direct)
    ps_lab.wait_replicas_caught_up()
    ps_lab.set_replay_delay(60)
    try:
        yield request.param.make_app
    finally:
        ps_lab.set_replay_delay(0)
        Base.metadata.drop_all(engine.direct)
        engine.dispose()


def test_shop(ps_lab: Lab, make_app: Callable[[Topology, list[str]], FastAPI]) -> None:
    """Each user reads what they wrote at once, then on the replicas again; others read on the replicas all the time."""
    shop = make_app(ps_lab.topology, ["a secret"])
    with TestClient(shop) as user, TestClient(shop) as other:
        for number in range(5):
            created = user.post("/products", json={"name": f"Teapot {number}", "price": "9.50"})
            assert created.status_code == 201
            with ps_lab.round_trips() as counter:
                assert user.get(f"/products/{created.json()['id']}").json() == created.json()
                assert len(user.get("/products").json()) == number + 1
            assert counter.by_path["primary"]
        with ps_lab.round_trips() as counter:
            assert other.get("/products").status_code == 200
        assert counter.by_path["replica"] == counter.count

        ps_lab.set_replay_delay(0)
        with ps_lab.round_trips() as counter:
            assert len(user.get("/products").json()) == 5
            assert user.get("/products/0").status_code == 404
        assert counter.by_path["replica"] == counter.count


def test_environment(ps_lab: Lab, make_app: Callable[[Topology, list[str]], FastAPI], monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment makes the same application; a request without a cookie is served by a replica."""
    monkeypatch.setenv("PS_URL", ps_lab.url)
    monkeypatch.setenv("PS_BOUNCER", "write-pool")
    monkeypatch.setenv("PS_REPLICA_BOUNCER", "read-pool")
    monkeypatch.setenv("SHOP_KEYS", "new,old")
    module = app if make_app is app.make_app else sync_app
    with TestClient(module.from_environment()) as client, ps_lab.round_trips() as counter:
        assert client.get("/products").json() == []
    assert counter.by_path["replica"] == counter.count


async def test_too_late(ps_lab: Lab, make_app: Callable[[Topology, list[str]], FastAPI]) -> None:
    """A request whose deadline is over before it asks the database gets a 504."""
    transport = httpx2.ASGITransport(make_app(ps_lab.topology, ["a secret"]))
    with deadline("1ms"):
        with pytest.raises(DeadlineExceeded):
            all(remaining() for _ in count())
        async with httpx2.AsyncClient(transport=transport, base_url="http://shop") as client:
            assert (await client.get("/products")).status_code == 504
