"""Fixtures live in plugins, one resource each."""

pytest_plugins = ("tests.django_site",)
