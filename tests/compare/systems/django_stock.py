"""Stock Django: one database on the primary's bouncer, persistent connections that each request tests.

https://docs.djangoproject.com/en/stable/ref/databases/#persistent-connections (CONN_MAX_AGE and CONN_HEALTH_CHECKS) and, for a
transaction pooler, #transaction-pooling-server-side-cursors.
"""

from typing import Any

from tests.compare.site import Site
from tests.compare.system import Side, bouncer
from tests.stock import django_alias

NAME = "Django, `CONN_HEALTH_CHECKS`"
DISTRIBUTIONS = ("Django",)
REMARK = "reads on the primary; each request tests its connection first"


def database(url: str, side: Side) -> dict[str, Any]:
    """Return an entry of DATABASES."""
    return {**django_alias(bouncer(url, side)), "CONN_MAX_AGE": None, "CONN_HEALTH_CHECKS": True}


def make(url: str, clients: int) -> Site:
    """Set it up."""
    return Site({"default": database(url, "primary")})
