"""Settings of Django's tests: two databases on the path, and with the backend, that `__main__` chose."""

import json
import os

DATABASES = json.loads(os.environ["SUITE_DATABASES"])
TEST_RUNNER = "suite_runner.Runner"
SECRET_KEY = "tests"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
USE_TZ = False
