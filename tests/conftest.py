"""Fixtures live in plugins, one resource each."""

pytest_plugins = ("ps_lab.plugin", "tests.django_site")
