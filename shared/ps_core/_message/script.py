"""Several commands that travel in one simple-query message."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["NOTHING", "Script", "Setting"]


class Setting(NamedTuple):
    """A setting of one transaction, as it is written in SQL."""

    name: bytes
    literal: bytes
    """Its value, as `set_config` takes it."""
    members: bytes | None = None
    """What SET takes in its place: the members of a list."""
    by_function: bool = False
    """Only `set_config` gives it this value exactly."""


class Script:
    """Several commands in one message."""

    __slots__ = ("_longer", "guard", "head", "parts", "tail")

    def __init__(self, *parts: bytes, guard: int | None = None) -> None:
        self.parts = parts
        self.guard = guard
        """Which of the parts is the guard of a replica, counted from 0."""
        self._longer: dict[bytes, Script] = {}
        joined = b";".join(parts)
        self.head = joined + b";\n" if parts else b""
        """The script as it precedes a statement. The newline keeps it out of the line that an error message quotes."""
        self.tail = b"\n;" + joined if parts else b""
        """The script as it follows a statement, on a line of its own: the user's text may end in a comment."""

    def then(self, *parts: bytes) -> Script:
        """Return the same with more commands behind it. With one more, it is remembered: most messages begin alike."""
        if len(parts) != 1:
            return Script(*self.parts, *parts)
        longer = self._longer.get(parts[0])
        if longer is None:
            longer = self._longer[parts[0]] = Script(*self.parts, *parts)
        return longer

    @classmethod
    def set_local(cls, settings: Iterable[Setting]) -> Self:
        """Return SET LOCALs, which take no snapshot: modes of the transaction can still be set behind them."""
        return cls(*(_set_config((one,)) if one.by_function else _set_local(one) for one in _in_order(settings)))

    @staticmethod
    def set_config(settings: Iterable[Setting], *, local: bool = True) -> bytes:
        """Return one SELECT that does the same, for where a message holds one command (the extended protocol).

        Not `local`: for the session.
        """
        return _set_config(_in_order(settings), local=local)


def _set_local(setting: Setting) -> bytes:
    return b"SET LOCAL %s=%s" % (_quoted(setting.name), setting.members or setting.literal)


def _set_config(settings: Iterable[Setting], *, local: bool = True) -> bytes:
    until = b"true" if local else b"false"
    return b"SELECT " + b",".join(b"pg_catalog.set_config('%s',%s,%s)" % (one.name, one.literal, until) for one in settings)


def _in_order(settings: Iterable[Setting]) -> Iterator[Setting]:
    for setting in settings:
        if setting.name == b"transaction_timeout" and setting.literal != b"'0'":
            # A timer that already runs (set for the role or the database) is re-armed only by way of zero.
            yield Setting(setting.name, b"'0'")
        yield setting


def _quoted(name: bytes) -> bytes:
    # app.user is fine as a name, but its second half is a reserved word.
    return b".".join(b'"%s"' % part for part in name.split(b".")) if b"." in name else name


NOTHING: Final = Script()
