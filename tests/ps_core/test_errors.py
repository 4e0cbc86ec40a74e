"""What is raised by this project leads to its section in the documentation, and its message is what it was given."""

import pickle
import re
import traceback
from collections.abc import Iterator
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import exc

import ps_core
import ps_django
import ps_http
import ps_sqlalchemy
from ps_core import errors
from ps_core._documentation import DOCUMENTATION, Documented
from ps_core._notes import carry_notes
from ps_core.failures import Failure, Kind, Ran

pytestmark = pytest.mark.fast

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "errors.md"
PACKAGES = (ps_core, ps_django, ps_http, ps_sqlalchemy)
FAILURE = Failure(kind=Kind.TRANSIENT, ran=Ran.NO, usable=False, rule="http_503")


def documented(cls: type[Documented] = Documented) -> Iterator[type[Documented]]:
    """Yield each error of the project's own."""
    for module in ("ps_core.consistency", "ps_core.errors", "ps_django.stale", "ps_http.errors"):
        import_module(module)
    for derived in cls.__subclasses__():
        yield derived
        yield from documented(derived)


ERRORS = list(documented())


def raised(cls: Any) -> Documented:
    """Return an error as it is raised."""
    given = {"setting": "role", "failure": FAILURE}
    needed = signature(cls).parameters
    words = [] if cls is errors.NotSent else ["what was met"]
    error: Documented = cls(*words, **{name: value for name, value in given.items() if name in needed})
    return error


STOCK = {"NotSupportedError", "StaleDataError"}
"""What is raised as a class of the driver's or a framework's, with a message of ours."""


def test_all_are_documented() -> None:
    """Every public error class is one of them, and the page has a section for each, and no other."""
    own = {getattr(errors, name) for name in errors.__all__ if isinstance(getattr(errors, name), type)}
    assert own <= set(ERRORS)
    sections = re.findall(r"^## (.+)$", PAGE.read_text(), re.MULTILINE)
    assert sorted(sections) == sorted({cls.__name__ for cls in ERRORS} | STOCK)


def test_stock_classes() -> None:
    """Every class of others' that is raised with the address of a section has one."""
    sources = [file.read_text() for package in PACKAGES for file in Path(package.__file__ or "").parent.rglob("*.py")]
    assert {section for text in sources for section in re.findall(r'\bsee\(.*"(\w+)"\)', text)} == STOCK
    error = errors.not_supported("what was met")
    assert traceback.format_exception_only(error) == [
        "psycopg.NotSupportedError: what was met\n",
        f"ps-postgres: see {DOCUMENTATION}reference/errors.html#notsupportederror\n",
    ]


@pytest.mark.parametrize("cls", ERRORS)
def test_address(cls: type[Documented]) -> None:
    """The note is the address of the error's section, and the message is without it; a framework's error has it, too."""
    error = raised(cls)
    assert error.url == f"{DOCUMENTATION}reference/errors.html#{cls.__name__.lower()}"
    assert str(error) == ("the connection is closed" if cls is errors.NotSent else "what was met")
    assert traceback.format_exception_only(error)[-1] == f"ps-postgres: see {error.url}\n"
    wrapper = exc.OperationalError("SELECT 1", None, error)
    carry_notes(error, wrapper)
    assert wrapper.__notes__ == [f"ps-postgres: see {error.url}"]


@pytest.mark.parametrize("cls", [errors.LostAtCommit, errors.DeadlineExceeded, errors.CommitOutcomeUnknown])
def test_pickled(cls: Any) -> None:
    """Between processes, the note is not doubled."""
    assert pickle.loads(pickle.dumps(raised(cls))).__notes__ == [f"ps-postgres: see {cls.url}"]
