"""Middleware: what a request has seen follows its user into the next one; a deadline for each request."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

from asgiref.sync import iscoroutinefunction
from django.conf import settings
from django.core import signing
from django.utils.decorators import sync_and_async_middleware

from ps_core.consistency import MAX_AGE
from ps_core.context import deadline, use_token, using_replica

if TYPE_CHECKING:
    from django.http import HttpRequest, HttpResponseBase

    from ps_core.context import Tracker

__all__ = ["ConsistencyMiddleware", "DeadlineMiddleware"]

COOKIE: Final = "ps_token"
SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS", "QUERY"})
_SALT: Final = "ps_django.middleware"


@sync_and_async_middleware
def ConsistencyMiddleware(get_response: Any) -> Any:  # noqa: N802 - Django's users write it as a class
    """Let GET, HEAD and OPTIONS read from replicas, and each request see what its user's earlier ones wrote and read.

    How far the user has seen travels in a signed cookie; it is set only where it changed. Put it behind the session middleware
    and before everything that queries.
    """
    if iscoroutinefunction(get_response):

        async def middleware(request: HttpRequest) -> HttpResponseBase:
            with ExitStack() as stack:
                tracker, before = _enter(stack, request)
                response: HttpResponseBase = await get_response(request)
                _leave(response, tracker, before)
                return response

        return middleware

    def sync_middleware(request: HttpRequest) -> HttpResponseBase:
        with ExitStack() as stack:
            tracker, before = _enter(stack, request)
            response: HttpResponseBase = get_response(request)
            _leave(response, tracker, before)
            return response

    return sync_middleware


def _enter(stack: ExitStack, request: HttpRequest) -> tuple[Tracker, str | None]:
    cookie = request.COOKIES.get(COOKIE)
    text = None
    if cookie is not None:
        try:
            text = signing.TimestampSigner(salt=_SALT).unsign(cookie, max_age=int(MAX_AGE))
        except signing.BadSignature:
            text = ""  # logged as malformed
    tracker = stack.enter_context(use_token(text))
    if request.method in SAFE_METHODS:
        stack.enter_context(using_replica())
    return tracker, text


def _leave(response: Any, tracker: Tracker, before: str | None) -> None:
    token = tracker.token
    if token is None or str(token) == before:
        return
    response.set_cookie(
        COOKIE,
        signing.TimestampSigner(salt=_SALT).sign(str(token)),
        max_age=int(MAX_AGE),
        secure=settings.SESSION_COOKIE_SECURE,
        httponly=True,
        samesite="Lax",
    )


@sync_and_async_middleware
def DeadlineMiddleware(get_response: Any) -> Any:  # noqa: N802 - Django's users write it as a class
    """Bound the database work of each request: `PS_DJANGO = {"DEADLINE": "5s"}`. Without the setting it does nothing."""
    seconds = getattr(settings, "PS_DJANGO", {}).get("DEADLINE")
    if seconds is None:
        return get_response
    if iscoroutinefunction(get_response):

        async def middleware(request: HttpRequest) -> HttpResponseBase:
            with deadline(seconds):
                response: HttpResponseBase = await get_response(request)
                return response

        return middleware

    def sync_middleware(request: HttpRequest) -> HttpResponseBase:
        with deadline(seconds):
            response: HttpResponseBase = get_response(request)
            return response

    return sync_middleware
