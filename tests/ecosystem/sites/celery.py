"""Celery with the schedules of django-celery-beat and the results of django-celery-results."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

from celery import Celery, chord
from celery.beat import EmbeddedService
from celery.contrib.testing.worker import start_worker
from django.db import models, transaction
from django.http import HttpRequest, JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

import ps_django
from ps_lab.processes import wait_until
from tests.docs.pages import DOCS, blocks_of
from tests.ecosystem.site import Visitor

app = Celery("site", broker="memory://", backend="django-db", set_as_current=True)
app.conf.update(
    broker_transport_options={"polling_interval": 0.01},
    result_extended=True,
    worker_hijack_root_logger=False,
)
# A task sees what its sender wrote: the page's recipe.
(recipe,) = (block.text for block in blocks_of(DOCS / "background-work.md") if "before_task_publish" in block.text)
exec(recipe)


class Note(models.Model):
    """Something written."""

    run = models.CharField(max_length=32)
    text = models.CharField(max_length=50)


@app.task(name="count")
def count(run: str) -> int:
    """Return how many notes there are, on replicas."""
    with ps_django.reading():
        return Note.objects.filter(run=run).count()


@app.task(name="write")
def write(run: str, text: str) -> str:
    """Write a note."""
    return Note.objects.create(run=run, text=text).text


@app.task(name="fail")
def fail() -> None:
    """Fail."""
    raise ZeroDivisionError("no tea left")


@app.task(name="join")
def join(texts: list[str]) -> str:
    """Put together what several tasks returned."""
    return " ".join(sorted(texts))


@csrf_exempt
def page(request: HttpRequest) -> JsonResponse:
    """Write a note, and send tasks that look for it when it is committed."""
    run, sent = request.POST["run"], []
    with transaction.atomic():
        Note.objects.create(run=run, text="from the view")
        transaction.on_commit(lambda: sent.append(count.delay(run)))
    return JsonResponse({"sent": [one.id for one in sent]})


urlpatterns = [path("", page)]


@contextmanager
def running() -> Iterator[None]:
    """Run a worker and the scheduler, each in a thread."""
    from django_celery_beat.models import PeriodicTasks

    PeriodicTasks.update_changed()  # a scheduler that found no such row at first does not notice the first task
    with start_worker(app, pool="solo", perform_ping_check=False, shutdown_timeout=30):
        beat = EmbeddedService(app, 0.1, thread=True, scheduler_cls="django_celery_beat.schedulers:DatabaseScheduler")
        beat.daemon = True
        beat.start()
        yield
        beat.stop()


def work(visitor: Visitor) -> dict[str, Any]:
    """Send tasks of each kind, let the scheduler send some, and look at the results that were stored."""
    from django_celery_beat.models import IntervalSchedule, PeriodicTask
    from django_celery_results.models import TaskResult

    run = uuid4().hex
    (sent,) = visitor.ask("POST", "/", data={"run": run}).json()["sent"]
    failed = fail.delay()
    joined = chord(write.s(run, text) for text in ("tea", "cake"))(join.s())
    every, _ = IntervalSchedule.objects.get_or_create(every=200_000, period=IntervalSchedule.MICROSECONDS)
    periodic = PeriodicTask.objects.create(name=run, task="write", args=f'["{run}", "periodic"]', interval=every)
    done = TaskResult.objects.filter(periodic_task_name=run, status="SUCCESS")
    wait_until(lambda: done.count() >= 2, "two results of the periodic task", timeout=30)
    PeriodicTask.objects.filter(pk=periodic.pk).delete()
    ran = Note.objects.filter(run=run, text="periodic").count()
    return {
        "seen": app.AsyncResult(sent).get(timeout=30),
        "joined": joined.get(timeout=30),
        "failed": repr(failed.get(timeout=30, propagate=False)),
        "stored": sorted(TaskResult.objects.filter(task_id__in=[sent, failed.id, joined.id]).values_list("task_name", "status")),
        "periodic": ran >= 2,
    }
