"""django-silk."""

import re
from typing import Any

from django.db import models
from django.http import HttpRequest, JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

from tests.ecosystem.site import Visitor


class Note(models.Model):
    """Something written."""

    text = models.CharField(max_length=50)


@csrf_exempt
def page(request: HttpRequest) -> JsonResponse:
    """Read, after one more has been written."""
    if request.method == "POST":
        Note.objects.create(text="one more")
    return JsonResponse({"found": [Note.objects.filter(text="none").count(), Note.objects.filter(text="none").exists()]})


urlpatterns = [path("", page)]


def work(visitor: Visitor) -> dict[str, Any]:
    """Make a request of each kind, and look at what was recorded of it: the request, and its statements."""
    from silk.models import Request

    found = []
    for method in ("GET", "POST"):
        visitor.ask(method, "/")
        recorded = Request.objects.filter(path="/").latest("start_time")
        shown = visitor.ask("GET", f"/silk/request/{recorded.pk}/sql/").text
        texts = re.findall(r"site_note", shown)
        queries = [query.query.split('"')[0].strip() for query in recorded.queries.order_by("start_time")]
        found.append([recorded.method, recorded.num_sql_queries, queries, bool(texts)])
    visitor.ask("GET", "/silk/requests/")
    return {"found": found}
