"""The code of the pages: what it shows to come of it, and what it is drawn to send, is what happens."""

import doctest
import re
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import ps_core
from ps_core._message.commit import marker_table_sql
from ps_core._message.functions import Functions
from ps_lab import Lab
from tests.docs.pages import DOCS, blocks_of

PAGES = sorted(page for folder in ("explanation", "howto", "reference") for page in (DOCS / folder).glob("*.md"))


def name_of(page: Path) -> str:
    return str(page.relative_to(DOCS))


@pytest.mark.parametrize("page", [page for page in PAGES if "```pycon" in page.read_text()], ids=name_of)
def test_sessions(page: Path) -> None:
    """What a page shows a Python session to print is what it prints."""
    text = "".join(block.text for block in blocks_of(page) if block.language == "pycon")
    test = doctest.DocTestParser().get_doctest(text, {}, name_of(page), str(page), 0)
    printed: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    runner.run(test, out=printed.append)
    assert not runner.summarize(verbose=False).failed, "".join(printed)


def modules_with_sessions() -> Iterator[str]:
    for package in ("ps_core", "ps_sqlalchemy", "ps_django", "ps_lab", "ps_demo", "ps_cli"):
        spec = find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        for file in sorted(Path(spec.origin).parent.rglob("*.py")):
            if "\n>>> " in file.read_text():
                yield ".".join((package, *file.relative_to(Path(spec.origin).parent).with_suffix("").parts))


@pytest.mark.parametrize("name", list(modules_with_sessions()))
def test_docstrings(name: str) -> None:
    """What a docstring shows a Python session to print is what it prints."""
    failed, tried = doctest.testmod(import_module(name))
    assert (failed, bool(tried)) == (0, True)


@pytest.fixture(scope="module")
def shop(ps_lab: Lab) -> Iterator[Lab]:
    """A lab with the table that the pages name."""
    for query in (
        "CREATE TABLE product (id int PRIMARY KEY, name text, stock int)",
        "GRANT ALL ON product TO app",
        "INSERT INTO product VALUES (1, 'teapot', 1000)",
        marker_table_sql(),
        "GRANT ALL ON ps_commit_marker TO app",
    ):
        ps_lab.sql(query)
    ps_lab.wait_replicas_caught_up()
    yield ps_lab
    ps_lab.sql("DROP TABLE product, ps_commit_marker")


def drawn(text: str) -> list[str]:
    """Return the messages of a drawing, and what came back of each."""
    return [" ".join(part.split()) for part in re.split(r"^(?=[→←])", text, flags=re.MULTILINE) if part]


def traced(connections: list[ps_core.Connection[Any]], code: str, namespace: dict[str, Any]) -> list[str]:
    """Run `code`, and return what libpq says was sent, and what commands were reported to be done."""
    with ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile("w+b")) for _ in connections]
        for connection, file in zip(connections, files, strict=True):
            connection.pgconn.trace(file.fileno())
            stack.callback(connection.pgconn.untrace)
        exec(compile(code, "page", "exec"), namespace)
        lines: list[tuple[str, str]] = []
        for connection, file in zip(connections, files, strict=True):
            connection.pgconn.untrace()
            file.seek(0)
            entries = re.findall(
                r"^(\S+ \S+)\t[FB]\t\d+\t(Query|CommandComplete)\t \"(.*?)\"$", file.read().decode(), re.DOTALL | re.MULTILINE
            )
            lines += [(at, f"{kind} {text}") for at, kind, text in entries]
    found: list[str] = []
    for _, line in sorted(lines, key=lambda entry: entry[0]):
        kind, _, text = line.partition(" ")
        if kind == "Query":
            found += ["→ " + text, "←"]
        else:
            found[-1] += f" {text},"
    return [line.rstrip(",") for line in found]


def matches(wanted: str, found: str) -> bool:
    """Return whether a drawn message is what was sent: spaces do not matter, `…` is anything, WAL positions differ."""
    wanted, found = (re.sub(r"'[0-9A-F]+/[0-9A-F]+'", "LSN", re.sub(r"\s", "", text)) for text in (wanted, found))
    return re.fullmatch(".*".join(map(re.escape, wanted.split("…"))), found) is not None


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent.name == "explanation"], ids=name_of)
def test_drawings(page: Path, shop: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The messages that a page draws below its code are those that travel, each with the answer that is drawn."""
    # Once a minute, a message asks for the names of functions behind it: it may be any of these.
    monkeypatch.setattr(Functions, "is_due", lambda *_: False)
    blocks = blocks_of(page)
    topology = shop.topology
    with ExitStack() as stack, ps_core.use_token(None):
        connection, replica, direct = (
            stack.enter_context(closing(ps_core.connect(topology, to=to))) for to in ("primary", "replica", "direct")
        )
        connection.execute("UPDATE product SET stock = stock")  # so that something has been seen
        connection.commit()
        commit = connection.commit

        def commit_everywhere() -> None:
            commit()
            shop.wait_replicas_caught_up()  # the drawing is of a replica that is not behind

        connection.commit = commit_everywhere  # type: ignore[method-assign]
        namespace = {"ps_core": ps_core, "connection": connection, "replica": replica, "direct": direct}
        for number, block in enumerate(blocks):
            if block.language != "python":
                continue
            after = blocks[number + 1]
            shop.wait_replicas_caught_up()
            found = traced([connection, replica, direct], block.text, namespace)
            assert after.language == "text", f"{page}:{block.line}: nothing is drawn"
            wanted = drawn(after.text)
            assert len(wanted) == len(found), found
            for one, other in zip(wanted, found, strict=True):
                assert matches(one, other), (one, other)


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent.name == "howto"], ids=name_of)
def test_code(page: Path, shop: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of a page runs, from its first line to its last, with what the lab calls its URL."""
    monkeypatch.setenv("DATABASE_URL", shop.url)
    namespace: dict[str, Any] = {}
    try:
        for block in blocks_of(page):
            if block.language == "python" and not block.caption:
                exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), namespace)
    finally:
        if "engine" in namespace:
            namespace["engine"].dispose()
