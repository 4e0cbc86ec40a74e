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

from ps_core._propagation import Propagator, check_header, cookies_of, wanted_by_browsers
from ps_core.consistency import MAX_AGE
from ps_core.context import deadline, from_request, reading, using_primary
from ps_core.errors import ConfigurationError
from ps_core.routing import SAFE_METHODS
from ps_core.tags import check_tags, tags
from ps_core.timeouts import Duration, parse_bound, parse_duration

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence

    from _typeshed.wsgi import StartResponse, WSGIEnvironment

    from ps_core._propagation import Answer

    Message: TypeAlias = MutableMapping[str, Any]
    Headers: TypeAlias = list[tuple[str, str]]

__all__ = ["ASGIMiddleware", "WSGIMiddleware"]

_DOMAIN: Final = re.compile(r"[0-9A-Za-z.-]+")
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
    """What the token is signed with: the first signs, all are accepted. A new key is put behind on all servers, then in front."""
    cookie: str | None = "ps_token"
    """The name of the cookies that carry the token: this one for what was read, and this one with `_` and 8 hexadecimal digits
    behind it for what was written. None: no cookies. A name may begin with `__Host-` or `__Secure-`."""
    header: str | None = None
    """The name of a header, of request and response, that carries it too (clients without cookies)."""
    secure: bool | None = None
    """The cookies' attribute Secure; None: where the request came over https, as far as the server can tell."""
    samesite: Literal["lax", "strict", "none"] = "lax"
    """The cookies' attribute SameSite."""
    domain: str | None = None
    """The cookies' attribute Domain; None: the host that answers, and no other."""
    partitioned: bool = False
    """Whether the cookies have the attribute Partitioned, for sites that are embedded in others."""
    max_age: Duration = MAX_AGE
    """For how long the client keeps the cookies; a token counts for 300 s at most."""
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
    _propagator: Propagator = field(init=False, repr=False)
    _max_age: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        propagator = Propagator(keys=self.keys, cookie=self.cookie, header=self.header, identity=self.identity)
        if self.deadline_header is not None:
            check_header(self.deadline_header, name="deadline_header")
        if not callable(self.reads):
            raise ConfigurationError(f"reads: write a function of the request's scope or environ, not {self.reads!r}")
        for name, flags in (("secure", (None, False, True)), ("partitioned", (False, True))):
            if getattr(self, name) not in flags:
                raise ConfigurationError(f"{name}: write one of {flags}, not {getattr(self, name)!r}")
        if self.samesite not in ("lax", "strict", "none"):
            raise ConfigurationError(f"samesite: write 'lax', 'strict' or 'none', not {self.samesite!r}")
        cross_site = self.samesite == "none" or self.partitioned
        wanted = wanted_by_browsers(self.cookie or "", secure=bool(self.secure), domain=self.domain, cross_site=cross_site)
        if wanted:
            write = {"Secure": "secure=True", "no Domain": "no domain"}
            raise ConfigurationError(
                f"cookie: browsers take {self.cookie!r} (samesite={self.samesite!r}, partitioned={self.partitioned}) only with"
                f" {' and '.join(wanted)}: write {' and '.join(write[each] for each in wanted)}"
            )
        if self.domain is not None and not _DOMAIN.fullmatch(self.domain):
            raise ConfigurationError(f"domain: write a host's name, as in 'example.org', not {self.domain!r}")
        max_age = parse_bound(self.max_age, name="max_age")
        if not 1 <= max_age <= MAX_AGE:
            raise ConfigurationError(f"max_age: write a duration from 1s to {MAX_AGE:g}s, for which a token counts")
        parse_duration(self.deadline, name="deadline")
        check_tags(self.tags or {})
        object.__setattr__(self, "_propagator", propagator)
        object.__setattr__(self, "_max_age", int(max_age))

    @contextmanager
    def _request(
        self, request: Mapping[str, Any], header: Callable[[str], str | None], scheme: str
    ) -> Iterator[Callable[[], Headers]]:
        """Do what holds for one request, and yield a function that returns the headers for its response."""
        with ExitStack() as stack:
            stack.enter_context(reading() if self.reads(request) else using_primary())
            cookies = cookies_of(header("cookie") or "") if self.cookie else ()
            inject = stack.enter_context(from_request(self._propagator, cookies, header(self.header) if self.header else None))
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
                    _log.warning("ignored the header %s: %s: see %s", self.deadline_header, exc, exc.url)
            yield lambda: self._headers(inject(), scheme)

    def _headers(self, answer: Answer | None, scheme: str) -> Headers:
        if answer is None:
            return []
        # A stored answer would give its user, or another one, an older token than they have.
        headers = [(self.header, answer.value), ("Cache-Control", "no-store")] if self.header else []
        if self.cookie:
            secure = scheme == "https" if self.secure is None else self.secure
            # A browser deletes a cookie only where these are as they were when it was set.
            attributes = f"Path=/; HttpOnly; SameSite={self.samesite.capitalize()}"
            attributes += f"; Domain={self.domain}" if self.domain else ""
            attributes += "; Secure" if secure else ""
            attributes += "; Partitioned" if self.partitioned else ""
            headers += [("Set-Cookie", f"{name}=; Max-Age=0; {attributes}") for name in answer.deleted]
            headers.append(("Set-Cookie", f"{answer.cookie}={answer.value}; Max-Age={self._max_age}; {attributes}"))
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
