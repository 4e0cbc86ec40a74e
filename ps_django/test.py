"""For the tests of a project: which endpoint answered.

Under Django's test runner and pytest-django, replica aliases are mirrors of their primary (`TEST: MIRROR`, which `databases()`
sets): what is asked of them is answered by the primary's connection, so that a `TestCase` sees its own writes through them. A
replica that lags behind is what `ps_lab` is for (`Lab.set_replay_delay`).
"""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from django.db import connections

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["assert_routes"]


@contextmanager
def assert_routes(*wanted: str | int) -> Iterator[None]:
    """Assert how many statements each alias is given in the block.

    `with assert_routes("default", 2, "replica", 5): ...`

    Aliases that are not named must be given none. BEGIN and COMMIT do not count.

    Raises:
        AssertionError: it was otherwise; the statements are in the message.
    """
    expected = {str(alias): int(count) for alias, count in zip(wanted[::2], wanted[1::2], strict=True)}
    given: list[tuple[str, str]] = []

    def note(alias: str, execute: Any, sql: Any, params: Any, many: Any, context: Any) -> Any:
        given.append((alias, str(sql)))
        return execute(sql, params, many, context)

    with ExitStack() as stack:
        for alias in connections:
            stack.enter_context(connections[alias].execute_wrapper(partial(note, alias)))
        yield
    counts = Counter(alias for alias, _ in given)
    if dict(counts) != {alias: count for alias, count in expected.items() if count}:
        statements = "\n".join(f"  {alias}: {sql}" for alias, sql in given)
        raise AssertionError(f"expected {expected}, but it was {dict(counts)}:\n{statements}")
