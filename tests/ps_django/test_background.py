"""Tasks see what their sender wrote: the token in a task's arguments, and in Celery's headers."""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import celery
import celery.signals
import django
import pytest
from celery.contrib.testing.worker import start_worker
from django.db import connections, transaction
from django.test import override_settings

import ps_django
from ps_core import current_token, use_token
from ps_lab import Lab

PAGE = Path(__file__).parents[2] / "docs" / "background-work.md"


@pytest.fixture(autouse=True)
def late(ps_lab: Lab, site: None) -> Iterator[None]:
    """Replicas replay late; the sender has seen nothing yet."""
    ps_lab.wait_replicas_caught_up()
    ps_lab.set_replay_delay(60)
    try:
        with use_token(None):
            yield
    finally:
        ps_lab.set_replay_delay(0)
        ps_lab.wait_replicas_caught_up()


def write(name: str) -> Any:
    """Create what the task will look for."""
    from django_shop.shop.models import Product

    return Product.objects.create(name=name, price=1, stock=1).pk


def look(pk: int) -> list[bool]:
    """Return who answered, if they knew of the product: [True] for a replica; [] if they did not."""
    from django_shop.shop.models import Product
    from ps_demo.bank_django import InRecovery

    with ps_django.reading():
        return list(Product.objects.filter(pk=pk).annotate(by_replica=InRecovery()).values_list("by_replica", flat=True))


# --- Django's tasks ---


def report(pk: int, token: str | None = None) -> list[bool]:
    """The task: reads after its sender."""
    with use_token(token):
        return look(pk)


@pytest.mark.skipif(django.VERSION < (6, 0), reason="django.tasks is new in Django 6.0")
@override_settings(TASKS={"default": {"BACKEND": "django.tasks.backends.immediate.ImmediateBackend"}})
@pytest.mark.parametrize("atomic", [False, True])
def test_django_tasks(atomic: bool) -> None:
    """A task that is given its sender's token, after the commit, is answered by the primary; one without it by a late replica."""
    from django.tasks import task

    found: list[list[bool]] = []

    def send(pk: int) -> None:
        token = current_token()
        assert token is not None
        found.extend(task(report).enqueue(pk, token=text).return_value for text in (str(token), None))

    if atomic:
        with transaction.atomic():
            transaction.on_commit(partial(send, write("task")))
            assert current_token() is None, "the token of what is not yet committed"
    else:
        send(write("task"))
    assert found == [[False], []]


# --- Celery ---


@pytest.fixture(scope="module")
def recipe() -> dict[str, Any]:
    """The recipe of the page, connected."""
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if "celery" in block]
    names: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), names)
    return names


@pytest.fixture(scope="module")
def app(recipe: dict[str, Any]) -> Iterator[celery.Celery]:
    """An application whose worker is a thread here."""
    app = celery.Celery("shop", broker="memory://", backend="cache+memory://", set_as_current=False)

    def in_worker(pk: int) -> tuple[list[bool], bool]:
        before = current_token() is not None
        try:
            return look(pk), before
        finally:
            connections.close_all()  # Celery's own support for Django does so where DJANGO_SETTINGS_MODULE is set

    def again(self: Any, pk: int) -> tuple[list[bool], bool]:
        if not self.request.retries:
            raise self.retry(countdown=0)
        return in_worker(pk)

    app.task(name="look")(in_worker)
    app.task(name="again", bind=True)(again)

    def leave_logging_alone(**_: Any) -> None:
        """A worker sets up the root logger, unless somebody else does."""

    celery.signals.setup_logging.connect(leave_logging_alone)
    with start_worker(app, pool="solo", perform_ping_check=False, shutdown_timeout=30):
        yield app
    celery.signals.setup_logging.disconnect(leave_logging_alone)


def test_celery(app: celery.Celery) -> None:
    """A task whose message carries the token is answered by the primary, the next one, without it, by a late replica."""
    task = app.tasks["look"]
    pk = write("celery")
    assert task.delay(pk).get(timeout=30) == [[False], True]
    with use_token(None):
        assert task.delay(pk).get(timeout=30) == [[], False]


def test_celery_chain(app: celery.Celery) -> None:
    """The task that a task sends on is given the token as well."""
    look_for = app.tasks["look"]
    pk = write("chain")
    assert celery.chain(look_for.si(pk), look_for.si(pk)).delay().get(timeout=30) == [[False], True]


def test_celery_retry(app: celery.Celery) -> None:
    """A retry keeps the token, and a task without one gains none."""
    pk = write("retry")
    assert app.tasks["again"].delay(pk).get(timeout=30) == [[False], True]
    with use_token(None):
        assert app.tasks["again"].delay(pk).get(timeout=30) == [[], False]


def test_celery_on_the_spot(app: celery.Celery) -> None:
    """A task that is run in its sender goes on with what the sender has seen, and leaves the sender's token."""
    pk = write("spot")
    before = str(current_token())
    assert app.tasks["look"].apply(args=[pk]).get() == ([False], True)
    assert str(current_token()) == before
