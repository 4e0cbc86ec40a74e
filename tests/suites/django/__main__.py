"""Run Django's own tests with its PostgreSQL backend and with ours: on the direct path, and through the primary's bouncer.

Prints all totals, and exits with 1 if a test failed, or was left out, with ours and not with stock on the same path. Arguments are
labels and options of Django's `runtests.py`; without any, all of `LABELS` run and docs/generated/django-suite.md is written.
"""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import django
import psycopg

from ps_core.topology import Endpoint
from ps_lab import Lab

ROOT = Path(__file__).parents[3]
FOLDER = Path(__file__).parent
CACHE = ROOT / ".cache" / "suites"
LABELS = (
    "backends transactions transaction_hooks multiple_database queries basic lookup aggregation bulk_create select_for_update"
    " migrations schema introspection"
).split()


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
        options |= {"ps_role": endpoint.role, "ps_pooled": endpoint.pooled}
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


def main() -> int:
    """Run all four and compare."""
    CACHE.mkdir(parents=True, exist_ok=True)
    tests()
    outcomes: dict[tuple[str, str], dict[str, str]] = {}
    # Idle server connections block DROP DATABASE; a database that is not there yet is tried again soon.
    with Lab(replicas=1, server_round_robin=1, server_idle_timeout=1, server_login_retry=1) as lab:
        version = ".".join(map(str, lab.bouncers["write-pool"].version))
        for path, endpoint in (("direct", lab.topology.direct), ("pooled", lab.topology.primary)):
            for backend, engine in (("stock", "django.db.backends.postgresql"), ("ours", "ps_django.backend")):
                name = f"django_{path}_{backend}"
                for database in (name, f"{name}_other"):
                    lab.sql(f"CREATE DATABASE {database} OWNER app")
                databases = {
                    "default": entry(endpoint, engine, name),
                    "other": entry(endpoint, engine, f"{name}_other"),
                }
                outcomes[path, backend] = run(name, databases, sys.argv[1:] or LABELS)
                print(f"{path}, {backend}: {len(outcomes[path, backend])} tests", flush=True)
    lines = ["", "| path | backend | run | passed | failed | skipped |", "|---|---|---|---|---|---|"]
    for (path, backend), found in outcomes.items():
        passed, failed, skipped = (sum(one == what for one in found.values()) for what in ("passed", "failed", "skipped"))
        lines.append(f"| {path} | {backend} | {passed + failed} | {passed} | {failed} | {skipped} |")
    what = f"Django {django.get_version()}, psycopg {psycopg.__version__}, PgBouncer {version}; labels: {', '.join(LABELS)}"
    page = f"# Django's own tests\n\n{what}.\nMade by `make test-suite-django`.\n" + "\n".join(lines) + "\n"
    print(f"\n{page}")
    if not sys.argv[1:]:
        (ROOT / "docs" / "generated" / "django-suite.md").write_text(page)
    worse = 0
    for path in ("direct", "pooled"):
        for test, outcome in sorted(outcomes[path, "stock"].items()):
            ours = outcomes[path, "ours"].get(test, "not run")
            if outcome != "failed" and ours != outcome:
                worse += 1
                print(f"{path}: {outcome} with stock, {ours} with ours: {test}")
    return 1 if worse or not all(outcomes.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
