"""Settings of Django's tests: those that come with them, with the two databases that `__main__` chose."""

import json
import os

from test_sqlite import *  # type: ignore[import-not-found]  # noqa: F403 - beside runtests.py

DATABASES = json.loads(os.environ["SUITE_DATABASES"])
TEST_RUNNER = "suite_runner.Runner"
if any(entry["ENGINE"] == "ps_django.backend" for entry in DATABASES.values()):
    DATABASE_ROUTERS = ["ps_django.routers.ReplicaRouter"]  # with what it changes of Django's ORM
