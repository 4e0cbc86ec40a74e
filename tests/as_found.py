"""Each file finds the lab as if it was the first: it does not matter which one ran before, in the same process.

What a file has made in the database, and set in the poolers, is undone at its end. What it has broken fails its last test, and is
repaired for the others.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Final

import pytest
from django.conf import settings
from django.db import connections

from ps_lab.lab import APP
from ps_lab.pgbouncer import ADMIN
from ps_lab.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ps_lab import Lab

KEPT: Final = ("site", "registered")
"""Fixtures that outlive a file and make something in the database: they are there before it is looked at."""
_MADE: Final = """
SELECT found.type, found.identity, pg_describe_object(classid, objid, 0) FROM (
    SELECT classid, objid FROM pg_depend WHERE deptype = 'n'
    UNION SELECT classid, objid FROM pg_shdepend
    WHERE dbid IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
    UNION SELECT 'pg_namespace'::regclass, oid FROM pg_namespace
    UNION SELECT 'pg_authid'::regclass, oid FROM pg_authid
    UNION SELECT 'pg_database'::regclass, oid FROM pg_database
) AS made, pg_identify_object(classid, objid, 0) AS found WHERE objid >= 16384 AND found.schema IS DISTINCT FROM 'pg_toast'
AND found.identity !~ '^pg_(toast_)?temp'
UNION SELECT 'settings', setrole::regrole::text, format('%s of role %s in database %s', setconfig, setrole::regrole, setdatabase)
FROM pg_db_role_setting
"""
"""What no initdb made, apart from what belongs to another object (indexes, constraints, the types of rows)."""
_DROPPED: Final = {
    **dict.fromkeys(("schema", "extension", "view", "materialized view", "table", "sequence"), "CASCADE"),
    **dict.fromkeys(("function", "procedure", "type"), "CASCADE"),
    "database": "WITH (FORCE)",
    "role": "",
}
"""What is dropped where a file has left it, in this order, and how."""
_CHANGED: Final = """
SELECT name, setting FROM pg_file_settings
WHERE sourcefile ~ 'auto.conf$' AND name NOT IN ('primary_conninfo', 'recovery_min_apply_delay')
"""
_FOLLOWING: Final = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"


@pytest.fixture(scope="module", autouse=True)
def as_found(request: pytest.FixtureRequest) -> Iterator[None]:
    """Bring the session's lab back at the end of a file."""
    asked = _fixtures(request.session).get(request.path, frozenset())
    if "ps_lab" not in asked:
        yield
        return
    lab: Lab = request.getfixturevalue("ps_lab")
    for name in KEPT:
        if name in asked:
            request.getfixturevalue(name)
    before, poolers = _state(lab), {bouncer: dict(bouncer._settings) for bouncer in lab.bouncers.values()}
    yield
    if settings.configured:
        connections.close_all()  # another file may change the primary under them
    broken = bring_back(lab)
    for bouncer, found in poolers.items():
        if bouncer._settings != found:
            bouncer._settings = found
            bouncer.reload()
    after = _state(lab)
    if made := {(kind, name) for kind, name, _ in after - before}:
        _drop(lab, made)
        after = _state(lab)
    left = sorted(what for _, _, what in after ^ before)
    assert not broken + left, f"{request.path.name} has not left the lab as it found it: {'; '.join(broken + left)}"


@cache
def _fixtures(session: pytest.Session) -> dict[Path, frozenset[str]]:
    """Return the fixtures that the tests of each file ask for."""
    found: dict[Path, set[str]] = {}
    for item in session.items:
        found.setdefault(item.path, set()).update(getattr(item, "fixturenames", ()))
    return {path: frozenset(names) for path, names in found.items()}


def _state(lab: Lab) -> set[tuple[str, str, str]]:
    """Return what is there, by its kind, its name, and in words: objects, and settings of roles and servers."""
    state = {(kind, name, what) for kind, name, what in lab.sql(_MADE)}
    for server in lab.servers:
        state |= {("", "", f"{server.name}: {name} = {value}") for name, value in server.sql(_CHANGED)}
    return state


def _drop(lab: Lab, made: set[tuple[str, str]]) -> None:
    """Drop what a file has made in the database: the next may make its own by the same name, or look at all there is."""
    for kind, how in _DROPPED.items():
        for name in sorted(name for of, name in made if of == kind):
            if kind == "role":
                lab.sql(f"DROP OWNED BY {name}")
            lab.sql(f"DROP {kind} IF EXISTS {name} {how}")
    lab.wait_replicas_caught_up()


def bring_back(lab: Lab) -> list[str]:
    """Bring back servers, poolers, the edge and who may log in: all up and following, without a fault. Return what was broken."""
    broken = []
    status = lab.edge.status()
    if status["hung"] or status["delay"] or status["refusal"] or status["answer_cuts"]:
        broken.append(f"the edge: {status}")
        lab.edge.resume()
    for name, bouncer in lab.bouncers.items():
        if not bouncer.running:
            broken.append(f"{name} was down")
            bouncer.start()
    lab.wait_replicas_caught_up()  # also for a server that comes back in the background
    if down := [replica.name for replica in lab.replicas if not replica.running]:
        broken.append(f"{', '.join(down)} down")
        lab.restart_replica()
    if lab.sql("SELECT 1 FROM pg_settings WHERE name = 'recovery_min_apply_delay' AND setting <> '0'"):
        broken.append("a replay delay")
        lab.set_replay_delay(0)
    for role in lab._passwords.keys() - {APP, ADMIN}:
        lab.drop_role(role)
    wait_until(lambda: lab.sql(_FOLLOWING) == [(len(lab.replicas),)], "replicas that follow")
    return broken
