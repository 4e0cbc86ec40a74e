"""Run SQLAlchemy's compliance suite through the primary's bouncer: stock `postgresql+psycopg`, `postgresql+ps`, both for asyncio.

Prints all totals, and exits with 1 if a test failed, or was left out, with ours and not with stock. Arguments are pytest's, as in
`-k Returning`; without any, docs/generated/sqlalchemy-suite.md is written. Meanwhile other clients run transactions through the
same bouncer: with one client alone it would hand out the same server connection all the time.
"""

import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import psycopg
import sqlalchemy as sa

from ps_lab import Lab

ROOT = Path(__file__).parents[3]
FOLDER = Path(__file__).parent
CACHE = ROOT / ".cache" / "suites"
PAIRS = (("psycopg", "ps"), ("psycopg_async", "ps_async"))
"""The drivers of stock, and ours."""
NEIGHBOURS = 3
CLOSED = (
    "Closed for all, as a transaction pooler cannot give it: temporary tables, and a search path that is set for the session."
)


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
    """Return a URL for each dialect, each with a database of its own; all name the primary's dedicated bouncer."""
    primary = lab.topology.primary
    stock = sa.URL.create("postgresql", primary.user, primary.password, primary.host, primary.port, query=dict(primary.params))
    ours = sa.make_url(lab.url).update_query_dict({"ps_bouncer": "write-pool", "ps_session_state": "allow"})  # as with stock
    return {
        name: url.set(drivername=f"postgresql+{name}", database=f"suite_{name}")
        for pair in PAIRS
        for name, url in zip(pair, (stock, ours), strict=True)
    }


def run(name: str, url: sa.URL, more: list[str]) -> dict[str, str]:
    """Return what became of each test: "passed", "skipped" or "failed"."""
    report = CACHE / f"{name}.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-c", str(FOLDER / "pytest.ini"), "--rootdir", str(FOLDER)]
    command += [f"--dburi={url.render_as_string(hide_password=False)}", f"--junit-xml={report}", *more, str(FOLDER / "suite.py")]
    path = os.pathsep.join(filter(None, [str(requirements()), str(ROOT), os.environ.get("PYTHONPATH")]))
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


@contextmanager
def neighbours(lab: Lab, database: str) -> Iterator[None]:
    """Let other clients of the same role run small transactions in the database."""
    over = threading.Event()
    conninfo: dict[str, Any] = replace(lab.topology.primary, dbname=database).conninfo()

    def work() -> None:
        with psycopg.connect(**conninfo, prepare_threshold=None) as conn:
            while not over.wait(0.005):
                conn.execute("SET LOCAL work_mem = '1MB'")
                conn.commit()

    with ThreadPoolExecutor(NEIGHBOURS) as pool:
        running = [pool.submit(work) for _ in range(NEIGHBOURS)]
        try:
            yield
        finally:
            over.set()
        for future in running:
            future.result()


def main() -> int:
    """Run both and compare."""
    CACHE.mkdir(parents=True, exist_ok=True)
    requirements()
    with Lab(replicas=1, server_round_robin=1) as lab:
        targets = urls(lab)
        for url in targets.values():
            lab.sql(f"CREATE DATABASE {url.database} OWNER app")
            for schema in ("test_schema", "test_schema_2"):
                lab.sql(f"CREATE SCHEMA {schema} AUTHORIZATION app", dbname=str(url.database))
        outcomes = {}
        for name, url in targets.items():
            with neighbours(lab, str(url.database)):
                outcomes[name] = run(name, url, sys.argv[1:])
        version = lab.bouncers["write-pool"].version
    lines = ["", "| | run | passed | failed | skipped |", "|---|---|---|---|---|"]
    for name, found in outcomes.items():
        passed, failed, skipped = (sum(one == what for one in found.values()) for what in ("passed", "failed", "skipped"))
        lines.append(f"| `postgresql+{name}` | {passed + failed} | {passed} | {failed} | {skipped} |")
    what = f"SQLAlchemy {sa.__version__}, psycopg {psycopg.__version__}, PgBouncer {'.'.join(map(str, version))}"
    page = f"# SQLAlchemy's compliance suite\n\n{what}, {NEIGHBOURS} other clients. Made by `make test-suite-sqlalchemy`.\n"
    page += "\n".join(lines) + f"\n\n{CLOSED}\n"
    print(f"\n{page}")
    if not sys.argv[1:]:
        (ROOT / "docs" / "generated" / "sqlalchemy-suite.md").write_text(page)
    worse = 0
    for stock, ours in PAIRS:
        for test, outcome in sorted(outcomes[stock].items()):
            if outcome != "failed" and outcomes[ours].get(test) != outcome:
                worse += 1
                print(f"{outcome} with {stock}, {outcomes[ours].get(test, 'not run')} with {ours}: {test}")
    return 1 if worse or not all(outcomes.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
