"""Wagtail, as `wagtail start` makes a site, with the three settings changed."""

import secrets
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from os import environ
from pathlib import Path

import pytest
import wagtail

from docs.examples.django_shop import run
from ps_lab import Lab

SETTINGS = """
from site_.settings.dev import *
import ps_django

DEBUG = False
INSTALLED_APPS = [*INSTALLED_APPS, "django.contrib.postgres"]  # for its search, on any PostgreSQL
ALLOWED_HOSTS = ["127.0.0.1"]
DATABASES = ps_django.databases()
DATABASE_ROUTERS = ["ps_django.routers.ReplicaRouter"]
MIDDLEWARE = ["ps_django.middleware.ConsistencyMiddleware", *MIDDLEWARE]
STORAGES["staticfiles"] = {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"}
"""


class Form(HTMLParser):
    """The fields of a page's forms."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.fields: dict[str, str] = {}
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep what is filled in."""
        given = dict(attrs)
        if tag == "input" and given.get("name") and given.get("type") not in ("checkbox", "radio", "submit"):
            self.fields[str(given["name"])] = given.get("value") or ""


@pytest.fixture(scope="module")
def site(ps_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, str], Path]]:
    """A new site, migrated, with a superuser."""
    folder = tmp_path_factory.mktemp("wagtail")
    template = Path(wagtail.__file__).with_name("project_template")
    start = [sys.executable, "-m", "django", "startproject", f"--template={template}", "--ext=html,rst,py", "--name=Dockerfile"]
    subprocess.run([*start, "site_", str(folder)], check=True)
    (folder / "lab_settings.py").write_text(SETTINGS)
    with run.database(ps_lab, "wagtail") as urls:
        env = {**environ, **urls, "DJANGO_SETTINGS_MODULE": "lab_settings"}
        env["DJANGO_SUPERUSER_PASSWORD"] = secrets.token_urlsafe(12)
        for command in (
            "migrate --verbosity 0",
            f"createsuperuser --noinput --username {run.USER} --email a@example.org --verbosity 0",
        ):
            subprocess.run([sys.executable, "manage.py", *command.split()], check=True, env=env, cwd=folder)
        ps_lab.wait_replicas_caught_up()
        yield env, folder


def test_pages(ps_lab: Lab, site: tuple[dict[str, str], Path]) -> None:
    """The site shows its page, an editor changes and publishes it and sees it changed; replicas answer visitors."""
    env, folder = site
    server = "gunicorn site_.wsgi --workers 2 --threads 2 --log-level warning --bind fd://{fd}"
    with run.serve(server, env, folder) as base:
        visitor, editor = run.Browser(base), run.Browser(base)
        with ps_lab.round_trips() as counter:
            assert "Welcome to your new Wagtail site" in visitor.get("/")[1]
        assert counter.by_path["replica"] > 0

        ps_lab.set_replay_delay(2)
        try:
            ended, page = editor.submit("/admin/login/", username=run.USER, password=env["DJANGO_SUPERUSER_PASSWORD"])
            assert "/login/" not in ended
            _, page = editor.get("/admin/pages/3/edit/")
            fields = Form(page).fields | {"title": "A changed title", "slug": "home", "action-publish": "action-publish"}
            del fields["csrfmiddlewaretoken"]
            ended, page = editor.post("/admin/pages/3/edit/", page, **fields)
            assert "has been published" in page
            assert "A changed title" in editor.get("/")[1]
        finally:
            ps_lab.set_replay_delay(0)
        with ps_lab.round_trips() as counter:
            assert "A changed title" in visitor.get("/")[1]
        assert counter.by_path["replica"] == counter.count > 0
