"""The same as `ps_http._transport` for asyncio, by httpx2."""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

import httpx2

from ps_http._request import PATH
from ps_http._transport import IDLE, Answer, Lost, context_for, proxy_for

if TYPE_CHECKING:
    from ps_core._websocket import Target
    from ps_http._request import Request
    from ps_http._work import Place

__all__ = ["AsyncTransport", "transport_of"]

_KEPT: Final = 4


class _Progress:
    """How far a request has come, as httpx2 tells."""

    def __init__(self) -> None:
        self.lost: Any = None

    async def __call__(self, event: str, _: object) -> None:
        if event == "http11.send_request_headers.started":
            self.lost = Lost.while_sending
        elif event == "http11.send_request_body.complete":
            self.lost = Lost.while_waiting


class AsyncTransport:
    """Sends requests to one server, on one event loop."""

    def __init__(self, target: Target) -> None:
        self.target = target
        proxy = proxy_for(target.host, os.environ)
        self._client = httpx2.AsyncClient(
            verify=context_for(target),
            trust_env=False,
            proxy=None if proxy is None else httpx2.Proxy(f"http://{proxy[0]}:{proxy[1]}", headers=proxy[2]),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=_KEPT, keepalive_expiry=IDLE),
        )
        port = "" if target.https_port == 443 else f":{target.https_port}"
        self._url = f"https://{target.host}{port}{PATH}"

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def post(self, request: Request, *, connect: float, until: float | None) -> Answer:
        """Send a request and return the answer; see `ps_http._transport.Transport.post`.

        Raises:
            Lost: there is none.
        """
        progress = _Progress()
        try:
            async with asyncio.timeout(None if until is None else max(0.0, until - time.monotonic())):
                response = await self._client.post(
                    self._url,
                    content=request.body,
                    headers=request.headers,
                    timeout=httpx2.Timeout(None, connect=connect),
                    follow_redirects=False,
                    extensions={"trace": progress},
                )
        except (httpx2.HTTPError, OSError) as exc:
            cause = _cause(exc)
            raise (progress.lost(cause) if progress.lost else Lost.while_connecting(cause, self.target.host)) from None
        return Answer(response.status_code, response.content, response.headers.get("Neon-Request-Id"))


def _cause(error: Exception) -> Exception:
    """Return what the operating system or TLS said, where that is what a library's error was made of."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, ssl.SSLError | OSError):
            return found
        found = found.__cause__ or found.__context__
    return TimeoutError() if isinstance(error, httpx2.TimeoutException) else error


def transport_of(place: Place) -> AsyncTransport:
    """Return the transport of a place on the running event loop."""
    if place.aio is None:
        place.aio = WeakKeyDictionary()
    loop = asyncio.get_running_loop()
    transport = place.aio.get(loop)
    if transport is None:
        transport = place.aio[loop] = AsyncTransport(place.transport.target)
    found: AsyncTransport = transport
    return found
