"""django-guardian."""

from typing import Any
from uuid import uuid4

from django.contrib.auth import get_user_model, login
from django.contrib.auth.models import Group
from django.db import models
from django.http import HttpRequest, JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from guardian.shortcuts import assign_perm, get_objects_for_user, get_perms, get_users_with_perms, remove_perm

from tests.ecosystem.site import Visitor


class Document(models.Model):
    """What permissions are for."""

    title = models.CharField(max_length=50)


@csrf_exempt
def documents(request: HttpRequest, pk: int | None = None) -> JsonResponse:
    """Log in with your own document; give a permission to a group, take one back; return what may be seen."""
    user = request.user
    if request.method == "POST" and pk is None:
        user = get_user_model().objects.create_user(request.POST["name"])
        document = Document.objects.create(title="a letter")
        assign_perm("site.change_document", user, document)
        login(request, user, "django.contrib.auth.backends.ModelBackend")
        return JsonResponse({"id": document.pk})
    document = Document.objects.get(pk=pk)
    if request.method == "POST":
        group, _ = Group.objects.get_or_create(name=f"readers of {document.pk}")
        user.groups.add(group)
        assign_perm("view_document", group, document)
    if request.method == "DELETE":
        remove_perm("change_document", user, document)
    return JsonResponse(
        {
            "has": [user.has_perm(f"site.{name}_document", document) for name in ("change", "view", "delete")],
            "perms": sorted(get_perms(user, document)),
            "objects": [one.title for one in get_objects_for_user(user, "site.change_document")],
            "users": len(get_users_with_perms(document)),
        }
    )


urlpatterns = [path("", documents), path("<int:pk>/", documents)]


def work(visitor: Visitor) -> dict[str, Any]:
    """Give permissions to a user and to a group, take them back, and look at them after each step."""
    pk = visitor.ask("POST", "/", data={"name": uuid4().hex}).json()["id"]
    return {"steps": [visitor.ask(method, f"/{pk}/").json() for method in ("GET", "POST", "GET", "DELETE", "GET")]}
