"""Which path a connection takes, which limits hold on it, and why: one decision (`decide`), made of `Facts`.

What is running is told by the stack and not by `sys.argv`: the frames of `BaseCommand.run_from_argv` on the main thread say what
the process was started for, those of `BaseCommand.execute` what a thread is doing (`call_command()` ends there, too).
"""

from __future__ import annotations

import inspect
import sys
import threading
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from ps_core.timeouts import SETTINGS, Timeouts
from ps_django.command_limits import COMMANDS, OFF, SERVING, CommandLimits
from ps_django.settings import current_settings

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import CodeType, FrameType

    from ps_core.topology import Endpoint

__all__ = ["DIRECT", "Facts", "PathDecision", "decide", "limited"]

DIRECT: Final = frozenset(
    {"createcachetable", "dbshell", "dumpdata", "flush", "inspectdb", "loaddata", "migrate", "optimizemigration", "sqlflush"}
    | {"migrate_schemas", "remove_stale_contenttypes", "sqlmigrate", "sqlsequencereset"}
)
"""Commands whose work a transaction pooler is not made for. They take the direct path in whatever way they are started."""

MARK: Final = "PS_PATH"
"""The key of an alias's `TEST` that says what its tests take: "direct", or "own" for limits and poolers as in production."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All that the decision depends on."""

    has_direct: bool = True
    """Whether the alias has a direct path (`direct_of`)."""
    replica: bool = False
    """The alias is a replica's: in tests it is one more name of its primary, and else never leaves its own path."""
    without_database: bool = False
    """The connection is for making and dropping databases (`NO_DB_ALIAS`)."""
    block: bool = False
    """In `ps_django.on_direct_path()`, or in a schema editor."""
    running: tuple[str, ...] = ()
    """The names of the commands that this thread is in, however they were called."""
    started: tuple[str, ...] = ()
    """The names of the command that the process was started for."""
    mark: str | None = None
    """What `TEST` says: see `MARK`."""
    tests: bool = False
    """Django's test environment is set up."""


class PathDecision(NamedTuple):
    """The decision."""

    direct: bool
    """Whether the connection goes to the direct endpoint, or to the alias's own."""
    limits: Literal["endpoint", "command", "none"]
    """Whether the endpoint's limits hold, those of a command, or none of ours."""
    why: str
    given: Mapping[str, float | None] = MappingProxyType({})
    """What COMMAND_LIMITS says of the command."""


AS_CONFIGURED: Final = PathDecision(False, "endpoint", "requests, workers, scripts")
"""The alias's own path, with the limits that its entry of `DATABASES` says."""


def decide(facts: Facts, settings: CommandLimits) -> PathDecision:
    """Return the path and the limits for these facts: the first rule that applies."""
    given = settings.of(facts.started) if facts.started else "request"
    # A server of tests (`testserver`) is a server; tests that ask for limits and poolers are given them.
    in_tests = facts.mark != "own" and (facts.mark == "direct" or facts.tests) and SERVING.isdisjoint(facts.started)
    has_direct = facts.has_direct and (in_tests or not facts.replica)
    direct, why = False, ""
    if facts.without_database:
        direct, why = True, "it makes or drops a database"
    elif facts.block:
        direct, why = True, "on_direct_path(), or a schema editor"
    elif command := next((name for name in (*facts.running, *facts.started) if name in DIRECT), None):
        direct, why = True, f"the command {command}"
    elif in_tests:
        direct, why = True, "a database of tests"
    if in_tests:
        return PathDecision(direct and has_direct, "none", why)
    if direct and has_direct:
        return PathDecision(True, "endpoint", why)
    if facts.mark == "own":
        return PathDecision(False, "endpoint", "a test asks for it")
    if isinstance(given, str):
        return AS_CONFIGURED
    return PathDecision(False, "command", f"the command {facts.started[0]}", given)


def limited(endpoint: Endpoint, decision: PathDecision) -> Endpoint:
    """Return `endpoint` with the limits of `decision`."""
    own = endpoint.timeouts
    if decision.limits == "none":
        return replace(endpoint, timeouts=Timeouts(connect=own.connect))
    if decision.limits == "endpoint" or endpoint.role == "direct":
        return endpoint
    given = decision.given
    values = {name: getattr(own, name) for name in SETTINGS}
    for name in OFF:  # whoever has longer ones for requests keeps them
        values[name] = None if values[name] is None else max(values[name], getattr(COMMANDS, name))
    values.update(given)
    statement, transaction = values["statement"], values["transaction"]
    if statement is not None and transaction is not None and statement >= transaction:  # PostgreSQL would disable the first
        values["statement" if "transaction" in given else "transaction"] = None
    return replace(endpoint, timeouts=Timeouts(**values, connect=own.connect))


# --- the facts that the process knows ---

on_direct: Final[ContextVar[bool]] = ContextVar("ps_django_on_direct_path", default=False)


class Watch:
    """Whether the path of an open connection may have to change before the next query.

    It may where a block is open, or where a command of `DIRECT` could be running: its module has been imported. An ordinary
    process of a web server never imports one, and pays for a comparison of two numbers; one that has, for a look at the stack.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blocks = 0
        self.command = False
        """Whether a command of `DIRECT` could be running."""
        self.on = False
        self.modules = 0
        """How many modules there were when `sys.modules` was last looked through."""

    def look(self) -> None:
        """Look through `sys.modules`."""
        self.modules = len(sys.modules)
        if not self.command:
            found = (name.rpartition(".management.commands.") for name in tuple(sys.modules))
            self.command = any(command in DIRECT for _, between, command in found if between)
        self.on = self.command or self._blocks > 0

    def add_blocks(self, count: int) -> None:
        """Note that a block begins (1) or ends (-1)."""
        with self._lock:
            self._blocks += count
        self.look()


watch: Final = Watch()


def in_test_environment() -> bool:
    """Return whether `setup_test_environment()` was called: test runners do, also where a project replaces their set-up."""
    utils = sys.modules.get("django.test.utils")
    return utils is not None and hasattr(utils._TestState, "saved_data")


def direct_of(entry: Mapping[str, Any], entries: Mapping[str, Any]) -> str | None:
    """Return the alias of the direct path: the one that an entry of DATABASES names, or that of its primary."""
    options = entry.get("OPTIONS") or {}
    if options.get("ps_role") == "replica":
        options = entries.get(options.get("ps_primary", ""), {}).get("OPTIONS") or {}
    alias = options.get("ps_direct")
    return alias if alias in entries else None


def path_decision(
    entry: Mapping[str, Any], entries: Mapping[str, Any], *, without_database: bool = False, block: bool = False
) -> PathDecision:
    """Return the decision for a connection that this thread would make now by an entry of DATABASES."""
    facts = Facts(
        has_direct=direct_of(entry, entries) is not None,
        replica=(entry.get("OPTIONS") or {}).get("ps_role") == "replica",
        without_database=without_database,
        block=block or on_direct.get(),
        running=running(),
        started=started(),
        mark=(entry.get("TEST") or {}).get(MARK),
        tests=in_test_environment(),
    )
    return decide(facts, current_settings().command_limits)


def names_of(command: Any) -> tuple[str, ...]:
    """Return the names of a command: the modules of its class and of what it is derived from, as `call_command()` has them."""
    modules = (kind.__module__ for kind in type(command).__mro__)
    return tuple(dict.fromkeys(name.rpartition(".")[2] for name in modules if ".management.commands." in f".{name}."))


def running() -> tuple[str, ...]:
    """Return the names of the commands that this thread is in, the innermost first."""
    base = sys.modules.get("django.core.management.base")
    if base is None:
        return ()
    code = _code(base.BaseCommand.execute)
    found: list[str] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is code:
            found += names_of(_self_of(frame))
        frame = frame.f_back
    return tuple(found)


def started() -> tuple[str, ...]:
    """Return the names of the command that the process was started for, the outermost first.

    While Django sets itself up for it (`AppConfig.ready`), the command does not exist yet: its name does.
    """
    management = sys.modules.get("django.core.management")
    if management is None:
        return ()
    run, execute = _code(management.base.BaseCommand.run_from_argv), _code(management.ManagementUtility.execute)
    names: list[str] = []
    frame = _of_main_thread()
    while frame is not None:
        if frame.f_code is run:
            command = _self_of(frame)
            names[:0] = names_of(command) or (type(command).__module__.rpartition(".")[2],)
        elif frame.f_code is execute and not names and "subcommand" in frame.f_locals:
            names.append(frame.f_locals["subcommand"])
        frame = frame.f_back
    return tuple(names)


def _of_main_thread() -> FrameType | None:
    main = threading.main_thread().ident
    return sys._getframe(1) if main == threading.get_ident() else sys._current_frames().get(main or 0)


@lru_cache(maxsize=16)
def _code(function: Any) -> CodeType:
    # Others wrap these methods to time them.
    code: CodeType = inspect.unwrap(function).__code__
    return code


def _self_of(frame: FrameType) -> Any:
    return frame.f_locals[frame.f_code.co_varnames[0]]
