"""One way of writing a test for sync and asyncio: an asyncio object, used as if it were a sync one."""

from __future__ import annotations

import inspect
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator

__all__ = ["Driven"]


class Driven:
    """An object of psycopg's asyncio side whose coroutines are run to their end by `runner` where they are called."""

    def __init__(self, runner: asyncio.Runner, what: Any) -> None:
        self.__dict__.update(runner=runner, what=what)

    def _take(self, value: Any) -> Any:
        if inspect.isawaitable(value):

            async def run() -> Any:
                return await value

            value = self.runner.run(run(), context=copy_context())
        return Driven(self.runner, value) if hasattr(value, "__aenter__") or hasattr(value, "__aiter__") else value

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.what, name)
        if not callable(value):
            return self._take(value)
        return lambda *args, **kwargs: self._take(value(*args, **kwargs))

    def __setattr__(self, name: str, value: Any) -> None:
        self._take(getattr(self.what, f"set_{name}")(value))

    def __enter__(self) -> Any:
        return self._take(self.what.__aenter__())

    def __exit__(self, *exc: object) -> Any:
        return self._take(self.what.__aexit__(*exc))

    def __iter__(self) -> Iterator[Any]:
        rows = self.what.__aiter__()
        try:
            while True:
                try:
                    yield self._take(rows.__anext__())
                except StopAsyncIteration:
                    return
        finally:
            if hasattr(rows, "aclose"):
                self._take(rows.aclose())
