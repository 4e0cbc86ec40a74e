"""This project with Django: docs/django.md."""

import ps_django
from tests.compare.site import Site

NAME = "ps_django"
DISTRIBUTIONS = ("ps-postgres", "Django")
REMARK = "reads on replicas that have replayed what this user saw; sent again by the package, transactions by `run_transaction`"


def make(url: str, clients: int) -> Site:
    """Set it up."""
    databases = ps_django.databases(url, bouncer="write-pool", replica_bouncer="read-pool")
    return Site(
        {alias: {**entry, "CONN_MAX_AGE": None} for alias, entry in databases.items()},
        routers=["ps_django.routers.ReplicaRouter"],
        middleware=["ps_django.middleware.ConsistencyMiddleware"],
        transact="ps_django.transaction.run_transaction",
    )
