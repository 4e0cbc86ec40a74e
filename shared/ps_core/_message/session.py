"""The session that a transaction pooler does not keep, held on the client's side: what holds, and what a rollback undoes. Pure.

What a text sets is read by `ps_core._message.change`. From then on it travels with every transaction, as SET LOCAL: each setting
under the role under which it was set, the role in force last.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from ps_core._message.change import MODES, ROLE, SEARCH_PATH, read_savepoints
from ps_core.timeouts import SETTINGS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from ps_core._message.change import Change

__all__ = ["Assignment", "Held", "Session", "Settings", "split_list"]

REST: Final = "*"
"""All settings but the role, which RESET ALL leaves alone."""
_LISTS: Final = frozenset({SEARCH_PATH, "temp_tablespaces", "local_preload_libraries", "session_preload_libraries"})
"""GUC_LIST_QUOTE: what SET takes as several values, and `set_config` as one text."""
_TIMEOUTS: Final = {name: field for field, name in SETTINGS.items()}
_MAY_BE_MISSING: Final = frozenset({*_TIMEOUTS, "application_name"})
"""What changes neither what a statement sees nor what it may: it may run without."""
_LIST_ITEM: Final = re.compile(r'\s*(?:"((?:[^"]|"")*)"|([^\s",]+))\s*(,|\Z)')


def split_list(value: str) -> tuple[str, ...] | None:
    """Return the names in a list as PostgreSQL's settings hold it ("$user", public); None: it is no list.

    As SplitIdentifierString does: what stands without quotes is in lower case.
    """
    if not value.strip():
        return ()
    items, at, separator = [], 0, ","
    while separator and (match := _LIST_ITEM.match(value, at)):
        quoted, plain, separator = match.groups()
        items.append(plain.lower() if quoted is None else quoted.replace('""', '"'))
        at = match.end()
    return None if separator else tuple(items)


class Held(NamedTuple):
    """One setting of the session."""

    name: str
    value: str
    """The value, as PostgreSQL shows it."""
    role: str | None = None
    """The role under which it was set, and is set again; None: the one that the connection has by itself."""
    by_set: bool = True
    """By SET; else by `set_config`."""
    at: int = 0
    """When it was set, by a count of this process."""


class Assignment(NamedTuple):
    """A setting for one transaction."""

    name: str
    value: str
    items: tuple[str, ...] | None = None
    """What SET takes in place of the value: the members of a list."""
    by_function: bool = False
    """Only `set_config` gives it this value exactly. It takes a snapshot: it comes behind what asks for modes."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What holds for the session, in the order in which it was set."""

    held: tuple[Held, ...] = ()
    role: str | None = None
    """By SET ROLE; None: the one that the connection has by itself."""
    role_at: int = 0
    """When that was set."""
    owed: frozenset[str] = frozenset()
    """What the open transaction lacks until the next statement, since a RESET or a SET has taken it; `REST` may be in it."""
    any: bool = field(init=False)
    """Whether there is anything to be sent."""
    decides: bool = field(init=False)
    """Whether it decides what a statement sees, or may: none may run without."""
    owes: bool = field(init=False)
    """Whether the open transaction lacks something."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "any", bool(self.held) or self.role is not None)
        decides = self.role is not None or any(held.name not in _MAY_BE_MISSING for held in self.held)
        object.__setattr__(self, "decides", decides)
        object.__setattr__(self, "owes", bool(self.owed))

    @property
    def sets_role(self) -> bool:
        """Whether a role is sent: the one in force, or one under which something was set."""
        return self.role is not None or any(held.role is not None for held in self.held)

    def value_of(self, name: str) -> str | None:
        """Return the value of a setting; None: it is not held."""
        return next((held.value for held in self.held if held.name == name), None)

    def timeouts(self) -> dict[str, float | None]:
        """Return the timeouts that are held, in seconds by the fields of `ps_core.Timeouts`; None is off."""
        return {_TIMEOUTS[held.name]: _seconds(held.value) for held in self.held if held.name in _TIMEOUTS}

    def modes(self) -> dict[str, str]:
        """Return the modes that a transaction has where it names none itself."""
        return {MODES[held.name]: held.value for held in self.held if held.name in MODES}

    def lacks(self, other: Self, *, but_for: Collection[str] = ()) -> bool:
        """Return whether `other` holds something that does not hold here, nor was replaced here by a later SET.

        `but_for`: names of settings that do not count; nor does `application_name`.
        """
        own = {one.name: one for one in self.held}
        for theirs in other.held:
            mine = own.get(theirs.name)
            if theirs.name in but_for or theirs.name == "application_name":
                continue
            if mine is None or (mine.value != theirs.value and mine.at <= theirs.at):
                return True
        return other.role not in (None, self.role) and self.role_at <= other.role_at

    def earliest(self) -> Self:
        """Return the same as if it had been set before all that is set elsewhere."""
        return replace(self, held=tuple(one._replace(at=0) for one in self.held), role_at=0)

    def assignments(self, own_role: str | None, *, timeouts: bool = False) -> Iterator[Assignment]:
        """Yield what sets all for a transaction that so far runs as `own_role` (None: whoever logged in); `timeouts`, too."""
        role = None
        for held in self.held:
            if held.name in _TIMEOUTS and not timeouts:
                continue
            if held.role != role:
                role = held.role
                yield Assignment(ROLE, role or own_role or "none")
            yield _assignment(held)
        if self.role != role:
            yield Assignment(ROLE, self.role or own_role or "none")

    def lacks_of_transaction(self, name: str) -> bool:
        """Return whether the open transaction lacks a setting."""
        return name in self.owed or (REST in self.owed and name != ROLE)

    def changed(self, change: Change, values: Sequence[str | None], *, begins: bool = False, at: int = 0) -> Self:
        """Return what holds after `change`.

        `values` answers its questions (None: it is not set); `begins`: it is the first of a transaction; `at`: when it was made.
        """
        held = {} if change.drops_all else {one.name: one for one in self.held if one.name not in change.drops}
        role, role_at = (None, at) if change.drops_role else (self.role, self.role_at)
        for name, value in zip(change.asks, values, strict=True):
            if value is None:
                continue  # a call that was not reached
            if name == ROLE:
                role, role_at = None if value == "none" else value, at
                continue
            held.pop(name, None)  # the order is that of the last time
            held[name] = Held(name, value, role, change.by_set, at)
        owed, taken = set(self.owed), {*change.drops, *change.asks}
        if change.drops_all or (begins and change.is_way_out):
            owed.add(REST)
        if change.drops_role or (ROLE in change.asks and role is None) or (begins and change.is_way_out):
            owed.add(ROLE)
        if not taken.isdisjoint(_TIMEOUTS):
            owed |= _TIMEOUTS.keys()
        return replace(self, held=tuple(held.values()), role=role, role_at=role_at, owed=frozenset(owed))

    def paid(self) -> Self:
        """Return the same where the open transaction lacks nothing."""
        return replace(self, owed=frozenset())


def _assignment(held: Held) -> Assignment:
    if held.name not in _LISTS:
        return Assignment(held.name, held.value)
    items = split_list(held.value) if held.by_set else None
    return Assignment(held.name, held.value, items, by_function=items is None)


_UNITS: Final = {"ms": 0.001, "s": 1, "min": 60, "h": 3600, "d": 86400}
_SHOWN: Final = re.compile(r"(\d+)(ms|s|min|h|d)?")


def _seconds(value: str) -> float | None:
    """Return the seconds of a timeout as PostgreSQL shows it ("1min", "1500ms"); None for "0", which is off."""
    match = _SHOWN.fullmatch(value)
    assert match is not None, value  # PostgreSQL's own spelling
    return int(match[1]) * _UNITS[match[2] or "ms"] or None


NONE: Final = Settings()


@dataclass(frozen=True, slots=True)
class Session:
    """What holds for the session, and what did when the transaction and its savepoints began."""

    now: Settings = NONE
    begun: Settings | None = None
    """Before the first change in the open transaction."""
    savepoints: tuple[tuple[str, Settings], ...] = ()
    """The savepoints of the open transaction, by name."""

    def changed(self, settings: Settings, *, in_transaction: bool) -> Self:
        """Return this with other settings, which a rollback undoes where they were made `in_transaction`."""
        if not in_transaction:
            return type(self)(settings.paid())
        return replace(self, now=settings, begun=self.now if self.begun is None else self.begun)

    def paid(self) -> Self:
        """Return the same where the open transaction lacks nothing."""
        return replace(self, now=self.now.paid())

    def followed(self, text: str) -> Self:
        """Return what holds after a text that makes, releases or goes back to savepoints."""
        session = self
        for what, name in read_savepoints(text):
            at = next((at for at in range(len(session.savepoints) - 1, -1, -1) if session.savepoints[at][0] == name), None)
            if what == "savepoint":
                session = replace(session, savepoints=(*session.savepoints, (name, session.now)))
            elif at is not None and what == "release":
                session = replace(session, savepoints=session.savepoints[:at])
            elif at is not None:
                session = replace(session, now=session.savepoints[at][1], savepoints=session.savepoints[: at + 1])
        return session

    def ended(self, *, committed: bool) -> Self:
        """Return what holds after the transaction."""
        return type(self)((self.now if committed or self.begun is None else self.begun).paid())
