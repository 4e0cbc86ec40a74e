"""How a user's token travels from one request to the next, so that no answer that arrives late sets it back.

Answers overtake each other. With one cookie, the answer that the browser reads last wins, and an older token replaces a newer
one. So an answer that wrote sets a cookie of a name of its own, to the maximum of what its request carried and of what it saw.
The next request takes the maximum of all, and the next answer that wrote deletes those that it has merged. An answer that only
read, and saw more, sets one cookie of a fixed name: an older answer may replace what was read there, never what was written.

Pure; `ps_core.context.from_request` is the block around a request.
"""

from __future__ import annotations

import hmac
import re
from base64 import urlsafe_b64encode
from dataclasses import dataclass, field, replace
from functools import reduce
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

from ps_core.consistency import InvalidToken, Token, merge
from ps_core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = ["MAX_COOKIES", "MAX_DELETED", "MAX_VALUES", "NAME", "Answer", "Carried", "Propagator", "cookies_of"]

MAX_COOKIES: Final = 32
"""Of one request. Where there are more, it is served by the primary, which has all that any of them can name."""
MAX_VALUES: Final = 8
"""In the header of one request; the same holds."""
MAX_DELETED: Final = 16
"""By one answer."""

NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, token: the names of headers and cookies
_MAX_NAME: Final = 32
_NOT_SIGNED: Final = "it was not signed with any of the keys"
_SALT: Final = b"ps_core.token"
_SIGNATURE: Final = 12
"""Bytes of HMAC-SHA256 that are kept: 96 bits, in 16 characters."""


class Carried(NamedTuple):
    """What a request came with."""

    token: Token | None
    """The maximum of all that count; without positions where there are `too_many`."""
    merged: tuple[str, ...]
    """The cookies with a name of their own that are in it."""
    too_many: bool
    """There were more values than are read."""
    ignored: tuple[str, ...]
    """Why values do not count, each reason once."""


class Answer(NamedTuple):
    """What an answer tells its user."""

    value: str
    """The token, signed: at most 64 characters, and 48 for each further database, of which there are at most three."""
    cookie: str
    """The name of the cookie to set."""
    deleted: tuple[str, ...]
    """The cookies to delete."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Propagator:
    """Takes tokens out of requests, and puts them into answers. (OpenTelemetry has the name from what does so with traces.)

    Raises:
        ConfigurationError: a name that no browser or server would take; no name at all; no key.
    """

    keys: Sequence[str | bytes] = field(repr=False)
    """What tokens are signed with: the first signs, all are accepted."""
    cookie: str | None
    """The name of the cookie of what was read; those of what was written have `_` and 8 hexadecimal digits behind it."""
    header: str | None = None
    """The name of the header of requests and responses; it may hold several values, with commas between them."""
    identity: str | None = None
    """The branch that a token has to be of; None: any."""
    _keys: tuple[bytes, ...] = field(init=False, repr=False)
    _own: re.Pattern[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        keys = () if isinstance(self.keys, (str, bytes)) else self.keys
        if not keys or not all(keys):
            raise ConfigurationError("keys: write a list of secret strings, the one that signs first, as in keys=[secret]")
        if self.cookie is None and self.header is None:
            raise ConfigurationError("cookie and header are both None: write the name of at least one that carries the token")
        for option, name in (("cookie", self.cookie), ("header", self.header)):
            if name is not None and not (NAME.fullmatch(name) and len(name) <= _MAX_NAME):
                raise ConfigurationError(
                    f"{option}: {name!r} is no name for one: write up to {_MAX_NAME} letters, digits, '-' and '_'"
                )
        derived = tuple(hmac.digest(key.encode() if isinstance(key, str) else key, _SALT, "sha256") for key in keys)
        object.__setattr__(self, "_keys", derived)
        object.__setattr__(self, "_own", re.compile(re.escape(self.cookie or "") + "_[0-9a-f]{8}"))

    def sign(self, token: Token) -> str:
        """Return the token as cookies and headers carry it."""
        return f"{token}.{_signature(self._keys[0], str(token))}"

    def extract(self, cookies: Iterable[tuple[str, str]], header: str | None, *, now: float) -> Carried:
        """Return what a request carries. An empty value is none: some clients keep cookies that were deleted."""
        found = [(name, value) for name, value in cookies if name == self.cookie or self._own.fullmatch(name)]
        if self.cookie is None:
            found = []
        found = [(name, stripped) for name, value in found if (stripped := value.strip(' "'))]
        # Servers join the lines of a header in ways of their own.
        given = [("", stripped) for value in re.split("[,;]", header or "") if (stripped := value.strip())]
        too_many = len(found) > MAX_COOKIES or len(given) > MAX_VALUES
        tokens, merged, ignored = [], [], dict[str, None]()
        for name, value in (*islice(found, MAX_COOKIES), *islice(given, MAX_VALUES)):
            try:
                tokens.append(self._read(value, now))
            except InvalidToken as exc:
                ignored[str(exc)] = None
            else:
                if name not in ("", self.cookie):
                    merged.append(name)
        token = reduce(merge, tokens, None)
        if too_many and token is not None:
            token = replace(token, position=None, others=tuple(replace(other, position=None) for other in token.others))
        return Carried(token, tuple(merged), too_many, tuple(ignored))

    def _read(self, value: str, now: float) -> Token:
        text, _, signature = value.rpartition(".")
        if not any(hmac.compare_digest(_signature(key, text).encode(), signature.encode()) for key in self._keys):
            raise InvalidToken(_NOT_SIGNED)
        return Token.parse(text, identity=self.identity, now=now)

    def inject(self, token: Token, carried: Carried, *, wrote: bool, unique: str) -> Answer:
        """Return what the answer to a request tells that wrote, or saw more than it came with.

        `unique` is 8 hexadecimal digits that no other answer of these minutes has.
        """
        name, value = self.cookie or "", self.sign(token)
        return Answer(value, f"{name}_{unique}", carried.merged[:MAX_DELETED]) if wrote else Answer(value, name, ())


def _signature(key: bytes, text: str) -> str:
    return urlsafe_b64encode(hmac.digest(key, text.encode(), "sha256")[:_SIGNATURE]).decode()


def cookies_of(header: str) -> Iterator[tuple[str, str]]:
    """Return the names and values of a Cookie header. (http.cookies gives up at the first that it cannot read.)"""
    for pair in header.split(";"):
        name, _, value = pair.partition("=")
        yield name.strip(), value.strip()
