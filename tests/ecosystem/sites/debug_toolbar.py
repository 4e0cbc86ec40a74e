"""django-debug-toolbar."""

import re
from html import unescape
from typing import Any

from django.db import models
from django.http import HttpRequest, HttpResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

from tests.ecosystem.site import Visitor


class Note(models.Model):
    """Something written."""

    text = models.CharField(max_length=50)


@csrf_exempt
def page(request: HttpRequest) -> HttpResponse:
    """Show how many notes there are, after one more has been written."""
    if request.method == "POST":
        Note.objects.create(text="one more")
    found = Note.objects.exists(), Note.objects.filter(text="none").count()
    return HttpResponse(f"<html><body>{found}</body></html>")


urlpatterns = [path("", page)]


def panel(visitor: Visitor, method: str) -> dict[str, str]:
    """Return what the SQL panel of a request shows: the number of statements of each alias, and where one's plan is asked for."""
    answer = visitor.ask(method, "/")
    (which,) = re.findall(r'data-request-id="(\w+)"', answer.text)
    shown = visitor.ask("GET", "/__debug__/render_panel/", params={"request_id": which, "panel_id": "SQLPanel"}).json()["content"]
    numbers = re.findall(r"(default|replica)\s+[\d.]+ ms \((\d+) quer", re.sub(r"<[^>]+>", "", shown))
    signed = unescape(re.findall(r'name="signed" value="([^"]+)"', shown)[0])
    plan = visitor.ask("POST", "/__debug__/sql_explain/", data={"signed": signed}).json()["content"]
    assert "Execution Time" in plan
    return {**dict(numbers), "plan": re.findall(r"<dt>Database</dt>\s*<dd>(\w+)</dd>", plan)[0]}


def work(visitor: Visitor) -> dict[str, Any]:
    """Look at the panel of a request that reads, and of one that writes."""
    return {"get": panel(visitor, "GET"), "post": panel(visitor, "POST")}
