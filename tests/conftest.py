"""Fixtures live in plugins, one resource each; what holds for every test is here."""

from collections.abc import Iterator

import pytest

from ps_core.context import use_token

pytest_plugins = ("tests.django_site",)


@pytest.fixture(autouse=True)
def nothing_seen() -> Iterator[None]:
    """Begin each test without a token: what another has written is nothing that this one has seen."""
    with use_token(None):
        yield
