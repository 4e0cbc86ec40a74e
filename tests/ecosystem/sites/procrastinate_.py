"""procrastinate, with its tasks in Django's database."""

from functools import partial
from typing import Any
from uuid import uuid4

from django.db import models, transaction
from django.http import HttpRequest, JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from procrastinate.contrib.django import app

from ps_lab.processes import wait_until
from tests.ecosystem.site import Visitor, beside


class Note(models.Model):
    """Something written."""

    run = models.CharField(max_length=32)
    text = models.CharField(max_length=50)


@app.task(name="write", queue="notes")
def write(run: str, text: str) -> None:
    """Write a note."""
    Note.objects.create(run=run, text=text)


@app.task(name="fail", queue="notes", lock="one")
def fail() -> None:
    """Fail."""
    raise ZeroDivisionError("no tea left")


@csrf_exempt
def page(request: HttpRequest) -> JsonResponse:
    """Send tasks, in the transaction of what they are about; one that is rolled back sends none."""
    if request.method == "GET":
        return JsonResponse({"some": Note.objects.exists()})
    run = request.POST["run"]
    with transaction.atomic():
        Note.objects.create(run=run, text="from the view")
        sent = write.defer(run=run, text="from the task"), fail.defer()
    try:
        with transaction.atomic():
            write.defer(run=run, text="never")
            raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    return JsonResponse({"sent": sent})


urlpatterns = [path("", page)]


# Its worker hears of tasks by LISTEN, and looks for them every five seconds as well.
running = partial(beside, "procrastinate", "worker", "--queues", "notes")


def work(visitor: Visitor) -> dict[str, Any]:
    """Send tasks, and look at what became of them."""
    from procrastinate.contrib.django.models import ProcrastinateJob

    run = uuid4().hex
    visitor.ask("GET", "/")
    sent = visitor.ask("POST", "/", data={"run": run}).json()["sent"]
    done = ProcrastinateJob.objects.filter(id__in=sent, status__in=["succeeded", "failed"])
    wait_until(lambda: done.count() == 2, "two tasks", timeout=20)
    return {
        "status": [ProcrastinateJob.objects.get(id=one).status for one in sent],
        "notes": sorted(Note.objects.filter(run=run).values_list("text", flat=True)),
    }
