"""Run the shop on a local PlanetScale, under gunicorn and under uvicorn, until Ctrl-C: `python -m django_shop.run`.

With `--pairs 2000` it measures, in place of that: so many times a customer creates a product, follows the redirect, and looks for
what they created, over two workers of gunicorn, on replicas that replay half a second late.
"""

import argparse
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPResponse
from http.cookiejar import CookieJar
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode, urlsplit
from urllib.request import HTTPCookieProcessor, build_opener

from ps_lab import Lab

USER = "admin"
DATABASE = "shop"
SERVERS = {
    "gunicorn": "gunicorn django_shop.wsgi --workers 2 --threads 4 --log-level warning --bind fd://{fd}",
    "uvicorn": "uvicorn django_shop.asgi:application --log-level warning --fd {fd}",
}
CUSTOMERS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What the pairs came to."""

    pairs: int
    stale: int
    replica_reads: int
    """How often the replicas read the table of products, by their own statistics."""


class Browser:
    """What a browser keeps: its cookies."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.jar = CookieJar()
        self._opener = build_opener(HTTPCookieProcessor(self.jar))

    def get(self, path: str) -> tuple[str, str]:
        """Return where it ended, after redirects, and the page.

        Raises:
            urllib.error.HTTPError: the status is 400 or above.
        """
        return self._ended(self._opener.open(self.base + path, timeout=30))

    def submit(self, path: str, **values: str) -> tuple[str, str]:
        """Fill in the form of a page, send it, and follow the redirect."""
        _, page = self.get(path)
        return self.post(path, page, **values)

    def post(self, path: str, page: str, **values: str) -> tuple[str, str]:
        """Send the form that `page` holds."""
        (token,) = set(re.findall(r'name="csrfmiddlewaretoken" value="(\w+)"', page))
        data = urlencode({"csrfmiddlewaretoken": token, **values}).encode()
        return self._ended(self._opener.open(self.base + path, data, timeout=30))

    def log_in(self, password: str) -> tuple[str, str]:
        """Log in as the superuser."""
        return self.submit("/login/", username=USER, password=password)

    def forget_token(self) -> None:
        """Be as one who logged in long ago: what that wrote is on all replicas."""
        for cookie in list(self.jar):
            if cookie.name.startswith("ps_token"):
                self.jar.clear(cookie.domain, cookie.path, cookie.name)

    def _ended(self, response: HTTPResponse) -> tuple[str, str]:
        with response:
            return response.url.removeprefix(self.base), response.read().decode()


@contextmanager
def environment(lab: Lab) -> Iterator[dict[str, str]]:
    """Make a database with a superuser, and yield the environment of the site."""
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    with database(lab, DATABASE) as urls:
        site = {**os.environ, **urls, "PYTHONPATH": path, "SHOP_SECRET_KEY": secrets.token_urlsafe(50)}
        site["DJANGO_SUPERUSER_PASSWORD"] = secrets.token_urlsafe(12)
        manage(site, "migrate", "--verbosity", "0")
        manage(site, "createsuperuser", "--noinput", "--username", USER, "--email", "admin@example.org", "--verbosity", "0")
        lab.wait_replicas_caught_up()
        yield site


@contextmanager
def database(lab: Lab, name: str) -> Iterator[dict[str, str]]:
    """Make a database, and yield what the environment has to say of it."""
    lab.sql(f"CREATE DATABASE {name} OWNER app")
    try:
        url = urlsplit(lab.url)._replace(path=f"/{name}").geturl()
        yield {"PS_URL": url, "PS_BOUNCER": "write-pool", "PS_REPLICA_BOUNCER": "read-pool"}
    finally:
        lab.sql(f"DROP DATABASE {name} WITH (FORCE)")


def manage(site: dict[str, str], *command: str) -> None:
    """Run a management command of the site."""
    subprocess.run([sys.executable, "-m", "django_shop.manage", *command], check=True, env=site)


@contextmanager
def serve(command: str, site: dict[str, str], cwd: Path | None = None) -> Iterator[str]:
    """Run a server, one of `SERVERS` as a rule, and yield where it is."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port, fd = listener.getsockname()[1], listener.fileno()
        arguments = [sys.executable, "-m", *command.format(fd=fd).split()]
        process = subprocess.Popen(arguments, env=site, cwd=cwd, pass_fds=[fd])
    base = f"http://127.0.0.1:{port}"
    try:
        _wait_until_it_answers(base, process)
        yield base
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def _wait_until_it_answers(base: str, process: subprocess.Popen[bytes]) -> None:
    give_up = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < give_up:
        try:
            Browser(base).get("/")
        except URLError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"{base} does not answer")


def pairs(lab: Lab, base: str, password: str, number: int) -> Found:
    """Create products, each followed by a look at it, by several customers at once; another one only looks."""
    over = threading.Event()
    visitor = Browser(base)
    visitor.log_in(password)
    visitor.forget_token()

    def customer(which: int) -> int:
        browser = Browser(base)
        _, page = browser.log_in(password)
        stale = 0
        for one in range(which, number, CUSTOMERS):
            name = f"Product {one}"
            try:
                ended, shown = browser.post("/", page, name=name, price="9.50", stock="1")
            except HTTPError as error:
                if error.code != 404:
                    raise
                stale += 1
            else:
                stale += not (ended.startswith("/products/") and f"<h1>{name}</h1>" in shown)
        return stale

    def look() -> None:
        while not over.is_set():
            visitor.get("/")

    lab.wait_replicas_caught_up()
    before = _replica_reads(lab)
    with ThreadPoolExecutor(CUSTOMERS + 1) as pool:
        looking = pool.submit(look)
        try:
            stale = sum(pool.map(customer, range(CUSTOMERS)))
        finally:
            over.set()
        looking.result()
    return Found(pairs=number, stale=stale, replica_reads=_replica_reads(lab) - before)


def _replica_reads(lab: Lab) -> int:
    counts = "SELECT seq_scan + coalesce(idx_scan, 0) FROM pg_stat_user_tables WHERE relname = 'shop_product'"
    return sum(int(count) for replica in lab.replicas for (count,) in lab.sql(counts, server=replica.name, dbname=DATABASE))


def main() -> int:
    """Serve, or measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, help="measure so many pairs of a write and a read")
    wanted = parser.parse_args().pairs
    with Lab() as lab, environment(lab) as site, serve(SERVERS["gunicorn"], site) as gunicorn:
        password = site["DJANGO_SUPERUSER_PASSWORD"]
        if wanted:
            lab.set_replay_delay(0.5)
            found = pairs(lab, gunicorn, password, wanted)
            print(f"{found.pairs} pairs: {found.stale} stale. Meanwhile replicas read the products {found.replica_reads} times.")
            return 1 if found.stale or not found.replica_reads else 0
        with serve(SERVERS["uvicorn"], site) as uvicorn:
            print(f"gunicorn: {gunicorn}/  uvicorn: {uvicorn}/  user {USER}, password {password}. Ctrl-C ends it.", flush=True)
            try:
                signal.pause()
            except KeyboardInterrupt:
                return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
