"""How a user's token travels from one request to the next, so that no answer that arrives late sets it back.

Answers overtake each other. With one cookie, the answer that the browser reads last wins, and an older token replaces a newer
one. So an answer that wrote sets a cookie of a name of its own, to the maximum of what its request carried and of what it saw.
The next request takes the maximum of all, and the next answer that wrote deletes those that it has merged. An answer that only
read, and saw more, sets one cookie of a fixed name: an older answer may replace what was read there, never what was written.

Pure; `ps_core.context.from_request` is the block around a request.
"""

from __future__ import annotations

import hmac
import math
import re
from base64 import urlsafe_b64encode
from dataclasses import dataclass, field, replace
from functools import reduce
from http.cookies import Morsel
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ps_core.consistency import InvalidToken, Token, joined, merge, parts_of
from ps_core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = [
    "HEADER",
    "MAX_COOKIES",
    "MAX_DELETED",
    "MAX_VALUES",
    "Answer",
    "Carried",
    "Propagator",
    "check_header",
    "cookies_of",
    "wanted_by_browsers",
]

MAX_COOKIES: Final = 32
"""Cookies with tokens that count in one request. Where it has more, it reads on the primary, which has all that any of them can
name."""
MAX_VALUES: Final = 8
"""In the header of one request; the same holds."""
MAX_DELETED: Final = 16
"""By one answer."""

COOKIE: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}")  # RFC 9110, token: the names of headers and cookies
HEADER: Final = re.compile(r"[0-9A-Za-z-]{1,64}")
"""Servers drop the headers of a request that have other characters: `A_B` and `A-B` are one in WSGI and CGI."""
_NOT_SIGNED: Final = "it was not signed with any of the keys"
_SALT: Final = b"ps_core.token"
_SIGNATURE: Final = 12
"""Bytes of HMAC-SHA256 that are kept: 96 bits, in 16 characters."""


def check_header(value: object, *, name: str) -> None:
    """Refuse what is no name of a header of requests.

    Raises:
        ConfigurationError: see there.
    """
    if not isinstance(value, str) or not HEADER.fullmatch(value):
        raise ConfigurationError(f"{name}: {value!r} is no name for one: write letters, digits and '-'")


class Carried(NamedTuple):
    """What a request came with."""

    token: Token | None = None
    """The maximum of all that count; without positions where there are too many."""
    merged: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """The cookies with a name of their own of which all is in it, and the branches that each names."""
    ignored: tuple[str, ...] = ()
    """Why values do not count, each reason once."""


class Answer(NamedTuple):
    """What an answer tells its user."""

    value: str
    """The token, signed: at most 64 characters, and 48 for each further database, of which there are at most seven."""
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
    """What tokens are signed with: the first signs, all are accepted. A new key is put behind on all servers, then in front."""
    cookie: str | None
    """The name of the cookie of what was read; those of what was written have `_` and 8 hexadecimal digits behind it."""
    header: str | None = None
    """The name of the header of requests and responses; it may hold several values, with commas between them."""
    identity: str | None = None
    """The branch that a token has to be of; None: any."""
    _keys: tuple[bytes, ...] = field(init=False, repr=False)
    _own: re.Pattern[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        keys: Sequence[Any] = () if isinstance(self.keys, (str, bytes)) else self.keys
        if not keys or not all(key and isinstance(key, (str, bytes)) for key in keys):
            raise ConfigurationError("keys: write a list of secret strings, the one that signs first, as in keys=[secret]")
        if self.cookie is None and self.header is None:
            raise ConfigurationError("cookie and header are both None: write the name of at least one that carries the token")
        cookie: Any = self.cookie
        if cookie is not None and (not isinstance(cookie, str) or not COOKIE.fullmatch(cookie) or Morsel().isReservedKey(cookie)):
            raise ConfigurationError(
                f"cookie: {self.cookie!r} is no name for one: write up to 32 letters, digits, '-', '_', and no attribute's name"
            )
        if self.header is not None:
            check_header(self.header, name="header")
        if not isinstance(self.identity, str | None):
            raise ConfigurationError(
                f"identity: write a branch's name, as in identity=engine.topology.identity, not {self.identity!r}"
            )
        derived = tuple(hmac.digest(key.encode() if isinstance(key, str) else key, _SALT, "sha256") for key in keys)
        object.__setattr__(self, "_keys", derived)
        object.__setattr__(self, "_own", re.compile(re.escape(self.cookie or "") + "_[0-9a-f]{8}"))

    def is_cookie(self, name: str) -> bool:
        """Return whether a cookie of that name carries a token."""
        return self.cookie is not None and (name == self.cookie or self._own.fullmatch(name) is not None)

    def sign(self, token: Token) -> str:
        """Return the token as cookies and headers carry it."""
        return f"{token}.{_signature(self._keys[0], str(token))}"

    def extract(self, cookies: Iterable[tuple[str, str]], header: str | None, *, now: float) -> Carried:
        """Return what a request carries. An empty value is none: some clients keep cookies that were deleted."""
        found = [(name, value) for name, value in cookies if self.is_cookie(name)]
        # Servers join the lines of a header in ways of their own.
        found += [("", value) for value in re.split("[,;]", header or "")]
        parts, merged, ignored, counts = list[Token](), [], dict[str, None](), {True: 0, False: 0}
        for name, value in found:
            if not (stripped := value.strip(' "')):
                continue
            try:
                text, token = self._read(stripped, now)
            except InvalidToken as exc:
                ignored[str(exc)] = None
                continue
            parts += parts_of(token)
            counts[name == ""] += 1
            if name not in ("", self.cookie) and str(token) == text:
                merged.append((name, tuple(part.identity for part in parts_of(token))))
        too_many = counts[False] > MAX_COOKIES or counts[True] > MAX_VALUES
        return Carried(_demanded(parts, now, pinned=too_many), tuple(merged), tuple(ignored))

    def _read(self, value: str, now: float) -> tuple[str, Token]:
        text, _, signature = value.rpartition(".")
        if not any(hmac.compare_digest(_signature(key, text).encode(), _bytes(signature)) for key in self._keys):
            raise InvalidToken(_NOT_SIGNED)
        # It is from one of ours, whatever its clock says.
        return text, Token.parse(text, identity=self.identity, now=now, skew=math.inf)

    def inject(self, token: Token, carried: Carried, *, wrote: bool, unique: str) -> Answer:
        """Return what the answer to a request tells that wrote, or saw more than it came with.

        What it came with may have no known position. An answer that has learned one must not be overtaken, as one that wrote.

        `unique` is 8 hexadecimal digits that no other answer of these minutes has.
        """
        value = self.sign(token)
        if not (wrote or _pins(carried.token) - _pins(token)):
            return Answer(value, self.cookie or "", ())
        held = {part.identity for part in parts_of(token)}
        covered = [name for name, identities in carried.merged if held.issuperset(identities)]
        # Answers that overlap delete different ones.
        first = int(unique, 16) % max(len(covered), 1)
        return Answer(value, f"{self.cookie or ''}_{unique}", tuple((covered[first:] + covered[:first])[:MAX_DELETED]))


def _demanded(parts: Sequence[Token], now: float, *, pinned: bool) -> Token | None:
    """Return what all these demand together."""
    of_branches = []
    for identity in dict.fromkeys(part.identity for part in parts):
        of_branch = [part for part in parts if part.identity == identity]
        token = reduce(merge, of_branch, None)
        assert token is not None
        if pinned or token.position is None:
            # A pin must not end before what else is known of the branch.
            token = replace(token, position=None, at=max(part.at for part in of_branch))
        of_branches.append(token)
    demanded = joined(of_branches)
    return demanded and demanded.taken_by(now)


def _pins(token: Token | None) -> set[str]:
    return set() if token is None else {part.identity for part in parts_of(token) if part.position is None}


def _signature(key: bytes, text: str) -> str:
    return urlsafe_b64encode(hmac.digest(key, _bytes(text), "sha256")[:_SIGNATURE]).decode()


def _bytes(text: str) -> bytes:
    return text.encode(errors="replace")


def cookies_of(header: str) -> Iterator[tuple[str, str]]:
    """Return the names and values of a Cookie header. (http.cookies gives up at the first that it cannot read.)"""
    for pair in re.split("[;,]", header):  # WSGI servers join two headers with a comma
        name, _, value = pair.partition("=")
        yield name.strip(), value.strip()


def wanted_by_browsers(
    name: str, *, secure: bool, path: str | None = "/", domain: str | None = None, cross_site: bool = False
) -> list[str]:
    """Return what a browser wants of a cookie that it would drop silently: "Secure", "Path=/", "no Domain".

    `cross_site`: SameSite=None, or Partitioned. The prefixes are of RFC 6265bis; browsers compare them without case.
    """
    prefix = name.lower()
    wanted = []
    if not secure and (cross_site or prefix.startswith(("__secure-", "__host-", "__http-"))):
        wanted.append("Secure")
    if prefix.startswith("__host-"):
        wanted += ["Path=/"] if path != "/" else []
        wanted += ["no Domain"] if domain is not None else []
    return wanted
