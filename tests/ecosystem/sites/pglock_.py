"""django-pglock and django-pgactivity."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pgactivity
import pglock
from django.db import OperationalError, connection, connections, models, transaction
from django.http import HttpRequest, JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

from tests.ecosystem.site import Visitor


class Counter(models.Model):
    """What is counted, by reading and writing: right only under a lock."""

    run = models.CharField(max_length=32)
    value = models.IntegerField(default=0)


def count(run: str) -> None:
    """Count one more, under the lock."""
    with transaction.atomic():
        pglock.advisory(run, xact=True).acquire()
        counter = Counter.objects.get(run=run)
        counter.value += 1
        counter.save()
    connections.close_all()


def ask(query: str) -> Any:
    """Return a value."""
    with connection.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchone()[0]


@csrf_exempt
def page(request: HttpRequest, run: str) -> JsonResponse:
    """Count in threads, lock a table, and bound a statement; or tell the count."""
    if request.method == "POST":
        Counter.objects.create(run=run)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(count, [run] * 20))
        with transaction.atomic():
            pglock.model(Counter, mode=pglock.SHARE)
            Counter.objects.filter(run=run).exists()
        with pgactivity.timeout(seconds=1), pgactivity.timeout(milliseconds=1500):
            shown = ask("SELECT current_setting('statement_timeout')")
        try:
            with pgactivity.timeout(milliseconds=50):
                ask("SELECT pg_sleep(10)")
        except OperationalError as error:
            return JsonResponse({"shown": shown, "ended": str(error).splitlines()[0]})
    return JsonResponse({"counted": [one.value for one in Counter.objects.filter(run=run)]})


urlpatterns = [path("<str:run>/", page)]


def work(visitor: Visitor) -> dict[str, Any]:
    """Let the site work, and look at the count."""
    run = uuid4().hex
    return {"steps": [visitor.ask(method, f"/{run}/").json() for method in ("POST", "GET")]}
