"""Stock Django: one database on the primary's bouncer, persistent connections that each request tests.

https://docs.djangoproject.com/en/stable/ref/databases/#persistent-connections (CONN_MAX_AGE and CONN_HEALTH_CHECKS) and, for a
transaction pooler, #transaction-pooling-server-side-cursors.
"""

from typing import Any

from tests.compare.site import Site
from tests.compare.system import Endpoint, libpq

NAME = "Django, `CONN_HEALTH_CHECKS`"
DISTRIBUTIONS = ("Django",)
REMARK = "reads on the primary; each request tests its connection first"


def database(url: str, endpoint: Endpoint) -> dict[str, Any]:
    """Return an entry of DATABASES."""
    params = libpq(url, endpoint)
    names = {"NAME": "dbname", "USER": "user", "PASSWORD": "password", "HOST": "host", "PORT": "port"}
    return {
        "ENGINE": "django.db.backends.postgresql",
        **{name: str(params.pop(key)) for name, key in names.items()},
        "OPTIONS": params,
        "CONN_MAX_AGE": None,
        "CONN_HEALTH_CHECKS": True,
        "DISABLE_SERVER_SIDE_CURSORS": True,
    }


def make(url: str, clients: int) -> Site:
    """Set it up."""
    return Site({"default": database(url, "primary")})
