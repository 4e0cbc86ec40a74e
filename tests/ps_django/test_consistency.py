"""Requests see what their user's earlier ones wrote; hidden writes run on the primary; whole transactions run again."""

import asyncio
from typing import Any

import psycopg
import pytest
from django.db import OperationalError, connections, transaction
from django.test import AsyncClient, Client, override_settings

import ps_django
from ps_core import current_token, use_token
from ps_django.transaction import run_transaction
from ps_lab import Lab


def test_next_request_sees_the_write_of_the_last_one(ps_lab: Lab) -> None:
    """With a replay delay the write of one request is in the next one's list, from the primary; later from replicas again."""
    client, other = Client(), Client()
    Client().post("/products", {"name": "web before"})
    ps_lab.wait_replicas_caught_up()
    ps_lab.set_replay_delay(60)
    try:
        for number in range(10):
            assert client.post("/products", {"name": f"web {number}"}).status_code == 200
            answer = client.get("/products").json()
            assert f"web {number}" in answer["names"]
        assert not any(answer["by_replica"])
        assert any(name.startswith("ps_token_") and cookie["httponly"] for name, cookie in client.cookies.items())
        assert all(other.get("/products").json()["by_replica"])
    finally:
        ps_lab.set_replay_delay(0)
    assert all(client.get("/products").json()["by_replica"])


def test_forged_cookie_counts_for_nothing(ps_lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    """A cookie that was not signed here is ignored with a warning."""
    client = Client()
    client.cookies["ps_token"] = f"1.{ps_lab.branch}.FFFFFFFF-FFFFFFFF.4102444800.forged"
    assert all(client.get("/products").json()["by_replica"])
    assert "ignored a consistency token" in caplog.text


def test_async_request(ps_lab: Lab) -> None:
    """The middleware does the same under ASGI: who wrote is answered by the primary, others by replicas that are late."""

    async def work() -> tuple[Any, Any]:
        client, other = AsyncClient(), AsyncClient()
        await client.post("/products", {"name": "web async"})
        assert [cookie["httponly"] for cookie in client.cookies.values()] == [True]
        return (await client.get("/aproducts")).json(), (await other.get("/aproducts")).json()

    Client().post("/products", {"name": "web before"})
    ps_lab.wait_replicas_caught_up()
    ps_lab.set_replay_delay(60)
    try:
        own, others = asyncio.run(work())
    finally:
        ps_lab.set_replay_delay(0)
    assert "web async" in own["names"]
    assert "web async" not in others["names"]
    assert set(own["by_replica"]) == {False}
    assert set(others["by_replica"]) == {True}


def test_deadline_of_a_request() -> None:
    """A request's deadline bounds its statements."""
    client = Client()
    assert client.get("/timeout").json() == {"milliseconds": 2000}
    with override_settings(PS_DJANGO={"DEADLINE": "1s"}):
        assert Client().get("/timeout").json()["milliseconds"] <= 1000


def test_hidden_write_runs_once_on_the_primary(ps_lab: Lab) -> None:
    """A function that writes, called on the replica alias, is run on the primary and goes there directly the next time."""
    ps_lab.sql(
        "CREATE OR REPLACE FUNCTION dj_add() RETURNS text LANGUAGE sql AS"
        " $$INSERT INTO shop_product (name, price, stock) VALUES ('hidden', 1, 1) RETURNING name$$"
    )
    ps_lab.wait_replicas_caught_up()
    for on_replica in (1, 0):
        with ps_lab.round_trips() as counter, connections["replica"].cursor() as cursor:
            cursor.execute("SELECT dj_add()")
            assert cursor.fetchall() == [("hidden",)]
        assert counter.by_path["replica"] == on_replica
    assert ps_lab.sql("SELECT count(*) FROM shop_product WHERE name = 'hidden'") == [(2,)]


def test_single_write_yields_a_token() -> None:
    """A write outside atomic, and an atomic block, bring the position back."""
    from django_shop.shop.models import Product

    with use_token(None):
        Product.objects.create(name="token", price=1, stock=1)
        first = current_token()
        with transaction.atomic():
            Product.objects.create(name="token", price=1, stock=1)
        second = current_token()
    assert first is not None
    assert second is not None
    assert first.position is not None
    assert second.position is not None
    assert second.position > first.position


def test_run_transaction(ps_lab: Lab) -> None:
    """A connection lost in the middle, and a conflict, run the function again; on_commit hooks run once."""
    from django_shop.shop.models import Product

    calls: list[int] = []
    hooks: list[int] = []

    @run_transaction(using="default")
    def work(name: str) -> str:
        calls.append(1)
        transaction.on_commit(lambda: hooks.append(len(calls)))
        Product.objects.create(name=name, price=len(calls), stock=1)
        if len(calls) == 1:
            ps_lab.edge.cut("primary")
        if len(calls) == 2:
            raise OperationalError("synthetic") from psycopg.errors.SerializationFailure("synthetic")
        Product.objects.filter(name=name).update(stock=2)
        return name

    assert work("again") == "again"
    assert ps_lab.sql("SELECT price::int, stock FROM shop_product WHERE name = 'again'") == [(3, 2)]
    assert hooks == [3]
    with transaction.atomic(), pytest.raises(RuntimeError, match="inside atomic"):
        run_transaction(lambda: None)
    with pytest.raises(ZeroDivisionError):
        run_transaction(lambda: 1 // 0)


def test_reading_on_the_replica_alias_inside_atomic(ps_lab: Lab) -> None:
    """In a block of its own on the replica alias, a write is refused, and the error reaches the caller."""
    from django_shop.shop.models import Product

    with pytest.raises(Exception, match="read-only"), transaction.atomic(using="replica"):
        Product.objects.using("replica").create(name="never", price=1, stock=1)
    with ps_django.reading():
        assert not Product.objects.filter(name="never").exists()
