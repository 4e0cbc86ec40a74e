"""django-simple-history."""

from typing import Any

from django.contrib.auth import get_user_model, login
from django.db import models
from django.http import HttpRequest, JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from simple_history.models import HistoricalRecords

from tests.ecosystem.site import Visitor


class Poll(models.Model):
    """What has a history."""

    question = models.CharField(max_length=50)
    history = HistoricalRecords()


@csrf_exempt
def log_in(request: HttpRequest) -> JsonResponse:
    """Log in as the clerk."""
    clerk, _ = get_user_model().objects.get_or_create(username="clerk")
    login(request, clerk)
    return JsonResponse({})


@csrf_exempt
def poll(request: HttpRequest, pk: int | None = None) -> JsonResponse:
    """Make, change, revert, delete or show a poll, with its history."""
    if request.method == "POST":
        if pk is None:
            made = Poll.objects.create(question=request.POST["question"])
        elif "revert" in request.POST:
            made = Poll.history.filter(id=pk).earliest().instance
            made.save()
        else:
            made = Poll.objects.get(pk=pk)
            made.question = request.POST["question"]
            made.save()
        return JsonResponse({"id": made.pk})
    if request.method == "DELETE":
        Poll.objects.get(pk=pk).delete()
        return JsonResponse({})
    rows = Poll.history.filter(id=pk).order_by("history_id").select_related("history_user")
    then = Poll.history.as_of(rows[0].history_date).filter(pk=pk)
    return JsonResponse(
        {
            "now": list(Poll.objects.filter(pk=pk).values_list("question", flat=True)),
            "history": [[row.history_type, row.question, row.history_user and row.history_user.username] for row in rows],
            "changed": [change.field for change in rows[1].diff_against(rows[0]).changes] if len(rows) > 1 else [],
            "then": [one.question for one in then],
        }
    )


urlpatterns = [path("login/", log_in), path("", poll), path("<int:pk>/", poll)]


def work(visitor: Visitor) -> dict[str, Any]:
    """Make a poll, change it, revert that and delete it, and look at its history after each step."""
    visitor.ask("POST", "/login/")
    pk = visitor.ask("POST", "/", data={"question": "Tea?"}).json()["id"]
    shown = [visitor.ask("GET", f"/{pk}/").json()]
    for method, data in (("POST", {"question": "Coffee?"}), ("POST", {"revert": "1"}), ("DELETE", None)):
        visitor.ask(method, f"/{pk}/", data=data)
        shown.append(visitor.ask("GET", f"/{pk}/").json())
    return {"shown": shown}
