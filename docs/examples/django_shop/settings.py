"""The site's settings. What differs from any other Django site is marked: three settings.

The database comes from the environment: PS_URL (or DATABASE_URL), PS_BOUNCER, PS_REPLICA_BOUNCER, ...
"""

import os

import ps_django

DATABASES = ps_django.databases()  # first
for _entry in DATABASES.values():
    _entry["CONN_MAX_AGE"] = 600

DATABASE_ROUTERS = ["ps_django.routers.ReplicaRouter"]  # second

MIDDLEWARE = [
    "ps_django.middleware.ConsistencyMiddleware",  # third
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
INSTALLED_APPS = [
    "django_shop.shop",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
ROOT_URLCONF = "django_shop.urls"
WSGI_APPLICATION = "django_shop.wsgi.application"
LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "products"
STATIC_URL = "static/"
ALLOWED_HOSTS = ["localhost", "127.0.0.1"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
SECRET_KEY = os.environ["SHOP_SECRET_KEY"]
USE_TZ = True
