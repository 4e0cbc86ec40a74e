"""Mutations that Cosmic Ray does not know: a statement left out, a `return` that says the opposite, `in` for `not in`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import parso
from cosmic_ray.operators.operator import Operator

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["OURS"]

Position = tuple[int, int]


class LeaveOutStatement(Operator):
    """Put `pass` in the place of an assignment, a call, a `raise`, a `return`, a `break`."""

    def mutation_positions(self, node: Any) -> Iterator[tuple[Position, Position]]:
        """Yield where such a statement stands. Docstrings and fields of classes are none."""
        if node.type != "simple_stmt" or _in_class_or_module(node):
            return
        if node.children[0].type not in ("string", "import_from", "import_name") and node.get_code().strip() != "pass":
            yield node.children[0].start_pos, node.children[0].end_pos

    def mutate(self, node: Any, index: int) -> Any:
        """Return the node without it."""
        first = node.children[0]
        node.children[0] = parso.parse(first.get_first_leaf().prefix + "pass")
        return node

    @classmethod
    def examples(cls) -> tuple[Any, ...]:
        """Return none: they are for Cosmic Ray's own tests."""
        return ()


class ReturnOpposite(Operator):
    """Return `not x` for a comparison, a conjunction or a negation x."""

    KINDS = ("comparison", "and_test", "or_test", "not_test")

    def mutation_positions(self, node: Any) -> Iterator[tuple[Position, Position]]:
        """Yield where such a value stands."""
        if node.type == "return_stmt" and node.children[1].type in self.KINDS:
            yield node.children[1].start_pos, node.children[1].end_pos

    def mutate(self, node: Any, index: int) -> Any:
        """Return the node with the opposite."""
        node.children[1] = parso.parse(f" not ({node.children[1].get_code().strip()})")
        return node

    @classmethod
    def examples(cls) -> tuple[Any, ...]:
        """Return none: they are for Cosmic Ray's own tests."""
        return ()


class InForNotIn(Operator):
    """Exchange `in` and `not in`."""

    def mutation_positions(self, node: Any) -> Iterator[tuple[Position, Position]]:
        """Yield where one stands, in a comparison of two."""
        if node.type == "comparison" and " ".join(node.children[1].get_code().split()) in ("in", "not in"):
            yield node.children[1].start_pos, node.children[1].end_pos

    def mutate(self, node: Any, index: int) -> Any:
        """Return the node with the other one."""
        is_in = node.children[1].get_code().strip() == "in"
        node.children[1] = parso.parse(" not in" if is_in else " in")
        return node

    @classmethod
    def examples(cls) -> tuple[Any, ...]:
        """Return none: they are for Cosmic Ray's own tests."""
        return ()


def _in_class_or_module(node: Any) -> bool:
    while node.parent is not None:
        node = node.parent
        if node.type in ("funcdef", "lambdef"):
            return False
        if node.type in ("classdef", "file_input"):
            return True
    return True


OURS = (LeaveOutStatement, ReturnOpposite, InForNotIn)
