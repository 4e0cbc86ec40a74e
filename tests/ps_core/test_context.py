"""Blocks: what holds in one, and for whom."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from inspect import signature
from typing import Any

import pytest

from ps_core import ConfigurationError, deadline, limits, local_settings, using_primary, using_replica, without_sticky_writes
from ps_core._endpoint import EndpointState
from ps_core.consistency import Token
from ps_core.context import Context, Limits, Tracker, commit_check, current, remaining
from ps_core.routing import Route
from ps_core.timeouts import Timeouts
from ps_core.topology import Topology

pytestmark = pytest.mark.fast


def test_nest_and_restore() -> None:
    """Blocks nest, and restore what was before, also on exceptions."""
    with using_primary(), local_settings({"app.a": "1"}):
        with pytest.raises(ZeroDivisionError), using_replica(), local_settings({"app.b": "2"}), without_sticky_writes():
            assert current().route is Route.REPLICA
            assert dict(current().local_settings) == {"app.a": "1", "app.b": "2"}
            assert not current().sticky
            raise ZeroDivisionError
        assert current().route is Route.PRIMARY
        assert dict(current().local_settings) == {"app.a": "1"}
    assert current() == Context()


def test_deadlines_only_shrink() -> None:
    """An inner deadline can only be earlier, and a block's time begins when it is entered."""
    later = deadline(20)
    with deadline(10), later:
        assert (remaining() or 99) <= 10
    begin = time.monotonic()
    with later:
        left = remaining() or 0
        assert 20 - (time.monotonic() - begin) <= left <= 20


def test_decorates_functions() -> None:
    """A block that decorates a function applies to each call, in several threads at once."""
    barrier = threading.Barrier(2, timeout=10)

    @using_replica()
    def work() -> Route | None:
        barrier.wait()
        return current().route

    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(work())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert found == [Route.REPLICA] * 2
    assert work.__name__ == "work"


def test_decorates_coroutine_functions() -> None:
    """The same for async functions: until they are done, and not for the tasks beside them."""

    @using_primary()
    async def work(event: asyncio.Event) -> Route | None:
        await event.wait()
        return current().route

    async def main() -> None:
        event = asyncio.Event()
        tasks = [asyncio.create_task(work(event)) for _ in range(2)]
        await asyncio.sleep(0)
        assert current().route is None
        event.set()
        assert await asyncio.gather(*tasks) == [Route.PRIMARY] * 2

    asyncio.run(main())


def test_threads_have_their_own() -> None:
    """Two threads that interleave blocks do not see each other's; one with a copied context inherits."""
    barrier = threading.Barrier(2, timeout=10)
    found = {}

    def work(name: str, block: Any) -> None:
        barrier.wait()
        with block:
            barrier.wait()
            found[name] = current().route
            barrier.wait()
        barrier.wait()
        found[name + " after"] = current().route

    threads = [threading.Thread(target=work, args=pair) for pair in (("one", using_primary()), ("two", using_replica()))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert found == {"one": Route.PRIMARY, "two": Route.REPLICA, "one after": None, "two after": None}

    async def inherit() -> Route | None:
        with using_primary():
            return await asyncio.to_thread(lambda: current().route)

    assert asyncio.run(inherit()) is Route.PRIMARY


@pytest.mark.parametrize("seconds", [0, -1, "soon", None, "off", "10", float("nan")])
def test_deadlines_refused(seconds: Any) -> None:
    """What is no duration is refused when the block is made."""
    with pytest.raises(ConfigurationError, match=r"(?m)^deadline: .*; where there is none, leave the block out$"):
        deadline(seconds)


def test_refused_when_made() -> None:
    """Limits that cannot hold, and names that are not the application's, are refused when the block is made."""
    with pytest.raises(ConfigurationError, match="below transaction"):
        limits(statement="3s", transaction="2s")
    for name in ("statement_timeout", "app", "app.x; DROP", "1a.b"):
        with pytest.raises(ConfigurationError, match="is none of the application's own settings"):
            local_settings({name: "1"})
    with pytest.raises(ConfigurationError, match="NUL"):
        local_settings({"app.a": "\x00"})
    others: tuple[Any, ...] = ("app.a=1", [("app.a", "1")], {1: "1"})
    for other in others:
        with pytest.raises(ConfigurationError, match=r"^local_settings: write a (mapping|name as a string)"):
            local_settings(other)


@pytest.mark.parametrize("verify", [5, True, lambda: True, ["SELECT true"]])
def test_verify_is_a_text(verify: Any) -> None:
    """What cannot be asked is refused before the transaction, and not when the answer to its COMMIT is lost."""
    with pytest.raises(ConfigurationError, match=r"^verify: write a query as a string"):
        commit_check(verify=verify)


@pytest.mark.parametrize("value", [0, 0.0, -0.0, False, True, "", "0", "0s", -1, float("nan"), "25h"], ids=repr)
@pytest.mark.parametrize("name", ["statement", "transaction", "idle_in_transaction", "lock"])
def test_what_is_no_limit(name: str, value: Any) -> None:
    """Each argument refuses what `Timeouts` refuses, with its words: zero is not "off", which is None."""
    with pytest.raises(ConfigurationError) as of_timeouts:
        Timeouts(**{name: value})
    with pytest.raises(ConfigurationError) as of_limits:
        limits(**{name: value})
    assert str(of_limits.value) == str(of_timeouts.value).replace(f"{name}_timeout", f"limits: {name}")
    assert str(of_limits.value).startswith(f"limits: {name}: {value!r} is not a duration above zero")


@pytest.mark.parametrize("name", ["statement", "transaction", "idle_in_transaction", "lock"])
def test_off_and_not_given(name: str) -> None:
    """None and "off" set none; what is not given is not there."""
    for off in (None, "off"):
        with limits(**{name: off}):
            assert current().limits == Limits(((name, None),))
    with limits():
        assert current().limits == Limits(())
    with limits(lock="1s"), limits(**{name: "2s"}):
        limited = current().limits
        assert limited is not None
        assert dict(limited.values) == {"lock": 1.0} | {name: 2.0}
    assert "<not given>" in str(signature(limits))


def test_generator_functions_are_refused() -> None:
    """A generator's body would run when the block is over, unlike `with` in it: refused when it is decorated."""

    def generate() -> Iterator[None]:
        yield

    async def agenerate() -> AsyncIterator[None]:
        yield

    for block in (using_primary(), limits(statement="1s"), deadline(1)):
        for func in (generate, agenerate):
            with pytest.raises(TypeError, match="write the block as `with` in it"):
                block(func)


@pytest.mark.parametrize(
    ("asked", "role", "told"),
    [
        ({"statement": "60s"}, {"statement_timeout": 2000, "transaction_timeout": 3000}, "statement_timeout 60 s"),
        ({"statement": None}, {"statement_timeout": 2000}, "statement_timeout off"),
        ({"statement": "60s"}, {"transaction_timeout": 3000}, "transaction_timeout 60 s"),
        ({"lock": "5s"}, {"lock_timeout": 4999}, "lock_timeout 5 s"),
        ({"statement": "2s"}, {"statement_timeout": 2000, "transaction_timeout": 3000}, None),
        ({"statement": "60s"}, {}, None),
        ({}, {"statement_timeout": 1}, None),
    ],
)
def test_limits_above_the_roles_own(
    asked: dict[str, Any], role: dict[str, int], told: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """What `limits()` asks for and a timeout of the role forbids is warned of, once for each endpoint and process."""
    state = EndpointState(endpoint=Topology.from_url("postgresql://app.br4nch:secret@x.psdb.cloud/shop").primary, role=role)
    with limits(**asked):
        for _ in range(2):
            state.settings(180000)
    assert [record.name for record in caplog.records] == ([] if told is None else ["ps_core.limits"])
    if told is not None:
        assert told in caplog.text
        assert f"ALTER ROLE ... RESET {told.split()[0]}" in caplog.text


SEEN: list[tuple[str, list[tuple[int | None, int | None]], int | None]] = [
    ("a position that came back is what was seen", [(7, None)], 7),
    ("the later one counts", [(7, None), (9, None), (8, None)], 9),
    ("a position that could not be learned leaves the primary only", [(7, None), (None, None)], None),
    ("a replica's position does not undo that", [(None, None), (9, None)], None),
    ("the primary's does, if it was asked after that", [(None, None), (9, 1)], 9),
    ("not if it was asked before", [(None, None), (9, 0)], None),
    ("nor if another one was added since", [(None, None), (None, None), (9, 1)], None),
    ("it covers all that it knew of", [(None, None), (None, None), (9, 2)], 9),
    ("where nothing is unknown, it is a position like another", [(7, 0), (9, 0)], 9),
]


@pytest.mark.parametrize(("seen", "position"), [row[1:] for row in SEEN], ids=[row[0] for row in SEEN])
def test_tracker(seen: list[tuple[int | None, int | None]], position: int | None) -> None:
    """What a context has seen, after these positions; with each, how many unknown ones there were when the primary was asked."""
    tracker = Tracker()
    for at, (found, unknown) in enumerate(seen):
        tracker.record_seen(Token(identity="branch", position=found, at=1000.0 + at), unknown_positions=unknown)
    assert tracker.token is not None
    assert tracker.token.position == position
    assert tracker.unknown_positions == sum(found is None for found, _ in seen)
