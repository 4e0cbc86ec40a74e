"""Middleware: what a request has seen follows its user into the next one; a deadline, and settings, for each request."""

from __future__ import annotations

from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.conf import settings
from django.core import signing
from django.utils.module_loading import import_string

from ps_core.consistency import MAX_AGE
from ps_core.context import block, deadline, forget_token, local_settings, use_token
from ps_core.routing import SAFE_METHODS
from ps_core.tags import tags
from ps_django.settings import current_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from django.http import HttpRequest, HttpResponseBase

    from ps_core.context import Tracker

__all__ = ["ConsistencyMiddleware", "DeadlineMiddleware", "LocalSettingsMiddleware", "TagsMiddleware", "exempt"]

_SALT: Final = "ps_django.middleware"

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

    How far the user has seen travels in a signed cookie (and in a header, with `PS_DJANGO = {"HEADER": "X-PS-Token"}`). It is set
    where the request wrote, or where its user, who has one, saw more. Put it before everything that queries; what is behind it
    (sessions, authentication) reads from replicas, too.
    """

    @contextmanager
    def around(self, request: HttpRequest) -> Iterator[Any]:
        """Begin with what the user has seen, and tell it on."""
        options = current_settings()
        signed = (request.headers.get(options.header) if options.header else None) or (
            request.COOKIES.get(options.cookie) if options.cookie else None
        )

        def tell(response: HttpResponseBase) -> HttpResponseBase:
            if tracker.has_news and not getattr(request, "_ps_exempt", False):
                self._tell(response, tracker)
            return response

        with use_token(None if signed is None else _unsigned(signed)) as tracker, block(reading=request.method in SAFE_METHODS):
            yield tell

    def process_view(self, request: HttpRequest, view: Any, args: Any, kwargs: Any) -> None:
        """Leave exempt views alone."""
        if getattr(view, "ps_exempt", False) or getattr(getattr(view, "view_class", None), "ps_exempt", False):
            request._ps_exempt = True  # type: ignore[attr-defined]
            block(reading=False).__enter__()  # ends with the block around the request
            forget_token()

    @staticmethod
    def _tell(response: Any, tracker: Tracker) -> None:
        options, signed = current_settings(), signing.TimestampSigner(salt=_SALT).sign(str(tracker.token))
        if options.header:
            response[options.header] = signed
        if options.cookie:
            response.set_cookie(
                options.cookie,
                signed,
                max_age=int(MAX_AGE),
                path=settings.SESSION_COOKIE_PATH,
                domain=settings.SESSION_COOKIE_DOMAIN,
                secure=settings.SESSION_COOKIE_SECURE,
                httponly=True,
                samesite="Lax",
            )


def _unsigned(signed: str) -> str:
    try:
        return signing.TimestampSigner(salt=_SALT).unsign(signed, max_age=int(MAX_AGE))
    except signing.BadSignature:
        return ""  # logged as malformed


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
