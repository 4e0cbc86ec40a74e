"""django-mptt and django-treebeard: the same tree with each."""

from typing import Any
from uuid import uuid4

from django.db import models
from django.http import HttpRequest, JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from mptt.models import MPTTModel, TreeForeignKey
from treebeard.mp_tree import MP_Node
from treebeard.ns_tree import NS_Node

from tests.ecosystem.site import Visitor


class Genre(MPTTModel):
    """A tree of django-mptt's."""

    name = models.CharField(max_length=50)
    parent = TreeForeignKey("self", on_delete=models.CASCADE, null=True, related_name="children")


class Category(MP_Node):
    """A tree of django-treebeard's, by paths."""

    name = models.CharField(max_length=50)


class Section(NS_Node):
    """Another, by nested sets."""

    name = models.CharField(max_length=50)


@csrf_exempt
def trees(request: HttpRequest, run: str) -> JsonResponse:
    """Make a tree of each kind, move a branch, delete one, or show them."""
    root, green, black, sencha = (f"{run} {name}" for name in ("tea", "green", "black", "sencha"))
    beards = (Category, Section)
    if request.method == "POST":
        made = Genre.objects.create(name=root)
        below = {name: Genre.objects.create(name=name, parent=made) for name in (green, black)}
        Genre.objects.create(name=sencha, parent=below[black])
        for kind in beards:
            top = kind.add_root(name=root)
            for name in (green, black):
                top.refresh_from_db()
                top.add_child(name=name)
            kind.objects.get(name=black).add_child(name=sencha)
    if request.method == "PUT":
        Genre.objects.get(name=sencha).move_to(Genre.objects.get(name=green))
        for kind in beards:
            kind.objects.get(name=sencha).move(kind.objects.get(name=green), "last-child")
    if request.method == "DELETE":
        Genre.objects.get(name=green).delete()
        for kind in beards:
            kind.objects.get(name=green).delete()
    mptt = Genre.objects.get(name=root)
    shown = [[[one.name[33:], one.level] for one in mptt.get_descendants(include_self=True)]]
    for kind in beards:
        top = kind.objects.get(name=root)
        shown.append([[one.name[33:], one.get_depth() - 1] for one in kind.get_tree(top)])
    return JsonResponse({"trees": shown, "same": shown[0] == shown[1] == shown[2], "below": mptt.get_descendant_count()})


urlpatterns = [path("<str:run>/", trees)]


def work(visitor: Visitor) -> dict[str, Any]:
    """Make trees, move a branch and delete one, and look at them after each step."""
    run = uuid4().hex
    shown = []
    for method in ("POST", "PUT", "DELETE"):
        visitor.ask(method, f"/{run}/")
        shown.append(visitor.ask("GET", f"/{run}/").json())
    return {"shown": shown}
