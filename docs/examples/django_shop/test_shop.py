"""The site under both servers, as a browser sees it, on replicas that replay late."""

from collections.abc import Iterator

import pytest

from ps_lab import Lab

from . import run


@pytest.fixture(scope="module")
def site(ps_lab: Lab) -> Iterator[dict[str, str]]:
    """The site's environment, in a database of its own."""
    with run.environment(ps_lab) as site:
        yield site


def test_site_is_whole(site: dict[str, str]) -> None:
    """Django finds nothing wrong with the site, and its migrations make what its models say."""
    strict = site | {"PYTHONWARNINGS": "error"}
    run.manage(strict, "check")
    run.manage(strict, "makemigrations", "--check", "--dry-run")


@pytest.mark.parametrize("server", run.SERVERS)
def test_visit(ps_lab: Lab, site: dict[str, str], server: str) -> None:
    """A user logs in, creates in shop and admin, orders, lists, and reads what they wrote, though replicas are 2 s late."""
    password = site["DJANGO_SUPERUSER_PASSWORD"]
    with run.serve(run.SERVERS[server], site) as base:
        visitor, browser = run.Browser(base), run.Browser(base)
        visitor.log_in(password)
        visitor.forget_token()
        ps_lab.wait_replicas_caught_up()
        ps_lab.set_replay_delay(2)
        try:
            ended, page = browser.log_in(password)
            assert ended == "/"
            ended, shown = browser.post("/", page, name=f"Teapot {server}", price="9.50", stock="3")
            assert ended.startswith("/products/")
            assert f"<h1>Teapot {server}</h1>" in shown
            assert "1 in stock, 1 orders" in browser.post(ended, shown, quantity="2")[1]
            assert "not so many" in browser.post(ended, shown, quantity="2")[1]
            assert "1 in stock, 1 orders" in browser.get(ended)[1]
            assert f"Teapot {server}" in browser.get("/")[1]
            ended, page = browser.submit("/admin/shop/product/add/", name=f"Cup {server}", price="2.00", stock="1")
            assert ended == "/admin/shop/product/"
            assert f"Cup {server}</a>” was added successfully" in page
            assert "was added" not in browser.get("/admin/shop/product/")[1]
        finally:
            ps_lab.set_replay_delay(0)
        with ps_lab.round_trips() as counter:
            assert f"Teapot {server}" in visitor.get("/")[1]
        assert counter.by_path["replica"] == counter.count > 0


@pytest.mark.tools
def test_pairs(ps_lab: Lab, site: dict[str, str]) -> None:
    """Nobody misses what they wrote just now, over two workers, while replicas half a second late answer others."""
    with run.serve(run.SERVERS["gunicorn"], site) as base:
        ps_lab.set_replay_delay(0.5)
        try:
            found = run.pairs(ps_lab, base, site["DJANGO_SUPERUSER_PASSWORD"], 60)
        finally:
            ps_lab.set_replay_delay(0)
    assert found.stale == 0
    assert found.replica_reads > 0
