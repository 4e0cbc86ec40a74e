"""channels_postgres: messages by NOTIFY, between the processes of a site."""

import asyncio
from typing import Any
from uuid import uuid4

from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer
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
    """Write a note, and tell a group of it."""
    if request.method == "POST":
        note = Note.objects.create(text=request.POST["text"])
        layer = get_channel_layer("sending")
        assert layer is not None
        async_to_sync(layer.group_send)(request.POST["group"], {"type": "note.written", "text": note.text})
    return JsonResponse({"found": Note.objects.filter(text="none").count()})


urlpatterns = [path("", page)]


async def heard(visitor: Visitor) -> list[Any]:
    """Join a group, let the site write, and return the messages."""
    layer, group = get_channel_layer(), f"g{uuid4().hex}"
    assert layer is not None
    channel = await layer.new_channel()
    await layer.group_add(group, channel)
    receiving = asyncio.create_task(layer.receive(channel))
    first = {"group": group, "text": "tea " * 12}
    await asyncio.to_thread(visitor.ask, "POST", "/", data=first)
    messages = [await asyncio.wait_for(receiving, 20)]
    await asyncio.to_thread(visitor.ask, "POST", "/", data={"group": group, "text": "cake"})
    messages.append(await asyncio.wait_for(layer.receive(channel), 20))
    await layer.group_discard(group, channel)
    return messages


def work(visitor: Visitor) -> dict[str, Any]:
    """Hear what another part of the site tells."""
    visitor.ask("GET", "/")
    return {"messages": asyncio.run(heard(visitor))}
