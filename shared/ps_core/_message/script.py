"""Several commands that travel in one simple-query message."""

from __future__ import annotations

from typing import Final, Self

__all__ = ["NOTHING", "Script"]


class Script:
    """Several commands in one message."""

    __slots__ = ("_head", "_longer", "guard", "parts")

    def __init__(self, *parts: bytes, guard: int | None = None) -> None:
        self.parts = parts
        self.guard = guard
        """Which of the parts is the guard of a replica, counted from 0."""
        self._longer: dict[bytes, Script] = {}
        self._head = b";".join(parts) + b";\n" if parts else b""

    def head(self) -> bytes:
        """Return the script as it precedes a statement. The newline keeps it out of the line that an error message quotes."""
        return self._head

    def then(self, *parts: bytes) -> Script:
        """Return the same with more commands behind it. With one more, it is remembered: most messages begin alike."""
        if len(parts) != 1:
            return Script(*self.parts, *parts)
        longer = self._longer.get(parts[0])
        if longer is None:
            longer = self._longer[parts[0]] = Script(*self.parts, *parts)
        return longer

    @classmethod
    def set_local(cls, settings: dict[bytes, bytes]) -> Self:
        """Return SET LOCALs of name and literal."""
        return cls(*(b"SET LOCAL %s=%s" % (_quoted(name), literal) for name, literal in _in_order(settings)))

    @staticmethod
    def set_config(settings: dict[bytes, bytes]) -> bytes:
        """Return one SELECT that does the same, for where a message holds one command (the extended protocol)."""
        return b"SELECT " + b",".join(b"pg_catalog.set_config('%s',%s,true)" % pair for pair in _in_order(settings))


def _in_order(settings: dict[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    pairs = []
    for name, literal in settings.items():
        if name == b"transaction_timeout" and literal != b"'0'":
            # A timer that already runs (set for the role or the database) is re-armed only by way of zero.
            pairs.append((name, b"'0'"))
        pairs.append((name, literal))
    return pairs


def _quoted(name: bytes) -> bytes:
    # app.user is fine as a name, but its second half is a reserved word.
    return b".".join(b'"%s"' % part for part in name.split(b".")) if b"." in name else name


NOTHING: Final = Script()
