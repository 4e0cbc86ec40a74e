"""The middleware, as browsers and other clients see it."""

import asyncio
import re
import time
from collections.abc import Iterator
from itertools import count
from typing import Any
from urllib.parse import urlencode

import pytest
from django.contrib import auth
from django.core.cache import cache
from django.core.management import call_command
from django.http import HttpRequest, HttpResponseBase, JsonResponse
from django.test import AsyncClient, Client, RequestFactory, modify_settings, override_settings
from django.urls import path
from django.views import View
from django.views.decorators.cache import cache_page
from django.views.decorators.vary import vary_on_cookie

import ps_django
from ps_core import Token, current_token, use_token
from ps_core._propagation import MAX_COOKIES, Carried
from ps_core.context import current
from ps_core.errors import ConfigurationError
from ps_django.middleware import ConsistencyMiddleware, current_propagator
from ps_django.settings import current_settings
from ps_django.test import assert_routes
from ps_lab import Lab
from ps_lab.processes import wait_until
from tests.browser import Browser
from tests.ps_django.urls import urlpatterns as shop

MIDDLEWARE = [
    "ps_django.middleware.ConsistencyMiddleware",
    "ps_django.middleware.DeadlineMiddleware",
    "ps_django.middleware.LocalSettingsMiddleware",
]


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    with override_settings(ROOT_URLCONF=__name__, MIDDLEWARE=MIDDLEWARE), use_token(None):
        yield


def _who(request: HttpRequest) -> JsonResponse:
    from django_shop.shop.models import Product
    from ps_demo.bank_django import InRecovery

    if request.method == "POST":
        Product.objects.create(name="web", price=1, stock=1)
    return JsonResponse({"by_replica": Product.objects.annotate(r=InRecovery()).values_list("r", flat=True).first()})


@ps_django.exempt
def exempt(request: HttpRequest) -> JsonResponse:
    """A view that the middleware leaves alone."""
    return _who(request)


class Exempt(View):
    """The same as a class."""

    ps_exempt = True

    def get(self, request: HttpRequest) -> JsonResponse:
        """Tell who answered."""
        return _who(request)

    post = get


def fails(request: HttpRequest) -> JsonResponse:
    """Write, and fail."""
    _who(request)
    raise ZeroDivisionError


def tenant(request: HttpRequest) -> JsonResponse:
    """Tell the settings of this request's transactions."""
    from django.db import connections

    found = []
    for alias in ("default", "replica"):
        with connections[alias].cursor() as cursor:
            cursor.execute("SELECT current_setting('app.tenant', true)")
            found += cursor.fetchall()
    return JsonResponse({"tenant": [value for (value,) in found]})


def told(request: HttpRequest, number: int = 0) -> JsonResponse:
    """Tell what the server is told."""
    from django.db import connections

    found = {}
    for alias in ("default", "replica"):
        with connections[alias].cursor() as cursor:
            cursor.execute("SELECT current_query()")
            (text,) = cursor.fetchone()
            found[alias] = "".join(re.findall(r"/\*.*?\*/", text))
    return JsonResponse(found)


def tenant_of(request: HttpRequest) -> dict[str, str]:
    """What `LOCAL_SETTINGS` names."""
    return {"app.tenant": request.headers.get("X-Tenant", "")}


async def awho(request: HttpRequest) -> JsonResponse:
    """Tell who answered, from async code."""
    from django_shop.shop.models import Product
    from ps_demo.bank_django import InRecovery

    return JsonResponse({"by_replica": await Product.objects.annotate(r=InRecovery()).values_list("r", flat=True).afirst()})


def log_in(request: HttpRequest) -> JsonResponse:
    """Log in, as `LoginView` does."""
    found = auth.authenticate(request, username=request.POST["username"], password=request.POST["password"])
    auth.login(request, found)
    return user(request)


def log_out(request: HttpRequest) -> JsonResponse:
    """Log out."""
    auth.logout(request)
    return user(request)


def user(request: HttpRequest) -> JsonResponse:
    """Tell who is logged in."""
    return JsonResponse({"user": request.user.get_username()})


_made = count()


@vary_on_cookie
def _page(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"made": next(_made), "cookies": list(request.COOKIES)})


def cached(request: HttpRequest) -> HttpResponseBase:
    """Tell how often this was made, and with which cookies."""
    return cache_page(60)(_page)(request)


urlpatterns = [
    *shop,
    path("cached", cached),
    path("login", log_in),
    path("logout", log_out),
    path("user", user),
    path("who", _who),
    path("primary", ps_django.using_primary()(_who)),
    path("replica", ps_django.using_replica()(_who)),
    path("exempt", exempt),
    path("class-exempt", Exempt.as_view()),
    path("fails", fails),
    path("tenant", tenant),
    path("awho", awho),
    path("told/<int:number>", told, name="telling"),
    path("aprimary", ps_django.using_primary()(awho)),
]


@pytest.fixture(scope="module", autouse=True)
def product(ps_lab: Lab, site: None) -> None:
    """There is a product, on the replicas too."""
    from django_shop.shop.models import Product

    Product.objects.create(name="web", price=1, stock=1)
    ps_lab.wait_replicas_caught_up()


def by_replica(answer: Any) -> bool:
    """Return who answered."""
    return bool(answer.json()["by_replica"])


@pytest.mark.parametrize("method", ["get", "options", "post", "put", "patch", "delete"])
def test_methods(method: str) -> None:
    """GET, HEAD, OPTIONS and QUERY read from replicas, every other method from the primary (Rails' DatabaseSelector)."""
    assert by_replica(getattr(Client(), method)("/who")) is (method in ("get", "options"))


def test_views_may_say_otherwise() -> None:
    """A decorator forces either side, for sync and async views, whatever the method."""
    assert by_replica(Client().get("/primary")) is False
    assert by_replica(Client().delete("/replica")) is True

    async def main() -> tuple[bool, bool]:
        return by_replica(await AsyncClient().get("/awho")), by_replica(await AsyncClient().get("/aprimary"))

    assert asyncio.run(main()) == (True, False)


def test_no_cookie_for_those_who_only_read() -> None:
    """A safe method that wrote nothing sets no cookie, so that its answer stays cacheable (behaviour of multidb-router)."""
    client = Client()
    client.get("/who")
    assert client.cookies == {}


def test_cookie_only_where_there_is_news(ps_lab: Lab) -> None:
    """A user with a token gets a new one where they saw more, and none where they did not."""
    client = Client()
    first = _position(client.post("/who"))
    Client().post("/who")
    ps_lab.wait_replicas_caught_up()
    second = _position(client.get("/who"))
    assert first is not None
    assert second is not None
    assert second > first
    # The server writes something of its own now and then.
    wait_until(lambda: _position(client.get("/who")) is None, "an answer that has nothing new to tell")


def token_cookies(answer: Any) -> dict[str, str]:
    """Return the token's cookies that an answer sets, or with an empty value deletes."""
    return {name: morsel.value for name, morsel in answer.cookies.items() if name.startswith("ps_token")}


def _position(answer: Any) -> int | None:
    values = [value for value in token_cookies(answer).values() if value]
    return max((found.token.position or 0 for value in values if (found := _read(value)).token), default=None)


def _read(value: str) -> Carried:
    return current_propagator().extract([("ps_token", value)], None, now=time.time())


def received(answer: Any) -> list[str]:
    """Return the values of Set-Cookie."""
    return [morsel.OutputString() for morsel in answer.cookies.values()]


@pytest.fixture
def late(ps_lab: Lab) -> Iterator[None]:
    """Replicas that do not replay."""
    ps_lab.set_replay_delay(60)
    yield
    ps_lab.set_replay_delay(0)
    ps_lab.wait_replicas_caught_up()


def test_answers_of_two_writes_overtake_each_other(late: None) -> None:
    """Two POSTs of one browser, the older of whose answers arrives last: its next GET sees both, and its next POST tidies up."""
    browser = Browser()
    names = [f"web overtaken {number}" for number in range(3)]
    answers = [received(_ask("POST", "/products", browser, name=name)) for name in names[:2]]
    browser.receive(*reversed(answers))
    assert set(names[:2]) <= set(_ask("GET", "/products", browser).json()["names"])
    browser.receive(received(_ask("POST", "/products", browser, name=names[2])))
    assert len(browser.cookies) == 1
    assert set(names) <= set(_ask("GET", "/products", browser).json()["names"])


def test_slow_read_is_overtaken_by_a_write(late: None) -> None:
    """A GET that saw more than its browser had, and whose answer arrives after that of a later POST, takes nothing from it."""
    browser = Browser()
    browser.receive(received(_ask("POST", "/products", browser, name="web slow 1")))
    _ask("POST", "/products", Browser(), name="web slow 2")
    read = _ask("GET", "/products", browser)
    assert "web slow 2" in read.json()["names"]
    assert set(token_cookies(read)) == {"ps_token"}
    wrote = _ask("POST", "/products", browser, name="web slow 3")
    browser.receive(received(wrote), received(read))
    assert "web slow 3" in _ask("GET", "/products", browser).json()["names"]


def test_deleted_cookies_stay_deleted(late: None) -> None:
    """Django's test client keeps deleted cookies, with empty values: they are not deleted again."""
    client = Client()
    for number in range(3):
        answer = client.post("/products", {"name": f"web deleted {number}"})
        told = list(token_cookies(answer).values())
        assert len(told) == min(number, 1) + 1
        assert told.count("") == min(number, 1)


def test_more_cookies_than_are_read(ps_lab: Lab) -> None:
    """The primary answers, which has all that any of them can name; also where a view says otherwise."""
    old = current_propagator().sign(Token(identity=ps_lab.branch, position=1, at=time.time()))
    for valid, served_by_replica in ((MAX_COOKIES, True), (MAX_COOKIES + 1, False)):
        browser = Browser()
        browser.cookies = {f"ps_token_{number:08x}": old for number in range(valid)}
        browser.cookies |= {f"ps_token_{number:08x}": "forged" for number in range(100, 140)}
        assert [by_replica(_ask("GET", path, browser)) for path in ("/who", "/replica")] == [served_by_replica] * 2


def test_cookies_of_two_paths(late: None) -> None:
    """The larger one of two cookies of one name counts, as a browser sends those of two paths or domains."""
    client = Client()
    first, second = (_ask("POST", "/products", Browser(), name=f"web path {number}") for number in range(2))
    older, newer = ("ps_token=" + next(iter(token_cookies(answer).values())) for answer in (first, second))
    for header in (f"{older}; {newer}", f"{newer}; a=1; {older}"):
        answer = client.get("/products", headers={"cookie": header})
        assert "web path 1" in answer.json()["names"]
        assert not answer.cookies


def test_position_that_was_not_known(late: None) -> None:
    """The answer that has learned a position in its place is as one that wrote: the next request is not led by the old cookie."""
    browser = Browser()
    unknown = Token(identity=_branch(), position=None, at=time.time())
    browser.cookies = {"ps_token_00000000": current_propagator().sign(unknown)}
    answer = _ask("GET", "/who", browser)
    assert not by_replica(answer)
    browser.receive(received(answer))
    assert "ps_token_00000000" not in browser.cookies
    assert [name.startswith("ps_token_") for name in browser.cookies] == [True]
    assert not _ask("GET", "/who", browser).cookies


def _branch() -> str:
    from django.db import connections

    identity: str = connections["default"].ps_state.identity  # type: ignore[attr-defined]
    return identity


def test_pages_that_vary_with_cookies(ps_lab: Lab) -> None:
    """A page that is cached for each user is made as often as on stock: the token's cookies are none of the user's."""
    cache.clear()
    browser = Browser()
    browser.cookies = {"sessionid": "eve"}
    browser.receive(received(_ask("POST", "/who", browser)))
    pages = []
    for _ in range(3):
        Client().post("/who")  # somebody else
        ps_lab.wait_replicas_caught_up()
        browser.receive(received(_ask("GET", "/who", browser)))
        pages.append(_ask("GET", "/cached", browser).json())
    assert len({page["made"] for page in pages}) == 1
    assert pages[0]["cookies"] == ["sessionid"]
    browser.cookies["sessionid"] = "mallory"
    assert _ask("GET", "/cached", browser).json()["made"] not in {page["made"] for page in pages}


def test_empty_fallback_of_the_key() -> None:
    """`SECRET_KEY_FALLBACKS = [os.environ.get("OLD_KEY", "")]` has none."""
    with override_settings(SECRET_KEY_FALLBACKS=[""]):
        assert token_cookies(Client().post("/who"))


def _ask(method: str, path: str, browser: Browser, **data: str) -> Any:
    return Client(headers={"cookie": browser.header}).generic(
        method, path, urlencode(data), content_type="application/x-www-form-urlencoded"
    )


def test_cookie_goes_out_with_an_error() -> None:
    """A view that wrote and failed leaves its user with a token all the same (behaviour of Rails)."""
    client = Client(raise_request_exception=False)
    answer = client.post("/fails")
    assert answer.status_code == 500
    assert token_cookies(answer)


@pytest.mark.parametrize("url", ["/exempt", "/class-exempt"])
def test_exempt_views(url: str) -> None:
    """An exempt view has no token in or out, and reads from the primary."""
    client = Client()
    client.post("/who")
    for answer in (client.get(url), client.post(url)):
        assert by_replica(answer) is False
        assert not answer.cookies
    assert current_token() is None


def test_header(ps_lab: Lab) -> None:
    """With HEADER, clients without cookies carry the token themselves; COOKIE=None leaves only that."""
    with override_settings(PS_DJANGO={"HEADER": "X-PS-Token", "COOKIE": None}):
        answer = Client().post("/who")
        token = answer.headers["X-PS-Token"]
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.cookies == {}
        ps_lab.set_replay_delay(60)
        try:
            later = Client().post("/who").headers["X-PS-Token"]
            assert by_replica(Client().get("/who")) is True
            assert by_replica(Client().get("/who", headers={"X-PS-Token": later})) is False
            assert by_replica(Client().get("/who", headers={"X-PS-Token": f"{token}, {later}"})) is False
            assert by_replica(Client().get("/who", headers={"X-PS-Token": token + "x"})) is True
        finally:
            ps_lab.set_replay_delay(0)
            ps_lab.wait_replicas_caught_up()


def test_requests_begin_clean() -> None:
    """Nothing of one request is left for the next in the same thread: no token, no route, no deadline, no settings."""
    with override_settings(PS_DJANGO={"DEADLINE": "9s"}):
        Client().post("/who")
        assert current_token() is None
        before = current()
        Client().get("/exempt")
        assert current() == before
        assert current().deadline is None


def test_local_settings_of_a_request() -> None:
    """LOCAL_SETTINGS sets the application's own settings in the request's transactions, on primary and replica alike."""
    with override_settings(PS_DJANGO={"LOCAL_SETTINGS": f"{__name__}.tenant_of"}):
        assert Client().get("/tenant", headers={"X-Tenant": "42"}).json() == {"tenant": ["42", "42"]}
        assert Client().get("/tenant").json() == {"tenant": ["", ""]}


LOGIN = 5
"""The user, the session's key, the session twice, and when the user logged in."""
SESSIONS = [
    MIDDLEWARE[0],
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]


@pytest.fixture
def sessions(ps_lab: Lab) -> Iterator[None]:
    """Sessions in the database, as most sites have them, and a user."""
    from django.contrib.auth.models import User

    with modify_settings(INSTALLED_APPS={"append": "django.contrib.sessions"}), override_settings(MIDDLEWARE=SESSIONS):
        call_command("migrate", "sessions", verbosity=0)
        user = User.objects.create_user("eve", password="secret")
        ps_lab.wait_replicas_caught_up()
        yield
        user.delete()


@pytest.mark.parametrize("late", [True, False])
def test_sessions_and_users(ps_lab: Lab, sessions: None, late: bool) -> None:
    """A user who has logged in is logged in with the next request, on late replicas, too; replicas serve sessions and users."""
    client = Client()
    if late:
        ps_lab.set_replay_delay(30)
    try:
        with assert_routes("default", LOGIN):
            assert client.post("/login", {"username": "eve", "password": "secret"}).json() == {"user": "eve"}
        if not late:
            ps_lab.wait_replicas_caught_up()
        with ps_lab.round_trips() as trips, assert_routes("replica", 2):
            assert client.get("/user").json() == {"user": "eve"}
        assert ("primary" in trips.by_path) is late
        assert client.post("/logout").json() == {"user": ""}
        assert client.get("/user").json() == {"user": ""}
    finally:
        ps_lab.set_replay_delay(0)
        ps_lab.wait_replicas_caught_up()


def test_cookie_attributes() -> None:
    """Cookies are HttpOnly, and follow the session cookie's settings for the rest; they are deleted as they were set."""
    session = {"SECURE": True, "DOMAIN": "example.org", "PATH": "/shop", "SAMESITE": "None"}
    with override_settings(
        PS_DJANGO={"COOKIE_PARTITIONED": True}, **{f"SESSION_COOKIE_{name}": value for name, value in session.items()}
    ):
        (first,) = received(Client().post("/who"))
        deleted, second = received(Client(headers={"cookie": first.partition(";")[0]}).post("/who"))
    same = "; HttpOnly; Max-Age={}; Path=/shop; SameSite=None; Secure; Partitioned"
    for cookie, age in ((first, 300), (second, 300), (deleted, 0)):
        attributes = re.sub("; expires=[^;]+", "", cookie).partition("; ")[2]
        assert attributes == "Domain=example.org" + same.format(age)
    assert deleted.partition("=")[0] == first.partition("=")[0]


@pytest.mark.parametrize(
    ("own", "session", "wanted"),
    [
        ({"COOKIE": "__Host-t"}, {}, "SESSION_COOKIE_SECURE = True"),
        ({"COOKIE": "__Secure-t"}, {}, "SESSION_COOKIE_SECURE = True"),
        ({"COOKIE_PARTITIONED": True}, {}, "SESSION_COOKIE_SECURE = True"),
        ({}, {"SAMESITE": "None"}, "SESSION_COOKIE_SECURE = True"),
        ({"COOKIE": None, "HEADER": "PS-Token"}, {"SAMESITE": "None"}, None),
        ({"COOKIE": "__host-t"}, {"PATH": "/a"}, "SESSION_COOKIE_SECURE = True"),
        ({"COOKIE": "__Host-t"}, {"SECURE": True, "PATH": "/a"}, 'SESSION_COOKIE_PATH = "/"'),
        ({"COOKIE": "__Host-t"}, {"SECURE": True, "DOMAIN": "a.example"}, "SESSION_COOKIE_DOMAIN = None"),
        ({"COOKIE": None}, {}, "both None"),
        ({"COOKIE": "a b"}, {}, "PS_DJANGO: cookie"),
        ({"HEADER": "X-Token:"}, {}, "PS_DJANGO: header"),
        ({"COOKIE": "__Host-t"}, {"SECURE": True}, None),
        ({"COOKIE_PARTITIONED": True}, {"SECURE": True}, None),
    ],
)
def test_cookies_that_browsers_refuse(own: dict[str, Any], session: dict[str, Any], wanted: str | None) -> None:
    """A browser silently drops such a cookie, and no name carries nothing; the settings say so at once."""
    with override_settings(PS_DJANGO=own, **{f"SESSION_COOKIE_{name}": value for name, value in session.items()}):
        if wanted is None:
            current_settings()
        else:
            with pytest.raises(ConfigurationError, match=wanted):
                current_settings()


def test_tags() -> None:
    """Statements tell route, view and the project's own tags, where the setting is there; nothing without it."""
    route = "controller='telling',route='told%2F%3Anumber'"
    with override_settings(MIDDLEWARE=[*MIDDLEWARE, "ps_django.middleware.TagsMiddleware"]):
        assert Client().get("/told/7").json() == {"default": "", "replica": ""}
        trace: Any = lambda request: request.headers.get("traceparent")  # noqa: E731
        with override_settings(PS_DJANGO={"TAGS": {"application": "shop", "traceparent": trace}}):
            expected = f"/*application='shop',{route}*/"
            assert set(Client().get("/told/7").json().values()) == {expected}
            traced = Client().get("/told/7", headers={"traceparent": "00-ab-cd-01"}).json()
            assert traced["default"] == f"/*application='shop',{route},traceparent='00-ab-cd-01'*/"
    with override_settings(PS_DJANGO={"TAGS": {"a b": "x"}}), pytest.raises(ConfigurationError, match="letters, digits"):
        current_settings()


def test_works_without_urls() -> None:
    """The middleware is a plain callable around any other."""
    answer = ConsistencyMiddleware(lambda request: JsonResponse({"reading": current().reading}))(RequestFactory().get("/"))
    assert answer.content == b'{"reading": true}'
