"""System checks: what works in development and fails on PlanetScale, said before it does. Each id has an entry in the docs.

Those that ask a server run only where Django is told which databases to check (`manage.py check --database default`).
"""

from __future__ import annotations

import ast
import os
import re
import warnings
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psycopg
from django.apps import apps
from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning  # noqa: A004 - Django's name
from django.db import Error as DjangoDatabaseError
from django.db import connections

from ps_core import Connection, use_token
from ps_core._diagnosis import PROCESS, QUESTION, Answer, faults, share_a_server
from ps_core._documentation import link
from ps_core._retry.policy import ONCE
from ps_core.consistency import MAX_BRANCHES
from ps_core.errors import ConfigurationError
from ps_core.share import replica_share
from ps_django.backend.base import DatabaseWrapper
from ps_django.config import check_direct, consistency_of, endpoint_of, families
from ps_django.engines import ours_of, strangers
from ps_django.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ps_core._diagnosis import Fault
    from ps_core.topology import Endpoint

__all__ = ["check_databases", "check_settings"]

ROUTER: Final = "ps_django.routers.ReplicaRouter"
MIDDLEWARE: Final = "ps_django.middleware.ConsistencyMiddleware"
_BEFORE: Final = {
    "django.contrib.sessions.middleware.SessionMiddleware": "writes after the response: the token is without that",
    "django.middleware.cache.UpdateCacheMiddleware": "would keep one user's token in an answer for others",
}
"""Middleware that has to be inside of ours, and what it does else."""
# What needs a session of its own, in the sources of applications: in a file that has none of these words, nothing does.
_WORDS: Final = re.compile(rb"advisory_(?:un)?lock|LISTEN\s")
# A string that is SQL with such a call; the name of a function, or a call, that another string completes; or a LISTEN.
_LOCK: Final = r"pg_(?:try_)?advisory_(?:un)?lock(?:_shared|_all|%s)?"
_SESSION: Final = re.compile(
    rf"\s*(?:SELECT|WITH|VALUES|INSERT|UPDATE|DELETE|DO)\b.*?\b{_LOCK}\s*\("
    rf"|\s*(?:pg_catalog\.)?{_LOCK}\s*(?:\((?!\)\s+\w).*)?\Z"
    r"|\s*(?-i:LISTEN)\s+\S*\s*;?\s*\Z",
    re.IGNORECASE | re.DOTALL,
)
_ELSEWHERE: Final = frozenset({"migrations", "tests", "tests.py", "node_modules"})
"""Names the modules of an application that run on the direct path, or not in production."""
_OF_FAULTS: Final[dict[Fault, tuple[str, str, str]]] = {
    "old": (
        "ps_django.W010",
        "The server of {alias!r} is older than 17: it has no transaction_timeout.",
        "The statement timeout and the idle timeout hold. Nothing else has to be done.",
    ),
    "no pooler": (
        "ps_django.W011",
        "{alias!r} is said to be behind a transaction pooler, and the server itself answers.",
        "Write ps_pooled=False in its OPTIONS (pooled=False for databases()), or the pooler's port.",
    ),
    "by session": (
        "ps_django.W015",
        "The pooler of {alias!r} gives each client a server connection of its own: it does not pool by transaction.",
        "Set pool_mode=transaction there (PlanetScale's bouncers have it), or say pooled=False.",
    ),
    "primary": (
        "ps_django.W013",
        "The endpoint of {alias!r}, a replica's alias, {answers}.",
        "Look at the bouncer's target on PlanetScale's dashboard, or whether the replicas are away at the moment.",
    ),
}
"""The faults that are shown, each with its id, what is wrong, and the hint. `ps-postgres doctor` shows the others, too."""


def _linked(check: Callable[..., list[CheckMessage]]) -> Callable[..., list[CheckMessage]]:
    """Let each message of a check end with the address of its section in the documentation."""

    @wraps(check)
    def linked(*args: Any, **kwargs: Any) -> list[CheckMessage]:
        messages = check(*args, **kwargs)
        for message in messages:
            message.hint = f"{message.hint} {link('django-checks', str(message.id))}"
        return messages

    return linked


@_linked
def check_settings(app_configs: Any = None, **_: Any) -> list[CheckMessage]:
    """Check what the settings say, without asking a server."""
    entries = settings.DATABASES
    ours = ours_of(entries)
    found: list[CheckMessage] = [
        Error(wrong, hint=hint, obj=alias, id="ps_django.E016") for alias, wrong, hint in strangers(entries)
    ]
    if not ours:
        return found
    found += _of_project(ours)
    try:
        families(entries)
        check_direct(entries)
    except ConfigurationError as exc:
        found.append(Error(str(exc), hint="The message says what to write.", obj="DATABASES", id="ps_django.E001"))
    pooled = []
    for alias, entry in ours.items():
        try:
            endpoint = endpoint_of(alias, entry)
        except ConfigurationError as exc:
            found.append(Error(str(exc), hint="The message says what to write.", obj=alias, id="ps_django.E001"))
        else:
            found += _of_entry(alias, entry, endpoint)
            if endpoint.role == "primary" and endpoint.pooled:
                pooled.append(alias)
    return [*found, *_of_applications(pooled)]


def _of_project(ours: dict[str, Any]) -> Iterator[CheckMessage]:
    replicas = [alias for alias, entry in ours.items() if (entry.get("OPTIONS") or {}).get("ps_role") == "replica"]
    routers, middleware = list(settings.DATABASE_ROUTERS), list(settings.MIDDLEWARE)
    reads = "primary"
    try:
        reads = Settings.parse(getattr(settings, "PS_DJANGO", {})).reads
    except ConfigurationError as exc:
        yield Error(str(exc), hint="The message says what to write.", obj="PS_DJANGO", id="ps_django.E002")
    if not replicas:
        return
    try:
        replica_share()
    except ConfigurationError as exc:
        yield Error(str(exc), hint="The message says what to write.", obj="PS_REPLICA_SHARE", id="ps_django.E002")
    if ROUTER not in routers:
        yield Warning(
            "There are replicas, and no router that sends reads to them.",
            hint=f"Put {ROUTER!r} first in DATABASE_ROUTERS.",
            obj="DATABASE_ROUTERS",
            id="ps_django.W003",
        )
    elif routers.index(ROUTER) != 0:
        yield Error(
            "ReplicaRouter is not the first of the routers: one before it has the last word on reads.",
            hint=f"Put {ROUTER!r} first in DATABASE_ROUTERS; the others choose the database, it chooses the endpoint.",
            obj="DATABASE_ROUTERS",
            id="ps_django.E003",
        )
    gives_tokens = any(_gives_tokens(alias, ours) for alias in replicas)
    if MIDDLEWARE not in middleware and (gives_tokens or reads == "primary"):
        does = "see what their user wrote" if gives_tokens else "read from them"
        yield Warning(
            f"There are replicas, and no middleware that lets requests {does}.",
            hint=f"Put {MIDDLEWARE!r} first in MIDDLEWARE.",
            obj="MIDDLEWARE",
            id="ps_django.W004",
        )
    elif gives_tokens and MIDDLEWARE in middleware:
        for before in middleware[: middleware.index(MIDDLEWARE)]:
            if before in _BEFORE:
                yield Error(
                    f"ConsistencyMiddleware is behind {before.rpartition('.')[2]}, which {_BEFORE[before]}.",
                    hint=f"Put {MIDDLEWARE!r} before {before!r}.",
                    obj="MIDDLEWARE",
                    id="ps_django.E004",
                )
    primaries = {alias for alias in set(families(ours).values()) if _gives_tokens(alias, ours)}
    if len(primaries) > MAX_BRANCHES:
        yield Warning(
            f"A token names {MAX_BRANCHES} databases, those that its user saw last, and {len(primaries)} give tokens.",
            hint='Write ps_consistency="none" for those whose users need not see their own writes at once.',
            obj="DATABASES",
            id="ps_django.W018",
        )


def _gives_tokens(alias: str, ours: dict[str, Any]) -> bool:
    try:
        return consistency_of(alias, ours[alias], ours) != "none"
    except ConfigurationError:
        return True  # the check of its entry says it


def _of_entry(alias: str, entry: dict[str, Any], endpoint: Endpoint) -> Iterator[CheckMessage]:
    age, timeouts = entry.get("CONN_MAX_AGE", 0), endpoint.timeouts
    if endpoint.role == "replica" and "|" not in endpoint.user and endpoint.host.endswith(".psdb.cloud"):
        yield Error(
            f"{alias!r} is a replica's alias, but its user names no replica bouncer and no |replica: it leads to the primary.",
            hint='Write ps_django.databases(url, replica_bouncer="NAME"), or USER|NAME by hand.',
            obj=alias,
            id="ps_django.E005",
        )
    primary = (entry.get("OPTIONS") or {}).get("ps_primary", alias)
    if entry.get("ATOMIC_REQUESTS") and primary != alias:
        yield Warning(
            f"ATOMIC_REQUESTS of {alias!r}: each request begins a transaction there as well, and connects for it.",
            hint=f"Set ATOMIC_REQUESTS of {primary!r} alone: in its block, too, reads go to replicas until something is written.",
            obj=alias,
            id="ps_django.W017",
        )
    if timeouts.statement is None and endpoint.role != "direct":
        yield Warning(
            f"{alias!r} has no statement timeout: a statement may hold a pooler's connection for ever.",
            hint='Write statement_timeout="2s"; ps_django.limits(statement="60s") is for what takes longer.',
            obj=alias,
            id="ps_django.W006",
        )
    if endpoint.pooled and (age is None or age > 86_400):
        yield Warning(
            f"CONN_MAX_AGE={age!r} of {alias!r}: bouncers drain within 24 hours, and close what is left then.",
            hint="Write CONN_MAX_AGE=3600.",
            obj=alias,
            id="ps_django.W007",
        )
    mode = endpoint.sslmode
    if mode != "verify-full" and not (endpoint.host in ("", "localhost", "127.0.0.1", "::1") or endpoint.host.startswith("/")):
        yield Warning(
            f"sslmode={mode} of {alias!r}: whoever is in between can be the server.",
            hint="Write sslmode=verify-full and sslrootcert=system (the defaults on PlanetScale) in the URL or in OPTIONS.",
            obj=alias,
            id="ps_django.W008",
        )


def _of_applications(pooled: list[str]) -> Iterator[CheckMessage]:
    """Look through the sources of the project's applications, and of installed ones, for what needs a session."""
    places = list(_places()) if pooled else []
    for alias in pooled:
        for place, installed in places:
            hint = "Use connections['direct'] there, or pg_advisory_xact_lock() in atomic()."
            if installed:
                hint = "Let it use the alias 'direct', or locks of a transaction, if it can; else it does not work here."
            yield Warning(
                f"{place} uses what needs a session, and {alias!r} is pooled by transaction: a session advisory lock and LISTEN"
                " are refused there.",
                hint=hint,
                obj=alias,
                id="ps_django.W014",
            )


def _places() -> Iterator[tuple[str, bool]]:
    """Yield where a session is needed, as "file:line", and whether an installed package does; of each package the first place."""
    seen: set[Path] = set()  # an application may be in the folder of another
    for config in apps.get_app_configs():
        installed = not {"site-packages", "dist-packages"}.isdisjoint(Path(config.path).parts)
        if config.name.startswith("django."):
            continue
        for file in _sources(config.path):
            if file in seen:
                continue
            seen.add(file)
            line = _line(file)
            if line is not None:
                yield f"{file}:{line}", installed
                if installed:
                    break


def _sources(path: str) -> Iterator[Path]:
    for folder, folders, files in os.walk(path):
        folders[:] = sorted(name for name in folders if name not in _ELSEWHERE)
        yield from (Path(folder, name) for name in sorted(files) if name.endswith(".py") and name not in _ELSEWHERE)


def _line(file: Path) -> int | None:
    """Return the line of the first string in a source that needs a session: no comment, and no docstring."""
    try:
        source = file.read_bytes()
        if not _WORDS.search(source):
            return None
        with warnings.catch_warnings(action="ignore"):  # of what others wrote
            tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError):
        return None  # a broken link, a template of a source
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    lines = (
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant | ast.JoinedStr) and id(node) not in prose and _SESSION.match(_text_of(node))
    )
    return min(lines, default=None)


def _text_of(node: ast.Constant | ast.JoinedStr) -> str:
    """Return a string's text; what an f-string is filled with is not known."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    return "".join(_text_of(part) if isinstance(part, ast.Constant) else "%s" for part in node.values)


@_linked
def check_databases(app_configs: Any = None, databases: Sequence[str] | None = None, **_: Any) -> list[CheckMessage]:
    """Ask the servers of `databases`."""
    found: list[CheckMessage] = []
    for alias in databases or ():
        connection: Any = connections[alias]
        if not isinstance(connection, DatabaseWrapper):
            continue
        try:
            found += _of_path(alias, connection)
            found += _of_rights(alias, connection)
        except ConfigurationError as exc:
            found.append(Error(str(exc), hint="The message says what to write.", obj=alias, id="ps_django.E001"))
        except (DjangoDatabaseError, psycopg.Error) as exc:
            found.append(
                Error(
                    f"{alias!r} cannot be asked: {type(exc).__name__}: {str(exc).splitlines()[0] if str(exc) else ''}",
                    hint="Look at the alias's host, port, user and password, and whether the branch is awake.",
                    obj=alias,
                    id="ps_django.E009",
                )
            )
    return found


def _of_path(alias: str, connection: Any) -> Iterator[CheckMessage]:
    state = connection.ps_state
    endpoint = state.endpoint
    if not endpoint.read_only or connection.ps_mirrors is not None:
        answer = _ask(connection)
    else:
        # The alias's connection goes to the primary for what a replica has not replayed, and stays there a while after an outage.
        # The question is who answers at the endpoint itself.
        try:
            with use_token(None), Connection.open(state, policy=ONCE, autocommit=True) as client:
                answer = _ask(client)
        except psycopg.OperationalError as exc:
            _ask(connection)  # fails where nobody answers in its place
            answers = f"cannot be reached: a primary answers in its place ({str(exc).splitlines()[0]})"
            yield _warning("primary", alias, answers=answers)
            return
    shared = None
    if endpoint.pooled and answer.behind_pooler and not endpoint.read_only:  # a replica bouncer has several servers
        with Connection.open(state, autocommit=True) as first, Connection.open(state, autocommit=True) as second:
            shared = share_a_server(partial(_process, first), partial(_process, second))
    for fault in faults(endpoint, answer, shared=shared):
        if fault in _OF_FAULTS:
            yield _warning(fault, alias, answers="is a primary's")


def _of_rights(alias: str, connection: Any) -> Iterator[CheckMessage]:
    direct = connection.settings_dict["OPTIONS"].get("ps_direct")
    if direct is None or direct not in connections:
        return
    answer = _ask(connections[direct])
    connections[direct].close()
    if not answer.may_create:
        yield Error(
            f"Migrations of {alias!r} run as {answer.role!r}, which may not create tables.",
            hint="GRANT CREATE ON SCHEMA public, or name another role with direct_url=.",
            obj=direct,
            id="ps_django.E012",
        )


def _ask(connection: Any) -> Answer:
    """Ask over a connection of Django's, or of the driver's."""
    with connection.cursor() as cursor:
        cursor.execute(QUESTION)
        return Answer.of(cursor.fetchone(), pid=cursor.connection.info.backend_pid)


def _process(client: Connection[Any]) -> int:
    ((pid,),) = client.execute(PROCESS)
    return int(pid)


def _warning(fault: Fault, alias: str, **fields: str) -> CheckMessage:
    number, wrong, hint = _OF_FAULTS[fault]
    return Warning(wrong.format(alias=alias, **fields), hint=hint, obj=alias, id=number)
