"""WSGI and ASGI: requests see what their user's earlier ones wrote, read from replicas where they may, and end in time."""

import asyncio
import itertools
import re
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any
from urllib.parse import quote

import flask
import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from sqlalchemy import select, text
from starlette.testclient import TestClient

from ps_core import Token, current_token, use_token
from ps_core._propagation import MAX_COOKIES, Propagator
from ps_core.consistency import InvalidToken, parse_lsn
from ps_core.context import Context, current, record_seen
from ps_core.errors import ConfigurationError
from ps_lab import Lab
from ps_sqlalchemy import Engine, Session, using_replica
from ps_sqlalchemy.middleware import ASGIMiddleware, WSGIMiddleware
from tests.browser import Browser
from tests.ps_sqlalchemy.conftest import SERVED_BY_REPLICA, Item

KEY = "a secret of the tests"


class Answer:
    """A response, whatever made it."""

    def __init__(self, status: int, headers: Any, body: Any) -> None:
        self.status = status
        self.cookies = [value for name, value in headers if name.lower() == "set-cookie"]
        self.headers = {name.lower(): value for name, value in headers}
        self.body = body


Client = Callable[..., Answer]
Make = Callable[..., Client]


class Shop:
    """The application's views, in terms of no framework."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def items(self) -> dict[str, Any]:
        """Answer with all items, who knew them, and who is asked inside a declared transaction."""
        with Session(self.engine) as session:
            by_replica = session.scalar(SERVED_BY_REPLICA)
            ids = list(session.scalars(select(Item.id)))
        with Session(self.engine) as session, session.begin():
            return {"ids": ids, "by_replica": by_replica, "declared": session.scalar(SERVED_BY_REPLICA)}

    def add(self, number: int) -> dict[str, Any]:
        """Add an item; say who would have been asked for one before, in and after a block that says otherwise."""
        with Session(self.engine) as session:
            before = session.scalar(SERVED_BY_REPLICA)
        with using_replica(), Session(self.engine) as session:
            told = session.scalar(SERVED_BY_REPLICA)
        with Session(self.engine) as session:
            after = session.scalar(SERVED_BY_REPLICA)
            session.add(Item(id=number, note="web"))
            session.commit()
        return {"by_replica": [before, told, after]}

    def fail(self, number: int) -> dict[str, Any]:
        """Add an item, and fail."""
        self.add(number)
        raise ZeroDivisionError

    def nothing(self) -> dict[str, Any]:
        """Do not ask the database."""
        return {}

    def timeout(self) -> dict[str, Any]:
        """Answer with the statement timeout in milliseconds."""
        with Session(self.engine) as session:
            shown = session.scalar(text("SELECT setting::int FROM pg_settings WHERE name = 'statement_timeout'"))
        return {"milliseconds": shown}

    def told(self) -> dict[str, Any]:
        """Answer with what the server is told."""
        with Session(self.engine) as session:
            return {"text": session.scalar(text("SELECT current_query()"))}

    def stream(self) -> Iterator[str]:
        """Ask for each of three parts."""
        for _ in range(3):
            with Session(self.engine) as session, session.begin():
                yield f"{session.scalar(SERVED_BY_REPLICA)} {current().deadline is not None} "


ROUTES = (("GET", "/items", "items"), ("POST", "/fail/<int:number>", "fail"), ("POST", "/items/<int:number>", "add"))
READS = (("/nothing", "nothing"), ("/timeout", "timeout"), ("/told", "told"))


def make_flask(shop: Shop, **settings: Any) -> Client:
    """Return a client of the shop as a Flask application."""
    app = flask.Flask("shop")
    for method, path, name in ROUTES:
        app.add_url_rule(path, name, getattr(shop, name), methods=[method])
    for path, name in READS:
        app.add_url_rule(path, name, getattr(shop, name), methods=["GET", "POST", "QUERY"])
    app.add_url_rule("/stream", "stream", lambda: flask.Response(shop.stream()))
    app.wsgi_app = WSGIMiddleware(app.wsgi_app, **settings)  # type: ignore[method-assign]
    client = app.test_client()

    def ask(method: str, path: str, **headers: str) -> Answer:
        asked = app.test_client(use_cookies=False) if "cookie" in headers else client
        with asked.open(path, method=method, headers={name.replace("_", "-"): value for name, value in headers.items()}) as got:
            return Answer(got.status_code, list(got.headers), got.get_json(silent=True) or got.get_data(as_text=True))

    return ask


def make_fastapi(shop: Shop, **settings: Any) -> Client:
    """Return a client of the shop as a FastAPI application."""
    app = FastAPI()
    for method, path, name in ROUTES:
        app.add_api_route(path.replace("<int:number>", "{number}"), getattr(shop, name), methods=[method])
    for path, name in READS:
        app.add_api_route(path, getattr(shop, name), methods=["GET", "POST", "QUERY"])
    app.add_api_route("/stream", lambda: StreamingResponse(shop.stream()), response_model=None)
    client = TestClient(ASGIMiddleware(app, **settings), raise_server_exceptions=False)

    def ask(method: str, path: str, **headers: str) -> Answer:
        got = client.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        is_json = got.headers.get("content-type") == "application/json"
        return Answer(got.status_code, got.headers.multi_items(), got.json() if is_json else got.text)

    return ask


@pytest.fixture(params=[make_flask, make_fastapi], ids=["wsgi", "asgi"])
def make(request: pytest.FixtureRequest, engine: Engine, items: type[Item]) -> Make:
    """What makes a client of the shop in each kind of application."""
    return lambda **settings: request.param(Shop(engine), **{"keys": [KEY], **settings})


@pytest.fixture
def delayed(ps_lab: Lab, items: type[Item]) -> Iterator[Callable[[], None]]:
    """Replicas that do not replay; what is yielded lets them."""
    ps_lab.set_replay_delay(60)
    try:
        yield partial(ps_lab.set_replay_delay, 0)
    finally:
        ps_lab.set_replay_delay(0)


def signed(token: Token, key: str = KEY) -> str:
    """Return the token as the middleware sends it."""
    return Propagator(keys=[key], cookie="ps_token").sign(token)


def test_next_request_sees_the_write_of_the_last_one(make: Make, delayed: Callable[[], None]) -> None:
    """Its user's next request reads on the primary, another user's on a replica; when the replicas have caught up, both do."""
    user, other = make(), make()
    for number in (1, 2):
        assert user("POST", f"/items/{number}").status == 200
        assert user("GET", "/items").body == {"ids": [*range(1, number + 1)], "by_replica": False, "declared": False}
    assert other("GET", "/items").body == {"ids": [], "by_replica": True, "declared": True}
    delayed()
    for client in (user, other):
        assert client("GET", "/items").body == {"ids": [1, 2], "by_replica": True, "declared": True}


def test_methods(ps_lab: Lab, make: Make) -> None:
    """Safe methods may read from replicas; others are on the primary, but in a block that says otherwise."""
    client = make(reads=lambda request: (request.get("path") or request["PATH_INFO"]) == "/items/1")
    assert client("GET", "/items").body["by_replica"] is False
    assert client("POST", "/items/1").body["by_replica"] == [True, True, True]
    ps_lab.wait_replicas_caught_up()
    client = make()
    assert client("GET", "/items").body["by_replica"] is True
    assert client("POST", "/items/2").body["by_replica"] == [False, True, False]


def test_cookie(make: Make, delayed: Callable[[], None]) -> None:
    """It is set by a request that wrote, and by no other; with the attributes that were asked for."""
    client = make()
    for path in ("/nothing", "/items"):
        assert not client("GET", path).cookies
    assert not client("POST", "/nothing").cookies
    (cookie,) = client("POST", "/items/1").cookies
    name, _, rest = cookie.partition("=")
    assert re.fullmatch("ps_token_[0-9a-f]{8}", name)
    assert len(rest.partition("; ")[0]) <= 64
    assert rest.partition("; ")[2] == "Max-Age=300; Path=/; HttpOnly; SameSite=Lax"
    assert client("GET", "/items").status == 200
    assert not client("POST", "/nothing").cookies


def test_cookie_is_deleted_as_it_was_set(make: Make, delayed: Callable[[], None]) -> None:
    """A browser deletes a cookie only where its attributes are the same."""
    attributes = {"samesite": "none", "secure": True, "partitioned": True, "domain": "example.org", "max_age": "1min"}
    client = make(cookie="seen", **attributes)
    (first,) = client("POST", "/items/1", cookie="a=1").cookies
    deleted, second = client("POST", "/items/2", cookie=first.partition(";")[0]).cookies
    same = "; Path=/; HttpOnly; SameSite=None; Domain=example.org; Secure; Partitioned"
    assert re.fullmatch(f"seen_[0-9a-f]{{8}}=[^;]+; Max-Age=60{same}", first)
    assert re.fullmatch(f"seen_[0-9a-f]{{8}}=[^;]+; Max-Age=60{same}", second)
    assert deleted == f"{first.partition('=')[0]}=; Max-Age=0{same}"
    (own,) = make(cookie="__Host-ps", secure=True)("POST", "/items/3", cookie="a=1").cookies
    assert re.fullmatch("__Host-ps_[0-9a-f]{8}=[^;]+; Max-Age=300; Path=/; HttpOnly; SameSite=Lax; Secure", own)


def test_answers_of_two_writes_overtake_each_other(make: Make, delayed: Callable[[], None]) -> None:
    """Two POSTs of one browser, the older of whose answers arrives last: its next GET sees both, and its next POST tidies up."""
    client, browser = make(), Browser()
    answers = [client("POST", f"/items/{number}", cookie=browser.header or "a=1").cookies for number in (1, 2)]
    browser.receive(*reversed(answers))
    assert client("GET", "/items", cookie=browser.header).body == {"ids": [1, 2], "by_replica": False, "declared": False}
    browser.receive(client("POST", "/items/3", cookie=browser.header).cookies)
    assert len(browser.cookies) == 1
    assert client("GET", "/items", cookie=browser.header).body["ids"] == [1, 2, 3]


def test_slow_read_is_overtaken_by_a_write(make: Make, delayed: Callable[[], None]) -> None:
    """A GET that saw more than its browser had, and whose answer arrives after that of a later POST, takes nothing from it."""
    client, browser = make(), Browser()
    browser.receive(client("POST", "/items/1", cookie="a=1").cookies)
    make()("POST", "/items/2")  # somebody else
    read = client("GET", "/items", cookie=browser.header)
    assert read.body["ids"] == [1, 2]
    assert [cookie.partition("=")[0] for cookie in read.cookies] == ["ps_token"]
    wrote = client("POST", "/items/3", cookie=browser.header)
    browser.receive(wrote.cookies, read.cookies)
    assert client("GET", "/items", cookie=browser.header).body["ids"] == [1, 2, 3]


def test_more_cookies_than_are_read(ps_lab: Lab, make: Make) -> None:
    """The primary answers, which has all that any of them can name; and what it answers tidies up."""
    old = Token(identity=ps_lab.branch, position=1, at=time.time())
    names = [f"ps_token_{number:08x}" for number in range(MAX_COOKIES + 1)]
    forged = "".join(f"; ps_token_{number:08x}=x" for number in range(100, 140))
    client = make()
    few, many = ("; ".join(f"{name}={signed(old)}" for name in some) for some in (names[1:], names))
    assert client("GET", "/items", cookie=few + forged).body["by_replica"] is True
    assert client("GET", "/items", cookie=many).body["by_replica"] is False
    cookies = client("POST", "/items/1", cookie=many).cookies
    assert sum("Max-Age=0" in cookie for cookie in cookies) == 16
    assert len(cookies) == 17


def test_tags(make: Make) -> None:
    """Statements tell the route, as the framework has it, the controller and the application's own tags; nothing without."""
    assert "/*" not in make()("GET", "/told").body["text"]
    path: Any = lambda request: request.get("path") or request["PATH_INFO"]  # noqa: E731
    told = make(tags={"application": "shop", "asked": path})("GET", "/told").body["text"]
    (comment,) = re.findall(r"/\*(.*?)\*/", told)
    controller = "told" if "controller='told'" in comment else quote(f"{__name__}.Shop.told", safe="")
    assert comment == f"application='shop',asked='%2Ftold',controller='{controller}',route='%2Ftold'"
    with pytest.raises(ConfigurationError, match="letters, digits"):
        make(tags={"a b": "x"})


def test_reads_of_a_user_with_a_token(ps_lab: Lab, make: Make) -> None:
    """They set the cookie anew where they saw more, so that no later read is older; and leave it where they did not."""
    old = Token(identity=ps_lab.branch, position=1, at=time.time() - 100)
    answer = make()("GET", "/items", cookie=f"ps_token={signed(old)}")
    assert answer.body["by_replica"] is True
    assert answer.cookies
    far = Token(identity=ps_lab.branch, position=parse_lsn("FFFF/0"), at=time.time() - 100)
    answer = make()("GET", "/items", cookie=f"a=1; broken; ps_token={signed(far)}; b")
    assert answer.body["by_replica"] is False
    assert not answer.cookies


def test_cookie_goes_out_with_an_error(make: Make, delayed: Callable[[], None]) -> None:
    """What a view wrote before it failed is in the user's next request."""
    client = make()
    answer = client("POST", "/fail/1")
    assert answer.status == 500
    assert answer.cookies
    assert client("GET", "/items").body["ids"] == [1]


def test_header(make: Make, delayed: Callable[[], None], caplog: pytest.LogCaptureFixture) -> None:
    """A client without cookies carries tokens in a header; what it demands beside cookies is the maximum of all."""
    client = make(header="PS-Token", cookie=None)
    answer = client("POST", "/items/1")
    assert not answer.cookies
    token = answer.headers["ps-token"]
    assert answer.headers["cache-control"] == "no-store"
    assert client("GET", "/items").body["ids"] == []
    assert client("GET", "/items", ps_token=token).body["ids"] == [1]
    answer = make(header="PS-Token")("POST", "/items/2", cookie="a=1")
    assert f"={answer.headers['ps-token']};" in answer.cookies[0]
    both = make(header="PS-Token")
    later = answer.headers["ps-token"]
    assert not caplog.messages
    for headers in (
        {"ps_token": later, "cookie": "ps_token=forged"},
        {"ps_token": "forged", "cookie": f"ps_token={later}"},
        {"ps_token": f"{token}, forged, {later}", "cookie": "a=1"},
    ):
        assert both("GET", "/items", **headers).body["ids"] == [1, 2]
        assert len(caplog.messages) == 1
        caplog.clear()


def test_rotation_of_keys(make: Make, delayed: Callable[[], None], caplog: pytest.LogCaptureFixture) -> None:
    """The first key signs, all are accepted, and what was signed with another one is ignored with a warning."""
    old, both, new = (make(keys=keys, header="PS-Token", cookie=None) for keys in (["old"], [b"new", "old"], ["new"]))
    token = old("POST", "/items/1").headers["ps-token"]
    assert both("GET", "/items", ps_token=token).body["ids"] == [1]
    assert not caplog.messages
    assert new("GET", "/items", ps_token=token).body["ids"] == []
    ignored = f"ignored a consistency token: it was not signed with any of the keys: see {InvalidToken.url}"
    assert caplog.messages == [ignored]
    token = both("POST", "/items/2").headers["ps-token"]
    assert new("GET", "/items", ps_token=token).body["ids"] == [1, 2]


@pytest.mark.parametrize(
    ("age", "identity", "suffix", "reason"),
    [
        (301, None, "", "expired"),
        (0, "other", "", "of another branch"),
        (0, None, "x", "not signed"),
    ],
    ids=["expired", "branch", "forged"],
)
def test_tokens_that_count_for_nothing(
    ps_lab: Lab, make: Make, caplog: pytest.LogCaptureFixture, age: float, identity: str | None, suffix: str, reason: str
) -> None:
    """An old token, one of another branch and one that nobody signed are ignored with a warning."""
    far = Token(identity=identity or ps_lab.branch, position=parse_lsn("FFFF/0"), at=time.time() - age)
    answer = make(identity=ps_lab.branch)("GET", "/items", cookie=f"ps_token={signed(far)}{suffix}")
    assert answer.body["by_replica"] is True
    (message,) = caplog.messages
    assert message.startswith("ignored a consistency token")
    assert reason in message


@pytest.mark.parametrize("ahead", [30, 3600])
def test_token_of_a_clock_that_is_ahead_counts(ps_lab: Lab, make: Make, ahead: float) -> None:
    """The clocks of two machines need not agree: what is signed is from one of them."""
    far = Token(identity=ps_lab.branch, position=parse_lsn("FFFF/0"), at=time.time() + ahead)
    assert make()("GET", "/items", cookie=f"ps_token={signed(far)}").body["by_replica"] is False


def test_deadline(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """The setting bounds the request's statements, a header can make that shorter; what is no duration is ignored."""
    assert make()("GET", "/timeout").body["milliseconds"] == 2000
    client = make(deadline="1900ms", deadline_header="Request-Timeout")
    assert 900 < client("GET", "/timeout").body["milliseconds"] <= 1900
    assert 0 < client("GET", "/timeout", request_timeout="900ms").body["milliseconds"] <= 900
    assert 900 < client("GET", "/timeout", request_timeout="1h").body["milliseconds"] <= 1900
    assert not caplog.messages
    assert 900 < client("GET", "/timeout", request_timeout="off").body["milliseconds"] <= 1900
    (message,) = caplog.messages
    assert message.startswith("ignored the header Request-Timeout")


def test_streamed_body(make: Make) -> None:
    """A body that is made while it is sent is made under what holds for the request."""
    assert make(deadline="5s")("GET", "/stream").body.split() == ["True", "True"] * 3
    assert make(reads=lambda _: False)("GET", "/stream").body.split() == ["False", "False"] * 3


def test_nothing_leaks(ps_lab: Lab, make: Make) -> None:
    """What was there before the request does not count in it, and is there again after it."""
    pinned = Token(identity=ps_lab.branch, position=None, at=time.time())
    with use_token(None):
        record_seen(pinned)
        assert make()("GET", "/items").body["by_replica"] is True
        make(deadline="5s")("POST", "/items/1")
        assert current_token() == pinned
        assert current() == Context()


def test_wsgi_bodies_take_turns() -> None:
    """Two bodies that one thread makes in turns have each their own context, to their end and beyond; the thread has its own."""
    closed: list[Any] = []

    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        token = Token(identity=environ["QUERY_STRING"], position=1, at=time.time())

        def body() -> Iterator[bytes]:
            try:
                for _ in range(3):
                    record_seen(token)
                    seen = current_token()
                    assert seen is not None
                    yield f"{seen.identity} {current().reading}".encode()
            finally:
                closed.append(current().reading)

        return body()

    middleware = WSGIMiddleware(app, keys=[KEY])
    bodies = [
        iter(middleware({"REQUEST_METHOD": method, "QUERY_STRING": name, "wsgi.url_scheme": "http"}, lambda *_: print))
        for method, name in (("GET", "a"), ("POST", "b"))
    ]
    with use_token(None):
        parts = [next(body) for body in itertools.chain(bodies, bodies)]
        assert current_token() is None
    expected = [b"a True", b"b False"]
    assert parts == expected * 2
    for body in bodies:
        body.close()  # type: ignore[attr-defined]
    assert closed == [True, False]


def test_wsgi_hands_on_what_servers_look_at() -> None:
    """A list and the server's own file wrapper reach it as they are; `exc_info` too."""

    class FileWrapper:
        def __iter__(self) -> Iterator[bytes]:
            yield b""

    started: list[Any] = []
    for body in ([b"x"], FileWrapper()):
        error = (ValueError, ValueError(), None)

        def app(_: Any, start_response: Any, body: Any = body, error: Any = error) -> Any:
            start_response("500 NO", [("A", "b")], error)
            return body

        environ = {"REQUEST_METHOD": "GET", "wsgi.url_scheme": "http", "wsgi.file_wrapper": FileWrapper}
        assert WSGIMiddleware(app, keys=[KEY])(environ, lambda *args: started.append(args)) is body  # type: ignore[arg-type]
        assert started.pop() == ("500 NO", [("A", "b")], error)


@pytest.mark.parametrize("kind", ["lifespan", "websocket"])
def test_other_scopes_pass_through(kind: str) -> None:
    """Lifespan and websocket reach the application as they came."""
    calls = []

    async def app(*args: Any) -> None:
        calls.append(args)
        assert current() == Context()

    scope = {"type": kind}

    async def channel(*_: Any) -> Any:
        raise AssertionError

    asyncio.run(ASGIMiddleware(app, keys=[KEY])(scope, channel, channel))
    assert len(calls) == 1
    assert all(got is given for got, given in zip(calls[0], (scope, channel, channel), strict=True))


def test_asgi_leaves_the_message_alone() -> None:
    """A message that an application sends again and again does not collect cookies; a cookie in several headers is found."""
    start = {"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]}
    sent = []
    before = Token(identity="x", position=1, at=time.time())

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert str(current_token()) == str(before)
        record_seen(Token(identity="x", position=2, at=time.time()))
        await send(start)

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError

    cookies = [(b"cookie", b"a=1"), (b"cookie", f"ps_token={signed(before)}".encode())]
    asyncio.run(
        ASGIMiddleware(app, keys=[KEY])({"type": "http", "method": "GET", "scheme": "https", "headers": cookies}, receive, send)
    )
    assert start["headers"] == [(b"a", b"b")]
    (message,) = sent
    (_, (name, value)) = message["headers"]
    assert name == b"set-cookie"
    assert value.endswith(b"; Secure")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keys": []}, "keys"),
        ({"keys": "one string"}, "keys"),
        ({"keys": ["a", ""]}, "keys"),
        ({"keys": [5]}, "keys"),
        ({"cookie": True}, "cookie"),
        ({"header": 5}, "header"),
        ({"identity": 5}, "identity=engine.topology.identity"),
        ({"reads": "GET"}, "reads: write a function"),
        ({"secure": "no"}, "secure: write one of"),
        ({"partitioned": "no", "secure": True}, "partitioned: write one of"),
        ({"tags": "shop"}, "tags: write a mapping"),
        ({"cookie": None}, "both None"),
        ({"cookie": "a b"}, "cookie"),
        ({"header": "X-Token:"}, "header"),
        ({"deadline_header": ""}, "deadline_header"),
        ({"samesite": "Lax"}, "samesite"),
        ({"samesite": "none"}, "secure=True"),
        ({"partitioned": True}, "secure=True"),
        ({"cookie": "__Host-t"}, "secure=True"),
        ({"cookie": "__Secure-t"}, "secure=True"),
        ({"cookie": "__host-t", "secure": True, "domain": "example.org"}, "no domain"),
        ({"domain": "example.org; Secure"}, "domain"),
        ({"max_age": "6min"}, "max_age"),
        ({"max_age": "0.5s"}, "max_age"),
        ({"max_age": None}, "max_age"),
        ({"max_age": 0}, "(?m)as a number of seconds$"),
        ({"deadline": 0}, "deadline"),
    ],
)
def test_refusals(settings: dict[str, Any], message: str) -> None:
    """What cannot work is refused when the middleware is made."""
    with pytest.raises(ConfigurationError, match=message):
        WSGIMiddleware(None, **{"keys": [KEY], **settings})


def test_repr_holds_no_key() -> None:
    """Starlette and debuggers show middleware."""
    assert KEY not in repr(ASGIMiddleware(None, keys=[KEY], secure=True, samesite="none"))
