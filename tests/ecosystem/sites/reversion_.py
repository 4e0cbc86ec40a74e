"""django-reversion."""

from typing import Any

import reversion
from django.db import models
from django.http import HttpRequest, JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from reversion.models import Version

from tests.ecosystem.site import Visitor


@reversion.register()
class Page(models.Model):
    """What has versions."""

    text = models.CharField(max_length=50)


@csrf_exempt
def page(request: HttpRequest, pk: int | None = None) -> JsonResponse:
    """Make, change, delete or restore a page, and show its versions."""
    if request.method == "POST" and pk is None:
        return JsonResponse({"id": Page.objects.create(text="first").pk})
    versions = Version.objects.get_for_object_reference(Page, pk)
    if request.method == "PUT":
        changed = Page.objects.get(pk=pk)
        changed.text = "second"
        changed.save()
        reversion.set_comment("a better word")
    elif request.method == "DELETE":
        Page.objects.filter(pk=pk).delete()
    elif request.method == "POST":
        versions.last().revision.revert()
    return JsonResponse(
        {
            "now": list(Page.objects.filter(pk=pk).values_list("text", flat=True)),
            "versions": [
                [one.field_dict["text"], one.revision.comment] for one in versions.order_by("pk").select_related("revision")
            ],
            "deleted": [one.field_dict["text"] for one in Version.objects.get_deleted(Page).filter(object_id=str(pk))],
        }
    )


urlpatterns = [path("", page), path("<int:pk>/", page)]


def work(visitor: Visitor) -> dict[str, Any]:
    """Make a page, change it, delete it and restore its first version, and look at it after each step."""
    pk = visitor.ask("POST", "/").json()["id"]
    shown = []
    for method in ("PUT", "DELETE", "POST"):
        visitor.ask(method, f"/{pk}/")
        shown.append(visitor.ask("GET", f"/{pk}/").json())
    return {"shown": shown}
