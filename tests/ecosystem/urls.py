"""The URLs of a site: its module's, and its package's own."""

import importlib

from django.urls import include, path

from tests.ecosystem.settings import NAME, PACKAGE

urlpatterns = [
    *importlib.import_module(f"tests.ecosystem.sites.{NAME}").urlpatterns,
    *(path(prefix, include(urls)) for prefix, urls in PACKAGE.urls.items()),
]
