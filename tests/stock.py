"""An endpoint as stock psycopg and stock Django take it: for what is compared with this project."""

from dataclasses import replace
from typing import Any

import ps_core
from ps_core import Timeouts
from ps_core.topology import Endpoint


def libpq(endpoint: Endpoint) -> dict[str, Any]:
    """Return psycopg's parameters: keepalives and the time to connect are ours, and behind a pooler nothing is prepared.

    No statement timeout: the bouncers refuse it as a start-up parameter, and a SET would be another client's a moment later.
    psycopg prepares nothing, as its documentation says for PgBouncer before 1.22:
    https://www.psycopg.org/psycopg3/docs/advanced/prepare.html#using-prepared-statements-with-pgbouncer
    """
    params: dict[str, Any] = dict(ps_core.conninfo(replace(endpoint, timeouts=Timeouts())))
    return params | ({"prepare_threshold": None} if endpoint.pooled else {})


def django_alias(endpoint: Endpoint) -> dict[str, Any]:
    """Return an entry of DATABASES on those parameters."""
    params = libpq(endpoint)
    names = {"NAME": "dbname", "USER": "user", "PASSWORD": "password", "HOST": "host", "PORT": "port"}
    return {
        "ENGINE": "django.db.backends.postgresql",
        **{name: str(params.pop(key)) for name, key in names.items()},
        "OPTIONS": params,
        "DISABLE_SERVER_SIDE_CURSORS": True,
    }
