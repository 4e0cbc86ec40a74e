"""django-pghistory, with the triggers of django-pgtrigger."""

from typing import Any

import pghistory
from django.db import models, transaction
from django.http import HttpRequest, JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

from tests.ecosystem.site import Visitor


@pghistory.track(pghistory.InsertEvent(), pghistory.UpdateEvent(), pghistory.DeleteEvent())
class Account(models.Model):
    """What is tracked."""

    owner = models.CharField(max_length=50)
    amount = models.IntegerField(default=0)


@csrf_exempt
def account(request: HttpRequest, pk: int | None = None) -> JsonResponse:
    """Make an account, change it in a transaction or without, delete it, and show its events."""
    if request.method == "POST" and pk is None:
        return JsonResponse({"id": Account.objects.create(owner="teapot").pk})
    if request.method == "POST":
        with transaction.atomic():
            locked = Account.objects.select_for_update().get(pk=pk)
            locked.amount += 5
            locked.save()
            Account.objects.filter(pk=pk).update(amount=models.F("amount") * 2)
        with pghistory.context(reason="a correction"):
            Account.objects.filter(pk=pk).update(owner="a 'quoted' 100% owner")
        return JsonResponse({})
    if request.method == "DELETE":
        Account.objects.filter(pk=pk).delete()
        return JsonResponse({})
    events = pghistory.models.Events.objects.filter(pgh_obj_model="site.Account", pgh_obj_id=str(pk)).order_by(
        "pgh_created_at", "pgh_id"
    )
    return JsonResponse(
        {
            "events": [
                [one.pgh_label, one.pgh_data["owner"], one.pgh_data["amount"], one.pgh_context and one.pgh_context.get("reason")]
                for one in events
            ],
            "contexts": len({one.pgh_context_id for one in events}),
        }
    )


urlpatterns = [path("", account), path("<int:pk>/", account)]


def work(visitor: Visitor) -> dict[str, Any]:
    """Make, change and delete an account, and look at its events after each step."""
    pk = visitor.ask("POST", "/").json()["id"]
    shown = []
    for method in ("POST", "DELETE"):
        visitor.ask(method, f"/{pk}/")
        shown.append(visitor.ask("GET", f"/{pk}/").json())
    return {"shown": shown}
