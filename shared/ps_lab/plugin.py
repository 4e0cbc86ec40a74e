"""The pytest fixture `ps_lab`: one lab for the whole run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ps_lab.lab import Lab

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ps_lab"]


@pytest.fixture(scope="session")
def ps_lab() -> Iterator[Lab]:
    """A running lab. Tests that break something bring it back."""
    with Lab() as lab:
        yield lab
