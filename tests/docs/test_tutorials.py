"""The tutorials, and what else says what to type, followed from an empty folder."""

import os
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.docs.pages import DOCS
from tests.docs.tutorial import follow

PAGES = ["tutorials/sqlalchemy", "tutorials/django", "tutorials/https", "howto/testing"]


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[None]]]:
    """Each page, being followed: all at once, since they mostly wait for programs to start."""
    with ThreadPoolExecutor(len(PAGES)) as pool:
        yield {name: pool.submit(follow_page, name, tmp_path_factory.mktemp("page")) for name in PAGES}


def follow_page(name: str, where: Path) -> None:
    folder, state = where / "shop", where / "run"
    folder.mkdir()
    state.mkdir(mode=0o700)
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PS_", "DJANGO_", "PYTHON", "DATABASE_URL"))
    }
    environment["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    environment["XDG_RUNTIME_DIR"] = str(state)
    installed = dict.fromkeys(("python3 -m venv", ". .venv/bin/activate", "pip install"), ":")
    follow(DOCS / f"{name}.md", folder, environment, {**installed, "8000": free_port()})


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


@pytest.mark.tools
@pytest.mark.parametrize("name", PAGES)
def test_page(name: str, followed: dict[str, Future[None]]) -> None:
    """Everything that a page says to do works in an empty folder, and prints what it shows."""
    followed[name].result()
