"""The site's settings. The database comes from the environment: PS_URL (or DATABASE_URL), PS_BOUNCER, PS_REPLICA_BOUNCER, ..."""

import secrets

import ps_django
from ps_demo.shop.templates import TEMPLATES  # noqa: F401 - a setting

DATABASES = ps_django.databases()
for _entry in DATABASES.values():
    _entry["CONN_MAX_AGE"] = None
DATABASE_ROUTERS = ["ps_django.routers.ReplicaRouter"]

INSTALLED_APPS = [
    "ps_demo.shop",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
ROOT_URLCONF = "ps_demo.shop.urls"
STATIC_URL = "static/"
ALLOWED_HOSTS = ["localhost", "127.0.0.1"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
SECRET_KEY = secrets.token_urlsafe(50)
USE_TZ = True
