"""How tokens travel between requests: as tables, and as a browser whose answers overtake each other."""

import heapq
import math
import random
import time
from dataclasses import replace
from itertools import count
from typing import Any, NamedTuple

import pytest
from gunicorn.config import Config
from gunicorn.http.parser import RequestParser

from ps_core import Token
from ps_core._propagation import MAX_COOKIES, MAX_DELETED, MAX_VALUES, Answer, Carried, Propagator, cookies_of, wanted_by_browsers
from ps_core.consistency import MAX_BRANCHES, InvalidToken, identity_of
from ps_core.context import Tracker, current_token, from_request, use_token
from ps_core.errors import ConfigurationError

pytestmark = pytest.mark.fast

NOW = 1_790_000_000.0
PROPAGATOR = Propagator(keys=["a secret of the tests"], cookie="ps_token")
LONGEST = identity_of("db-7.of-a-long-name.eu-central-1.example.org/shop")
FARTHEST = 2**64 - 1


def token(position: int | None, identity: str = "br1", at: float = NOW) -> Token:
    """Return how far somebody has seen."""
    return Token(identity=identity, position=position, at=at)


def value(position: int | None, identity: str = "br1", at: float = NOW) -> str:
    """Return the same as a cookie's value."""
    return PROPAGATOR.sign(token(position, identity, at))


def name(number: int) -> str:
    """Return the name of a cookie of what was written."""
    return f"ps_token_{number:08x}"


def taken(*numbers: int, identity: str = "br1") -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return cookies of which all was taken."""
    return tuple((name(number), (identity,)) for number in numbers)


FORGED = value(9)[:-1] + "!"
NOT_SIGNED = "it was not signed with any of the keys"

CARRIED: dict[str, tuple[dict[str, str], str | None, Carried]] = {
    "nothing": ({}, None, Carried()),
    "what was read": ({"ps_token": value(5)}, None, Carried(token(5))),
    "what was written": ({name(1): value(5)}, None, Carried(token(5), taken(1))),
    "the maximum": (
        {name(1): value(5), "ps_token": value(7), name(2): value(6)},
        None,
        Carried(token(7), taken(1, 2)),
    ),
    "a pin is beyond all": ({name(1): value(5), name(2): value(None)}, None, Carried(token(None), taken(1, 2))),
    "a pin does not end before what else is known": (
        {name(1): value(None, at=NOW - 200), name(2): value(5, at=NOW - 100)},
        None,
        Carried(token(None, at=NOW - 100), taken(1, 2)),
    ),
    "of two databases": (
        {name(1): value(5), name(2): value(3, "br2", NOW - 1)},
        None,
        Carried(replace(token(5), others=(token(3, "br2", NOW - 1),)), (*taken(1), *taken(2, identity="br2"))),
    ),
    "in part": ({name(1): PROPAGATOR.sign(replace(token(5), others=(token(3, "br2", NOW - 301),)))}, None, Carried(token(5))),
    "of a clock that is ahead": ({name(1): value(5, at=NOW + 3600)}, None, Carried(token(5), taken(1))),
    "empty ones are none": ({"ps_token": "", name(1): '""', name(2): " "}, None, Carried()),
    "unverifiable ones stay": (
        {name(1): FORGED, name(2): "x", name(3): value(5)},
        None,
        Carried(token(5), taken(3), (NOT_SIGNED,)),
    ),
    "expired ones stay": ({name(1): value(5, at=NOW - 301)}, None, Carried(None, (), ("expired",))),
    "quoted": ({name(1): f'"{value(5)}"'}, None, Carried(token(5), taken(1))),
    "no text at all": ({name(1): "\udc80", name(2): "ü.ü", name(3): "." * 99}, None, Carried(None, (), (NOT_SIGNED,))),
    "names of others": (
        {"ps_token_x": value(5), "ps_token_0000000A": value(5), "ps_token_000000001": value(5), "xps_token": value(5)},
        None,
        Carried(),
    ),
    "as many as are read": (
        {name(number): value(number) for number in range(1, MAX_COOKIES + 1)},
        None,
        Carried(token(MAX_COOKIES), taken(*range(1, MAX_COOKIES + 1))),
    ),
    "one more": (
        {name(number): value(number) for number in range(1, MAX_COOKIES + 2)},
        None,
        Carried(token(None), taken(*range(1, MAX_COOKIES + 2))),
    ),
    "one more, of another database": (
        {name(number): value(number, "br2" if number > MAX_COOKIES else "br1") for number in range(1, MAX_COOKIES + 2)},
        None,
        Carried(
            replace(token(None), others=(token(None, "br2"),)),
            (*taken(*range(1, MAX_COOKIES + 1)), *taken(MAX_COOKIES + 1, identity="br2")),
        ),
    ),
    "forged ones do not count": (
        {**{name(number): FORGED for number in range(99)}, name(99): value(5)},
        None,
        Carried(token(5), taken(99), (NOT_SIGNED,)),
    ),
    "empty ones do not count": ({name(number): "" for number in range(99)}, None, Carried()),
    "header": ({}, value(5), Carried(token(5))),
    "header of several": ({}, f"{value(5)},{value(7)} , ,{FORGED};{value(6)}", Carried(token(7), (), (NOT_SIGNED,))),
    "header and cookie": ({name(1): value(5)}, value(4), Carried(token(5), taken(1))),
    "header of as many as are read": ({}, ",".join([value(5)] * MAX_VALUES), Carried(token(5))),
    "header of one more": ({}, ",".join([value(5)] * (MAX_VALUES + 1)), Carried(token(None))),
}


@pytest.mark.parametrize("case", CARRIED)
def test_extract(case: str) -> None:
    """What a request came with."""
    cookies, header, expected = CARRIED[case]
    assert PROPAGATOR.extract(cookies.items(), header, now=NOW) == expected
    through_header = cookies_of("; ".join(f"{key}={given}" for key, given in cookies.items()))
    assert PROPAGATOR.extract(through_header, header, now=NOW) == expected


def test_without_cookies() -> None:
    """Where only a header carries tokens, no cookie is looked at."""
    only = Propagator(keys=["a secret of the tests"], cookie=None, header="PS-Token")
    for found in ("ps_token", name(1), "_0000000a"):
        assert only.extract([(found, value(5))], None, now=NOW) == Carried()


class Did(NamedTuple):
    """What was done in a request, and what its answer tells."""

    carried: dict[str, str]
    saw: int | None
    wrote: bool
    expected: Answer | None


UNIQUE = "0123abcd"
OWN = f"ps_token_{UNIQUE}"
MANY = {name(number): value(number) for number in range(1, 21)}
FIRST = int(UNIQUE, 16) % len(MANY)
TOLD: dict[str, Did] = {
    "nothing was asked": Did({name(1): value(5)}, 0, False, None),
    "read, by one without a token": Did({}, 7, False, None),
    "read, and saw no more": Did({name(1): value(5)}, 4, False, None),
    "read, and saw more": Did({name(1): value(5)}, 7, False, Answer(value(7), "ps_token", ())),
    "wrote": Did({}, 7, True, Answer(value(7), OWN, ())),
    "wrote, and merged": Did(
        {name(1): value(5), "ps_token": value(6), name(2): "", name(3): FORGED},
        7,
        True,
        Answer(value(7), OWN, (name(1),)),
    ),
    "wrote, at an unknown position": Did({name(1): value(5)}, None, True, Answer(value(None), OWN, (name(1),))),
    "wrote, and had seen more, which a crash took": Did({name(1): value(9)}, 7, True, Answer(value(9), OWN, (name(1),))),
    "read, and learned what had no position": Did({name(1): value(None)}, 7, False, Answer(value(7), OWN, (name(1),))),
    "wrote, and merged many": Did(
        MANY, 99, True, Answer(value(99), OWN, (tuple(MANY)[FIRST:] + tuple(MANY)[:FIRST])[:MAX_DELETED])
    ),
}


def told(tracker: Tracker, carried: Carried, unique: str) -> Answer | None:
    """Return what an answer tells, if anything."""
    if tracker.token is None or not tracker.has_news:
        return None
    return PROPAGATOR.inject(tracker.token, carried, wrote=tracker.wrote, unique=unique)


@pytest.mark.parametrize("case", TOLD)
def test_inject(case: str) -> None:
    """What an answer tells: a cookie of its own for what was written, the fixed one for what was read, or nothing."""
    did = TOLD[case]
    carried = PROPAGATOR.extract(did.carried.items(), None, now=NOW)
    tracker = Tracker(carried.token)
    if did.saw != 0:
        tracker.record_seen(token(did.saw), wrote=did.wrote, unknown_positions=0 if did.saw else None)
    assert told(tracker, carried, UNIQUE) == did.expected


def test_parts_that_are_not_taken_are_not_deleted() -> None:
    """What another application, or a server whose clock differs, put into the same cookie is not lost with it."""
    both = PROPAGATOR.sign(replace(token(3), others=(token(5, "br2"),)))
    only = Propagator(keys=["a secret of the tests"], cookie="ps_token", identity="br1")
    carried = only.extract([(name(1), both)], None, now=NOW)
    assert carried == Carried(token(3))
    assert only.inject(token(4), carried, wrote=True, unique=UNIQUE) == Answer(value(4), OWN, ())


def test_more_databases_than_a_token_holds() -> None:
    """What does not fit into the answer's token stays where it is."""
    branches = [f"br{number}" for number in range(MAX_BRANCHES + 1)]
    cookies = {name(number): value(5, branch, NOW + number) for number, branch in enumerate(branches)}
    carried = PROPAGATOR.extract(cookies.items(), None, now=NOW + 20)
    assert carried.token is not None
    told = PROPAGATOR.inject(carried.token, carried, wrote=True, unique="00000000")
    assert set(cookies) - set(told.deleted) == {name(0)}


def test_request(caplog: pytest.LogCaptureFixture) -> None:
    """The block around a request begins with what it carries, and nothing else."""
    at = float(int(time.time()))
    cookies = {name(number): value(number, at=at) for number in range(1, 4)}
    cookies[name(1)] = cookies[name(2)] = FORGED
    with use_token(token(77, "other", at)):
        with from_request(PROPAGATOR, cookies.items(), None):
            assert current_token() == token(3, at=at)
        assert caplog.messages == [f"ignored a consistency token: {NOT_SIGNED}: see {InvalidToken.url}"]
        with from_request(PROPAGATOR, (), None) as inject:
            assert current_token() is None
            assert inject() is None


@pytest.mark.parametrize(("databases", "cookies"), [(1, MAX_COOKIES), (2, MAX_COOKIES), (4, MAX_COOKIES), (MAX_BRANCHES, 19)])
def test_size(databases: int, cookies: int) -> None:
    """A value is 64 bytes at most, and 48 more for each further database; so many cookies go through gunicorn."""
    assert (MAX_COOKIES, MAX_VALUES, MAX_DELETED) == (32, 8, 16)
    assert "=" not in value(1)
    first, *others = (token(FARTHEST, LONGEST[:-1] + str(number), 9_999_999_999) for number in range(databases))
    longest = PROPAGATOR.sign(replace(first, others=tuple(others)))
    assert len(LONGEST) == 16
    assert len(longest) == 64 + 48 * (databases - 1)
    names = ["ps_token", *map(name, range(cookies - 1))]
    header = "; ".join(f"{each}={longest}" for each in names)
    sent = f"GET / HTTP/1.1\r\nHost: x\r\nCookie: {header}\r\nPS-Token: {','.join([longest] * MAX_VALUES)}\r\n\r\n"
    config = Config()
    assert config.limit_request_field_size == 8190
    found = dict(next(RequestParser(config, [sent.encode()], ("127.0.0.1", 1))).headers)
    assert found["COOKIE"] == header
    carried = PROPAGATOR.extract(cookies_of(found["COOKIE"]), found["PS-TOKEN"], now=9_999_999_999.0)
    assert carried.token == replace(first, others=tuple(others))
    assert [cookie for cookie, _ in carried.merged] == names[1:]


@pytest.mark.parametrize(
    ("name", "given", "wanted"),
    [
        ("t", {"secure": False, "domain": "a.example", "path": "/a"}, []),
        ("t", {"secure": False, "cross_site": True}, ["Secure"]),
        ("__secure-t", {"secure": False}, ["Secure"]),
        ("__Http-t", {"secure": False}, ["Secure"]),
        ("__HOST-t", {"secure": False, "path": "/a", "domain": "a.example"}, ["Secure", "Path=/", "no Domain"]),
        ("__Host-Http-t", {"secure": True}, []),
        ("__Secure-t", {"secure": True, "domain": "a.example", "path": "/a", "cross_site": True}, []),
    ],
)
def test_wanted_by_browsers(name: str, given: dict[str, Any], wanted: list[str]) -> None:
    """What a browser drops silently."""
    assert wanted_by_browsers(name, **given) == wanted


@pytest.mark.parametrize(("keys", "accepted"), [(["old"], True), ([b"new", "old"], True), (["new"], False)])
def test_rotation_of_keys(keys: list[Any], accepted: bool) -> None:
    """All keys are accepted; the first one signs. No key is shown."""
    rotated = Propagator(keys=["new", "old"], cookie="t").sign(token(5))
    assert rotated == Propagator(keys=["new"], cookie="t").sign(token(5))
    shown = repr(Propagator(keys=keys, cookie="t"))
    assert not any(word in shown for word in ("key", "old", "new", "_own"))
    signed = Propagator(keys=["old"], cookie="t").sign(token(5))
    found = Propagator(keys=keys, cookie="t").extract([("t", signed)], None, now=NOW)
    assert found == Carried(token(5) if accepted else None, (), () if accepted else (NOT_SIGNED,))


@pytest.mark.parametrize(
    "changed",
    [{"position": 6}, {"identity": "br2"}, {"at": NOW + 1}, {"position": None}],
    ids=lambda changed: next(iter(changed)),
)
def test_signature_covers_all(changed: dict[str, Any]) -> None:
    """A signature of one token is none of another."""
    signed, other = value(5), str(replace(token(5), **changed))
    forged = f"{other}.{signed.rpartition('.')[2]}"
    assert PROPAGATOR.extract([("ps_token", forged)], None, now=NOW) == Carried(None, (), (NOT_SIGNED,))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keys": []}, "keys"),
        ({"keys": "one string"}, "keys"),
        ({"keys": ["a", ""]}, "keys"),
        ({"cookie": None}, "both None"),
        ({"cookie": "a b"}, "cookie"),
        ({"cookie": "a" * 33}, "32"),
        ({"cookie": "version"}, "attribute's name"),
        ({"header": "X-Token:"}, "header"),
        ({"header": "PS_TOKEN"}, "header"),
    ],
)
def test_refusals(settings: dict[str, Any], message: str) -> None:
    """Names that no browser or server takes, and keys that sign nothing."""
    with pytest.raises(ConfigurationError, match=message):
        Propagator(**{"keys": ["a"], "cookie": "t", **settings})


class Outcome(NamedTuple):
    """What a simulation found."""

    requests: int
    stale: int
    cookies: int
    """The most that one request carried."""


def demanded(carried: Carried) -> float:
    """Return the position that a request demands of a replica."""
    if carried.token is None:
        return 0
    return math.inf if carried.token.position is None else carried.token.position


def simulate(overlapping: int, *, seed: int, one_cookie: bool = False, requests: int = 500) -> Outcome:
    """Let a browser have so many requests under way, each of which is served and arrives at a time of its own.

    A request is stale that does not demand all that was written by the requests that the browser has had the answers of.
    `one_cookie`: each answer with news sets the fixed one, as a single cookie would carry them.
    """
    draw, unique = random.Random(seed), count()
    jar: dict[str, str] = {}
    events: list[tuple[float, int, str, Any]] = []
    written = acknowledged = stale = most = sent = 0

    def send(at: float) -> None:
        served = at + draw.expovariate(1)
        heapq.heappush(events, (served, next(unique), "served", (dict(jar), served, draw.random() < 0.5)))

    for _ in range(overlapping):
        send(draw.random())
    while sent < requests:
        at, _, kind, what = heapq.heappop(events)
        if kind == "served":
            cookies, served, writes = what
            carried = PROPAGATOR.extract(cookies.items(), None, now=NOW)
            tracker = Tracker(carried.token)
            written += writes
            # The primary has all; a replica is some writes behind, but not behind what is demanded.
            on_primary = writes or (carried.token is not None and carried.token.position is None)
            seen = written if on_primary else int(max(demanded(carried), written - draw.randrange(6)))
            tracker.record_seen(token(seen), wrote=writes, unknown_positions=0 if on_primary else None)
            answer = told(tracker, carried, f"{next(unique):08x}")
            if answer is not None and one_cookie:
                answer = Answer(answer.value, "ps_token", ())
            heapq.heappush(events, (served + draw.expovariate(1), next(unique), "arrived", (answer, seen if writes else 0)))
        else:
            answer, wrote = what
            acknowledged = max(acknowledged, wrote)
            if answer is not None:
                for each in answer.deleted:
                    jar.pop(each, None)
                jar[answer.cookie] = answer.value
            stale += demanded(PROPAGATOR.extract(jar.items(), None, now=NOW)) < acknowledged
            most = max(most, len(jar))
            sent += 1
            send(at)
    return Outcome(sent, stale, most)


@pytest.mark.parametrize("overlapping", [1, 2, 6, 20, 60])
def test_answers_overtake_each_other(overlapping: int) -> None:
    """No request forgets an acknowledged write, in few cookies; with one cookie, many do as soon as requests overlap."""
    found = [simulate(overlapping, seed=seed) for seed in range(2)]
    assert sum(outcome.stale for outcome in found) == 0
    assert max(outcome.cookies for outcome in found) <= overlapping + 1
    one = simulate(overlapping, seed=0, one_cookie=True)
    assert (one.stale > 0.1 * one.requests) if overlapping > 1 else one.stale == 0


if __name__ == "__main__":
    for overlapping in (1, 2, 6, 20, 60):
        for one_cookie in (True, False):
            outcome = simulate(overlapping, seed=1, one_cookie=one_cookie, requests=12_000)
            print(f"{overlapping} overlapping, {'one cookie' if one_cookie else 'a cookie for each write'}: {outcome}")
