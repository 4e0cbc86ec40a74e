"""Django with django-multidb-router: its pinning router and its middleware, with its default of 15 s.

https://github.com/jbalogh/django-multidb-router#pinningreplicarouter
"""

from tests.compare.site import Site
from tests.compare.systems.django_stock import database

NAME = "django-multidb-router, pinning"
DISTRIBUTIONS = ("django-multidb-router", "Django")
REMARK = "reads on replicas, but for 15 s after a user's write; each request tests its connections first"


def make(url: str, clients: int) -> Site:
    """Set it up."""
    return Site(
        {"default": database(url, "primary"), "replica": database(url, "replica")},
        routers=["multidb.PinningReplicaRouter"],
        middleware=["multidb.middleware.PinningRouterMiddleware"],
        REPLICA_DATABASES=["replica"],
    )
