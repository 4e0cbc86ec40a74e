"""Middleware: what a request has seen follows its user into the next one; a deadline, and settings, for each request."""

from __future__ import annotations

from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache, partial
from http.cookies import Morsel
from typing import TYPE_CHECKING, Any, TypeVar

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.conf import settings
from django.core.signals import setting_changed
from django.utils.cache import patch_cache_control
from django.utils.module_loading import import_string

from ps_core._propagation import Propagator, cookies_of
from ps_core.consistency import MAX_AGE
from ps_core.context import block, deadline, forget_token, from_request, local_settings
from ps_core.routing import SAFE_METHODS
from ps_core.tags import tags
from ps_django.settings import current_settings
from ps_django.transaction import blocks_of_request, expect_blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from django.http import HttpRequest, HttpResponseBase

    from ps_core._propagation import Answer

__all__ = ["ConsistencyMiddleware", "DeadlineMiddleware", "LocalSettingsMiddleware", "TagsMiddleware", "exempt"]

V = TypeVar("V", bound="Callable[..., Any]")


def exempt(view: V) -> V:
    """Mark a view that `ConsistencyMiddleware` leaves alone: no token in or out, and its reads go where they go without it."""
    view.ps_exempt = True  # type: ignore[attr-defined]
    return view


class _Middleware:
    """Runs each request within a block, sync or async."""

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self.get_response = get_response
        self._async = iscoroutinefunction(get_response)
        if self._async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> Any:
        if self._async:
            return self._acall(request)
        with self.around(request) as leave:
            response = self.get_response(request)
            return leave(response) if leave else response

    async def _acall(self, request: HttpRequest) -> Any:
        with self.around(request) as leave:
            response = await self.get_response(request)
            return leave(response) if leave else response

    def around(self, request: HttpRequest) -> AbstractContextManager[Any]:
        """Return the block; what it yields, if anything, is given the response."""
        raise NotImplementedError


class ConsistencyMiddleware(_Middleware):
    """Let GET, HEAD and OPTIONS read from replicas, and each request see what its user's earlier ones wrote and read.

    How far the user has seen travels in signed cookies (and in a header, with `PS_DJANGO = {"HEADER": "X-PS-Token"}`). One is set
    when a request writes, or when a user who has one reads newer data. Put the middleware before everything that queries; what is
    behind it (sessions, authentication) reads from replicas, too.
    """

    @contextmanager
    def around(self, request: HttpRequest) -> Iterator[Any]:
        """Begin with what the user has seen, and tell it on."""
        propagator = current_propagator()
        cookies = _taken_out(request, propagator)

        def tell(response: HttpResponseBase) -> HttpResponseBase:
            if not getattr(request, "_ps_exempt", False) and (answer := inject()):
                _tell(response, answer, propagator)
            return response

        header = request.headers.get(propagator.header) if propagator.header else None
        reads = block(reading=request.method in SAFE_METHODS)
        with reads, blocks_of_request(), from_request(propagator, cookies, header) as inject:
            yield tell

    def process_view(self, request: HttpRequest, view: Any, args: Any, kwargs: Any) -> None:
        """Leave exempt views alone, and know the transactions in which others are run."""
        expect_blocks(view)
        if getattr(view, "ps_exempt", False) or getattr(getattr(view, "view_class", None), "ps_exempt", False):
            request._ps_exempt = True  # type: ignore[attr-defined]
            block(reading=False).__enter__()  # ends with the block around the request
            forget_token()


def _taken_out(request: HttpRequest, propagator: Propagator) -> list[tuple[str, str]]:
    """Take the token's cookies out of a request, and return them: what varies with cookies (`cache_page`) must not with these."""
    header = request.META.get("HTTP_COOKIE", "")
    taken = [(name, value) for name, value in cookies_of(header) if propagator.is_cookie(name)]
    if taken:
        pairs = map(str.strip, header.split(";"))
        request.META["HTTP_COOKIE"] = "; ".join(
            pair for pair in pairs if not propagator.is_cookie(pair.partition("=")[0].strip())
        )
        for name, _ in taken:
            request.COOKIES.pop(name, None)
    return taken


def _tell(response: HttpResponseBase, answer: Answer, propagator: Propagator) -> None:
    if propagator.header:
        response[propagator.header] = answer.value
        # A stored answer would give its user, or another one, an older token than they have.
        patch_cache_control(response, no_store=True)
    if propagator.cookie:
        for name in answer.deleted:
            _set_cookie(response, name, "", 0)
        _set_cookie(response, answer.cookie, answer.value, int(MAX_AGE))


def _set_cookie(response: Any, name: str, value: str, max_age: int) -> None:
    # A browser deletes a cookie only where these are as they were when it was set.
    response.set_cookie(
        name,
        value,
        max_age=max_age,
        path=settings.SESSION_COOKIE_PATH,
        domain=settings.SESSION_COOKIE_DOMAIN,
        secure=settings.SESSION_COOKIE_SECURE,
        httponly=True,
        samesite=settings.SESSION_COOKIE_SAMESITE,
    )
    if current_settings().cookie_partitioned:
        usual, partitioned = response.cookies[name], _Partitioned()
        partitioned.set(name, usual.value, usual.coded_value)
        partitioned.update(usual)
        response.cookies[name] = partitioned


class _Partitioned(Morsel[str]):
    """A cookie with an attribute that http.cookies has from Python 3.14 on, and Django's `set_cookie` not yet."""

    def OutputString(self, attrs: Any = None) -> str:  # noqa: N802 - its name in http.cookies
        return f"{super().OutputString(attrs)}; Partitioned"


@lru_cache(maxsize=1)
def current_propagator() -> Propagator:
    """Return what carries tokens by the project's settings."""
    options = current_settings()
    keys = [settings.SECRET_KEY, *filter(None, settings.SECRET_KEY_FALLBACKS)]
    return Propagator(keys=keys, cookie=options.cookie, header=options.header)


def _forget(*, setting: str = "", **_: Any) -> None:
    if setting in ("PS_DJANGO", "SECRET_KEY", "SECRET_KEY_FALLBACKS"):
        current_propagator.cache_clear()


setting_changed.connect(_forget)


class DeadlineMiddleware(_Middleware):
    """Bound the database work of each request: `PS_DJANGO = {"DEADLINE": "5s"}`. Without the setting it does nothing."""

    def around(self, request: HttpRequest) -> AbstractContextManager[Any]:
        """Begin the deadline."""
        seconds = current_settings().deadline
        return nullcontext() if seconds is None else deadline(seconds)


class LocalSettingsMiddleware(_Middleware):
    """Set the application's own settings in each transaction of a request, as row-level security by tenant needs them.

    `PS_DJANGO = {"LOCAL_SETTINGS": "shop.tenants.settings_of"}`, a function that is given the request and returns a dict such as
    `{"app.tenant": "42"}`.
    """

    def around(self, request: HttpRequest) -> AbstractContextManager[Any]:
        """Begin the settings."""
        function = current_settings().local_settings
        return local_settings({} if function is None else import_string(function)(request))


class TagsMiddleware(_Middleware):
    """Let each statement of a request tell its route and view, in a comment that PlanetScale's Insights reads (`ps_core.tags`).

    `PS_DJANGO = {"TAGS": {"application": "shop"}}` turns it on, and adds tags: strings, or functions of the request.
    """

    def around(self, request: HttpRequest) -> AbstractContextManager[Any]:
        """Begin the tags. The view is found later, so each statement asks."""
        given = current_settings().tags
        if given is None:
            return nullcontext()
        own = {name: partial(value, request) if callable(value) else value for name, value in given.items()}
        return tags(route=lambda: _match(request, "route"), controller=lambda: _match(request, "view_name"), **own)


def _match(request: HttpRequest, name: str) -> str | None:
    value: str | None = getattr(request.resolver_match, name, None)
    return value
