"""django-allauth."""

import re
from typing import Any
from uuid import uuid4

from django.contrib.auth import get_user_model
from django.core import mail
from django.http import HttpRequest, JsonResponse
from django.urls import path

from tests.ecosystem.site import Visitor


def me(request: HttpRequest) -> JsonResponse:
    """Tell who is logged in."""
    return JsonResponse({"name": request.user.get_username()})


urlpatterns = [path("accounts/profile/", me)]


def submit(visitor: Visitor, url: str, **values: str) -> str:
    """Fill in a page's form and send it; return where that led."""
    visitor.ask("GET", url)
    answer = visitor.ask("POST", url, data={"csrfmiddlewaretoken": visitor.cookies["csrftoken"], **values})
    return answer.url.path


def work(visitor: Visitor) -> dict[str, Any]:
    """Sign up, confirm the address, log out, log in, and change the password."""
    name, old, new = uuid4().hex, "a teapot for two", "a teapot for three"
    mail.outbox = []
    signed_up = submit(visitor, "/accounts/signup/", username=name, email=f"{name}@example.org", password1=old, password2=old)
    (link,) = re.findall(r"https?://[^/]+(/accounts/confirm-email/\S+)", mail.outbox[0].body)
    confirmed = submit(visitor, link)
    logged_in = submit(visitor, "/accounts/login/", login=name, password=old)
    first = visitor.ask("GET", "/accounts/profile/").json()["name"]
    changed = submit(visitor, "/accounts/password/change/", oldpassword=old, password1=new, password2=new)
    logged_out = submit(visitor, "/accounts/logout/")
    wrong = submit(visitor, "/accounts/login/", login=name, password=old)
    again = submit(visitor, "/accounts/login/", login=name, password=new)
    second = visitor.ask("GET", "/accounts/profile/").json()["name"]
    return {
        "led to": [signed_up, confirmed, logged_in, changed, logged_out, wrong, again],
        "known": [first == name, second == name],
        "verified": get_user_model().objects.get(username=name).emailaddress_set.get().verified,
    }
