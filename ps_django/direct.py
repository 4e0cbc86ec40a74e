"""The direct path on request, and connection strings for libraries that connect by themselves."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Any

from django.core.exceptions import ImproperlyConfigured
from django.db import connections

from ps_core.context import using_primary
from ps_django import path

if TYPE_CHECKING:
    from contextvars import Token

__all__ = ["conninfo", "on_direct_path"]


class _DirectPath(AbstractContextManager[None]):
    def __init__(self) -> None:
        self._stack = ExitStack()

    def __enter__(self) -> None:
        if (alias := next((one.alias for one in _wrappers() if one.ps_is_bound), None)) is not None:
            raise RuntimeError(
                f"on_direct_path() inside a transaction that {alias!r} has begun on its own path, where it has to end:"
                " write on_direct_path() around atomic(); in a view under ATOMIC_REQUESTS, write"
                " @transaction.non_atomic_requests above the view"
            )
        with ExitStack() as stack:
            stack.enter_context(using_primary())
            reset: Token[bool] = path.on_direct.set(True)
            stack.callback(_take_path)
            stack.callback(path.watch.add_blocks, -1)
            stack.callback(path.on_direct.reset, reset)
            path.watch.add_blocks(1)
            self._stack = stack.pop_all()

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def on_direct_path() -> AbstractContextManager[None]:
    """Return a block whose work is on the direct path: a session of its own, without a pooler and without limits of requests.

    `with ps_django.on_direct_path(): ...`

    For what a transaction pooler is not made for: long reports, advisory locks, temporary tables, VACUUM. It holds for all
    aliases that have a direct path, in this thread or task and what it awaits; reads go to the primary. The lock timeout of the
    direct path (5 s) stays. Write it around `atomic()`, which cannot change its connection.

    Raises:
        RuntimeError: on entering, a transaction has begun on an alias's own path.
    """
    return _DirectPath()


def conninfo(alias: str) -> dict[str, Any]:
    """Return the libpq parameters of an alias, the password included: what `psycopg.connect(**conninfo(alias))` takes.

    For libraries that make connections of their own, such as a channel layer or a queue. Those that LISTEN need a session:
    `conninfo("direct")`.

    Raises:
        django.utils.connection.ConnectionDoesNotExist: there is no such alias.
        django.core.exceptions.ImproperlyConfigured: the alias is of another backend.
    """
    connection: Any = connections[alias]
    if not hasattr(connection, "ps_state"):
        raise ImproperlyConfigured(
            f"conninfo({alias!r}): its ENGINE is none of ps_django: write an alias of ps_django.databases()"
        )
    params: dict[str, Any] = connection.get_connection_params()
    of_psycopg = ("context", "cursor_factory", "prepare_threshold")
    return {name: value for name, value in params.items() if name not in of_psycopg}


def _wrappers() -> list[Any]:
    return [one for one in connections.all(initialized_only=True) if hasattr(one, "ps_take_path")]


def _take_path() -> None:
    for wrapper in _wrappers():
        wrapper.ps_take_path()
