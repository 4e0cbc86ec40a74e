"""A site with one package, in a process of its own: `python -m tests.ecosystem.site`. It works once for each line it reads."""

import importlib
import json
import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import django
import httpx2
from django.apps import AppConfig
from django.conf import settings
from django.core.handlers.wsgi import WSGIHandler
from django.core.management import call_command
from django.core.servers import basehttp
from django.db import close_old_connections


class Site(AppConfig):
    """The application of all sites; which models it has, `sites/models.py` says."""

    name = "tests.ecosystem.sites"
    label = "site"


class Handler(basehttp.WSGIRequestHandler):
    """Quiet: what fails is logged by Django."""

    def log_message(self, *args: object) -> None:
        """Write no line for each request."""


@contextmanager
def serve() -> Iterator[str]:
    """Serve the site over HTTP in one thread, whose connections last from request to request; yield where it is."""
    server = basehttp.WSGIServer(("127.0.0.1", 0), Handler)
    server.set_app(WSGIHandler())
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Visitor(httpx2.Client):
    """A browser, with its cookies: follows redirects; a status of 400 or above is an error, unless the request says `status`."""

    def ask(self, method: str, url: str, status: int = 200, **options: object) -> httpx2.Response:
        """Return the answer, which has to have this status."""
        answer = self.request(method, url, **options)  # type: ignore[arg-type]
        if answer.status_code != status:
            raise RuntimeError(f"{method} {url}: {answer.status_code} {answer.text[-500:]}")
        return answer


def answer(work: Callable[[], object]) -> None:
    """Work once for each line that is read, and tell what came of it."""
    tell(ready=True)
    for _ in sys.stdin:
        try:
            tell(outcome=work())
        except Exception as exc:  # noqa: BLE001 - whatever it is, the test tells it
            traceback.print_exc()
            tell(error=f"{type(exc).__name__}: {exc}")


def tell(**found: object) -> None:
    """Print a line for the test."""
    print(json.dumps(found), flush=True)


@contextmanager
def migrated() -> Iterator[None]:
    """Make the site's migrations, and run them and those of the package."""
    with TemporaryDirectory() as folder:
        sys.path.insert(0, folder)
        (migrations := Path(folder, settings.MIGRATION_MODULES["site"])).mkdir()
        (migrations / "__init__.py").touch()
        call_command("makemigrations", "site", verbosity=0)
        call_command("migrate", verbosity=0)
        yield


def main() -> None:
    """Migrate, and work until there is nothing more to read."""
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.ecosystem.settings"
    django.setup()
    module = importlib.import_module(f"tests.ecosystem.sites.{os.environ['SITE']}")
    with migrated(), getattr(module, "running", nothing)(), serve() as base:

        def work() -> object:
            close_old_connections()  # as a request begins
            with Visitor(base_url=base, follow_redirects=True, timeout=30) as visitor:
                return module.work(visitor)

        answer(work)


@contextmanager
def beside(*command: str) -> Iterator[None]:
    """Run a management command beside the site, in a process of its own."""
    process = subprocess.Popen([sys.executable, "-m", "django", *command], stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)


@contextmanager
def nothing() -> Iterator[None]:
    """Run nothing beside the site."""
    yield


if __name__ == "__main__":
    main()
