"""Mutants that no test has to notice, and why: by file, function or class, and what is changed."""

from typing import Final

SURVIVORS: Final[dict[tuple[str, str, str], str]] = {}
