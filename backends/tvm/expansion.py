"""Lowers an op as other ops, where these say it well enough: no kernel of its own is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from slmopt.errors import InputError
from slmopt.ir.graph import Graph, Op, Value

__all__ = ["Expansion", "expansion"]


@dataclass(frozen=True)
class Expansion:
    """A lowering that rewrites: `build(at, op, *operands)` adds ops at a cursor and returns what `op` resulted in."""

    build: Callable[..., Value | Iterable[Value]]

    def apply(self, graph: Graph, op: Op) -> None:
        """Replace `op` by other ops; InputError where they give another type."""
        found = self.build(graph.before(op), op, *op.operands)
        values = [found] if isinstance(found, Value) else list(found)
        if [value.type for value in values] != [result.type for result in op.results]:
            given = ", ".join(str(value.type) for value in values)
            raise InputError(f"{op.describe()}: its expansion gives {given}, "
                             f"expected {', '.join(str(result.type) for result in op.results)}")  # fmt: skip
        graph.replace(op, *values)


def expansion(build: Callable[..., Value | Iterable[Value]]) -> Expansion:
    """The lowering of an op as other ops: `build(at, op, *operands)` gives its result. To be used as a decorator.

    `at` is a `slmopt.ir.cursor.Cursor` before the op: at.add("mul", x, x). What is added is lowered in its turn.
    """
    return Expansion(build)
