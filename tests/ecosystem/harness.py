"""Sites started and asked to work, and what is written of them."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import django
import psycopg
import sqlalchemy

import ps_core
from docs.examples.django_shop import run
from ps_core.topology import Topology
from ps_lab import Lab
from tests.ecosystem.packages import PACKAGES, Package

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "generated" / "ecosystem.md"
LATE = 0.5
"""Seconds that replicas are late."""


class Site:
    """A running site."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        assert self._told() == {"ready": True}

    def work(self) -> dict[str, Any]:
        """Let it work once; return its `outcome`, or its `error`."""
        assert self.process.stdin is not None
        print(file=self.process.stdin, flush=True)
        return self._told()

    def _told(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the site has ended: look at what it printed"
        told: dict[str, Any] = json.loads(line)
        return told


@contextmanager
def site(lab: Lab, name: str, *, stock: bool) -> Iterator[Site]:
    """Start a site in a new database, with our backend behind the bouncers, or with Django's own on the direct path."""
    with run.database(lab, "ecosystem") as urls:
        for extension in PACKAGES[name].extensions:
            lab.sql(f"CREATE EXTENSION {extension}", dbname="ecosystem")
        env = {**os.environ, "SITE": name, **(stock_environment(lab) if stock else urls)}
        process = subprocess.Popen(
            [sys.executable, "-m", PACKAGES[name].program],
            cwd=ROOT,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            yield Site(process)
        finally:
            try:
                process.communicate(timeout=20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # with the commands that it runs beside it
                process.communicate()


def stock_environment(lab: Lab) -> dict[str, str]:
    """Return where the database is, as an entry of DATABASES for Django's own backend: the primary's direct path."""
    conninfo = dict(ps_core.conninfo(Topology.from_url(lab.url).direct))
    keys = {"host": "HOST", "port": "PORT", "user": "USER", "password": "PASSWORD"}
    entry: dict[str, object] = {new: conninfo[old] for old, new in keys.items()}
    options = {name: conninfo[name] for name in ("sslmode", "sslrootcert")}
    return {"STOCK": json.dumps({**entry, "NAME": "ecosystem", "OPTIONS": options})}


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a site did: calm, late, and while the primary changed."""

    calm: dict[str, Any]
    late: dict[str, Any]
    changing: list[dict[str, Any]]
    on_replicas: int
    """Messages that went to replicas while they were late."""


def found(lab: Lab, name: str, *, stock: bool) -> Found:
    """Let a site work, calm, with late replicas, and over a switchover."""
    with site(lab, name, stock=stock) as running, ThreadPoolExecutor(1) as pool:
        lab.wait_replicas_caught_up()
        calm = running.work()
        assert "error" not in calm, calm
        lab.set_replay_delay(LATE)
        try:
            with lab.round_trips() as trips:
                late = running.work()
            changed = pool.submit(lab.switchover)
            changing = []
            while not changed.done():
                changing.append(running.work())
            changing.append(running.work())
            changed.result()
        finally:
            lab.set_replay_delay(0)
    return Found(calm=calm, late=late, changing=changing, on_replicas=trips.by_path["replica"])


# --- the page ---

HEAD = """# Packages that people bring

<!-- Written by tests/ecosystem with PS_WRITE_DOCS=1; not by hand. -->

Each package at its real work on the lab (`make test-ecosystem`): behind the bouncers, on replicas that are half a second
late, and while the primary changes. What is in the table was done without an error and with the same outcome each time, that of
the framework's own backend on the direct path. The last column is what that one met over the same switchover.
{versions}

*works*: with the three settings alone. *works so*: with what the column names.

| package | version | | what it did | what to set, and to know | stock over the switchover |
|---|---|---|---|---|---|
"""


def row(package: Package, stock: Found) -> str:
    """Return what the page says of a package, its versions left open."""
    names = " with ".join(package.distributions)
    verdict = "works so" if package.write else "works"
    told = "; ".join(filter(None, (package.write, package.note)))
    errors = "errors" if any("error" in one for one in stock.changing) else "no error"
    return f"| {names} | {{}} | {verdict} | {package.does} | {told} | {errors} |"


def check_row(name: str, text: str) -> None:
    """Write a package's row, if PS_WRITE_DOCS says so; the page has to have it, whichever versions it names."""
    package = PACKAGES[name]
    rows = {line.split("|")[1]: line for line in PAGE.read_text().splitlines() if line.startswith("| ")} if PAGE.exists() else {}
    rows.pop(" package ", None)
    key = text.split("|")[1]
    if os.environ.get("PS_WRITE_DOCS"):
        rows[key] = text.format(", ".join(version(one) for one in package.distributions))
        versions = f"Django {django.__version__}, SQLAlchemy {sqlalchemy.__version__}, psycopg {psycopg.__version__}."
        PAGE.write_text(HEAD.format(versions=versions) + "\n".join(sorted(rows.values(), key=str.casefold)) + "\n")
    pattern = re.escape(text).replace(re.escape("{}"), "[^|]+")
    assert re.fullmatch(pattern, rows.get(key, "")), "write it anew: PS_WRITE_DOCS=1 make test-ecosystem"
