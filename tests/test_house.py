"""The house rules that no linter knows: who may import whom, what is shipped, what files must not say."""

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import psycopg
import pytest

pytestmark = pytest.mark.fast

ROOT = Path(__file__).parents[1]

MAY_IMPORT = {
    "ps_core": {"ps_core"},
    "ps_sqlalchemy": {"ps_sqlalchemy", "ps_http", "ps_core", "sqlalchemy"},
    "ps_django": {"ps_django", "ps_core", "django"},
    "ps_http": {"ps_http", "ps_core"},
    "ps_lab": {"ps_lab", "ps_core"},
    "ps_demo": {"ps_demo", "ps_lab", "ps_sqlalchemy", "ps_django", "ps_core", "sqlalchemy", "django"},
    "ps_cli": {"ps_cli", "ps_demo", "ps_lab", "ps_sqlalchemy", "ps_django", "ps_core", "sqlalchemy", "django"},
}
"""The packages of the house and the frameworks that each package may import, type-only imports included."""

DOING = {
    "__init__",
    "_bridge",
    "_connection",
    "_endpoint",
    "_fork",
    "_registry",
    "_retry",
    "context",
    "events",
    "otel",
    "replicas",
    "share",
    "tags",
}
"""The modules and rooms of `ps_core` that do. Every other one decides: no I/O, no sleep, no clock."""

IMPURE = {"asyncio", "concurrent", "multiprocessing", "select", "selectors", "socket", "ssl", "subprocess", "threading", "time"}

HARD_TO_READ = {
    'a clause as the subject ("Who asks ... waits")': r"(?:^|(?<=[.:;]\s))Who(?:ever)? [a-z][^?.]*\.",
    '"there is" for "exists"': r"\bthat there (?:is|are)(?: not)?[.,;:)]|\bthere is not\b(?! (?:a|any|enough))",
    '"tells" for "reports"': (
        r"(?i)\b(?:text|primary|server|statement|replica|endpoint|protocol|check|name|URL|host|message|status|database|it|that|which|what)"
        r" tells\b"
    ),
    '"nobody has to", "nobody can tell"': r"(?i)\bnobody (?:has to|can tell)\b",
    '"is said to"': r"\b(?:is|are) said to\b",
    '"hears of"': r"\bhears? of\b",
    '"heals"': r"(?i)\b(?:and|is|it) heal(?:s|ed)\b",
    '"of one\'s own"': r"\bof one's own\b",
    '"as the next"': r"\bas the next\b",
    '"without a word"': r"\bwithout a word\b",
    '"what is asked for cannot work"': r"\bwhat is asked for cannot work\b",
}
"""What made readers stop, in pages and docstrings: each is correct, and read twice."""

VERBLESS = r"\A(?:Of|As) "
"""How a docstring without a verb begins: "Of the pool.", "As X."."""

WRITTEN_BY_PROGRAMS = ("docs/generated/", "docs/comparison.md")

FORBIDDEN = re.compile(r"(?<![\w.}*])/(?:work|root)/|/tmp/[w]/|pypi\.org|pythonhosted\.org|deb\.debian\.org|registry\.npmjs")
"""Paths of one machine, and hosts of package registries."""


def folder(package: str) -> Path:
    """Return where the package is installed: the source tree, or site-packages when a wheel is under test."""
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None, f"{package} has no __init__.py"
    return Path(spec.origin).parent


@cache
def modules(package: str) -> dict[str, ast.Module]:
    """Return the syntax trees of all files of a package, by dotted module name."""
    top = folder(package)
    found = {
        ".".join((package, *file.relative_to(top).with_suffix("").parts)): ast.parse(file.read_text())
        for file in top.rglob("*.py")
    }
    assert f"{package}.__init__" in found
    return found


def imports(module: str, tree: ast.Module) -> Iterator[str]:
    """Yield the full dotted name of everything that a module imports."""
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom():
                above = module.split(".")[: -node.level] if node.level else []
                source = ".".join([*above, *filter(None, [node.module])])
                yield from (f"{source}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_directions(package: str) -> None:
    """A package imports only those packages of the house, and those frameworks, that it may."""
    watched = {"sqlalchemy", "django", *MAY_IMPORT}
    wrong = [
        f"{module}: {name}"
        for module, tree in modules(package).items()
        for name in imports(module, tree)
        if name.split(".")[0] in watched - MAY_IMPORT[package]
    ]
    assert not wrong


def test_deciding_is_pure() -> None:
    """The modules of `ps_core` that decide import nothing that waits, and of psycopg only its errors and `conninfo`."""
    trees = modules("ps_core")
    deciding = {name for name in trees if name.split(".")[1] not in DOING}
    assert {name.split(".")[1] for name in trees} > DOING
    wrong = []
    for module in deciding:
        attributes = {ast.unparse(node) for node in ast.walk(trees[module]) if isinstance(node, ast.Attribute)}
        for name in {*imports(module, trees[module]), *(name for name in attributes if name.startswith("psycopg."))}:
            top, _, rest = name.partition(".")
            first = rest.partition(".")[0]
            if (
                top in IMPURE
                or (top == "ps_core" and first in DOING)
                or (top == "psycopg" and first and not is_about_errors(first))
            ):
                wrong.append(f"{module}: {name}")
    assert not wrong


def test_deciding_is_pure_over_https() -> None:
    """So are those of `ps_http` that decide, and they leave psycopg alone."""
    trees = modules("ps_http")
    wrong = [
        f"{module}: {name}"
        for module in ("ps_http._values", "ps_http._request", "ps_http._answer", "ps_http._plan")
        for name in imports(module, trees[module])
        if name.split(".")[0] in {*IMPURE, "http", "psycopg"}
        or name.split(".")[:2] in (["ps_http", "_work"], ["ps_http", "client"])
    ]
    assert not wrong


def is_about_errors(name: str) -> bool:
    """Whether a name of psycopg's is one of its exceptions, or a module of constants and decisions."""
    value = getattr(psycopg, name, None)
    return name in {"errors", "conninfo", "pq"} or (isinstance(value, type) and issubclass(value, Exception))


def test_shared_is_no_package() -> None:
    """`shared/` is a source root: nothing imports it, a wheel has nothing of that name, a checkout has the bare folder."""
    spec = find_spec("shared")
    assert spec is None or (spec.origin is None and set(spec.submodule_search_locations or ()) == {str(ROOT / "shared")})
    assert not [
        f"{module}: {name}"
        for package in MAY_IMPORT
        for module, tree in modules(package).items()
        for name in imports(module, tree)
        if name.split(".")[0] == "shared"
    ]


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_typed(package: str) -> None:
    """Every package tells type checkers that it is typed."""
    assert (folder(package) / "py.typed").is_file()


@pytest.mark.parametrize("package", ["ps_core", "ps_sqlalchemy", "ps_django", "ps_http", "ps_lab"])
def test_public_names(package: str) -> None:
    """`__all__` of a public package is in ruff's order (constants, classes, the rest), and every name in it exists."""
    module = import_module(package)
    names = module.__all__
    assert names == sorted(names, key=lambda name: (not name.isupper(), not name[0].isupper(), name))
    assert not [name for name in names if not hasattr(module, name)]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="what belongs to the project is only known in a git checkout")
def test_forbidden_words() -> None:
    """No file of the project names a path of one machine or a package registry's host."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True
    )
    files = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    assert ROOT / "pyproject.toml" in files
    assert not [
        f"{file.relative_to(ROOT)}: {found[0]}"
        for file in files
        if file.is_file()
        for found in FORBIDDEN.finditer(file.read_text(errors="replace"))
    ]


def test_docstrings() -> None:
    """Every test function says what it is about."""
    functions = [
        (file, node)
        for file in (ROOT / "tests").rglob("test_*.py")
        for top in ast.parse(file.read_text()).body
        for node in (top.body if isinstance(top, ast.ClassDef) else [top])
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test_")
    ]
    assert Path(__file__) in {file for file, _ in functions}
    assert not [f"{file.relative_to(ROOT)}: {node.name}" for file, node in functions if not ast.get_docstring(node)]


def texts_of(file: Path) -> Iterator[tuple[int, str, dict[str, str]]]:
    """Yield the prose of a page or the docstrings of a module: the line where each begins, it, and what it must not say."""
    source = file.read_text()
    if file.suffix == ".md":
        yield (
            1,
            re.sub(r"^```.*?^```$", lambda block: "\n" * block[0].count("\n"), source, flags=re.DOTALL | re.MULTILINE),
            HARD_TO_READ,
        )
        return
    habits = {**HARD_TO_READ, "a docstring without a verb": VERBLESS}
    if not any(
        re.search(pattern.replace(r"\A", '"""').replace("^|", '"""|'), source, re.MULTILINE) for pattern in habits.values()
    ):
        return  # nothing to parse for
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value, habits


def test_plain_english() -> None:
    """Pages and docstrings have none of the habits that made readers stop."""
    folders = [path for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith((".", "build", "dist"))]
    files = {
        file.relative_to(ROOT).as_posix(): file
        for found in (ROOT.glob("*.md"), (ROOT / "docs").rglob("*.md"), *(folder.rglob("*.py") for folder in folders))
        for file in found
    }
    assert {"README.md", "docs/index.md", "tests/test_house.py"} <= set(files)  # the sources are not, where a wheel is tested
    assert not [
        f"{name}:{line + text.count(chr(10), 0, found.start())}: {habit}: {found[0][:60]}"
        for name, file in sorted(files.items())
        if not name.startswith(WRITTEN_BY_PROGRAMS)
        for line, text, habits in texts_of(file)
        for habit, pattern in habits.items()
        for found in re.finditer(pattern, text, re.MULTILINE)
    ]


_ENTRY = re.compile(r"    \S+(, \S+)*: \S|        \S|$")


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_errors_in_docstrings(package: str) -> None:
    """A docstring names its errors in one form: at its end `Raises:`, and below it `Class: when.`"""
    wrong = []
    for module, tree in modules(package).items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                said, _, listed = (ast.get_docstring(node) or "").partition("\nRaises:\n")
                if re.search(r"^:raises|\bRaises[: ]?`", said, re.MULTILINE) or not all(map(_ENTRY.match, listed.split("\n"))):
                    wrong.append(f"{module}: {node.name}")
    assert not wrong
