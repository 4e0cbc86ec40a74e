"""WSGI and ASGI middleware: what a request has seen follows its user into the next one; a deadline for each request.

```python
app.add_middleware(ASGIMiddleware, keys=[key], deadline="5s")  # Starlette, FastAPI
app.wsgi_app = WSGIMiddleware(app.wsgi_app, keys=[key], deadline="5s")  # Flask
```

GET, HEAD, OPTIONS and QUERY may read from replicas, also in a declared transaction; everything else is on the primary. How far
a request has seen the database (the token) goes out with the response's headers, if it wrote, or came with a token and saw more.
What is written after that (while the body is streamed, in a background task) is not in it.
"""

from __future__ import annotations

import logging
import re
from contextlib import ExitStack, contextmanager
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from itsdangerous import BadSignature, Signer

from ps_core.consistency import MAX_AGE
from ps_core.context import deadline, reading, use_token, using_primary
from ps_core.errors import ConfigurationError
from ps_core.routing import SAFE_METHODS
from ps_core.tags import check_tags, tags
from ps_core.timeouts import Duration, parse_duration

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence

    from _typeshed.wsgi import StartResponse, WSGIEnvironment

    from ps_core.context import Tracker

    Message: TypeAlias = MutableMapping[str, Any]
    Headers: TypeAlias = list[tuple[str, str]]

__all__ = ["ASGIMiddleware", "WSGIMiddleware"]

_SALT: Final = b"ps_sqlalchemy.middleware"
_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, token: header and cookie names
_log = logging.getLogger("ps_sqlalchemy")


def _is_safe(request: Mapping[str, Any]) -> bool:
    return (request.get("method") or request.get("REQUEST_METHOD")) in SAFE_METHODS


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Middleware:
    """What both kinds have in common.

    Raises:
        ConfigurationError: a setting cannot work.
    """

    app: Any = field(kw_only=False)
    keys: Sequence[str | bytes] = field(repr=False)
    """What the token is signed with: the first signs, all are accepted. To change the key, put the new one in front."""
    cookie: str | None = "ps_token"
    """The name of the cookie that carries the token; None: no cookie."""
    header: str | None = None
    """The name of a header, of request and response, that carries it too (clients without cookies). It wins over the cookie."""
    secure: bool | None = None
    """The cookie's attribute Secure; None: where the request came over https, as far as the server can tell."""
    samesite: Literal["lax", "strict", "none"] = "lax"
    """The cookie's attribute SameSite."""
    max_age: Duration = MAX_AGE
    """For how long the client keeps the cookie; a token counts for 300 s at most."""
    identity: str | None = None
    """The branch that a token has to be of (`engine.topology.identity`); others are ignored. None: any, and its use decides."""
    deadline: Duration | None = None
    """Bounds the database work of each request, a streamed body and background tasks included; None: no bound."""
    deadline_header: str | None = None
    """The name of a request header ("800ms") that can make it shorter."""
    reads: Callable[[Mapping[str, Any]], bool] = _is_safe
    """Whether a request may read from replicas, from its ASGI scope or WSGI environ; by default, by its method."""
    tags: Mapping[str, str | Callable[[Mapping[str, Any]], str | None]] | None = None
    """What the statements of a request tell in a comment that PlanetScale's Insights reads (`ps_core.tags`), beside its route and
    controller (Starlette's and Flask's): strings, or functions of the ASGI scope or WSGI environ. None: no comment."""
    _signer: Signer = field(init=False, repr=False)
    _attributes: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        keys = () if isinstance(self.keys, (str, bytes)) else self.keys
        if not keys or not all(keys):
            raise ConfigurationError("keys: write a list of secret strings, the one that signs first, as in keys=[secret]")
        if self.cookie is None and self.header is None:
            raise ConfigurationError("cookie and header are both None: write the name of at least one that carries the token")
        for option in ("cookie", "header", "deadline_header"):
            name = getattr(self, option)
            if name is not None and not _NAME.fullmatch(name):
                raise ConfigurationError(f"{option}: {name!r} is no name for one: write letters, digits, '-' and '_'")
        if self.samesite not in ("lax", "strict", "none"):
            raise ConfigurationError(f"samesite: write 'lax', 'strict' or 'none', not {self.samesite!r}")
        if self.samesite == "none" and not self.secure:
            raise ConfigurationError("samesite='none': browsers want it together with secure=True: add that")
        max_age = parse_duration(self.max_age, name="max_age")
        if max_age is None or not 1 <= max_age <= MAX_AGE:
            raise ConfigurationError(f"max_age: write a duration from 1s to {MAX_AGE:g}s, for which a token counts")
        parse_duration(self.deadline, name="deadline")
        check_tags(self.tags or ())
        secrets = [key.encode() if isinstance(key, str) else key for key in reversed(keys)]  # a Signer's last key signs
        object.__setattr__(self, "_signer", Signer(secrets, salt=_SALT))
        object.__setattr__(
            self, "_attributes", f"Max-Age={int(max_age)}; Path=/; HttpOnly; SameSite={self.samesite.capitalize()}"
        )

    @contextmanager
    def _request(
        self, request: Mapping[str, Any], header: Callable[[str], str | None], scheme: str
    ) -> Iterator[Callable[[], Headers]]:
        """Do what holds for one request, and yield a function that returns the headers for its response."""
        with ExitStack() as stack:
            tracker = stack.enter_context(use_token(self._carried(header), identity=self.identity))
            stack.enter_context(reading() if self.reads(request) else using_primary())
            if self.tags is not None:
                own = {name: partial(value, request) if callable(value) else value for name, value in self.tags.items()}
                stack.enter_context(tags(route=lambda: _route(request)[0], controller=lambda: _route(request)[1], **own))
            if self.deadline is not None:
                stack.enter_context(deadline(self.deadline))
            asked = self.deadline_header and header(self.deadline_header)
            if asked:
                try:
                    stack.enter_context(deadline(asked))
                except ConfigurationError as exc:
                    _log.warning("ignored the header %s: %s", self.deadline_header, exc)
            yield lambda: self._headers(tracker, scheme)

    def _carried(self, header: Callable[[str], str | None]) -> str | None:
        """Return the token that the request carries."""
        signed = header(self.header) if self.header else None
        if not signed and self.cookie:
            signed = _cookie(header("cookie") or "", self.cookie)
        if not signed:
            return None
        try:
            # Not by time: the token has its own, which allows for the clocks of other machines.
            return self._signer.unsign(signed).decode()
        except BadSignature:
            _log.warning("ignored a consistency token: it was not signed with any of the keys")
            return None

    def _headers(self, tracker: Tracker, scheme: str) -> Headers:
        if not tracker.has_news:
            return []
        signed = self._signer.sign(str(tracker.token)).decode()
        headers = []
        if self.header:
            headers.append((self.header, signed))
        if self.cookie:
            secure = scheme == "https" if self.secure is None else self.secure
            headers.append(("Set-Cookie", f"{self.cookie}={signed}; {self._attributes}{'; Secure' if secure else ''}"))
        return headers


class ASGIMiddleware(_Middleware):
    """For ASGI applications. Other scopes than "http" pass through untouched.

    Around the whole application, responses to errors that nothing has handled carry the token, too:
    `asgi = ASGIMiddleware(app, keys=[key])`. (Starlette makes those outside of what `add_middleware` adds.)
    """

    __slots__ = ()

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        def header(name: str) -> str | None:
            wanted = name.lower().encode()
            # HTTP/2 splits Cookie.
            return "; ".join(value.decode("latin-1") for found, value in scope["headers"] if found.lower() == wanted) or None

        async def send_with_token(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [(name.lower().encode(), value.encode()) for name, value in headers()]
                message = {**message, "headers": [*message.get("headers", ()), *added]}
            await send(message)

        with self._request(scope, header, scope.get("scheme", "http")) as headers:
            await self.app(scope, receive, send_with_token)


class WSGIMiddleware(_Middleware):
    """For WSGI applications."""

    __slots__ = ()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""

        def header(name: str) -> str | None:
            value: str | None = environ.get(f"HTTP_{name.upper().replace('-', '_')}")
            return value

        def start_with_token(status: str, response_headers: Headers, *exc_info: Any) -> Callable[[bytes], object]:
            return start_response(status, [*response_headers, *headers()], *exc_info)

        with self._request(environ, header, environ["wsgi.url_scheme"]) as headers:
            # The body is made when this function is over. What holds for the request goes on in a copy, and ends with it.
            context = copy_context()
        body: Iterable[bytes] = context.run(self.app, environ, start_with_token)
        sends_file = environ.get("wsgi.file_wrapper")
        if isinstance(body, (list, tuple)) or (isinstance(sends_file, type) and isinstance(body, sends_file)):
            return body
        return _Body(body, context)


class _Body:
    """A response's body that is made in the request's context, wherever the server asks for it."""

    def __init__(self, body: Iterable[bytes], context: Context) -> None:
        self._body = body
        self._context = context
        self._iterator = context.run(iter, body)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return self._context.run(next, self._iterator)

    def close(self) -> None:
        close = getattr(self._body, "close", None)
        if close is not None:
            self._context.run(close)


def _route(request: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Return the route's template and the controller, as soon as the framework has found them; each statement asks."""
    if (rule := getattr(request.get("werkzeug.request"), "url_rule", None)) is not None:  # Flask
        return rule.rule, rule.endpoint
    endpoint: Any = request.get("endpoint")
    name = f"{endpoint.__module__}.{endpoint.__qualname__}" if hasattr(endpoint, "__qualname__") else None
    return getattr(request.get("route"), "path", None), name


def _cookie(header: str, name: str) -> str | None:
    """Return the first cookie of that name. (http.cookies gives up at the first one that it cannot read.)"""
    for pair in header.split(";"):
        found, _, value = pair.partition("=")
        if found.strip() == name:
            return value.strip()
    return None
