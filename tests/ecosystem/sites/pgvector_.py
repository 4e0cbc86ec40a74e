"""pgvector's fields, indexes and distances."""

from typing import Any
from uuid import uuid4

from django.db import models
from django.http import HttpRequest, JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from pgvector.django import CosineDistance, HnswIndex, L2Distance, VectorField

from tests.ecosystem.site import Visitor


class Item(models.Model):
    """What is near to others."""

    run = models.CharField(max_length=32)
    name = models.CharField(max_length=50)
    embedding = VectorField(dimensions=3)

    class Meta:
        indexes = (HnswIndex(name="near", fields=["embedding"], m=16, ef_construction=64, opclasses=["vector_l2_ops"]),)


@csrf_exempt
def items(request: HttpRequest, run: str) -> JsonResponse:
    """Write vectors, or find the nearest."""
    if request.method == "POST":
        Item.objects.bulk_create(
            Item(run=run, name=name, embedding=vector)
            for name, vector in (("tea", [1, 0, 0]), ("cup", [0.9, 0.1, 0]), ("car", [0, 0, 1]))
        )
    near = Item.objects.filter(run=run).alias(distance=L2Distance("embedding", [1, 0, 0])).order_by("distance")
    cosine = Item.objects.filter(run=run).annotate(distance=CosineDistance("embedding", [0, 0, 2])).order_by("distance")
    return JsonResponse(
        {
            "near": [[one.name, [round(float(x), 3) for x in one.embedding]] for one in near[:2]],
            "cosine": [[one.name, round(one.distance, 3)] for one in cosine],
        }
    )


urlpatterns = [path("<str:run>/", items)]


def work(visitor: Visitor) -> dict[str, Any]:
    """Write vectors, and look for the nearest."""
    run = uuid4().hex
    return {"steps": [visitor.ask(method, f"/{run}/").json() for method in ("POST", "GET")]}
