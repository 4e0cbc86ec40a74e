"""Users of a Django site: their requests go through its WSGI application, in the same thread, with cookies like a browser's."""

import sys
import threading
from collections.abc import Sequence
from http.cookies import SimpleCookie
from typing import Any
from wsgiref.util import setup_testing_defaults

import django
from django.conf import settings
from django.core.signals import got_request_exception
from django.core.wsgi import get_wsgi_application


class Site:
    """A Django site with these settings. One in a process; each thread is a user with cookies of its own."""

    def __init__(
        self,
        databases: dict[str, dict[str, Any]],
        *,
        routers: Sequence[str] = (),
        middleware: Sequence[str] = (),
        transact: str = "tests.compare.views.in_atomic",
        **more: object,
    ) -> None:
        settings.configure(
            DATABASES=databases,
            DATABASE_ROUTERS=list(routers),
            MIDDLEWARE=list(middleware),
            TRANSACT=transact,
            ROOT_URLCONF="tests.compare.views",
            ALLOWED_HOSTS=["*"],
            SECRET_KEY="for the comparison only",
            USE_TZ=True,
            LOGGING_CONFIG=None,
            **more,
        )
        django.setup()
        self._application: Any = get_wsgi_application()
        self._user = threading.local()
        got_request_exception.connect(self._note, weak=False)

    def read(self, account: int) -> bool:
        """Read a balance; return whether a replica answered."""
        return self._request("GET", f"/account/{account}")

    def read_own(self, reference: int) -> bool:
        """Look for a transfer; return whether it was found."""
        return self._request("GET", f"/transfer/{reference}")

    def transfer(self, reference: int, source: int, target: int, amount: int) -> None:
        """Move money between two accounts, and note it."""
        self._request("POST", f"/transfer/{reference}/{source}/{target}/{amount}")

    def _request(self, method: str, path: str) -> bool:
        # For ever: no user here lives for as long as a cookie.
        cookies: SimpleCookie = self._user.__dict__.setdefault("cookies", SimpleCookie())
        environ: dict[str, Any] = {
            "REQUEST_METHOD": method,
            "PATH_INFO": path,
            "HTTP_COOKIE": cookies.output(attrs=[], header="", sep=";").strip(),
        }
        setup_testing_defaults(environ)
        self._user.failure = None

        def start_response(status: str, headers: list[tuple[str, str]], *_: object) -> None:
            self._user.status = status
            for name, value in headers:
                if name == "Set-Cookie":
                    cookies.load(value)
            for name in [name for name, morsel in cookies.items() if str(morsel["max-age"]) == "0"]:
                del cookies[name]

        response = self._application(environ, start_response)
        body = b"".join(response)
        response.close()
        if self._user.status != "200 OK":
            raise self._user.failure or RuntimeError(self._user.status)
        return body == b"True"

    def _note(self, **_: object) -> None:
        """Keep what a view raised: the user is only told "500"."""
        self._user.failure = sys.exc_info()[1]
