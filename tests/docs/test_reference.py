"""The reference names everything that is public. That all of it is documented, and no link is dead, `make docs` says."""

import re
from importlib import import_module, metadata
from pathlib import Path

import pytest

from ps_cli._doctor.findings import finding
from ps_cli.main import main
from ps_core._documentation import DOCUMENTATION, link
from tests.docs.pages import DOCS


def documented(page: str) -> set[str]:
    """Return the full names that a page of the reference documents."""
    module, names = "", set()
    for directive, name in re.findall(r"^\.\. (auto\w+|module):: (\S+)$", (DOCS / "reference" / page).read_text(), re.MULTILINE):
        if directive == "module":
            module = name
        else:
            names.add(name if name.startswith("ps_") else f"{module}.{name}")
    return names


@pytest.mark.parametrize("package", ["ps_core", "ps_sqlalchemy", "ps_django", "ps_http", "ps_lab"])
def test_public_names(package: str) -> None:
    """Every public name is on the page of its package, or, if it is `ps_core`'s, on that of `ps_core`."""
    shared = import_module("ps_core")
    page = documented(f"{package}.md")
    core = documented("ps_core.md")
    module = import_module(package)
    for name in module.__all__:
        own = getattr(module, name) is not getattr(shared, name, None) or package == "ps_core"
        assert f"{package}.{name}" in page if own else f"ps_core.{name}" in core, name


def test_commands(capsys: pytest.CaptureFixture[str]) -> None:
    """Every command is on the page about the command line."""
    with pytest.raises(SystemExit):
        main(["--help"])
    names = re.findall(r"^    (\w+)  ", capsys.readouterr().out, re.MULTILINE)
    text = (DOCS / "reference" / "command-line.md").read_text()
    assert {"demo", "lab"} <= set(names)
    assert not [name for name in names if f"{{command-help}} {name}\n" not in text]


def test_links_of_messages() -> None:
    """Messages link to the documentation that the package's metadata name, by the ids that Sphinx gives to headings."""
    assert f"Documentation, {DOCUMENTATION}" in (metadata.metadata("ps-postgres").get_all("Project-URL") or [])
    assert finding("D045").docs == f"{DOCUMENTATION}doctor.html#d045"
    assert link("django-checks", "ps_django.E001") == f"{DOCUMENTATION}django-checks.html#ps-django-e001"


def test_sections_of_links() -> None:
    """Each page that a message names has the section."""
    folders = [
        Path(import_module(package).__file__ or "").parent for package in ("ps_core", "ps_django", "ps_http", "ps_sqlalchemy")
    ]
    sources = [file.read_text() for folder in folders for file in folder.rglob("*.py")]
    links = {found for text in sources for found in re.findall(r'\blink\("([^"]+)", "([^"]+)"\)', text)}
    assert ("howto/timeouts", "for-a-report-a-job-a-command") in links
    for page, anchor in links:
        headings = re.findall(r"^#+ (.+)$", (DOCS / f"{page}.md").read_text(), re.MULTILINE)
        assert anchor.lower() in {re.sub(r"\W+", "-", heading.lower()).strip("-") for heading in headings}, (page, anchor)
