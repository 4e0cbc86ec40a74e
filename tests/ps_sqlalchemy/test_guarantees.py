"""The levels of `consistency` through SQLAlchemy: what sessions send, what their reads promise, what a response carries."""

from collections.abc import Iterator
from typing import Any, get_args

import pytest
import sqlalchemy as sa

from ps_core import use_token
from ps_core._message.functions import Functions
from ps_core.topology import Consistency
from ps_lab import Lab
from ps_sqlalchemy import Engine, Session, create_engine
from ps_sqlalchemy.middleware import WSGIMiddleware
from tests.ps_core.wire import sending
from tests.ps_sqlalchemy.conftest import SERVED_BY_REPLICA, Item

MONOTONIC, OWN, NONE = LEVELS = get_args(Consistency)

IS_STANDBY = "SELECT pg_is_in_recovery() AS pg_is_in_recovery_1"
INSERT = "INSERT INTO sa_item (id, note) VALUES (('7'::int2)::INTEGER, 'a'::VARCHAR)"
SENT = {
    MONOTONIC: [
        *("BEGIN; settings; INSERT; id", "synchronous_commit; COMMIT; committed position"),
        "settings; guard; read only; SELECT; position",
    ],
    OWN: [
        *("BEGIN; settings; INSERT; id", "synchronous_commit; COMMIT; committed position"),
        "settings; guard; read only; SELECT",
    ],
    NONE: ["BEGIN; settings; INSERT; id", "COMMIT", "settings; read only; SELECT"],
}
"""A session that writes and another that reads take a round trip each."""


@pytest.fixture(params=[*LEVELS, "URL"])
def levelled(
    ps_lab: Lab, items: type[Item], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Engine, Consistency]]:
    """An engine of each level, which has connections; one whose URL alone says it."""
    monkeypatch.setattr(Functions, "is_due", lambda *_: False)  # once a minute, a message asks for more
    options: dict[str, Any] = {"bouncer": "write-pool", "replica_bouncer": "read-pool", "pool_size": 1}
    level: Consistency = OWN if request.param == "URL" else request.param
    if request.param == "URL":
        engine = create_engine(f"{ps_lab.url}&ps_consistency=read_your_writes", **options)
    else:
        engine = create_engine(ps_lab.url, consistency=level, **options)
    with use_token(None):
        drivers(engine)
    yield engine, level
    engine.dispose()


def drivers(engine: Engine) -> list[Any]:
    """Return the connections of both sides, each the only one of its pool."""
    found = []
    for side in (engine, engine.replica):
        assert side is not None
        with side.connect() as conn:
            found.append(conn.connection.driver_connection)
    return found


def test_sent(ps_lab: Lab, levelled: tuple[Engine, Consistency], items: type[Item]) -> None:
    """The messages of a write and of a read by sessions; the same round trips at each level."""
    engine, level = levelled
    with use_token(None) as tracker:
        with sending(*drivers(engine)) as sent, ps_lab.round_trips() as counter:
            with Session(engine) as session, session.begin():
                session.execute(sa.insert(items).values(id=7, note="a"))
            token = tracker.token
            ps_lab.wait_replicas_caught_up()
            with Session(engine) as session:
                assert session.scalar(SERVED_BY_REPLICA)
        messages = [message.replace(INSERT, "INSERT").replace(IS_STANDBY, "SELECT") for message in sent.messages]
        assert messages == SENT[level]
        assert counter.by_path["primary"] == 2
        assert counter.by_path["replica"] == 1
        assert (token is None) is (level == NONE)
        assert (tracker.token is token) is (level != MONOTONIC)


def test_own_writes(ps_lab: Lab, levelled: tuple[Engine, Consistency], items: type[Item]) -> None:
    """A session reads what an earlier one wrote, on the primary while replicas are late; at "none" what replicas have."""
    engine, level = levelled
    ps_lab.set_replay_delay(60)
    try:
        with use_token(None):
            with Session(engine) as session, session.begin():
                session.add(items(id=1, note="a"))
            with Session(engine) as session:
                assert (session.get(items, 1) is None) is (level == NONE)
    finally:
        ps_lab.set_replay_delay(0)


def test_backward(ps_lab: Lab, levelled: tuple[Engine, Consistency], items: type[Item]) -> None:
    """A session that comes after one that read on the primary sees no less, at "monotonic" alone."""
    engine, level = levelled
    ps_lab.set_replay_delay(60)
    try:
        ps_lab.sql("INSERT INTO sa_item VALUES (1, 'a')")
        with use_token(None):
            with Session(engine) as session:
                assert session.get(items, 1, execution_options={"ps_route": "primary"}) is not None
            with Session(engine) as session:
                assert (session.get(items, 1) is None) is (level != MONOTONIC)
    finally:
        ps_lab.set_replay_delay(0)


def test_cookies(ps_lab: Lab, levelled: tuple[Engine, Consistency], items: type[Item]) -> None:
    """A response that wrote sets the cookie, but at "none"; of one that read more, who has a cookie learns at "monotonic"."""
    engine, level = levelled

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        with Session(engine) as session, session.begin():
            if environ["REQUEST_METHOD"] == "POST":
                session.add(items(note="a"))
            else:
                session.execute(sa.select(items), execution_options={"ps_route": "primary"})
        start_response("200 OK", [])
        return []

    served = WSGIMiddleware(application, keys=["secret"])

    def ask(method: str, cookie: str = "") -> str | None:
        given: list[tuple[str, str]] = []
        environ = {"REQUEST_METHOD": method, "wsgi.url_scheme": "http", "HTTP_COOKIE": cookie}
        served(environ, lambda _, headers: given.extend(headers))  # type: ignore[arg-type]
        return dict(given).get("Set-Cookie")

    assert ask("GET") is None
    cookie = ask("POST")
    assert (cookie is None) is (level == NONE)
    ps_lab.sql("INSERT INTO sa_item VALUES (1001, 'a')")
    assert (ask("GET", cookie or "") is not None) is (level == MONOTONIC)
