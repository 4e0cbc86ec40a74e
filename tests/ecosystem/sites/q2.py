"""django-q2, with its tasks in the database."""

from functools import partial
from typing import Any
from uuid import uuid4

from django.db import models
from django.http import HttpRequest, JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

from ps_lab.processes import wait_until
from tests.ecosystem.site import Visitor, beside


class Note(models.Model):
    """Something written."""

    run = models.CharField(max_length=32)


def write(run: str) -> int:
    """Write a note, in a task; return how many there are."""
    Note.objects.create(run=run)
    return Note.objects.filter(run=run).count()


def fail() -> None:
    """Fail, in a task."""
    raise ZeroDivisionError("no tea left")


@csrf_exempt
def page(request: HttpRequest) -> JsonResponse:
    """Send tasks; or tell whether there are some."""
    from django_q.models import Task
    from django_q.tasks import async_task

    if request.method == "GET":
        return JsonResponse({"some": Task.objects.exists()})
    run = request.POST["run"]
    here = "tests.ecosystem.sites.q2"
    return JsonResponse({"sent": [async_task(f"{here}.write", run), async_task(f"{here}.fail")]})


urlpatterns = [path("", page)]


running = partial(beside, "qcluster")


def work(visitor: Visitor) -> dict[str, Any]:
    """Send tasks, and look at their results."""
    from django_q.models import Task

    run = uuid4().hex
    visitor.ask("GET", "/")
    written, failed = visitor.ask("POST", "/", data={"run": run}).json()["sent"]
    wait_until(lambda: Task.objects.filter(id__in=[written, failed]).count() == 2, "two results", timeout=20)
    results = [Task.objects.get(id=one) for one in (written, failed)]
    return {
        "results": [[one.success, str(one.result).split(" :")[0]] for one in results],
        "notes": Note.objects.filter(run=run).count(),
    }
