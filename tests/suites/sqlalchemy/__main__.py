"""Run SQLAlchemy's tests through the primary's bouncer: stock `postgresql+psycopg`, `postgresql+ps`, both for asyncio.

Without arguments these are its compliance suite for dialects; with `http` the same over HTTPS, beside stock; with `own` its own
tests of the PostgreSQL dialect, of engines, sessions and transactions, from its source distribution. All other arguments are
pytest's, as in `-k Returning` or `own test/engine/test_pool.py`; without any, this part of docs/generated/sqlalchemy-suite.md is
written. `own last` runs nothing: it looks again at what the last whole run left. Meanwhile other clients run transactions through
the same bouncer: with one client alone it would hand out the same server connection all the time.

Prints all totals, and exits with 1 if a test did not end with ours as with stock and `differences.py` does not explain it, or if
what is explained there is no more.
"""

import json
import os
import secrets
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

import ps_core
from ps_lab import Lab
from tests.suites.sqlalchemy.differences import DIFFERENCES, LACKING, OF_HTTPS, Difference

Pairs = tuple[tuple[str, str], ...]

ROOT = Path(__file__).parents[3]
FOLDER = Path(__file__).parent
CACHE = ROOT / ".cache" / "suites"
PAGE = ROOT / "docs" / "generated" / "sqlalchemy-suite.md"
PAIRS: Pairs = (("psycopg", "ps"), ("psycopg_async", "ps_async"))
"""The drivers of stock, and ours."""
OVER_HTTPS: Pairs = (("psycopg", "ps_http_writing"),)
"""The same for `http`; see `plugin.Writing`."""
NEIGHBOURS = 3
OWN = ("test/dialect/postgresql", "test/engine", "test/orm/test_session.py", "test/orm/test_transaction.py")
CLOSED = (
    "Closed for all, as a transaction pooler cannot give it: temporary tables, and a search path that is set for the session."
)
WRITING = (
    "`ps_http_writing` is `ps_http` with connections that write, too, each statement committed by itself, so that the tests have"
    " something to read; what they leave, they cannot roll back. It offers the isolation levels that one statement can have."
)
LEFT_OUT = f"Left out for all, as the lab's PostgreSQL has none of it: {', '.join(LACKING.values())}."

Outcomes = dict[str, str]
"""What became of each test: "passed", "skipped" or "failed"."""


def source() -> Path:
    """Return the source distribution of the SQLAlchemy that is installed: what is installed has no tests."""
    folder = CACHE / f"sqlalchemy-{sa.__version__}"
    found = folder / f"sqlalchemy-{sa.__version__}"
    if not (found / "test" / "requirements.py").exists():
        name = f"SQLAlchemy=={sa.__version__}"
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", "SQLAlchemy", "-d", str(folder), name]
        subprocess.run(pip, check=True)
        (archive,) = folder.glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
        archive.unlink()
    return found


def urls(lab: Lab, pairs: Pairs) -> dict[str, sa.URL]:
    """Return a URL for each dialect, each with a database of its own; all name the primary's dedicated bouncer."""
    primary = lab.topology.primary
    stock = sa.URL.create("postgresql", primary.user, primary.password, primary.host, primary.port, query=dict(primary.params))
    ours = sa.make_url(lab.url).update_query_dict({"ps_bouncer": "write-pool", "ps_session_state": "allow"})  # as with stock
    return {
        name: url.set(drivername=f"postgresql+{name}", database=f"suite_{name}")
        for pair in pairs
        for name, url in zip(pair, (stock, ours), strict=True)
    }


def run(report: Path, url: sa.URL, folder: Path, arguments: list[str]) -> Outcomes:
    """Run pytest in a folder, whose setup.cfg names the requirements; return what became of each test."""
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-c", str(FOLDER / "pytest.ini"), "--rootdir", str(folder)]
    command += [f"--dburi={url.render_as_string(hide_password=False)}", f"--junit-xml={report}", *arguments]
    path = os.pathsep.join(filter(None, [str(source()), str(ROOT), os.environ.get("PYTHONPATH")]))
    subprocess.run(command, check=False, cwd=folder, env={**os.environ, "PYTHONPATH": path})
    if not report.exists():
        raise SystemExit(f"{report}: pytest ended without a report")
    outcomes: Outcomes = {}
    for case in ET.parse(report).iter("testcase"):
        bad = case.find("failure") is not None or case.find("error") is not None
        outcome = "failed" if bad else "skipped" if case.find("skipped") is not None else "passed"
        module, _, group = str(case.get("classname")).rpartition(".")
        # The suffix of classes that run with a database names dialect and version.
        key = f"{module.replace('.', '/')}.py::{group.partition('_postgresql+')[0]}::{case.get('name')}"
        # A test whose teardown fails, too, has two entries.
        if outcomes.get(key) != "failed":
            outcomes[key] = outcome
    return outcomes


@contextmanager
def neighbours(lab: Lab, database: str) -> Iterator[None]:
    """Let other clients of the same role run small transactions in the database."""
    over = threading.Event()
    conninfo: dict[str, Any] = ps_core.conninfo(replace(lab.topology.primary, dbname=database))

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


def run_all(name: str, folder: Path, arguments: list[str], pairs: Pairs = PAIRS) -> tuple[dict[str, Outcomes], str]:
    """Run pytest with all dialects; return the outcomes by dialect, and the versions of what ran."""
    outcomes = {}
    with Lab(replicas=1, server_round_robin=1) as lab:
        # Some of its own tests make URLs by replacing capital letters in what may already have the password.
        lab.set_password("app", f"pscale_pw_{secrets.token_hex(16)}")
        for dialect, url in urls(lab, pairs).items():
            lab.sql(f"CREATE DATABASE {url.database} OWNER app")
            for schema in ("test_schema", "test_schema_2"):
                lab.sql(f"CREATE SCHEMA {schema} AUTHORIZATION app", dbname=str(url.database))
            with neighbours(lab, str(url.database)):
                outcomes[dialect] = run(CACHE / f"{name}-{dialect}.xml", url, folder, arguments)
        pgbouncer = ".".join(map(str, lab.bouncers["write-pool"].version))
    versions = f"SQLAlchemy {sa.__version__}, psycopg {psycopg.__version__}, PgBouncer {pgbouncer}"
    return outcomes, f"{versions}, {NEIGHBOURS} other clients"


def differing(stock: Outcomes, ours: Outcomes) -> dict[str, tuple[str, str]]:
    """Return what became of tests with stock and with ours, where it is not the same. What fails with stock does not count."""
    both = {test: (stock.get(test, "not run"), ours.get(test, "not run")) for test in sorted(stock.keys() | ours.keys())}
    return {test: (theirs, own) for test, (theirs, own) in both.items() if theirs not in ("failed", own)}


def judge(outcomes: dict[str, Outcomes], explained: dict[str, Difference], whole: bool, pairs: Pairs = PAIRS) -> list[str]:
    """Return what is wrong: the differences that are not explained, and what is explained and is no difference any more."""
    wrong = []
    for stock, ours in pairs:
        found = differing(outcomes[stock], outcomes[ours])
        expected = {test for test, difference in explained.items() if ours in difference.dialects}
        if not whole:
            expected &= outcomes[ours].keys()
        wrong += [
            f"{theirs} with {stock}, {own} with {ours}: {test}" for test, (theirs, own) in found.items() if test not in expected
        ]
        wrong += [f"explained, but {stock} and {ours} do the same: {test}" for test in sorted(expected - found.keys())]
        wrong += [] if outcomes[stock] and outcomes[ours] else [f"nothing ran with {stock} and {ours}"]
    return wrong


def totals(outcomes: dict[str, Outcomes], pairs: Pairs = PAIRS) -> list[str]:
    """Return the lines of the table of totals, and what failed with both."""
    lines = ["| | run | passed | failed | skipped |", "|---|---|---|---|---|"]
    for name, found in outcomes.items():
        passed, failed, skipped = (sum(one == what for one in found.values()) for what in ("passed", "failed", "skipped"))
        lines.append(f"| `postgresql+{name}` | {passed + failed} | {passed} | {failed} | {skipped} |")
    both = [
        f"- `{test}` (`{stock}`, `{ours}`)"
        for stock, ours in pairs
        for test, outcome in sorted(outcomes[stock].items())
        if outcome == outcomes[ours].get(test) == "failed"
    ]
    return [*lines, "", "Failed with stock as well:", "", *both] if both else lines


def reasons(explained: dict[str, Difference], pairs: Pairs = PAIRS) -> list[str]:
    """Return the lines of the table of differences."""
    everywhere = tuple(ours for _, ours in pairs)
    lines = ["Passed with stock and not with ours. What is called a defect is to be mended; the rest are promises.", ""]
    lines += ["| test | with | why |", "|---|---|---|"]
    for test, difference in sorted(explained.items()):
        both = len(pairs) > 1 and difference.dialects == everywhere
        where = "both" if both else ", ".join(f"`{name}`" for name in difference.dialects)
        name = test.replace("|", "\\|")
        lines.append(f"| `{name}` | {where} | {'Defect: ' if difference.defect else ''}{difference.reason} |")
    return lines


def write(heading: str, lines: list[str]) -> None:
    """Put a part into the page, in place of the one of this heading; the other parts stay."""
    title, *parts = PAGE.read_text().split("\n## ")
    new = "\n".join([heading, "", *lines, ""])
    found = [part.partition("\n")[0] for part in parts]
    parts[found.index(heading)] = new
    PAGE.write_text("\n## ".join([title, *parts]))


def compliance(arguments: list[str]) -> list[str]:
    """Run the suite for dialects; return what is wrong."""
    outcomes, versions = run_all("sqlalchemy", FOLDER, [*arguments, "suite.py"])
    lines = [f"{versions}. Made by `make test-suite-sqlalchemy`.", "", *totals(outcomes), "", CLOSED]
    print("\n".join(["", *lines, ""]))
    if not arguments:
        write("Its suite for dialects", lines)
    return judge(outcomes, {}, whole=not arguments)


def over_https(arguments: list[str]) -> list[str]:
    """Run the suite for dialects over HTTPS, each statement by itself; return what is wrong."""
    outcomes, versions = run_all("sqlalchemy-http", FOLDER, [*arguments, "suite.py"], OVER_HTTPS)
    lines = [f"{versions}. Made by `make test-suite-sqlalchemy ARGS=http`.", "", *totals(outcomes, OVER_HTTPS), "", WRITING]
    print("\n".join(["", *lines, ""]))
    if not arguments:
        write("Its suite for dialects, over HTTPS", [*lines, "", *reasons(OF_HTTPS, OVER_HTTPS)])
    return judge(outcomes, OF_HTTPS, not arguments, OVER_HTTPS)


def own(arguments: list[str]) -> list[str]:
    """Run SQLAlchemy's own tests, or look at those of the last whole run; return what is wrong."""
    last = CACHE / "sqlalchemy-own.json"
    if arguments == ["last"]:
        arguments = []
        outcomes, versions = json.loads(last.read_text())
    else:
        named = any(argument.startswith("test/") for argument in arguments)
        outcomes, versions = run_all("sqlalchemy-own", source(), [*arguments, *(() if named else OWN)])
        if not arguments:
            last.write_text(json.dumps([outcomes, versions]))
    lines = [f"{versions}. Made by `make test-suite-sqlalchemy ARGS=own`.", "", *totals(outcomes), "", LEFT_OUT]
    print("\n".join(["", *lines, ""]))
    if not arguments:
        write("Its own tests", [*lines, "", *reasons(DIFFERENCES)])
    return judge(outcomes, DIFFERENCES, whole=not arguments)


def main() -> int:
    """Run one of them and compare."""
    CACHE.mkdir(parents=True, exist_ok=True)
    arguments = sys.argv[1:]
    suites = {"own": own, "http": over_https}
    wrong = suites[arguments[0]](arguments[1:]) if arguments and arguments[0] in suites else compliance(arguments)
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
