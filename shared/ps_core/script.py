"""Several commands that travel in one simple-query message."""

from typing import Final

__all__ = ["NOTHING", "Script"]


class Script:
    """Several commands that travel in one message."""

    __slots__ = ("parts",)

    def __init__(self, *parts: bytes) -> None:
        self.parts = parts

    def head(self) -> bytes:
        """Return the script as it precedes a statement. The newline keeps it out of the line that an error message quotes."""
        return b";".join(self.parts) + b";\n" if self.parts else b""


NOTHING: Final = Script()
