"""Which path a connection takes and which limits it has: the decision as a table, and what it knows of the process."""

import inspect
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.core.management import ManagementUtility
from django.core.management.base import BaseCommand
from django.core.management.commands import dumpdata, loaddata, runserver
from django.db.backends.base.base import NO_DB_ALIAS, BaseDatabaseWrapper
from django.db.backends.base.creation import BaseDatabaseCreation
from django.db.backends.postgresql import base
from django.test import utils

from ps_core.errors import ConfigurationError
from ps_core.timeouts import POOLED, Timeouts
from ps_core.topology import Endpoint
from ps_django import path
from ps_django.command_limits import SERVING, CommandLimits
from ps_django.path import DIRECT, Facts, PathDecision, decide, limited
from ps_django.settings import Settings

pytestmark = pytest.mark.fast

PAGE = Path(__file__).parents[2] / "docs" / "django.md"
OWN = POOLED
REQUEST = (2, 3, 30)
COMMAND = (300, 600, 60)
NONE = (None, None, None)


def seconds(
    decision: PathDecision, timeouts: Timeouts = POOLED, role: Any = "primary"
) -> tuple[float | None, float | None, float | None]:
    """Return statement, transaction and idle limit of an endpoint in seconds."""
    endpoint = Endpoint(
        name="default", role=role, host="h", port=1, user="u", password="", dbname="d", pooled=True, timeouts=timeouts
    )
    found = limited(endpoint, decision).timeouts
    assert found.connect == timeouts.connect
    return found.statement, found.transaction, found.idle_in_transaction


DIRECTLY, POOLED_PATH = True, False
ROWS: list[tuple[str, Facts, bool, Any]] = [
    # what it is, facts, whether the direct path, the limits of the pooled path that come with it
    ("a request, a worker, a script", Facts(), POOLED_PATH, REQUEST),
    ("a top-level command", Facts(started=("import_orders",)), POOLED_PATH, COMMAND),
    ("the shell", Facts(started=("shell",)), POOLED_PATH, COMMAND),
    ("its call_command()", Facts(started=("import_orders",), running=("other", "import_orders")), POOLED_PATH, COMMAND),
    ("a request's call_command()", Facts(running=("import_orders",)), POOLED_PATH, REQUEST),
    ("a server", Facts(started=("runserver",)), POOLED_PATH, REQUEST),
    ("a server's call_command()", Facts(started=("runserver",), running=("import_orders",)), POOLED_PATH, REQUEST),
    ("a server derived from another", Facts(started=("serve_tls", "runserver")), POOLED_PATH, REQUEST),
    ("a server within another command", Facts(started=("tenant_command", "runserver")), POOLED_PATH, REQUEST),
    ("on_direct_path(), schema editors", Facts(block=True), DIRECTLY, REQUEST),
    ("the same in a command", Facts(block=True, started=("import_orders",)), DIRECTLY, REQUEST),
    ("migrate", Facts(started=("migrate",), running=("migrate",)), DIRECTLY, REQUEST),
    ("migrate of a script", Facts(running=("migrate",)), DIRECTLY, REQUEST),
    ("migrate of a request", Facts(started=("runserver",), running=("migrate",)), DIRECTLY, REQUEST),
    ("a thread of migrate", Facts(started=("migrate",)), DIRECTLY, REQUEST),
    ("a command derived from loaddata", Facts(running=("load_shop", "loaddata")), DIRECTLY, REQUEST),
    ("CREATE DATABASE", Facts(without_database=True), DIRECTLY, REQUEST),
    ("tests", Facts(tests=True, mark="direct"), DIRECTLY, NONE),
    ("tests, of `manage.py test`", Facts(tests=True, mark="direct", started=("test",), running=("test",)), DIRECTLY, NONE),
    ("tests of a project that makes its own database", Facts(tests=True), DIRECTLY, NONE),
    ("a process of tests, by its database alone", Facts(mark="direct"), DIRECTLY, NONE),
    ("CREATE DATABASE of tests", Facts(tests=True, without_database=True), DIRECTLY, NONE),
    ("migrate in tests", Facts(tests=True, mark="direct", running=("migrate",)), DIRECTLY, NONE),
    ("a test that asks for limits and poolers", Facts(tests=True, mark="own"), POOLED_PATH, REQUEST),
    ("the same under `manage.py test`", Facts(tests=True, mark="own", started=("test",)), POOLED_PATH, REQUEST),
    ("migrate there", Facts(tests=True, mark="own", running=("migrate",)), DIRECTLY, REQUEST),
    ("a server of tests", Facts(mark="direct", started=("testserver",)), POOLED_PATH, REQUEST),
    ("loaddata of a server of tests", Facts(mark="direct", started=("testserver",), running=("loaddata",)), DIRECTLY, REQUEST),
    ("a replica's alias in tests", Facts(replica=True, tests=True), DIRECTLY, NONE),
    ("a replica's alias in a test that asks for it", Facts(replica=True, tests=True, mark="own"), POOLED_PATH, REQUEST),
    ("a replica's alias in on_direct_path()", Facts(replica=True, block=True), POOLED_PATH, REQUEST),
    ("dumpdata of a replica", Facts(replica=True, started=("dumpdata",)), POOLED_PATH, COMMAND),
    ("no direct path: migrate", Facts(has_direct=False, started=("migrate",)), POOLED_PATH, COMMAND),
    ("no direct path: migrate of a script", Facts(has_direct=False, running=("migrate",)), POOLED_PATH, REQUEST),
    ("no direct path: tests", Facts(has_direct=False, tests=True, mark="direct"), POOLED_PATH, NONE),
]


@pytest.mark.parametrize(("facts", "direct", "limits"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_decision(facts: Facts, direct: bool, limits: tuple[float | None, ...]) -> None:
    """Path and limits for each kind of work."""
    decision = decide(facts, CommandLimits())
    assert (decision.direct, seconds(decision)) == (direct, limits)
    assert decision.why


@pytest.mark.parametrize("name", sorted(SERVING))
def test_serving(name: str) -> None:
    """What serves or works for ever keeps the limits of requests; the page names it."""
    assert seconds(decide(Facts(started=(name,)), CommandLimits())) == REQUEST
    assert f"`{name}`" in PAGE.read_text()


def test_known_commands() -> None:
    """The commands that the issue of limits and paths is about are known; the page names those of the direct path."""
    assert {
        "runserver", "runserver_plus", "testserver", "daphne", "celery", "rqworker", "qcluster", "process_tasks", "db_worker",
        "run_huey", "rundramatiq", "runworker",
    } <= SERVING  # fmt: skip
    assert {"migrate", "flush", "loaddata", "dumpdata"} <= DIRECT
    assert DIRECT.isdisjoint(SERVING)
    assert [name for name in DIRECT if f"`{name}`" not in PAGE.read_text()] == []


GIVEN: list[tuple[Any, str, tuple[float | None, ...]]] = [
    ({}, "import_orders", COMMAND),
    ("off", "import_orders", NONE),
    ("off", "runserver", REQUEST),
    ("request", "import_orders", REQUEST),
    ({"transaction": "off"}, "import_orders", (300, None, 60)),
    ({"transaction": None}, "import_orders", (300, None, 60)),
    ({"statement": "1min", "transaction": "2min", "idle_in_transaction": "5s"}, "import_orders", (60, 120, 5)),
    ({"statement": "30min"}, "import_orders", (1800, None, 60)),
    ({"transaction": "1min"}, "import_orders", (None, 60, 60)),
    ({"statement": "1min"}, "runserver", REQUEST),
    ({"import_orders": "off"}, "import_orders", NONE),
    ({"import_orders": "off"}, "export_orders", COMMAND),
    ({"consume_orders": "request"}, "consume_orders", REQUEST),
    ({"transaction": "20min", "import_orders": {"statement": "15min"}}, "import_orders", (900, 1200, 60)),
    ({"transaction": "20min", "import_orders": {"statement": "15min"}}, "export_orders", (300, 1200, 60)),
    ({"rqworker": {"statement": "1min"}}, "rqworker", (60, 600, 60)),
    ({"loaddata": "off"}, "loaddata", REQUEST),  # of the pooled path: it takes the other
]


@pytest.mark.parametrize(("given", "name", "limits"), GIVEN)
def test_command_limits(given: Any, name: str, limits: tuple[float | None, ...]) -> None:
    """What COMMAND_LIMITS says of all commands, and of one by its name."""
    decision = decide(Facts(started=(name,)), Settings.parse({"COMMAND_LIMITS": given}).command_limits)
    assert seconds(decision) == limits


@pytest.mark.parametrize(
    ("timeouts", "limits"),
    [
        (Timeouts(statement="10min", transaction="20min", idle_in_transaction="5min"), (600, 1200, 300)),
        (Timeouts(), NONE),
        (Timeouts(statement="10min", transaction=None, idle_in_transaction="10s"), (600, None, 60)),
        (Timeouts(statement="10min", transaction="601s"), (600, 601, None)),
        (Timeouts(statement=None, transaction="3s", idle_in_transaction="30s"), (None, 600, 60)),
    ],
)
def test_longer_limits_of_the_alias(timeouts: Timeouts, limits: tuple[float | None, ...]) -> None:
    """A command never has less than a request of the same alias."""
    assert seconds(decide(Facts(started=("import_orders",)), CommandLimits()), timeouts) == limits


def test_limits_of_the_direct_alias() -> None:
    """The direct path's own limits are left alone in commands; in tests there are none at all."""
    direct = Timeouts(lock="5s")
    command = decide(Facts(started=("import_orders",), has_direct=False), CommandLimits.parse({"statement": "1s"}))
    assert seconds(command, direct, "direct") == NONE
    endpoint = Endpoint(
        name="direct", role="direct", host="h", port=1, user="u", password="", dbname="d", pooled=False, timeouts=direct
    )
    assert limited(endpoint, command).timeouts.lock == 5
    assert limited(endpoint, decide(Facts(tests=True), CommandLimits())).timeouts.lock is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("long", 'write "off", "request", or a mapping'),
        (None, "or a mapping"),
        (
            {"import_orders": "10min"},
            r"\['import_orders'\]: write \"off\", \"request\" \(the limits of requests\), or a mapping of",
        ),
        ({"import_orders": {"statment": "1min"}}, "there is no limit statment: did you mean statement"),
        ({"statement": "soon"}, "'soon' is not a duration"),
        ({"statement": "2min", "transaction": "1min"}, "must be below transaction"),
        ({"transaction": "1min", "import_orders": {"statement": "2min"}}, r"\['import_orders'\].*must be below transaction"),
    ],
)
def test_wrong_command_limits(given: Any, message: str) -> None:
    """What cannot work is said where the setting is read, with what to write."""
    with pytest.raises(ConfigurationError, match=message):
        Settings.parse({"COMMAND_LIMITS": given})


# --- what runs ---


def run(command: BaseCommand, body: Callable[[], Any], *, called: bool = False) -> Any:
    """Return what `body` returns within the command: called by a program, or started from a command line."""
    found: list[Any] = []

    def handle(*_: Any, **__: Any) -> None:
        found.append(body())

    command.handle = handle  # type: ignore[method-assign]
    command.requires_system_checks = []
    command.missing_args_message = None  # type: ignore[attr-defined]
    if called:
        command.execute(force_color=False, no_color=True, skip_checks=True)
    else:
        command.add_arguments = lambda parser: None  # type: ignore[method-assign]
        command.run_from_argv(["manage.py", "anything"])
    return found[0]


def here() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return what runs in this thread, and what the process was started for."""
    return path.running(), path.started()


def in_thread(body: Callable[[], Any]) -> Any:
    """Return what `body` returns in another thread."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(body()))
    thread.start()
    thread.join()
    return found[0]


def test_what_runs() -> None:
    """Told by the stack: nothing, a command that was called, one that was started, in its threads, one within the other."""
    assert here() == ((), ())
    assert run(loaddata.Command(), here, called=True) == (("loaddata",), ())
    assert run(loaddata.Command(), here) == (("loaddata",), ("loaddata",))
    assert run(loaddata.Command(), lambda: in_thread(here)) == ((), ("loaddata",))
    inner = run(runserver.Command(), lambda: run(dumpdata.Command(), here, called=True))
    assert inner == (("dumpdata", "runserver"), ("runserver",))
    assert here() == ((), ())


def test_derived_commands() -> None:
    """A command has the names of what it is derived from, too."""

    class Command(loaddata.Command):
        __module__ = "shop.management.commands.load_shop"

    assert path.names_of(Command()) == ("load_shop", "loaddata")
    assert path.names_of(BaseCommand()) == ()


def test_wrapped_by_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages that wrap `execute` and `run_from_argv`, to time them, do not hide what runs."""
    from functools import wraps

    for name in ("execute", "run_from_argv"):
        stock = getattr(BaseCommand, name)

        @wraps(stock)
        def timed(*args: Any, stock: Any = stock, **kwargs: Any) -> Any:
            return stock(*args, **kwargs)

        monkeypatch.setattr(BaseCommand, name, timed)
    assert run(loaddata.Command(), here) == (("loaddata",), ("loaddata",))


def test_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Open connections are looked after from the import of a command of the direct path on, and while a block is open."""
    ordinary = {name: module for name, module in sys.modules.items() if ".management.commands." not in name}
    monkeypatch.setattr(sys, "modules", ordinary)
    watch = path.Watch()
    watch.look()
    assert not watch.on
    watch.add_blocks(1)
    assert watch.on
    watch.add_blocks(-1)
    assert not watch.on
    ordinary["shop.management.commands.runserver"] = sys
    watch.look()
    assert not watch.on
    assert watch.modules == len(ordinary)
    ordinary["shop.management.commands.migrate"] = sys
    watch.look()
    assert watch.on


WRAPPER: Any = BaseDatabaseWrapper
STOCK: Any = base.DatabaseWrapper
CREATION: Any = BaseDatabaseCreation
"""With their private names, which the stubs have not."""

PRIVATE: dict[str, tuple[Any, str]] = {
    "execute": (BaseCommand.execute, "(self, *args, **options)"),
    "run_from_argv": (BaseCommand.run_from_argv, "(self, argv)"),
    "ManagementUtility.execute": (ManagementUtility.execute, "(self)"),
    "_cursor": (WRAPPER._cursor, "(self, name=None)"),
    "_commit": (WRAPPER._commit, "(self)"),
    "_rollback": (WRAPPER._rollback, "(self)"),
    "_savepoint_commit": (WRAPPER._savepoint_commit, "(self, sid)"),
    "_prepare_cursor": (WRAPPER._prepare_cursor, "(self, cursor)"),
    "_nodb_cursor": (STOCK._nodb_cursor, "(self)"),
    "_close": (STOCK._close, "(self)"),
    "_configure_role": (STOCK._configure_role, "(self, connection)"),
    "_create_test_db": (CREATION._create_test_db, "(self, verbosity, autoclobber, keepdb=False)"),
    "destroy_test_db": (
        BaseDatabaseCreation.destroy_test_db,
        "(self, old_database_name=None, verbosity=1, keepdb=False, suffix=None)",
    ),
    "_destroy_test_db": (CREATION._destroy_test_db, "(self, test_database_name, verbosity)"),
}


@pytest.mark.parametrize("name", PRIVATE)
def test_private_names_of_django(name: str) -> None:
    """What Django does not document and the backend uses is there, as it was when it was read."""
    function, signature = PRIVATE[name]
    found = str(inspect.signature(inspect.unwrap(function)))
    assert found == signature


def test_private_attributes_of_django() -> None:
    """The same for what is no function: the state of the test environment, the alias of no database, a local variable, pools."""
    assert NO_DB_ALIAS == "__no_db__"
    assert isinstance(STOCK._connection_pools, dict)
    assert "subcommand" in ManagementUtility.execute.__code__.co_varnames
    was_set_up = path.in_test_environment()
    if was_set_up:
        utils.teardown_test_environment()
    try:
        assert not path.in_test_environment()
        from django.conf import settings

        if settings.configured:
            utils.setup_test_environment()
            assert path.in_test_environment()
            utils.teardown_test_environment()
    finally:
        if was_set_up:
            utils.setup_test_environment()
