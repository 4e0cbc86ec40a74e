"""The blocks of code of a page."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"

_BLOCK = re.compile(
    r"^```(?:\{code-block\} )?(?P<language>\w+)\n(?::caption: (?P<caption>[^\n]*)\n)?(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One of them."""

    language: str
    caption: str
    """The name of a file, or of a terminal; "" where there is none."""
    text: str
    line: int
    """Where its text begins in the page, from 1 on."""


def blocks_of(page: Path) -> list[Block]:
    """Return the blocks of a page, in their order."""
    text = page.read_text()
    return [
        Block(
            language=found["language"],
            caption=found["caption"] or "",
            text=found["text"],
            line=text.count("\n", 0, found.start("text")) + 1,
        )
        for found in _BLOCK.finditer(text)
    ]
