"""The limits of management commands: what they are by themselves, and what `PS_DJANGO["COMMAND_LIMITS"]` makes of them. Pure."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from ps_core._names import no_such
from ps_core.errors import ConfigurationError
from ps_core.timeouts import SETTINGS, Timeouts, parse_duration

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["COMMANDS", "OFF", "SERVING", "USUAL", "CommandLimits"]

COMMANDS: Final = Timeouts(statement=300.0, transaction=600.0, idle_in_transaction=60.0)
"""The limits of a management command that was started from a command line: long, so that work can end, and not off, so that a
planned change of the primary, which waits for open transactions, does not wait for ever."""

SERVING: Final = frozenset(
    {"celery", "daphne", "db_worker", "process_tasks", "procrastinate", "qcluster", "rqscheduler", "rqworker", "run_huey"}
    | {"rundramatiq", "runserver", "runserver_plus", "runworker", "testserver"}
)
"""Commands that serve or work for ever: each piece of their work keeps the limits of a request."""

OFF: Final[Mapping[str, float | None]] = MappingProxyType({"statement": None, "transaction": None, "idle_in_transaction": None})


class CommandLimits(NamedTuple):
    """`PS_DJANGO["COMMAND_LIMITS"]`, checked. "request" stands for the limits that requests have."""

    of_all: Mapping[str, float | None] | Literal["request"] = MappingProxyType({})
    named: Mapping[str, Mapping[str, float | None] | Literal["request"]] = MappingProxyType({})

    @classmethod
    def parse(cls, given: Any) -> CommandLimits:
        """Return what the setting says.

        Raises:
            ConfigurationError: it cannot work; the message says what to write.
        """
        if isinstance(given, cls):
            return given
        where = "PS_DJANGO['COMMAND_LIMITS']"
        if given in ("off", "request"):
            return cls(_parse(given, where))
        if not hasattr(given, "items"):
            raise ConfigurationError(f'{where}: write "off", "request", or a mapping, not {given!r}')
        common = _parse({name: value for name, value in given.items() if name in SETTINGS}, where)
        named = {}
        for name, value in given.items():
            if name in SETTINGS:
                continue
            one = _parse(value, f"{where}[{name!r}]")
            rest = {} if isinstance(common, str) else common
            named[name] = one if isinstance(one, str) else _checked({**rest, **one}, f"{where}[{name!r}]")
        return cls(common, named)

    def of(self, names: tuple[str, ...]) -> Mapping[str, float | None] | Literal["request"]:
        """Return the limits that the setting has for a command of these names (`names_of`)."""
        for name in names:
            if name in self.named:
                return self.named[name]
        return "request" if not SERVING.isdisjoint(names) else self.of_all


USUAL: Final = CommandLimits()


def _parse(given: Any, where: str) -> Mapping[str, float | None] | Literal["request"]:
    if given == "request":
        return "request"
    if given == "off":
        return OFF
    if not hasattr(given, "items"):
        raise ConfigurationError(
            f'{where}: write "off", "request" (the limits of requests), or a mapping of {", ".join(SETTINGS)}, not {given!r}'
        )
    for name in given:
        if name not in SETTINGS:
            raise no_such("limit", str(name), SETTINGS, where=where)
    values = {name: parse_duration(value, name=f"{where}[{name!r}]") for name, value in given.items()}
    return _checked(values, where)


def _checked(values: Mapping[str, float | None], where: str) -> Mapping[str, float | None]:
    statement, transaction = values.get("statement"), values.get("transaction")
    if statement is not None and transaction is not None and statement >= transaction:
        raise ConfigurationError(
            f"{where}: statement ({statement:g}s) must be below transaction ({transaction:g}s), or PostgreSQL disables it: "
            "write a longer transaction limit or a shorter statement limit"
        )
    return values
