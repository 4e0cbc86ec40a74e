"""Entries of DATABASES that are written by hand: what `databases()` gives holds for them."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.conf import settings
from django.db import connections

import ps_django
from ps_core import Token, use_token
from ps_core.consistency import identity_of
from ps_core.topology import Topology
from ps_django.config import replicas_of_alias, state_of_alias
from ps_lab import Lab
from ps_lab.processes import wait_until

HERE, THERE = "byhand", "byhand_replica"


def entry(lab: Lab, bouncer: str, **options: Any) -> dict[str, Any]:
    """Return an entry as one writes it."""
    endpoint = lab.topology.primary
    return {
        "ENGINE": "ps_django.backend",
        "HOST": endpoint.host,
        "PORT": str(endpoint.port),
        "USER": f"{endpoint.user.partition('|')[0]}|{bouncer}",
        "PASSWORD": endpoint.password,
        "NAME": endpoint.dbname,
        "OPTIONS": {**dict(endpoint.params), **options},
    }


@pytest.fixture(params=[{}, {"ps_consistency": "monotonic"}, {"ps_identity": "reports"}])
def products(ps_lab: Lab, request: Any) -> Iterator[Any]:
    """The shop's products, by two more aliases."""
    from django_shop.shop.models import Product

    Product.objects.all().delete()
    ps_lab.wait_replicas_caught_up()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(settings.DATABASES, HERE, entry(ps_lab, "write-pool", **request.param))
        patch.setitem(settings.DATABASES, THERE, entry(ps_lab, "read-pool", ps_role="replica", ps_primary=HERE))
        connections.configure_settings(settings.DATABASES)
        with use_token(None):
            yield Product.objects
        for alias in (HERE, THERE):
            connections[alias].close()
            del connections[alias]
    Product.objects.all().delete()


def test_own_writes(ps_lab: Lab, products: Any) -> None:
    """A write leaves a token that other processes read, and is seen through the replica's alias however late that is."""
    ps_lab.set_replay_delay(60)
    try:
        with use_token(None) as tracker:
            products.using(HERE).create(name="cup", price=1, stock=1)
            options = settings.DATABASES[HERE]["OPTIONS"]
            assert tracker.token is not None
            assert tracker.token.identity == options.get("ps_identity", ps_lab.branch)
            text, at = str(tracker.token), tracker.token.at
        assert Token.parse(text, identity=tracker.token.identity, now=at).position
        with use_token(text):
            assert products.using(THERE).count() == 1
        assert products.using(THERE).count() == 0
    finally:
        ps_lab.set_replay_delay(0)


def test_lost_replicas(ps_lab: Lab, products: Any) -> None:
    """The alias's connections are of the set that leaves out what fails: the primary answers, and the replicas again."""
    connection: Any = connections[THERE]
    replicas = replicas_of_alias(HERE, settings.DATABASES)
    assert replicas is not None
    assert replicas.states == (connection.ps_state,)
    ps_lab.bouncers["read-pool"].stop()
    try:
        assert products.using(THERE).count() == 0
        assert connection.connection.state is replicas.fallback
    finally:
        ps_lab.restart_bouncer("read-pool")
    wait_until(lambda: products.using(THERE).count() == 0 and connection.connection.state is replicas.states[0], "the replicas")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://app.branch:pw@x.horizon.psdb.cloud/db",
        "postgresql://app:pw@db.example.org:6432/shop",
        "postgresql://a.b:pw@ep-1-pooler.eu-central-1.aws.neon.tech/shop",
        "postgresql://postgres.project:pw@aws-0-eu-central-1.pooler.supabase.com:6543/postgres",
    ],
)
def test_identity(url: str) -> None:
    """Without `ps_identity`, an entry is of the branch that `databases()` finds: processes with either understand each other."""
    entries = ps_django.databases(url)
    del entries["default"]["OPTIONS"]["ps_identity"]
    for alias, by_hand in entries.items():
        assert state_of_alias(alias, by_hand, entries).identity == identity_of(Topology.from_url(url).identity)


def test_no_positions(ps_lab: Lab) -> None:
    """`ps_consistency` of the primary holds for its replicas, too."""
    entries = {
        "default": entry(ps_lab, "a", ps_consistency="none"),
        "replica": entry(ps_lab, "b", ps_role="replica", ps_primary="default"),
    }
    replicas = replicas_of_alias("default", entries)
    assert replicas is not None
    assert replicas.states == (state_of_alias("replica", entries["replica"], entries),)
    assert not any(state.tracks for state in (*replicas.states, state_of_alias("default", entries["default"], entries)))
