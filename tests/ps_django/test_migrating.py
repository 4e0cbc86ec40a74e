"""What docs/django-migrating.md says about each name of django-multidb-router and django-replicated."""

import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

import pytest
from django.conf import settings
from django.db import InternalError, connections, router, transaction
from django.db.utils import ConnectionHandler, ConnectionRouter
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.test import Client, override_settings
from django.urls import path
from django.utils.decorators import method_decorator
from django.views import View

import ps_django
from ps_core import use_token
from ps_core.context import current
from ps_core.share import set_replica_share
from ps_django.test import assert_routes
from ps_lab import Lab
from ps_lab.processes import wait_until

PAGE = Path(__file__).parents[2] / "docs" / "django-migrating.md"
F = TypeVar("F", bound=Callable[..., Any])
TESTED: set[str] = set()

DEFAULT, REPLICA = "default", "replica"


def replaces(*theirs: str) -> Callable[[F], F]:
    """Say which names of theirs a test is about."""
    TESTED.update(theirs)
    return lambda test: test


# --- the site ---


def read() -> bool:
    """Return whether a replica answered."""
    from django_shop.shop.models import Product
    from ps_demo.bank_django import InRecovery

    row: Any = Product.objects.annotate(by_replica=InRecovery()).filter(name="moved").first()
    return bool(row.by_replica)


def write() -> Any:
    """Write."""
    from django_shop.shop.models import Product

    return Product.objects.create(name="moved", price=1, stock=1)


def show(request: HttpRequest) -> JsonResponse:
    """Read, whatever the method."""
    return JsonResponse({"by_replica": read()})


def store(request: HttpRequest) -> HttpResponse:
    """Write, whatever the method."""
    write()
    return HttpResponse(status=int(request.GET.get("status", 200)))


@method_decorator(ps_django.using_primary(), name="dispatch")
class OnPrimary(View):
    """A class whose requests read from the primary."""

    def get(self, request: HttpRequest) -> JsonResponse:
        """Read."""
        return show(request)


urlpatterns = [
    path("show", show, name="show"),
    path("reports/show", show),
    path("store", store),
    path("primary", ps_django.using_primary()(show)),
    path("class", OnPrimary.as_view()),
    path("reading", ps_django.reading()(show)),
]
OURS = ["ps_django.middleware.ConsistencyMiddleware", "ps_django.middleware.DeadlineMiddleware"]


@pytest.fixture(scope="module", autouse=True)
def row(ps_lab: Lab, site: None) -> None:
    """There is something to read, on the replicas too."""
    write()
    ps_lab.wait_replicas_caught_up()


@pytest.fixture(autouse=True)
def _site(row: None) -> Iterator[None]:
    with override_settings(ROOT_URLCONF=__name__, MIDDLEWARE=OURS), use_token(None):
        yield


@pytest.fixture
def late(ps_lab: Lab) -> Iterator[Lab]:
    """Replicas replay late."""
    ps_lab.wait_replicas_caught_up()
    ps_lab.set_replay_delay(60)
    try:
        yield ps_lab
    finally:
        ps_lab.set_replay_delay(0)
        ps_lab.wait_replicas_caught_up()


def by_replica(answer: Any) -> bool:
    """Return who answered a request."""
    assert answer.status_code == 200
    return bool(answer.json()["by_replica"])


# --- both ---


@replaces("REPLICA_DATABASES", "SLAVE_DATABASES", "REPLICATED_DATABASE_SLAVES")
def test_which_are_replicas(ps_lab: Lab) -> None:
    """`databases()` names the replicas and makes them mirrors in tests; entries may be written by hand under other aliases."""
    entries = ps_django.databases(ps_lab.url, bouncer="write-pool", replica_bouncer="read-pool")
    assert [alias for alias, entry in entries.items() if entry["OPTIONS"]["ps_role"] == "replica"] == [REPLICA]
    assert entries[REPLICA]["TEST"] == {"MIRROR": DEFAULT}
    from django_shop.shop.models import Product

    with pytest.MonkeyPatch.context() as patch, ps_django.reading():
        by_hand = {DEFAULT: entries[DEFAULT], "shadow-1": entries[REPLICA]}
        patch.setattr(settings, "DATABASES", by_hand)
        patch.setattr("ps_django.routers.connections", ConnectionHandler(by_hand))
        routers = ConnectionRouter(["ps_django.routers.ReplicaRouter"])
        patch.setattr("ps_django.routers.router", routers)
        assert (routers.db_for_read(Product), routers.db_for_write(Product)) == ("shadow-1", DEFAULT)


@replaces("PinningReplicaRouter", "PinningMasterSlaveRouter", "ReplicationRouter")
def test_router() -> None:
    """A GET reads from replicas; a POST, what is outside of requests, and `atomic()` from the primary."""
    assert by_replica(Client().get("/show")) is True
    assert by_replica(Client().post("/show")) is False
    assert read() is False
    with ps_django.reading():
        assert read() is True
        with transaction.atomic():
            write()
            assert read() is False
        instance = type(write()).objects.first()
    assert instance is not None
    assert instance._state.db == REPLICA
    assert router.allow_relation(instance, write())
    assert [router.allow_migrate(alias, "shop") for alias in (DEFAULT, REPLICA)] == [True, False]


@replaces("PinningRouterMiddleware", "ReplicationMiddleware")
def test_middleware(late: Lab) -> None:
    """Writers, in a GET too, read from the primary while replicas are behind; readers, in a POST too, do not."""
    for method in ("get", "post"):
        client = Client()
        assert by_replica(getattr(client, method)("/show")) is (method == "get")
        assert not client.cookies
        getattr(client, method)("/store")
        assert by_replica(client.get("/show")) is False
    assert by_replica(Client().get("/show")) is True


@replaces("MULTIDB_PINNING_SECONDS", "REPLICATED_FORCE_MASTER_COOKIE_MAX_AGE")
def test_seconds(late: Lab) -> None:
    """A user reads from the primary as long as replicas are behind, and from replicas as soon as they are not."""
    client = Client()
    client.post("/store")
    assert [by_replica(client.get("/show")) for _ in range(3)] == [False] * 3
    late.set_replay_delay(0)
    late.wait_replicas_caught_up()
    assert by_replica(client.get("/show")) is True


@replaces("MULTIDB_PINNING_COOKIE", "REPLICATED_FORCE_MASTER_COOKIE_NAME")
def test_cookie(late: Lab) -> None:
    """The cookie's name can be chosen."""
    client = Client()
    with override_settings(PS_DJANGO={"COOKIE": "multidb_pin_writes"}):
        client.post("/store")
        assert all(name.startswith("multidb_pin_writes_") for name in client.cookies)
        assert client.cookies
        assert by_replica(client.get("/show")) is False


@replaces("use_primary_db", "use_master")
def test_primary() -> None:
    """`using_primary()` is a block and a decorator, of functions, views and classes of views, and nests."""
    assert by_replica(Client().get("/primary")) is False
    assert by_replica(Client().get("/class")) is False
    with ps_django.reading():
        assert ps_django.using_primary()(read)() is False
        with ps_django.using_primary():
            with ps_django.using_primary():
                assert read() is False
            assert read() is False
        assert read() is True


# --- django-multidb-router ---


@replaces("multidb.ReplicaRouter", "MasterSlaveRouter")
def test_replicas_everywhere() -> None:
    """`READS = "replica"` reads from replicas in a POST and outside of requests, but not inside `atomic()`."""
    with override_settings(PS_DJANGO={"READS": "replica"}):
        assert by_replica(Client().post("/show")) is True
        assert read() is True
        with transaction.atomic():
            assert read() is False
    assert read() is False


@replaces("get_replica", "get_slave")
def test_get_replica() -> None:
    """`connections["replica"]` leads to a replica."""
    with connections[REPLICA].cursor() as cursor:
        cursor.execute("SELECT pg_is_in_recovery()")
        assert cursor.fetchone() == (True,)


@replaces("MULTIDB_PINNING_COOKIE_SECURE", "MULTIDB_PINNING_COOKIE_HTTPONLY", "MULTIDB_PINNING_COOKIE_SAMESITE")
@pytest.mark.parametrize("secure", [True, False])
def test_cookie_attributes(secure: bool) -> None:
    """`Secure` and `SameSite` are as for the session's cookie, `HttpOnly` is always set."""
    with override_settings(SESSION_COOKIE_SECURE=secure):
        (cookie,) = Client().post("/store").cookies.values()
    assert (bool(cookie["secure"]), cookie["httponly"], cookie["samesite"]) == (secure, True, "Lax")


@replaces("db_write", "mark_as_write", "response._db_write")
def test_db_write(late: Lab) -> None:
    """A view that writes in a GET needs no decorator: what it and its user read after that is read on the primary."""

    def view() -> list[bool]:
        before = read()
        write()
        return [before, read()]

    with ps_django.reading():
        assert view() == [True, False]
    with ps_django.reading(), use_token(None):
        assert ps_django.using_primary()(view)() == [False, False]
    client = Client()
    client.get("/store")
    assert by_replica(client.get("/show")) is False


@replaces("pin_this_thread", "unpin_this_thread", "this_thread_is_pinned", "routers.state")
def test_pinned() -> None:
    """The router tells where reads would go."""
    from django_shop.shop.models import Product

    with ps_django.reading():
        with ps_django.using_primary():
            assert router.db_for_read(Product) == DEFAULT
        assert router.db_for_read(Product) == REPLICA


# --- django-replicated ---


@replaces("REPLICATED_DATABASE_DOWNTIME", "REPLICATED_CACHE_BACKEND", "is_alive")
def test_dead_replica(ps_lab: Lab) -> None:
    """A replica that is away costs no error, and no ping while it is there: a read is one round trip."""
    with ps_django.reading():
        assert read() is True
        with ps_lab.round_trips() as trips:
            assert read() is True
        assert trips.by_path == {REPLICA: 1}
        ps_lab.bouncers["read-pool"].stop()
        try:
            assert read() is False
        finally:
            ps_lab.restart_bouncer("read-pool")
        wait_until(read, "reads on replicas again: the endpoint's next probe")


@replaces("REPLICATED_CHECK_STATE_ON_WRITE")
def test_check_state_on_write() -> None:
    """A write in a context that reads goes to the primary, and `assert_routes` finds it in a test."""
    with ps_django.reading():
        assert write()._state.db == DEFAULT
        with pytest.raises(AssertionError, match="INSERT INTO"), assert_routes(REPLICA, 1):
            read()
            write()


@replaces("use_slave")
def test_use_slave(late: Lab) -> None:
    """`reading()` makes a POST read from replicas, but never what its user's own writes make stale."""
    client = Client()
    assert by_replica(client.post("/reading")) is True
    client.post("/store")
    assert by_replica(client.post("/reading")) is False


@pytest.fixture
def overrides(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The middleware of the page."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), names)
    monkeypatch.setattr(sys.modules[__name__], "state_middleware", names["state_middleware"], raising=False)
    with override_settings(MIDDLEWARE=[*OURS, f"{__name__}.state_middleware"]):
        yield


@replaces("REPLICATED_VIEWS_OVERRIDES", "REPLICATED_FORCE_STATE_HEADER")
def test_overrides(overrides: None) -> None:
    """The page's middleware decides by path and by header; decorators in `urls.py` decide by view."""
    assert by_replica(Client().get("/show")) is True
    assert by_replica(Client().get("/reports/show")) is False
    assert by_replica(Client().get("/reports/show", headers={"X-Replicated-State": "slave"})) is True
    assert by_replica(Client().get("/show", headers={"X-Replicated-State": "master"})) is False
    assert by_replica(Client().get("/show", headers={"X-Replicated-State": "other"})) is True
    assert by_replica(Client().get("/primary")) is False
    assert by_replica(Client().post("/reading")) is True


@replaces("REPLICATED_FORCE_MASTER_COOKIE_STATUS_CODES")
@pytest.mark.parametrize("status", [200, 204, 302, 404])
def test_status_codes(late: Lab, status: int) -> None:
    """After a write, whatever the response's status, all later requests of its user see it, not the next one alone."""
    client = Client()
    assert client.post(f"/store?status={status}").status_code == status
    assert [by_replica(client.get("/show")) for _ in range(2)] == [False, False]


@replaces("REPLICATED_MANAGE_ATOMIC_REQUESTS")
def test_atomic_requests(ps_lab: Lab) -> None:
    """With ATOMIC_REQUESTS, a GET that reads sends nothing to the primary."""
    options = connections[DEFAULT].settings_dict
    options["ATOMIC_REQUESTS"] = True
    try:
        with ps_lab.round_trips() as trips:
            assert by_replica(Client().get("/show")) is True
        assert trips.by_path == {REPLICA: 1}
        assert by_replica(Client().post("/show")) is False
    finally:
        options["ATOMIC_REQUESTS"] = False


@replaces("REPLICATED_READ_ONLY_DOWNTIME", "REPLICATED_READ_ONLY_TRIES", "ReadOnlyMiddleware", "service_is_readonly")
def test_read_only(ps_lab: Lab) -> None:
    """A request that comes to write while its connection is lost and the primary is away waits, and is answered."""
    assert Client().post("/store").status_code == 200  # the connection is open
    ps_lab.edge.cut("primary")
    ps_lab.pause()
    timer = threading.Timer(0.3, ps_lab.resume)
    timer.start()
    try:
        with override_settings(PS_DJANGO={"DEADLINE": "10s"}):
            assert Client().post("/store").status_code == 200
    finally:
        timer.join()


@replaces("routers.init", "routers.use_state", "routers.revert", "routers.reset")
def test_states() -> None:
    """Blocks are entered and left in place of states, and restore what was there, on exceptions too."""
    before = current()
    for block, expected in ((ps_django.reading, True), (ps_django.using_primary, False), (nullcontext, False)):
        with pytest.raises(ZeroDivisionError), block():
            assert read() is expected
            raise ZeroDivisionError
        assert current() == before


# --- the page ---


def test_roll_out() -> None:
    """`PS_REPLICA_SHARE=0` keeps a site's reads on the primary; blocks of `using_replica()` are not held back."""
    set_replica_share(0)
    try:
        assert by_replica(Client().get("/show")) is False
        with ps_django.using_replica():
            assert read() is True
    finally:
        set_replica_share(None)


def test_using_replica_alias(ps_lab: Lab) -> None:
    """What names the replica's alias is answered there; a write is the primary's at once, but refused in a block on the alias."""
    from django_shop.shop.models import Product

    for work, paths in (
        (lambda: list(Product.objects.using(REPLICA)[:1]), {REPLICA: 1}),
        (lambda: Product.objects.using(REPLICA).filter(stock=4711).update(stock=4712), {"primary": 1}),
    ):
        with ps_lab.round_trips() as trips:
            work()
        assert trips.by_path == paths
    with pytest.raises(InternalError, match="read-only"), transaction.atomic(using=REPLICA):
        Product.objects.using(REPLICA).create(name="alias", price=1, stock=1)


def test_every_name_is_tested() -> None:
    """The page's tables and these tests are about the same names."""
    cells = re.findall(r"^\| (.*?) \|", PAGE.read_text(), re.MULTILINE)
    assert {name for cell in cells for name in re.findall(r"`(.+?)`", cell)} == TESTED
