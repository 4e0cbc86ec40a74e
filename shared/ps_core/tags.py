"""Query tags: a comment that shows the database's operators where a statement comes from (SQLCommenter's format).

PlanetScale's Insights and Traffic Control read it where it stands before the semicolon, and drop keys and values that do not
match `[\\w\\-./:,]+`, keys beyond 65 and values beyond 1,024 bytes; more than 20 values of a tag by pattern are collapsed.

>>> comment({"route": "/orders/<int:pk>", "application": "shop"})
b"/*application='shop',route='%2Forders%2F%3Apk'*/"
>>> with_comment(b"SELECT 1;", b"/*a='b'*/")
b"SELECT 1/*a='b'*/;"
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final
from urllib.parse import quote

from ps_core._plain_errors import ConfigurationError
from ps_core.context import Block, Tag, current

__all__ = ["check_tags", "comment", "current_comment", "tags", "with_comment"]

_KEY: Final = re.compile(r"[\w\-./:,]{1,65}", re.ASCII)
MAX_VALUE: Final = 1024
# Routes: Django's <int:pk>, Flask's <int:pk>, Starlette's {pk:int}, and the named groups of Django's re_path.
_PARAMETER: Final = re.compile(r"<(?:\w+:)?(\w+)>|\{(\w+)(?::\w+)?\}|\(\?P<(\w+)>(?:[^()\\]|\\.|\([^()]*\))*\)")
_OTHER: Final = re.compile(r"[^\w\-./:,]+", re.ASCII)


def tags(**values: Tag) -> Block:
    """Return a block (and decorator) whose statements carry these tags, beside those of the blocks around it.

    `with ps_core.tags(application="shop", controller="orders.show"): ...`

    A value is a string, or a function without arguments that returns one (None: no tag), asked with each statement. Use few
    different values: a route's template, not its path. Statements whose parameters the server binds carry none (they may be
    prepared, and each text would be prepared anew), of `executemany` the first one does.

    Raises:
        ConfigurationError: a name cannot be a tag's.
    """
    check_tags(values)
    return Block(lambda outer: {"tags": tuple({**dict(outer.tags), **values}.items())})


def check_tags(given: Any) -> None:
    """Refuse names that PlanetScale would drop, and values that are neither strings nor functions.

    Raises:
        ConfigurationError: see there.
    """
    if not isinstance(given, Mapping):
        raise ConfigurationError(f"tags: write a mapping of names to strings or functions, not {given!r}")
    for name, value in given.items():
        if not isinstance(name, str) or not _KEY.fullmatch(name):
            raise ConfigurationError(f"tags: {name!r}: write letters, digits and _-./:, (at most 65)")
        if not isinstance(value, str | None) and not callable(value):
            raise ConfigurationError(f"tags: {name}: write a string, or a function that returns one, not {value!r}")


def comment(values: Mapping[str, str]) -> bytes:
    """Return the comment of these tags; empty where there are none."""
    return _comment(tuple(sorted(values.items())))


@lru_cache(maxsize=1024)
def _comment(values: tuple[tuple[str, str], ...]) -> bytes:
    pairs = [f"{quote(key, safe='')}='{quote(clean, safe='')}'" for key, value in values if (clean := _clean(value))]
    return f"/*{','.join(pairs)}*/".encode() if pairs else b""


def _clean(value: str) -> str:
    named = _PARAMETER.sub(lambda match: f":{match[1] or match[2] or match[3]}", value).strip("^$")
    return _OTHER.sub("_", named)[:MAX_VALUE]


def current_comment() -> bytes:
    """Return the comment of this context's tags."""
    given = current().tags
    if not given:
        return b""
    values = {name: value() if callable(value) else value for name, value in given}
    return comment({name: value for name, value in values.items() if value})


def with_comment(query: bytes, text: bytes) -> bytes:
    """Return `query` with a comment before its last semicolon."""
    body = query.rstrip()
    if body.endswith(b";"):
        return body[:-1] + text + b";"
    # On a line of its own: the statement may end in a comment that goes to the end of the line.
    return body + (b"\n" if b"--" in body else b"") + text
