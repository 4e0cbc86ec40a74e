"""Run Django's own tests with its PostgreSQL backend and with ours: on the direct path, and through the primary's bouncer.

Prints all totals, and exits with 1 if a test failed, or was left out, with ours and not with stock on the same path. Arguments
are labels and options of Django's `runtests.py`; without any, all of `LABELS` run and docs/generated/django-suite.md is written.
Meanwhile other clients run transactions through the bouncer: with one client alone it would hand out the same server connection
all the time.
"""

import json
import os
import subprocess
import sys
import tarfile
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import django
import psycopg

from ps_core.topology import Endpoint
from ps_lab import Lab
from tests.suites.sqlalchemy.__main__ import NEIGHBOURS, neighbours

ROOT = Path(__file__).parents[3]
FOLDER = Path(__file__).parent
CACHE = ROOT / ".cache" / "suites"
LABELS = [
    "backends",
    "transactions",
    "transaction_hooks",
    "multiple_database",
    "queries",
    "basic",
    "get_or_create",
    "delete",
    "update",
    "defer",
    "model_inheritance",
    "prefetch_related",
    "signals",
    "handlers",
    "lookup",
    "aggregation",
    "bulk_create",
    "select_for_update",
    "migrations",
    "schema",
    "introspection",
]

WITH_BOTH = (
    "With both backends: what fails on both paths needs collations of ICU, which the lab's PostgreSQL is built without; what"
    " fails on the pooled path alone looks for server-side cursors, which are switched off there."
)


def tests() -> Path:
    """Return the folder of the tests of the Django that is installed."""
    version = django.get_version()
    folder = CACHE / f"django-{version}"
    if not folder.joinpath(f"django-{version}", "tests", "runtests.py").exists():
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "-d", str(folder)]
        subprocess.run([*pip, f"Django=={version}"], check=True)
        (archive,) = folder.glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
        archive.unlink()
    return folder / f"django-{version}" / "tests"


def entry(endpoint: Endpoint, engine: str, database: str) -> dict[str, Any]:
    """Return an entry of `DATABASES`; the database is also that of the tests, which `--keepdb` uses as it is."""
    options: dict[str, Any] = dict(endpoint.params)
    more: dict[str, Any] = {}
    if engine == "ps_django.backend":
        options |= {"ps_role": endpoint.role, "ps_pooled": endpoint.pooled, "ps_session_state": "allow"}  # as with stock
    else:
        more["DISABLE_SERVER_SIDE_CURSORS"] = endpoint.pooled  # what Django's documentation tells those behind a pooler
    return {
        "ENGINE": engine,
        "NAME": database,
        "USER": endpoint.user,
        "PASSWORD": endpoint.password,
        "HOST": endpoint.host,
        "PORT": str(endpoint.port),
        "OPTIONS": options,
        "TEST": {"NAME": database},
        **more,
    }


def run(name: str, databases: dict[str, Any], more: list[str]) -> dict[str, str]:
    """Return what became of each test: "passed", "skipped" or "failed"."""
    report, log = CACHE / f"{name}.json", CACHE / f"{name}.log"
    report.unlink(missing_ok=True)
    path = os.pathsep.join(filter(None, [str(FOLDER), os.environ.get("PYTHONPATH")]))
    environment = {
        **os.environ,
        "PYTHONPATH": path,
        "SUITE_DATABASES": json.dumps(databases),
        "SUITE_REPORT": str(report),
    }
    command = [sys.executable, "runtests.py", "--settings=suite_settings", "--keepdb", "--noinput", "--parallel=1", *more]
    with log.open("w") as out:
        subprocess.run(command, check=False, cwd=tests(), env=environment, stdout=out, stderr=subprocess.STDOUT)
    if not report.exists():
        raise SystemExit(f"{name}: ended without a report: see {log}")
    outcomes: dict[str, str] = json.loads(report.read_text())
    return outcomes


def label(test: str) -> str:
    """Return the label that a test belongs to; where a class could not be set up, its name is in brackets."""
    return test.rpartition("(")[2].partition(".")[0]


def worse(stock: dict[str, str], ours: dict[str, str]) -> list[str]:
    """Return what failed, or was left out, with ours alone."""
    found = []
    for test in sorted(stock.keys() | ours.keys()):
        theirs, own = stock.get(test, "not run"), ours.get(test, "not run")
        if theirs != "failed" and own not in ("passed", theirs):
            found.append(f"{theirs} with stock, {own} with ours: {test}")
    return found


def page(outcomes: dict[tuple[str, str], dict[str, str]], pgbouncer: str) -> str:
    """Return the totals side by side, and what failed."""
    lines = ["# Django's own tests", ""]
    versions = f"Django {django.get_version()}, psycopg {psycopg.__version__}, PgBouncer {pgbouncer}"
    lines.append(f"{versions}, {NEIGHBOURS} other clients of each pooled database.")
    lines += ["Made by `make test-suite-django`; ours has `ReplicaRouter`, with what it changes of Django's ORM."]
    lines += ["Each cell: passed / failed / skipped.", ""]
    lines += ["| |" + "".join(f" {path}, {backend} |" for path, backend in outcomes), "|---|" + "---|" * len(outcomes)]
    counts = {key: Counter((label(test), outcome) for test, outcome in found.items()) for key, found in outcomes.items()}
    labels = sorted({name for count in counts.values() for name, _ in count})
    for title, names in (*((f"`{name}`", [name]) for name in labels), ("all", labels)):
        cells = [
            " / ".join(str(sum(count[name, what] for name in names)) for what in ("passed", "failed", "skipped"))
            for count in counts.values()
        ]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    lines += ["", WITH_BOTH]
    failed: dict[str, list[str]] = {}
    for (path, backend), found in outcomes.items():
        for test, outcome in found.items():
            if outcome == "failed":
                failed.setdefault(test, []).append(f"{path}, {backend}")
    for where in sorted({"; ".join(places) for places in failed.values()}):
        lines += ["", f"Failed: {where}", ""]
        lines += [f"- `{test}`" for test in sorted(failed) if "; ".join(failed[test]) == where]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run all four and compare."""
    CACHE.mkdir(parents=True, exist_ok=True)
    tests()
    outcomes: dict[tuple[str, str], dict[str, str]] = {}
    with Lab(replicas=1, server_round_robin=1) as lab:
        version = ".".join(map(str, lab.bouncers["write-pool"].version))
        lab.sql("ALTER ROLE app SET synchronous_commit = local")  # schemas change all the time: no commit waits for the replica
        for path, endpoint in (("direct", lab.topology.direct), ("pooled", lab.topology.primary)):
            for backend, engine in (("stock", "django.db.backends.postgresql"), ("ours", "ps_django.backend")):
                name = f"django_{path}_{backend}"
                for database in (name, f"{name}_other"):
                    lab.sql(f"CREATE DATABASE {database} OWNER app")
                databases = {
                    "default": entry(endpoint, engine, name),
                    "other": entry(endpoint, engine, f"{name}_other"),
                }
                with ExitStack() as others:
                    if endpoint.pooled:
                        for database in (name, f"{name}_other"):
                            others.enter_context(neighbours(lab, database))
                    outcomes[path, backend] = run(name, databases, sys.argv[1:] or LABELS)
                print(f"{path}, {backend}: {len(outcomes[path, backend])} tests", flush=True)
    text = page(outcomes, version)
    print(f"\n{text}")
    if not sys.argv[1:]:
        (ROOT / "docs" / "generated" / "django-suite.md").write_text(text)
    wrong = [f"{path}: {one}" for path in ("direct", "pooled") for one in worse(outcomes[path, "stock"], outcomes[path, "ours"])]
    print("\n".join(wrong))
    return 1 if wrong or not all(outcomes.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
