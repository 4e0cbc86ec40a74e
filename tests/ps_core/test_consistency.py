"""Tokens: what they hold, what does not count, and how two become one."""

from collections.abc import Sequence
from functools import reduce

import pytest

from ps_core.consistency import CLOCK_SKEW, MAX_AGE, MAX_BRANCHES, InvalidToken, Token, format_lsn, merge, parse_lsn

pytestmark = pytest.mark.fast


def token(position: int | None, at: float, identity: str = "br1", *, others: Sequence[Token] = ()) -> Token:
    """Return a token."""
    return Token(identity=identity, position=position, at=at, others=tuple(others))


@pytest.mark.parametrize(
    ("first", "second", "merged"),
    [
        (None, None, None),
        (token(5, 0), None, token(5, 0)),
        (token(5, 10), token(7, 0), token(7, 10)),
        (token(None, 0), token(5, 200), token(None, 0)),
        (token(None, 0), token(None, 100), token(None, 100)),
        (token(9, 0, "old"), token(1, 5), token(1, 5, others=[token(9, 0, "old")])),
        (token(1, 5, others=[token(9, 0, "old")]), token(2, 5), token(2, 5, others=[token(9, 0, "old")])),
        (token(1, 5, others=[token(9, 0, "old")]), token(None, 6, "old"), token(None, 6, "old", others=[token(1, 5)])),
    ],
)
def test_merge(first: Token | None, second: Token | None, merged: Token | None) -> None:
    """The merged token demands as much as both; of each branch; reads do not prolong a pin."""
    assert merge(first, second) == merge(second, first) == merged


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "malformed"),
        ("1.br1.0-5", "malformed"),
        ("2.br1.0-5.1000", "malformed"),
        ("1.br1.0-G.1000", "malformed"),
        ("1.br1.0-5.1000; DROP", "malformed"),
        ("1.br2.0-5.1000", "another branch"),
        (f"1.br1.0-5.{1000 - int(MAX_AGE) - 1}", "expired"),
        (f"1.br1.0-5.{1000 + int(CLOCK_SKEW) + 1}", "future"),
    ],
)
def test_does_not_count(text: str, why: str) -> None:
    """A token that is malformed, of another branch, expired or of the future is refused with the reason."""
    with pytest.raises(InvalidToken, match=why):
        Token.parse(text, identity="br1", now=1000)


@pytest.mark.parametrize("position", [None, 1, 0x16B374D848, 2**64 - 1])
def test_round_trip(position: int | None) -> None:
    """A token survives its string."""
    there = token(position, 1000)
    assert Token.parse(str(there), identity="br1", now=1000) == there
    if position:
        assert parse_lsn(format_lsn(position)) == position


def test_several_branches() -> None:
    """A token of several databases survives its string, tells each one's position, and keeps what was seen last."""
    both = merge(token(5, 1000, "a"), token(7, 1001, "b"))
    assert both is not None
    assert str(both) == "1.b.0-7.1001~1.a.0-5.1000"
    assert Token.parse(str(both), identity=None, now=1001) == both
    assert Token.parse(str(both), identity="a", now=1001) == both.of("a") == token(5, 1000, "a")
    assert Token.parse(f"{both}~nonsense", identity=None, now=1001) == both
    assert both.of("c") is None
    assert both.unexpired(1000 + MAX_AGE) == both
    assert both.unexpired(1001 + MAX_AGE) == token(7, 1001, "b")
    assert both.unexpired(1002 + MAX_AGE) is None
    tokens: list[Token | None] = [token(1, at, f"br{at}") for at in range(1000, 1000 + MAX_BRANCHES + 1)]
    many = reduce(merge, tokens)
    assert many is not None
    assert [one.identity for one in (many, *many.others)] == [f"br{1000 + MAX_BRANCHES - n}" for n in range(MAX_BRANCHES)]
    assert len(many.others) == MAX_BRANCHES - 1
