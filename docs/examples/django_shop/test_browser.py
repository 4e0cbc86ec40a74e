"""The same visit in a real browser. Skipped where there is no Chromium, or no playwright (`make test-browser` brings both)."""

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from ps_lab import Lab

from . import run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def shop(ps_lab: Lab) -> Iterator[dict[str, str]]:
    """The site's environment, in a database of its own."""
    with run.environment(ps_lab) as shop:
        yield shop


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.mark.parametrize("server", run.SERVERS)
def test_visit(ps_lab: Lab, chromium: Any, shop: dict[str, str], server: str) -> None:
    """A user logs in, creates, lists, and reads what they wrote, though the replicas are 2 s late; then replicas answer."""
    with run.serve(run.SERVERS[server], shop) as base:
        page = chromium.new_context().new_page()
        ps_lab.set_replay_delay(2)
        try:
            page.goto(base)
            page.fill("input[name=username]", run.USER)
            page.fill("input[name=password]", shop["DJANGO_SUPERUSER_PASSWORD"])
            page.click("button")
            page.fill("input[name=name]", f"Kettle {server}")
            page.fill("input[name=price]", "12.50")
            page.fill("input[name=stock]", "1")
            page.click("button")
            assert page.inner_text("h1") == f"Kettle {server}"
            page.click("a")
            assert f"Kettle {server}" in page.inner_text("ul")
            page.reload()
            assert f"Kettle {server}" in page.inner_text("ul")
        finally:
            ps_lab.set_replay_delay(0)
        ps_lab.wait_replicas_caught_up()
        with ps_lab.round_trips() as trips:
            page.reload()
        assert f"Kettle {server}" in page.inner_text("ul")
        assert trips.by_path["replica"] == trips.count > 0
