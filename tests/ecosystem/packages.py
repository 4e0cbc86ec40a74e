"""The packages, and what their sites need: a table."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A package of Django's, or several that are used together."""

    distributions: tuple[str, ...]
    does: str
    """What its site does, for the page."""
    ci: bool = True
    """Whether CI runs it."""
    apps: tuple[str, ...] = ()
    middleware: tuple[str, ...] = ()
    urls: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    differs: dict[str, Any] = field(default_factory=dict)
    """What comes out otherwise on ours than on stock, as it has to."""
    write: str = ""
    """What has to be set on ours alone, for the page."""


PACKAGES = {
    "rest_framework": Package(
        distributions=("djangorestframework", "django-filter"),
        does="an API: objects made, changed and deleted by POST, PATCH and DELETE; lists filtered, searched, ordered and paged",
        apps=("rest_framework", "django_filters"),
        settings={
            "REST_FRAMEWORK": {
                "DEFAULT_AUTHENTICATION_CLASSES": ["rest_framework.authentication.SessionAuthentication"],
                "DEFAULT_PERMISSION_CLASSES": [],
            }
        },
    ),
    "allauth": Package(
        distributions=("django-allauth",),
        does="sign-up, the mail's link confirmed, log-out, log-in, a new password",
        apps=("allauth", "allauth.account"),
        middleware=("allauth.account.middleware.AccountMiddleware",),
        urls={"accounts/": "allauth.urls"},
        settings={
            "AUTHENTICATION_BACKENDS": ["allauth.account.auth_backends.AuthenticationBackend"],
            "ACCOUNT_EMAIL_VERIFICATION": "mandatory",
            "ACCOUNT_LOGOUT_REDIRECT_URL": "/accounts/login/",
            "ACCOUNT_RATE_LIMITS": False,
        },
    ),
    "simple_history": Package(
        distributions=("django-simple-history",),
        does="rows made, changed and deleted by requests, each with a row of history and its user; the history shown, `as_of`, reverted",
        apps=("simple_history",),
        middleware=("simple_history.middleware.HistoryRequestMiddleware",),
    ),
    "debug_toolbar": Package(
        distributions=("django-debug-toolbar",),
        does="its SQL panel of a GET and of a POST: the statements by alias, and a plan (`EXPLAIN ANALYZE`)",
        apps=("debug_toolbar",),
        middleware=("debug_toolbar.middleware.DebugToolbarMiddleware",),
        urls={"__debug__/": "debug_toolbar.urls"},
        settings={"DEBUG": True, "INTERNAL_IPS": ["127.0.0.1"]},
        differs={"get": {"replica": "2", "plan": "replica"}},
    ),
    "pghistory": Package(
        distributions=("django-pghistory", "django-pgtrigger"),
        does="triggers that record each insert, update and delete, with the request's context, in autocommit and in transactions",
        apps=("pgtrigger", "pghistory"),
        middleware=("pghistory.middleware.HistoryMiddleware",),
    ),
    "sentry": Package(
        distributions=("sentry-sdk",),
        does="a trace of each request with its statements as spans, and an event of an error with them as breadcrumbs",
    ),
}
