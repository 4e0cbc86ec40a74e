"""A Django project on the lab, with the shop of docs/examples: settings are a process's, so all tests share it."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from ps_lab import Lab

EXAMPLES: Final = Path(__file__).parents[1] / "docs" / "examples"


@pytest.fixture(scope="session")
def site(ps_lab: Lab) -> Iterator[None]:
    """The site, set up and migrated: `migrate` is the proof that DDL takes the direct path by itself."""
    import django
    from django.conf import settings
    from django.core.management import call_command

    import ps_django

    sys.path.append(str(EXAMPLES))  # processes that a test starts get it from here
    settings.configure(
        DATABASES=ps_django.databases(ps_lab.url, bouncer="write-pool", replica_bouncer="read-pool", statement_timeout="2s"),
        DATABASE_ROUTERS=["ps_django.routers.ReplicaRouter"],
        INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "django.contrib.admin", "django_shop.shop"],
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        SECRET_KEY="tests",
        ALLOWED_HOSTS=["testserver"],
        ROOT_URLCONF="tests.ps_django.urls",
        MIDDLEWARE=["ps_django.middleware.ConsistencyMiddleware", "ps_django.middleware.DeadlineMiddleware"],
        USE_TZ=True,
    )
    django.setup()
    call_command("migrate", verbosity=0)
    ps_lab.wait_replicas_caught_up()
    yield
    from django.db import connections

    connections.close_all()
