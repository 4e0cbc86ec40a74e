"""Settings of a site with one package: the name is in SITE, and where its database is, in STOCK or as ps_django reads it."""

import json
import os

import ps_django
from tests.ecosystem.packages import PACKAGES

NAME = os.environ["SITE"]
PACKAGE = PACKAGES[NAME]
STOCK = "STOCK" in os.environ

if STOCK:
    stock = PACKAGE.engines[0] if PACKAGE.engines else "django.db.backends.postgresql"
    DATABASES = {"default": {"ENGINE": stock, **json.loads(os.environ["STOCK"])}}
else:
    DATABASES = ps_django.databases(engine=PACKAGE.engines[1]) if PACKAGE.engines else ps_django.databases()
DATABASE_ROUTERS = [*([] if STOCK else ["ps_django.routers.ReplicaRouter"]), *PACKAGE.routers]
for entry in DATABASES.values():
    entry["CONN_MAX_AGE"] = 3600

INSTALLED_APPS = [
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    *PACKAGE.apps,
    "tests.ecosystem.site.Site",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    *PACKAGE.middleware,
]
if not STOCK:
    MIDDLEWARE.insert(0, "ps_django.middleware.ConsistencyMiddleware")
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                f"django.{name}"
                for name in (
                    "template.context_processors.request",
                    "contrib.auth.context_processors.auth",
                    "contrib.messages.context_processors.messages",
                )
            ]
        },
    }
]
ROOT_URLCONF = "tests.ecosystem.urls"
MIGRATION_MODULES = {"site": "migrations_of_site"}
ALLOWED_HOSTS = ["*"]
SECRET_KEY = "tests"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
EMAIL_BACKEND = "django.core.mail.backends.locmem.EmailBackend"
STATIC_URL = "static/"
USE_TZ = True
# What a password costs is not what is looked at.
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
# Server errors are printed, so that a test that fails tells why.
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "loggers": {"django.request": {"handlers": ["console"], "level": "ERROR", "propagate": False}},
}

globals().update(PACKAGE.settings, **({} if STOCK else PACKAGE.settings_of_ours))
