"""Run SQLAlchemy's compliance suite through the primary's bouncer, with stock `postgresql+psycopg` and then with `postgresql+ps`.

Prints both totals, and exits with 1 if a test failed, or was left out, with ours that passed with stock. Arguments are pytest's,
as in `-k Returning`.
"""

import os
import subprocess
import sys
import tarfile
from pathlib import Path
from xml.etree import ElementTree as ET

import sqlalchemy as sa

from ps_lab import Lab

ROOT = Path(__file__).parents[3]
FOLDER = Path(__file__).parent
CACHE = ROOT / ".cache" / "suites"


def requirements() -> Path:
    """Return the folder that holds SQLAlchemy's own `test/requirements.py`, of the version that is installed."""
    folder = CACHE / f"sqlalchemy-{sa.__version__}"
    found = folder / "sqlalchemy_requirements.py"
    if not found.exists():
        folder.mkdir(parents=True, exist_ok=True)
        source = f"SQLAlchemy=={sa.__version__}"
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", "SQLAlchemy", "-d", str(folder), source]
        subprocess.run(pip, check=True)
        (archive,) = folder.glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            (name,) = [name for name in tar.getnames() if name.count("/") == 2 and name.endswith("/test/requirements.py")]
            text = tar.extractfile(name)
            assert text is not None
            found.write_bytes(text.read())
        archive.unlink()
    return folder


def urls(lab: Lab) -> dict[str, sa.URL]:
    """Return a URL for each dialect, each with a database of its own; both name the primary's dedicated bouncer."""
    primary = lab.topology.primary
    stock = sa.URL.create(
        "postgresql+psycopg", primary.user, primary.password, primary.host, primary.port, query=dict(primary.params)
    )
    ours = sa.make_url(lab.url).set(drivername="postgresql+ps").update_query_dict({"ps_bouncer": "write-pool"})
    return {name: url.set(database=f"suite_{name}") for name, url in (("stock", stock), ("ours", ours))}


def run(name: str, url: sa.URL, more: list[str]) -> dict[str, str]:
    """Return what became of each test: "passed", "skipped" or "failed"."""
    report = CACHE / f"{name}.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-c", str(FOLDER / "pytest.ini"), "--rootdir", str(FOLDER)]
    command += [f"--dburi={url.render_as_string(hide_password=False)}", f"--junit-xml={report}", *more, str(FOLDER / "suite.py")]
    path = os.pathsep.join([str(requirements()), str(ROOT)])
    subprocess.run(command, check=False, cwd=ROOT, env={**os.environ, "PYTHONPATH": path})
    if not report.exists():
        raise SystemExit(f"{name}: pytest ended without a report")
    outcomes: dict[str, str] = {}
    for case in ET.parse(report).iter("testcase"):
        bad = case.find("failure") is not None or case.find("error") is not None
        outcome = "failed" if bad else "skipped" if case.find("skipped") is not None else "passed"
        key = f"{case.get('classname')}::{case.get('name')}"
        # A test whose teardown fails, too, has two entries.
        if outcomes.get(key) != "failed":
            outcomes[key] = outcome
    return outcomes


def main() -> int:
    """Run both and compare."""
    CACHE.mkdir(parents=True, exist_ok=True)
    requirements()
    # DROP DATABASE waits for the bouncer's idle connections.
    with Lab(replicas=1, server_idle_timeout=1) as lab:
        targets = urls(lab)
        for url in targets.values():
            lab.sql(f"CREATE DATABASE {url.database} OWNER app")
            for schema in ("test_schema", "test_schema_2"):
                lab.sql(f"CREATE SCHEMA {schema} AUTHORIZATION app", dbname=str(url.database))
        outcomes = {name: run(name, url, sys.argv[1:]) for name, url in targets.items()}
    stock, ours = outcomes["stock"], outcomes["ours"]
    print(f"\nSQLAlchemy {sa.__version__}, dialect compliance suite through PgBouncer (transaction pooling)")
    print(f"{'':20}{'run':>8}{'passed':>8}{'failed':>8}{'skipped':>8}")
    for name, found in (("postgresql+psycopg", stock), ("postgresql+ps", ours)):
        counts = {outcome: sum(value == outcome for value in found.values()) for outcome in ("passed", "failed", "skipped")}
        print(f"{name:20}{counts['passed'] + counts['failed']:8}{counts['passed']:8}{counts['failed']:8}{counts['skipped']:8}")
    worse = sorted(test for test, outcome in ours.items() if outcome == "failed" and stock.get(test) != "failed")
    missing = sorted(test for test, outcome in stock.items() if outcome == "passed" and ours.get(test, "skipped") == "skipped")
    for what, tests in (("failed with ours alone", worse), ("not run with ours", missing)):
        for test in tests:
            print(f"{what}: {test}")
    return 1 if worse or missing or not ours else 0


if __name__ == "__main__":
    sys.exit(main())
