"""The levels of `consistency` through Django: what is sent, what reads promise, what a response carries, what is refused."""

from collections.abc import Iterator
from typing import Any, get_args

import pytest
from django.conf import settings
from django.db import connections
from django.http import HttpRequest, HttpResponse
from django.test import RequestFactory

import ps_django
from ps_core import use_token
from ps_core._message.functions import Functions
from ps_core.errors import ConfigurationError
from ps_core.topology import Consistency
from ps_django.checks import check_settings
from ps_django.config import consistency_of, families, replicas_of_alias, state_of_alias
from ps_django.middleware import ConsistencyMiddleware
from ps_lab import Lab
from tests.ps_core.wire import sending

URL = "postgresql://app.br4nch:secret@x.psdb.cloud/shop"
MONOTONIC, OWN, NONE = LEVELS = get_args(Consistency)
HERE, THERE = "levelled", "levelled_replica"

SENT = {
    MONOTONIC: [
        "BEGIN; settings; UPDATE shop_product SET stock = 1; COMMIT; written position",
        "settings; guard; read only; SELECT 5; position",
    ],
    OWN: [
        "BEGIN; settings; UPDATE shop_product SET stock = 1; COMMIT; written position",
        "settings; guard; read only; SELECT 5",
    ],
    NONE: ["settings; UPDATE shop_product SET stock = 1", "settings; read only; SELECT 5"],
}
"""A write and a read outside `atomic()` take a round trip each."""


@pytest.fixture(params=LEVELS)
def level(ps_lab: Lab, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Consistency]:
    """Two more aliases, of each level, whose connections are open; the shop has no products."""
    from django_shop.shop.models import Product

    monkeypatch.setattr(Functions, "is_due", lambda *_: False)  # once a minute, a message asks for more
    made = ps_django.databases(ps_lab.url, bouncer="write-pool", replica_bouncer="read-pool", consistency=request.param)
    monkeypatch.setitem(settings.DATABASES, HERE, made["default"])
    replica = {**made["replica"], "OPTIONS": {**made["replica"]["OPTIONS"], "ps_primary": HERE}, "TEST": {}}
    monkeypatch.setitem(settings.DATABASES, THERE, replica)
    connections.configure_settings(settings.DATABASES)
    Product.objects.all().delete()
    ps_lab.wait_replicas_caught_up()
    with use_token(None):
        for alias in (HERE, THERE):
            connections[alias].ensure_connection()
    with use_token(None):
        yield request.param
    for alias in (HERE, THERE):
        connections[alias].close()
        del connections[alias]
    Product.objects.all().delete()


def test_sent(ps_lab: Lab, level: Consistency) -> None:
    """The messages of a write and of a read; the same round trips at each level."""
    here, there = connections[HERE], connections[THERE]
    with use_token(None) as tracker, sending(here.connection, there.connection) as sent, ps_lab.round_trips() as counter:
        with here.cursor() as cursor:
            cursor.execute("UPDATE shop_product SET stock = 1")
        token = tracker.token
        ps_lab.wait_replicas_caught_up()
        with there.cursor() as cursor:
            cursor.execute("SELECT 5")
    assert sent.messages == SENT[level]
    assert counter.by_path == {"primary": 1, "replica": 1}
    assert (token is None) is (level == NONE)
    assert (tracker.token is token) is (level != MONOTONIC)


def test_promises(ps_lab: Lab, level: Consistency) -> None:
    """With replicas that are late: one's own write is seen but at "none", and what was seen elsewhere at "monotonic" alone."""
    from django_shop.shop.models import Product

    products = Product.objects
    ps_lab.set_replay_delay(60)
    try:
        with use_token(None):
            products.create(name="of another", price=1, stock=1)
        with use_token(None):
            assert products.using(HERE).count() == 1
            assert products.using(THERE).count() == (1 if level == MONOTONIC else 0)
        with use_token(None):
            products.using(HERE).create(name="one's own", price=1, stock=1)
            assert products.using(THERE).count() == (0 if level == NONE else 2)
    finally:
        ps_lab.set_replay_delay(0)


def test_cookies(ps_lab: Lab, level: Consistency) -> None:
    """A response that wrote sets the cookie, but at "none"; of one that read more, who has a cookie learns at "monotonic"."""
    from django_shop.shop.models import Product

    def view(request: HttpRequest) -> HttpResponse:
        if request.method == "POST":
            Product.objects.using(HERE).create(name="cup", price=1, stock=1)
        else:
            Product.objects.using(HERE).count()
        return HttpResponse()

    served = ConsistencyMiddleware(view)
    factory = RequestFactory()
    assert not served(factory.get("/")).cookies
    cookies = served(factory.post("/")).cookies
    assert bool(cookies) is (level != NONE)
    ps_lab.sql("UPDATE shop_product SET stock = 2")
    for name, morsel in cookies.items():
        factory.cookies[name] = morsel.value
    assert bool(served(factory.get("/")).cookies) is (level == MONOTONIC)


@pytest.mark.parametrize("level_", LEVELS)
def test_forms(level_: Consistency) -> None:
    """`databases(consistency=...)`, the URL and `ps_consistency` of the primary's entry say it for all its aliases."""
    by_url = ps_django.databases(f"{URL}?ps_consistency={level_}", replica_bouncer="read-pool")
    by_keyword = ps_django.databases(URL, replica_bouncer="read-pool", consistency=level_)
    by_environment = ps_django.databases({"PS_URL": URL, "PS_REPLICA_BOUNCER": "read-pool", "PS_CONSISTENCY": level_})
    by_hand = ps_django.databases(URL, replica_bouncer="read-pool")
    by_hand["default"]["OPTIONS"]["ps_consistency"] = level_
    assert by_url == by_keyword == by_environment
    for entries in (by_url, by_hand):
        replicas = replicas_of_alias("default", entries)
        assert replicas is not None
        states = {alias: state_of_alias(alias, entry, entries) for alias, entry in entries.items()}
        assert replicas.states == (states["replica"],)
        for alias, state in states.items():
            assert consistency_of(alias, entries[alias], entries) == level_
            assert (state.tracks, state.tracks and state.tracks_reads) == (level_ != NONE, level_ == MONOTONIC)


def test_without_replicas() -> None:
    """Without a replica's alias nothing is asked for, but where the entry says so: other processes may have replicas."""
    for entries in (ps_django.databases(URL), ps_django.databases(URL, consistency=OWN)):
        assert not state_of_alias("default", entries["default"], entries).tracks
    entries["default"]["OPTIONS"]["ps_consistency"] = OWN
    state = state_of_alias("default", entries["default"], entries)
    assert (state.tracks, state.tracks_reads) == (True, False)


@pytest.mark.parametrize("value", ["read-your-writes", "", None, False, 1])
def test_refused(value: Any) -> None:
    """What is no level is refused, with where it stands and what to write."""
    entries = ps_django.databases(URL, replica_bouncer="read-pool")
    entries["default"]["OPTIONS"]["ps_consistency"] = value
    message = r"DATABASES\['default'\]: ps_consistency: write 'monotonic', 'read_your_writes' or 'none', not "
    for alias in entries:
        with pytest.raises(ConfigurationError, match=message):
            state_of_alias(alias, entries[alias], entries)


def test_refused_elsewhere() -> None:
    """A replica's entry cannot say something of its own: it would be without effect."""
    entries = ps_django.databases(URL, replica_bouncer="read-pool")
    entries["replica"]["OPTIONS"]["ps_consistency"] = NONE
    message = r"DATABASES\['replica'\]: ps_consistency holds for all aliases .* in the OPTIONS of DATABASES\['default'\]"
    with pytest.raises(ConfigurationError, match=message):
        families(entries)


SESSIONS, OURS = "django.contrib.sessions.middleware.SessionMiddleware", "ps_django.middleware.ConsistencyMiddleware"


@pytest.mark.parametrize(
    ("given", "middleware", "reads", "found"),
    [
        (NONE, [], "primary", {"W004: There are replicas, and no middleware that lets requests read from them."}),
        (NONE, [], "replica", set()),
        (NONE, [SESSIONS, OURS], "primary", set()),
        (OWN, [], "replica", {"W004: There are replicas, and no middleware that lets requests see what their user wrote."}),
    ],
)
def test_checks(monkeypatch: pytest.MonkeyPatch, given: str, middleware: list[str], reads: str, found: set[str]) -> None:
    """Where no tokens are given, nobody is told to carry them."""
    entries = ps_django.databases(URL, replica_bouncer="read-pool")
    entries["default"]["OPTIONS"]["ps_consistency"] = given
    monkeypatch.setattr(settings, "DATABASES", entries)
    monkeypatch.setattr(settings, "MIDDLEWARE", middleware)
    monkeypatch.setattr(settings, "PS_DJANGO", {"READS": reads}, raising=False)
    told = {f"{message.id}: {message.msg}".removeprefix("ps_django.") for message in check_settings()}
    assert {text for text in told if not text.startswith("W014")} == found


def test_check_of_an_unknown_level(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown level is found, and hides nothing else."""
    entries = ps_django.databases(URL, replica_bouncer="read-pool")
    entries["default"]["OPTIONS"]["ps_consistency"] = "strong"
    monkeypatch.setattr(settings, "DATABASES", entries)
    monkeypatch.setattr(settings, "MIDDLEWARE", [])
    assert {message.id for message in check_settings()} - {"ps_django.W014"} == {"ps_django.E001", "ps_django.W004"}
